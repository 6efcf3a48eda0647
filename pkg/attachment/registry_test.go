package attachment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/attestry/attestry/pkg/verify/oci"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// server is a registry in front of which requests are looked at first. put is called with the lock held that makes looking and
// replacing one step, as a registry with conditional requests does it.
type server struct {
	mu     sync.Mutex
	next   http.Handler
	before func(r *http.Request)                             // of any request; may be nil
	put    func(w http.ResponseWriter, r *http.Request) bool // answers by itself when true; may be nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.before != nil {
		s.before(r)
	}
	if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
		s.next.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.put != nil && s.put(w, r) {
		return
	}
	s.next.ServeHTTP(w, r)
}

func newServer(t *testing.T, referrers bool) (*server, *Registry) {
	t.Helper()
	s := &server{next: registry.New(registry.WithReferrersSupport(referrers), registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return s, openTest(t, strings.TrimPrefix(srv.URL, "http://"))
}

func openTest(t *testing.T, host string) *Registry {
	t.Helper()
	repo, err := name.NewRepository(host + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenRegistry(t.Context(), repo, authn.DefaultKeychain, http.DefaultTransport, true)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// layer is a signature that is nobody's.
func layer(text string) *Layer {
	return &Layer{MediaType: oci.TypeSimpleSigning, Blob: []byte(text), Annotations: map[string]string{oci.AnnotationSignature: text}}
}

const subjectDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func layersOf(t *testing.T, r Repository) []v1.Descriptor {
	t.Helper()
	m, err := r.Manifest(t.Context(), tagOf(subjectDigest, ".sig"))
	if err != nil {
		t.Fatal(err)
	}
	image, err := m.Image()
	if err != nil {
		t.Fatal(err)
	}
	return image.Layers
}

// A writer that read before us and writes after us drops our layer; we look again and add it once more.
func TestALayerThatAnotherWriterDroppedIsAddedAgain(t *testing.T) {
	s, r := newServer(t, false)
	if err := AttachLayers(t.Context(), r, "", subjectDigest, layer("theirs")); err != nil {
		t.Fatal(err)
	}
	stale, err := r.Manifest(t.Context(), tagOf(subjectDigest, ".sig"))
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	s.put = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, ".sig") {
			return false
		}
		dropped := false
		once.Do(func() { // ours is stored, and theirs, from an older reading, right after it
			s.next.ServeHTTP(w, req)
			again := httptest.NewRequest(http.MethodPut, req.URL.Path, bytes.NewReader(stale.Raw))
			again.Header.Set("Content-Type", string(stale.MediaType))
			s.next.ServeHTTP(httptest.NewRecorder(), again)
			dropped = true
		})
		return dropped
	}
	if err := AttachLayers(t.Context(), r, "", subjectDigest, layer("ours")); err != nil {
		t.Fatal(err)
	}
	if n := len(layersOf(t, r)); n != 2 {
		t.Errorf("the tag has %d layers, want theirs and ours", n)
	}
}

// conditional makes a registry compare If-Match and If-None-Match, and give an ETag.
func (s *server) conditional() {
	inner := s.next
	etag := func(path string) string {
		w := httptest.NewRecorder()
		inner.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != http.StatusOK {
			return ""
		}
		return `"` + digestOf(w.Body.Bytes()) + `"`
	}
	s.next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
			if tag := etag(r.URL.Path); tag != "" {
				w.Header().Set("ETag", tag)
			}
		}
		inner.ServeHTTP(w, r)
	})
	s.put = func(w http.ResponseWriter, r *http.Request) bool {
		present := etag(r.URL.Path)
		want := r.Header.Get("If-Match")
		if want != "" && want != present || r.Header.Get("If-None-Match") == "*" && present != "" {
			w.WriteHeader(http.StatusPreconditionFailed)
			return true
		}
		return false
	}
}

// With conditional requests, a tag that was replaced between our reading and our writing is read again.
func TestARegistryThatComparesRefusesTheSecondWriter(t *testing.T) {
	s, r := newServer(t, false)
	s.conditional()
	inner := s.put
	refused := 0
	var once sync.Once
	s.put = func(w http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, ".sig") && req.Header.Get("Content-Type") != "" {
			once.Do(func() { // somebody is faster
				hash := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("b", 64)}
				theirs, err := NewManifest(&v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: hash, Size: 1},
					Layers: []v1.Descriptor{{MediaType: oci.TypeSimpleSigning, Digest: hash, Size: 1}}}, types.OCIManifestSchema1)
				if err != nil {
					t.Error(err)
					return
				}
				put := httptest.NewRequest(http.MethodPut, req.URL.Path, bytes.NewReader(theirs.Raw))
				put.Header.Set("Content-Type", string(theirs.MediaType))
				s.next.ServeHTTP(httptest.NewRecorder(), put)
			})
		}
		if inner(w, req) {
			refused++
			return true
		}
		return false
	}
	if err := AttachLayers(t.Context(), r, "", subjectDigest, layer("ours")); err != nil {
		t.Fatal(err)
	}
	if n := len(layersOf(t, r)); n != 2 || refused != 1 {
		t.Errorf("the tag has %d layers after %d refusals, want theirs and ours after one", n, refused)
	}
}

