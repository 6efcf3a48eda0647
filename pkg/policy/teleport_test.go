package policy

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crypto"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const (
	slsa = "https://slsa.dev/provenance/v1"
	spdx = "https://spdx.dev/Document"
)

// sharedDir returns the directory of published vectors, or skips.
func sharedDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("ATTESTRY_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	if _, err := os.Stat(filepath.Join(dir, "conformance")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("published vectors are missing: %v", err)
		}
		t.Skip("set ATTESTRY_SHARED to the directory that holds conformance/ and vectors/")
	}
	return dir
}

func teleportYAML(spec string) string {
	return "kind: sigstore_policy\nversion: v1\nmetadata:\n  name: p\nspec:\n  " + indented(spec, 2) + "\n"
}

// privateRoot is the policy of the seeds, with an instance of one's own in place of GitHub's.
func privateRoot(s *site, subject, requirements string) string {
	return teleportYAML(fmt.Sprintf(`
keyless:
  identities:
    - issuer: https://accounts.google.com
      subject: somebody@example.com
    - issuer_regex: ^%s(/asteroid-earth)?$
      subject_regex: %s
  trusted_roots:
    - |
      %s
requirements:
  %s`, s.issuer, subject, indented(string(s.trusted), 6), indented(requirements, 2)))
}

func TestASigstorePolicyOverWhatOurStackSigned(t *testing.T) {
	s := newSite(t)
	image, other := imageOf("registry.example/app"), imageOf("registry.example/other")
	const alice, bob = "alice@example.com", "bob@example.com"
	signature := "artifact_signature: true"
	attestations := "artifact_signature: false\nattestations:\n  - predicate_type: " + slsa + "\n  - predicate_type: " + spdx
	slsaBy := func(who string) oci.Attachment { return s.attest(who, image, slsa, `{"a":1}`) }
	for name, tt := range map[string]struct {
		subject, requirements string
		attached              []oci.Attachment
		reason                verify.Reason // "" passes
		message               string
	}{
		"a signature of cosign 3":                 {`^alice@`, signature, []oci.Attachment{s.sign(alice, image)}, "", ""},
		"a simple signing document":               {`^alice@`, signature, []oci.Attachment{s.simple(alice, image, nil)}, "", ""},
		"an attestation is not a signature":       {`^alice@`, signature, []oci.Attachment{slsaBy(alice)}, verify.ReasonNoSignature, "signature: "},
		"nothing is attached":                     {`^alice@`, signature, nil, verify.ReasonNoSignature, "no signature is attached"},
		"somebody else's signature":               {`^alice@`, signature, []oci.Attachment{s.sign(bob, image)}, verify.ReasonIdentitySubject, bob},
		"one of two signatures is alice's":        {`^alice@`, signature, []oci.Attachment{s.sign(bob, image), s.sign(alice, image)}, "", ""},
		"a signature of another image":            {`^alice@`, signature, []oci.Attachment{s.sign(alice, other)}, verify.ReasonSubjectMismatch, ""},
		"a document about another image":          {`^alice@`, signature, []oci.Attachment{s.simple(alice, other, nil)}, verify.ReasonSubjectMismatch, ""},
		"patterns fit anywhere, as upstream's":    {`ali`, signature, []oci.Attachment{s.sign(alice, image)}, "", ""},
		"both attestations":                       {`^alice@`, attestations, []oci.Attachment{slsaBy(alice), s.attest(alice, image, spdx, `{}`)}, "", ""},
		"one attestation is missing":              {`^alice@`, attestations, []oci.Attachment{slsaBy(alice)}, verify.ReasonPredicateMissing, spdx},
		"a signature is no attestation":           {`^alice@`, attestations, []oci.Attachment{s.simple(alice, image, nil)}, verify.ReasonPredicateMissing, slsa},
		"a message signature":                     {`^alice@`, signature, []oci.Attachment{s.message(alice, image)}, "", ""},
		"a message signature is no attestation":   {`^alice@`, attestations, []oci.Attachment{s.message(alice, image)}, verify.ReasonPredicateMissing, "no attestation of type"},
		"the attestations are by two of the list": {`^(alice|bob)@`, attestations, []oci.Attachment{slsaBy(bob), s.attest(alice, image, spdx, `{}`)}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := compileOne(t, privateRoot(s, tt.subject, tt.requirements), nil)
			out := p.Decide(t.Context(), &Subject{Image: image}, attached{all: tt.attached})
			if out.Passed != (tt.reason == "") || out.Reason != tt.reason || !strings.Contains(out.Message, tt.message) {
				t.Errorf("%+v, want %q with %q", out, tt.reason, tt.message)
			}
		})
	}
}

