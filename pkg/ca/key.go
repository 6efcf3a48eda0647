package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/sigstore/sigstore/pkg/cryptoutils/goodkey"
)

const (
	maxKeyInput = 16 << 10 // PEM of a key or certificate signing request
	maxProof    = 1 << 10
)

// parsePublicKey reads one PEM block "PUBLIC KEY" (PKIX) or "RSA PUBLIC KEY" (PKCS #1), or PKIX
// DER (sigstore-rs on the v1 API). sigstore-java writes the base64 on one line.
func parsePublicKey(content []byte) (crypto.PublicKey, error) {
	if len(content) == 0 {
		return nil, errors.New("there is no public key")
	}
	if len(content) > maxKeyInput {
		return nil, fmt.Errorf("the public key is over %d bytes", maxKeyInput)
	}
	if !bytes.HasPrefix(bytes.TrimSpace(content), []byte("-----BEGIN ")) {
		return x509.ParsePKIXPublicKey(content)
	}
	block, err := onePEM(content)
	if err != nil {
		return nil, err
	}
	switch block.Type {
	case "PUBLIC KEY":
		return x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		return x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		return nil, fmt.Errorf("unexpected PEM block %.40q", block.Type)
	}
}

// onePEM returns the only PEM block of data. pem.Decode alone would pass over a broken block before it. A private key is
// named in the error, which is logged, and its bytes are not.
func onePEM(data []byte) (*pem.Block, error) {
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return nil, errors.New("a private key was sent: it is not secret any more")
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	begin := []byte("-----BEGIN ")
	if len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(bytes.TrimSpace(data), begin) || bytes.Count(data, begin) != 1 {
		return nil, errors.New("text beside the one PEM block")
	}
	return block, nil
}

// checkKey refuses weak keys. For RSA, boulder's policy by way of sigstore (2048, 3072 or 4096
// bits, e = 65537, no small factors, not ROCA, not close primes); for ECDSA, a point of the
// named curve other than infinity, which has cofactor 1; for Ed25519, no point of small order.
func checkKey(pub crypto.PublicKey) error {
	switch key := pub.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits != 2048 && bits != 3072 && bits != 4096 {
			return fmt.Errorf("RSA modulus of %d bits is not 2048, 3072 or 4096", bits)
		}
		return goodkey.ValidatePubKey(key)
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return errors.New("ECDSA curve is not P-256, P-384 or P-521")
		}
		_, err := key.ECDH() // checks the range of the coordinates and the curve equation
		return err
	case ed25519.PublicKey:
		if len(key) != ed25519.PublicKeySize {
			return errors.New("Ed25519 key is not 32 bytes")
		}
		return checkEd25519(key)
	default:
		return fmt.Errorf("a %T cannot be certified", pub)
	}
}

// smallOrder lists the y coordinates of Curve25519's points of order 1, 2, 4 and 8, little
// endian, and their encodings beyond the field's prime.
var smallOrder = [][32]byte{
	{},
	{1},
	{0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05},
	{0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a},
	nearPrime(0xec), nearPrime(0xed), nearPrime(0xee),
}

// nearPrime is 2^255 - 256 + low, little endian: the prime is nearPrime(0xed).
func nearPrime(low byte) (b [32]byte) {
	for i := range b {
		b[i] = 0xff
	}
	b[0], b[31] = low, 0x7f
	return b
}

func checkEd25519(key ed25519.PublicKey) error {
	y := [32]byte(key)
	y[31] &= 0x7f // the sign of x
	for _, bad := range smallOrder {
		if y == bad {
			return errors.New("Ed25519 key has small order")
		}
	}
	return nil
}

// keyInfo is a public key as a certificate carries it.
type keyInfo struct {
	spki  []byte // DER SubjectPublicKeyInfo
	keyID []byte // SHA-1 of the subjectPublicKey bits (RFC 5280, section 4.2.1.2, method 1)
}

func marshalKey(pub crypto.PublicKey) (keyInfo, error) {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return keyInfo{}, err
	}
	var parsed struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(spki, &parsed); err != nil {
		return keyInfo{}, err
	}
	sum := sha1.Sum(parsed.Key.Bytes)
	return keyInfo{spki: spki, keyID: sum[:]}, nil
}
