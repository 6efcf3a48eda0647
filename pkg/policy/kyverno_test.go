package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// clusterYAML is a ClusterPolicy with one item of verifyImages.
func clusterYAML(verifyImages string) string {
	return `apiVersion: kyverno.io/v1
kind: ClusterPolicy
metadata:
  name: p
spec:
  validationFailureAction: Enforce
  background: false
  webhookTimeoutSeconds: 30
  failurePolicy: Fail
  rules:
    - name: check
      match:
        any:
          - resources:
              kinds: [Pod]
              namespaces: [production, "stag*"]
      verifyImages:
        - ` + indented(verifyImages, 10) + "\n"
}

// keylessEntry is an attestor with the identity of a site.
func keylessEntry(s *site, subject string, more string) string {
	e := fmt.Sprintf("count: 1\nentries:\n  - keyless:\n      subject: %q\n      issuer: %q", subject, s.issuer)
	if more != "" {
		e += "\n      " + indented(more, 6)
	}
	return e
}

func TestAClusterPolicyOverWhatOurStackSigned(t *testing.T) {
	s := newSite(t)
	image, other := imageOf("registry.example/team/app"), imageOf("registry.example/team/other")
	const alice, bob = "alice@example.com", "bob@example.com"
	const references = "imageReferences: [\"registry.example/team/*\"]\n"
	entry := func(who string) string { return "keyless: {subject: \"" + who + "\", issuer: \"" + s.issuer + "\"}" }
	attestors := func(count string, entries ...string) string {
		out := references + "attestors:\n  - "
		if count != "" {
			out += "count: " + count + "\n    "
		}
		out += "entries:\n"
		for _, e := range entries {
			out += "      - " + indented(e, 8) + "\n"
		}
		return out
	}
	conditions := func(c string) string {
		return references + "attestations:\n  - type: " + slsa + "\n    attestors:\n      - entries:\n          - " + entry(alice) +
			"\n    conditions:\n      - " + indented(c, 8)
	}
	built := func(by string) oci.Attachment {
		return s.attest(alice, image, slsa, `{"builder":{"id":"`+by+`"},"count":3,"time":"90s","list":["a","b"]}`)
	}
	const wantBuilder = "all:\n  - key: \"{{ builder.id }}\"\n    operator: Equals\n    value: \"https://ci.example/*\""
	for name, tt := range map[string]struct {
		policy   string
		attached []oci.Attachment
		reason   verify.Reason
		message  string
	}{
		"a signature of cosign 3":            {attestors("", entry(alice)), []oci.Attachment{s.sign(alice, image)}, "", ""},
		"the type of the policy is no trust": {"type: SigstoreBundle\n" + attestors("", entry(alice)), []oci.Attachment{s.simple(alice, image, nil)}, "", ""},
		"wildcards in the subject":           {attestors("", entry("*@example.com")), []oci.Attachment{s.sign(alice, image)}, "", ""},
		"a dot is a dot":                     {attestors("", entry("alice@exampl..com")), []oci.Attachment{s.sign(alice, image)}, verify.ReasonIdentitySubject, ""},
		"somebody else":                      {attestors("", entry(bob)), []oci.Attachment{s.sign(alice, image)}, verify.ReasonIdentitySubject, "signature: "},
		"nothing is attached":                {attestors("", entry(alice)), nil, verify.ReasonNoSignature, ""},
		"another image's signature":          {attestors("", entry(alice)), []oci.Attachment{s.sign(alice, other)}, verify.ReasonSubjectMismatch, ""},
		"an attestation is not a signature":  {attestors("", entry(alice)), []oci.Attachment{built("x")}, verify.ReasonNoSignature, ""},
		"one of two":                         {attestors("1", entry(bob), entry(alice)), []oci.Attachment{s.sign(alice, image)}, "", ""},
		"both of two, one there":             {attestors("", entry(bob), entry(alice)), []oci.Attachment{s.sign(alice, image)}, verify.ReasonIdentitySubject, "1 of 2"},
		"both of two":                        {attestors("2", entry(bob), entry(alice)), []oci.Attachment{s.sign(alice, image), s.sign(bob, image)}, "", ""},
		"a set inside a set": {attestors("", "attestor: {count: 1, entries: [{"+entry(bob)+"}, {"+entry("carol@example.com")+"}]}", entry(alice)),
			[]oci.Attachment{s.sign(alice, image), s.sign(bob, image)}, "", ""},
		"a set inside a set is not met": {attestors("", "attestor: {count: 1, entries: [{"+entry(bob)+"}, {"+entry("carol@example.com")+"}]}", entry(alice)),
			[]oci.Attachment{s.sign(alice, image)}, verify.ReasonIdentitySubject, ""},
		"annotations": {attestors("", entry(alice)+"\nannotations: {env: prod}"), []oci.Attachment{s.simple(alice, image, map[string]string{"env": "prod", "x": "y"})}, "", ""},
		"other annotations": {attestors("", entry(alice)+"\nannotations: {env: prod}"), []oci.Attachment{s.simple(alice, image, map[string]string{"env": "test"})},
			verify.ReasonPolicyDenied, `"env"`},
		"a signature without annotations": {attestors("", entry(alice)+"\nannotations: {env: prod}"), []oci.Attachment{s.sign(alice, image)}, verify.ReasonPolicyDenied, `"env"`},
		"conditions hold":                 {conditions(wantBuilder), []oci.Attachment{built("https://ci.example/1")}, "", ""},
		"conditions do not hold":          {conditions(wantBuilder), []oci.Attachment{built("https://evil.example/1")}, verify.ReasonPolicyDenied, "https://evil.example/1"},
		"all attestations have to be good": {conditions(wantBuilder), []oci.Attachment{built("https://ci.example/1"), built("https://evil.example/1")},
			verify.ReasonPolicyDenied, ""},
		"what others attest does not count against it": {conditions(wantBuilder), []oci.Attachment{built("https://ci.example/1"), s.attest(bob, image, slsa, `{"builder":{"id":"x"}}`)}, "", ""},
		"a field that is absent": {conditions("all:\n  - key: \"{{ builder.name }}\"\n    operator: NotEquals\n    value: evil"), []oci.Attachment{built("x")},
			verify.ReasonPolicyDenied, "not in the attestation"},
		"the attestation is missing": {conditions(wantBuilder), []oci.Attachment{s.sign(alice, image)}, verify.ReasonPredicateMissing, slsa},
		"a signature and an attestation": {attestors("", entry(alice)) + "attestations:\n  - type: " + slsa + "\n    attestors: [{entries: [{" + entry(alice) + "}]}]",
			[]oci.Attachment{s.sign(alice, image), built("x")}, "", ""},
		"a signature, and no attestation": {attestors("", entry(alice)) + "attestations:\n  - type: " + slsa + "\n    attestors: [{entries: [{" + entry(alice) + "}]}]",
			[]oci.Attachment{s.sign(alice, image)}, verify.ReasonPredicateMissing, slsa},
		"the fields of old policies": {"image: registry.example/team/*\nissuer: " + s.issuer + "\nsubject: " + alice, []oci.Attachment{s.sign(alice, image)}, "", ""},
		"the fields of old policies, somebody else": {"image: registry.example/team/*\nissuer: " + s.issuer + "\nsubject: " + alice, []oci.Attachment{s.sign(bob, image)},
			verify.ReasonIdentitySubject, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := compileOne(t, clusterYAML(tt.policy), s.trusted)
			subject := &Subject{Image: image}
			if !p.Applies(subject) {
				t.Fatal("it does not apply")
			}
			out := p.Decide(t.Context(), subject, attached{all: tt.attached})
			if out.Passed != (tt.reason == "") || out.Reason != tt.reason || !strings.Contains(out.Message, tt.message) {
				t.Errorf("%+v, want %q with %q", out, tt.reason, tt.message)
			}
		})
	}
	t.Run("what could not be read might not meet the conditions", func(t *testing.T) {
		p := compileOne(t, clusterYAML(conditions(wantBuilder)), s.trusted)
		out := p.Decide(t.Context(), &Subject{Image: image}, attached{all: []oci.Attachment{built("https://ci.example/1")}, unread: errors.New("the registry broke off")})
		if out.Passed || !strings.Contains(out.Message, "broke off") {
			t.Errorf("%+v", out)
		}
	})
	t.Run("trust in PEM", func(t *testing.T) { trustInPEM(t, s, image) })
	t.Run("in CEL", func(t *testing.T) { imageValidating(t, s, image) })
}

