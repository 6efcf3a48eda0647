package identity

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
	"go.yaml.in/yaml/v3"

	"github.com/attestry/attestry/internal/fault"
)

// ReasonPolicyDenied is given when a rule, or the lack of one that allows, refused a valid token.
const ReasonPolicyDenied = "policy_denied"

const (
	maxRules      = 128     // of one issuer, and of those for all issuers
	maxExpression = 4 << 10 // bytes
	maxNodes      = 2048    // of an expression's syntax tree
	maxNesting    = 64
	maxRegex      = 1000    // instructions of a compiled regular expression
	maxCost       = 100_000 // of one evaluation in CEL's units: about one for an operation, a tenth for a byte of text
	maxRuleName   = 64
)

// Rule lets requests pass or refuses them by what their tokens say. Exactly one of Allow and Deny
// is set: an expression in CEL (cel.dev) of type bool over
//
//	claims   the token's claims, a map by name
//	issuer   the token's iss
//	subject  the certificate's subject alternative name as text
//	now      the time
//
// with CEL's optional values and its string functions. Comparing a claim with a value of another
// type is an error here and not merely unequal: a deny rule must not be passed by sending true
// for "true".
type Rule struct {
	Name        string // [-_.a-zA-Z0-9], in audit lines and refusals
	Allow, Deny string

	line int // of the expression's first character
}

func (r Rule) expression() (text string, allow bool) {
	if r.Allow != "" {
		return r.Allow, true
	}
	return r.Deny, false
}

func (d *decoder) rules(dst *[]Rule) func(*yaml.Node) {
	return func(n *yaml.Node) {
		n = resolve(n)
		if n.Kind != yaml.SequenceNode || len(n.Content) > maxRules {
			d.addf(n, "rules must be a list of at most %d", maxRules)
			return
		}
		for _, item := range n.Content {
			item = resolve(item)
			r := Rule{line: item.Line}
			expression := func(dst *string) func(*yaml.Node) {
				return func(n *yaml.Node) {
					n = resolve(n)
					if r.line = n.Line; n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
						r.line++ // the text begins below its |
					}
					if n.Kind == yaml.ScalarNode && n.Tag == "!!bool" { // allow: true
						*dst = n.Value
						return
					}
					d.text(dst)(n)
				}
			}
			d.fields(item, "rule", []field{
				{"name", "", d.text(&r.Name)},
				{"allow", "", expression(&r.Allow)},
				{"deny", "", expression(&r.Deny)},
			})
			*dst = append(*dst, r)
		}
	}
}

// ruleSet is what decides for the tokens of one issuer.
type ruleSet struct {
	rules []compiledRule // those for all issuers first
	deny  bool           // when no rule matches
}

type compiledRule struct {
	Rule
	expr    string
	allow   bool
	shared  bool // one of those for all issuers
	program cel.Program
	names   map[string]bool // claims that the expression names, so that a refusal may
}

// compileRules returns the rules of each issuer, in the order of c.Issuers. All mistakes come
// back in one error.
func (c *Config) compileRules() ([]ruleSet, error) {
	sets := make([]ruleSet, len(c.Issuers))
	compiler := &ruleCompiler{}
	shared := compiler.compile("", c.Rules)
	for k := range shared {
		if shared[k].shared = true; shared[k].allow {
			// It would outvote the rules of an issuer that came to be trusted later.
			compiler.addf(shared[k].Rule, "", "a rule for all issuers can only deny")
		}
	}
	for k := range c.Issuers {
		i := &c.Issuers[k]
		own := compiler.compile(i.URL, i.Rules)
		for _, r := range own {
			for _, other := range shared {
				if r.Name == other.Name {
					compiler.addf(r.Rule, i.URL, "a rule for all issuers has this name")
				}
			}
		}
		compiler.checkDefault(i, own)
		sets[k] = ruleSet{rules: append(shared[:len(shared):len(shared)], own...), deny: i.RulesDefault == "deny"}
	}
	return sets, errors.Join(compiler.problems...)
}

// ruleCompiler makes its CEL environment when the first rule needs it.
type ruleCompiler struct {
	env      *cel.Env
	problems []error
}

func (rc *ruleCompiler) addf(r Rule, issuer, format string, args ...any) {
	where := at(r.line)
	if issuer != "" {
		where += fmt.Sprintf("issuer %q: ", issuer)
	}
	rc.problems = append(rc.problems, fmt.Errorf("%srule %q: "+format, append([]any{where, r.Name}, args...)...))
}

