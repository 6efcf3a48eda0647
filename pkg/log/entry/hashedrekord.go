package entry

import (
	"crypto"
	"encoding/hex"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// hashedRekordSpec is Rekor v1's hashedrekord 0.0.1: a signature over a digest. What is sent is what is stored.
type hashedRekordSpec struct {
	Data struct {
		Hash digest `json:"hash"`
	} `json:"data"`
	Signature struct {
		Content   []byte `json:"content"`
		PublicKey struct {
			Content []byte `json:"content"` // canonical PEM
		} `json:"publicKey"`
	} `json:"signature"`
}

func proposeHashedRekord(v ijson.Value) (Entry, error) {
	var s hashedRekordSpec
	signature, hash := v.Get("signature"), v.Get("data").Get("hash")
	content, err := decoded(signature.Get("content"), "signature.content")
	if err != nil {
		return Entry{}, err
	}
	material, err := decoded(signature.Get("publicKey").Get("content"), "signature.publicKey.content")
	if err != nil {
		return Entry{}, err
	}
	algorithm, err := text(hash.Get("algorithm"), "data.hash.algorithm")
	if err != nil {
		return Entry{}, err
	}
	value, err := text(hash.Get("value"), "data.hash.value")
	if err != nil {
		return Entry{}, err
	}
	s.Data.Hash = digest{string(algorithm), string(value)}
	sum, h, err := s.Data.Hash.parse()
	if err != nil {
		return Entry{}, err
	}
	key, err := parsePEM(material)
	if err != nil {
		return Entry{}, invalid("bad_key", err, "%v", err)
	}
	if !pairAllowed(key.public, h) {
		return Entry{}, invalid("algorithm_not_allowed", nil, "entry algorithms are not allowed: %s with %s", describe(key.public), h)
	}
	if err := key.checkChain(); err != nil {
		return Entry{}, invalid("bad_chain", err, "verifying certificate chain: %v", err)
	}
	if err := verifyDigest(key.public, h, sum, content); err != nil {
		return Entry{}, invalid("bad_signature", err, "verifying signature: %v", err)
	}
	s.Signature.Content, s.Signature.PublicKey.Content = content, key.pem
	return newEntry("hashedrekord", "0.0.1", s, append(key.keys(), s.Data.Hash.key()), nil)
}

func (s hashedRekordSpec) keys() ([]string, error) {
	keys, err := storedKeys(s.Signature.PublicKey.Content)
	return append(keys, s.Data.Hash.key()), err
}

// parse returns the digest's bytes. Upstream keeps the case of value, so that the same digest in
// capitals would be another leaf; no known client sends capitals.
func (d digest) parse() ([]byte, crypto.Hash, error) {
	var h crypto.Hash
	switch d.Algorithm {
	case "sha256":
		h = crypto.SHA256
	case "sha384":
		h = crypto.SHA384
	case "sha512":
		h = crypto.SHA512
	default:
		return nil, 0, invalid("bad_field", nil, "hash.algorithm in body should be one of [sha256 sha384 sha512]")
	}
	sum, err := hex.DecodeString(d.Value)
	if err != nil || len(sum) != h.Size() || hex.EncodeToString(sum) != d.Value {
		return nil, 0, invalid("bad_field", err, "invalid value for hash: %s takes %d lower-case hex digits", d.Algorithm, 2*h.Size())
	}
	return sum, h, nil
}
