package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
)

// CreateCSR returns a certificate signing request (PKCS #10, one PEM block) for an issuing certificate of key, to be
// signed by another PKI. It asks for what CheckChain wants: CA:TRUE with path length 0, keyCertSign and cRLSign, both
// critical, and codeSigning as the one extended key usage. subject must not be empty.
func CreateCSR(key crypto.Signer, subject pkix.Name) ([]byte, error) {
	if len(subject.ToRDNSequence()) == 0 {
		return nil, errors.New("certificate signing request: a subject is required")
	}
	// Refused here already: the PKI would sign what no client verifies.
	if _, err := signatureFor(key.Public()); err != nil {
		return nil, fmt.Errorf("certificate signing request: %w", err)
	}
	raw, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: subject, ExtraExtensions: csrExtensions(),
	}, key)
	if err != nil {
		return nil, fmt.Errorf("certificate signing request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: raw}), nil
}

func csrExtensions() []pkix.Extension {
	return []pkix.Extension{
		{Id: []int{2, 5, 29, 19}, Critical: true, Value: der(tagSequence, []byte{tagBool, 1, 0xff}, []byte{tagInteger, 1, 0})},
		{Id: []int{2, 5, 29, 15}, Critical: true, Value: []byte{tagBitString, 2, 1, 0x06}}, // keyCertSign, cRLSign
		{Id: []int{2, 5, 29, 37}, Value: der(tagSequence, derCodeSigning)},
	}
}
