package identity_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

func allow(name, expression string) identity.Rule {
	return identity.Rule{Name: name, Allow: expression}
}

func deny(name, expression string) identity.Rule {
	return identity.Rule{Name: name, Deny: expression}
}

func TestRulesDecide(t *testing.T) {
	const refused = "policy_denied"
	p, c := identitytest.New(t), newClock()
	for _, tt := range []struct {
		name    string
		shared  []identity.Rule
		rules   []identity.Rule
		without string // rules-default
		claims  map[string]any
		reason  string // "" when issued
		rule    string
	}{
		{name: "without rules every valid token counts"},
		{name: "the first true rule decides: it allows", rules: []identity.Rule{allow("a", "true"), deny("b", "true")}, rule: "a"},
		{name: "the first true rule decides: it denies", rules: []identity.Rule{deny("b", "true"), allow("a", "true")}, without: "deny", reason: refused, rule: "b"},
		{name: "what no rule matches is allowed", rules: []identity.Rule{deny("b", "false")}},
		{name: "what no rule matches is denied when the file says so", rules: []identity.Rule{allow("a", "false")}, without: "deny", reason: refused},
		{name: "the rules for all issuers come first", shared: []identity.Rule{deny("s", "true")}, rules: []identity.Rule{allow("a", "true")}, without: "deny", reason: refused, rule: "s"},
		{name: "the rules for all issuers leave the rest to the issuer's", shared: []identity.Rule{deny("s", "false")}, rules: []identity.Rule{allow("a", "true")}, without: "deny", rule: "a"},

		{name: "the claims", rules: []identity.Rule{allow("a", `claims.email == "alice@example.com" && claims.email_verified == true`)}, without: "deny", rule: "a"},
		{name: "the issuer and the subject", rules: []identity.Rule{allow("a", `issuer.startsWith("http://127.0.0.1:") && subject == "alice@example.com"`)}, without: "deny", rule: "a"},
		{name: "the time", rules: []identity.Rule{allow("a", `now < timestamp(int(claims.exp)) && now.getDayOfWeek() == 5`)}, without: "deny", rule: "a"}, // a Friday
		{name: "a claim with a dot and claims inside", rules: []identity.Rule{allow("a", `claims["kubernetes.io"].namespace == "prod"`)}, without: "deny",
			claims: map[string]any{"kubernetes.io": map[string]any{"namespace": "prod"}}, rule: "a"},
		{name: "a list", rules: []identity.Rule{allow("a", `"release" in claims.groups && claims.groups.exists(g, g.startsWith("dev-"))`)}, without: "deny",
			claims: map[string]any{"groups": []string{"dev-1", "release"}}, rule: "a"},
		{name: "numbers are exact", rules: []identity.Rule{allow("a", `claims.id == 9007199254740993 && claims.id != 9007199254740992 && claims.share < 0.5`)}, without: "deny",
			claims: map[string]any{"id": json.Number("9007199254740993"), "share": 0.25}, rule: "a"},
		{name: "a claim that may be absent, absent", rules: []identity.Rule{deny("d", `claims[?"environment"].orValue("") == "production"`)}},
		{name: "a claim that may be absent, present", rules: []identity.Rule{deny("d", `claims.?environment.orValue("") == "production"`)},
			claims: map[string]any{"environment": "production"}, reason: refused, rule: "d"},
		{name: "whether a claim is there", rules: []identity.Rule{allow("a", `has(claims.email) && !has(claims.environment)`)}, without: "deny", rule: "a"},
		{name: "a claim that is null", rules: []identity.Rule{allow("a", `claims.ref == null`)}, without: "deny", claims: map[string]any{"ref": json.RawMessage("null")}, rule: "a"},
		{name: "string functions", rules: []identity.Rule{allow("a", `claims.email.split("@")[1].lowerAscii() == "example.com" && claims.email.matches("^[a-z]+@")`)}, without: "deny", rule: "a"},
		{name: "the other side of || decides when one fails", rules: []identity.Rule{allow("a", `claims.absent == "x" || claims.email == "alice@example.com"`)}, without: "deny", rule: "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			issuer := emailIssuer(p)
			issuer.Rules, issuer.RulesDefault = tt.rules, tt.without
			v, err := identity.New(identity.Options{Config: &identity.Config{Issuers: []identity.Issuer{issuer}, Rules: tt.shared}, Now: c.now})
			if err != nil {
				t.Fatal(err)
			}
			token := p.Token(c.now(), tt.claims)
			principal, err := v.Verify(t.Context(), token)
			if tt.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
				if principal.Rule != tt.rule {
					t.Errorf("decided by %q, want %q", principal.Rule, tt.rule)
				}
			} else {
				wantReason(t, err, tt.reason)
				if fault.KindOf(err) != fault.Denied {
					t.Errorf("kind %v, want denied", fault.KindOf(err))
				}
				if identity.RuleOf(err) != tt.rule || !strings.Contains(fault.Public(err), tt.rule) {
					t.Errorf("rule %q, text %q, want %q", identity.RuleOf(err), fault.Public(err), tt.rule)
				}
			}
			x := v.Explain(t.Context(), identity.Evidence{Token: token})
			if x.Issued != (tt.reason == "") || x.Reason != tt.reason || x.Rule != tt.rule {
				t.Errorf("explained as issued %v, %q by %q", x.Issued, x.Reason, x.Rule)
			}
		})
	}
}

