package identity

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/attestry/attestry/internal/fault"
)

// The checks, in order.
const (
	checkFormat    = "format"
	checkIssuer    = "issuer"
	checkSignature = "signature"
	checkAudience  = "audience"
	checkTimes     = "times"
	checkSubject   = "subject"
	checkMapping   = "mapping"
	checkRules     = "rules"
)

// Explanation says what would become of a token, and why. It quotes the token's claims: it is
// for operators.
type Explanation struct {
	Issued bool   `json:"issued"`           // a certificate, were the proof of possession right
	Reason string `json:"reason,omitempty"` // of the refusal, as in error replies
	Detail string `json:"detail,omitempty"` // the text that the client gets
	// Rule is the one that decided, in either way; "" when none matched.
	Rule string `json:"rule,omitempty"`

	Token      string         `json:"token,omitempty"` // fingerprint as in audit lines, SHA-256 in hex; none for bare claims
	Unsigned   bool           `json:"unsigned"`        // no signature was looked at
	Issuer     *MatchedIssuer `json:"issuer,omitempty"`
	Checks     []Check        `json:"checks"` // in order; after a failed one the others go on where they can
	Rules      []RuleOutcome  `json:"rules,omitempty"`
	SAN        *NamedValue    `json:"subjectAlternativeName,omitempty"`
	Extensions []NamedValue   `json:"extensions,omitempty"` // ascending by OID
	Challenges []NamedValue   `json:"challenges,omitempty"` // what a proof of possession may be made over, by claim
}

// MatchedIssuer is the configured issuer that the token belongs to.
type MatchedIssuer struct {
	URL       string   `json:"url"`               // the token's iss
	Pattern   string   `json:"pattern,omitempty"` // of a meta issuer
	Type      Type     `json:"type"`
	Provider  string   `json:"ciProvider,omitempty"`
	Audiences []string `json:"audiences"` // one of which the token must have
}

// Check is the outcome of one step.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"`
	Cause  string `json:"cause,omitempty"` // why an issuer's keys could not be had
}

// RuleOutcome is the outcome of one rule. Rules behind the one that decided are evaluated too.
type RuleOutcome struct {
	Name       string `json:"name"`
	Shared     bool   `json:"shared,omitempty"` // one of those for all issuers
	Allow      bool   `json:"allow"`            // else it denies
	Expression string `json:"expression"`
	Matched    bool   `json:"matched"`
	Failed     string `json:"failed,omitempty"` // on this token: it refuses
	Decided    bool   `json:"decided,omitempty"`
}

// NamedValue is a value of the certificate or of the token.
type NamedValue struct {
	OID   string `json:"oid,omitempty"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Explain says what Verify would make of a token, or of claims if they were signed. It takes the
// same way, keys included, and gives nobody a principal.
func (v *Verifier) Explain(ctx context.Context, e Evidence) *Explanation {
	x := &Explanation{Unsigned: e.Claims != nil || e.NoSignature}
	p, err := v.judge(ctx, e, x)
	if e.Claims == nil && e.Token != "" && len(e.Token) <= MaxToken {
		sum := fingerprint(e.Token)
		x.Token = hex.EncodeToString(sum[:])
	}
	if err != nil {
		x.Reason, x.Detail, x.Rule = fault.ReasonOf(err), fault.Public(err), RuleOf(err)
		return x
	}
	x.Issued, x.Rule = true, p.Rule
	return x
}

func (x *Explanation) note(check string, err error) {
	c := Check{Name: check, OK: err == nil}
	if err != nil {
		c.Reason, c.Detail = fault.ReasonOf(err), fault.Public(err)
		var f *fault.Error
		if errors.As(err, &f) && f.Kind == fault.Unavailable && f.Err != nil {
			c.Cause = f.Err.Error()
		}
	}
	x.Checks = append(x.Checks, c)
}

func (x *Explanation) matched(t *trusted, iss string) {
	x.Issuer = &MatchedIssuer{URL: iss, Type: t.issuer.Type, Provider: t.issuer.CIProvider, Audiences: t.issuer.audiences()}
	if t.pattern != nil {
		x.Issuer.Pattern = t.issuer.URL
	}
}

func (x *Explanation) principal(t *trusted, c claims, p *Principal) {
	x.SAN = &NamedValue{Name: p.SAN.Kind.String(), Value: p.SAN.Value}
	for _, e := range p.Extensions {
		x.Extensions = append(x.Extensions, NamedValue{OID: fmt.Sprintf("%s%d", extensionPrefix, e.Arc), Name: extensionName(e.Arc), Value: e.Value})
	}
	for _, name := range t.challengeClaims(c) {
		x.Challenges = append(x.Challenges, NamedValue{Name: name, Value: c.text(name)})
	}
}

func (x *Explanation) rule(r *compiledRule, matched bool, err error, decided bool) {
	out := RuleOutcome{Name: r.Name, Shared: r.shared, Allow: r.allow, Expression: r.expr, Matched: matched, Decided: decided}
	if err != nil {
		out.Failed = err.Error()
	}
	x.Rules = append(x.Rules, out)
}

// extensionName is the key of ci-issuer-metadata for an extension. Those that every certificate
// has are named likewise.
func extensionName(arc int) string {
	switch arc {
	case arcIssuer:
		return "issuer"
	case arcIssuerV2:
		return "issuer-v2"
	case arcSubject:
		return "token-subject"
	}
	for _, e := range extensionArcs {
		if e.arc == arc {
			return e.yaml
		}
	}
	return ""
}
