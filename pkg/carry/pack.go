package carry

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/attachment"
	"github.com/attestry/attestry/pkg/verify"
)

// parallelBlobs are copied at a time.
const parallelBlobs = 3

// Packing says what goes into a set.
type Packing struct {
	References []string // of images
	// Open returns the repository that an image is in.
	Open func(ctx context.Context, repo name.Repository) (attachment.Repository, error)
	// Parse reads a reference.
	Parse func(reference string) (name.Reference, error)

	// TUF is the directory or the http or https URL of a TUF repository, and TUFRoot a root of it. Without, TrustedRoot (JSON) is
	// carried without its history.
	TUF         string
	TUFRoot     []byte
	TrustedRoot []byte
	Client      *http.Client

	Policies []string // files that are carried, and decide about the images
	Demands  Demands  // that the images have to meet before the set is signed

	// Sign returns a bundle over carry.json.
	Sign func(ctx context.Context, manifest []byte) ([]byte, error)
	// Key is the key that Sign uses, nil for an identity. Its signature of an earlier attempt stays when it is good, so that packing
	// the same again makes the same set.
	Key crypto.PublicKey

	Now      func() time.Time
	Progress func(format string, args ...any)
}

// Pack makes a set in dir, or goes on with one that was interrupted there, and returns the report on it. The set is signed last,
// and only when the report is complete; what was fetched before stays for the next attempt.
func Pack(ctx context.Context, dir string, p Packing) (*Report, error) {
	layout, err := attachment.CreateLayout(dir)
	if err != nil {
		return nil, err
	}
	release, err := layout.Lock()
	if err != nil {
		return nil, err
	}
	defer release()
	w := &packer{Packing: p, layout: layout, dir: dir, seen: map[string]bool{}}
	for _, sub := range []string{"", filepath.FromSlash(blobDir)} {
		if err := durable.RemoveTemps(filepath.Join(dir, sub)); err != nil {
			return nil, err
		}
	}
	if err := w.trust(ctx); err != nil {
		return nil, err
	}
	if err := w.policies(); err != nil {
		return nil, err
	}
	m := &Manifest{Format: format, Require: p.Demands.Require}
	for _, reference := range p.References {
		image, err := w.image(ctx, reference)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", reference, err)
		}
		if !slices.ContainsFunc(m.Images, func(i Image) bool { return i.Name() == image.Name() }) {
			m.Images = append(m.Images, *image)
		}
	}
	slices.SortFunc(m.Images, func(a, b Image) int { return strings.Compare(a.Name(), b.Name()) })
	if err := w.index(m); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if m.Files, err = w.list(root.FS()); err != nil {
		return nil, err
	}
	report, err := examine(ctx, dir, m, w.trustedRoot, p.Demands, p.Now())
	if err != nil {
		return nil, err
	}
	if !report.Complete {
		return report, nil
	}
	return report, w.sign(ctx, m)
}

type packer struct {
	Packing
	layout      *attachment.Layout
	dir         string
	trustedRoot []byte
	keep        []string        // files beside the blobs
	seen        map[string]bool // blobs and manifests of this set
	manifests   int
}

