package verify_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
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

var theArtifact = []byte("the artifact\n")

func tle(b *protobundle.Bundle) *protorekor.TransparencyLogEntry {
	return b.VerificationMaterial.TlogEntries[0]
}

func flip(b []byte) []byte {
	c := bytes.Clone(b)
	c[len(c)-1] ^= 1
	return c
}

func cut(tr *prototrust.TrustedRoot, what string) {
	switch what {
	case "tlogs":
		tr.Tlogs = nil
	case "ctlogs":
		tr.Ctlogs = nil
	case "tsas":
		tr.TimestampAuthorities = nil
	case "cas":
		tr.CertificateAuthorities = nil
	}
}

func TestSoundBundlesAreAccepted(t *testing.T) {
	i := newInstance(t)
	statement := statementFor(theArtifact)
	for name, c := range map[string]struct {
		order order
		root  func(*prototrust.TrustedRoot)
	}{
		"a blob in Rekor v1":                             {order: order{log: "v1"}},
		"a blob in Rekor v1 with the SET's time alone":   {order: order{log: "v1", noTSA: true}},
		"a blob in Rekor v2":                             {order: order{log: "v2"}},
		"an attestation in Rekor v1":                     {order: order{log: "v1", statement: statement}},
		"an attestation in Rekor v2 as hashedrekord":     {order: order{log: "v2", statement: statement}},
		"an attestation in Rekor v2 as dsse 0.0.2":       {order: order{log: "v2-dsse", statement: statement}},
		"a token that brings the TSA certificate":        {order: order{log: "v2", token: func(ts *timestamp.Timestamp) { ts.AddTSACertificate = true }}},
		"an SCT with extensions":                         {order: order{log: "v2", sctExts: []byte{0, 0, 5, 0, 0, 0, 0, 9}}},
		"no CT log in the trusted root and no SCT":       {order: order{log: "v2", noSCT: true}, root: func(tr *prototrust.TrustedRoot) { cut(tr, "ctlogs") }},
		"a trusted root with a timestamp authority only": {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { cut(tr, "tlogs") }},
		"a TSA chain that begins with its CA":            {order: order{log: "v2", token: func(ts *timestamp.Timestamp) { ts.AddTSACertificate = true }}, root: func(tr *prototrust.TrustedRoot) { tr.TimestampAuthorities[0].CertChain = chainOf(i.tsaRoot) }},
		"an anchor that is the intermediate":             {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { tr.CertificateAuthorities[0].CertChain = chainOf(i.inter) }},
		"the older spelling of the 0.3 media type":       {order: order{log: "v2", after: func(b *protobundle.Bundle) { b.MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.3" }}},
		"a second entry of a log nobody knows": {order: order{log: "v1", after: func(b *protobundle.Bundle) {
			e := proto.Clone(tle(b)).(*protorekor.TransparencyLogEntry)
			e.LogId.KeyId[0] ^= 1
			b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, e)
		}}},
		"a garbage token beside a good one": {order: order{log: "v2", after: func(b *protobundle.Bundle) {
			d := b.VerificationMaterial.TimestampVerificationData
			d.Rfc3161Timestamps = append(d.Rfc3161Timestamps, &protocommon.RFC3161SignedTimestamp{SignedTimestamp: []byte{1}})
		}}},
		"witness lines around the log's own": {order: order{log: "v2", after: func(b *protobundle.Bundle) {
			cp := tle(b).InclusionProof.Checkpoint
			head, own, _ := strings.Cut(cp.Envelope, "\n\n")
			cp.Envelope = head + "\n\n\u2014 witness.example AAAAAAECAw==\n" + own + "\u2014 " + rekor2Name + " AAAAAAECAw==\n"
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			c.order.artifact = theArtifact
			var tweaks []func(*prototrust.TrustedRoot)
			if c.root != nil {
				tweaks = append(tweaks, c.root)
			}
			root, bundle := i.trustedRoot(tweaks...), i.issue(c.order)
			policy := identity(t, testIssuer, testSubject)
			r, err := check(root, bundle, verify.FromBytes(theArtifact), policy)
			if err != nil {
				t.Fatalf("%s: %v", verify.ReasonOf(err), err)
			}
			if len(r.VerifiedTimestamps) == 0 || r.VerifiedIdentity.Subject != testSubject || r.BundleDigest != fmt.Sprintf("sha256:%x", sha256.Sum256(bundle)) {
				t.Errorf("result lacks a time or the identity: %+v", r)
			}
			agree(t, root, bundle, theArtifact, policy)
		})
	}
}

// Each case changes one property of a bundle, trusted root or policy that is otherwise sound.
func TestOneWrongPropertyIsRefusedWithItsReason(t *testing.T) {
	i := newInstance(t)
	statement := statementFor(theArtifact)
	type c struct {
		order    order
		root     func(*prototrust.TrustedRoot)
		json     func([]byte) []byte
		artifact []byte
		policy   func(*verify.Policy)
		want     verify.Reason
	}
	text := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }
	}
	after := func(log string, f func(*protobundle.Bundle)) order { return order{log: log, after: f} }
	payload := func(s string) order { return order{log: "v2", statement: []byte(s)} }
	good := string(statement)
	ended := func(tr *prototrust.TrustedRoot) *timestamppb.Timestamp { return timestamppb.New(i.now.Add(-time.Hour)) }

	for name, c := range map[string]c{
		// structure
		"empty file":               {order: order{log: "v2"}, json: func([]byte) []byte { return []byte(" \n") }, want: verify.ReasonNoSignature},
		"truncated JSON":           {order: order{log: "v2"}, json: func(b []byte) []byte { return b[:len(b)-1] }, want: verify.ReasonBundleMalformed},
		"data after the JSON":      {order: order{log: "v2"}, json: func(b []byte) []byte { return append(b, "{}"...) }, want: verify.ReasonBundleMalformed},
		"unknown field":            {order: order{log: "v2"}, json: text("{", `{"extra":1,`), want: verify.ReasonBundleMalformed},
		"field given twice":        {order: order{log: "v2"}, json: text("{", `{"mediaType":"x",`), want: verify.ReasonBundleMalformed},
		"version 0.4":              {order: after("v2", func(b *protobundle.Bundle) { b.MediaType = "application/vnd.dev.sigstore.bundle.v0.4+json" }), want: verify.ReasonFormatUnsupported},
		"version 99.9":             {order: after("v2", func(b *protobundle.Bundle) { b.MediaType = "application/vnd.dev.sigstore.bundle.v99.9+json" }), want: verify.ReasonFormatUnsupported},
		"no media type":            {order: after("v2", func(b *protobundle.Bundle) { b.MediaType = "" }), want: verify.ReasonFormatUnsupported},
		"too large":                {order: order{log: "v2"}, json: func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 10<<20)...) }, want: verify.ReasonTooLarge},
		"no content":               {order: after("v2", func(b *protobundle.Bundle) { b.Content = nil }), want: verify.ReasonBundleMalformed},
		"no verification material": {order: after("v2", func(b *protobundle.Bundle) { b.VerificationMaterial.Content = nil }), want: verify.ReasonBundleMalformed},
		"certificate chain in 0.3": {order: after("v2", func(b *protobundle.Bundle) { toChain(b, nil) }), want: verify.ReasonBundleMalformed},
		"empty certificate chain in 0.2": {order: after("v1", func(b *protobundle.Bundle) {
			toChain(b, nil)
			b.VerificationMaterial.GetX509CertificateChain().Certificates = nil
			b.MediaType = v02
		}), want: verify.ReasonBundleMalformed},
		"root inside the chain in 0.2": {order: after("v1", func(b *protobundle.Bundle) { toChain(b, i.root.Raw); b.MediaType = v02 }), want: verify.ReasonBundleMalformed},
		"nine certificates in the chain": {order: after("v1", func(b *protobundle.Bundle) {
			for range 8 {
				toChain(b, i.inter.Raw)
			}
			b.MediaType = v02
		}), want: verify.ReasonTooLarge},
		"0.1 without a promise": {order: after("v2", func(b *protobundle.Bundle) { b.MediaType = v01 }), want: verify.ReasonBundleMalformed},
		"0.2 without a proof":   {order: after("v1", func(b *protobundle.Bundle) { tle(b).InclusionProof = nil; b.MediaType = v02 }), want: verify.ReasonBundleMalformed},
		"33 log entries": {order: after("v1", func(b *protobundle.Bundle) {
			for n := range 32 {
				e := proto.Clone(tle(b)).(*protorekor.TransparencyLogEntry)
				e.LogIndex = int64(n)
				b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, e)
			}
		}), want: verify.ReasonTooLarge},
		"a log entry twice": {order: after("v1", func(b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, tle(b))
		}), want: verify.ReasonBundleMalformed},
		"33 timestamps": {order: after("v2", func(b *protobundle.Bundle) {
			d := b.VerificationMaterial.TimestampVerificationData
			for n := range 32 {
				d.Rfc3161Timestamps = append(d.Rfc3161Timestamps, &protocommon.RFC3161SignedTimestamp{SignedTimestamp: []byte{byte(n)}})
			}
		}), want: verify.ReasonTooLarge},
		"a timestamp twice": {order: after("v2", func(b *protobundle.Bundle) {
			d := b.VerificationMaterial.TimestampVerificationData
			d.Rfc3161Timestamps = append(d.Rfc3161Timestamps, d.Rfc3161Timestamps[0])
		}), want: verify.ReasonBundleMalformed},
		"negative log index":           {order: after("v2", func(b *protobundle.Bundle) { tle(b).LogIndex = -1 }), want: verify.ReasonBundleMalformed},
		"no body":                      {order: after("v2", func(b *protobundle.Bundle) { tle(b).CanonicalizedBody = nil }), want: verify.ReasonBundleMalformed},
		"no log ID":                    {order: after("v2", func(b *protobundle.Bundle) { tle(b).LogId = nil }), want: verify.ReasonBundleMalformed},
		"no kind":                      {order: after("v2", func(b *protobundle.Bundle) { tle(b).KindVersion = nil }), want: verify.ReasonBundleMalformed},
		"unknown kind":                 {order: after("v2", func(b *protobundle.Bundle) { tle(b).KindVersion.Kind = "rpm" }), want: verify.ReasonFormatUnsupported},
		"another kind than the body's": {order: after("v1", func(b *protobundle.Bundle) { tle(b).KindVersion.Kind = "dsse" }), want: verify.ReasonBundleMalformed},
		"no signature":                 {order: after("v2", func(b *protobundle.Bundle) { b.GetMessageSignature().Signature = nil }), want: verify.ReasonNoSignature},
		"no message digest":            {order: after("v2", func(b *protobundle.Bundle) { b.GetMessageSignature().MessageDigest = nil }), want: verify.ReasonBundleMalformed},
		"two DSSE signatures": {order: order{log: "v2", statement: statement, after: func(b *protobundle.Bundle) {
			e := b.GetDsseEnvelope()
			e.Signatures = append(e.Signatures, e.Signatures[0])
		}}, want: verify.ReasonBundleMalformed},
		"no DSSE signature":    {order: order{log: "v2", statement: statement, after: func(b *protobundle.Bundle) { b.GetDsseEnvelope().Signatures = nil }}, want: verify.ReasonBundleMalformed},
		"another payload type": {order: order{log: "v2", statement: statement, after: func(b *protobundle.Bundle) { b.GetDsseEnvelope().PayloadType = "text/plain" }}, want: verify.ReasonBundleMalformed},
		"v1 body with a duplicate key": {order: order{log: "v1", body: func(b []byte) []byte {
			return bytes.Replace(b, []byte(`{"apiVersion"`), []byte(`{"kind":"hashedrekord","apiVersion"`), 1)
		}}, want: verify.ReasonBundleMalformed},
		"no promise and no proof": {order: after("v1", func(b *protobundle.Bundle) {
			e := proto.Clone(tle(b)).(*protorekor.TransparencyLogEntry)
			e.InclusionPromise, e.InclusionProof, e.LogIndex = nil, nil, 7
			b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, e)
		}), want: verify.ReasonInclusionInvalid},
		"v2 entry with a promise only": {order: after("v2", func(b *protobundle.Bundle) {
			tle(b).InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: []byte{1}}
			tle(b).InclusionProof = nil
			b.MediaType = v01
		}), want: verify.ReasonInclusionInvalid},

		// statement
		"duplicate key in the statement":         {order: payload(strings.Replace(good, `{"_type"`, `{"predicateType":"x","_type"`, 1)), want: verify.ReasonBundleMalformed},
		"duplicate key deep in the predicate":    {order: payload(strings.Replace(good, `"c":null`, `"c":null,"c":1`, 1)), want: verify.ReasonBundleMalformed},
		"case variant of a member":               {order: payload(strings.Replace(good, `{"_type"`, `{"PredicateType":"x","_type"`, 1)), want: verify.ReasonBundleMalformed},
		"case variant in a subject":              {order: payload(strings.Replace(good, `"digest"`, `"Digest":{},"digest"`, 1)), want: verify.ReasonBundleMalformed},
		"data after the statement":               {order: payload(good + "1"), want: verify.ReasonBundleMalformed},
		"statement nested too deep":              {order: payload(strings.Replace(good, "null", strings.Repeat("[", 70)+strings.Repeat("]", 70), 1)), want: verify.ReasonBundleMalformed},
		"statement of another type":              {order: payload(strings.Replace(good, "Statement/v1", "Statement/v9", 1)), want: verify.ReasonBundleMalformed},
		"statement without subjects":             {order: payload(`{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"p","predicate":{}}`), want: verify.ReasonBundleMalformed},
		"1025 subjects":                          {order: payload(strings.Replace(good, `"subject":[`, `"subject":[`+strings.Repeat(`{"digest":{"sha256":"00"}},`, 1024), 1)), want: verify.ReasonTooLarge},
		"33 digests of one subject":              {order: payload(strings.Replace(good, `"digest":{`, `"digest":{`+manyDigests(32), 1)), want: verify.ReasonTooLarge},
		"artifact is no subject":                 {order: order{log: "v2", statement: statement}, artifact: []byte("another"), want: verify.ReasonSubjectMismatch},
		"right digest under the wrong algorithm": {order: payload(strings.Replace(good, `"sha256"`, `"sha512"`, 1)), want: verify.ReasonSubjectMismatch},
		"another predicate type":                 {order: order{log: "v2", statement: statement}, policy: func(p *verify.Policy) { p.PredicateType = "https://slsa.dev/provenance/v1" }, want: verify.ReasonPredicateMissing},
		"a message signature for an attestation": {order: order{log: "v2"}, policy: func(p *verify.Policy) { p.PredicateType = "https://slsa.dev/provenance/v1" }, want: verify.ReasonPredicateMissing},

		// log
		"unknown log":  {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { tr.Tlogs = tr.Tlogs[1:] }, want: verify.ReasonLogUnknown},
		"no log entry": {order: after("v2", func(b *protobundle.Bundle) { b.VerificationMaterial.TlogEntries = nil }), want: verify.ReasonInclusionInvalid},
		"entry for another signature (v1)": {order: after("v1", func(b *protobundle.Bundle) {
			b.GetMessageSignature().Signature = flip(b.GetMessageSignature().Signature)
		}), want: verify.ReasonEntryMismatch},
		"entry for another signature (v2)": {order: after("v2", func(b *protobundle.Bundle) {
			b.GetMessageSignature().Signature = flip(b.GetMessageSignature().Signature)
		}), want: verify.ReasonEntryMismatch},
		"entry for another digest (v1)": {order: after("v1", func(b *protobundle.Bundle) {
			b.GetMessageSignature().MessageDigest.Digest = flip(b.GetMessageSignature().MessageDigest.Digest)
		}), want: verify.ReasonEntryMismatch},
		"entry for another digest (v2)": {order: after("v2", func(b *protobundle.Bundle) {
			b.GetMessageSignature().MessageDigest.Digest = flip(b.GetMessageSignature().MessageDigest.Digest)
		}), want: verify.ReasonEntryMismatch},
		"entry for another certificate (v1)": {order: after("v1", func(b *protobundle.Bundle) {
			b.VerificationMaterial.GetCertificate().RawBytes = i.certificate(order{}).Raw
		}), want: verify.ReasonEntryMismatch},
		"entry for another certificate (v2)": {order: after("v2", func(b *protobundle.Bundle) {
			b.VerificationMaterial.GetCertificate().RawBytes = i.certificate(order{}).Raw
		}), want: verify.ReasonEntryMismatch},
		"entry for another payload (v1)":         {order: order{log: "v1", statement: statement, after: func(b *protobundle.Bundle) { b.GetDsseEnvelope().Payload = append(b.GetDsseEnvelope().Payload, ' ') }}, want: verify.ReasonEntryMismatch},
		"entry for another payload (v2)":         {order: order{log: "v2", statement: statement, after: func(b *protobundle.Bundle) { b.GetDsseEnvelope().Payload = append(b.GetDsseEnvelope().Payload, ' ') }}, want: verify.ReasonEntryMismatch},
		"entry for another payload (dsse 0.0.2)": {order: order{log: "v2-dsse", statement: statement, after: func(b *protobundle.Bundle) { b.GetDsseEnvelope().Payload = append(b.GetDsseEnvelope().Payload, ' ') }}, want: verify.ReasonEntryMismatch},
		"v2 body that is not the canonical one":  {order: after("v2", func(b *protobundle.Bundle) { tle(b).CanonicalizedBody = append(tle(b).CanonicalizedBody, ' ') }), want: verify.ReasonEntryMismatch},
		"SET signature": {order: after("v1", func(b *protobundle.Bundle) {
			tle(b).InclusionPromise.SignedEntryTimestamp = flip(tle(b).InclusionPromise.SignedEntryTimestamp)
		}), want: verify.ReasonSETInvalid},
		"SET over another index":      {order: after("v1", func(b *protobundle.Bundle) { tle(b).LogIndex++ }), want: verify.ReasonSETInvalid},
		"SET over another time":       {order: after("v1", func(b *protobundle.Bundle) { tle(b).IntegratedTime++ }), want: verify.ReasonSETInvalid},
		"SET after the log key ended": {order: order{log: "v1"}, root: func(tr *prototrust.TrustedRoot) { tr.Tlogs[1].PublicKey.ValidFor.End = ended(tr) }, want: verify.ReasonSETInvalid},
		"SET before the log key started": {order: order{log: "v1"}, root: func(tr *prototrust.TrustedRoot) {
			tr.Tlogs[1].PublicKey.ValidFor.Start = timestamppb.New(i.now.AddDate(1, 0, 0))
		}, want: verify.ReasonSETInvalid},
		"integrated after the certificate ended": {order: after("v1", func(b *protobundle.Bundle) {
			tle(b).IntegratedTime = i.now.Add(time.Hour).Unix()
			tle(b).InclusionPromise.SignedEntryTimestamp = i.set(tle(b))
		}), want: verify.ReasonCertExpired},
		"sibling hash":                          {order: after("v2", func(b *protobundle.Bundle) { tle(b).InclusionProof.Hashes[0] = flip(tle(b).InclusionProof.Hashes[0]) }), want: verify.ReasonInclusionInvalid},
		"proof for another index (v1)":          {order: after("v1", func(b *protobundle.Bundle) { tle(b).InclusionProof.LogIndex = 0 }), want: verify.ReasonInclusionInvalid},
		"proof for another index (v2)":          {order: after("v2", func(b *protobundle.Bundle) { tle(b).InclusionProof.LogIndex = 0 }), want: verify.ReasonInclusionInvalid},
		"proof one hash short":                  {order: after("v2", func(b *protobundle.Bundle) { tle(b).InclusionProof.Hashes = nil }), want: verify.ReasonInclusionInvalid},
		"proof of 65 hashes":                    {order: after("v2", func(b *protobundle.Bundle) { tle(b).InclusionProof.Hashes = make([][]byte, 65) }), want: verify.ReasonBundleMalformed},
		"proof of another size than checkpoint": {order: after("v2", func(b *protobundle.Bundle) { tle(b).InclusionProof.TreeSize = 3 }), want: verify.ReasonCheckpointInvalid},
		"proof of another root than checkpoint": {order: after("v2", func(b *protobundle.Bundle) { tle(b).InclusionProof.RootHash = flip(tle(b).InclusionProof.RootHash) }), want: verify.ReasonCheckpointInvalid},
		"no checkpoint":                         {order: after("v2", func(b *protobundle.Bundle) { tle(b).InclusionProof.Checkpoint = nil }), want: verify.ReasonBundleMalformed},
		"checkpoint signed by another key":      {order: checkpoint("v2", func(s string) string { h, own, _ := strings.Cut(s, "\n\n"); return h + "\n\n" + breakSignature(own) }), want: verify.ReasonCheckpointInvalid},
		"checkpoint with another size":          {order: checkpoint("v2", func(s string) string { return strings.Replace(s, "\n2\n", "\n4\n", 1) }), want: verify.ReasonCheckpointInvalid},
		"checkpoint with a leading zero":        {order: checkpoint("v2", func(s string) string { return strings.Replace(s, "\n2\n", "\n02\n", 1) }), want: verify.ReasonCheckpointInvalid},
		"checkpoint without a signature":        {order: checkpoint("v2", func(s string) string { h, _, _ := strings.Cut(s, "\n\n"); return h + "\n\n" }), want: verify.ReasonCheckpointInvalid},
		"checkpoint with a malformed line":      {order: checkpoint("v2", func(s string) string { return strings.Replace(s, "\u2014 ", "- ", 1) }), want: verify.ReasonCheckpointInvalid},
		"checkpoint of another origin (v2)":     {order: order{log: "v2", origin: "log2027-1.rekor.example"}, want: verify.ReasonCheckpointInvalid},
		"v1 origin on a v2 log":                 {order: order{log: "v2", origin: rekor2Name + " - 5"}, want: verify.ReasonCheckpointInvalid},
		"v2 origin on a v1 log":                 {order: order{log: "v1", origin: rekor1Name}, want: verify.ReasonCheckpointInvalid},
		"v2 log without a base URL":             {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { tr.Tlogs[0].BaseUrl = "" }, want: verify.ReasonCheckpointInvalid},

		// time
		"v2 entry and no timestamp":        {order: order{log: "v2", noTSA: true}, want: verify.ReasonNoTime},
		"integrated time without a SET":    {order: order{log: "v1", noTSA: true, after: func(b *protobundle.Bundle) { tle(b).InclusionPromise = nil }}, want: verify.ReasonNoTime},
		"timestamp over another signature": {order: order{log: "v2", token: func(ts *timestamp.Timestamp) { ts.HashedMessage = flip(ts.HashedMessage) }}, want: verify.ReasonTimestampInvalid},
		"timestamp signature": {order: after("v2", func(b *protobundle.Bundle) {
			ts := b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps[0]
			ts.SignedTimestamp = flip(ts.SignedTimestamp)
		}), want: verify.ReasonTimestampInvalid},
		"timestamp with trailing data": {order: after("v2", func(b *protobundle.Bundle) {
			ts := b.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps[0]
			ts.SignedTimestamp = append(ts.SignedTimestamp, 0)
		}), want: verify.ReasonTimestampInvalid},
		"timestamp by an unknown authority": {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) {
			other := newInstance(t)
			tr.TimestampAuthorities[0].CertChain = chainOf(other.tsaLeaf, other.tsaRoot)
		}, want: verify.ReasonTimestampInvalid},
		"timestamp after the authority ended":    {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { tr.TimestampAuthorities[0].ValidFor.End = ended(tr) }, want: verify.ReasonTimestampInvalid},
		"timestamp after the certificate ended":  {order: order{log: "v2", token: func(ts *timestamp.Timestamp) { ts.Time = i.now.Add(time.Hour) }}, want: verify.ReasonCertExpired},
		"timestamp before the certificate began": {order: order{log: "v2", token: func(ts *timestamp.Timestamp) { ts.Time = i.now.Add(-time.Minute) }}, want: verify.ReasonCertExpired},
		"TSA certificate without critical EKU":   {order: order{log: "v2", tsaLeaf: i.newTSALeaf(func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }), token: func(ts *timestamp.Timestamp) { ts.AddTSACertificate = true }}, root: func(tr *prototrust.TrustedRoot) { tr.TimestampAuthorities[0].CertChain = chainOf(i.tsaRoot) }, want: verify.ReasonTimestampInvalid},
		"no timestamp authority in trusted root": {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { cut(tr, "tsas") }, want: verify.ReasonTimestampInvalid},

		// certificate
		"certificate by another authority": {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) {
			other := newInstance(t)
			tr.CertificateAuthorities[0].CertChain = chainOf(other.inter, other.root)
		}, want: verify.ReasonCertChain},
		"certificate after the authority ended": {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { tr.CertificateAuthorities[0].ValidFor.End = ended(tr) }, want: verify.ReasonCertChain},
		"certificate for servers":               {order: order{log: "v2", leaf: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }}, want: verify.ReasonCertChain},
		"certificate not for signatures":        {order: order{log: "v2", leaf: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }}, want: verify.ReasonCertChain},
		"CA certificate as signer": {order: order{log: "v2", leaf: func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid = true, true
			c.KeyUsage |= x509.KeyUsageCertSign
		}}, want: verify.ReasonCertChain},
		"no SCT": {order: order{log: "v2", noSCT: true}, want: verify.ReasonSCTMissing},
		"SCT by an unknown log": {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) {
			other := newInstance(t)
			tr.Ctlogs = []*prototrust.TransparencyLogInstance{other.logInstance(other.ctKey, "https://ct.example")}
		}, want: verify.ReasonSCTMissing},
		"SCT signature": {order: order{log: "v2", sct: func(_ *uint64, sig []byte) {
			if sig != nil {
				sig[len(sig)-1] ^= 1
			}
		}}, want: verify.ReasonSCTInvalid},
		"SCT over another time": {order: order{log: "v2", sct: func(ms *uint64, sig []byte) {
			if sig != nil {
				*ms++
			}
		}}, want: verify.ReasonSCTInvalid},
		"SCT after the log ended": {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { tr.Ctlogs[0].PublicKey.ValidFor.End = ended(tr) }, want: verify.ReasonSCTInvalid},

		// signature and identity
		"artifact changed":                      {order: order{log: "v2"}, artifact: []byte("another"), want: verify.ReasonSubjectMismatch},
		"signature by another key":              {order: order{log: "v2", leafPub: newKey(t, elliptic.P256()).Public()}, want: verify.ReasonSignatureInvalid},
		"envelope signature by another key":     {order: order{log: "v2", statement: statement, leafPub: newKey(t, elliptic.P256()).Public()}, want: verify.ReasonSignatureInvalid},
		"subject":                               {order: order{log: "v2", leaf: func(c *x509.Certificate) { c.URIs = nil; c.EmailAddresses = []string{"eve@example.com"} }}, want: verify.ReasonIdentitySubject},
		"subject that extends the accepted one": {order: order{log: "v2", leaf: func(c *x509.Certificate) { u, _ := url.Parse(testSubject + "x"); c.URIs = []*url.URL{u} }}, want: verify.ReasonIdentitySubject},
		"no subject":                            {order: order{log: "v2", leaf: func(c *x509.Certificate) { c.URIs = nil }}, want: verify.ReasonIdentityIssuer},
		"issuer": {order: order{log: "v2", leaf: func(c *x509.Certificate) {
			c.ExtraExtensions = issuerExtensions(t, "https://evil.example", "https://evil.example")
		}}, want: verify.ReasonIdentityIssuer},
		"issuer with a trailing slash":            {order: order{log: "v2", leaf: func(c *x509.Certificate) { c.ExtraExtensions = issuerExtensions(t, testIssuer+"/", testIssuer+"/") }}, want: verify.ReasonIdentityIssuer},
		"issuer extensions that contradict":       {order: order{log: "v2", leaf: func(c *x509.Certificate) { c.ExtraExtensions = issuerExtensions(t, "https://evil.example", testIssuer) }}, want: verify.ReasonIdentityIssuer},
		"no issuer":                               {order: order{log: "v2", leaf: func(c *x509.Certificate) { c.ExtraExtensions = nil }}, want: verify.ReasonIdentityIssuer},
		"certificate's bundle under a key policy": {order: order{log: "v2"}, policy: func(p *verify.Policy) { *p = verify.Policy{Key: i.signerKey.Public()} }, want: verify.ReasonKeyMismatch},
		"key's bundle under an identity policy":   {order: order{log: "v2", withKey: true}, want: verify.ReasonKeyMismatch},
		"bundle of another key":                   {order: order{log: "v2", withKey: true}, policy: func(p *verify.Policy) { *p = verify.Policy{Key: newKey(t, elliptic.P256()).Public()} }, want: verify.ReasonEntryMismatch},
		"signed outside the key's window": {order: order{log: "v2", withKey: true}, policy: func(p *verify.Policy) {
			*p = verify.Policy{Key: i.signerKey.Public(), KeyWindow: verify.Window{End: i.now}}
		}, want: verify.ReasonKeyMismatch},
		"key's window and no time": {order: order{log: "v2", withKey: true, noTSA: true}, policy: func(p *verify.Policy) {
			*p = verify.Policy{Key: i.signerKey.Public(), KeyWindow: verify.Window{Start: i.now}}
		}, want: verify.ReasonNoTime},

		// trusted root
		"neither log nor timestamp authority": {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { cut(tr, "tlogs"); cut(tr, "tsas") }, want: verify.ReasonTrustMissing},
		"no certificate authority":            {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { cut(tr, "cas") }, want: verify.ReasonTrustMissing},
		"log key without a start":             {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { tr.Tlogs[0].PublicKey.ValidFor.Start = nil }, want: verify.ReasonTrustMissing},
		"trusted root of another media type":  {order: order{log: "v2"}, root: func(tr *prototrust.TrustedRoot) { tr.MediaType = "application/vnd.dev.sigstore.trustedroot.v0.2+json" }, want: verify.ReasonTrustMissing},
	} {
		t.Run(name, func(t *testing.T) {
			c.order.artifact = theArtifact
			var tweaks []func(*prototrust.TrustedRoot)
			if c.root != nil {
				tweaks = append(tweaks, c.root)
			}
			bundle := i.issue(c.order)
			if c.json != nil {
				bundle = c.json(bundle)
			}
			policy := identity(t, testIssuer, testSubject)
			if c.policy != nil {
				c.policy(policy)
			}
			artifact := theArtifact
			if c.artifact != nil {
				artifact = c.artifact
			}
			_, err := check(i.trustedRoot(tweaks...), bundle, verify.FromBytes(artifact), policy)
			if err == nil {
				t.Fatal("accepted")
			}
			if got := verify.ReasonOf(err); got != c.want {
				t.Errorf("reason %q, want %q (%v)", got, c.want, err)
			}
		})
	}
}

