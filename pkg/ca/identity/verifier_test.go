package identity_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// clock is a time that tests move.
type clock struct{ nanos atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.nanos.Store(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}
func (c *clock) now() time.Time          { return time.Unix(0, c.nanos.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

func verifier(t *testing.T, c *clock, issuers ...identity.Issuer) *identity.Verifier {
	t.Helper()
	v, err := identity.New(identity.Options{Issuers: issuers, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func emailIssuer(p *identitytest.Provider) identity.Issuer {
	return identity.Issuer{URL: p.URL, Audience: "sigstore", Type: identity.Email, AllowHTTP: true}
}

func wantReason(t *testing.T, err error, reason string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted, want %s", reason)
	}
	if got := fault.ReasonOf(err); got != reason {
		t.Fatalf("reason %s (%v), want %s", got, err, reason)
	}
	if strings.Contains(fault.Public(err), "eyJ") || strings.Contains(fault.Public(err), "alice") {
		t.Errorf("public text quotes the token: %s", fault.Public(err))
	}
}

func TestTokensAreVerified(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v := verifier(t, c, emailIssuer(p))
	payload := func(changes map[string]any) []byte {
		data, err := json.Marshal(p.Claims(c.now(), changes))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	unix := func(d time.Duration) int64 { return c.now().Add(d).Unix() }
	good := p.Token(c.now(), nil)
	parts := strings.Split(good, ".")
	header := func(h string) string { return base64.RawURLEncoding.EncodeToString([]byte(h)) }
	stranger := identitytest.NewECKey(t)
	for _, tt := range []struct {
		name   string
		token  string
		reason string // "" when accepted
	}{
		{"an ES256 token", good, ""},
		{"an RS256 token", p.Sign("rs", jose.RS256, payload(nil)), ""},
		{"a token without kid is tried with all keys", identitytest.Sign(t, p.PrivateKey("es"), "", jose.ES256, payload(nil)), ""},
		{"several audiences with ours among them", p.Token(c.now(), map[string]any{"aud": []string{"other", "sigstore"}}), ""},
		{"a token in its last second", p.Token(c.now(), map[string]any{"exp": unix(0)}), ""},
		{"nbf within five minutes", p.Token(c.now(), map[string]any{"nbf": unix(4 * time.Minute)}), ""},
		{"fractional dates", p.Token(c.now(), map[string]any{"exp": float64(unix(time.Minute)) + 0.5}), ""},
		{"no token", "", "malformed_token"},
		{"one dot", "a.b", "malformed_token"},
		{"three dots", good + ".x", "malformed_token"},
		{"a million dots", strings.Repeat(".", 1<<20), "malformed_token"},
		{"an oversized token", strings.Repeat("a", 20<<10), "malformed_token"},
		{"the JSON form of a JWS", `{"payload":"` + parts[1] + `"}`, "malformed_token"},
		{"line breaks inside", parts[0] + ".\n" + parts[1] + "." + parts[2], "malformed_token"},
		{"a payload that is no object", parts[0] + "." + header("[1]") + "." + parts[2], "malformed_token"},
		{"a claim given twice", p.Sign("es", jose.ES256, []byte(`{"iss":"`+p.URL+`","iss":"`+p.URL+`"}`)), "malformed_token"},
		{"a payload with trailing data", p.Sign("es", jose.ES256, append(payload(nil), " {}"...)), "malformed_token"},
		{"invalid UTF-8", p.Sign("es", jose.ES256, []byte("{\"iss\":\"\xff\"}")), "malformed_token"},
		{"exp as text", p.Token(c.now(), map[string]any{"exp": "tomorrow"}), "malformed_token"},
		{"another issuer", p.Token(c.now(), map[string]any{"iss": "https://other.example"}), "unknown_issuer"},
		{"our issuer with a trailing slash", p.Token(c.now(), map[string]any{"iss": p.URL + "/"}), "unknown_issuer"},
		{"our issuer in upper case", p.Token(c.now(), map[string]any{"iss": strings.ToUpper(p.URL)}), "unknown_issuer"},
		{"no issuer", p.Token(c.now(), map[string]any{"iss": nil}), "unknown_issuer"},
		{"a changed payload", parts[0] + "." + header(string(payload(map[string]any{"email": "bob@example.com"}))) + "." + parts[2], "bad_signature"},
		{"a key of someone else", identitytest.Sign(t, stranger, "es", jose.ES256, payload(nil)), "bad_signature"},
		{"a key of someone else without kid", identitytest.Sign(t, stranger, "", jose.ES256, payload(nil)), "bad_signature"},
		{"alg none", header(`{"alg":"none"}`) + "." + parts[1] + ".", "malformed_token"},
		{"HMAC with public key bytes", identitytest.Sign(t, []byte(strings.Repeat("k", 32)), "es", jose.HS256, payload(nil)), "malformed_token"},
		{"an algorithm that discovery does not list", identitytest.Sign(t, mustKey(t, elliptic.P384()), "", jose.ES384, payload(nil)), "malformed_token"},
		{"another audience", p.Token(c.now(), map[string]any{"aud": "kubernetes"}), "aud_mismatch"},
		{"no audience", p.Token(c.now(), map[string]any{"aud": nil}), "aud_mismatch"},
		{"an audience that only contains ours", p.Token(c.now(), map[string]any{"aud": "sigstore2"}), "aud_mismatch"},
		{"expired a second ago", p.Token(c.now(), map[string]any{"exp": unix(-time.Second)}), "expired"},
		{"no expiry", p.Token(c.now(), map[string]any{"exp": nil}), "claim_missing:exp"},
		{"expiry under another case", p.Token(c.now(), map[string]any{"exp": unix(-time.Hour), "Exp": unix(time.Hour)}), "expired"},
		{"not valid yet", p.Token(c.now(), map[string]any{"nbf": unix(6 * time.Minute)}), "not_yet_valid"},
		{"issued in the future", p.Token(c.now(), map[string]any{"iat": unix(6 * time.Minute)}), "not_yet_valid"},
		{"no subject", p.Token(c.now(), map[string]any{"sub": nil}), "claim_missing:sub"},
		{"an empty subject", p.Token(c.now(), map[string]any{"sub": ""}), "claim_missing:sub"},
		{"a subject under another case", p.Token(c.now(), map[string]any{"sub": nil, "Sub": "root"}), "claim_missing:sub"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			principal, err := v.Verify(context.Background(), tt.token)
			if tt.reason != "" {
				wantReason(t, err, tt.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if principal.SAN != (identity.SAN{Kind: identity.SANEmail, Value: "alice@example.com"}) {
				t.Errorf("SAN %+v", principal.SAN)
			}
			if want := []string{"alice@example.com", "alice-id"}; !reflect.DeepEqual(principal.Challenges, want) {
				t.Errorf("challenges %q, want %q", principal.Challenges, want)
			}
		})
	}
}

func mustKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestLeewayExtendsExpiryOnly(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v, err := identity.New(identity.Options{Issuers: []identity.Issuer{emailIssuer(p)}, Now: c.now, Leeway: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(context.Background(), p.Token(c.now().Add(-90*time.Second), nil)); err != nil {
		t.Errorf("expired 30 s ago with a minute's leeway: %v", err)
	}
	_, err = v.Verify(context.Background(), p.Token(c.now().Add(-3*time.Minute), nil))
	wantReason(t, err, "expired")
}

func TestKeysAreFetchedOnDemandAndSeldom(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v := verifier(t, c, emailIssuer(p))
	if n := p.Fetches(); n != 0 {
		t.Fatalf("%d fetches before the first token", n)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := v.Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := p.Fetches(); n != 1 {
		t.Fatalf("%d fetches for 20 first tokens at once, want 1", n)
	}

	forged := identitytest.Sign(t, identitytest.NewECKey(t), "unknown", jose.ES256, []byte(strings.Replace(`{"iss":"URL"}`, "URL", p.URL, 1)))
	for range 5 {
		_, err := v.Verify(context.Background(), forged)
		wantReason(t, err, "bad_signature")
	}
	if n := p.Fetches(); n != 1 {
		t.Fatalf("forged tokens within 10 s caused %d more fetches", n-1)
	}

	// A rotated key is found once the limit allows it.
	p.AddKey("new", identitytest.NewECKey(t))
	claims, _ := json.Marshal(p.Claims(c.now(), nil))
	rotated := p.Sign("new", jose.ES256, claims)
	_, err := v.Verify(context.Background(), rotated)
	wantReason(t, err, "bad_signature")
	c.advance(11 * time.Second)
	if _, err := v.Verify(context.Background(), rotated); err != nil {
		t.Fatalf("after rotation: %v", err)
	}
	if n := p.Fetches(); n != 2 {
		t.Fatalf("%d fetches, want 2", n)
	}

	// Old keys serve while the issuer is down.
	p.SetHandler(http.NotFoundHandler())
	c.advance(time.Hour)
	if _, err := v.Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
		t.Fatalf("issuer down, keys known: %v", err)
	}
}

func TestUnreachableIssuersAreUnavailableNotInvalid(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
	}{
		{"discovery answers 500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) }},
		{"discovery names another issuer", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"issuer":"%s/","jwks_uri":"%s/keys"}`, p.URL, p.URL)
		}},
		{"discovery never ends", func(w http.ResponseWriter, _ *http.Request) {
			w.Write([]byte(`{"issuer":"`))
			w.Write([]byte(strings.Repeat("x", 2<<20)))
		}},
		{"keys never end", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/keys" {
				w.Write([]byte(`{"keys":[`))
				w.Write([]byte(strings.Repeat(" ", 2<<20)))
				return
			}
			fmt.Fprintf(w, `{"issuer":"%s","jwks_uri":"%s/keys"}`, p.URL, p.URL)
		}},
		{"the keys are symmetric or for encryption", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/keys" {
				w.Write([]byte(`{"keys":[{"kty":"oct","k":"AAAA"},{"kty":"XYZ"}]}`))
				return
			}
			fmt.Fprintf(w, `{"issuer":"%s","jwks_uri":"%s/keys"}`, p.URL, p.URL)
		}},
		{"discovery redirects to another host", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusFound)
		}},
		{"discovery redirects for ever", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := verifier(t, c, emailIssuer(p))
			p.SetHandler(tt.handler)
			_, err := v.Verify(context.Background(), p.Token(c.now(), nil))
			wantReason(t, err, "issuer_unreachable")
			if fault.KindOf(err) != fault.Unavailable {
				t.Errorf("kind %v, want Unavailable", fault.KindOf(err))
			}
			// Asked again at once, the issuer is left alone; later it is asked again.
			p.SetHandler(nil)
			_, err = v.Verify(context.Background(), p.Token(c.now(), nil))
			wantReason(t, err, "issuer_unreachable")
			c.advance(4 * time.Second)
			if _, err := v.Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
				t.Errorf("after recovery: %v", err)
			}
		})
	}
	t.Run("a hanging issuer ends with the request", func(t *testing.T) {
		v := verifier(t, c, emailIssuer(p))
		release := make(chan struct{})
		defer close(release)
		p.SetHandler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := v.Verify(ctx, p.Token(c.now(), nil))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestKeysCanComeWithoutNetwork(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, p.JWKS(), 0o600); err != nil {
		t.Fatal(err)
	}
	inline, fromFile, inCode := emailIssuer(p), emailIssuer(p), emailIssuer(p)
	inline.JWKS, fromFile.JWKSFile = string(p.JWKS()), file
	inCode.Keys = &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{p.PrivateKey("es").Public()}}
	for name, issuer := range map[string]identity.Issuer{"inline": inline, "file": fromFile, "in code": inCode} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, c, issuer)
			if _, err := v.Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
				t.Error(err)
			}
			claims, _ := json.Marshal(p.Claims(c.now(), nil))
			_, err := v.Verify(context.Background(), identitytest.Sign(t, identitytest.NewECKey(t), "es", jose.ES256, claims))
			wantReason(t, err, "bad_signature")
		})
	}
	if p.Fetches() != 0 {
		t.Errorf("%d fetches", p.Fetches())
	}
}

