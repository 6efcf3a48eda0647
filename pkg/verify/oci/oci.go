// Package oci finds images and what is attached to them, signatures and attestations of every form, in a registry, an
// image layout, an archive or a saved directory, and verifies it.
package oci

import "context"

// Form is how a signature is attached.
type Form string

// The forms of attachments.
const (
	FormBundle        Form = "bundle"         // a Sigstore bundle, attached as a referrer
	FormSimpleSigning Form = "simple-signing" // a layer under the tag <alg>-<hex>.sig
	FormEnvelope      Form = "dsse"           // a layer under the tag <alg>-<hex>.att
)

// Attachment is one signature or attestation, not verified.
type Attachment struct {
	Form Form
	// Bundle is a Sigstore bundle as JSON. For the other forms it is the v0.1 bundle that their layer and its
	// annotations amount to.
	Bundle []byte
	// Payload is the layer itself in the other forms: the simple signing document that was signed, or the envelope.
	Payload []byte
	// PredicateType is what the annotations claim; empty for simple signing. A hint to filter with, never to decide by.
	PredicateType string
	// Location says where it was found, for messages: "registry.example/app@sha256:… layer 2".
	Location string
}

// Image is one image or index.
type Image struct {
	Reference string // as it was asked for
	Name      string // the repository with its registry, "registry.example/team/app"; for an image on disk its name there, if any
	Digest    string // of the manifest, "sha256:<64 hex>"
	MediaType string
}

// Source is where images are.
type Source interface {
	// Resolve returns the image of a reference: NAME:TAG, NAME@DIGEST or NAME:TAG@DIGEST.
	Resolve(ctx context.Context, reference string) (Image, error)
	// Children returns the images of an index, none for an image.
	Children(ctx context.Context, image Image) ([]Image, error)
	// Attachments returns all that is attached to exactly this digest, of every form. What could not be read is
	// in err beside what could.
	Attachments(ctx context.Context, image Image) (found []Attachment, err error)
	// Configs returns the configuration of the image, or of each image of an index, by platform ("linux/amd64").
	Configs(ctx context.Context, image Image) (map[string][]byte, error)
}

// Hinted is a source that can leave out what says of itself that it is of another type. Annotations are nobody's word: where nothing of
// that passes, the whole has to be asked.
type Hinted interface {
	Claiming(predicateType string) Source
}

// Keyed is a source that can read with other credentials than its own.
type Keyed interface {
	// With returns the source that reads with the pull secrets of these names before its own credentials, in their order.
	With(ctx context.Context, pullSecrets []string) (Source, error)
}

// Elsewhere is a source that can look for signatures in another place than beside the image.
type Elsewhere interface {
	// At returns the source that reads attachments from repository ("registry.example/signatures"; empty is the image's
	// own), legacy ones under tags that begin with tagPrefix.
	At(repository, tagPrefix string) (Source, error)
}
