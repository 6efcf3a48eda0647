package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
)

// Annotations of entries in index.json.
const (
	annotationRefName    = "org.opencontainers.image.ref.name"
	annotationContainerd = "io.containerd.image.name"
	annotationKind       = "kind" // of cosign save: dev.cosignproject.cosign/image, imageIndex, sigs, atts
	cosignKind           = "dev.cosignproject.cosign/"
)

// maxScanned bounds the bytes of blobs that are looked at for a subject: what is JSON and small enough for a manifest.
const maxScanned = 256 << 20

// Layout is a Source of the images in an OCI layout: a directory, such as crane, skopeo, oras and cosign save write, or an archive
// of one, which docker save of Docker 25 and later is too. It makes no connection. Each file is hashed when it is read.
type Layout struct {
	files  files
	where  string
	index  []descriptor
	docker bool // of docker save before Docker 25: there are no manifests
	max    int64
	scan   func() (map[string][]descriptor, error) // by subject
}

var _ Source = (*Layout)(nil)

// OpenLayout opens a layout in a directory. maxAttachment is that of Options.
func OpenLayout(dir string, maxAttachment int64) (*Layout, error) {
	d, err := openDirectory(dir)
	if err != nil {
		return nil, err
	}
	return newLayout(d, dir, maxAttachment)
}

