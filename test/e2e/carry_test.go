package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// pushIndex makes an index of two images and returns its reference by digest.
func (r *images) pushIndex(repository string) string {
	r.t.Helper()
	index, err := random.Index(256, 1, 2)
	if err != nil {
		r.t.Fatal(err)
	}
	ref, err := name.ParseReference(r.host + "/" + repository + ":v1")
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		r.t.Fatal(err)
	}
	digest, err := index.Digest()
	if err != nil {
		r.t.Fatal(err)
	}
	return ref.Context().Digest(digest.String()).String()
}

// carried is an outside with a signed image, a signed index, and a key that signs sets.
type carried struct {
	*sandbox
	s            *stack
	outside      *images
	image, index string // by digest
}

func newCarried(t *testing.T, referrers bool) *carried {
	t.Helper()
	c := &carried{sandbox: newSandbox(t), s: up(t), outside: newRegistry(t, referrers)}
	c.set("COSIGN_PASSWORD", "")
	c.must(client(t, "cosign", "v3.1.3"), "generate-key-pair")
	c.image, c.index = c.outside.push("team/app"), c.outside.pushIndex("team/many")
	for image, forms := range map[string]string{c.image: "bundle,legacy", c.index: "legacy"} { // where there is a bundle, cosign 2.6 leaves legacy aside
		c.must(attestry, flags([]string{"sign", "--form", forms, "--recursive", "--identity-token", c.s.alice()}, c.s.signing(), []string{image})...)
		c.must(attestry, flags([]string{"attest", "--form", forms, "--type", "slsaprovenance", "--predicate", c.file("predicate.json", predicate),
			"--identity-token", c.s.alice()}, c.s.signing(), []string{image})...)
	}
	return c
}

// tagged is an image by its tag.
func tagged(image string) string { return image[:strings.Index(image, "@")] + ":v1" }

// pack are the arguments that pack both images, signed by the key.
func (c *carried) pack(out string, more ...string) []string {
	return flags([]string{"carry", "pack", "--out", out, "--key", "cosign.key", "--require-predicate", "slsaprovenance",
		"--tuf", c.s.url + "/tuf", "--tuf-root", c.s.client("root.json")}, more, []string{tagged(c.image), tagged(c.index)})
}

// verifiesIn lets cosign of both generations verify what arrived.
func (c *carried) verifiesIn(host, prefix string) {
	c.t.Helper()
	trust := []string{"--trusted-root", c.s.client("trusted_root.json")}
	cosign3, cosign2 := client(c.t, "cosign", "v3.1.3"), client(c.t, "cosign", "v2.6.5")
	old := newSandbox(c.t)
	old.source(c.s.client("env.cosign2"))
	for image, form := range map[string]string{c.image: "--new-bundle-format", c.index: "--new-bundle-format=false"} {
		inside := host + prefix + image[strings.Index(image, "/"):]
		newSandbox(c.t).must(cosign3, flags([]string{"verify", form}, trust, c.s.aliceAs(), []string{inside})...)
		newSandbox(c.t).must(cosign3, flags([]string{"verify-attestation", form, "--type", "slsaprovenance"}, trust, c.s.aliceAs(), []string{inside})...)
		newSandbox(c.t).must(cosign3, flags([]string{"verify", form}, trust, c.s.aliceAs(), []string{tagged(inside)})...)
	}
	inside := host + prefix + c.index[strings.Index(c.index, "/"):]
	old.must(cosign2, flags([]string{"verify", "--offline"}, c.s.aliceAs(), []string{inside})...)
	old.must(cosign2, flags([]string{"verify-attestation", "--offline", "--type", "slsaprovenance"}, c.s.aliceAs(), []string{inside})...)
}

