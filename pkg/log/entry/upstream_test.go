package entry

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-openapi/runtime"
	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	tileshashedrekord "github.com/sigstore/rekor-tiles/v2/pkg/types/hashedrekord"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	_ "github.com/sigstore/rekor/pkg/types/dsse/v0.0.1" // registers the kind
	_ "github.com/sigstore/rekor/pkg/types/hashedrekord/v0.0.1"
	_ "github.com/sigstore/rekor/pkg/types/intoto/v0.0.1"
	_ "github.com/sigstore/rekor/pkg/types/intoto/v0.0.2"
)

//lint:file-ignore SA1019 clients in use send the deprecated dsseRequestV002

// signer is a client's key with everything that submissions need of it.
type signer struct {
	crypto.Signer
	der, pem, certDER, certPEM []byte
	details                    common.PublicKeyDetails
	hash                       crypto.Hash
	hashName                   string // Rekor v1's
}

func newSigner(t testing.TB, kind string) signer {
	t.Helper()
	var s signer
	var err error
	switch kind {
	case "P-256":
		s.Signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		s.Signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		s.Signer, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "RSA-2048":
		s.Signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case "Ed25519":
		_, s.Signer, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	if s.der, err = x509.MarshalPKIXPublicKey(s.Public()); err != nil {
		t.Fatal(err)
	}
	s.pem = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: s.der})
	details, _ := defaultDetails(s.Public())
	s.details, s.hash = details.id, details.hash
	s.hashName = strings.Replace(details.hashName, "SHA2_", "sha", 1)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "x"},
		NotBefore: time.Unix(1_700_000_000, 0), NotAfter: time.Unix(1_700_000_600, 0),
		EmailAddresses: []string{"Alice@Example.com"},
		URIs:           []*url.URL{{Scheme: "https", Host: "ci.example.com", Path: "/Workflow@main"}},
	}
	if s.certDER, err = x509.CreateCertificate(rand.Reader, template, template, s.Public(), s); err != nil {
		t.Fatal(err)
	}
	s.certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.certDER})
	return s
}

// signDigest signs as clients sign blobs.
func (s signer) signDigest(t testing.TB, artifact []byte) (sum, sig []byte) {
	t.Helper()
	h := s.hash.New()
	h.Write(artifact)
	sum = h.Sum(nil)
	sig, err := s.Sign(rand.Reader, sum, s.hash)
	if err != nil {
		t.Fatal(err)
	}
	return sum, sig
}

