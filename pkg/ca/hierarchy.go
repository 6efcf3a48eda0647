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
	if h.RootLife == 0 {
		h.RootLife = rootLife
	}
	if h.IssuingLife == 0 {
		h.IssuingLife = min(issuingLife, h.RootLife)
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
	root, err := CreateRoot(NewRoot{Key: h.RootKey, Organization: h.Organization, Name: h.RootName, Life: h.RootLife, NotBefore: h.NotBefore, Rand: h.Rand})
	if err != nil {
		return nil, err
	}
	if h.IssuingName == "" {
		h.IssuingName = h.Organization + " issuing CA"
	}
	issuing, err := caTemplate(h.Rand, h.IssuingKey.Public(), h.NotBefore, h.IssuingLife)
	if err != nil {
		return nil, fmt.Errorf("creating issuing certificate: %w", err)
	}
	issuing.Subject = pkix.Name{Organization: []string{h.Organization}, CommonName: h.IssuingName}
	return signIssuing(h.Rand, issuing, h.IssuingKey.Public(), root, h.RootKey, issuing.NotBefore)
}

const (
	rootLife    = 3650 * 24 * time.Hour
	issuingLife = 1095 * 24 * time.Hour
	maxRootLife = 30 * 366 * 24 * time.Hour
)

// NewRoot describes a root certificate.
type NewRoot struct {
	Key          crypto.Signer // ECDSA or RSA, as CheckChain wants it
	Organization string
	Name         string        // common name, default "<Organization> root"
	Life         time.Duration // default 10 years, at most 30
	NotBefore    time.Time     // default now
	Rand         io.Reader     // default crypto/rand
}

// CreateRoot makes a self-signed root for intermediates that issue: certSign and cRLSign, path length 1, no extended key usage
// and no name constraints. GitHub's gh finds a CA by its one organization, so there is exactly that.
func CreateRoot(r NewRoot) (*x509.Certificate, error) {
	if r.Organization == "" {
		return nil, fmt.Errorf("creating root: an organization is required")
	}
	if r.Name == "" {
		r.Name = r.Organization + " root"
	}
	if r.Life == 0 {
		r.Life = rootLife
	}
	if r.Life < 0 || r.Life > maxRootLife {
		return nil, fmt.Errorf("creating root: a life of %d days is not between 1 and %d", int(r.Life.Hours()/24), int(maxRootLife.Hours()/24))
	}
	if r.NotBefore.IsZero() {
		r.NotBefore = time.Now()
	}
	if r.Rand == nil {
		r.Rand = rand.Reader
	}
	root, err := caTemplate(r.Rand, r.Key.Public(), r.NotBefore, r.Life)
	if err != nil {
		return nil, fmt.Errorf("creating root: %w", err)
	}
	root.Subject = pkix.Name{Organization: []string{r.Organization}, CommonName: r.Name}
	if err := checkOrganization(root.Subject); err != nil {
		return nil, fmt.Errorf("creating root: %w", err)
	}
	root.MaxPathLen = 1
	if root, err = create(r.Rand, root, root, r.Key.Public(), r.Key); err != nil {
		return nil, fmt.Errorf("creating root: %w", err)
	}
	if err := checkCA(root, root.NotBefore); err != nil {
		return nil, fmt.Errorf("creating root: %w", err)
	}
	return root, nil
}

// caTemplate is what roots and issuing certificates have in common.
func caTemplate(random io.Reader, pub crypto.PublicKey, notBefore time.Time, life time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial(random)
	if err != nil {
		return nil, err
	}
	info, err := marshalKey(pub)
	if err != nil {
		return nil, err
	}
	notBefore = notBefore.UTC().Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		NotBefore:             notBefore,
		NotAfter:              notBefore.Add(life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          info.keyID,
	}, nil
}

// signIssuing signs the issuing certificate of a template and returns it with its root, checked as at now.
func signIssuing(random io.Reader, template *x509.Certificate, pub crypto.PublicKey, root *x509.Certificate, rootKey crypto.Signer, now time.Time) ([]*x509.Certificate, error) {
	template.MaxPathLenZero = true
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	issuing, err := create(random, template, root, pub, rootKey)
	if err != nil {
		return nil, fmt.Errorf("creating issuing certificate: %w", err)
	}
	chain := []*x509.Certificate{issuing, root}
	return chain, CheckChain(chain, pub, now)
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
