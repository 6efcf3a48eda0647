package e2e

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// changed returns a JSON document after change.
func changed(t *testing.T, text string, change func(document map[string]any)) string {
	t.Helper()
	var document map[string]any
	if err := json.Unmarshal([]byte(text), &document); err != nil {
		t.Fatal(err)
	}
	change(document)
	out, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// each calls f with every object of a list of documents.
func each(list any, f func(map[string]any)) {
	for _, one := range list.([]any) {
		f(one.(map[string]any))
	}
}

// TestGHDecidesAsWeDo has `gh attestation verify`, `attestry verify` and a sigstore_policy decide about the same provenance: a workflow of
// GitHub signed it with our stack. Where they differ the case says what gh says; docs/verify.md says why.
func TestGHDecidesAsWeDo(t *testing.T) {
	if !long() {
		t.Skip("skipped: takes minutes; enable with: scripts/test --long")
	}
	gh := filepath.Join(clientsDir(t), "gh-v2.82.0", "gh")
	if _, err := os.Stat(gh); err != nil {
		missing(t, false, "gh is not built; enable with: ../shared/clients/get.sh gh")
	}
	idp := newIssuers(t)
	s := up(t, "--ca-config", issuerFile(t, idp.config(t)))
	b := newSandbox(t)
	const slsa = "https://slsa.dev/provenance/v1"
	blob, other := b.file("app.tar", "an artifact"), b.file("other.tar", "another")
	predicate := b.file("predicate.json", `{"buildDefinition":{"buildType":"https://example.com/build"},"runDetails":{"builder":{"id":"https://example.com/ci"}}}`)
	attest := func(name, token, config, kind string) string {
		b.must(attestry, "attest", "--identity-token", token, "--signing-config", s.client(config), "--trusted-root", s.client("trusted_root.json"),
			"--type", kind, "--predicate", predicate, "--bundle", b.path(name), blob)
		return b.path(name)
	}
	workflow := idp.cases["github"].Claims["job_workflow_ref"].(string)
	owner := idp.cases["github"].Claims["repository_owner"].(string)
	issuer, identity := idp.issuer("github"), "https://github.com/"+workflow
	root := readFile(t, s.client("trusted_root.json"))
	// gh reads JSON lines, and leaves out a last one that does not end.
	trusted := func(name string, change func(map[string]any)) string {
		return b.file(name, changed(t, root, change)+"\n")
	}
	whole := trusted("trusted.jsonl", func(map[string]any) {})
	past := time.Now().Add(-24 * time.Hour).UTC().Format(time.RFC3339)
	ended := func(list string) func(map[string]any) {
		return func(d map[string]any) {
			each(d[list], func(one map[string]any) {
				holder := one
				if list == "tlogs" || list == "ctlogs" {
					holder = one["publicKey"].(map[string]any)
				}
				holder["validFor"] = map[string]any{"start": "2020-01-01T00:00:00Z", "end": past}
			})
		}
	}
	for _, log := range s.rekors() {
		t.Run("Rekor v"+log.number, func(t *testing.T) {
			b := b.in(t)
			var cases strings.Builder // the same for a policy
			signed := attest("signed"+log.number+".json", idp.token("github", nil), log.config, slsa)
			text := readFile(t, signed)
			bundle := func(name string, change func(map[string]any)) string {
				return b.file(log.number+name, changed(t, text, change))
			}
			envelope := func(d map[string]any) map[string]any { return d["dsseEnvelope"].(map[string]any) }
			for _, tt := range []struct {
				name                                          string
				blob, bundle, trust, identity, issuer, person string // "" is what fits
				kind                                          string
				refused                                       string // our reason; "" allows
				gh                                            string // what gh does otherwise: "allows", "refuses"
			}{
				{name: "signed"},
				{name: "another workflow", identity: identity + "-not", refused: "identity-subject"},
				{name: "another issuer", issuer: "https://issuer.example", refused: "identity-issuer"},
				{name: "another organisation", person: "somebody", refused: "identity-extension"},
				{name: "another artifact", blob: other, refused: "subject-mismatch"},
				{name: "another predicate type", kind: "https://slsa.dev/provenance/v0.2", refused: "predicate-missing"},
				{name: "a payload that was changed", bundle: bundle("payload.json", func(d map[string]any) {
					payload, err := base64.StdEncoding.DecodeString(envelope(d)["payload"].(string))
					if err != nil {
						t.Fatal(err)
					}
					envelope(d)["payload"] = base64.StdEncoding.EncodeToString([]byte(strings.Replace(string(payload), "example.com/ci", "example.com/cj", 1)))
				}), refused: "signature-invalid|log-entry-mismatch"},
				{name: "a signature that was changed", bundle: bundle("signature.json", func(d map[string]any) {
					each(envelope(d)["signatures"], func(one map[string]any) {
						sig, err := base64.StdEncoding.DecodeString(one["sig"].(string))
						if err != nil {
							t.Fatal(err)
						}
						sig[len(sig)-1] ^= 1
						one["sig"] = base64.StdEncoding.EncodeToString(sig)
					})
				}), refused: "signature-invalid|log-entry-mismatch"},
				{name: "without its log entry", bundle: bundle("nolog.json", func(d map[string]any) {
					d["verificationMaterial"].(map[string]any)["tlogEntries"] = []any{}
				}), refused: "log-entry-missing"},
				{name: "a CA that had ended", trust: trusted("ca-ended.json", ended("certificateAuthorities")), refused: "cert-chain"},
				{name: "a log that had ended", trust: trusted("log-ended.json", ended("tlogs")), refused: map[string]string{"1": "log-expired"}[log.number]}, // an entry of v2 has no time
				{name: "a CT log that had ended", trust: trusted("ct-ended.json", ended("ctlogs")), refused: "sct-expired|sct-missing", gh: "allows"},
				{name: "another instance's trust", trust: b.file("stranger.json", strangerRoot(t)), refused: "cert-chain|log-unknown"},
			} {
				t.Run(tt.name, func(t *testing.T) {
					or := func(value, otherwise string) string {
						if value == "" {
							return otherwise
						}
						return value
					}
					file, from, trust := or(tt.blob, blob), or(tt.bundle, signed), or(tt.trust, whole)
					kind, by, org := or(tt.kind, slsa), or(tt.issuer, issuer), or(tt.person, owner)
					theirs := b.run(gh, "attestation", "verify", file, "--bundle", from, "--custom-trusted-root", trust, "--owner", org,
						"--cert-identity", or(tt.identity, identity), "--cert-oidc-issuer", by, "--predicate-type", kind)
					ours := b.run(attestry, "verify", "--bundle", from, "--trusted-root", trust, "--certificate-identity", or(tt.identity, identity),
						"--certificate-oidc-issuer", by, "--certificate-extension", "sourceRepositoryOwnerURI=https://github.com/"+org, "--type", kind, "--output", "json", file)
					if (ours.err == nil) != (tt.refused == "") || tt.refused != "" && !reasonIn(ours.stdout, tt.refused) {
						t.Errorf("attestry: %v, want %q\n%s", ours.err, tt.refused, ours)
					}
					if org == owner { // a policy has no word for it
						n := len(strings.Split(cases.String(), "\n"))
						policy := fmt.Sprintf("policy%s-%d.yaml", log.number, n)
						b.file(policy, fmt.Sprintf(ghPolicy, by, or(tt.identity, identity), indentYAML(readFile(t, trust), 8), kind))
						fmt.Fprintf(&cases, "  - {name: %q, policy: %s, bundle: %s, image: \"app@sha256:%x\", expect: %s}\n", tt.name, policy, filepath.Base(from),
							sha256.Sum256([]byte(readFile(t, file))), map[bool]string{true: "allow", false: "deny"}[tt.refused == ""])
					}
					want := map[string]bool{"": tt.refused == "", "allows": true, "refuses": false}[tt.gh]
					if (theirs.err == nil) != want || noVerdict.MatchString(theirs.stderr) {
						t.Errorf("gh: %v, want it to allow: %v\n%s", theirs.err, want, theirs)
					}
				})
			}
			b.file("all_test.yaml", "cases:\n"+cases.String())
			if out := b.must(attestry, "policy", "test", "-v", "."); !strings.Contains(out, "12 cases, 0 failed") {
				t.Errorf("%s", out)
			}
		})
	}
}

const ghPolicy = `kind: sigstore_policy
version: v1
metadata:
  name: github-provenance
spec:
  keyless:
    identities:
      - {issuer: %q, subject: %q}
    trusted_roots:
      - |
        %s
  requirements:
    artifact_signature: false
    attestations:
      - predicate_type: %q
`

// noVerdict is what gh says when it could not look at a bundle.
var noVerdict = regexp.MustCompile(`error creating Sigstore verifier`)

// strangerRoot is the trusted root of another instance.
func strangerRoot(t *testing.T) string {
	t.Helper()
	return changed(t, readFile(t, up(t).client("trusted_root.json")), func(map[string]any) {}) + "\n"
}

// reasonIn tells whether the reason of a verdict, or its class, is one of several.
func reasonIn(output, reasons string) bool {
	var verdict struct{ Reason, Class string }
	if json.Unmarshal([]byte(output), &verdict) != nil {
		return false
	}
	for _, reason := range strings.Split(reasons, "|") {
		if verdict.Reason == reason || verdict.Class == reason {
			return true
		}
	}
	return false
}