// signEnvelope signs as clients sign attestations for a Rekor v1 log.
func (s signer) signEnvelope(t testing.TB, m message) []byte {
	t.Helper()
	data, opts := append(m.paeHead(), m.payload...), crypto.SignerOpts(crypto.Hash(0))
	if _, ed := s.Public().(ed25519.PublicKey); !ed {
		sum := sha256.Sum256(data)
		data, opts = sum[:], crypto.SHA256
	}
	sig, err := s.Sign(rand.Reader, data, opts)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

const statementJSON = `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://slsa.dev/provenance/v0.2",
"subject":[{"name":"a","digest":{"sha256":"AA11","gitCommit":"bb22"}},{"name":"b","digest":{"sha256":"cc33"}}],
"predicate":{"materials":[{"uri":"git","digest":{"sha1":"dd44"}}]}}`

func hashedRekordDoc(t testing.TB, s signer, material []byte) map[string]any {
	sum, sig := s.signDigest(t, []byte("an artifact"))
	return proposal("hashedrekord", "0.0.1", map[string]any{
		"data":      map[string]any{"hash": map[string]any{"algorithm": s.hashName, "value": hex.EncodeToString(sum)}},
		"signature": map[string]any{"content": sig, "publicKey": map[string]any{"content": material}},
	})
}

func envelopeJSON(t testing.TB, m message, signers ...signer) string {
	t.Helper()
	var sigs []map[string]any
	for _, s := range signers {
		sigs = append(sigs, map[string]any{"keyid": "k<>&", "sig": s.signEnvelope(t, m)})
	}
	raw, err := json.Marshal(map[string]any{"payloadType": m.payloadType, "payload": m.payload, "signatures": sigs})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func dsseDoc(envelope string, materials ...[]byte) map[string]any {
	return proposal("dsse", "0.0.1", map[string]any{"proposedContent": map[string]any{"envelope": envelope, "verifiers": materials}})
}

func intoto002Doc(t testing.TB, m message, keyID string, signers ...signer) map[string]any {
	var sigs []map[string]any
	for _, s := range signers {
		sigs = append(sigs, map[string]any{"keyid": keyID, "publicKey": s.certPEM, "sig": []byte(base64.StdEncoding.EncodeToString(s.signEnvelope(t, m)))})
	}
	return proposal("intoto", "0.0.2", map[string]any{"content": map[string]any{
		"envelope": map[string]any{"payloadType": m.payloadType, "payload": []byte(base64.StdEncoding.EncodeToString(m.payload)), "signatures": sigs},
		"hash":     map[string]any{"algorithm": "sha256", "value": strings.Repeat("0f", 32)},
	}})
}

// TestRekorMakesTheSameBodies holds each kind against upstream's Rekor: the same leaf, and no fewer search keys.
func TestRekorMakesTheSameBodies(t *testing.T) {
	p256, rsa2048, ed := newSigner(t, "P-256"), newSigner(t, "RSA-2048"), newSigner(t, "Ed25519")
	m := message{payloadType: inTotoType, payload: []byte(statementJSON)}
	odd := message{payloadType: "text/plain; x=\"<é\u2028>\"", payload: []byte{0, 1, 2}}
	chain := append(slices.Clone(p256.certPEM), p256.certPEM...)
	untidy := append([]byte("\n\n  "), bytes.ReplaceAll(p256.pem, []byte("\n"), []byte("\r\n"))...)
	docs := map[string]map[string]any{
		"a digest by a key in untidy PEM":   hashedRekordDoc(t, p256, untidy),
		"a digest by a certificate":         hashedRekordDoc(t, p256, p256.certPEM),
		"a digest by a chain":               hashedRekordDoc(t, p256, chain),
		"a digest by RSA":                   hashedRekordDoc(t, rsa2048, rsa2048.pem),
		"a digest by Ed25519ph":             hashedRekordDoc(t, ed, ed.pem),
		"an envelope with one signature":    dsseDoc(envelopeJSON(t, m, p256), p256.certPEM),
		"an envelope with three signatures": dsseDoc(envelopeJSON(t, m, rsa2048, p256, ed), p256.certPEM, ed.pem, rsa2048.pem),
		"an envelope of another type":       dsseDoc(envelopeJSON(t, odd, p256), p256.pem),
		"an intoto 0.0.1": proposal("intoto", "0.0.1", map[string]any{"content": map[string]any{
			"envelope": strings.Replace(envelopeJSON(t, m, p256), `k\u003c\u003e\u0026`, "", 1)}, "publicKey": p256.pem}), // upstream wants no key ID or the key's
		"an intoto 0.0.2 with two signatures":    intoto002Doc(t, m, "", p256, rsa2048),
		"an intoto 0.0.2 with key ID, odd types": intoto002Doc(t, odd, "key <1>", p256),
	}
	for _, kind := range []string{"P-384", "P-521"} {
		s := newSigner(t, kind)
		docs["a digest by "+kind] = hashedRekordDoc(t, s, s.pem)
	}
	for name, doc := range docs {
		t.Run(name, func(t *testing.T) {
			ours, err := propose(t, doc)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			pe, err := models.UnmarshalProposedEntry(bytes.NewReader(raw), runtime.JSONConsumer())
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := types.CreateVersionedEntry(pe)
			if err != nil {
				t.Fatal(err)
			}
			body, err := types.CanonicalizeEntry(context.Background(), theirs)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(ours.Body, body) {
				t.Errorf("bodies differ\nours   %s\ntheirs %s", ours.Body, body)
			}
			keys, err := theirs.IndexKeys()
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				if k = strings.ToLower(k); !slices.Contains(ours.Keys, k) && !slices.Contains(ours.SubmittedKeys, k) {
					t.Errorf("upstream finds it by %q, we do not", k)
				}
			}
			if stored, err := Keys(ours.Body); err != nil || !slices.Equal(stored, ours.Keys) {
				t.Errorf("keys of the stored body are %q (%v), want %q", stored, err, ours.Keys)
			}
		})
	}
}

// TestRekorTilesHashesTheSameLeaf is the check that sigstore-go does when it rebuilds a v2 leaf.
func TestRekorTilesHashesTheSameLeaf(t *testing.T) {
	for _, kind := range []string{"P-256", "P-384", "P-521", "RSA-2048", "Ed25519"} {
		s := newSigner(t, kind)
		for _, v := range []*rekorpb.Verifier{s.keyPB(), s.certPB()} {
			sum, sig := s.signDigest(t, []byte("an artifact"))
			req := &rekorpb.HashedRekordRequestV002{Digest: sum, Signature: &rekorpb.Signature{Content: sig, Verifier: v}}
			e, err := HashedRekord(req)
			if err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			want, err := tileshashedrekord.ToEntryHash(sum, req.Signature)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(e.LeafHash[:], want) {
				t.Errorf("%s: upstream rebuilds another leaf than %s", kind, e.Body)
			}
			if stored, err := Keys(e.Body); err != nil || !slices.Equal(stored, e.Keys) || !slices.Contains(stored, s.hashName+":"+hex.EncodeToString(sum)) {
				t.Errorf("%s: keys of the stored body are %q (%v), want %q", kind, stored, err, e.Keys)
			}
		}
	}
}

func (s signer) keyPB() *rekorpb.Verifier {
	return &rekorpb.Verifier{KeyDetails: s.details, Verifier: &rekorpb.Verifier_PublicKey{PublicKey: &rekorpb.PublicKey{RawBytes: s.der}}}
}

func (s signer) certPB() *rekorpb.Verifier {
	return &rekorpb.Verifier{KeyDetails: s.details, Verifier: &rekorpb.Verifier_X509Certificate{X509Certificate: &common.X509Certificate{RawBytes: s.certDER}}}
}

func TestEnvelopesOnVersion2(t *testing.T) {
	m := message{payloadType: inTotoType, payload: []byte(statementJSON)}
	sign := func(s signer, hash crypto.Hash) []byte {
		data := append(m.paeHead(), m.payload...)
		if hash != 0 {
			data = m.sum(hash)
		}
		sig, err := s.Sign(rand.Reader, data, hash)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	p256, p384, ed := newSigner(t, "P-256"), newSigner(t, "P-384"), newSigner(t, "Ed25519")
	pure := ed.keyPB()
	pure.KeyDetails = common.PublicKeyDetails_PKIX_ED25519
	req := &rekorpb.DSSERequestV002{
		Envelope: &dssepb.Envelope{PayloadType: m.payloadType, Payload: m.payload, Signatures: []*dssepb.Signature{
			{Sig: sign(p384, crypto.SHA384), Keyid: "ignored"}, {Sig: sign(p256, crypto.SHA256)}, {Sig: sign(ed, 0)}, {Sig: sign(ed, crypto.SHA512)},
		}},
		Verifiers: []*rekorpb.Verifier{p256.certPB(), pure, ed.keyPB(), p384.keyPB(), newSigner(t, "P-256").keyPB()},
	}
	e, err := DSSE(req)
	if err != nil {
		t.Fatal(err)
	}
	var body struct{ Spec dsseSpec2 }
	mustJSON(t, e.Body, &body)
	sigs := body.Spec.DSSEV002.Signatures
	if len(sigs) != 4 || !slices.IsSortedFunc(sigs, func(a, b signature2) int { return bytes.Compare(a.Content, b.Content) }) {
		t.Errorf("signatures are not sorted by their bytes: %s", e.Body)
	}
	if !slices.Equal(e.SubmittedKeys, []string{"gitcommit:bb22", "sha1:dd44", "sha256:aa11", "sha256:cc33"}) {
		t.Errorf("submitted keys are %q", e.SubmittedKeys)
	}
	if stored, err := Keys(e.Body); err != nil || !slices.Equal(stored, e.Keys) {
		t.Errorf("keys of the stored body are %q (%v), want %q", stored, err, e.Keys)
	}
	req.Envelope.Signatures[0].Sig[7] ^= 1
	if _, err := DSSE(req); err == nil {
		t.Error("an envelope with a signature that nobody verifies was taken")
	}
}
