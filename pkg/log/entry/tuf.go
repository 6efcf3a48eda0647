package entry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/theupdateframework/go-tuf/data"
	_ "github.com/theupdateframework/go-tuf/pkg/deprecated/set_ecdsa" // ECDSA keys in hex, which Sigstore's first roots have
	"github.com/theupdateframework/go-tuf/verify"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// Bounds of TUF metadata.
const (
	maxTUFSignatures = 64
	maxTUFKeys       = 64
	maxTUFKey        = 2048 // bytes of a key's value: an RSA key of 8192 bits in PEM has 1,500
)

// tufSpec is Rekor v1's tuf 0.0.1: signed TUF metadata and the root that says who may sign it.
type tufSpec struct {
	Metadata struct {
		Content []byte `json:"content"` // JCS of {"signatures","signed"}
	} `json:"metadata"`
	Root struct {
		Content []byte `json:"content"` // likewise
	} `json:"root"`
	SpecVersion string `json:"spec_version,omitempty"` // root's
}

// proposeTUF reads {"metadata":{"content":…},"root":{"content":…}}, each an object or its text in
// base64. The root must be signed by a threshold of its own keys, the metadata by a threshold of
// those that the root gives its role. Whether either has expired is not looked at, so that the same
// submission means the same at any time.
func proposeTUF(v ijson.Value) (Entry, error) {
	root, err := readTUF(v.Get("root").Get("content"), "root.content")
	if err != nil {
		return Entry{}, err
	}
	metadata, err := readTUF(v.Get("metadata").Get("content"), "metadata.content")
	if err != nil {
		return Entry{}, err
	}
	db, err := openTUFRoot(root)
	if err != nil {
		return Entry{}, err
	}
	if err := db.VerifyIgnoreExpiredCheck(metadata.signed, metadata.head.Type, 0); err != nil {
		return Entry{}, invalid("bad_signature", err, "metadata: %v", err)
	}
	var s tufSpec
	s.Metadata.Content, s.Root.Content, s.SpecVersion = metadata.canonical, root.canonical, root.head.SpecVersion
	keys, err := s.keys()
	if err != nil {
		return Entry{}, err
	}
	return newEntry("tuf", "0.0.1", s, keys, nil)
}

// keys are the digests of both documents, and the metadata's role and version number bare.
func (s tufSpec) keys() ([]string, error) {
	var metadata data.Signed
	var head tufHead
	if err := json.Unmarshal(s.Metadata.Content, &metadata); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(metadata.Signed, &head); err != nil {
		return nil, err
	}
	keys := append(pemKeys(s.Metadata.Content), head.Type, strconv.Itoa(head.Version))
	return append(keys, pemKeys(s.Root.Content)...), nil
}

// tufHead is what all roles' metadata has in common (TUF specification, section 4).
type tufHead struct {
	Type        string `json:"_type"`
	Version     int    `json:"version"`
	SpecVersion string `json:"spec_version"`
}

type tufMetadata struct {
	canonical []byte // JCS
	signed    *data.Signed
	head      tufHead
}

func readTUF(v ijson.Value, field string) (tufMetadata, error) {
	if v.Kind == ijson.String {
		raw, err := base64.StdEncoding.AppendDecode(nil, v.Bytes())
		if err != nil {
			return tufMetadata{}, invalid("bad_base64", err, "%s in body is not base64: %v", field, err)
		}
		return readTUFText(raw, field)
	}
	if !v.Given() {
		return tufMetadata{}, missing(field)
	}
	return parsedTUF(v, field)
}

func readTUFText(raw []byte, field string) (tufMetadata, error) {
	v, err := ijson.Parse(raw)
	if err != nil {
		return tufMetadata{}, invalid("bad_metadata", err, "%s: %v", field, err)
	}
	return parsedTUF(v, field)
}

func parsedTUF(v ijson.Value, field string) (tufMetadata, error) {
	m, err := parseTUF(v)
	if err != nil {
		return tufMetadata{}, invalid("bad_metadata", err, "%s: %v", field, err)
	}
	return m, nil
}

// tufRootKey is the search key of a root that is signed by its own keys.
func tufRootKey(text []byte) (string, error) {
	root, err := readTUFText(text, "root")
	if err != nil {
		return "", err
	}
	if _, err := openTUFRoot(root); err != nil {
		return "", err
	}
	return pemKeys(root.canonical)[0], nil
}

