package admission

import (
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/attestry/attestry/internal/fault"
)

// reference is an image's reference, read.
type reference struct {
	Written string // as it stands in the object
	Name    string // of the repository with its registry, as oci.Image has it
	Tag     string // "" beside a digest alone
	Digest  string // sha256:<64 hex>, "" for a tag
}

// parseReference reads NAME, NAME:TAG, NAME@DIGEST or NAME:TAG@DIGEST. Errors are fault.Denied.
func parseReference(written string) (reference, error) {
	refuse := func() (reference, error) {
		return reference{}, fault.New(fault.Denied, "reference_malformed", nil, "%q is not an image reference", written)
	}
	base, digest, pinned := strings.Cut(written, "@")
	if !pinned {
		tag, err := name.NewTag(written)
		if err != nil {
			return refuse()
		}
		return reference{Written: written, Name: tag.Context().Name(), Tag: tag.TagStr()}, nil
	}
	d, err := name.NewDigest(written)
	if err != nil || d.DigestStr() != digest || !strings.HasPrefix(digest, "sha256:") {
		return refuse()
	}
	r := reference{Written: written, Name: d.Context().Name(), Digest: digest}
	if last := base[strings.LastIndex(base, "/")+1:]; strings.Contains(last, ":") {
		tag, err := name.NewTag(base)
		if err != nil {
			return refuse()
		}
		r.Tag = tag.TagStr()
	}
	return r, nil
}

// pinned is a reference by tag with its digest: what was written stays legible, and a glob over the tag still fits.
func (r reference) pinned(digest string) string {
	written := r.Written
	if last := written[strings.LastIndex(written, "/")+1:]; !strings.Contains(last, ":") {
		written += ":" + r.Tag
	}
	return written + "@" + digest
}
