package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/attestry/attestry/internal/signer"
)

const rsaBits = 2048

// OpenOrCreateKey returns the key in the PEM file at path; when there is none, it makes an RSA
// key there, mode 0600, durable. RSA because @sigstore/cli 0.10.3 (openid-client 5) takes
// RS256 only, and every other client takes it too.
func OpenOrCreateKey(path string) (crypto.Signer, error) {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return signer.Open("file:"+path, nil)
	}
	key, err := rsa.GenerateKey(rand.Reader, rsaBits)
	if err != nil {
		return nil, fmt.Errorf("making issuer key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding issuer key: %w", err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".oidc-*")
	if err != nil {
		return nil, fmt.Errorf("creating issuer key: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("writing issuer key: %w", err)
	}
	// Link, not rename: when two processes start at once, both end up with the first one's key.
	if err := os.Link(f.Name(), path); errors.Is(err, os.ErrExist) {
		return signer.Open("file:"+path, nil)
	} else if err != nil {
		return nil, fmt.Errorf("creating issuer key: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("creating issuer key: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return nil, fmt.Errorf("creating issuer key %s: %w", path, err)
	}
	return key, nil
}

// tokenKey signs tokens. It is op.SigningKey.
type tokenKey struct {
	signer    crypto.Signer
	algorithm jose.SignatureAlgorithm
	id        string // `kid`: base64url SHA-256 of the PKIX public key
}

func newTokenKey(s crypto.Signer) (tokenKey, error) {
	var algorithm jose.SignatureAlgorithm
	switch key := s.(type) {
	case nil:
		return tokenKey{}, errors.New("issuer: no signing key")
	case *rsa.PrivateKey:
		algorithm = jose.RS256
	case *ecdsa.PrivateKey:
		if key.Curve != elliptic.P256() {
			return tokenKey{}, fmt.Errorf("issuer key: curve %s is not P-256", key.Curve.Params().Name)
		}
		algorithm = jose.ES256
	default:
		return tokenKey{}, fmt.Errorf("issuer key: a %T can not sign tokens, want RSA or P-256", s)
	}
	der, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil {
		return tokenKey{}, fmt.Errorf("issuer key: %w", err)
	}
	sum := sha256.Sum256(der)
	return tokenKey{s, algorithm, base64.RawURLEncoding.EncodeToString(sum[:])}, nil
}

func (k tokenKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k tokenKey) Key() any                                    { return k.signer }
func (k tokenKey) ID() string                                  { return k.id }

// sign returns claims as a compact JWS.
func (k tokenKey) sign(claims map[string]any) (string, error) {
	s, err := jose.NewSigner(
		jose.SigningKey{Algorithm: k.algorithm, Key: jose.JSONWebKey{Key: k.signer, KeyID: k.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("token signer: %w", err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("token claims: %w", err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("signing token: %w", err)
	}
	return jws.CompactSerialize()
}

// publicKey is the same key as op.Key, for the JWKS.
type publicKey struct{ tokenKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.signer.Public() }
