package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// entryKind is a kind and version of log entry that we know how to bind to a bundle.
type entryKind struct{ kind, version string }

// v2 reports whether Rekor v2 logs hold such entries. They carry no time and no promise.
func (k entryKind) v2() bool { return k.version == "0.0.2" && k.kind != "intoto" }

func (k entryKind) known() bool {
	switch k {
	case entryKind{"hashedrekord", "0.0.1"}, entryKind{"dsse", "0.0.1"}, entryKind{"intoto", "0.0.2"},
		entryKind{"hashedrekord", "0.0.2"}, entryKind{"dsse", "0.0.2"}:
		return true
	}
	return false
}

// v1Body is what binds a Rekor v1 entry to a bundle.
type v1Body struct {
	signature []byte
	verifier  []byte // DER of a certificate or of a SubjectPublicKeyInfo
	hashAlg   string // of the artifact (hashedrekord) or of the payload (dsse, intoto)
	hash      []byte
}

// read checks the members every entry must have and decodes the body of v1 kinds.
func (e *entry) read() error {
	switch {
	case e.TransparencyLogEntry == nil:
		return errors.New("is null")
	case len(e.GetCanonicalizedBody()) == 0:
		return errors.New("has no body")
	case e.GetLogIndex() < 0:
		return fmt.Errorf("log index %d is negative", e.GetLogIndex())
	case e.GetIntegratedTime() < 0:
		return fmt.Errorf("integrated time %d is negative", e.GetIntegratedTime())
	case len(e.GetLogId().GetKeyId()) == 0:
		return errors.New("has no log ID")
	case e.GetKindVersion() == nil:
		return errors.New("has no kind and version")
	}
	if p := e.GetInclusionProof(); p != nil {
		switch {
		case p.GetCheckpoint().GetEnvelope() == "":
			return errors.New("inclusion proof has no checkpoint")
		case p.GetLogIndex() < 0 || p.GetTreeSize() < 0:
			return errors.New("inclusion proof has a negative number")
		case len(p.GetHashes()) > maxProofHashes:
			return fmt.Errorf("inclusion proof has %d hashes", len(p.GetHashes()))
		}
	}
	e.kind = entryKind{e.GetKindVersion().GetKind(), e.GetKindVersion().GetVersion()}
	if !e.kind.known() {
		return fail(ReasonFormatUnsupported, nil, "log entry kind %.100s/%.100s is not known", e.kind.kind, e.kind.version)
	}
	switch {
	case e.kind.v2() && e.GetInclusionProof() == nil:
		return fail(ReasonInclusionMissing, nil, "a Rekor v2 entry must carry an inclusion proof")
	case e.set() == nil && e.GetInclusionProof() == nil:
		return fail(ReasonInclusionMissing, nil, "log entry has neither inclusion promise nor inclusion proof")
	}
	return nil
}

// holds reports whether e's body is, byte for byte, what Rekor v1 stores for a certificate's bundle whose PEM is wrapped as
// usual: then there is nothing to decode or compare. Of a dsse entry the envelopeHash is not looked at.
func (b *bundle) holds(e *entry) bool {
	if b.leaf == nil {
		return false
	}
	body := e.GetCanonicalizedBody()
	want := make([]byte, 0, len(body)+64)
	switch {
	case !b.isDSSE && e.kind == entryKind{"hashedrekord", "0.0.1"}:
		want = append(want, `{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"`...)
		want = append(want, b.digestAlg...)
		want = append(want, `","value":"`...)
		want = hex.AppendEncode(want, b.digest)
		want = append(want, `"}},"signature":{"content":"`...)
		want = base64.StdEncoding.AppendEncode(want, b.signature)
		want = append(want, `","publicKey":{"content":"`...)
		want = appendPEM64(want, b.leaf.Raw)
		want = append(want, `"}}}}`...)
		return bytes.Equal(body, want)
	case b.isDSSE && e.kind == entryKind{"dsse", "0.0.1"}:
		rest, ok := bytes.CutPrefix(body, []byte(`{"apiVersion":"0.0.1","kind":"dsse","spec":{"envelopeHash":{"algorithm":"sha256","value":"`))
		if !ok || len(rest) < 64 || len(bytes.Trim(rest[:64], "0123456789abcdef")) != 0 {
			return false
		}
		payload := sha256.Sum256(b.payload)
		want = append(want, `"},"payloadHash":{"algorithm":"sha256","value":"`...)
		want = hex.AppendEncode(want, payload[:])
		want = append(want, `"},"signatures":[{"signature":"`...)
		want = base64.StdEncoding.AppendEncode(want, b.signature)
		want = append(want, `","verifier":"`...)
		want = appendPEM64(want, b.leaf.Raw)
		want = append(want, `"}]}}`...)
		return bytes.Equal(rest[64:], want)
	}
	return false
}

