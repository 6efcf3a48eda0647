package policy

import (
	"fmt"
	"regexp"
	"strings"
)

const maxPattern = 1 << 10

// wildcardRegexp returns Kyverno's pattern, in which * stands for any text and ? for one character, as a regular expression
// for whole values.
func wildcardRegexp(pattern string) string {
	var b strings.Builder
	b.WriteString(`^(?s:`)
	for _, r := range pattern {
		switch r {
		case '*':
			b.WriteString(`.*`)
		case '?':
			b.WriteString(`.`)
		default:
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	b.WriteString(`)$`)
	return b.String()
}

// wildcard matches whole values.
type wildcard struct{ re *regexp.Regexp }

func newWildcard(pattern string) (wildcard, error) {
	if pattern == "" || len(pattern) > maxPattern {
		return wildcard{}, fmt.Errorf("a pattern has 1 to %d bytes", maxPattern)
	}
	re, err := regexp.Compile(wildcardRegexp(pattern))
	return wildcard{re}, err
}

func newWildcards(where string, patterns []string) ([]wildcard, error) {
	var all []wildcard
	for i, p := range patterns {
		w, err := newWildcard(p)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", where, i, err)
		}
		all = append(all, w)
	}
	return all, nil
}

// anyWildcard reports whether one of the patterns fits one of the values.
func anyWildcard(patterns []wildcard, values ...string) bool {
	for _, p := range patterns {
		for _, v := range values {
			if p.re.MatchString(v) {
				return true
			}
		}
	}
	return false
}
