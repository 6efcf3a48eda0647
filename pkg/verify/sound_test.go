package verify_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/digitorus/timestamp"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/proto"

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