// appendPEM64 appends the base64 form of a certificate's PEM, which encoding/pem would make in several passes.
func appendPEM64(dst, der []byte) []byte {
	const head, tail, line = "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n", 48 // bytes in 64 characters
	text := make([]byte, 0, len(head)+len(tail)+len(der)/line*65+66)
	text = append(text, head...)
	for ; len(der) > 0; der = der[min(line, len(der)):] {
		text = base64.StdEncoding.AppendEncode(text, der[:min(line, len(der))])
		text = append(text, '\n')
	}
	text = append(text, tail...)
	return base64.StdEncoding.AppendEncode(dst, text)
}

// readBody decodes a v1 body. A v2 body needs no reading: it is rebuilt from the bundle and compared,
// see rebuildV2.
func (e *entry) readBody() error {
	if e.kind.v2() {
		return nil
	}
	var body v1JSON
	if err := json.Unmarshal(e.GetCanonicalizedBody(), &body); err != nil {
		return fail(ReasonEntryMalformed, err, "body")
	}
	if err := uniqueKeys(e.GetCanonicalizedBody(), exactV1Names); err != nil {
		return fail(ReasonEntryMalformed, err, "body")
	}
	if body.Kind != e.kind.kind || body.APIVersion != e.kind.version {
		return fail(ReasonEntryMalformed, nil, "body is %.100s/%.100s, the entry says %s/%s", body.Kind, body.APIVersion, e.kind.kind, e.kind.version)
	}
	var err error
	switch e.kind.kind {
	case "hashedrekord":
		err = e.body.readHashedRekord(&body)
	case "dsse":
		err = e.body.readDSSE(&body)
	case "intoto":
		err = e.body.readInToto(&body)
	}
	if err != nil {
		return fail(ReasonEntryMalformed, err, "%s body", e.kind.kind)
	}
	return nil
}

// exactV1Names refuses members that encoding/json would take for one of a body's though they are spelled otherwise.
func exactV1Names(_ int, _, name string) error {
	for _, known := range []string{
		"apiVersion", "kind", "spec", "data", "hash", "algorithm", "value", "signature", "content", "publicKey",
		"payloadHash", "signatures", "verifier", "envelope", "sig",
	} {
		if name != known && strings.EqualFold(name, known) {
			return fmt.Errorf("member %.100q is almost %q", name, known)
		}
	}
	return nil
}

// v1JSON holds what is read of the three Rekor v1 kinds (Rekor v1 OpenAPI: hashedrekord, dsse, intoto schemas).
type v1JSON struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Data struct { // hashedrekord
			Hash hexDigest `json:"hash"`
		} `json:"data"`
		Signature struct { // hashedrekord
			Content   []byte `json:"content"`
			PublicKey struct {
				Content []byte `json:"content"`
			} `json:"publicKey"`
		} `json:"signature"`
		PayloadHash hexDigest  `json:"payloadHash"` // dsse
		Signatures  []struct { // dsse
			Signature []byte `json:"signature"`
			Verifier  []byte `json:"verifier"`
		} `json:"signatures"`
		Content struct { // intoto
			Envelope struct {
				Signatures []struct {
					PublicKey []byte `json:"publicKey"`
					Sig       []byte `json:"sig"` // base64 of base64: the envelope's own spelling is logged
				} `json:"signatures"`
			} `json:"envelope"`
			PayloadHash hexDigest `json:"payloadHash"`
		} `json:"content"`
	} `json:"spec"`
}

