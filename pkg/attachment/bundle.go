package attachment

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// BundleType is the media type of a v0.3 bundle, its layer and its artifact type.
	BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

	emptyType     = "application/vnd.oci.empty.v1+json"
	createdKey    = "org.opencontainers.image.created"
	contentKey    = "dev.sigstore.bundle.content"
	bundlePredKey = "dev.sigstore.bundle.predicateType"
)

// AttachBundle attaches a v0.3 bundle with a DSSE envelope to the image as a referrer, in the very shape that cosign 3
// writes (its config descriptor carries the artifact type too, and the empty config has the type of an image's when it is
// uploaded). It returns the referrer's digest.
func AttachBundle(ctx context.Context, r Repository, image *Manifest, bundle []byte, now time.Time) (string, error) {
	b, err := parseBundle(bundle)
	if err != nil {
		return "", err
	}
	if b.GetMediaType() != BundleType {
		return "", fmt.Errorf("the bundle is %q; verifiers read %q as a referrer and nothing else", b.GetMediaType(), BundleType)
	}
	if b.GetDsseEnvelope() == nil {
		return "", fmt.Errorf("the bundle has no DSSE envelope")
	}
	var statement struct {
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(b.GetDsseEnvelope().GetPayload(), &statement); err != nil {
		return "", fmt.Errorf("statement: %w", err)
	}
	config, err := putBytes(ctx, r, types.OCIConfigJSON, []byte("{}"))
	if err != nil {
		return "", err
	}
	config.MediaType, config.ArtifactType = emptyType, BundleType
	layer, err := putBytes(ctx, r, BundleType, bundle)
	if err != nil {
		return "", err
	}
	subject := image.Descriptor()
	m, err := NewManifest(&v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: BundleType,
		Config: config, Layers: []v1.Descriptor{layer}, Subject: &subject,
		Annotations: map[string]string{
			createdKey: now.UTC().Format(time.RFC3339), contentKey: "dsse-envelope", bundlePredKey: statement.PredicateType,
		},
	}, types.OCIManifestSchema1)
	if err != nil {
		return "", err
	}
	return m.Digest, r.PutManifest(ctx, m)
}