func TestWritersAtOnceLoseNothing(t *testing.T) {
	const writers = 6
	layoutDir := t.TempDir()
	if _, err := CreateLayout(layoutDir); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		open func(t *testing.T) func() Repository
	}{
		{"a registry that compares", func(t *testing.T) func() Repository {
			s, r := newServer(t, false)
			s.conditional()
			return func() Repository { return r }
		}},
		{"a registry that does not", func(t *testing.T) func() Repository {
			_, r := newServer(t, false)
			return func() Repository { return r }
		}},
		{"a layout", func(t *testing.T) func() Repository {
			return func() Repository {
				l, err := OpenLayout(layoutDir)
				if err != nil {
					t.Error(err)
				}
				return l
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			open := tt.open(t)
			var all sync.WaitGroup
			for i := range writers {
				all.Go(func() {
					r := open()
					if err := AttachLayers(t.Context(), r, "", subjectDigest, layer(fmt.Sprint(i))); err != nil {
						t.Error(err)
					}
					hash, err := v1.NewHash(subjectDigest)
					if err != nil {
						t.Error(err)
					}
					config, err := putBytes(t.Context(), r, emptyType, []byte("{}"))
					if err != nil {
						t.Error(err)
					}
					m, err := NewManifest(&v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: "example/test", Config: config,
						Layers: []v1.Descriptor{}, Subject: &v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hash, Size: 1},
						Annotations: map[string]string{"n": fmt.Sprint(i)}}, types.OCIManifestSchema1)
					if err != nil {
						t.Error(err)
					}
					if err := r.PutManifest(t.Context(), m); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if n := len(layersOf(t, open())); n != writers {
				t.Errorf("%d of %d layers are there", n, writers)
			}
			found, err := open().Referrers(t.Context(), subjectDigest)
			if err != nil || len(found) != writers {
				t.Errorf("%d of %d referrers are listed: %v", len(found), writers, err)
			}
		})
	}
}

func TestWhatARegistryAnswersIsBounded(t *testing.T) {
	s, r := newServer(t, true)
	huge := bytes.Repeat([]byte(" "), MaxManifest+1)
	inner := s.next
	s.next = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case strings.HasSuffix(req.URL.Path, "/manifests/huge"):
			w.Write(huge)
		case strings.HasSuffix(req.URL.Path, "/manifests/"+subjectDigest):
			w.Write([]byte("{}")) // another manifest than was asked for
		case strings.Contains(req.URL.Path, "/referrers/"):
			w.Header().Set("Content-Type", string(types.OCIImageIndex))
			w.Header().Set("Link", `<`+req.URL.Path+`?n=1>; rel="next"`) // for ever
			w.Write([]byte(`{"schemaVersion":2,"manifests":[]}`))
		default:
			inner.ServeHTTP(w, req)
		}
	})
	if _, err := r.Manifest(t.Context(), "huge"); err == nil || !strings.Contains(err.Error(), "over") {
		t.Errorf("a manifest over the limit: %v", err)
	}
	if _, err := r.Manifest(t.Context(), subjectDigest); err == nil || !strings.Contains(err.Error(), "has the digest") {
		t.Errorf("a manifest with another digest: %v", err)
	}
	if _, err := r.Referrers(t.Context(), subjectDigest); err == nil || !strings.Contains(err.Error(), "pages") {
		t.Errorf("a list without an end: %v", err)
	}
	if _, err := r.Manifest(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a manifest that is not there: %v", err)
	}
}

func TestABlobIsWhatItsDescriptorSays(t *testing.T) {
	dir := t.TempDir()
	l, err := CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("content")
	d, err := putBytes(t.Context(), l, "example/test", data)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "blobs", "sha256", d.Digest.Hex)
	if err := os.WriteFile(path, []byte("CONTENT"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadBlob(t.Context(), l, d); err == nil {
		t.Error("a blob with another digest was read")
	}
	if _, err := putBytes(t.Context(), l, "example/test", data); err != nil { // what a bad disk left is replaced
		t.Fatal(err)
	}
	if got, err := ReadBlob(t.Context(), l, d); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wrong := d
	wrong.Size++
	other := v1.Descriptor{MediaType: d.MediaType, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("c", 64)}, Size: 1}
	for name, d := range map[string]v1.Descriptor{"another size": wrong, "another digest": other} {
		if err := l.PutBlob(context.Background(), d, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }); err == nil {
			t.Errorf("a blob of %s was stored", name)
		}
	}
}

// keychain has one pair of credentials for every registry.
type keychain authn.Basic

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return (*authn.Basic)(&k), nil
}

func TestCredentialsGoToTheRegistryThatAsksForThem(t *testing.T) {
	s, _ := newServer(t, true)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "alice" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	repo, err := name.NewRepository(strings.TrimPrefix(srv.URL, "http://") + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	for password, good := range map[string]bool{"secret": true, "wrong": false} {
		r, err := OpenRegistry(t.Context(), repo, keychain{Username: "alice", Password: password}, http.DefaultTransport, true)
		if err == nil {
			err = AttachLayers(t.Context(), r, "", subjectDigest, layer("ours"))
		}
		if (err == nil) != good {
			t.Errorf("password %q: %v", password, err)
		}
		if err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}

// A registry that is overloaded for a moment is asked again.
func TestAnOverloadedRegistryIsAskedAgain(t *testing.T) {
	s, r := newServer(t, true)
	var mu sync.Mutex
	busy := 2
	inner := s.next
	s.next = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		refuse := busy > 0 && strings.Contains(req.URL.Path, "/manifests/")
		if refuse {
			busy--
		}
		mu.Unlock()
		if refuse {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		inner.ServeHTTP(w, req)
	})
	if err := AttachLayers(t.Context(), r, "", subjectDigest, layer("ours")); err != nil {
		t.Fatal(err)
	}
	if n := len(layersOf(t, r)); n != 1 || busy != 0 {
		t.Errorf("%d layers, %d refusals left", n, busy)
	}
}

func TestALockedLayoutTakesNoSecondWriter(t *testing.T) {
	l, err := CreateLayout(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	release, err := l.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Lock(); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second writer: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if release, err = l.Lock(); err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}
