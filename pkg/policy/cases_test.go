package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify/oci"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCasesOverBundles(t *testing.T) {
	image := imageOf("registry.example/app")
	s := newSite(t)
	alice := s.sign("alice@example.com", image)
	sbom := s.attest("alice@example.com", image, spdx, `{}`)
	policy := func(name, subject, requirements string) string {
		return strings.Replace(teleportYAML(fmt.Sprintf("keyless:\n  identities:\n    - {issuer: %q, subject: %s}\nrequirements:\n  %s", s.issuer, subject, requirements)), "name: p", "name: "+name, 1)
	}
	dir := t.TempDir()
	kyverno := strings.Replace(clusterYAML("imageReferences: [\"registry.example/*\"]\nattestors: [{entries: [{keyless: {issuer: \""+s.issuer+"\", subject: bob@example.com}}]}]"), "name: p", "name: k", 1)
	writeFiles(t, dir, map[string]string{
		"root.json": string(s.trusted), "alice.json": string(alice.Bundle), "sbom.json": string(sbom.Bundle),
		"policies/signed.yaml": policy("signed", "alice@example.com", "artifact_signature: true"),
		"policies/sbom.yaml":   policy("sbom", "alice@example.com", "attestations: [{predicate_type: \""+spdx+"\"}]"),
		"kyverno.yaml":         kyverno,
		"default.yaml":         "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n",
		"production.yaml":      "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: production, labels: {a: b}}\nspec: {}\n",
		"all_test.yaml": strings.ReplaceAll(`cases:
  - {name: both, policy: policies, trusted_root: root.json, bundle: [alice.json, sbom.json], image: "IMAGE", expect: allow}
  - {name: no SBOM, policy: [policies], trusted_root: root.json, bundle: alice.json, image: "IMAGE", expect: deny, reason: predicate-missing}
  - {name: either, policy: policies, combine: 'satisfied("sbom") || satisfied("signed")', trusted_root: root.json, bundle: alice.json, image: "IMAGE", expect: allow}
  - {name: wrong reason, policy: policies, trusted_root: root.json, bundle: alice.json, image: "IMAGE", expect: deny, reason: cert-chain}
  - {name: wrong verdict, policy: policies, trusted_root: root.json, bundle: alice.json, image: "IMAGE", expect: allow}
  - {name: no root, policy: policies, bundle: alice.json, image: "IMAGE", expect: allow}
  - {name: no file, policy: policies, trusted_root: root.json, bundle: missing.json, image: "IMAGE", expect: deny}
  - {name: another namespace, policy: kyverno.yaml, trusted_root: root.json, resource: default.yaml, bundle: alice.json, image: "IMAGE", no_match: allow, expect: allow}
  - {name: the namespace, policy: kyverno.yaml, trusted_root: root.json, resource: production.yaml, bundle: alice.json, image: "IMAGE", no_match: allow, expect: deny, reason: identity-subject}
  - {name: no match, policy: kyverno.yaml, trusted_root: root.json, resource: default.yaml, bundle: alice.json, image: "IMAGE", expect: deny, reason: no-matching-policy}
`, "IMAGE", image.Reference),
	})
	cases, err := ReadCases(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"wrong reason": "want reason cert-chain, got [predicate-missing]", "wrong verdict": "want allow, got deny",
		"no root": "no trusted root", "no file": "missing.json",
	}
	if len(cases) != 10 || cases[0].Line != 2 || cases[0].Name != "both" {
		t.Fatalf("%d cases, the first %+v", len(cases), cases[0])
	}
	for _, c := range cases {
		result, err := c.Run(t.Context())
		got := ""
		switch {
		case err != nil:
			got = err.Error()
		case len(result.Differs) > 0:
			got = strings.Join(result.Differs, "; ")
		}
		if want[c.Name] == "" && got != "" || !strings.Contains(got, want[c.Name]) {
			t.Errorf("%s: %q, want %q", c.Name, got, want[c.Name])
		}
	}
}

