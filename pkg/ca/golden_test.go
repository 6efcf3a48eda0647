package ca_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"

	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

var update = flag.Bool("update", false, "rewrite testdata goldens")

// fixedSigner makes deterministic signatures (RFC 6979) whatever randomness it is offered.
type fixedSigner struct{ *ecdsa.PrivateKey }

func (f fixedSigner) Sign(_ io.Reader, sum []byte, o crypto.SignerOpts) ([]byte, error) {
	return f.PrivateKey.Sign(nil, sum, o)
}

// fixedKey has a private key of bytes that everyone can see.
func fixedKey(t *testing.T, curve elliptic.Curve, b byte) fixedSigner {
	raw := make([]byte, (curve.Params().BitSize+7)/8)
	for i := range raw {
		raw[i] = b
	}
	key, err := ecdsa.ParseRawPrivateKey(curve, raw)
	if err != nil {
		t.Fatal(err)
	}
	return fixedSigner{key}
}

// counting is a reader of 0, 1, 2, …
type counting struct{ next byte }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.next
		c.next++
	}
	return len(p), nil
}

func TestCertificateGolden(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	issuing, idp, client := fixedKey(t, elliptic.P256(), 2), fixedKey(t, elliptic.P256(), 4), fixedKey(t, elliptic.P256(), 5)
	chain, err := ca.CreateHierarchy(ca.Hierarchy{
		RootKey: fixedKey(t, elliptic.P384(), 1), IssuingKey: issuing, Organization: "Example", NotBefore: now.Add(-time.Hour), Rand: &counting{},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{now: now}
	log := newInstantLog(t, w)
	log.key = fixedKey(t, elliptic.P256(), 3).PrivateKey
	verifier, err := identity.New(identity.Options{Now: w.clock, Issuers: []identity.Issuer{{
		URL: "https://idp.example.com", Audience: "sigstore", Type: identity.Email, Keys: &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{idp.Public()}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(map[string]any{
		"iss": "https://idp.example.com", "sub": "alice-id", "aud": "sigstore", "exp": now.Add(time.Minute).Unix(), "email": "alice@example.com", "email_verified": true,
	})
	if err != nil {
		t.Fatal(err)
	}
	// The log signs with fresh randomness, so the golden has no SCT; TestCertificateProfile has one.
	authority, err := ca.New(ca.Options{Signer: issuing, Chain: chain, Identity: verifier, CTDisabled: true, Now: w.clock, Rand: &counting{next: 100}})
	if err != nil {
		t.Fatal(err)
	}
	key := clientKey{client, crypto.SHA256}
	issued, err := authority.Issue(context.Background(), ca.Request{
		Token: identitytest.Sign(t, idp.PrivateKey, "", jose.ES256, payload), PublicKey: []byte(key.pem(t)), Proof: key.prove(t, "alice@example.com"),
	})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(issued.PEM, "\n") + "\n"
	const file = "testdata/certificate.golden.pem"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("certificates differ from %s (go test -update rewrites it):\n%s", file, got)
	}
	if _, err := x509.ParseCertificate(issued.DER); err != nil {
		t.Error(err)
	}
}

func serve(h http.Handler, path, token, body string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+token)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}
