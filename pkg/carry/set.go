// Package carry takes images across an air gap with all that is attached to them, the trust that verifies it and the policies
// that judge it.
//
// A set is a directory, or a tar of it:
//
//	oci-layout, index.json, blobs/   an OCI image layout: every image, the images of indexes, and whatever refers to one of
//	                                 them, as a referrer or by a tag that is derived from its digest
//	trust/trusted_root.json          what verifies the signatures
//	trust/tuf/                       the TUF repository that says so, as far as it leads to that file
//	policies/                        files that are carried as they are
//	carry.json                       what is in the set: every file with size and SHA-256, every image
//	carry.sigstore.json              a bundle over carry.json, of a key or of an identity
//
// carry.json is written after everything that it lists, and its signature last: a directory without both is no set.
package carry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	format        = "attestry-carry/1"
	manifestFile  = "carry.json"
	signatureFile = "carry.sigstore.json"
	trustDir      = "trust"
	rootFile      = trustDir + "/trusted_root.json"
	tufDir        = trustDir + "/tuf"
	policyDir     = "policies"
	blobDir       = "blobs/sha256"
)

// Limits of a set. What is over them is refused.
const (
	maxManifestFile = 64 << 20 // carry.json
	maxSignature    = 1 << 20
	maxFiles        = 200_000
	maxImages       = 10_000
	maxPolicies     = 1000
	maxPolicy       = 1 << 20
	maxTrustedRoot  = 8 << 20
	maxRequired     = 64
	maxDepth        = 4       // of indexes in indexes, and of referrers to referrers
	maxManifests    = 100_000 // of all images
	maxIndex        = 4096    // entries of index.json, as many as the verifier of images reads
)

// Manifest is the content of carry.json. It says nothing of when or where it was made, so the same images make the same file.
type Manifest struct {
	Format string `json:"format"`
	// Require are the predicate types that each image has, as the signer of the set found.
	Require []string `json:"require,omitempty"`
	Images  []Image  `json:"images"`
	Files   []File   `json:"files"` // by path, all but carry.json and its signature
}

// Image is one image that was asked for.
type Image struct {
	Repository string          `json:"repository"`    // "registry.example/team/app"
	Tag        string          `json:"tag,omitempty"` // under which it was asked for
	Digest     string          `json:"digest"`
	MediaType  types.MediaType `json:"mediaType"`
	// Attached are the manifests that are attached to the image, to the images of an index, and to what is attached.
	Attached []Attached `json:"attached,omitempty"`
}

// Name is how people name the image.
func (i Image) Name() string {
	if i.Tag != "" {
		return i.Repository + ":" + i.Tag
	}
	return i.Repository + "@" + i.Digest
}

// Attached is a manifest that is attached to another.
type Attached struct {
	Subject   string          `json:"subject"` // digest of the other
	Digest    string          `json:"digest"`
	MediaType types.MediaType `json:"mediaType"`
	Tag       string          `json:"tag,omitempty"` // sha256-<hex>.sig, .att or .sbom; none for a referrer
}

// File is a file of the set.
type File struct {
	Path   string `json:"path"` // slash-separated
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // hex
}

var (
	hexDigest  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	legacyTag  = regexp.MustCompile(`^sha256-[0-9a-f]{64}\.(sig|att|sbom)$`)
	policyName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// encode returns carry.json.
func (m *Manifest) encode() ([]byte, error) {
	slices.SortFunc(m.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	raw, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", manifestFile, err)
	}
	return append(raw, '\n'), nil
}

// parseManifest reads carry.json. Unknown members, other formats and names that are not plain are refused.
func parseManifest(raw []byte) (*Manifest, error) {
	m := &Manifest{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestFile, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: something follows the manifest", manifestFile)
	}
	switch {
	case m.Format != format:
		return nil, fmt.Errorf("%s: format %q, %q is known", manifestFile, m.Format, format)
	case len(m.Files) > maxFiles, len(m.Images) > maxImages, len(m.Require) > maxRequired:
		return nil, fmt.Errorf("%s lists over %d files, %d images or %d predicate types", manifestFile, maxFiles, maxImages, maxRequired)
	case len(m.Images) == 0:
		return nil, fmt.Errorf("%s lists no image", manifestFile)
	}
	for i, f := range m.Files {
		switch {
		case !fs.ValidPath(f.Path) || f.Path == "." || f.Path == manifestFile || f.Path == signatureFile || strings.ContainsAny(f.Path, "\\\x00"):
			return nil, fmt.Errorf("%s: file name %q", manifestFile, f.Path)
		case i > 0 && m.Files[i-1].Path >= f.Path:
			return nil, fmt.Errorf("%s: files are not in order, or %q is there twice", manifestFile, f.Path)
		case f.Bytes < 0 || !hexDigest.MatchString("sha256:"+f.SHA256):
			return nil, fmt.Errorf("%s: size or digest of %q", manifestFile, f.Path)
		}
	}
	for _, i := range m.Images {
		if !hexDigest.MatchString(i.Digest) || i.Repository == "" {
			return nil, fmt.Errorf("%s: image %q", manifestFile, i.Name())
		}
		for _, a := range i.Attached {
			if !hexDigest.MatchString(a.Digest) || !hexDigest.MatchString(a.Subject) || a.Tag != "" && !legacyTag.MatchString(a.Tag) {
				return nil, fmt.Errorf("%s: attachment %q of image %q", manifestFile, a.Digest, i.Name())
			}
		}
	}
	return m, nil
}

// digestOfFile reads a file to its end.
func digestOfFile(files fs.FS, name string) (File, error) {
	f, err := files.Open(name)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	if !info.Mode().IsRegular() {
		return File{}, fmt.Errorf("%s is not a regular file", name)
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", name, err)
	}
	return File{Path: name, Bytes: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

func blobPath(digest string) string { return path.Join(blobDir, strings.TrimPrefix(digest, "sha256:")) }

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
