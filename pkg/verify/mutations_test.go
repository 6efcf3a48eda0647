package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/digitorus/timestamp"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/attestry/attestry/pkg/verify"
)

// mutation is one fault of one property. Exactly one of its changes is set.
type mutation struct {
	name string
	when func(c features) bool // nil: every form

	trial  func(tr *trial)                               // what anybody can do to a bundle, or a verifier's own configuration
	order  func(i *instance, o *order)                   // what an insider can: the bundle is made with the fault and signed by everybody
	trust  func(tr *prototrust.TrustedRoot, i *instance) // beside order
	policy func(p *verify.Policy)                        // beside order

	want   verify.Reason // "" when it does no harm
	wantOf func(c features) verify.Reason
}

// TestMutations runs every valid form of bundle, as it is and with every fault of every field and property, each refused with the
// reason of that property alone. `go test -v -run TestMutations ./pkg/verify` lists them and prints how many there are.
func TestMutations(t *testing.T) {
	cryptotest.SetGlobalRandom(t, 1)
	i := newInstance(t)
	list := mutations(i)
	all := append(forms(t, i), ownForms(t)...)
	if _, err := sharedDir(); err == nil || os.Getenv("CI") == "true" {
		all = append(all, vectorForms(t)...)
	} else {
		t.Log("skipped: the published bundles; set ATTESTRY_SHARED to the directory that holds conformance/")
	}
	ran, fields, properties := 0, 0, 0
	met, used := map[verify.Reason]bool{}, map[string]bool{}
	for _, f := range all {
		t.Run(f.name, func(t *testing.T) {
			t.Run("sound", func(t *testing.T) { f.trial().meets(t, "") })
			ran++
			fields += f.faultyFields(t, met)
			c := f.features()
			for _, m := range list {
				if m.when != nil && !m.when(c) || m.order != nil && f.maker == nil {
					continue
				}
				properties++
				used[m.name] = true
				want := m.refusal(c)
				met[want] = true
				t.Run(m.name, func(t *testing.T) { m.run(t, f, want) })
			}
		})
	}
	t.Logf("%d forms, %d faults of fields, %d of properties", ran, fields, properties)
	if ran < len(all) { // -run chose some
		return
	}
	for _, m := range list {
		if !used[m.name] {
			t.Errorf("%s: no form of bundle has that property", m.name)
		}
	}
	for _, code := range reasons(t) {
		switch {
		case code == verify.ReasonPolicyDenied, code == verify.ReasonTrustStale: // given by others
		case strings.HasPrefix(string(code), "image-"), strings.HasPrefix(string(code), "registry-"): // not of bundles
		case !met[code]:
			t.Errorf("no fault meets %s", code)
		}
	}
}

// refusal is what the mutation of a form must meet.
func (m *mutation) refusal(c features) verify.Reason {
	if m.wantOf != nil {
		return m.wantOf(c)
	}
	return m.want
}

func (m *mutation) run(t *testing.T, f *form, want verify.Reason) {
	tr := f.trial()
	switch {
	case m.order != nil:
		o := f.order
		m.order(f.maker, &o)
		tr.bundle = f.maker.bundle(o)
		if m.trust != nil {
			m.trust(tr.root, f.maker)
		}
		if m.policy != nil {
			m.policy(tr.policy)
		}
	default:
		m.trial(tr)
	}
	tr.meets(t, want)
}

func reason(r verify.Reason) func(features) verify.Reason {
	return func(features) verify.Reason { return r }
}

// When a mutation applies.
func isCert(c features) bool     { return c.cert }
func isKey(c features) bool      { return !c.cert }
func isDSSE(c features) bool     { return c.dsse }
func isBlob(c features) bool     { return !c.dsse }
func isLogged(c features) bool   { return c.log }
func isV1(c features) bool       { return c.log && !c.v2 }
func isV2(c features) bool       { return c.log && c.v2 }
func isPromised(c features) bool { return c.log && c.promise }
func isProven(c features) bool   { return c.log && c.proof }
func isStamped(c features) bool  { return c.needsTimestamp && c.timestamps > 0 }
func both(a, b func(features) bool) func(features) bool {
	return func(c features) bool { return a(c) && b(c) }
}

func entryOf(tr *trial) *protorekor.TransparencyLogEntry { return tle(tr.bundle) }

func text(old, new string) func([]byte) []byte {
	return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }
}

func signatureOf(b *protobundle.Bundle) []byte {
	if e := b.GetDsseEnvelope(); e != nil {
		return e.Signatures[0].Sig
	}
	return b.GetMessageSignature().Signature
}

// weaken changes the last arc of the algorithm before the message imprint over sig.
func weaken(token, sig []byte) []byte {
	token = bytes.Clone(token)
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		at := bytes.Index(token, hashed(h, sig))
		if at < 0 {
			continue
		}
		at -= 2               // OCTET STRING
		if token[at-2] == 5 { // NULL parameters
			at -= 2
		}
		token[at-1] = 10
	}
	return token
}

// anotherKey is a new key of the kind.
func anotherKey(t testing.TB, key crypto.PublicKey) crypto.PublicKey {
	t.Helper()
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return newKey(t, k.Curve).Public()
	case ed25519.PublicKey:
		other := bytes.Clone(k)
		other[0] ^= 1
		return ed25519.PublicKey(other)
	case *rsa.PublicKey:
		return &rsa.PublicKey{N: new(big.Int).Sub(k.N, big.NewInt(2)), E: k.E}
	}
	t.Fatalf("a key of type %T", key)
	return nil
}