// OpenArchive opens a layout in a tar file, which stays packed.
func OpenArchive(file string, maxAttachment int64) (*Layout, error) {
	a, err := openArchive(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return newLayout(a, file, maxAttachment)
}

func newLayout(f files, where string, max int64) (*Layout, error) {
	l := &Layout{files: f, where: where, max: (&Options{MaxAttachment: max}).maxAttachment()}
	l.scan = sync.OnceValues(l.scanBlobs)
	if err := l.open(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return l, nil
}

func (l *Layout) open() error {
	a, _ := l.files.(*archive)
	raw, err := l.files.read("index.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := l.files.read("manifest.json", maxManifest); err == nil {
			l.docker = true // its links are not followed, as nothing of it is read
			return nil
		}
		return unsupported("neither an OCI layout (no index.json) nor what docker save writes (no manifest.json)")
	}
	if err != nil {
		return err
	}
	if a != nil && a.links != "" {
		return malformed(nil, "archive member %q is a link", a.links)
	}
	var version struct {
		V string `json:"imageLayoutVersion"`
	}
	marker, err := l.files.read("oci-layout", 1<<10)
	if err != nil {
		return fmt.Errorf("OCI layout: %w", err)
	}
	if err := decodeManifest(marker, &version); err != nil || version.V != "1.0.0" {
		return unsupported("OCI layout of version %.20q, only 1.0.0 is known", version.V)
	}
	var index manifest
	if err := decodeManifest(raw, &index); err != nil {
		return malformed(err, "index.json")
	}
	if n := len(index.Manifests); n > maxListed {
		return tooLarge("index.json has %d entries, at most %d are looked at", n, maxListed)
	}
	l.index = index.Manifests
	return nil
}

// Close closes the archive or directory.
func (l *Layout) Close() error { return l.files.Close() }

// Images returns all images and indexes that index.json names, without those that are attached to others.
func (l *Layout) Images(ctx context.Context) ([]Image, error) {
	var out []Image
	for _, d := range l.images() {
		m, err := l.manifest(ctx, d.Digest)
		if err != nil {
			return nil, err
		}
		if m.Subject == nil {
			image := imageOf(m, nameOf(d))
			if named := refNames(d); len(named) > 0 {
				image.Reference = named[0] + "@" + m.digest
			}
			out = append(out, image)
		}
	}
	return out, nil
}

// images are the entries of index.json that may be images by what they say of themselves.
func (l *Layout) images() []descriptor {
	return slices.DeleteFunc(slices.Clone(l.index), func(d descriptor) bool {
		if kind, ok := strings.CutPrefix(d.Annotations[annotationKind], cosignKind); ok {
			return kind != "image" && kind != "imageIndex"
		}
		return d.ArtifactType != "" && !isConfigType(d.ArtifactType) || slices.ContainsFunc(refNames(d), isAttachedTag)
	})
}

// isConfigType tells the type of an image's configuration, which go-containerregistry (crane pull) writes as the artifact type.
func isConfigType(t string) bool {
	return t == "application/vnd.oci.image.config.v1+json" || t == "application/vnd.docker.container.image.v1+json"
}

// refNames are the names of an entry: "v1", "registry.example/app:v1".
func refNames(d descriptor) []string {
	var names []string
	for _, key := range []string{annotationContainerd, annotationRefName} {
		if n := d.Annotations[key]; n != "" {
			names = append(names, n)
		}
	}
	return names
}

// nameOf is the repository that an entry names, or "".
func nameOf(d descriptor) string {
	for _, n := range refNames(d) {
		if ref, err := name.ParseReference(n, name.WeakValidation); err == nil && strings.Contains(n, "/") {
			return ref.Context().Name()
		}
	}
	return ""
}

// isAttachedTag reports whether a name is a tag of the referrers schema or of cosign.
func isAttachedTag(refName string) bool {
	tag := tagOf(refName)
	i := strings.Index(tag, "sha256-")
	return i >= 0 && len(tag) >= i+len("sha256-")+64 || strings.Contains(tag, "sha512-")
}

func tagOf(refName string) string {
	if i := strings.LastIndexByte(refName, ':'); i > strings.LastIndexByte(refName, '/') {
		return refName[i+1:]
	}
	return refName
}

// Resolve returns the image of a reference. NAME@sha256:… has to be in the layout, under any name; NAME:TAG or TAG has to
// be the name of one entry; "" is the only image that there is.
func (l *Layout) Resolve(ctx context.Context, reference string) (Image, error) {
	repository, digest, hasDigest := strings.Cut(reference, "@")
	if !hasDigest && strings.HasPrefix(reference, "sha256:") {
		repository, digest, hasDigest = "", reference, true
	}
	if l.docker {
		if !hasDigest {
			return Image{}, unsupported("%s is of docker save before Docker 25, which keeps no manifest and so not the digest that is signed: "+
				"give NAME@sha256:…, or save the image with docker 25, skopeo or crane", l.where)
		}
		if _, _, err := parseDigest(digest); err != nil {
			return Image{}, err
		}
		return Image{Reference: reference, Name: repositoryOf(repository), Digest: digest}, nil
	}
	if hasDigest {
		m, err := l.manifest(ctx, digest)
		if err != nil {
			return Image{}, err
		}
		image := imageOf(m, repositoryOf(repository))
		image.Reference = reference
		return image, nil
	}
	var found []descriptor
	for _, d := range l.images() {
		if reference == "" || named(d, reference) {
			if !slices.ContainsFunc(found, func(f descriptor) bool { return f.Digest == d.Digest }) {
				found = append(found, d)
			}
		}
	}
	switch len(found) {
	case 0:
		return Image{}, unknown("%s has no image %q", l.where, reference)
	case 1:
	default:
		return Image{}, unknown("%s has %d images that may be meant by %q: name one by its digest", l.where, len(found), reference)
	}
	m, err := l.manifest(ctx, found[0].Digest)
	if err != nil {
		return Image{}, err
	}
	image := imageOf(m, nameOf(found[0]))
	if reference != "" {
		image.Reference = reference
	}
	return image, nil
}

// named reports whether an entry goes by reference, as it is written there or as a tag alone.
func named(d descriptor, reference string) bool {
	want, err := name.ParseReference(reference, name.WeakValidation)
	return slices.ContainsFunc(refNames(d), func(n string) bool {
		if n == reference || !strings.ContainsAny(n, "/:") && n == tagOf(reference) && strings.Contains(reference, ":") {
			return true
		}
		have, err2 := name.ParseReference(n, name.WeakValidation)
		return err == nil && err2 == nil && strings.ContainsAny(n, "/:") && have.Name() == want.Name()
	})
}

// Children returns the images of an index, those of indexes in it too, none for an image.
func (l *Layout) Children(ctx context.Context, image Image) ([]Image, error) {
	if l.docker {
		return nil, nil
	}
	return childrenOf(ctx, l, image)
}

// Configs returns the configuration of the image, or of each image of an index, by platform.
func (l *Layout) Configs(ctx context.Context, image Image) (map[string][]byte, error) {
	if l.docker {
		return nil, unsupported("%s is of docker save before Docker 25: nothing in it is known by the image's digest", l.where)
	}
	return configsOf(ctx, l, image)
}

// Attachments returns what is attached to the image's digest in any of the ways that layouts know.
func (l *Layout) Attachments(ctx context.Context, image Image) ([]Attachment, error) {
	if l.docker {
		return nil, nil
	}
	image.Name = l.where
	return attachmentsOf(ctx, l, image, "", "", l.max)
}

func (l *Layout) content(digest string, max int64) ([]byte, error) {
	if _, _, err := parseDigest(digest); err != nil {
		return nil, err
	}
	data, err := l.files.read(path.Join("blobs", strings.Replace(digest, ":", "/", 1)), max)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unknown("%s has no %s", l.where, digest)
	}
	if err != nil {
		return nil, err
	}
	return data, checkDigest(data, digest)
}

