package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// TestKyvernoDecidesAsWeDo has Kyverno's CLI and our import decide about the same policies and images: signatures and attestations that
// cosign made with keys and with certificates of our CA, in the form that Kyverno reads.
func TestKyvernoDecidesAsWeDo(t *testing.T) {
	if !long() {
		t.Skip("skipped: takes minutes; enable with: scripts/test --long")
	}
	kyverno := filepath.Join(clientsDir(t), "kubectl-kyverno-v1.19.1", "kubectl-kyverno")
	if _, err := os.Stat(kyverno); err != nil {
		missing(t, false, "the Kyverno CLI is not built; enable with: ../shared/clients/get.sh kubectl-kyverno")
	}
	cosign := client(t, "cosign", "v2.6.5")
	s := up(t)
	b := newSandbox(t)
	b.source(s.client("env.cosign2"))
	b.set("COSIGN_PASSWORD", "")
	b.must(cosign, "generate-key-pair")
	b.must(cosign, "generate-key-pair", "--output-key-prefix", "other")
	key, other := readFile(t, b.path("cosign.pub")), readFile(t, b.path("other.pub"))
	registry := newRegistry(t, true)
	scan := func(result string) string {
		return b.file(result+".json", `{"scan":{"result":"`+result+`","critical":0}}`)
	}
	keyed := func(image string) string {
		b.must(cosign, "sign", "--yes", "--key", "cosign.key", "--tlog-upload=false", "-a", "env=prod", image)
		return image
	}
	attested := func(image, result string) string {
		b.must(cosign, "attest", "--yes", "--key", "cosign.key", "--rekor-url", s.url, "--type", "https://example.com/scan/v1", "--predicate", scan(result), image)
		return image
	}
	urls := []string{"--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer(), "--timestamp-server-url", s.url + "/api/v1/timestamp"}
	alice := registry.push("alice")
	b.must(cosign, flags([]string{"sign", "--yes", "--identity-token", s.alice()}, urls, []string{alice})...)
	images := map[string]string{
		"unsigned": registry.push("unsigned"), "signed": keyed(registry.push("signed")), "attested": attested(keyed(registry.push("attested")), "passed"),
		"failed scan": attested(keyed(registry.push("failed")), "failed"), "alice's": alice,
	}

	entry := func(key string) string {
		return "keys:\n  rekor: {url: " + s.url + ", ignoreTlog: true}\n  ctlog: {ignoreSCT: true}\n  publicKeys: |-\n    " + indentYAML(key, 4)
	}
	keyless := func(subject string) string {
		return fmt.Sprintf("keyless:\n  subject: %q\n  issuer: %q\n  roots: |-\n    %s\n  rekor:\n    url: %s\n    pubkey: |-\n      %s\n  ctlog:\n    pubkey: |-\n      %s", subject, s.issuer(),
			indentYAML(readFile(t, s.client("fulcio.pem")), 4), s.url, indentYAML(readFile(t, s.client("rekor.pem")), 6), indentYAML(readFile(t, s.client("ctfe.pem")), 6))
	}
	attestors := func(count string, entries ...string) string {
		out := "attestors:\n  - " + count + "entries:\n"
		for _, e := range entries {
			out += "      - " + indentYAML(e, 8) + "\n"
		}
		return out
	}
	condition := func(c string) string {
		return "attestations:\n  - type: https://example.com/scan/v1\n    attestors:\n      - entries:\n          - " + indentYAML(entry(key), 12) + "\n    conditions:\n      - all:\n          - " + c
	}
	cluster := func(item string) string {
		return "apiVersion: kyverno.io/v1\nkind: ClusterPolicy\nmetadata:\n  name: p\nspec:\n  validationFailureAction: Enforce\n  background: false\n  rules:\n    - name: check\n      match:\n        any:\n" +
			"          - resources:\n              kinds: [Pod]\n      verifyImages:\n        - imageReferences: [\"*\"]\n          mutateDigest: false\n          verifyDigest: true\n          useCache: false\n          " + indentYAML(item, 10) + "\n"
	}
	cel := func(attestor, rest string) string {
		return "apiVersion: policies.kyverno.io/v1\nkind: ImageValidatingPolicy\nmetadata:\n  name: p\nspec:\n  matchConstraints:\n    resourceRules:\n      - {apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [pods]}\n" +
			"  matchImageReferences:\n    - glob: \"*\"\n  attestors:\n    - name: a\n      cosign:\n        " + indentYAML(attestor, 8) + "\n  " + indentYAML(rest, 2) + "\n"
	}
	celKey := func(key string) string {
		return "key:\n  data: |-\n    " + indentYAML(key, 4) + "\nctlog: {insecureIgnoreTlog: true, insecureIgnoreSCT: true}"
	}
	// Kyverno takes no attestation whose log it ignores: it asks cosign whether the entry verified.
	logged := "key:\n  data: |-\n    " + indentYAML(key, 4) + "\nctlog: {url: " + s.url + ", insecureIgnoreSCT: true}\n" + ownTrust(t, s)
	const signature = "validations:\n  - expression: images.containers.map(image, verifyImageSignatures(image, [attestors.a])).all(e, e > 0)\n    message: unsigned"
	const payload = `attestations:
  - {name: scan, intoto: {type: "https://example.com/scan/v1"}}
validations:
  - expression: images.containers.map(image, verifyAttestationSignatures(image, attestations.scan, [attestors.a])).all(e, e > 0)
    message: no scan
  - expression: images.containers.map(image, extractPayload(image, attestations.scan).predicate.scan.result == 'passed').all(e, e)
    message: the scan failed`
	for name, tt := range map[string]struct{ text, allows string }{
		"a key":                       {cluster(attestors("", entry(key))), "signed|attested|failed scan"},
		"another key":                 {cluster(attestors("", entry(other))), ""},
		"one of two keys":             {cluster(attestors("count: 1\n    ", entry(other), entry(key))), "signed|attested|failed scan"},
		"both of two keys":            {cluster(attestors("", entry(other), entry(key))), ""},
		"annotations":                 {cluster(attestors("", entry(key)+"\nannotations: {env: prod}")), "signed|attested|failed scan"},
		"other annotations":           {cluster(attestors("", entry(key)+"\nannotations: {env: test}")), ""},
		"an attestation":              {cluster(condition("{key: \"{{ scan.critical }}\", operator: Equals, value: 0}")), "attested|failed scan"},
		"a scan that passed":          {cluster(condition("{key: \"{{ scan.result }}\", operator: Equals, value: \"pass*\"}")), "attested"},
		"a number that is too large":  {cluster(condition("{key: \"{{ scan.critical }}\", operator: GreaterThan, value: 0}")), ""},
		"a list":                      {cluster(condition("{key: \"{{ scan.result }}\", operator: AnyIn, value: [passed, waived]}")), "attested"},
		"a field that is absent":      {cluster(condition("{key: \"{{ scan.absent }}\", operator: NotEquals, value: x}")), ""},
		"an identity":                 {cluster(attestors("", keyless("alice@example.com"))), "alice's"},
		"an identity with a wildcard": {cluster(attestors("", keyless("*@example.com"))), "alice's"},
		"another identity":            {cluster(attestors("", keyless("bob@example.com"))), ""},
		"CEL: a key":                  {cel(celKey(key), signature), "signed|attested|failed scan"},
		"CEL: another key":            {cel(celKey(other), signature), ""},
		"CEL: a payload":              {cel(logged, payload), "attested"},
		"CEL: an identity":            {cel(celIdentity(t, s, "alice@example.com"), signature), "alice's"},
		"CEL: another identity":       {cel(celIdentity(t, s, "bob@example.com"), signature), ""},
	} {
		loaded, err := policy.Compile([]policy.File{{Name: "p.yaml", Data: []byte(tt.text)}}, policy.Options{TrustedRoot: []byte(readFile(t, s.client("trusted_root.json")))})
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, tt.text)
			continue
		}
		set, err := policy.NewSet(loaded.Policies, policy.SetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for which, image := range images {
			t.Run(name+", the image is "+which, func(t *testing.T) {
				ours := decideOn(t, set, image)
				theirs, said := kyvernoDecides(t, b, kyverno, tt.text, image)
				if !ours.Allowed && strings.HasPrefix(string(ours.Policies[0].Reason), "registry") {
					t.Fatalf("refused for another reason: %+v", ours)
				}
				if want := slices.Contains(strings.Split(tt.allows, "|"), which); ours.Allowed != want {
					t.Errorf("we allow it: %v, want %v\n%+v", ours.Allowed, want, ours)
				}
				if ours.Allowed != theirs {
					t.Errorf("we allow it: %v, Kyverno: %v\n%+v\n%s", ours.Allowed, theirs, ours, said)
				}
			})
		}
	}
}

