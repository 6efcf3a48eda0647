package verify_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/digitorus/timestamp"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/attestry/attestry/pkg/verify"
)

// form is one valid bundle of a form that a verifier meets, with what it takes to verify it.
type form struct {
	name   string
	bundle *protobundle.Bundle
	other  *protobundle.Bundle // another valid bundle of the form: another artifact, key and certificate; may be nil
	root   *prototrust.TrustedRoot
	of     func() verify.Artifact
	data   []byte // the artifact; nil when only its digest is known
	policy func() *verify.Policy
	maker  *instance // nil when nobody here holds the keys
	order  order
}

// features of a form decide which check meets a fault first.
type features struct {
	version                  int
	cert, dsse               bool
	log                      bool // the trusted root knows a log and the bundle has an entry of it
	kind                     string
	v2, promise, proof       bool
	apart                    bool // the other bundle's entry has another index in its tree
	timestamps               int
	needsTimestamp, needsSCT bool
}

func (f *form) features() features {
	vm := f.bundle.GetVerificationMaterial()
	c := features{version: 3, cert: vm.GetPublicKey() == nil, dsse: f.bundle.GetDsseEnvelope() != nil}
	for n := 1; n <= 2; n++ {
		if strings.HasSuffix(f.bundle.MediaType, fmt.Sprintf("version=0.%d", n)) {
			c.version = n
		}
	}
	if entries := vm.GetTlogEntries(); len(entries) > 0 {
		e := entries[0]
		c.log = len(f.root.Tlogs) > 0
		c.kind = e.GetKindVersion().GetKind() + "/" + e.GetKindVersion().GetVersion()
		c.v2 = c.kind == "hashedrekord/0.0.2" || c.kind == "dsse/0.0.2"
		c.promise = len(e.GetInclusionPromise().GetSignedEntryTimestamp()) > 0 && !c.v2
		c.proof = e.GetInclusionProof() != nil
		c.apart = f.other != nil && f.other.VerificationMaterial.TlogEntries[0].GetInclusionProof().GetLogIndex() != e.GetInclusionProof().GetLogIndex()
	}
	c.timestamps = len(vm.GetTimestampVerificationData().GetRfc3161Timestamps())
	c.needsTimestamp = c.cert && !(c.promise && c.log)
	c.needsSCT = c.cert && len(f.root.Ctlogs) > 0
	return c
}

// signers are two keys of each kind, for a bundle and for the other one.
func signers(t testing.TB) map[string][2]*signer {
	t.Helper()
	all := make(map[string][2]*signer)
	for n := range 2 {
		add := func(name string, key crypto.Signer, hash crypto.Hash) {
			pair := all[name]
			pair[n] = &signer{name, key, hash}
			all[name] = pair
		}
		add("P-256", newKey(t, elliptic.P256()), crypto.SHA256)
		add("P-384", newKey(t, elliptic.P384()), crypto.SHA384)
		_, ed, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		add("Ed25519", ed, crypto.SHA512)
		rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		add("RSA-2048", rsaKey, crypto.SHA256)
	}
	return all
}

var otherArtifact = []byte("another artifact\n")

