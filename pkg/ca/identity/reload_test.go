package identity_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

func TestAReloadKeepsWhatWasFetched(t *testing.T) {
	c := newClock()
	exact, fits := identitytest.New(t), identitytest.New(t)
	const pattern, iss = "https://ci-*.idp.example.com", "https://ci-1.idp.example.com"
	transport := split{exact.URL, hostRouter{fits}}
	config := func(change func(exact, meta *identity.Issuer)) []identity.Issuer {
		e, m := emailIssuer(exact), identity.Issuer{URL: pattern, Wildcard: true, Audience: "sigstore", Type: identity.Email, AllowPrivateNetwork: true}
		change(&e, &m)
		return []identity.Issuer{e, m}
	}
	next := func(previous *identity.Verifier, change func(exact, meta *identity.Issuer)) *identity.Verifier {
		t.Helper()
		v, err := identity.New(identity.Options{Issuers: config(change), Now: c.now, Transport: transport, Previous: previous})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	verify := func(doing string, v *identity.Verifier, fetches int) {
		t.Helper()
		for _, token := range []string{exact.Token(c.now(), nil), fits.Token(c.now(), map[string]any{"iss": iss})} {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Errorf("%s: %v", doing, err)
			}
		}
		if exact.Fetches() != fetches || fits.Fetches() != fetches {
			t.Errorf("%s: keys were fetched %d and %d times, want %d", doing, exact.Fetches(), fits.Fetches(), fetches)
		}
	}
	same := func(_, _ *identity.Issuer) {}
	v := next(nil, same)
	verify("at the start", v, 1)
	v = next(v, same)
	verify("nothing has changed", v, 1)
	v = next(v, func(e, m *identity.Issuer) {
		for _, i := range []*identity.Issuer{e, m} {
			i.RateLimit, i.Description, i.SkipEmailVerification = &identity.RateLimit{PerSecond: 1, Burst: 1}, "changed", true
		}
	})
	verify("something else has changed", v, 1)

	exact.SetHandler(http.NotFoundHandler())
	v = next(v, same)
	if _, err := v.Verify(t.Context(), exact.Token(c.now(), nil)); err != nil {
		t.Errorf("an issuer is down: %v", err)
	}
	exact.SetHandler(nil)

	elsewhere := func(e, m *identity.Issuer) { e.DiscoveryURL, m.CACert = exact.URL, certificate(t) }
	v = next(v, elsewhere)
	verify("keys come by another way", v, 2)
	without := next(v, func(e, m *identity.Issuer) { e.URL, m.URL = "https://other.example.com", "https://*.other.example.com" })
	if _, err := without.Verify(t.Context(), exact.Token(c.now(), nil)); fault.ReasonOf(err) != identity.ReasonUnknownIssuer {
		t.Errorf("an issuer that was taken out: %v", err)
	}
	verify("taken out and back", next(without, elsewhere), 3)
}

// split sends what is below url there, and the rest to other.
type split struct {
	url   string
	other http.RoundTripper
}

func (s split) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.String(), s.url) {
		return http.DefaultTransport.RoundTrip(r)
	}
	return s.other.RoundTrip(r)
}

// certificate is any certificate, PEM.
func certificate(t *testing.T) string {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
}

