package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/pkg/verify"
)

// What sigstore-go's published bundles are about.
const (
	sha512OfProvenance = "sha512:46d4e2f74c4877316640000a6fdf8a8b59f1e0847667973e9859f774dd31b8f1e0937813b777fb66a2ac67d50540fe34640966eee9fc2ccca387082b4c85cd3c"
	sha256OfOtherName  = "sha256:bc103b4a84971ef6459b294a2b98568a2bfb72cded09d4acd1e16366a401f95b"
	sha256OfWorkload   = "sha256:6ae8a75555209fd6c44157c0aed8016e763ff435a19cf186f76863140143ff72"
)

func TestSigstoreGoBundles(t *testing.T) {
	dir := filepath.Join(shared(t), "vectors", "sigstore-go-bundles")
	sha512OfDSSE := "sha512:bbfd372fc9beeb777fe35d05bb10c0c70a9733d366a75fed7dd18866c7391de3ee7e88ba74dd47abf3e15c845e547fcf0e5c3da80854c751554224d3a6d4e55f"
	key, err := verify.ParseKey(read(t, filepath.Join(dir, "public-key-validity.pem")))
	if err != nil {
		t.Fatal(err)
	}
	release := identity(t, beaconIssuer, "https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main")
	brian := identity(t, "https://github.com/login/oauth", "brian@dehamer.com")
	noSCT := identity(t, "http://oidc.local:8080", "foo!oidc.local")
	for name, c := range map[string]struct {
		bundle, root, digest string
		policy               *verify.Policy
		want                 verify.Reason // "" when accepted
	}{
		"provenance of a release":                     {"sigstore.js@2.0.0-provenance.sigstore.json", "public-good.json", sha512OfProvenance, release, ""},
		"provenance of something else":                {"sigstore.js@2.0.0-provenance.sigstore.json", "public-good.json", sha512OfDSSE, release, verify.ReasonSubjectMismatch},
		"provenance by somebody else":                 {"sigstore.js@2.0.0-provenance.sigstore.json", "public-good.json", sha512OfProvenance, brian, verify.ReasonIdentityIssuer},
		"a chain that contains its root":              {"dsse.sigstore.json", "public-good.json", sha512OfDSSE, brian, verify.ReasonBundleMalformed},
		"two DSSE signatures":                         {"dsse-2sigs.sigstore.json", "public-good.json", sha512OfDSSE, brian, verify.ReasonBundleMalformed},
		"an OtherName subject":                        {"othername.sigstore.json", "scaffolding.json", sha256OfOtherName, noSCT, ""},
		"an OtherName subject that is another":        {"othername.sigstore.json", "scaffolding.json", sha256OfOtherName, identity(t, "http://oidc.local:8080", "foo@oidc.local"), verify.ReasonIdentitySubject},
		"a key within its window":                     {"public-key-validity.sigstore.json", "public-key-validity.json", sha256OfWorkload, &verify.Policy{Key: key, KeyWindow: verify.Window{Start: time.Unix(0, 0)}}, ""},
		"a key outside its window":                    {"public-key-validity.sigstore.json", "public-key-validity.json", sha256OfWorkload, &verify.Policy{Key: key, KeyWindow: verify.Window{Start: time.Unix(0, 0), End: time.Unix(1, 0)}}, verify.ReasonKeyExpired},
		"a key's bundle for an artifact of the other": {"public-key-validity.sigstore.json", "public-key-validity.json", sha256OfOtherName, &verify.Policy{Key: key}, verify.ReasonDigestMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			artifact, ok := verify.ParseDigest(c.digest)
			if !ok {
				t.Fatal("digest form not understood")
			}
			_, err := check(read(t, filepath.Join(dir, c.root)), read(t, filepath.Join(dir, c.bundle)), artifact, c.policy)
			if c.want == "" && err != nil {
				t.Fatalf("refused: %s: %v", verify.ReasonOf(err), err)
			}
			if c.want != "" && (err == nil || verify.ReasonOf(err) != c.want) {
				t.Errorf("got %v, want reason %s", err, c.want)
			}
		})
	}
}