// forms makes every valid form with keys of this test. With testing.Short only those of P-256.
func forms(t testing.TB, i *instance) []*form {
	t.Helper()
	embed := func(ts *timestamp.Timestamp) { ts.AddTSACertificate = true }
	noLog := func(tr *prototrust.TrustedRoot) { cut(tr, "tlogs") }
	noTSA := func(tr *prototrust.TrustedRoot) { cut(tr, "tlogs"); cut(tr, "tsas") }
	shapes := []struct {
		name      string
		order     order
		statement bool
		root      func(*prototrust.TrustedRoot)
		kinds     bool // made with every kind of key
		certOnly  bool
		keyOnly   bool
	}{
		{name: "v0.1 blob, hashedrekord 0.0.1 promised", order: order{version: 1, log: "v1", noProof: true, noTSA: true}},
		{name: "v0.1 DSSE, dsse 0.0.1 promised", order: order{version: 1, log: "v1", noProof: true, noTSA: true}, statement: true},
		{name: "v0.1 DSSE, intoto 0.0.2 promised", order: order{version: 1, log: "v1-intoto", noProof: true, noTSA: true}, statement: true},
		{name: "v0.1 blob, hashedrekord 0.0.1 proven", order: order{version: 1, log: "v1", noTSA: true}},
		{name: "v0.2 blob, hashedrekord 0.0.1", order: order{version: 2, log: "v1", noTSA: true}},
		{name: "v0.2 DSSE, dsse 0.0.1", order: order{version: 2, log: "v1", noTSA: true}, statement: true},
		{name: "v0.2 DSSE, intoto 0.0.2", order: order{version: 2, log: "v1-intoto", noTSA: true}, statement: true},
		{name: "v0.2 blob, hashedrekord 0.0.2 stamped", order: order{version: 2, log: "v2"}},
		{name: "v0.3 blob, hashedrekord 0.0.1", order: order{log: "v1", noTSA: true}, kinds: true},
		{name: "v0.3 blob, hashedrekord 0.0.1 and stamped", order: order{log: "v1"}},
		{name: "v0.3 blob, hashedrekord 0.0.1 unpromised, stamped", order: order{log: "v1", noPromise: true}},
		{name: "v0.3 DSSE, dsse 0.0.1", order: order{log: "v1", noTSA: true}, statement: true, kinds: true},
		{name: "v0.3 DSSE, intoto 0.0.2", order: order{log: "v1-intoto", noTSA: true}, statement: true},
		{name: "v0.3 blob, hashedrekord 0.0.2 stamped", order: order{log: "v2"}, kinds: true},
		{name: "v0.3 blob, hashedrekord 0.0.2 stamped with certificate", order: order{log: "v2", token: embed}},
		{name: "v0.3 blob, hashedrekord 0.0.2 unstamped", order: order{log: "v2", noTSA: true}, keyOnly: true},
		{name: "v0.3 DSSE, hashedrekord 0.0.2 stamped", order: order{log: "v2"}, statement: true},
		{name: "v0.3 DSSE, dsse 0.0.2 stamped", order: order{log: "v2-dsse"}, statement: true, kinds: true},
		{name: "v0.3 DSSE, hashedrekord 0.0.2 stamped by an authority known by its root", order: order{log: "v2", token: embed}, statement: true,
			root: func(tr *prototrust.TrustedRoot) { tr.TimestampAuthorities[0].CertChain = chainOf(i.tsaRoot) }},
		{name: "v0.3 blob, stamped alone", order: order{}, root: noLog, certOnly: true, kinds: true},
		{name: "v0.3 DSSE, stamped alone, with certificate", order: order{token: embed}, statement: true, root: noLog, certOnly: true},
		{name: "v0.3 blob, the signature alone", order: order{noTSA: true}, root: noTSA, keyOnly: true, kinds: true},
		{name: "v0.3 DSSE, the signature alone", order: order{noTSA: true}, statement: true, root: noTSA, keyOnly: true},
	}
	var all []*form
	keys := signers(t)
	for _, shape := range shapes {
		for _, kind := range []string{"P-256", "P-384", "Ed25519", "RSA-2048"} {
			if kind != "P-256" && (!shape.kinds || testing.Short()) {
				continue
			}
			for _, withKey := range []bool{false, true} {
				if withKey && shape.certOnly || !withKey && shape.keyOnly {
					continue
				}
				who := "certificate"
				if withKey {
					who = "key"
				}
				f := &form{name: fmt.Sprintf("%s, %s of %s", shape.name, who, kind), maker: i, data: theArtifact}
				o := shape.order
				o.artifact, o.withKey, o.signer, o.stranger = theArtifact, withKey, keys[kind][0], keys[kind][1]
				another := o
				another.artifact, another.signer = otherArtifact, keys[kind][1]
				if shape.statement {
					o.statement, another.statement = statementFor(theArtifact), statementFor(otherArtifact)
				}
				f.order, f.bundle, f.other = o, i.bundle(o), i.bundle(another)
				f.of = func() verify.Artifact { return verify.FromBytes(theArtifact) }
				f.policy = func() *verify.Policy {
					if withKey {
						return &verify.Policy{Key: o.signer.key.Public()}
					}
					return identity(t, testIssuer, testSubject)
				}
				f.root = i.protoRoot()
				if shape.root != nil {
					shape.root(f.root)
				}
				all = append(all, f)
			}
		}
	}
	return all
}

