// Package identitytest is an OIDC provider on loopback for tests.
package identitytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// Provider serves discovery and keys, and signs whatever it is told to.
type Provider struct {
	*httptest.Server // URL is the issuer
	testing.TB

	mu        sync.Mutex // guards the fields below
	keys      []jose.JSONWebKey
	private   map[string]crypto.Signer
	discovery map[string]any // replaces fields of the discovery document
	fetches   int            // of the keys
	handler   http.Handler   // replaces everything when set
}

// New starts a provider with the keys "es" (ES256) and "rs" (RS256), which stops with the test.
func New(t testing.TB) *Provider {
	p := &Provider{TB: t, private: map[string]crypto.Signer{}, discovery: map[string]any{}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	p.AddKey("es", NewECKey(t))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p.AddKey("rs", rsaKey)
	return p
}

// NewECKey returns a P-256 key.
func NewECKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// AddKey publishes a key that Sign can use from now on.
func (p *Provider) AddKey(kid string, key crypto.Signer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.private[kid] = key
	p.keys = append(p.keys, jose.JSONWebKey{Key: key.Public(), KeyID: kid, Use: "sig"})
}

// PrivateKey returns a key given to AddKey.
func (p *Provider) PrivateKey(kid string) crypto.Signer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.private[kid]
}

// SetKeys replaces the published set.
func (p *Provider) SetKeys(keys ...jose.JSONWebKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
}

// JWKS returns the published set.
func (p *Provider) JWKS() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: p.keys})
	if err != nil {
		p.Fatal(err)
	}
	return data
}

// SetDiscovery replaces one field of the discovery document.
func (p *Provider) SetDiscovery(field string, value any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.discovery[field] = value
}

// SetHandler lets h answer everything, nil gives back to the provider.
func (p *Provider) SetHandler(h http.Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handler = h
}

// Fetches counts how often the keys were asked for.
func (p *Provider) Fetches() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fetches
}

// ServeHTTP implements http.Handler.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	handler := p.handler
	p.mu.Unlock()
	if handler != nil {
		handler.ServeHTTP(w, r)
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		document := map[string]any{
			"issuer": p.URL, "jwks_uri": p.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256", "ES256", "HS256", "none"},
		}
		p.mu.Lock()
		maps.Copy(document, p.discovery)
		p.mu.Unlock()
		json.NewEncoder(w).Encode(document)
	case "/keys":
		p.mu.Lock()
		p.fetches++
		p.mu.Unlock()
		w.Write(p.JWKS())
	default:
		http.NotFound(w, r)
	}
}

// Claims returns what a token of alice says at now, with changes applied; nil removes a claim.
func (p *Provider) Claims(now time.Time, changes map[string]any) map[string]any {
	claims := map[string]any{
		"iss": p.URL, "sub": "alice-id", "aud": "sigstore",
		"iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
		"email": "alice@example.com", "email_verified": true,
	}
	for name, value := range changes {
		if value == nil {
			delete(claims, name)
			continue
		}
		claims[name] = value
	}
	return claims
}

// Token signs claims with the key "es".
func (p *Provider) Token(now time.Time, changes map[string]any) string {
	data, err := json.Marshal(p.Claims(now, changes))
	if err != nil {
		p.Fatal(err)
	}
	return p.Sign("es", jose.ES256, data)
}

// Sign returns a compact JWS over payload.
func (p *Provider) Sign(kid string, alg jose.SignatureAlgorithm, payload []byte) string {
	p.mu.Lock()
	key := p.private[kid]
	p.mu.Unlock()
	return Sign(p, key, kid, alg, payload)
}

// Sign returns a compact JWS over payload by any key; kid may be empty.
func Sign(t testing.TB, key any, kid string, alg jose.SignatureAlgorithm, payload []byte) string {
	options := (&jose.SignerOptions{}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, options)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}
