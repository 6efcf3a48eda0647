// Package entry checks what clients submit to a Rekor log and turns it into the bytes that the log
// keeps: the canonical body, JSON in the form of RFC 8785 (JCS) without what only the check needed.
//
//	{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{…}},"signature":{…}}}
//
// Each kind has a file of its own. A body is the leaf: its bytes must be the ones that upstream's
// Rekor makes from the same submission, since verifiers rebuild them. Nobody's trust is decided
// here: a certificate's issuer, validity and usage are not looked at. The log is a witness of
// signatures.
package entry

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// Bounds of one entry.
const (
	MaxBody         = 65535 // bytes of a canonical body: entry bundles carry a 16-bit length (c2sp.org/tlog-tiles)
	MaxSignatures   = 16    // of an envelope, and verifiers offered for them
	MaxCertificates = 10    // of a chain
	maxSubmitted    = 4096  // subjects and materials of a statement
	maxKey          = 512   // bytes of a search key
)

// Entry is a verified submission.
type Entry struct {
	Kind, Version string   // "hashedrekord", "0.0.1"
	Body          []byte   // canonical, at most MaxBody bytes
	LeafHash      [32]byte // SHA-256(0x00 ‖ Body), RFC 6962 section 2.1
	// Keys are the search keys that Body holds, what Keys(Body) returns.
	Keys []string
	// SubmittedKeys are those that only the submission holds: digests of an in-toto statement's subjects and materials.
	SubmittedKeys []string
	// Attestation is what upstream's log keeps beside the entry for the kinds that have such a thing:
	// the payload of an intoto entry, a cose entry's message. nil for the others.
	Attestation []byte
	// AttestationKey names it: "sha256:<hex>", what AttestationKey(Body) returns.
	AttestationKey string
}

// Propose verifies a Rekor v1 proposed entry {"kind","apiVersion","spec"} of a kind that is enabled.
// Members that the kind does not know are ignored, as upstream does. Errors are classified and can
// be shown to the client.
func Propose(kinds Kinds, v ijson.Value) (Entry, error) {
	kind, version := v.Get("kind").Text(), v.Get("apiVersion").Text()
	h, taken, ok := kinds.find(kind, version)
	if !taken {
		return Entry{}, fault.New(fault.Invalid, "unsupported_kind", nil, "entry kind '%s' is not enabled for submission on this server", kind)
	}
	if !ok {
		return Entry{}, fault.New(fault.Invalid, "unsupported_version", nil, "entry kind '%s' does not support inserting entries of version '%s'", kind, version)
	}
	return h.propose(v.Get("spec"))
}

// ErrUnknownKind says that a body is of a kind or version which this package does not make.
var ErrUnknownKind = errors.New("unknown entry kind")

// Keys derives the search keys of a stored body: digests as "sha256:<hex>", key digests with and
// without that prefix, subject alternative names; all lower case, no duplicates. Which kinds are
// enabled has no part in it.
func Keys(body []byte) ([]string, error) {
	stored, err := parseStored(body)
	if err != nil {
		return nil, err
	}
	parsed, err := stored.parse()
	if err != nil {
		return nil, err
	}
	keys, err := parsed.keys()
	if err != nil {
		return nil, fmt.Errorf("search keys of stored %s %s: %w", stored.Kind, stored.APIVersion, err)
	}
	return tidy(keys), nil
}

// AttestationKey returns the name of the attestation that belongs to a stored body, "" when there
// can be none. Whether one was stored, only the storage knows.
func AttestationKey(body []byte) (string, error) {
	stored, err := parseStored(body)
	if err != nil {
		return "", err
	}
	parsed, err := stored.parse()
	if err != nil {
		return "", err
	}
	if a, ok := parsed.(attested); ok {
		return a.attestationKey(), nil
	}
	return "", nil
}

// KindVersion returns the kind and version that a stored body names.
func KindVersion(body []byte) (kind, version string, err error) {
	stored, err := parseStored(body)
	return stored.Kind, stored.APIVersion, err
}

type stored struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Spec       json.RawMessage `json:"spec"`
}

