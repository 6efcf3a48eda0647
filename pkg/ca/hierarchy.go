package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"time"
)

// Hierarchy describes a new root and the intermediate that issues under it.
type Hierarchy struct {
	RootKey      crypto.Signer // P-384 by default of the stack
	IssuingKey   crypto.Signer // P-256 by default of the stack; not Ed25519
	Organization string
	RootName     string        // common name, default "<Organization> root"
	IssuingName  string        // common name, default "<Organization> issuing CA"
	RootLife     time.Duration // default 10 years
	IssuingLife  time.Duration // default 3 years, not beyond the root's
	NotBefore    time.Time     // default now; becomes the start of the CA's window in trusted roots
	Rand         io.Reader     // default crypto/rand
}

// CreateHierarchy makes both certificates and returns them issuing first, as PEM files and
// Options.Chain want them: a root (certSign and cRLSign, no extended key usage) and an
// intermediate with path length 0 for code signing only.
func CreateHierarchy(h Hierarchy) ([]*x509.Certificate, error) {
	const year = 365 * 24 * time.Hour
	if h.Organization == "" {
		return nil, fmt.Errorf("creating hierarchy: an organization is required")
	}
	if h.RootName == "" {
		h.RootName = h.Organization + " root"
	}
	if h.IssuingName == "" {
		h.IssuingName = h.Organization + " issuing CA"
	}
	if h.RootLife == 0 {
		h.RootLife = 10 * year
	}
	if h.IssuingLife == 0 {
		h.IssuingLife = min(3*year, h.RootLife)
	}
	if h.NotBefore.IsZero() {
		h.NotBefore = time.Now()
	}
	if h.Rand == nil {
		h.Rand = rand.Reader
	}
	if h.IssuingLife > h.RootLife {
		return nil, fmt.Errorf("creating hierarchy: the issuing certificate would outlive the root")
	}
	notBefore := h.NotBefore.UTC().Truncate(time.Second)
	base := func(name string, life time.Duration, key crypto.Signer) (*x509.Certificate, error) {
		serial, err := newSerial(h.Rand)
		if err != nil {
			return nil, err
		}
		info, err := marshalKey(key.Public())
		if err != nil {
			return nil, err
		}
		return &x509.Certificate{
			SerialNumber:          new(big.Int).SetBytes(serial),
			Subject:               pkix.Name{Organization: []string{h.Organization}, CommonName: name},
			NotBefore:             notBefore,
			NotAfter:              notBefore.Add(life),
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			BasicConstraintsValid: true,
			IsCA:                  true,
			SubjectKeyId:          info.keyID,
		}, nil
	}
	root, err := base(h.RootName, h.RootLife, h.RootKey)
	if err != nil {
		return nil, fmt.Errorf("creating root: %w", err)
	}
	root.MaxPathLen = 1
	root, err = create(h.Rand, root, root, h.RootKey.Public(), h.RootKey)
	if err != nil {
		return nil, fmt.Errorf("creating root: %w", err)
	}
	issuing, err := base(h.IssuingName, h.IssuingLife, h.IssuingKey)
	if err != nil {
		return nil, fmt.Errorf("creating issuing certificate: %w", err)
	}
	issuing.MaxPathLenZero = true
	issuing.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	issuing, err = create(h.Rand, issuing, root, h.IssuingKey.Public(), h.RootKey)
	if err != nil {
		return nil, fmt.Errorf("creating issuing certificate: %w", err)
	}
	chain := []*x509.Certificate{issuing, root}
	return chain, CheckChain(chain, h.IssuingKey.Public(), notBefore)
}

func create(random io.Reader, template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	raw, err := x509.CreateCertificate(random, template, parent, pub, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(raw)
}

// newSerial returns 20 random octets that read as a positive integer without leading zeros, so
// that every serial has the same length.
func newSerial(random io.Reader) ([]byte, error) {
	serial := make([]byte, 20)
	if _, err := io.ReadFull(random, serial); err != nil {
		return nil, fmt.Errorf("drawing a serial number: %w", err)
	}
	serial[0] = serial[0]&0x7f | 0x40
	return serial, nil
}
