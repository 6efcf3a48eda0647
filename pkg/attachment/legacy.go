package attachment

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Layer is one signature or attestation of a legacy tag.
type Layer struct {
	MediaType   types.MediaType
	Blob        []byte
	Annotations map[string]string
}

// suffix is that of the tag where the layer belongs.
func (l *Layer) suffix() string {
	if l.MediaType == oci.TypeEnvelope {
		return ".att"
	}
	return ".sig"
}

// NotExpressible is the error, with the reason not-expressible, for an attachment that has no equivalent in the other form.
func NotExpressible(format string, args ...any) error {
	return fault.New(fault.Unprocessable, "not-expressible", nil, "cannot be expressed in that form: "+format, args...)
}

// promisedEntry takes the log entry of a bundle that the legacy form can carry: one of Rekor v1.
func promisedEntry(entries []*protorekor.TransparencyLogEntry) (*oci.RekorBundle, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	for _, e := range entries {
		if set := e.GetInclusionPromise().GetSignedEntryTimestamp(); len(set) > 0 {
			c := &oci.RekorBundle{SignedEntryTimestamp: set}
			c.Payload.Body, c.Payload.IntegratedTime = e.GetCanonicalizedBody(), e.GetIntegratedTime()
			c.Payload.LogIndex, c.Payload.LogID = e.GetLogIndex(), hex.EncodeToString(e.GetLogId().GetKeyId())
			return c, nil
		}
	}
	return nil, NotExpressible("the log entry is of Rekor v2, which makes no signed entry timestamp, and a legacy attachment holds no other proof; sign again with --form legacy, which uses a Rekor v1 log")
}

// material returns the annotations that do not depend on what was signed. trustedRoot names the chain that the certificate's
// issuer has: verifiers such as podman know the root alone.
func material(b *protobundle.Bundle, trustedRoot []byte) (map[string]string, error) {
	vm := b.GetVerificationMaterial()
	annotations := map[string]string{}
	if der := leafOf(b); der != nil {
		chain, err := issuers(der, trustedRoot)
		if err != nil {
			return nil, err
		}
		annotations[oci.AnnotationCertificate], annotations[oci.AnnotationChain] = pemOf(der), pemOf(chain...)
	}
	entry, err := promisedEntry(vm.GetTlogEntries())
	if err != nil {
		return nil, err
	}
	if entry != nil {
		raw, err := json.Marshal(entry)
		if err != nil {
			return nil, fmt.Errorf("encoding the log entry: %w", err)
		}
		annotations[oci.AnnotationBundle] = string(raw)
	}
	return annotations, nil
}

func leafOf(b *protobundle.Bundle) []byte {
	vm := b.GetVerificationMaterial()
	if c := vm.GetCertificate(); c != nil {
		return c.GetRawBytes()
	}
	if chain := vm.GetX509CertificateChain().GetCertificates(); len(chain) > 0 {
		return chain[0].GetRawBytes()
	}
	return nil
}

