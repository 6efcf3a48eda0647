package e2e

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// images is a registry on loopback, with or without the referrers API of OCI 1.1. Without it,
// clients fall back to tags.
type images struct {
	t     *testing.T
	host  string
	srv   *httptest.Server
	asked *atomic.Int64 // requests
}

// close takes the registry away.
func (r *images) close() { r.srv.Close() }

func newRegistry(t *testing.T, referrers bool) *images {
	t.Helper()
	handler := registry.New(
		registry.WithReferrersSupport(referrers),
		registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)),
	)
	asked := new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return &images{t, strings.TrimPrefix(srv.URL, "http://"), srv, asked}
}

// push makes a new image and returns its reference by digest.
func (r *images) push(repository string) string {
	r.t.Helper()
	img, err := random.Image(256, 1)
	if err != nil {
		r.t.Fatal(err)
	}
	ref, err := name.ParseReference(r.host + "/" + repository + ":v1")
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		r.t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		r.t.Fatal(err)
	}
	return ref.Context().Digest(digest.String()).String()
}

// tags lists a repository's tags, joined by spaces.
func (r *images) tags(repository string) string {
	r.t.Helper()
	repo, err := name.NewRepository(r.host + "/" + repository)
	if err != nil {
		r.t.Fatal(err)
	}
	tags, err := remote.List(repo)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Join(tags, " ")
}