func celIdentity(t *testing.T, s *stack, subject string) string {
	return fmt.Sprintf("keyless:\n  identities: [{issuer: %q, subject: %q}]\nctlog: {url: %s}\n%s", s.issuer(), subject, s.url, ownTrust(t, s))
}

// ownTrust has all trust in the policy. Kyverno initialises TUF nevertheless.
func ownTrust(t *testing.T, s *stack) string {
	return fmt.Sprintf("tuf:\n  mirror: %s/tuf\n  root: {data: %s}\ntrustedRoot:\n  value: |-\n    %s", s.url,
		base64.StdEncoding.EncodeToString([]byte(readFile(t, s.client("root.json")))), indentYAML(readFile(t, s.client("trusted_root.json")), 4))
}

func indentYAML(text string, by int) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+strings.Repeat(" ", by))
}

// decideOn decides with our import, over the registry.
func decideOn(t *testing.T, set *policy.Set, reference string) policy.Verdict {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	host, _, _ := strings.Cut(reference, "/")
	registry, err := oci.NewRegistry(oci.Options{Named: []string{host}, Insecure: []string{host}, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close()
	image, err := registry.Resolve(ctx, reference)
	if err != nil {
		t.Fatal(err)
	}
	return set.Decide(ctx, &policy.Subject{Image: image}, registry)
}

// kyvernoDecides runs `kyverno apply` on a pod with the image.
func kyvernoDecides(t *testing.T, account *sandbox, kyverno, text, image string) (allowed bool, said string) {
	t.Helper()
	b := account.in(t)
	pod := b.file("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: default}\nspec:\n  containers:\n    - {name: c, image: \""+image+"\"}\n")
	out := b.run(kyverno, "apply", b.file("policy.yaml", text), "--resource", pod, "--registry")
	said = out.String()
	// A ClusterPolicy's rule counts twice, once as it verifies and once as it looks for digests.
	var pass, fail, warn, errors int
	if i := strings.LastIndex(said, "pass: "); i >= 0 {
		if n, _ := fmt.Sscanf(said[i:], "pass: %d, fail: %d, warn: %d, error: %d", &pass, &fail, &warn, &errors); n == 4 && pass+fail+errors > 0 && warn == 0 {
			return fail+errors == 0, said
		}
	}
	t.Fatalf("Kyverno says neither: %v\n%s", out.err, said)
	return false, said
}
