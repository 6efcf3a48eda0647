// Package signer opens private keys. A key is named by a URI: a PEM file, or a key that another process or device
// keeps and uses for us. Keys of the latter kind are guarded: see remote.go.
package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/youmark/pkcs8"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
)

// Algorithm names a kind of key that Create makes.
type Algorithm string

const (
	P256    Algorithm = "ecdsa-p256"
	P384    Algorithm = "ecdsa-p384"
	RSA4096 Algorithm = "rsa-4096"
	Ed25519 Algorithm = "ed25519"
)

// Ephemeral is the URI of a key that lives in memory only. Open refuses it: whoever uses one must know that the next
// start has another key, and makes it with New.
const Ephemeral = "ephemeral:"

const (
	maxKeyFile      = 64 << 10 // bytes
	maxPasswordFile = 4 << 10  // bytes
	iterations      = 600_000  // of PBKDF2, for a key that is encrypted here: 0.1 s for each guess of a password
)

// Open returns the key that uri names. password, which may be nil, decrypts a PEM file or is the PIN of a PKCS#11 token.
//
//	file:PATH                PEM: PKCS#8, SEC 1 or PKCS#1; encrypted: PKCS#8 (PBES2), "ENCRYPTED SIGSTORE PRIVATE KEY",
//	                         "ENCRYPTED COSIGN PRIVATE KEY", and the legacy form with a DEK-Info header
//	pkcs11:…                 RFC 7512; build tag pkcs11
//	hashivault://KEY         transit engine of Vault or OpenBao, at its newest version; KEY?version=N at another
//	awskms://, gcpkms://, azurekms://   as sigstore writes them; build tags of the same names
//
// A key outside the process is asked for its public half once, here, and bound to it. Its Sign may be called by many
// goroutines, takes at most five seconds, returns no signature that does not verify, and recovers by itself when the
// device or server is back. Its errors are classified (fault.Unavailable, reason signer_unavailable; fault.Internal,
// reason signer_wrong).
func Open(uri string, password []byte) (crypto.Signer, error) {
	scheme, rest, _ := strings.Cut(uri, ":")
	switch scheme {
	case "file":
		return openFile(rest, password)
	case "pkcs11":
		return openRemote(uri, func() (remoteKey, error) { return openPKCS11(uri, password) })
	case "hashivault":
		return openRemote(uri, func() (remoteKey, error) { return openVault(uri) })
	case "awskms":
		return openRemote(uri, func() (remoteKey, error) { return openAWS(uri) })
	case "gcpkms":
		return openRemote(uri, func() (remoteKey, error) { return openGCP(uri) })
	case "azurekms":
		return openRemote(uri, func() (remoteKey, error) { return openAzure(uri) })
	case "ephemeral":
		return nil, errors.New("key ephemeral: a key in memory is another one after each start, which only ca can do with")
	default:
		return nil, fmt.Errorf("key %q: scheme %q is not one of file, pkcs11, hashivault, awskms, gcpkms, azurekms", uri, scheme)
	}
}

// ReadPassword returns the content of a password file without the line's end. It is never nil without an error.
func ReadPassword(path string) ([]byte, error) {
	data, err := limit.ReadFile(path, maxPasswordFile)
	if err != nil {
		return nil, err
	}
	return append([]byte{}, bytes.TrimRight(data, "\r\n")...), nil
}

// Create makes a new key and stores it durably at path as PKCS#8 PEM with mode 0600.
// A file that exists is never replaced: the error then satisfies errors.Is(err, os.ErrExist).
func Create(path string, alg Algorithm) (crypto.Signer, error) {
	key, err := New(alg)
	if err != nil {
		return nil, err
	}
	text, err := PrivatePEM(key)
	if err != nil {
		return nil, err
	}
	if err := Store(path, text); err != nil {
		return nil, err
	}
	return key, nil
}

// CreateEncrypted is Create for a key that only password opens, which must not be empty: PKCS#8 with PBES2 (PBKDF2 with
// SHA-256, AES-256-CBC), as openssl reads it.
func CreateEncrypted(path string, alg Algorithm, password []byte) (crypto.Signer, error) {
	if len(password) == 0 {
		return nil, errors.New("encrypting key: the password is empty")
	}
	key, err := New(alg)
	if err != nil {
		return nil, err
	}
	der, err := pkcs8.MarshalPrivateKey(key, password, &pkcs8.Opts{
		Cipher: pkcs8.AES256CBC, KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: iterations, HMACHash: crypto.SHA256},
	})
	if err != nil {
		return nil, fmt.Errorf("encrypting key: %w", err)
	}
	if err := Store(path, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der})); err != nil {
		return nil, err
	}
	return key, nil
}

// Store writes the PEM text of a key to a new file, durably, with mode 0600. It is written aside and linked into place: a crash leaves either no key or a whole one,
// and link, unlike rename, refuses to replace a key that another process made meanwhile: os.ErrExist.
func Store(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), durable.Temp+"key-*")
	if err != nil {
		return fmt.Errorf("creating key: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing key %s: %w", path, err)
	}
	if err := os.Link(f.Name(), path); err != nil {
		return fmt.Errorf("creating key: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("creating key %s: %w", path, err)
	}
	return nil
}

// OpenOrCreate returns the key at path, made with alg when there is none yet.
func OpenOrCreate(path string, alg Algorithm) (crypto.Signer, error) {
	key, err := Create(path, alg)
	if errors.Is(err, os.ErrExist) {
		return Open("file:"+path, nil)
	}
	return key, err
}

// New makes a key in memory.
func New(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	default:
		return nil, fmt.Errorf("key algorithm %q is not one of %s, %s, %s, %s", alg, P256, P384, RSA4096, Ed25519)
	}
}

// PrivatePEM returns a key that is in memory as one PKCS#8 "PRIVATE KEY" PEM block, unencrypted.
func PrivatePEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// PublicPEM returns pub as one PKIX "PUBLIC KEY" PEM block.
func PublicPEM(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}
