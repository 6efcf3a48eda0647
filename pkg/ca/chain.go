package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

const maxChain = 8 // certificates

// ParseChain reads PEM certificates, issuing certificate first, root last. Other PEM blocks and
// text after the last one are errors.
func ParseChain(data []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for rest := bytes.TrimSpace(data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, errors.New("certificate chain: text that is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("certificate chain: unexpected PEM block %q", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate chain: certificate %d: %w", len(chain)+1, err)
		}
		if chain = append(chain, cert); len(chain) > maxChain {
			return nil, fmt.Errorf("certificate chain: over %d certificates", maxChain)
		}
		rest = after
	}
	if len(chain) == 0 {
		return nil, errors.New("certificate chain: no certificate")
	}
	return chain, nil
}

// CheckChain reports everything that would make certificates issued under chain unusable for
// some client: chain[0] issues, the last one is the self-signed root, each is signed by the
// next, and pub is the issuing key. One self-signed certificate alone is allowed. A problem that another PKI can
// mend comes with what to ask it for.
func CheckChain(chain []*x509.Certificate, pub crypto.PublicKey, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("certificate chain: no certificate")
	}
	var problems []error
	add := func(i int, format string, args ...any) {
		problems = append(problems, fmt.Errorf("certificate chain: certificate %d (%s): "+format, append([]any{i + 1, chain[i].Subject}, args...)...))
	}
	if !owns(pub, chain[0]) {
		add(0, "the signing key is not this certificate's key")
	}
	for i, cert := range chain {
		if err := checkCA(cert, now); err != nil {
			add(i, "%w", err)
		}
		if cert.MaxPathLen >= 0 && (cert.MaxPathLen > 0 || cert.MaxPathLenZero) && cert.MaxPathLen < i {
			add(i, "path length %d does not allow the %d below it: it takes a CA with a greater one, or none, to sign the request", cert.MaxPathLen, i)
		}
		last := i == len(chain)-1
		parent := cert
		if !last {
			parent = chain[i+1]
			if bytes.Equal(cert.RawSubject, cert.RawIssuer) {
				add(i, "is self-signed but not the last")
			}
			// Loaders refuse an issuing certificate without it, and Go chains extended key usages. Those of a PKI above it
			// usually have none, which allows all.
			if i == 0 && (len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageCodeSigning || len(cert.UnknownExtKeyUsage) != 0) {
				add(i, "an intermediate must have the extended key usage codeSigning and no other: ask for extendedKeyUsage=codeSigning")
			}
			if i > 0 && len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0 && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) {
				add(i, "its extended key usage does not allow codeSigning below it: ask for a signature of a CA that does")
			}
			if !bytes.Equal(cert.AuthorityKeyId, parent.SubjectKeyId) {
				add(i, "its authority key identifier is not the next certificate's subject key identifier: ask for authorityKeyIdentifier=keyid")
			}
		} else if len(cert.AuthorityKeyId) > 0 && !bytes.Equal(cert.AuthorityKeyId, cert.SubjectKeyId) {
			add(i, "a root's authority key identifier must be absent or its own")
		}
		if !bytes.Equal(cert.RawIssuer, parent.RawSubject) {
			add(i, "its issuer is not the next certificate's subject; the last must be a self-signed root")
		} else if err := cert.CheckSignatureFrom(parent); err != nil {
			add(i, "is not signed by the next certificate: %w", err)
		}
	}
	return errors.Join(problems...)
}

// checkCA checks what one CA certificate must be by itself. sigstore-python 4.5 verifies with
// the WebPKI rules of its cryptography library, the strictest of all clients.
func checkCA(cert *x509.Certificate, now time.Time) error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if !cert.BasicConstraintsValid || !cert.IsCA || !critical(cert, 19) {
		add("basic constraints CA:TRUE must be present and critical: ask for basicConstraints=critical,CA:TRUE,pathlen:0")
	}
	if cert.KeyUsage&x509.KeyUsageCertSign == 0 || !critical(cert, 15) {
		add("key usage keyCertSign must be present and critical: ask for keyUsage=critical,keyCertSign,cRLSign")
	}
	if critical(cert, 37) {
		add("the extended key usage must not be critical: ask for extendedKeyUsage=codeSigning without critical")
	}
	if len(cert.SubjectKeyId) == 0 {
		add("has no subject key identifier, so that leaves would lack an authority key identifier: ask for subjectKeyIdentifier=hash")
	}
	if len(cert.Subject.Names) == 0 {
		add("has an empty subject: ask for one")
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		add("is valid from %s to %s, it is %s", cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if _, err := signatureFor(cert.PublicKey); err != nil {
		add("%w", err)
	} else if err := checkKey(cert.PublicKey); err != nil {
		add("weak key: %w", err)
	}
	return errors.Join(problems...)
}

// critical reports whether cert has extension 2.5.29.arc and marks it critical.
func critical(cert *x509.Certificate, arc int) bool {
	for _, e := range cert.Extensions {
		if e.Id.Equal([]int{2, 5, 29, arc}) {
			return e.Critical
		}
	}
	return false
}

// signature is how the issuing key signs.
type signature struct {
	hash       crypto.Hash
	identifier []byte // DER AlgorithmIdentifier
}

// signatureFor returns how pub's key signs certificates. Ed25519 is refused: sigstore-python
// cannot check an SCT under an Ed25519 issuer.
func signatureFor(pub crypto.PublicKey) (signature, error) {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return signature{crypto.SHA256, der(tagSequence, oid(1, 2, 840, 10045, 4, 3, 2))}, nil
		case elliptic.P384():
			return signature{crypto.SHA384, der(tagSequence, oid(1, 2, 840, 10045, 4, 3, 3))}, nil
		case elliptic.P521():
			return signature{crypto.SHA512, der(tagSequence, oid(1, 2, 840, 10045, 4, 3, 4))}, nil
		}
	case *rsa.PublicKey:
		return signature{crypto.SHA256, der(tagSequence, oid(1, 2, 840, 113549, 1, 1, 11), []byte{tagNull, 0})}, nil
	}
	return signature{}, fmt.Errorf("a CA key must be ECDSA on P-256, P-384 or P-521, or RSA, not %T", pub)
}

func encodePEM(cert []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
}
