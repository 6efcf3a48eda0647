package oci

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

const (
	maxPages     = 16 // of referrers
	maxListed    = 4096
	linkRelation = `rel="next"`
)

// Options say how registries are reached. The zero value has no credentials, no proxy, and refuses every address that is not
// of the internet.
type Options struct {
	// Repository is where signatures are instead of beside the image, as COSIGN_REPOSITORY says it: "registry.example/signatures".
	Repository string
	// TagPrefix stands before the tags of signatures.
	TagPrefix string
	// Mirrors replace the beginning of a repository's name, up to a slash, the longest that fits. Content is known by its
	// digest wherever it comes from; which digest a tag has is the mirror's word.
	Mirrors []Mirror

	Credentials authn.Keychain

	// Named are registries, "host" or "host:port", that may have any address: those that a person named, not those that an
	// image's author or another registry did.
	Named []string
	// Prefixes are networks in which any host may be although they are not of the internet. Hosts are exceptions by
	// name; token servers and redirects of a registry may be on them.
	Prefixes []netip.Prefix
	Hosts    []Host
	// Insecure are registries, as references spell them, that are spoken to without TLS.
	Insecure []string
	// CAs are certificates (PEM) trusted beside the system's, by registry ("host" or "host:port").
	CAs map[string][]byte
	// Proxy finds the proxy for Named and listed Hosts, as http.ProxyFromEnvironment does. nil is none.
	Proxy func(*http.Request) (*url.URL, error)

	UserAgent     string
	Timeout       time.Duration // of one request with its body; 0 means 30 s
	Retries       int           // after 429, 5xx and lost connections; 0 means 2, less means none
	RetryWait     time.Duration // before the first retry, doubled for each; 0 means 200 ms. Retry-After up to 5 s is heeded
	MaxAttachment int64         // bytes of one signature or attestation; 0 means 10 MiB
	MaxRequests   int           // of one call; 0 means DefaultRequests. See WithBudget
	MaxBytes      int64         // read by one call; 0 means DefaultBytes

	// Observe is told each request that was sent; code is 0 when none came back.
	Observe func(host, method string, code int)
}

// Mirror has the images of other repositories.
type Mirror struct{ From, To string }

func (o *Options) retries() int {
	switch {
	case o.Retries < 0:
		return 0
	case o.Retries == 0:
		return defaultRetries
	}
	return min(o.Retries, 8)
}

func (o *Options) maxAttachment() int64 {
	if o.MaxAttachment > 0 {
		return o.MaxAttachment
	}
	return maxAttachment
}

// Registry is a Source of images in registries. It is safe for concurrent use, and keeps connections and tokens.
type Registry struct {
	opts   Options
	client *client
	beside *name.Repository // where signatures are; nil for the image's own repository
	wanted string           // predicate type of Claiming; "" for all
}

var _ interface {
	Source
	Elsewhere
	Hinted
} = (*Registry)(nil)

// NewRegistry prepares access to registries.
func NewRegistry(o Options) (*Registry, error) {
	for _, m := range o.Mirrors {
		for _, r := range []string{m.From, m.To} {
			if _, err := name.NewRepository(r+"/x", name.WeakValidation); err != nil || strings.HasSuffix(r, "/") {
				return nil, fmt.Errorf("mirror %q: %q is not a registry or the beginning of a repository's name", m.From+"="+m.To, r)
			}
		}
	}
	r := &Registry{opts: o}
	var err error
	if r.client, err = newClient(&r.opts); err != nil {
		return nil, err
	}
	return r.Beside(o.Repository, o.TagPrefix)
}

// At is Beside for those who know the registry as a Source.
func (r *Registry) At(repository, tagPrefix string) (Source, error) {
	return r.Beside(repository, tagPrefix)
}

