package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestPolicyToolsOverAnInstance lints policies, tests them, and replays them over the logs of an instance and over images in a
// registry: alice may sign, mallory did.
func TestPolicyToolsOverAnInstance(t *testing.T) {
	cosign := client(t, "cosign", "v3.1.3")
	s := up(t)
	b := newSandbox(t)
	for _, dir := range []string{"policies", "cases"} {
		if err := os.Mkdir(b.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	registry := newRegistry(t, false)
	good, bad := registry.push("good"), registry.push("bad")
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	as := func(who string) string { return s.token("--email", who) }
	for image, who := range map[string]string{good: "alice@example.com", bad: "mallory@example.com"} {
		for _, version := range s.rekors() {
			b.must(cosign, flags([]string{"sign", "--yes", "--identity-token", as(who), "--signing-config", s.client(version.config)}, trust, []string{image})...)
		}
	}
	policy := b.file("policies/alice.yaml", fmt.Sprintf(`kind: sigstore_policy
version: v1
metadata:
  name: alice
spec:
  keyless:
    identities:
      - issuer: %s
        subject_regex: ^alice@example.com$
  requirements:
    artifact_signature: true
`, s.issuer()))

	out := b.run(attestry, flags([]string{"policy", "lint"}, trust, []string{"--output", "json", policy})...)
	if out.err == nil || !strings.Contains(out.stdout, `"code":"regexp-dot"`) || !strings.Contains(out.stdout, `"code":"issuer-http"`) {
		t.Errorf("lint: %v\n%s", out.err, out)
	}
	b.must(attestry, flags([]string{"policy", "lint", "--ignore", "regexp-dot", "--ignore", "issuer-http"}, trust, []string{policy})...)

	images := b.file("images.txt", good+"\n"+bad+" # no good\n")
	for name, tt := range map[string]struct {
		from    []string
		entries int
	}{
		"served": {[]string{"--log", s.url}, 2},
		"stored": {[]string{"--dir", s.dir}, 2},
		"images": {[]string{"--images", images, "--registry-insecure", registry.host}, 2},
	} {
		out := b.run(attestry, flags([]string{"policy", "replay", "--exit-code", "--all", "--output", "json"}, trust, tt.from, []string{policy})...)
		if out.err == nil {
			t.Errorf("%s: nobody failed\n%s", name, out)
		}
		type signed struct {
			Subject, Reason, FirstFailure, LastFailure string
			Entries, Failed                            int
		}
		var all []signed
		for _, line := range strings.Split(strings.TrimSpace(out.stdout), "\n") {
			var one signed
			if err := json.Unmarshal([]byte(line), &one); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, out)
			}
			all = append(all, one)
		}
		if len(all) != 2 {
			t.Fatalf("%s: %d signers\n%s", name, len(all), out)
		}
		if m := all[0]; m.Subject != "mallory@example.com" || m.Entries != tt.entries || m.Failed != tt.entries || m.Reason != "identity-subject" || m.FirstFailure == "" || m.LastFailure < m.FirstFailure {
			t.Errorf("%s: %+v", name, m)
		}
		if a := all[1]; a.Subject != "alice@example.com" || a.Failed != 0 || a.Entries != tt.entries {
			t.Errorf("%s: %+v", name, a)
		}
	}
	out = b.run(attestry, flags([]string{"policy", "replay", "--log", s.url}, trust, []string{policy})...)
	if out.err != nil || !strings.Contains(out.stdout, "mallory@example.com") || strings.Contains(out.stdout, "alice@example.com") {
		t.Errorf("the table: %v\n%s", out.err, out)
	}
	b.refused(`serves neither`, attestry, flags([]string{"policy", "replay", "--log", s.url + "/nothing"}, trust, []string{policy})...)

	// A file stands for an image's manifest: what is attested is a digest.
	manifest := b.file("manifest.json", "a manifest")
	b.must(attestry, flags([]string{"attest", "--identity-token", as("alice@example.com"), "--signing-config", s.client("signing_config.v0.2.json"), "--type", "https://sigstore.dev/cosign/sign/v1",
		"--predicate", b.file("predicate.json", `{}`), "--bundle", b.path("cases/alice.json")}, trust, []string{manifest})...)
	s.stop()
	image := fmt.Sprintf("registry.example/app@sha256:%x", sha256.Sum256([]byte("a manifest")))
	cases := fmt.Sprintf(`cases:
  - {name: signed, policy: ../policies, trusted_root: %[1]s, bundle: alice.json, image: %[2]q, expect: allow}
  - {name: unsigned, policy: ../policies, trusted_root: %[1]s, bundle: [], image: %[2]q, expect: deny, reason: no-signature}
`, s.client("trusted_root.json"), image)
	b.file("cases/all_test.yaml", cases)
	if out := b.must(attestry, "policy", "test", "cases"); !strings.HasPrefix(out, "ok  \tcases\t") || !strings.Contains(out, "2 cases, 0 failed") {
		t.Errorf("%s", out)
	}
	b.file("cases/all_test.yaml", strings.Replace(cases, "expect: allow", "expect: deny", 1))
	out = b.run(attestry, "policy", "test", "cases")
	if out.err == nil || !strings.Contains(out.stdout, "--- FAIL: signed (") || !strings.Contains(out.stdout, "want deny, got allow") || !strings.Contains(out.stdout, "FAIL\tcases\t") {
		t.Errorf("%v\n%s", out.err, out)
	}
}

