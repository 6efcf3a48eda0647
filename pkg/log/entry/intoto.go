package entry

import (
	"encoding/base64"
	"slices"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// intotoSpec001 is Rekor v1's intoto 0.0.1, sent by `cosign attest --rekor-entry-type intoto`.
type intotoSpec001 struct {
	Content struct {
		Hash        digest  `json:"hash"`                  // of the envelope's text as received
		PayloadHash *digest `json:"payloadHash,omitempty"` // entries of old logs have none
	} `json:"content"`
	PublicKey []byte `json:"publicKey"` // canonical PEM
}

// proposeIntoto001 reads {"content":{"envelope":<text>},"publicKey":<base64 PEM>}. The key must
// verify one of the envelope's signatures; hashes that the client sends are ignored.
func proposeIntoto001(v ijson.Value) (Entry, error) {
	raw, err := text(v.Get("content").Get("envelope"), "content.envelope")
	if err != nil {
		return Entry{}, err
	}
	material, err := decoded(v.Get("publicKey"), "publicKey")
	if err != nil {
		return Entry{}, err
	}
	key, err := parseSubmitted(material)
	if err != nil {
		return Entry{}, err
	}
	env, err := parseEnvelope(raw)
	if err != nil {
		return Entry{}, err
	}
	if !slices.ContainsFunc(env.signatures, func(sig envelopeSignature) bool { return env.verify1(key.public, sig.raw) == nil }) {
		return Entry{}, invalid("bad_signature", nil, "could not verify envelope: no signature is of this key")
	}
	submitted, err := env.statementKeys()
	if err != nil {
		return Entry{}, err
	}
	var s intotoSpec001
	payload := env.payloadDigest()
	s.Content.Hash, s.Content.PayloadHash, s.PublicKey = sha256Digest(raw), &payload, key.pem
	e, err := newEntry("intoto", "0.0.1", s, append(key.keys(), s.Content.Hash.key(), payload.key()), submitted)
	return withAttestation(e, err, env.payload, payload)
}

func (s intotoSpec001) attestationKey() string { return keyOf(s.Content.PayloadHash) }

// keyOf is the digest's key, "" for none.
func keyOf(d *digest) string {
	if d == nil {
		return ""
	}
	return d.key()
}

func (s intotoSpec001) keys() ([]string, error) {
	keys, err := storedKeys(s.PublicKey)
	keys = append(keys, s.Content.Hash.key())
	if s.Content.PayloadHash != nil {
		keys = append(keys, s.Content.PayloadHash.key())
	}
	return keys, err
}

// intotoSpec002 is Rekor v1's intoto 0.0.2, sent by sigstore-js for npm provenance.
type intotoSpec002 struct {
	Content struct {
		Envelope struct {
			PayloadType string            `json:"payloadType"`
			Signatures  []intotoSignature `json:"signatures"` // in the order submitted
		} `json:"envelope"`
		Hash        digest  `json:"hash"` // the client's word: nothing here says of what, so it is not searchable
		PayloadHash *digest `json:"payloadHash,omitempty"`
	} `json:"content"`
}

type intotoSignature struct {
	KeyID     string `json:"keyid,omitempty"`
	PublicKey []byte `json:"publicKey"` // PEM as submitted
	Sig       []byte `json:"sig"`       // base64 text of the signature: it is encoded twice
}

// proposeIntoto002 reads the envelope as an object whose payload and signatures are base64 of
// base64. Each signature must be verified by the key beside it.
func proposeIntoto002(v ijson.Value) (Entry, error) {
	var s intotoSpec002
	content := v.Get("content")
	sent := content.Get("envelope")
	payloadType, err := text(sent.Get("payloadType"), "content.envelope.payloadType")
	if err != nil {
		return Entry{}, err
	}
	inner, err := decoded(sent.Get("payload"), "content.envelope.payload")
	if err != nil {
		return Entry{}, err
	}
	msg := message{payloadType: string(payloadType)}
	if msg.payload, err = base64.StdEncoding.AppendDecode(nil, inner); err != nil {
		return Entry{}, invalid("bad_base64", err, "could not decode envelope payload: it must be encoded twice: %v", err)
	}
	hash := content.Get("hash")
	s.Content.Hash = digest{hash.Get("algorithm").Text(), hash.Get("value").Text()}
	if _, _, err := s.Content.Hash.parse(); err != nil || s.Content.Hash.Algorithm != "sha256" {
		return Entry{}, invalid("bad_field", err, "content.hash in body must be a sha256 digest in lower-case hex")
	}
	items := sent.Get("signatures").Items()
	if len(items) == 0 {
		return Entry{}, missing("content.envelope.signatures")
	}
	if len(items) > MaxSignatures {
		return Entry{}, invalid("too_many_signatures", nil, "envelope has %d signatures, over the limit of %d", len(items), MaxSignatures)
	}
	var keys []string
	for _, item := range items {
		sig, key, err := intotoSignatureOf(item, &msg)
		if err != nil {
			return Entry{}, err
		}
		s.Content.Envelope.Signatures = append(s.Content.Envelope.Signatures, sig)
		keys = append(keys, key.keys()...)
	}
	submitted, err := msg.statementKeys()
	if err != nil {
		return Entry{}, err
	}
	payload := msg.payloadDigest()
	s.Content.Envelope.PayloadType, s.Content.PayloadHash = msg.payloadType, &payload
	e, err := newEntry("intoto", "0.0.2", s, append(keys, payload.key()), submitted)
	return withAttestation(e, err, msg.payload, payload)
}

func (s intotoSpec002) attestationKey() string { return keyOf(s.Content.PayloadHash) }

func intotoSignatureOf(item ijson.Value, msg *message) (intotoSignature, verifier, error) {
	material, err := decoded(item.Get("publicKey"), "content.envelope.signatures.publicKey")
	if err != nil {
		return intotoSignature{}, verifier{}, err
	}
	inner, err := decoded(item.Get("sig"), "content.envelope.signatures.sig")
	if err != nil {
		return intotoSignature{}, verifier{}, err
	}
	raw, err := decodeAny(inner)
	if err != nil {
		return intotoSignature{}, verifier{}, invalid("bad_base64", err, "could not decode a signature: it must be encoded twice: %v", err)
	}
	key, err := parseSubmitted(material)
	if err != nil {
		return intotoSignature{}, verifier{}, err
	}
	if err := msg.verify1(key.public, raw); err != nil {
		return intotoSignature{}, verifier{}, invalid("bad_signature", err, "could not verify envelope: a signature is not of the key beside it")
	}
	return intotoSignature{item.Get("keyid").Text(), material, inner}, key, nil
}

func (s intotoSpec002) keys() ([]string, error) {
	var keys []string
	for _, sig := range s.Content.Envelope.Signatures {
		more, err := storedKeys(sig.PublicKey)
		if err != nil {
			return nil, err
		}
		keys = append(keys, more...)
	}
	if s.Content.PayloadHash != nil {
		keys = append(keys, s.Content.PayloadHash.key())
	}
	return keys, nil
}
