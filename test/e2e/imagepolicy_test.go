package e2e

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/attestry/attestry/pkg/policy"
)

// production is the ClusterImagePolicy that people publish: a signature of the pipeline, SLSA provenance by their builder, a
// CycloneDX SBOM. An authority with attestations looks for no signature, so that is a policy of its own.
func production(host, issuer string) string {
	head := func(name string) string {
		return "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata:\n  name: " + name + "\nspec:\n  images:\n    - glob: \"" + host + "/golem-trust/**\"\n  authorities:\n"
	}
	pipeline := `      keyless:
        url: https://fulcio.example
        identities:
          - issuer: ` + issuer + `
            subjectRegExp: "^alice@example\\.com$"
`
	return head("production-signature") + "    - name: pipeline-signature\n" + pipeline + "---\n" + head("production") + "    - name: pipeline\n" + pipeline + `      attestations:
        - name: slsa-provenance
          predicateType: slsaprovenance
          policy:
            type: cue
            data: |
              predicateType: "https://slsa.dev/provenance/v0.2"
              predicate: builder: id: =~"^https://tekton\\.golems\\.internal/chains/"
        - name: sbom-cyclonedx
          predicateType: cyclonedx
`
}

// verdictOf is the part of `attestry policy check --output json` that tests look at.
type verdictOf struct {
	Asked   string
	Verdict *struct {
		Allowed  bool
		Policies []struct {
			Policy, Reason, Message string
			Passed                  bool
			Checks                  []struct {
				Authority, Name, Reason, Message string
				Passed                           bool
			}
		}
	}
	Error string
}

