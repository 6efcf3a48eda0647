package e2e

import (
	"testing"
)

// TestAttestryAndCosignReadEachOther signs with one and verifies with the other.
func TestAttestryAndCosignReadEachOther(t *testing.T) {
	runAttestryBesideCosign(t, up(t))
}

func runAttestryBesideCosign(t *testing.T, s *stack) {
	cosign := client(t, "cosign", "v3.1.3")
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	for _, version := range s.rekors() {
		config := version.config
		files := flags([]string{"--signing-config", s.client(config)}, trust)
		t.Run("a blob by attestry, "+config, func(t *testing.T) {
			b := newSandbox(t)
			blob, bundle := b.file("blob", "by attestry "+config), b.path("bundle")
			b.must(attestry, flags([]string{"sign", "--identity-token", s.alice(), "--bundle", bundle}, files, []string{blob})...)
			b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
			b.must(attestry, flags([]string{"verify", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
		})
		t.Run("an attestation by attestry, "+config, func(t *testing.T) {
			b := newSandbox(t)
			blob, bundle := b.file("blob", "attested by attestry "+config), b.path("bundle")
			b.must(attestry, flags([]string{"attest", "--identity-token", s.alice(), "--bundle", bundle,
				"--predicate", b.file("predicate.json", predicate), "--type", "https://slsa.dev/provenance/v0.2"}, files, []string{blob})...)
			b.must(cosign, flags([]string{"verify-blob-attestation", "--bundle", bundle, "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{blob})...)
			b.must(attestry, flags([]string{"verify", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
		})
		t.Run("a blob by cosign, verified without a network, "+config, func(t *testing.T) {
			b := newSandbox(t)
			blob, bundle := b.file("blob", "by cosign "+config), b.path("bundle")
			b.must(cosign, flags([]string{"sign-blob", "--yes", "--identity-token", s.alice(), "--bundle", bundle}, files, []string{blob})...)
			exe, prefix, isolated := offline(attestry)
			if !isolated {
				t.Log("skipped: the network namespace without routes, which needs root")
			}
			b.must(exe, flags(prefix, []string{"verify", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
			b.refused(`(?i)identity|subject`, exe, flags(prefix, []string{"verify", "--bundle", bundle}, trust,
				[]string{"--certificate-identity", "bob@example.com", "--certificate-oidc-issuer", s.issuer(), blob})...)
			b.refused(`(?i)signature|digest`, exe, flags(prefix, []string{"verify", "--bundle", bundle}, trust, s.aliceAs(), []string{b.file("changed", "changed")})...)
		})
	}
}