// checkDefault refuses rules that cannot have the effect that their author must have had in mind.
func (rc *ruleCompiler) checkDefault(i *Issuer, own []compiledRule) {
	add := func(format string, args ...any) {
		rc.problems = append(rc.problems, fmt.Errorf("%sissuer %q: "+format, append([]any{at(i.line), i.URL}, args...)...))
	}
	allows := false
	for _, r := range own {
		allows = allows || r.allow
	}
	switch {
	case i.RulesDefault != "" && i.RulesDefault != "allow" && i.RulesDefault != "deny":
		add("rules-default %q is neither allow nor deny", i.RulesDefault)
	case i.RulesDefault != "" && len(i.Rules) == 0:
		add("rules-default has no rules to complete")
	case i.RulesDefault == "deny" && !allows && len(own) == len(i.Rules):
		add("no rule allows anything and rules-default is deny: nobody could get a certificate")
	case i.RulesDefault != "deny" && len(own) > 0 && len(own) == len(i.Rules) && own[len(own)-1].allow:
		add("rule %q allows what is allowed anyway: set rules-default: deny", own[len(own)-1].Name)
	}
}

// compile returns the rules that are right.
func (rc *ruleCompiler) compile(issuer string, rules []Rule) []compiledRule {
	var out []compiledRule
	seen := map[string]bool{}
	for _, r := range rules {
		switch {
		case r.Name == "" || len(r.Name) > maxRuleName || strings.ContainsFunc(r.Name, func(c rune) bool { return c != '.' && (c >= 0x80 || !inClass(byte(c))) }):
			rc.addf(r, issuer, "a name of letters, digits, - _ and . is required, at most %d", maxRuleName)
		case seen[r.Name]:
			rc.addf(r, issuer, "the name is given twice")
		case (r.Allow == "") == (r.Deny == ""):
			rc.addf(r, issuer, "either allow or deny is required")
		default:
			compiled, err := rc.rule(r)
			if err != nil {
				rc.addf(r, issuer, "%w", err)
				continue
			}
			out = append(out, compiled)
		}
		seen[r.Name] = true
	}
	return out
}

func (rc *ruleCompiler) rule(r Rule) (compiledRule, error) {
	out := compiledRule{Rule: r, names: map[string]bool{}}
	out.expr, out.allow = r.expression()
	if len(out.expr) > maxExpression {
		return out, fmt.Errorf("the expression is over %d bytes", maxExpression)
	}
	if rc.env == nil {
		var err error
		if rc.env, err = ruleEnvironment(); err != nil {
			return out, err
		}
	}
	checked, issues := rc.env.Compile(out.expr)
	if issues.Err() != nil {
		found := issues.Errors()[0]
		return out, fmt.Errorf("%d:%d: %s", found.Location.Line(), found.Location.Column()+1, found.Message)
	}
	if checked.OutputType() != cel.BoolType {
		return out, fmt.Errorf("the expression is of type %s, not bool", checked.OutputType())
	}
	var err error
	out.program, err = rc.env.Program(checked,
		cel.CostLimit(maxCost),
		cel.OptimizeRegex(interpreter.MatchesRegexOptimization), // also finds mistakes in them now
		cel.CustomDecoratorV2(strictComparison))
	if err != nil {
		return out, err
	}
	ast.PreOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.SelectKind:
			out.names[e.AsSelect().FieldName()] = true
		case ast.LiteralKind:
			if s, ok := e.AsLiteral().Value().(string); ok {
				out.names[s] = true
			}
		}
	}))
	return out, nil
}

func ruleEnvironment() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("issuer", cel.StringType),
		cel.Variable("subject", cel.StringType),
		cel.Variable("now", cel.TimestampType),
		cel.OptionalTypes(),
		ext.Strings(),
		cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserRecursionLimit(maxNesting),
		cel.ExpressionNodeLimit(maxNodes),
		cel.RegexProgramSizeLimit(maxRegex),
	)
}

// facts are the variables of an expression. It implements cel.Activation.
type facts struct {
	claims          map[string]any
	issuer, subject string
	now             time.Time
}

func (f *facts) ResolveName(name string) (any, bool) {
	switch name {
	case "claims":
		return f.claims, true
	case "issuer":
		return f.issuer, true
	case "subject":
		return f.subject, true
	case "now":
		return f.now, true
	}
	return nil, false
}

func (f *facts) Parent() cel.Activation { return nil }