func parseStored(body []byte) (stored, error) {
	var s stored
	if len(body) > MaxBody {
		return s, fmt.Errorf("stored entry has %d bytes, over %d", len(body), MaxBody)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("parsing stored entry: %w", err)
	}
	return s, nil
}

// spec is a kind's part of the canonical body; its JSON form is the one that is stored.
type spec interface {
	keys() ([]string, error)
}

// attested is a spec whose kind has attestations.
type attested interface {
	attestationKey() string
}

func (s stored) parse() (spec, error) {
	h, ok := handlingOf(s.Kind, s.APIVersion)
	if !ok {
		return nil, fmt.Errorf("%w: %q version %q", ErrUnknownKind, s.Kind, s.APIVersion)
	}
	parsed, err := h.stored(s.Spec)
	if err != nil {
		return nil, fmt.Errorf("parsing stored %s %s: %w", s.Kind, s.APIVersion, err)
	}
	return parsed, nil
}

// withAttestation adds what is kept beside the entry.
func withAttestation(e Entry, err error, attestation []byte, key digest) (Entry, error) {
	if err != nil {
		return Entry{}, err
	}
	e.Attestation, e.AttestationKey = attestation, key.key()
	return e, nil
}

// newEntry makes the canonical body of a verified spec.
func newEntry(kind, version string, s spec, keys, submitted []string) (Entry, error) {
	body, err := canonical(struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       spec   `json:"spec"`
	}{version, kind, s})
	if err != nil {
		return Entry{}, fmt.Errorf("canonicalizing %s %s: %w", kind, version, err)
	}
	if len(body) > MaxBody {
		return Entry{}, fault.New(fault.TooLarge, "entry_too_large", nil, "the canonical entry has %d bytes, over the limit of %d", len(body), MaxBody)
	}
	return Entry{
		Kind: kind, Version: version, Body: body, LeafHash: [32]byte(rfc6962.DefaultHasher.HashLeaf(body)),
		Keys: tidy(keys), SubmittedKeys: tidy(submitted),
	}, nil
}

// canonical is the JCS form of v, whose fields must be in the order of their JSON names and hold no
// numbers. What encoding/json then writes differs from JCS in escape sequences alone, so that
// the slower transformation is needed only where there are some.
func canonical(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	doc := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if bytes.IndexByte(doc, '\\') < 0 {
		return doc, nil
	}
	return jsoncanonicalizer.Transform(doc)
}

// tidy lower-cases keys and drops duplicates and what is too long to be looked up, keeping the order.
func tidy(keys []string) []string {
	tidied := make([]string, 0, len(keys))
	seen := make(map[string]bool, len(keys))
	for _, k := range keys {
		if k = strings.ToLower(k); k != "" && len(k) <= maxKey && !seen[k] {
			seen[k] = true
			tidied = append(tidied, k)
		}
	}
	return tidied
}

// digest is Rekor v1's hash object.
type digest struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"value"` // lower-case hex
}

func (d digest) key() string { return d.Algorithm + ":" + d.Value }

func missing(field string) error {
	return fault.New(fault.Invalid, "missing_field", nil, "%s in body is required", field)
}

func invalid(reason string, err error, format string, args ...any) error {
	return fault.New(fault.Invalid, reason, err, format, args...)
}

// text returns the string v; field names it in errors.
func text(v ijson.Value, field string) ([]byte, error) {
	switch {
	case !v.Given() || v.Kind == ijson.String && len(v.Bytes()) == 0:
		return nil, missing(field)
	case v.Kind != ijson.String:
		return nil, invalid("bad_field", nil, "%s in body must be of type string", field)
	}
	return v.Bytes(), nil
}

// decoded returns the bytes that the string v holds in standard base64.
func decoded(v ijson.Value, field string) ([]byte, error) {
	b64, err := text(v, field)
	if err != nil {
		return nil, err
	}
	out, err := base64.StdEncoding.AppendDecode(make([]byte, 0, base64.StdEncoding.DecodedLen(len(b64))), b64)
	if err != nil {
		return nil, invalid("bad_base64", err, "%s in body is not base64: %v", field, err)
	}
	if len(out) == 0 {
		return nil, missing(field)
	}
	return out, nil
}
