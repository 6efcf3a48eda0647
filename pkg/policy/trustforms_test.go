package policy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
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
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/stack"
	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// instance is our own stack in this process.
type instance struct {
	t     *testing.T
	stack *stack.Stack
	dir   string
}

func newInstance(t *testing.T) *instance {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	s, err := stack.Open(t.Context(), stack.Options{Dir: dir, Listen: ln.Addr().String(), Logger: logger, Issuer: stack.IssuerLoopback})
	if err != nil {
		ln.Close()
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- server.Run(ctx, ln, s.Handler(), time.Second, logger) }()
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("stopping: %v", err)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return &instance{t, s, dir}
}

func (i *instance) file(parts ...string) []byte {
	i.t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{i.dir}, parts...)...))
	if err != nil {
		i.t.Fatal(err)
	}
	return data
}

// attest returns alice's attestation of a digest as a referrer would hold it.
func (i *instance) attest(digest, predicateType, predicate string) oci.Attachment {
	i.t.Helper()
	raw, err := hex.DecodeString(strings.TrimPrefix(digest, "sha256:"))
	if err != nil {
		i.t.Fatal(err)
	}
	statement, err := sign.NewStatement("app", raw, predicateType, []byte(predicate))
	if err != nil {
		i.t.Fatal(err)
	}
	token, err := i.stack.Token("alice@example.com")
	if err != nil {
		i.t.Fatal(err)
	}
	signed, err := sign.Statement(i.t.Context(), sign.Options{
		SigningConfig: i.file("client", "signing_config.v0.2.json"), TrustedRoot: i.file("client", "trusted_root.json"), IdentityToken: token,
	}, statement)
	if err != nil {
		i.t.Fatal(err)
	}
	return oci.Attachment{Form: oci.FormBundle, Bundle: signed.Bundle, PredicateType: predicateType, Location: "memory"}
}

// memory is a source that holds what is attached to one image.
type memory struct {
	attachments []oci.Attachment
	err         error
	configs     map[string][]byte
	asked       int
}

func (m *memory) Resolve(context.Context, string) (oci.Image, error) { return oci.Image{}, m.err }
func (m *memory) Children(context.Context, oci.Image) ([]oci.Image, error) {
	return nil, nil
}
func (m *memory) Attachments(context.Context, oci.Image) ([]oci.Attachment, error) {
	m.asked++
	return m.attachments, m.err
}
func (m *memory) Configs(context.Context, oci.Image) (map[string][]byte, error) {
	return m.configs, nil
}

func subject() *policy.Subject {
	sum := sha256.Sum256([]byte("image"))
	digest := "sha256:" + hex.EncodeToString(sum[:])
	return &policy.Subject{Image: oci.Image{Reference: "registry.example/app@" + digest, Name: "registry.example/app", Digest: digest}}
}

func decide(t *testing.T, source oci.Source, o policy.Options, docs ...string) policy.Verdict {
	t.Helper()
	loaded, err := policy.Compile([]policy.File{{Name: "p.yaml", Data: []byte(strings.Join(docs, "\n---\n"))}}, o)
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.NewSet(loaded.Policies, policy.SetOptions{Version: loaded.Version})
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

func trustRootDocument(spec string) string {
	return "apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: t}\nspec:\n  " + spec
}

func encode(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

// pack makes the mirrorFS of a directory, as policy-controller's own tool does.
func pack(t *testing.T, repo fs.FS) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	err := fs.WalkDir(repo, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(repo, path)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: "repository/" + path, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = tw.Write(data)
		return err
	})
	if err == nil {
		err = tw.Close()
	}
	if err == nil {
		err = zw.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// keysOf writes trusted_root.json as spec.sigstoreKeys.
func keysOf(t *testing.T, trustedRoot []byte) string {
	t.Helper()
	var root struct {
		Tlogs, Ctlogs []struct {
			BaseURL   string
			PublicKey struct{ RawBytes []byte }
		}
		CertificateAuthorities, TimestampAuthorities []struct {
			URI       string
			CertChain struct{ Certificates []struct{ RawBytes []byte } }
		}
	}
	if err := json.Unmarshal(trustedRoot, &root); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	out.WriteString("sigstoreKeys:\n")
	authorities := func(name string, list []struct {
		URI       string
		CertChain struct{ Certificates []struct{ RawBytes []byte } }
	}) {
		fmt.Fprintf(&out, "    %s:\n", name)
		for _, a := range list {
			var chain []byte
			for _, c := range a.CertChain.Certificates {
				chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.RawBytes})...)
			}
			fmt.Fprintf(&out, "    - {subject: {organization: o, commonName: c}, uri: %q, certChain: %s}\n", a.URI, encode(chain))
		}
	}
	logs := func(name string, list []struct {
		BaseURL   string
		PublicKey struct{ RawBytes []byte }
	}) {
		fmt.Fprintf(&out, "    %s:\n", name)
		for _, l := range list {
			key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: l.PublicKey.RawBytes})
			fmt.Fprintf(&out, "    - {baseURL: %q, hashAlgorithm: sha-256, publicKey: %s}\n", l.BaseURL, encode(key))
		}
	}
	authorities("certificateAuthorities", root.CertificateAuthorities)
	authorities("timestampAuthorities", root.TimestampAuthorities)
	logs("tLogs", root.Tlogs)
	logs("ctLogs", root.Ctlogs)
	return out.String()
}

