package carry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/pkg/attachment"
)

// Pushing says where the images of a set go.
type Pushing struct {
	// Registry is "inside.example" or "inside.example/prefix"; the path of each repository stays.
	Registry string
	// Open returns a repository to write to.
	Open func(ctx context.Context, repo name.Repository) (attachment.Repository, error)
	// Parse reads the name of a repository.
	Parse func(repository string) (name.Repository, error)
	// MoveTags lets a tag of an image that points elsewhere be moved.
	MoveTags bool
	Progress func(format string, args ...any)
}

// Arrival says what of a set is in the registry, as it was read back from there.
type Arrival struct {
	Images []Arrived `json:"images"`
}

// Arrived is one image.
type Arrived struct {
	Name     string `json:"name"` // there
	Digest   string `json:"digest"`
	Attached int    `json:"attached"`
}

// Push checks a set as Check does, policies under the names in the registry, and copies it into a registry if the report is complete. What is there is not sent again, so that an
// interrupted push is repeated. Each image gets its tag after all that is attached to it, and everything is read back at the end.
func Push(ctx context.Context, set string, a Anchor, d Demands, p Pushing) (*Report, *Arrival, error) {
	d.Policies.Inside = p.Registry
	report, err := Check(ctx, set, a, d)
	if err != nil || !report.Complete {
		return report, nil, err
	}
	// The files are opened once more. What was exchanged meanwhile has another digest than the manifest that was verified
	// says, and every blob is compared with its digest on the way.
	s, err := open(ctx, set, a)
	if err != nil {
		return report, nil, err
	}
	defer s.Close()
	layout, err := attachment.ReadLayout(s.files)
	if err != nil {
		return report, nil, err
	}
	w := &pusher{Pushing: p, from: layout}
	var targets []target
	for _, image := range s.manifest.Images {
		t, err := w.target(ctx, image)
		if err != nil {
			return report, nil, fmt.Errorf("%s: %w", image.Name(), err)
		}
		targets = append(targets, *t)
	}
	for _, t := range targets { // before anything is sent
		if err := w.checkTag(ctx, t); err != nil {
			return report, nil, err
		}
	}
	arrival := &Arrival{}
	for _, t := range targets {
		if err := w.push(ctx, t); err != nil {
			return report, nil, fmt.Errorf("%s: %w", t.name(), err)
		}
		if p.Progress != nil {
			p.Progress("pushed %s (%s), %d attached", t.name(), t.image.Digest, len(t.image.Attached))
		}
	}
	for _, t := range targets {
		if err := w.readBack(ctx, t); err != nil {
			return report, nil, fmt.Errorf("%s, read back: %w", t.name(), err)
		}
		arrival.Images = append(arrival.Images, Arrived{Name: t.name(), Digest: t.image.Digest, Attached: len(t.image.Attached)})
	}
	return report, arrival, nil
}

type pusher struct {
	Pushing
	from *attachment.Layout
}

type target struct {
	image Image
	to    attachment.Repository
}

func (t target) name() string {
	return Image{Repository: t.to.Name(), Tag: t.image.Tag, Digest: t.image.Digest}.Name()
}

func (w *pusher) target(ctx context.Context, image Image) (*target, error) {
	inside, err := insideName(w.Registry, image.Repository)
	if err != nil {
		return nil, err
	}
	repo, err := w.Parse(inside)
	if err != nil {
		return nil, err
	}
	to, err := w.Open(ctx, repo)
	if err != nil {
		return nil, err
	}
	return &target{image, to}, nil
}

func (w *pusher) checkTag(ctx context.Context, t target) error {
	if t.image.Tag == "" || w.MoveTags {
		return nil
	}
	present, err := t.to.Manifest(ctx, t.image.Tag)
	if err != nil && !errors.Is(err, attachment.ErrNotFound) {
		return err
	}
	if present != nil && present.Digest != t.image.Digest {
		return fmt.Errorf("%s is %s there, and %s in the set: give --move-tags to move it", t.name(), present.Digest, t.image.Digest)
	}
	return nil
}

func (w *pusher) push(ctx context.Context, t target) error {
	done := map[string]bool{}
	if err := w.tree(ctx, t.to, t.image.Digest, done); err != nil {
		return err
	}
	// A referrer comes after its subject: some registries refuse one whose subject they do not have.
	waiting := slices.Clone(t.image.Attached)
	for len(waiting) > 0 {
		var later []Attached
		for _, a := range waiting {
			if !done[a.Subject] {
				later = append(later, a)
				continue
			}
			if err := w.attached(ctx, t.to, a, done); err != nil {
				return fmt.Errorf("%s: %w", a.Digest, err)
			}
		}
		if len(later) == len(waiting) {
			return fmt.Errorf("%s is attached to nothing in the set", later[0].Digest)
		}
		waiting = later
	}
	if t.image.Tag == "" {
		return nil
	}
	m, err := w.from.Manifest(ctx, t.image.Digest)
	if err != nil {
		return err
	}
	return t.to.Update(ctx, t.image.Tag, func(present *attachment.Manifest) (*attachment.Manifest, error) {
		switch {
		case present != nil && present.Digest == m.Digest:
			return nil, nil
		case present != nil && !w.MoveTags:
			return nil, fmt.Errorf("the tag became %s meanwhile", present.Digest)
		}
		return m, nil
	})
}

