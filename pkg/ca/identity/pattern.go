package identity

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// wildcardClass is what one * of a meta issuer stands for, once or more: part of a host label or
// of a path segment, never a dot, slash, colon or percent sign.
const wildcardClass = "[-_a-zA-Z0-9]"

const maxPattern = 512

// compilePattern turns a meta issuer's pattern into a regular expression that is anchored at
// both ends (matching a part was CVE-2026-22772).
func compilePattern(pattern string) (*regexp.Regexp, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("pattern is over %d bytes", maxPattern)
	}
	if !strings.Contains(pattern, "*") {
		return nil, errors.New("a meta issuer needs a *; list an exact URL under oidc-issuers")
	}
	quoted := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, wildcardClass+"+")
	return regexp.Compile(`\A` + quoted + `\z`)
}

// checkPatternHost refuses patterns that leave the owner of the domain open, such as
// https://*/x and https://*.com.
func checkPatternHost(pattern string) error {
	const placeholder = "wildcard-label" // no public suffix has it
	u, err := url.Parse(strings.ReplaceAll(pattern, "*", placeholder))
	if err != nil {
		return fmt.Errorf("pattern is not a URL: %w", err)
	}
	host := u.Hostname()
	if !strings.Contains(u.Host, placeholder) {
		return nil
	}
	if strings.Contains(u.Port(), placeholder) || !strings.Contains(host, ".") {
		return errors.New("the * must not stand for a whole host or a port")
	}
	owner, err := publicsuffix.EffectiveTLDPlusOne(host)
	if err != nil || strings.Contains(owner, placeholder) {
		return errors.New("the * must stand left of the registrable domain")
	}
	return nil
}

// overlap reports whether some URL fits both patterns.
func overlap(a, b string) bool {
	x, y := atoms(a), atoms(b)
	seen := map[[2]int]bool{}
	var walk func(i, j int) bool
	walk = func(i, j int) bool {
		if seen[[2]int{i, j}] {
			return false
		}
		seen[[2]int{i, j}] = true
		if i == len(x) && j == len(y) {
			return true
		}
		// A repeated class may stop here.
		if i < len(x) && x[i].many && walk(i+1, j) || j < len(y) && y[j].many && walk(i, j+1) {
			return true
		}
		if i == len(x) || j == len(y) || !meet(x[i], y[j]) {
			return false
		}
		ni, nj := i+1, j+1
		if x[i].many {
			ni = i
		}
		if y[j].many {
			nj = j
		}
		return walk(ni, nj)
	}
	return walk(0, 0)
}

// atom is one byte of a pattern, or a character of the wildcard class, or with many any number
// of those.
type atom struct {
	literal byte
	class   bool
	many    bool
}

func atoms(pattern string) []atom {
	var out []atom
	for i := range len(pattern) {
		if pattern[i] == '*' {
			out = append(out, atom{class: true}, atom{class: true, many: true})
			continue
		}
		out = append(out, atom{literal: pattern[i]})
	}
	return out
}

func meet(a, b atom) bool {
	switch {
	case a.class && b.class:
		return true
	case a.class:
		return inClass(b.literal)
	case b.class:
		return inClass(a.literal)
	default:
		return a.literal == b.literal
	}
}

func inClass(c byte) bool {
	return c == '-' || c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
