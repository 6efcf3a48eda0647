//go:build awskms || gcpkms || azurekms

package signer

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
)

// kmsKey is a key of a cloud's key service, through one of sigstore's providers. They read a key's public half again
// every five minutes, and so could follow it to another version; here it is bound to the one it was opened with.
type kmsKey struct {
	provider signature.Signer
	pub      crypto.PublicKey
}

func newKMSKey(ctx context.Context, provider signature.Signer) (remoteKey, error) {
	pub, err := provider.PublicKey(options.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("reading the public key: %w", err)
	}
	return &kmsKey{provider, pub}, nil
}

func (k *kmsKey) public() crypto.PublicKey { return k.pub }

// sign implements remoteKey. The provider signs as the key was made to: a key made for RSA-PSS shows here, as a signature
// that does not verify.
func (k *kmsKey) sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, ok := opts.(*rsa.PSSOptions); ok || opts.HashFunc() == crypto.Hash(0) {
		return nil, errors.New("only ECDSA and RSA PKCS #1 v1.5 over a digest are spoken with key services")
	}
	return k.provider.SignMessage(nil, options.WithContext(ctx), options.WithDigest(digest), options.WithCryptoSignerOpts(opts.HashFunc()))
}
