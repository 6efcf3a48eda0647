package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestUpLeavesTheFilesForClients(t *testing.T) {
	s := up(t)
	for _, name := range []string{
		"env", "env.cosign2", "root.json", "trusted_root.json", "signing_config.v0.2.json", "signing_config.rekor1.v0.2.json",
		"client_trust_config.json", "fulcio.pem", "rekor.pem", "ctfe.pem", "tsa.pem",
	} {
		if len(readFile(t, s.client(name))) == 0 {
			t.Errorf("client/%s is empty", name)
		}
	}
	b := newSandbox(t)
	b.source(s.client("env"))
	for _, name := range []string{
		"ATTESTRY_URL", "ATTESTRY_TUF_URL", "ATTESTRY_OIDC_ISSUER", "ATTESTRY_TRUSTED_ROOT", "ATTESTRY_SIGNING_CONFIG",
		"ATTESTRY_SIGNING_CONFIG_V1", "ATTESTRY_TUF_ROOT", "TUF_MIRROR", "TUF_ROOT_JSON",
	} {
		if !strings.Contains(strings.Join(b.env, "\n"), "\n"+name+"=") {
			t.Errorf("client/env does not export %s", name)
		}
	}
	printed := readFile(t, s.logFile)
	for _, want := range []string{s.url, "cosign initialize", "cosign sign-blob", "attestry sign"} {
		if !strings.Contains(printed, want) {
			t.Errorf("up does not print %q:\n%s", want, printed)
		}
	}
	for path, want := range map[string]int{"/readyz": 200, "/healthz": 200, "/tuf/root.json": 200, "/tuf/1.root.json": 200, "/tuf/99.root.json": 404, "/no/such/path": 404, "/": 200} {
		if status, _, err := call(t.Context(), http.MethodGet, s.url+path, "", ""); status != want || err != nil {
			t.Errorf("GET %s = %d %v, want %d", path, status, err, want)
		}
	}
}

