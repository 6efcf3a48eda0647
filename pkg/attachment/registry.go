package attachment

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/attestry/attestry/internal/limit"
)

const (
	requestTries  = 4                // of a request that a registry answers with 429 or 5xx
	maxRetryAfter = 10 * time.Second // that we wait for a registry
	updateTries   = 50               // of replacing a tag that others replace too
	minSettle     = 100 * time.Millisecond
	maxSettle     = 2 * time.Second
)

// Registry is a repository of a registry (OCI distribution specification 1.1).
//
// A tag cannot be replaced atomically by that specification. Update sends If-Match and If-None-Match, which a registry that
// compares them makes atomic. With any other it reads back what it wrote, after a multiple of the time that writing took, and
// writes again what another writer's replacement dropped. What is lost then is what a writer added and saw there, and a
// second one replaces later than that from an older reading.
type Registry struct {
	repo    name.Repository
	client  *http.Client
	options []remote.Option

	mu        sync.Mutex // guards what follows
	referrers *bool      // whether the registry has the referrers API; nil until it was asked
}

// OpenRegistry authenticates at a registry. Nothing is contacted but it and the token service that it names.
func OpenRegistry(ctx context.Context, repo name.Repository, keychain authn.Keychain, base http.RoundTripper, write bool) (*Registry, error) {
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", repo.RegistryStr(), err)
	}
	scope := transport.PullScope
	if write {
		scope = transport.PushScope
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, base, []string{repo.Scope(scope)})
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", repo.RegistryStr(), err)
	}
	return &Registry{
		repo: repo, client: &http.Client{Transport: rt},
		options: []remote.Option{remote.WithTransport(rt), remote.WithJobs(2)},
	}, nil
}

func (r *Registry) Name() string { return r.repo.Name() }

