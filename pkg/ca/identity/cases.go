package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	maxCases       = 4096
	caseLifetime   = 5 * time.Minute // of a case's token, unless its claims say otherwise
	maxClaimDepth  = 16
	maxClaimValues = 1 << 16 // of all cases of a file
)

// Case is an example of a token and of what must become of it.
type Case struct {
	Name   string
	Line   int            // in its file
	Claims map[string]any // complete but for aud, iat and exp, which are made to fit unless they are given
	Now    time.Time      // zero for the time of the run

	Issued bool
	// Of an issued case: "" and an absent key stand for anything.
	SAN        string
	Extensions map[string]string // by name or OID; "" for one that must not be there
	// Of a refused case.
	Reason string
	// Of both: the rule that must have decided; "" for any.
	Rule string
}

// ParseCases reads a file of cases, YAML or JSON. All problems come back in one error, with line
// numbers.
//
//	claims: {iss: https://issuer.example, sub: …}   # of every case
//	cases:
//	  - name: a protected branch may sign
//	    claims: {ref_protected: "true"}   # over those above; null takes one away
//	    now: 2026-05-01T12:00:00Z
//	    issued: {san: …, rule: …, extensions: {source-repository-ref: refs/heads/main}}
//	  - name: a fork may not
//	    claims: {repository_owner: mallory}
//	    refused: {reason: policy_denied, rule: no-forks}
func ParseCases(data []byte) ([]Case, error) {
	root, err := parseNode(data)
	if err != nil {
		return nil, err
	}
	d := &decoder{}
	base := map[string]any{}
	var cases []Case
	d.fields(root, "the file", []field{
		{"claims", "", d.claims(base)},
		{"cases", "", func(n *yaml.Node) {
			n = resolve(n)
			if n.Kind != yaml.SequenceNode || len(n.Content) > maxCases {
				d.addf(n, "cases must be a list of at most %d", maxCases)
				return
			}
			for _, item := range n.Content {
				cases = append(cases, d.testCase(resolve(item)))
			}
		}},
	})
	for k := range cases {
		claims := maps.Clone(base) // base may stand below the cases
		maps.Copy(claims, cases[k].Claims)
		cases[k].Claims = claims
	}
	if len(d.problems) == 0 && len(cases) == 0 {
		return nil, errors.New("the file has no cases")
	}
	return cases, errors.Join(d.problems...)
}

func (d *decoder) testCase(n *yaml.Node) Case {
	c := Case{Line: n.Line, Claims: map[string]any{}}
	outcomes := 0
	d.fields(n, "case", []field{
		{"name", "", d.text(&c.Name)},
		{"claims", "", d.claims(c.Claims)},
		{"now", "", func(n *yaml.Node) {
			var text string
			d.text(&text)(n)
			var err error
			if c.Now, err = time.Parse(time.RFC3339, text); err != nil {
				d.addf(n, "now is not a time such as 2026-05-01T12:00:00Z")
			}
		}},
		{"issued", "", func(n *yaml.Node) {
			outcomes++
			c.Issued = true
			d.fields(n, "issued", []field{
				{"san", "", d.text(&c.SAN)},
				{"extensions", "", d.strings(&c.Extensions, "extensions")},
				{"rule", "", d.text(&c.Rule)},
			})
			for name := range c.Extensions {
				if !strings.HasPrefix(name, extensionPrefix) && !knownExtension(name) {
					d.addf(n, "there is no extension %q", name)
				}
			}
		}},
		{"refused", "", func(n *yaml.Node) {
			outcomes++
			d.fields(n, "refused", []field{
				{"reason", "", d.text(&c.Reason)},
				{"rule", "", d.text(&c.Rule)},
			})
			if c.Reason == "" {
				d.addf(n, "refused needs a reason")
			}
		}},
	})
	if c.Name == "" {
		d.addf(n, "the case has no name")
	}
	if outcomes != 1 {
		d.addf(n, "the case needs either issued or refused")
	}
	return c
}

func knownExtension(name string) bool {
	for arc := 1; arc <= lastArc; arc++ {
		if extensionName(arc) == name {
			return true
		}
	}
	return false
}

// claims decodes a mapping as JSON would be: numbers as they are written, dates as text.
func (d *decoder) claims(dst map[string]any) func(*yaml.Node) {
	return func(n *yaml.Node) {
		d.entries(n, "claims", func(key, value *yaml.Node) { dst[key.Value] = d.json(value, 0) })
	}
}

