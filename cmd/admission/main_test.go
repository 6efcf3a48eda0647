package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"admission": main}) }

func TestScript(t *testing.T) { testscript.Run(t, testscript.Params{Dir: "testdata/script"}) }

// site is a registry on loopback, a key that signs, a policy that demands it, and the program over them.
type site struct {
	t      testing.TB
	dir    string
	host   string       // of the registry
	images http.Handler // the registry
	key    *ecdsa.PrivateKey
	client *http.Client
	url    string
	log    *logLines

	patience time.Duration // of await; 0 is half a minute
}

// logLines is what the program logs.
type logLines struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

const signedByKey = `apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: signed}
spec:
  images: [{glob: "**"}]
  authorities:
  - name: key
    key:
      data: |
        %s
`

func newSite(t testing.TB) *site {
	t.Helper()
	images := registry.New(registry.WithReferrersSupport(true), registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	srv := httptest.NewServer(images)
	t.Cleanup(srv.Close)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &site{t: t, dir: t.TempDir(), host: strings.TrimPrefix(srv.URL, "http://"), images: images, key: key, log: &logLines{}}
}

func (s *site) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *site) publicKey() string {
	s.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (s *site) policy() string {
	s.t.Helper()
	return fmt.Sprintf(signedByKey, strings.ReplaceAll(strings.TrimSpace(s.publicKey()), "\n", "\n        "))
}

// push makes an image and returns it with its reference by digest.
func (s *site) push(repository string) (v1.Image, string) {
	s.t.Helper()
	img, err := random.Image(64, 1)
	if err != nil {
		s.t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		s.t.Fatal(err)
	}
	repo, err := name.NewRepository(s.host + "/" + repository)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := remote.Write(repo.Digest(digest.String()), img); err != nil {
		s.t.Fatal(err)
	}
	return img, repo.Digest(digest.String()).String()
}

// signature is what cosign puts under the tag of a signature by s.key.
func (s *site) signature(reference string) v1.Image {
	s.t.Helper()
	repository, digest, _ := strings.Cut(reference, "@")
	payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, repository, digest)
	sum := sha256.Sum256([]byte(payload))
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		s.t.Fatal(err)
	}
	img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
		Layer:       static.NewLayer([]byte(payload), "application/vnd.dev.cosign.simplesigning.v1+json"),
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return img
}

// signatureTag is where it belongs.
func signatureTag(reference string) string {
	repository, digest, _ := strings.Cut(reference, "@")
	return repository + ":" + strings.Replace(digest, ":", "-", 1) + ".sig"
}

func (s *site) sign(reference string) {
	s.t.Helper()
	s.put(signatureTag(reference), s.signature(reference))
}

func (s *site) put(reference string, img v1.Image) {
	s.t.Helper()
	tag, err := name.NewTag(reference)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		s.t.Fatal(err)
	}
}

// start runs the program until the test ends.
func (s *site) start(more string) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	listen := s.free()
	config := s.file("admission.yaml", fmt.Sprintf("cluster: false\nlisten: %s\nops-listen: %s\ntls-cert-file: %s\ntls-key-file: %s\npolicy-files: [%s]\n%s",
		listen, s.free(), s.file("cert.pem", string(certPEM)), s.file("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))),
		s.file("policy.yaml", s.policy()), more))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	s.talk(listen, roots, "localhost")
	if err := run(s.t.Context(), []string{"-config", config, "-healthcheck"}, s.log); err == nil {
		s.t.Error("it is healthy before it runs")
	}
	s.run(config)
	s.await("it is ready", func() bool {
		resp, err := s.client.Get(s.url + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	if err := run(s.t.Context(), []string{"-config", config, "-healthcheck"}, s.log); err != nil {
		s.t.Errorf("it is ready and not healthy: %v", err)
	}
}

// run runs the program until stop is called, at the latest when the test ends.
func (s *site) run(config string) (stop func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"-config", config}, s.log) }()
	stop = sync.OnceFunc(func() {
		if s.client != nil {
			s.client.CloseIdleConnections()
		}
		cancel()
		if err := <-ended; err != nil {
			s.t.Errorf("the program ended: %v", err)
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// talk has ask reach the program at an address.
func (s *site) talk(listen string, roots *x509.CertPool, name string) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: name}, ForceAttemptHTTP2: true}
	s.client, s.url = &http.Client{Transport: transport}, "https://"+listen
}

func (s *site) free() string {
	s.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (s *site) await(what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(cmp.Or(s.patience, 30*time.Second)); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not in time: %s\n%s", what, s.log)
		}
	}
}

type answer struct {
	Response struct {
		Allowed bool
		Status  struct {
			Code    int
			Message string
		}
	}
}

