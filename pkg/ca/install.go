package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

const (
	scarceLife = 90 * 24 * time.Hour // of an issuing certificate that is installed
	trialLife  = 10 * time.Minute
)

// CheckNew reports everything that speaks against issuing under chain with key from now on: what CheckChain finds, a
// certificate or key that earlier chains have already, and whether certificates made on trial, one for each kind of
// name, verify. The trial shows what no list of rules does, such as name constraints and critical extensions that
// clients do not know. warnings are no reason to refuse.
func CheckNew(chain []*x509.Certificate, key crypto.Signer, earlier [][]*x509.Certificate, now time.Time) (warnings []string, err error) {
	if err := CheckChain(chain, key.Public(), now); err != nil {
		return nil, err
	}
	var problems []error
	issuing := chain[0]
	for _, other := range earlier {
		switch {
		case len(other) == 0:
		case bytes.Equal(other[0].Raw, issuing.Raw):
			problems = append(problems, fmt.Errorf("%s, serial %x, is installed already", issuing.Subject, issuing.SerialNumber))
		case bytes.Equal(other[0].RawSubjectPublicKeyInfo, issuing.RawSubjectPublicKeyInfo):
			problems = append(problems, fmt.Errorf("%s has the key of the certificate with serial %x: make a new key and a request for it", issuing.Subject, other[0].SerialNumber))
		}
	}
	for i, cert := range chain[:len(chain)-1] {
		if parent := chain[i+1]; cert.NotBefore.Before(parent.NotBefore) || cert.NotAfter.After(parent.NotAfter) {
			problems = append(problems, fmt.Errorf("certificate chain: certificate %d (%s) is valid from %s to %s, beyond its issuer's %s to %s: ask for a validity inside it", i+1,
				cert.Subject, day(cert.NotBefore), day(cert.NotAfter), day(parent.NotBefore), day(parent.NotAfter)))
		}
	}
	constrained, err := trial(chain, key, now)
	if err != nil {
		problems = append(problems, err)
	}
	warnings = append(warnings, constrained...)
	if len(chain) == 1 {
		warnings = append(warnings, "the issuing certificate is the root itself: it cannot be replaced without replacing everybody's trust")
	} else if !issuing.MaxPathLenZero {
		warnings = append(warnings, "the issuing certificate may issue further CAs: ask for basicConstraints=critical,CA:TRUE,pathlen:0")
	}
	if left := issuing.NotAfter.Sub(now); left < scarceLife {
		warnings = append(warnings, fmt.Sprintf("the issuing certificate ends on %s, in %d days: ask for a longer validity, or begin with the next one soon", day(issuing.NotAfter), int(left.Hours()/24)))
	}
	return warnings, errors.Join(problems...)
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// trial issues certificates that nobody gets and verifies them as Go clients do. Their names are of a domain that stands
// for any, so a PKI that is constrained to domains of its own shows as a warning.
func trial(chain []*x509.Certificate, key crypto.Signer, now time.Time) (warnings []string, err error) {
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(chain[len(chain)-1])
	for _, cert := range chain[:len(chain)-1] {
		intermediates.AddCert(cert)
	}
	var problems []error
	for _, name := range []struct {
		value    string
		template x509.Certificate
	}{
		{"signer@name.invalid", x509.Certificate{EmailAddresses: []string{"signer@name.invalid"}}},
		{"https://name.invalid/workflow", x509.Certificate{URIs: []*url.URL{{Scheme: "https", Host: "name.invalid", Path: "/workflow"}}}},
	} {
		template := name.template
		template.SerialNumber = big.NewInt(1)
		template.NotBefore, template.NotAfter = now.Add(-time.Second), now.Add(trialLife)
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		cert, err := create(rand.Reader, &template, chain[0], leaf.Public(), key)
		if err != nil {
			return nil, fmt.Errorf("issuing a certificate on trial: %w", err)
		}
		_, err = cert.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		})
		var invalid x509.CertificateInvalidError
		switch {
		case err == nil:
		case errors.As(err, &invalid) && invalid.Reason == x509.CANotAuthorizedForThisName:
			warnings = append(warnings, fmt.Sprintf("the chain has name constraints that refuse the name %s: certificates for such names will not verify", name.value))
		default:
			problems = append(problems, fmt.Errorf("a certificate for %s would not verify: %w; ask for a CA without critical extensions other than basicConstraints and keyUsage", name.value, err))
		}
	}
	return warnings, errors.Join(problems...)
}
