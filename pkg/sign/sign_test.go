package sign

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/verify"
)

func config(members string) []byte {
	return []byte(`{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json",` + members + `}`)
}

func services1(kind, url string, version string) string {
	return `"` + kind + `":[{"url":"` + url + `","majorApiVersion":` + version + `,"operator":"example","validFor":{"start":"2026-01-01T00:00:00Z"}}]`
}

func TestServicesComeFromTheSigningConfigAlone(t *testing.T) {
	now := func() time.Time { return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC) }
	ca := services1("caUrls", "https://ca.example", "1")
	for name, c := range map[string]struct {
		config []byte
		want   string // part of the error, "" when accepted
		logs   int
	}{
		"none":                       {nil, "no public default", 0},
		"not JSON":                   {[]byte("x"), "signing config", 0},
		"another media type":         {[]byte(`{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.1+json"}`), "media type", 0},
		"no certificate authority":   {config(`"oidcUrls":[]`), "certificate authority", 0},
		"an authority of the future": {config(strings.ReplaceAll(ca, "2026", "2027")), "certificate authority", 0},
		"logs without a selector":    {config(ca + "," + services1("rekorTlogUrls", "https://log.example", "2")), "rekorTlogConfig", 0},
		"TSAs without a selector":    {config(ca + "," + services1("tsaUrls", "https://tsa.example", "1")), "tsaConfig", 0},
		"a log that is too new":      {config(ca + "," + services1("rekorTlogUrls", "https://log.example", "9") + `,"rekorTlogConfig":{"selector":"ANY"}`), "transparency log", 0},
		"authority and log":          {config(ca + "," + services1("rekorTlogUrls", "https://log.example", "2") + `,"rekorTlogConfig":{"selector":"ANY"}`), "", 1},
		"authority alone":            {config(ca), "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := selectServices(Options{SigningConfig: c.config, Now: now})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want something about %q", err, c.want)
				}
				return
			}
			if err != nil || len(s.logs) != c.logs || s.ca.URL != "https://ca.example" {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

func TestSigningWantsATrustedRootAndAToken(t *testing.T) {
	if _, err := Blob(t.Context(), Options{SigningConfig: config("")}, nil); err == nil || !strings.Contains(err.Error(), "trusted root") {
		t.Errorf("without a trusted root: %v", err)
	}
	root := []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`)
	if _, err := Blob(t.Context(), Options{SigningConfig: config(""), TrustedRoot: root, IdentityToken: "x"}, nil); err == nil || !strings.Contains(err.Error(), "JWT") {
		t.Errorf("without a token: %v", err)
	}
	if _, err := Statement(t.Context(), Options{}, []byte(`{"_type":"x"}`)); err == nil {
		t.Error("a statement that is none was signed")
	}
}

func TestStatementKeepsThePredicate(t *testing.T) {
	s, err := NewStatement("a", make([]byte, 32), PredicateType("slsaprovenance1"), []byte(`{"n":12345678901234567890}`))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := verify.ParseStatement(s)
	if err != nil {
		t.Fatal(err)
	}
	if string(parsed.Predicate) != `{"n":12345678901234567890}` || parsed.PredicateType != "https://slsa.dev/provenance/v1" || parsed.Subject[0].Name != "a" {
		t.Errorf("%s", s)
	}
	for name, c := range map[string]struct{ kind, predicate string }{
		"no type": {"", "{}"}, "not JSON": {"t", "{"}, "duplicate keys": {"t", `{"a":1,"a":2}`},
	} {
		if _, err := NewStatement("a", make([]byte, 32), c.kind, []byte(c.predicate)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRequestsEndWithTheirContext(t *testing.T) {
	reached := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(reached)
		<-r.Context().Done()
	}))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }() // ends with the one request
	req, err := http.NewRequest(http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: bind(ctx, nil)}).Do(req)
	if err == nil {
		resp.Body.Close()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