// trustInPEM gives an attestor all trust itself, as `up` writes it for Kyverno.
func trustInPEM(t *testing.T, s *site, image oci.Image) {
	root := &prototrust.TrustedRoot{}
	if err := protojson.Unmarshal(s.trusted, root); err != nil {
		t.Fatal(err)
	}
	roots := ""
	for _, c := range root.CertificateAuthorities[0].CertChain.Certificates {
		roots += pemOf("CERTIFICATE", c.RawBytes)
	}
	tsa := ""
	for _, c := range root.TimestampAuthorities[0].CertChain.Certificates {
		tsa += pemOf("CERTIFICATE", c.RawBytes)
	}
	var rekor *prototrust.TransparencyLogInstance
	for _, l := range root.Tlogs { // what signed is the v2 log
		if strings.Contains(l.BaseUrl, "2026") || rekor == nil {
			rekor = l
		}
	}
	give := func(rekorKey, roots, tsa, ignoring string) string {
		return "imageReferences: [\"*\"]\nattestors:\n  - " + indented(keylessEntry(s, "alice@example.com", fmt.Sprintf(
			"roots: |\n  %s\nrekor:\n  url: %s\n  %s\n  pubkey: |\n    %s\nctlog:\n  pubkey: |\n    %s\n  tsaCertChain: |\n    %s",
			indented(roots, 2), rekor.BaseUrl, ignoring, indented(rekorKey, 4), indented(pemOf("PUBLIC KEY", root.Ctlogs[0].PublicKey.RawBytes), 4), indented(tsa, 4))), 4)
	}
	good := pemOf("PUBLIC KEY", rekor.PublicKey.RawBytes)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := attached{all: []oci.Attachment{s.sign("alice@example.com", image)}}
	for name, tt := range map[string]struct {
		policy string
		reason verify.Reason
	}{
		"all of it":               {give(good, roots, tsa, ""), ""},
		"the key of another log":  {give(publicPEM(t, stranger), roots, tsa, ""), verify.ReasonLogUnknown},
		"the roots of another CA": {give(good, tsaAsRoots(root), tsa, ""), verify.ReasonCertChain},
		"another TSA":             {give(good, roots, roots, ""), verify.ReasonTimestampUntrusted},
		"the log does not matter": {give(publicPEM(t, stranger), roots, tsa, "ignoreTlog: true"), ""},
		"but a time does":         {give(publicPEM(t, stranger), roots, roots, "ignoreTlog: true"), verify.ReasonTimestampUntrusted},
	} {
		t.Run(name, func(t *testing.T) {
			out := compileOne(t, clusterYAML(tt.policy), nil).Decide(t.Context(), &Subject{Image: image}, signed)
			if out.Passed != (tt.reason == "") || out.Reason != tt.reason {
				t.Errorf("%+v, want %q", out, tt.reason)
			}
		})
	}
}

