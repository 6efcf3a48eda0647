package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"testing"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	sigstore "github.com/sigstore/sigstore/pkg/signature"
)

func publicKeyPEM(t testing.TB, pub crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// FuzzPublicKey holds the parser against sigstore's, which Fulcio uses: a key that we certify is the same key there, and
// comes back from the bytes that go into the certificate.
func FuzzPublicKey(f *testing.F) {
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(publicKeyPEM(f, key.Public()))
		block, _ := pem.Decode(publicKeyPEM(f, key.Public()))
		f.Add(block.Bytes)
	}
	edKey, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(publicKeyPEM(f, edKey))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(publicKeyPEM(f, rsaKey.Public()))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)}))
	f.Fuzz(func(t *testing.T, content []byte) {
		pub, err := parsePublicKey(content)
		if err != nil || checkKey(pub) != nil {
			return
		}
		same := func(other crypto.PublicKey) bool {
			return pub.(interface{ Equal(crypto.PublicKey) bool }).Equal(other)
		}
		info, err := marshalKey(pub)
		if err != nil {
			t.Fatalf("a key that passed cannot be written: %v", err)
		}
		if again, err := x509.ParsePKIXPublicKey(info.spki); err != nil || !same(again) {
			t.Errorf("the certificate would hold another key: %v", err)
		}
		if bytes.HasPrefix(bytes.TrimSpace(content), []byte("-----BEGIN ")) {
			if theirs, err := cryptoutils.UnmarshalPEMToPublicKey(content); err != nil || !same(theirs) {
				t.Errorf("Fulcio reads another key: %v", err)
			}
		}
		if keyKind(pub) == "" {
			t.Errorf("a %T passed", pub)
		}
	})
}

// FuzzProof holds the check of proofs against sigstore's verifiers: what proves a key here proves it there.
func FuzzProof(f *testing.F) {
	const challenge = "alice@example.com"
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	keys := []crypto.Signer{p256, rsaKey, edKey}
	sum := sha256.Sum256([]byte(challenge))
	for i, key := range keys {
		message, hash := sum[:], crypto.SHA256
		if _, ok := key.(ed25519.PrivateKey); ok {
			message, hash = []byte(challenge), 0
		}
		proof, err := key.Sign(rand.Reader, message, hash)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), proof)
	}
	permitted, err := permitted(DefaultAlgorithms())
	if err != nil {
		f.Fatal(err)
	}
	ca := &snapshot{permitted: permitted}
	f.Fuzz(func(t *testing.T, which uint8, proof []byte) {
		pub := keys[int(which)%len(keys)].Public()
		if _, err := ca.checkProof(pub, proof, []string{challenge}); err != nil {
			return
		}
		verifier, err := sigstore.LoadVerifier(pub, crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if err := verifier.VerifySignature(bytes.NewReader(proof), bytes.NewReader([]byte(challenge))); err != nil {
			t.Errorf("%T: we accept %x, sigstore says %v", pub, proof, err)
		}
	})
}

// FuzzBase64OfV1 compares the bytes fields of the v1 API, which we decode, with those of v2, which protobuf's JSON decodes as
// upstream does for both: what it takes, v1 takes as the same bytes.
func FuzzBase64OfV1(f *testing.F) {
	for _, seed := range []string{"", "AA==", "AA", "-_-_", "+/+/", "AAAA\n", "\nAAA=\n\n\n", "AA=\n=", "%"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		body, err := json.Marshal(map[string]string{"certificateSigningRequest": text})
		if err != nil {
			t.Fatal(err)
		}
		upstream, err := decodeV2(body)
		if err != nil {
			return
		}
		ours, err := decodeV1(body)
		if err != nil || !bytes.Equal(ours.CSR, upstream.GetCertificateSigningRequest()) {
			t.Errorf("%q: %x and %v, protobuf reads %x", text, ours.CSR, err, upstream.GetCertificateSigningRequest())
		}
	})
}