func TestTrustedRootsAreTriedOneByOneAndNeverMixed(t *testing.T) {
	a, b := newInstance(t), newInstance(t)
	bundle := a.issue(order{log: "v2", artifact: theArtifact})
	policy := identity(t, testIssuer, testSubject)
	lines := append(append(b.trustedRoot(), '\n'), a.trustedRoot()...)
	if _, err := check(lines, bundle, verify.FromBytes(theArtifact), policy); err != nil {
		t.Errorf("the second of two trusted roots vouches for the bundle: %v", err)
	}
	// One root knows the log and the other the authority: neither vouches for the whole.
	swap := func(i, j *instance) []byte {
		return i.trustedRoot(func(tr *prototrust.TrustedRoot) {
			tr.CertificateAuthorities[0].CertChain = chainOf(j.inter, j.root)
		})
	}
	mixed := append(append(swap(a, b), '\n'), swap(b, a)...)
	_, err := check(mixed, bundle, verify.FromBytes(theArtifact), policy)
	if verify.ReasonOf(err) != verify.ReasonCertChain {
		t.Errorf("got %v, want the error of the root under which verification came furthest", err)
	}
}

func TestKeySignedBundles(t *testing.T) {
	i := newInstance(t)
	for name, o := range map[string]order{
		"in Rekor v1":                {log: "v1", withKey: true},
		"in Rekor v2 without a time": {log: "v2", withKey: true, noTSA: true},
		"as an attestation":          {log: "v2", withKey: true, statement: statementFor(theArtifact)},
	} {
		t.Run(name, func(t *testing.T) {
			o.artifact = theArtifact
			root, bundle := i.trustedRoot(), i.issue(o)
			policy := &verify.Policy{Key: i.signerKey.Public()}
			r, err := check(root, bundle, verify.FromBytes(theArtifact), policy)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.Signature.PublicKeyID, keyID(t, i.signerKey.Public())) {
				t.Errorf("result names key %x", r.Signature.PublicKeyID)
			}
			agree(t, root, bundle, theArtifact, policy)
		})
	}
}

// Keys of every kind sign a blob with no log in the trusted root: the signature itself is all there is.
func TestSignatureAlgorithmsOfKeys(t *testing.T) {
	i := newInstance(t)
	root := i.trustedRoot(func(tr *prototrust.TrustedRoot) { cut(tr, "tlogs"); cut(tr, "ctlogs"); cut(tr, "tsas") })
	edPub, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec := func(c elliptic.Curve, h crypto.Hash) (crypto.PublicKey, []byte) {
		k := newKey(t, c)
		sig, err := ecdsa.SignASN1(rand.Reader, k, hashed(h, theArtifact))
		if err != nil {
			t.Fatal(err)
		}
		return k.Public(), sig
	}
	must := func(sig []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	p384, sig384 := ec(elliptic.P384(), crypto.SHA384)
	p384old, sig384old := ec(elliptic.P384(), crypto.SHA256)
	p521, sig521 := ec(elliptic.P521(), crypto.SHA512)
	for name, c := range map[string]struct {
		key    crypto.PublicKey
		alg    protocommon.HashAlgorithm
		hash   crypto.Hash
		sig    []byte
		digest bool // also verifies from the digest alone
	}{
		"P-384 with SHA-384":            {p384, protocommon.HashAlgorithm_SHA2_384, crypto.SHA384, sig384, true},
		"P-384 with SHA-256":            {p384old, protocommon.HashAlgorithm_SHA2_256, crypto.SHA256, sig384old, true},
		"P-521 with SHA-512":            {p521, protocommon.HashAlgorithm_SHA2_512, crypto.SHA512, sig521, true},
		"RSA PKCS #1 v1.5":              {rsaKey.Public(), protocommon.HashAlgorithm_SHA2_256, crypto.SHA256, must(rsaKey.Sign(nil, hashed(crypto.SHA256, theArtifact), crypto.SHA256)), true},
		"Ed25519ph":                     {edPub, protocommon.HashAlgorithm_SHA2_512, crypto.SHA512, must(edKey.Sign(nil, hashed(crypto.SHA512, theArtifact), &ed25519.Options{Hash: crypto.SHA512})), true},
		"Ed25519 of the artifact alone": {edPub, protocommon.HashAlgorithm_SHA2_256, crypto.SHA256, ed25519.Sign(edKey, theArtifact), false},
	} {
		t.Run(name, func(t *testing.T) {
			bundle, err := protojson.Marshal(&protobundle.Bundle{
				MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
				VerificationMaterial: &protobundle.VerificationMaterial{Content: &protobundle.VerificationMaterial_PublicKey{
					PublicKey: &protocommon.PublicKeyIdentifier{},
				}},
				Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
					MessageDigest: &protocommon.HashOutput{Algorithm: c.alg, Digest: hashed(c.hash, theArtifact)}, Signature: c.sig,
				}},
			})
			if err != nil {
				t.Fatal(err)
			}
			policy := &verify.Policy{Key: c.key}
			if _, err := check(root, bundle, verify.FromBytes(theArtifact), policy); err != nil {
				t.Errorf("from bytes: %v", err)
			}
			digest, err := verify.FromDigest(map[crypto.Hash]string{crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512"}[c.hash], hashed(c.hash, theArtifact))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := check(root, bundle, digest, policy); (err == nil) != c.digest {
				t.Errorf("from the digest: %v", err)
			}
		})
	}
}