type hexDigest struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"value"`
}

func (v *v1Body) setHash(d hexDigest) (err error) {
	v.hashAlg = d.Algorithm
	if v.hash, err = hex.DecodeString(d.Value); err != nil {
		return fmt.Errorf("hash: %w", err)
	}
	if h := hashOf(d.Algorithm); h == 0 || len(v.hash) != h.Size() {
		return fmt.Errorf("hash algorithm %q with %d bytes", d.Algorithm, len(v.hash))
	}
	return nil
}

func (v *v1Body) setVerifier(pemBytes []byte) error {
	block, _ := pem.Decode(pemBytes)
	if block == nil {
		return errors.New("verifier is not PEM")
	}
	v.verifier = block.Bytes
	return nil
}

func (v *v1Body) readHashedRekord(body *v1JSON) error {
	v.signature = body.Spec.Signature.Content
	if err := v.setHash(body.Spec.Data.Hash); err != nil {
		return err
	}
	return v.setVerifier(body.Spec.Signature.PublicKey.Content)
}

func (v *v1Body) readDSSE(body *v1JSON) error {
	if n := len(body.Spec.Signatures); n != 1 {
		return fmt.Errorf("%d signatures, exactly one is required", n)
	}
	v.signature = body.Spec.Signatures[0].Signature
	if err := v.setHash(body.Spec.PayloadHash); err != nil {
		return err
	}
	return v.setVerifier(body.Spec.Signatures[0].Verifier)
}

func (v *v1Body) readInToto(body *v1JSON) error {
	signatures := body.Spec.Content.Envelope.Signatures
	if len(signatures) != 1 {
		return fmt.Errorf("%d signatures, exactly one is required", len(signatures))
	}
	raw, err := base64.StdEncoding.DecodeString(string(signatures[0].Sig))
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	v.signature = raw
	if err := v.setHash(body.Spec.Content.PayloadHash); err != nil {
		return err
	}
	return v.setVerifier(signatures[0].PublicKey)
}

// verifierDER returns what a log entry of this bundle must name as its verifier: the signing
// certificate, or the policy's key as SubjectPublicKeyInfo.
func (a *attempt) verifierDER() ([]byte, error) {
	if a.bundle.leaf != nil {
		return a.bundle.leaf.Raw, nil
	}
	return x509.MarshalPKIXPublicKey(a.policy.Key)
}

// bindV1 requires that a v1 entry is about this bundle's signature, key and content. The entry's
// envelopeHash is left alone: it depends on how the submitter spelled the JSON.
func (a *attempt) bindV1(e *entry) error {
	b := a.bundle
	if e.bound {
		return nil
	}
	// What an entry of this kind holds is compared only when the kind fits.
	switch {
	case b.isDSSE && e.kind.kind == "hashedrekord":
		return fail(ReasonEntryMismatch, nil, "a DSSE envelope is logged as hashedrekord 0.0.1")
	case !b.isDSSE && e.kind.kind != "hashedrekord":
		return fail(ReasonEntryMismatch, nil, "a message signature is logged as %s", e.kind.kind)
	}
	if !bytes.Equal(e.body.signature, b.signature) {
		return fail(ReasonEntrySignature, nil, "the log entry holds another signature")
	}
	der, err := a.verifierDER()
	if err != nil {
		return fail(ReasonKeyMismatch, err, "encoding the key")
	}
	if !bytes.Equal(e.body.verifier, der) && !(b.leaf == nil && sameKey(e.body.verifier, a.policy.Key)) {
		return fail(ReasonEntryVerifier, nil, "the log entry names another certificate or key")
	}
	if b.isDSSE {
		h := hashOf(e.body.hashAlg).New()
		h.Write(b.payload)
		if !bytes.Equal(h.Sum(nil), e.body.hash) {
			return fail(ReasonEntryDigest, nil, "the log entry is for another payload")
		}
		return nil
	}
	if e.body.hashAlg != b.digestAlg || !bytes.Equal(e.body.hash, b.digest) {
		return fail(ReasonEntryDigest, nil, "the log entry is for another digest")
	}
	return nil
}

// sameKey reports whether der, a SubjectPublicKeyInfo that may be spelled differently, is key.
func sameKey(der []byte, key crypto.PublicKey) bool {
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return false
	}
	eq, ok := parsed.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(key)
}

// keyDetails returns the protobuf-specs name of the default algorithm of key for entries that hold a
// hash, and that hash.
func keyDetails(key crypto.PublicKey, kind string) (string, crypto.Hash, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return "PKIX_ECDSA_P256_SHA_256", crypto.SHA256, nil
		case elliptic.P384():
			return "PKIX_ECDSA_P384_SHA_384", crypto.SHA384, nil
		case elliptic.P521():
			return "PKIX_ECDSA_P521_SHA_512", crypto.SHA512, nil
		}
	case ed25519.PublicKey:
		if kind == "dsse" {
			return "PKIX_ED25519", crypto.SHA512, nil
		}
		return "PKIX_ED25519_PH", crypto.SHA512, nil
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048, 3072, 4096:
			return fmt.Sprintf("PKIX_RSA_PKCS1V15_%d_SHA256", k.N.BitLen()), crypto.SHA256, nil
		}
	}
	return "", 0, fmt.Errorf("no Rekor v2 algorithm for a key of type %T", key)
}

// rebuildV2 writes the canonical (RFC 8785) leaf that a Rekor v2 log must hold for this bundle. The
// members stand in the order JCS gives them and base64 needs no escaping, so the text is
// already canonical.
func (a *attempt) rebuildV2(kind string) ([]byte, error) {
	b := a.bundle
	key := a.policy.Key
	if b.leaf != nil {
		key = b.leaf.PublicKey
	}
	details, hash, err := keyDetails(key, kind)
	if err != nil {
		return nil, err
	}
	der, err := a.verifierDER()
	if err != nil {
		return nil, err
	}
	field := "x509Certificate"
	if b.leaf == nil {
		field = "publicKey"
	}
	b64 := base64.StdEncoding.EncodeToString
	verifier := `{"keyDetails":"` + details + `","` + field + `":{"rawBytes":"` + b64(der) + `"}}`

	if kind == "dsse" { // withdrawn in log server 2.3.0, still written by cosign 3.0 and sigstore-js 5
		if !b.isDSSE {
			return nil, errors.New("a message signature is logged as dsse")
		}
		sum := sha256.Sum256(b.payload)
		return []byte(`{"apiVersion":"0.0.2","kind":"dsse","spec":{"dsseV002":{"payloadHash":{"algorithm":"SHA2_256","digest":"` + b64(sum[:]) +
			`"},"signatures":[{"content":"` + b64(b.signature) + `","verifier":` + verifier + `}]}}}`), nil
	}
	digest := b.digest
	if b.isDSSE {
		h := hash.New()
		h.Write(b.pae)
		digest = h.Sum(nil)
	}
	alg := map[crypto.Hash]string{crypto.SHA256: "SHA2_256", crypto.SHA384: "SHA2_384", crypto.SHA512: "SHA2_512"}[hash]
	return []byte(`{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{"algorithm":"` + alg + `","digest":"` + b64(digest) +
		`"},"signature":{"content":"` + b64(b.signature) + `","verifier":` + verifier + `}}}}`), nil
}

// v2JSON holds what is read of a Rekor v2 body to say in what it differs; the decision compares bytes.
type v2JSON struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		HashedRekord *struct {
			Data struct {
				Digest []byte `json:"digest"`
			} `json:"data"`
			Signature v2Signature `json:"signature"`
		} `json:"hashedRekordV002"`
		DSSE *struct {
			PayloadHash struct {
				Digest []byte `json:"digest"`
			} `json:"payloadHash"`
			Signatures []v2Signature `json:"signatures"`
		} `json:"dsseV002"`
	} `json:"spec"`
}