// TestRulesThatFailRefuse has each failing expression as a rule that allows and as one that denies.
func TestRulesThatFailRefuse(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	many := make([]string, 1000)
	for k := range many {
		many[k] = "g"
	}
	claims := map[string]any{
		"flag": true, "text": "true", "number": 7, "groups": []string{"a"}, "inner": map[string]any{"a": "b"}, "many": many, "huge": json.Number("1e999"),
	}
	for name, tt := range map[string]struct{ expression, says string }{
		"a missing claim":                        {`claims.ref_protected == "true"`, "needs the claim ref_protected, which the token does not have"},
		"a missing claim by index":               {`claims["ref protected"] == "true"`, "needs the claim ref protected,"},
		"a missing claim inside another":         {`claims.inner.b == "b"`, "needs the claim b,"},
		"a key that is a claim's value":          {`claims.inner[claims.email] == "b"`, "is missing or of another type"},
		"a claim inside text":                    {`claims.text.b == "b"`, "needs the claim b,"},
		"a flag for text":                        {`claims.flag == "true"`, "of another type"},
		"text for a flag":                        {`claims.text == true`, "of another type"},
		"text for a flag, unequal":               {`claims.text != true`, "of another type"},
		"a number for text":                      {`claims.number != "7"`, "of another type"},
		"a number among texts":                   {`claims.number in ["7", "8"]`, "of another type"},
		"a number in a list of texts":            {`7 in claims.groups`, "of another type"},
		"text for a list":                        {`"a" in claims.text`, "of another type"},
		"a list for text":                        {`claims.groups == "a"`, "of another type"},
		"a text function of a number":            {`claims.number.startsWith("7")`, "of another type"},
		"a comparison of text and number":        {`claims.text > 5`, "of another type"},
		"a division by zero":                     {`7 / (claims.number - 7) == 1`, "does not fit"},
		"an index past the end":                  {`claims.groups[1] == "a"`, "does not fit"},
		"text that is no time":                   {`timestamp(claims.text) < now`, "does not fit"},
		"text that is no number":                 {`int(claims.text) == 1`, "does not fit"},
		"a number over all bounds":               {`claims.huge > 1.0`, "does not fit"},
		"an absent optional":                     {`claims[?"absent"].value() == "x"`, "does not fit"},
		"a claim that makes it expensive":        {`claims.many.all(a, claims.many.all(b, a == b))`, "costs too much"},
		"a regular expression out of the claims": {`claims.text.matches(claims.email + "(")`, "does not fit"},
	} {
		for _, rule := range []identity.Rule{allow("it", tt.expression), deny("it", tt.expression)} {
			t.Run(name+map[bool]string{true: ", allowing", false: ", denying"}[rule.Allow != ""], func(t *testing.T) {
				issuer := emailIssuer(p)
				issuer.Rules = []identity.Rule{rule, deny("never", "false")}
				v := verifier(t, c, issuer)
				_, err := v.Verify(t.Context(), p.Token(c.now(), claims))
				wantReason(t, err, identity.ReasonPolicyDenied)
				if got := fault.Public(err); !strings.HasPrefix(got, "rule it ") || !strings.Contains(got, tt.says) {
					t.Errorf("text %q does not say %q", got, tt.says)
				}
				if identity.RuleOf(err) != "it" {
					t.Errorf("refused by %q", identity.RuleOf(err))
				}
			})
		}
	}
}

