package admission

import (
	"context"
	"fmt"
	"strings"

	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// maxPreverified bounds the images of all carry sets: what a set may have, and as much again.
const maxPreverified = 20_000

// Preverified are images that the policies of a version accept by what lies in carry sets. They need no registry: one that is down
// does not stop them from being scheduled.
type Preverified struct {
	version string
	images  map[string]bool // NAME@DIGEST
	refused map[string]string
}

// CarrySet is a carry set of `attestry carry pack`, or any OCI layout with images and what is attached to them.
type CarrySet struct {
	Layout Layout
	// Registry is where its images were pushed: outside.example/team/app is REGISTRY/team/app then, as `attestry carry push` has it. Empty
	// for images that keep their names.
	Registry string
}

// Layout is what is read of a set; *oci.Layout is one.
type Layout interface {
	oci.Source
	Images(ctx context.Context) ([]oci.Image, error)
}

// Preverify asks the policies about each image of the sets, under the name that it has inside. Nothing else is believed of a set: its
// signatures have to be what the policies in force demand, by the trust in force. Policies that look at an object cannot say beforehand:
// then no image is pre-verified.
func Preverify(ctx context.Context, d Decider, sets []CarrySet) (*Preverified, error) {
	p := &Preverified{version: d.Version(), images: map[string]bool{}, refused: map[string]string{}}
	if r, ok := d.(Reader); !ok {
		return p, nil
	} else if labels, object := r.Reads(); labels || object {
		return p, nil
	}
	for _, set := range sets {
		images, err := set.Layout.Images(ctx)
		if err != nil {
			return nil, fmt.Errorf("carry set: %w", err)
		}
		if len(images) > maxPreverified-len(p.images)-len(p.refused) {
			return nil, fmt.Errorf("carry sets: more than %d images", maxPreverified)
		}
		for _, image := range images {
			image, ok := inside(image, set.Registry)
			if !ok {
				continue // nobody can ask for what has no name
			}
			v := d.Decide(ctx, &policy.Subject{Image: image}, set.Layout)
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			f := explain(&v, true)
			switch passed := v.Allowed && f.text == ""; {
			case passed:
				p.images[image.Name+"@"+image.Digest] = true
			default:
				p.refused[image.Name+"@"+image.Digest] = f.text
			}
		}
	}
	return p, nil
}

// inside returns an image of a set under the name by which pods ask for it. ok is false where there is none.
func inside(image oci.Image, registry string) (oci.Image, bool) {
	written := image.Name
	if registry != "" {
		_, path, found := strings.Cut(written, "/")
		if !found {
			return oci.Image{}, false
		}
		written = strings.TrimSuffix(registry, "/") + "/" + path
	}
	ref, err := parseReference(written + "@" + image.Digest)
	if err != nil {
		return oci.Image{}, false
	}
	image.Name, image.Reference = ref.Name, ref.Written
	return image, true
}

// Images counts those that pass, and returns why others do not, by NAME@DIGEST.
func (p *Preverified) Images() (passed int, refused map[string]string) {
	return len(p.images), p.refused
}

// has tells whether an image of a repository passes policies of a version. The nil list has none.
func (p *Preverified) has(name, digest, version string) bool {
	return p != nil && p.version == version && p.images[name+"@"+digest]
}
