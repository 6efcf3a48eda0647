package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestRecordsOfWhatClientsGot asks `attestry ca issued` for certificates that cosign has.
func TestRecordsOfWhatClientsGot(t *testing.T) {
	cosign := client(t, "cosign", "v2.6.5")
	s := up(t)
	b := newSandbox(t)
	b.source(s.client("env.cosign2"))
	blob, cert := b.file("blob", "recorded"), b.path("cert")
	b.must(cosign, "sign-blob", "--yes", "--identity-token", s.alice(), "--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer(), "--output-certificate", cert, blob)
	serial := strings.TrimSpace(strings.TrimPrefix(b.must("sh", "-c", `base64 -d cert | openssl x509 -noout -serial`), "serial="))
	var row struct{ Identity, Issuer, Serial, CTLeaf string }
	line := b.must(attestry, "ca", "issued", "--dir", s.dir, "--serial", serial, "--output", "json")
	if err := json.Unmarshal([]byte(line), &row); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	if row.Identity != "alice@example.com" || row.Issuer != s.issuer() || !strings.EqualFold(row.Serial, serial) {
		t.Errorf("recorded %+v", row)
	}
	// The record leads to the log.
	hash := b.must("sh", "-c", "printf %s "+row.CTLeaf+" | xxd -r -p | base64 -w0 | sed 's/+/%2B/g; s,/,%2F,g; s/=/%3D/g'")
	if proof := get(t, fmt.Sprintf("%s/ct/main/ct/v1/get-proof-by-hash?tree_size=1&hash=%s", s.url, hash)); !strings.Contains(proof, `"leaf_index":0`) {
		t.Errorf("the log says %s", proof)
	}
	b.refused("aud", attestry, "sign", "--signing-config", s.client("signing_config.v0.2.json"), "--trusted-root", s.client("trusted_root.json"),
		"--identity-token", s.token("--email", "mallory@example.com", "--aud", "other"), blob)
	eventually(t, "the refusal is recorded", func() bool { // nobody waits for it
		return strings.Contains(b.must(attestry, "ca", "issued", "--dir", s.dir, "--refused", "--reason", "aud_mismatch"), s.issuer())
	})
	b.must(attestry, "ca", "issued", "--dir", s.dir, "--verify")
}

// TestDetachedSCTs has cosign 2's first path verify SCTs that stand in a header, from a ca in front of the CT log of `attestry up`.
func TestDetachedSCTs(t *testing.T) {
	cosign := client(t, "cosign", "v2.6.5")
	s := up(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "issuers.yaml"), fmt.Sprintf("oidc-issuers:\n  %s: {client-id: sigstore, type: email, allow-http: true}\n", s.issuer()))
	issuing := startRole(t, ca, dir, "ca", fmt.Sprintf("key: file:%s/keys/ca.pem\nchain-file: %[1]s/keys/ca-chain.pem\nissuer-file: %s/issuers.yaml\nct-mode: detached\nct-url: %s/ct/main\nct-public-key-file: %s\ndatabase: sqlite:%[2]s/records.db\n",
		s.dir, dir, s.url, s.client("ctfe.pem")))
	b := newSandbox(t)
	b.source(s.client("env.cosign2"))
	blob, bundle := b.file("blob", "detached"), b.path("bundle")
	sign := []string{"sign-blob", "--yes", "--identity-token", s.alice(), "--fulcio-url", issuing.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer(), "--bundle", bundle, blob}
	b.must(cosign, sign...)
	// A bundle of the first format has no place for the SCT.
	b.refused(`certificate does not include required embedded SCT`, cosign, flags([]string{"verify-blob", "--offline", "--bundle", bundle}, s.aliceAs(), []string{blob})...)
	b.must(cosign, flags([]string{"verify-blob", "--offline", "--insecure-ignore-sct", "--bundle", bundle}, s.aliceAs(), []string{blob})...)
	if entries := get(t, s.url+"/ct/main/ct/v1/get-entries?start=0&end=0"); !strings.Contains(entries, `"leaf_input":"AAA`) {
		t.Errorf("the log has %s", entries)
	}
	text := b.must(attestry, "ca", "issued", "--config", issuing.config, "--identity", "alice@example.com")
	if !strings.Contains(text, " 0\n") {
		t.Errorf("the record does not name the leaf:\n%s", text)
	}
	// cosign verifies what is in the header: with the key of another log it refuses.
	b.set("SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", s.client("rekor.pem"))
	b.refused(`verifying SCT: ctfe public key not found`, cosign, sign...)
}