// TestImagesCrossTheGap packs outside, and checks, pushes and verifies inside after everything outside has gone.
func TestImagesCrossTheGap(t *testing.T) {
	for _, referrers := range []bool{true, false} {
		t.Run(fmt.Sprintf("from a registry with referrers %v into one with %v", referrers, !referrers), func(t *testing.T) {
			c := newCarried(t, referrers)
			policy := c.file("policy.yaml", c.policy("alice@example.com"))
			c.must(attestry, c.pack("set.tar", "--policy", policy)...)
			c.s.stop()
			c.outside.close()
			exe, prefix, isolated := offline(attestry)
			if !isolated {
				t.Log("skipped: the network namespace without routes, which needs root")
			}
			anchor := []string{"--tuf-root", c.s.client("root.json"), "--key", "cosign.pub"}
			out := c.must(exe, flags(prefix, []string{"carry", "check"}, anchor, []string{"set.tar"})...)
			for _, want := range []string{"team/app:v1", "team/many:v1", "policy policy.yaml", "policy signed: passes", "https://slsa.dev/provenance/v0.2, bundle", "https://slsa.dev/provenance/v0.2, dsse", "simple-signing"} {
				if !strings.Contains(out, want) {
					t.Errorf("the report does not say %q:\n%s", want, out)
				}
			}
			inside := newRegistry(t, !referrers)
			for range 2 { // the second time there is nothing to send
				c.must(attestry, flags([]string{"carry", "push"}, anchor, []string{"set.tar", inside.host + "/mirror"})...)
				digest := c.image[strings.Index(c.image, "@"):]
				if n := len(inside.referrers(inside.host + "/mirror/team/app" + digest)); n != 2 {
					t.Errorf("%d of 2 referrers arrived", n)
				}
			}
			c.verifiesIn(inside.host, "/mirror")
			c.refused(`lack`, attestry, flags([]string{"carry", "check", "--require-predicate", "cyclonedx"}, anchor, []string{"set.tar"})...)
			c.refused(`key-mismatch|signature-invalid`, attestry, "carry", "check", "--key", c.file("other.pub", otherKey), "set.tar")
		})
	}
}

// otherKey is a public key that signed nothing.
const otherKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEGrMy51aA4/eQJ3KSM0fx+MRNdVGe
lKuc/YvdjOqzpDby0/TnVqVeJ8Pr7YtO9+ymx2RrFw7X1Rbrc4u/6hlzkw==
-----END PUBLIC KEY-----
`

// TestASetSignedByAnIdentity is worth what the receiver's own trust is worth.
func TestASetSignedByAnIdentity(t *testing.T) {
	c := newCarried(t, true)
	c.must(attestry, flags([]string{"carry", "pack", "--out", "set", "--identity-token", c.s.alice()}, c.s.signing(),
		[]string{"--tuf", c.s.dir + "/tuf", "--tuf-root", c.s.client("root.json"), tagged(c.image)})...)
	c.must(attestry, flags([]string{"carry", "check", "--tuf-root", c.s.client("root.json")}, c.s.aliceAs(), []string{"set"})...)
	c.must(attestry, flags([]string{"carry", "check", "--trusted-root", c.s.client("trusted_root.json")}, c.s.aliceAs(), []string{"set"})...)
	c.refused(`the set's own is no proof`, attestry, flags([]string{"carry", "check"}, c.s.aliceAs(), []string{"set"})...)
	c.refused(`identity-subject`, attestry, "carry", "check", "--tuf-root", c.s.client("root.json"), "--certificate-identity", "bob@example.com",
		"--certificate-oidc-issuer", c.s.issuer(), "set")
	other := up(t)
	c.refused(`carry-trust`, attestry, flags([]string{"carry", "check", "--tuf-root", other.client("root.json")}, c.s.aliceAs(), []string{"set"})...)
}

