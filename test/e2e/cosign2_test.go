package e2e

import (
	"fmt"
	"strings"
	"testing"
)

func TestCosign2(t *testing.T) {
	runCosign2(t, up(t), client(t, "cosign", "v2.6.5"), true)
}

// cosign2Blob signs a blob with a legacy bundle, verifies it, and returns both.
func cosign2Blob(b *sandbox, s *stack, cosign string) (blob, bundle string) {
	b.t.Helper()
	b.source(s.client("env.cosign2"))
	blob, bundle = b.file("blob", "legacy bundle"), b.path("bundle")
	b.must(cosign, "sign-blob", "--yes", "--identity-token", s.alice(), "--fulcio-url", s.url, "--rekor-url", s.url,
		"--oidc-issuer", s.issuer(), "--bundle", bundle, blob)
	b.must(cosign, flags([]string{"verify-blob", "--offline", "--bundle", bundle}, s.aliceAs(), []string{blob})...)
	return blob, bundle
}

// runCosign2 drives a cosign of the second generation against s. Signing configs, bundles beside images and TUF_MIRROR
// are known to 2.6, not to 2.4.
func runCosign2(t *testing.T, s *stack, cosign string, knowsConfigs bool) {
	urls := []string{"--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer()}
	tsa := []string{"--timestamp-server-url", s.url + "/api/v1/timestamp"}
	trust := []string{"--new-bundle-format", "--trusted-root", s.client("trusted_root.json")}
	// legacy is a user of the first bundle format: URLs, and PEM files in SIGSTORE_* variables.
	legacy := func(t *testing.T) *sandbox {
		b := newSandbox(t)
		b.source(s.client("env.cosign2"))
		return b
	}
	needsConfigs := func(t *testing.T) {
		if !knowsConfigs {
			t.Skip("skipped: this cosign cannot do it")
		}
	}
	token := func() []string { return []string{"--yes", "--identity-token", s.alice()} }

	t.Run("a blob, signature and certificate in files, looked up in the log", func(t *testing.T) {
		b := legacy(t)
		blob, sig, cert := b.file("blob", "looked up"), b.path("sig"), b.path("cert")
		b.must(cosign, flags([]string{"sign-blob"}, token(), urls, []string{"--output-signature", sig, "--output-certificate", cert, blob})...)
		b.must(cosign, flags([]string{"verify-blob", "--rekor-url", s.url, "--signature", sig, "--certificate", cert}, s.aliceAs(), []string{blob})...)
		b.refused(`invalid signature|could not verify|crypto/rsa|ecdsa`, cosign,
			flags([]string{"verify-blob", "--rekor-url", s.url, "--signature", sig, "--certificate", cert}, s.aliceAs(), []string{b.file("other", "changed")})...)
	})
	t.Run("a blob, legacy bundle", func(t *testing.T) {
		cosign2Blob(newSandbox(t), s, cosign)
	})
	t.Run("a blob, legacy bundle with a timestamp", func(t *testing.T) {
		b := legacy(t)
		blob, bundle, stamp := b.file("blob", "stamped"), b.path("bundle"), b.path("stamp")
		b.must(cosign, flags([]string{"sign-blob"}, token(), urls, tsa, []string{"--rfc3161-timestamp", stamp, "--bundle", bundle, blob})...)
		b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle, "--rfc3161-timestamp", stamp, "--use-signed-timestamps",
			"--timestamp-certificate-chain", s.client("tsa.pem")}, s.aliceAs(), []string{blob})...)
	})
	t.Run("a blob, bundle", func(t *testing.T) {
		b := newSandbox(t)
		b.source(s.client(map[bool]string{true: "env", false: "env.cosign2"}[knowsConfigs]))
		blob, bundle := b.file("blob", "bundle"), b.path("bundle")
		b.must(cosign, flags([]string{"sign-blob", "--new-bundle-format"}, token(), urls, tsa, []string{"--bundle", bundle, blob})...)
		b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
	})
	t.Run("a blob, the bundle of a signing config", func(t *testing.T) {
		needsConfigs(t)
		b := newSandbox(t)
		b.set("TUF_MIRROR", s.url+"/tuf")
		b.set("TUF_ROOT_JSON", s.client("root.json"))
		blob, bundle := b.file("blob", "signing config"), b.path("bundle")
		b.must(cosign, flags([]string{"sign-blob", "--signing-config", s.client("signing_config.v0.2.json")}, trust, token(), []string{"--bundle", bundle, blob})...)
		// The config's first log is Rekor v2: its entries carry no time, and cosign 2.6 asks for one unless told to look at timestamps.
		b.must(cosign, flags([]string{"verify-blob", "--use-signed-timestamps", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
	})
	t.Run("a blob with a key of one's own", func(t *testing.T) {
		b := legacy(t)
		b.set("COSIGN_PASSWORD", "")
		b.must(cosign, "generate-key-pair")
		blob, bundle := b.file("blob", "own key"), b.path("bundle")
		b.must(cosign, "sign-blob", "--yes", "--key", "cosign.key", "--rekor-url", s.url, "--bundle", bundle, blob)
		b.must(cosign, "verify-blob", "--key", "cosign.pub", "--bundle", bundle, blob)
	})
	for _, referrers := range []bool{true, false} {
		t.Run(fmt.Sprintf("an image, .sig and .att attachments, registry with referrers %v", referrers), func(t *testing.T) {
			b := legacy(t)
			registry := newRegistry(t, referrers)
			image := registry.push("app")
			b.must(cosign, flags([]string{"sign"}, token(), urls, []string{image})...)
			b.must(cosign, flags([]string{"verify", "--rekor-url", s.url}, s.aliceAs(), []string{image})...)
			b.must(cosign, flags([]string{"verify", "--offline"}, s.aliceAs(), []string{image})...)
			b.refused(`none of the expected identities matched`, cosign, "verify", "--offline",
				"--certificate-identity", "bob@example.com", "--certificate-oidc-issuer", s.issuer(), image)
			b.must(cosign, flags([]string{"attest", "--type", "slsaprovenance", "--predicate", b.file("predicate.json", predicate)}, token(), urls, []string{image})...)
			b.must(cosign, flags([]string{"verify-attestation", "--type", "slsaprovenance", "--rekor-url", s.url}, s.aliceAs(), []string{image})...)
			for _, suffix := range []string{".sig", ".att"} {
				if tags := registry.tags("app"); !strings.Contains(tags, suffix) {
					t.Errorf("no %s tag among %q", suffix, tags)
				}
			}
		})
		t.Run(fmt.Sprintf("an image, bundles, registry with referrers %v", referrers), func(t *testing.T) {
			needsConfigs(t)
			b := newSandbox(t)
			b.set("TUF_MIRROR", s.url+"/tuf")
			b.set("TUF_ROOT_JSON", s.client("root.json"))
			image := newRegistry(t, referrers).push("app")
			b.must(cosign, flags([]string{"sign", "--new-bundle-format"}, token(), urls, tsa, []string{image})...)
			b.must(cosign, flags([]string{"verify"}, trust, s.aliceAs(), []string{image})...)
			b.must(cosign, flags([]string{"attest", "--new-bundle-format", "--type", "slsaprovenance", "--predicate", b.file("predicate.json", predicate)}, token(), urls, tsa, []string{image})...)
			b.must(cosign, flags([]string{"verify-attestation", "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{image})...)
		})
	}
	t.Run("an intoto entry", func(t *testing.T) {
		b := legacy(t)
		image := newRegistry(t, true).push("app")
		b.must(cosign, flags([]string{"attest", "--rekor-entry-type", "intoto", "--type", "slsaprovenance", "--predicate", b.file("predicate.json", predicate)}, token(), urls, []string{image})...)
		b.must(cosign, flags([]string{"verify-attestation", "--type", "slsaprovenance", "--rekor-url", s.url}, s.aliceAs(), []string{image})...)
	})
	t.Run("initialize from our TUF repository, then trust from there", func(t *testing.T) {
		b := newSandbox(t)
		b.must(cosign, "initialize", "--mirror", s.url+"/tuf", "--root", s.client("root.json"))
		blob, bundle := b.file("blob", "by TUF"), b.path("bundle")
		b.must(cosign, flags([]string{"sign-blob"}, token(), urls, []string{"--bundle", bundle, blob})...)
		b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle}, s.aliceAs(), []string{blob})...)
	})
}