// TestGitHubIdentitiesOnPublishedBundles takes the seeds' policy to bundles that GitHub's workflows made.
func TestGitHubIdentitiesOnPublishedBundles(t *testing.T) {
	dir := sharedDir(t)
	public := publicGood(t)
	bundle := readFile(t, filepath.Join(dir, "vectors", "sigstore-go-bundles", "sigstore.js@2.0.0-provenance.sigstore.json"))
	var parsed struct{ DsseEnvelope struct{ Payload []byte } }
	if err := json.Unmarshal(bundle, &parsed); err != nil {
		t.Fatal(err)
	}
	statement, err := verify.ParseStatement(parsed.DsseEnvelope.Payload)
	if err != nil {
		t.Fatal(err)
	}
	image := oci.Image{Reference: "sigstore", Digest: "sha512:" + statement.Subject[0].Digest["sha512"]}
	evidence := attached{all: []oci.Attachment{{Form: oci.FormBundle, Bundle: bundle}}}
	github := func(issuer, organisation, root string) string {
		return teleportYAML(fmt.Sprintf(`
keyless:
  identities:
    - issuer_regex: ^https://token.actions.githubusercontent.com%s$
      subject_regex: ^https://github.com/%s/(.*)/\.github/workflows/(.*)@refs/heads/main$
  %s
requirements:
  attestations:
    - predicate_type: %s`, issuer, organisation, indented(root, 2), statement.PredicateType))
	}
	lines := strings.ReplaceAll(string(public), "\n", " ")
	private := newSite(t)
	for name, tt := range map[string]struct {
		policy string
		reason verify.Reason
	}{
		"the public root is the default":              {github("(/asteroid-earth)?", "sigstore", ""), ""},
		"the public root is given":                    {github("(/asteroid-earth)?", "sigstore", "trusted_roots:\n  - '"+lines+"'"), ""},
		"one of two roots":                            {github("", "sigstore", "trusted_roots:\n  - |\n    "+indented(string(private.trusted), 4)+"\n  - '"+lines+"'"), ""},
		"one item holds the lines of two":             {github("", "sigstore", "trusted_roots:\n  - |\n    "+strings.Join(strings.Fields(string(private.trusted)), "")+"\n    "+lines), ""},
		"another organisation":                        {github("", "asteroid-earth", ""), verify.ReasonIdentitySubject},
		"the issuer of a private organisation":        {github("/asteroid-earth", "sigstore", ""), verify.ReasonIdentityIssuer},
		"private roots take the place of the default": {github("", "sigstore", "trusted_roots:\n  - |\n    "+indented(string(private.trusted), 4)), verify.ReasonLogUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			out := compileOne(t, tt.policy, public).Decide(t.Context(), &Subject{Image: image}, evidence)
			if out.Passed != (tt.reason == "") || out.Reason != tt.reason {
				t.Errorf("%+v, want %q", out, tt.reason)
			}
		})
	}
}

