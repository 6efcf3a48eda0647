package policy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
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
