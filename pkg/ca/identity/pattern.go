package identity

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"
)

const maxPattern = 512

// pattern is a meta issuer's URL cut at its stars.
type pattern []string

func compilePattern(text string) (pattern, error) {
	if len(text) > maxPattern {
		return nil, fmt.Errorf("pattern is over %d bytes", maxPattern)
	}
	if !strings.Contains(text, "*") {
		return nil, errors.New("a meta issuer needs a *; list an exact URL under oidc-issuers")
	}
	return strings.Split(text, "*"), nil
}

// matches reports whether all of s fits (a match of a part was CVE-2026-22772). Each star takes as
// little as it can. That misses nothing: if the text after a star also occurs further on, then
// only characters of the class lie between, which the next star can take as well.
func (p pattern) matches(s string) bool {
	rest, ok := strings.CutPrefix(s, p[0])
	last := p[len(p)-1]
	if !ok || !strings.HasSuffix(rest, last) {
		return false
	}
	rest = rest[:len(rest)-len(last)]
	for _, literal := range p[1 : len(p)-1] {
		if rest, ok = afterStar(rest, literal); !ok {
			return false
		}
	}
	return classPrefix(rest) == len(rest) && rest != ""
}

// afterStar returns what follows the first literal in s that has characters of the class and
// nothing else before it.
func afterStar(s, literal string) (rest string, ok bool) {
	n := classPrefix(s)
	if n == 0 {
		return "", false
	}
	at := strings.Index(s[1:], literal) + 1
	if at == 0 || at > n {
		return "", false
	}
	return s[at+len(literal):], true
}

// classPrefix is how many bytes at the start of s belong to the class.
func classPrefix(s string) int {
	n := 0
	for n < len(s) && inClass(s[n]) {
		n++
	}
	return n
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

// inClass tells what one * of a meta issuer stands for, once or more: [-_a-zA-Z0-9], part of a host
// label or of a path segment, never a dot, slash, colon or percent sign.
func inClass(c byte) bool {
	return c == '-' || c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
