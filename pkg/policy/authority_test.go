package policy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

func subject() *Subject {
	sum := sha256.Sum256([]byte("image"))
	digest := "sha256:" + hex.EncodeToString(sum[:])
	return &Subject{Image: oci.Image{Reference: "registry.example/app@" + digest, Name: "registry.example/app", Digest: digest}}
}

func decideUnder(t *testing.T, source oci.Source, o Options, docs ...string) Verdict {
	t.Helper()
	loaded, err := Compile([]File{{Name: "p.yaml", Data: []byte(strings.Join(docs, "\n---\n"))}}, o)
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewSet(loaded.Policies, SetOptions{Version: loaded.Version})
	if err != nil {
		t.Fatal(err)
	}
	return set.Decide(t.Context(), subject(), source)
}

// byTrustRoot is a policy for alice's signatures under a TrustRoot named t.
func byTrustRoot(issuer, more string) string {
	return fmt.Sprintf(`apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: p}
spec:
  images: [{glob: registry.example/**}]
  authorities:
  - keyless: {trustRootRef: t, identities: [{issuer: %q, subject: alice@example.com}]}
    %s`, issuer, more)
}

func encode(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

// withKey is a policy for a key.
func withKey(key []byte, more string) string {
	return fmt.Sprintf(`apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: p}
spec:
  images: [{glob: registry.example/**}]
  authorities:
  - key: {data: %q}
    %s`, key, more)
}

// Each part of an authority's trust comes from the TrustRoot that it names, and needs no other.
func TestTrustIsTakenFromWhereItIsNamed(t *testing.T) {
	s := newSite(t)
	keys := keysOf(t, s.trusted, "t")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	unlogged := newShelf(signedByKey(t, private, subject().Image.Digest, `{}`))
	for _, tt := range []struct {
		name, authority string
		want            verify.Reason // "" allows
	}{
		{"a key alone", "", ""},
		{"a key and a log", "ctlog: {trustRootRef: t}", verify.ReasonInclusionInvalid},
		{"a key and a timestamp", "rfc3161timestamp: {trustRootRef: t}", verify.ReasonNoTime},
		{"a key with both", "ctlog: {trustRootRef: t}\n    rfc3161timestamp: {trustRootRef: t}", verify.ReasonInclusionInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := decideUnder(t, unlogged, Options{}, keys, withKey(key, tt.authority))
			if v.Allowed != (tt.want == "") || tt.want != "" && v.Policies[0].Reason.Class() != tt.want {
				t.Errorf("%+v, want %q", v, tt.want)
			}
		})
	}
}

// signedByKey is a signature of a digest by a key, in no log.
func signedByKey(t *testing.T, key *ecdsa.PrivateKey, digest, predicate string) oci.Attachment {
	t.Helper()
	statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app","digest":{"sha256":%q}}],"predicateType":%q,"predicate":%s}`,
		strings.TrimPrefix(digest, "sha256:"), oci.PredicateSignature, predicate)
	const payloadType = "application/vnd.in-toto+json"
	pae := sha256.Sum256(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(statement), statement))
	sig, err := ecdsa.SignASN1(rand.Reader, key, pae[:])
	if err != nil {
		t.Fatal(err)
	}
	bundle := fmt.Sprintf(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"k"}},
		"dsseEnvelope":{"payload":%q,"payloadType":%q,"signatures":[{"sig":%q}]}}`, encode([]byte(statement)), payloadType, encode(sig))
	return oci.Attachment{Form: oci.FormBundle, Bundle: []byte(bundle), PredicateType: oci.PredicateSignature, Location: "memory"}
}

// Two roots in one trusted_root.jsonl are two trusts: a ca-cert goes with the logs of either, not with the CT log of one and the
// log of the other.
func TestRootsAreNotMixed(t *testing.T) {
	a, b := newSite(t), newSite(t)
	source := newShelf(a.sign("alice@example.com", subject().Image))
	var rootA, rootB map[string]json.RawMessage
	for data, root := range map[string]*map[string]json.RawMessage{
		string(a.trusted): &rootA, string(b.trusted): &rootB,
	} {
		if err := json.Unmarshal([]byte(data), root); err != nil {
			t.Fatal(err)
		}
	}
	lines := func(roots ...map[string]json.RawMessage) []byte {
		var out bytes.Buffer
		for _, r := range roots {
			if err := json.NewEncoder(&out).Encode(r); err != nil {
				t.Fatal(err)
			}
		}
		return out.Bytes()
	}
	var authorities []struct {
		CertChain struct{ Certificates []struct{ RawBytes []byte } }
	}
	if err := json.Unmarshal(rootA["certificateAuthorities"], &authorities); err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range authorities[0].CertChain.Certificates {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.RawBytes})...)
	}
	doc := fmt.Sprintf(`apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: p}
spec:
  images: [{glob: registry.example/**}]
  authorities:
  - keyless: {ca-cert: {data: %q}, identities: [{issuer: %q, subject: alice@example.com}]}`, chain, a.issuer)
	if v := decideUnder(t, source, Options{TrustedRoot: lines(rootB, rootA)}, doc); !v.Allowed {
		t.Errorf("whole roots: %+v", v)
	}
	rootA["ctlogs"], rootB["ctlogs"] = rootB["ctlogs"], rootA["ctlogs"]
	if v := decideUnder(t, source, Options{TrustedRoot: lines(rootB, rootA)}, doc); v.Allowed {
		t.Error("the CT log of one root went with the log of another")
	}
}

// An SBOM of the size that real images have is looked at in time.
func TestCUEOverALargeSBOM(t *testing.T) {
	s := newSite(t)
	var components []string
	for n := range 2000 {
		components = append(components, fmt.Sprintf(`{"type":"library","bom-ref":"pkg:golang/example.com/m%[1]d@v1.%[1]d.0","name":"example.com/m%[1]d","version":"v1.%[1]d.0","purl":"pkg:golang/example.com/m%[1]d@v1.%[1]d.0","licenses":[{"license":{"id":"Apache-2.0"}}]}`, n))
	}
	sbom := `{"bomFormat":"CycloneDX","specVersion":"1.5","components":[` + strings.Join(components, ",") + `]}`
	source := newShelf(s.attest("alice@example.com", subject().Image, "https://cyclonedx.org/bom", sbom))
	for language, program := range map[string]string{
		"cue":  `predicate: {bomFormat: "CycloneDX", components: [...{licenses: [...{license: id: !~"GPL"}]}]}`,
		"rego": "package sigstore\nisCompliant { count([c | c := input.predicate.components[_]; c.licenses[_].license.id == \"GPL\"]) == 0 }",
	} {
		more := fmt.Sprintf("attestations: [{name: sbom, predicateType: cyclonedx, policy: {type: %s, data: %q}}]", language, program)
		v := decideUnder(t, source, Options{}, keysOf(t, s.trusted, "t"), byTrustRoot(s.issuer, more))
		if !v.Allowed {
			t.Errorf("%s: %+v", language, v.Policies)
		}
	}
}