func (w *packer) write(name string, data []byte) error {
	file := filepath.Join(w.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	w.keep = append(w.keep, name)
	return durable.WriteFile(file, data, 0o644)
}

// trust stores the trusted root and what leads to it.
func (w *packer) trust(ctx context.Context) error {
	for _, sub := range []string{trustDir, policyDir} { // what an earlier attempt left there is not asked for now
		if err := os.RemoveAll(filepath.Join(w.dir, sub)); err != nil {
			return err
		}
	}
	w.trustedRoot = w.TrustedRoot
	if w.TUF != "" {
		read, closer, err := tufFrom(w.TUF, w.Client)
		if err != nil {
			return err
		}
		defer closer()
		c, err := readChain(ctx, read, w.TUFRoot, w.Now())
		if err != nil {
			return err
		}
		for name, data := range c.files {
			if err := w.write(path.Join(tufDir, name), data); err != nil {
				return err
			}
		}
		w.trustedRoot = c.trustedRoot
	}
	if len(w.trustedRoot) == 0 {
		return errors.New("a set carries its trusted root: name a TUF repository and its root, or a trusted root")
	}
	return w.write(rootFile, w.trustedRoot)
}

func (w *packer) policies() error {
	if len(w.Policies) > maxPolicies {
		return fmt.Errorf("%d policies, at most %d are carried", len(w.Policies), maxPolicies)
	}
	for _, file := range w.Policies {
		base := filepath.Base(file)
		name := path.Join(policyDir, base)
		switch {
		case !policyName.MatchString(base):
			return fmt.Errorf("policy %s: its name has other characters than letters, digits, dot, dash and underscore", file)
		case slices.Contains(w.keep, name):
			return fmt.Errorf("two policies are named %s", base)
		}
		data, err := limit.ReadFile(file, maxPolicy)
		if err != nil {
			return fmt.Errorf("policy: %w", err)
		}
		if err := w.write(name, data); err != nil {
			return err
		}
	}
	return nil
}

// image copies one image with all that is attached.
func (w *packer) image(ctx context.Context, reference string) (*Image, error) {
	ref, err := w.Parse(reference)
	if err != nil {
		return nil, err
	}
	from, err := w.Open(ctx, ref.Context())
	if err != nil {
		return nil, err
	}
	m, err := from.Manifest(ctx, ref.Identifier())
	if err != nil {
		return nil, err
	}
	image := &Image{Repository: ref.Context().Name(), Digest: m.Digest, MediaType: m.MediaType}
	if tag, ok := ref.(name.Tag); ok {
		image.Tag = tag.TagStr()
	}
	if err := w.tree(ctx, from, m, image, 0, map[string]bool{}); err != nil {
		return nil, err
	}
	slices.SortFunc(image.Attached, func(a, b Attached) int {
		return cmp.Or(strings.Compare(a.Subject, b.Subject), strings.Compare(a.Tag, b.Tag), strings.Compare(a.Digest, b.Digest))
	})
	w.progress("packed %s (%s), %d attached", image.Name(), image.Digest, len(image.Attached))
	return image, nil
}

func (w *packer) progress(format string, args ...any) {
	if w.Progress != nil {
		w.Progress(format, args...)
	}
}

// tree copies a manifest, what it refers to and what is attached to it, the blobs before the manifests.
func (w *packer) tree(ctx context.Context, from attachment.Repository, m *attachment.Manifest, image *Image, depth int, done map[string]bool) error {
	if done[m.Digest] {
		return nil
	}
	done[m.Digest] = true
	if w.manifests++; w.manifests > maxManifests {
		return fmt.Errorf("the set would have over %d manifests", maxManifests)
	}
	if depth > maxDepth {
		return fmt.Errorf("manifest %s: more than %d manifests refer to each other", m.Digest, maxDepth)
	}
	children, blobs, err := parts(m)
	if err != nil {
		return err
	}
	for _, child := range children {
		c, err := from.Manifest(ctx, child.Digest.String())
		if err != nil {
			return fmt.Errorf("part of %s: %w", m.Digest, err)
		}
		if err := w.tree(ctx, from, c, image, depth+1, done); err != nil {
			return err
		}
	}
	if err := w.blobs(ctx, from, blobs); err != nil {
		return err
	}
	if err := w.store(ctx, m); err != nil {
		return err
	}
	return w.attached(ctx, from, m, image, depth, done)
}

// attached copies what is attached to a manifest.
func (w *packer) attached(ctx context.Context, from attachment.Repository, m *attachment.Manifest, image *Image, depth int, done map[string]bool) error {
	referrers, err := from.Referrers(ctx, m.Digest)
	if err != nil {
		return err
	}
	for _, d := range referrers {
		r, err := from.Manifest(ctx, d.Digest.String())
		if err != nil {
			return fmt.Errorf("a referrer of %s: %w", m.Digest, err)
		}
		if subject(r) != m.Digest {
			return fmt.Errorf("the repository lists %s as a referrer of %s, and it is none", r.Digest, m.Digest)
		}
		image.Attached = append(image.Attached, Attached{Subject: m.Digest, Digest: r.Digest, MediaType: r.MediaType})
		if err := w.tree(ctx, from, r, image, depth+1, done); err != nil {
			return err
		}
	}
	for _, suffix := range []string{".sig", ".att", ".sbom"} {
		tag := strings.Replace(m.Digest, ":", "-", 1) + suffix
		t, err := from.Manifest(ctx, tag)
		if errors.Is(err, attachment.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		image.Attached = append(image.Attached, Attached{Subject: m.Digest, Digest: t.Digest, MediaType: t.MediaType, Tag: tag})
		if err := w.tree(ctx, from, t, image, depth+1, done); err != nil {
			return err
		}
	}
	return nil
}

// parts returns the manifests and blobs that a manifest consists of.
func parts(m *attachment.Manifest) (manifests, blobs []v1.Descriptor, err error) {
	switch m.MediaType {
	case types.OCIImageIndex, types.DockerManifestList:
		index, err := m.Index()
		if err != nil {
			return nil, nil, err
		}
		return index.Manifests, nil, nil
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
		image, err := m.Image()
		if err != nil {
			return nil, nil, err
		}
		return nil, append([]v1.Descriptor{image.Config}, image.Layers...), nil
	}
	return nil, nil, fmt.Errorf("manifest %s is of type %q, which is not known", m.Digest, m.MediaType)
}

func subject(m *attachment.Manifest) string {
	var fields struct {
		Subject struct {
			Digest string `json:"digest"`
		} `json:"subject"`
	}
	if json.Unmarshal(m.Raw, &fields) != nil {
		return ""
	}
	return fields.Subject.Digest
}

func (w *packer) store(ctx context.Context, m *attachment.Manifest) error {
	w.seen[m.Digest] = true
	return w.layout.PutBlob(ctx, m.Descriptor(), func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(m.Raw)), nil
	})
}

