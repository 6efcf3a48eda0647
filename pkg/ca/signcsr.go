package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// ParseCSR reads a request for an issuing certificate, one PEM block of at most 16 KiB, as CreateCSR makes it. Its key must have
// signed it and be one to issue with, and it may ask for nothing that CreateCSR does not ask for.
func ParseCSR(text []byte) (*x509.CertificateRequest, error) {
	if len(text) > maxKeyInput {
		return nil, fmt.Errorf("certificate signing request: over %d bytes", maxKeyInput)
	}
	block, err := onePEM(text)
	if err != nil {
		return nil, fmt.Errorf("certificate signing request: %w", err)
	}
	if block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("certificate signing request: unexpected PEM block %.40q", block.Type)
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate signing request: %w", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate signing request: its key did not sign it: %w", err)
	}
	if _, err := signatureFor(request.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate signing request: %w", err)
	}
	if err := checkKey(request.PublicKey); err != nil {
		return nil, fmt.Errorf("certificate signing request: weak key: %w", err)
	}
	if err := checkOrganization(request.Subject); err != nil {
		return nil, fmt.Errorf("certificate signing request: %w", err)
	}
	// What it asks for is signed as it stands there, or not at all: a certificate that lacks it would surprise one of the two sides.
	asked := map[string]bool{}
	for _, e := range request.Extensions {
		id := e.Id.String()
		granted := false
		for _, ours := range csrExtensions() {
			granted = granted || ours.Id.Equal(e.Id) && ours.Critical == e.Critical && bytes.Equal(ours.Value, e.Value)
		}
		if !granted || asked[id] {
			return nil, fmt.Errorf("certificate signing request: it asks for extension %s in a way that no issuing certificate has; `attestry ca csr` makes requests that can be signed", id)
		}
		asked[id] = true
	}
	return request, nil
}

// SignCSR signs a request of ParseCSR with a root and its key, and returns the chain. life is the certificate's, 0 for three years or
// until the root's end, if that comes first.
func SignCSR(request *x509.CertificateRequest, root *x509.Certificate, key crypto.Signer, life time.Duration, now time.Time) ([]*x509.Certificate, error) {
	if !owns(key.Public(), root) {
		return nil, fmt.Errorf("the key is not that of the root %s", root.Subject)
	}
	if bytes.Equal(request.RawSubject, root.RawSubject) {
		return nil, fmt.Errorf("the request has the subject of the root, %s: it would look self-signed", root.Subject)
	}
	for _, e := range root.Extensions {
		if e.Id.Equal([]int{2, 5, 29, 30}) {
			return nil, fmt.Errorf("the root %s has name constraints, which would hold for every signer's name", root.Subject)
		}
	}
	left := root.NotAfter.Sub(now.UTC().Truncate(time.Second))
	if life == 0 {
		life = min(issuingLife, left)
	}
	if life <= 0 || life > left {
		return nil, fmt.Errorf("the root %s is valid until %s: the certificate may not outlive it", root.Subject, day(root.NotAfter))
	}
	template, err := caTemplate(rand.Reader, request.PublicKey, now, life)
	if err != nil {
		return nil, err
	}
	template.RawSubject = request.RawSubject
	return signIssuing(rand.Reader, template, request.PublicKey, root, key, now)
}

// checkOrganization wants the subject of a CA to be one that gh can find: it picks the trusted root by the one organization of
// the issuer, and takes these two for the public instances.
func checkOrganization(subject pkix.Name) error {
	if len(subject.Organization) != 1 || subject.Organization[0] == "" {
		return fmt.Errorf("the subject %q must have exactly one organization (--organization): gh finds a CA by it", subject)
	}
	if o := subject.Organization[0]; o == "sigstore.dev" || o == "GitHub, Inc." {
		return fmt.Errorf("the organization %q is that of a public instance", o)
	}
	for _, attribute := range subject.Names {
		text, ok := attribute.Value.(string)
		if !ok || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return errors.New("the subject has text that cannot be printed")
		}
	}
	return nil
}
