package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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

// TestThrowawayNPM looks at what npm takes of the wrapper.
func TestThrowawayNPM(t *testing.T) {
	npm := system(t, "npm", "npm")
	b := wrapped(t)
	var packed []struct {
		Name  string
		Files []struct{ Path string }
	}
	out := b.must(npm, "pack", "--offline", "--dry-run", "--json", b.path("node_modules/attestrytest"))
	if err := json.Unmarshal([]byte(out), &packed); err != nil || len(packed) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	var files []string
	for _, f := range packed[0].Files {
		files = append(files, f.Path)
	}
	slices.Sort(files)
	if want := []string{"index.d.ts", "index.js", "package.json"}; packed[0].Name != "attestrytest" || !slices.Equal(files, want) {
		t.Errorf("%s has %q, want %q", packed[0].Name, files, want)
	}
}

// signsJS is a test's program: it starts an instance, and @sigstore/cli signs there and verifies by its TUF repository alone.
const signsJS = `const { execFileSync } = require('node:child_process');
const { writeFileSync } = require('node:fs');
const { start } = require('attestrytest');

async function main() {
  const s = await start();
  try {
    const digest = { sha256: 'ab'.repeat(32) };
    writeFileSync('statement.json', JSON.stringify({
      _type: 'https://in-toto.io/Statement/v1', subject: [{ name: 'blob', digest }], predicateType: 'https://example.com/p', predicate: {},
    }));
    const env = { ...process.env, CI: 'true', SIGSTORE_ID_TOKEN: await s.token('alice@example.com') };
    const sigstore = (...args) => execFileSync(process.env.SIGSTORE, args, { env, stdio: 'pipe' });
    const verify = (who) => sigstore('verify', '--tuf-mirror-url', s.tufURL, '--tuf-root-path', s.file('root.json'),
      '--certificate-identity-email', who, '--certificate-issuer', s.issuerURL, 'bundle');
    sigstore('attest', '--fulcio-url', s.url, '--rekor-url', s.url, '-o', 'bundle', 'statement.json');
    verify('alice@example.com');
    let refused = false;
    try { verify('bob@example.com'); } catch { refused = true; }
    console.log(refused ? 'verified' : 'verified as anyone');
  } finally {
    await s.stop();
  }
}
main();
`

func TestThrowawaySignsByJS(t *testing.T) {
	sigstore := client(t, "sigstore-js", "")
	b := wrapped(t)
	b.set("SIGSTORE", sigstore)
	if said := b.must(system(t, "node", "nodejs"), b.file("main.js", signsJS)); said != "verified\n" {
		t.Errorf("it printed %q", said)
	}
}

// signsPython are tests for pytest, with the fixture: sigstore-python signs and verifies.
const signsPython = `import os
import subprocess

import pytest


def run(sigstore, *args):
    command = [os.environ["SIGSTORE"], "--trust-config", str(sigstore.file("client_trust_config.json")), *map(str, args)]
    subprocess.run(command, check=True, env={**os.environ, **sigstore.env})


def test_release(sigstore, tmp_path):
    blob = tmp_path / "blob"
    blob.write_text("hello")
    who = ["--cert-oidc-issuer", sigstore.issuer_url, "--cert-identity"]
    run(sigstore, "sign", "--identity-token", sigstore.token("alice@example.com"), blob)
    run(sigstore, "verify", "identity", *who, "alice@example.com", blob)
    with pytest.raises(subprocess.CalledProcessError):
        run(sigstore, "verify", "identity", *who, "bob@example.com", blob)


def test_one_instance(sigstore):
    assert sigstore.tuf_url == sigstore.url + "/tuf"
`

// TestThrowawaySignsByPython gives the wrapper the metadata of an installed package, so that pytest finds the fixture by itself.
func TestThrowawaySignsByPython(t *testing.T) {
	pytest, sigstore := client(t, "pytest", ""), client(t, "sigstore-python", "")
	b := wrapped(t)
	source := b.path("source")
	if err := os.CopyFS(source, os.DirFS(filepath.Join(repository, "wrappers/python"))); err != nil {
		t.Fatal(err)
	}
	// What an installer makes of pyproject.toml.
	plugin := regexp.MustCompile(`(?m)^\[project\.entry-points\.pytest11\]\n(\w+) = "([\w.]+)"$`).FindStringSubmatch(readFile(t, filepath.Join(source, "pyproject.toml")))
	if plugin == nil {
		t.Fatal("pyproject.toml has no plugin for pytest")
	}
	info := filepath.Join(source, "attestrytest-0.dist-info")
	if err := os.Mkdir(info, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(info, "METADATA"), "Metadata-Version: 2.1\nName: attestrytest\nVersion: 0\n")
	write(t, filepath.Join(info, "entry_points.txt"), "[pytest11]\n"+plugin[1]+" = "+plugin[2]+"\n")
	b.set("PYTHONPATH", source)
	b.set("SIGSTORE", sigstore)
	if out := b.must(pytest, "-q", "-p", "no:cacheprovider", b.file("test_release.py", signsPython)); !strings.Contains(out, "2 passed") {
		t.Errorf("pytest: %s", out)
	}
}
