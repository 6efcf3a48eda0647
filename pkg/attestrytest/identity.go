package attestrytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/attestry/attestry/internal/issuer"
)

// tokenLife is how long a token is good, unless its claims say otherwise.
const tokenLife = 10 * time.Minute

// Issuer is an identity provider that the instance trusts. Its keys are the test's: nothing is asked at URL, which may be any.
type Issuer struct {
	URL  string // the tokens' iss
	Type string // email, uri, username, spiffe, kubernetes, github-workflow, gitlab-pipeline …: docs/ca.md
	// Audience of the tokens; empty is sigstore.
	Audience string
	// More are further keys of the entry in the CA's issuer file, such as subject-domain or rules.
	More map[string]any
}

// issuerKey signs the tokens of all Issuers.
type issuerKey struct {
	signer    jose.Signer
	audiences map[string]string // by URL
}

// writeIssuers writes the CA's issuer file and the key set that it pins.
func writeIssuers(dir string, issuers []Issuer) (path string, key issuerKey, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", key, err
	}
	public := jose.JSONWebKey{Key: private.Public(), KeyID: "attestrytest", Algorithm: string(jose.ES256), Use: "sig"}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}})
	if err != nil {
		return "", key, err
	}
	key.audiences = map[string]string{}
	entries := map[string]any{}
	for _, i := range issuers {
		if i.Audience == "" {
			i.Audience = issuer.ClientID
		}
		if _, twice := entries[i.URL]; twice {
			return "", key, fmt.Errorf("two issuers have the URL %s", i.URL)
		}
		entry := map[string]any{"issuer-url": i.URL, "client-id": i.Audience, "type": i.Type, "jwks": string(set), "allow-http": true}
		maps.Copy(entry, i.More)
		entries[i.URL], key.audiences[i.URL] = entry, i.Audience
	}
	text, err := json.Marshal(map[string]any{"oidc-issuers": entries})
	if err != nil {
		return "", key, err
	}
	key.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: private, KeyID: "attestrytest"}}, nil)
	if err != nil {
		return "", key, err
	}
	path = filepath.Join(dir, "issuers.json")
	return path, key, os.WriteFile(path, text, 0o600)
}

// Token returns an identity token of the instance's own provider for an email address.
func (s *Server) Token(email string) string {
	s.t.Helper()
	token, err := s.stack.Token(email)
	if err != nil {
		s.t.Fatalf("attestrytest: %v", err)
	}
	return token
}

// TokenOf returns an identity token of one of Options.Issuers, good for ten minutes. Claims are added last and replace any; nil
// takes one away.
func (s *Server) TokenOf(issuerURL string, claims map[string]any) string {
	s.t.Helper()
	audience, ok := s.keys.audiences[issuerURL]
	if !ok {
		s.t.Fatalf("attestrytest: %s is none of the issuers that the instance was started with", issuerURL)
	}
	now := s.now()
	all := map[string]any{"iss": issuerURL, "aud": audience, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(tokenLife).Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		s.t.Fatalf("attestrytest: %v", err)
	}
	signed, err := s.keys.signer.Sign(payload)
	if err != nil {
		s.t.Fatalf("attestrytest: %v", err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		s.t.Fatalf("attestrytest: %v", err)
	}
	return token
}
