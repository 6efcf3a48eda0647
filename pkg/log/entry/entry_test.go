package entry

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

//lint:file-ignore SA1019 clients in use send the deprecated dsseRequestV002

// TestReferenceLeafHash is the vector of the log reference's section 16.
func TestReferenceLeafHash(t *testing.T) {
	s := hashedRekordSpec{}
	s.Data.Hash = digest{"sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
	s.Signature.Content, s.Signature.PublicKey.Content = []byte{0}, []byte{0}
	e, err := newEntry("hashedrekord", "0.0.1", s, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hex.EncodeToString(e.LeafHash[:]), "903bb7aeea44df62b569f59ae2d2f77fc257b02b18fb1c731f92770ebf178b67"; got != want {
		t.Errorf("leaf hash of %s is %s, want %s", e.Body, got, want)
	}
}

// set returns a deep copy of doc with the member at the dotted path replaced; nil removes it.
func set(t testing.TB, doc map[string]any, path string, value any) map[string]any {
	t.Helper()
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	mustJSON(t, raw, &c)
	at := c
	names := strings.Split(path, ".")
	for _, n := range names[:len(names)-1] {
		at = at[n].(map[string]any)
	}
	if last := names[len(names)-1]; value == nil {
		delete(at, last)
	} else {
		at[last] = value
	}
	return c
}

func TestRefusedProposals(t *testing.T) {
	s, other := newSigner(t, "P-256"), newSigner(t, "P-256")
	m := message{payloadType: inTotoType, payload: []byte(statementJSON)}
	hashed := hashedRekordDoc(t, s, s.pem)
	env := envelopeJSON(t, m, s)
	dsse := dsseDoc(env, s.pem)
	intoto := intoto002Doc(t, m, "", s)
	many := make([]signer, MaxSignatures+1)
	for i := range many {
		many[i] = s
	}
	var eleven []byte
	for range MaxCertificates + 1 {
		eleven = append(eleven, s.certPEM...)
	}
	big := message{payloadType: "x/" + strings.Repeat("y", 66_000), payload: []byte("z")}
	var subjects strings.Builder
	for range maxSubmitted + 1 {
		subjects.WriteString(`{"digest":{"sha256":"aa"}},`)
	}
	crowd := message{payloadType: inTotoType, payload: []byte(`{"subject":[` + strings.TrimSuffix(subjects.String(), ",") + `]}`)}
	p384 := newSigner(t, "P-384")
	wrongPair := hashedRekordDoc(t, s, s.pem)
	wrongPair = set(t, wrongPair, "spec.signature.publicKey.content", p384.pem)
	capitals := strings.ToUpper(hashed["spec"].(map[string]any)["data"].(map[string]any)["hash"].(map[string]any)["value"].(string))
	for _, tt := range []struct {
		name   string
		doc    map[string]any
		kind   fault.Kind
		reason string
		text   string
	}{
		{"an unknown kind", set(t, hashed, "kind", "npm"), fault.Invalid, "unsupported_kind", "entry kind 'npm' is not enabled"},
		{"an unknown version", set(t, hashed, "apiVersion", "0.0.9"), fault.Invalid, "unsupported_version", "version '0.0.9'"},
		{"no signature", set(t, hashed, "spec.signature", nil), fault.Invalid, "missing_field", "signature.content in body is required"},
		{"a signature that is a number", set(t, hashed, "spec.signature.content", 5), fault.Invalid, "bad_field", "must be of type string"},
		{"a signature that is not base64", set(t, hashed, "spec.signature.content", "%"), fault.Invalid, "bad_base64", "is not base64"},
		{"a signature of another key", set(t, hashed, "spec.signature.publicKey.content", other.pem), fault.Invalid, "bad_signature", "verifying signature"},
		{"a signature of another digest", set(t, hashed, "spec.data.hash.value", strings.Repeat("00", 32)), fault.Invalid, "bad_signature", "verifying signature"},
		{"a digest in capitals", set(t, hashed, "spec.data.hash.value", capitals), fault.Invalid, "bad_field", "lower-case hex"},
		{"a digest of the wrong length", set(t, hashed, "spec.data.hash.value", "abcd"), fault.Invalid, "bad_field", "invalid value for hash"},
		{"an unknown algorithm", set(t, hashed, "spec.data.hash.algorithm", "md5"), fault.Invalid, "bad_field", "should be one of [sha256 sha384 sha512]"},
		{"a key and a hash that do not go together", wrongPair, fault.Invalid, "algorithm_not_allowed", "entry algorithms are not allowed"},
		{"a key that is not PEM", set(t, hashed, "spec.signature.publicKey.content", []byte("key")), fault.Invalid, "bad_key", "failure decoding PEM"},
		{"a private key", set(t, hashed, "spec.signature.publicKey.content", []byte(strings.ReplaceAll(string(s.pem), "PUBLIC", "PRIVATE"))), fault.Invalid, "bad_key", "cannot handle type"},
		{"a chain of eleven", set(t, hashed, "spec.signature.publicKey.content", eleven), fault.Invalid, "bad_key", "too many certificates"},
		{"a chain that does not hold together", set(t, hashed, "spec.signature.publicKey.content", append(append([]byte{}, s.certPEM...), other.certPEM...)), fault.Invalid, "bad_chain", "verifying certificate chain"},
		{"an envelope of another type than was signed", dsseDoc(strings.Replace(env, inTotoType, inTotoType+"x", 1), s.pem), fault.Invalid, "bad_signature", "all signatures must have a key"},
		{"no envelope", set(t, dsse, "spec.proposedContent", nil), fault.Invalid, "missing_field", "missing proposed content"},
		{"computed members in a submission", set(t, dsse, "spec.envelopeHash", map[string]any{}), fault.Invalid, "bad_field", "but not both"},
		{"no verifiers", set(t, dsse, "spec.proposedContent.verifiers", []any{}), fault.Invalid, "missing_field", "verifiers in body is required"},
		{"too many verifiers", dsseDoc(env, make([][]byte, MaxSignatures+1)...), fault.Invalid, "too_many_verifiers", "at most 16 items"},
		{"too many signatures", dsseDoc(envelopeJSON(t, m, many...), s.pem), fault.Invalid, "too_many_signatures", "over the limit of 16"},
		{"an envelope that is not JSON", dsseDoc("{", s.pem), fault.Invalid, "bad_envelope", "invalid JSON"},
		{"an envelope with two payloads", dsseDoc(strings.Replace(env, "{", `{"payload":"",`, 1), s.pem), fault.Invalid, "bad_envelope", `duplicate member "payload"`},
		{"an envelope without signatures", dsseDoc(`{"payload":"","payloadType":"x","signatures":[]}`, s.pem), fault.Invalid, "missing_field", "1 or more signatures"},
		{"a signature without a verifier", dsseDoc(envelopeJSON(t, m, s, other), s.pem), fault.Invalid, "bad_signature", "all signatures must have a key"},
		{"more subjects than can be stored", dsseDoc(envelopeJSON(t, crowd, s), s.pem), fault.TooLarge, "too_many_subjects", "over the limit of 4096"},
		{"an intoto hash that is none", set(t, intoto, "spec.content.hash.value", "x"), fault.Invalid, "bad_field", "content.hash"},
		{"an intoto payload encoded once", set(t, intoto, "spec.content.envelope.payload", m.payload), fault.Invalid, "bad_base64", "encoded twice"},
		{"an intoto body over 65,535 bytes", intoto002Doc(t, big, "", s), fault.TooLarge, "entry_too_large", "over the limit of 65535"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := propose(t, tt.doc)
			if fault.KindOf(err) != tt.kind || fault.ReasonOf(err) != tt.reason || !strings.Contains(fault.Public(err), tt.text) {
				t.Errorf("got %v %q %q (%v), want %v %q with %q", fault.KindOf(err), fault.ReasonOf(err), fault.Public(err), err, tt.kind, tt.reason, tt.text)
			}
		})
	}
}

func TestRefusedVersion2Requests(t *testing.T) {
	s, other, ed := newSigner(t, "P-256"), newSigner(t, "P-256"), newSigner(t, "Ed25519")
	sum, sig := s.signDigest(t, []byte("x"))
	request := func(change func(*rekorpb.HashedRekordRequestV002)) *rekorpb.HashedRekordRequestV002 {
		r := proto.Clone(&rekorpb.HashedRekordRequestV002{Digest: sum, Signature: &rekorpb.Signature{Content: sig, Verifier: s.certPB()}}).(*rekorpb.HashedRekordRequestV002)
		change(r)
		return r
	}
	edSum, edSig := ed.signDigest(t, []byte("x"))
	pure := ed.keyPB()
	pure.KeyDetails = common.PublicKeyDetails_PKIX_ED25519
	for _, tt := range []struct {
		name, reason string
		req          *rekorpb.HashedRekordRequestV002
	}{
		{"nothing", "missing_field", &rekorpb.HashedRekordRequestV002{}},
		{"no digest", "missing_field", request(func(r *rekorpb.HashedRekordRequestV002) { r.Digest = nil })},
		{"no verifier", "missing_field", request(func(r *rekorpb.HashedRekordRequestV002) { r.Signature.Verifier = nil })},
		{"an empty key", "missing_field", request(func(r *rekorpb.HashedRekordRequestV002) {
			r.Signature.Verifier.Verifier = &rekorpb.Verifier_PublicKey{PublicKey: &rekorpb.PublicKey{}}
		})},
		{"PEM in place of DER", "bad_key", request(func(r *rekorpb.HashedRekordRequestV002) {
			r.Signature.Verifier.Verifier = &rekorpb.Verifier_PublicKey{PublicKey: &rekorpb.PublicKey{RawBytes: s.pem}}
		})},
		{"no key details", "key_details_mismatch", request(func(r *rekorpb.HashedRekordRequestV002) { r.Signature.Verifier.KeyDetails = 0 })},
		{"unknown key details", "bad_field", request(func(r *rekorpb.HashedRekordRequestV002) { r.Signature.Verifier.KeyDetails = 999 })},
		{"key details of another key", "key_details_mismatch", request(func(r *rekorpb.HashedRekordRequestV002) {
			r.Signature.Verifier.KeyDetails = common.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384
		})},
		{"Ed25519 without pre-hash", "key_details_mismatch", &rekorpb.HashedRekordRequestV002{Digest: edSum, Signature: &rekorpb.Signature{Content: edSig, Verifier: pure}}},
		{"a short digest", "bad_field", request(func(r *rekorpb.HashedRekordRequestV002) { r.Digest = r.Digest[1:] })},
		{"another digest", "bad_signature", request(func(r *rekorpb.HashedRekordRequestV002) { r.Digest[0] ^= 1 })},
		{"another key", "bad_signature", request(func(r *rekorpb.HashedRekordRequestV002) { r.Signature.Verifier = other.keyPB() })},
		{"a broken signature", "bad_signature", request(func(r *rekorpb.HashedRekordRequestV002) { r.Signature.Content[9] ^= 1 })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := HashedRekord(tt.req); fault.KindOf(err) != fault.Invalid || fault.ReasonOf(err) != tt.reason {
				t.Errorf("got %v, want %s", err, tt.reason)
			}
		})
	}
	sigs := []*dssepb.Signature{{Sig: sig}}
	for _, tt := range []struct {
		name, reason string
		req          *rekorpb.DSSERequestV002
	}{
		{"nothing", "missing_field", &rekorpb.DSSERequestV002{}},
		{"no signatures", "missing_field", &rekorpb.DSSERequestV002{Envelope: &dssepb.Envelope{}, Verifiers: []*rekorpb.Verifier{s.keyPB()}}},
		{"no verifiers", "missing_field", &rekorpb.DSSERequestV002{Envelope: &dssepb.Envelope{Signatures: sigs}}},
		{"too many verifiers", "too_many_verifiers", &rekorpb.DSSERequestV002{Envelope: &dssepb.Envelope{Signatures: sigs}, Verifiers: make([]*rekorpb.Verifier, 17)}},
		{"too many signatures", "too_many_signatures", &rekorpb.DSSERequestV002{Envelope: &dssepb.Envelope{Signatures: make([]*dssepb.Signature, 17)}, Verifiers: []*rekorpb.Verifier{s.keyPB()}}},
		{"a signature of something else", "bad_signature", &rekorpb.DSSERequestV002{Envelope: &dssepb.Envelope{Signatures: sigs}, Verifiers: []*rekorpb.Verifier{s.keyPB()}}},
		{"a null verifier", "missing_field", &rekorpb.DSSERequestV002{Envelope: &dssepb.Envelope{Signatures: sigs}, Verifiers: []*rekorpb.Verifier{nil}}},
	} {
		t.Run("envelope: "+tt.name, func(t *testing.T) {
			if _, err := DSSE(tt.req); fault.KindOf(err) != fault.Invalid || fault.ReasonOf(err) != tt.reason {
				t.Errorf("got %v, want %s", err, tt.reason)
			}
		})
	}
}