// Beside returns the registry with another place for signatures, as Options.Repository and TagPrefix name it. Connections and
// tokens are shared.
func (r *Registry) Beside(repository, tagPrefix string) (*Registry, error) {
	out := *r
	out.opts.Repository, out.opts.TagPrefix, out.beside = repository, tagPrefix, nil
	if repository != "" {
		repo, err := name.NewRepository(repository, name.StrictValidation)
		if err != nil {
			return nil, fmt.Errorf("repository of signatures: %w", err)
		}
		out.beside = &repo
	}
	return &out, nil
}

// Claiming returns the registry without the attachments that are annotated as of another predicate type, which saves their requests.
func (r *Registry) Claiming(predicateType string) Source {
	out := *r
	out.wanted = predicateType
	return &out
}

// Close ends idle connections.
func (r *Registry) Close() { r.client.close() }

// Resolve returns the image of a reference. One with a digest costs no request, so what it names need not exist, and MediaType
// is not known.
func (r *Registry) Resolve(ctx context.Context, reference string) (Image, error) {
	ref, err := name.ParseReference(reference, name.WeakValidation)
	if err != nil {
		return Image{}, malformed(err, "image reference")
	}
	image := Image{Reference: reference, Name: ref.Context().Name()}
	if d, ok := ref.(name.Digest); ok {
		if _, _, err := parseDigest(d.DigestStr()); err != nil {
			return Image{}, err
		}
		image.Digest = d.DigestStr()
		return image, nil
	}
	ctx = budgeted(ctx, r.opts.MaxRequests, r.opts.MaxBytes)
	repo := r.mirrored(ref.Context())
	q := request{repo: repo, method: http.MethodHead, path: "manifests/" + ref.Identifier(), accept: manifestTypes, max: maxManifest}
	a, err := r.client.do(ctx, q)
	if err != nil {
		return Image{}, err
	}
	if a.status == http.StatusOK {
		if d := a.header.Get("Docker-Content-Digest"); d != "" {
			if _, _, err := parseDigest(d); err == nil {
				image.Digest = d
				image.MediaType, _, _ = mime.ParseMediaType(a.header.Get("Content-Type"))
				return image, nil
			}
		}
	}
	if a.status == http.StatusNotFound {
		return Image{}, unknown("there is no image %s", reference)
	}
	m, err := r.repository(repo).get(ctx, ref.Identifier(), "")
	if err != nil {
		return Image{}, err
	}
	image.Digest, image.MediaType = m.digest, m.MediaType
	return image, nil
}

// Children returns the images of an index, those of indexes in it too, none for an image.
func (r *Registry) Children(ctx context.Context, image Image) ([]Image, error) {
	ctx = budgeted(ctx, r.opts.MaxRequests, r.opts.MaxBytes)
	s, err := r.storeOf(image)
	if err != nil {
		return nil, err
	}
	return childrenOf(ctx, s, image)
}

// Configs returns the configuration of the image, or of each image of an index, by platform.
func (r *Registry) Configs(ctx context.Context, image Image) (map[string][]byte, error) {
	ctx = budgeted(ctx, r.opts.MaxRequests, r.opts.MaxBytes)
	s, err := r.storeOf(image)
	if err != nil {
		return nil, err
	}
	return configsOf(ctx, s, image)
}

// Attachments returns what is attached to the image's digest: bundles that refer to it and legacy tags, together.
func (r *Registry) Attachments(ctx context.Context, image Image) ([]Attachment, error) {
	ctx = budgeted(ctx, r.opts.MaxRequests, r.opts.MaxBytes)
	if r.beside != nil {
		image.Name = r.beside.Name()
	}
	s, err := r.storeOf(image)
	if err != nil {
		return nil, err
	}
	return attachmentsOf(ctx, s, image, r.opts.TagPrefix, r.wanted, r.opts.maxAttachment())
}

func (r *Registry) storeOf(image Image) (store, error) {
	repo, err := name.NewRepository(image.Name, name.WeakValidation)
	if err != nil {
		return nil, malformed(err, "image name")
	}
	return r.repository(r.mirrored(repo)), nil
}