func mutations(i *instance) []mutation {
	var list []mutation
	add := func(m mutation) { list = append(list, m) }
	stranger := newInstance(i.t) // an instance that the trusted root does not know
	past := timestamppb.New(i.now.Add(-365 * 24 * time.Hour * 20))
	future := timestamppb.New(i.now.Add(365 * 24 * time.Hour * 20))

	// The document.
	for name, change := range map[string]func([]byte) []byte{
		"JSON cut short":           func(b []byte) []byte { return b[:len(b)-1] },
		"data after the JSON":      func(b []byte) []byte { return append(b, "{}"...) },
		"unknown member":           text("{", `{"extra":1,`),
		"unknown member deep":      text(`"verificationMaterial":`, `"verificationMaterial":{"x":{}},"verificationMaterial":`),
		"member twice":             text("{", `{"mediaType":"x",`),
		"member twice, snake case": text("{", `{"media_type":"x",`),
		"member in another case":   text(`"mediaType"`, `"MediaType"`),
		"no object":                func([]byte) []byte { return []byte("[]") },
		"nested too deep": func([]byte) []byte {
			return []byte(`{"mediaType":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`)
		},
	} {
		add(mutation{name: name, trial: func(tr *trial) { tr.json = change }, want: verify.ReasonBundleMalformed})
	}
	add(mutation{name: "empty", trial: func(tr *trial) { tr.json = func([]byte) []byte { return []byte(" \n") } }, want: verify.ReasonNoSignature})
	add(mutation{name: "over 10 MiB", when: func(c features) bool { return c.version == 3 && c.v2 }, trial: func(tr *trial) {
		tr.json = func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 10<<20)...) }
	}, want: verify.ReasonTooLarge})
	for _, mediaType := range []string{
		"application/vnd.dev.sigstore.bundle.v0.4+json", "application/vnd.dev.sigstore.bundle.v99.9+json", "application/vnd.dev.sigstore.bundle.vfoo+json",
		"application/vnd.dev.sigstore.bundle+json;version=0.4", "application/vnd.dev.sigstore.bundle+json", "application/vnd.dev.sigstore.bundle.v0.2+json",
	} {
		add(mutation{name: "media type " + strings.ReplaceAll(mediaType, "/", "_"), trial: func(tr *trial) { tr.bundle.MediaType = mediaType }, want: verify.ReasonFormatUnsupported})
	}
	add(mutation{name: "the older spelling of 0.3", when: func(c features) bool { return c.version == 3 }, trial: func(tr *trial) {
		tr.bundle.MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.3"
	}})
	add(mutation{name: "a certificate chain in 0.3", when: func(c features) bool { return c.cert && c.version == 3 }, trial: func(tr *trial) { toChain(tr.bundle, nil) }, want: verify.ReasonBundleMalformed})
	before3 := func(c features) bool { return c.cert && c.version < 3 }
	add(mutation{name: "the root in the chain", when: before3, trial: func(tr *trial) { toChain(tr.bundle, i.root.Raw) }, want: verify.ReasonBundleMalformed})
	add(mutation{name: "nine certificates in the chain", when: before3, trial: func(tr *trial) {
		for range 9 {
			toChain(tr.bundle, i.inter.Raw)
		}
	}, want: verify.ReasonTooLarge})
	add(mutation{name: "33 entries", when: isLogged, trial: func(tr *trial) {
		for n := range 33 {
			e := proto.Clone(entryOf(tr)).(*protorekor.TransparencyLogEntry)
			e.LogIndex = int64(n)
			tr.bundle.VerificationMaterial.TlogEntries = append(tr.bundle.VerificationMaterial.TlogEntries, e)
		}
	}, want: verify.ReasonTooLarge})
	add(mutation{name: "33 timestamps", trial: func(tr *trial) {
		list := make([]*protocommon.RFC3161SignedTimestamp, 33)
		for n := range list {
			list[n] = &protocommon.RFC3161SignedTimestamp{SignedTimestamp: []byte{byte(n)}}
		}
		tr.bundle.VerificationMaterial.TimestampVerificationData = &protobundle.TimestampVerificationData{Rfc3161Timestamps: list}
	}, want: verify.ReasonTooLarge})
	add(mutation{name: "a proof of 65 hashes", when: isProven, trial: func(tr *trial) { entryOf(tr).InclusionProof.Hashes = make([][]byte, 65) }, want: verify.ReasonBundleMalformed})
	add(mutation{name: "a negative index", when: isLogged, trial: func(tr *trial) { entryOf(tr).LogIndex = -1 }, want: verify.ReasonBundleMalformed})
	add(mutation{name: "a negative time", when: isLogged, trial: func(tr *trial) { entryOf(tr).IntegratedTime = -1 }, want: verify.ReasonBundleMalformed})
	add(mutation{name: "a negative index in the proof", when: isProven, trial: func(tr *trial) { entryOf(tr).InclusionProof.LogIndex = -1 }, want: verify.ReasonBundleMalformed})
	add(mutation{name: "a negative size", when: isProven, trial: func(tr *trial) { entryOf(tr).InclusionProof.TreeSize = -1 }, want: verify.ReasonBundleMalformed})
	add(mutation{name: "a digest of SHA-1", when: isBlob, trial: func(tr *trial) {
		tr.json = func(b []byte) []byte {
			for _, alg := range []string{"SHA2_256", "SHA2_384", "SHA2_512"} {
				b = bytes.Replace(b, []byte(`"`+alg+`"`), []byte(`"SHA1"`), 1)
			}
			return b
		}
	}, want: verify.ReasonBundleMalformed})

	// Entries of other kinds and logs.
	add(mutation{name: "the kind of another entry", when: isV1, trial: func(tr *trial) {
		kv := entryOf(tr).KindVersion
		if kv.Kind == "dsse" {
			kv.Kind = "hashedrekord"
		} else {
			kv.Kind, kv.Version = "dsse", "0.0.1"
		}
	}, want: verify.ReasonEntryMalformed})
	add(mutation{name: "the version of another entry", when: func(c features) bool {
		return isProven(c) && (c.kind == "hashedrekord/0.0.1" || c.kind == "dsse/0.0.1")
	}, trial: func(tr *trial) {
		entryOf(tr).KindVersion.Version = "0.0.2"
	}, wantOf: func(c features) verify.Reason {
		if c.kind == "dsse/0.0.1" && !c.dsse {
			return verify.ReasonEntryMismatch
		}
		return verify.ReasonEntryMalformed
	}})
	add(mutation{name: "the ID of the other log", when: isLogged, order: func(i *instance, o *order) {
		o.after = func(b *protobundle.Bundle) {
			id := &tle(b).LogId.KeyId
			if v1, v2 := keyID(i.t, i.log1Key.Public()), keyID(i.t, i.log2.Public()); bytes.Equal(*id, v1) {
				*id = v2
			} else {
				*id = v1
			}
		}
	}, wantOf: func(c features) verify.Reason {
		switch {
		case c.promise:
			return verify.ReasonSETInvalid
		case c.v2:
			return verify.ReasonCheckpointOrigin
		}
		return verify.ReasonCheckpointUnsigned
	}})
	add(mutation{name: "a second entry, of a log nobody knows", when: isLogged, trial: func(tr *trial) {
		e := proto.Clone(entryOf(tr)).(*protorekor.TransparencyLogEntry)
		e.LogId.KeyId[0] ^= 1
		tr.bundle.VerificationMaterial.TlogEntries = append(tr.bundle.VerificationMaterial.TlogEntries, e)
	}})
	add(mutation{name: "a time on a v2 entry outside the certificate", when: both(isV2, isCert), trial: func(tr *trial) { entryOf(tr).IntegratedTime = 1 }, want: verify.ReasonCertExpired})

	// Bodies, logged as they are.
	body := func(name string, when func(features) bool, change func([]byte) []byte, want verify.Reason) {
		add(mutation{name: "body " + name, when: both(isLogged, when), order: func(_ *instance, o *order) { o.body = change }, want: want})
	}
	replaced := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte {
			changed := bytes.Replace(b, []byte(old), []byte(new), 1)
			if bytes.Equal(changed, b) {
				panic("nothing to replace: " + old)
			}
			return changed
		}
	}
	body("with a member twice", isV1, replaced(`{"apiVersion"`, `{"kind":"hashedrekord","apiVersion"`), verify.ReasonEntryMalformed)
	body("with a member in another case", isV1, replaced(`{"apiVersion"`, `{"Kind":"hashedrekord","apiVersion"`), verify.ReasonEntryMalformed)
	body("with data after it", isV1, func(b []byte) []byte { return append(b, '1') }, verify.ReasonEntryMalformed)
	body("of another version", isLogged, replaced(`{"apiVersion":"0.0.`, `{"apiVersion":"0.0.9`), verify.ReasonEntryMalformed)
	body("spelled with a space", isV2, func(b []byte) []byte { return append(b, ' ') }, verify.ReasonEntryMismatch)
	body("with other key details", isV2, replaced(`"keyDetails":"PKIX_`, `"keyDetails":"PKIX_X`), verify.ReasonEntryMismatch)
	body("with a key for a certificate", both(isV2, isCert), replaced(`"x509Certificate"`, `"publicKey"`), verify.ReasonEntryVerifier)
	body("with a certificate for a key", both(isV2, isKey), replaced(`"publicKey"`, `"x509Certificate"`), verify.ReasonEntryVerifier)
	body("without a signature", isV2, replaced(`"content"`, `"x"`), verify.ReasonEntrySignature)
	inBase64 := func(old string) func([]byte) []byte { // the first letter of a member's value
		return func(b []byte) []byte {
			at := bytes.Index(b, []byte(old))
			if at < 0 {
				panic("no " + old)
			}
			c := bytes.Clone(b)
			at += len(old) + 4
			if c[at] == 'A' {
				c[at] = 'B'
			} else {
				c[at] = 'A'
			}
			return c
		}
	}
	isKind := func(kind string) func(features) bool { return func(c features) bool { return c.kind == kind } }
	body("with another signature (hashedrekord 0.0.1)", isKind("hashedrekord/0.0.1"), inBase64(`"signature":{"content":"`), verify.ReasonEntrySignature)
	body("with another signature (dsse 0.0.1)", isKind("dsse/0.0.1"), inBase64(`"signatures":[{"signature":"`), verify.ReasonEntrySignature)
	body("with another signature (intoto)", isKind("intoto/0.0.2"), func(b []byte) []byte {
		head, rest, _ := strings.Cut(string(b), `"sig":"`)
		value, tail, _ := strings.Cut(rest, `"`)
		once, _ := base64.StdEncoding.DecodeString(value)
		raw, _ := base64.StdEncoding.DecodeString(string(once))
		again := base64.StdEncoding.EncodeToString(flip(raw))
		return []byte(head + `"sig":"` + base64.StdEncoding.EncodeToString([]byte(again)) + `"` + tail)
	}, verify.ReasonEntrySignature)
	body("with another signature (hashedrekord 0.0.2)", isKind("hashedrekord/0.0.2"), inBase64(`"signature":{"content":"`), verify.ReasonEntrySignature)
	body("with another signature (dsse 0.0.2)", isKind("dsse/0.0.2"), inBase64(`"signatures":[{"content":"`), verify.ReasonEntrySignature)
	body("with another certificate or key (v2)", isV2, inBase64(`"rawBytes":"MII`[:12]), verify.ReasonEntryVerifier)
	otherHex := func(old string) func([]byte) []byte {
		return func(b []byte) []byte {
			c := bytes.Clone(b)
			at := bytes.Index(c, []byte(old)) + len(old)
			if c[at] == '0' {
				c[at] = '1'
			} else {
				c[at] = '0'
			}
			return c
		}
	}
	body("for another digest (hashedrekord 0.0.1)", isKind("hashedrekord/0.0.1"), otherHex(`"value":"`), verify.ReasonEntryDigest)
	body("for another payload (dsse 0.0.1)", isKind("dsse/0.0.1"), otherHex(`"payloadHash":{"algorithm":"sha256","value":"`), verify.ReasonEntryDigest)
	body("for another envelope (dsse 0.0.1)", isKind("dsse/0.0.1"), otherHex(`"envelopeHash":{"algorithm":"sha256","value":"`), "")
	body("for another payload (intoto)", isKind("intoto/0.0.2"), otherHex(`"payloadHash":{"algorithm":"sha256","value":"`), verify.ReasonEntryDigest)
	body("for another digest (v2)", isV2, inBase64(`"digest":"`), verify.ReasonEntryDigest)
	body("with two signatures (dsse 0.0.1)", isKind("dsse/0.0.1"), replaced(`"signatures":[`, `"signatures":[{"signature":"AA==","verifier":"AA=="},`), verify.ReasonEntryMalformed)
	body("with two signatures (intoto)", isKind("intoto/0.0.2"), replaced(`"signatures":[`, `"signatures":[{"publicKey":"AA==","sig":"AA=="},`), verify.ReasonEntryMalformed)
	body("with two signatures (dsse 0.0.2)", isKind("dsse/0.0.2"), replaced(`"signatures":[`, `"signatures":[{},`), verify.ReasonEntryMalformed)

	// Checkpoints.
	checkpoint := func(name string, when func(features) bool, change func(string) string, want verify.Reason) {
		add(mutation{name: "checkpoint " + name, when: both(isProven, when), trial: func(tr *trial) {
			cp := entryOf(tr).InclusionProof.Checkpoint
			cp.Envelope = change(cp.Envelope)
		}, want: want})
	}
	lines := func(change func(head []string, sigs string) string) func(string) string {
		return func(s string) string {
			head, sigs, _ := strings.Cut(s, "\n\n")
			return change(strings.Split(head, "\n"), sigs)
		}
	}
	rejoin := func(head []string, sigs string) string { return strings.Join(head, "\n") + "\n\n" + sigs }
	checkpoint("of another size", isProven, lines(func(h []string, s string) string { h[1] += "0"; return rejoin(h, s) }), verify.ReasonCheckpointInvalid)
	checkpoint("with a leading zero", isProven, lines(func(h []string, s string) string { h[1] = "0" + h[1]; return rejoin(h, s) }), verify.ReasonCheckpointMalformed)
	checkpoint("without a size", isProven, lines(func(h []string, s string) string { return rejoin(append(h[:1], h[2:]...), s) }), verify.ReasonCheckpointMalformed)
	checkpoint("without an origin", isProven, lines(func(h []string, s string) string { h[0] = ""; return rejoin(h, s) }), verify.ReasonCheckpointMalformed)
	checkpoint("without a root hash", isProven, lines(func(h []string, s string) string { return rejoin(h[:2], s) }), verify.ReasonCheckpointMalformed)
	checkpoint("with a short root hash", isProven, lines(func(h []string, s string) string { h[2] = "AAAA"; return rejoin(h, s) }), verify.ReasonCheckpointMalformed)
	checkpoint("with another root hash", isProven, lines(func(h []string, s string) string { h[2] = strings.Repeat("A", 43) + "="; return rejoin(h, s) }), verify.ReasonCheckpointInvalid)
	checkpoint("with one line more", isProven, lines(func(h []string, s string) string {
		return rejoin(append(h[:3:3], append([]string{"extension"}, h[3:]...)...), s)
	}), verify.ReasonCheckpointInvalid)
	checkpoint("of another origin", isV1, lines(func(h []string, s string) string { h[0] = "x" + h[0]; return rejoin(h, s) }), verify.ReasonCheckpointInvalid)
	checkpoint("without a tree ID", isV1, lines(func(h []string, s string) string { h[0], _, _ = strings.Cut(h[0], " "); return rejoin(h, s) }), verify.ReasonCheckpointOrigin)
	checkpoint("of another origin", isV2, lines(func(h []string, s string) string { h[0] = "x" + h[0]; return rejoin(h, s) }), verify.ReasonCheckpointOrigin)
	checkpoint("without a signature", isProven, lines(func(h []string, _ string) string { return rejoin(h, "") }), verify.ReasonCheckpointUnsigned)
	checkpoint("with a dash for the em dash", isProven, lines(func(h []string, s string) string { return rejoin(h, strings.Replace(s, "\u2014 ", "- ", 1)) }), verify.ReasonCheckpointMalformed)
	checkpoint("with a cosignature", isV1, lines(func(h []string, s string) string { return rejoin(h, s+"\u2014 witness.example AAAAAAECAw==\n") }), verify.ReasonCheckpointUnsigned)
	checkpoint("with a cosignature before", isV2, lines(func(h []string, s string) string { return rejoin(h, "\u2014 witness.example AAAAAAECAw==\n"+s) }), "")
	checkpoint("with a cosignature after", isV2, lines(func(h []string, s string) string { return rejoin(h, s+"\u2014 witness.example AAAAAAECAw==\n") }), "")
	checkpoint("with 100 cosignatures before", isV2, lines(func(h []string, s string) string {
		return rejoin(h, strings.Repeat("\u2014 witness.example AAAAAAECAw==\n", 100)+s)
	}), verify.ReasonTooLarge)
	checkpoint("over 64 KiB", isProven, lines(func(h []string, s string) string { return rejoin(append(h, strings.Repeat("x", 64<<10)), s) }), verify.ReasonTooLarge)
	ours := func(change func(h []string, own string) string) mutation { // on checkpoints whose one line we know
		return mutation{order: func(_ *instance, o *order) {
			o.after = func(b *protobundle.Bundle) {
				cp := tle(b).InclusionProof.Checkpoint
				cp.Envelope = lines(change)(cp.Envelope)
			}
		}}
	}
	for _, c := range []struct {
		name   string
		when   func(features) bool
		change func(h []string, own string) string
		want   verify.Reason
	}{
		{"signed with another key", isProven, func(h []string, own string) string { return rejoin(h, breakSignature(own)) }, verify.ReasonCheckpointInvalid},
		{"of another key hint", isProven, func(h []string, own string) string {
			at := strings.LastIndex(own, " ") + 1
			raw, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(own[at:]))
			raw[0] ^= 1
			return rejoin(h, own[:at]+base64.StdEncoding.EncodeToString(raw)+"\n")
		}, verify.ReasonCheckpointUnsigned},
		{"by another name", isV2, func(h []string, own string) string { return rejoin(h, strings.Replace(own, "\u2014 ", "\u2014 x", 1)) }, verify.ReasonCheckpointUnsigned},
	} {
		m := ours(c.change)
		m.name, m.when, m.want = "checkpoint "+c.name, both(isProven, c.when), c.want
		add(m)
	}
	signed := func(name string, when func(features) bool, change func(i *instance, o *order), want verify.Reason) {
		add(mutation{name: name, when: when, order: change, want: want})
	}
	signed("a signed checkpoint of another log", isV2, func(_ *instance, o *order) { o.origin = "log2027-1.rekor.example" }, verify.ReasonCheckpointOrigin)
	signed("a signed checkpoint of a v1 form", isV2, func(_ *instance, o *order) { o.origin = rekor2Name + " - 5" }, verify.ReasonCheckpointOrigin)
	signed("a signed checkpoint without a tree ID", both(isV1, isProven), func(_ *instance, o *order) { o.origin = rekor1Name }, verify.ReasonCheckpointOrigin)
	signed("a signed size with a leading zero", isProven, func(_ *instance, o *order) {
		o.tree = func(s string) string { return strings.Replace(s, "\n2\n", "\n02\n", 1) }
	}, verify.ReasonCheckpointMalformed)
	signed("a signed extension line", isProven, func(_ *instance, o *order) { o.tree = func(s string) string { return s + "extension\n" } }, "")
	signed("a signed tree of another size", isProven, func(_ *instance, o *order) {
		o.tree = func(s string) string { return strings.Replace(s, "\n2\n", "\n3\n", 1) }
	}, verify.ReasonCheckpointMismatch)
	signed("a checkpoint by a key that claims to be the log's", isProven, func(_ *instance, o *order) { o.logKey = stranger.log2 }, verify.ReasonCheckpointInvalid)

	// Time.
	signed("integrated after the certificate", both(isPromised, isCert), func(i *instance, o *order) { o.entryTime = i.now.Add(time.Hour) }, verify.ReasonCertExpired)
	signed("integrated before the certificate", both(isPromised, isCert), func(i *instance, o *order) { o.entryTime = i.now.Add(-time.Minute) }, verify.ReasonCertExpired)
	signed("integrated before the log's key", isPromised, func(i *instance, o *order) { o.entryTime = i.now.AddDate(-2, 0, 0) }, verify.ReasonLogExpired)
	token := func(name string, change func(ts *timestamp.Timestamp), want verify.Reason) {
		signed(name, isStamped, func(_ *instance, o *order) {
			before := o.token
			o.token = func(ts *timestamp.Timestamp) {
				if before != nil {
					before(ts)
				}
				change(ts)
			}
		}, want)
	}
	token("stamped after the certificate", func(ts *timestamp.Timestamp) { ts.Time = i.now.Add(time.Hour) }, verify.ReasonCertExpired)
	token("stamped before the certificate", func(ts *timestamp.Timestamp) { ts.Time = i.now.Add(-time.Minute) }, verify.ReasonCertExpired)
	token("stamped before the authority's window", func(ts *timestamp.Timestamp) { ts.Time = i.now.AddDate(-2, 0, 0) }, verify.ReasonTimestampExpired)
	token("stamped after the TSA certificate", func(ts *timestamp.Timestamp) { ts.Time = i.now.AddDate(6, 0, 0) }, verify.ReasonTimestampChain)
	token("stamped over another signature", func(ts *timestamp.Timestamp) { ts.HashedMessage = flip(ts.HashedMessage) }, verify.ReasonTimestampMismatch)
	huge := &rsa.PublicKey{N: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 9000), big.NewInt(1)), E: 65537}
	hugeTSA := certify(i.t, &x509.Certificate{Subject: pkix.Name{CommonName: "huge"}, NotAfter: i.now}, i.tsaRoot, huge, i.tsaRootKey)
	signed("a token with an RSA key of 9,000 bits", isStamped, func(_ *instance, o *order) {
		o.tsaLeaf, o.token = hugeTSA, func(ts *timestamp.Timestamp) { ts.AddTSACertificate = true }
	}, verify.ReasonTooLarge)
	token("a token with ten certificates", func(ts *timestamp.Timestamp) {
		ts.AddTSACertificate, ts.Certificates = true, slices.Repeat([]*x509.Certificate{i.tsaRoot}, 9)
	}, verify.ReasonTooLarge)
	stamp := func(name string, when func(features) bool, change func([]byte) []byte, wantOf func(features) verify.Reason) {
		add(mutation{name: name, when: both(isStamped, when), trial: func(tr *trial) {
			ts := tr.bundle.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps[0]
			ts.SignedTimestamp = change(ts.SignedTimestamp)
		}, wantOf: wantOf})
	}
	stamp("a token with data after it", isStamped, func(b []byte) []byte { return append(b, 0) }, reason(verify.ReasonTimestampMalformed))
	stamp("a token cut short", isStamped, func(b []byte) []byte { return b[:len(b)-1] }, reason(verify.ReasonTimestampMalformed))
	stamp("a rejection", isStamped, func([]byte) []byte { return []byte{0x30, 5, 0x30, 3, 2, 1, 2} }, reason(verify.ReasonTimestampMalformed))
	add(mutation{name: "a token over a digest that is no SHA-2", when: isStamped, trial: func(tr *trial) {
		ts := tr.bundle.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps[0]
		ts.SignedTimestamp = weaken(ts.SignedTimestamp, signatureOf(tr.bundle))
	}, want: verify.ReasonTimestampHash})
	add(mutation{name: "a garbage token beside the good one", when: func(c features) bool { return c.timestamps > 0 }, trial: func(tr *trial) {
		d := tr.bundle.VerificationMaterial.TimestampVerificationData
		d.Rfc3161Timestamps = append(d.Rfc3161Timestamps, &protocommon.RFC3161SignedTimestamp{SignedTimestamp: []byte{1}})
	}})
	tsaLeaf := func(name string, change func(c *x509.Certificate), want verify.Reason) {
		for _, pinned := range []bool{true, false} {
			how := " (pinned)"
			if !pinned {
				how = " (in the token)"
			}
			leaf := i.newTSALeaf(change)
			add(mutation{name: name + how, when: isStamped, order: func(_ *instance, o *order) {
				o.tsaLeaf = leaf
				o.token = func(ts *timestamp.Timestamp) { ts.AddTSACertificate = !pinned }
			}, trust: func(tr *prototrust.TrustedRoot, i *instance) {
				tr.TimestampAuthorities[0].CertChain = chainOf(leaf, i.tsaRoot)
				if !pinned {
					tr.TimestampAuthorities[0].CertChain = chainOf(i.tsaRoot)
				}
			}, want: want})
		}
	}
	tsaLeaf("TSA certificate whose usage is not critical", func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }, verify.ReasonTimestampUsage)
	tsaLeaf("TSA certificate with two usages", func(c *x509.Certificate) {
		eku, _ := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}, {1, 3, 6, 1, 5, 5, 7, 3, 3}})
		c.ExtraExtensions[0].Value = eku
	}, verify.ReasonTimestampUsage)
	tsaLeaf("TSA certificate for code signing", func(c *x509.Certificate) {
		eku, _ := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 3}})
		c.ExtraExtensions[0].Value = eku
	}, verify.ReasonTimestampUsage)
	tsaLeaf("TSA certificate that ended", func(c *x509.Certificate) { c.NotAfter = i.now.Add(-time.Hour) }, verify.ReasonTimestampChain)
	tsaLeaf("TSA certificate that had not begun", func(c *x509.Certificate) { c.NotBefore = i.now.Add(time.Hour) }, verify.ReasonTimestampChain)
	add(mutation{name: "TSA certificate by another root of that name", when: isStamped, order: func(_ *instance, o *order) {
		o.token = func(ts *timestamp.Timestamp) { ts.AddTSACertificate = true }
	}, trust: func(tr *prototrust.TrustedRoot, _ *instance) {
		tr.TimestampAuthorities[0].CertChain = chainOf(stranger.tsaRoot)
	}, want: verify.ReasonTimestampChain})

	add(mutation{name: "a second time, outside the certificate", when: func(c features) bool { return c.cert && isPromised(c) && c.timestamps > 0 }, order: func(_ *instance, o *order) {
		o.token = func(ts *timestamp.Timestamp) { ts.Time = i.now.Add(time.Hour) }
	}, want: verify.ReasonCertExpired})

	// Windows are closed: the last moment counts, the next does not.
	edge := func(name string, when func(features) bool, at time.Time, set func(tr *prototrust.TrustedRoot, end *timestamppb.Timestamp), want verify.Reason) {
		for _, late := range []bool{false, true} {
			end, m := at, mutation{name: name + " that ends at the very moment", when: when, order: func(*instance, *order) {}}
			if late {
				end, m.name, m.want = at.Add(-time.Second), name+" that ended a second before", want
			}
			m.trust = func(tr *prototrust.TrustedRoot, _ *instance) { set(tr, timestamppb.New(end)) }
			add(m)
		}
	}
	edge("a log's key", isPromised, i.entryTime, func(tr *prototrust.TrustedRoot, end *timestamppb.Timestamp) {
		for _, l := range tr.Tlogs {
			l.PublicKey.ValidFor.End = end
		}
	}, verify.ReasonLogExpired)
	edge("a CT log's key", func(c features) bool { return c.needsSCT }, i.now, func(tr *prototrust.TrustedRoot, end *timestamppb.Timestamp) {
		tr.Ctlogs[0].PublicKey.ValidFor.End = end
	}, verify.ReasonSCTExpired)
	edge("a timestamp authority", isStamped, i.signedTime, func(tr *prototrust.TrustedRoot, end *timestamppb.Timestamp) {
		tr.TimestampAuthorities[0].ValidFor.End = end
	}, verify.ReasonTimestampExpired)
	edge("a certificate authority", isCert, i.signedTime, func(tr *prototrust.TrustedRoot, end *timestamppb.Timestamp) {
		tr.CertificateAuthorities[0].ValidFor.End = end
	}, verify.ReasonAuthorityExpired)
	signed("certificate that ends at the very moment", isCert, func(_ *instance, o *order) { o.leaf = func(c *x509.Certificate) { c.NotAfter = i.signedTime } }, "")
	signed("certificate that ended a second before", isCert, func(_ *instance, o *order) {
		o.leaf = func(c *x509.Certificate) { c.NotAfter = i.signedTime.Add(-time.Second) }
	}, verify.ReasonCertExpired)
	timed := func(c features) bool { return !c.cert && (isPromised(c) || c.timestamps > 0) }
	add(mutation{name: "a key that ends at the very moment", when: timed, order: func(*instance, *order) {}, policy: func(p *verify.Policy) { p.KeyWindow.End = i.signedTime }})
	add(mutation{name: "a key that ended a second before", when: timed, order: func(*instance, *order) {}, policy: func(p *verify.Policy) { p.KeyWindow.End = i.signedTime.Add(-time.Second) }, want: verify.ReasonKeyExpired})
	add(mutation{name: "a key that begins a second after", when: timed, order: func(*instance, *order) {}, policy: func(p *verify.Policy) { p.KeyWindow.Start = i.signedTime.Add(time.Second) }, want: verify.ReasonKeyExpired})

	// The certificate, with an SCT over just this.
	leaf := func(name string, change func(c *x509.Certificate), want verify.Reason) {
		signed("certificate "+name, isCert, func(_ *instance, o *order) { o.leaf = change }, want)
	}
	leaf("for servers", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, verify.ReasonCertUsage)
	leaf("not for signatures", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, verify.ReasonCertUsage)
	leaf("of a CA", func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid = true, true
		c.KeyUsage |= x509.KeyUsageCertSign
	}, verify.ReasonCertIsCA)
	leaf("with a critical extension nobody knows", func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
	}, verify.ReasonCertChain)
	leaf("that names nobody", func(c *x509.Certificate) { c.URIs = nil }, verify.ReasonCertSubject)
	leaf("without an issuer", func(c *x509.Certificate) { c.ExtraExtensions = nil }, verify.ReasonIdentityIssuer)
	leaf("of another issuer", func(c *x509.Certificate) {
		c.ExtraExtensions = issuerExtensions(i.t, "https://evil.example", "https://evil.example")
	}, verify.ReasonIdentityIssuer)
	leaf("of the issuer with a slash", func(c *x509.Certificate) { c.ExtraExtensions = issuerExtensions(i.t, testIssuer+"/", testIssuer+"/") }, verify.ReasonIdentityIssuer)
	leaf("of two issuers", func(c *x509.Certificate) {
		c.ExtraExtensions = issuerExtensions(i.t, "https://evil.example", testIssuer)
	}, verify.ReasonIssuerConflict)
	leaf("with the old issuer extension alone", func(c *x509.Certificate) { c.ExtraExtensions = c.ExtraExtensions[:1] }, "")
	leaf("with the new issuer extension alone", func(c *x509.Certificate) { c.ExtraExtensions = c.ExtraExtensions[1:] }, "")
	leaf("for somebody else", func(c *x509.Certificate) { c.URIs = nil; c.EmailAddresses = []string{"eve@example.com"} }, verify.ReasonIdentitySubject)
	leaf("for a longer subject", func(c *x509.Certificate) { u, _ := url.Parse(testSubject + "x"); c.URIs = []*url.URL{u} }, verify.ReasonIdentitySubject)
	signed("certificate by another key in the issuer's name", isCert, func(_ *instance, o *order) { o.caKey = stranger.interKey }, verify.ReasonCertChain)
	signed("certificate of an RSA key of 9,000 bits", isCert, func(_ *instance, o *order) { o.leafPub = huge }, verify.ReasonTooLarge)
	signed("certificate of another key", isCert, func(_ *instance, o *order) { o.leafPub = o.stranger.key.Public() }, verify.ReasonSignatureInvalid)
	add(mutation{name: "certificate with another value of an extension", when: isCert, order: func(*instance, *order) {},
		policy: func(p *verify.Policy) { p.Identities[0].Extensions.BuildTrigger = "push" }, want: verify.ReasonIdentityExtension})
	signed("a signature that was never right", func(features) bool { return true }, func(_ *instance, o *order) { o.signature = flip }, verify.ReasonSignatureInvalid)

	// SCTs.
	sct := func(name string, change func(o *order), want verify.Reason) {
		signed("SCT "+name, func(c features) bool { return c.needsSCT }, func(_ *instance, o *order) { change(o) }, want)
	}
	sct("missing", func(o *order) { o.noSCT = true }, verify.ReasonSCTMissing)
	sct("with a broken signature", func(o *order) {
		o.sct = func(_ *uint64, sig []byte) {
			if sig != nil {
				sig[len(sig)-1] ^= 1
			}
		}
	}, verify.ReasonSCTInvalid)
	sct("over another time", func(o *order) {
		o.sct = func(ms *uint64, sig []byte) {
			if sig != nil {
				*ms++
			}
		}
	}, verify.ReasonSCTInvalid)
	sct("before the log's key", func(o *order) { o.sct = func(ms *uint64, _ []byte) { *ms = 1 } }, verify.ReasonSCTExpired)
	sct("for another issuer", func(o *order) { o.sctIssuer = stranger.inter.RawSubjectPublicKeyInfo }, verify.ReasonSCTInvalid)
	sct("with extensions", func(o *order) { o.sctExts = []byte{0, 0, 5, 0, 0, 0, 0, 9} }, "")
	sct("list cut short", func(o *order) { o.sctList = func(b []byte) []byte { return b[:len(b)-1] } }, verify.ReasonSCTMalformed)
	sct("of another version", func(o *order) { o.sctList = func(b []byte) []byte { b[4] = 1; return b } }, verify.ReasonSCTMalformed)
	sct("by an unknown log", func(o *order) { o.sctList = func(b []byte) []byte { b[5] ^= 1; return b } }, verify.ReasonSCTMissing)
	repeat := func(n int) func([]byte) []byte {
		return func(b []byte) []byte {
			all := bytes.Repeat(b[2:], n)
			return append([]byte{byte(len(all) >> 8), byte(len(all))}, all...)
		}
	}
	sct("list of 17", func(o *order) { o.sctList = repeat(17) }, verify.ReasonSCTMalformed)
	two := 2
	add(mutation{name: "SCT twice where two are asked for", when: func(c features) bool { return c.needsSCT }, order: func(_ *instance, o *order) { o.sctList = repeat(2) },
		policy: func(p *verify.Policy) { p.Thresholds.SCTs = &two }, want: verify.ReasonSCTMissing})

	// Statements.
	statement := func(name string, change func(string) string, want verify.Reason) {
		signed("statement "+name, isDSSE, func(_ *instance, o *order) { o.statement = []byte(change(string(o.statement))) }, want)
	}
	swap := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	statement("with a member twice", swap(`{"_type"`, `{"predicateType":"x","_type"`), verify.ReasonStatementMalformed)
	statement("with a member twice deep in the predicate", swap(`"c":null`, `"c":null,"c":1`), verify.ReasonStatementMalformed)
	statement("with a member in another case", swap(`{"_type"`, `{"PredicateType":"x","_type"`), verify.ReasonStatementMalformed)
	statement("with a subject's member in another case", swap(`"digest"`, `"Digest":{},"digest"`), verify.ReasonStatementMalformed)
	statement("with a digest twice", swap(`"digest":{`, `"digest":{"sha256":"00",`), verify.ReasonStatementMalformed)
	statement("with data after it", func(s string) string { return s + "1" }, verify.ReasonStatementMalformed)
	statement("nested too deep", swap("null", strings.Repeat("[", 70)+strings.Repeat("]", 70)), verify.ReasonStatementMalformed)
	statement("of another type", swap("Statement/v1", "Statement/v9"), verify.ReasonStatementMalformed)
	statement("of the older type", swap("Statement/v1", "Statement/v0.1"), "")
	statement("without subjects", func(string) string {
		return `{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"p","predicate":{}}`
	}, verify.ReasonStatementMalformed)
	statement("of 1025 subjects", swap(`"subject":[`, `"subject":[`+strings.Repeat(`{"digest":{"sha256":"00"}},`, 1024)), verify.ReasonTooLarge)
	statement("with 33 digests of a subject", swap(`"digest":{`, `"digest":{`+manyDigests(32)), verify.ReasonTooLarge)
	statement("with the digest under another name", swap(`"sha256"`, `"sha512"`), verify.ReasonSubjectMismatch)
	statement("about something else", swap(fmt.Sprintf("%x", sha256.Sum256(theArtifact)), fmt.Sprintf("%x", sha256.Sum256(otherArtifact))), verify.ReasonSubjectMismatch)

	// What the verifier is told.
	told := func(name string, when func(features) bool, change func(tr *trial), wantOf func(features) verify.Reason) {
		add(mutation{name: name, when: when, trial: change, wantOf: wantOf})
	}
	subject := func(c features) verify.Reason {
		if c.dsse {
			return verify.ReasonSubjectMismatch
		}
		return verify.ReasonDigestMismatch
	}
	told("another artifact", nil, func(tr *trial) {
		tr.artifact = func() verify.Artifact { return verify.FromBytes([]byte("something else")) }
	}, subject)
	told("a predicate type", nil, func(tr *trial) { tr.policy.PredicateType = "https://example.com/of/another/type" }, reason(verify.ReasonPredicateMissing))
	told("another issuer", isCert, func(tr *trial) { tr.policy.Identities = identity(i.t, "https://evil.example", testSubject).Identities }, reason(verify.ReasonIdentityIssuer))
	told("another subject", isCert, func(tr *trial) {
		id, err := verify.NewIdentity("", ".+", "eve@example.com", "")
		if err != nil {
			i.t.Fatal(err)
		}
		tr.policy.Identities = []verify.Identity{id}
	}, reason(verify.ReasonIdentitySubject))
	told("a key for a certificate's bundle", isCert, func(tr *trial) { tr.policy = &verify.Policy{Key: i.signerKey.Public()} }, reason(verify.ReasonKeyMismatch))
	told("an identity for a key's bundle", isKey, func(tr *trial) { tr.policy = identity(i.t, testIssuer, testSubject) }, reason(verify.ReasonKeyMismatch))
	told("another key", isKey, func(tr *trial) { tr.policy = &verify.Policy{Key: anotherKey(i.t, tr.policy.Key)} }, func(c features) verify.Reason {
		if c.log {
			return verify.ReasonEntryVerifier
		}
		return verify.ReasonSignatureInvalid
	})
	told("a key that had ended", isKey, func(tr *trial) { tr.policy.KeyWindow.End = past.AsTime() }, func(c features) verify.Reason {
		if c.timestamps == 0 && !c.promise {
			return verify.ReasonNoTime
		}
		return verify.ReasonKeyExpired
	})
	many := verify.MaxThreshold
	told("32 log entries asked for", isLogged, func(tr *trial) { tr.policy.Thresholds.LogEntries = &many }, reason(verify.ReasonEntryMissing))
	told("32 SCTs asked for", nil, func(tr *trial) { tr.policy.Thresholds.SCTs = &many }, reason(verify.ReasonSCTMissing))
	told("32 integrated times asked for", nil, func(tr *trial) { tr.policy.Thresholds.IntegratedTimestamps = &many }, reason(verify.ReasonNoTime))
	told("32 signed times asked for", nil, func(tr *trial) { tr.policy.Thresholds.SignedTimestamps = &many }, reason(verify.ReasonNoTime))
	told("32 times asked for", nil, func(tr *trial) { tr.policy.Thresholds.ObserverTimestamps = &many }, reason(verify.ReasonNoTime))

	// What is trusted.
	trust := func(name string, when func(features) bool, change func(tr *prototrust.TrustedRoot), want verify.Reason) {
		told("trusted root "+name, when, func(tr *trial) { change(tr.root) }, reason(want))
	}
	eachLog := func(logs func(*prototrust.TrustedRoot) []*prototrust.TransparencyLogInstance, change func(*prototrust.TransparencyLogInstance)) func(*prototrust.TrustedRoot) {
		return func(tr *prototrust.TrustedRoot) {
			for _, l := range logs(tr) {
				change(l)
			}
		}
	}
	tlogs, ctlogs := (*prototrust.TrustedRoot).GetTlogs, (*prototrust.TrustedRoot).GetCtlogs
	otherKey := func(l *prototrust.TransparencyLogInstance) {
		l.PublicKey.RawBytes = spki(i.t, stranger.log2.Public())
		l.PublicKey.KeyDetails = protocommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256
	}
	trust("without this log", isLogged, func(tr *prototrust.TrustedRoot) {
		tr.Tlogs = []*prototrust.TransparencyLogInstance{stranger.logInstance(stranger.log2, "https://"+rekor2Name)}
	}, verify.ReasonLogUnknown)
	trust("with another key of the log (promised)", isPromised, eachLog(tlogs, otherKey), verify.ReasonSETInvalid)
	trust("with another key of the log (proven)", func(c features) bool { return isProven(c) && !c.promise }, eachLog(tlogs, otherKey), verify.ReasonCheckpointUnsigned)
	trust("with a log's key that had ended", isPromised, eachLog(tlogs, func(l *prototrust.TransparencyLogInstance) { l.PublicKey.ValidFor.End = past }), verify.ReasonLogExpired)
	trust("with a log's key that had not begun", isPromised, eachLog(tlogs, func(l *prototrust.TransparencyLogInstance) { l.PublicKey.ValidFor.Start = future }), verify.ReasonLogExpired)
	trust("with a log's key without a beginning", isLogged, eachLog(tlogs, func(l *prototrust.TransparencyLogInstance) { l.PublicKey.ValidFor.Start = nil }), verify.ReasonTrustMissing)
	trust("with the log elsewhere", isV2, eachLog(tlogs, func(l *prototrust.TransparencyLogInstance) { l.BaseUrl = "https://elsewhere.example" }), verify.ReasonCheckpointOrigin)
	trust("with the log nowhere", isV2, eachLog(tlogs, func(l *prototrust.TransparencyLogInstance) { l.BaseUrl = "" }), verify.ReasonCheckpointOrigin)
	trust("with other authorities", isCert, func(tr *prototrust.TrustedRoot) {
		tr.CertificateAuthorities = stranger.protoRoot().CertificateAuthorities
	}, verify.ReasonCertChain)
	trust("with authorities that had ended", isCert, func(tr *prototrust.TrustedRoot) {
		for _, ca := range tr.CertificateAuthorities {
			ca.ValidFor.End = past
		}
	}, verify.ReasonAuthorityExpired)
	trust("with authorities that had not begun", isCert, func(tr *prototrust.TrustedRoot) {
		for _, ca := range tr.CertificateAuthorities {
			ca.ValidFor.Start, ca.ValidFor.End = future, nil
		}
	}, verify.ReasonAuthorityExpired)
	trust("without authorities", isCert, func(tr *prototrust.TrustedRoot) { cut(tr, "cas") }, verify.ReasonTrustMissing)
	trust("with a decoy of the issuer's name before it", isCert, func(tr *prototrust.TrustedRoot) {
		tr.CertificateAuthorities = append(stranger.protoRoot().CertificateAuthorities, tr.CertificateAuthorities...)
	}, "")
	trust("without logs and timestamp authorities", isCert, func(tr *prototrust.TrustedRoot) { cut(tr, "tlogs"); cut(tr, "tsas") }, verify.ReasonTrustMissing)
	trust("with other timestamp authorities", isStamped, func(tr *prototrust.TrustedRoot) {
		tr.TimestampAuthorities = stranger.protoRoot().TimestampAuthorities
	}, verify.ReasonTimestampUntrusted)
	trust("with timestamp authorities that had ended", isStamped, func(tr *prototrust.TrustedRoot) {
		for _, tsa := range tr.TimestampAuthorities {
			tsa.ValidFor.End = past
		}
	}, verify.ReasonTimestampExpired)
	trust("without timestamp authorities", func(c features) bool { return isStamped(c) && c.log }, func(tr *prototrust.TrustedRoot) { cut(tr, "tsas") }, verify.ReasonTimestampUntrusted)
	needsSCT := func(c features) bool { return c.needsSCT }
	trust("with other CT logs", needsSCT, func(tr *prototrust.TrustedRoot) { tr.Ctlogs = stranger.protoRoot().Ctlogs }, verify.ReasonSCTMissing)
	trust("with another key of the CT log", needsSCT, eachLog(ctlogs, otherKey), verify.ReasonSCTInvalid)
	trust("with a CT log's key that had ended", needsSCT, eachLog(ctlogs, func(l *prototrust.TransparencyLogInstance) { l.PublicKey.ValidFor.End = past }), verify.ReasonSCTExpired)
	trust("without CT logs", needsSCT, func(tr *prototrust.TrustedRoot) { cut(tr, "ctlogs") }, "")
	trust("of another media type", nil, func(tr *prototrust.TrustedRoot) { tr.MediaType = "application/vnd.dev.sigstore.trustedroot.v0.2+json" }, verify.ReasonTrustMissing)
	return list
}
