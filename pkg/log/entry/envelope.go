package entry

import (
	"crypto"
	"crypto/ed25519"
	_ "crypto/sha256" // linked for crypto.Hash.New
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// inTotoType is the payload type whose subjects are searchable.
const inTotoType = "application/vnd.in-toto+json"

// envelope is a parsed DSSE envelope.
type envelope struct {
	message
	signatures []envelopeSignature
}

type envelopeSignature struct {
	text string // as in the envelope
	raw  []byte
}

// parseEnvelope reads a DSSE envelope of 1 to MaxSignatures signatures. Members that DSSE does not name are ignored.
func parseEnvelope(raw []byte) (envelope, error) {
	v, err := ijson.Parse(raw)
	if err != nil {
		return envelope{}, invalid("bad_envelope", err, "envelope: %v", err)
	}
	e := envelope{message: message{payloadType: v.Get("payloadType").Text()}}
	if e.payload, err = decodeAny(v.Get("payload").Bytes()); err != nil {
		return envelope{}, invalid("bad_base64", err, "envelope: payload is not base64: %v", err)
	}
	items := v.Get("signatures").Items()
	if len(items) == 0 {
		return envelope{}, invalid("missing_field", nil, "DSSE envelope must contain 1 or more signatures")
	}
	if len(items) > MaxSignatures {
		return envelope{}, invalid("too_many_signatures", nil, "envelope has %d signatures, over the limit of %d", len(items), MaxSignatures)
	}
	for _, item := range items {
		sig := item.Get("sig")
		raw, err := decodeAny(sig.Bytes())
		if err != nil || len(raw) == 0 {
			return envelope{}, invalid("bad_base64", err, "envelope: a signature is not base64")
		}
		e.signatures = append(e.signatures, envelopeSignature{sig.Text(), raw})
	}
	return e, nil
}

// decodeAny decodes base64 of the standard or the URL alphabet, padded: DSSE allows both.
func decodeAny(b64 []byte) ([]byte, error) {
	out := make([]byte, 0, base64.StdEncoding.DecodedLen(len(b64)))
	std, err := base64.StdEncoding.AppendDecode(out, b64)
	if err == nil {
		return std, nil
	}
	if url, urlErr := base64.URLEncoding.AppendDecode(out, b64); urlErr == nil {
		return url, nil
	}
	return nil, err
}

// message is what a DSSE signature covers, through its pre-authentication encoding (PAE):
//
//	"DSSEv1" SP len(payloadType) SP payloadType SP len(payload) SP payload
type message struct {
	payloadType string
	payload     []byte
	sums        map[crypto.Hash][]byte // digests of the PAE that were needed so far
}

func (m *message) paeHead() []byte {
	head := append([]byte("DSSEv1 "), strconv.Itoa(len(m.payloadType))...)
	head = append(append(append(head, ' '), m.payloadType...), ' ')
	return append(strconv.AppendInt(head, int64(len(m.payload)), 10), ' ')
}

func (m *message) sum(h crypto.Hash) []byte {
	if sum, ok := m.sums[h]; ok {
		return sum
	}
	w := h.New()
	w.Write(m.paeHead())
	w.Write(m.payload)
	if m.sums == nil {
		m.sums = map[crypto.Hash][]byte{}
	}
	m.sums[h] = w.Sum(nil)
	return m.sums[h]
}

// verify checks sig over the PAE: Ed25519 without pre-hash when hash is 0, else as verifyDigest does.
func (m *message) verify(public crypto.PublicKey, hash crypto.Hash, sig []byte) error {
	if hash != 0 {
		return verifyDigest(public, hash, m.sum(hash), sig)
	}
	k, ok := public.(ed25519.PublicKey)
	if !ok || !ed25519.Verify(k, append(m.paeHead(), m.payload...), sig) {
		return errSignature
	}
	return nil
}

// verify1 checks sig as Rekor v1 does: SHA-256 whatever the key (a known limit: P-384 signers who
// hash with SHA-384 fail), and Ed25519 without pre-hash.
func (m *message) verify1(public crypto.PublicKey, sig []byte) error {
	if _, ok := public.(ed25519.PublicKey); ok {
		return m.verify(public, 0, sig)
	}
	return m.verify(public, crypto.SHA256, sig)
}

// payloadDigest is SHA-256 of the payload, in hex.
func (m *message) payloadDigest() digest { return sha256Digest(m.payload) }

// statementKeys are the digests of an in-toto statement's subjects and of its predicate's
// materials, as "<algorithm>:<value>". A payload that is no statement has none: the log does not judge payloads.
func (m *message) statementKeys() ([]string, error) {
	if m.payloadType != inTotoType {
		return nil, nil
	}
	type described struct {
		Digest map[string]string `json:"digest"`
	}
	var statement struct {
		Subject   []described     `json:"subject"`
		Predicate json.RawMessage `json:"predicate"`
	}
	var predicate struct {
		Materials []described `json:"materials"`
	}
	if json.Unmarshal(m.payload, &statement) != nil {
		return nil, nil
	}
	if len(statement.Predicate) > 0 && json.Unmarshal(statement.Predicate, &predicate) != nil {
		predicate.Materials = nil
	}
	var keys []string
	for _, d := range slices.Concat(statement.Subject, predicate.Materials) {
		for algorithm, value := range d.Digest {
			keys = append(keys, algorithm+":"+value)
		}
	}
	if len(keys) > maxSubmitted {
		return nil, fault.New(fault.TooLarge, "too_many_subjects", nil, "the statement has %d subject and material digests, over the limit of %d", len(keys), maxSubmitted)
	}
	slices.Sort(keys) // maps are read in random order
	return keys, nil
}
