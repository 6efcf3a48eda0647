package log

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// Kind says which protocol a log speaks, and so what its key signs.
type Kind int

const (
	Rekor1  Kind = iota // checkpoints "host - treeID" and SETs
	Rekor2              // C2SP checkpoints
	CT                  // RFC 6962 STHs and SCTs, static-ct checkpoints; leaves and SCTs name their index
	CTPlain             // RFC 6962 STHs and SCTs alone; leaves and SCTs without extensions
)

// isCT reports whether the log's tree heads and promises are those of RFC 6962.
func (k Kind) isCT() bool { return k == CT || k == CTPlain }

// Kind says which protocol the log speaks.
func (l *Log) Kind() Kind { return l.opts.Kind }

// fencedKey is the only way to a log's private key. It signs trees and indexes that the
// fence holds for this key, and nothing that a caller made up.
type fencedKey struct {
	kind   Kind
	origin string // first line of a checkpoint
	name   string // of the signature line
	signer crypto.Signer
	id     KeyID
	logID  [32]byte
	fence  Fence
	shared bool // other processes sign with this key too: a fence that moved is no reason to halt

	mu     sync.Mutex // guards what follows
	last   Record     // what the fence held when it was read or advanced, or what the key is pinned to
	pinned bool       // the key signs the tree in last and no other, see pin

	heads  sync.Mutex // guards head and headAt, held while a head is signed: who waits gets the same one
	head   TreeHead   // CT only, the newest that was signed; zero before the first
	headAt time.Time  // when, by the log's clock
}

// headRefresh is the age at which the head of an unchanged tree is signed anew when somebody asks
// for it. Monitors want heads younger than the log's maximum merge delay, a minute or more.
const headRefresh = time.Second

// newFencedKey checks that key fits the kind of log: clients take nothing but ECDSA P-256 for
// Rekor v1 (cosign and sigstore-go refuse other SET keys) and for CT (reference clients
// know SHA-256 only); Rekor v2 may also use Ed25519.
func newFencedKey(kind Kind, origin, name string, key crypto.Signer, fence Fence) (*fencedKey, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	k := &fencedKey{kind: kind, origin: origin, name: name, signer: key, id: sha256.Sum256(spki), fence: fence}
	k.logID = k.id
	switch pub := key.Public().(type) {
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return nil, errors.New("log key: an ECDSA log key must be on P-256")
		}
	case ed25519.PublicKey:
		if kind != Rekor2 {
			return nil, errors.New("log key: clients of Rekor v1 and CT take no Ed25519 key, use ECDSA P-256")
		}
		k.logID = sha256.Sum256(append([]byte(name+"\n\x01"), pub...)) // c2sp.org/signed-note
	default:
		return nil, fmt.Errorf("log key: a %T is not supported, use ECDSA P-256", pub)
	}
	return k, nil
}

// load reads the key's record from the fence. A record behind one that this process has seen halts the log: the fence was
// restored, or its database went over to a standby that lacks its last commits, and what was signed since is in no record.
// A pinned key keeps the one that it has.
func (k *fencedKey) load(ctx context.Context) (Record, error) {
	record, err := k.fence.Last(ctx, k.id)
	k.mu.Lock()
	defer k.mu.Unlock()
	if errors.Is(err, ErrNoRecord) && k.last != (Record{}) {
		err = nil // the zero record is behind every other
	}
	if err != nil {
		return Record{}, err
	}
	if k.pinned {
		return k.last, nil
	}
	if record.Size < k.last.Size || record.Promised < k.last.Promised || record.Size == k.last.Size && record.Root != k.last.Root && k.last != (Record{}) {
		return Record{}, &haltError{fmt.Errorf("the fence went back: it holds size %d root %x, and held size %d root %x before; "+
			"bring back the newer one, with the rows that belong to it", record.Size, record.Root, k.last.Size, k.last.Root)}
	}
	k.last = record
	return record, nil
}

