package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // registers the hashes of the algorithms
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"sync"
	"time"

	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Shared is an ephemeral key and its certificate that several signatures have in common.
type Shared struct {
	mu       sync.Mutex // guards what follows
	key      sign.Keypair
	leaf     []byte // DER
	notAfter time.Time
}

// spare is how long a certificate has to be good for when it is used once more.
const spare = 2 * time.Minute

// use returns the key, and puts the certificate in place of the CA while it is good.
func (s *Shared) use(opts *sign.BundleOptions, now time.Time) (sign.Keypair, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key == nil || !s.notAfter.IsZero() && now.Add(spare).After(s.notAfter) {
		key, err := sign.NewEphemeralKeypair(nil)
		if err != nil {
			return nil, fmt.Errorf("making a key: %w", err)
		}
		s.key, s.leaf, s.notAfter = key, nil, time.Time{}
	}
	opts.CertificateProvider = sharedCertificate{s, opts.CertificateProvider}
	return s.key, nil
}

// sharedCertificate asks the CA once.
type sharedCertificate struct {
	shared *Shared
	ca     sign.CertificateProvider
}

func (c sharedCertificate) GetCertificate(ctx context.Context, key sign.Keypair, opts *sign.CertificateProviderOptions) ([]byte, error) {
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	if c.shared.leaf != nil && c.shared.key == key {
		return c.shared.leaf, nil
	}
	der, err := c.ca.GetCertificate(ctx, key, opts)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	c.shared.leaf, c.shared.notAfter = der, leaf.NotAfter
	return der, nil
}

// keypair returns the key to sign with: an ephemeral one of ECDSA P-256 with SHA-256 unless there is one of one's own.
func (o Options) keypair(opts *sign.BundleOptions) (sign.Keypair, error) {
	if o.Key == nil && o.Shared != nil {
		now := time.Now
		if o.Now != nil {
			now = o.Now
		}
		return o.Shared.use(opts, now())
	}
	if o.Key == nil {
		key, err := sign.NewEphemeralKeypair(nil)
		if err != nil {
			return nil, fmt.Errorf("making a key: %w", err)
		}
		return key, nil
	}
	k := ownKey{key: o.Key}
	switch o.Key.Public().(type) {
	case *ecdsa.PublicKey:
		k.algorithm = "ECDSA"
	case *rsa.PublicKey:
		k.algorithm = "RSA"
	default:
		// Logs take digests, so it would have to be Ed25519ph, which few verifiers know.
		return nil, fmt.Errorf("a %T cannot sign: give an ECDSA or RSA key", o.Key.Public())
	}
	details, err := signature.GetDefaultAlgorithmDetails(o.Key.Public())
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	k.details, k.hash, k.protoHash = details.GetSignatureAlgorithm(), details.GetHashType(), details.GetProtoHashType()
	if o.Legacy {
		k.hash, k.protoHash = crypto.SHA256, protocommon.HashAlgorithm_SHA2_256
	}
	if k.spki, err = x509.MarshalPKIXPublicKey(o.Key.Public()); err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	return k, nil
}

// ownKey is a key of the signer's own as sigstore-go takes it.
type ownKey struct {
	key       crypto.Signer
	algorithm string
	details   protocommon.PublicKeyDetails
	hash      crypto.Hash
	protoHash protocommon.HashAlgorithm
	spki      []byte // DER
}

func (k ownKey) GetHashAlgorithm() protocommon.HashAlgorithm       { return k.protoHash }
func (k ownKey) GetSigningAlgorithm() protocommon.PublicKeyDetails { return k.details }
func (k ownKey) GetKeyAlgorithm() string                           { return k.algorithm }
func (k ownKey) GetPublicKey() crypto.PublicKey                    { return k.key.Public() }

// GetHint is what cosign writes as well: standard base64 of the SHA-256 of the public key (DER).
func (k ownKey) GetHint() []byte {
	h := crypto.SHA256.New()
	h.Write(k.spki)
	return []byte(base64.StdEncoding.EncodeToString(h.Sum(nil)))
}

func (k ownKey) GetPublicKeyPem() (string, error) {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.spki})), nil
}

// SignData returns the signature over the digest of data (PKCS #1 v1.5 for RSA) and that digest.
func (k ownKey) SignData(_ context.Context, data []byte) (sig, digest []byte, err error) {
	h := k.hash.New()
	h.Write(data)
	digest = h.Sum(nil)
	sig, err = k.key.Sign(rand.Reader, digest, k.hash)
	if err != nil {
		return nil, nil, fmt.Errorf("key: %w", err)
	}
	return sig, digest, nil
}
