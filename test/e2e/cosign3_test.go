package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

const predicate = `{"buildType":"https://example.com/build","builder":{"id":"https://example.com/ci"}}`

// aliceAs are the flags with which cosign expects alice's signature.
func (s *stack) aliceAs() []string {
	return []string{"--certificate-identity", "alice@example.com", "--certificate-oidc-issuer", s.issuer()}
}

// flags joins lists of arguments.
func flags(lists ...[]string) []string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

func TestCosign3(t *testing.T) {
	cosign := client(t, "cosign", "v3.1.3")
	s := up(t)
	runCosign3(t, s, cosign)
	t.Run("the server is not needed to verify", func(t *testing.T) {
		b := newSandbox(t)
		blob, bundle := b.file("blob", "offline"), b.path("bundle")
		trust := []string{"--trusted-root", s.client("trusted_root.json")}
		b.must(cosign, flags([]string{"sign-blob", "--yes", "--identity-token", s.alice(), "--bundle", bundle,
			"--signing-config", s.client("signing_config.v0.2.json")}, trust, []string{blob})...)
		s.stop()
		b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
	})
}

// cosign3Blob signs a blob by files alone, verifies it, and returns blob and bundle.
func cosign3Blob(b *sandbox, s *stack, cosign string, version rekorVersion) (blob, bundle string) {
	b.t.Helper()
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	blob, bundle = b.file("blob", "by files "+version.name), b.path("bundle")
	b.must(cosign, flags([]string{"sign-blob", "--yes", "--identity-token", s.alice(), "--bundle", bundle,
		"--signing-config", s.client(version.config)}, trust, []string{blob})...)
	if entry := entryOf(b.t, bundle); entry != version.entry {
		b.t.Errorf("the log entry is a %s, want %s", entry, version.entry)
	}
	b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
	return blob, bundle
}

// runCosign3 drives a cosign of the third generation against s.
func runCosign3(t *testing.T, s *stack, cosign string) {
	for _, version := range s.rekors() {
		files := []string{"--signing-config", s.client(version.config), "--trusted-root", s.client("trusted_root.json")}
		trust := []string{"--trusted-root", s.client("trusted_root.json")}
		t.Run(version.name+": a blob by files alone", func(t *testing.T) {
			b := newSandbox(t)
			blob, bundle := cosign3Blob(b, s, cosign, version)
			b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle, "--use-signed-timestamps"}, trust, s.aliceAs(), []string{blob})...)
		})
		t.Run(version.name+": a blob with a key of one's own", func(t *testing.T) {
			b := newSandbox(t)
			b.set("COSIGN_PASSWORD", "")
			b.must(cosign, "generate-key-pair")
			blob, bundle := b.file("blob", "by key "+version.name), b.path("bundle")
			b.must(cosign, flags([]string{"sign-blob", "--yes", "--key", "cosign.key", "--bundle", bundle}, files, []string{blob})...)
			b.must(cosign, flags([]string{"verify-blob", "--key", "cosign.pub", "--bundle", bundle}, trust, []string{blob})...)
		})
		t.Run(version.name+": a blob's attestation", func(t *testing.T) {
			b := newSandbox(t)
			blob, bundle := b.file("blob", "attested "+version.name), b.path("bundle")
			b.must(cosign, flags([]string{"attest-blob", "--yes", "--identity-token", s.alice(), "--bundle", bundle,
				"--predicate", b.file("predicate.json", predicate), "--type", "slsaprovenance"}, files, []string{blob})...)
			b.must(cosign, flags([]string{"verify-blob-attestation", "--bundle", bundle, "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{blob})...)
		})
		for _, referrers := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s: an image and its attestation, registry with referrers %v", version.name, referrers), func(t *testing.T) {
				b := newSandbox(t)
				image := newRegistry(t, referrers).push("app")
				b.must(cosign, flags([]string{"sign", "--yes", "--identity-token", s.alice()}, files, []string{image})...)
				out := b.must(cosign, flags([]string{"verify"}, trust, s.aliceAs(), []string{image})...)
				if digest := image[strings.Index(image, "sha256:"):]; !strings.Contains(out, digest) {
					t.Errorf("verify does not print the digest:\n%s", out)
				}
				b.must(cosign, flags([]string{"attest", "--yes", "--identity-token", s.alice(), "--type", "slsaprovenance",
					"--predicate", b.file("predicate.json", predicate)}, files, []string{image})...)
				b.must(cosign, flags([]string{"verify-attestation", "--type", "slsaprovenance"}, trust, s.aliceAs(), []string{image})...)
			})
		}
	}
	t.Run("initialize from our TUF repository, then nothing but TUF", func(t *testing.T) {
		b := newSandbox(t)
		out := b.run(cosign, "initialize", "--mirror", s.url+"/tuf", "--root", s.client("root.json"))
		if out.err != nil || strings.Contains(out.String(), "WARNING") {
			t.Fatalf("initialize: %v\n%s", out.err, out)
		}
		signAndVerifyByTUF(t, b, cosign, s)
	})
	t.Run("TUF_MIRROR and TUF_ROOT_JSON of client/env instead of initialize", func(t *testing.T) {
		b := newSandbox(t)
		b.source(s.client("env"))
		signAndVerifyByTUF(t, b, cosign, s)
	})
}

