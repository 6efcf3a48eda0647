package policy

import (
	"cmp"
	"context"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
)

// fixed is a policy that has made up its mind.
type fixed struct {
	name            string
	passes, applies bool
	reason          verify.Reason // why not; without one it is unsigned
	asked           int
}

func (f *fixed) Name() string          { return f.name }
func (f *fixed) Mode() string          { return ModeAudit }
func (f *fixed) Applies(*Subject) bool { return f.applies }
func (f *fixed) Decide(context.Context, *Subject, Evidence) Outcome {
	f.asked++
	if f.passes {
		return Outcome{Policy: f.name, Passed: true}
	}
	return Outcome{Policy: f.name, Reason: cmp.Or(f.reason, verify.ReasonNoSignature), Message: "unsigned"}
}

func named(names string, passing string) []Policy {
	var all []Policy
	for _, n := range strings.Fields(names) {
		all = append(all, &fixed{name: n, passes: strings.Contains(passing, n), applies: true})
	}
	return all
}

func TestWhatAnExpressionMeans(t *testing.T) {
	const teleport = `
sigstore.policy_satisfied("a", "b") ||
	sigstore.policy_satisfied("c")
`
	for _, tt := range []struct {
		expression, passing string
		want                bool
	}{
		{`satisfied("a")`, "a", true},
		{`satisfied("a")`, "b", false},
		{"satisfied(`a`)", "a", true},
		{`satisfied("\x61")`, "a", true},
		{`satisfied("a", "b")`, "a", false},
		{`satisfied("a", "b")`, "a b", true},
		{teleport, "c", true},
		{teleport, "a", false},
		{teleport, "a b", true},
		{`satisfied("a") && satisfied("b") || satisfied("c")`, "c", true}, // && binds more
		{`satisfied("a") && (satisfied("b") || satisfied("c"))`, "c", false},
		{`satisfied("a") || satisfied("b") && satisfied("c")`, "a", true},
		{`((satisfied("a")))`, "a", true},
	} {
		p, err := Combine("rule", tt.expression, named("a b c", tt.passing))
		if err != nil {
			t.Errorf("%s: %v", tt.expression, err)
			continue
		}
		out := p.Decide(t.Context(), &Subject{}, nil)
		if out.Passed != tt.want || out.Mode != ModeEnforce {
			t.Errorf("%s with %q passing: %+v, want %v", tt.expression, tt.passing, out, tt.want)
		}
		if !out.Passed && (out.Reason != verify.ReasonNoSignature || !strings.Contains(out.Message, "unsigned")) {
			t.Errorf("%s: the outcome does not say why: %+v", tt.expression, out)
		}
	}
}

func TestMistakesInExpressionsHavePositions(t *testing.T) {
	for _, tt := range []struct{ expression, want string }{
		{``, `1:1: the expression ends`},
		{`satisfied`, `1:10: the expression ends where ( is expected`},
		{`satisfied()`, `1:11: ) where the name of a policy`},
		{`satisfied("a"`, `1:14: the expression ends where , or ) is expected`},
		{`satisfied("a",)`, `1:15: ) where the name of a policy`},
		{`satisfied("a" "b")`, `1:15: "b" where , or ) is expected`},
		{`satisfied(a)`, `1:11: a where the name of a policy`},
		{`satisfied("a) `, `1:11: the string does not end`},
		{`satisfied("d")`, `1:11: there is no policy "d"`},
		{`satisfied("a") satisfied("b")`, `1:16: satisfied where &&, || or the end`},
		{"satisfied(\"a\") ||\n  !satisfied(\"b\")", `2:3: negation is not allowed`},
		{`satisfied("a") & satisfied("b")`, `1:16: unexpected '&'`},
		{`é("a")`, `1:1: unknown function "é"`},
		{"satisfied(\"a\") || é ('a')", `1:19: unknown function "é"`},
		{`policy_satisfied("a")`, `1:1: unknown function "policy_satisfied"`},
		{`(satisfied("a")`, `1:16: the expression ends where &&, || or )`},
		{`()`, `1:2: ) where satisfied`},
		{`true`, `1:1: unknown function "true"`},
		{strings.Repeat("(", 33) + `satisfied("a")` + strings.Repeat(")", 33), `1:33: more than 32 parentheses`},
		{`satisfied("a"` + strings.Repeat(`,"a"`, 256) + `)`, `more than 256 names`},
		{strings.Repeat(" ", 8<<10) + `satisfied("a")`, `over 8192 bytes`},
		{"satisfied(\"\xff\")", `not UTF-8`},
	} {
		_, err := Combine("rule", tt.expression, named("a b c", ""))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60q: %v, want %q", tt.expression, err, tt.want)
		}
	}
}

func TestACombinationAsksOnceAndNoMoreThanItMust(t *testing.T) {
	policies := named("a b c", "a")
	p, err := Combine("rule", `satisfied("a") && satisfied("a") || satisfied("b")`, policies)
	if err != nil {
		t.Fatal(err)
	}
	if out := p.Decide(t.Context(), &Subject{}, nil); !out.Passed || len(out.Checks) != 1 || !out.Checks[0].Passed || out.Checks[0].Authority != "a" {
		t.Errorf("%+v", out)
	}
	if a, b := policies[0].(*fixed), policies[1].(*fixed); a.asked != 1 || b.asked != 0 {
		t.Errorf("a was asked %d times, b %d", a.asked, b.asked)
	}
}

func TestAPolicyThatDoesNotApplyIsNotSatisfied(t *testing.T) {
	elsewhere := &fixed{name: "elsewhere", passes: true}
	here := &fixed{name: "here", passes: true, applies: true}
	for expression, want := range map[string]bool{
		`satisfied("elsewhere", "here")`:              false,
		`satisfied("elsewhere") || satisfied("here")`: true,
	} {
		p, err := Combine("rule", expression, []Policy{elsewhere, here})
		if err != nil {
			t.Fatal(err)
		}
		if out := p.Decide(t.Context(), &Subject{}, nil); out.Passed != want || elsewhere.asked > 0 {
			t.Errorf("%s: %+v", expression, out)
		}
		if !p.Applies(&Subject{}) {
			t.Errorf("%s does not apply", expression)
		}
	}
	p, err := Combine("rule", `satisfied("elsewhere")`, []Policy{elsewhere, here})
	if err != nil || p.Applies(&Subject{}) {
		t.Errorf("%v, a combination of policies that do not apply applies", err)
	}
	if _, err := Combine("rule", `satisfied("a")`, append(named("a", ""), named("a", "")...)); err == nil {
		t.Error("two policies of one name are taken")
	}
}

// FuzzExpression: whatever is taken means something, and asks for nothing but the names that are known.
func FuzzExpression(f *testing.F) {
	for _, seed := range []string{`satisfied("a","b") || satisfied("c")`, `(satisfied("a"))&&satisfied("b")`, "sigstore.policy_satisfied(`a`)", `!`, `((`, `"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		known := func(name string) bool { return name == "a" || name == "b" || name == "c" }
		e, err := parseExpression(text, known)
		if err != nil {
			return
		}
		asked := 0
		none := e.satisfied(func(name string) bool {
			if asked++; !known(name) {
				t.Errorf("%q asks for %q", text, name)
			}
			return false
		})
		if none || asked == 0 {
			t.Errorf("%q is true of nothing, or asks nobody", text)
		}
		if !e.satisfied(func(string) bool { return true }) {
			t.Errorf("%q is false though all is satisfied", text)
		}
	})
}
