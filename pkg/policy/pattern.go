package policy

import (
	"regexp/syntax"
	"strings"
	"unicode"
)

// pattern is a regular expression to look at.
type pattern struct{ re *syntax.Regexp }

func readPattern(text string) (pattern, error) {
	re, err := syntax.Parse(text, syntax.Perl)
	return pattern{re}, err
}

// anchored reports whether every value that fits does so from its beginning to its end.
func (p pattern) anchored() bool {
	return bound(p.re, syntax.OpBeginText, 0) && bound(p.re, syntax.OpEndText, -1)
}

// bound reports whether each alternative has op at one end: its first part (0) or its last (-1).
func bound(re *syntax.Regexp, op syntax.Op, end int) bool {
	switch re.Op {
	case op:
		return true
	case syntax.OpConcat:
		if end == 0 {
			return bound(re.Sub[0], op, end)
		}
		return bound(re.Sub[len(re.Sub)-1], op, end)
	case syntax.OpCapture:
		return bound(re.Sub[0], op, end)
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			if !bound(sub, op, end) {
				return false
			}
		}
		return true
	}
	return false
}

// anything reports whether every value fits, or all but the empty one: one alternative does, or the pattern demands nothing.
func (p pattern) anything() bool { return demandsNothing(p.re) }

func demandsNothing(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginText, syntax.OpEndText, syntax.OpBeginLine, syntax.OpEndLine:
		return true
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest:
		return re.Op == syntax.OpQuest || wide(re.Sub[0])
	case syntax.OpCapture:
		return demandsNothing(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			if !demandsNothing(sub) {
				return false
			}
		}
		return true
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			if demandsNothing(sub) {
				return true
			}
		}
	}
	return wide(re)
}

// wide is a part that takes any character.
func wide(re *syntax.Regexp) bool {
	if re.Op == syntax.OpCapture {
		return wide(re.Sub[0])
	}
	return re.Op == syntax.OpAnyChar || re.Op == syntax.OpAnyCharNotNL
}

// unbounded is a repetition of any character.
func unbounded(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpStar, syntax.OpPlus:
		return wide(re.Sub[0])
	case syntax.OpRepeat:
		return re.Max < 0 && wide(re.Sub[0])
	case syntax.OpCapture:
		return unbounded(re.Sub[0])
	}
	return false
}

// parts are the pieces of the pattern in their order, without groups.
func parts(re *syntax.Regexp) []*syntax.Regexp {
	switch re.Op {
	case syntax.OpCapture:
		if unbounded(re) {
			return []*syntax.Regexp{re}
		}
		return parts(re.Sub[0])
	case syntax.OpConcat:
		var all []*syntax.Regexp
		for _, sub := range re.Sub {
			all = append(all, parts(sub)...)
		}
		return all
	}
	return []*syntax.Regexp{re}
}

// each calls f for the pieces of each alternative, wherever it stands.
func each(re *syntax.Regexp, f func([]*syntax.Regexp)) {
	list := parts(re)
	f(list)
	for _, p := range list {
		for _, sub := range p.Sub {
			each(sub, f)
		}
	}
}

// looseDot reports whether a single "." stands between letters or digits.
func (p pattern) looseDot() bool {
	found := false
	each(p.re, func(list []*syntax.Regexp) {
		for i, part := range list {
			if !wide(part) || part.Op == syntax.OpCapture || i == 0 || i == len(list)-1 {
				continue
			}
			before, after := list[i-1], list[i+1]
			if before.Op == syntax.OpLiteral && after.Op == syntax.OpLiteral && wordy(before.Rune[len(before.Rune)-1]) && wordy(after.Rune[0]) {
				found = true
			}
		}
	})
	return found
}

func wordy(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// spans reports whether any number of any characters stands between other text.
func (p pattern) spans() bool {
	found := false
	each(p.re, func(list []*syntax.Regexp) {
		for _, part := range list {
			found = found || unbounded(part)
		}
	})
	return found
}

// openHost reports whether something unbounded comes before the first slash that ends a host: after "https://", or anywhere
// before it.
func (p pattern) openHost() bool {
	slashes := 0
	for _, part := range parts(p.re) {
		if unbounded(part) {
			return slashes < 3
		}
		if part.Op == syntax.OpLiteral {
			slashes += strings.Count(string(part.Rune), "/")
		}
	}
	return false
}
