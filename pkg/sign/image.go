package sign

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/attestry/attestry/pkg/verify"
)

// ImagePredicateType is that of the statement by which cosign 3 signs an image.
const ImagePredicateType = "https://sigstore.dev/cosign/sign/v1"

// maxAnnotations bounds what a signer may say beside the digest.
const maxAnnotations = 64

// ImageStatement returns the in-toto statement that signs the image of this digest ("sha256:<64 hex>"), as cosign 3 makes it:
// no name, an empty predicate, the annotations with the subject.
func ImageStatement(digest string, annotations map[string]string) ([]byte, error) {
	algorithm, value, ok := strings.Cut(digest, ":")
	if _, known := verify.ParseDigest(digest); !ok || !known {
		return nil, fmt.Errorf("%q is not a digest", digest)
	}
	subject := verify.Subject{Digest: map[string]string{algorithm: value}}
	if len(annotations) > maxAnnotations {
		return nil, fmt.Errorf("%d annotations, at most %d are allowed", len(annotations), maxAnnotations)
	}
	if len(annotations) > 0 {
		var err error
		if subject.Annotations, err = json.Marshal(annotations); err != nil {
			return nil, fmt.Errorf("encoding the annotations: %w", err)
		}
	}
	statement, err := json.Marshal(verify.Statement{
		Type: "https://in-toto.io/Statement/v1", Subject: []verify.Subject{subject},
		PredicateType: ImagePredicateType, Predicate: json.RawMessage("{}"),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the statement: %w", err)
	}
	return statement, nil
}

// simpleSigningType is the value of critical.type in what cosign 2 signs.
const simpleSigningType = "cosign container image signature"

type simpleSigning struct {
	Critical struct {
		Identity struct {
			DockerReference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			DockerManifestDigest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]string `json:"optional"`
}

// SimpleSigning returns the document by which cosign 2, podman and CRI-O sign an image: repository is its name without tag or
// digest ("registry.example/team/app"), or what the signer claims in its place.
func SimpleSigning(repository, digest string, annotations map[string]string) ([]byte, error) {
	if _, ok := verify.ParseDigest(digest); !ok {
		return nil, fmt.Errorf("%q is not a digest", digest)
	}
	if repository == "" {
		return nil, errors.New("a legacy signature names the image's repository, and it has none here")
	}
	if len(annotations) > maxAnnotations {
		return nil, fmt.Errorf("%d annotations, at most %d are allowed", len(annotations), maxAnnotations)
	}
	var doc simpleSigning
	doc.Critical.Identity.DockerReference = repository
	doc.Critical.Image.DockerManifestDigest = digest
	doc.Critical.Type = simpleSigningType
	doc.Optional = annotations
	payload, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encoding the simple signing document: %w", err)
	}
	return payload, nil
}
