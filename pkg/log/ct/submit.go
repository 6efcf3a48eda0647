package ct

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/transparency-dev/tessera/ctonly"
	"golang.org/x/crypto/cryptobyte"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// AddPreChain logs a precertificate and returns its serialized SignedCertificateTimestamp
// (RFC 6962, section 3.2, TLS encoding), the element of an SCT list. chain is DER, the
// precertificate first, then its issuers in order; the root may be left out. The caller must
// not change the bytes afterwards.
//
// The same precertificate gets the same timestamp, index and so the same SCT again.
// Refused chains are fault.Invalid or fault.TooLarge; an overloaded or halted log is
// fault.Overloaded or fault.Unavailable.
func (h *Handler) AddPreChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return h.addMarshalled(ctx, chain, true, false)
}

// AddOwnPreChain is AddPreChain for the certificate authority of this process, which made the signature of chain[0] a
// moment ago with the key of chain[1]: that one is not verified again once chain[1:] is known. A P-384 verification
// costs three times what the signature does. No request of another process comes here.
func (h *Handler) AddOwnPreChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return h.addMarshalled(ctx, chain, true, true)
}

// AddChain is AddPreChain for a certificate in place of a precertificate.
func (h *Handler) AddChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return h.addMarshalled(ctx, chain, false, false)
}

func (h *Handler) addMarshalled(ctx context.Context, chain [][]byte, precert, own bool) ([]byte, error) {
	s, _, err := h.add(ctx, chain, precert, own)
	if err != nil {
		return nil, err
	}
	return s.marshal()
}

// add logs chain[0] and signs the SCT for the entry that is in the log. own: this process signed chain[0].
func (h *Handler) add(ctx context.Context, chain [][]byte, precert, own bool) (sct, log.Receipt, error) {
	var entry *ctonly.Entry
	var err error
	if busy := h.work.Do(ctx, func() { entry, err = h.verifier.Load().entry(chain, precert, own) }); busy != nil {
		return sct{}, log.Receipt{}, busy
	}
	if err != nil {
		return sct{}, log.Receipt{}, err
	}
	entry.Timestamp = uint64(h.now().UnixMilli())
	submission, err := h.submission(entry)
	if err != nil {
		return sct{}, log.Receipt{}, err
	}
	receipt, err := h.log.Add(ctx, submission)
	if err != nil {
		return sct{}, log.Receipt{}, fmt.Errorf("adding to the log: %w", err)
	}
	in := log.SCTInput{
		TimestampMillis: receipt.TimestampMillis,
		Precert:         precert,
		IssuerKeyHash:   issuerKeyHash(entry),
		Data:            entry.Certificate,
	}
	if !h.plain {
		in.Extensions = leafIndexExtension(receipt.Index)
	}
	if receipt.Duplicate {
		// The SCT must stand for the leaf that is there. The same certificate could have come
		// with another pre-issuer's chain, and then the two leaves would differ.
		if in, err = h.logged(ctx, receipt.Index); err != nil {
			return sct{}, log.Receipt{}, err
		}
	}
	signature, err := h.log.SignSCT(ctx, receipt.Index, in)
	if err != nil {
		return sct{}, log.Receipt{}, fmt.Errorf("signing the SCT of index %d: %w", receipt.Index, err)
	}
	h.metrics.promised(in.TimestampMillis)
	return sct{h.logID, in.TimestampMillis, in.Extensions, signature}, receipt, nil
}

// submission returns the entry as the log takes it. A log.CTPlain keeps the MerkleTreeLeaf;
// what a TileLeaf has behind it travels beside it. The same certificate under the
// same issuer key is one leaf there, whoever signed its precertificate.
func (h *Handler) submission(entry *ctonly.Entry) (log.Submission, error) {
	if !h.plain {
		return log.Submission{Identity: [32]byte(entry.Identity()), CT: entry}, nil
	}
	leaf, extra, err := plainLeaf(entry)
	if err != nil {
		return log.Submission{}, fmt.Errorf("encoding the leaf: %w", err)
	}
	if len(leaf) > log.MaxEntry {
		return log.Submission{}, fault.New(fault.TooLarge, "certificate_too_large", nil, "the certificate's log entry has %d bytes, the limit is %d", len(leaf), log.MaxEntry)
	}
	identity, err := log.CTPlainIdentity(leaf)
	return log.Submission{Identity: identity, Data: leaf, Extra: extra}, err
}

// logged returns what an SCT for the leaf at index has to sign.
func (h *Handler) logged(ctx context.Context, index uint64) (log.SCTInput, error) {
	stored, err := h.log.Leaf(ctx, index)
	if err != nil {
		return log.SCTInput{}, fmt.Errorf("reading the duplicate at index %d: %w", index, err)
	}
	leaf, err := h.parseLeaf(stored)
	if err != nil {
		return log.SCTInput{}, fmt.Errorf("reading the duplicate at index %d: %w", index, err)
	}
	return log.SCTInput{
		TimestampMillis: leaf.timestampMillis,
		Precert:         leaf.precert,
		IssuerKeyHash:   leaf.issuerKeyHash,
		Data:            leaf.signed,
		Extensions:      leaf.extensions,
	}, nil
}

func issuerKeyHash(e *ctonly.Entry) (hash [sha256.Size]byte) {
	copy(hash[:], e.IssuerKeyHash)
	return hash
}

// leafIndexExtension returns the CtExtensions that name the leaf's index (c2sp.org/static-ct-api,
// "SCT extension"): type 0, uint16 length 5, uint40 index.
func leafIndexExtension(index uint64) []byte {
	return []byte{0, 0, 5, byte(index >> 32), byte(index >> 24), byte(index >> 16), byte(index >> 8), byte(index)}
}

// sct is a version 1 SignedCertificateTimestamp. Log keys are ECDSA P-256 with SHA-256: the
// reference clients verify no other curve.
type sct struct {
	logID           [32]byte
	timestampMillis uint64
	extensions      []byte // CtExtensions without their length
	signature       []byte // DER
}

// TLS SignatureAndHashAlgorithm of RFC 5246, section 7.4.1.4.1.
const (
	hashSHA256 = 4
	sigECDSA   = 3
)

// marshal returns the TLS encoding (RFC 6962, section 3.2).
func (s sct) marshal() ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 128+len(s.extensions)))
	b.AddUint8(0) // version v1
	b.AddBytes(s.logID[:])
	b.AddUint64(s.timestampMillis)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(s.extensions) })
	b.AddBytes(s.digitallySigned())
	return b.Bytes()
}

// digitallySigned returns the TLS DigitallySigned structure (RFC 5246, section 4.7).
func (s sct) digitallySigned() []byte {
	out := []byte{hashSHA256, sigECDSA, byte(len(s.signature) >> 8), byte(len(s.signature))}
	return append(out, s.signature...)
}
