package tsa

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	maxChain      = 8 // certificates
	maxChainBytes = 64 << 10
)

var (
	oidExtKeyUsage  = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidTimeStamping = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 8}
)

// ChainOptions says what CreateChain puts into the certificates.
type ChainOptions struct {
	Organization string        // of both subjects; required
	NotBefore    time.Time     // required; cut to whole seconds, never after the first timestamp
	Life         time.Duration // of both certificates; 0 is ten years
}

// CreateChain makes the two certificates of a new authority, leaf first: a self-signed root by
// root, and under it, without an intermediate, the time-stamping certificate of leaf. P-256
// for the leaf and P-256 or P-384 for the root suit every client (sigstore-js knows ECDSA only).
//
// Profile: RFC 3161 section 2.3 (extended key usage critical and id-kp-timeStamping alone), key
// usage digitalSignature alone (openssl's purpose timestampsign refuses more), root pathlen 0.
// The root key signs nothing else: a new leaf is a new authority, with a root of its own.
func CreateChain(leaf crypto.PublicKey, root crypto.Signer, o ChainOptions) ([]*x509.Certificate, error) {
	if o.Organization == "" || o.NotBefore.IsZero() {
		return nil, errors.New("a timestamp chain needs an organization and a start")
	}
	notBefore := o.NotBefore.UTC().Truncate(time.Second)
	notAfter := notBefore.AddDate(10, 0, 0)
	if o.Life > 0 {
		notAfter = notBefore.Add(o.Life).Truncate(time.Second)
	}
	rootCert, err := create(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{o.Organization}, CommonName: o.Organization + " timestamp root"},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, root.Public(), root)
	if err != nil {
		return nil, fmt.Errorf("timestamp root: %w", err)
	}
	// x509.CreateCertificate never marks the extended key usage critical, hence by hand.
	eku, err := asn1.Marshal([]asn1.ObjectIdentifier{oidTimeStamping})
	if err != nil {
		return nil, fmt.Errorf("timestamp certificate: %w", err)
	}
	leafCert, err := create(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{o.Organization}, CommonName: o.Organization + " timestamp authority"},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtraExtensions:       []pkix.Extension{{Id: oidExtKeyUsage, Critical: true, Value: eku}},
	}, rootCert, leaf, root)
	if err != nil {
		return nil, fmt.Errorf("timestamp certificate: %w", err)
	}
	return []*x509.Certificate{leafCert, rootCert}, nil
}

// create signs template and reads it back. A nil parent makes it self-signed.
func create(template, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) (*x509.Certificate, error) {
	serial := make([]byte, 20)
	if _, err := rand.Read(serial); err != nil {
		return nil, err
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive, at most 20 octets: RFC 5280 section 4.1.2.2
	template.SerialNumber = new(big.Int).SetBytes(serial)
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	keyID := sha256.Sum256(spki)
	template.SubjectKeyId = keyID[:20]
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, by)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ParseChain reads PEM certificates and nothing else, leaf first. CheckChain says whether they
// make a timestamp authority.
func ParseChain(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxChainBytes {
		return nil, fmt.Errorf("certificate chain: over %d bytes", maxChainBytes)
	}
	var chain []*x509.Certificate
	for rest := bytes.TrimSpace(text); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("certificate chain: text that is not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("certificate chain: a PEM block %q", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate chain, certificate %d: %w", len(chain)+1, err)
		}
		if chain = append(chain, cert); len(chain) > maxChain {
			return nil, fmt.Errorf("certificate chain: over %d certificates", maxChain)
		}
	}
	return chain, nil
}

// EncodeChain returns the certificates as PEM in the given order.
func EncodeChain(chain []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range chain {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out.Bytes()
}

// CheckChain tells whether key may issue timestamps with chain (leaf first, self-signed root
// last) at time now, as the strictest clients see it: RFC 3161 section 2.3, openssl's purpose
// timestampsign, and sigstore-python's need of a leaf and an issuer.
func CheckChain(chain []*x509.Certificate, key crypto.PublicKey, now time.Time) error {
	if len(chain) < 2 {
		return fmt.Errorf("the certificate chain has %d certificates: it needs the time-stamping certificate first and its root last", len(chain))
	}
	leaf, root := chain[0], chain[len(chain)-1]
	if leaf.IsCA {
		return fmt.Errorf("the first certificate, %q, is a CA: the time-stamping certificate must stand first", leaf.Subject)
	}
	for i, issuer := range chain[1:] {
		if !issuer.IsCA {
			return fmt.Errorf("certificate %d, %q, is not a CA", i+2, issuer.Subject)
		}
		if !bytes.Equal(chain[i].RawIssuer, issuer.RawSubject) {
			return fmt.Errorf("certificate %d, %q, is not the issuer of certificate %d: the order is leaf, intermediates, root", i+2, issuer.Subject, i+1)
		}
	}
	if err := root.CheckSignatureFrom(root); err != nil || !bytes.Equal(root.RawIssuer, root.RawSubject) {
		return fmt.Errorf("the last certificate, %q, is not a self-signed root", root.Subject)
	}
	if len(leaf.RawSubject) <= 2 {
		return errors.New("the time-stamping certificate has an empty subject")
	}
	if err := checkUsage(leaf); err != nil {
		return err
	}
	if public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key) {
		return fmt.Errorf("the key is not that of the time-stamping certificate %q", leaf.Subject)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range chain[1 : len(chain)-1] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping},
	})
	if err != nil {
		return fmt.Errorf("the certificate chain does not verify: %w", err)
	}
	return nil
}

func checkUsage(leaf *x509.Certificate) error {
	critical := false
	for _, e := range leaf.Extensions {
		if e.Id.Equal(oidExtKeyUsage) {
			critical = e.Critical
		}
	}
	switch {
	case len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) != 1,
		len(leaf.ExtKeyUsage) == 1 && leaf.ExtKeyUsage[0] != x509.ExtKeyUsageTimeStamping,
		len(leaf.ExtKeyUsage) == 0:
		return fmt.Errorf("the extended key usage of %q is not timeStamping alone", leaf.Subject)
	case !critical:
		return fmt.Errorf("the extended key usage of %q is not critical", leaf.Subject)
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0,
		leaf.KeyUsage&^(x509.KeyUsageDigitalSignature|x509.KeyUsageContentCommitment) != 0:
		return fmt.Errorf("the key usage of %q is not digitalSignature alone", leaf.Subject)
	}
	return nil
}

// window returns when all certificates of chain are valid.
func window(chain []*x509.Certificate) (first, end time.Time) {
	first, end = chain[0].NotBefore, chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotBefore.After(first) {
			first = c.NotBefore
		}
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return first, end
}