const (
	v01 = "application/vnd.dev.sigstore.bundle+json;version=0.1"
	v02 = "application/vnd.dev.sigstore.bundle+json;version=0.2"
)

// toChain turns the certificate into a chain and appends extra to it.
func toChain(b *protobundle.Bundle, extra []byte) {
	if c := b.VerificationMaterial.GetCertificate(); c != nil {
		b.VerificationMaterial.Content = &protobundle.VerificationMaterial_X509CertificateChain{
			X509CertificateChain: &protocommon.X509CertificateChain{Certificates: []*protocommon.X509Certificate{c}},
		}
	}
	if extra != nil {
		c := b.VerificationMaterial.GetX509CertificateChain()
		c.Certificates = append(c.Certificates, &protocommon.X509Certificate{RawBytes: extra})
	}
}

func checkpoint(log string, change func(string) string) order {
	return order{log: log, after: func(b *protobundle.Bundle) {
		cp := tle(b).InclusionProof.Checkpoint
		cp.Envelope = change(cp.Envelope)
	}}
}

func breakSignature(line string) string {
	cutAt := strings.LastIndex(line, " ") + 1
	raw, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(line[cutAt:]))
	return line[:cutAt] + base64.StdEncoding.EncodeToString(flip(raw)) + "\n"
}

func manyDigests(n int) string {
	var b strings.Builder
	for k := range n {
		fmt.Fprintf(&b, `"x%d":"00",`, k)
	}
	return b.String()
}

func TestSignatureThatVerifiesOnlyWithBrokenBytesIsRefused(t *testing.T) {
	i := newInstance(t)
	bundle := i.issue(order{log: "v2", artifact: theArtifact, signature: flip})
	_, err := check(i.trustedRoot(), bundle, verify.FromBytes(theArtifact), identity(t, testIssuer, testSubject))
	if got := verify.ReasonOf(err); got != verify.ReasonSignatureInvalid {
		t.Fatalf("reason %q: %v", got, err)
	}
}
