package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of an expression over policies.
const (
	maxExpressionBytes = 8 << 10
	maxExpressionDepth = 32
	maxExpressionNames = 256
)

// expression is what stands on either side of an operator. Without negation a policy that passes can never make the
// whole fail, so an attestation that is withheld gains nothing.
type expression interface {
	// satisfied asks each policy at most as often as it is named, from left to right, and stops when it knows.
	satisfied(pass func(name string) bool) bool
}

type (
	allNamed  []string     // satisfied("a", "b")
	allOf     []expression // x && y
	anyOf     []expression // x || y
	exprToken struct {
		kind   rune   // 's' string, 'i' identifier, '(' ')' ',' '&' '|', 0 at the end
		text   string // decoded
		offset int    // in bytes
	}
)

func (n allNamed) satisfied(pass func(string) bool) bool {
	return !slices.ContainsFunc(n, func(name string) bool { return !pass(name) })
}

func (l allOf) satisfied(pass func(string) bool) bool {
	return !slices.ContainsFunc(l, func(e expression) bool { return !e.satisfied(pass) })
}

func (l anyOf) satisfied(pass func(string) bool) bool {
	return slices.ContainsFunc(l, func(e expression) bool { return e.satisfied(pass) })
}

// parseExpression reads
//
//	or      = and { "||" and }
//	and     = operand { "&&" operand }
//	operand = "(" or ")" | ("satisfied" | "sigstore.policy_satisfied") "(" string { "," string } ")"
//
// with Go's strings, as Teleport's rules write them, and refuses names that known does not know. Errors say line and column.
func parseExpression(text string, known func(name string) bool) (expression, error) {
	if len(text) > maxExpressionBytes {
		return nil, fmt.Errorf("the expression is over %d bytes", maxExpressionBytes)
	}
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("the expression is not UTF-8")
	}
	p := &exprParser{text: text, known: known}
	if err := p.next(); err != nil {
		return nil, err
	}
	e, err := p.or(0)
	if err != nil {
		return nil, err
	}
	if p.token.kind != 0 {
		return nil, p.unexpected("&&, || or the end")
	}
	return e, nil
}

type exprParser struct {
	text  string
	known func(string) bool
	pos   int // behind token
	token exprToken
	names int
}

// at makes an error at a byte offset. Columns count characters, from 1.
func (p *exprParser) at(offset int, format string, args ...any) error {
	before := p.text[:offset]
	line := 1 + strings.Count(before, "\n")
	column := 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
	return fmt.Errorf("%d:%d: %s", line, column, fmt.Sprintf(format, args...))
}

func (p *exprParser) unexpected(want string) error {
	switch p.token.kind {
	case 0:
		return p.at(p.token.offset, "the expression ends where %s is expected", want)
	case 's':
		return p.at(p.token.offset, "%q where %s is expected", p.token.text, want)
	}
	return p.at(p.token.offset, "%s where %s is expected", p.token.text, want)
}

// next reads one token.
func (p *exprParser) next() error {
	rest := strings.TrimLeft(p.text[p.pos:], " \t\r\n")
	start := len(p.text) - len(rest)
	p.token = exprToken{offset: start}
	p.pos = start
	if rest == "" {
		return nil
	}
	switch c := rest[0]; {
	case c == '(' || c == ')' || c == ',':
		p.token.kind, p.token.text, p.pos = rune(c), rest[:1], start+1
	case strings.HasPrefix(rest, "&&") || strings.HasPrefix(rest, "||"):
		p.token.kind, p.token.text, p.pos = rune(c), rest[:2], start+2
	case c == '!':
		return p.at(start, "negation is not allowed: what is missing must never satisfy")
	case c == '"' || c == '`':
		quoted, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return p.at(start, "the string does not end, or has an unknown escape")
		}
		text, err := strconv.Unquote(quoted)
		if err != nil {
			return p.at(start, "the string is malformed")
		}
		p.token.kind, p.token.text, p.pos = 's', text, start+len(quoted)
	default:
		end := strings.IndexFunc(rest, func(r rune) bool {
			return r != '_' && r != '.' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
		})
		if end < 0 {
			end = len(rest)
		}
		if end == 0 {
			r, _ := utf8.DecodeRuneInString(rest)
			return p.at(start, "unexpected %q", r)
		}
		p.token.kind, p.token.text, p.pos = 'i', rest[:end], start+end
	}
	return nil
}

func (p *exprParser) or(depth int) (expression, error) {
	return p.list(depth, '|', p.and, func(l []expression) expression { return anyOf(l) })
}

func (p *exprParser) and(depth int) (expression, error) {
	return p.list(depth, '&', p.operand, func(l []expression) expression { return allOf(l) })
}

func (p *exprParser) list(depth int, operator rune, element func(int) (expression, error), join func([]expression) expression) (expression, error) {
	first, err := element(depth)
	if err != nil {
		return nil, err
	}
	elements := []expression{first}
	for p.token.kind == operator {
		if err := p.next(); err != nil {
			return nil, err
		}
		e, err := element(depth)
		if err != nil {
			return nil, err
		}
		elements = append(elements, e)
	}
	if len(elements) == 1 {
		return first, nil
	}
	return join(elements), nil
}

func (p *exprParser) operand(depth int) (expression, error) {
	switch p.token.kind {
	case '(':
		if depth == maxExpressionDepth {
			return nil, p.at(p.token.offset, "more than %d parentheses inside each other", maxExpressionDepth)
		}
		if err := p.next(); err != nil {
			return nil, err
		}
		e, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		return e, p.expect(')', "&&, || or )")
	case 'i':
		if name := p.token.text; name != "satisfied" && name != "sigstore.policy_satisfied" {
			return nil, p.at(p.token.offset, "unknown function %q: only satisfied and sigstore.policy_satisfied are known", name)
		}
		if err := p.next(); err != nil {
			return nil, err
		}
		if err := p.expect('(', "("); err != nil {
			return nil, err
		}
		return p.arguments()
	}
	return nil, p.unexpected(`satisfied("…") or (`)
}

func (p *exprParser) arguments() (expression, error) {
	var names allNamed
	for {
		if p.token.kind != 's' {
			return nil, p.unexpected("the name of a policy in quotes")
		}
		if !p.known(p.token.text) {
			return nil, p.at(p.token.offset, "there is no policy %q", p.token.text)
		}
		if p.names++; p.names > maxExpressionNames {
			return nil, p.at(p.token.offset, "more than %d names", maxExpressionNames)
		}
		names = append(names, p.token.text)
		if err := p.next(); err != nil {
			return nil, err
		}
		if p.token.kind != ',' {
			return names, p.expect(')', ", or )")
		}
		if err := p.next(); err != nil {
			return nil, err
		}
	}
}

// expect steps over a token of this kind.
func (p *exprParser) expect(kind rune, want string) error {
	if p.token.kind != kind {
		return p.unexpected(want)
	}
	return p.next()
}