func TestDiscoveryURLReachesAnIssuerByAnotherName(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	// The document speaks of the outside name only, as Dex and Keycloak behind a proxy do.
	outside := "http://login.example.com:8080/realms/ci"
	p.SetDiscovery("issuer", outside)
	p.SetDiscovery("jwks_uri", "http://login.example.com:8080/keys")
	i := emailIssuer(p)
	i.URL, i.DiscoveryURL = outside, p.URL
	v := verifier(t, c, i)
	if _, err := v.Verify(context.Background(), p.Token(c.now(), map[string]any{"iss": outside})); err != nil {
		t.Fatal(err)
	}
}

// hostRouter sends requests for any host to the provider, as DNS would.
type hostRouter struct{ p *identitytest.Provider }

func (h hostRouter) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	h.p.SetDiscovery("issuer", r.URL.Scheme+"://"+r.URL.Host+strings.TrimSuffix(r.URL.Path, "/.well-known/openid-configuration"))
	h.p.SetDiscovery("jwks_uri", "https://keys.example.com/keys")
	r2 := r.Clone(r.Context())
	if !strings.HasSuffix(r.URL.Path, "/keys") {
		r2.URL.Path = "/.well-known/openid-configuration"
	}
	h.p.ServeHTTP(rec, r2)
	return rec.Result(), nil
}

