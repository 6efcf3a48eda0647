package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// signing are the flags with which attestry signs through s, by Rekor v2 unless the form needs v1.
func (s *stack) signing() []string {
	return []string{"--signing-config", s.client("signing_config.v0.2.json"), "--trusted-root", s.client("trusted_root.json")}
}

// cosigns are the versions that verify what attestry attached; those of scripts/test --long alone are left out where they are missing.
func cosigns(t *testing.T, versions ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, version := range versions {
		t.Run("there is cosign "+version, func(t *testing.T) { found[version] = client(t, "cosign", version) })
	}
	for version, path := range found {
		if path == "" {
			delete(found, version)
		}
	}
	return found
}

// TestCosignVerifiesImagesThatAttestrySigned signs and attests in each form, in registries with and without the referrers API.
func TestCosignVerifiesImagesThatAttestrySigned(t *testing.T) {
	s := up(t)
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	second := cosigns(t, "v2.4.3", "v2.6.5")
	third := cosigns(t, "v3.0.6", "v3.1.3")
	attest := func(b *sandbox) []string {
		return []string{"--type", "slsaprovenance", "--predicate", b.file("predicate.json", predicate)}
	}
	for _, referrers := range []bool{true, false} {
		t.Run(fmt.Sprintf("bundles, registry with referrers %v", referrers), func(t *testing.T) {
			b := newSandbox(t)
			image := newRegistry(t, referrers).push("team/app")
			b.must(attestry, flags([]string{"sign", "--identity-token", s.alice(), "-a", "build=7"}, s.signing(), []string{image})...)
			b.must(attestry, flags([]string{"attest", "--identity-token", s.alice()}, s.signing(), attest(b), []string{image})...)
			for version, cosign := range third {
				out := b.must(cosign, flags([]string{"verify"}, trust, s.aliceAs(), []string{image})...)
				if digest := image[strings.Index(image, "sha256:"):]; !strings.Contains(out, digest) {
					t.Errorf("cosign %s does not print the digest:\n%s", version, out)
				}
				b.must(cosign, flags([]string{"verify", "-a", "build=7"}, trust, s.aliceAs(), []string{image})...)
				b.must(cosign, flags([]string{"verify-attestation", "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{image})...)
				b.refused(`(?i)identity|SAN`, cosign, flags([]string{"verify"}, trust,
					[]string{"--certificate-identity", "bob@example.com", "--certificate-oidc-issuer", s.issuer(), image})...)
			}
			if cosign := second["v2.6.5"]; cosign != "" {
				b.must(cosign, flags([]string{"verify", "--new-bundle-format", "--use-signed-timestamps"}, trust, s.aliceAs(), []string{image})...)
				b.must(cosign, flags([]string{"verify-attestation", "--new-bundle-format", "--use-signed-timestamps", "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{image})...)
			}
			b.must(attestry, flags([]string{"verify"}, trust, s.aliceAs(), []string{image})...)
			b.must(attestry, flags([]string{"verify", "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{image})...)
		})
		t.Run(fmt.Sprintf("legacy attachments, registry with referrers %v", referrers), func(t *testing.T) {
			b := newSandbox(t)
			b.source(s.client("env.cosign2"))
			image := newRegistry(t, referrers).push("team/app")
			b.must(attestry, flags([]string{"sign", "--form", "legacy", "--identity-token", s.alice(), "-a", "build=7"}, s.signing(), []string{image})...)
			b.must(attestry, flags([]string{"attest", "--form", "legacy", "--identity-token", s.alice()}, s.signing(), attest(b), []string{image})...)
			stamped := []string{"--use-signed-timestamps", "--timestamp-certificate-chain", s.client("tsa.pem")}
			for _, cosign := range second {
				b.must(cosign, flags([]string{"verify", "--offline"}, s.aliceAs(), []string{image})...)
				b.must(cosign, flags([]string{"verify", "--offline", "-a", "build=7"}, stamped, s.aliceAs(), []string{image})...)
				b.must(cosign, flags([]string{"verify-attestation", "--offline", "--type", "slsaprovenance"}, stamped, s.aliceAs(), []string{image})...)
				b.refused(`none of the expected identities matched`, cosign, "verify", "--offline",
					"--certificate-identity", "bob@example.com", "--certificate-oidc-issuer", s.issuer(), image)
			}
			plain := newSandbox(t) // without the SIGSTORE_* variables, for which cosign 3 would leave the trusted root aside
			for _, cosign := range third {
				plain.must(cosign, flags([]string{"verify", "--new-bundle-format=false"}, trust, s.aliceAs(), []string{image})...)
				plain.must(cosign, flags([]string{"verify-attestation", "--new-bundle-format=false", "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{image})...)
			}
			b.must(attestry, flags([]string{"verify"}, trust, s.aliceAs(), []string{image})...)
			b.must(attestry, flags([]string{"verify", "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{image})...)
		})
	}
	t.Run("a key of one's own", func(t *testing.T) {
		b := newSandbox(t)
		b.source(s.client("env.cosign2"))
		b.set("COSIGN_PASSWORD", "secret")
		b.must(third["v3.1.3"], "generate-key-pair")
		registry := newRegistry(t, true)
		image, old := registry.push("app"), registry.push("old") // cosign 2.6 leaves legacy attachments aside where there is a bundle
		b.must(attestry, flags([]string{"sign", "--form", "bundle,legacy", "--key", "cosign.key"}, s.signing(), []string{image})...)
		b.must(attestry, flags([]string{"attest", "--key", "cosign.key"}, s.signing(), attest(b), []string{image})...)
		b.must(attestry, flags([]string{"sign", "--form", "legacy", "--key", "cosign.key"}, s.signing(), []string{old})...)
		b.must(attestry, flags([]string{"attest", "--form", "legacy", "--key", "cosign.key"}, s.signing(), attest(b), []string{old})...)
		for _, cosign := range second {
			b.must(cosign, "verify", "--offline", "--key", "cosign.pub", old)
			b.must(cosign, "verify-attestation", "--offline", "--type", "slsaprovenance", "--key", "cosign.pub", old)
		}
		if cosign := second["v2.4.3"]; cosign != "" {
			b.must(cosign, "verify", "--offline", "--key", "cosign.pub", image)
		}
		plain := &sandbox{t, b.home, newSandbox(t).env} // for which no SIGSTORE_* variable is set
		for _, cosign := range third {
			plain.must(cosign, flags([]string{"verify", "--key", "cosign.pub"}, trust, []string{image})...)
			plain.must(cosign, flags([]string{"verify-attestation", "--type", "slsaprovenance", "--key", "cosign.pub"}, trust, []string{image})...)
		}
		b.must(attestry, flags([]string{"verify", "--key", "cosign.pub"}, trust, []string{image})...)
	})
	t.Run("an image in a layout on disk", func(t *testing.T) {
		b := newSandbox(t)
		registry := newRegistry(t, true)
		b.must(client(t, "crane", ""), "pull", "--format", "oci", registry.push("app"), b.path("layout"))
		b.must(attestry, flags([]string{"sign", "--dir", "layout", "--form", "bundle,legacy", "--sign-container-identity", "registry.example/app",
			"--identity-token", s.alice()}, s.signing())...)
		b.must(attestry, flags([]string{"attest", "--dir", "layout", "--identity-token", s.alice()}, s.signing(), attest(b))...)
		out := b.must(attestry, flags([]string{"verify", "--dir", "layout", "--output", "json"}, trust, s.aliceAs())...)
		for _, form := range []string{`"bundle"`, `"simple-signing"`} {
			if !strings.Contains(out, form) {
				t.Errorf("no attachment of the form %s verifies:\n%s", form, out)
			}
		}
		b.must(attestry, flags([]string{"verify", "--dir", "layout", "--type", "slsaprovenance"}, trust, s.aliceAs())...)
	})
	t.Run("a misspelt file is no image of a public registry", func(t *testing.T) {
		newSandbox(t).refused(`no such file`, attestry, flags([]string{"sign", "--identity-token", s.alice()}, s.signing(), []string{"app.tar.gz"})...)
	})
	t.Run("no Rekor v1, no legacy form", func(t *testing.T) {
		b := newSandbox(t)
		var config map[string]any
		if err := json.Unmarshal([]byte(readFile(t, s.client("signing_config.v0.2.json"))), &config); err != nil {
			t.Fatal(err)
		}
		var second []any
		for _, log := range config["rekorTlogUrls"].([]any) {
			if log.(map[string]any)["majorApiVersion"] == float64(2) {
				second = append(second, log)
			}
		}
		config["rekorTlogUrls"] = second
		raw, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		b.refused(`promise of a Rekor v1 log`, attestry, "sign", "--form", "legacy", "--identity-token", s.alice(),
			"--signing-config", b.file("v2.json", string(raw)), "--trusted-root", s.client("trusted_root.json"), newRegistry(t, true).push("app"))
	})
}

// manifest reads a manifest of a repository.
func (r *images) manifest(reference string) *v1.Manifest {
	r.t.Helper()
	ref, err := name.ParseReference(reference)
	if err != nil {
		r.t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

// referrers lists what the tag of the referrers tag schema or the API names.
func (r *images) referrers(image string) []v1.Descriptor {
	r.t.Helper()
	ref, err := name.NewDigest(image)
	if err != nil {
		r.t.Fatal(err)
	}
	index, err := remote.Referrers(ref)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		r.t.Fatal(err)
	}
	return m.Manifests
}

// sigTag is the legacy tag of an image by digest.
func sigTag(image, suffix string) string {
	repository, digest, _ := strings.Cut(image, "@")
	return repository + ":" + strings.Replace(digest, ":", "-", 1) + suffix
}

// TestTheReferrerHasCosignsShape compares the manifest of a bundle with one that cosign 3 made.
func TestTheReferrerHasCosignsShape(t *testing.T) {
	s := up(t)
	b := newSandbox(t)
	cosign := client(t, "cosign", "v3.1.3")
	registry := newRegistry(t, true)
	shapes := map[string]string{}
	for signer, exe := range map[string][]string{"attestry": {attestry, "sign"}, "cosign": {cosign, "sign", "--yes"}} {
		image := registry.push(signer)
		b.must(exe[0], flags(exe[1:], []string{"--identity-token", s.alice()}, s.signing(), []string{image})...)
		found := registry.referrers(image)
		if len(found) != 1 {
			t.Fatalf("%s attached %d manifests", signer, len(found))
		}
		m := registry.manifest(registry.host + "/" + signer + "@" + found[0].Digest.String())
		m.Subject, m.Layers[0].Digest, m.Layers[0].Size = nil, v1.Hash{}, 0
		delete(m.Annotations, "org.opencontainers.image.created")
		shape, err := json.MarshalIndent(m, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		shapes[signer] = string(shape)
	}
	if shapes["attestry"] != shapes["cosign"] {
		t.Errorf("attestry's manifest:\n%s\ncosign's:\n%s", shapes["attestry"], shapes["cosign"])
	}
}

// TestSignersAtOnceLoseNothing lets several processes sign one image, where each replaces the same tags.
func TestSignersAtOnceLoseNothing(t *testing.T) {
	const signers = 4
	s := up(t)
	b := newSandbox(t)
	b.set("COSIGN_PASSWORD", "")
	b.must(client(t, "cosign", "v3.1.3"), "generate-key-pair")
	together := func(t *testing.T, args func() []string) {
		t.Helper()
		b := b.in(t)
		var all sync.WaitGroup
		for range signers {
			run := flags([]string{"sign", "--form", "bundle,legacy", "--key", "cosign.key"}, s.signing(), args())
			all.Go(func() {
				if r := b.run(attestry, run...); r.err != nil {
					t.Errorf("%v\n%s", r.err, r)
				}
			})
		}
		all.Wait()
	}
	t.Run("in a registry without the referrers API", func(t *testing.T) {
		registry := newRegistry(t, false)
		image := registry.push("app")
		together(t, func() []string { return []string{image} })
		if n := len(registry.manifest(sigTag(image, ".sig")).Layers); n != signers {
			t.Errorf("the .sig tag has %d signatures of %d", n, signers)
		}
		if n := len(registry.referrers(image)); n != signers {
			t.Errorf("the tag of referrers has %d entries of %d", n, signers)
		}
	})
	t.Run("in a layout", func(t *testing.T) {
		b := b.in(t)
		b.must(client(t, "crane", ""), "pull", "--format", "oci", newRegistry(t, true).push("app"), b.path("layout"))
		together(t, func() []string {
			return []string{"--dir", "layout", "--sign-container-identity", "registry.example/app"}
		})
		out := b.must(attestry, "verify", "--dir", "layout", "--key", "cosign.pub", "--output", "json", "--trusted-root", s.client("trusted_root.json"))
		var verdict struct {
			Passed []struct {
				Form string `json:"form"`
			} `json:"passed"`
		}
		if err := json.Unmarshal([]byte(out), &verdict); err != nil {
			t.Fatal(err)
		}
		if n := len(verdict.Passed); n != 2*signers {
			t.Errorf("%d of %d signatures are there and verify", n, 2*signers)
		}
	})
}

// TestConvertedSignaturesVerify converts what one generation of cosign made, or attestry, and lets the other verify it.
func TestConvertedSignaturesVerify(t *testing.T) {
	s := up(t)
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	first := []string{"--signing-config", s.client("signing_config.rekor1.v0.2.json"), "--trusted-root", s.client("trusted_root.json")}
	cosign3 := client(t, "cosign", "v3.1.3")
	urls := []string{"--yes", "--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer()}
	for version, cosign2 := range cosigns(t, "v2.4.3", "v2.6.5") {
		legacy := func(t *testing.T) *sandbox {
			b := newSandbox(t)
			b.source(s.client("env.cosign2"))
			return b
		}
		t.Run(version+": a bundle of a file becomes cosign 2's", func(t *testing.T) {
			b := legacy(t)
			blob := b.file("blob", "to legacy")
			b.must(attestry, flags([]string{"sign", "--identity-token", s.alice(), "--bundle", "new"}, first, []string{blob})...)
			b.must(attestry, flags([]string{"convert", "--to", "legacy", "--out", "old"}, trust, []string{"new"})...)
			b.must(cosign2, flags([]string{"verify-blob", "--offline", "--bundle", "old"}, s.aliceAs(), []string{blob})...)
			b.refused(`matching bundle to payload|invalid signature`, cosign2, flags([]string{"verify-blob", "--offline", "--bundle", "old"}, s.aliceAs(), []string{b.file("other", "other")})...)

			b.must(attestry, flags([]string{"attest", "--identity-token", s.alice(), "--bundle", "new.att", "--type", "slsaprovenance",
				"--predicate", b.file("predicate.json", predicate)}, first, []string{blob})...)
			b.must(attestry, flags([]string{"convert", "--to", "legacy", "--out", "old.att"}, trust, []string{"new.att"})...)
			b.must(cosign2, flags([]string{"verify-blob-attestation", "--offline", "--bundle", "old.att", "--type", "slsaprovenance"}, s.aliceAs(), []string{blob})...)
		})
		t.Run(version+": cosign 2's file becomes a bundle", func(t *testing.T) {
			b := legacy(t)
			blob := b.file("blob", "to bundle")
			b.must(cosign2, flags([]string{"sign-blob", "--identity-token", s.alice(), "--bundle", "old"}, urls, []string{blob})...)
			b.must(attestry, flags([]string{"convert", "--to", "bundle", "--artifact", blob, "--out", "new"}, trust, []string{"old"})...)
			plain := newSandbox(t)
			plain.must(cosign3, flags([]string{"verify-blob", "--bundle", b.path("new")}, trust, s.aliceAs(), []string{blob})...)
			b.refused(`not verified: `, attestry, flags([]string{"convert", "--to", "bundle", "--artifact", b.file("other", "other"), "--out", "bad"}, trust, []string{"old"})...)

			b.must(cosign2, flags([]string{"attest-blob", "--identity-token", s.alice(), "--bundle", "old.att", "--type", "slsaprovenance",
				"--predicate", b.file("predicate.json", predicate)}, urls, []string{blob})...)
			b.must(attestry, flags([]string{"convert", "--to", "bundle", "--out", "new.att"}, trust, []string{"old.att"})...)
			plain.must(cosign3, flags([]string{"verify-blob-attestation", "--type", "slsaprovenance", "--bundle", b.path("new.att")}, trust, s.aliceAs(), []string{blob})...)
		})
		t.Run(version+": .att layers become bundles, and bundles .att layers", func(t *testing.T) {
			b := legacy(t)
			registry := newRegistry(t, true)
			image := registry.push("app")
			provenance := []string{"--type", "slsaprovenance", "--predicate", b.file("predicate.json", predicate)}
			b.must(cosign2, flags([]string{"attest", "--identity-token", s.alice(), "--timestamp-server-url", s.url + "/api/v1/timestamp"}, provenance, urls, []string{image})...)
			for range 2 { // the second time there is nothing to add
				b.must(attestry, flags([]string{"convert", "--to", "bundle"}, trust, []string{image})...)
				if n := len(registry.referrers(image)); n != 1 {
					t.Errorf("%d bundles are attached", n)
				}
			}
			newSandbox(t).must(cosign3, flags([]string{"verify-attestation", "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{image})...)

			other := registry.push("other")
			plain := newSandbox(t)
			plain.must(cosign3, flags([]string{"attest", "--yes", "--identity-token", s.alice()}, provenance, first, []string{other})...)
			for range 2 {
				b.must(attestry, flags([]string{"convert", "--to", "legacy"}, trust, []string{other})...)
				if n := len(registry.manifest(sigTag(other, ".att")).Layers); n != 1 {
					t.Errorf("the .att tag has %d layers", n)
				}
			}
			// cosign 2.6 leaves legacy attachments aside where there is a bundle.
			alone := strings.Replace(other, "/other@", "/alone@", 1)
			crane := client(t, "crane", "")
			b.must(crane, "copy", other, tagged(alone))
			b.must(crane, "copy", sigTag(other, ".att"), sigTag(alone, ".att"))
			b.must(cosign2, flags([]string{"verify-attestation", "--offline", "--type", "slsaprovenance"}, s.aliceAs(), []string{alone})...)
		})
	}
	t.Run("what cannot be said in the other form is refused with the reason", func(t *testing.T) {
		b := newSandbox(t)
		registry := newRegistry(t, true)
		blob, image := b.file("blob", "refused"), registry.push("app")
		b.must(attestry, flags([]string{"sign", "--identity-token", s.alice(), "--bundle", "v2"}, s.signing(), []string{blob})...)
		b.refused(`not-expressible: .*Rekor v2, which makes no signed entry timestamp`, attestry, flags([]string{"convert", "--to", "legacy", "--out", "none"}, trust, []string{"v2"})...)
		b.must(attestry, flags([]string{"sign", "--form", "bundle,legacy", "--identity-token", s.alice()}, first, []string{image})...)
		b.refused(`sign again with attestry sign --form legacy`, attestry, flags([]string{"convert", "--to", "legacy"}, trust, []string{image})...)
		b.refused(`sign again with attestry sign`, attestry, flags([]string{"convert", "--to", "bundle"}, trust, []string{image})...)
		if tags := registry.tags("app"); strings.Contains(tags, ".att") {
			t.Errorf("something was attached all the same: %s", tags)
		}
		b.refused(`not verified: `, attestry, "convert", "--to", "legacy", "--out", "none", "--trusted-root", up(t).client("trusted_root.json"), "v2")
	})
	t.Run("without the log there is no proof to add", func(t *testing.T) {
		b := newSandbox(t)
		b.source(s.client("env.cosign2"))
		image := newRegistry(t, true).push("app")
		b.must(attestry, flags([]string{"attest", "--form", "legacy", "--identity-token", s.alice(), "--type", "custom", "--predicate", b.file("predicate.json", "{}")}, s.signing(), []string{image})...)
		silent := newSilent(t)
		b.refused(`status 404`, attestry, flags([]string{"convert", "--to", "bundle", "--rekor-url", silent}, trust, []string{image})...)
	})
}

// newSilent is a server that knows nothing.
func newSilent(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestContainersImageAcceptsTheLegacyForm asks the library of podman, skopeo and CRI-O, which knows the CA's root alone: the
// certificates between are in the attachment.
func TestContainersImageAcceptsTheLegacyForm(t *testing.T) {
	program := filepath.Join(clientsDir(t), "image-policy-v5.42.0", "image-policy")
	if _, err := os.Stat(program); err != nil {
		missing(t, false, "image-policy is not built; enable with: ../shared/clients/get.sh image-policy")
	}
	s := up(t)
	b := newSandbox(t)
	registry := newRegistry(t, true)
	image, bundled := registry.push("team/app"), registry.push("team/bundled")
	b.must(attestry, flags([]string{"sign", "--form", "legacy", "--identity-token", s.alice()}, s.signing(), []string{image})...)
	b.must(attestry, flags([]string{"sign", "--identity-token", s.alice()}, s.signing(), []string{bundled})...)
	chain := readFile(t, s.client("fulcio.pem"))
	root := b.file("root.pem", chain[strings.LastIndex(chain, "-----BEGIN"):])
	if err := os.Mkdir(b.path("registries.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.file("registries.d/all.yaml", "default-docker:\n  use-sigstore-attachments: true\n")
	for email, accepted := range map[string]bool{"alice@example.com": true, "bob@example.com": false} {
		policy, err := json.Marshal(map[string]any{
			"default": []any{map[string]any{"type": "reject"}},
			"transports": map[string]any{"docker": map[string]any{registry.host: []any{map[string]any{
				"type":               "sigstoreSigned",
				"fulcio":             map[string]any{"caPath": root, "oidcIssuer": s.issuer(), "subjectEmail": email},
				"rekorPublicKeyPath": s.client("rekor.pem"),
				"signedIdentity":     map[string]any{"type": "matchRepository"},
			}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"-policy", b.file("policy.json", string(policy)), "-registries.d", b.path("registries.d"), "-insecure", "-image"}
		if !accepted {
			b.refused(`rejected: .*(?i)email`, program, flags(args, []string{image})...)
			continue
		}
		b.must(program, flags(args, []string{image})...)
		b.refused(`rejected: `, program, flags(args, []string{bundled})...) // it reads .sig tags only
	}
}
