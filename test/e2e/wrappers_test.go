package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestThrowawayGo compiles and runs the page's Go block as a file of the package beside the library.
func TestThrowawayGo(t *testing.T) {
	source := filepath.Join(t.TempDir(), "release_test.go")
	if err := os.WriteFile(source, []byte(strings.Replace(code(t, "go"), "package release_test", "package attestrytest_test", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	place, err := filepath.Abs(filepath.Join(repository, "pkg/attestrytest/release_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{place: source}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(path, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "test", "-overlay", path, "-run", "^TestRelease$", "-v", "./pkg/attestrytest")
	cmd.Dir = repository
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestRelease") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// code returns the only block of a language in docs/testing.md.
func code(t *testing.T, language string) string {
	t.Helper()
	var found []string
	for _, b := range blocks(t, "docs/testing.md") {
		if b.kind == language {
			found = append(found, b.text)
		}
	}
	if len(found) != 1 {
		t.Fatalf("docs/testing.md has %d blocks of %s", len(found), language)
	}
	return found[0]
}

// runtimes are the wrappers: how a program of each language is run, and one that starts an instance, says where, and waits.
var runtimes = []struct{ name, program, debian, file, waits string }{
	{"js", "node", "nodejs", "main.js",
		"require('attestrytest').start().then((s) => { console.log(s.url + ' ' + s.dir); setInterval(() => {}, 1000); });\n"},
	{"python", "python3", "python3", "main.py",
		"import time, attestrytest\ns = attestrytest.start()\nprint(s.url, s.dir, flush=True)\ntime.sleep(600)\n"},
}

// wrapped is an account in which both wrappers are found, and the program that they run.
func wrapped(t *testing.T) *sandbox {
	t.Helper()
	b := newSandbox(t)
	npm, err := filepath.Abs(filepath.Join(repository, "wrappers/npm"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(b.path("node_modules"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(npm, b.path("node_modules/attestrytest")); err != nil {
		t.Fatal(err)
	}
	b.set("PYTHONPATH", filepath.Join(filepath.Dir(npm), "python"))
	b.set("PYTHONDONTWRITEBYTECODE", "1")
	b.set("ATTESTRY_BIN", attestry)
	return b
}

func TestThrowawayByWrappers(t *testing.T) {
	for _, r := range runtimes {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			program := system(t, r.program, r.debian)
			b := wrapped(t)
			fields := strings.Fields(b.must(program, b.file(r.file, code(t, r.name))))
			if len(fields) != 4 || fields[1] != fields[0]+"/tuf" || !strings.HasSuffix(fields[2], ".json") {
				t.Fatalf("it printed %q", fields)
			}
			if _, err := os.Stat(filepath.Dir(filepath.Dir(fields[2]))); !os.IsNotExist(err) {
				t.Errorf("the directory is still there: %v", err)
			}
		})
		// A test runner that is killed leaves nothing behind.
		t.Run(r.name+" killed", func(t *testing.T) {
			t.Parallel()
			program := system(t, r.program, r.debian)
			b := wrapped(t)
			cmd := b.command(t.Context(), program, b.file(r.file, r.waits))
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(stdout).ReadString('\n')
			url, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
			if err != nil || !ok {
				t.Fatalf("it printed %q: %v", line, err)
			}
			get(t, url+"/readyz")
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			tick, deadline := time.NewTicker(20*time.Millisecond), time.After(30*time.Second)
			defer tick.Stop()
			for {
				if _, err := os.Stat(dir); os.IsNotExist(err) {
					return
				}
				select {
				case <-tick.C:
				case <-deadline:
					t.Fatalf("%s is still there", dir)
				}
			}
		})
		t.Run(r.name+" without the program", func(t *testing.T) {
			t.Parallel()
			program := system(t, r.program, r.debian)
			b := wrapped(t)
			b.set("ATTESTRY_BIN", b.path("nowhere"))
			if r := b.run(program, b.file(r.file, r.waits)); r.err == nil || !strings.Contains(r.String(), "nowhere") {
				t.Errorf("%v: %s", r.err, r)
			}
		})
	}
}
