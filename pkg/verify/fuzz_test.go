package verify_test

import (
	"bytes"
	"testing"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/attestry/attestry/pkg/verify"
)

// FuzzBundle changes bundles under a fixed trusted root: nothing may panic, and nothing may be accepted that
// sigstore-go refuses. Signatures are random, so coverage is not quite repeatable: run with -fuzzminimizetime=1x.
func FuzzBundle(f *testing.F) {
	i := newInstance(f)
	root := i.trustedRoot()
	for _, o := range []order{
		{log: "v1"}, {log: "v2"}, {log: "v1", statement: statementFor(theArtifact)}, {log: "v2", statement: statementFor(theArtifact)}, {log: "v2-dsse", statement: statementFor(theArtifact)},
	} {
		o.artifact = theArtifact
		f.Add(i.issue(o))
	}
	for _, v := range conformanceVectors(f) {
		f.Add(v.bundle)
	}
	v, err := verify.New(root)
	if err != nil {
		f.Fatal(err)
	}
	policy := identity(f, testIssuer, testSubject)
	f.Fuzz(func(t *testing.T, bundle []byte) {
		if _, err := v.Verify(bundle, verify.FromBytes(theArtifact), policy); err == nil {
			agree(t, root, bundle, theArtifact, policy)
		} else if verify.ReasonOf(err) == "internal" {
			t.Errorf("refusal without a reason: %v", err)
		}
	})
}

// FuzzTrustedRoot changes the trusted root under which a sound bundle is verified.
func FuzzTrustedRoot(f *testing.F) {
	i := newInstance(f)
	bundle := i.issue(order{log: "v2", artifact: theArtifact})
	f.Add(i.trustedRoot())
	f.Add(append(append(i.trustedRoot(), '\n'), i.trustedRoot()...))
	for _, v := range conformanceVectors(f) {
		f.Add(v.root)
	}
	policy := identity(f, testIssuer, testSubject)
	f.Fuzz(func(t *testing.T, root []byte) {
		if _, err := check(root, bundle, verify.FromBytes(theArtifact), policy); err != nil && verify.ReasonOf(err) == "internal" {
			t.Errorf("refusal without a reason: %v", err)
		}
	})
}

func FuzzStatement(f *testing.F) {
	f.Add(statementFor(theArtifact))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v0.1","subject":[{"digest":{"sha512":"00"}}],"predicateType":"p","predicate":[1,"\u0041",{"a":{}}]}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if s, err := verify.ParseStatement(payload); err == nil && len(s.Subject) == 0 {
			t.Error("a statement without subjects")
		}
	})
}

// FuzzEnvelope puts other DSSE envelopes into a bundle that a key signed and no log holds, so that the envelope is all there is:
// only the one that was signed may be accepted.
func FuzzEnvelope(f *testing.F) {
	i := newInstance(f)
	root := i.trustedRoot(func(tr *prototrust.TrustedRoot) { cut(tr, "tlogs"); cut(tr, "ctlogs"); cut(tr, "tsas") })
	sound := i.bundle(order{artifact: theArtifact, statement: statementFor(theArtifact), withKey: true, noTSA: true})
	f.Add(marshal(f, sound.GetDsseEnvelope()))
	for _, v := range conformanceVectors(f) {
		b := &protobundle.Bundle{}
		if protojson.Unmarshal(v.bundle, b) == nil && b.GetDsseEnvelope() != nil {
			f.Add(marshal(f, b.GetDsseEnvelope()))
		}
	}
	v, err := verify.New(root)
	if err != nil {
		f.Fatal(err)
	}
	policy := &verify.Policy{Key: i.signerKey.Public()}
	f.Fuzz(func(t *testing.T, envelope []byte) {
		parsed := &protodsse.Envelope{}
		if protojson.Unmarshal(envelope, parsed) != nil {
			return
		}
		b := proto.Clone(sound).(*protobundle.Bundle)
		b.Content = &protobundle.Bundle_DsseEnvelope{DsseEnvelope: parsed}
		data, err := protojson.Marshal(b)
		if err != nil {
			return
		}
		_, err = v.Verify(data, verify.FromBytes(theArtifact), policy)
		switch {
		case err != nil && verify.ReasonOf(err) == verify.ReasonInternal:
			t.Errorf("refusal without a reason: %v", err)
		case err == nil && !bytes.Equal(parsed.Payload, sound.GetDsseEnvelope().Payload):
			t.Error("accepted an envelope that nobody signed")
		case err == nil:
			agree(t, root, data, theArtifact, policy)
		}
	})
}
