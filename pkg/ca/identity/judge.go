package identity

import (
	"context"

	"github.com/attestry/attestry/internal/fault"
)

// Evidence is what is judged: a token, or for an explanation bare claims that nobody vouches for.
type Evidence struct {
	Token       string // compact JWS
	Claims      []byte // a JSON object, in place of a token; only Explain takes it
	NoSignature bool   // with Token: look at its claims alone; only Explain takes it
}

// claims returns what the evidence says, and the payload of a token whose signature counts.
func (e Evidence) claims() (c claims, signed []byte, err error) {
	payload := e.Claims
	if payload == nil {
		if payload, err = splitToken(e.Token); err != nil {
			return nil, nil, err
		}
		if !e.NoSignature {
			signed = payload
		}
	}
	c, err = parseClaims(payload)
	return c, signed, err
}

// judgement is evidence on its way through the checks.
type judgement struct {
	explanation *Explanation // nil for a request
	refusal     error        // the first
}

// passed takes note of a check's outcome and reports whether to go on. A request ends at the
// first refusal; an explanation goes on as far as there is something to look at.
func (j *judgement) passed(check string, err error) bool {
	if err != nil && j.refusal == nil {
		j.refusal = err
	}
	if j.explanation == nil {
		return err == nil
	}
	j.explanation.note(check, err)
	return true
}

// judge is the one way from evidence to a principal. With x it also explains, and evidence
// without a signature counts; its caller then must not use the principal.
func (v *Verifier) judge(ctx context.Context, e Evidence, x *Explanation) (*Principal, error) {
	j := judgement{explanation: x}
	c, signed, err := e.claims()
	if j.passed(checkFormat, err); err != nil {
		return nil, err
	}
	iss := c.text("iss")
	t := v.find(iss)
	if t == nil {
		err = fault.New(fault.Unauthentic, ReasonUnknownIssuer, nil, "the token's issuer is not one that this CA trusts")
		j.passed(checkIssuer, err)
		return nil, err
	}
	j.passed(checkIssuer, nil)
	if x != nil {
		x.matched(t, iss)
	}
	if x == nil || signed != nil {
		if !j.passed(checkSignature, v.verifySignature(ctx, t, iss, e.Token, signed)) {
			return nil, j.refusal
		}
	}
	if !j.passed(checkAudience, v.checkAudience(t, c)) || !j.passed(checkTimes, v.checkTimes(t, c)) || !j.passed(checkSubject, c.checkSubject()) {
		return nil, j.refusal
	}
	p, err := t.principal(c, e.Token)
	if !j.passed(checkMapping, err) || err != nil {
		return nil, j.refusal
	}
	expires, _, _ := c.date("exp") // it was looked at above
	p.Expires = expires.Add(v.leeway(t))
	var see func(*compiledRule, bool, error, bool)
	if x != nil {
		x.principal(t, c, p)
		see = x.rule
	}
	p.Rule, err = t.rules.decide(&facts{claims: c, issuer: iss, subject: p.SAN.Value, now: v.opts.Now()}, see)
	j.passed(checkRules, err)
	if j.refusal != nil {
		return nil, j.refusal
	}
	return p, nil
}
