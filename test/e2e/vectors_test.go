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

// TestPublishedBundles gives sigstore-go's published bundles to `attestry verify`.
func TestPublishedBundles(t *testing.T) {
	dir := filepath.Join(shared(t), "vectors", "sigstore-go-bundles")
	exe, prefix, _ := offline(attestry)
	const (
		release  = "sha512:46d4e2f74c4877316640000a6fdf8a8b59f1e0847667973e9859f774dd31b8f1e0937813b777fb66a2ac67d50540fe34640966eee9fc2ccca387082b4c85cd3c"
		tarball  = "sha512:bbfd372fc9beeb777fe35d05bb10c0c70a9733d366a75fed7dd18866c7391de3ee7e88ba74dd47abf3e15c845e547fcf0e5c3da80854c751554224d3a6d4e55f"
		workload = "sha256:bc103b4a84971ef6459b294a2b98568a2bfb72cded09d4acd1e16366a401f95b"
		keyed    = "sha256:6ae8a75555209fd6c44157c0aed8016e763ff435a19cf186f76863140143ff72"
	)
	by := func(identity, issuer string) []string {
		return []string{"--certificate-identity", identity, "--certificate-oidc-issuer", issuer}
	}
	workflow := by("https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main", beaconIssuer)
	for _, tt := range []struct {
		bundle, root, artifact string
		who                    []string
		refused                string // reason code, "" when it verifies
	}{
		{"sigstore.js@2.0.0-provenance.sigstore.json", "public-good.json", release, workflow, ""},
		{"sigstore.js@2.0.0-provenance.sigstore.json", "public-good.json", tarball, workflow, "subject-mismatch"},
		{"sigstore.js@2.0.0-provenance.sigstore.json", "public-good.json", release, by("brian@dehamer.com", beaconIssuer), "identity"},
		{"dsse.sigstore.json", "public-good.json", tarball, by("brian@dehamer.com", "https://github.com/login/oauth"), "bundle-malformed"},
		{"dsse-2sigs.sigstore.json", "public-good.json", tarball, by("brian@dehamer.com", "https://github.com/login/oauth"), "bundle-malformed"},
		{"othername.sigstore.json", "scaffolding.json", workload, by("foo!oidc.local", "http://oidc.local:8080"), ""},
		{"othername.sigstore.json", "scaffolding.json", workload, by("foo@oidc.local", "http://oidc.local:8080"), "identity"},
		{"public-key-validity.sigstore.json", "public-key-validity.json", keyed, []string{"--key", filepath.Join(dir, "public-key-validity.pem")}, ""},
		{"public-key-validity.sigstore.json", "public-key-validity.json", workload, []string{"--key", filepath.Join(dir, "public-key-validity.pem")}, "digest-mismatch"},
	} {
		t.Run(tt.bundle+" "+tt.refused, func(t *testing.T) {
			b := newSandbox(t)
			args := flags(prefix, []string{"verify", "--trusted-root", filepath.Join(dir, tt.root), "--bundle", filepath.Join(dir, tt.bundle)}, tt.who, []string{tt.artifact})
			if tt.refused == "" {
				b.must(exe, args...)
			} else {
				b.refused("not verified: "+tt.refused, exe, args...)
			}
		})
	}
}
