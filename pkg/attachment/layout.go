package attachment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
)

const (
	// RefName is the annotation of an index entry that names it (OCI image specification 1.1, annotations.md).
	RefName = "org.opencontainers.image.ref.name"

	layoutFile = "oci-layout"
	indexFile  = "index.json"
	blobDir    = "blobs/sha256"
	maxScanned = 100_000 // blobs of a layout that are looked through for referrers
)

// Layout is an OCI image layout (OCI image specification 1.1, image-layout.md). Whoever writes holds a lock (flock) on the file
// oci-layout, so that several processes of ours lose nothing of each other; each file is replaced as a whole, and what it
// refers to is there before it.
type Layout struct {
	files fs.FS
	dir   string // "" when it is read only
}

// Dir is a directory whose files a stranger may have made: links that lead out of it are not followed, and opening a pipe does
// not wait for somebody to write into it.
type Dir struct{ root *os.Root }

// OpenDir opens a directory.
func OpenDir(dir string) (*Dir, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Dir{root}, nil
}

// Open implements fs.FS.
func (d *Dir) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// Close closes the directory, not what was opened in it.
func (d *Dir) Close() error { return d.root.Close() }

// OpenLayout opens the layout in a directory.
func OpenLayout(dir string) (*Layout, error) {
	files, err := OpenDir(dir)
	if err != nil {
		return nil, err
	}
	l := &Layout{files: files, dir: dir}
	if err := l.check(); err != nil {
		files.Close()
		return nil, err
	}
	return l, nil
}

// ReadLayout reads a layout from a file system, which may be an archive's.
func ReadLayout(files fs.FS) (*Layout, error) {
	l := &Layout{files: files}
	return l, l.check()
}

// CreateLayout makes an empty layout in a directory unless there is one.
func CreateLayout(dir string) (*Layout, error) {
	if err := os.MkdirAll(filepath.Join(dir, filepath.FromSlash(blobDir)), 0o755); err != nil {
		return nil, err
	}
	for _, file := range []struct{ name, content string }{
		{indexFile, `{"schemaVersion":2,"mediaType":"` + string(types.OCIImageIndex) + `","manifests":[]}`},
		{layoutFile, `{"imageLayoutVersion":"1.0.0"}`}, // last: with it the directory is a layout
	} {
		if _, err := os.Stat(filepath.Join(dir, file.name)); err == nil {
			continue
		}
		if err := durable.WriteFile(filepath.Join(dir, file.name), []byte(file.content), 0o644); err != nil {
			return nil, err
		}
	}
	return OpenLayout(dir)
}

func (l *Layout) check() error {
	raw, err := l.read(layoutFile, 4096)
	if err != nil {
		return fmt.Errorf("not an OCI image layout: %w", err)
	}
	var marker struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(raw, &marker); err != nil || marker.Version != "1.0.0" {
		return fmt.Errorf("OCI image layout of version %q: 1.0.0 is known", marker.Version)
	}
	return nil
}

