package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
		if verified && (err != nil || got.MediaType == "" || got.Verified == nil || !*got.Verified) {
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
	exe := build(t)
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

// validCase returns the files of a case.
func validCase(base, name string) (dir, root, artifact string) {
	dir = filepath.Join(base, "bundle-verify", name)
	root = filepath.Join(dir, "trusted_root.json")
	if _, err := os.Stat(root); err != nil {
		root = filepath.Join(base, "trusted_root.public-good.json")
	}
	return dir, root, artifactOf(base, dir)
}

func TestVerifyCommandOptions(t *testing.T) {
	base := conformance(t)
	certDir, certRoot, certArtifact := validCase(base, "happy-path-intoto-in-dsse-v3")
	keyDir, keyRoot, keyArtifact := validCase(base, "managed-key-and-trusted-root")
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert := []string{"verify", "--bundle", filepath.Join(certDir, "bundle.sigstore.json"), "--trusted-root", certRoot}
	beacon := []string{"--certificate-identity", beaconIdentity, "--certificate-oidc-issuer", beaconIssuer}
	key := []string{"verify", "--bundle", filepath.Join(keyDir, "bundle.sigstore.json"), "--trusted-root", keyRoot, "--key", filepath.Join(keyDir, "key.pub")}
	identities := `[{"issuer":"https://other.example","subject":"x"},{"issuerRegExp":"https://token\\..*","subjectRegExp":".*/extremely-dangerous-oidc-beacon.yml@.*","extensions":{"runnerEnvironment":"github-hosted"}}]`
	for name, c := range map[string]struct {
		args   []string
		status int
		want   string // in the error, for status 1 the reason
	}{
		"one of two identities":             {append(append(slices.Clip(cert), "--certificate-identity", "other"), append(slices.Clip(beacon), certArtifact)...), 0, ""},
		"a list of identities":              {append(slices.Clip(cert), "--identities", file("who.json", identities), certArtifact), 0, ""},
		"a list that names others":          {append(slices.Clip(cert), "--identities", file("others.json", `[{"issuer":"a","subject":"b"}]`), certArtifact), exitRefused, "identity-issuer"},
		"a list in another spelling":        {append(slices.Clip(cert), "--identities", file("case.json", `[{"Issuer":"a","subject":"b"}]`), certArtifact), exitUndecided, `"Issuer" is not known`},
		"a list with a member twice":        {append(slices.Clip(cert), "--identities", file("twice.json", `[{"issuer":"a","issuer":"b","subject":"b"}]`), certArtifact), exitUndecided, "twice"},
		"an empty list":                     {append(slices.Clip(cert), "--identities", file("empty.json", `[]`), certArtifact), exitUndecided, "0 identities"},
		"a list beside an identity":         {append(append(slices.Clip(cert), "--identities", file("both.json", identities)), append(slices.Clip(beacon), certArtifact)...), exitUndecided, "not both"},
		"an extension":                      {append(append(slices.Clip(cert), "--certificate-extension", "runnerEnvironment=github-hosted"), append(slices.Clip(beacon), certArtifact)...), 0, ""},
		"another value of an extension":     {append(append(slices.Clip(cert), "--certificate-extension", "runnerEnvironment=self-hosted"), append(slices.Clip(beacon), certArtifact)...), exitRefused, "identity-extension"},
		"an extension that there is not":    {append(append(slices.Clip(cert), "--certificate-extension", "runnerenvironment=x"), append(slices.Clip(beacon), certArtifact)...), exitUndecided, "sourceRepositoryURI"},
		"an extension without a value":      {append(append(slices.Clip(cert), "--certificate-extension", "runnerEnvironment="), append(slices.Clip(beacon), certArtifact)...), exitUndecided, "without a value"},
		"two log entries":                   {append(append(slices.Clip(cert), "--log-entries", "2"), append(slices.Clip(beacon), certArtifact)...), exitRefused, "log-entry-missing"},
		"a signed time":                     {append(append(slices.Clip(cert), "--signed-timestamps", "1"), append(slices.Clip(beacon), certArtifact)...), exitRefused, "no-time"},
		"an integrated time":                {append(append(slices.Clip(cert), "--integrated-timestamps", "1"), append(slices.Clip(beacon), certArtifact)...), 0, ""},
		"two times":                         {append(append(slices.Clip(cert), "--observer-timestamps", "2"), append(slices.Clip(beacon), certArtifact)...), exitRefused, "no-time"},
		"two SCTs":                          {append(append(slices.Clip(cert), "--scts", "2"), append(slices.Clip(beacon), certArtifact)...), exitRefused, "sct-missing"},
		"no SCT":                            {append(append(slices.Clip(cert), "--scts", "0"), append(slices.Clip(beacon), certArtifact)...), 0, ""},
		"33 SCTs":                           {append(append(slices.Clip(cert), "--scts", "33"), append(slices.Clip(beacon), certArtifact)...), exitUndecided, "between 0 and 32"},
		"a trust age without metadata":      {append(append(slices.Clip(cert), "--max-trust-age", "24h"), append(slices.Clip(beacon), certArtifact)...), exitRefused, "trust-stale"},
		"a warning of age without metadata": {append(append(slices.Clip(cert), "--warn-trust-age", "24h"), append(slices.Clip(beacon), certArtifact)...), 0, ""},
		"a directory without metadata":      {append(append(slices.Clip(cert), "--trust-metadata", dir), append(slices.Clip(beacon), certArtifact)...), exitUndecided, "root.json"},
		"a key":                             {append(slices.Clip(key), keyArtifact), 0, ""},
		"a key that has ended":              {append(slices.Clip(key), "--key-until", "2020-01-01T00:00:00Z", keyArtifact), exitRefused, "key-expired"},
		"a key in its window":               {append(slices.Clip(key), "--key-from", "2020-01-01T00:00:00Z", "--key-until", "2100-01-01T00:00:00Z", keyArtifact), 0, ""},
		"a window back to front":            {append(slices.Clip(key), "--key-from", "2021-01-01T00:00:00Z", "--key-until", "2020-01-01T00:00:00Z", keyArtifact), exitUndecided, "before"},
		"a window without a key":            {append(append(slices.Clip(cert), "--key-until", "2020-01-01T00:00:00Z"), append(slices.Clip(beacon), certArtifact)...), exitUndecided, "--key"},
		"another artifact":                  {append(slices.Clip(key), file("other", "other")), exitRefused, "digest-mismatch"},
		"a flag that there is not":          {append(slices.Clip(key), "--identity", "x", keyArtifact), exitUndecided, "unknown flag"},
		"two artifacts":                     {append(slices.Clip(key), keyArtifact, keyArtifact), exitUndecided, "accepts at most 1 arg"},
		"no such artifact":                  {append(slices.Clip(key), filepath.Join(dir, "missing")), exitUndecided, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := run(t.Context(), append(slices.Clone(c.args), "--output", "json"), &stdout, &stderr)
			status := 0
			if err != nil {
				status = exitStatus(err)
			}
			if status != c.status || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("status %d, want %d: %v", status, c.status, err)
			}
			if strings.HasPrefix(name, "a warning") && !strings.Contains(stderr.String(), "warning: the age") {
				t.Errorf("no warning: %s", &stderr)
			}
			var got struct{ Reason, Class string }
			if c.status == exitRefused {
				if err := json.Unmarshal(stdout.Bytes(), &got); err != nil || got.Reason != c.want || got.Class == "" {
					t.Errorf("%v: %s", err, &stdout)
				}
			}
		})
	}
}