// TestAChangedSetIsRefused changes one thing at a time.
func TestAChangedSetIsRefused(t *testing.T) {
	c := newCarried(t, true)
	c.must(attestry, c.pack("set")...)
	check := []string{"carry", "check", "--key", "cosign.pub"}
	c.must(attestry, flags(check, []string{"set"})...)
	blobs, err := filepath.Glob(c.path("set/blobs/sha256/*"))
	if err != nil || len(blobs) == 0 {
		t.Fatal(err, len(blobs))
	}
	for _, tt := range []struct {
		name, reason string
		change       func(t *testing.T, dir string)
	}{
		{"a blob with another byte", "carry-file-changed", func(t *testing.T, dir string) {
			appendTo(t, filepath.Join(dir, "blobs/sha256", filepath.Base(blobs[0])), "x")
		}},
		{"a blob that is missing", "carry-file-missing", func(t *testing.T, dir string) {
			remove(t, filepath.Join(dir, "blobs/sha256", filepath.Base(blobs[0])))
		}},
		{"a file that nobody signed", "carry-file-unknown", func(t *testing.T, dir string) {
			appendTo(t, filepath.Join(dir, "policies.yaml"), "x")
		}},
		{"another manifest", "signature-invalid|digest-mismatch", func(t *testing.T, dir string) {
			appendTo(t, filepath.Join(dir, "carry.json"), " ")
		}},
		{"no signature", "carry-unfinished", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "carry.sigstore.json")) }},
		{"another trusted root", "carry-trust", func(t *testing.T, dir string) { appendTo(t, filepath.Join(dir, "trust/trusted_root.json"), " ") }},
		{"a link in place of a file", "escapes|regular file|too many levels|carry-file", func(t *testing.T, dir string) {
			path := filepath.Join(dir, "blobs/sha256", filepath.Base(blobs[0]))
			remove(t, path)
			if err := os.Symlink("/etc/passwd", path); err != nil {
				t.Fatal(err)
			}
		}},
		{"a pipe in place of a file", "regular file", func(t *testing.T, dir string) {
			path := filepath.Join(dir, "blobs/sha256", filepath.Base(blobs[0]))
			remove(t, path)
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "set")
			if err := os.CopyFS(dir, os.DirFS(c.path("set"))); err != nil {
				t.Fatal(err)
			}
			tt.change(t, dir)
			c.in(t).refused(tt.reason, attestry, flags(check, []string{dir})...)
		})
	}
	for _, tt := range []struct {
		name, reason string
		member       tar.Header
	}{
		{"a tar with a link", "no regular file", tar.Header{Typeflag: tar.TypeSymlink, Name: "oci-layout", Linkname: "/etc/passwd"}},
		{"a tar with a name that leads out of it", "member name", tar.Header{Typeflag: tar.TypeReg, Name: "../carry.json"}},
		{"a tar with an absolute name", "member name", tar.Header{Typeflag: tar.TypeReg, Name: "/carry.json"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			w := tar.NewWriter(&out)
			if err := errors.Join(w.WriteHeader(&tt.member), w.Close()); err != nil {
				t.Fatal(err)
			}
			b := c.in(t)
			b.refused(tt.reason, attestry, flags(check, []string{b.file("bad.tar", out.String())})...)
		})
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestPackingTheSameAgainMakesTheSameTar compares two tars of one directory that was packed twice.
func TestPackingTheSameAgainMakesTheSameTar(t *testing.T) {
	c := newCarried(t, true)
	sum := func(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(readFile(t, c.path(name))))) }
	c.must(attestry, c.pack("set")...)
	manifest, signature := sum("set/carry.json"), sum("set/carry.sigstore.json")
	c.must(attestry, c.pack("set")...)
	if sum("set/carry.json") != manifest || sum("set/carry.sigstore.json") != signature {
		t.Error("packed again, the set has another manifest or signature")
	}
	c.must(attestry, c.pack("one.tar")...)
	c.must(attestry, c.pack("two.tar")...)
	members := func(name string) string {
		var list strings.Builder
		in := tar.NewReader(strings.NewReader(readFile(t, c.path(name))))
		for {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				return list.String()
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			if h.Name == "carry.sigstore.json" { // an ECDSA signature holds a random number
				data = nil
			}
			fmt.Fprintf(&list, "%s %d %d %d %d %x\n", h.Name, h.Mode, h.Uid, h.Gid, h.ModTime.Unix(), sha256.Sum256(data))
		}
	}
	if one, two := members("one.tar"), members("two.tar"); one != two {
		t.Errorf("two tars of the same images differ:\n%s\n%s", one, two)
	}
}