func TestMetaIssuersMatchWholeURLs(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v, err := identity.New(identity.Options{Now: c.now, Transport: hostRouter{p}, Issuers: []identity.Issuer{
		{URL: "https://oidc.eks.*.amazonaws.com/id/*", Wildcard: true, Audience: "sigstore", Type: identity.Email},
		{URL: "https://oidc.eks.us.amazonaws.com/id/exact", Audience: "exact", Type: identity.Email},
		{URL: "https://oidc.eks.*.amazonaws.com/id/longer-*", Wildcard: true, Audience: "longer", Type: identity.Email},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		iss, aud, reason string
	}{
		{"https://oidc.eks.us-east-1.amazonaws.com/id/ABC", "sigstore", ""},
		{"https://oidc.eks.us.amazonaws.com/id/exact", "exact", ""},
		{"https://oidc.eks.us.amazonaws.com/id/exact", "sigstore", "aud_mismatch"},
		{"https://oidc.eks.us.amazonaws.com/id/longer-1", "longer", ""},
		{"https://oidc.eks.us.evil.com/id/x", "sigstore", "unknown_issuer"},
		{"https://oidc.eks.us.amazonaws.com/id/ABC/more", "sigstore", "unknown_issuer"},
		{"https://evil.example/?https://oidc.eks.us.amazonaws.com/id/ABC", "sigstore", "unknown_issuer"},
		{"https://oidc.eks.a.b.amazonaws.com/id/ABC", "sigstore", "unknown_issuer"},
		{"https://oidc.eks.us.amazonaws.com/id/", "sigstore", "unknown_issuer"},
		{"https://oidc.eks.us.amazonaws.com/id/A\nB", "sigstore", "unknown_issuer"},
	} {
		t.Run(tt.iss, func(t *testing.T) {
			_, err := v.Verify(context.Background(), p.Token(c.now(), map[string]any{"iss": tt.iss, "aud": tt.aud}))
			if tt.reason == "" && err != nil {
				t.Error(err)
			}
			if tt.reason != "" {
				wantReason(t, err, tt.reason)
			}
		})
	}
	// Many strangers make room for each other instead of filling the memory.
	for n := range 200 {
		iss := fmt.Sprintf("https://oidc.eks.us.amazonaws.com/id/%d", n)
		if _, err := v.Verify(context.Background(), p.Token(c.now(), map[string]any{"iss": iss})); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMetaIssuersMayNotPointIntoOurNetwork(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	issuer := identity.Issuer{URL: p.URL + "/*", Wildcard: true, Audience: "sigstore", Type: identity.Email, AllowHTTP: true}
	p.SetDiscovery("issuer", p.URL+"/x")
	token := p.Token(c.now(), map[string]any{"iss": p.URL + "/x"})
	v := verifier(t, c, issuer)
	_, err := v.Verify(context.Background(), token)
	wantReason(t, err, "issuer_unreachable")
	issuer.AllowPrivateNetwork = true
	p.SetHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/x/.well-known/openid-configuration" {
			fmt.Fprintf(w, `{"issuer":"%s/x","jwks_uri":"%s/keys","id_token_signing_alg_values_supported":["ES256"]}`, p.URL, p.URL)
			return
		}
		w.Write(p.JWKS())
	}))
	v = verifier(t, c, issuer)
	if _, err := v.Verify(context.Background(), token); err != nil {
		t.Error(err)
	}
}

func FuzzTokenShape(f *testing.F) {
	p, c := identitytest.New(f), newClock()
	v, err := identity.New(identity.Options{Now: c.now, Issuers: []identity.Issuer{{
		URL: p.URL, Audience: "sigstore", Type: identity.Email, AllowHTTP: true, JWKS: string(p.JWKS()),
	}}})
	if err != nil {
		f.Fatal(err)
	}
	good := p.Token(c.now(), nil)
	f.Add(good)
	f.Add("..")
	f.Add("e30.e30.e30")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := v.Verify(context.Background(), token); err == nil && token != good {
			// ECDSA signatures in JWS have one encoding; base64url may have spare bits.
			t.Logf("another form of the good token was accepted: %q", token)
		}
	})
}