func TestIdentityPatternsMatchWholeValues(t *testing.T) {
	i := newInstance(t)
	root, bundle := i.trustedRoot(), i.issue(order{log: "v2", artifact: theArtifact})
	for name, c := range map[string]struct {
		issuer, issuerRE, subject, subjectRE string
		want                                 verify.Reason
	}{
		"both exact":                      {testIssuer, "", testSubject, "", ""},
		"subject by pattern":              {testIssuer, "", "", `https://ci\.example/repo/.*`, ""},
		"issuer by pattern":               {"", `https://issuer\.(example|test)`, testSubject, "", ""},
		"pattern that fits a part":        {testIssuer, "", "", `ci\.example/repo`, verify.ReasonIdentitySubject},
		"alternation is anchored too":     {testIssuer, "", "", `nothing|https://ci\.example`, verify.ReasonIdentitySubject},
		"pattern that fits a part of iss": {"", `issuer\.example`, testSubject, "", verify.ReasonIdentityIssuer},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := verify.NewIdentity(c.issuer, c.issuerRE, c.subject, c.subjectRE)
			if err != nil {
				t.Fatal(err)
			}
			_, err = check(root, bundle, verify.FromBytes(theArtifact), &verify.Policy{Identities: []verify.Identity{id}})
			if (c.want == "") != (err == nil) || (err != nil && verify.ReasonOf(err) != c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for name, c := range map[string][4]string{
		"no issuer":                 {"", "", testSubject, ""},
		"no subject":                {testIssuer, "", "", ""},
		"value and pattern":         {testIssuer, ".*", testSubject, ""},
		"pattern that closes early": {testIssuer, "", "", "a)|(.*"},
		"pattern over 1 KiB":        {testIssuer, "", "", strings.Repeat("a", 1025)},
	} {
		if _, err := verify.NewIdentity(c[0], c[1], c[2], c[3]); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPolicyThatNamesNobodyIsAnError(t *testing.T) {
	i := newInstance(t)
	root, bundle := i.trustedRoot(), i.issue(order{log: "v2", artifact: theArtifact})
	for name, p := range map[string]*verify.Policy{
		"nil": nil, "empty": {}, "zero identity": {Identities: []verify.Identity{{}}},
		"key and identity": {Key: i.signerKey.Public(), Identities: identity(t, testIssuer, testSubject).Identities},
		"a string as key":  {Key: "key"},
	} {
		if _, err := check(root, bundle, verify.FromBytes(theArtifact), p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := check(root, bundle, verify.Artifact{}, identity(t, testIssuer, testSubject)); err == nil {
		t.Error("no artifact: accepted")
	}
	if _, err := check(root, bundle, verify.AnySubject(), identity(t, testIssuer, testSubject)); err == nil {
		t.Error("any subject for a message signature: accepted")
	}
}

// What the shortcut past the root skips must still count: path length, name constraints and the
// windows of the certificates above.
func TestConstraintsAboveTheIssuerStillCount(t *testing.T) {
	for name, c := range map[string]struct {
		tweak func(*x509.Certificate)
		leaf  func(*x509.Certificate)
		ok    bool
	}{
		"path length zero on the issuer": {func(*x509.Certificate) {}, nil, true},
		"issuer whose usage is servers":  {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, nil, false},
		"issuer that had ended":          {func(c *x509.Certificate) { c.NotAfter = c.NotBefore.AddDate(0, 1, 0) }, nil, false},
		"issuer that is no CA": {func(c *x509.Certificate) {
			c.IsCA, c.MaxPathLenZero, c.KeyUsage = false, false, x509.KeyUsageDigitalSignature
		}, nil, false},
		"issuer with another URI allowed": {func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.example"} }, nil, false},
		"issuer with this URI allowed":    {func(c *x509.Certificate) { c.PermittedURIDomains = []string{"ci.example"} }, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstance(t, func(i *instance) { i.interTemplate = c.tweak })
			root, bundle := i.trustedRoot(), i.issue(order{log: "v2", artifact: theArtifact})
			_, err := check(root, bundle, verify.FromBytes(theArtifact), identity(t, testIssuer, testSubject))
			if (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
			if up := oracle(root, bundle, theArtifact, nil); (up == nil) != c.ok {
				t.Errorf("sigstore-go says %v", up)
			}
		})
	}
}

func TestResultIsTheFamiliarJSON(t *testing.T) {
	i := newInstance(t)
	r, err := check(i.trustedRoot(), i.issue(order{log: "v2", artifact: theArtifact, statement: statementFor(theArtifact)}),
		verify.FromBytes(theArtifact), identity(t, testIssuer, testSubject))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		MediaType string
		Statement struct{ PredicateType string }
		Signature struct {
			Certificate struct{ SubjectAlternativeName, Issuer string }
		}
		VerifiedTimestamps []struct{ Type, URI string }
		LogEntries         []struct{ CheckpointSize int64 }
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.MediaType != verify.ResultMediaType || got.Statement.PredicateType != "https://example.com/p/v1" ||
		got.Signature.Certificate.SubjectAlternativeName != testSubject || got.Signature.Certificate.Issuer != testIssuer ||
		len(got.VerifiedTimestamps) != 1 || got.VerifiedTimestamps[0].Type != "TimestampAuthority" || got.LogEntries[0].CheckpointSize != 2 {
		t.Errorf("%s", data)
	}
}

func TestParseKeyRefusesWhatIsNotOneKey(t *testing.T) {
	i := newInstance(t)
	der := spki(t, i.signerKey.Public())
	one := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if _, err := verify.ParseKey(one); err != nil {
		t.Error(err)
	}
	for name, data := range map[string][]byte{
		"nothing": nil, "two keys": append(bytes.Clone(one), one...),
		"a certificate": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.root.Raw}),
	} {
		if _, err := verify.ParseKey(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Thresholds count distinct logs and authorities, and may lower the bar as well as raise it.
func TestThresholds(t *testing.T) {
	i := newInstance(t)
	stamped := func(token []byte) *protocommon.RFC3161SignedTimestamp {
		return &protocommon.RFC3161SignedTimestamp{SignedTimestamp: token}
	}
	bundle := i.issue(order{log: "v2", artifact: theArtifact, after: func(b *protobundle.Bundle) {
		vm, sig := b.VerificationMaterial, b.GetMessageSignature().Signature
		der := vm.GetCertificate().RawBytes
		second := i.entry(order{log: "v1"}, sig, b.GetMessageSignature().MessageDigest.Digest, der, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		vm.TlogEntries = append(vm.TlogEntries, second)
		vm.TimestampVerificationData.Rfc3161Timestamps = append(vm.TimestampVerificationData.Rfc3161Timestamps, stamped(i.timestamp(order{}, sig)))
	}})
	bare := i.issue(order{log: "v2", artifact: theArtifact, after: func(b *protobundle.Bundle) { b.VerificationMaterial.TlogEntries = nil }})
	timeless := i.issue(order{log: "v2", artifact: theArtifact, noTSA: true})
	n := func(n int) *int { return &n }
	for name, c := range map[string]struct {
		bundle     []byte
		thresholds verify.Thresholds
		want       verify.Reason
	}{
		"entries in two logs":                      {bundle, verify.Thresholds{LogEntries: n(2)}, ""},
		"entries in three logs":                    {bundle, verify.Thresholds{LogEntries: n(3)}, verify.ReasonEntryMissing},
		"a time of each kind":                      {bundle, verify.Thresholds{IntegratedTimestamps: n(1), SignedTimestamps: n(1), ObserverTimestamps: n(2)}, ""},
		"two tokens of one authority are one":      {bundle, verify.Thresholds{SignedTimestamps: n(2)}, verify.ReasonNoTime},
		"three times where there are two":          {bundle, verify.Thresholds{ObserverTimestamps: n(3)}, verify.ReasonNoTime},
		"no entry where the trusted root has logs": {bare, verify.Thresholds{}, verify.ReasonEntryMissing},
		"no entry, and none asked for":             {bare, verify.Thresholds{LogEntries: n(0)}, ""},
		"no time, and none asked for":              {timeless, verify.Thresholds{ObserverTimestamps: n(0)}, verify.ReasonNoTime},
	} {
		t.Run(name, func(t *testing.T) {
			policy := identity(t, testIssuer, testSubject)
			policy.Thresholds = c.thresholds
			_, err := check(i.trustedRoot(), c.bundle, verify.FromBytes(theArtifact), policy)
			if (c.want == "") != (err == nil) || err != nil && verify.ReasonOf(err) != c.want {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for _, wrong := range []int{-1, verify.MaxThreshold + 1} {
		policy := identity(t, testIssuer, testSubject)
		policy.Thresholds.SCTs = &wrong
		if _, err := check(i.trustedRoot(), bundle, verify.FromBytes(theArtifact), policy); err == nil {
			t.Errorf("a threshold of %d is taken", wrong)
		}
	}
}
