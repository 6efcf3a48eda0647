package entry

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

//lint:file-ignore SA1019 clients in use send the deprecated dsseRequestV002

// shared finds published vectors: ATTESTRY_SHARED, else the folder "shared" beside the repository.
func shared(t testing.TB, elem ...string) string {
	t.Helper()
	root := os.Getenv("ATTESTRY_SHARED")
	if root == "" {
		root = filepath.Join("..", "..", "..", "..", "shared")
	}
	path := filepath.Join(append([]string{root}, elem...)...)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("published vectors are missing: %v", err)
		}
		t.Skipf("published vectors are missing (set ATTESTRY_SHARED): %v", err)
	}
	return path
}

// published returns the published bundles by file name.
func published(t *testing.T) map[string]*bundlepb.Bundle {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(shared(t, "conformance", "bundle-verify"), "*", "bundle.sigstore.json"))
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join(shared(t, "vectors", "sigstore-go-bundles"), "*.sigstore.json"))
	if err != nil {
		t.Fatal(err)
	}
	bundles := map[string]*bundlepb.Bundle{}
	for _, name := range append(names, more...) {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b := new(bundlepb.Bundle)
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, b); err != nil {
			continue // the suite has broken ones
		}
		short := filepath.Base(filepath.Dir(name))
		if short == "sigstore-go-bundles" {
			short = filepath.Base(name)
		}
		bundles[short] = b
	}
	return bundles
}

// TestBodiesAreUpstreams rebuilds the submission of every published bundle and wants the very body
// that upstream's log made of it.
func TestBodiesAreUpstreams(t *testing.T) {
	// Bundles whose entry, on purpose, is not of their own signature or key, or is none at all.
	foreign := []string{"wrong-hashedrekord-entry_fail", "wrong-hashedrekord-cert-and-sig_fail", "wrong-material_fail",
		"dsse-mismatch-envelope_fail", "incorrect-public-key_fail", "rekor2-dsse-invalid-sig_fail",
		"bundle-empty-certificate-chain_fail", "bundle-negative-log-index_fail", "dsse-2sigs.sigstore.json"}
	rebuilt := map[string]int{}
	for name, b := range published(t) {
		for _, tle := range b.GetVerificationMaterial().GetTlogEntries() {
			body := tle.GetCanonicalizedBody()
			if slices.Contains(foreign, name) || len(body) == 0 {
				continue
			}
			if bytes.Contains(body, []byte(`"envelope":{"payload":`)) {
				continue // made without a log: upstream's drops the payload
			}
			t.Run(name, func(t *testing.T) {
				kind, version, err := KindVersion(body)
				if err != nil {
					t.Fatal(err)
				}
				e, err := resubmit(t, kind+" "+version, b, body)
				if err != nil {
					t.Fatalf("%s %s: %v", kind, version, err)
				}
				if !bytes.Equal(e.Body, body) {
					t.Errorf("body differs from upstream's\n got %.2000s\nwant %.2000s", e.Body, body)
				}
				keys, err := Keys(body)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(keys, e.Keys) {
					t.Errorf("keys of the stored body are %q, of the submission %q", keys, e.Keys)
				}
				rebuilt[kind+" "+version]++
			})
		}
	}
	for _, want := range []string{"hashedrekord 0.0.1", "dsse 0.0.1", "intoto 0.0.2", "hashedrekord 0.0.2"} {
		if rebuilt[want] == 0 {
			t.Errorf("no published bundle holds a %s", want)
		}
	}
	t.Logf("rebuilt: %v", rebuilt)
}