// advance commits the key to next. When it fails without ErrStale, the fence is asked what it
// holds: next means that the write took effect.
func (k *fencedKey) advance(ctx context.Context, next Record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if next.Size < k.last.Size || next.Promised < k.last.Promised || next.Promised < next.Size ||
		next.Size == k.last.Size && k.last != (Record{}) && next.Root != k.last.Root {
		return &haltError{fmt.Errorf("refusing to move the fence from size %d root %x to size %d root %x", k.last.Size, k.last.Root, next.Size, next.Root)}
	}
	if k.pinned {
		if next != k.last {
			return &haltError{fmt.Errorf("refusing to sign a tree of size %d: what follows size %d is lost", next.Size, k.last.Size)}
		}
		return nil
	}
	err := k.fence.Advance(ctx, k.id, k.last, next)
	if errors.Is(err, ErrStale) {
		if k.shared {
			return err
		}
		return &haltError{err}
	}
	if err != nil {
		held, readErr := k.fence.Last(ctx, k.id)
		if readErr != nil || held != next {
			return errors.Join(err, readErr)
		}
	}
	k.last = next
	return nil
}

func (k *fencedKey) record() Record {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

func (k *fencedKey) isPinned() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pinned
}

// checkpoint signs the fence's tree as a signed note (c2sp.org/tlog-checkpoint). For CT its signature
// is that of a tree head, as c2sp.org/static-ct-api has it, and treeHead gives the same head out; a
// CTPlain log shows it in that form only, the note is for its operator. Rekor v1 notes carry this one line only,
// since its note verifier fails the whole note on any other.
func (k *fencedKey) checkpoint(now time.Time) ([]byte, error) {
	record := k.record()
	text := k.origin + "\n" + strconv.FormatUint(record.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(record.Root[:]) + "\n"
	var blob []byte
	if k.kind.isCT() {
		head, err := k.signHead(record, now)
		if err != nil {
			return nil, err
		}
		blob = binary.BigEndian.AppendUint64(blob, head.TimestampMillis)
		blob = append(blob, head.Signature...)
	} else {
		sig, err := k.sign([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("signing checkpoint: %w", err)
		}
		blob = sig
	}
	hash := k.keyHash()
	return []byte(text + "\n— " + k.name + " " + base64.StdEncoding.EncodeToString(append(hash[:], blob...)) + "\n"), nil
}

// keyHash is the 4-byte hint of a signature line: the head of the log ID, except for
// static-ct's own signature type 0x05.
func (k *fencedKey) keyHash() [4]byte {
	if k.kind.isCT() {
		sum := sha256.Sum256(append([]byte(k.name+"\n\x05"), k.logID[:]...))
		return [4]byte(sum[:4])
	}
	return [4]byte(k.logID[:4])
}

// TreeHead is an RFC 6962 signed tree head (section 3.5).
type TreeHead struct {
	Size            uint64
	TimestampMillis uint64
	Root            [32]byte
	Signature       []byte // TLS DigitallySigned
}

// treeHead returns the head of the tree that checkpoint signed last. It is signed again when it has
// become older than headRefresh, once for all who ask meanwhile.
func (k *fencedKey) treeHead(now time.Time) (TreeHead, error) {
	k.heads.Lock()
	defer k.heads.Unlock()
	record := Record{Size: k.head.Size, Root: k.head.Root}
	if k.head.Signature == nil {
		record = k.record()
	} else if age := now.Sub(k.headAt); age >= 0 && age < headRefresh {
		return k.head, nil
	}
	return k.signHeadLocked(record, now)
}

func (k *fencedKey) signHead(record Record, now time.Time) (TreeHead, error) {
	k.heads.Lock()
	defer k.heads.Unlock()
	return k.signHeadLocked(record, now)
}

// signHeadLocked signs the head of a tree that the fence holds or held (RFC 6962, section 3.5). Its
// timestamp is later than that of every head before it, though the clock may have been set back.
func (k *fencedKey) signHeadLocked(record Record, now time.Time) (TreeHead, error) {
	head := TreeHead{Size: record.Size, Root: record.Root, TimestampMillis: uint64(now.UnixMilli())}
	if k.head.Signature != nil {
		head.TimestampMillis = max(head.TimestampMillis, k.head.TimestampMillis+1)
	}
	input := []byte{0, 1} // version v1, signature_type tree_hash
	input = binary.BigEndian.AppendUint64(input, head.TimestampMillis)
	input = binary.BigEndian.AppendUint64(input, head.Size)
	input = append(input, head.Root[:]...)
	sig, err := k.sign(input)
	if err != nil {
		return TreeHead{}, fmt.Errorf("signing tree head: %w", err)
	}
	head.Signature = digitallySigned(sig)
	k.head, k.headAt = head, now
	return head, nil
}

// set signs a Rekor v1 promise. Its payload is the RFC 8785 form of exactly these four
// members; base64 and hex need no escaping, so it is written down directly. Its index counts
// through all shards of the log, of which this one begins at first.
func (k *fencedKey) set(first, index uint64, body []byte, integratedUnix int64) ([]byte, error) {
	if record := k.record(); k.kind != Rekor1 || index < first || index-first >= record.Size {
		return nil, fmt.Errorf("refusing to sign a SET for index %d of a tree of size %d that begins at %d", index, record.Size, first)
	}
	payload := make([]byte, 0, len(body)*4/3+160)
	payload = append(payload, `{"body":"`...)
	payload = base64.StdEncoding.AppendEncode(payload, body)
	payload = append(payload, `","integratedTime":`...)
	payload = strconv.AppendInt(payload, integratedUnix, 10)
	payload = append(payload, `,"logID":"`...)
	payload = append(payload, KeyID(k.logID).String()...)
	payload = append(payload, `","logIndex":`...)
	payload = strconv.AppendUint(payload, index, 10)
	payload = append(payload, '}')
	sig, err := k.sign(payload)
	if err != nil {
		return nil, fmt.Errorf("signing SET: %w", err)
	}
	return sig, nil
}

// SCTInput is what an SCT signs (RFC 6962, section 3.2).
type SCTInput struct {
	TimestampMillis uint64
	Precert         bool
	IssuerKeyHash   [32]byte // of a precertificate
	Data            []byte   // certificate DER, or a precertificate's TBS without poison
	Extensions      []byte   // CtExtensions, at most 65,535 bytes; none for CTPlain
}

func (k *fencedKey) sct(index uint64, in SCTInput) ([]byte, error) {
	if record := k.record(); !k.kind.isCT() || index >= record.Promised {
		return nil, fmt.Errorf("refusing to sign an SCT for index %d with %d promised", index, record.Promised)
	}
	if k.kind == CTPlain && len(in.Extensions) > 0 {
		return nil, errors.New("refusing to sign an SCT with extensions: the leaves of this log have none")
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(in.Data)+len(in.Extensions)+64))
	b.AddUint8(0) // version v1
	b.AddUint8(0) // signature_type certificate_timestamp
	b.AddUint64(in.TimestampMillis)
	if in.Precert {
		b.AddUint16(1)
		b.AddBytes(in.IssuerKeyHash[:])
	} else {
		b.AddUint16(0)
	}
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(in.Data) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(in.Extensions) })
	input, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding SCT: %w", err)
	}
	sig, err := k.sign(input)
	if err != nil {
		return nil, fmt.Errorf("signing SCT: %w", err)
	}
	return sig, nil
}

// sign returns an ECDSA signature (DER, over SHA-256) or a pure Ed25519 one. A key in memory
// signs ECDSA deterministically (RFC 6979): the same certificate then gets the same SCT again.
func (k *fencedKey) sign(message []byte) ([]byte, error) {
	switch key := k.signer.(type) {
	case ed25519.PrivateKey:
		return key.Sign(nil, message, crypto.Hash(0))
	case *ecdsa.PrivateKey:
		digest := sha256.Sum256(message)
		return key.Sign(nil, digest[:], crypto.SHA256)
	}
	if _, ok := k.signer.Public().(ed25519.PublicKey); ok {
		return k.signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	digest := sha256.Sum256(message)
	return k.signer.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// digitallySigned wraps an ECDSA-SHA256 signature as RFC 5246, section 4.7 has it.
func digitallySigned(sig []byte) []byte {
	out := []byte{4, 3, byte(len(sig) >> 8), byte(len(sig))}
	return append(out, sig...)
}