type v2Signature struct {
	Content  []byte `json:"content"`
	Verifier struct {
		Certificate struct {
			Raw []byte `json:"rawBytes"`
		} `json:"x509Certificate"`
		Key struct {
			Raw []byte `json:"rawBytes"`
		} `json:"publicKey"`
	} `json:"verifier"`
}

// mismatchV2 says why a body is not the one that was rebuilt.
func mismatchV2(kind entryKind, body, rebuilt []byte) error {
	var got, want v2JSON
	if err := json.Unmarshal(body, &got); err != nil {
		return fail(ReasonEntryMalformed, err, "%s body", kind.kind)
	}
	if got.Kind != kind.kind || got.APIVersion != kind.version {
		return fail(ReasonEntryMalformed, nil, "body is %.100s/%.100s, the entry says %s/%s", got.Kind, got.APIVersion, kind.kind, kind.version)
	}
	gotSig, gotDigest, ok := got.parts()
	if err := json.Unmarshal(rebuilt, &want); err != nil || !ok {
		return fail(ReasonEntryMalformed, err, "%s body has not exactly one signature", kind.kind)
	}
	wantSig, wantDigest, _ := want.parts()
	switch {
	case !bytes.Equal(gotSig.Content, wantSig.Content):
		return fail(ReasonEntrySignature, nil, "the log entry holds another signature")
	case !bytes.Equal(gotSig.Verifier.Certificate.Raw, wantSig.Verifier.Certificate.Raw), !bytes.Equal(gotSig.Verifier.Key.Raw, wantSig.Verifier.Key.Raw):
		return fail(ReasonEntryVerifier, nil, "the log entry names another certificate or key")
	case !bytes.Equal(gotDigest, wantDigest):
		return fail(ReasonEntryDigest, nil, "the log entry is for another digest")
	}
	return fail(ReasonEntryMismatch, nil, "the log entry is not the canonical one for this bundle")
}

func (b *v2JSON) parts() (sig v2Signature, digest []byte, ok bool) {
	switch h, d := b.Spec.HashedRekord, b.Spec.DSSE; {
	case h != nil && d == nil:
		return h.Signature, h.Data.Digest, true
	case h == nil && d != nil && len(d.Signatures) == 1:
		return d.Signatures[0], d.PayloadHash.Digest, true
	}
	return sig, nil, false
}
