package oci

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the digests of images
	_ "crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

// Media types of OCI Image 1.1 and of Docker's registry, schema 2.
const (
	typeManifest       = "application/vnd.oci.image.manifest.v1+json"
	typeIndex          = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"

	typeBundle    = "application/vnd.dev.sigstore.bundle.v0.3+json"
	typeBundleOld = "application/vnd.dev.sigstore.bundle+json;version=0.3"
	typeEmpty     = "application/vnd.oci.empty.v1+json"
)

// Media types of the layers under .sig and .att tags (cosign, SIGNATURE_SPEC.md).
const (
	TypeSimpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	TypeEnvelope      = "application/vnd.dsse.envelope.v1+json"
)

const (
	maxManifest = 4 << 20
	maxConfig   = 4 << 20
	maxChildren = 256
	maxNesting  = 3 // of indexes in indexes
)

// descriptor points at content (OCI Image, descriptor.md).
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
	Platform     *platform         `json:"platform"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
}

func (p platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// manifest is an image manifest or an index, read from raw.
type manifest struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       *descriptor       `json:"config"`
	Layers       []descriptor      `json:"layers"`
	Manifests    []descriptor      `json:"manifests"`
	Subject      *descriptor       `json:"subject"`
	Annotations  map[string]string `json:"annotations"`

	digest string
	raw    []byte
}

func (m *manifest) isIndex() bool { return m.MediaType == typeIndex || m.MediaType == typeDockerList }

// parseManifest reads an image manifest or an index. contentType is what the registry said of it, or empty. A member that is
// there twice, or spelled in another case, is refused: whoever runs the image could read the other one.
func parseManifest(raw []byte, digest, contentType string) (*manifest, error) {
	m := &manifest{digest: digest, raw: raw}
	if err := decodeManifest(raw, m); err != nil {
		return nil, malformed(err, "manifest %s", digest)
	}
	if m.MediaType == "" { // optional in OCI
		m.MediaType, _, _ = mime.ParseMediaType(contentType)
	}
	if m.MediaType == "" || m.MediaType == "application/octet-stream" || m.MediaType == "text/plain" {
		m.MediaType = typeManifest
		if m.Manifests != nil {
			m.MediaType = typeIndex
		}
	}
	switch m.MediaType {
	case typeManifest, typeDockerManifest:
		if m.Config == nil || m.Manifests != nil {
			return nil, malformed(nil, "manifest %s is not an image manifest, as its media type says", digest)
		}
	case typeIndex, typeDockerList:
		if m.Config != nil || m.Layers != nil {
			return nil, malformed(nil, "manifest %s is not an index, as its media type says", digest)
		}
	default:
		return nil, fault.New(fault.Invalid, string(verify.ReasonFormatUnsupported), nil, "manifest %s is of type %q, which is not known", digest, m.MediaType)
	}
	return m, nil
}

// manifestNames are the members that must be spelled as specified where they may stand.
var manifestNames = map[string]string{
	"mediatype": "mediaType", "artifacttype": "artifactType", "config": "config", "layers": "layers", "manifests": "manifests",
	"subject": "subject", "annotations": "annotations", "digest": "digest", "size": "size", "platform": "platform",
}

func decodeManifest(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return err
	}
	return verify.UniqueKeys(raw, func(depth int, member, name string) error {
		switch {
		case depth == 1, depth == 2 && (member == "config" || member == "subject"), depth == 3 && (member == "layers" || member == "manifests"):
			if known := manifestNames[strings.ToLower(name)]; known != "" && known != name {
				return fmt.Errorf("member %q is almost %q", name, known)
			}
		}
		return nil
	})
}

// children returns the images of an index. What can never run, an entry for the platform unknown/unknown such as BuildKit's
// attestations, is none.
func (m *manifest) children() ([]descriptor, error) {
	if len(m.Manifests) > maxChildren {
		return nil, tooLarge("index %s has %d entries, at most %d are allowed", m.digest, len(m.Manifests), maxChildren)
	}
	var out []descriptor
	for _, d := range m.Manifests {
		if p := d.Platform; p != nil && p.OS == "unknown" && p.Architecture == "unknown" {
			continue
		}
		switch d.MediaType {
		case typeManifest, typeDockerManifest, typeIndex, typeDockerList:
			out = append(out, d)
		}
	}
	return out, nil
}

// checkDigest requires that data is what digest names, and no other spelling of the name.
func checkDigest(data []byte, digest string) error {
	hash, sum, err := parseDigest(digest)
	if err != nil {
		return err
	}
	h := hash.New()
	h.Write(data)
	if got := h.Sum(nil); !bytes.Equal(got, sum) {
		return malformed(nil, "content named %s has the digest %x", digest, got)
	}
	return nil
}

// parseDigest reads sha256:<64 hex> or sha512:<128 hex>, lower case.
func parseDigest(s string) (crypto.Hash, []byte, error) {
	alg, value, _ := strings.Cut(s, ":")
	hash := map[string]crypto.Hash{"sha256": crypto.SHA256, "sha512": crypto.SHA512}[alg]
	sum, err := hex.DecodeString(value)
	if err != nil || hash == 0 || len(sum) != hash.Size() || value != strings.ToLower(value) {
		return 0, nil, malformed(nil, "digest %.160q is not sha256 or sha512 in lower-case hex", s)
	}
	return hash, sum, nil
}

func digestOf(data []byte) string {
	h := crypto.SHA256.New()
	h.Write(data)
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// platformOf names the platform of an image configuration.
func platformOf(config []byte) (string, error) {
	var p platform
	if err := json.Unmarshal(config, &p); err != nil {
		return "", malformed(err, "image configuration")
	}
	if p.OS == "" || p.Architecture == "" {
		return "", malformed(errors.New("no os or architecture"), "image configuration")
	}
	return p.String(), nil
}

func malformed(cause error, format string, args ...any) error {
	return fault.New(fault.Invalid, string(verify.ReasonImageMalformed), cause, format, args...)
}

func tooLarge(format string, args ...any) error {
	return fault.New(fault.TooLarge, string(verify.ReasonTooLarge), nil, format, args...)
}

func unknown(format string, args ...any) error {
	return fault.New(fault.NotFound, string(verify.ReasonImageUnknown), nil, format, args...)
}

// isUnknown tells that something is not there from that it could not be read.
func isUnknown(err error) bool { return verify.ReasonOf(err) == verify.ReasonImageUnknown }
