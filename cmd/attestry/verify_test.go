package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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

// conformance returns the directory of the published cases, or skips.
func conformance(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("ATTESTRY_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	dir = filepath.Join(dir, "conformance")
	if _, err := os.Stat(dir); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("published vectors are missing: %v", err)
		}
		t.Skip("set ATTESTRY_SHARED to the directory that holds conformance/")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// verifyArgs returns the command line for one case; target is the artifact's path or digest.
func verifyArgs(base, dir, target string) []string {
	file := func(name, fallback string) string {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
		return fallback
	}
	args := []string{"verify", "--bundle", filepath.Join(dir, "bundle.sigstore.json"),
		"--trusted-root", file("trusted_root.json", filepath.Join(base, "trusted_root.public-good.json"))}
	if key := file("key.pub", ""); key != "" {
		return append(args, "--key", key, target)
	}
	return append(args, "--certificate-identity", beaconIdentity, "--certificate-oidc-issuer", beaconIssuer, target)
}

func artifactOf(base, dir string) string {
	path := filepath.Join(dir, "artifact")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	return filepath.Join(base, "a.txt")
}

func TestVerifyCommandOnTheConformanceCases(t *testing.T) {
	base := conformance(t)
	dirs, err := filepath.Glob(filepath.Join(base, "bundle-verify", "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, dir := range dirs {
		artifact := artifactOf(base, dir)
		data, err := os.ReadFile(artifact)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(data)
		for form, target := range map[string]string{"PATH": artifact, "DIGEST": "sha256:" + hex.EncodeToString(digest[:])} {
			t.Run(form+"-"+filepath.Base(dir), func(t *testing.T) {
				var stdout, stderr bytes.Buffer
				err := run(t.Context(), verifyArgs(base, dir, target), &stdout, &stderr)
				if refused := strings.HasSuffix(dir, "_fail"); refused != (err != nil) {
					t.Errorf("error %v", err)
				}
				if err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("more than one line: %v", err)
				}
			})
		}
	}
}

func TestVerifyCommandSaysWhatIsMissing(t *testing.T) {
	t.Setenv("ATTESTRY_TRUSTED_ROOT", "")
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	who := []string{"--certificate-identity", "a", "--certificate-oidc-issuer", "b"}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nobody named":             {nil, "--certificate-identity"},
		"an identity alone":        {[]string{"--certificate-identity", "a"}, "issuer"},
		"an issuer alone":          {[]string{"--certificate-oidc-issuer", "a"}, "subject"},
		"a key and an identity":    {append([]string{"--key", "k"}, who...), "not both"},
		"no trusted root":          {who, "ATTESTRY_TRUSTED_ROOT"},
		"an unknown output":        {append([]string{"--output", "xml"}, who...), "xml"},
		"a trusted root not found": {append([]string{"--trusted-root", file + "-"}, who...), "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), append(append([]string{"verify"}, c.args...), file), &out, &out)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want something about %q", err, c.want)
			}
		})
	}
}

func TestVerifyCommandPrintsJSON(t *testing.T) {
	base := conformance(t)
	for name, verified := range map[string]bool{"rekor2-timestamp-with-embedded-cert": true, "rekor2-no-timestamp_fail": false} {
		dir := filepath.Join(base, "bundle-verify", name)
		var stdout, stderr bytes.Buffer
		err := run(t.Context(), append(verifyArgs(base, dir, artifactOf(base, dir)), "--output", "json"), &stdout, &stderr)
		var got struct {
			MediaType, Reason string
			Verified          *bool
		}
		if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v: %s", name, err, &stdout)
		}
		if verified && (err != nil || got.MediaType == "") {
			t.Errorf("%s: %v: %s", name, err, &stdout)
		}
		if !verified && (err == nil || got.Reason != "no-time" || got.Verified == nil || *got.Verified) {
			t.Errorf("%s: %v: %s", name, err, &stdout)
		}
	}
}

// The program verifies and refuses in a network namespace that has not even a loopback route.
func TestVerifyCommandNeedsNoNetwork(t *testing.T) {
	base := conformance(t)
	unshare, err := exec.LookPath("unshare")
	if err == nil {
		err = exec.Command(unshare, "-n", "true").Run()
	}
	if err != nil {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatalf("root cannot make a network namespace: %v", err)
		}
		t.Skipf("run as root with unshare (util-linux) to prove this: %v", err)
	}
	exe := filepath.Join(t.TempDir(), "attestry")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, ok := range map[string]bool{
		"rekor2-timestamp-with-embedded-cert": true, "happy-path-v0.1": true, "managed-key-and-trusted-root": true, "wrong-material_fail": false,
	} {
		dir := filepath.Join(base, "bundle-verify", name)
		cmd := exec.Command(unshare, append([]string{"-n", exe}, verifyArgs(base, dir, artifactOf(base, dir))...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // no HOME, no proxies, no trust but the file given
		if out, err := cmd.CombinedOutput(); ok != (err == nil) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}
