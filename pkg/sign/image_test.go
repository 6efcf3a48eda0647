package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/attestry/attestry/pkg/verify"
)

var someDigest = "sha256:" + strings.Repeat("ab", 32)

// sigstore's library is what cosign 2 writes the document with.
func TestSimpleSigningIsCosignsDocument(t *testing.T) {
	image, err := name.NewDigest("registry.example/team/app@" + someDigest)
	if err != nil {
		t.Fatal(err)
	}
	for _, annotations := range []map[string]string{nil, {"build": "7", "a": "<&>"}} {
		c := payload.Cosign{Image: image}
		for k, v := range annotations {
			if c.Annotations == nil {
				c.Annotations = map[string]any{}
			}
			c.Annotations[k] = v
		}
		want, err := c.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		got, err := SimpleSigning("registry.example/team/app", someDigest, annotations)
		if err != nil || string(got) != string(want) {
			t.Errorf("%v\n%s\nwant\n%s", err, got, want)
		}
	}
	for _, digest := range []string{"", "sha256:ab", "latest"} {
		if _, err := SimpleSigning("registry.example/app", digest, nil); err == nil {
			t.Errorf("digest %q was taken", digest)
		}
		if _, err := ImageStatement(digest, nil); err == nil {
			t.Errorf("digest %q was taken for a statement", digest)
		}
	}
}

func TestImageStatementIsAboutTheDigest(t *testing.T) {
	raw, err := ImageStatement(someDigest, map[string]string{"build": "7"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := verify.ParseStatement(raw)
	if err != nil {
		t.Fatal(err)
	}
	if s.PredicateType != ImagePredicateType || len(s.Subject) != 1 || s.Subject[0].Digest["sha256"] != strings.Repeat("ab", 32) ||
		string(s.Subject[0].Annotations) != `{"build":"7"}` || string(s.Predicate) != "{}" || s.Subject[0].Name != "" {
		t.Errorf("%s", raw)
	}
}

func TestOwnKeysSignDigestsOfTheirHash(t *testing.T) {
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for _, tt := range []struct {
		name   string
		key    crypto.Signer
		legacy bool
		hash   crypto.Hash // 0 when refused
	}{
		{"P-256", p256, false, crypto.SHA256},
		{"P-384", p384, false, crypto.SHA384},
		{"P-384 for cosign 2", p384, true, crypto.SHA256},
		{"RSA", rsaKey, false, crypto.SHA256},
		{"Ed25519", ed, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pair, err := Options{Key: tt.key, Legacy: tt.legacy}.keypair(nil)
			if tt.hash == 0 {
				if err == nil {
					t.Error("it was taken")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sig, digest, err := pair.SignData(t.Context(), []byte("data"))
			if err != nil || len(digest) != tt.hash.Size() {
				t.Fatalf("a digest of %d bytes, %v", len(digest), err)
			}
			switch key := tt.key.Public().(type) {
			case *ecdsa.PublicKey:
				if !ecdsa.VerifyASN1(key, digest, sig) {
					t.Error("the signature does not verify")
				}
			case *rsa.PublicKey:
				sum := sha256.Sum256([]byte("data"))
				if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