// vectorForms are the published bundles that must verify.
func vectorForms(t testing.TB) []*form {
	t.Helper()
	var all []*form
	for _, v := range conformanceVectors(t) {
		if v.refused {
			continue
		}
		f := &form{name: "published " + v.name, bundle: &protobundle.Bundle{}, root: &prototrust.TrustedRoot{}, data: v.artifact}
		unmarshal(t, v.bundle, f.bundle)
		unmarshal(t, v.root, f.root)
		f.of = func() verify.Artifact { return verify.FromBytes(v.artifact) }
		f.policy = func() *verify.Policy { p := *v.policy; return &p }
		all = append(all, f)
	}
	dir := filepath.Join(shared(t), "vectors", "sigstore-go-bundles")
	key, err := verify.ParseKey(read(t, filepath.Join(dir, "public-key-validity.pem")))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []struct {
		bundle, root, digest string
		policy               *verify.Policy
	}{
		{"sigstore.js@2.0.0-provenance.sigstore.json", "public-good.json", sha512OfProvenance,
			identity(t, beaconIssuer, "https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main")},
		{"othername.sigstore.json", "scaffolding.json", sha256OfOtherName, identity(t, "http://oidc.local:8080", "foo!oidc.local")},
		{"public-key-validity.sigstore.json", "public-key-validity.json", sha256OfWorkload, &verify.Policy{Key: key}},
	} {
		f := &form{name: "published " + v.bundle, bundle: &protobundle.Bundle{}, root: &prototrust.TrustedRoot{}}
		unmarshal(t, read(t, filepath.Join(dir, v.bundle)), f.bundle)
		unmarshal(t, read(t, filepath.Join(dir, v.root)), f.root)
		f.of = func() verify.Artifact {
			a, ok := verify.ParseDigest(v.digest)
			if !ok {
				t.Fatal("digest form not understood")
			}
			return a
		}
		f.policy = func() *verify.Policy { p := *v.policy; return &p }
		all = append(all, f)
	}
	return all
}

func unmarshal(t testing.TB, data []byte, into proto.Message) {
	t.Helper()
	if err := protojson.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	data, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// trial is one form with one fault.
type trial struct {
	bundle   *protobundle.Bundle
	json     func([]byte) []byte // of the bundle
	root     *prototrust.TrustedRoot
	artifact func() verify.Artifact
	data     []byte
	policy   *verify.Policy
}

// trial starts from the form itself; the caller changes one thing.
func (f *form) trial() *trial {
	return &trial{
		bundle: proto.Clone(f.bundle).(*protobundle.Bundle), root: proto.Clone(f.root).(*prototrust.TrustedRoot),
		artifact: f.of, data: f.data, policy: f.policy(),
	}
}

// run verifies the trial and returns with the verdict what was verified.
func (tr *trial) run(t testing.TB) (root, bundle []byte, err error) {
	t.Helper()
	root, bundle = marshal(t, tr.root), marshal(t, tr.bundle)
	if tr.json != nil {
		bundle = tr.json(bundle)
	}
	_, err = check(root, bundle, tr.artifact(), tr.policy)
	return root, bundle, err
}

// meets asserts the reason; "" means that the change does no harm, and then sigstore-go has to think so too.
func (tr *trial) meets(t *testing.T, want verify.Reason) {
	t.Helper()
	root, bundle, err := tr.run(t)
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %s: %v", verify.ReasonOf(err), err)
	case want == "" && tr.data != nil:
		agree(t, root, bundle, tr.data, tr.policy)
	case want != "" && err == nil:
		t.Errorf("accepted, want %s", want)
	case want != "" && verify.ReasonOf(err) != want:
		t.Errorf("reason %q, want %q (%v)", verify.ReasonOf(err), want, err)
	}
}
