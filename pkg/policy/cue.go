package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/cuecontext"
	cueerrors "cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/parser"
	"cuelang.org/go/cue/token"
	cuejson "cuelang.org/go/encoding/json"
)

// cueProgram evaluates a CUE policy over JSON. CUE cannot be interrupted, so what could grow without bound is refused when the
// policy is loaded, see weigh.
type cueProgram struct {
	limited
	source   string
	members  []string
	upstream bool
}

func newCUE(source string, members []string, semantics string) (*cueProgram, error) {
	file, err := parser.ParseFile("policy.cue", source)
	if err != nil {
		return nil, fmt.Errorf("CUE: %s", cueMessage(err))
	}
	p := &cueProgram{limited: newLimited(), source: source, members: members, upstream: semantics == CUEUpstream}
	if err := weigh(file); err != nil {
		return nil, fmt.Errorf("CUE: %w", err)
	}
	if !p.upstream {
		if err := demandsMembers(file, members); err != nil {
			return nil, fmt.Errorf("CUE: %w", err)
		}
	}
	// Without data: what contradicts itself, and what does not end, is told to its author and not to the first who
	// wants to run an image.
	_, err = p.run(context.Background(), 0, func() (string, error) {
		v := cuecontext.New().CompileString(source)
		if err := v.Err(); err != nil {
			return "", errors.New(cueMessage(err))
		}
		if err := v.Validate(); err != nil {
			return "", errors.New(cueMessage(err))
		}
		return "", nil
	})
	if err != nil {
		return nil, fmt.Errorf("CUE: %w", err)
	}
	return p, nil
}

func (p *cueProgram) evaluate(ctx context.Context, input []byte) (string, error) {
	if err := checkInput(input); err != nil {
		return "", err
	}
	return p.run(ctx, len(input), func() (string, error) {
		c := cuecontext.New()
		policy := c.CompileString(p.source)
		if err := policy.Err(); err != nil {
			return "", errors.New(cueMessage(err))
		}
		expr, err := cuejson.Extract("input.json", input)
		if err != nil {
			return "", errors.New(cueMessage(err))
		}
		data := c.BuildExpr(expr)
		if err := data.Err(); err != nil {
			return "", errors.New(cueMessage(err))
		}
		both := policy.Unify(data)
		if err := both.Validate(); err != nil { // all that upstream asks
			return "", errors.New(cueMessage(err))
		}
		strict := p.strict(both, data)
		if strict != nil && p.upstream {
			return strict.Error(), nil
		}
		return "", strict
	})
}

// strict demands that the policy adds nothing to the data: everything is concrete, and every field that the policy names is
// in the data. A field that is absent would otherwise satisfy any constraint on it.
func (p *cueProgram) strict(both, data cue.Value) error {
	var absent []string
	p.compare(both, data, "", true, &absent)
	if len(absent) > 0 {
		slices.Sort(absent)
		if n := len(absent); n > maxMessages {
			absent = append(absent[:maxMessages:maxMessages], fmt.Sprintf("and %d more", n-maxMessages))
		}
		return fmt.Errorf("the policy demands what the data does not have: %s", strings.Join(absent, ", "))
	}
	if err := both.Validate(cue.Concrete(true), cue.Final()); err != nil {
		return errors.New(cueMessage(err))
	}
	return nil
}

func (p *cueProgram) compare(both, data cue.Value, path string, top bool, absent *[]string) {
	switch both.IncompleteKind() {
	case cue.StructKind:
		// Optional lists what is required too (a!: …), which is not regular before it is there.
		fields, err := both.Fields(cue.Optional(true))
		if err != nil {
			return // Validate says what it is
		}
		for fields.Next() {
			if fields.FieldType().ConstraintType() == cue.OptionalConstraint {
				continue
			}
			sel := fields.Selector()
			name := sel.String()
			if sel.IsString() {
				name = sel.Unquoted()
			}
			at := name
			if !top {
				at = path + "." + name
			}
			d := data.LookupPath(cue.MakePath(cue.Str(name)))
			if !d.Exists() {
				// At the top the policy may have names of its own, which demandsMembers looked at.
				if !top || known(p.members, name) {
					*absent = append(*absent, at)
				}
				continue
			}
			p.compare(fields.Value(), d, at, false, absent)
		}
	case cue.ListKind:
		a, errA := both.List()
		b, errB := data.List()
		if errA != nil || errB != nil {
			return
		}
		for i := 0; a.Next(); i++ {
			if !b.Next() {
				*absent = append(*absent, fmt.Sprintf("%s[%d]", path, i))
				continue
			}
			p.compare(a.Value(), b.Value(), fmt.Sprintf("%s[%d]", path, i), false, absent)
		}
	}
}

