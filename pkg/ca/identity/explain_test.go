package identity_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

func TestAnExplanationNamesEverything(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	issuer := emailIssuer(p)
	issuer.ChallengeClaim = "name"
	issuer.Rules, issuer.RulesDefault = []identity.Rule{
		deny("no-bots", `claims.name == "bot"`), allow("people", `subject.endsWith("@example.com")`), deny("late", `claims.hour > 20`),
	}, "deny"
	v := verifier(t, c, issuer)
	token := p.Token(c.now(), map[string]any{"name": "alice"})
	x := v.Explain(t.Context(), identity.Evidence{Token: token})
	principal, err := v.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if !x.Issued || x.Reason != "" || x.Unsigned || x.Rule != "people" || len(x.Token) != 64 {
		t.Errorf("verdict %+v", x)
	}
	if want := (&identity.MatchedIssuer{URL: p.URL, Type: identity.Email, Audiences: []string{"sigstore"}}); !reflect.DeepEqual(x.Issuer, want) {
		t.Errorf("issuer %+v, want %+v", x.Issuer, want)
	}
	var names []string
	for _, check := range x.Checks {
		names = append(names, check.Name)
		if !check.OK {
			t.Errorf("check %+v", check)
		}
	}
	if got := strings.Join(names, " "); got != "format issuer signature audience times subject mapping rules" {
		t.Errorf("checks %s", got)
	}
	want := []identity.RuleOutcome{
		{Name: "no-bots", Expression: `claims.name == "bot"`},
		{Name: "people", Allow: true, Expression: `subject.endsWith("@example.com")`, Matched: true, Decided: true},
		{Name: "late", Expression: `claims.hour > 20`, Failed: "needs the claim hour, which the token does not have"},
	}
	if !reflect.DeepEqual(x.Rules, want) {
		t.Errorf("rules %+v, want %+v", x.Rules, want)
	}
	if *x.SAN != (identity.NamedValue{Name: "email", Value: principal.SAN.Value}) {
		t.Errorf("SAN %+v", x.SAN)
	}
	if want := []identity.NamedValue{
		{OID: "1.3.6.1.4.1.57264.1.1", Name: "issuer", Value: p.URL},
		{OID: "1.3.6.1.4.1.57264.1.8", Name: "issuer-v2", Value: p.URL},
		{OID: "1.3.6.1.4.1.57264.1.24", Name: "token-subject", Value: "alice-id"},
	}; !reflect.DeepEqual(x.Extensions, want) {
		t.Errorf("extensions %+v, want %+v", x.Extensions, want)
	}
	if want := []identity.NamedValue{{Name: "email", Value: "alice@example.com"}, {Name: "sub", Value: "alice-id"}, {Name: "name", Value: "alice"}}; !reflect.DeepEqual(x.Challenges, want) {
		t.Errorf("challenges %+v, want %+v", x.Challenges, want)
	}
}

// TestAnExplanationAgreesWithTheVerdict also looks that the checks behind a failed one were made.
func TestAnExplanationAgreesWithTheVerdict(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	issuer := emailIssuer(p)
	issuer.Rules = []identity.Rule{deny("no-bots", `claims.name == "bot"`)}
	v := verifier(t, c, issuer)
	stranger := identitytest.NewECKey(t)
	payload, err := json.Marshal(p.Claims(c.now(), map[string]any{"name": "bot", "aud": "other", "exp": c.now().Add(-time.Hour).Unix()}))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		token  string
		failed string // checks
	}{
		"no token":                   {"", "format"},
		"a token that is too long":   {strings.Repeat("a", 1<<20), "format"},
		"an unknown issuer":          {p.Token(c.now(), map[string]any{"iss": "https://other.example"}), "issuer"},
		"expired, and a bot":         {p.Token(c.now(), map[string]any{"name": "bot", "exp": c.now().Add(-time.Hour).Unix()}), "times rules"},
		"everything wrong at once":   {identitytest.Sign(t, stranger, "es", jose.ES256, payload), "signature audience times rules"},
		"an unverified email":        {p.Token(c.now(), map[string]any{"email_verified": false}), "mapping"},
		"no subject":                 {p.Token(c.now(), map[string]any{"sub": nil, "name": "x"}), "subject"},
		"a claim the rule asks for":  {p.Token(c.now(), nil), "rules"},
		"nothing wrong":              {p.Token(c.now(), map[string]any{"name": "alice"}), ""},
		"a bot with a good token":    {p.Token(c.now(), map[string]any{"name": "bot"}), "rules"},
		"for another audience alone": {p.Token(c.now(), map[string]any{"name": "x", "aud": "other"}), "audience"},
	} {
		t.Run(name, func(t *testing.T) {
			x := v.Explain(t.Context(), identity.Evidence{Token: tt.token})
			var failed []string
			for _, check := range x.Checks {
				if !check.OK {
					failed = append(failed, check.Name)
				}
			}
			if got := strings.Join(failed, " "); got != tt.failed {
				t.Errorf("failed %q, want %q", got, tt.failed)
			}
			_, err := v.Verify(t.Context(), tt.token)
			if x.Issued != (err == nil) {
				t.Fatalf("explained as issued %v, verified with %v", x.Issued, err)
			}
			if err != nil && (x.Reason != fault.ReasonOf(err) || x.Detail != fault.Public(err) || x.Rule != identity.RuleOf(err)) {
				t.Errorf("explained as %s: %s (%s), verified as %v", x.Reason, x.Detail, x.Rule, err)
			}
		})
	}
}

func TestClaimsAreExplainedWithoutKeys(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v, err := identity.New(identity.Options{Issuers: []identity.Issuer{emailIssuer(p), {
		URL: "https://gone.example.com", Audience: "sigstore", Type: identity.Email, JWKSFile: "/nonexistent/keys.json",
	}}, Now: c.now, WithoutKeys: true})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := json.Marshal(p.Claims(c.now(), nil))
	if err != nil {
		t.Fatal(err)
	}
	token := p.Token(c.now(), nil)
	for name, e := range map[string]identity.Evidence{"claims": {Claims: claims}, "a token": {Token: token, NoSignature: true}} {
		if x := v.Explain(t.Context(), e); !x.Issued || !x.Unsigned {
			t.Errorf("%s: %+v", name, x)
		}
	}
	// A verifier without keys lets nobody in, whatever it is asked.
	_, err = v.Verify(t.Context(), token)
	wantReason(t, err, "bad_signature")
	if x := v.Explain(t.Context(), identity.Evidence{Token: token}); x.Issued || x.Unsigned {
		t.Errorf("without keys: %+v", x)
	}
	if p.Fetches() != 0 {
		t.Errorf("%d fetches of keys", p.Fetches())
	}
}

func TestAnExplanationSaysWhyKeysAreMissing(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	token := p.Token(c.now(), nil)
	down := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusBadGateway) }))
	defer down.Close()
	issuer := emailIssuer(p)
	issuer.DiscoveryURL = down.URL
	x := verifier(t, c, issuer).Explain(t.Context(), identity.Evidence{Token: token})
	if x.Issued || x.Reason != "issuer_unreachable" || !strings.Contains(x.Checks[2].Cause, "502") || x.SAN == nil {
		t.Errorf("explained as %+v", x)
	}
}
