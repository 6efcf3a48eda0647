package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestConformanceSigning runs what the client conformance suite runs of signing (test_simple, test_sign_does_not_produce_root,
// test_sign_verify_rekor2, test_sign_verify_dsse), in its words, on an instance of ours.
func TestConformanceSigning(t *testing.T) {
	s := up(t)
	cosign := client(t, "cosign", "v3.1.3")
	trust := []string{"--trusted-root", s.client("trusted_root.json")}
	for _, version := range s.rekors() {
		for _, staging := range []bool{false, true} {
			prefix := []string{"conformance", "sign-bundle"}
			verifyPrefix := []string{"conformance", "verify-bundle"}
			if staging {
				prefix, verifyPrefix = append(prefix, "--staging"), append(verifyPrefix, "--staging")
			}
			t.Run(fmt.Sprintf("a file, %s, staging %v", version.name, staging), func(t *testing.T) {
				b := newSandbox(t)
				blob, bundle := b.file("a.txt", "conformance "+version.name), b.path("a.txt.sigstore.json")
				b.must(attestry, flags(prefix, []string{"--identity-token", s.alice(), "--bundle", bundle}, trust,
					[]string{"--signing-config", s.client(version.config), blob})...)
				verify := flags(verifyPrefix, []string{"--bundle", bundle}, s.aliceAs(), trust)
				b.must(attestry, flags(verify, []string{blob})...)
				b.must(attestry, flags(verify, []string{"sha256:" + sha256Hex(t, blob)})...)
				b.refused("digest-mismatch", attestry, flags(verify, []string{b.file("other", "other")})...)
				b.refused("identity-subject", attestry, flags(verifyPrefix, []string{"--bundle", bundle, "--certificate-identity", "bob@example.com",
					"--certificate-oidc-issuer", s.issuer()}, trust, []string{blob})...)
				b.must(cosign, flags([]string{"verify-blob", "--bundle", bundle}, trust, s.aliceAs(), []string{blob})...)
				var parsed struct {
					VerificationMaterial struct {
						Certificate          *struct{ RawBytes []byte }
						X509CertificateChain json.RawMessage
					}
				}
				if err := json.Unmarshal([]byte(readFile(t, bundle)), &parsed); err != nil {
					t.Fatal(err)
				}
				if m := parsed.VerificationMaterial; m.Certificate == nil || m.X509CertificateChain != nil {
					t.Error("the bundle has a chain, or no certificate")
				}
			})
			t.Run(fmt.Sprintf("a statement, %s, staging %v", version.name, staging), func(t *testing.T) {
				b := newSandbox(t)
				blob := b.file("a.txt", "conformance statement "+version.name)
				statement := fmt.Sprintf(`{ "_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "a.txt", "digest": {"sha256": "%s"}}], "predicateType": "https://example.com/p", "predicate": {} }`+"\n", sha256Hex(t, blob))
				bundle := b.path("statement.sigstore.json")
				b.must(attestry, flags(prefix, []string{"--in-toto", "--identity-token", s.alice(), "--bundle", bundle}, trust,
					[]string{"--signing-config", s.client(version.config), b.file("statement.json", statement)})...)
				var parsed struct{ DSSEEnvelope struct{ Payload []byte } }
				if err := json.Unmarshal([]byte(readFile(t, bundle)), &parsed); err != nil || string(parsed.DSSEEnvelope.Payload) != statement {
					t.Errorf("the payload is not the statement byte for byte: %v: %q", err, parsed.DSSEEnvelope.Payload)
				}
				verify := flags(verifyPrefix, []string{"--bundle", bundle}, s.aliceAs(), trust)
				b.must(attestry, flags(verify, []string{blob})...)
				b.must(attestry, flags(verify, []string{"sha256:" + sha256Hex(t, blob)})...)
				b.refused("subject-mismatch", attestry, flags(verify, []string{b.file("other", "other")})...)
			})
		}
	}
	t.Run("what the environment names stands for the public instance", func(t *testing.T) {
		b := newSandbox(t)
		b.set("ATTESTRY_CONFORMANCE_TRUSTED_ROOT", s.client("trusted_root.json"))
		b.set("ATTESTRY_CONFORMANCE_SIGNING_CONFIG", s.client("signing_config.v0.2.json"))
		blob, bundle := b.file("a.txt", "by environment"), b.path("bundle")
		b.must(attestry, "conformance", "sign-bundle", "--identity-token", s.alice(), "--bundle", bundle, blob)
		b.must(attestry, flags([]string{"conformance", "verify-bundle", "--bundle", bundle}, s.aliceAs(), []string{blob})...)
	})
	t.Run("the age of what TUF said", func(t *testing.T) {
		b := newSandbox(t)
		blob, bundle := b.file("a.txt", "aged"), b.path("bundle")
		b.must(attestry, flags([]string{"sign", "--identity-token", s.alice(), "--bundle", bundle, "--signing-config", s.client("signing_config.v0.2.json")}, trust, []string{blob})...)
		verify := flags([]string{"verify", "--bundle", bundle, "--output", "json"}, trust, s.aliceAs())
		metadata := []string{"--trust-metadata", filepath.Join(s.dir, "tuf")}
		out := b.must(attestry, flags(verify, metadata, []string{"--max-trust-age", "1h", blob})...)
		var got struct{ TrustExpires time.Time }
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.TrustExpires.Before(time.Now()) {
			t.Errorf("%v: %s", err, out)
		}
		b.refused("trust-stale", attestry, flags(verify, []string{"--trust-metadata", b.home, "--max-trust-age", "1h", blob})...)
	})
}

func sha256Hex(t *testing.T, path string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(readFile(t, path)))
	return hex.EncodeToString(sum[:])
}

// TestVerifyCommandCost prints what one run of the program takes: it is not judged, as the machine may be busy.
func TestVerifyCommandCost(t *testing.T) {
	base := filepath.Join(shared(t), "conformance")
	dir := filepath.Join(base, "bundle-verify", "happy-path-intoto-in-dsse-v3")
	var took []time.Duration
	var resident int64
	for range 11 {
		cmd := exec.Command(attestry, "verify", "--bundle", filepath.Join(dir, "bundle.sigstore.json"), "--trusted-root", filepath.Join(base, "trusted_root.public-good.json"),
			"--certificate-identity", beaconIdentity, "--certificate-oidc-issuer", beaconIssuer, artifact(base, dir))
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		took = append(took, time.Since(start))
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			resident = max(resident, usage.Maxrss) // KiB on Linux
		}
	}
	slices.Sort(took)
	measured(t, "attestry verify of a bundle: %v, at most %d MiB resident", took[len(took)/2].Round(time.Millisecond), resident>>10)
}

// artifact is the file that a published case is about.
func artifact(base, dir string) string {
	if path := filepath.Join(dir, "artifact"); exists(path) {
		return path
	}
	return filepath.Join(base, "a.txt")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