// byKey makes a bundle signed with a bare key: no certificate, no log, no time.
func byKey(t *testing.T, key crypto.Signer, image oci.Image, predicateType string, sign func(digest []byte) ([]byte, error)) oci.Attachment {
	t.Helper()
	_, value, _ := strings.Cut(image.Digest, ":")
	payload := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`, value, predicateType)
	pae := fmt.Sprintf("DSSEv1 28 application/vnd.in-toto+json %d %s", len(payload), payload)
	digest := sha256.Sum256([]byte(pae))
	if sign == nil {
		sign = func(digest []byte) ([]byte, error) {
			if _, pure := key.(ed25519.PrivateKey); pure {
				return key.Sign(rand.Reader, []byte(pae), crypto.Hash(0))
			}
			return key.Sign(rand.Reader, digest, crypto.SHA256)
		}
	}
	sig, err := sign(digest[:])
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	bundle := fmt.Sprintf(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"k"}},
"dsseEnvelope":{"payload":%q,"payloadType":"application/vnd.in-toto+json","signatures":[{"sig":%q}]}}`, b64([]byte(payload)), b64(sig))
	return oci.Attachment{Form: oci.FormBundle, Bundle: []byte(bundle)}
}

func publicPEM(t *testing.T, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestASigstorePolicyWithAKey(t *testing.T) {
	image := imageOf("registry.example/app")
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pss := func(digest []byte) ([]byte, error) { return rsa.SignPSS(rand.Reader, rs, crypto.SHA256, digest, nil) }
	for name, tt := range map[string]struct {
		key      crypto.Signer
		attached oci.Attachment
		reason   verify.Reason
	}{
		"ECDSA":                    {ec, byKey(t, ec, image, slsa, nil), ""},
		"Ed25519":                  {ed, byKey(t, ed, image, slsa, nil), ""},
		"RSA with PKCS #1 v1.5":    {rs, byKey(t, rs, image, slsa, nil), ""},
		"RSA with PSS":             {rs, byKey(t, rs, image, slsa, pss), verify.ReasonSignatureInvalid},
		"another key":              {ed, byKey(t, ec, image, slsa, nil), verify.ReasonSignatureInvalid},
		"another type":             {ec, byKey(t, ec, image, spdx, nil), verify.ReasonPredicateMissing},
		"another image":            {ec, byKey(t, ec, imageOf("other"), slsa, nil), verify.ReasonSubjectMismatch},
		"a bundle that is nothing": {ec, oci.Attachment{Form: oci.FormBundle, Bundle: []byte("{}")}, verify.ReasonFormatUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			p := compileOne(t, teleportYAML("key:\n  public: |\n    "+indented(publicPEM(t, tt.key), 4)+"\nrequirements:\n  attestations:\n    - predicate_type: "+slsa), nil)
			out := p.Decide(t.Context(), &Subject{Image: image}, attached{all: []oci.Attachment{tt.attached}})
			if out.Passed != (tt.reason == "") || out.Reason != tt.reason {
				t.Errorf("%+v, want %q", out, tt.reason)
			}
		})
	}
}