func tsaAsRoots(root *prototrust.TrustedRoot) string {
	certs := root.TimestampAuthorities[0].CertChain.Certificates
	return pemOf("CERTIFICATE", certs[len(certs)-1].RawBytes)
}

func pemOf(kind string, der []byte) string {
	return string(pemEncode(kind, der))
}

func TestAClusterPolicyWithKeys(t *testing.T) {
	image := imageOf("registry.example/app")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := func(pem, count, rekor string) string {
		return "imageReferences: [\"*\"]\nattestors:\n  - " + count + "entries:\n      - keys:\n          rekor: {url: https://rekor.example, ignoreTlog: " + rekor +
			"}\n          publicKeys: |-\n            " + indented(pem, 12)
	}
	signed := attached{all: []oci.Attachment{byKey(t, key, image, oci.PredicateSignature, nil)}}
	trusted := publicGood(t)
	for name, tt := range map[string]struct {
		policy string
		reason verify.Reason
	}{
		"the key":                        {keys(publicPEM(t, key), "", "true"), ""},
		"another key":                    {keys(publicPEM(t, other), "", "true"), verify.ReasonSignatureInvalid},
		"both of two keys":               {keys(publicPEM(t, key)+publicPEM(t, other), "", "true"), verify.ReasonSignatureInvalid},
		"one of two keys":                {keys(publicPEM(t, other)+publicPEM(t, key), "count: 1\n    ", "true"), ""},
		"the log is demanded by default": {keys(publicPEM(t, key), "", "false"), verify.ReasonEntryMissing},
	} {
		t.Run(name, func(t *testing.T) {
			out := compileOne(t, clusterYAML(tt.policy), trusted).Decide(t.Context(), &Subject{Image: image}, signed)
			if out.Passed != (tt.reason == "") || out.Reason != tt.reason {
				t.Errorf("%+v, want %q", out, tt.reason)
			}
		})
	}
}

// certified issues a certificate for a key, by a CA made for it.
func certified(t *testing.T, key crypto.Signer, usage x509.ExtKeyUsage) (leaf, ca string) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: start, NotAfter: start.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "builder"}, NotBefore: start, NotAfter: start.AddDate(0, 1, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("CERTIFICATE", der), pemOf("CERTIFICATE", rootDER)
}