func resubmit(t *testing.T, kind string, b *bundlepb.Bundle, body []byte) (Entry, error) {
	t.Helper()
	switch kind {
	case "hashedrekord 0.0.1":
		msg := b.GetMessageSignature()
		var stored struct{ Spec hashedRekordSpec }
		mustJSON(t, body, &stored)
		material := stored.Spec.Signature.PublicKey.Content // a bundle with a bare key names it by a hint only
		if cert := leafDER(b); cert != nil {
			material = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
		}
		return propose(t, proposal("hashedrekord", "0.0.1", map[string]any{
			"data":      map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(msg.GetMessageDigest().GetDigest())}},
			"signature": map[string]any{"content": msg.GetSignature(), "publicKey": map[string]any{"content": material}},
		}))
	case "dsse 0.0.1":
		var stored struct{ Spec dsseSpec }
		mustJSON(t, body, &stored)
		var verifiers [][]byte
		for _, s := range stored.Spec.Signatures {
			verifiers = append(verifiers, s.Verifier)
		}
		var texts []string
		for _, text := range envelopeTexts(t, b) {
			if sha256Digest([]byte(text)) == stored.Spec.EnvelopeHash {
				texts = append(texts, text)
			}
		}
		if len(texts) == 0 {
			t.Skip("the envelope was sent in a JSON form that is not known")
		}
		return propose(t, proposal("dsse", "0.0.1", map[string]any{"proposedContent": map[string]any{"envelope": texts[0], "verifiers": verifiers}}))
	case "intoto 0.0.2":
		var stored struct{ Spec intotoSpec002 }
		mustJSON(t, body, &stored)
		env := b.GetDsseEnvelope()
		var sigs []map[string]any
		for i, s := range env.GetSignatures() {
			sig := map[string]any{"sig": []byte(base64.StdEncoding.EncodeToString(s.GetSig())), "publicKey": stored.Spec.Content.Envelope.Signatures[i].PublicKey}
			if s.GetKeyid() != "" {
				sig["keyid"] = s.GetKeyid()
			}
			sigs = append(sigs, sig)
		}
		return propose(t, proposal("intoto", "0.0.2", map[string]any{"content": map[string]any{
			"envelope": map[string]any{"payloadType": env.GetPayloadType(), "payload": []byte(base64.StdEncoding.EncodeToString(env.GetPayload())), "signatures": sigs},
			"hash":     stored.Spec.Content.Hash,
		}}))
	case "hashedrekord 0.0.2":
		req := &rekorpb.HashedRekordRequestV002{Signature: &rekorpb.Signature{Verifier: verifierPB(t, b, body)}}
		if msg := b.GetMessageSignature(); msg != nil {
			req.Digest, req.Signature.Content = msg.GetMessageDigest().GetDigest(), msg.GetSignature()
		} else {
			m := message{payloadType: b.GetDsseEnvelope().GetPayloadType(), payload: b.GetDsseEnvelope().GetPayload()}
			var stored struct{ Spec hashedRekordSpec2 }
			mustJSON(t, body, &stored)
			key, err := stored.Spec.HashedRekordV002.Signature.Verifier.parse()
			if err != nil {
				t.Fatal(err)
			}
			details, _ := defaultDetails(key.public)
			req.Digest, req.Signature.Content = m.sum(details.hash), b.GetDsseEnvelope().GetSignatures()[0].GetSig()
		}
		return HashedRekord(req)
	case "dsse 0.0.2":
		return DSSE(&rekorpb.DSSERequestV002{Envelope: b.GetDsseEnvelope(), Verifiers: []*rekorpb.Verifier{verifierPB(t, b, body)}})
	}
	return Entry{}, fmt.Errorf("unexpected kind %q", kind)
}

func leafDER(b *bundlepb.Bundle) []byte {
	if cert := b.GetVerificationMaterial().GetCertificate(); cert != nil {
		return cert.GetRawBytes()
	}
	if chain := b.GetVerificationMaterial().GetX509CertificateChain().GetCertificates(); len(chain) > 0 {
		return chain[0].GetRawBytes()
	}
	return nil
}

func verifierPB(t *testing.T, b *bundlepb.Bundle, body []byte) *rekorpb.Verifier {
	t.Helper()
	if cert := leafDER(b); cert != nil {
		return &rekorpb.Verifier{KeyDetails: common.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
			Verifier: &rekorpb.Verifier_X509Certificate{X509Certificate: &common.X509Certificate{RawBytes: cert}}}
	}
	var stored struct{ Spec hashedRekordSpec2 }
	mustJSON(t, body, &stored)
	v := stored.Spec.HashedRekordV002.Signature.Verifier
	return &rekorpb.Verifier{KeyDetails: common.PublicKeyDetails(common.PublicKeyDetails_value[v.KeyDetails]),
		Verifier: &rekorpb.Verifier_PublicKey{PublicKey: &rekorpb.PublicKey{RawBytes: v.PublicKey.RawBytes}}}
}