// TestASigstorePolicyWithPrivateRootsAndGitHubIdentities: a workflow of GitHub signs with our stack, and a policy with private roots
// decides without it.
func TestASigstorePolicyWithPrivateRootsAndGitHubIdentities(t *testing.T) {
	idp := newIssuers(t)
	s := up(t, "--ca-config", issuerFile(t, idp.config(t)))
	b := newSandbox(t)
	const slsa = "https://slsa.dev/provenance/v1"
	manifest := b.file("manifest.json", "a manifest")
	for name, token := range map[string]string{"github": idp.token("github", nil), "alice": s.alice()} {
		b.must(attestry, "attest", "--identity-token", token, "--signing-config", s.client("signing_config.v0.2.json"), "--trusted-root", s.client("trusted_root.json"),
			"--type", slsa, "--predicate", b.file("predicate.json", `{"buildDefinition":{}}`), "--bundle", b.path(name+".json"), manifest)
	}
	root := readFile(t, s.client("trusted_root.json"))
	s.stop()
	workflow := idp.cases["github"].Claims["job_workflow_ref"].(string)
	organisation, _, _ := strings.Cut(workflow, "/")
	branch := workflow[strings.Index(workflow, "@"):]
	policy := func(organisation string) string {
		return fmt.Sprintf(`kind: sigstore_policy
version: v1
metadata:
  name: github-provenance
spec:
  keyless:
    identities:
      - issuer: https://accounts.google.com
        subject: somebody@example.com
      - issuer_regex: ^%s(/asteroid-earth)?$
        subject_regex: ^https://github.com/%s/(.*)/\.github/workflows/(.*)%s$
    trusted_roots:
      - |
        %s
  requirements:
    artifact_signature: false
    attestations:
      - predicate_type: %s
`, idp.issuer("github"), organisation, branch, indentYAML(root, 8), slsa)
	}
	b.file("ours.yaml", policy(organisation))
	b.file("theirs.yaml", policy("asteroid-earth"))
	b.file("all_test.yaml", fmt.Sprintf(`cases:
  - {name: the workflow, policy: ours.yaml, bundle: github.json, image: "app@sha256:%[1]x", expect: allow}
  - {name: another organisation, policy: theirs.yaml, bundle: github.json, image: "app@sha256:%[1]x", expect: deny, reason: identity-subject}
  - {name: a person, policy: ours.yaml, bundle: alice.json, image: "app@sha256:%[1]x", expect: deny, reason: identity-issuer}
  - {name: another image, policy: ours.yaml, bundle: github.json, image: "app@sha256:%[2]x", expect: deny, reason: subject-mismatch}
`, sha256.Sum256([]byte("a manifest")), sha256.Sum256([]byte("another"))))
	if out := b.must(attestry, "policy", "test", "-v", "."); !strings.Contains(out, "4 cases, 0 failed") {
		t.Errorf("%s", out)
	}
}
