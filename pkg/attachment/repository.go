// Package attachment writes signatures and attestations beside images, in both forms that verifiers read, and turns one form into
// the other.
//
//	bundle   an OCI 1.1 referrer: a manifest whose subject is the image and whose one layer is a v0.3 bundle, as cosign 3 makes it
//	legacy   the tags sha256-<hex>.sig and .att: a manifest with a layer for each signature (a simple signing document) or
//	         attestation (a DSSE envelope), all else in annotations of the layer, as cosign 1 and 2, podman and CRI-O know it
//
// An image is in a repository of a registry or in an OCI image layout.
package attachment

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/attestry/attestry/internal/limit"
)

// Limits on what is read. What is over them is refused, never cut.
const (
	MaxManifest  = 4 << 20  // bytes of a manifest or index
	MaxLayer     = 10 << 20 // bytes of a signature, attestation or bundle
	MaxLayers    = 50       // signatures or attestations of a legacy tag
	MaxReferrers = 1000     // manifests that refer to one image
	maxPages     = 100      // of one list of referrers
)

// ErrNotFound is the error for a manifest or blob that is not there.
var ErrNotFound = fs.ErrNotExist

// Manifest is a manifest or index as it is stored.
type Manifest struct {
	Raw       []byte
	MediaType types.MediaType
	Digest    string // "sha256:<64 hex>", of Raw
	etag      string // of the tag in the registry, for a conditional write
}

// NewManifest encodes m, which is a v1.Manifest or v1.IndexManifest.
func NewManifest(m any, mediaType types.MediaType) (*Manifest, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding a manifest: %w", err)
	}
	return &Manifest{Raw: raw, MediaType: mediaType, Digest: digestOf(raw)}, nil
}

// Image decodes an image's manifest.
func (m *Manifest) Image() (*v1.Manifest, error) {
	image, err := v1.ParseManifest(bytes.NewReader(m.Raw))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	return image, nil
}

// Index decodes an index.
func (m *Manifest) Index() (*v1.IndexManifest, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(m.Raw))
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", m.Digest, err)
	}
	return index, nil
}

// Descriptor names the manifest.
func (m *Manifest) Descriptor() v1.Descriptor {
	hash, _ := v1.NewHash(m.Digest) // of our own making
	return v1.Descriptor{MediaType: m.MediaType, Digest: hash, Size: int64(len(m.Raw))}
}

// Repository is one repository of a registry, or an image layout. Implementations are safe for concurrent use, and for
// use by several processes as far as their comments say.
type Repository interface {
	// Name is "registry.example/team/app". A layout has none.
	Name() string
	// Manifest returns the manifest of a tag or digest, its digest compared, or ErrNotFound.
	Manifest(ctx context.Context, reference string) (*Manifest, error)
	// Blob opens a blob. Reading past its size or to an end with another digest is an error.
	Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	// Referrers returns the manifests that say of themselves, or of which an index says, that this digest is their subject,
	// each once.
	Referrers(ctx context.Context, digest string) ([]v1.Descriptor, error)
	// PutBlob stores a blob unless it is there.
	PutBlob(ctx context.Context, d v1.Descriptor, open func() (io.ReadCloser, error)) error
	// PutManifest stores a manifest under its digest and, when it has a subject, sees to it that Referrers finds it. What it
	// refers to must be there.
	PutManifest(ctx context.Context, m *Manifest) error
	// Update replaces the manifest of a tag by what merge makes of the present one (nil for none), again and again until merge
	// returns nil for a manifest that was read back. So merge adds what is missing and nothing else.
	Update(ctx context.Context, tag string, merge func(present *Manifest) (*Manifest, error)) error
}

// ReadBlob returns a blob of at most MaxLayer bytes.
func ReadBlob(ctx context.Context, r Repository, d v1.Descriptor) ([]byte, error) {
	if d.Size > MaxLayer {
		return nil, fmt.Errorf("blob %s has %d bytes, at most %d are read", d.Digest, d.Size, MaxLayer)
	}
	blob, err := r.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	data, err := limit.ReadAll(blob, MaxLayer)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return data, nil
}

func putBytes(ctx context.Context, r Repository, mediaType types.MediaType, data []byte) (v1.Descriptor, error) {
	hash, err := v1.NewHash(digestOf(data))
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: hash, Size: int64(len(data))}
	return d, r.PutBlob(ctx, d, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
}

// checkedBlob compares what is read with a descriptor.
type checkedBlob struct {
	io.ReadCloser
	d    v1.Descriptor
	hash hash.Hash
	read int64
}

func checked(r io.ReadCloser, d v1.Descriptor) (io.ReadCloser, error) {
	if d.Digest.Algorithm != "sha256" {
		r.Close()
		return nil, fmt.Errorf("blob %s: digests other than sha256 are not read", d.Digest)
	}
	return &checkedBlob{ReadCloser: r, d: d, hash: sha256.New()}, nil
}

func (c *checkedBlob) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.read += int64(n)
	c.hash.Write(p[:n])
	switch {
	case c.read > c.d.Size:
		return n, fmt.Errorf("blob %s is longer than the %d bytes that its descriptor says", c.d.Digest, c.d.Size)
	case errors.Is(err, io.EOF) && (c.read != c.d.Size || hex.EncodeToString(c.hash.Sum(nil)) != c.d.Digest.Hex):
		return n, fmt.Errorf("blob %s: what is stored there has another size or digest", c.d.Digest)
	}
	return n, err
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// tagOf is the tag that cosign and the referrers tag schema derive from a digest: sha256-<hex> and a suffix.
func tagOf(digest, suffix string) string { return strings.Replace(digest, ":", "-", 1) + suffix }

// isDigest tells a digest from a tag.
func isDigest(reference string) bool {
	_, err := v1.NewHash(reference)
	return err == nil
}

// subjectOf returns the digest of a manifest's subject, "" when it has none.
func subjectOf(raw []byte) string {
	var m struct {
		Subject *struct {
			Digest string `json:"digest"`
		} `json:"subject"`
	}
	if json.Unmarshal(raw, &m) != nil || m.Subject == nil {
		return ""
	}
	return m.Subject.Digest
}

// referrerOf describes a manifest as a list of referrers does (OCI distribution specification 1.1, section "Listing
// Referrers").
func referrerOf(m *Manifest) (v1.Descriptor, error) {
	var fields struct {
		ArtifactType string            `json:"artifactType"`
		Annotations  map[string]string `json:"annotations"`
		Config       struct {
			MediaType string `json:"mediaType"`
		} `json:"config"`
	}
	if err := json.Unmarshal(m.Raw, &fields); err != nil {
		return v1.Descriptor{}, fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	d := m.Descriptor()
	d.Annotations, d.ArtifactType = fields.Annotations, fields.ArtifactType
	if d.ArtifactType == "" {
		d.ArtifactType = fields.Config.MediaType
	}
	return d, nil
}