// TestAProductionPolicyOverImages enforces the policy on images that cosign of both generations signed through our stack.
func TestAProductionPolicyOverImages(t *testing.T) {
	s := up(t)
	for _, generation := range []struct {
		version   string
		referrers bool
	}{{"v3.1.3", true}, {"v3.1.3", false}, {"v2.6.5", true}} {
		t.Run(fmt.Sprintf("cosign %s, registry with referrers %v", generation.version, generation.referrers), func(t *testing.T) {
			cosign := client(t, "cosign", generation.version)
			b := newSandbox(t)
			how := []string{"--signing-config", s.client("signing_config.v0.2.json"), "--trusted-root", s.client("trusted_root.json")}
			if generation.version == "v2.6.5" {
				b.source(s.client("env.cosign2"))
				how = []string{"--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer()}
			}
			registry := newRegistry(t, generation.referrers)
			builder := func(id string) string {
				return b.file("provenance.json", `{"buildType":"https://tekton.golems.internal/build","builder":{"id":"`+id+`"}}`)
			}
			const ours = "https://tekton.golems.internal/chains/v2"
			sbom := b.file("sbom.json", `{"bomFormat":"CycloneDX","specVersion":"1.5","components":[]}`)
			sign := func(image, who string) {
				b.must(cosign, flags([]string{"sign", "--yes", "--identity-token", s.token("--email", who)}, how, []string{image})...)
			}
			attest := func(image, who, kind, predicate string) {
				b.must(cosign, flags([]string{"attest", "--yes", "--identity-token", s.token("--email", who), "--type", kind, "--predicate", predicate}, how, []string{image})...)
			}
			const alice, mallory = "alice@example.com", "mallory@example.com"
			const custom, cyclonedx = "https://golems.example/note/v1", "https://cyclonedx.org/bom"
			cases := map[string]struct {
				make func(image string)
				// want is by "policy/check" the reason of each check that fails.
				want map[string]string
			}{
				"signed": {func(image string) {
					sign(image, alice)
					attest(image, alice, "slsaprovenance", builder(ours))
					attest(image, alice, "cyclonedx", sbom)
				}, nil},
				"unsigned": {func(string) {}, map[string]string{
					"production-signature/signature": "no-signature", "production/slsa-provenance": "predicate-missing", "production/sbom-cyclonedx": "predicate-missing",
				}},
				"signed-by-mallory": {func(image string) {
					sign(image, mallory)
					attest(image, mallory, "slsaprovenance", builder(ours))
					attest(image, mallory, "cyclonedx", sbom)
				}, map[string]string{
					"production-signature/signature": "identity-subject", "production/slsa-provenance": "identity-subject", "production/sbom-cyclonedx": "identity-subject",
				}},
				"attested-only": {func(image string) {
					attest(image, alice, "slsaprovenance", builder(ours))
					attest(image, alice, "cyclonedx", sbom)
				}, map[string]string{"production-signature/signature": "no-signature"}},
				"without-sbom": {func(image string) {
					sign(image, alice)
					attest(image, alice, "slsaprovenance", builder(ours))
				}, map[string]string{"production/sbom-cyclonedx": "predicate-missing"}},
				"built-elsewhere": {func(image string) {
					sign(image, alice)
					attest(image, alice, "slsaprovenance", builder("https://laptop.example"))
					attest(image, alice, "cyclonedx", sbom)
				}, map[string]string{"production/slsa-provenance": "policy-denied"}},
				"forged-type": {func(image string) {
					sign(image, alice)
					attest(image, alice, "slsaprovenance", builder(ours))
					attest(image, alice, custom, sbom)
					registry.forge(image, custom, cyclonedx)
				}, map[string]string{"production/sbom-cyclonedx": "predicate-missing"}},
			}
			args := []string{"policy", "check", "--output", "json", "--trusted-root", s.client("trusted_root.json"), b.file("policy.yaml", production(registry.host, s.issuer()))}
			images := make(map[string]string)
			for which, c := range cases {
				images[which] = registry.push("golem-trust/" + which)
				c.make(images[which])
			}
			for which, c := range cases {
				out := b.run(attestry, append(slices.Clone(args), images[which])...)
				if want := exitOf(len(c.want) > 0); out.status() != want {
					t.Errorf("%s: status %d, want %d\n%s", which, out.status(), want, out)
				}
				var v verdictOf
				if err := json.Unmarshal([]byte(out.stdout), &v); err != nil || v.Verdict == nil || len(v.Verdict.Policies) != 2 {
					t.Errorf("%s: %v\n%s", which, err, out)
					continue
				}
				got := make(map[string]string)
				for _, p := range v.Verdict.Policies {
					for _, check := range p.Checks {
						if !check.Passed {
							got[p.Policy+"/"+check.Name] = check.Reason
						}
					}
				}
				if v.Verdict.Allowed != (len(c.want) == 0) || fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("%s: allowed %v, failed %v, want %v\n%s", which, v.Verdict.Allowed, got, c.want, out)
				}
			}
			out := b.run(attestry, "policy", "check", "--trusted-root", s.client("trusted_root.json"), b.path("policy.yaml"), images["signed"], images["without-sbom"], registry.push("elsewhere"))
			for _, line := range []string{
				"/golem-trust/signed@", ": allowed\n", "authority pipeline: slsa-provenance (SLSA provenance): verified: signed by alice@example.com",
				"authority pipeline: sbom-cyclonedx (CycloneDX SBOM): failed: predicate-missing", ": refused: no-matching-policy:",
			} {
				if !strings.Contains(out.stdout, line) {
					t.Errorf("nothing says %q\n%s", line, out)
				}
			}
			if out.status() != 1 || !strings.Contains(out.stderr, "2 of 3 images are refused") {
				t.Errorf("status %d\n%s", out.status(), out)
			}
		})
	}
}

// status is the exit status, -1 when there is none.
func (r result) status() int {
	var exit *exec.ExitError
	switch {
	case r.err == nil:
		return 0
	case errors.As(r.err, &exit):
		return exit.ExitCode()
	}
	return -1
}

func exitOf(refused bool) int {
	if refused {
		return 1
	}
	return 0
}

// forge makes the registry say that attestations of one type are of another: annotations of manifests are signed by nobody.
func (r *images) forge(image, from, to string) {
	r.t.Helper()
	ref, err := name.NewDigest(image)
	if err != nil {
		r.t.Fatal(err)
	}
	hash := strings.Replace(ref.DigestStr(), ":", "-", 1)
	targets := []name.Reference{ref.Context().Tag(hash + ".att")}
	index, err := remote.Referrers(ref)
	if err != nil {
		r.t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, m := range manifest.Manifests {
		targets = append(targets, ref.Context().Digest(m.Digest.String()))
	}
	if len(manifest.Manifests) > 0 {
		targets = append(targets, ref.Context().Tag(hash)) // the fallback's index repeats annotations
	}
	forged := 0
	for _, target := range targets {
		found, err := remote.Get(target)
		if err != nil || !strings.Contains(string(found.Manifest), from) {
			continue
		}
		at := target.Identifier()
		if strings.HasPrefix(at, "sha256:") {
			at = "forged" // a manifest of its own beside the other
		}
		r.put(ref.Context(), at, found.MediaType, strings.ReplaceAll(string(found.Manifest), from, to))
		forged++
	}
	if forged == 0 {
		r.t.Fatalf("nothing of %s says %s", image, from)
	}
}

// put writes a manifest as it is.
func (r *images) put(repository name.Repository, at string, mediaType types.MediaType, manifest string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPut, "http://"+r.host+"/v2/"+repository.RepositoryStr()+"/manifests/"+at, strings.NewReader(manifest))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", string(mediaType))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if said, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
		r.t.Fatalf("putting a manifest: %s: %s", resp.Status, said)
	}
}