func TestRuleMistakesAreNamed(t *testing.T) {
	file := func(rules string) string {
		return "oidc-issuers:\n  https://idp.example.com:\n    client-id: sigstore\n    type: email\n" + rules
	}
	rule := func(line string) string {
		return file("    rules:\n      - name: r\n        " + line + "\n      - {name: z, deny: 'false'}\n")
	}
	for name, tt := range map[string]struct {
		text string
		want string
	}{
		"rules that are no list":              {file("    rules: {a: b}\n"), "line 5: rules must be a list of at most 128"},
		"too many":                            {file("    rules:\n" + strings.Repeat("      - {name: a, deny: 'false'}\n", 129)), "rules must be a list of at most 128"},
		"an unknown key":                      {rule("denny: 'true'"), `line 7: rule has no key "denny"`},
		"neither allow nor deny":              {file("    rules: [{name: r}]\n"), `line 5: issuer "https://idp.example.com": rule "r": either allow or deny is required`},
		"both":                                {rule("allow: 'true'\n        deny: 'true'"), "either allow or deny"},
		"no name":                             {file("    rules: [{deny: 'true'}]\n"), "a name of letters"},
		"a name for a log line to trip over":  {file("    rules: [{name: 'a b', deny: 'true'}]\n"), "a name of letters"},
		"a long name":                         {file("    rules: [{name: " + strings.Repeat("a", 65) + ", deny: 'true'}]\n"), "a name of letters"},
		"a name twice":                        {file("    rules: [{name: r, deny: 'false'}, {name: r, deny: 'false'}]\n"), "given twice"},
		"an expression that does not parse":   {rule("deny: claims.a =="), `line 7: issuer "https://idp.example.com": rule "r": 1:12: Syntax error`},
		"its line in a block":                 {rule("deny: |\n          claims.a == 1 &&\n          clams.b == 2"), `line 8: issuer "https://idp.example.com": rule "r": 2:1: undeclared reference to 'clams'`},
		"an unknown variable":                 {rule("deny: clams.a == 1"), "undeclared reference to 'clams'"},
		"an unknown function":                 {rule("deny: claims.a.launch()"), "undeclared reference to 'launch'"},
		"an expression of text":               {rule("deny: issuer"), "of type string, not bool"},
		"an expression of unknown type":       {rule("deny: claims.flag"), "of type dyn, not bool"},
		"types that can never be equal":       {rule("deny: issuer == 1"), "no matching overload"},
		"a bad regular expression":            {rule(`deny: issuer.matches("(")`), "missing closing )"},
		"a huge regular expression":           {rule(`deny: issuer.matches("(a{100}){10}")`), "regex"},
		"a long expression":                   {rule("deny: issuer == '" + strings.Repeat("a", 4096) + "'"), "over 4096 bytes"},
		"a deep expression":                   {rule("deny: " + strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200)), "recursion"},
		"an expression of many nodes":         {rule("deny: >\n          " + strings.Repeat("[1].all(x,true)&&", 230) + "true"), "exceeds limit of 2048"},
		"rules-default of another word":       {file("    rules-default: forbid\n    rules: [{name: r, deny: 'false'}]\n"), `rules-default "forbid" is neither`},
		"rules-default alone":                 {file("    rules-default: deny\n"), "no rules to complete"},
		"rules that let nobody in":            {file("    rules-default: deny\n    rules: [{name: r, deny: 'false'}]\n"), "nobody could get a certificate"},
		"an allow rule that changes nothing":  {file("    rules: [{name: r, allow: 'false'}]\n"), `rule "r" allows what is allowed anyway: set rules-default: deny`},
		"a rule for all issuers that allows":  {file("rules: [{name: s, allow: 'true'}]\n"), `line 5: rule "s": a rule for all issuers can only deny`},
		"a rule named as one for all issuers": {file("    rules: [{name: s, deny: 'false'}]\nrules: [{name: s, deny: 'true'}]\n"), "a rule for all issuers has this name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := identity.Parse([]byte(tt.text))
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}
}