func FuzzPropose(f *testing.F) {
	s := newSigner(f, "P-256")
	m := message{payloadType: inTotoType, payload: []byte(statementJSON)}
	for _, doc := range []map[string]any{
		hashedRekordDoc(f, s, s.certPEM), dsseDoc(envelopeJSON(f, m, s), s.pem), intoto002Doc(f, m, "k", s),
		proposal("intoto", "0.0.1", map[string]any{"content": map[string]any{"envelope": envelopeJSON(f, m, s)}, "publicKey": s.pem}),
	} {
		raw, err := json.Marshal(doc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := ijson.Parse(raw)
		if err != nil {
			return
		}
		e, err := Propose(everyKind(t), v)
		checkEntry(t, e, err)
	})
}

func FuzzVersion2(f *testing.F) {
	s := newSigner(f, "P-256")
	sum, sig := s.signDigest(f, []byte("x"))
	m := message{payloadType: inTotoType, payload: []byte(statementJSON)}
	for _, req := range []*rekorpb.CreateEntryRequest{
		{Spec: &rekorpb.CreateEntryRequest_HashedRekordRequestV002{HashedRekordRequestV002: &rekorpb.HashedRekordRequestV002{Digest: sum, Signature: &rekorpb.Signature{Content: sig, Verifier: s.certPB()}}}},
		{Spec: &rekorpb.CreateEntryRequest_DsseRequestV002{DsseRequestV002: &rekorpb.DSSERequestV002{
			Envelope:  &dssepb.Envelope{PayloadType: m.payloadType, Payload: m.payload, Signatures: []*dssepb.Signature{{Sig: s.signEnvelope(f, m)}}},
			Verifiers: []*rekorpb.Verifier{s.keyPB()}}}},
	} {
		raw, err := protojson.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		req := new(rekorpb.CreateEntryRequest)
		if protojson.Unmarshal(raw, req) != nil {
			return
		}
		if d := req.GetDsseRequestV002(); d != nil {
			e, err := DSSE(d)
			checkEntry(t, e, err)
		} else {
			e, err := HashedRekord(req.GetHashedRekordRequestV002())
			checkEntry(t, e, err)
		}
	})
}