// mirrored applies the longest mirror rule that fits.
func (r *Registry) mirrored(repo name.Repository) name.Repository {
	full := repo.Name()
	best := Mirror{}
	for _, m := range r.opts.Mirrors {
		from := m.From
		if host, path, found := strings.Cut(from, "/"); host == "docker.io" {
			from = name.DefaultRegistry
			if found {
				from += "/" + path
			}
		}
		if (full == from || strings.HasPrefix(full, from+"/")) && len(from) > len(best.From) {
			best = Mirror{from, m.To}
		}
	}
	if best.From == "" {
		return repo
	}
	to, err := name.NewRepository(best.To+strings.TrimPrefix(full, best.From), name.WeakValidation)
	if err != nil { // NewRegistry has tried the rule; a name that is too long stays where it is
		return repo
	}
	return to
}

func (r *Registry) repository(repo name.Repository) *repository {
	return &repository{client: r.client, repo: repo}
}

var manifestTypes = []string{typeManifest, typeIndex, typeDockerManifest, typeDockerList}

// repository is the store of one repository in a registry.
type repository struct {
	client *client
	repo   name.Repository
}

func (r *repository) manifest(ctx context.Context, digest string) (*manifest, error) {
	if _, _, err := parseDigest(digest); err != nil {
		return nil, err
	}
	return r.get(ctx, digest, digest)
}

func (r *repository) tagged(ctx context.Context, tag string) ([]*manifest, error) {
	m, err := r.get(ctx, tag, "")
	if err != nil {
		return nil, err
	}
	return []*manifest{m}, nil
}

// get reads the manifest of a tag or digest. digest is what it has to have, "" for a tag.
func (r *repository) get(ctx context.Context, reference, digest string) (*manifest, error) {
	a, err := r.client.do(ctx, request{repo: r.repo, method: http.MethodGet, path: "manifests/" + reference, accept: manifestTypes, max: maxManifest})
	if err != nil {
		return nil, err
	}
	if err := r.good(a, "manifest "+reference); err != nil {
		return nil, err
	}
	if digest == "" {
		digest = digestOf(a.body)
		if d := a.header.Get("Docker-Content-Digest"); strings.HasPrefix(d, "sha512:") {
			digest = d
		}
	}
	if err := checkDigest(a.body, digest); err != nil {
		return nil, err
	}
	return parseManifest(a.body, digest, a.header.Get("Content-Type"))
}

func (r *repository) blob(ctx context.Context, d descriptor, max int64) ([]byte, error) {
	if err := fits(d, max); err != nil {
		return nil, err
	}
	a, err := r.client.do(ctx, request{repo: r.repo, method: http.MethodGet, path: "blobs/" + d.Digest, max: d.Size})
	if err != nil {
		return nil, err
	}
	if err := r.good(a, "blob "+d.Digest); err != nil {
		return nil, err
	}
	return a.body, isContent(a.body, d)
}

// fits judges a descriptor before its content is read.
func fits(d descriptor, max int64) error {
	if _, _, err := parseDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return malformed(nil, "%s has a negative size", d.Digest)
	}
	if d.Size > max {
		return tooLarge("%s has %d bytes, at most %d are read", d.Digest, d.Size, max)
	}
	return nil
}

func isContent(data []byte, d descriptor) error {
	if int64(len(data)) != d.Size {
		return malformed(nil, "%s has %d bytes, its descriptor says %d", d.Digest, len(data), d.Size)
	}
	return checkDigest(data, d.Digest)
}

// good turns statuses other than 200 into errors.
func (r *repository) good(a *answer, what string) error {
	switch a.status {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
		return unknown("%s has no %s", r.repo.Name(), what)
	case http.StatusUnauthorized, http.StatusForbidden:
		return denied(nil, "%s: status %d%s", r.repo.Name(), a.status, a.text())
	}
	return malformed(nil, "%s answers with status %d%s for %s", r.repo.RegistryStr(), a.status, a.text(), what)
}

