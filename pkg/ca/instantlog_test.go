package ca_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// instantLog signs SCTs with as little work as a log can do: it takes the poison out by hand
// and makes one signature.
type instantLog struct {
	w     *world
	key   *ecdsa.PrivateKey
	logID [32]byte
}

func newInstantLog(t testing.TB, w *world) *instantLog {
	l := &instantLog{w: w, key: identitytest.NewECKey(t)}
	spki, err := x509.MarshalPKIXPublicKey(l.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	l.logID = sha256.Sum256(spki)
	return l
}

func (l *instantLog) LogKey() crypto.PublicKey { return l.key.Public() }

func (l *instantLog) AddPreChain(_ context.Context, chain [][]byte) ([]byte, error) {
	tbs, err := unpoisoned(chain[0])
	if err != nil {
		return nil, err
	}
	issuer, err := x509.ParseCertificate(chain[1])
	if err != nil {
		return nil, err
	}
	keyHash := sha256.Sum256(issuer.RawSubjectPublicKeyInfo)
	millis := uint64(l.w.clock().UnixMilli())
	b := cryptobyte.NewBuilder(nil)
	b.AddUint16(0)
	b.AddUint64(millis)
	b.AddUint16(1)
	b.AddBytes(keyHash[:])
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(tbs) })
	b.AddUint16(0)
	sum := sha256.Sum256(b.BytesOrPanic())
	sig, err := ecdsa.SignASN1(rand.Reader, l.key, sum[:])
	if err != nil {
		return nil, err
	}
	b = cryptobyte.NewBuilder(nil)
	b.AddUint8(0)
	b.AddBytes(l.logID[:])
	b.AddUint64(millis)
	b.AddUint16(0)
	b.AddUint16(0x0403)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sig) })
	return b.Bytes()
}

// unpoisoned returns the TBSCertificate of a precertificate whose last extension is the poison,
// without it.
func unpoisoned(precert []byte) ([]byte, error) {
	var cert, body, exts, list cryptobyte.String
	input := cryptobyte.String(precert)
	if !input.ReadASN1(&cert, asn1.SEQUENCE) || !cert.ReadASN1(&body, asn1.SEQUENCE) {
		return nil, errors.New("not a certificate")
	}
	whole := body
	for range 7 {
		var element cryptobyte.String
		var tag asn1.Tag
		if !body.ReadAnyASN1Element(&element, &tag) {
			return nil, errors.New("not a TBSCertificate")
		}
	}
	head := whole[:len(whole)-len(body)]
	if !body.ReadASN1(&exts, asn1.Tag(3).ContextSpecific().Constructed()) || !exts.ReadASN1(&list, asn1.SEQUENCE) {
		return nil, errors.New("no extensions")
	}
	const poison = 21 // bytes
	kept := list[:len(list)-poison]
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(head)
		b.AddASN1(asn1.Tag(3).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(kept) })
		})
	})
	return b.Bytes()
}