// decide goes through the rules in order; the first that is true decides and is named, "" stands
// for the default. A rule that fails on the facts refuses, whether it allows or denies. With see,
// each rule is evaluated and shown, also those behind the one that decided.
func (s *ruleSet) decide(f *facts, see func(r *compiledRule, matched bool, err error, decided bool)) (rule string, err error) {
	decided := false
	for k := range s.rules {
		r := &s.rules[k]
		matched, failed := r.eval(f)
		decides := !decided && (matched || failed != nil)
		if decides {
			rule, decided = r.Name, true
			switch {
			case failed != nil:
				err = &ruleRefusal{r.Name, denied("rule %s %s", r.Name, failed)}
			case !r.allow:
				err = &ruleRefusal{r.Name, denied("rule %s denies it", r.Name)}
			}
		}
		if see != nil {
			see(r, matched, failed, decides)
		} else if decided {
			return rule, err
		}
	}
	if !decided && s.deny {
		err = denied("no rule allows it")
	}
	return rule, err
}

func denied(format string, args ...any) error {
	return fault.New(fault.Denied, ReasonPolicyDenied, nil, format, args...)
}

// ruleRefusal keeps the name of the rule that refused beside what clients are told.
type ruleRefusal struct {
	rule string
	error
}

func (e *ruleRefusal) Unwrap() error { return e.error }

// RuleOf returns the name of the rule that refused a request with err, "" when none did.
func RuleOf(err error) string {
	var refusal *ruleRefusal
	if errors.As(err, &refusal) {
		return refusal.rule
	}
	return ""
}

// eval returns whether the rule's expression is true. The error continues "rule x …". CEL's own
// texts can quote claims, so of them only the name of a missing claim is kept, and only if the
// expression has it.
func (r *compiledRule) eval(f *facts) (bool, error) {
	out, _, err := r.program.Eval(f)
	if err == nil {
		if matched, ok := out.(types.Bool); ok {
			return bool(matched), nil
		}
		return false, errors.New("does not fit the token's claims")
	}
	var cancelled interpreter.EvalCancelledError
	if errors.As(err, &cancelled) {
		return false, errors.New("costs too much on this token")
	}
	if name, ok := strings.CutPrefix(err.Error(), "no such key: "); ok && r.names[name] {
		return false, fmt.Errorf("needs the claim %s, which the token does not have", name)
	}
	return false, errors.New("does not fit the token's claims: one is missing or of another type")
}

// strictComparison makes ==, != and `in` fail on values whose types differ.
func strictComparison(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	call, ok := i.(interpreter.InterpretableCall)
	if !ok || len(call.Args()) != 2 {
		return i, nil
	}
	switch call.Function() {
	case operators.Equals, operators.NotEquals, operators.In:
		return comparison{call}, nil
	}
	return i, nil
}

type comparison struct{ interpreter.InterpretableCall }

// Eval implements interpreter.Interpretable.
func (c comparison) Eval(a interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(a, c.Exec)
}

// Exec implements interpreter.InterpretableV2.
func (c comparison) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	args := c.Args()
	left := args[0].Exec(frame)
	if types.IsUnknownOrError(left) {
		return left
	}
	right := args[1].Exec(frame)
	if types.IsUnknownOrError(right) {
		return right
	}
	result := c.compare(left, right)
	if costs := frame.CostTracker(); costs != nil {
		costs.EvalBinary(frame, c.ID(), c, left, right, result)
	}
	return result
}

func (c comparison) compare(left, right ref.Val) ref.Val {
	if c.Function() == operators.In {
		if list, ok := right.(traits.Lister); ok {
			return contains(list, left)
		}
		if within, ok := right.(traits.Container); ok { // the keys of a map
			return within.Contains(left)
		}
		return types.MaybeNoSuchOverloadErr(right)
	}
	if !sameType(left, right) {
		return types.NewErr("no such overload: %s of different types", c.Function())
	}
	equal := types.Equal(left, right)
	if c.Function() == operators.NotEquals {
		return types.Bool(equal != types.True)
	}
	return equal
}

// contains reports whether list has value. No element of the value's type makes it an error.
func contains(list traits.Lister, value ref.Val) ref.Val {
	comparable, empty := false, true
	for it := list.Iterator(); it.HasNext() == types.True; {
		element := it.Next()
		if types.IsUnknownOrError(element) {
			return element
		}
		if empty = false; sameType(element, value) {
			if comparable = true; types.Equal(element, value) == types.True {
				return types.True
			}
		}
	}
	if !empty && !comparable {
		return types.NewErr("no such overload: in of different types")
	}
	return types.False
}

// sameType takes all numbers for one type, and null as comparable with everything.
func sameType(a, b ref.Val) bool {
	return a.Type() == types.NullType || b.Type() == types.NullType || typeName(a) == typeName(b)
}

func typeName(v ref.Val) string {
	switch name := v.Type().TypeName(); name {
	case "int", "uint", "double":
		return "number"
	default:
		return name
	}
}