func (l *Layout) manifest(ctx context.Context, digest string) (*manifest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	raw, err := l.content(digest, maxManifest)
	if err != nil {
		return nil, err
	}
	return parseManifest(raw, digest, "")
}

func (l *Layout) blob(ctx context.Context, d descriptor, max int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := fits(d, max); err != nil {
		return nil, err
	}
	data, err := l.content(d.Digest, d.Size)
	if err != nil {
		return nil, err
	}
	return data, isContent(data, d)
}

// tagged finds entries of index.json by tag. cosign save keeps no tags: what it calls sigs and atts may belong to any image of
// the directory, which verification then tells.
func (l *Layout) tagged(ctx context.Context, tag string) ([]*manifest, error) {
	kind := map[string]string{".sig": cosignKind + "sigs", ".att": cosignKind + "atts"}[path.Ext(tag)]
	var out []*manifest
	var problems []error
	for _, d := range l.index {
		match := kind != "" && d.Annotations[annotationKind] == kind ||
			slices.ContainsFunc(refNames(d), func(n string) bool { return tagOf(n) == tag })
		if !match || slices.ContainsFunc(out, func(m *manifest) bool { return m.digest == d.Digest }) {
			continue
		}
		m, err := l.manifest(ctx, d.Digest)
		if isUnknown(err) {
			err = malformed(err, "index.json names what is not there")
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		out = append(out, m)
	}
	if len(out)+len(problems) == 0 {
		return nil, unknown("%s has no %s", l.where, tag)
	}
	return out, Unread(problems...)
}

// referrers are entries of index.json and blobs that name digest as their subject, and what the list under its tag names.
func (l *Layout) referrers(ctx context.Context, digest string) ([]descriptor, error) {
	scanned, err := l.scan()
	if err != nil {
		return nil, err
	}
	out := slices.Clone(scanned[digest])
	var problems []error
	lists, err := l.tagged(ctx, strings.Replace(digest, ":", "-", 1))
	if err != nil && !isUnknown(err) {
		problems = append(problems, err)
	}
	for _, m := range lists {
		list, err := referrersIn(m)
		problems = append(problems, err)
		for _, d := range list {
			if !slices.ContainsFunc(out, func(o descriptor) bool { return o.Digest == d.Digest }) {
				out = append(out, d)
			}
		}
	}
	return out, Unread(problems...)
}

// scanBlobs finds all manifests that have a subject, by subject. A blob whose name is not its digest is found out when it is
// read as a manifest.
func (l *Layout) scanBlobs() (map[string][]descriptor, error) {
	out := make(map[string][]descriptor)
	var total int64
	for _, alg := range []string{"sha256", "sha512"} {
		sizes, err := l.files.list("blobs/" + alg)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names := make([]string, 0, len(sizes))
		for n := range sizes {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			size := sizes[n]
			if size > maxManifest || size < 2 {
				continue
			}
			name := path.Join("blobs", alg, n)
			if c, err := l.files.first(name); err != nil || c != '{' { // a layer
				continue
			}
			if total += size; total > maxScanned {
				return nil, tooLarge("%s has more than %d bytes of blobs that could be manifests", l.where, maxScanned)
			}
			raw, err := l.files.read(name, maxManifest)
			if err != nil {
				return nil, err
			}
			// Most are configurations. Only whoever spells the key with escapes could miss its referrer here.
			if !bytes.Contains(raw, []byte(`"subject"`)) {
				continue
			}
			m, err := parseManifest(raw, alg+":"+n, "")
			if err != nil || m.Subject == nil || m.isIndex() {
				continue
			}
			d := descriptor{MediaType: m.MediaType, Digest: m.digest, Size: size, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
			if d.ArtifactType == "" {
				d.ArtifactType = m.Config.MediaType
			}
			out[m.Subject.Digest] = append(out[m.Subject.Digest], d)
		}
	}
	return out, nil
}
