package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

// CTSubmitter enters precertificates in a certificate transparency log.
type CTSubmitter interface {
	// AddPreChain submits chain, DER, the precertificate first and the root last, and returns
	// the SignedCertificateTimestamp as RFC 6962, section 3.2, serializes it. It returns only
	// when the log has promised; the CA verifies the promise itself.
	AddPreChain(ctx context.Context, chain [][]byte) (sct []byte, err error)
	// LogKey is the key that the CA trusts to sign SCTs: ECDSA P-256 or RSA. It changes when another
	// shard takes over.
	LogKey() crypto.PublicKey
}

// CTChainSubmitter takes final certificates, too: what detached SCTs need.
type CTChainSubmitter interface {
	CTSubmitter
	// AddChain is AddPreChain for a certificate in place of a precertificate.
	AddChain(ctx context.Context, chain [][]byte) (sct []byte, err error)
}

const (
	ctTimeout  = 5 * time.Second
	maxSCT     = 4 << 10
	sctPast    = time.Hour // a duplicate submission gets the SCT of the first
	sctFuture  = time.Minute
	sctX509    = 0
	sctPrecert = 1
	hashSHA256 = 4 // RFC 5246, section 7.4.1.4.1
	sigRSA     = 1
	sigECDSA   = 3
	sctV1      = 0
)

// ctLog is the log whose SCTs the CA accepts.
type ctLog struct {
	key   crypto.PublicKey
	logID [32]byte // SHA-256 of the key's SubjectPublicKeyInfo
	alg   byte
}

func newCTLog(key crypto.PublicKey) (ctLog, error) {
	log := ctLog{key: key}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		// certificate-transparency-go, which every Go client uses, refuses other curves.
		if k.Curve != elliptic.P256() {
			return log, errors.New("the CT log's ECDSA key is not on P-256: Go clients refuse its SCTs")
		}
		log.alg = sigECDSA
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return log, errors.New("the CT log's RSA key is under 2048 bits")
		}
		log.alg = sigRSA
	default:
		return log, fmt.Errorf("the CT log's key is a %T; SCTs need ECDSA P-256 or RSA", key)
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return log, fmt.Errorf("the CT log's key: %w", err)
	}
	log.logID = sha256.Sum256(spki)
	return log, nil
}

// timestampedEntry is what an SCT and a Merkle leaf of the log both cover (RFC 6962, section 3.4).
type timestampedEntry struct {
	logID           [32]byte
	timestampMillis uint64
	extensions      []byte
	encoded         []byte // version, type and entry, see encode
}

// logged is the entry of a timestampedEntry: a precertificate's when it has an issuerKeyHash, else a certificate's.
type logged struct {
	issuerKeyHash []byte
	data          []byte // TBS without poison, or certificate
}

// rawSCT is an SCT whose fields have not been looked at.
type rawSCT struct {
	version         uint8
	logID           [32]byte
	timestampMillis uint64
	extensions      []byte
	hash, alg       uint8
	signature       []byte
	digitallySigned []byte // hash, alg and signature as serialized
}

func parseSCT(sct []byte) (r rawSCT, err error) {
	if len(sct) > maxSCT {
		return r, fmt.Errorf("SCT over %d bytes", maxSCT)
	}
	s := cryptobyte.String(sct)
	var logID []byte
	var extensions, sig cryptobyte.String
	malformed := errors.New("SCT is malformed")
	if !s.ReadUint8(&r.version) || !s.ReadBytes(&logID, 32) || !s.ReadUint64(&r.timestampMillis) || !s.ReadUint16LengthPrefixed(&extensions) {
		return r, malformed
	}
	r.digitallySigned = s
	if !s.ReadUint8(&r.hash) || !s.ReadUint8(&r.alg) || !s.ReadUint16LengthPrefixed(&sig) || !s.Empty() {
		return r, malformed
	}
	r.logID, r.extensions, r.signature = [32]byte(logID), extensions, sig
	return r, nil
}

