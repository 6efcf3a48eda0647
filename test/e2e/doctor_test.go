package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/services"
)

// doctor runs `attestry doctor` and returns its findings that are not ok as "level code", and all it printed.
func doctor(t *testing.T, env []string, args ...string) (findings map[string]bool, worst, text string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), attestry, append([]string{"doctor", "--json"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	var report struct {
		Level    string
		Findings []struct{ Level, Code, Where, Detail string }
	}
	if bad := json.Unmarshal(out, &report); bad != nil {
		t.Fatalf("attestry doctor: %v, %v\n%s", err, bad, out)
	}
	if (err != nil) != (report.Level == "fail") {
		t.Errorf("the level is %s and the exit status %v", report.Level, err)
	}
	findings = map[string]bool{}
	for _, f := range report.Findings {
		if f.Level != "ok" {
			findings[f.Level+" "+f.Code] = true
		}
	}
	return findings, report.Level, string(out)
}

func TestTheDoctorFindsWhatIsWrongWithAnInstance(t *testing.T) {
	fence := filepath.Join(t.TempDir(), "fence")
	s := up(t, "--fence", fence)
	if err := newLedger(t, s).submit1(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	look := func(env ...string) (map[string]bool, string, string) {
		t.Helper()
		return doctor(t, env, "--dir", s.dir, "--fence", fence)
	}
	found, _, text := look()
	delete(found, "warn disk_space") // of the machine that tests
	if len(found) > 0 || !strings.Contains(text, `"code": "fence_mismatch"`) || !strings.Contains(text, `"code": "trusted_root_stale"`) {
		t.Fatalf("an instance that is well and runs: %s", text)
	}
	s.stop()
	keys := filepath.Join(s.dir, "keys")
	future := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	for _, tt := range []struct {
		name, want string
		file       string              // that is broken, and restored afterwards
		change     func(string) string // nil: taken away
		env        []string
	}{
		{name: "a key is another", want: "fail key_mismatch", file: filepath.Join(keys, "tsa.pem"), change: func(string) string { return readFile(t, filepath.Join(keys, "ct.pem")) }},
		{name: "a key is not there", want: "fail file_unreadable", file: filepath.Join(keys, "ca.pem")},
		{name: "a key is no key", want: "fail key_unusable", file: filepath.Join(keys, "tsa.pem"), change: func(string) string { return "no key\n" }},
		{name: "the clock is behind", want: "fail clock_behind", file: filepath.Join(s.dir, "tsa-last-issued"), change: func(string) string { return future + "\n" }},
		{name: "trust is another's", want: "fail trusted_root_stale", file: filepath.Join(s.dir, "client", "trusted_root.json"), change: func(string) string { return "{}" }},
		{name: "metadata is over", want: "fail tuf_expiry", file: filepath.Join(s.dir, "tuf", "timestamp.json"), change: func(text string) string {
			return strings.Replace(text, fmt.Sprint(`"expires":"`, time.Now().Year()), `"expires":"2001`, 1)
		}},
		{name: "a variable of a tutorial", want: "warn environment_variable", env: []string{"COSIGN_REKOR_URL=http://localhost"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.file != "" {
				before, err := os.ReadFile(tt.file)
				if err == nil {
					defer write(t, tt.file, string(before))
				} else {
					defer os.Remove(tt.file)
				}
				if tt.change == nil {
					move(t, tt.file, tt.file+".away")
				} else {
					write(t, tt.file, tt.change(string(before)))
				}
			}
			if found, _, text := look(tt.env...); !found[tt.want] {
				t.Errorf("want %s, found %v:\n%s", tt.want, found, text)
			}
		})
	}
	if err := os.Chmod(filepath.Join(keys, "ca.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if found, level, text := look(); !found["warn file_mode"] || level == "fail" {
		t.Errorf("a key that everybody reads: %s", text)
	}

	move(t, fence, fence+"-away")
	if err := os.Mkdir(fence, 0o700); err != nil {
		t.Fatal(err)
	}
	if found, _, text := look(); !found["fail fence_mismatch"] {
		t.Errorf("an empty fence: %s", text)
	}
}

func TestTheDoctorComparesRolesWithWhatIsPublished(t *testing.T) {
	h := newHierarchy(t)
	database := services.StartPostgres(t)
	log := newTlogs(t, backend{"in PostgreSQL", func(t *testing.T, dir string) string {
		uri := database.Database(t)
		return fmt.Sprintf("database: %q\nfence: %q\nct: {key: file:%s/ct.pem, roots-file: %[3]s/roots.pem}\n", uri, uri, dir)
	}, []string{ctLog}, 1}, h.root)
	issuing := h.start(t, "ca", logged(log)+fmt.Sprintf("database: %q\n", database.Database(t)))
	dir := t.TempDir()
	publishing := startRole(t, tufPublisher, dir, "tuf-publisher", fmt.Sprintf("dir: %s/tuf\nkeys-dir: %[1]s/keys\ncreate-keys: true\ninventory: %[1]s/inventory.jsonl\nrecords:\n"+
		"  - {kind: ca, url: http://localhost, chain-file: %s/chain.pem}\n  - {kind: ctlog, url: http://localhost/ct/main, origin: localhost/ct/main, public-key-file: %s/ct.pub, start: \"2026-01-01T00:00:00Z\"}\n", dir, h.dir, log.dir))
	args := []string{"--config", publishing.config, "--config", issuing.config, "--config", log.servers[0].config}
	found, _, text := doctor(t, nil, args...)
	delete(found, "warn disk_space")
	if len(found) > 0 || strings.Count(text, "PostgreSQL 1") != 3 {
		t.Fatalf("roles that are well: %v %s", found, text)
	}

	issuing.kill()
	other := newHierarchy(t)
	for name, text := range map[string]string{"chain.pem": other.chain, "ca.pem": readFile(t, other.dir+"/ca.pem")} {
		write(t, filepath.Join(h.dir, name), text)
	}
	if found, _, text := doctor(t, nil, args...); !found["fail trusted_root_stale"] || found["fail key_mismatch"] {
		t.Errorf("a CA that nobody published: %v %s", found, text)
	}
	database.Kill()
	found, _, text = doctor(t, nil, args...)
	if !found["fail database_unusable"] {
		t.Errorf("a database that is away: %v %s", found, text)
	}
	if strings.Contains(text, database.Password()) {
		t.Error("the password is shown")
	}
	typo := filepath.Join(dir, "typo.yaml")
	write(t, typo, "listen: 127.0.0.1:1\n")
	if found, _, text := doctor(t, nil, "--config", typo); !found["fail config"] {
		t.Errorf("a file of nobody: %v %s", found, text)
	}
}