func TestKeyStatusTellsAgeAndFailure(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	static := emailIssuer(p)
	static.URL, static.JWKS = "https://static.example.com", string(p.JWKS())
	v := verifier(t, c, emailIssuer(p), static, identity.Issuer{URL: "https://*.idp.example.com", Wildcard: true, Audience: "x", Type: identity.Email})
	want := func(doing string, fetched time.Time, asked, failed bool) {
		t.Helper()
		all := v.KeyStatus()
		if len(all) != 2 || all[1].Issuer != "https://*.idp.example.com" || all[1].Asked {
			t.Fatalf("%s: %+v", doing, all)
		}
		if got := all[0]; got.Issuer != p.URL || !got.Fetched.Equal(fetched) || got.Asked != asked || (got.Err != nil) != failed {
			t.Errorf("%s: %+v, want fetched %v, asked %t, failed %t", doing, got, fetched, asked, failed)
		}
	}
	want("before the first token", time.Time{}, false, false)
	p.SetHandler(http.NotFoundHandler())
	if _, err := v.Verify(t.Context(), p.Token(c.now(), nil)); err == nil {
		t.Fatal("verified without keys")
	}
	want("the issuer is down", time.Time{}, true, true)
	p.SetHandler(nil)
	c.advance(time.Minute)
	if _, err := v.Verify(t.Context(), p.Token(c.now(), nil)); err != nil {
		t.Fatal(err)
	}
	fetched := c.now()
	want("the issuer is up", fetched, true, false)
	c.advance(time.Minute)
	want("a minute later", fetched, true, false)
}

func TestEntriesAreFoundForIssuersAndTokens(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v := verifier(t, c, emailIssuer(p), identity.Issuer{URL: "https://*.idp.example.com", Wildcard: true, Audience: "x", Type: identity.Email})
	for iss, want := range map[string]string{p.URL: p.URL, "https://a.idp.example.com": "https://*.idp.example.com", "https://a.b.idp.example.com": ""} {
		claimed, _ := v.Claimed(p.Token(c.now(), map[string]any{"iss": iss}))
		for how, entry := range map[string]*identity.Issuer{"URL": v.Entry(iss), "token": claimed.Entry} {
			got := ""
			if entry != nil {
				got = entry.URL
			}
			if got != want {
				t.Errorf("by %s %s: %q, want %q", how, iss, got, want)
			}
		}
	}
	for _, none := range []string{"a.b", ""} {
		if claimed, ok := v.Claimed(none); ok || claimed.Entry != nil {
			t.Error("what is no token has an entry")
		}
	}
}

func TestRateLimitsAreRead(t *testing.T) {
	const issuer = "oidc-issuers:\n  https://idp.example.com:\n    client-id: sigstore\n    type: email\n    rate-limit: "
	for text, want := range map[string]identity.RateLimit{
		"{per-second: 0.5}":           {PerSecond: 0.5, Burst: 1},
		"{per-second: 20}":            {PerSecond: 20, Burst: 20},
		"{per-second: 20, burst: 50}": {PerSecond: 20, Burst: 50},
	} {
		c, err := identity.Parse([]byte(issuer + text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := c.Issuers[0].RateLimit; got == nil || *got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	for _, text := range []string{
		"{}", "{burst: 5}", "{per-second: 0}", "{per-second: -1}", "{per-second: fast}", "{per-second: NaN}", "{per-second: Inf}", "{per-second: 1e9}",
		"{per-second: 1, burst: 0}", "{per-second: 1, burst: 1.5}", "{per-second: 1, burst: 99999999999999999999}", "{per-second: 1, brust: 2}", "5", "[1, 2]",
	} {
		if c, err := identity.Parse([]byte(issuer + text)); err == nil {
			t.Errorf("%s was read as %v", text, c.Issuers[0].RateLimit)
		}
	}
}

// A file that changes while a server reads it for the first time is read twice, with nothing in force in between.
func TestAConfigurationCanBeReadTwiceAtTheStart(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	registry := prometheus.NewRegistry()
	for range 2 {
		if _, err := identity.New(identity.Options{Issuers: []identity.Issuer{emailIssuer(p)}, Now: c.now, Registry: registry}); err != nil {
			t.Fatal(err)
		}
	}
	taken := prometheus.NewRegistry()
	taken.MustRegister(prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ca_issuer_key_fetches_total", Help: "Another."}, []string{"other"}))
	if _, err := identity.New(identity.Options{Issuers: []identity.Issuer{emailIssuer(p)}, Now: c.now, Registry: taken}); err == nil {
		t.Error("a metric of another maker is taken for ours")
	}
}
