package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
)

// Limits of an expression in CEL and of what one decision may ask.
const (
	maxCEL         = 16 << 10
	maxCELNodes    = 4096
	maxCELNesting  = 64
	maxCELRegexp   = 1 << 10
	maxCELCost     = 5_000_000
	celInterrupt   = 1000 // steps between looks at the context
	maxVerifyCalls = 256
	maxRounds      = 50
)

// celLimits are the options of every environment: bounds, and no function that looks at anything but its arguments.
func celLimits() []cel.EnvOption {
	return []cel.EnvOption{
		cel.OptionalTypes(), ext.Strings(), ext.Lists(), ext.Sets(), ext.Regex(),
		cel.DefaultUTCTimeZone(true), cel.CrossTypeNumericComparisons(true),
		cel.ParserRecursionLimit(maxCELNesting), cel.ExpressionNodeLimit(maxCELNodes), cel.RegexProgramSizeLimit(maxCELRegexp),
	}
}

// compileCEL compiles an expression of the type wanted, any when it is nil.
func compileCEL(env *cel.Env, text string, want *cel.Type) (cel.Program, error) {
	if text == "" || len(text) > maxCEL {
		return nil, fmt.Errorf("an expression of 1 to %d bytes is required", maxCEL)
	}
	checked, issues := env.Compile(text)
	if issues.Err() != nil {
		found := issues.Errors()[0]
		return nil, fmt.Errorf("%d:%d: %s", found.Location.Line(), found.Location.Column()+1, found.Message)
	}
	if want != nil && !checked.OutputType().IsExactType(want) && !checked.OutputType().IsExactType(cel.DynType) {
		return nil, fmt.Errorf("the expression is of type %s, not %s", checked.OutputType(), want)
	}
	return env.Program(checked, cel.CostLimit(maxCELCost), cel.InterruptCheckFrequency(celInterrupt),
		cel.OptimizeRegex(interpreter.MatchesRegexOptimization))
}

// imageEnvironment has two environments: match conditions know the object alone.
type imageEnvironment struct{ conditions, validations *cel.Env }

// theEvaluation is the variable behind the verifying functions. They are written as functions of two or three arguments, and
// compiled, once, to methods of the evaluation that is under way.
const theEvaluation = "__evaluation"

