package verify_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
)

// reasons are the codes that reason.go has.
func reasons(t *testing.T) []verify.Reason {
	t.Helper()
	var all []verify.Reason
	for _, m := range regexp.MustCompile(`Reason = "([^"]+)"`).FindAllStringSubmatch(string(read(t, "reason.go")), -1) {
		if m[1] != string(verify.ReasonInternal) {
			all = append(all, verify.Reason(m[1]))
		}
	}
	return all
}

// The page lists every reason with its class, and nothing else.
func TestTheDocsListTheReasons(t *testing.T) {
	_, section, found := strings.Cut(string(read(t, "../../docs/verify.md")), "\n## Reasons\n")
	if !found {
		t.Fatal("docs/verify.md has no section Reasons")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	listed := map[verify.Reason]verify.Reason{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:`([^`]+)`)? *\\| .+ \\|$").FindAllStringSubmatch(section, -1) {
		code := verify.Reason(row[1])
		if _, twice := listed[code]; twice {
			t.Errorf("docs/verify.md lists %s twice", code)
		}
		listed[code] = verify.Reason(row[2])
	}
	for _, code := range reasons(t) {
		class := code.Class()
		if class == code {
			class = ""
		}
		switch got, ok := listed[code]; {
		case !ok:
			t.Errorf("docs/verify.md does not list %s", code)
		case got != class:
			t.Errorf("docs/verify.md gives %s the class %q, it is %q", code, got, class)
		}
		delete(listed, code)
	}
	for code := range listed {
		t.Errorf("docs/verify.md lists %s, which there is not", code)
	}
}

// A class is its own class, or counting by it would depend on how often it is applied.
func TestClassesAreTheirOwn(t *testing.T) {
	for _, code := range reasons(t) {
		if class := code.Class(); class.Class() != class {
			t.Errorf("the class of %s is %s, whose class is %s", code, class, class.Class())
		}
	}
}
