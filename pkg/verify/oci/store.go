package oci

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	maxReferrers      = 50
	maxLegacyLayers   = 50
	maxAttachment     = 10 << 20 // bytes of one signature or attestation, unless the source says otherwise
	parallelRequests  = 4
	annotationCreated = "org.opencontainers.image.created"
	annotationType    = "dev.sigstore.bundle.predicateType"
)

// store is where the manifests and blobs of one repository are. What it returns has the digest that was asked for; what is not
// there is an error of isUnknown.
type store interface {
	manifest(ctx context.Context, digest string) (*manifest, error)
	// tagged returns the manifests of a tag: one in a registry, perhaps several on disk. It may return some beside an error.
	tagged(ctx context.Context, tag string) ([]*manifest, error)
	blob(ctx context.Context, d descriptor, max int64) ([]byte, error)
	// referrers lists manifests whose subject is digest. It may return some beside an error.
	referrers(ctx context.Context, digest string) ([]descriptor, error)
}

// image reads a manifest and says what it is.
func imageOf(m *manifest, name string) Image {
	reference := m.digest
	if name != "" {
		reference = name + "@" + m.digest
	}
	return Image{Reference: reference, Name: name, Digest: m.digest, MediaType: m.MediaType}
}

// childrenOf returns the images of an index, those of indexes in it too, none for an image.
func childrenOf(ctx context.Context, s store, image Image) ([]Image, error) {
	var out []Image
	var walk func(digest string, depth int) error
	walk = func(digest string, depth int) error {
		m, err := s.manifest(ctx, digest)
		if err != nil {
			return err
		}
		if !m.isIndex() {
			if depth > 0 {
				out = append(out, imageOf(m, image.Name))
			}
			return nil
		}
		if depth == maxNesting {
			return tooLarge("indexes in indexes deeper than %d", maxNesting)
		}
		list, err := m.children()
		if err != nil {
			return err
		}
		for _, d := range list {
			if len(out) == maxChildren {
				return tooLarge("index %s has more than %d images", image.Digest, maxChildren)
			}
			if d.MediaType == typeIndex || d.MediaType == typeDockerList {
				if err := walk(d.Digest, depth+1); err != nil {
					return err
				}
				continue
			}
			if _, _, err := parseDigest(d.Digest); err != nil {
				return err
			}
			out = append(out, imageOf(&manifest{digest: d.Digest, MediaType: d.MediaType}, image.Name))
		}
		return nil
	}
	if err := walk(image.Digest, 0); err != nil {
		return nil, err
	}
	return out, nil
}

