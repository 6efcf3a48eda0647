package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gooidc "github.com/coreos/go-oidc/v3/oidc"

	"github.com/attestry/attestry/internal/issuer"
)

func TestTokenCommandSignsWithTheKeyOfTheInstance(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := issuer.OpenOrCreateKey(filepath.Join(dir, "keys", "oidc.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "url"), []byte("http://localhost:8420\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := issuer.New(issuer.Options{IssuerURL: "http://localhost:8420/oidc", Signer: key, Listen: "localhost:8420"})
	if err != nil {
		t.Fatal(err)
	}
	verifier := gooidc.NewVerifier(p.IssuerURL(), p.KeySet(), &gooidc.Config{ClientID: issuer.ClientID, SupportedSigningAlgs: []string{p.Algorithm()}})
	for _, tt := range []struct {
		name  string
		args  []string
		wants string // in the claims, or in the error of the command or the verifier
		fails bool
	}{
		{"an email", []string{"--email", "alice@example.com"}, `"email":"alice@example.com"`, false},
		{"text as a claim", []string{"--email", "a@b.cc", "--claim", "ref=refs/heads/main"}, `"ref":"refs/heads/main"`, false},
		{"commas stay", []string{"--email", "a@b.cc", "--claim", "x=1,2"}, `"x":"1,2"`, false},
		{"a list as a claim", []string{"--email", "a@b.cc", "--claim", `x=[1, 2]`}, `"x":[1,2]`, false},
		{"a claim taken away", []string{"--email", "a@b.cc", "--claim", "email_verified=null"}, `"email":"a@b.cc","exp"`, false},
		{"a number as a claim", []string{"--email", "a@b.cc", "--claim", "exp=1700000000"}, "expired", true},
		{"another audience", []string{"--email", "a@b.cc", "--aud", "other"}, "audience", true},
		{"nobody", nil, "needs an email or a sub claim", true},
		{"a claim without value", []string{"--email", "a@b.cc", "--claim", "x"}, "is not name=value", true},
		{"a directory that is no instance", []string{"--email", "a@b.cc", "--dir", t.TempDir()}, "attestry up --dir", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := newTokenCommand()
			var out bytes.Buffer
			cmd.SetOut(&out)
			cmd.SetErr(&out)
			cmd.SetArgs(append([]string{"--dir", dir}, tt.args...))
			err := cmd.Execute()
			got := out.String()
			if err == nil {
				var token *gooidc.IDToken
				if token, err = verifier.Verify(t.Context(), strings.TrimSpace(got)); err == nil {
					var claims rawClaims
					if err := token.Claims(&claims); err != nil {
						t.Fatal(err)
					}
					got = string(claims)
				}
			}
			if (err != nil) != tt.fails {
				t.Fatalf("error = %v", err)
			}
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tt.wants) {
				t.Errorf("%s\ndoes not contain %s", got, tt.wants)
			}
		})
	}
}

// rawClaims keeps the JSON of a token's claims.
type rawClaims []byte

func (c *rawClaims) UnmarshalJSON(data []byte) error {
	*c = append((*c)[:0], data...)
	return nil
}