func TestTrustRootForms(t *testing.T) {
	i := newInstance(t)
	source := &memory{attachments: []oci.Attachment{i.attest(subject().Image.Digest, oci.PredicateSignature, `{}`)}}
	repo := os.DirFS(filepath.Join(i.dir, "tuf"))
	root := encode(i.file("client", "root.json"))
	mirror := map[string]fs.FS{"https://tuf.example": repo}
	archive := "repository: {root: " + root + ", targets: targets, mirrorFS: " + encode(pack(t, repo)) + "}"
	for _, tt := range []struct {
		name, spec string
		options    policy.Options
	}{
		{"keys", keysOf(t, i.file("client", "trusted_root.json")), policy.Options{}},
		{"repository", archive, policy.Options{}},
		{"remote, from a copy", "remote: {mirror: 'https://tuf.example', root: " + root + "}", policy.Options{Mirrors: mirror}},
		{"remote, another target", "remote: {mirror: 'https://tuf.example', root: " + root + ", trustedRootTarget: trusted_root.json}", policy.Options{Mirrors: mirror}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := decide(t, source, tt.options, trustRootDocument(tt.spec), byTrustRoot(i.stack.IssuerURL(), ""))
			if !v.Allowed {
				t.Errorf("%+v", v.Policies)
			}
			v = decide(t, source, tt.options, trustRootDocument(tt.spec), byTrustRoot("https://other.example", ""))
			if v.Allowed || v.Policies[0].Reason != verify.ReasonIdentityIssuer {
				t.Errorf("another issuer: %+v", v)
			}
		})
	}
	other := newInstance(t)
	for _, tt := range []struct {
		name, spec, want string
		options          policy.Options
	}{
		{"a repository of somebody else", "repository: {root: " + encode(other.file("client", "root.json")) + ", mirrorFS: " + encode(pack(t, repo)) + "}", "TUF", policy.Options{}},
		{"metadata that has ended", archive, "expired", policy.Options{TUFTime: time.Now().AddDate(20, 0, 0)}},
		{"a target that there is not", strings.Replace(archive, "targets: targets", "trustedRootTarget: other.json", 1), `no target "other.json"`, policy.Options{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := trustRootDocument(tt.spec)
			_, err := policy.Compile([]policy.File{{Name: "p.yaml", Data: []byte(doc)}}, tt.options)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

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
	i := newInstance(t)
	standard := i.file("client", "trusted_root.json")
	keys := trustRootDocument(keysOf(t, standard))
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	unlogged := &memory{attachments: []oci.Attachment{signedByKey(t, private, subject().Image.Digest, `{}`)}}
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
			v := decide(t, unlogged, policy.Options{}, keys, withKey(key, tt.authority))
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
	a, b := newInstance(t), newInstance(t)
	source := &memory{attachments: []oci.Attachment{a.attest(subject().Image.Digest, oci.PredicateSignature, `{}`)}}
	var rootA, rootB map[string]json.RawMessage
	for data, root := range map[string]*map[string]json.RawMessage{
		string(a.file("client", "trusted_root.json")): &rootA, string(b.file("client", "trusted_root.json")): &rootB,
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
  - keyless: {ca-cert: {data: %q}, identities: [{issuer: %q, subject: alice@example.com}]}`, chain, a.stack.IssuerURL())
	if v := decide(t, source, policy.Options{TrustedRoot: lines(rootB, rootA)}, doc); !v.Allowed {
		t.Errorf("whole roots: %+v", v)
	}
	rootA["ctlogs"], rootB["ctlogs"] = rootB["ctlogs"], rootA["ctlogs"]
	if v := decide(t, source, policy.Options{TrustedRoot: lines(rootB, rootA)}, doc); v.Allowed {
		t.Error("the CT log of one root went with the log of another")
	}
}

// An SBOM of the size that real images have is looked at in time.
func TestCUEOverALargeSBOM(t *testing.T) {
	i := newInstance(t)
	var components []string
	for n := range 2000 {
		components = append(components, fmt.Sprintf(`{"type":"library","bom-ref":"pkg:golang/example.com/m%[1]d@v1.%[1]d.0","name":"example.com/m%[1]d","version":"v1.%[1]d.0","purl":"pkg:golang/example.com/m%[1]d@v1.%[1]d.0","licenses":[{"license":{"id":"Apache-2.0"}}]}`, n))
	}
	sbom := `{"bomFormat":"CycloneDX","specVersion":"1.5","components":[` + strings.Join(components, ",") + `]}`
	source := &memory{attachments: []oci.Attachment{i.attest(subject().Image.Digest, "https://cyclonedx.org/bom", sbom)}}
	for language, program := range map[string]string{
		"cue":  `predicate: {bomFormat: "CycloneDX", components: [...{licenses: [...{license: id: !~"GPL"}]}]}`,
		"rego": "package sigstore\nisCompliant { count([c | c := input.predicate.components[_]; c.licenses[_].license.id == \"GPL\"]) == 0 }",
	} {
		more := fmt.Sprintf("attestations: [{name: sbom, predicateType: cyclonedx, policy: {type: %s, data: %q}}]", language, program)
		v := decide(t, source, policy.Options{}, trustRootDocument(keysOf(t, i.file("client", "trusted_root.json"))), byTrustRoot(i.stack.IssuerURL(), more))
		if !v.Allowed {
			t.Errorf("%s: %+v", language, v.Policies)
		}
	}
}