// configsOf returns the configuration of the image, or of each image of an index, by platform. A platform that an index has twice
// is told apart by the digest, "linux/amd64@sha256:…".
func configsOf(ctx context.Context, s store, image Image) (map[string][]byte, error) {
	children, err := childrenOf(ctx, s, image)
	if err != nil {
		return nil, err
	}
	if children == nil {
		children = []Image{image}
	}
	var mu sync.Mutex
	configs := make(map[string][]byte)
	var group errgroup.Group
	group.SetLimit(parallelRequests)
	for _, child := range children {
		group.Go(func() error {
			m, err := s.manifest(ctx, child.Digest)
			if err != nil {
				return err
			}
			if m.isIndex() || m.Config == nil {
				return malformed(nil, "%s is an index, its index says it is an image", child.Digest)
			}
			config, err := s.blob(ctx, *m.Config, maxConfig)
			if err != nil {
				return fmt.Errorf("configuration of %s: %w", child.Digest, err)
			}
			key, err := platformOf(config)
			if err != nil {
				return fmt.Errorf("%s: %w", child.Digest, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if _, twice := configs[key]; twice {
				key += "@" + child.Digest
			}
			configs[key] = config
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return configs, nil
}

// attachmentsOf collects every form: bundles that refer to the image, newest first, then the layers of its .sig and .att tags,
// newest first. No form hides another, and what cannot be read does not hide the rest. With wanted, what claims to be of another
// predicate type is left out.
func attachmentsOf(ctx context.Context, s store, image Image, tagPrefix, wanted string, max int64) ([]Attachment, error) {
	if _, _, err := parseDigest(image.Digest); err != nil {
		return nil, err
	}
	where := cmp.Or(image.Name, "image")
	var problems []error
	listed, err := s.referrers(ctx, image.Digest)
	if err != nil {
		problems = append(problems, fmt.Errorf("referrers of %s: %w", image.Digest, err))
	}
	bundles := newestBundles(listed)
	bundles = slices.DeleteFunc(bundles, func(d descriptor) bool { return claimsOther(d.Annotations, wanted) })
	if n := len(bundles); n > maxReferrers {
		problems = append(problems, tooLarge("%d bundles refer to %s, only the newest %d are looked at", n, image.Digest, maxReferrers))
		bundles = bundles[:maxReferrers]
	}
	found := make([][]Attachment, len(bundles)+2)
	failed := make([]error, len(found))
	var group errgroup.Group
	group.SetLimit(parallelRequests)
	for i, legacy := range []struct {
		suffix string
		wanted bool
	}{{".sig", wanted == "" || wanted == PredicateSignature}, {".att", wanted != PredicateSignature}} {
		if !legacy.wanted {
			continue
		}
		tag := tagPrefix + strings.Replace(image.Digest, ":", "-", 1) + legacy.suffix
		group.Go(func() error {
			found[len(bundles)+i], failed[len(bundles)+i] = legacyOf(ctx, s, tag, where, max)
			return nil
		})
	}
	for i, d := range bundles {
		group.Go(func() error {
			a, err := bundleOf(ctx, s, d, image.Digest, where, wanted, max)
			if err != nil {
				failed[i] = fmt.Errorf("%s@%s: %w", where, d.Digest, err)
			} else if a != nil {
				found[i] = []Attachment{*a}
			}
			return nil
		})
	}
	group.Wait()
	return slices.Concat(found...), Unread(append(problems, failed...)...)
}

// newestBundles picks those that say they are bundles of version 0.3, or do not say what they are (registries that do not know the
// artifact type list that of the configuration, which is the empty one), newest first by the
// time that their annotation claims.
func newestBundles(listed []descriptor) []descriptor {
	var out []descriptor
	seen := make(map[string]bool)
	for _, d := range listed {
		switch d.ArtifactType {
		case typeBundle, typeBundleOld, typeEmpty, "":
			if !seen[d.Digest] {
				seen[d.Digest] = true
				out = append(out, d)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b descriptor) int {
		return strings.Compare(b.Annotations[annotationCreated], a.Annotations[annotationCreated])
	})
	return out
}

func isBundleType(t string) bool { return t == typeBundle || t == typeBundleOld }

// claimsOther reports whether a manifest is annotated as a bundle of another predicate type than wanted, "" for any. PredicateSignature
// says nothing: cosign 3.0.6 annotates attestations of every type so.
func claimsOther(annotations map[string]string, wanted string) bool {
	claimed := annotations[annotationType]
	return wanted != "" && claimed != "" && claimed != wanted && claimed != PredicateSignature
}

// bundleOf reads a bundle that refers to digest; nil when d turns out to be something else, or of another type than wanted.
func bundleOf(ctx context.Context, s store, d descriptor, digest, where, wanted string, max int64) (*Attachment, error) {
	m, err := s.manifest(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	kind := m.ArtifactType
	if kind == "" && m.Config != nil { // how OCI 1.0 said it
		kind = m.Config.MediaType
	}
	if !isBundleType(kind) {
		if d.ArtifactType == "" || d.ArtifactType == typeEmpty {
			return nil, nil
		}
		return nil, malformed(nil, "is of type %q, it is listed as %q", kind, d.ArtifactType)
	}
	if m.Subject == nil || m.Subject.Digest != digest {
		return nil, malformed(nil, "is listed as referring to %s and refers to another", digest)
	}
	if len(m.Layers) != 1 || !isBundleType(m.Layers[0].MediaType) {
		return nil, malformed(nil, "has not exactly one layer that is a bundle")
	}
	if claimsOther(m.Annotations, wanted) { // lists of referrers may have no annotations
		return nil, nil
	}
	data, err := s.blob(ctx, m.Layers[0], max)
	if err != nil {
		return nil, err
	}
	return &Attachment{Form: FormBundle, Bundle: data, PredicateType: m.Annotations[annotationType], Location: where + "@" + m.digest}, nil
}

// legacyOf reads the signatures or attestations under a tag, the last layer first: cosign appends.
func legacyOf(ctx context.Context, s store, tag, where string, max int64) ([]Attachment, error) {
	manifests, err := s.tagged(ctx, tag)
	var found []Attachment
	var problems []error
	if err != nil && !isUnknown(err) {
		problems = append(problems, fmt.Errorf("%s:%s: %w", where, tag, err))
	}
	for _, m := range manifests {
		if m.isIndex() {
			problems = append(problems, fmt.Errorf("%s:%s: %w", where, tag, malformed(nil, "is an index")))
			continue
		}
		layers, first := m.Layers, 1
		if n := len(layers); n > maxLegacyLayers {
			problems = append(problems, tooLarge("%s:%s has %d layers, only the last %d are looked at", where, tag, n, maxLegacyLayers))
			first = n - maxLegacyLayers + 1
			layers = layers[n-maxLegacyLayers:]
		}
		attachments := make([]*Attachment, len(layers))
		failed := make([]error, len(layers))
		var group errgroup.Group
		group.SetLimit(parallelRequests)
		for i, d := range layers {
			var form Form
			switch d.MediaType {
			case TypeSimpleSigning:
				form = FormSimpleSigning
			case TypeEnvelope:
				form = FormEnvelope
			default:
				continue
			}
			group.Go(func() error {
				location := fmt.Sprintf("%s@%s layer %d", where, m.digest, first+i)
				payload, err := s.blob(ctx, d, max)
				if err == nil {
					attachments[i], err = FromLayer(form, payload, d.Annotations)
				}
				if err != nil {
					failed[i] = fmt.Errorf("%s: %w", location, err)
				} else {
					attachments[i].Location = location
				}
				return nil
			})
		}
		group.Wait()
		for i := len(attachments) - 1; i >= 0; i-- {
			if attachments[i] != nil {
				found = append(found, *attachments[i])
			}
		}
		problems = append(problems, failed...)
	}
	return found, Unread(problems...)
}