// demandsMembers refuses names at the top of a policy that no data can have and that nothing refers to: they are misspelt,
// and would demand nothing.
func demandsMembers(file *ast.File, members []string) error {
	used := make(map[string]bool)
	ast.Walk(file, func(n ast.Node) bool {
		if f, ok := n.(*ast.Field); ok {
			if _, plain := f.Label.(*ast.Ident); plain { // its label refers to nothing
				if f.Value != nil {
					ast.Walk(f.Value, identifiers(used), nil)
				}
				return false
			}
		}
		return identifiers(used)(n)
	}, nil)
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.Field)
		if !ok {
			continue
		}
		name, quoted, err := ast.LabelName(f.Label)
		if err != nil || !quoted && (strings.HasPrefix(name, "_") || strings.HasPrefix(name, "#")) || known(members, name) || used[name] {
			continue
		}
		return fmt.Errorf("%d:%d: %q is none of %s, and nothing refers to it", f.Pos().Line(), f.Pos().Column(), name, strings.Join(members, ", "))
	}
	return nil
}

// identifiers collects the names that are referred to; labels of fields are none.
func identifiers(used map[string]bool) func(ast.Node) bool {
	var visit func(n ast.Node) bool
	visit = func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			if _, plain := n.Label.(*ast.Ident); plain {
				if n.Value != nil {
					ast.Walk(n.Value, visit, nil)
				}
				return false
			}
		case *ast.SelectorExpr: // of a.b only a is a reference
			ast.Walk(n.X, visit, nil)
			return false
		case *ast.Ident:
			used[n.Name] = true
		}
		return true
	}
	return visit
}

const (
	maxCUEWeight = 100_000 // values that a policy may grow to with its references followed
	maxCUELoops  = 2       // for clauses inside each other
	maxCUEChoice = 4096    // alternatives that disjunctions may multiply to in one expression
)

// The packages of CUE's library that policies have a use for. None of them loops by itself but the calls in refusedCalls.
var cuePackages = []string{
	"strings", "strconv", "list", "regexp", "time", "net", "math", "struct", "path", "uuid",
	"encoding/base64", "encoding/hex", "encoding/json", "crypto/sha256", "crypto/sha512",
}

var refusedCalls = []string{
	"list.Range", "list.Repeat", "strings.Repeat", "strings.Replace", "regexp.ReplaceAll", "regexp.ReplaceAllLiteral",
	"math.Pow", "math.Pow10", "math.Exp", "math.Exp2",
}

// weigh refuses policies that could grow without bound: calls and operators that multiply, loops inside loops, references
// that double what they refer to. It sees the policy as text, so it counts too much rather than too little.
func weigh(file *ast.File) error {
	w := &weigher{values: make(map[string][]ast.Node), memo: make(map[string]int)}
	for _, decl := range file.Decls {
		if imp, ok := decl.(*ast.ImportDecl); ok {
			for _, spec := range imp.Specs {
				name := strings.Trim(spec.Path.Value, `"`)
				if base, _, found := strings.Cut(name, ":"); found {
					name = base
				}
				if spec.Name != nil {
					return fmt.Errorf("import %q under another name is refused", name)
				}
				if !slices.Contains(cuePackages, name) {
					return fmt.Errorf("import %q is refused; there are %s", name, strings.Join(cuePackages, ", "))
				}
			}
		}
	}
	ast.Walk(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			if name, _, err := ast.LabelName(n.Label); err == nil && n.Value != nil {
				w.values[name] = append(w.values[name], n.Value)
			}
		case *ast.LetClause:
			w.values[n.Ident.Name] = append(w.values[n.Ident.Name], n.Expr)
		case *ast.Alias:
			w.values[n.Ident.Name] = append(w.values[n.Ident.Name], n.Expr)
		}
		return true
	}, nil)
	total := 0
	for _, decl := range file.Decls {
		total += w.weight(decl, 0)
		if total > maxCUEWeight && w.err == nil {
			w.err = fmt.Errorf("the policy grows to over %d values", maxCUEWeight)
		}
		if w.err != nil {
			return w.err
		}
	}
	return nil
}