// referrers asks the referrers API (OCI Distribution 1.1, "Listing Referrers") and, where there is none or its list is empty,
// the tag that stands in for it: some registries have the one and keep the other.
func (r *repository) referrers(ctx context.Context, digest string) ([]descriptor, error) {
	list, err := r.listed(ctx, digest)
	if err != nil || len(list) > 0 {
		return list, err
	}
	indexes, err := r.tagged(ctx, strings.Replace(digest, ":", "-", 1))
	if err != nil {
		if isUnknown(err) {
			return nil, nil
		}
		return nil, err
	}
	return referrersIn(indexes[0])
}

func referrersIn(m *manifest) ([]descriptor, error) {
	if !m.isIndex() {
		return nil, malformed(nil, "the list of referrers %s is not an index", m.digest)
	}
	if n := len(m.Manifests); n > maxListed {
		return m.Manifests[:maxListed], tooLarge("%d referrers, at most %d are looked at", n, maxListed)
	}
	return m.Manifests, nil
}

// listed follows the pages of the referrers API; no list when there is no such API.
func (r *repository) listed(ctx context.Context, digest string) ([]descriptor, error) {
	var out []descriptor
	path := "referrers/" + digest
	for page := 0; path != ""; page++ {
		if page == maxPages {
			return out, tooLarge("more than %d pages of referrers", maxPages)
		}
		a, err := r.client.do(ctx, request{repo: r.repo, method: http.MethodGet, path: path, accept: []string{typeIndex}, max: maxManifest})
		if err != nil {
			return out, err
		}
		if page == 0 {
			switch a.status {
			case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable:
				return nil, nil
			}
			if t, _, _ := mime.ParseMediaType(a.header.Get("Content-Type")); a.status == http.StatusOK && t != typeIndex && t != "application/json" {
				return nil, nil // a front page, not an API
			}
		}
		if err := r.good(a, "referrers of "+digest); err != nil {
			return out, err
		}
		m := &manifest{digest: "referrers"}
		if err := decodeManifest(a.body, m); err != nil {
			return out, malformed(err, "list of referrers")
		}
		out = append(out, m.Manifests...)
		if len(out) > maxListed {
			return out[:maxListed], tooLarge("more than %d referrers", maxListed)
		}
		if path, err = nextPage(a, r.repo.RegistryStr()); err != nil {
			return out, err
		}
	}
	return out, nil
}

// nextPage returns path and query of the page at registry that a Link header names (RFC 8288), "" when this was the last.
func nextPage(a *answer, registry string) (string, error) {
	for _, link := range regexp.MustCompile(`<([^>]*)>([^<]*)`).FindAllStringSubmatch(strings.Join(a.header.Values("Link"), ", "), -1) {
		if !strings.Contains(strings.ReplaceAll(link[2], " ", ""), linkRelation) {
			continue
		}
		ref, err := url.Parse(link[1])
		if err != nil {
			return "", malformed(nil, "the list of referrers goes on at no URL")
		}
		next := a.url.ResolveReference(ref)
		if !strings.EqualFold(next.Host, registry) || next.Scheme != a.url.Scheme || !strings.HasPrefix(next.Path, "/v2/") {
			return "", blocked("the list of referrers goes on at another place, %q", next.Host)
		}
		return next.RequestURI(), nil
	}
	return "", nil
}

// IsUnavailable reports whether trying again can help, and after how long if the registry said so.
func IsUnavailable(err error) (retry bool, after time.Duration) {
	var f *fault.Error
	if errors.As(err, &f) && f.Kind == fault.Unavailable && f.Reason == string(verify.ReasonRegistryUnreachable) {
		return true, f.RetryAfter
	}
	return false, 0
}
