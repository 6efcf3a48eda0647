package e2e

import (
	"testing"
)

func TestSigstorePython(t *testing.T) {
	runSigstorePython(t, up(t))
}

// runSigstorePython drives sigstore-python against s.
func runSigstorePython(t *testing.T, s *stack) {
	sigstore := client(t, "sigstore-python", "")
	trust := []string{"--trust-config", s.client("client_trust_config.json")}
	alice := []string{"--cert-identity", "alice@example.com", "--cert-oidc-issuer", s.issuer()}
	t.Run("the first entry of a log, by attestry", func(t *testing.T) {
		b := newSandbox(t)
		blob, bundle := b.file("blob", "the first"), b.path("first.sigstore.json")
		b.must(attestry, flags([]string{"sign", "--identity-token", s.alice(), "--bundle", bundle,
			"--signing-config", s.client("signing_config.v0.2.json")}, []string{"--trusted-root", s.client("trusted_root.json")}, []string{blob})...)
		b.must(sigstore, flags(trust, []string{"verify", "identity", "--bundle", bundle}, alice, []string{blob})...)
	})
	for _, version := range s.rekors() {
		t.Run(version.name+": a blob", func(t *testing.T) {
			b := newSandbox(t)
			blob, bundle := b.file("blob", "by python "+version.name), b.path("blob.sigstore.json")
			b.must(sigstore, flags(trust, []string{"sign", "--rekor-version", version.number, "--identity-token", s.alice(), blob})...)
			if entry := entryOf(t, bundle); entry != version.entry {
				t.Errorf("the log entry is a %s, want %s", entry, version.entry)
			}
			b.must(sigstore, flags(trust, []string{"verify", "identity"}, alice, []string{blob})...)
			b.must(sigstore, flags(trust, []string{"verify", "identity", "--offline"}, alice, []string{blob})...)
			b.refused(`(?i)identity|SAN|subject`, sigstore, flags(trust, []string{"verify", "identity",
				"--cert-identity", "bob@example.com", "--cert-oidc-issuer", s.issuer(), blob})...)
			b.refused(`(?i)signature|digest|hash`, sigstore, flags(trust, []string{"verify", "identity", "--bundle", bundle}, alice, []string{b.file("changed", "changed")})...)
		})
		t.Run(version.name+": an attestation", func(t *testing.T) {
			b := newSandbox(t)
			blob := b.file("blob", "attested by python "+version.name)
			b.must(sigstore, flags(trust, []string{"attest", "--rekor-version", version.number, "--identity-token", s.alice(),
				"--predicate", b.file("predicate.json", predicate), "--predicate-type", "https://slsa.dev/provenance/v0.2", blob})...)
			b.must(sigstore, flags(trust, []string{"verify", "identity"}, alice, []string{blob})...)
		})
	}
	t.Run("trust-instance from our TUF repository, then nothing but TUF", func(t *testing.T) {
		b := newSandbox(t)
		instance := []string{"--instance", s.url + "/tuf"}
		b.must(sigstore, flags(instance, []string{"trust-instance", s.client("root.json")})...)
		blob := b.file("blob", "by TUF")
		b.must(sigstore, flags(instance, []string{"sign", "--identity-token", s.alice(), blob})...)
		b.must(sigstore, flags(instance, []string{"verify", "identity"}, alice, []string{blob})...)
	})
	t.Run("an expired token and one for another audience are refused", func(t *testing.T) {
		b := newSandbox(t)
		blob := b.file("blob", "refused")
		// The client checks both itself; the CA's refusals are in TestRefusals.
		b.refused(`(?i)malformed|missing claims|validity|expired`, sigstore, flags(trust, []string{"sign", "--identity-token",
			s.token("--email", "alice@example.com", "--claim", "exp=1700000000"), blob})...)
		b.refused(`(?i)malformed|missing claims|audience`, sigstore, flags(trust, []string{"sign", "--identity-token",
			s.token("--email", "alice@example.com", "--aud", "elsewhere"), blob})...)
	})
}