// TestPolicyTesterDecidesAsWeDo has policy-controller's tester and our own reading decide about the same ClusterImagePolicies and
// images. Where they
// differ the case says what policy-tester allows besides, or cannot; docs/policy.md says why.
func TestPolicyTesterDecidesAsWeDo(t *testing.T) {
	if !long() {
		t.Skip("skipped: takes minutes; enable with: scripts/test --long")
	}
	tester := filepath.Join(clientsDir(t), "policy-tester-v0.13.1", "policy-tester")
	if _, err := os.Stat(tester); err != nil {
		missing(t, false, "policy-tester is not built; enable with: ../shared/clients/get.sh policy-tester")
	}
	cosign, cosign3 := client(t, "cosign", "v2.6.5"), client(t, "cosign", "v3.1.3")
	s := up(t)
	b, b3 := newSandbox(t), newSandbox(t)
	b.source(s.client("env.cosign2"))
	b.set("COSIGN_PASSWORD", "")
	b.must(cosign, "generate-key-pair")
	b.must(cosign, "generate-key-pair", "--output-key-prefix", "other")
	registry := newRegistry(t, true)
	urls := []string{"--yes", "--identity-token", s.alice(), "--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer()}
	provenance := b.file("provenance.json", predicate)
	images := make(map[string]string)
	for _, which := range []string{"unsigned", "keyed", "alice", "attested", "bundled", "unlogged"} {
		images[which] = registry.push(which)
	}
	b.must(cosign, "sign", "--yes", "--key", "cosign.key", "--tlog-upload=false", images["keyed"])
	b.must(cosign, flags([]string{"sign"}, urls, []string{images["alice"]})...)
	b.must(cosign, flags([]string{"sign", "--tlog-upload=false"}, urls, []string{images["unlogged"]})...)
	b.must(cosign, flags([]string{"attest", "--type", "slsaprovenance", "--predicate", provenance}, urls, []string{images["attested"]})...)
	b3.must(cosign3, "sign", "--yes", "--identity-token", s.alice(), "--signing-config", s.client("signing_config.rekor1.v0.2.json"), "--trusted-root", s.client("trusted_root.json"), images["bundled"])

	trust := "apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: ours}\nspec:\n  remote:\n    mirror: " + s.url + "/tuf\n    root: " + base64.StdEncoding.EncodeToString([]byte(readFile(t, s.client("root.json")))) + "\n"
	mirror := map[string]fs.FS{s.url + "/tuf": os.DirFS(filepath.Join(s.dir, "tuf"))}
	keyless := func(identity string, more ...string) string {
		return "    - name: a\n      keyless: {url: " + s.url + ", trustRootRef: ours, identities: [{" + identity + "}]}\n      ctlog: {url: " + s.url + ", trustRootRef: ours}\n" + strings.Join(more, "")
	}
	alice := "issuer: \"" + s.issuer() + "\", subject: alice@example.com"
	keyed := func(key string) string {
		return "    - name: k\n      key:\n        hashAlgorithm: sha256\n        data: |\n          " + indentYAML(readFile(t, b.path(key)), 10) + "\n"
	}
	attestation := func(kind, language, text string) string {
		out := "      attestations:\n        - name: prov\n          predicateType: " + kind + "\n"
		if language != "" {
			out += "          policy:\n            type: " + language + "\n            data: |\n              " + indentYAML(text, 14) + "\n"
		}
		return out
	}
	whole := func(language, text string) string {
		return "  policy:\n    type: " + language + "\n    data: |\n      " + indentYAML(text, 6) + "\n"
	}
	const pass, fail = "    - name: s\n      static: {action: pass}\n", "    - name: s\n      static: {action: fail, message: frozen}\n"
	const slsa = "slsaprovenance"
	for title, tt := range map[string]struct {
		authorities, spec, annotations string
		images                         string // that are tried
		allows                         string // by us
		looser, unable                 string // what policy-tester allows besides, and what it refuses of ours
	}{
		"an identity":                          {authorities: keyless(alice), images: "unsigned keyed alice attested", allows: "alice"},
		"another subject":                      {authorities: keyless("issuer: \"" + s.issuer() + "\", subject: bob@example.com"), images: "alice"},
		"another issuer":                       {authorities: keyless("issuer: https://issuer.example, subject: alice@example.com"), images: "alice"},
		"a subject by an unanchored pattern":   {authorities: keyless("issuer: \"" + s.issuer() + "\", subjectRegExp: lice@"), images: "alice", allows: "alice"},
		"a key":                                {authorities: keyed("cosign.pub"), images: "unsigned keyed alice", allows: "keyed"},
		"another key":                          {authorities: keyed("other.pub"), images: "keyed"},
		"one of two authorities":               {authorities: keyed("cosign.pub") + keyless(alice), images: "unsigned keyed alice", allows: "keyed alice"},
		"a bundle":                             {authorities: keyless(alice, "      signatureFormat: bundle\n"), images: "bundled alice", allows: "bundled", unable: "bundled"},
		"a bundle as an attestation":           {authorities: keyless(alice, "      signatureFormat: bundle\n", attestation("https://sigstore.dev/cosign/sign/v1", "", "")), images: "bundled alice", allows: "bundled", unable: "bundled"},
		"either form":                          {authorities: keyless(alice), images: "bundled", allows: "bundled", unable: "bundled"},
		"no entry in the log":                  {authorities: keyless(alice), images: "unlogged"},
		"no ctlog, and no entry":               {authorities: "    - name: a\n      keyless: {url: " + s.url + ", trustRootRef: ours, identities: [{" + alice + "}]}\n", images: "unlogged", looser: "unlogged"},
		"an attestation":                       {authorities: keyless(alice, attestation(slsa, "", "")), images: "alice attested", allows: "attested"},
		"an attestation of another type":       {authorities: keyless(alice, attestation("cyclonedx", "", "")), images: "attested"},
		"CUE that fits":                        {authorities: keyless(alice, attestation(slsa, "cue", `predicate: builder: id: =~"^https://example.com/"`)), images: "attested", allows: "attested"},
		"CUE that does not":                    {authorities: keyless(alice, attestation(slsa, "cue", `predicate: builder: id: =~"^https://other.example/"`)), images: "attested"},
		"CUE of a field that is absent":        {authorities: keyless(alice, attestation(slsa, "cue", `predicate: reviewer: id: =~"^https://example.com/"`)), images: "attested", looser: "attested"},
		"the same with upstream's semantics":   {authorities: keyless(alice, attestation(slsa, "cue", `predicate: reviewer: id: =~"^https://example.com/"`)), annotations: ", annotations: {attestry.dev/cue-semantics: upstream}", images: "attested", allows: "attested"},
		"Rego that fits":                       {authorities: keyless(alice, attestation(slsa, "rego", "package sigstore\nisCompliant { input.predicate.builder.id == \"https://example.com/ci\" }")), images: "attested", allows: "attested"},
		"Rego that does not":                   {authorities: keyless(alice, attestation(slsa, "rego", "package sigstore\ndefault isCompliant = false\nisCompliant { input.predicate.builder.id == \"x\" }")), images: "attested"},
		"Rego that says an error":              {authorities: keyless(alice, attestation(slsa, "rego", "package sigstore\nisCompliant[r] { r := {\"result\": false, \"error\": \"no\"} }")), images: "attested"},
		"Rego that says a warning and true":    {authorities: keyless(alice, attestation(slsa, "rego", "package sigstore\nisCompliant[r] { r := {\"result\": true, \"warning\": \"soon\"} }")), images: "attested"},
		"static pass":                          {authorities: pass, images: "unsigned", allows: "unsigned"},
		"static fail":                          {authorities: fail, images: "unsigned alice"},
		"a policy over the authority that met": {authorities: keyless(alice), spec: whole("cue", `authorityMatches: a: signatures: [{subject: "alice@example.com"}]`), images: "alice unsigned", allows: "alice"},
		"a policy over one that did not":       {authorities: keyless(alice) + keyed("cosign.pub"), spec: whole("cue", `authorityMatches: k: signatures: [...]`), images: "alice", looser: "alice"},
	} {
		text := "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p" + tt.annotations + "}\nspec:\n  images: [{glob: \"**\"}]\n  authorities:\n" + tt.authorities + tt.spec
		loaded, err := policy.Compile([]policy.File{{Name: "trust.yaml", Data: []byte(trust)}, {Name: "p.yaml", Data: []byte(text)}}, policy.Options{Mirrors: mirror})
		if err != nil {
			t.Errorf("%s: %v\n%s", title, err, text)
			continue
		}
		set, err := policy.NewSet(loaded.Policies, policy.SetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, which := range strings.Fields(tt.images) {
			t.Run(title+", the image is "+which, func(t *testing.T) {
				b := b.in(t)
				ours := decideOn(t, set, images[which])
				out := b.run(tester, "-policy", b.file("p.yaml", text), "-trustroot", b.file("trust.yaml", trust), "-image", images[which])
				theirs := out.err == nil
				if !strings.Contains(out.String(), `"errors"`) && !theirs {
					t.Fatalf("policy-tester says neither: %v\n%s", out.err, out)
				}
				if want := slices.Contains(strings.Fields(tt.allows), which); ours.Allowed != want {
					t.Errorf("we allow it: %v, want %v\n%+v", ours.Allowed, want, ours)
				}
				want := slices.Contains(strings.Fields(tt.allows+" "+tt.looser), which) && !slices.Contains(strings.Fields(tt.unable), which)
				if theirs != want {
					t.Errorf("policy-tester allows it: %v, want %v\n%s", theirs, want, out)
				}
			})
		}
	}
}

// TestAManifestIsChecked takes the images of a manifest, one of which is an index whose images are signed and it is not.
func TestAManifestIsChecked(t *testing.T) {
	s, b, registry := up(t), newSandbox(t), newRegistry(t, true)
	signed, many := registry.push("golem-trust/signed"), registry.pushIndex("golem-trust/many")
	unsigned := registry.push("golem-trust/unsigned")
	sign := func(image string) {
		b.must(attestry, flags([]string{"sign", "--identity-token", s.alice()}, s.signing(), []string{image})...)
	}
	sign(signed)
	ref, err := name.ParseReference(many)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list.Manifests {
		sign(ref.Context().Digest(d.Digest.String()).String())
	}
	policies := b.file("policy.yaml", strings.SplitN(production(registry.host, s.issuer()), "---\n", 2)[0])
	manifest := func(kind, more string) string {
		return b.file(kind+".yaml", "apiVersion: apps/v1\nkind: "+kind+"\nmetadata: {name: web}\nspec:\n  template:\n    spec:\n      initContainers: [{name: init, image: "+tagged(many)+
			"}]\n      containers: [{name: app, image: \""+signed+"\"}"+more+"]\n")
	}
	check := func(more ...string) ([]string, string) {
		t.Helper()
		out := b.run(attestry, flags([]string{"policy", "check", "--trusted-root", s.client("trusted_root.json"), "--output", "json"}, more, []string{policies})...)
		var got []string
		for _, line := range strings.Split(strings.TrimSpace(out.stdout), "\n") {
			var v verdictOf
			if json.Unmarshal([]byte(line), &v) != nil || v.Asked == "" {
				continue
			}
			word := "undecided"
			if v.Verdict != nil {
				word = fmt.Sprint(v.Verdict.Allowed)
			}
			_, image, _ := strings.Cut(v.Asked, "/golem-trust/")
			image, _, _ = strings.Cut(image, "@")
			got = append(got, strings.TrimSuffix(image, ":v1")+" "+word)
		}
		return got, out.stdout + out.stderr
	}
	local := []string{"--registry-network", "127.0.0.0/8", "--registry-network", "::1/128"}
	for _, tt := range []struct {
		name string
		more []string
		want string
	}{
		{"the index itself is not signed", local, "many false, signed true"},
		{"each of its images is", append(local, "--children", "all"), "many true, signed true"},
		{"either will do", append(local, "--children", "any"), "many true, signed true"},
		{"where registries on loopback are not allowed", nil, "many undecided, signed false"},
	} {
		if got, out := check(append([]string{"--resource", manifest("Deployment", "")}, tt.more...)...); strings.Join(got, ", ") != tt.want {
			t.Errorf("%s: %v, want %s\n%s", tt.name, got, tt.want, out)
		}
	}
	got, out := check(append([]string{"--children", "any", "--resource", manifest("StatefulSet", ", {name: other, image: \""+unsigned+"\"}")}, local...)...)
	if strings.Join(got, ", ") != "many true, signed true, unsigned false" || !strings.Contains(out, "1 of 3 images are refused") || !strings.Contains(out, `"object":"StatefulSet/web"`) {
		t.Errorf("%v\n%s", got, out)
	}
}