// TestIncompleteIsNotPacked leaves an image without what is demanded.
func TestIncompleteIsNotPacked(t *testing.T) {
	c := newCarried(t, true)
	unsigned := c.outside.push("team/unsigned")
	c.refused(`lack`, attestry, c.pack("set", tagged(unsigned))...)
	c.refused(`lack`, attestry, c.pack("set", "--require-predicate", "cyclonedx")...)
	c.refused(`carry-unfinished`, attestry, "carry", "check", "--key", "cosign.pub", "set")
	out := c.must(attestry, flags([]string{"carry", "pack", "--out", "set", "--key", "cosign.key", "--allow-unsigned", "--output", "json",
		"--trusted-root", c.s.client("trusted_root.json")}, []string{tagged(unsigned)})...)
	var report struct {
		Complete bool `json:"complete"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || !report.Complete {
		t.Errorf("%v: %s", err, out)
	}
}

// stalling is a registry that stops answering at the nth request that matches, and says so.
type stalling struct {
	*images
	left    atomic.Int64
	reached chan struct{}
}

func newStalling(t *testing.T, after int64, matches func(*http.Request) bool) *stalling {
	t.Helper()
	s := &stalling{reached: make(chan struct{})}
	s.left.Store(after)
	handler := registry.New(registry.WithReferrersSupport(false), registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if matches(r) && s.left.Add(-1) == 0 {
			_, _ = io.Copy(io.Discard, r.Body) // a server notices that its client has gone once it has read all of the request
			close(s.reached)
			<-r.Context().Done() // the client was killed
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.images = &images{t: t, host: strings.TrimPrefix(srv.URL, "http://"), srv: srv}
	return s
}

// killedAt runs a command that is killed when the registry has stopped answering.
func (c *carried) killedAt(r *stalling, args ...string) {
	c.t.Helper()
	cmd := c.command(c.t.Context(), attestry, args...)
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the process
	select {
	case <-r.reached:
	case err := <-ended:
		c.t.Fatalf("it ended before it was killed: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	<-ended
}

// TestKilledWhilePackingAndPushing kills -9 in the middle, at several places, and runs the same again.
func TestKilledWhilePackingAndPushing(t *testing.T) {
	isBlob := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
	}
	isUpload := func(r *http.Request) bool { return r.Method == http.MethodPut }
	c := newCarried(t, true)
	c.must(attestry, c.pack("whole.tar")...)
	for _, after := range []int64{2, 5} {
		t.Run(fmt.Sprintf("while packing, at blob %d", after), func(t *testing.T) {
			outside := newStalling(t, 1<<40, isBlob)
			c.must(attestry, "carry", "push", "--key", "cosign.pub", "whole.tar", outside.host)
			outside.left.Store(after)
			out := fmt.Sprintf("killed-%d.tar", after)
			args := flags([]string{"carry", "pack", "--out", out, "--key", "cosign.key", "--tuf", c.s.url + "/tuf", "--tuf-root", c.s.client("root.json")},
				[]string{outside.host + "/team/app:v1", outside.host + "/team/many:v1"})
			c.killedAt(outside, args...)
			if _, err := os.Stat(c.path(out)); err == nil {
				t.Error("there is a tar of a set that was not finished")
			}
			c.must(attestry, args...)
			c.must(attestry, "carry", "check", "--key", "cosign.pub", out)
			if left, err := filepath.Glob(c.path(out + ".parts")); err != nil || len(left) > 0 {
				t.Errorf("%v was left behind", left)
			}
		})
	}
	for _, after := range []int64{2, 9, 15} {
		t.Run(fmt.Sprintf("while pushing, at upload %d", after), func(t *testing.T) {
			inside := newStalling(t, after, isUpload)
			args := []string{"carry", "push", "--key", "cosign.pub", "whole.tar", inside.host}
			c.killedAt(inside, args...)
			c.must(attestry, args...)
			c.verifiesIn(inside.host, "")
		})
	}
}

// policy wants a signature by somebody.
func (c *carried) policy(subject string) string {
	return "kind: sigstore_policy\nversion: v1\nmetadata: {name: signed}\nspec:\n  keyless: {identities: [{issuer: \"" + c.s.issuer() + "\", subject: " + subject +
		"}]}\n  requirements: {artifact_signature: true}\n"
}

// TestPoliciesDecideAboutASet asks, on both sides of the gap and without a network, what admission inside would say of each image.
func TestPoliciesDecideAboutASet(t *testing.T) {
	c := newCarried(t, true)
	byBob := c.outside.push("team/bobs")
	c.must(attestry, flags([]string{"sign", "--identity-token", c.s.token("--email", "bob@example.com")}, c.s.signing(), []string{byBob})...)
	signed := c.file("signed.yaml", c.policy("alice@example.com"))
	// says runs a command that is refused, which names what of which policy is not satisfied.
	says := func(what string, args []string, lines ...string) {
		t.Helper()
		out := c.run(attestry, args...)
		if out.err == nil {
			t.Errorf("%s: it is complete\n%s", what, out)
		}
		for _, line := range lines {
			if !strings.Contains(out.String(), line) {
				t.Errorf("%s: nothing says %q\n%s", what, line, out)
			}
		}
	}
	pack := func(out string, more ...string) []string {
		return flags([]string{"carry", "pack", "--out", out, "--key", "cosign.key", "--tuf", c.s.url + "/tuf", "--tuf-root", c.s.client("root.json")}, more)
	}
	says("somebody else signed", pack("bobs", "--policy", signed, tagged(c.image), tagged(byBob)),
		"team/bobs@", "policy signed: refuses: identity-subject", "bob@example.com", "1 of 2 images lack")
	says("it is not finished then", []string{"carry", "check", "--key", "cosign.pub", "bobs"}, "carry-unfinished")
	says("a policy that does not load", pack("broken", "--policy", c.file("broken.yaml", "kind: sigstore_policy\n"), tagged(c.image)), "PROBLEM: the set's policies:", "broken.yaml")
	c.must(attestry, pack("set.tar", "--policy", signed, tagged(c.image), tagged(c.index))...)
	c.s.stop()
	c.outside.close()

	sbom := c.file("sbom.yaml", strings.ReplaceAll(production("inside.example/mirror", c.s.issuer()), "/golem-trust/", "/"))
	exe, prefix, _ := offline(attestry)
	check := func(more ...string) []string {
		return flags(prefix, []string{"carry", "check", "--key", "cosign.pub"}, more, []string{"set.tar"})
	}
	verdicts := func(args []string) (allowed []bool) {
		t.Helper()
		var report struct {
			Images []struct{ Verdict *struct{ Allowed bool } }
		}
		out := c.run(exe, append(args, "--output", "json")...)
		if err := json.NewDecoder(strings.NewReader(out.stdout)).Decode(&report); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, i := range report.Images {
			allowed = append(allowed, i.Verdict != nil && i.Verdict.Allowed)
		}
		return allowed
	}
	if got := verdicts(check()); fmt.Sprint(got) != "[true true]" {
		t.Errorf("by the policies of the set: %v", got)
	}
	out := c.run(exe, check("--policy", sbom, "--inside", "inside.example/mirror")...)
	for _, line := range []string{"inside.example/mirror/team/app@", "policy production-signature: passes", "slsa-provenance (SLSA provenance): failed: policy-denied",
		"sbom-cyclonedx (CycloneDX SBOM): failed: predicate-missing", "2 of 2 images lack"} {
		if out.err == nil || !strings.Contains(out.String(), line) {
			t.Errorf("a missing SBOM: nothing says %q\n%s", line, out)
		}
	}
	if out := c.run(exe, check("--policy", sbom)...); out.err == nil || !strings.Contains(out.String(), "no-matching-policy") {
		t.Errorf("a policy for the names inside was asked about those outside\n%s", out)
	}
	if got := verdicts(check("--policy", sbom, "--no-match", "allow")); fmt.Sprint(got) != "[true true]" {
		t.Errorf("no policy speaks of them, and that is allowed: %v", got)
	}
	if got := verdicts(check("--policy", sbom, "--inside", "inside.example/mirror", "--combine", `satisfied("production") || satisfied("production-signature")`)); fmt.Sprint(got) != "[true true]" {
		t.Errorf("one of two will do: %v", got)
	}

	// push asks about the names in its registry, and sends nothing that is refused.
	inside := newRegistry(t, true)
	own := strings.ReplaceAll(production(inside.host+"/mirror", c.s.issuer()), "/golem-trust/", "/")
	push := func(policy string) []string {
		return []string{"carry", "push", "--key", "cosign.pub", "--policy", c.file("own.yaml", policy), "set.tar", inside.host + "/mirror"}
	}
	insideRegistry, err := name.NewRegistry(inside.host)
	if err != nil {
		t.Fatal(err)
	}
	says("no SBOM for the registry inside", push(own), "sbom-cyclonedx (CycloneDX SBOM): failed: predicate-missing")
	if repositories, err := remote.Catalog(t.Context(), insideRegistry); err != nil || len(repositories) > 0 {
		t.Errorf("%v, %v arrived", err, repositories)
	}
	c.must(attestry, push(strings.SplitN(own, "---\n", 2)[0])...)
}