func newImageEnvironment(p *validatingPolicy) (*imageEnvironment, error) {
	object := cel.Variable("object", cel.DynType)
	conditions, err := cel.NewEnv(append(celLimits(), object)...)
	if err != nil {
		return nil, err
	}
	self := types.NewObjectType("attestry.evaluation")
	options := append(celLimits(), object,
		cel.Variable("images", cel.MapType(cel.StringType, cel.ListType(cel.StringType))),
		cel.Variable("attestors", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("attestations", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("variables", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable(theEvaluation, self),
	)
	list := cel.ListType(cel.DynType)
	for _, f := range []struct {
		name string
		args []*cel.Type
		out  *cel.Type
		do   func(e *evaluation, args []ref.Val) ref.Val
	}{
		{"verifyImageSignatures", []*cel.Type{cel.StringType, list}, cel.IntType, (*evaluation).verifyImageSignatures},
		{"verifyAttestationSignatures", []*cel.Type{cel.StringType, cel.StringType, list}, cel.IntType, (*evaluation).verifyAttestationSignatures},
		{"extractPayload", []*cel.Type{cel.StringType, cel.StringType}, cel.DynType, (*evaluation).extractPayload},
	} {
		method := func(eh cel.MacroExprFactory, _ ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
			return eh.NewMemberCall(f.name, eh.NewIdent(theEvaluation), args...), nil
		}
		options = append(options,
			cel.Macros(cel.GlobalMacro(f.name, len(f.args), method)),
			cel.Function(f.name, cel.MemberOverload("attestry_"+f.name, append([]*cel.Type{self}, f.args...), f.out,
				cel.FunctionBinding(func(args ...ref.Val) ref.Val {
					e, ok := args[0].Value().(*evaluation)
					if !ok {
						return types.NewErr("not inside an evaluation")
					}
					if e.calls++; e.calls > maxVerifyCalls {
						return types.NewErr("more than %d calls of verifying functions", maxVerifyCalls)
					}
					return f.do(e, args[1:])
				}))))
	}
	validations, err := cel.NewEnv(options...)
	if err != nil {
		return nil, err
	}
	return &imageEnvironment{conditions, validations}, nil
}

// evaluation is one decision about one image. As a value of CEL it can do nothing but verify.
type evaluation struct {
	ctx      context.Context
	policy   *validatingPolicy
	subject  *Subject
	evidence Evidence
	object   map[string]any

	calls    int
	memo     map[string]held
	payloads map[string][]*proven // verified attestations by name, in the order in which they were verified
	checks   []Check
	verified bool
	round    int  // which of several payloads extractPayload returns
	more     bool // there are payloads that no round has returned yet
}

type held struct {
	found []*proven
	err   error
}

func (e *evaluation) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("an evaluation is no %v", t)
}
func (e *evaluation) ConvertToType(ref.Type) ref.Val {
	return types.NewErr("an evaluation is nothing else")
}
func (e *evaluation) Equal(other ref.Val) ref.Val { return types.Bool(other == ref.Val(e)) }
func (e *evaluation) Type() ref.Type              { return types.NewObjectType("attestry.evaluation") }
func (e *evaluation) Value() any                  { return e }

// image is how expressions see the image: with its digest, as a mutated reference has it.
func (e *evaluation) image() string {
	if image := e.subject.Image; !imagePinned(image.Reference) {
		return image.Reference + "@" + image.Digest
	}
	return e.subject.Image.Reference
}

// validate evaluates all validations over the payloads of this round.
func (e *evaluation) validate() error {
	e.more = false
	if e.round == maxRounds {
		return fmt.Errorf("more than %d attestations of one type", maxRounds)
	}
	images, attestors, attestations := map[string]any{}, map[string]any{}, map[string]any{}
	for _, list := range []string{"containers", "initContainers", "ephemeralContainers"} {
		images[list] = []string{e.image()}
	}
	for name := range e.policy.attestors {
		attestors[name] = name
	}
	for name := range e.policy.attestations {
		attestations[name] = name
	}
	variables := map[string]any{}
	facts := map[string]any{
		"object": e.object, "images": images, "attestors": attestors, "attestations": attestations, "variables": variables,
		theEvaluation: e,
	}
	for _, v := range e.policy.variables {
		out, _, err := v.program.ContextEval(e.ctx, facts)
		if err != nil {
			return fmt.Errorf("variable %s: %w", v.name, err)
		}
		variables[v.name] = out
	}
	for i := range e.policy.validations {
		rule := &e.policy.validations[i]
		out, _, err := rule.check.ContextEval(e.ctx, facts)
		if err != nil {
			return fmt.Errorf("validations[%d]: %w", i, err)
		}
		if out.Value() == true {
			continue
		}
		message := rule.message
		if rule.text != nil {
			if text, _, err := rule.text.ContextEval(e.ctx, facts); err == nil {
				if s, ok := text.Value().(string); ok {
					message = s
				}
			}
		}
		if message == "" {
			message = fmt.Sprintf("validations[%d] does not hold", i)
		}
		return errors.New(message)
	}
	return nil
}

// prove asks one attestor once.
func (e *evaluation) prove(attestor, attestation string) ([]*proven, error) {
	key := fmt.Sprintf("%q %q", attestor, attestation)
	if h, ok := e.memo[key]; ok {
		return h.found, h.err
	}
	s := e.policy.attestors[attestor]
	if s == nil {
		return nil, fmt.Errorf("there is no attestor %q", attestor)
	}
	name, predicateType := "signature", ""
	var h held
	if attestation == "" {
		h.found, h.err = s.signatures(e.ctx, e.subject, e.evidence)
	} else {
		name, predicateType = attestation, e.policy.attestations[attestation]
		h.found, h.err = s.attestations(e.ctx, e.subject, e.evidence, predicateType)
		if h.err != nil {
			h.found = nil // what could not be read might say the opposite
		}
		for _, f := range h.found {
			e.remember(attestation, f)
		}
	}
	e.checks = append(e.checks, checked(attestor, name, predicateType, h.found, h.err))
	e.verified = e.verified || len(h.found) > 0
	e.memo[key] = h
	return h.found, h.err
}

// remember keeps a payload once, also when two attestors prove it.
func (e *evaluation) remember(attestation string, f *proven) {
	for _, known := range e.payloads[attestation] {
		if known.result.BundleDigest == f.result.BundleDigest {
			return
		}
	}
	e.payloads[attestation] = append(e.payloads[attestation], f)
}

func (e *evaluation) verifyImageSignatures(args []ref.Val) ref.Val {
	return e.count(args[0], "", args[1])
}

func (e *evaluation) verifyAttestationSignatures(args []ref.Val) ref.Val {
	name, ok := args[1].Value().(string)
	if !ok || e.policy.attestations[name] == "" {
		return types.NewErr("there is no attestation %v", args[1].Value())
	}
	return e.count(args[0], name, args[2])
}

// count returns by how many of the attestors the image is signed or attested.
func (e *evaluation) count(image ref.Val, attestation string, attestors ref.Val) ref.Val {
	if err := e.about(image); err != nil {
		return types.WrapErr(err)
	}
	native, err := attestors.ConvertToNative(reflect.TypeFor[[]string]())
	if err != nil {
		return types.NewErr("the last argument is not a list of attestors")
	}
	n := 0
	for _, a := range native.([]string) {
		if e.policy.attestors[a] == nil {
			return types.NewErr("there is no attestor %q", a)
		}
		if found, _ := e.prove(a, attestation); len(found) > 0 {
			n++
		}
		if err := e.ctx.Err(); err != nil {
			return types.WrapErr(err)
		}
	}
	return types.Int(n)
}

func (e *evaluation) extractPayload(args []ref.Val) ref.Val {
	if err := e.about(args[0]); err != nil {
		return types.WrapErr(err)
	}
	name, _ := args[1].Value().(string)
	all := e.payloads[name]
	if len(all) == 0 {
		return types.NewErr("no attestation %q is verified: call verifyAttestationSignatures first, and look whether it is over 0", name)
	}
	if e.round+1 < len(all) {
		e.more = true
	}
	statement := all[min(e.round, len(all)-1)].result.Statement
	raw, err := json.Marshal(statement)
	if err != nil {
		return types.WrapErr(err)
	}
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return types.WrapErr(err)
	}
	return types.DefaultTypeAdapter.NativeToValue(value)
}

func (e *evaluation) about(image ref.Val) error {
	if image.Value() != e.image() {
		return fmt.Errorf("the policy is asked about %s, not %v", e.image(), image.Value())
	}
	return nil
}

// imagePinned reports whether a reference names a digest.
func imagePinned(reference string) bool { return strings.Contains(reference, "@") }
