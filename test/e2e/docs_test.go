package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	repository  = "../.."
	pageTimeout = 3 * time.Minute // for all blocks of one page
)

// block is a fenced block of a page.
type block struct {
	line int    // where its text begins
	kind string // sh is run, yaml with "# file: PATH" as its first line is written; nothing else is touched
	text string
}

var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

func blocks(t *testing.T, page string) []block {
	t.Helper()
	text := readFile(t, filepath.Join(repository, page))
	var all []block
	for _, m := range fence.FindAllStringSubmatchIndex(text, -1) {
		all = append(all, block{strings.Count(text[:m[4]], "\n") + 1, text[m[2]:m[3]], text[m[4]:m[5]]})
	}
	return all
}

// TestTheDocsCommandsRun runs each page's sh blocks in one shell, as a reader with one terminal
// does, beside the `attestry up` that the pages start from.
func TestTheDocsCommandsRun(t *testing.T) {
	python := optional(t, "sigstore-python")
	bin := docsPath(t, python)
	for _, page := range []string{"README.md", "docs/develop.md", "docs/operate.md", "docs/audit.md", "docs/witness.md", "docs/ca.md", "docs/verify.md", "docs/policy.md", "docs/sign.md", "docs/carry.md", "docs/ci.md", "docs/tutorials.md"} {
		t.Run(page, func(t *testing.T) {
			b := newSandbox(t)
			s := newStack(t, b.path("attestry-data"))
			s.start()
			b.set("PATH", bin+":"+os.Getenv("PATH"))
			registry := newRegistry(t, true)
			b.set("IMAGE", registry.push("app"))
			b.set("IMAGE2", registry.push("other"))
			if err := os.Symlink(bin, b.path("bin")); err != nil {
				t.Fatal(err)
			}
			script := prelude
			for _, block := range blocks(t, page) {
				if strings.Contains(block.text, "sigstore --trust-config") && python == "" {
					t.Logf("%s:%d skipped: sigstore-python is not installed", page, block.line)
					continue
				}
				script += scripted(page, block)
			}
			runPage(t, b, otherPorts(t, script, s.listen))
		})
	}
}

// prelude ends what a page left in the background and names the command that failed, as it is
// written: its tokens are not shown.
const prelude = `trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap 'echo "status $?: $BASH_COMMAND"' ERR
`

// scripted returns the shell's part of a block.
func scripted(page string, b block) string {
	where := fmt.Sprintf("echo '=== %s:%d'\n", page, b.line)
	if path, ok := strings.CutPrefix(strings.SplitN(b.text, "\n", 2)[0], "# file: "); ok && b.kind == "yaml" {
		return fmt.Sprintf("%smkdir -p %s\ncat >%s <<'YAML'\n%sYAML\n", where, filepath.Dir(path), path, b.text)
	}
	switch {
	case b.kind != "sh":
		return ""
	case b.text == "go run ./cmd/attestry up\n", // the instance of this test
		b.text == "./scripts/test\n": // what runs this test
		return ""
	case strings.HasSuffix(b.text, " --demo\n"):
		return where + "attestry up --demo --listen 127.0.0.1:0\n"
	}
	return where + b.text
}

// runPage runs a script with bash and shows where it ended when it fails.
func runPage(t *testing.T, b *sandbox, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), pageTimeout)
	defer cancel()
	cmd := b.command(ctx, "/bin/bash", "-eEuo", "pipefail", b.file("page.sh", script))
	cmd.WaitDelay = 10 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if err == nil {
		return
	}
	text := output.String()
	if at := strings.LastIndex(text, "\n=== "); at > 0 {
		text = text[at+1:]
	}
	t.Fatalf("%v in the block at\n%s", err, text[max(0, len(text)-6000):])
}

var address = regexp.MustCompile(`\b(localhost|127\.0\.0\.1):(\d{4})\b`)

// otherPorts puts the test's ports in place of those in the docs; 8420 is the instance's.
func otherPorts(t *testing.T, script, listen string) string {
	t.Helper()
	ports := map[string]string{"8420": listen[strings.LastIndex(listen, ":")+1:]}
	return address.ReplaceAllStringFunc(script, func(found string) string {
		m := address.FindStringSubmatch(found)
		if ports[m[2]] == "" {
			free := freeAddress(t)
			ports[m[2]] = free[strings.LastIndex(free, ":")+1:]
		}
		return m[1] + ":" + ports[m[2]]
	})
}