func TestCertificatesAndSecretsAsKeys(t *testing.T) {
	image := imageOf("registry.example/app")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf, ca := certified(t, key, x509.ExtKeyUsageCodeSigning)
	_, otherCA := certified(t, key, x509.ExtKeyUsageCodeSigning)
	forServers, itsCA := certified(t, key, x509.ExtKeyUsageServerAuth)
	strangers, _ := certified(t, stranger, x509.ExtKeyUsageCodeSigning)
	certificates := func(cert, chain string) string {
		return clusterYAML("imageReferences: [\"*\"]\nattestors:\n  - entries:\n      - certificates:\n          rekor: {url: https://r, ignoreTlog: true}\n          cert: |-\n            " +
			indented(cert, 12) + "\n          certChain: |-\n            " + indented(chain, 12))
	}
	inCEL := func(cert, chain string) string {
		return ivpolYAML("attestors:\n  - name: alice\n    cosign:\n      ctlog: {insecureIgnoreTlog: true}\n      certificate:\n        cert:\n          value: |-\n            " + indented(cert, 12) +
			"\n        certChain:\n          value: |-\n            " + indented(chain, 12) + verified)
	}
	secret := func(namespace, data string) string {
		return clusterYAML("imageReferences: [\"*\"]\nattestors: [{entries: [{keys: {secret: {name: key, namespace: a}, rekor: {url: https://r, ignoreTlog: true}}}]}]") +
			"---\napiVersion: v1\nkind: Secret\nmetadata: {name: key, namespace: " + namespace + "}\nstringData:\n  cosign.pub: |\n    " + indented(data, 4) + "\n"
	}
	signed := attached{all: []oci.Attachment{byKey(t, key, image, oci.PredicateSignature, nil)}}
	for name, tt := range map[string]struct {
		policy string
		reason verify.Reason
	}{
		"a certificate":             {certificates(leaf, ""), ""},
		"with its chain":            {certificates(leaf, ca), ""},
		"of another key":            {certificates(strangers, ""), verify.ReasonSignatureInvalid},
		"in CEL":                    {inCEL(leaf, ca), ""},
		"of another key, in CEL":    {inCEL(strangers, ""), verify.ReasonSignatureInvalid},
		"a Secret":                  {secret("a", publicPEM(t, key)), ""},
		"a Secret with another key": {secret("a", publicPEM(t, stranger)), verify.ReasonSignatureInvalid},
		"a Secret named by URL":     {strings.Replace(secret("a", publicPEM(t, key)), "secret: {name: key, namespace: a}", "publicKeys: \"k8s://a/key\"", 1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			out := compileOne(t, tt.policy, nil).Decide(t.Context(), &Subject{Image: image}, signed)
			if out.Passed != (tt.reason == "") || out.Reason != tt.reason {
				t.Errorf("%+v, want %q", out, tt.reason)
			}
		})
	}
	refusedToLoad(t, certificates(leaf, otherCA), nil, "certChain does not vouch for cert")
	refusedToLoad(t, certificates(forServers, itsCA), nil, "certChain does not vouch for cert")
	refusedToLoad(t, certificates(ca, ""), nil, "no CA's")
	refusedToLoad(t, inCEL(leaf, otherCA), nil, "certChain does not vouch for cert")
	refusedToLoad(t, secret("b", publicPEM(t, key)), nil, "secret a/key is not among the documents")
}

func publicGood(t *testing.T) []byte {
	return readFile(t, sharedDir(t)+"/conformance/trusted_root.public-good.json")
}