func pemOf(ders ...[]byte) string {
	var out strings.Builder
	for _, der := range ders {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return out.String()
}

// issuers returns the chain (DER, root last) of the authority in the trusted root that issued the certificate.
func issuers(leaf, trustedRoot []byte) ([][]byte, error) {
	cert, err := x509.ParseCertificate(leaf)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	trusted, err := root.NewTrustedRootFromJSON(trustedRoot)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	for _, ca := range trusted.FulcioCertificateAuthorities() {
		authority, ok := ca.(*root.FulcioCertificateAuthority)
		if !ok {
			continue
		}
		var chain [][]byte
		for _, c := range append(slices.Clone(authority.Intermediates), authority.Root) {
			chain = append(chain, c.Raw)
		}
		first, err := x509.ParseCertificate(chain[0])
		if err == nil && cert.CheckSignatureFrom(first) == nil {
			return chain, nil
		}
	}
	return nil, errors.New("no certificate authority of the trusted root issued the signing certificate")
}

func timestampAnnotation(token []byte) (string, error) {
	raw, err := json.Marshal(struct{ SignedRFC3161Timestamp []byte }{token})
	return string(raw), err
}

// SignatureLayer makes the layer of a .sig tag of a bundle that signs a simple signing document.
func SignatureLayer(bundle, document, trustedRoot []byte) (*Layer, error) {
	b, err := parseBundle(bundle)
	if err != nil {
		return nil, err
	}
	message := b.GetMessageSignature()
	if sum := sha256.Sum256(document); message == nil || !bytes.Equal(message.GetMessageDigest().GetDigest(), sum[:]) {
		return nil, errors.New("the bundle does not sign the SHA-256 of the simple signing document")
	}
	annotations, err := material(b, trustedRoot)
	if err != nil {
		return nil, err
	}
	annotations[oci.AnnotationSignature] = base64.StdEncoding.EncodeToString(message.GetSignature())
	if stamps := b.GetVerificationMaterial().GetTimestampVerificationData().GetRfc3161Timestamps(); len(stamps) > 0 {
		if annotations[oci.AnnotationTimestamp], err = timestampAnnotation(stamps[0].GetSignedTimestamp()); err != nil {
			return nil, fmt.Errorf("encoding the timestamp: %w", err)
		}
	}
	return &Layer{MediaType: oci.TypeSimpleSigning, Blob: document, Annotations: annotations}, nil
}

// EnvelopeLayer makes the layer of an .att tag of a bundle with a DSSE envelope. The layer is the text of the envelope that
// was logged: cosign 2 compares its digest with that of the log entry. A timestamp over the signature is left out, since
// cosign 2 expects one over the whole layer, which Stamp adds.
func EnvelopeLayer(bundle, trustedRoot []byte) (*Layer, error) {
	b, err := parseBundle(bundle)
	if err != nil {
		return nil, err
	}
	envelope := b.GetDsseEnvelope()
	if envelope == nil {
		return nil, NotExpressible("the bundle has no DSSE envelope")
	}
	var statement struct {
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(envelope.GetPayload(), &statement); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	annotations, err := material(b, trustedRoot)
	if err != nil {
		return nil, err
	}
	text, err := loggedText(envelope, b.GetVerificationMaterial().GetTlogEntries())
	if err != nil {
		return nil, err
	}
	annotations[oci.AnnotationSignature], annotations[oci.AnnotationPredicate] = "", statement.PredicateType
	return &Layer{MediaType: oci.TypeEnvelope, Blob: text, Annotations: annotations}, nil
}

// Stamp adds a timestamp (DER TimeStampResp) over the layer to an attestation.
func (l *Layer) Stamp(token []byte) error {
	annotation, err := timestampAnnotation(token)
	if err != nil {
		return fmt.Errorf("encoding the timestamp: %w", err)
	}
	l.Annotations[oci.AnnotationTimestamp] = annotation
	return nil
}

// loggedText returns the spelling of an envelope whose SHA-256 the log entry names. Without an entry it is cosign's.
func loggedText(envelope *protodsse.Envelope, entries []*protorekor.TransparencyLogEntry) ([]byte, error) {
	spellings := spellingsOf(envelope)
	for _, e := range entries {
		var body struct {
			Spec struct {
				EnvelopeHash struct {
					Value string `json:"value"`
				} `json:"envelopeHash"` // dsse 0.0.1
				Content struct {
					Hash struct {
						Value string `json:"value"`
					} `json:"hash"`
				} `json:"content"` // intoto 0.0.2
			} `json:"spec"`
		}
		if len(e.GetInclusionPromise().GetSignedEntryTimestamp()) == 0 {
			continue
		}
		if err := json.Unmarshal(e.GetCanonicalizedBody(), &body); err != nil {
			return nil, fmt.Errorf("log entry: %w", err)
		}
		want := body.Spec.EnvelopeHash.Value + body.Spec.Content.Hash.Value
		for _, text := range spellings {
			if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) == want {
				return text, nil
			}
		}
		return nil, NotExpressible("the log keeps a digest of the envelope as its signer spelled it, and that spelling is not known; sign again with --form legacy")
	}
	return spellings[0], nil
}

// spellingsOf lists how clients write an envelope before they log it: sigstore-go and cosign 3, cosign 2, sigstore-js.
func spellingsOf(e *protodsse.Envelope) [][]byte {
	payload := `"payload":"` + base64.StdEncoding.EncodeToString(e.GetPayload()) + `"`
	kind := `"payloadType":"` + e.GetPayloadType() + `"`
	var all [][]byte
	for _, head := range []string{payload + "," + kind, kind + "," + payload} {
		for _, format := range []string{`{"sig":"%s"}`, `{"keyid":"","sig":"%s"}`, `{"sig":"%s","keyid":""}`} {
			sig := fmt.Sprintf(format, base64.StdEncoding.EncodeToString(e.GetSignatures()[0].GetSig()))
			all = append(all, []byte(`{`+head+`,"signatures":[`+sig+`]}`))
		}
	}
	return all
}

func parseBundle(data []byte) (*protobundle.Bundle, error) {
	if len(data) > MaxLayer {
		return nil, fmt.Errorf("the bundle has over %d bytes", MaxLayer)
	}
	b := &protobundle.Bundle{}
	if err := protojson.Unmarshal(data, b); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if e := b.GetDsseEnvelope(); e != nil && len(e.GetSignatures()) != 1 {
		return nil, fmt.Errorf("bundle: its envelope has %d signatures, not one", len(e.GetSignatures()))
	}
	return b, nil
}

// AttachLayers adds layers to the legacy tags of the image, whose names begin with prefix. One that is there already, with the
// same annotations, is not added again.
func AttachLayers(ctx context.Context, r Repository, prefix, digest string, layers ...*Layer) error {
	for _, suffix := range []string{".sig", ".att"} {
		var descriptors []v1.Descriptor
		for _, l := range layers {
			if l.suffix() != suffix {
				continue
			}
			d, err := putBytes(ctx, r, l.MediaType, l.Blob)
			if err != nil {
				return err
			}
			d.Annotations = l.Annotations
			descriptors = append(descriptors, d)
		}
		if len(descriptors) == 0 {
			continue
		}
		if err := MergeLayers(ctx, r, prefix+tagOf(digest, suffix), descriptors); err != nil {
			return err
		}
	}
	return nil
}

// MergeLayers adds layers, whose blobs are there, to the manifest of a legacy tag.
func MergeLayers(ctx context.Context, r Repository, tag string, layers []v1.Descriptor) error {
	return r.Update(ctx, tag, func(present *Manifest) (*Manifest, error) {
		next := &v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
		if present != nil {
			image, err := present.Image()
			if err != nil {
				return nil, err
			}
			next.Layers, next.Annotations = image.Layers, image.Annotations
		}
		missing := slices.DeleteFunc(slices.Clone(layers), func(d v1.Descriptor) bool {
			return slices.ContainsFunc(next.Layers, func(e v1.Descriptor) bool { return sameLayer(d, e) })
		})
		if len(missing) == 0 {
			return nil, nil
		}
		next.Layers = append(next.Layers, missing...)
		if len(next.Layers) > MaxLayers {
			return nil, fmt.Errorf("the tag would hold %d signatures; verifiers read at most %d", len(next.Layers), MaxLayers)
		}
		config, err := signaturesConfig(next.Layers)
		if err != nil {
			return nil, err
		}
		if next.Config, err = putBytes(ctx, r, types.OCIConfigJSON, config); err != nil {
			return nil, err
		}
		return NewManifest(next, types.OCIManifestSchema1)
	})
}

// sameLayer tells whether two layers are one signature.
func sameLayer(a, b v1.Descriptor) bool {
	return a.Digest == b.Digest && a.MediaType == b.MediaType && maps.Equal(a.Annotations, b.Annotations)
}

// signaturesConfig is the image configuration that cosign writes: nothing but the list of layers.
func signaturesConfig(layers []v1.Descriptor) ([]byte, error) {
	config := &v1.ConfigFile{RootFS: v1.RootFS{Type: "layers"}}
	for _, d := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest) // they are not compressed
		config.History = append(config.History, v1.History{})
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encoding the configuration: %w", err)
	}
	return raw, nil
}
