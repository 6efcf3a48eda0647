package entry

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// maxRSABits keeps the time of one verification in bounds.
const maxRSABits = 8192

// verifier is key material that a submission names: a public key, or certificates of which the first holds the key.
type verifier struct {
	public crypto.PublicKey
	pem    []byte              // canonical: 64 columns, no headers, trailing newline
	certs  []*x509.Certificate // leaf first; nil for a bare key
}

// parsePEM reads one PUBLIC KEY (PKIX) or up to MaxCertificates CERTIFICATE blocks, leaf first.
func parsePEM(raw []byte) (verifier, error) {
	rest := bytes.TrimSpace(raw)
	block, rest := pem.Decode(rest)
	if block == nil {
		return verifier{}, errors.New("invalid public key: failure decoding PEM")
	}
	if len(rest) == 0 && block.Type == "PUBLIC KEY" {
		return parsePublicKey(block.Bytes)
	}
	var v verifier
	for {
		if block.Type != "CERTIFICATE" {
			return verifier{}, fmt.Errorf("invalid public key: cannot handle type %q", block.Type)
		}
		if len(v.certs) == MaxCertificates {
			return verifier{}, errors.New("too many certificates specified in PEM block")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return verifier{}, err
		}
		v.certs = append(v.certs, cert)
		v.pem = append(v.pem, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
		if rest = bytes.TrimSpace(rest); len(rest) == 0 {
			break
		}
		if block, rest = pem.Decode(rest); block == nil {
			return verifier{}, errors.New("error during PEM decoding")
		}
	}
	v.public = v.certs[0].PublicKey
	return v, checkKey(v.public)
}

// parsePublicKey reads a DER SubjectPublicKeyInfo.
func parsePublicKey(der []byte) (verifier, error) {
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return verifier{}, err
	}
	if err := checkKey(public); err != nil {
		return verifier{}, err
	}
	if der, err = x509.MarshalPKIXPublicKey(public); err != nil {
		return verifier{}, err
	}
	return verifier{public: public, pem: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}, nil
}

// parseCertificate reads one DER certificate.
func parseCertificate(der []byte) (verifier, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return verifier{}, err
	}
	return verifier{
		public: cert.PublicKey, certs: []*x509.Certificate{cert},
		pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}),
	}, checkKey(cert.PublicKey)
}

func checkKey(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() > maxRSABits {
			return fmt.Errorf("RSA key of %d bits, over %d", k.N.BitLen(), maxRSABits)
		}
		return nil
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return nil
	default:
		return errors.New("unsupported public key type")
	}
}

// checkChain verifies that two or more certificates lead from the first to the last, as of the
// first one's NotBefore and for any usage. It says nothing about who issued them.
func (v verifier) checkChain() error {
	if len(v.certs) < 2 {
		return nil
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(v.certs[len(v.certs)-1])
	for _, c := range v.certs[1 : len(v.certs)-1] {
		intermediates.AddCert(c)
	}
	_, err := v.certs[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime: v.certs[0].NotBefore,
	})
	return err
}

// keys are the digest of the canonical PEM, bare and prefixed, and the leaf's subject alternative
// names. Upstream stores hashedrekord's digest bare and dsse's prefixed, but looks up public keys
// bare only; we find all of them both ways.
func (v verifier) keys() []string {
	keys := pemKeys(v.pem)
	if len(v.certs) > 0 {
		keys = append(keys, cryptoutils.GetSubjectAlternateNames(v.certs[0])...)
	}
	return keys
}

func pemKeys(canonical []byte) []string {
	sum := sha256.Sum256(canonical)
	hexSum := hex.EncodeToString(sum[:])
	return []string{hexSum, "sha256:" + hexSum}
}

// storedKeys are verifier.keys of PEM that a body holds.
func storedKeys(canonical []byte) ([]string, error) {
	v, err := parsePEM(canonical)
	if err != nil {
		return nil, err
	}
	return v.keys(), nil
}

// pairAllowed tells whether a key may sign digests of hash (protobuf-specs' algorithm registry,
// what upstream allows by default). Ed25519 keys sign digests as Ed25519ph.
func pairAllowed(public crypto.PublicKey, hash crypto.Hash) bool {
	details, ok := defaultDetails(public)
	return ok && details.hash == hash
}

func describe(public crypto.PublicKey) string {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d bits", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	default:
		return fmt.Sprintf("%T", public)
	}
}

var errSignature = errors.New("invalid signature")

// verifyDigest checks sig over a digest made with hash: RSA PKCS #1 v1.5, ECDSA in ASN.1 DER or
// IEEE P1363 form (upstream takes both), Ed25519ph.
func verifyDigest(public crypto.PublicKey, hash crypto.Hash, digest, sig []byte) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, hash, digest, sig)
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, digest, sig) || verifyP1363(k, digest, sig) {
			return nil
		}
		return errSignature
	case ed25519.PublicKey:
		return ed25519.VerifyWithOptions(k, digest, sig, &ed25519.Options{Hash: crypto.SHA512})
	default:
		return errors.New("unsupported public key type")
	}
}

func verifyP1363(k *ecdsa.PublicKey, digest, sig []byte) bool {
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &rs); err == nil {
		return false
	}
	if len(sig) != 2*((k.Params().BitSize+7)/8) {
		return false
	}
	r, s := new(big.Int).SetBytes(sig[:len(sig)/2]), new(big.Int).SetBytes(sig[len(sig)/2:])
	return ecdsa.Verify(k, digest, r, s)
}
