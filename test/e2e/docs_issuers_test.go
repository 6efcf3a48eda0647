package e2e

import (
	"regexp"
	"testing"
)

// TestTheDocsNameTheKeysOfIssuers: every key of the issuer file, every built-in provider and every variable of a name.
func TestTheDocsNameTheKeysOfIssuers(t *testing.T) {
	page := readFile(t, repository+"/docs/ca.md")
	for _, tt := range []struct {
		what, file  string
		line, names string // which lines have names, and which part of them
		atLeast     int
	}{
		{"the key", "config.go", `(?m)^\t\t\{"[a-z-]+", ".*$`, `^\t\t\{"([a-z-]+)"`, 25},
		{"the provider", "builtin.go", `(?m)^\t\t"[a-z-]+": \{.*$`, `"([a-z-]+)"`, 6},
		{"the variable", "santemplate.go", `(?m)^\t+(?:claim\(|out\["|var[A-Z]\w+ += ").*$`, `"([a-z_]+)"`, 20},
	} {
		var found []string
		for _, line := range regexp.MustCompile(tt.line).FindAllString(readFile(t, repository+"/pkg/ca/identity/"+tt.file), -1) {
			for _, m := range regexp.MustCompile(tt.names).FindAllStringSubmatch(line, -1) {
				found = append(found, m[1])
			}
		}
		if len(found) < tt.atLeast {
			t.Errorf("%d names in %s: the pattern does not fit the source any more", len(found), tt.file)
		}
		for _, name := range found {
			if !regexp.MustCompile("[`{ ]" + regexp.QuoteMeta(name) + "[`:} ]").MatchString(page) {
				t.Errorf("docs/ca.md does not name %s %s", tt.what, name)
			}
		}
	}
}