func TestRulesAreReadFromYAMLAndJSON(t *testing.T) {
	for name, text := range map[string]string{
		"YAML": `
rules:
  - {name: s, deny: claims.sub == "root"}
oidc-issuers:
  https://idp.example.com:
    client-id: sigstore
    type: email
    rules:
      - name: r
        allow: |
          claims.a == 1 ||
          claims.b == "x"
      - {name: all, allow: true}
    rules-default: deny
`,
		"JSON": `{"rules": [{"name": "s", "deny": "claims.sub == \"root\""}], "OIDCIssuers": [{"IssuerURL": "https://idp.example.com", "ClientID": "sigstore", "Type": "email",
			"rules": [{"name": "r", "allow": "claims.a == 1 ||\nclaims.b == \"x\"\n"}, {"name": "all", "allow": true}], "rules-default": "deny"}]}`,
	} {
		c, err := identity.Parse([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		i := c.Issuers[0]
		if c.Rules[0].Deny != `claims.sub == "root"` || i.Rules[0].Allow != "claims.a == 1 ||\nclaims.b == \"x\"\n" || i.Rules[1].Allow != "true" || i.RulesDefault != "deny" {
			t.Errorf("%s: rules %+v, %+v, default %q", name, c.Rules, i.Rules, i.RulesDefault)
		}
	}
}

func TestRulesOfAPatternSeeTheIssuer(t *testing.T) {
	c := newClock()
	tester, err := identity.NewTester(identity.Options{Config: &identity.Config{Issuers: []identity.Issuer{{
		URL: "https://gitlab.*.example.com", Wildcard: true, Audience: "sigstore", Type: identity.Email,
		Rules: []identity.Rule{deny("not-the-lab", `issuer == "https://gitlab.lab.example.com"`)},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	for host, issued := range map[string]bool{"lab": false, "prod": true} {
		x, _, err := tester.Try(t.Context(), identity.Case{Claims: map[string]any{
			"iss": "https://gitlab." + host + ".example.com", "sub": "x", "email": "alice@example.com", "email_verified": true,
		}}, c.now())
		if err != nil {
			t.Fatal(err)
		}
		if x.Issued != issued || x.Issuer.Pattern != "https://gitlab.*.example.com" {
			t.Errorf("%s: issued %v by %+v: %s", host, x.Issued, x.Issuer, x.Detail)
		}
	}
}

// FuzzRules runs one expression as a rule that allows and as one that denies: both must not issue,
// and neither may when it fails.
func FuzzRules(f *testing.F) {
	f.Add(`claims.a == "b"`, []byte(`{"a":"b"}`))
	f.Add(`claims.list.exists(x, x in [1, 2]) || claims[?"n"].orValue(0) > 3`, []byte(`{"list":[1,"2",null],"n":1e400}`))
	f.Add(`claims.a.matches("^[a-z]{1,9}$") ? claims.b : claims.?c.orValue(false) == true`, []byte(`{"a":"x","b":{"c":[true]}}`))
	f.Add(`"%s %d".format([claims.a, claims.n]).split(" ").join("").size() != 3`, []byte(`{"a":"é","n":18446744073709551616}`))
	f.Add("now > timestamp(claims.exp) - duration('1h')", []byte(`{}`))
	f.Fuzz(func(t *testing.T, expression string, extra []byte) {
		claims := map[string]any{}
		dec := json.NewDecoder(bytes.NewReader(extra))
		dec.UseNumber()
		if dec.Decode(&claims) != nil {
			return
		}
		for name, value := range map[string]any{"iss": "https://idp.example.com", "sub": "x", "email": "alice@example.com", "email_verified": true} {
			claims[name] = value
		}
		var verdicts [2]*identity.Explanation
		for k, rules := range [][]identity.Rule{{allow("it", expression)}, {deny("it", expression)}} {
			tester, err := identity.NewTester(identity.Options{Config: &identity.Config{Issuers: []identity.Issuer{{
				URL: "https://idp.example.com", Audience: "sigstore", Type: identity.Email, Rules: rules, RulesDefault: []string{"deny", "allow"}[k],
			}}}})
			if err != nil {
				if k == 1 {
					t.Fatalf("allows and does not deny: %v", err)
				}
				return
			}
			x, _, err := tester.Try(context.Background(), identity.Case{Claims: claims}, newClock().now())
			if err != nil {
				t.Fatal(err)
			}
			verdicts[k] = x
		}
		if len(verdicts[0].Rules) == 0 { // refused before: exp or nbf of the fuzzer
			return
		}
		a, d := verdicts[0].Rules[0], verdicts[1].Rules[0]
		if a.Matched != d.Matched || a.Failed != d.Failed || a.Matched && a.Failed != "" {
			t.Errorf("%q: %+v and %+v", expression, a, d)
		}
		if verdicts[0].Issued && !a.Matched || verdicts[1].Issued && (d.Matched || d.Failed != "") {
			t.Errorf("%q: issued against the rule: %+v, %+v", expression, verdicts[0], verdicts[1])
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	p, c := identitytest.New(b), newClock()
	claims := map[string]any{"repository": "acme/app", "repository_owner": "acme", "ref": "refs/heads/main", "ref_protected": "true", "namespace_path": "acme/platform"}
	token := p.Token(c.now(), claims)
	for _, n := range []int{0, 1, 10, 100} {
		issuer := emailIssuer(p)
		for k := range n {
			issuer.Rules = append(issuer.Rules, deny(fmt.Sprintf("r%d", k), `claims.repository_owner != "acme" || claims.ref_protected == "true" && !claims.namespace_path.startsWith("acme/")`))
		}
		v, err := identity.New(identity.Options{Issuers: []identity.Issuer{issuer}, Now: c.now})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
