package admission

import (
	"fmt"
	"regexp"
	"strings"
)

// Mode is what becomes of a refusal.
type Mode string

// The modes, strictest first.
const (
	Enforce Mode = "enforce" // the object is refused
	Warn    Mode = "warn"    // it is let in with a warning for whoever sent it
	Audit   Mode = "audit"   // it is let in; audit annotations, log and metrics say what was wrong
	Off     Mode = "off"     // nothing is looked at
)

// ParseMode returns the mode of that name.
func ParseMode(name string) (Mode, error) {
	switch m := Mode(name); m {
	case Enforce, Warn, Audit, Off:
		return m, nil
	}
	return "", fmt.Errorf("%q is none of enforce, warn, audit, off", name)
}

// softer returns the one that refuses less.
func softer(a, b Mode) Mode {
	order := map[Mode]int{Off: 0, Audit: 1, Warn: 2, Enforce: 3}
	if order[a] < order[b] {
		return a
	}
	return b
}

// Rule gives the namespaces with a label their mode.
type Rule struct {
	label, value string
	any          bool // whatever the value
	mode         Mode
}

var labelName = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)

// NewRule reads a label, "name=value" or "name" for any value.
func NewRule(label string, mode Mode) (Rule, error) {
	name, value, one := strings.Cut(label, "=")
	if !labelName.MatchString(name) {
		return Rule{}, fmt.Errorf("%q is not the name of a label", name)
	}
	return Rule{name, value, !one, mode}, nil
}

// DefaultRules are those of policy.sigstore.dev and of the label that people use where modes are wanted.
func DefaultRules() []Rule {
	return []Rule{
		{label: "policy.sigstore.dev/include", value: "true", mode: Enforce},
		{label: "sigstore-policy", value: "enforce", mode: Enforce},
		{label: "sigstore-policy", value: "warn", mode: Warn},
		{label: "sigstore-policy", value: "audit", mode: Audit},
	}
}

func (r Rule) fits(labels map[string]string) bool {
	value, ok := labels[r.label]
	return ok && (r.any || value == r.value)
}

// modeOf returns the mode of a namespace: that of the first rule which fits its labels. ok is false when none does.
func modeOf(rules []Rule, labels map[string]string) (mode Mode, ok bool) {
	for _, r := range rules {
		if r.fits(labels) {
			return r.mode, true
		}
	}
	return "", false
}