// do sends a request that may be sent twice, again while the registry is overloaded. The caller closes the body.
func (r *Registry) do(ctx context.Context, method, path string, header http.Header, body []byte) (*http.Response, error) {
	u := url.URL{Scheme: r.repo.Scheme(), Host: r.repo.RegistryStr()}
	base := u.String() + "/v2/" + r.repo.RepositoryStr()
	for try := 1; ; try++ {
		req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		for k, v := range header {
			req.Header[k] = v
		}
		resp, err := r.client.Do(req)
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", r.repo.RegistryStr(), err)
		}
		if (resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode < 500) || try == requestTries {
			return resp, nil
		}
		resp.Body.Close()
		wait := time.Duration(1<<try) * 100 * time.Millisecond
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds >= 0 {
			wait = min(time.Duration(seconds)*time.Second, maxRetryAfter)
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// manifestTypes are accepted; an answer of another type is still what the digest says.
var manifestTypes = strings.Join([]string{
	string(types.OCIManifestSchema1), string(types.OCIImageIndex), string(types.DockerManifestSchema2), string(types.DockerManifestList),
}, ",")

func (r *Registry) Manifest(ctx context.Context, reference string) (*Manifest, error) {
	resp, err := r.do(ctx, http.MethodGet, "/manifests/"+reference, http.Header{"Accept": {manifestTypes}}, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	where := r.repo.Name() + ":" + reference
	if isDigest(reference) {
		where = r.repo.Name() + "@" + reference
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%s: %w", where, ErrNotFound)
	}
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	raw, err := limit.ReadAll(resp.Body, MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	m := &Manifest{Raw: raw, Digest: digestOf(raw), etag: resp.Header.Get("ETag")}
	contentType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	if m.MediaType = types.MediaType(strings.TrimSpace(contentType)); !strings.Contains(manifestTypes, string(m.MediaType)) || m.MediaType == "" {
		if m.MediaType, err = mediaTypeOf(m); err != nil { // what a registry or proxy says of any JSON
			return nil, err
		}
	}
	if isDigest(reference) && m.Digest != reference {
		return nil, fmt.Errorf("%s: the registry's answer has the digest %s", where, m.Digest)
	}
	return m, nil
}

func (r *Registry) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	layer, err := remote.Layer(r.repo.Digest(d.Digest.String()), append(slices.Clone(r.options), remote.WithContext(ctx))...)
	if err != nil {
		return nil, fmt.Errorf("%s@%s: %w", r.repo.Name(), d.Digest, err)
	}
	blob, err := layer.Compressed()
	if err != nil {
		return nil, fmt.Errorf("%s@%s: %w", r.repo.Name(), d.Digest, err)
	}
	return checked(blob, d)
}

// Referrers asks the referrers API and reads the tag of the referrers tag schema too: entries stay there when a registry
// gets the API.
func (r *Registry) Referrers(ctx context.Context, digest string) ([]v1.Descriptor, error) {
	found, _, err := r.listReferrers(ctx, digest)
	if err != nil {
		return nil, err
	}
	tagged, err := r.Manifest(ctx, tagOf(digest, ""))
	switch {
	case errors.Is(err, ErrNotFound):
		return found, nil
	case err != nil:
		return nil, err
	}
	index, err := tagged.Index()
	if err != nil {
		return nil, err
	}
	return uniqueReferrers(found, index.Manifests)
}

func uniqueReferrers(lists ...[]v1.Descriptor) ([]v1.Descriptor, error) {
	var all []v1.Descriptor
	seen := map[string]bool{}
	for _, d := range slices.Concat(lists...) {
		if !seen[d.Digest.String()] {
			seen[d.Digest.String()] = true
			all = append(all, d)
		}
	}
	if len(all) > MaxReferrers {
		return nil, fmt.Errorf("the image has %d referrers, at most %d are read", len(all), MaxReferrers)
	}
	return all, nil
}

var nextLink = regexp.MustCompile(`<([^>]*)>\s*;[^,]*\brel="?next"?`)

// listReferrers asks the referrers API; ok is false where there is none.
func (r *Registry) listReferrers(ctx context.Context, digest string) (found []v1.Descriptor, ok bool, err error) {
	path := "/referrers/" + digest
	for range maxPages {
		resp, err := r.do(ctx, http.MethodGet, path, http.Header{"Accept": {string(types.OCIImageIndex)}}, nil)
		if err != nil {
			return nil, false, err
		}
		var index v1.IndexManifest
		err = func() error {
			defer resp.Body.Close()
			switch resp.StatusCode {
			case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable:
				return ErrNotFound
			}
			if err := transport.CheckError(resp, http.StatusOK); err != nil {
				return err
			}
			if t, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); t != string(types.OCIImageIndex) {
				return ErrNotFound // a page that a proxy or an old registry makes of any path
			}
			raw, err := limit.ReadAll(resp.Body, MaxManifest)
			if err != nil {
				return err
			}
			return json.Unmarshal(raw, &index)
		}()
		switch {
		case errors.Is(err, ErrNotFound) && found == nil:
			return nil, false, nil
		case err != nil:
			return nil, false, fmt.Errorf("referrers of %s@%s: %w", r.repo.Name(), digest, err)
		}
		found = append(found, index.Manifests...)
		if len(found) > MaxReferrers {
			return nil, false, fmt.Errorf("%s@%s has over %d referrers", r.repo.Name(), digest, MaxReferrers)
		}
		next := nextLink.FindStringSubmatch(resp.Header.Get("Link"))
		if next == nil {
			return found, true, nil
		}
		link, err := url.Parse(next[1])
		if err != nil {
			return nil, false, fmt.Errorf("referrers of %s@%s: next page: %w", r.repo.Name(), digest, err)
		}
		path = "/referrers/" + digest + "?" + link.RawQuery // the same list of the same registry, whatever host the link names
	}
	return nil, false, fmt.Errorf("referrers of %s@%s: over %d pages", r.repo.Name(), digest, maxPages)
}

func (r *Registry) PutBlob(ctx context.Context, d v1.Descriptor, open func() (io.ReadCloser, error)) error {
	err := remote.WriteLayer(r.repo, storedBlob{d, open}, append(slices.Clone(r.options), remote.WithContext(ctx))...)
	if err != nil {
		return fmt.Errorf("storing blob %s in %s: %w", d.Digest, r.repo.Name(), err)
	}
	return nil
}

func (r *Registry) PutManifest(ctx context.Context, m *Manifest) error {
	present, err := r.Manifest(ctx, m.Digest)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if present == nil {
		if err := r.put(ctx, m.Digest, m, nil); err != nil {
			return err
		}
	}
	subject := subjectOf(m.Raw)
	if subject == "" {
		return nil
	}
	has, err := r.hasReferrers(ctx, subject)
	if err != nil || has {
		return err
	}
	entry, err := referrerOf(m)
	if err != nil {
		return err
	}
	return r.Update(ctx, tagOf(subject, ""), func(present *Manifest) (*Manifest, error) { return addReferrer(present, entry) })
}

// hasReferrers asks once whether the registry keeps the list of referrers by itself.
func (r *Registry) hasReferrers(ctx context.Context, digest string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.referrers == nil {
		_, ok, err := r.listReferrers(ctx, digest)
		if err != nil {
			return false, err
		}
		r.referrers = &ok
	}
	return *r.referrers, nil
}

// addReferrer adds to the index of the referrers tag schema; nil when it is there.
func addReferrer(present *Manifest, entry v1.Descriptor) (*Manifest, error) {
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	if present != nil {
		var err error
		if index, err = present.Index(); err != nil {
			return nil, err
		}
		if index.SchemaVersion != 2 || index.MediaType != types.OCIImageIndex {
			return nil, fmt.Errorf("the tag of the referrers tag schema holds a %s, not an index", index.MediaType)
		}
	}
	if slices.ContainsFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == entry.Digest }) {
		return nil, nil
	}
	if len(index.Manifests) >= MaxReferrers {
		return nil, fmt.Errorf("the image has %d referrers, more are not read", len(index.Manifests))
	}
	index.Manifests = append(index.Manifests, entry)
	slices.SortFunc(index.Manifests, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	return NewManifest(index, types.OCIImageIndex)
}

// errReplaced says that somebody replaced the tag since it was read.
var errReplaced = errors.New("the tag was replaced meanwhile")

// put stores m under a tag or digest. condition is the header of a conditional request; it may be nil.
func (r *Registry) put(ctx context.Context, reference string, m *Manifest, condition http.Header) error {
	header := http.Header{"Content-Type": {string(m.MediaType)}}
	for k, v := range condition {
		header[k] = v
	}
	resp, err := r.do(ctx, http.MethodPut, "/manifests/"+reference, header, m.Raw)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusPreconditionFailed {
		return errReplaced
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusCreated, http.StatusAccepted); err != nil {
		return fmt.Errorf("storing %s:%s: %w", r.repo.Name(), reference, err)
	}
	return nil
}

func (r *Registry) Update(ctx context.Context, tag string, merge func(*Manifest) (*Manifest, error)) error {
	for range updateTries {
		began := time.Now()
		present, err := r.Manifest(ctx, tag)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		next, err := merge(present)
		if err != nil {
			return fmt.Errorf("%s:%s: %w", r.repo.Name(), tag, err)
		}
		if next == nil {
			return nil
		}
		condition := http.Header{"If-None-Match": {"*"}}
		if present != nil {
			condition = nil
			if present.etag != "" {
				condition = http.Header{"If-Match": {present.etag}}
			}
		}
		if err := r.put(ctx, tag, next, condition); err != nil && !errors.Is(err, errReplaced) {
			return err
		}
		// Whoever read before us writes at about the time that we took, if it takes as long as we did; a part of it is chance, so
		// that two who replace each other part.
		settle := min(max(4*time.Since(began), minSettle), maxSettle)
		if err := pause(ctx, settle/2+rand.N(settle)); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s:%s: others replace the tag all the time; %d attempts did not last", r.repo.Name(), tag, updateTries)
}

// storedBlob is a blob as go-containerregistry uploads it: nothing is compressed or expanded.
type storedBlob struct {
	d    v1.Descriptor
	open func() (io.ReadCloser, error)
}

func (b storedBlob) Digest() (v1.Hash, error)             { return b.d.Digest, nil }
func (b storedBlob) DiffID() (v1.Hash, error)             { return b.d.Digest, nil }
func (b storedBlob) Compressed() (io.ReadCloser, error)   { return b.open() }
func (b storedBlob) Uncompressed() (io.ReadCloser, error) { return b.open() }
func (b storedBlob) Size() (int64, error)                 { return b.d.Size, nil }
func (b storedBlob) MediaType() (types.MediaType, error)  { return b.d.MediaType, nil }
func (b storedBlob) Descriptor() (*v1.Descriptor, error)  { d := b.d; return &d, nil }
