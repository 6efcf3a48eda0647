package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/attestry/attestry/internal/fault"
)

// Texts that Fulcio's clients know, the start of every message of their kind.
const (
	textToken     = "There was an error processing the identity token"
	textCSR       = "The certificate signing request could not be parsed"
	textKey       = "The public key supplied in the request could not be parsed"
	textWeakKey   = "The public key supplied in the request is insecure"
	textProof     = "The signature supplied in the request could not be verified"
	textBackend   = "error communicating with CA backend"
	textCTL       = "Error entering certificate in CTL"
	textTooLarge  = "http: request body too large"
	textBadClaims = "the token's claims do not make a certificate"
)

// algorithm is a kind of key together with the hash that it signs with.
type algorithm struct {
	key  string // as keyKind names it
	hash crypto.Hash
}

// algorithms lists the names that client-signing-algorithms may have. The last two are off by
// default: before Fulcio 1.7.0 and go-witness of April 2025 every curve signed SHA-256.
var algorithms = map[string]algorithm{
	"ecdsa-sha2-256-nistp256":    {"P-256", crypto.SHA256},
	"ecdsa-sha2-384-nistp384":    {"P-384", crypto.SHA384},
	"ecdsa-sha2-512-nistp521":    {"P-521", crypto.SHA512},
	"rsa-sign-pkcs1-2048-sha256": {"RSA-2048", crypto.SHA256},
	"rsa-sign-pkcs1-3072-sha256": {"RSA-3072", crypto.SHA256},
	"rsa-sign-pkcs1-4096-sha256": {"RSA-4096", crypto.SHA256},
	"ed25519":                    {"Ed25519", 0},
	"ecdsa-sha2-256-nistp384":    {"P-384", crypto.SHA256},
	"ecdsa-sha2-256-nistp521":    {"P-521", crypto.SHA256},
}

// DefaultAlgorithms are the seven that Fulcio permits by default.
func DefaultAlgorithms() []string {
	names := slices.Sorted(maps.Keys(algorithms))
	return slices.DeleteFunc(names, func(n string) bool { return n == "ecdsa-sha2-256-nistp384" || n == "ecdsa-sha2-256-nistp521" })
}

func permitted(names []string) (map[algorithm]bool, error) {
	out := map[algorithm]bool{}
	for _, name := range names {
		a, ok := algorithms[name]
		if !ok {
			return nil, fmt.Errorf("client signing algorithm %q is not one of %q", name, slices.Sorted(maps.Keys(algorithms)))
		}
		out[a] = true
	}
	return out, nil
}

func keyKind(pub crypto.PublicKey) string {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		return key.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", key.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return ""
}

// provenKey returns the public key of req once the client has shown that it holds the private
// key: by a certificate signing request, whose other content is ignored, or by a signature over
// one of challenges.
func (ca *snapshot) provenKey(req Request, challenges []string) (crypto.PublicKey, error) {
	if len(req.CSR) > 0 {
		return ca.fromCSR(req.CSR)
	}
	pub, err := parsePublicKey(req.PublicKey)
	if err != nil {
		return nil, fault.New(fault.Invalid, "key_malformed", err, textKey)
	}
	if err := checkKey(pub); err != nil {
		return nil, fault.New(fault.Invalid, "weak_key", err, textWeakKey)
	}
	hash, err := ca.checkProof(pub, req.Proof, challenges)
	if err != nil {
		return nil, fault.New(fault.Invalid, "pop_mismatch", err, textProof)
	}
	return pub, ca.checkPermitted(pub, hash)
}

func (ca *snapshot) fromCSR(data []byte) (crypto.PublicKey, error) {
	csr, err := parseCSR(data)
	if err != nil {
		return nil, fault.New(fault.Invalid, "csr_malformed", err, textCSR)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, fault.New(fault.Invalid, "weak_key", err, textWeakKey)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fault.New(fault.Invalid, "pop_mismatch", err, textProof)
	}
	var hash crypto.Hash
	switch csr.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.SHA256WithRSA:
		hash = crypto.SHA256
	case x509.ECDSAWithSHA384, x509.SHA384WithRSA:
		hash = crypto.SHA384
	case x509.ECDSAWithSHA512, x509.SHA512WithRSA:
		hash = crypto.SHA512
	case x509.PureEd25519:
	default:
		return nil, fault.New(fault.Invalid, "alg_not_allowed", nil, "unrecognized signature algorithm: %s", csr.SignatureAlgorithm)
	}
	return csr.PublicKey, ca.checkPermitted(csr.PublicKey, hash)
}

func parseCSR(data []byte) (*x509.CertificateRequest, error) {
	if len(data) > maxKeyInput {
		return nil, fmt.Errorf("the certificate signing request is over %d bytes", maxKeyInput)
	}
	block, err := onePEM(data)
	if err != nil {
		return nil, err
	}
	if block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("unexpected PEM block %.40q", block.Type)
	}
	return x509.ParseCertificateRequest(block.Bytes)
}

func (ca *snapshot) checkPermitted(pub crypto.PublicKey, hash crypto.Hash) error {
	if ca.permitted[algorithm{keyKind(pub), hash}] {
		return nil
	}
	name := "none"
	if hash != 0 {
		name = hash.String()
	}
	return fault.New(fault.Invalid, "alg_not_allowed", nil, "signing algorithm not permitted: %T, %s", pub, name)
}

// checkProof verifies proof over one of challenges and returns the hash it was made with.
func (ca *snapshot) checkProof(pub crypto.PublicKey, proof []byte, challenges []string) (crypto.Hash, error) {
	if len(proof) == 0 || len(proof) > maxProof {
		return 0, fmt.Errorf("a proof of possession of %d bytes", len(proof))
	}
	hashes := []crypto.Hash{crypto.SHA256}
	if key, ok := pub.(*ecdsa.PublicKey); ok && key.Curve != elliptic.P256() {
		hashes = []crypto.Hash{crypto.SHA384}
		if key.Curve == elliptic.P521() {
			hashes = []crypto.Hash{crypto.SHA512}
		}
		if ca.permitted[algorithm{keyKind(pub), crypto.SHA256}] {
			hashes = append(hashes, crypto.SHA256)
		}
	}
	for _, challenge := range challenges {
		if key, ok := pub.(ed25519.PublicKey); ok {
			if ed25519.Verify(key, []byte(challenge), proof) {
				return 0, nil
			}
			continue
		}
		for _, hash := range hashes {
			if verifyDigest(pub, hash, digest(hash, []byte(challenge)), proof) {
				return hash, nil
			}
		}
	}
	return 0, errors.New("the signature fits none of the token's claims that may be signed")
}

// verifyDigest checks an ECDSA (DER) or RSA PKCS #1 v1.5 signature.
func verifyDigest(pub crypto.PublicKey, hash crypto.Hash, sum, sig []byte) bool {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, sum, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, hash, sum, sig) == nil
	}
	return false
}

func digest(hash crypto.Hash, data []byte) []byte {
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}