func TestWhatIsNoSigstorePolicy(t *testing.T) {
	const requirements = "\nrequirements:\n  artifact_signature: true"
	identity := func(fields string) string {
		return "keyless:\n  identities:\n    - " + indented(fields, 6) + requirements
	}
	const who = "issuer: https://i.example\nsubject: a"
	roots := func(root string) string {
		return "keyless:\n  identities:\n    - " + indented(who, 6) + "\n  trusted_roots:\n    - '" + root + "'" + requirements
	}
	for name, tt := range map[string]struct{ spec, want string }{
		"nothing":                       {"{}", "keyless or key is required"},
		"both":                          {identity(who) + "\nkey:\n  public: x", "not both"},
		"no identity":                   {"keyless: {identities: []}" + requirements, "1 to 64 are required"},
		"no issuer":                     {identity("subject: a"), "issuer or issuer_regex is required"},
		"an empty issuer":               {identity("issuer: ''\nsubject: a"), "issuer or issuer_regex is required"},
		"two issuers":                   {identity(who + "\nissuer_regex: .*"), "give issuer or issuer_regex, not both"},
		"two subjects":                  {identity(who + "\nsubject_regex: ''"), "give subject or subject_regex, not both"},
		"no subject":                    {identity("issuer: a"), "subject or subject_regex is required"},
		"a broken pattern":              {identity("issuer: a\nsubject_regex: a)(b"), "identities[0]: identity subject"},
		"a long pattern":                {identity("issuer: a\nsubject_regex: " + strings.Repeat("a", 1100)), "longer than"},
		"an unknown field":              {identity(who + "\nemail: a"), "email"},
		"no trusted root at all":        {identity(who), "no trusted root was given"},
		"a root that proves no time":    {roots(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`), "neither tlogs nor timestampAuthorities"},
		"a root that is nothing":        {roots(""), "it is empty"},
		"a root that is not JSON":       {roots("x"), "not JSON"},
		"a key that is none":            {"key:\n  public: x" + requirements, "not PEM"},
		"no requirement":                {"key:\n  public: |\n    " + indented(testKey, 4), "are required"},
		"both requirements":             {"key:\n  public: |\n    " + indented(testKey, 4) + requirements + "\n  attestations: [{predicate_type: a}]", "not both"},
		"an attestation without type":   {"key:\n  public: |\n    " + indented(testKey, 4) + "\nrequirements:\n  attestations: [{}]", "predicate_type is required"},
		"a requirement that is unknown": {"key:\n  public: |\n    " + indented(testKey, 4) + requirements + "\n  scan: true", "scan"},
	} {
		t.Run(name, func(t *testing.T) { refusedToLoad(t, teleportYAML(tt.spec), nil, tt.want) })
	}
	valid := teleportYAML("key:\n  public: |\n    " + indented(testKey, 4) + requirements)
	compileOne(t, valid, nil)
	for old, tt := range map[string]struct{ now, want string }{
		"version: v1":             {"version: v2", "not v1"},
		"  name: p":               {"  description: p", "name is required"},
		"metadata:\n":             {"sub_kind: x\nmetadata:\n", "sub_kind"},
		"  name: p\n":             {"  name: p\n  expires: '2027-01-01T00:00:00Z'\n", "expires"},
		"kind: sigstore_policy\n": {"kind: sigstore_policy\nkind: sigstore_policy\n", "twice"},
	} {
		refusedToLoad(t, strings.Replace(valid, old, tt.now, 1), nil, tt.want)
	}
	loaded, err := Compile([]File{{Name: "two.yaml", Data: []byte(valid + "---\n" + strings.Replace(valid, "name: p", "name: q", 1))}}, Options{})
	if err != nil || len(loaded.Policies) != 2 || loaded.Policies[1].Name() != "q" {
		t.Errorf("a file with two documents: %+v, %v", loaded, err)
	}
}

// testKey is that of Teleport's manual.
const testKey = `-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAA6h8OgaAX0htOLNP5hwaENfcivylMa8yBuOqD7k6kYE=
-----END PUBLIC KEY-----`

// FuzzSigstorePolicy: what loads decides without evidence, against the image.
func FuzzSigstorePolicy(f *testing.F) {
	f.Add([]byte(teleportYAML("key:\n  public: |\n    " + indented(testKey, 4) + "\nrequirements:\n  artifact_signature: true")))
	f.Add([]byte(teleportYAML("keyless:\n  identities:\n    - issuer_regex: ^a$\n      subject: b\nrequirements:\n  attestations:\n    - predicate_type: c")))
	trusted := []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`)
	f.Fuzz(func(t *testing.T, data []byte) {
		loaded, err := Compile([]File{{Name: "f", Data: data}}, Options{TrustedRoot: trusted})
		if err != nil {
			return
		}
		for _, p := range loaded.Policies {
			if _, teleport := p.(*sigstorePolicy); !teleport {
				continue
			}
			image := imageOf("registry.example/app")
			if out := p.Decide(t.Context(), &Subject{Image: image}, attached{}); out.Passed || out.Reason == "" || out.Message == "" {
				t.Errorf("%+v", out)
			}
		}
	})
}
