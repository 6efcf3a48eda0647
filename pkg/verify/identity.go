package verify

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

const maxRegexp = 1 << 10

// Policy says who must have signed: one of Identities, or Key.
type Policy struct {
	Identities []Identity
	// Key is an ECDSA, Ed25519 or RSA public key. Bundles with certificates are refused under it.
	Key crypto.PublicKey
	// KeyWindow bounds when Key may have signed; then the bundle has to prove a time.
	KeyWindow Window
	// PredicateType, when set, demands an attestation of exactly this type.
	PredicateType string
	// Requirements replaces those derived from the trusted root.
	Requirements *Requirements
	// Thresholds replaces single ones of them.
	Thresholds Thresholds
}

// Identity is a pair of matchers that both have to fit a certificate. Make one with NewIdentity.
type Identity struct {
	issuer, subject matcher
	// Extensions are further values that the certificate must carry; empty fields are not compared.
	Extensions certificate.Extensions
}

type matcher struct {
	exact   string
	pattern *regexp.Regexp
}

// NewIdentity takes issuer and subject either exactly or as a regular expression (RE2, at most 1 KiB)
// that has to match the whole value. Values are compared byte for byte.
func NewIdentity(issuer, issuerRegexp, subject, subjectRegexp string) (Identity, error) {
	var id Identity
	var err error
	if id.issuer, err = newMatcher(issuer, issuerRegexp); err != nil {
		return id, fmt.Errorf("identity issuer: %w", err)
	}
	if id.subject, err = newMatcher(subject, subjectRegexp); err != nil {
		return id, fmt.Errorf("identity subject: %w", err)
	}
	return id, nil
}

// NewSearchingIdentity is NewIdentity with regular expressions that may match anywhere in the value, as
// policy-controller and cosign have them. They need anchors of their own to be of use.
func NewSearchingIdentity(issuer, issuerRegexp, subject, subjectRegexp string) (Identity, error) {
	id, err := NewIdentity(issuer, issuerRegexp, subject, subjectRegexp)
	if err != nil {
		return id, err
	}
	for m, pattern := range map[*matcher]string{&id.issuer: issuerRegexp, &id.subject: subjectRegexp} {
		if m.pattern != nil {
			if m.pattern, err = regexp.Compile(pattern); err != nil {
				return id, err
			}
		}
	}
	return id, nil
}

func newMatcher(exact, pattern string) (matcher, error) {
	switch {
	case exact == "" && pattern == "":
		return matcher{}, errors.New("a value or a regular expression is required")
	case exact != "" && pattern != "":
		return matcher{}, errors.New("give a value or a regular expression, not both")
	case exact != "":
		return matcher{exact: exact}, nil
	case len(pattern) > maxRegexp:
		return matcher{}, fmt.Errorf("regular expression is longer than %d bytes", maxRegexp)
	}
	if _, err := regexp.Compile(pattern); err != nil { // alone first: "a)(b" must not become valid inside the group
		return matcher{}, err
	}
	re, err := regexp.Compile(`^(?:` + pattern + `)$`)
	if err != nil {
		return matcher{}, err
	}
	return matcher{pattern: re}, nil
}

func (m matcher) matches(s string) bool {
	if m.pattern != nil {
		return m.pattern.MatchString(s)
	}
	return s == m.exact
}

func (m matcher) String() string {
	if m.pattern != nil {
		return m.pattern.String()
	}
	return m.exact
}

// ParseKey reads a PEM public key: PKIX, or PKCS #1 for RSA.
func ParseKey(pemBytes []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(pemBytes)
	if block == nil {
		return nil, errors.New("key is not PEM")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errors.New("more than one PEM block")
	}
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	}
	return nil, fmt.Errorf("PEM block %q is not a public key", block.Type)
}

// check refuses a policy that names nobody or that mixes keys and identities.
func (p *Policy) check() error {
	switch {
	case p == nil || (p.Key == nil && len(p.Identities) == 0):
		return errors.New("the policy names neither an identity nor a key")
	case p.Key != nil && len(p.Identities) > 0:
		return errors.New("the policy names both identities and a key")
	}
	switch p.Key.(type) {
	case nil, *ecdsa.PublicKey, ed25519.PublicKey, *rsa.PublicKey:
	default:
		return fmt.Errorf("the policy's key is of type %T", p.Key)
	}
	if err := p.Thresholds.check(); err != nil {
		return err
	}
	for _, id := range p.Identities {
		if id.issuer == (matcher{}) || id.subject == (matcher{}) {
			return errors.New("an identity of the policy lacks an issuer or a subject")
		}
	}
	return nil
}

// verifyIdentity reads the certificate's names and requires that one identity of the policy fits. The two
// issuer extensions must not contradict each other: clients differ in which one they read.
func (a *attempt) verifyIdentity() error {
	leaf := a.bundle.leaf
	if leaf == nil {
		return nil
	}
	summary := a.bundle.summary
	if summary.Issuer == "" { // or a pattern might fit it
		return fail(ReasonIdentityIssuer, nil, "the certificate names no issuer of identities")
	}
	var subject error
	for _, id := range a.policy.Identities {
		if !id.issuer.matches(summary.Issuer) {
			continue
		}
		if !id.subject.matches(summary.SubjectAlternativeName) {
			subject = fail(ReasonIdentitySubject, nil, "the certificate is for %q, not %q", summary.SubjectAlternativeName, id.subject)
			continue
		}
		if id.Extensions != (certificate.Extensions{}) {
			if err := certificate.CompareExtensions(id.Extensions, summary.Extensions); err != nil {
				subject = fail(ReasonIdentityExtension, err, "certificate extensions")
				continue
			}
		}
		return nil
	}
	if subject != nil {
		return subject
	}
	return fail(ReasonIdentityIssuer, nil, "the certificate's issuer of identities is %q, which the policy does not name", summary.Issuer)
}

// summarize reads the names of a signing certificate.
func summarize(leaf *x509.Certificate) (*certificate.Summary, error) {
	summary, err := certificate.SummarizeCertificate(leaf)
	if err != nil {
		if san, _ := cryptoutils.UnmarshalOtherNameSAN(leaf.Extensions); len(leaf.URIs)+len(leaf.EmailAddresses) == 0 && san == "" {
			return nil, fail(ReasonCertSubject, err, "the certificate names nobody")
		}
		return nil, err
	}
	var v1, v2 string
	var has1, has2 bool
	for _, e := range leaf.Extensions {
		switch {
		//lint:ignore SA1019 the old extension is read on purpose: it must say the same as the new one
		case e.Id.Equal(certificate.OIDIssuer):
			if has1 {
				return nil, errors.New("issuer extension appears twice")
			}
			v1, has1 = string(e.Value), true
		case e.Id.Equal(certificate.OIDIssuerV2):
			if has2 {
				return nil, errors.New("issuer extension appears twice")
			}
			has2 = true
			if err := certificate.ParseDERString(e.Value, &v2); err != nil {
				return nil, err
			}
		}
	}
	if has1 && has2 && v1 != v2 {
		return nil, fail(ReasonIssuerConflict, nil, "issuer extensions contradict each other: %.200q and %.200q", v1, v2)
	}
	return &summary, nil
}

// handleSAN takes the subject alternative name off the list of critical extensions that Go does not know: an
// OtherName in it was read by summarize.
func handleSAN(leaf *x509.Certificate) {
	var left []asn1OID
	for _, oid := range leaf.UnhandledCriticalExtensions {
		if !oid.Equal(cryptoutils.SANOID) {
			left = append(left, oid)
		}
	}
	leaf.UnhandledCriticalExtensions = left
}
