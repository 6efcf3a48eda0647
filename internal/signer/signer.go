// Package signer opens private keys. A key is named by a URI; `file:` keys are PEM files.
package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// Algorithm names a kind of key that Create makes.
type Algorithm string

const (
	P256    Algorithm = "ecdsa-p256"
	P384    Algorithm = "ecdsa-p384"
	Ed25519 Algorithm = "ed25519"
)

const maxKeyFile = 64 << 10

// Open returns the key that uri names. The one scheme is file:PATH, a PEM file with PKCS#8,
// SEC 1, PKCS#1 or encrypted PKCS#8-in-scrypt ("ENCRYPTED SIGSTORE PRIVATE KEY") content;
// password, which may be nil, decrypts the last.
func Open(uri string, password []byte) (crypto.Signer, error) {
	path, ok := strings.CutPrefix(uri, "file:")
	if !ok {
		scheme, _, _ := strings.Cut(uri, ":")
		return nil, fmt.Errorf("key %q: scheme %q is not supported, use file:PATH", uri, scheme)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("key %s: over %d bytes", path, maxKeyFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	key, err := cryptoutils.UnmarshalPEMToPrivateKey(data, cryptoutils.StaticPasswordFunc(password))
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key %s: a %T cannot sign", path, key)
	}
	return s, nil
}

// Create makes a new key and stores it durably at path as PKCS#8 PEM with mode 0600.
// A file that exists is never replaced: the error then satisfies errors.Is(err, os.ErrExist).
func Create(path string, alg Algorithm) (crypto.Signer, error) {
	key, err := generate(alg)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding key: %w", err)
	}
	// Written aside and linked into place: a crash leaves either no key or a whole one, and
	// link, unlike rename, refuses to replace a key that another process made meanwhile.
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*")
	if err != nil {
		return nil, fmt.Errorf("creating key: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("writing key %s: %w", path, err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return nil, fmt.Errorf("creating key: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("creating key: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return nil, fmt.Errorf("creating key %s: %w", path, err)
	}
	return key, nil
}

// OpenOrCreate returns the key at path, made with alg when there is none yet.
func OpenOrCreate(path string, alg Algorithm) (crypto.Signer, error) {
	key, err := Create(path, alg)
	if errors.Is(err, os.ErrExist) {
		return Open("file:"+path, nil)
	}
	return key, err
}

func generate(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	default:
		return nil, fmt.Errorf("key algorithm %q is not one of %s, %s, %s", alg, P256, P384, Ed25519)
	}
}

// PublicPEM returns pub as one PKIX "PUBLIC KEY" PEM block.
func PublicPEM(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}