func TestWhereAClusterPolicyApplies(t *testing.T) {
	const key = "attestors:\n  - entries:\n      - keys:\n          rekor: {url: https://r, ignoreTlog: true}\n          publicKeys: |-\n            "
	policy := func(references string) Policy {
		return compileOne(t, clusterYAML(references+"\n"+key+indented(testKey, 12)), nil)
	}
	tagged := func(name, tag string) oci.Image {
		image := imageOf(name)
		image.Reference = name + ":" + tag
		return image
	}
	hub := imageOf("index.docker.io/library/nginx")
	for _, tt := range []struct {
		references string
		image      oci.Image
		want       bool
	}{
		{`imageReferences: ["ghcr.io/myorg/myrepo:*", "ghcr.io/myorg/myrepo@*"]`, imageOf("ghcr.io/myorg/myrepo"), true},
		{`imageReferences: ["ghcr.io/myorg/myrepo:*", "ghcr.io/myorg/myrepo@*"]`, tagged("ghcr.io/myorg/myrepo", "v1"), true},
		{`imageReferences: ["ghcr.io/myorg/myrepo:*"]`, imageOf("ghcr.io/myorg/myrepo2"), false},
		{`imageReferences: ["ghcr.io/*"]`, imageOf("ghcr.io/a/b/c"), true},
		{`imageReferences: ["ghcr.io/?:*"]`, tagged("ghcr.io/a", "1"), true},
		{`imageReferences: ["ghcr.io/?:*"]`, tagged("ghcr.io/ab", "1"), false},
		{`imageReferences: ["docker.io/nginx*"]`, hub, true},
		{"imageReferences: [\"*\"]\nskipImageReferences: [\"ghcr.io/debug:*\"]", tagged("ghcr.io/debug", "1"), false},
		{"imageReferences: [\"*\"]\nskipImageReferences: [\"ghcr.io/debug:*\"]", oci.Image{
			Reference: "ghcr.io/debug:1@" + imageOf("x").Digest, Name: "ghcr.io/debug", Digest: imageOf("x").Digest}, true}, // the tag is a claim
		{"imageReferences: [\"*\"]\nskipImageReferences: [\"ghcr.io/debug@*\"]", imageOf("ghcr.io/debug"), false},
	} {
		if got := policy(tt.references).Applies(&Subject{Image: tt.image}); got != tt.want {
			t.Errorf("%s of %s: %v", tt.references, tt.image.Reference, got)
		}
	}
	image := imageOf("ghcr.io/a")
	p := policy(`imageReferences: ["*"]`)
	for _, tt := range []struct {
		subject Subject
		want    bool
	}{
		{Subject{}, true}, // outside a cluster
		{Subject{Resource: "pods", Version: "v1", Kind: "Pod", Namespace: "production"}, true},
		{Subject{Resource: "pods", Version: "v1", Kind: "Pod", Namespace: "staging"}, true},
		{Subject{Resource: "pods", Version: "v1", Kind: "Pod", Namespace: "default"}, false},
		{Subject{Resource: "deployments", Group: "apps", Version: "v1", Kind: "Deployment", Namespace: "production"}, true},
	} {
		tt.subject.Image = image
		if got := p.Applies(&tt.subject); got != tt.want {
			t.Errorf("%+v: %v", tt.subject, got)
		}
	}
	excluding := compileOne(t, strings.Replace(clusterYAML("imageReferences: [\"*\"]\n"+key+indented(testKey, 12)), "      verifyImages:",
		"      exclude:\n        any:\n          - resources:\n              names: [\"debug-*\"]\n              selector: {matchExpressions: [{key: a, operator: In, values: [b]}]}\n      verifyImages:", 1), nil)
	for metadata, want := range map[string]bool{`{"name":"debug-1"}`: false, `{"name":"app"}`: true} {
		s := &Subject{Image: image, Resource: "pods", Version: "v1", Kind: "Pod", Namespace: "production", Metadata: []byte(metadata), Labels: map[string]string{"a": "b"}}
		if got := excluding.Applies(s); got != want {
			t.Errorf("%s: %v", metadata, got)
		}
		s.Labels = nil
		if !excluding.Applies(s) {
			t.Errorf("%s without labels is excluded", metadata)
		}
	}
}

func TestTheModeAndDigestOfAClusterPolicy(t *testing.T) {
	const item = "imageReferences: [\"*\"]\nattestors:\n  - entries:\n      - keys:\n          rekor: {url: https://r, ignoreTlog: true}\n          publicKeys: |-\n            "
	enforced := clusterYAML(item + indented(testKey, 12))
	for text, want := range map[string]string{
		enforced: ModeEnforce,
		strings.Replace(enforced, "validationFailureAction: Enforce", "validationFailureAction: audit", 1):   ModeAudit,
		strings.Replace(enforced, "  validationFailureAction: Enforce\n", "", 1):                             ModeAudit, // Kyverno's default
		strings.Replace(enforced, "imageReferences:", "failureAction: Audit\n          imageReferences:", 1): ModeAudit,
	} {
		if p := compileOne(t, text, nil); p.Mode() != want {
			t.Errorf("mode %s, want %s of\n%s", p.Mode(), want, text)
		}
	}
	pinned := compileOne(t, strings.Replace(enforced, "imageReferences:", "mutateDigest: false\n          imageReferences:", 1), nil)
	image := imageOf("ghcr.io/a")
	image.Reference = "ghcr.io/a:1"
	if out := pinned.Decide(t.Context(), &Subject{Image: image}, attached{}); out.Passed || out.Reason != ReasonNoDigest {
		t.Errorf("%+v", out)
	}
}

