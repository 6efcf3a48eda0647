package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
)

// Kind says which service a key belongs to.
type Kind string

const (
	CA     Kind = "ca"     // certificate authority: a chain, issuing certificate first, trust anchor last
	CTLog  Kind = "ctlog"  // certificate transparency log: a key that signs SCTs
	Rekor1 Kind = "rekor1" // transparency log with the Rekor v1 API: an ECDSA P-256 key
	Rekor2 Kind = "rekor2" // transparency log with the Rekor v2 API: a checkpoint key
	TSA    Kind = "tsa"    // timestamp authority: a chain, leaf first, trust anchor last
)

// State says whether a record's key is in use.
type State string

const (
	Active  State = "active"  // signs, or will from Start on
	Retired State = "retired" // signs no more after End; what it signed before stays valid
	Revoked State = "revoked" // compromised: left out of the trusted root, or cut to End
)

// Record is one key, or one certificate chain, that a service has ever used.
type Record struct {
	// ID is the kind and 16 hex digits of the hash of the key (logs: the logID) or of the
	// chain's DER. The inventory sets it.
	ID   string `json:"id"`
	Kind Kind   `json:"kind"`
	// URL is the base URL of the CA or log, the full URL of a TSA.
	URL string `json:"url"`
	// Origin is a log's checkpoint origin: for Rekor v2 the bare host name of URL, because
	// sigstore-go makes the note verifier's name from the base URL. A Rekor v1 log's default is what our
	// server makes of URL and key, see Rekor1Origin.
	Origin string `json:"origin,omitempty"`
	// PublicKeyPEM is the PKIX key of a log, ChainPEM the certificates of a CA or TSA.
	PublicKeyPEM string `json:"publicKey,omitempty"`
	ChainPEM     string `json:"chain,omitempty"`
	// Start and End bound the time in which signatures of the key count, both inclusive, in
	// whole seconds. Start must not be later than the first use; zero means the notBefore
	// of a chain's first certificate and is an error for a log. A zero End is open.
	Start time.Time `json:"start"`
	End   time.Time `json:"end,omitzero"`

	// State, Added and Reason come from the inventory's events.
	State  State     `json:"-"`
	Added  time.Time `json:"-"`
	Reason string    `json:"-"`

	certs  []*x509.Certificate // CA, TSA
	key    crypto.PublicKey    // logs
	spki   []byte              // DER of key
	digest [32]byte            // logID of a log, SHA-256 of the DER chain otherwise
}

const (
	maxPEM   = 32 << 10
	maxCerts = 10
	maxURL   = 2048
)

// LogID is the 32-byte ID of a log's key: SHA-256 of the DER SubjectPublicKeyInfo, for an
// Ed25519 or RSA key of a Rekor v2 log the hash of the signed note (c2sp.org/signed-note).
// For a CA or TSA it is the SHA-256 of the concatenated DER chain.
func (r *Record) LogID() [32]byte { return r.digest }

// Check says what is wrong with r by itself, nil when the inventory could take it.
func (r Record) Check() error { return r.parse() }

// parse checks r, fills in ID, Start and the parsed material, and normalizes times and PEM.
func (r *Record) parse() error {
	if err := r.parseURL(); err != nil {
		return err
	}
	if len(r.PublicKeyPEM) > maxPEM || len(r.ChainPEM) > maxPEM {
		return fmt.Errorf("%s record: PEM is over %d bytes", r.Kind, maxPEM)
	}
	var err error
	switch r.Kind {
	case CA, TSA:
		err = r.parseChain()
	case CTLog, Rekor1, Rekor2:
		err = r.parseLog()
	default:
		return fmt.Errorf("record kind %q is not one of %s, %s, %s, %s, %s", r.Kind, CA, CTLog, Rekor1, Rekor2, TSA)
	}
	if err != nil {
		return fmt.Errorf("%s record: %w", r.Kind, err)
	}
	r.Start = r.Start.UTC().Truncate(time.Second)
	r.End = roundUp(r.End)
	if !r.End.IsZero() && r.End.Before(r.Start) {
		return fmt.Errorf("%s record: end %s is before start %s", r.Kind, stamp(r.End), stamp(r.Start))
	}
	r.ID = string(r.Kind) + "-" + hex.EncodeToString(r.digest[:8])
	return nil
}

func (r *Record) parseURL() error {
	u, err := url.Parse(r.URL)
	switch {
	case err != nil:
		return fmt.Errorf("%s record: url %q: %w", r.Kind, r.URL, err)
	case len(r.URL) > maxURL || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") ||
		u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%s record: url %q must be http:// or https:// with a host, without user, query and fragment", r.Kind, r.URL)
	}
	r.URL = strings.TrimRight(r.URL, "/")
	if r.Kind == Rekor2 {
		if r.Origin == "" {
			r.Origin = u.Hostname()
		}
		if r.Origin != u.Hostname() {
			return fmt.Errorf("rekor2 record: origin %q must be the host name of url %q: Go clients verify checkpoints under that name", r.Origin, r.URL)
		}
	}
	return nil
}

