package entry

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// maxKeyMaterial bounds the bytes of submitted key material: what is longer fits into no body.
const maxKeyMaterial = 1 << 16

// publicKey is key material in one of Rekor's PKI formats. Its canonical form reads back as the same key.
type publicKey interface {
	// canonical is the form that bodies hold and whose digest is the key's search key.
	canonical() []byte
	// subjects are the names that the canonical form holds.
	subjects() []string
	// verifyMessage checks a signature as the format writes it and returns the form of it that bodies hold.
	verifyMessage(message, signature []byte) ([]byte, error)
}

// ErrKeyFormat says that a PKI format has no public keys here.
var ErrKeyFormat = errors.New("not a supported PKI format")

// parseKey reads key material of a format: pgp, minisign, ssh or x509.
func parseKey(format string, material []byte) (publicKey, error) {
	if len(material) > maxKeyMaterial {
		return nil, fmt.Errorf("key material has %d bytes, over %d", len(material), maxKeyMaterial)
	}
	switch format {
	case "pgp":
		return parsePGPKeys(material)
	case "minisign":
		return parseMinisignKey(material)
	case "ssh":
		return parseSSHKey(material)
	case "x509":
		return parsePEM(material)
	default:
		return nil, fmt.Errorf("%q is %w", format, ErrKeyFormat)
	}
}

// PublicKeySearchKey returns the search key of key material: the digest of its canonical form, bare.
// Formats are pgp, minisign, ssh, tuf (a root, which speaks for its keys) and x509 (PUBLIC KEY or
// CERTIFICATE blocks); for others the error is ErrKeyFormat.
func PublicKeySearchKey(format string, material []byte) (string, error) {
	if format == "tuf" {
		return tufRootKey(material)
	}
	key, err := parseKey(format, material)
	if err != nil {
		return "", err
	}
	return pemKeys(key.canonical())[0], nil
}

// publicKeyKeys are the search keys of a key in its canonical form.
func publicKeyKeys(key publicKey) []string {
	return append(pemKeys(key.canonical()), key.subjects()...)
}

// storedPublicKeyKeys are publicKeyKeys of what a body holds. Bodies of other logs may hold keys
// that are not read today; the digest of what is there is a search key of its own.
func storedPublicKeyKeys(format string, canonical []byte) []string {
	keys := pemKeys(canonical)
	if key, err := parseKey(format, canonical); err == nil {
		keys = append(keys, publicKeyKeys(key)...)
	}
	return keys
}

// submittedKey reads key material at v, with errors classified.
func submittedKey(format string, v ijson.Value, field string) (publicKey, error) {
	material, err := decoded(v, field)
	if err != nil {
		return nil, err
	}
	if len(material) > maxKeyMaterial {
		return nil, tooLarge(field, len(material), maxKeyMaterial)
	}
	key, err := parseKey(format, material)
	if err != nil {
		return nil, invalid("bad_key", err, "could not parse public key as %s: %v", format, err)
	}
	if chain, ok := key.(verifier); ok {
		if err := chain.checkChain(); err != nil {
			return nil, invalid("bad_chain", err, "verifying certificate chain: %v", err)
		}
	}
	return key, nil
}

// artifactDigest is SHA-256 of a submitted artifact; a digest that the client sends must be the same.
func artifactDigest(sent ijson.Value, field string, artifact []byte) (digest, error) {
	computed := sha256Digest(artifact)
	return computed, checkClaim(sent, field, computed)
}

func (v verifier) canonical() []byte { return v.pem }

func (v verifier) subjects() []string {
	if len(v.certs) == 0 {
		return nil
	}
	return cryptoutils.GetSubjectAlternateNames(v.certs[0])
}

// verifyMessage checks a signature over SHA-256 of message, whatever the key, or over message
// itself for Ed25519: what upstream does when no algorithm is named.
func (v verifier) verifyMessage(message, signature []byte) ([]byte, error) {
	if k, ok := v.public.(ed25519.PublicKey); ok {
		if !ed25519.Verify(k, message, signature) {
			return nil, errSignature
		}
		return signature, nil
	}
	sum := sha256.Sum256(message)
	return signature, verifyDigest(v.public, crypto.SHA256, sum[:], signature)
}

func tooLarge(field string, size, limit int) error {
	return fault.New(fault.TooLarge, "field_too_large", nil, "%s in body has %d bytes, over the limit of %d", field, size, limit)
}