func TestWhatIsNoCase(t *testing.T) {
	const rest = ", policy: a, image: b, expect: deny}]"
	for text, want := range map[string]string{
		"cases: []": "1 to 1000 cases",
		"cases: [{name: a, image: b, expect: deny}]":                        "policy is required",
		"cases: [{name: a, policy: a, image: b}]":                           "neither allow nor deny",
		"cases: [{name: a, policy: a, image: b, expect: allow, reason: x}]": "reason goes with",
		"cases: [{name: a, policy: a, expect: deny}]":                       "image is required",
		"cases: [{layout: a, bundle: b" + rest:                              "one of layout",
		"cases: [{nam: a" + rest:                                            "nam",
		"tests: []":                                                         "tests",
	} {
		if _, err := parseCases("x_test.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	dir := t.TempDir()
	if _, err := ReadCases(dir); err == nil {
		t.Error("a directory without cases passes")
	}
	for _, reference := range []string{"registry.example/app:1", "registry.example/app@sha256:00"} {
		if _, err := (bundles{}).Resolve(t.Context(), reference); err == nil {
			t.Errorf("%s names an image of bundles", reference)
		}
	}
	if _, err := ReadSubject([]byte("kind: Pod")); err == nil {
		t.Error("an object without a version is taken")
	}
}

func TestReplayShowsWhoWouldHaveFailed(t *testing.T) {
	s := newSite(t)
	image := imageOf("registry.example/app")
	alice := compileOne(t, teleportYAML("keyless:\n  identities:\n    - {issuer: \""+s.issuer+"\", subject: alice@example.com}\nrequirements:\n  artifact_signature: true"), s.trusted)
	r, err := NewReplay([]Policy{alice})
	if err != nil {
		t.Fatal(err)
	}
	byAlice, byBob := s.sign("alice@example.com", image), s.sign("bob@example.com", image)
	for _, a := range []oci.Attachment{byAlice, byBob, byBob} {
		for _, body := range bodiesOf(t, a.Bundle) {
			if err := r.AddEntry(body, timeZero, timeZero, timeZero); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.AddEntry([]byte(`{"kind":"rpm","apiVersion":"0.0.1","spec":{"publicKey":{"content":"YQ=="}}}`), timeZero, timeZero, timeZero); err != nil {
		t.Fatal(err)
	}
	if err := r.AddEntry([]byte(`x`), timeZero, timeZero, timeZero); err == nil {
		t.Error("what is no entry is taken")
	}
	got := r.Signers()
	if len(got) != 2 || r.Skipped()["rpm"] != 1 {
		t.Fatalf("%+v, %v", got, r.Skipped())
	}
	bob := got[0]
	if bob.Subject != "bob@example.com" || bob.Issuer != s.issuer || bob.Entries != 2 || bob.Failed != 2 || bob.Reason != "identity-subject" ||
		bob.FirstFailure.IsZero() || bob.LastFailure.Before(bob.FirstFailure) || len(bob.Accepted) > 0 {
		t.Errorf("%+v", bob)
	}
	if a := got[1]; a.Subject != "alice@example.com" || a.Failed != 0 || len(a.Accepted) != 1 || a.Accepted[0] != "p" || a.First.IsZero() {
		t.Errorf("%+v", a)
	}
	t.Run("outside the time", func(t *testing.T) {
		r, err := NewReplay([]Policy{alice})
		if err != nil {
			t.Fatal(err)
		}
		for _, body := range bodiesOf(t, byBob.Bundle) {
			if err := r.AddEntry(body, timeZero, bob.First.AddDate(0, 0, 1), timeZero); err != nil {
				t.Fatal(err)
			}
			if err := r.AddEntry(body, timeZero, timeZero, bob.First); err != nil {
				t.Fatal(err)
			}
		}
		if len(r.Signers()) > 0 {
			t.Errorf("%+v", r.Signers())
		}
	})
	t.Run("images", func(t *testing.T) {
		r, err := NewReplay([]Policy{alice})
		if err != nil {
			t.Fatal(err)
		}
		set, err := NewSet([]Policy{alice}, SetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []oci.Attachment{byAlice, byBob} {
			v := set.Decide(t.Context(), &Subject{Image: image}, bundles{a})
			if err := r.AddImage(v, []oci.Attachment{a, {Bundle: []byte("{}")}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.AddImage(set.Decide(t.Context(), &Subject{Image: image}, bundles{}), nil); err != nil {
			t.Fatal(err)
		}
		got := r.Signers()
		if len(got) != 3 || got[0].Signer != (Signer{}) || got[0].Failed != 1 || got[0].Reason != "no-signature" ||
			got[1].Subject != "bob@example.com" || got[1].Failed != 1 || got[1].Reason != "identity-subject" || got[2].Failed != 0 {
			t.Errorf("%+v", got)
		}
	})
	if _, err := NewReplay([]Policy{&fixed{name: "a"}}); err == nil {
		t.Error("a policy that names nobody is replayed")
	}
}
