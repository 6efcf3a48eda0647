package attachment

import (
	"context"
	"fmt"
	"time"

	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify"
)

// Form is a form of attachment, see the package's comment.
type Form string

// The forms.
const (
	FormBundle Form = "bundle"
	FormLegacy Form = "legacy"
)

// Target is an image that is signed.
type Target struct {
	Image *Manifest
	// Name is the repository that the signature names, "registry.example/team/app"; a bundle of a signature names none.
	Name   string
	Beside Repository // takes the signatures, as a rule the image's own repository
	Prefix string     // of legacy tags
}

// Attached says what was attached.
type Attached struct {
	Form   Form
	Result *verify.Result // what verifying it proved, before it was attached
}

// Sign signs the image with annotations and attaches the signature in a form.
func (t *Target) Sign(ctx context.Context, o sign.Options, form Form, annotations map[string]string) (*Attached, error) {
	if form == FormBundle {
		statement, err := sign.ImageStatement(t.Image.Digest, annotations)
		if err != nil {
			return nil, err
		}
		return t.bundle(ctx, o, statement)
	}
	document, err := sign.SimpleSigning(t.Name, t.Image.Digest, annotations)
	if err != nil {
		return nil, err
	}
	o.Legacy = true
	signed, err := sign.Blob(ctx, o, document)
	if err != nil {
		return nil, err
	}
	layer, err := SignatureLayer(signed.Bundle, document, o.TrustedRoot)
	if err != nil {
		return nil, err
	}
	return &Attached{form, signed.Result}, AttachLayers(ctx, t.Beside, t.Prefix, t.Image.Digest, layer)
}

// Attest signs a statement about the image and attaches it in a form.
func (t *Target) Attest(ctx context.Context, o sign.Options, form Form, statement []byte) (*Attached, error) {
	if len(statement) > MaxLayer/2 { // base64 makes it longer by a third
		return nil, fmt.Errorf("the statement has %d bytes, verifiers read at most %d", len(statement), MaxLayer/2)
	}
	if form == FormBundle {
		return t.bundle(ctx, o, statement)
	}
	o.Legacy, o.NoTimestamps = true, true
	signed, err := sign.Statement(ctx, o, statement)
	if err != nil {
		return nil, err
	}
	layer, err := EnvelopeLayer(signed.Bundle, o.TrustedRoot)
	if err != nil {
		return nil, err
	}
	// As cosign 2 does: over the whole layer.
	stamps, err := sign.Timestamps(ctx, o, layer.Blob)
	if err != nil {
		return nil, err
	}
	if len(stamps) > 0 {
		if err := layer.Stamp(stamps[0]); err != nil {
			return nil, err
		}
	}
	return &Attached{form, signed.Result}, AttachLayers(ctx, t.Beside, t.Prefix, t.Image.Digest, layer)
}

func (t *Target) bundle(ctx context.Context, o sign.Options, statement []byte) (*Attached, error) {
	signed, err := sign.Statement(ctx, o, statement)
	if err != nil {
		return nil, err
	}
	_, err = AttachBundle(ctx, t.Beside, t.Image, signed.Bundle, time.Now())
	return &Attached{FormBundle, signed.Result}, err
}
