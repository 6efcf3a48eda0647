package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	beaconIdentity = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
	beaconIssuer   = "https://token.actions.githubusercontent.com"
)

// shared returns the directory of published vectors.
func shared(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("ATTESTRY_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "conformance")); err != nil {
		missing(t, true, "no published vectors; set ATTESTRY_SHARED to the directory that holds conformance/ and vectors/")
	}
	return dir
}

// offline returns the command and leading arguments that run a program in a network namespace
// without routes when that is possible, and whether it is.
func offline(exe string) (string, []string, bool) {
	if exec.Command("unshare", "--net", "true").Run() == nil {
		return "unshare", []string{"--net", exe}, true
	}
	return exe, nil, false
}

// TestConformanceVectors gives every published case to `attestry verify`, by path and by digest.
func TestConformanceVectors(t *testing.T) {
	base := filepath.Join(shared(t), "conformance")
	exe, prefix, isolated := offline(attestry)
	if !isolated {
		t.Log("skipped: the network namespace without routes, which needs root")
	}
	dirs, err := filepath.Glob(filepath.Join(base, "bundle-verify", "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	either := func(path, fallback string) string {
		if _, err := os.Stat(path); err != nil {
			return fallback
		}
		return path
	}
	text := func(path, fallback string) string {
		if _, err := os.Stat(path); err != nil {
			return fallback
		}
		return strings.TrimSpace(readFile(t, path))
	}
	for _, dir := range dirs {
		artifact := either(filepath.Join(dir, "artifact"), filepath.Join(base, "a.txt"))
		digest := sha256.Sum256([]byte(readFile(t, artifact)))
		args := flags(prefix, []string{"verify", "--trusted-root", either(filepath.Join(dir, "trusted_root.json"), filepath.Join(base, "trusted_root.public-good.json")),
			"--bundle", filepath.Join(dir, "bundle.sigstore.json")})
		if key := filepath.Join(dir, "key.pub"); either(key, "") != "" {
			args = append(args, "--key", key)
		} else {
			args = append(args, "--certificate-identity", text(filepath.Join(dir, "identity"), beaconIdentity),
				"--certificate-oidc-issuer", text(filepath.Join(dir, "issuer"), beaconIssuer))
		}
		for form, what := range map[string]string{"path": artifact, "digest": "sha256:" + hex.EncodeToString(digest[:])} {
			t.Run(filepath.Base(dir)+" by "+form, func(t *testing.T) {
				r := newSandbox(t).run(exe, append(args, what)...)
				if wantFailure := strings.HasSuffix(dir, "_fail"); (r.err != nil) != wantFailure {
					t.Errorf("%s\n%v\n%s", line(exe, append(args, what)), r.err, r)
				} else if wantFailure && (strings.Contains(r.String(), "goroutine ") || strings.Contains(r.String(), "unknown flag")) {
					t.Errorf("it failed for another reason:\n%s", r)
				}
			})
		}
	}
}
