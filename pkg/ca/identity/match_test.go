package identity

import (
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	texttemplate "text/template"
	"unicode/utf8"
)

// upstreamPattern is how Fulcio 1.8.8 matches a meta issuer.
func upstreamPattern(pattern string) *regexp.Regexp {
	quoted := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, "[-_a-zA-Z0-9]+")
	return regexp.MustCompile(`\A` + quoted + `\z`)
}

func FuzzPatternsMatchAsUpstream(f *testing.F) {
	for _, pattern := range []string{"https://oidc.eks.*.amazonaws.com/id/*", "https://*.a.example/*/*/", "a*b*b", "*-/*-", "x**y", "eks-*-*", "*"} {
		for _, iss := range []string{
			"https://oidc.eks.us-east-1.amazonaws.com/id/B02C", "https://r.a.example/t/g/", "abbb", "a-b-b", "--/--", "xaby", "xy", "eks-a-b-c", "",
			"https://oidc.eks.us.east.amazonaws.com/id/B02C", "https://oidc.eks.us.amazonaws.com/id/B02C@evil", "https://oidc.eks.us.amazonaws.com/id/a%2Fb",
		} {
			f.Add(pattern, iss)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, iss string) {
		compiled, err := compilePattern(pattern)
		if err != nil || strings.Count(pattern, "*") > 8 || !utf8.ValidString(pattern) { // Validate takes no other
			return
		}
		if got, want := compiled.matches(iss), upstreamPattern(pattern).MatchString(iss); got != want {
			t.Errorf("%q matches %q: %t, upstream %t", pattern, iss, got, want)
		}
	})
}

// manyIssuers is a verifier with 30 exact issuers and 20 patterns, most of which begin and end alike.
func manyIssuers(tb testing.TB) *Verifier {
	var issuers []Issuer
	for k := range 30 {
		issuers = append(issuers, Issuer{URL: fmt.Sprintf("https://idp-%d.example.com/realms/ci", k), Audience: "sigstore", Type: Email})
	}
	for k := range 20 {
		issuers = append(issuers, Issuer{URL: fmt.Sprintf("https://*.clusters-%02d.example.com/id/*", k), Wildcard: true, Audience: "sigstore", Type: Kubernetes})
	}
	v, err := New(Options{Issuers: issuers})
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

func BenchmarkIssuerMatching(b *testing.B) {
	v := manyIssuers(b)
	for name, iss := range map[string]string{
		"exact":        "https://idp-29.example.com/realms/ci",
		"last pattern": "https://eu-west-1.clusters-00.example.com/id/B02C93B6A2D30341AD01E1B6D48164CB",
		"nobody":       "https://eu-west-1.clusters-99.example.com/id/B02C93B6A2D30341AD01E1B6D48164CB",
	} {
		b.Run(name, func(b *testing.B) {
			if found := v.find(iss) != nil; found != (name != "nobody") {
				b.Fatalf("found: %t", found)
			}
			for b.Loop() {
				v.find(iss)
			}
		})
	}
}

// TestBuiltinProvidersAreUpstreams compares them with the templates of Fulcio's sample.
func TestBuiltinProvidersAreUpstreams(t *testing.T) {
	sample, err := Load("testdata/fulcio.yaml")
	if err != nil {
		t.Fatal(err)
	}
	ours := builtinProviders()
	// What we leave out of the sample, see builtinProviders.
	circle := sample.Providers["circleci-job"]
	circle.Defaults["platform_url"] = strings.TrimSuffix(circle.Defaults["platform_url"], "/")
	circle.Extensions["runner-environment"] = strings.Replace(circle.Extensions["runner-environment"], `{{ else }}""`, "", 1)
	for name, p := range sample.Providers {
		mine, ok := ours[name]
		if !ok {
			t.Errorf("no built-in provider %s", name)
			continue
		}
		delete(ours, name)
		tidy := func(p Provider) any {
			spaces := strings.NewReplacer(" ", "", "(", "", ")", "")
			out := map[string]string{"SAN": spaces.Replace(p.SAN)}
			for key, text := range p.Extensions {
				out[key] = spaces.Replace(text)
			}
			return []any{out, p.Defaults}
		}
		if !reflect.DeepEqual(tidy(p), tidy(mine)) {
			t.Errorf("%s\nours   %v\nsample %v", name, tidy(mine), tidy(p))
		}
	}
	for name := range ours {
		t.Errorf("the sample has no provider %s", name)
	}
	if _, err := New(Options{Config: sample}); err != nil {
		t.Error(err)
	}
	if slices.ContainsFunc(sample.Issuers, func(i Issuer) bool { return len(i.audiences()) != 1 }) {
		t.Error("an issuer of the sample has other audiences than its client-id")
	}
}

// FuzzClaimTemplates fills any template with any claims: what comes out names one host, has nothing
// invisible, and reads in a certificate as it was written.
func FuzzClaimTemplates(f *testing.F) {
	for _, template := range []string{
		"{{ .url }}/{{ .a }}", "https://{{ .a }}", "a", `{{ index . "a" }}/{{ .b }}`, `https://x.example/{{ if eq .a "x" }}y{{ else }}{{ .b }}{{ end }}`,
		`{{ printf "%1000s" .a }}`, "https://{{ .issuer_host }}/{{ .namespace }}/{{ .serviceaccount }}", "https://x.example/{{ .sub }}",
	} {
		f.Add(template, "x/y", "../b")
		f.Add(template, "{{ .b }}", "\u202e%00")
		f.Add(template, "evil.example", "@//")
	}
	f.Fuzz(func(t *testing.T, template, a, b string) {
		c := claims{"iss": "https://issuer.example.com", "sub": a, "a": a, "b": b, "url": "https://ci.example.com", "kubernetes.io": map[string]any{"namespace": a, "serviceaccount": map[string]any{"name": b}}}
		check := func(san SAN, err error) bool {
			if err != nil {
				return false
			}
			u, err := url.Parse(san.Value)
			if err != nil || u.String() != san.Value || u.Host == "" || u.User != nil || dotSegments(u.Path) || !printable(u.Path) || !printable(san.Value) || !ascii(san.Value) {
				t.Errorf("template %q with %q and %q names %q (%v)", template, a, b, san.Value, err)
			}
			return true
		}
		if p, err := (Provider{SAN: template}).compile(texttemplate.FuncMap{}); err == nil {
			data := map[string]string{}
			c.flatten(data)
			san, _, _, err := p.principal(c, data)
			check(san, err)
		}
		for _, kind := range []Type{Kubernetes, Chainguard} {
			i := &Issuer{URL: "https://issuer.example.com", Type: kind, SANTemplate: template}
			if s, err := i.sanTemplate(); err == nil {
				host := s.host
				if host == "" {
					host = "issuer.example.com"
				}
				san, err := s.san(c)
				if check(san, err) && !strings.HasPrefix(san.Value+"/", "https://"+host+"/") {
					t.Errorf("template %q with %q and %q names another host than %s: %q", template, a, b, host, san.Value)
				}
			}
		}
	})
}