// blobs are not all checked by size: a layer may be large, but not other than its descriptor says.
func (w *packer) blobs(ctx context.Context, from attachment.Repository, blobs []v1.Descriptor) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelBlobs)
	for _, d := range blobs {
		if w.seen[d.Digest.String()] {
			continue
		}
		w.seen[d.Digest.String()] = true
		group.Go(func() error {
			if err := w.layout.PutBlob(ctx, d, func() (io.ReadCloser, error) { return from.Blob(ctx, d) }); err != nil {
				return fmt.Errorf("blob %s: %w", d.Digest, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// index writes index.json: every image by its name, every attachment. Programs that know nothing of carry sets find both.
func (w *packer) index(m *Manifest) error {
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}
	add := func(digest string, mediaType types.MediaType, refName, artifactType string) error {
		hash, err := v1.NewHash(digest)
		if err != nil {
			return err
		}
		info, err := os.Stat(filepath.Join(w.dir, filepath.FromSlash(blobPath(digest))))
		if err != nil {
			return err
		}
		d := v1.Descriptor{MediaType: mediaType, Digest: hash, Size: info.Size(), ArtifactType: artifactType}
		if refName != "" {
			d.Annotations = map[string]string{attachment.RefName: refName}
		}
		if !slices.ContainsFunc(index.Manifests, func(e v1.Descriptor) bool {
			return e.Digest == d.Digest && e.Annotations[attachment.RefName] == refName
		}) {
			index.Manifests = append(index.Manifests, d)
		}
		return nil
	}
	for _, image := range m.Images {
		if err := add(image.Digest, image.MediaType, image.Name(), ""); err != nil {
			return err
		}
	}
	for _, image := range m.Images {
		for _, a := range image.Attached {
			artifactType := ""
			if a.Tag == "" {
				var fields struct {
					ArtifactType string `json:"artifactType"`
				}
				raw, err := limit.ReadFile(filepath.Join(w.dir, filepath.FromSlash(blobPath(a.Digest))), attachment.MaxManifest)
				if err != nil {
					return err
				}
				if err := json.Unmarshal(raw, &fields); err != nil {
					return fmt.Errorf("manifest %s: %w", a.Digest, err)
				}
				artifactType = fields.ArtifactType
			}
			if err := add(a.Digest, a.MediaType, a.Tag, artifactType); err != nil {
				return err
			}
		}
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("encoding index.json: %w", err)
	}
	if len(index.Manifests) > maxIndex || len(raw) > attachment.MaxManifest {
		return fmt.Errorf("images and what is attached to them are over %d manifests or %d bytes of index.json: make two sets of it", maxIndex, attachment.MaxManifest)
	}
	w.keep = append(w.keep, "oci-layout")
	return w.write("index.json", raw)
}

// list returns every file of the set, and removes blobs of an earlier attempt that this one does not hold.
func (w *packer) list(files fs.FS) ([]File, error) {
	blobs, err := fs.ReadDir(files, blobDir)
	if err != nil {
		return nil, err
	}
	var all []File
	for _, b := range blobs {
		name := path.Join(blobDir, b.Name())
		if !w.seen["sha256:"+b.Name()] {
			if err := os.Remove(filepath.Join(w.dir, filepath.FromSlash(name))); err != nil {
				return nil, err
			}
			continue
		}
		w.keep = append(w.keep, name)
	}
	for _, name := range w.keep {
		f, err := digestOfFile(files, name)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	if len(all) > maxFiles {
		return nil, fmt.Errorf("the set would have over %d files", maxFiles)
	}
	slices.SortFunc(all, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// sign writes carry.json and then its signature.
func (w *packer) sign(ctx context.Context, m *Manifest) error {
	raw, err := m.encode()
	if err != nil {
		return err
	}
	if len(raw) > maxManifestFile {
		return fmt.Errorf("%s would have over %d bytes", manifestFile, maxManifestFile)
	}
	manifest, signature := filepath.Join(w.dir, manifestFile), filepath.Join(w.dir, signatureFile)
	old, err1 := limit.ReadFile(manifest, maxManifestFile)
	bundle, err2 := limit.ReadFile(signature, maxSignature)
	if err1 == nil && err2 == nil && bytes.Equal(old, raw) && w.signedBefore(bundle, raw) {
		return nil
	}
	if bundle, err = w.Sign(ctx, raw); err != nil {
		return err
	}
	if err := os.Remove(signature); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.WriteFile(manifest, raw, 0o644); err != nil {
		return err
	}
	return durable.WriteFile(signature, append(bundle, '\n'), 0o644)
}

// signedBefore tells whether a bundle is the key's over the manifest.
func (w *packer) signedBefore(bundle, manifest []byte) bool {
	if w.Key == nil {
		return false
	}
	verifier, err := verify.New(w.trustedRoot)
	if err != nil {
		return false
	}
	_, err = verifier.Verify(bundle, verify.FromBytes(manifest), &verify.Policy{Key: w.Key, Requirements: &verify.Requirements{}})
	return err == nil
}

// WriteTar writes the set in dir to a tar at out, whole or not at all.
func WriteTar(dir, out string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	files := root.FS()
	raw, err := limit.ReadFS(files, manifestFile, maxManifestFile)
	if err != nil {
		return err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return err
	}
	names := m.Files
	for _, name := range []string{manifestFile, signatureFile} {
		f, err := digestOfFile(files, name)
		if err != nil {
			return err
		}
		names = append(names, f)
	}
	f, err := os.CreateTemp(filepath.Dir(out), durable.Temp+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once the rename has happened
	err = writeTar(f, files, names)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(out))
}
