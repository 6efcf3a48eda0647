package e2e

import (
	"strings"
	"testing"
)

func TestSigstoreJS(t *testing.T) {
	runSigstoreJS(t, up(t))
}

// runSigstoreJS drives @sigstore/cli against s.
func runSigstoreJS(t *testing.T, s *stack) {
	system(t, "node", "nodejs")
	sigstore := client(t, "sigstore-js", "")
	tuf := []string{"--tuf-mirror-url", s.url + "/tuf", "--tuf-root-path", s.client("root.json")}
	alice := []string{"--certificate-identity-email", "alice@example.com", "--certificate-issuer", s.issuer()}
	// ci is a user in a CI job: there the token comes from the environment.
	ci := func(t *testing.T, token string) *sandbox {
		b := newSandbox(t)
		b.set("CI", "true")
		b.set("SIGSTORE_ID_TOKEN", token)
		return b
	}
	attest := func(b *sandbox, extra ...string) []string {
		statement := b.file("statement.json", `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"blob","digest":{"sha256":"`+strings.Repeat("ab", 32)+`"}}],"predicateType":"https://example.com/p","predicate":{}}`)
		return flags([]string{"attest", "--fulcio-url", s.url, "--rekor-url", s.url, "-o", b.path("bundle")}, extra, []string{statement})
	}
	t.Run("attest and verify through Rekor v1", func(t *testing.T) {
		b := ci(t, s.alice())
		b.must(sigstore, attest(b)...)
		b.must(sigstore, flags([]string{"verify"}, tuf, alice, []string{b.path("bundle")})...)
		b.refused(`(?i)identity|subject alternative|certificate`, sigstore, flags([]string{"verify"}, tuf,
			[]string{"--certificate-identity-email", "bob@example.com", "--certificate-issuer", s.issuer(), b.path("bundle")})...)
	})
	t.Run("attest and verify with a timestamp", func(t *testing.T) {
		b := ci(t, s.alice())
		b.must(sigstore, attest(b, "--tsa-server-url", s.url)...)
		b.must(sigstore, flags([]string{"verify"}, tuf, alice, []string{b.path("bundle")})...)
	})
	t.Run("initialize, then verify from the cache", func(t *testing.T) {
		b := ci(t, s.alice())
		b.must(sigstore, "initialize", "--mirror", s.url+"/tuf", "--root", s.client("root.json"))
		b.must(sigstore, attest(b)...)
		b.must(sigstore, flags([]string{"verify", "--tuf-mirror-url", s.url + "/tuf"}, alice, []string{b.path("bundle")})...)
	})
	t.Run("what cosign signed with a signing config", func(t *testing.T) {
		cosign := client(t, "cosign", "v3.1.3")
		b := newSandbox(t)
		blob, bundle := b.file("blob", "from cosign to node"), b.path("bundle")
		b.must(cosign, "sign-blob", "--yes", "--identity-token", s.alice(), "--bundle", bundle,
			"--signing-config", s.client("signing_config.v0.2.json"), "--trusted-root", s.client("trusted_root.json"), blob)
		b.must(sigstore, flags([]string{"verify", "--blob-file", blob}, tuf, alice, []string{bundle})...)
		b.refused(`(?i)signature|digest|verif`, sigstore, flags([]string{"verify", "--blob-file", b.file("changed", "changed")}, tuf, alice, []string{bundle})...)
	})
	t.Run("an expired token is refused with the CA's reason", func(t *testing.T) {
		b := ci(t, s.token("--email", "alice@example.com", "--claim", "exp=1700000000"))
		b.refused(`(?i)expired|identity token`, sigstore, attest(b)...)
	})
}
