package issuer

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
)

func TestAMintedTokenIsOneOfTheIssuers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oidc.pem")
	key, err := OpenOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	const issuerURL = "http://localhost:8420/oidc"
	p, err := New(Options{IssuerURL: issuerURL, Signer: key, Listen: "localhost:8420"})
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour).Unix()
	for _, tt := range []struct {
		name    string
		request TokenRequest
		fails   string // part of the verifier's error, "" when the token is good
	}{
		{"an email is enough", TokenRequest{Email: "alice@example.com"}, ""},
		{"another audience does not fit", TokenRequest{Email: "alice@example.com", Audience: "other"}, "audience"},
		{"a claim can make it expired", TokenRequest{Email: "alice@example.com", Claims: map[string]any{"exp": past}}, "expired"},
		{"a claim can make it another issuer's", TokenRequest{Email: "alice@example.com", Claims: map[string]any{"iss": "http://other"}}, "issued by a different provider"},
		{"a machine has no email", TokenRequest{Claims: map[string]any{"sub": "repo:x"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			minted, err := Mint(path, issuerURL, tt.request)
			if err != nil {
				t.Fatal(err)
			}
			served, err := p.Token(tt.request)
			if err != nil {
				t.Fatal(err)
			}
			v := gooidc.NewVerifier(issuerURL, p.KeySet(), &gooidc.Config{ClientID: ClientID, SupportedSigningAlgs: []string{p.Algorithm()}})
			for _, raw := range []string{minted, served} {
				_, err := v.Verify(t.Context(), raw)
				if tt.fails == "" && err != nil || tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
					t.Errorf("verifying: %v, want %q", err, tt.fails)
				}
			}
		})
	}
}

func TestATokenForNobodyIsNotMinted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oidc.pem")
	if _, err := Mint(path, "http://localhost/oidc", TokenRequest{Email: "alice@example.com"}); err == nil {
		t.Error("minted without a key")
	}
	if _, err := OpenOrCreateKey(path); err != nil {
		t.Fatal(err)
	}
	for _, r := range []TokenRequest{{}, {Email: "alice"}, {Email: "alice@example.com", Claims: map[string]any{"sub": nil}}} {
		if raw, err := Mint(path, "http://localhost/oidc", r); err == nil {
			t.Errorf("%+v gave %s", r, raw)
		}
	}
}

func TestTheKeyOutlivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oidc.pem")
	first, err := OpenOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := OpenOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newTokenKey(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newTokenKey(second)
	if err != nil {
		t.Fatal(err)
	}
	if a.id != b.id || a.algorithm != "RS256" {
		t.Errorf("%s %s, then %s", a.id, a.algorithm, b.id)
	}
}

func TestANameIsMadeOfTheAddress(t *testing.T) {
	for email, want := range map[string]string{
		"alice@example.com": "Alice", "alice.smith@example.com": "Alice Smith", "élodie+x@example.com": "Élodie X", "...@example.com": "",
	} {
		if got := displayName(email); got != want {
			t.Errorf("displayName(%q) = %q, want %q", email, got, want)
		}
	}
}
