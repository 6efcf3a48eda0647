package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// build returns the program.
func build(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "attestry")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return exe
}

// conformanceArgs is what the suite's client.py passes for a directory of bundle-verify, in its order.
func conformanceArgs(t *testing.T, base, dir string, staging bool, target string) []string {
	t.Helper()
	setting := func(name, otherwise string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return otherwise
		}
		return strings.TrimSpace(string(data))
	}
	args := []string{"conformance", "verify-bundle"}
	if staging {
		args = append(args, "--staging")
	}
	args = append(args, "--bundle", filepath.Join(dir, "bundle.sigstore.json"))
	if _, err := os.Stat(filepath.Join(dir, "key.pub")); err == nil {
		args = append(args, "--key", filepath.Join(dir, "key.pub"))
	} else {
		args = append(args, "--certificate-identity", setting("identity", beaconIdentity), "--certificate-oidc-issuer", setting("issuer", beaconIssuer))
	}
	if _, err := os.Stat(filepath.Join(dir, "trusted_root.json")); err == nil {
		args = append(args, "--trusted-root", filepath.Join(dir, "trusted_root.json"))
	}
	return append(args, target)
}

func TestConformanceCommandOnEveryPublishedCase(t *testing.T) {
	base := conformance(t)
	exe := build(t)
	dirs, err := filepath.Glob(filepath.Join(base, "bundle-verify", "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for n, dir := range dirs {
		artifact := artifactOf(base, dir)
		data, err := os.ReadFile(artifact)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(data)
		for form, target := range map[string]string{"PATH": artifact, "DIGEST": "sha256:" + hex.EncodeToString(digest[:])} {
			t.Run(form+"-"+filepath.Base(dir), func(t *testing.T) {
				cmd := exec.Command(exe, conformanceArgs(t, base, dir, n%2 == 1, target)...)
				// No HOME, no proxies, no trust but the file that stands for the public instance.
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), conformanceTrustedRoot + "=" + filepath.Join(base, "trusted_root.public-good.json")}
				out, err := cmd.CombinedOutput()
				if refused := strings.HasSuffix(dir, "_fail"); refused != (err != nil) {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
	}
	t.Logf("%d directories, each by path and by digest", len(dirs))
}

func TestConformanceCommandTakesNothingFromElsewhere(t *testing.T) {
	t.Setenv(conformanceTrustedRoot, "")
	t.Setenv(conformanceSigningConfig, "")
	t.Setenv("ATTESTRY_TRUSTED_ROOT", "/nonexistent")
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	who := []string{"--certificate-identity", "a", "--certificate-oidc-issuer", "b"}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"verifying without a trusted root": {append(append([]string{"verify-bundle", "--bundle", file}, who...), file), conformanceTrustedRoot},
		"verifying without a bundle":       {append(append([]string{"verify-bundle"}, who...), file), "--bundle"},
		"verifying nobody":                 {[]string{"verify-bundle", "--bundle", file, "--trusted-root", file, file}, "who must have signed"},
		"signing without a signing config": {[]string{"sign-bundle", "--identity-token", "a.b.c", "--bundle", file, "--trusted-root", file, file}, conformanceSigningConfig},
		"signing without a token":          {[]string{"sign-bundle", "--bundle", file, file}, "--identity-token"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), append([]string{"conformance"}, c.args...), &out, &out)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want something about %q", err, c.want)
			}
		})
	}
}
