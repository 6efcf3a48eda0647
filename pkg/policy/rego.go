package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/metrics"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
)

const (
	regoPackage = "data.sigstore"
	regoRule    = "isCompliant"
)

// Builtins that reach out of the policy, or whose cost has no relation to their input.
var refusedBuiltins = []string{
	"http.send", "net.lookup_ip_addr", "opa.runtime", "providers.aws.sign_req",
	"rego.parse_module", "strings.render_template", "json.match_schema", "json.verify_schema",
	"graphql.is_valid", "graphql.parse", "graphql.parse_and_verify", "graphql.parse_query", "graphql.parse_schema", "graphql.schema_is_valid",
	"trace", "rand.intn", "uuid.rfc4122",
}

// regoProgram evaluates data.sigstore.isCompliant over JSON. OPA looks at its context between builtins, not in them, so whoever
// waits for a long one leaves before it ends.
type regoProgram struct {
	limited
	query rego.PreparedEvalQuery
}

func newRego(source string) (*regoProgram, error) {
	module, err := ast.ParseModuleWithOpts("policy.rego", source, ast.ParserOptions{RegoVersion: ast.RegoV0})
	if err != nil {
		return nil, fmt.Errorf("rego: %s", clip(err.Error()))
	}
	if module == nil || module.Package.Path.String() != regoPackage {
		return nil, errors.New("rego: the package must be sigstore")
	}
	if !slices.ContainsFunc(module.Rules, func(r *ast.Rule) bool {
		return r.Head.Ref()[0].Equal(ast.VarTerm(regoRule)) || string(r.Head.Name) == regoRule
	}) {
		return nil, fmt.Errorf("rego: there is no rule %s", regoRule)
	}
	capabilities := ast.CapabilitiesForThisVersion()
	capabilities.Builtins = slices.DeleteFunc(capabilities.Builtins, func(b *ast.Builtin) bool { return slices.Contains(refusedBuiltins, b.Name) })
	capabilities.AllowNet = []string{} // nobody: nil would be everybody
	query, err := rego.New(
		rego.Query(regoPackage+"."+regoRule),
		rego.ParsedModule(module),
		rego.SetRegoVersion(ast.RegoV0),
		rego.Capabilities(capabilities),
		rego.StrictBuiltinErrors(true),
	).PrepareForEval(context.Background())
	if err != nil {
		return nil, fmt.Errorf("rego: %s", clip(err.Error()))
	}
	return &regoProgram{limited: newLimited(), query: query}, nil
}

func (p *regoProgram) evaluate(ctx context.Context, input []byte) (string, error) {
	if err := checkInput(input); err != nil {
		return "", err
	}
	value, err := ast.ValueFromReader(bytes.NewReader(input)) // numbers stay as they are written
	if err != nil {
		return "", fmt.Errorf("the policy's input: %w", err)
	}
	return p.run(ctx, len(input), func() (string, error) { return "", p.eval(ctx, value, len(input)) })
}

// eval bounds what can be interrupted. value was read from size bytes.
func (p *regoProgram) eval(ctx context.Context, value ast.Value, size int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout(size), errDeadline)
	defer cancel()
	ctx, stop := watchHeap(ctx)
	defer stop()
	results, err := p.query.Eval(ctx, rego.EvalParsedInput(value))
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return errors.New(clip(err.Error()))
	}
	return regoVerdict(results)
}

// regoVerdict reads the rule's value: true, or a set or list of objects {result, error, warning} of which the first with result
// true decides. A warning beside it refuses, as in policy-controller, which treats both alike.
func regoVerdict(results rego.ResultSet) error {
	notCompliant := errors.New("the policy's " + regoRule + " is not true")
	if len(results) != 1 || len(results[0].Expressions) != 1 {
		return notCompliant
	}
	switch value := results[0].Expressions[0].Value.(type) {
	case bool:
		if value {
			return nil
		}
	case []any:
		var said error
		for _, v := range value {
			o, ok := v.(map[string]any)
			if !ok {
				return errors.New("the policy's " + regoRule + " holds something else than objects with result, error and warning")
			}
			result, _ := o["result"].(bool)
			message, _ := o["error"].(string)
			warning, _ := o["warning"].(string)
			switch {
			case result && warning == "":
				return nil
			case result:
				return errors.New("warning: " + clip(warning))
			case said == nil && message != "":
				said = errors.New(clip(message))
			}
		}
		if said != nil {
			return said
		}
	}
	return notCompliant
}

// watchHeap ends the context that it returns when the heap has grown by evalHeap. Other work of the process counts too: it is
// a brake, far above what a policy needs.
func watchHeap(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	start := heapBytes()
	done := make(chan struct{})
	go func() { // ends with stop
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if heapBytes() > start+evalHeap {
					cancel(fmt.Errorf("the policy needs over %d bytes of memory", evalHeap))
					return
				}
			}
		}
	}()
	return ctx, func() { close(done); cancel(nil) }
}

func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
