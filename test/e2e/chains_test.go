package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// sharedTool returns a program or script of the directory beside the checkout that holds what needs a module or a
// machine of its own, and skips the test where it is not.
func sharedTool(t *testing.T, path ...string) string {
	t.Helper()
	dir := os.Getenv("ATTESTRY_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	tool, err := filepath.Abs(filepath.Join(append([]string{dir}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(tool); err != nil {
		missing(t, false, "no %s; set ATTESTRY_SHARED to the directory that holds clients/ and cluster/", filepath.Join(path...))
	}
	return tool
}

// TestTektonChains signs a statement with the packages of the Tekton Chains controller: cosign 2.2.4 inside, the v1 API of the
// CA, an intoto entry in the Rekor v1 log, trust from a TUF mirror.
func TestTektonChains(t *testing.T) {
	sharedTool(t, "clients", "get.sh")
	chains := filepath.Join(clientsDir(t), "chains-sign-v0.22.0", "chains-sign")
	if _, err := os.Stat(chains); err != nil {
		missing(t, false, "chains-sign is not built; enable with: ../shared/clients/get.sh chains-sign")
	}
	s, r := behindRecorder(t)
	b := newSandbox(t)
	blob := b.file("blob", "built by a pipeline")
	const slsa = "https://slsa.dev/provenance/v0.2"
	statement := b.file("statement.json", fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v0.1","subject":[{"name":"blob","digest":{"sha256":"%x"}}],"predicateType":%q,"predicate":%s}`,
		sha256.Sum256([]byte("built by a pipeline")), slsa, predicate))
	sign := func(b *sandbox, token, out string) []string {
		return []string{"-fulcio", s.url, "-issuer", s.issuer(), "-token", b.file("token", token), "-tuf-mirror", s.url + "/tuf", "-rekor", s.url, "-statement", statement, "-out", b.path(out)}
	}
	b.must(chains, sign(b, s.aliceByID(), "signed")...)
	if got, want := r.take(t), (asked{"/api/v1/signingCert", "header", "email", "P-256", 201}); got != want {
		t.Errorf("it asked %+v, want %+v", got, want)
	}
	s.certified(t, []string{readFile(t, b.path("signed.crt")), readFile(t, b.path("signed.chain.pem"))})
	var entry struct {
		LogIndex *int64 `json:"logIndex"`
		Body     string `json:"body"`
	}
	if err := json.Unmarshal([]byte(readFile(t, b.path("signed.entry.json"))), &entry); err != nil || entry.LogIndex == nil {
		t.Fatalf("%v in %s", err, readFile(t, b.path("signed.entry.json")))
	}
	var body struct{ Kind, APIVersion string }
	if err := json.Unmarshal(unbase64(t, entry.Body), &body); err != nil || body.Kind != "intoto" {
		t.Errorf("the log entry is %+v, %v", body, err)
	}
	t.Run("cosign finds it in the log and verifies it", func(t *testing.T) {
		v := b.in(t)
		v.source(s.client("env.cosign2"))
		verify := func(identity, blob string) []string {
			return []string{"verify-blob-attestation", "--rekor-url", s.url, "--signature", b.path("signed.dsse.json"), "--certificate", b.path("signed.crt"),
				"--certificate-chain", b.path("signed.chain.pem"), "--certificate-identity", identity, "--certificate-oidc-issuer", s.issuer(), "--type", "slsaprovenance", blob}
		}
		v.must(client(t, "cosign", "v2.6.5"), verify("alice@example.com", blob)...)
		v.refused(`none of the expected identities matched`, client(t, "cosign", "v2.6.5"), verify("bob@example.com", blob)...)
		v.refused(`(?i)digest|subject`, client(t, "cosign", "v2.6.5"), verify("alice@example.com", v.file("other", "built by nobody"))...)
	})
	t.Run("a token of another issuer is refused", func(t *testing.T) {
		v := newSandbox(t)
		v.refused(`unknown_issuer`, chains, sign(v, s.token("--email", "alice@example.com", "--claim", "iss=https://other.example"), "none")...)
	})
}
