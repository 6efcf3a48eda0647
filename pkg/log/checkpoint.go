package log

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// ParseCheckpoint returns the tree in a checkpoint of the log with these names and this key. Lines of other signers are allowed.
func ParseCheckpoint(kind Kind, origin, name string, key crypto.Signer, raw []byte) (SignedTree, error) {
	k, err := newFencedKey(kind, origin, name, key, nil)
	if err != nil {
		return SignedTree{}, err
	}
	opened, err := note.Open(raw, note.VerifierList(noteVerifier{k}))
	if err != nil {
		return SignedTree{}, fmt.Errorf("checkpoint: %w", err)
	}
	return parseTree(origin, opened.Text)
}

func parseTree(origin, text string) (SignedTree, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] != origin {
		return SignedTree{}, fmt.Errorf("checkpoint: its origin is not %q", origin)
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return SignedTree{}, fmt.Errorf("checkpoint: %q is no size", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != 32 {
		return SignedTree{}, fmt.Errorf("checkpoint: %q is no root hash", lines[2])
	}
	return SignedTree{Size: size, Root: [32]byte(root)}, nil
}

// IDOf returns the name of a key in the fence.
func IDOf(key crypto.Signer) (KeyID, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return KeyID{}, fmt.Errorf("log key: %w", err)
	}
	return sha256.Sum256(spki), nil
}

// noteVerifier verifies what fencedKey.checkpoint signs.
type noteVerifier struct{ key *fencedKey }

func (v noteVerifier) Name() string { return v.key.name }

func (v noteVerifier) KeyHash() uint32 {
	hash := v.key.keyHash()
	return binary.BigEndian.Uint32(hash[:])
}

func (v noteVerifier) Verify(text, sig []byte) bool {
	if !v.key.kind.isCT() {
		return verifies(v.key.signer.Public(), text, sig)
	}
	tree, err := parseTree(v.key.origin, string(text))
	if err != nil || len(sig) < 8+4 {
		return false
	}
	input := append([]byte{0, 1}, sig[:8]...) // version v1, signature_type tree_hash, timestamp
	input = binary.BigEndian.AppendUint64(input, tree.Size)
	input = append(input, tree.Root[:]...)
	return verifies(v.key.signer.Public(), input, sig[8+4:])
}

func verifies(key crypto.PublicKey, message, sig []byte) bool {
	switch pub := key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(pub, message, sig)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(message)
		return ecdsa.VerifyASN1(pub, digest[:], sig)
	}
	return false
}

// SignRecorded signs the newest tree in records, which PeekFence read, as a checkpoint. The key has committed itself to it, so it
// may be signed again whatever the log does meanwhile.
func SignRecorded(opts Options, records []Record, now time.Time) (Checkpoint, error) {
	if len(records) == 0 {
		return Checkpoint{}, ErrNoRecord
	}
	k, err := newFencedKey(opts.Kind, opts.Origin, opts.Name, opts.Key, peeked(records))
	if err != nil {
		return Checkpoint{}, err
	}
	record, err := k.load(context.Background())
	if err != nil {
		return Checkpoint{}, err
	}
	signed, err := k.checkpoint(now)
	return Checkpoint{Size: record.Size, Root: record.Root, Note: signed, Time: now}, err
}

// peeked is a fence that was read and cannot be moved.
type peeked []Record

func (p peeked) Last(context.Context, KeyID) (Record, error) { return p[0], nil }

func (peeked) Advance(context.Context, KeyID, Record, Record) error {
	return errors.New("this fence was only read")
}

func (p peeked) Recorded(_ context.Context, _ KeyID, size uint64) (Record, error) {
	for _, r := range p {
		if r.Size == size {
			return r, nil
		}
	}
	return Record{}, ErrNoRecord
}