type weigher struct {
	values map[string][]ast.Node // by the name of a field, whatever its place
	memo   map[string]int        // weight of a name; -1 while it is being weighed
	err    error
}

func (w *weigher) fail(n ast.Node, format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("%d:%d: %s", n.Pos().Line(), n.Pos().Column(), fmt.Sprintf(format, args...))
	}
}

// weight is how many values n stands for at most, capped.
func (w *weigher) weight(n ast.Node, loops int) int {
	total := 1
	add := func(more int) { total = min(total+more, maxCUEWeight+1) }
	ast.Walk(n, func(n ast.Node) bool {
		if w.err != nil || total > maxCUEWeight {
			return false
		}
		total++
		switch n := n.(type) {
		case *ast.Field:
			if _, plain := n.Label.(*ast.Ident); plain { // its label refers to nothing
				if n.Value != nil {
					add(w.weight(n.Value, loops))
				}
				return false
			}
		case *ast.Comprehension:
			add(w.comprehension(n, loops))
			return false
		case *ast.CallExpr:
			if name := callName(n.Fun); slices.Contains(refusedCalls, name) {
				w.fail(n, "%s is refused: it can multiply what it is given", name)
			}
		case *ast.BinaryExpr:
			if n.Op == token.MUL {
				w.fail(n, "the operator * between two values is refused: it can multiply texts")
			} else if choices(n) > maxCUEChoice {
				w.fail(n, "disjunctions multiply to over %d alternatives", maxCUEChoice)
			}
		case *ast.SelectorExpr:
			add(w.weight(n.X, loops))
			if name, _, err := ast.LabelName(n.Sel); err == nil {
				add(w.reference(name, loops))
			}
			return false
		case *ast.Ident:
			add(w.reference(n.Name, loops))
		}
		return true
	}, nil)
	return total
}

func (w *weigher) comprehension(c *ast.Comprehension, loops int) int {
	total, inner := 0, loops
	for _, clause := range c.Clauses {
		if _, ok := clause.(*ast.ForClause); ok {
			inner++
		}
		total += w.weight(clause, loops)
	}
	if inner > maxCUELoops {
		w.fail(c, "more than %d loops inside each other are refused", maxCUELoops)
		return total
	}
	return total + w.weight(c.Value, inner)
}

// reference is the weight of all that has this name. A name within itself counts once: CUE refuses structure that contains
// itself.
func (w *weigher) reference(name string, loops int) int {
	key := fmt.Sprint(name, loops)
	if known, ok := w.memo[key]; ok {
		return max(known, 1)
	}
	w.memo[key] = -1
	total := 0
	for _, v := range w.values[name] {
		total = min(total+w.weight(v, loops), maxCUEWeight+1)
	}
	w.memo[key] = total
	return total
}

// choices is how many alternatives an expression of & and | has.
func choices(e ast.Expr) int {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return choices(e.X)
	case *ast.UnaryExpr:
		return choices(e.X)
	case *ast.BinaryExpr:
		a, b := choices(e.X), choices(e.Y)
		switch e.Op {
		case token.OR:
			return min(a+b, maxCUEChoice+1)
		case token.AND:
			return min(a*b, maxCUEChoice+1)
		}
	}
	return 1
}

func callName(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	id, ok := s.X.(*ast.Ident)
	if !ok {
		return ""
	}
	name, _, err := ast.LabelName(s.Sel)
	if err != nil {
		return ""
	}
	return id.Name + "." + name
}

// cueMessage lists CUE's errors on one line.
func cueMessage(err error) string {
	var parts []string
	for _, e := range cueerrors.Errors(err) {
		parts = append(parts, e.Error())
		if len(parts) == maxMessages {
			break
		}
	}
	if len(parts) == 0 {
		parts = []string{err.Error()}
	}
	return clip(strings.Join(parts, "; "))
}
