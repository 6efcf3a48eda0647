package identity

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
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
		if err != nil || strings.Count(pattern, "*") > 8 {
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