// openTUFRoot returns the keys and roles of a root that is signed by a threshold of its own keys.
func openTUFRoot(root tufMetadata) (*verify.DB, error) {
	db, err := tufDB(root)
	if err != nil {
		return nil, invalid("bad_root", err, "root: %v", err)
	}
	if err := db.VerifyIgnoreExpiredCheck(root.signed, "root", 0); err != nil {
		return nil, invalid("bad_signature", err, "root: %v", err)
	}
	return db, nil
}

// parseTUF takes {"signed":{…},"signatures":[{"keyid","sig"},…]} and drops other members, as
// upstream does. It works on the canonical form from the start, so that what is verified is what is stored.
func parseTUF(v ijson.Value) (tufMetadata, error) {
	if v.Get("signed").Kind != ijson.Object {
		return tufMetadata{}, errors.New("signed is not an object")
	}
	switch n := len(v.Get("signatures").Items()); {
	case n == 0:
		return tufMetadata{}, errors.New("there are no signatures")
	case n > maxTUFSignatures:
		return tufMetadata{}, fmt.Errorf("there are %d signatures, over the limit of %d", n, maxTUFSignatures)
	}
	text, err := appendTUF(nil, v)
	if err != nil {
		return tufMetadata{}, err
	}
	if text, err = jsoncanonicalizer.Transform(text); err != nil {
		return tufMetadata{}, err
	}
	m := tufMetadata{signed: new(data.Signed)}
	if err := json.Unmarshal(text, m.signed); err != nil {
		return tufMetadata{}, err
	}
	if err := json.Unmarshal(m.signed.Signed, &m.head); err != nil {
		return tufMetadata{}, err
	}
	if text, err = json.Marshal(m.signed); err != nil {
		return tufMetadata{}, err
	}
	m.canonical, err = jsoncanonicalizer.Transform(text)
	return m, err
}

// appendTUF writes a value whose meaning is the same to every reader that the documents have here
// and upstream: no two members of an object differ in case alone, as encoding/json would take one
// for the other, and numbers are integers that JCS keeps.
func appendTUF(out []byte, v ijson.Value) ([]byte, error) {
	var err error
	switch v.Kind {
	case ijson.Object:
		out = append(out, '{')
		var names []string
		for name, member := range v.Members() {
			for _, other := range names {
				if strings.EqualFold(name, other) {
					return nil, fmt.Errorf("members %q and %q differ in case alone", other, name)
				}
			}
			if len(names) > 0 {
				out = append(out, ',')
			}
			names = append(names, name)
			if out, err = appendString(out, name); err != nil {
				return nil, err
			}
			if out, err = appendTUF(append(out, ':'), member); err != nil {
				return nil, err
			}
		}
		return append(out, '}'), nil
	case ijson.Array:
		out = append(out, '[')
		for i, item := range v.Items() {
			if i > 0 {
				out = append(out, ',')
			}
			if out, err = appendTUF(out, item); err != nil {
				return nil, err
			}
		}
		return append(out, ']'), nil
	case ijson.String:
		return appendString(out, v.Text())
	case ijson.Number:
		if n, err := strconv.ParseInt(v.Text(), 10, 64); err != nil || n > 1<<53-1 || n < -1<<53+1 || strconv.FormatInt(n, 10) != v.Text() {
			return nil, fmt.Errorf("number %s is not an integer below 2^53", v.Text())
		}
		return append(out, v.Bytes()...), nil
	case ijson.Null:
		return append(out, "null"...), nil
	default:
		return append(out, v.Bytes()...), nil
	}
}

func appendString(out []byte, s string) ([]byte, error) {
	quoted, err := json.Marshal(s)
	return append(out, quoted...), err
}

// tufDB returns the keys and roles that a root names.
func tufDB(root tufMetadata) (*verify.DB, error) {
	var r data.Root
	if err := json.Unmarshal(root.signed.Signed, &r); err != nil {
		return nil, err
	}
	if len(r.Keys) > maxTUFKeys || len(r.Roles) > maxTUFKeys {
		return nil, fmt.Errorf("more than %d keys or roles", maxTUFKeys)
	}
	db := verify.NewDB()
	for id, key := range r.Keys {
		if key == nil || len(key.Value) > maxTUFKey {
			return nil, fmt.Errorf("key %q is null or has more than %d bytes", id, maxTUFKey)
		}
		if err := db.AddKey(id, key); err != nil {
			return nil, fmt.Errorf("key %q: %w", id, err)
		}
	}
	for name, role := range r.Roles {
		if role == nil {
			return nil, fmt.Errorf("role %q is null", name)
		}
		if err := db.AddRole(name, role); err != nil {
			return nil, fmt.Errorf("role %q: %w", name, err)
		}
	}
	return db, nil
}