func TestWhatIsRefusedOfAClusterPolicy(t *testing.T) {
	const references = "imageReferences: [\"*\"]\n"
	const key = "{keys: {publicKeys: x}}"
	entry := func(e string) string { return references + "attestors: [{entries: [" + e + "]}]" }
	keyless := func(f string) string { return entry("{keyless: {" + f + "}}") }
	attestation := func(a string) string { return references + "attestations: [{" + a + "}]" }
	conditions := func(c string) string {
		return attestation("type: t, attestors: [{entries: [{keyless: {issuer: a, subject: b}}]}], conditions: [{all: [" + c + "]}]")
	}
	trusted := publicGood(t)
	for text, want := range map[string]string{
		references:                              "attestors or attestations are required",
		"attestors: [{entries: [" + key + "]}]": "imageReferences is required",
		"type: Notary\n" + entry(key):           "Notary",
		"type: Other\n" + entry(key):            "neither Cosign nor SigstoreBundle",
		"validate: {deny: {}}\n" + entry(key):   "validate",
		"imageRegistryCredentials: {allowInsecureRegistry: true}\n" + entry(key): "does not open registries",
		entry("{}"): "exactly one of keys",
		entry("{keys: {publicKeys: x}, keyless: {issuer: a, subject: b}}"):                    "exactly one of keys",
		entry("{keys: {publicKeys: x}}"):                                                      "public keys in PEM",
		entry("{keys: {}}"):                                                                   "publicKeys is required",
		entry("{keys: {kms: awskms://x}}"):                                                    "KMS",
		entry("{keys: {publicKeys: '{{ keys.data.x }}'}}"):                                    "variable",
		entry("{keys: {secret: {name: a, namespace: b}}}"):                                    "secret b/a is not among the documents",
		entry("{keys: {publicKeys: k8s://b/a}}"):                                              "secret b/a is not among the documents",
		entry("{keyless: {issuer: a, subject: b}, signatureAlgorithm: sha512}"):               "the hash follows the key",
		entry("{certificates: {certChain: x}}"):                                               "cert is required",
		entry("{certificates: {cert: x}}"):                                                    "certificate chain has",
		keyless("issuer: a"):                                                                  "anybody would do",
		keyless("subject: a"):                                                                 "anybody would do",
		keyless("issuer: a, issuerRegExp: b, subject: c"):                                     "not both",
		keyless("issuer: a, subjectRegExp: 'a)(b'"):                                           "identity subject",
		keyless("issuer: a, subject: '{{ request.x }}'"):                                      "variables are not supported",
		keyless("issuer: a, subject: b, additionalExtensions: {x: y}"):                        "not known",
		keyless("issuer: a, subject: b, additionalExtensions: {githubWorkflowRef: 'r*'}"):     "wildcards",
		keyless("issuer: a, subject: b, roots: x"):                                            "certificate chain has",
		keyless("issuer: a, subject: b, email: c"):                                            "email",
		references + "attestors: [{count: 2, entries: [{keyless: {issuer: a, subject: b}}]}]": "not between 1",
		references + "attestors: [{count: 0, entries: [{keyless: {issuer: a, subject: b}}]}]": "not between 1",
		references + "attestors: [{entries: []}]":                                             "entries is required",
		attestation("type: t"):                                                                "an attestation by anybody would do",
		attestation("attestors: []"):                                                          "type is required",
		attestation("type: t, predicateType: u"):                                              "differ",
		conditions("{key: a, operator: In, value: b}"):                                        "deprecated",
		conditions("{key: a, operator: DurationLessThan, value: b}"):                          "deprecated",
		conditions("{key: a, operator: Matches, value: b}"):                                   "not known",
		conditions("{key: '{{ regex_match(a, b) }}', operator: Equals, value: b}"):            "function regex_match",
		conditions("{key: '{{ request.object.x }}', operator: Equals, value: b}"):             "request is not of the attestation",
		conditions("{key: '{{ a', operator: Equals, value: b}"):                               "{{ without }}",
		conditions("{key: '{{ [ }}', operator: Equals, value: b}"):                            "key: ",
		conditions("{operator: Equals, value: b}"):                                            "key: it is required",
		conditions("{key: a, operator: AnyIn, value: 1-10}"):                                  "ranges",
		conditions("{key: a, operator: AllNotIn, value: '[\"a\"]'}"):                          "write a list",
		conditions("{key: a, operator: Equals, value: ['{{ b }}']}"):                          "variables inside lists",
	} {
		refusedToLoad(t, clusterYAML(text), trusted, want)
	}
	good := clusterYAML(entry("{keyless: {issuer: a, subject: b}}"))
	compileOne(t, good, trusted)
	refusedToLoad(t, good, nil, "no certificate authority is trusted")
	for old, tt := range map[string]struct{ now, want string }{
		"kyverno.io/v1":              {"kyverno.io/v2", "not known"},
		"  background: false":        {"  validationFailureActionOverrides: []", "validationFailureActionOverrides"},
		"Enforce":                    {"Block", "neither Enforce nor Audit"},
		"    - name: check":          {"    - name: check\n      preconditions: {all: []}", "preconditions"},
		"  rules:":                   {"  applyRules: One\n  rules:", "applyRules"},
		"              kinds: [Pod]": {"              kinds: [Pod]\n              namespaceSelector: {}", "namespaceSelector"},
		"        any:":               {"        all: [{resources: {kinds: [Pod]}}]\n        any:", "exactly one of any"},
		"[production, ":              {"[production, '', ", "namespaces[1]"},
		"kind: ClusterPolicy":        {"kind: Policy", "namespace is required"},
		"  name: p\nspec:":           {"  annotations: {}\nspec:", "name is required"},
	} {
		refusedToLoad(t, strings.Replace(good, old, tt.now, 1), trusted, tt.want)
	}
}