// tree sends blobs, then the manifests that refer to them.
func (w *pusher) tree(ctx context.Context, to attachment.Repository, digest string, done map[string]bool) error {
	if done[digest] {
		return nil
	}
	m, err := w.from.Manifest(ctx, digest)
	if err != nil {
		return err
	}
	manifests, blobs, err := parts(m)
	if err != nil {
		return err
	}
	for _, d := range manifests {
		if err := w.tree(ctx, to, d.Digest.String(), done); err != nil {
			return err
		}
	}
	if err := w.blobs(ctx, to, blobs); err != nil {
		return err
	}
	if err := to.PutManifest(ctx, m); err != nil {
		return err
	}
	done[digest] = true
	return nil
}

func (w *pusher) blobs(ctx context.Context, to attachment.Repository, blobs []v1.Descriptor) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelBlobs)
	for _, d := range blobs {
		group.Go(func() error {
			return to.PutBlob(ctx, d, func() (io.ReadCloser, error) { return w.from.Blob(ctx, d) })
		})
	}
	return group.Wait()
}

// attached sends what is attached. A legacy tag that holds other signatures already keeps them.
func (w *pusher) attached(ctx context.Context, to attachment.Repository, a Attached, done map[string]bool) error {
	if a.Tag == "" {
		return w.tree(ctx, to, a.Digest, done)
	}
	m, err := w.from.Manifest(ctx, a.Digest)
	if err != nil {
		return err
	}
	_, blobs, err := parts(m)
	if err != nil {
		return err
	}
	if err := w.blobs(ctx, to, blobs); err != nil {
		return err
	}
	done[a.Digest] = true
	present, err := to.Manifest(ctx, a.Tag)
	switch {
	case errors.Is(err, attachment.ErrNotFound):
		// As it is, so that what refers to this very manifest finds it.
		if err := to.PutManifest(ctx, m); err != nil {
			return err
		}
		taken := false
		err := to.Update(ctx, a.Tag, func(present *attachment.Manifest) (*attachment.Manifest, error) {
			if taken = present != nil && present.Digest != m.Digest; taken || present != nil {
				return nil, nil
			}
			return m, nil
		})
		if err != nil || !taken {
			return err
		}
	case err != nil:
		return err
	case present.Digest == a.Digest:
		return nil
	}
	if strings.HasSuffix(a.Tag, ".sbom") {
		return fmt.Errorf("the tag %s holds something else there", a.Tag)
	}
	image, err := m.Image()
	if err != nil {
		return err
	}
	if err := to.PutManifest(ctx, m); err != nil { // what refers to this very manifest finds it
		return err
	}
	return attachment.MergeLayers(ctx, to, a.Tag, image.Layers)
}

// readBack asks the registry for all that was sent.
func (w *pusher) readBack(ctx context.Context, t target) error {
	reference := t.image.Digest
	if t.image.Tag != "" {
		reference = t.image.Tag
	}
	m, err := t.to.Manifest(ctx, reference)
	if err != nil {
		return err
	}
	if m.Digest != t.image.Digest {
		return fmt.Errorf("the registry has %s under that name", m.Digest)
	}
	listed := map[string][]v1.Descriptor{} // by subject
	for _, a := range t.image.Attached {
		if a.Tag != "" {
			if err := w.holdsLayers(ctx, t.to, a); err != nil {
				return err
			}
			continue
		}
		if _, ok := listed[a.Subject]; !ok {
			if listed[a.Subject], err = t.to.Referrers(ctx, a.Subject); err != nil {
				return err
			}
		}
		if !slices.ContainsFunc(listed[a.Subject], func(d v1.Descriptor) bool { return d.Digest.String() == a.Digest }) {
			return fmt.Errorf("the registry does not list %s as a referrer of %s", a.Digest, a.Subject)
		}
		if _, err := t.to.Manifest(ctx, a.Digest); err != nil {
			return err
		}
	}
	return nil
}

func (w *pusher) holdsLayers(ctx context.Context, to attachment.Repository, a Attached) error {
	sent, err := w.from.Manifest(ctx, a.Digest)
	if err != nil {
		return err
	}
	there, err := to.Manifest(ctx, a.Tag)
	if err != nil {
		return err
	}
	want, err := sent.Image()
	if err != nil {
		return err
	}
	has, err := there.Image()
	if err != nil {
		return err
	}
	for _, d := range want.Layers {
		if !slices.ContainsFunc(has.Layers, func(e v1.Descriptor) bool { return e.Digest == d.Digest }) {
			return fmt.Errorf("the tag %s lacks layer %s", a.Tag, d.Digest)
		}
	}
	return nil
}