// docsPath makes a directory with the programs under the names that the pages use.
func docsPath(t *testing.T, python string) string {
	t.Helper()
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin, "../../cmd/ca", "../../cmd/tlog", "../../cmd/tsa", "../../cmd/tuf-publisher")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the roles: %v\n%s", err, out)
	}
	for _, needed := range [][2]string{{"jq", "jq"}, {"curl", "curl"}, {"openssl", "openssl"}, {"node", "nodejs"}} {
		system(t, needed[0], needed[1])
	}
	for name, path := range map[string]string{
		"attestry":      attestry,
		"cosign":        client(t, "cosign", "v3.1.3"),
		"cosign2":       client(t, "cosign", "v2.6.5"),
		"rekor-cli":     client(t, "rekor-cli", ""),
		"timestamp-cli": client(t, "timestamp-cli", ""),
		"sigstore":      python,
	} {
		if path == "" {
			continue
		}
		if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	// npx @sigstore/cli ARGS… would ask a registry.
	npx := "#!/bin/sh\nshift\nexec '" + client(t, "sigstore-js", "") + "' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "npx"), []byte(npx), 0o700); err != nil {
		t.Fatal(err)
	}
	return bin
}

// optional returns the path of a client, "" when it is not installed and may be missing.
func optional(t *testing.T, name string) (path string) {
	t.Run(name, func(t *testing.T) { path = client(t, name, "") })
	return path
}

// TestTheDocsNameWhatThereIs compares names in the pages with the source, both ways where the
// page promises a complete list.
func TestTheDocsNameWhatThereIs(t *testing.T) {
	operate, develop := readFile(t, repository+"/docs/operate.md"), readFile(t, repository+"/docs/develop.md")
	documented := operate + readFile(t, repository+"/docs/ca.md") + readFile(t, repository+"/docs/admission.md")
	for program, dir := range map[string]string{"admission": "cmd", "ca": "cmd", "tlog": "pkg", "tsa": "cmd", "tuf-publisher": "cmd"} {
		config := readFile(t, filepath.Join(repository, dir, program, "config.go"))
		for _, m := range regexp.MustCompile(`mapstructure:"([^"]+)"`).FindAllStringSubmatch(config, -1) {
			if !regexp.MustCompile(`(?m)[\s{]` + m[1] + `:`).MatchString(documented) {
				t.Errorf("neither docs/operate.md nor docs/ca.md nor docs/admission.md shows the key %s of cmd/%s", m[1], program)
			}
		}
	}
	source := goSource(t) + readFile(t, repository+"/internal/server/server.go")
	metric := regexp.MustCompile(`Name: +"([a-z0-9]+(?:_[a-z0-9]+)+)"`)
	known := map[string]bool{}
	for _, m := range metric.FindAllStringSubmatch(source, -1) {
		known[m[1]] = true
		if !strings.Contains(documented, m[1]) {
			t.Errorf("neither docs/operate.md nor docs/ca.md names the metric %s", m[1])
		}
	}
	_, metrics, _ := strings.Cut(operate, "\n## Metrics\n")
	for _, name := range firstCells(metrics) {
		if !known[name] {
			t.Errorf("docs/operate.md: there is no metric %s", name)
		}
	}
	_, codes, _ := strings.Cut(develop, "\n## When it does not work\n")
	codes, _, _ = strings.Cut(codes, "\nFrom clients:\n")
	withKeys := source + readFile(t, repository+"/internal/signer/remote.go")
	for _, code := range firstCells(codes) {
		if !strings.Contains(withKeys, `"`+code+`"`) {
			t.Errorf("docs/develop.md: nothing gives the reason %s", code)
		}
	}
}

// firstCells returns the code words in the first cells of a text's tables.
func firstCells(text string) []string {
	var names []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*`) \\|").FindAllStringSubmatch(text, -1) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// goSource is everything under pkg, without tests.
func goSource(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(filepath.Join(repository, "pkg"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestTheDocsLinksLead checks links between files; others lead out of an air gap.
func TestTheDocsLinksLead(t *testing.T) {
	pages := []string{"charts/attestry/README.md"}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		found, err := filepath.Glob(filepath.Join(repository, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d pages, %v", pattern, len(found), err)
		}
		for _, page := range found {
			pages = append(pages, strings.TrimPrefix(page, repository+"/"))
		}
	}
	for _, page := range pages {
		for _, m := range regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`).FindAllStringSubmatch(readFile(t, filepath.Join(repository, page)), -1) {
			if _, err := os.Stat(filepath.Join(repository, filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
}