func (r *Record) parseLog() error {
	if r.ChainPEM != "" {
		return errors.New("a log has a public key, not a chain")
	}
	block, rest := pem.Decode([]byte(r.PublicKeyPEM))
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return errors.New("public key must be one PEM block of type PUBLIC KEY")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	if r.Start.IsZero() {
		return errors.New("start is missing: it must not be later than the log's first entry")
	}
	// Re-encoded, so that one key has one ID whatever wrapped it.
	if r.spki, err = x509.MarshalPKIXPublicKey(key); err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	r.key = key
	r.PublicKeyPEM = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: r.spki}))
	details, err := keyDetails(key)
	if err != nil {
		return err
	}
	if r.Kind == Rekor1 && r.Origin == "" {
		u, err := url.Parse(r.URL)
		if err != nil {
			return err
		}
		r.Origin = Rekor1Origin(u.Hostname(), TreeID(r.spki))
	}
	if r.Kind == Rekor1 && details != commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256 {
		return errors.New("a Rekor v1 log needs an ECDSA P-256 key: clients verify its SETs with nothing else")
	}
	if _, ed := key.(ed25519.PublicKey); ed && r.Kind == CTLog {
		return errors.New("a CT log needs an ECDSA or RSA key (RFC 6962, section 2.1.4)")
	}
	r.digest = logID(r.Kind, r.Origin, key, r.spki)
	return nil
}

// TreeID is the positive 63-bit number that Rekor v1 calls its tree. A log of ours has one tree for one key, so it is made of the
// key, DER SubjectPublicKeyInfo, and nobody has to ask for it.
func TreeID(spki []byte) int64 {
	sum := sha256.Sum256(spki)
	return int64(binary.BigEndian.Uint64(sum[:8])>>1 | 1)
}

// Rekor1Origin is the origin of a Rekor v1 log's checkpoints, "HOST - TREE", by which clients tell them from v2's.
func Rekor1Origin(host string, tree int64) string { return host + " - " + strconv.FormatInt(tree, 10) }

// logID follows RFC 6962, section 3.2, for CT logs and Rekor v1, and c2sp.org/signed-note for
// the checkpoint keys of Rekor v2, where an ECDSA key has the same ID either way.
func logID(kind Kind, origin string, key crypto.PublicKey, spki []byte) [32]byte {
	if kind == Rekor2 {
		switch k := key.(type) {
		case ed25519.PublicKey:
			return sha256.Sum256(append([]byte(origin+"\n\x01"), k...))
		case *rsa.PublicKey:
			return sha256.Sum256(append([]byte(origin+"\n\xffPKIX-RSA-PKCS#1v1.5"), spki...))
		}
	}
	return sha256.Sum256(spki)
}

// keyDetails names key as sigstore-go 1.4 and older accept it in a trusted root.
func keyDetails(key crypto.PublicKey) (commonpb.PublicKeyDetails, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256, nil
		case elliptic.P384():
			return commonpb.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384, nil
		case elliptic.P521():
			return commonpb.PublicKeyDetails_PKIX_ECDSA_P521_SHA_512, nil
		}
	case ed25519.PublicKey:
		return commonpb.PublicKeyDetails_PKIX_ED25519, nil
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return commonpb.PublicKeyDetails_PKIX_RSA_PKCS1V15_2048_SHA256, nil
		case 3072:
			return commonpb.PublicKeyDetails_PKIX_RSA_PKCS1V15_3072_SHA256, nil
		case 4096:
			return commonpb.PublicKeyDetails_PKIX_RSA_PKCS1V15_4096_SHA256, nil
		}
	}
	return 0, fmt.Errorf("key of type %T is not one that clients accept: use ECDSA P-256", key)
}

// parseChain checks that every certificate is signed by the next and that the last may be a
// trust anchor; a TSA's first is its leaf (RFC 3161, section 2.3), everything else a CA.
func (r *Record) parseChain() error {
	if r.PublicKeyPEM != "" || r.Origin != "" {
		return errors.New("a certificate authority has a chain, not a public key or an origin")
	}
	r.certs = nil
	var normal []byte
	hash := sha256.New()
	rest := []byte(r.ChainPEM)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("chain holds a PEM block of type %q", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("certificate %d of the chain: %w", len(r.certs)+1, err)
		}
		if len(r.certs) == maxCerts {
			return fmt.Errorf("chain is longer than %d certificates", maxCerts)
		}
		r.certs = append(r.certs, cert)
		hash.Write(cert.Raw)
		normal = append(normal, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return errors.New("chain has text after the last PEM block")
	}
	if len(r.certs) == 0 {
		return errors.New("chain holds no certificate")
	}
	for i, cert := range r.certs {
		if leaf := r.Kind == TSA && i == 0; cert.IsCA == leaf {
			return fmt.Errorf("certificate %d of the chain (%s): want CA=%t", i+1, cert.Subject, !leaf)
		}
		if i+1 < len(r.certs) {
			if err := cert.CheckSignatureFrom(r.certs[i+1]); err != nil {
				return fmt.Errorf("certificate %d of the chain is not signed by the next: %w", i+1, err)
			}
		}
	}
	if r.Kind == TSA {
		if err := checkTSALeaf(r.certs); err != nil {
			return err
		}
	}
	if r.Start.IsZero() {
		r.Start = r.certs[0].NotBefore
	}
	r.ChainPEM = string(normal)
	copy(r.digest[:], hash.Sum(nil))
	return nil
}

// checkTSALeaf holds the leaf to RFC 3161, section 2.3; sigstore-python also wants at least
// two certificates.
func checkTSALeaf(certs []*x509.Certificate) error {
	if len(certs) < 2 {
		return errors.New("chain of a TSA needs its leaf and at least the root")
	}
	leaf := certs[0]
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageTimeStamping || len(leaf.UnknownExtKeyUsage) != 0 {
		return errors.New("leaf of a TSA must have timeStamping as its only extended key usage")
	}
	for _, ext := range leaf.Extensions {
		if ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 37}) && !ext.Critical {
			return errors.New("extended key usage of a TSA leaf must be critical")
		}
	}
	return nil
}

// roundUp drops fractions of a second upwards, so that an inclusive end covers all of it.
func roundUp(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	whole := t.UTC().Truncate(time.Second)
	if whole.Before(t) {
		whole = whole.Add(time.Second)
	}
	return whole
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