func (l *Layout) read(name string, max int64) ([]byte, error) {
	f, err := l.files.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	data, err := limit.ReadAll(f, max)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

func (l *Layout) Name() string { return "" }

// Index returns index.json.
func (l *Layout) Index() (*v1.IndexManifest, error) {
	raw, err := l.read(indexFile, MaxManifest)
	if err != nil {
		return nil, err
	}
	return (&Manifest{Raw: raw, Digest: indexFile}).Index()
}

// Sole returns the digest of the layout's image when it holds just one: signatures and what else has a subject do not
// count, nor do tags that are derived from digests.
func (l *Layout) Sole(ctx context.Context) (string, error) {
	index, err := l.Index()
	if err != nil {
		return "", err
	}
	var images []string
	for _, d := range index.Manifests {
		if strings.HasPrefix(d.Annotations[RefName], "sha256-") || slices.Contains(images, d.Digest.String()) {
			continue
		}
		m, err := l.Manifest(ctx, d.Digest.String())
		if err != nil {
			return "", err
		}
		if subjectOf(m.Raw) == "" {
			images = append(images, d.Digest.String())
		}
	}
	if len(images) != 1 {
		return "", fmt.Errorf("the layout holds %d images: name one by its tag or digest", len(images))
	}
	return images[0], nil
}

func (l *Layout) Manifest(_ context.Context, reference string) (*Manifest, error) {
	digest := reference
	if !isDigest(reference) {
		index, err := l.Index()
		if err != nil {
			return nil, err
		}
		digest = ""
		for _, d := range index.Manifests {
			if d.Annotations[RefName] == reference {
				digest = d.Digest.String() // the last counts: index.json is appended to
			}
		}
	}
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok {
		return nil, fmt.Errorf("%s in the layout: %w", reference, ErrNotFound)
	}
	raw, err := l.read(path.Join(blobDir, hex), MaxManifest)
	if err != nil {
		return nil, err
	}
	m := &Manifest{Raw: raw, Digest: digestOf(raw)}
	if m.Digest != digest {
		return nil, fmt.Errorf("manifest %s: what is stored there has the digest %s", digest, m.Digest)
	}
	m.MediaType, err = mediaTypeOf(m)
	return m, err
}

// mediaTypeOf reads what a manifest says of itself. The member is optional in OCI, where an index has manifests and an image
// has a configuration.
func mediaTypeOf(m *Manifest) (types.MediaType, error) {
	var fields struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(m.Raw, &fields); err != nil {
		return "", fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	switch {
	case fields.MediaType != "":
		return fields.MediaType, nil
	case fields.Manifests != nil:
		return types.OCIImageIndex, nil
	}
	return types.OCIManifestSchema1, nil
}

func (l *Layout) Blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	f, err := l.files.Open(path.Join(blobDir, d.Digest.Hex))
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() != d.Size {
		f.Close()
		return nil, errors.Join(fmt.Errorf("blob %s is not a file of %d bytes", d.Digest, d.Size), err)
	}
	return checked(f, d)
}

// Referrers looks in the index, in the tag of the referrers tag schema, and at every blob that may be a manifest: programs
// differ in what they list.
func (l *Layout) Referrers(ctx context.Context, digest string) ([]v1.Descriptor, error) {
	index, err := l.Index()
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	seen := map[string]bool{}
	look := func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		m, err := l.Manifest(ctx, name)
		if err != nil {
			return err
		}
		if subjectOf(m.Raw) != digest {
			return nil
		}
		d, err := referrerOf(m)
		if err != nil {
			return err
		}
		found = append(found, d)
		return nil
	}
	for _, d := range index.Manifests {
		if err := look(d.Digest.String()); err != nil {
			return nil, err
		}
	}
	if tagged, err := l.Manifest(ctx, tagOf(digest, "")); err == nil {
		list, err := tagged.Index()
		if err != nil {
			return nil, err
		}
		for _, d := range list.Manifests {
			if err := look(d.Digest.String()); err != nil {
				return nil, err
			}
		}
	} else if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	blobs, err := fs.ReadDir(l.files, blobDir)
	if err != nil {
		return nil, err
	}
	if len(blobs) > maxScanned {
		return nil, fmt.Errorf("the layout has %d blobs, at most %d are looked through", len(blobs), maxScanned)
	}
	for _, b := range blobs {
		info, err := b.Info()
		if err != nil {
			return nil, err
		}
		name := "sha256:" + b.Name()
		if !info.Mode().IsRegular() || info.Size() > MaxManifest || !isDigest(name) || seen[name] {
			continue
		}
		raw, err := l.read(path.Join(blobDir, b.Name()), MaxManifest)
		if err != nil {
			return nil, err
		}
		if len(raw) > 0 && raw[0] == '{' && subjectOf(raw) == digest {
			if err := look(name); err != nil {
				return nil, err
			}
		}
	}
	return uniqueReferrers(found)
}

