package entry

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"

	"golang.org/x/crypto/blake2b"
)

// minisignKey is a public key of minisign or signify: an algorithm ("Ed"), a key ID and an Ed25519 key.
type minisignKey struct {
	id     []byte // 8 bytes; nil when only the bare key was sent
	public ed25519.PublicKey
}

// parseMinisignKey reads base64(algorithm ‖ key ID ‖ key), with or without a line of comment before
// it, or the bare 32 bytes that upstream's logs once held.
func parseMinisignKey(material []byte) (minisignKey, error) {
	if _, second, found := bytes.Cut(material, []byte("\n")); found {
		if key, err := minisignKeyOf(second); err == nil {
			return key, nil
		}
	}
	key, err := minisignKeyOf(material)
	if err != nil && len(material) == ed25519.PublicKeySize {
		return minisignKey{public: ed25519.PublicKey(material)}, nil
	}
	return key, err
}

func minisignKeyOf(text []byte) (minisignKey, error) {
	raw, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil || len(raw) != 2+8+ed25519.PublicKeySize {
		return minisignKey{}, errors.New("invalid encoded public key")
	}
	if string(raw[:2]) != "Ed" {
		return minisignKey{}, errors.New("unknown algorithm of public key")
	}
	return minisignKey{id: raw[2:10], public: ed25519.PublicKey(raw[10:])}, nil
}

// canonical is base64(algorithm ‖ key ID ‖ key); the ID of a bare key is zero.
func (k minisignKey) canonical() []byte {
	raw := append([]byte("Ed"), make([]byte, 8)...)
	copy(raw[2:], k.id)
	return base64.StdEncoding.AppendEncode(nil, append(raw, k.public...))
}

func (minisignKey) subjects() []string { return nil }

// verifyMessage takes a signature file of minisign, of which the trusted comment and its signature
// are not looked at, or of signify. The algorithm is "Ed" for a signature over the message and "ED"
// for one over BLAKE2b-512 of it. Upstream takes any algorithm and key ID, though nothing signs
// them, so that one signature would make any number of leaves: here they must be the key's.
func (k minisignKey) verifyMessage(message, signature []byte) ([]byte, error) {
	raw, err := minisignSignature(signature)
	if err != nil {
		return nil, err
	}
	switch string(raw[:2]) {
	case "Ed":
	case "ED":
		sum := blake2b.Sum512(message)
		message = sum[:]
	default:
		return nil, errors.New("unknown algorithm of signature")
	}
	if k.id != nil && !bytes.Equal(k.id, raw[2:10]) {
		return nil, errors.New("the signature names another key")
	}
	if !ed25519.Verify(k.public, message, raw[10:]) {
		return nil, errSignature
	}
	return base64.StdEncoding.AppendEncode([]byte("untrusted comment:\n"), raw), nil
}

// minisignSignature returns algorithm ‖ key ID ‖ signature of a file with lines
//
//	untrusted comment, base64(signature)                                             (signify)
//	untrusted comment, base64(signature), trusted comment, base64(global signature)  (minisign)
func minisignSignature(file []byte) ([]byte, error) {
	if lines := bytes.SplitN(file, []byte("\n"), 4); len(lines) == 4 {
		raw, err := base64.StdEncoding.AppendDecode(nil, lines[1])
		global, globalErr := base64.StdEncoding.AppendDecode(nil, lines[3])
		if err == nil && globalErr == nil && len(raw) == 2+8+ed25519.SignatureSize && len(global) == ed25519.SignatureSize {
			return raw, nil
		}
	}
	lines := bytes.Split(bytes.TrimRight(file, "\n"), []byte("\n"))
	if len(lines) != 2 {
		return nil, errors.New("a signature has 2 lines (signify) or 4 (minisign)")
	}
	raw, err := base64.StdEncoding.AppendDecode(nil, lines[1])
	if err != nil || len(raw) != 2+8+ed25519.SignatureSize {
		return nil, errors.New("invalid encoded signature")
	}
	return raw, nil
}