// envelopeTexts are the JSON forms in which clients are known to send an envelope.
func envelopeTexts(t *testing.T, b *bundlepb.Bundle) []string {
	t.Helper()
	env := b.GetDsseEnvelope()
	payload, payloadType := base64.StdEncoding.EncodeToString(env.GetPayload()), env.GetPayloadType()
	marshal := func(v any) string {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(buf.String(), "\n")
	}
	type keyed struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
	type keyedLast struct {
		Sig   []byte `json:"sig"`
		KeyID string `json:"keyid"`
	}
	type unkeyed struct {
		Sig []byte `json:"sig"`
	}
	var first, last, none []any
	for _, s := range env.GetSignatures() {
		first = append(first, keyed{s.GetKeyid(), s.GetSig()})
		last = append(last, keyedLast{s.GetSig(), s.GetKeyid()})
		none = append(none, unkeyed{s.GetSig()})
	}
	var texts []string
	for _, sigs := range [][]any{first, last, none} {
		texts = append(texts,
			marshal(struct {
				PayloadType string `json:"payloadType"`
				Payload     string `json:"payload"`
				Signatures  []any  `json:"signatures"`
			}{payloadType, payload, sigs}),
			marshal(struct {
				Payload     string `json:"payload"`
				PayloadType string `json:"payloadType"`
				Signatures  []any  `json:"signatures"`
			}{payload, payloadType, sigs}))
	}
	for _, text := range slices.Clone(texts) { // Python's separators
		texts = append(texts, strings.NewReplacer(`":`, `": `, `,"`, `, "`, `},{`, `}, {`).Replace(text))
	}
	return texts
}

func proposal(kind, version string, spec map[string]any) map[string]any {
	return map[string]any{"kind": kind, "apiVersion": version, "spec": spec}
}

func propose(t testing.TB, doc any) (Entry, error) {
	t.Helper()
	return Propose(everyKind(t), parsed(t, doc))
}

func everyKind(t testing.TB) Kinds {
	t.Helper()
	kinds, err := ParseKinds(known())
	if err != nil {
		t.Fatal(err)
	}
	return kinds
}

func parsed(t testing.TB, doc any) ijson.Value {
	t.Helper()
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	v, err := ijson.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustJSON(t testing.TB, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

// TestIntotoSample is Rekor's published envelope: its subject's digest is searchable, though it is no real digest.
func TestIntotoSample(t *testing.T) {
	env, err := os.ReadFile(shared(t, "vectors", "rekor", "intoto_dsse.json"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(shared(t, "vectors", "rekor", "intoto_dsse.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range []map[string]any{
		proposal("intoto", "0.0.1", map[string]any{"content": map[string]any{"envelope": string(env)}, "publicKey": key}),
		proposal("dsse", "0.0.1", map[string]any{"proposedContent": map[string]any{"envelope": string(env), "verifiers": [][]byte{key}}}),
	} {
		e, err := propose(t, doc)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(e.SubmittedKeys, []string{"foo:bar"}) {
			t.Errorf("%s: submitted keys are %q", e.Kind, e.SubmittedKeys)
		}
		sum := sha256.Sum256(env)
		if !slices.Contains(e.Keys, "sha256:"+hex.EncodeToString(sum[:])) {
			t.Errorf("%s: the envelope's digest is no search key", e.Kind)
		}
	}
}

// TestStoredRekord reads a published body whose key and signature this package would not write today.
func TestStoredRekord(t *testing.T) {
	body, err := os.ReadFile(shared(t, "vectors", "rekor", "canonical_rekor.json"))
	if err != nil {
		t.Fatal(err)
	}
	if kind, version, err := KindVersion(body); err != nil || kind != "rekord" || version != "0.0.1" {
		t.Errorf("KindVersion = %q, %q, %v", kind, version, err)
	}
	keys, err := Keys(body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"lhinds@protonmail.com", "sha256:45c7b11fcbf07dec1694adecd8c5b85770a12a6c8dfdcf2580a2db0c47c31779"} {
		if !slices.Contains(keys, want) {
			t.Errorf("keys are %q, without %q", keys, want)
		}
	}
}

// TestOtherKinds reads a body of a kind that this package does not make.
func TestOtherKinds(t *testing.T) {
	body := []byte(`{"apiVersion":"0.0.1","kind":"npm","spec":{}}`)
	if kind, version, err := KindVersion(body); err != nil || kind != "npm" || version != "0.0.1" {
		t.Errorf("KindVersion = %q, %q, %v", kind, version, err)
	}
	if _, err := Keys(body); !errors.Is(err, ErrUnknownKind) {
		t.Errorf("Keys = %v, want ErrUnknownKind", err)
	}
}