func signAndVerifyByTUF(t *testing.T, b *sandbox, cosign string, s *stack) {
	t.Helper()
	blob, bundle := b.file("blob", "by TUF"), b.path("bundle")
	b.must(cosign, "sign-blob", "--yes", "--identity-token", s.alice(), "--bundle", bundle, blob)
	b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle}, s.aliceAs(), []string{blob})...)
	image := newRegistry(t, true).push("app")
	b.must(cosign, "sign", "--yes", "--identity-token", s.alice(), image)
	b.must(cosign, flags([]string{"verify"}, s.aliceAs(), []string{image})...)
}

// entryOf returns the kindVersion of a bundle's log entry as JSON.
func entryOf(t *testing.T, bundlePath string) string {
	t.Helper()
	var bundle struct {
		VerificationMaterial struct {
			TlogEntries []struct {
				KindVersion struct {
					Kind    string `json:"kind"`
					Version string `json:"version"`
				} `json:"kindVersion"`
			} `json:"tlogEntries"`
		} `json:"verificationMaterial"`
	}
	if err := json.Unmarshal([]byte(readFile(t, bundlePath)), &bundle); err != nil {
		t.Fatal(err)
	}
	if len(bundle.VerificationMaterial.TlogEntries) != 1 {
		t.Fatalf("the bundle has %d log entries", len(bundle.VerificationMaterial.TlogEntries))
	}
	kind, err := json.Marshal(bundle.VerificationMaterial.TlogEntries[0].KindVersion)
	if err != nil {
		t.Fatal(err)
	}
	return string(kind)
}