// checkEntry wants a classified error, or an entry whose body is canonical, in bounds and readable.
func checkEntry(t *testing.T, e Entry, err error) {
	t.Helper()
	if err != nil {
		if k := fault.KindOf(err); k != fault.Invalid && k != fault.TooLarge {
			t.Fatalf("unclassified: %v", err)
		}
		return
	}
	if again, err := jsoncanonicalizer.Transform(e.Body); err != nil || string(again) != string(e.Body) || len(e.Body) > MaxBody {
		t.Fatalf("not canonical: %s (%v)", e.Body, err)
	}
	if _, err := Keys(e.Body); err != nil {
		t.Fatalf("keys of %s: %v", e.Body, err)
	}
}

func FuzzStoredBodies(f *testing.F) {
	s := newSigner(f, "P-256")
	e, err := propose(f, hashedRekordDoc(f, s, s.certPEM))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.Body)
	f.Fuzz(func(t *testing.T, body []byte) {
		_, keysErr := Keys(body)
		if _, _, err := KindVersion(body); err != nil && keysErr == nil || errors.Is(err, ErrUnknownKind) {
			t.Fatalf("keys without a kind: %v", err)
		}
	})
}

func BenchmarkHashedRekord(b *testing.B) {
	s := newSigner(b, "P-256")
	raw, err := json.Marshal(hashedRekordDoc(b, s, s.certPEM))
	if err != nil {
		b.Fatal(err)
	}
	sum, sig := s.signDigest(b, []byte("an artifact"))
	rawV2, err := protojson.Marshal(&rekorpb.CreateEntryRequest{Spec: &rekorpb.CreateEntryRequest_HashedRekordRequestV002{
		HashedRekordRequestV002: &rekorpb.HashedRekordRequestV002{Digest: sum, Signature: &rekorpb.Signature{Content: sig, Verifier: s.certPB()}}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("v1", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v, err := ijson.Parse(raw)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := Propose(Kinds{}, v); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("v2", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			req := new(rekorpb.CreateEntryRequest)
			if err := protojson.Unmarshal(rawV2, req); err != nil {
				b.Fatal(err)
			}
			if _, err := HashedRekord(req.GetHashedRekordRequestV002()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verification alone", func(b *testing.B) {
		for b.Loop() {
			if err := verifyDigest(s.Public(), s.hash, sum, sig); err != nil {
				b.Fatal(err)
			}
		}
	})
	e, err := propose(b, hashedRekordDoc(b, s, s.certPEM))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("keys of a stored body", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Keys(e.Body); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("canonicalization alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := jsoncanonicalizer.Transform(e.Body); err != nil {
				b.Fatal(err)
			}
		}
	})
}
