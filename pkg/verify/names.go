package verify

import (
	"crypto"
	"crypto/x509"
)

// AcceptsNames reports whether a signer would do: one of p's identities fits the names in the certificate leaf, or, when leaf is
// nil, key is p's key. Nothing is proven by it: neither who issued the certificate nor that it signed anything. It is for
// looking at what a log holds. The error carries the reason of a refusal.
func (p *Policy) AcceptsNames(leaf *x509.Certificate, key crypto.PublicKey) error {
	if err := p.check(); err != nil {
		return err
	}
	if leaf == nil || p.Key != nil {
		same, ok := p.Key.(interface{ Equal(crypto.PublicKey) bool })
		if leaf != nil || !ok || !same.Equal(key) {
			return fail(ReasonKeyMismatch, nil, "it is not the policy's key")
		}
		return nil
	}
	summary, err := summarize(leaf)
	if err != nil {
		return fail(ReasonIdentityIssuer, err, "names in the signing certificate")
	}
	a := attempt{policy: p, bundle: &bundle{leaf: leaf, summary: summary}}
	return a.verifyIdentity()
}

// Names returns the issuer of identities and the subject in a signing certificate.
func Names(leaf *x509.Certificate) (issuer, subject string, err error) {
	summary, err := summarize(leaf)
	if err != nil {
		return "", "", err
	}
	return summary.Issuer, summary.SubjectAlternativeName, nil
}