// ask sends the review of a pod with one image. more are members of its specification.
func (s *site) ask(image string, more ...string) (a answer, protocol int) {
	s.t.Helper()
	spec := strings.Join(append(more, fmt.Sprintf(`"containers":[{"name":"app","image":%q}]`, image)), ",")
	review := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"1","kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},"namespace":"team","operation":"CREATE","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"app"},"spec":{%s}}}}`, spec)
	resp, err := s.client.Post(s.url+"/validate?timeout=10s", "application/json", strings.NewReader(review))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || json.Unmarshal(body, &a) != nil {
		s.t.Fatalf("%d %s: %v", resp.StatusCode, body, err)
	}
	return a, resp.ProtoMajor
}

// TestImagesOfARegistry is the program with real policies over a real registry.
func TestImagesOfARegistry(t *testing.T) {
	s := newSite(t)
	_, signed := s.push("team/app")
	s.sign(signed)
	_, unsigned := s.push("team/other")
	s.start("private-networks: [127.0.0.0/8]\n")
	got, protocol := s.ask(signed)
	if !got.Response.Allowed || protocol != 2 {
		t.Errorf("a signed image over HTTP/%d: %+v\n%s", protocol, got, s.log)
	}
	if got, _ := s.ask(unsigned); got.Response.Allowed || got.Response.Status.Code != http.StatusForbidden || !strings.Contains(got.Response.Status.Message, "no-signature") {
		t.Errorf("an unsigned image: %+v", got)
	}
	if got, _ := s.ask("10.0.0.1/team/app" + signed[strings.Index(signed, "@"):]); got.Response.Allowed || !strings.Contains(got.Response.Status.Message, "registry-blocked") {
		t.Errorf("an image in a network that must not be asked: %+v", got)
	}
	// Another policy counts within seconds, what was remembered or not; one that is wrong changes nothing.
	s.file("policy.yaml", strings.ReplaceAll(s.policy(), "kind: ClusterImagePolicy", "kind: ClusterImagePolicy\nnonsense: 1"))
	s.await("the wrong policy is refused", func() bool { return strings.Contains(s.log.String(), "policies refused") })
	if got, _ := s.ask(signed); !got.Response.Allowed {
		t.Errorf("a policy that is wrong: %+v", got)
	}
	s.file("policy.yaml", "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: closed}\nspec:\n  images: [{glob: \"**\"}]\n  authorities: [{static: {action: fail}}]\n")
	s.await("the new policy is in force", func() bool {
		got, _ := s.ask(signed)
		return !got.Response.Allowed && strings.Contains(got.Response.Status.Message, `policy "closed"`)
	})
}

// TestPrivateNetworksAreClosed: the loopback registry of the other tests is not asked unless its network is allowed.
func TestPrivateNetworksAreClosed(t *testing.T) {
	s := newSite(t)
	_, signed := s.push("team/app")
	s.sign(signed)
	s.start("")
	if got, _ := s.ask(signed); got.Response.Allowed || !strings.Contains(got.Response.Status.Message, "registry-blocked") {
		t.Errorf("%+v", got)
	}
}

// TestCarrySetsNeedNoRegistry: the images of a set are let in by what lies in it, where no registry is reachable.
func TestCarrySetsNeedNoRegistry(t *testing.T) {
	s := newSite(t)
	img, signed := s.push("team/app")
	other, unsigned := s.push("team/other")
	set, err := layout.Write(filepath.Join(s.dir, "set"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for reference, image := range map[string]v1.Image{
		strings.Replace(signed, "@", ":v1@", 1): img, strings.Replace(unsigned, "@", ":v1@", 1): other, signatureTag(signed): s.signature(signed),
	} {
		tag, _, _ := strings.Cut(reference, "@")
		if err := set.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})); err != nil {
			t.Fatal(err)
		}
	}
	s.start(fmt.Sprintf("carry-sets: [{path: %s, registry: registry.invalid/copies}]\n", filepath.Join(s.dir, "set")))
	s.await("the set is verified", func() bool { return strings.Contains(s.log.String(), `"msg":"carry sets","passed":1,"refused":1`) })
	inside := func(reference string) string { return strings.Replace(reference, s.host, "registry.invalid/copies", 1) }
	if got, _ := s.ask(inside(signed)); !got.Response.Allowed {
		t.Errorf("an image of the set: %+v\n%s", got, s.log)
	}
	if got, _ := s.ask(inside(unsigned)); got.Response.Allowed {
		t.Errorf("an unsigned image of the set: %+v", got)
	}
}

// BenchmarkCold answers reviews of pods whose image nobody has asked about, with a registry on loopback.
func BenchmarkCold(b *testing.B) {
	const images = 200
	s := newSite(b)
	var all []string
	for range images {
		_, reference := s.push("team/app")
		s.sign(reference)
		all = append(all, reference)
	}
	s.start("private-networks: [127.0.0.0/8]\npositive-ttl: 1ns\n")
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		began := time.Now()
		if got, _ := s.ask(all[i%images]); !got.Response.Allowed {
			b.Fatalf("%+v\n%s", got, s.log)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