func TestRefusals(t *testing.T) {
	cosign := client(t, "cosign", "v3.1.3")
	s := up(t)
	b := newSandbox(t)
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	sign := flags([]string{"sign-blob", "--yes", "--signing-config", s.client("signing_config.v0.2.json")}, trust)
	blob, bundle := b.file("blob", "signed by alice"), b.path("bundle")
	b.must(cosign, flags(sign, []string{"--identity-token", s.alice(), "--bundle", bundle, blob})...)
	verify := func(bundle, blob, identity, issuer string) []string {
		return flags([]string{"verify-blob", "--bundle", bundle}, trust,
			[]string{"--certificate-identity", identity, "--certificate-oidc-issuer", issuer, blob})
	}
	b.must(cosign, verify(bundle, blob, "alice@example.com", s.issuer())...)

	t.Run("a signature by someone else", func(t *testing.T) {
		b := b.in(t)
		b.refused(`expected SAN value "bob@example.com", got "alice@example.com"`, cosign, verify(bundle, blob, "bob@example.com", s.issuer())...)
	})
	t.Run("a signature with another issuer's identity", func(t *testing.T) {
		b := b.in(t)
		b.refused(`expected issuer value "https://other.example"`, cosign, verify(bundle, blob, "alice@example.com", "https://other.example")...)
	})
	t.Run("an artifact that was changed", func(t *testing.T) {
		b := b.in(t)
		b.refused(`invalid signature|could not verify|does not match`, cosign, verify(bundle, b.file("changed", "signed by mallory"), "alice@example.com", s.issuer())...)
	})
	t.Run("a bundle whose checkpoint was changed", func(t *testing.T) {
		text := readFile(t, bundle)
		changed := regexp.MustCompile(`("envelope":"[^"]*?\\n)(\d+)(\\n)`).ReplaceAllString(text, `${1}9${2}${3}`) // its size
		if changed == text {
			t.Fatalf("no checkpoint in %s", text)
		}
		b.in(t).refused(`checkpoint`, cosign, verify(b.file("changed-bundle", changed), blob, "alice@example.com", s.issuer())...)
	})
	t.Run("a bundle whose log entry was changed", func(t *testing.T) {
		// Of Rekor v1: of a v2 entry cosign 3.1 reads the proof alone and computes the rest.
		b, first := b.in(t), b.path("v1-bundle")
		b.must(cosign, flags([]string{"sign-blob", "--yes", "--signing-config", s.client("signing_config.rekor1.v0.2.json")}, trust,
			[]string{"--identity-token", s.alice(), "--bundle", first, blob})...)
		text := readFile(t, first)
		changed := strings.Replace(text, `"integratedTime":"1`, `"integratedTime":"2`, 1)
		if changed == text {
			t.Fatalf("no integratedTime to change in %s", text)
		}
		b.refused(`not enough verified log entries`, cosign, verify(b.file("changed-bundle", changed), blob, "alice@example.com", s.issuer())...)
	})
	t.Run("a bundle of another instance", func(t *testing.T) {
		b := b.in(t)
		other := up(t)
		b.refused(`(?i)certificate|unknown authority|failed to verify`, cosign, "verify-blob", "--bundle", bundle, "--trusted-root", other.client("trusted_root.json"),
			"--certificate-identity", "alice@example.com", "--certificate-oidc-issuer", s.issuer(), blob)
	})
	for _, tt := range []struct {
		name, reason string
		token        []string
	}{
		{"a token that has expired", `reason=expired`, []string{"--email", "alice@example.com", "--claim", "exp=1700000000", "--claim", "iat=1699999400"}},
		{"a token for another audience", `reason=aud_mismatch`, []string{"--email", "alice@example.com", "--aud", "somewhere-else"}},
		{"a token of an issuer nobody knows", `reason=unknown_issuer`, []string{"--email", "alice@example.com", "--claim", "iss=https://other.example"}},
		{"a token whose email nobody checked", `reason=email_unverified|not verified by identity provider`, []string{"--email", "alice@example.com", "--claim", "email_verified=false"}},
		{"a token without an email", `reason=claim_missing`, []string{"--claim", "sub=alice"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := b.in(t)
			b.refused(tt.reason, cosign, flags(sign, []string{"--identity-token", s.token(tt.token...), "--bundle", b.path("none"), blob})...)
		})
	}
	t.Run("a token with a broken signature", func(t *testing.T) {
		b := b.in(t)
		token := s.alice()
		at := strings.LastIndex(token, ".") + 20
		broken := token[:at] + map[bool]string{true: "B", false: "A"}[token[at] == 'A'] + token[at+1:]
		b.refused(`reason=bad_signature`, cosign, flags(sign, []string{"--identity-token", broken, "--bundle", b.path("none"), blob})...)
	})
	t.Run("an image that nobody signed", func(t *testing.T) {
		b := b.in(t)
		for _, referrers := range []bool{true, false} {
			image := newRegistry(t, referrers).push("app")
			b.refused(`no signatures found`, cosign, flags([]string{"verify"}, trust, s.aliceAs(), []string{image})...)
		}
	})
	t.Run("an attestation of another type", func(t *testing.T) {
		b := b.in(t)
		image := newRegistry(t, true).push("app")
		b.must(cosign, flags([]string{"attest", "--yes", "--identity-token", s.alice(), "--type", "slsaprovenance",
			"--signing-config", s.client("signing_config.v0.2.json"), "--predicate", b.file("predicate.json", predicate)}, trust, []string{image})...)
		b.refused(`(?i)none of the attestations matched|no matching attestations|predicate type`, cosign,
			flags([]string{"verify-attestation", "--type", "spdxjson"}, trust, s.aliceAs(), []string{image})...)
	})
}
