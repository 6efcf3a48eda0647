package entry

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// dsseSpec is Rekor v1's dsse 0.0.1: digests of a DSSE envelope and its payload, and who signed it.
type dsseSpec struct {
	EnvelopeHash digest          `json:"envelopeHash"` // of the envelope's text as received
	PayloadHash  digest          `json:"payloadHash"`
	Signatures   []dsseSignature `json:"signatures"` // in the order of the signatures' texts
}

type dsseSignature struct {
	Signature string `json:"signature"` // base64 as in the envelope
	Verifier  []byte `json:"verifier"`  // canonical PEM
}

// proposeDSSE reads {"proposedContent":{"envelope":<text>,"verifiers":[<base64 PEM>,…]}}. Every
// signature must be verified by one of the verifiers; key IDs are not looked at.
func proposeDSSE(v ijson.Value) (Entry, error) {
	content := v.Get("proposedContent")
	if !content.Given() {
		return Entry{}, invalid("missing_field", nil, "entry not insertable into log: missing proposed content")
	}
	if v.Get("envelopeHash").Given() || v.Get("payloadHash").Given() || len(v.Get("signatures").Items()) > 0 {
		return Entry{}, invalid("bad_field", nil, "either proposedContent or envelopeHash, payloadHash, and signatures must be present but not both")
	}
	raw, err := text(content.Get("envelope"), "proposedContent.envelope")
	if err != nil {
		return Entry{}, err
	}
	env, err := parseEnvelope(raw)
	if err != nil {
		return Entry{}, err
	}
	verifiers, err := verifiersOf(content.Get("verifiers"), "proposedContent.verifiers")
	if err != nil {
		return Entry{}, err
	}
	var keys []string
	s := dsseSpec{EnvelopeHash: sha256Digest(raw), PayloadHash: env.payloadDigest()}
	slices.SortFunc(env.signatures, func(a, b envelopeSignature) int { return cmp.Compare(a.text, b.text) })
	env.signatures = slices.CompactFunc(env.signatures, func(a, b envelopeSignature) bool { return a.text == b.text })
	for _, sig := range env.signatures {
		i := slices.IndexFunc(verifiers, func(v verifier) bool { return env.verify1(v.public, sig.raw) == nil })
		if i < 0 {
			return Entry{}, invalid("bad_signature", nil, "could not verify envelope: all signatures must have a key that verifies it")
		}
		s.Signatures = append(s.Signatures, dsseSignature{sig.text, verifiers[i].pem})
		keys = append(keys, verifiers[i].keys()...)
	}
	submitted, err := env.statementKeys()
	if err != nil {
		return Entry{}, err
	}
	return newEntry("dsse", "0.0.1", s, append(keys, s.PayloadHash.key(), s.EnvelopeHash.key()), submitted)
}

func (s dsseSpec) keys() ([]string, error) {
	var keys []string
	for _, sig := range s.Signatures {
		more, err := storedKeys(sig.Verifier)
		if err != nil {
			return nil, err
		}
		keys = append(keys, more...)
	}
	return append(keys, s.PayloadHash.key(), s.EnvelopeHash.key()), nil
}

// verifiersOf parses an array of base64 PEM.
func verifiersOf(v ijson.Value, field string) ([]verifier, error) {
	items := v.Items()
	if len(items) == 0 {
		return nil, missing(field)
	}
	if len(items) > MaxSignatures {
		return nil, invalid("too_many_verifiers", nil, "%s in body should have at most %d items", field, MaxSignatures)
	}
	verifiers := make([]verifier, len(items))
	for i, item := range items {
		material, err := decoded(item, field)
		if err != nil {
			return nil, err
		}
		if verifiers[i], err = parseSubmitted(material); err != nil {
			return nil, err
		}
	}
	return verifiers, nil
}

// parseSubmitted is parsePEM with the chain checked and errors classified.
func parseSubmitted(material []byte) (verifier, error) {
	key, err := parsePEM(material)
	if err != nil {
		return verifier{}, invalid("bad_key", err, "could not parse public key as x509: %v", err)
	}
	if err := key.checkChain(); err != nil {
		return verifier{}, invalid("bad_chain", err, "verifying certificate chain: %v", err)
	}
	return key, nil
}

func sha256Digest(data []byte) digest {
	sum := sha256.Sum256(data)
	return digest{"sha256", hex.EncodeToString(sum[:])}
}
