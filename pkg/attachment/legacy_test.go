package attachment

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// logged is a bundle of a key whose envelope was logged as text, in a log of Rekor v1 or v2.
func logged(t *testing.T, envelope *protodsse.Envelope, text string, promise bool) []byte {
	t.Helper()
	sum := sha256.Sum256([]byte(text))
	body, err := json.Marshal(map[string]any{"kind": "dsse", "apiVersion": "0.0.1",
		"spec": map[string]any{"envelopeHash": map[string]string{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}}})
	if err != nil {
		t.Fatal(err)
	}
	entry := &protorekor.TransparencyLogEntry{LogIndex: 7, LogId: &protocommon.LogId{KeyId: []byte{1}}, IntegratedTime: 8, CanonicalizedBody: body}
	if promise {
		entry.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: []byte("set")}
	}
	raw, err := protojson.Marshal(&protobundle.Bundle{
		MediaType: BundleType, Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: envelope},
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:     &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}},
			TlogEntries: []*protorekor.TransparencyLogEntry{entry},
			TimestampVerificationData: &protobundle.TimestampVerificationData{
				Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: []byte("over the signature")}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestTheLayerIsTheEnvelopeAsItWasLogged(t *testing.T) {
	envelope := &protodsse.Envelope{Payload: []byte(`{"predicateType":"https://example.com/t"}`), PayloadType: "application/vnd.in-toto+json",
		Signatures: []*protodsse.Signature{{Sig: []byte("signature")}}}
	for _, text := range []string{
		`{"payload":"eyJwcmVkaWNhdGVUeXBlIjoiaHR0cHM6Ly9leGFtcGxlLmNvbS90In0=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"c2lnbmF0dXJl"}]}`,            // sigstore-go, cosign 3
		`{"payloadType":"application/vnd.in-toto+json","payload":"eyJwcmVkaWNhdGVUeXBlIjoiaHR0cHM6Ly9leGFtcGxlLmNvbS90In0=","signatures":[{"keyid":"","sig":"c2lnbmF0dXJl"}]}`, // cosign 2
		`{"payload":"eyJwcmVkaWNhdGVUeXBlIjoiaHR0cHM6Ly9leGFtcGxlLmNvbS90In0=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"c2lnbmF0dXJl","keyid":""}]}`, // sigstore-js
	} {
		layer, err := EnvelopeLayer(logged(t, envelope, text, true), nil)
		if err != nil {
			t.Fatal(err)
		}
		if string(layer.Blob) != text {
			t.Errorf("the layer is\n%s\nlogged was\n%s", layer.Blob, text)
		}
		if layer.Annotations[oci.AnnotationPredicate] != "https://example.com/t" || layer.Annotations[oci.AnnotationTimestamp] != "" ||
			!strings.Contains(layer.Annotations[oci.AnnotationBundle], `"integratedTime":8,"logIndex":7,"logID":"01"`) {
			t.Errorf("annotations %v", layer.Annotations)
		}
	}
	for name, bundle := range map[string][]byte{
		"an unknown spelling":  logged(t, envelope, "{ }", true),
		"an entry of Rekor v2": logged(t, envelope, "{}", false),
	} {
		if _, err := EnvelopeLayer(bundle, nil); fault.ReasonOf(err) != "not-expressible" {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := ToCosignFile(bundle); fault.ReasonOf(err) != "not-expressible" {
			t.Errorf("%s, as a file: %v", name, err)
		}
	}
}

func TestWhatIsNotCosignsFileIsToldApart(t *testing.T) {
	for text, want := range map[string]bool{
		`{"base64Signature":"MEUCIQ=="}`:                 true,
		`{"base64Signature":"e30=","cert":""}`:           true,
		`{"base64Signature":"!"}`:                        true, // and an error
		`{"mediaType":"` + BundleType + `"}`:             false,
		`{"mediaType":"x","base64Signature":"MEUCIQ=="}`: false,
		`not JSON`: false,
	} {
		_, _, ok, err := ReadCosignFile([]byte(text))
		if ok != want || (err != nil) != strings.Contains(text, `"!"`) {
			t.Errorf("%s: %v, %v", text, ok, err)
		}
	}
}