func TestTheOperatorsOfConditions(t *testing.T) {
	predicate := `{"s":"https://ci.example/1","n":3,"f":1.5,"b":true,"d":"90s","q":"2Gi","v":"1.2.3","l":["a","b"],"star":"*","stars":["*"],"m":{"x":1},"nul":null}`
	var value any
	if err := json.Unmarshal([]byte(predicate), &value); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		condition string
		want      bool
	}{
		{`{key: "{{ s }}", operator: Equals, value: "https://ci.example/*"}`, true},
		{`{key: "{{ s }}", operator: equals, value: "https://ci?example/2"}`, false},
		{`{key: "{{ star }}", operator: Equals, value: "a"}`, false},
		{`{key: "{{ s }}", operator: NotEquals, value: "x"}`, true},
		{`{key: "{{ n }}", operator: Equals, value: 3}`, true},
		{`{key: "{{ n }}", operator: Equals, value: "3"}`, true},
		{`{key: "{{ n }}", operator: NotEquals, value: 3.0}`, false},
		{`{key: "{{ b }}", operator: Equals, value: true}`, true},
		{`{key: "{{ b }}", operator: Equals, value: "true"}`, false},
		{`{key: "{{ d }}", operator: Equals, value: "1m30s"}`, true},
		{`{key: "{{ q }}", operator: Equals, value: "2048Mi"}`, true},
		{`{key: "{{ q }}", operator: Equals, value: "x"}`, false},
		{`{key: "{{ m }}", operator: Equals, value: {x: 1}}`, true},
		{`{key: "{{ l }}", operator: Equals, value: [a, b]}`, true},
		{`{key: "{{ n }}", operator: GreaterThan, value: 2}`, true},
		{`{key: "{{ n }}", operator: GreaterThan, value: 3}`, false},
		{`{key: "{{ n }}", operator: GreaterThanOrEquals, value: "3"}`, true},
		{`{key: "{{ f }}", operator: LessThan, value: 1.6}`, true},
		{`{key: "{{ f }}", operator: LessThanOrEquals, value: 1.4}`, false},
		{`{key: "{{ d }}", operator: LessThan, value: "2m"}`, true},
		{`{key: "{{ d }}", operator: LessThan, value: 80}`, false},
		{`{key: "{{ q }}", operator: GreaterThan, value: "1.9Gi"}`, true},
		{`{key: "{{ v }}", operator: GreaterThan, value: "1.2.0"}`, true},
		{`{key: "{{ v }}", operator: LessThan, value: "1.10.0"}`, true},
		{`{key: "{{ s }}", operator: GreaterThan, value: 1}`, false},
		{`{key: "{{ s }}", operator: LessThan, value: 1}`, false},
		{`{key: "{{ l }}", operator: AnyIn, value: [b, c]}`, true},
		{`{key: "{{ l }}", operator: AllIn, value: [b, c]}`, false},
		{`{key: "{{ l }}", operator: AllIn, value: ["?"]}`, true},
		{`{key: "{{ l }}", operator: AnyNotIn, value: [a]}`, true},
		{`{key: "{{ l }}", operator: AllNotIn, value: [a]}`, false},
		{`{key: "{{ l }}", operator: AllNotIn, value: [c]}`, true},
		{`{key: "{{ s }}", operator: AnyIn, value: "https://*"}`, true},
		{`{key: "{{ n }}", operator: AnyIn, value: [3, 4]}`, true},
		{`{key: "{{ stars }}", operator: AnyIn, value: [a]}`, false}, // Kyverno lets it pass
		{`{key: "{{ stars }}", operator: AllNotIn, value: [a]}`, false},
		{`{key: "{{ length(l) }}", operator: Equals, value: 2}`, true},
		{`{key: "n={{ n }} {{ s }}", operator: Equals, value: "n=3 https*"}`, true},
		{`{key: "{{ l }} ", operator: NotEquals, value: "x"}`, false},
		{`{key: "{{ absent }}", operator: NotEquals, value: "x"}`, false},
		{`{key: "{{ nul }}", operator: AllNotIn, value: ["x"]}`, false},
		{`{key: "{{ absent || 'x' }}", operator: Equals, value: "x"}`, true},
		{`{key: "{{ s }}", operator: Equals, value: "{{ s }}"}`, true},
	} {
		text := clusterYAML("imageReferences: [\"*\"]\nattestations: [{type: t, attestors: [{entries: [{keyless: {issuer: a, subject: b}}]}], conditions: [{any: [" + tt.condition + "]}]}]")
		p := compileOne(t, text, publicGood(t)).(*imagePolicy)
		if err := p.rules[0].attestations[0].conditions[0].hold(value); (err == nil) != tt.want {
			t.Errorf("%s: %v", tt.condition, err)
		}
	}
}