func (d *decoder) json(n *yaml.Node, depth int) any {
	n = resolve(n)
	// Aliases let a short file say a lot.
	if d.values++; depth > maxClaimDepth || d.values > maxClaimValues {
		if d.values <= maxClaimValues+1 {
			d.addf(n, "claims are nested too deeply or too many")
		}
		return nil
	}
	switch {
	case n.Kind == yaml.MappingNode:
		out := map[string]any{}
		d.entries(n, "claim", func(key, value *yaml.Node) { out[key.Value] = d.json(value, depth+1) })
		return out
	case n.Kind == yaml.SequenceNode:
		out := []any{}
		for _, item := range n.Content {
			out = append(out, d.json(item, depth+1))
		}
		return out
	case n.Tag == "!!null":
		return nil
	case n.Tag == "!!bool":
		var b bool
		d.flag(&b)(n)
		return b
	case n.Tag == "!!int" || n.Tag == "!!float":
		if !json.Valid([]byte(n.Value)) {
			d.addf(n, "%q is not a number of JSON", n.Value)
			return nil
		}
		return json.Number(n.Value)
	default:
		return n.Value
	}
}

// Tester runs cases against a configuration, with no keys and no network. It is for one
// goroutine.
type Tester struct {
	verifier *Verifier
	now      time.Time
}

// NewTester returns a Tester for issuers as New takes them.
func NewTester(o Options) (*Tester, error) {
	t := &Tester{}
	o.WithoutKeys, o.Now = true, func() time.Time { return t.now }
	var err error
	t.verifier, err = New(o)
	return t, err
}

// Try runs a case and returns what becomes of it, and how that differs from what the case asks
// for: nothing when it passes. now is the time for a case without one.
func (t *Tester) Try(ctx context.Context, c Case, now time.Time) (*Explanation, []string, error) {
	if t.now = now; !c.Now.IsZero() {
		t.now = c.Now
	}
	filled := map[string]any{"iat": t.now.Unix(), "exp": t.now.Add(caseLifetime).Unix()}
	iss, _ := c.Claims["iss"].(string)
	if found := t.verifier.find(iss); found != nil {
		filled["aud"] = found.issuer.audiences()
	}
	maps.Copy(filled, c.Claims)
	maps.DeleteFunc(filled, func(_ string, value any) bool { return value == nil })
	data, err := json.Marshal(filled)
	if err != nil {
		return nil, nil, fmt.Errorf("case %q: %w", c.Name, err)
	}
	x := t.verifier.Explain(ctx, Evidence{Claims: data})
	return x, c.compare(x), nil
}

func (c *Case) compare(x *Explanation) []string {
	var differs []string
	add := func(format string, args ...any) { differs = append(differs, fmt.Sprintf(format, args...)) }
	switch {
	case c.Issued && !x.Issued:
		add("refused with %s (%s), want issued", x.Reason, x.Detail)
	case !c.Issued && x.Issued:
		add("issued to %s, want refused with %s", x.SAN.Value, c.Reason)
	case !c.Issued && x.Reason != c.Reason:
		add("refused with %s (%s), want %s", x.Reason, x.Detail, c.Reason)
	}
	if c.Rule != "" && x.Rule != c.Rule {
		add("decided by %s, want rule %s", ruleText(x.Rule), c.Rule)
	}
	if len(differs) > 0 || !c.Issued {
		return differs
	}
	if c.SAN != "" && c.SAN != x.SAN.Value {
		add("SAN %s, want %s", x.SAN.Value, c.SAN)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Extensions)) {
		got := ""
		for _, e := range x.Extensions {
			if e.Name == name || e.OID == name {
				got = e.Value
			}
		}
		if want := c.Extensions[name]; got != want {
			add("extension %s is %q, want %q", name, got, want)
		}
	}
	return differs
}

func ruleText(name string) string {
	if name == "" {
		return "no rule"
	}
	return "rule " + name
}

// RuleName names a rule in a configuration.
type RuleName struct {
	Issuer string // URL or pattern; "" for one for all issuers
	Name   string
	Line   int
}

// RuleNames lists the configured rules in their order.
func (c *Config) RuleNames() []RuleName {
	var out []RuleName
	for _, r := range c.Rules {
		out = append(out, RuleName{"", r.Name, r.line})
	}
	for _, i := range c.Issuers {
		for _, r := range i.Rules {
			out = append(out, RuleName{i.URL, r.Name, r.line})
		}
	}
	return out
}

// DecidedBy returns the rule that decided, false when none matched or the token was refused for
// another reason.
func (x *Explanation) DecidedBy() (RuleName, bool) {
	for _, r := range x.Rules {
		switch {
		case !r.Decided || r.Failed != "" || r.Name != x.Rule:
		case r.Shared:
			return RuleName{Name: r.Name}, true
		case x.Issuer.Pattern != "":
			return RuleName{Issuer: x.Issuer.Pattern, Name: r.Name}, true
		default:
			return RuleName{Issuer: x.Issuer.URL, Name: r.Name}, true
		}
	}
	return RuleName{}, false
}
