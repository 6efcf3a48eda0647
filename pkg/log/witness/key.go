// Package witness gets checkpoints cosigned by witnesses, and is one: a client of
// c2sp.org/tlog-witness with the policies of c2sp.org/tlog-policy, and a server.
//
// A witness has seen one tree grow, and signs nothing that does not continue it. Who asks for the
// cosignatures of a quorum cannot be shown a tree of his own.
package witness

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	cosignature "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// KeyType is the signature type byte of a verifier key (c2sp.org/signed-note).
type KeyType byte

const (
	Ed25519         KeyType = 0x01 // a log's
	ECDSA           KeyType = 0x02 // a log's, P-256 with SHA-256; the key is its DER SubjectPublicKeyInfo
	CosignEd25519   KeyType = 0x04 // a witness's (c2sp.org/tlog-cosignature)
	CosignMLDSA44   KeyType = 0x06 // a witness's (c2sp.org/tlog-cosignature)
	maxKeyName              = 255  // bytes; an ML-DSA cosignature has one byte for the length
	maxVerifierText         = 4096 // bytes of a verifier key; an ML-DSA one has under 2,100
)

// Key is a verifier key: who signs, and what verifies it. The zero value is no key.
type Key struct {
	name     string
	kind     KeyType
	public   []byte // as the verifier key has it, after the type byte
	verifier note.Verifier
}

// ParseKey reads "<name>+<8 hex digits>+<base64(type ‖ public key)>" and checks that the digits are the key's own.
func ParseKey(text string) (Key, error) {
	if len(text) > maxVerifierText {
		return Key{}, fmt.Errorf("verifier key has over %d bytes", maxVerifierText)
	}
	parts := strings.SplitN(text, "+", 3) // base64 may have further ones
	if len(parts) != 3 {
		return Key{}, fmt.Errorf("verifier key %q is not NAME+HASH+KEY", text)
	}
	raw, ok := decodeBase64(parts[2])
	if !ok || len(raw) < 2 {
		return Key{}, fmt.Errorf("verifier key %q: its last part is not a key in base64", text)
	}
	k, err := newKey(parts[0], KeyType(raw[0]), raw[1:])
	if err != nil {
		return Key{}, fmt.Errorf("verifier key %q: %w", text, err)
	}
	if k.String() != text {
		return Key{}, fmt.Errorf("verifier key %q: the hash of this name and key is %08x", text, k.Hash())
	}
	return k, nil
}

// LogKey is the verifier key of a log that signs checkpoints as name: Ed25519, or ECDSA on P-256.
func LogKey(name string, public crypto.PublicKey) (Key, error) {
	switch public := public.(type) {
	case ed25519.PublicKey:
		return newKey(name, Ed25519, public)
	case *ecdsa.PublicKey:
		spki, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			return Key{}, fmt.Errorf("log key: %w", err)
		}
		return newKey(name, ECDSA, spki)
	default:
		return Key{}, fmt.Errorf("log key: a %T is not supported, use Ed25519 or ECDSA P-256", public)
	}
}

func newKey(name string, kind KeyType, public []byte) (Key, error) {
	if err := checkName(name); err != nil {
		return Key{}, err
	}
	k := Key{name: name, kind: kind, public: public}
	var err error
	switch kind {
	case Ed25519:
		k.verifier, err = note.NewVerifier(k.String())
	case ECDSA:
		var parsed any
		if parsed, err = x509.ParsePKIXPublicKey(public); err == nil {
			if on, ok := parsed.(*ecdsa.PublicKey); !ok || on.Curve != elliptic.P256() {
				return Key{}, errors.New("an ECDSA key must be on P-256")
			}
			k.verifier, err = cosignature.NewECDSAVerifier(k.String())
		}
	case CosignEd25519, CosignMLDSA44:
		k.verifier, err = cosignature.NewVerifierForCosignatureV1(k.String())
	default:
		return Key{}, fmt.Errorf("signature type 0x%02x is not supported", byte(kind))
	}
	return k, err
}

// checkName applies the signed note's rules for the name of a key.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("a key needs a name")
	case len(name) > maxKeyName:
		return fmt.Errorf("the key's name has over %d bytes", maxKeyName)
	case !utf8.ValidString(name) || strings.Contains(name, "+") ||
		strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return fmt.Errorf("the key's name %q must be UTF-8 without spaces, control characters and plus signs", name)
	}
	return nil
}

// Name is the name on the key's signature lines; for a log, its origin.
func (k Key) Name() string { return k.name }

// Type is the key's signature type.
func (k Key) Type() KeyType { return k.kind }

// Hash is the number at the beginning of the key's signatures.
func (k Key) Hash() uint32 {
	var sum [32]byte
	if k.kind == ECDSA {
		sum = sha256.Sum256(k.public)
	} else {
		sum = sha256.Sum256(append([]byte(k.name+"\n"+string([]byte{byte(k.kind)})), k.public...))
	}
	return binary.BigEndian.Uint32(sum[:])
}

func (k Key) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.Hash(), base64.StdEncoding.EncodeToString(append([]byte{byte(k.kind)}, k.public...)))
}

// signed tells whether s is this key's valid signature over text.
func (k Key) signed(text []byte, s signature) bool {
	return s.name == k.name && s.hash == k.Hash() && k.verifier.Verify(text, s.blob)
}

// same tells whether two keys have one public key, whatever their names (c2sp.org/tlog-policy: duplicate keys).
func (k Key) same(other Key) bool { return string(k.public) == string(other.public) }

// decodeBase64 takes the one standard encoding of a value: Go's decoder passes over line ends and loose bits.
func decodeBase64(text string) ([]byte, bool) {
	raw, err := base64.StdEncoding.DecodeString(text)
	return raw, err == nil && base64.StdEncoding.EncodeToString(raw) == text
}
