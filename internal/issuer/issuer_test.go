package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/attestry/attestry/internal/signer"
)

// start serves a new issuer on loopback below /oidc and returns its URL, such as
// http://127.0.0.1:1234/oidc.
func start(t *testing.T) (*Provider, string) {
	t.Helper()
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	key, err := OpenOrCreateKey(filepath.Join(t.TempDir(), "oidc.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{IssuerURL: srv.URL + "/oidc", Signer: key, Listen: srv.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/oidc/", p)
	return p, srv.URL + "/oidc"
}

// discover returns what a client learns from discovery, for a redirect URI.
func discover(t *testing.T, issuerURL, redirect string) (*gooidc.Provider, *oauth2.Config) {
	t.Helper()
	provider, err := gooidc.NewProvider(t.Context(), issuerURL)
	if err != nil {
		t.Fatal(err)
	}
	return provider, &oauth2.Config{
		ClientID: ClientID, Endpoint: provider.Endpoint(), RedirectURL: redirect,
		Scopes: []string{gooidc.ScopeOpenID, "email"},
	}
}

// browser follows redirects within the issuer and stops at one to another host.
func browser(t *testing.T, issuerURL string) *http.Client {
	t.Helper()
	home, err := url.Parse(issuerURL)
	if err != nil {
		t.Fatal(err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if r.URL.Host != home.Host {
			return http.ErrUseLastResponse
		}
		return nil
	}}
}

func read(t *testing.T, resp *http.Response, err error) (int, string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

var hiddenID = regexp.MustCompile(`name="id" value="([^"]+)"`)

// signIn opens the authorization URL, fills in the page, and returns where it leads.
func signIn(t *testing.T, b *http.Client, issuerURL, authURL string, form url.Values) (*http.Response, string) {
	t.Helper()
	resp, err := b.Get(authURL)
	status, body := read(t, resp, err)
	m := hiddenID.FindStringSubmatch(body)
	if status != http.StatusOK || m == nil {
		t.Fatalf("sign-in page: %d\n%s", status, body)
	}
	form.Set("id", m[1])
	resp, err = b.PostForm(issuerURL+"/login", form)
	_, body = read(t, resp, err)
	return resp, body
}

type identity struct {
	Email    string   `json:"email"`
	Verified bool     `json:"email_verified"`
	Name     string   `json:"name"`
	Audience []string `json:"aud"`
}

// checkToken verifies raw as the CA does and returns its claims.
func checkToken(t *testing.T, v *gooidc.IDTokenVerifier, raw string) (*gooidc.IDToken, identity) {
	t.Helper()
	token, err := v.Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	var id identity
	if err := token.Claims(&id); err != nil {
		// aud may be a string
		var alt struct {
			Email    string `json:"email"`
			Verified bool   `json:"email_verified"`
			Name     string `json:"name"`
		}
		if err := token.Claims(&alt); err != nil {
			t.Fatal(err)
		}
		id = identity{alt.Email, alt.Verified, alt.Name, token.Audience}
	}
	return token, id
}

func TestACodeWithPKCEBecomesAnIDTokenForAnyLoopbackRedirect(t *testing.T) {
	p, issuerURL := start(t)
	for _, redirect := range []string{
		"http://localhost:45123/auth/callback", // cosign, sigstore-python
		"http://localhost:45123",               // @sigstore/cli
		"http://127.0.0.1:1/",
		"http://[::1]:8080/deep/er",
	} {
		t.Run(redirect, func(t *testing.T) {
			provider, config := discover(t, issuerURL, redirect)
			verifier := oauth2.GenerateVerifier()
			resp, _ := signIn(t, browser(t, issuerURL), issuerURL,
				config.AuthCodeURL("the-state", oauth2.S256ChallengeOption(verifier), gooidc.Nonce("the-nonce")),
				url.Values{"email": {"alice@example.com"}})
			location, err := resp.Location()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(location.String(), redirect) || location.Query().Get("state") != "the-state" {
				t.Fatalf("sent back to %s", location)
			}
			token, err := config.Exchange(t.Context(), location.Query().Get("code"), oauth2.VerifierOption(verifier))
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := token.Extra("id_token").(string)
			v := provider.Verifier(&gooidc.Config{ClientID: ClientID})
			idToken, id := checkToken(t, v, raw)
			want := identity{"alice@example.com", true, "Alice", []string{ClientID}}
			if id.Email != want.Email || !id.Verified || id.Name != want.Name || idToken.Subject != want.Email {
				t.Errorf("claims = %+v (sub %q), want %+v", id, idToken.Subject, want)
			}
			if idToken.Nonce != "the-nonce" {
				t.Errorf("nonce = %q", idToken.Nonce)
			}
			if err := idToken.VerifyAccessToken(token.AccessToken); err != nil {
				t.Error(err)
			}
			if life := time.Until(idToken.Expiry); life < 9*time.Minute || life > 10*time.Minute {
				t.Errorf("expires in %v, want ten minutes", life)
			}
			// sigstore-python presents the access token; the CA in this process asks nobody for the key.
			static := gooidc.NewVerifier(issuerURL, p.KeySet(), &gooidc.Config{ClientID: ClientID, SupportedSigningAlgs: []string{p.Algorithm()}})
			if _, id := checkToken(t, static, token.AccessToken); id.Email != "alice@example.com" || !id.Verified {
				t.Errorf("access token claims = %+v", id)
			}
			if _, err := config.Exchange(t.Context(), location.Query().Get("code"), oauth2.VerifierOption(verifier)); err == nil {
				t.Error("the code worked twice")
			}
		})
	}
}

func TestACodeIsShownToClientsThatCanNotListen(t *testing.T) {
	_, issuerURL := start(t)
	_, config := discover(t, issuerURL, outOfBand)
	verifier := oauth2.GenerateVerifier()
	_, body := signIn(t, browser(t, issuerURL), issuerURL,
		config.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)), url.Values{"email": {""}, "other": {"zoe@example.net"}})
	m := regexp.MustCompile(`<code id="code">([^<]+)</code>`).FindStringSubmatch(body)
	if m == nil {
		t.Fatalf("no code on the page:\n%s", body)
	}
	token, err := config.Exchange(t.Context(), m[1], oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	if token.Extra("id_token") == nil {
		t.Error("no ID token")
	}
}

func TestTheDeviceFlowWaitsForItsUser(t *testing.T) {
	_, issuerURL := start(t)
	provider, config := discover(t, issuerURL, "")
	var more struct {
		URL string `json:"device_authorization_endpoint"`
	}
	if err := provider.Claims(&more); err != nil {
		t.Fatal(err)
	}
	config.Endpoint.DeviceAuthURL = more.URL
	for _, tt := range []struct {
		name string
		form url.Values
		want string // email, or "" when refused
	}{
		{"the user signs in", url.Values{"email": {"bob@example.com"}}, "bob@example.com"},
		{"the user says it was someone else", url.Values{"deny": {"1"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			device, err := config.DeviceAuth(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(device.VerificationURIComplete, issuerURL+"/device?user_code=") {
				t.Fatalf("verification_uri_complete = %s", device.VerificationURIComplete)
			}
			resp, err := http.PostForm(config.Endpoint.TokenURL, url.Values{
				"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {ClientID}, "device_code": {device.DeviceCode},
			})
			if status, body := read(t, resp, err); status != http.StatusBadRequest || !strings.Contains(body, "authorization_pending") {
				t.Errorf("polling before the sign-in: %d %s", status, body)
			}
			b := browser(t, issuerURL)
			resp, err = b.Get(device.VerificationURIComplete)
			if _, body := read(t, resp, err); !strings.Contains(body, device.UserCode) {
				t.Error("the page does not fill in the user code")
			}
			tt.form.Set("user_code", strings.ToLower(device.UserCode))
			resp, err = b.PostForm(issuerURL+"/device", tt.form)
			if status, body := read(t, resp, err); status != http.StatusOK {
				t.Fatalf("device form: %d %s", status, body)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			token, err := config.DeviceAccessToken(ctx, device)
			if tt.want == "" {
				if err == nil || !strings.Contains(err.Error(), "access_denied") {
					t.Errorf("error = %v, want access_denied", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			raw, _ := token.Extra("id_token").(string)
			if _, id := checkToken(t, provider.Verifier(&gooidc.Config{ClientID: ClientID}), raw); id.Email != tt.want || !id.Verified {
				t.Errorf("claims = %+v", id)
			}
			if _, err := config.DeviceAccessToken(ctx, device); err == nil {
				t.Error("the device code worked twice")
			}
		})
	}
}

func TestAnUnsafeAuthorizationRequestIsRefused(t *testing.T) {
	_, issuerURL := start(t)
	good := url.Values{
		"client_id": {ClientID}, "response_type": {"code"}, "scope": {"openid email"}, "redirect_uri": {"http://localhost:1/cb"},
		"code_challenge": {"E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"}, "code_challenge_method": {"S256"},
	}
	for _, tt := range []struct {
		name, key, value string
		redirected       bool // the client is told through its redirect URI
		want             string
	}{
		{"a redirect to another host", "redirect_uri", "http://evil.example/cb", false, "redirect_uri"},
		{"a redirect to another host over TLS", "redirect_uri", "https://evil.example/cb", false, "redirect_uri"},
		{"a host that hides behind a user name", "redirect_uri", "http://localhost:1@evil.example/cb", false, "redirect_uri"},
		{"a host that begins like loopback", "redirect_uri", "http://localhost.evil.example/cb", false, "redirect_uri"},
		{"a custom scheme", "redirect_uri", "evil:/cb", false, "redirect_uri"},
		{"no redirect URI", "redirect_uri", "", false, "redirect_uri"},
		{"an unknown client", "client_id", "other", false, "client"},
		{"no PKCE", "code_challenge", "", true, "PKCE"},
		{"plain PKCE", "code_challenge_method", "plain", true, "PKCE"},
		{"the implicit flow", "response_type", "id_token", true, "response"},
		{"no user interaction", "prompt", "none", true, "login_required"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := url.Values{}
			for k, v := range good {
				q[k] = v
			}
			q.Set(tt.key, tt.value)
			resp, err := browser(t, issuerURL).Get(issuerURL + "/authorize?" + q.Encode())
			status, body := read(t, resp, err)
			where := body
			if tt.redirected {
				if status != http.StatusFound {
					t.Fatalf("status = %d, want a redirect: %s", status, body)
				}
				where, _ = url.QueryUnescape(resp.Header.Get("Location"))
			} else if status != http.StatusBadRequest {
				t.Fatalf("status = %d, want 400: %s", status, body)
			}
			if !strings.Contains(where, tt.want) {
				t.Errorf("%q does not mention %q", where, tt.want)
			}
		})
	}
}

func TestAWrongVerifierSpendsTheCode(t *testing.T) {
	_, issuerURL := start(t)
	_, config := discover(t, issuerURL, "http://localhost:1/cb")
	verifier := oauth2.GenerateVerifier()
	resp, _ := signIn(t, browser(t, issuerURL), issuerURL,
		config.AuthCodeURL("s", oauth2.S256ChallengeOption(verifier)), url.Values{"email": {"alice@example.com"}})
	location, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	code := location.Query().Get("code")
	for _, v := range []string{oauth2.GenerateVerifier(), verifier} {
		if _, err := config.Exchange(t.Context(), code, oauth2.VerifierOption(v)); err == nil {
			t.Error("a code was exchanged after a wrong verifier")
		}
	}
}

func TestOnlyAnAddressCanSignInAndOnlyOnce(t *testing.T) {
	_, issuerURL := start(t)
	_, config := discover(t, issuerURL, "http://localhost:1/cb")
	b := browser(t, issuerURL)
	authURL := config.AuthCodeURL("s", oauth2.S256ChallengeOption(oauth2.GenerateVerifier()))
	for _, email := range []string{"", "nobody", "Alice <alice@example.com>", "a@b, c@d", strings.Repeat("a", 250) + "@b.cc"} {
		resp, body := signIn(t, b, issuerURL, authURL, url.Values{"email": {email}})
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "is not an email address") {
			t.Errorf("signing in as %q: %d %s", email, resp.StatusCode, body)
		}
	}
	form := url.Values{"email": {"alice@example.com"}}
	if resp, body := signIn(t, b, issuerURL, authURL, form); resp.StatusCode != http.StatusFound {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	resp, err := b.PostForm(issuerURL+"/login", form)
	if status, _ := read(t, resp, err); status != http.StatusBadRequest {
		t.Errorf("the same sign-in again: %d, want 400", status)
	}
}

func TestDiscoveryListsWhatIsServed(t *testing.T) {
	_, issuerURL := start(t)
	resp, err := http.Get(issuerURL + "/.well-known/openid-configuration")
	status, body := read(t, resp, err)
	var doc map[string]any
	if err := json.Unmarshal([]byte(body), &doc); err != nil || status != http.StatusOK {
		t.Fatalf("%d %v %s", status, err, body)
	}
	for key, value := range doc {
		endpoint, ok := value.(string)
		if !ok || !strings.HasPrefix(endpoint, issuerURL+"/") {
			continue
		}
		resp, err := http.Get(endpoint)
		if status, _ := read(t, resp, err); status == http.StatusNotFound {
			t.Errorf("%s: %s is not served", key, endpoint)
		}
	}
	if doc["issuer"] != issuerURL {
		t.Errorf("issuer = %v, want %s", doc["issuer"], issuerURL)
	}
	for _, path := range []string{"/oauth/introspect", "/revoke", "/end_session", "/healthz", "/"} {
		resp, err := http.Get(issuerURL + path)
		if status, _ := read(t, resp, err); status != http.StatusNotFound {
			t.Errorf("GET %s = %d, want 404", path, status)
		}
	}
}

func TestASignInUnderAnotherHostNameIsRefused(t *testing.T) {
	_, issuerURL := start(t)
	for path, want := range map[string]int{
		"/authorize":                        http.StatusMisdirectedRequest,
		"/device":                           http.StatusMisdirectedRequest,
		"/.well-known/openid-configuration": http.StatusOK, // a CA may know us by another name
		"/keys":                             http.StatusOK,
	} {
		req, err := http.NewRequest(http.MethodGet, issuerURL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "rebound.example:80"
		resp, err := http.DefaultClient.Do(req)
		if status, body := read(t, resp, err); status != want {
			t.Errorf("GET %s = %d, want %d: %s", path, status, want, body)
		}
		if origin := resp.Header.Get("Access-Control-Allow-Origin"); origin != "" {
			t.Errorf("GET %s lets %s read it", path, origin)
		}
	}
}

func TestAListenerThatOthersCanReachIsRefused(t *testing.T) {
	key, err := signer.Create(filepath.Join(t.TempDir(), "k.pem"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	for listen, loopback := range map[string]bool{
		"127.0.0.1:8420": true, "127.1.2.3:1": true, "localhost:8420": true, "[::1]:8420": true,
		":8420": false, "0.0.0.0:8420": false, "[::]:8420": false, "10.0.0.1:8420": false, "attestry:8420": false, "": false,
	} {
		o := Options{IssuerURL: "http://localhost:8420/oidc", Signer: key, Listen: listen}
		if _, err := New(o); errors.Is(err, ErrNotLoopback) == loopback {
			t.Errorf("listening on %q: %v", listen, err)
		}
		o.AllowNonLoopback = true
		if _, err := New(o); err != nil {
			t.Errorf("listening on %q, allowed: %v", listen, err)
		}
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	key, err := signer.Create(filepath.Join(t.TempDir(), "k.pem"), signer.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	good, err := signer.Create(filepath.Join(t.TempDir(), "k.pem"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"a URL with a slash at the end": {IssuerURL: "http://localhost/oidc/", Signer: good},
		"a relative URL":                {IssuerURL: "/oidc", Signer: good},
		"a URL with a query":            {IssuerURL: "http://localhost/oidc?x", Signer: good},
		"no key":                        {IssuerURL: "http://localhost/oidc"},
		"a key clients do not take":     {IssuerURL: "http://localhost/oidc", Signer: key},
	} {
		o.Listen = "localhost:1"
		if _, err := New(o); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestPendingSignInsAreBounded(t *testing.T) {
	p, issuerURL := start(t)
	_, config := discover(t, issuerURL, "http://localhost:1/cb")
	b := browser(t, issuerURL)
	b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for range maxPending + 5 {
		resp, err := b.Get(config.AuthCodeURL("s", oauth2.S256ChallengeOption(oauth2.GenerateVerifier())))
		if status, body := read(t, resp, err); status != http.StatusFound {
			t.Fatalf("%d %s", status, body)
		}
		resp, err = b.PostForm(issuerURL+"/device_authorization", url.Values{"client_id": {ClientID}, "scope": {"openid"}})
		if status, body := read(t, resp, err); status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
	}
	p.storage.mu.Lock()
	defer p.storage.mu.Unlock()
	if len(p.storage.requests) != maxPending || len(p.storage.devices) != maxPending {
		t.Errorf("%d requests and %d devices are kept, want %d", len(p.storage.requests), len(p.storage.devices), maxPending)
	}
}