func TestUpGoesOnWhereItWas(t *testing.T) {
	s := up(t)
	first := s.ready
	root, trusted := readFile(t, s.client("root.json")), readFile(t, s.client("trusted_root.json"))
	a := newAudit(t, s)
	for name, submit := range a.submitters(s.alice()) {
		if err := submit(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.stop()
	s.start()
	measured(t, "ready after %v on the first run, %v on the second", first.Round(time.Millisecond), s.ready.Round(time.Millisecond))
	a.check()
	if readFile(t, s.client("root.json")) != root || readFile(t, s.client("trusted_root.json")) != trusted {
		t.Error("a restart changed the trust files")
	}
	s.stop()

	t.Run("on another port its files follow", func(t *testing.T) {
		moved := newStack(t, s.dir)
		moved.start()
		if config := readFile(t, moved.client("signing_config.v0.2.json")); !strings.Contains(config, moved.url) || strings.Contains(config, s.url) {
			t.Errorf("the signing config names other URLs than %s:\n%s", moved.url, config)
		}
		if served := get(t, moved.url+"/tuf/1.root.json"); served != root {
			t.Error("the TUF root changed")
		}
		moved.stop()
	})
	t.Run("under another host it refuses", func(t *testing.T) {
		out, refused := runUp(t, "--dir", s.dir, "--listen", s.listen, "--url", "http://elsewhere.example")
		if !refused || !strings.Contains(out, "elsewhere.example") {
			t.Errorf("refused = %v\n%s", refused, out)
		}
	})
}

func TestUpRefusesWhatItCanNotDo(t *testing.T) {
	s := up(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	new := filepath.Join(t.TempDir(), "new")
	file := filepath.Join(t.TempDir(), "file")
	config := filepath.Join(t.TempDir(), "ca.yaml")
	for path, content := range map[string]string{
		file:   "not a directory",
		config: "oidc-issuers:\n  https://idp.example:\n    issuer-url: https://idp.example\n    client-idd: sigstore\n    typo: email\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		args []string
		want []string // regular expressions
	}{
		{"a directory that another process has open", []string{"--dir", s.dir, "--listen", freeAddress(t)}, []string{regexp.QuoteMeta(s.dir), `in use|another process|lock`}},
		{"a port in use", []string{"--dir", new, "--listen", taken.Addr().String()}, []string{`address already in use`, regexp.QuoteMeta(taken.Addr().String())}},
		{"a directory that can not be made", []string{"--dir", filepath.Join(file, "data"), "--listen", freeAddress(t)}, []string{regexp.QuoteMeta(file), `not a directory`}},
		{"a directory that is read only", []string{"--dir", "/proc/attestry", "--listen", freeAddress(t)}, []string{`/proc/attestry`}},
		{"an issuer file with unknown keys", []string{"--dir", new, "--listen", freeAddress(t), "--ca-config", config}, []string{`client-idd`, `typo`}},
		{"an issuer file that is not there", []string{"--dir", new, "--listen", freeAddress(t), "--ca-config", filepath.Join(new, "none")}, []string{`no such file`}},
		{"a listener that others can reach", []string{"--dir", new, "--listen", "0.0.0.0:0"}, []string{`loopback`}},
		{"a flag that is unknown", []string{"--dir", new, "--lisen", "x"}, []string{`unknown flag: --lisen`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, refused := runUp(t, tt.args...)
			if !refused {
				t.Fatalf("it went on:\n%s", out)
			}
			for _, want := range tt.want {
				if !regexp.MustCompile(want).MatchString(out) {
					t.Errorf("it does not say %q:\n%s", want, out)
				}
			}
			if strings.Contains(out, "attestry is ready") || strings.Contains(out, "goroutine ") {
				t.Errorf("it was ready, or it panicked:\n%s", out)
			}
		})
	}
	if !s.isReady() {
		t.Error("the instance that was there is not ready any more")
	}
	for _, submit := range newAudit(t, s).submitters(s.alice()) {
		if err := submit(); err != nil {
			t.Errorf("the instance that was there: %v", err)
		}
	}
}

func TestEphemeralLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	s := newStack(t, "", "--ephemeral")
	s.start()
	kept, err := filepath.Glob(filepath.Join(tmp, "*", "client", "root.json"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("data under %s: %v %v", tmp, kept, err)
	}
	if printed := readFile(t, s.logFile); !strings.Contains(printed, filepath.Dir(filepath.Dir(kept[0]))) {
		t.Errorf("up does not print the directory:\n%s", printed)
	}
	s.stop()
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("left under %s: %v %v", tmp, left, err)
	}
}

func TestDemo(t *testing.T) {
	started := time.Now()
	cmd := exec.CommandContext(t.Context(), attestry, "up", "--demo", "--listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !regexp.MustCompile(`(?i)verified`).Match(out) {
		t.Errorf("the demo does not say that it verified:\n%s", out)
	}
	measured(t, "the demo took %v", time.Since(started).Round(time.Millisecond))
}

func TestMemoryAfterManySignatures(t *testing.T) {
	n := 500
	if long() {
		n = 10_000
	}
	s := up(t)
	a := newAudit(t, s)
	token := s.alice()
	for a.l.count(rekor1) < n || a.l.count(rekor2) < n {
		a.loaded(token, 8, time.Second, func() {})
	}
	status := readFile(t, fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindStringSubmatch(status)
	if m == nil {
		t.Fatal("no VmRSS")
	}
	var kib int
	if _, err := fmt.Sscan(m[1], &kib); err != nil {
		t.Fatal(err)
	}
	measured(t, "%d MiB resident after %d + %d entries and %d certificates", kib>>10, a.l.count(rekor1), a.l.count(rekor2), a.l.count(ctLog))
	if kib>>10 >= 200 {
		t.Errorf("%d MiB resident, want less than 200", kib>>10)
	}
	a.check()
}
