package oci

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

// Annotations of a layer under .sig and .att tags (cosign, SIGNATURE_SPEC.md).
const (
	AnnotationSignature   = "dev.cosignproject.cosign/signature"   // base64; empty where the envelope has it
	AnnotationCertificate = "dev.sigstore.cosign/certificate"      // PEM
	AnnotationChain       = "dev.sigstore.cosign/chain"            // PEM
	AnnotationBundle      = "dev.sigstore.cosign/bundle"           // RekorBundle as JSON
	AnnotationTimestamp   = "dev.sigstore.cosign/rfc3161timestamp" // {"SignedRFC3161Timestamp": base64}
	AnnotationPredicate   = "predicateType"                        // of an envelope

	bundleV01      = "application/vnd.dev.sigstore.bundle+json;version=0.1"
	maxLegacyChain = 8
)

// RekorBundle is what cosign before 3 keeps of a log entry, in the annotation and in the file of a blob: the promise, never a proof.
type RekorBundle struct {
	SignedEntryTimestamp []byte
	Payload              struct {
		Body           []byte `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogIndex       int64  `json:"logIndex"`
		LogID          string `json:"logID"` // hex
	}
}

// legacySignature holds the parts of a signature of cosign before 3.
type legacySignature struct {
	signature   []byte
	certificate []byte // PEM; none for a key
	chain       []byte // PEM
	entry       *RekorBundle
	timestamp   []byte // DER TimeStampResp
}

// FromLayer turns a layer of a .sig or .att tag, as form says, and its annotations into an attachment with the v0.1 bundle that they
// amount to.
func FromLayer(form Form, payload []byte, annotations map[string]string) (*Attachment, error) {
	a := &Attachment{Form: form, Payload: payload}
	s := legacySignature{certificate: []byte(annotations[AnnotationCertificate]), chain: []byte(annotations[AnnotationChain])}
	if v := annotations[AnnotationBundle]; v != "" {
		s.entry = &RekorBundle{}
		if err := json.Unmarshal([]byte(v), s.entry); err != nil {
			return nil, bundleMalformed(err, "annotation %s", AnnotationBundle)
		}
	}
	if v := annotations[AnnotationTimestamp]; v != "" {
		var t struct{ SignedRFC3161Timestamp []byte }
		if err := json.Unmarshal([]byte(v), &t); err != nil {
			return nil, bundleMalformed(err, "annotation %s", AnnotationTimestamp)
		}
		s.timestamp = t.SignedRFC3161Timestamp
	}
	pb, err := s.material()
	if err != nil {
		return nil, err
	}
	switch form {
	case FormSimpleSigning:
		if s.signature, err = base64.StdEncoding.DecodeString(annotations[AnnotationSignature]); err != nil {
			return nil, bundleMalformed(err, "annotation %s", AnnotationSignature)
		}
		pb.Content = s.message(payload)
	case FormEnvelope:
		a.PredicateType = annotations[AnnotationPredicate]
		envelope := &protodsse.Envelope{}
		// protojson refuses a member that is there twice or spelled in another case. Members that it does not know are
		// left alone: they are signed by nobody and read by nobody.
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(payload, envelope); err != nil {
			return nil, bundleMalformed(err, "DSSE envelope")
		}
		pb.Content = &protobundle.Bundle_DsseEnvelope{DsseEnvelope: envelope}
	}
	if a.Bundle, err = protojson.Marshal(pb); err != nil {
		return nil, bundleMalformed(err, "bundle of the layer")
	}
	return a, nil
}

func (s *legacySignature) message(signed []byte) *protobundle.Bundle_MessageSignature {
	digest := sha256.Sum256(signed)
	return &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
		MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: digest[:]},
		Signature:     s.signature,
	}}
}

// material makes a v0.1 bundle without content.
func (s *legacySignature) material() (*protobundle.Bundle, error) {
	vm := &protobundle.VerificationMaterial{}
	if len(bytes.TrimSpace(s.certificate)) == 0 {
		vm.Content = &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}}
	} else {
		chain, err := readChain(s.certificate, s.chain)
		if err != nil {
			return nil, err
		}
		vm.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: &protocommon.X509CertificateChain{Certificates: chain}}
	}
	if s.entry != nil {
		entry, err := s.entry.proto()
		if err != nil {
			return nil, err
		}
		vm.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	if len(s.timestamp) > 0 {
		vm.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: s.timestamp}},
		}
	}
	return &protobundle.Bundle{MediaType: bundleV01, VerificationMaterial: vm}, nil
}

// readChain returns the certificate and what of its chain a bundle may carry: no root.
func readChain(certificate, chain []byte) ([]*protocommon.X509Certificate, error) {
	var out []*protocommon.X509Certificate
	for i, rest := range [][]byte{certificate, chain} {
		for n := 0; ; n++ {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if n == maxLegacyChain {
				return nil, tooLarge("certificate chain of more than %d certificates", maxLegacyChain)
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, bundleMalformed(err, "certificate")
			}
			if i == 0 && n > 0 {
				return nil, bundleMalformed(nil, "more than one signing certificate")
			}
			if i == 1 && bytes.Equal(c.RawSubject, c.RawIssuer) {
				continue
			}
			out = append(out, &protocommon.X509Certificate{RawBytes: block.Bytes})
		}
		if i == 0 && len(out) == 0 {
			return nil, bundleMalformed(nil, "the signing certificate is not PEM")
		}
	}
	return out, nil
}

// proto is the entry as bundles spell it. Its kind is that of its body.
func (r *RekorBundle) proto() (*protorekor.TransparencyLogEntry, error) {
	logID, err := hex.DecodeString(r.Payload.LogID)
	if err != nil {
		return nil, bundleMalformed(err, "log ID")
	}
	var kind struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(r.Payload.Body, &kind); err != nil {
		return nil, bundleMalformed(err, "log entry")
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex: r.Payload.LogIndex, LogId: &protocommon.LogId{KeyId: logID},
		KindVersion:       &protorekor.KindVersion{Kind: kind.Kind, Version: kind.APIVersion},
		IntegratedTime:    r.Payload.IntegratedTime,
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: r.SignedEntryTimestamp},
		CanonicalizedBody: r.Payload.Body,
	}, nil
}

// FromCosignBundle turns the file that cosign before 3 writes for a blob (--bundle without --new-bundle-format) into a v0.1
// bundle. blob is what was signed: the file does not say. ok is false when data is no such file.
func FromCosignBundle(data []byte, blob []byte) (bundle []byte, ok bool, err error) {
	sum := sha256.Sum256(blob)
	return FromCosignBundleDigest(data, sum[:])
}

// FromCosignBundleDigest is FromCosignBundle for a blob known by its SHA-256.
func FromCosignBundleDigest(data []byte, sha256Digest []byte) (bundle []byte, ok bool, err error) {
	var file struct {
		Signature   []byte       `json:"base64Signature"`
		Certificate []byte       `json:"cert"` // base64 of PEM; older ones hold the PEM itself
		Entry       *RekorBundle `json:"rekorBundle"`
		MediaType   string       `json:"mediaType"`
	}
	if err := json.Unmarshal(data, &file); err != nil || len(file.Signature) == 0 || file.MediaType != "" {
		return nil, false, nil
	}
	if err := verify.UniqueKeys(data, nil); err != nil {
		return nil, true, bundleMalformed(err, "cosign bundle")
	}
	s := legacySignature{signature: file.Signature, entry: file.Entry}
	if block, _ := pem.Decode(file.Certificate); block != nil && block.Type == "CERTIFICATE" { // of a key it is a public key
		s.certificate = file.Certificate
	}
	pb, err := s.material()
	if err != nil {
		return nil, true, err
	}
	pb.Content = &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
		MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sha256Digest},
		Signature:     s.signature,
	}}
	out, err := protojson.Marshal(pb)
	if err != nil {
		return nil, true, bundleMalformed(err, "cosign bundle")
	}
	return out, true, nil
}

// SimpleSigning is the document that legacy image signatures sign (containers/image, docs/containers-signature.5.md).
type SimpleSigning struct {
	Critical struct {
		Identity struct {
			DockerReference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			DockerManifestDigest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]any `json:"optional"`
}

// ParseSimpleSigning decodes the document. It refuses members that are there twice, anything unknown in critical, which
// readers must understand whole, and a member of critical that is spelled in another case.
func ParseSimpleSigning(payload []byte) (*SimpleSigning, error) {
	s := &SimpleSigning{}
	if err := json.Unmarshal(payload, s); err != nil {
		return nil, bundleMalformed(err, "simple signing document")
	}
	err := verify.UniqueKeys(payload, func(depth int, member, name string) error {
		known := map[int]string{1: "critical optional", 2: "identity image type", 3: "docker-reference docker-manifest-digest"}[depth]
		if depth > 1 && member != "critical" || known != "" && strings.Contains(" "+known+" ", " "+name+" ") {
			return nil
		}
		return fmt.Errorf("member %q is not known", name)
	})
	if err == nil && s.Critical.Type != "cosign container image signature" {
		err = fmt.Errorf("type %q", s.Critical.Type)
	}
	if err == nil && s.Critical.Image.DockerManifestDigest == "" {
		err = errors.New("no docker-manifest-digest")
	}
	if err != nil {
		return nil, bundleMalformed(err, "simple signing document")
	}
	return s, nil
}

func bundleMalformed(cause error, format string, args ...any) error {
	return fault.New(fault.Invalid, string(verify.ReasonBundleMalformed), cause, format, args...)
}