// checkSCT verifies sct with the log's keys before and after the submission, which differ when the log moved
// to its next shard meanwhile.
func checkSCT(sct []byte, of logged, now time.Time, before, after crypto.PublicKey) (*timestampedEntry, error) {
	log, err := newCTLog(before)
	if err != nil {
		return nil, err
	}
	if next, err := newCTLog(after); err == nil && next.logID != log.logID && len(sct) > 33 && [32]byte(sct[1:33]) == next.logID {
		log = next
	}
	return log.check(sct, of, now)
}

// check verifies sct, TLS encoding, for an entry at now.
func (l ctLog) check(sct []byte, of logged, now time.Time) (*timestampedEntry, error) {
	s, err := parseSCT(sct)
	if err != nil {
		return nil, err
	}
	if s.version != sctV1 || s.hash != hashSHA256 || s.alg != l.alg {
		return nil, fmt.Errorf("SCT of version %d, hash %d, signature algorithm %d is not one of this log", s.version, s.hash, s.alg)
	}
	if s.logID != l.logID {
		return nil, fmt.Errorf("SCT of log %x, expected %x", s.logID, l.logID)
	}
	if s.timestampMillis > 1<<53 {
		return nil, errors.New("SCT is from the future")
	}
	when := time.UnixMilli(int64(s.timestampMillis))
	if when.After(now.Add(sctFuture)) || when.Before(now.Add(-sctPast)) {
		return nil, fmt.Errorf("SCT is of %s, it is %s", when.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	e := &timestampedEntry{logID: s.logID, timestampMillis: s.timestampMillis, extensions: s.extensions}
	e.encode(of)
	sum := sha256.Sum256(e.encoded)
	if !verifyDigest(l.key, crypto.SHA256, sum[:], s.signature) {
		return nil, errors.New("SCT signature does not verify with the log's key")
	}
	return e, nil
}

// encode lays out version 0, a type of 0 and the entry: the input of the SCT's signature, where
// the type is certificate_timestamp, and byte for byte the Merkle leaf, where it is
// timestamped_entry.
func (e *timestampedEntry) encode(of logged) {
	kind := uint16(sctX509)
	if of.issuerKeyHash != nil {
		kind = sctPrecert
	}
	b := make([]byte, 0, 64+len(of.data)+len(e.extensions))
	b = append(b, sctV1, 0)
	b = binary.BigEndian.AppendUint64(b, e.timestampMillis)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = append(b, of.issuerKeyHash...)
	b = append(b, byte(len(of.data)>>16), byte(len(of.data)>>8), byte(len(of.data)))
	b = append(b, of.data...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.extensions)))
	e.encoded = append(b, e.extensions...)
}

// leafIndex is the index that the extensions name (c2sp.org/static-ct-api, "SCT extension": type 0, 40 bits), else -1.
func (e *timestampedEntry) leafIndex() int64 {
	s := cryptobyte.String(e.extensions)
	for !s.Empty() {
		var kind uint8
		var data cryptobyte.String
		if !s.ReadUint8(&kind) || !s.ReadUint16LengthPrefixed(&data) {
			return -1
		}
		var high uint8
		var low uint32
		if kind == 0 && len(data) == 5 && data.ReadUint8(&high) && data.ReadUint32(&low) {
			return int64(high)<<32 | int64(low)
		}
	}
	return -1
}

// leafHash is SHA-256(0x00 ‖ MerkleTreeLeaf): where an auditor finds the precertificate.
func (e *timestampedEntry) leafHash() [32]byte {
	return sha256.Sum256(append([]byte{0}, e.encoded...))
}

// sctList returns the value of the SCT list extension: an OCTET STRING around the TLS
// SignedCertificateTimestampList (RFC 6962, section 3.3). sigstore-python wants exactly one.
func sctList(sct []byte) []byte {
	n := len(sct)
	list := append([]byte{byte((n + 2) >> 8), byte(n + 2), byte(n >> 8), byte(n)}, sct...)
	return der(tagOctetString, list)
}