func TestConditionsOfAnyAndAll(t *testing.T) {
	text := `imageReferences: ["*"]
attestations:
  - type: t
    attestors: [{entries: [{keyless: {issuer: a, subject: b}}]}]
    conditions:
      - any:
          - {key: "{{ a }}", operator: Equals, value: 1}
          - {key: "{{ b }}", operator: Equals, value: 1, message: b is wrong}
        all:
          - {key: "{{ c }}", operator: Equals, value: 1}`
	p := compileOne(t, clusterYAML(text), publicGood(t)).(*imagePolicy)
	for predicate, want := range map[string]bool{
		`{"a":1,"b":2,"c":1}`: true, `{"a":2,"b":1,"c":1}`: true, `{"a":2,"b":2,"c":1}`: false, `{"a":1,"b":1,"c":2}`: false,
		`{"b":1,"c":1}`: true, `[]`: false, `"x"`: false,
	} {
		var value any
		if err := json.Unmarshal([]byte(predicate), &value); err != nil {
			t.Fatal(err)
		}
		if err := p.rules[0].attestations[0].conditions[0].hold(value); (err == nil) != want {
			t.Errorf("%s: %v", predicate, err)
		}
	}
}

// TestAPolicyFromARunbook takes what an operator has copied from the internet, GitHub's identities and all.
func TestAPolicyFromARunbook(t *testing.T) {
	const runbook = `apiVersion: kyverno.io/v1
kind: ClusterPolicy
metadata:
  name: verify-image-signatures
spec:
  validationFailureAction: Enforce
  background: false
  rules:
    - name: check-image-signature
      match:
        any:
          - resources:
              kinds: [Pod]
              namespaces: [production, staging]
      verifyImages:
        - imageReferences:
            - "ghcr.io/myorg/myrepo:*"
            - "ghcr.io/myorg/myrepo@*"
          attestors:
            - count: 1
              entries:
                - keyless:
                    subject: "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
                    issuer: "https://token.actions.githubusercontent.com"
                    rekor:
                      url: "https://rekor.sigstore.dev"
          # Also require the SBOM attestation.
          attestations:
            - predicateType: "https://spdx.dev/Document"
              attestors:
                - count: 1
                  entries:
                    - keyless:
                        subject: "https://github.com/myorg/myrepo/.github/workflows/build-and-sign.yml@refs/heads/main"
                        issuer: "https://token.actions.githubusercontent.com"
`
	p := compileOne(t, runbook, publicGood(t))
	artifact := readFile(t, sharedDir(t)+"/conformance/a.txt")
	image := oci.Image{Name: "ghcr.io/myorg/myrepo", Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(artifact))}
	image.Reference = image.Name + "@" + image.Digest
	subject := &Subject{Image: image}
	if !p.Applies(subject) || p.Applies(&Subject{Image: imageOf("ghcr.io/myorg/other")}) || p.Mode() != ModeEnforce {
		t.Error("it applies where it should not, or not where it should")
	}
	bundle := readFile(t, sharedDir(t)+"/conformance/bundle-verify/happy-path-v0.1/bundle.sigstore.json")
	out := p.Decide(t.Context(), subject, attached{all: []oci.Attachment{{Form: oci.FormBundle, Bundle: bundle}}})
	if out.Passed || len(out.Checks) != 2 || !out.Checks[0].Passed || out.Checks[1].Passed || out.Reason != verify.ReasonPredicateMissing || !strings.Contains(out.Message, spdx) {
		t.Errorf("%+v", out)
	}
	if got := codesOf(t, runbook, LintOptions{Options: Options{TrustedRoot: publicGood(t)}}); len(got) != 1 || !strings.HasPrefix(got[0], LintOldField) {
		t.Errorf("%v", got)
	}
}
