package log

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
)

// Cosigner gets a checkpoint cosigned before it is published. It may be called concurrently.
type Cosigner interface {
	// Cosign returns note with the cosignature lines of a quorum of witnesses behind its own, or an error when there is no
	// quorum: nobody may then be shown note. size is the checkpoint's; prove returns the consistency proof
	// (RFC 6962, section 2.1.2) from a size above 0 and below it.
	Cosign(ctx context.Context, note []byte, size uint64, prove func(ctx context.Context, from uint64) ([][]byte, error)) ([]byte, error)
}

// ed25519Line signs a checkpoint's text a second time, for witnesses that know no other kind of log key
// than Ed25519, and returns the line that comes behind the log's own: "— <name> <base64(hash ‖ signature)>\n".
// The hash is that of c2sp.org/signed-note, type 0x01, so the line stands beside another of the same
// name; it is in no trusted root, and clients pass over it. text ends with the newline before the blank line.
func ed25519Line(text []byte, name string, key crypto.Signer) ([]byte, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("key for witnesses: a %T is not supported, use Ed25519", key.Public())
	}
	sig, err := key.Sign(rand.Reader, text, crypto.Hash(0))
	if err != nil {
		return nil, fmt.Errorf("signing checkpoint for witnesses: %w", err)
	}
	hash := sha256.Sum256(append([]byte(name+"\n\x01"), public...))
	return []byte("— " + name + " " + base64.StdEncoding.EncodeToString(append(hash[:4:4], sig...)) + "\n"), nil
}
