package entry

import "github.com/attestry/attestry/pkg/log/entry/ijson"

// rekordSpec is Rekor v1's rekord 0.0.1: a detached signature in one of the formats pgp, minisign,
// ssh and x509 over an artifact that was uploaded and is not kept.
type rekordSpec struct {
	Data struct {
		Hash digest `json:"hash"`
	} `json:"data"`
	Signature struct {
		Content   []byte `json:"content"` // in the form that the format keeps
		Format    string `json:"format"`
		PublicKey struct {
			Content []byte `json:"content"` // canonical
		} `json:"publicKey"`
	} `json:"signature"`
}

// proposeRekord reads {"signature":{"format":…,"content":…,"publicKey":{"content":…}},
// "data":{"content":<artifact>,"hash":<optional>}}, contents in base64.
func proposeRekord(v ijson.Value) (Entry, error) {
	var s rekordSpec
	signature, data := v.Get("signature"), v.Get("data")
	format, err := text(signature.Get("format"), "signature.format")
	if err != nil {
		return Entry{}, err
	}
	switch s.Signature.Format = string(format); s.Signature.Format {
	case "pgp", "minisign", "ssh", "x509":
	default:
		return Entry{}, invalid("bad_field", nil, "signature.format in body should be one of [pgp minisign x509 ssh]")
	}
	content, err := decoded(signature.Get("content"), "signature.content")
	if err != nil {
		return Entry{}, err
	}
	if len(content) > maxKeyMaterial {
		return Entry{}, tooLarge("signature.content", len(content), maxKeyMaterial)
	}
	key, err := submittedKey(s.Signature.Format, signature.Get("publicKey").Get("content"), "signature.publicKey.content")
	if err != nil {
		return Entry{}, err
	}
	artifact, err := decoded(data.Get("content"), "data.content")
	if err != nil {
		return Entry{}, err
	}
	if s.Data.Hash, err = artifactDigest(data.Get("hash"), "data.hash", artifact); err != nil {
		return Entry{}, err
	}
	if s.Signature.Content, err = key.verifyMessage(artifact, content); err != nil {
		return Entry{}, invalid("bad_signature", err, "verifying signature: %v", err)
	}
	s.Signature.PublicKey.Content = key.canonical()
	var submitted []string
	if k, ok := key.(sshKey); ok {
		submitted = k.submittedKeys()
	}
	return newEntry("rekord", "0.0.1", s, append(publicKeyKeys(key), s.Data.Hash.key()), submitted)
}

func (s rekordSpec) keys() ([]string, error) {
	return append(storedPublicKeyKeys(s.Signature.Format, s.Signature.PublicKey.Content), s.Data.Hash.key()), nil
}
