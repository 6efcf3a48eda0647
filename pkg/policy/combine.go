package policy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/attestry/attestry/pkg/verify"
)

// Combine makes one policy of several by an expression over their names, as Teleport's rules do:
//
//	satisfied("provenance", "scan") || satisfied("signoff")
//
// satisfied, which may also be written sigstore.policy_satisfied, is true when all policies that it names pass; there is no
// negation. A policy that does not apply to an image is not satisfied by it. The combination applies where one
// of the policies that it names does, and is enforced whatever their modes are. Errors of the expression begin with its line
// and column.
func Combine(name, expression string, policies []Policy) (Policy, error) {
	if name == "" {
		return nil, errors.New("a combination of policies needs a name")
	}
	c := &combination{name: name, text: strings.Join(strings.Fields(expression), " "), policies: map[string]Policy{}}
	all := map[string]Policy{}
	for _, p := range policies {
		if all[p.Name()] != nil {
			return nil, fmt.Errorf("there are two policies %q", p.Name())
		}
		all[p.Name()] = p
	}
	var err error
	c.expression, err = parseExpression(expression, func(name string) bool {
		if p := all[name]; p != nil {
			c.policies[name] = p
		}
		return all[name] != nil
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

type combination struct {
	name, text string
	expression expression
	policies   map[string]Policy // those that the expression names
}

func (c *combination) Name() string { return c.name }
func (c *combination) Mode() string { return ModeEnforce }

func (c *combination) Applies(s *Subject) bool {
	for _, p := range c.policies {
		if p.Applies(s) {
			return true
		}
	}
	return false
}

// Decide asks each policy at most once. The outcome has one check for each that was asked.
func (c *combination) Decide(ctx context.Context, s *Subject, e Evidence) Outcome {
	out := Outcome{Policy: c.name, Mode: c.Mode()}
	asked, reasons := map[string]bool{}, map[string]verify.Reason{}
	ask := func(name string) bool {
		if passed, ok := asked[name]; ok {
			return passed
		}
		check := Check{Authority: name, Name: "policy", Reason: verify.ReasonPolicyDenied, Message: "the policy does not apply to this image"}
		if p := c.policies[name]; p.Applies(s) {
			decided := p.Decide(ctx, s, e)
			check.Passed, check.Reason, check.Message = decided.Passed, decided.Reason, decided.Message
		}
		asked[name], reasons[name] = check.Passed, check.Reason
		out.Checks = append(out.Checks, check)
		return check.Passed
	}
	out.Passed = c.expression.satisfied(ask)
	if out.Passed {
		return out
	}
	// Nothing is decided if the whole would hold should those pass that are undecided: there is no negation.
	open := c.expression.satisfied(func(name string) bool { return ask(name) || reasons[name].Undecided() })
	var failed []string
	for _, check := range out.Checks {
		if !check.Passed {
			if out.Reason == "" || open != out.Reason.Undecided() && open == check.Reason.Undecided() {
				out.Reason = check.Reason
			}
			failed = append(failed, fmt.Sprintf("%s: %s", check.Authority, check.Message))
		}
	}
	out.Message = fmt.Sprintf("%s does not hold: %s", c.text, strings.Join(failed, "; "))
	return out
}