func (l *Layout) blobPath(hex string) string {
	return filepath.Join(l.dir, filepath.FromSlash(blobDir), hex)
}

// PutBlob does not believe a file that is there already: it is read, as a killed process or a bad disk may have left it.
func (l *Layout) PutBlob(ctx context.Context, d v1.Descriptor, open func() (io.ReadCloser, error)) error {
	if l.dir == "" {
		return errors.New("the layout is read only")
	}
	if l.Holds(ctx, d) {
		return nil
	}
	in, err := open()
	if err != nil {
		return err
	}
	in, err = checked(in, d)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := os.CreateTemp(filepath.Dir(l.blobPath(d.Digest.Hex)), durable.Temp+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once the rename has happened
	_, err = io.Copy(f, contextReader{ctx, in})
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), l.blobPath(d.Digest.Hex)); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(l.blobPath(d.Digest.Hex)))
}

// Holds tells whether a blob is there, whole and with its digest.
func (l *Layout) Holds(ctx context.Context, d v1.Descriptor) bool {
	blob, err := l.Blob(ctx, d)
	if err != nil {
		return false
	}
	defer blob.Close()
	_, err = io.Copy(io.Discard, contextReader{ctx, blob})
	return err == nil
}

// contextReader ends a long copy with its context.
type contextReader struct {
	ctx context.Context //nolint:containedctx // io.Copy takes no other way
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func (l *Layout) PutManifest(ctx context.Context, m *Manifest) error {
	d, err := referrerOf(m)
	if err != nil {
		return err
	}
	if subjectOf(m.Raw) == "" {
		d.ArtifactType, d.Annotations = "", nil
	}
	if _, err := putBytes(ctx, l, m.MediaType, m.Raw); err != nil {
		return err
	}
	return l.locked(func(index *v1.IndexManifest) (bool, error) {
		if slices.ContainsFunc(index.Manifests, func(e v1.Descriptor) bool { return e.Digest == d.Digest }) {
			return false, nil
		}
		index.Manifests = append(index.Manifests, d)
		return true, nil
	})
}

func (l *Layout) Update(ctx context.Context, tag string, merge func(*Manifest) (*Manifest, error)) error {
	return l.locked(func(index *v1.IndexManifest) (bool, error) {
		present, err := l.Manifest(ctx, tag)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return false, err
		}
		next, err := merge(present)
		if err != nil || next == nil {
			return false, err
		}
		if _, err := putBytes(ctx, l, next.MediaType, next.Raw); err != nil {
			return false, err
		}
		index.Manifests = slices.DeleteFunc(index.Manifests, func(e v1.Descriptor) bool { return e.Annotations[RefName] == tag })
		d := next.Descriptor()
		d.Annotations = map[string]string{RefName: tag}
		index.Manifests = append(index.Manifests, d)
		return true, nil
	})
}

// Lock keeps other writers out until release is called. One that is there already is an error: nobody waits.
func (l *Layout) Lock() (release func() error, err error) {
	lock, err := os.Open(filepath.Join(l.dir, layoutFile))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another process writes in %s", l.dir)
		}
		return nil, fmt.Errorf("locking the layout: %w", err)
	}
	return lock.Close, nil
}

// locked changes index.json under the lock; change says whether it did.
func (l *Layout) locked(change func(*v1.IndexManifest) (bool, error)) error {
	if l.dir == "" {
		return errors.New("the layout is read only")
	}
	lock, err := os.Open(filepath.Join(l.dir, layoutFile))
	if err != nil {
		return err
	}
	defer lock.Close() // releases it
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking the layout: %w", err)
	}
	index, err := l.Index()
	if err != nil {
		return err
	}
	changed, err := change(index)
	if err != nil || !changed {
		return err
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", indexFile, err)
	}
	if len(raw) > MaxManifest {
		return fmt.Errorf("%s would have over %d bytes", indexFile, MaxManifest)
	}
	return durable.WriteFile(filepath.Join(l.dir, indexFile), raw, 0o644)
}
