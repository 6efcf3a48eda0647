package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// shelf is a source in memory. It counts how often it is asked, and has what lies elsewhere by its place.
type shelf struct {
	here      []oci.Attachment
	elsewhere map[Place][]oci.Attachment
	keys      string // pull secrets that it is read with
	config    map[string][]byte
	unread    error
	ask       func() // before it answers; may be nil

	mu    *sync.Mutex // guards asked
	asked map[string]int
}

func newShelf(here ...oci.Attachment) *shelf {
	return &shelf{here: here, mu: new(sync.Mutex), asked: make(map[string]int)}
}

func (s *shelf) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[what]++
}

func (s *shelf) Resolve(context.Context, string) (oci.Image, error) {
	return oci.Image{}, os.ErrNotExist
}

func (s *shelf) Children(context.Context, oci.Image) ([]oci.Image, error) { return nil, nil }

func (s *shelf) Attachments(ctx context.Context, _ oci.Image) ([]oci.Attachment, error) {
	s.count("attachments")
	if s.ask != nil {
		s.ask()
	}
	return s.here, s.unread
}

func (s *shelf) Configs(context.Context, oci.Image) (map[string][]byte, error) {
	s.count("configs")
	if s.config == nil {
		return nil, os.ErrNotExist
	}
	return s.config, nil
}

func (s *shelf) At(repository, tagPrefix string) (oci.Source, error) {
	at := *s
	at.here = s.elsewhere[Place{Repository: repository, TagPrefix: tagPrefix, PullSecrets: s.keys}]
	return &at, nil
}

func (s *shelf) With(_ context.Context, pullSecrets []string) (oci.Source, error) {
	with := *s
	with.keys = strings.Join(pullSecrets, ",")
	with.here = s.elsewhere[Place{PullSecrets: with.keys}]
	return &with, nil
}

// keysOf writes a trusted root as the keys of a TrustRoot; leave leaves lists out.
func keysOf(t *testing.T, trusted []byte, name string, leave ...string) string {
	t.Helper()
	type authority struct {
		URI       string
		CertChain struct{ Certificates []struct{ RawBytes []byte } }
	}
	type log struct {
		BaseURL   string `json:"baseUrl"`
		PublicKey struct{ RawBytes []byte }
	}
	var root struct {
		CertificateAuthorities, TimestampAuthorities []authority
		Tlogs, Ctlogs                                []log
	}
	if err := json.Unmarshal(trusted, &root); err != nil {
		t.Fatal(err)
	}
	keys := make(map[string][]map[string]any)
	authorities := func(list []authority) (out []map[string]any) {
		for _, a := range list {
			var chain []byte
			for _, c := range a.CertChain.Certificates {
				chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.RawBytes})...)
			}
			out = append(out, map[string]any{"uri": a.URI, "certChain": chain, "subject": map[string]string{"organization": "o", "commonName": "c"}})
		}
		return out
	}
	logs := func(list []log) (out []map[string]any) {
		for _, l := range list {
			out = append(out, map[string]any{"baseURL": l.BaseURL, "hashAlgorithm": "sha-256", "publicKey": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: l.PublicKey.RawBytes})})
		}
		return out
	}
	keys["certificateAuthorities"], keys["timestampAuthorities"] = authorities(root.CertificateAuthorities), authorities(root.TimestampAuthorities)
	keys["tLogs"], keys["ctLogs"] = logs(root.Tlogs), logs(root.Ctlogs)
	for _, l := range leave {
		delete(keys, l)
	}
	text, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	return "---\napiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: " + name + "}\nspec: {sigstoreKeys: " + string(text) + "}\n"
}

func caOf(t *testing.T, trusted []byte) string {
	t.Helper()
	var root struct {
		CertificateAuthorities []struct {
			CertChain struct{ Certificates []struct{ RawBytes []byte } }
		}
	}
	if err := json.Unmarshal(trusted, &root); err != nil {
		t.Fatal(err)
	}
	var chain []byte
	for _, c := range root.CertificateAuthorities[0].CertChain.Certificates {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.RawBytes})...)
	}
	return string(chain)
}

// TestClusterImagePolicy has each field once so that it allows and once so that it refuses, over what our stack signed.
func TestClusterImagePolicy(t *testing.T) {
	s, other := newSite(t), newSite(t)
	image := imageOf("registry.example/team/app")
	const alice, slsa, cyclonedx = "alice@example.com", "https://slsa.dev/provenance/v0.2", "https://cyclonedx.org/bom"
	bundle, legacy := s.sign(alice, image), s.simple(alice, image, nil)
	prov := s.attest(alice, image, slsa, `{"builder":{"id":"https://builder.example/v2"}}`)
	empty, sbom := s.attest(alice, image, slsa, `{}`), s.attest(alice, image, cyclonedx, `{"bomFormat":"CycloneDX"}`)
	forged := sbom
	forged.PredicateType = slsa // the annotation is nobody's word
	another := s.attest(alice, imageOf("registry.example/team/other"), oci.PredicateSignature, `{}`)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keyed := byKey(t, ec, image, oci.PredicateSignature, nil)
	quoted := func(text string) string {
		raw, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	who := "issuer: " + quoted(s.issuer) + ", subject: " + alice
	keyless := func(identity string, more ...string) string {
		return "{name: a, keyless: {identities: [{" + identity + "}]" + strings.Join(more, "") + "}"
	}
	a := keyless(who)
	trusts := keysOf(t, s.trusted, "ours") + keysOf(t, other.trusted, "theirs") + keysOf(t, s.trusted, "nolog", "tLogs") +
		keysOf(t, s.trusted, "nosct", "ctLogs") + keysOf(t, s.trusted, "notime", "tLogs", "timestampAuthorities")
	trusts = strings.Split(trusts, "---\napiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: notime}")[0] // does not serve keyless at all
	ref := func(name string) string { return ", trustRootRef: " + name }
	attestations := func(list ...string) string { return ", attestations: [" + strings.Join(list, ", ") + "]}" }
	wants := func(name, kind, language, text string) string {
		if language == "" {
			return "{name: " + name + ", predicateType: " + kind + "}"
		}
		return "{name: " + name + ", predicateType: " + kind + ", policy: {type: " + language + ", data: " + quoted(text) + "}}"
	}
	whole := func(language, text, more string) string {
		return "  policy: {type: " + language + ", data: " + quoted(text) + more + "}\n"
	}
	key := func(k *ecdsa.PrivateKey, more string) string {
		return "{name: k, key: {data: " + quoted(publicPEM(t, k)) + more + "}}"
	}
	pod := Subject{Version: "v1", Resource: "pods", Kind: "Pod", APIVersion: "v1", Namespace: "default", Labels: map[string]string{"app": "a"},
		Metadata: []byte(`{"name":"p","labels":{"app":"a"}}`), Spec: []byte(`{"hostNetwork":false}`)}
	config := map[string][]byte{"linux/amd64": []byte(`{"config":{"User":"1000"}}`)}
	all := []oci.Attachment{bundle, legacy, prov, sbom}
	elsewhere := map[Place][]oci.Attachment{
		{Repository: "registry.example/signatures"}: {bundle}, {TagPrefix: "release-"}: {legacy},
		{PullSecrets: "one,two"}: {bundle}, {Repository: "registry.example/signatures", PullSecrets: "one"}: {legacy},
	}
	const denied, noMatch = verify.ReasonPolicyDenied, ReasonNoPolicy
	for _, tt := range []struct {
		name, authority, spec string
		attached              []oci.Attachment
		want                  verify.Reason // "" allows
		says                  string        // part of the outcome's or a check's message
	}{
		{name: "an identity", authority: a + "}", attached: all},
		{name: "nothing attached", authority: a + "}", want: verify.ReasonNoSignature},
		{name: "only attestations", authority: a + "}", attached: []oci.Attachment{prov, sbom}, want: verify.ReasonNoSignature},
		{name: "of another image", authority: a + "}", attached: []oci.Attachment{another}, want: verify.ReasonSubjectMismatch},
		{name: "another issuer", authority: keyless("issuer: https://issuer.example, subject: "+alice) + "}", attached: all, want: verify.ReasonIdentityIssuer},
		{name: "another subject", authority: keyless("issuer: "+quoted(s.issuer)+", subject: bob@example.com") + "}", attached: all, want: verify.ReasonIdentitySubject},
		{name: "part of a subject is not it", authority: keyless("issuer: "+quoted(s.issuer)+", subject: alice") + "}", attached: all, want: verify.ReasonIdentitySubject},
		{name: "an issuer's pattern", authority: keyless("issuerRegExp: '^http://localhost:[0-9]+/oidc$', subject: "+alice) + "}", attached: all},
		{name: "an issuer's pattern that does not fit", authority: keyless("issuerRegExp: '^https://', subject: "+alice) + "}", attached: all, want: verify.ReasonIdentityIssuer},
		{name: "a subject's pattern, anywhere", authority: keyless("issuer: "+quoted(s.issuer)+", subjectRegExp: 'lice@exam'") + "}", attached: all},
		{name: "a subject's pattern that is anchored", authority: keyless("issuer: "+quoted(s.issuer)+", subjectRegExp: '^lice@exam'") + "}", attached: all, want: verify.ReasonIdentitySubject},
		{name: "the second identity", authority: "{keyless: {identities: [{issuer: i, subject: s}, {" + who + "}]}}", attached: all},

		{name: "a bundle", authority: a + ", signatureFormat: bundle}", attached: []oci.Attachment{bundle}},
		{name: "a bundle that is in the older form", authority: a + ", signatureFormat: bundle}", attached: []oci.Attachment{legacy}, want: verify.ReasonNoSignature},
		{name: "the older form", authority: a + ", signatureFormat: legacy}", attached: []oci.Attachment{legacy}},
		{name: "the older form that is a bundle", authority: a + ", signatureFormat: legacy}", attached: []oci.Attachment{bundle}, want: verify.ReasonNoSignature},

		{name: "a key", authority: key(ec, ""), attached: []oci.Attachment{keyed}},
		{name: "a key with its hash", authority: key(ec, ", hashAlgorithm: sha256"), attached: []oci.Attachment{keyed}},
		{name: "another key", authority: key(stranger, ""), attached: []oci.Attachment{keyed}, want: verify.ReasonSignatureInvalid},
		{name: "a key whose log is demanded", authority: strings.TrimSuffix(key(ec, ""), "}") + ", ctlog: {}}", attached: []oci.Attachment{keyed}, want: verify.ReasonEntryMissing},
		{name: "a key whose timestamp is demanded", authority: strings.TrimSuffix(key(ec, ""), "}") + ", rfc3161timestamp: {trustRootRef: nolog}}", attached: []oci.Attachment{keyed}, want: verify.ReasonNoTime},
		{name: "a certificate where a key is wanted", authority: key(ec, ""), attached: []oci.Attachment{bundle}, want: verify.ReasonKeyMismatch},
		{name: "a key of a secret", authority: "{key: {secretRef: {name: keys}}}", spec: "", attached: []oci.Attachment{keyed}},

		{name: "static pass", authority: "{static: {action: pass}}"},
		{name: "static fail", authority: "{static: {action: fail, message: frozen}}", attached: all, want: ReasonStatic, says: "frozen"},
		{name: "the second authority", authority: key(stranger, "") + "\n  - " + a + "}", attached: all},
		{name: "neither authority", authority: key(stranger, "") + "\n  - {static: {action: fail}}", attached: all, want: verify.ReasonKeyMismatch},

		{name: "a repository of signatures", authority: a + ", source: [{oci: registry.example/signatures}]}"},
		{name: "another repository of signatures", authority: a + ", source: [{oci: registry.example/others}]}", attached: all, want: verify.ReasonNoSignature},
		{name: "a prefix of tags", authority: a + ", source: [{tagPrefix: release-}]}"},
		{name: "pull secrets", authority: a + ", source: [{signaturePullSecrets: [{name: one}, {name: two}]}]}"},
		{name: "pull secrets in another order", authority: a + ", source: [{signaturePullSecrets: [{name: two}, {name: one}]}]}", attached: all, want: verify.ReasonNoSignature},
		{name: "a pull secret of a repository of signatures", authority: a + ", source: [{oci: registry.example/signatures, signaturePullSecrets: [{name: one}]}]}"},
		{name: "another prefix of tags", authority: a + ", source: [{tagPrefix: other-}]}", attached: all, want: verify.ReasonNoSignature},

		{name: "an attestation, and no signature", authority: a + attestations(wants("p", "slsaprovenance", "", "")), attached: []oci.Attachment{prov}},
		{name: "an attestation's type in full", authority: a + attestations(wants("p", slsa, "", "")), attached: []oci.Attachment{prov}},
		{name: "an attestation of another type", authority: a + attestations(wants("p", "slsaprovenance1", "", "")), attached: []oci.Attachment{prov}, want: verify.ReasonPredicateMissing},
		{name: "an attestation by its annotation alone", authority: a + attestations(wants("p", slsa, "", "")), attached: []oci.Attachment{forged}, want: verify.ReasonPredicateMissing},
		{name: "both attestations", authority: a + attestations(wants("p", "slsaprovenance", "", ""), wants("s", "cyclonedx", "", "")), attached: all},
		{name: "one of both attestations", authority: a + attestations(wants("p", "slsaprovenance", "", ""), wants("s", "cyclonedx", "", "")), attached: []oci.Attachment{bundle, prov}, want: verify.ReasonPredicateMissing, says: "s (CycloneDX SBOM)"},
		{name: "a signature as an attestation", authority: a + attestations(wants("sig", oci.PredicateSignature, "", "")), attached: []oci.Attachment{bundle}},
		{name: "CUE over a statement", authority: a + attestations(wants("p", slsa, "cue", `predicate: builder: id: =~"^https://builder.example/"`)), attached: all},
		{name: "CUE that one of several satisfies", authority: a + attestations(wants("p", slsa, "cue", `predicate: builder: id: =~"^https://builder.example/"`)), attached: []oci.Attachment{empty, prov}},
		{name: "CUE over a statement without the field", authority: a + attestations(wants("p", slsa, "cue", `predicate: builder: id: =~"^https://builder.example/"`)), attached: []oci.Attachment{empty}, want: denied, says: "predicate.builder"},
		{name: "Rego over a statement", authority: a + attestations(wants("p", slsa, "rego", "package sigstore\nisCompliant { input.predicate.builder.id == \"https://builder.example/v2\" }")), attached: all},
		{name: "Rego that refuses", authority: a + attestations(wants("p", slsa, "rego", "package sigstore\nisCompliant[r] { r := {\"result\": false, \"error\": \"not ours\"} }")), attached: all, want: denied, says: "not ours"},

		{name: "a policy over signatures", authority: a + "}", spec: whole("cue", `authorityMatches: a: signatures: [{subject: "alice@example.com"}, ...]`, ""), attached: all},
		{name: "a policy over signatures that refuses", authority: a + "}", spec: whole("cue", `authorityMatches: a: signatures: [{subject: "bob@example.com"}, ...]`, ""), attached: all, want: denied, says: "spec.policy"},
		{name: "a policy over attestations", authority: a + attestations(wants("p", "slsaprovenance", "", "")), spec: whole("rego", "package sigstore\nisCompliant { input.authorityMatches.a.attestations.p[_].predicateType == \""+slsa+"\" }", ""), attached: all},
		{name: "a policy that asks for both authorities", authority: a + "}\n  - {name: k, key: {data: " + quoted(publicPEM(t, ec)) + "}}", spec: whole("cue", "authorityMatches: {a: signatures: [...], k: signatures: [...]}", ""), attached: append([]oci.Attachment{keyed}, all...)},
		{name: "a policy that asks for an authority that did not pass", authority: a + "}\n  - {name: k, key: {data: " + quoted(publicPEM(t, ec)) + "}}", spec: whole("cue", "authorityMatches: {a: signatures: [...], k: signatures: [...]}", ""), attached: all, want: denied, says: "authorityMatches.k"},
		{name: "a policy does not save an authority", authority: key(stranger, ""), spec: whole("rego", "package sigstore\nisCompliant { true }", ""), attached: all, want: verify.ReasonKeyMismatch},
		{name: "static is in the result", authority: "{name: s, static: {action: pass}}", spec: whole("cue", "authorityMatches: s: static: true", "")},
		{name: "the configuration", authority: a + "}", spec: whole("cue", `config: "linux/amd64": config: User: "1000"`, ", fetchConfigFile: true"), attached: all},
		{name: "a configuration that is refused", authority: a + "}", spec: whole("cue", `config: "linux/amd64": config: User: "0"`, ", fetchConfigFile: true"), attached: all, want: denied},
		{name: "a configuration that is not fetched", authority: a + "}", spec: whole("cue", `config: "linux/amd64": config: User: "1000"`, ""), attached: all, want: denied},
		{name: "the object's spec", authority: a + "}", spec: whole("cue", "spec: hostNetwork: false", ", includeSpec: true"), attached: all},
		{name: "a spec that is refused", authority: a + "}", spec: whole("cue", "spec: hostNetwork: true", ", includeSpec: true"), attached: all, want: denied},
		{name: "a spec that is not included", authority: a + "}", spec: whole("cue", "spec: hostNetwork: false", ", includeSpec: false"), attached: all, want: denied},
		{name: "the object's metadata", authority: a + "}", spec: whole("cue", `metadata: labels: app: "a"`, ", includeObjectMeta: true"), attached: all},
		{name: "metadata that is not included", authority: a + "}", spec: whole("cue", `metadata: labels: app: "a"`, ""), attached: all, want: denied},
		{name: "the object's kind", authority: a + "}", spec: whole("cue", `typemeta: kind: "Pod"`, ", includeTypeMeta: true"), attached: all},
		{name: "a kind that is refused", authority: a + "}", spec: whole("cue", `typemeta: kind: "Job"`, ", includeTypeMeta: true"), attached: all, want: denied},

		{name: "a match", authority: "{static: {action: pass}}", spec: "  match: [{version: v1, resource: pods}]\n"},
		{name: "a match of any version", authority: "{static: {action: pass}}", spec: "  match: [{version: '*', resource: pods}]\n"},
		{name: "a match of another version", authority: "{static: {action: pass}}", spec: "  match: [{version: v2, resource: pods}]\n", want: noMatch},
		{name: "a match of another resource", authority: "{static: {action: pass}}", spec: "  match: [{version: v1, resource: jobs}]\n", want: noMatch},
		{name: "a match of another group", authority: "{static: {action: pass}}", spec: "  match: [{group: apps, version: v1, resource: pods}]\n", want: noMatch},
		{name: "the second match", authority: "{static: {action: pass}}", spec: "  match: [{version: v1, resource: jobs}, {version: v1, resource: pods}]\n"},
		{name: "labels", authority: "{static: {action: pass}}", spec: "  match: [{version: v1, resource: pods, selector: {matchLabels: {app: a}}}]\n"},
		{name: "other labels", authority: "{static: {action: pass}}", spec: "  match: [{version: v1, resource: pods, selector: {matchLabels: {app: b}}}]\n", want: noMatch},
		{name: "label expressions", authority: "{static: {action: pass}}", spec: "  match: [{version: v1, resource: pods, selector: {matchExpressions: [{key: app, operator: In, values: [a, b]}, {key: none, operator: DoesNotExist}]}}]\n"},
		{name: "label expressions that do not fit", authority: "{static: {action: pass}}", spec: "  match: [{version: v1, resource: pods, selector: {matchExpressions: [{key: app, operator: NotIn, values: [a]}]}}]\n", want: noMatch},

		{name: "a trust root", authority: keyless(who, ref("ours")) + "}", attached: all},
		{name: "the trust root of another site", authority: keyless(who, ref("theirs")) + "}", attached: []oci.Attachment{bundle}, want: verify.ReasonLogUnknown},
		{name: "a trust root with another's logs", authority: keyless(who, ref("ours")) + ", ctlog: {trustRootRef: theirs}}", attached: []oci.Attachment{bundle}, want: verify.ReasonLogUnknown},
		{name: "a trust root with its logs", authority: keyless(who, ref("ours")) + ", ctlog: {url: https://log.example, trustRootRef: ours}}", attached: all},
		{name: "a trust root without logs has timestamps", authority: keyless(who, ref("nolog")) + "}", attached: []oci.Attachment{bundle}},
		{name: "a timestamp", authority: keyless(who, ref("ours")) + ", rfc3161timestamp: {trustRootRef: ours}}", attached: []oci.Attachment{bundle}, says: "a log entry is demanded beside the timestamp"},
		{name: "another's timestamp", authority: keyless(who, ref("ours")) + ", rfc3161timestamp: {trustRootRef: theirs}}", attached: []oci.Attachment{bundle}, want: verify.ReasonTimestampInvalid},
		{name: "a trust root without CT logs", authority: keyless(who, ref("nosct")) + "}", attached: all},
		{name: "SCTs of another site's logs are not looked at when told so", authority: keyless(who, ", insecureIgnoreSCT: true") + "}", attached: all},
		{name: "a CA of its own", authority: keyless(who, ", ca-cert: {data: "+quoted(caOf(t, s.trusted))+"}") + "}", attached: all},
		{name: "another CA", authority: keyless(who, ", ca-cert: {data: "+quoted(caOf(t, other.trusted))+"}") + "}", attached: []oci.Attachment{bundle}, want: verify.ReasonCertChain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := cip(tt.authority, tt.spec) + trusts + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {any: " + quoted(publicPEM(t, ec)) + "}\n"
			source := newShelf(tt.attached...)
			source.config, source.elsewhere = config, elsewhere
			subject := pod
			subject.Image = image
			v := decideText(t, text, s.trusted, &subject, source)
			reasons := v.reasons()
			if v.Allowed != (tt.want == "") || tt.want != "" && (len(reasons) != 1 || reasons[0] != tt.want && reasons[0].Class() != tt.want) {
				t.Errorf("allowed %v, reasons %v, want %q\n%+v", v.Allowed, reasons, tt.want, v)
			}
			if said, err := json.Marshal(v); err != nil || !strings.Contains(string(said), tt.says) {
				t.Errorf("nothing says %q (%v)\n%s", tt.says, err, said)
			}
			if source.asked["attachments"] > 1 {
				t.Errorf("the source was asked %d times", source.asked["attachments"])
			}
		})
	}
	for _, tt := range []struct{ name, authority, want string }{
		{"ctlog without a log", keyless(who, ref("nolog")) + ", ctlog: {trustRootRef: nolog}}", "no transparency log"},
		{"a timestamp without an authority", keyless(who) + ", rfc3161timestamp: {trustRootRef: notsa}}", "no timestamp authority"},
		{"no time at all", keyless(who, ref("notime")) + "}", "no certificate can be judged"},
		{"no certificate authority", keyless(who, ref("noca")) + "}", "no certificate authority"},
		{"a hash that does not go with the key", key(ec, ", hashAlgorithm: sha512"), "does not go with this key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			docs := cip(tt.authority) + keysOf(t, s.trusted, "nolog", "tLogs") + keysOf(t, s.trusted, "notsa", "timestampAuthorities") +
				keysOf(t, s.trusted, "notime", "tLogs", "timestampAuthorities") + keysOf(t, s.trusted, "noca", "certificateAuthorities")
			refusedToLoad(t, docs, s.trusted, tt.want)
		})
	}
}

func decideText(t *testing.T, text string, trusted []byte, subject *Subject, source oci.Source) Verdict {
	t.Helper()
	loaded, err := Compile([]File{{Name: "policy.yaml", Data: []byte(text)}}, Options{TrustedRoot: trusted})
	if err != nil {
		t.Fatal(err)
	}
	set, err := NewSet(loaded.Policies, SetOptions{Version: loaded.Version})
	if err != nil {
		t.Fatal(err)
	}
	return set.Decide(t.Context(), subject, source)
}

// TestTrustRootFromTUF verifies an instance's TUF repository from an archive and from a copy.
func TestTrustRootFromTUF(t *testing.T) {
	s := newSite(t)
	image := imageOf("registry.example/app")
	signed := s.sign("alice@example.com", image)
	repository := os.DirFS(filepath.Join(s.dir, "tuf"))
	root := readFile(t, filepath.Join(s.dir, "client", "root.json"))
	b64 := base64.StdEncoding.EncodeToString
	archive := func(prefix string, change func(name string, data []byte) []byte) string {
		var out bytes.Buffer
		zw := gzip.NewWriter(&out)
		tw := tar.NewWriter(zw)
		err := fs.WalkDir(repository, ".", func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := fs.ReadFile(repository, name)
			if err != nil {
				return err
			}
			data = change(name, data)
			if err := tw.WriteHeader(&tar.Header{Name: prefix + name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
				return err
			}
			_, err = tw.Write(data)
			return err
		})
		if err := errors.Join(err, tw.Close(), zw.Close()); err != nil {
			t.Fatal(err)
		}
		return b64(out.Bytes())
	}
	same := func(_ string, data []byte) []byte { return data }
	trust := func(spec string) string {
		return cip("keyless: {trustRootRef: tuf, identities: [{issuer: '"+s.issuer+"', subject: alice@example.com}]}") +
			"---\napiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: tuf}\nspec: " + spec + "\n"
	}
	mirror := map[string]fs.FS{"https://tuf.example": repository}
	later := time.Now().AddDate(50, 0, 0)
	for _, tt := range []struct {
		name, spec, want string
		at               time.Time
	}{
		{name: "an archive", spec: "{repository: {root: " + b64(root) + ", mirrorFS: " + archive("repository/", same) + "}}"},
		{name: "an archive without the leading folder", spec: "{repository: {root: " + b64(root) + ", mirrorFS: " + archive("", same) + "}}"},
		{name: "the target by its name", spec: "{repository: {root: " + b64(root) + ", mirrorFS: " + archive("", same) + ", targets: targets, trustedRootTarget: trusted_root.json}}"},
		{name: "a copy", spec: "{remote: {mirror: 'https://tuf.example', root: " + b64(root) + "}}"},
		{name: "no copy of that URL", spec: "{remote: {mirror: 'https://other.example', root: " + b64(root) + "}}", want: "nothing is fetched here"},
		{name: "no root", spec: "{remote: {mirror: 'https://tuf.example'}}", want: "root is missing"},
		{name: "another root", spec: "{remote: {mirror: 'https://tuf.example', root: " + b64(bytes.Replace(root, []byte(`"version":1`), []byte(`"version":9`), 1)) + "}}", want: "TUF"},
		{name: "the root of somebody else", spec: "{remote: {mirror: 'https://tuf.example', root: " + b64(readFile(t, filepath.Join(newSite(t).dir, "client", "root.json"))) + "}}", want: "TUF"},
		{name: "metadata that is over", spec: "{remote: {mirror: 'https://tuf.example', root: " + b64(root) + "}}", at: later, want: "expired"},
		{name: "a target that is not there", spec: "{remote: {mirror: 'https://tuf.example', root: " + b64(root) + ", trustedRootTarget: other.json}}", want: `no target "other.json"`},
		{name: "another folder of targets", spec: "{remote: {mirror: 'https://tuf.example', root: " + b64(root) + ", targets: elsewhere}}", want: "elsewhere"},
		{name: "a changed target", spec: "{repository: {root: " + b64(root) + ", mirrorFS: " + archive("", func(name string, data []byte) []byte {
			if strings.HasSuffix(name, "trusted_root.json") {
				data = bytes.Replace(data, []byte("{"), []byte("{ "), 1)
			}
			return data
		}) + "}}", want: "TUF"},
		{name: "changed metadata", spec: "{repository: {root: " + b64(root) + ", mirrorFS: " + archive("", func(name string, data []byte) []byte {
			if name == "timestamp.json" {
				data = bytes.Replace(data, []byte(`"version":`), []byte(`"version":1`), 1)
			}
			return data
		}) + "}}", want: "TUF"},
		{name: "an archive that leads out", spec: "{repository: {root: " + b64(root) + ", mirrorFS: " + archive("../", same) + "}}", want: "leads out"},
		{name: "a truncated archive", spec: "{repository: {root: " + b64(root) + ", mirrorFS: " + archive("", same)[:400] + "}}", want: "mirrorFS"},
		{name: "two forms", spec: "{remote: {mirror: 'https://tuf.example', root: " + b64(root) + "}, sigstoreKeys: {}}", want: "exactly one of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			loaded, err := Compile([]File{{Name: "p.yaml", Data: []byte(trust(tt.spec))}}, Options{Mirrors: mirror, TUFTime: tt.at})
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			set, err := NewSet(loaded.Policies, SetOptions{Version: loaded.Version})
			if err != nil {
				t.Fatal(err)
			}
			if v := set.Decide(t.Context(), &Subject{Image: image}, newShelf(signed)); !v.Allowed {
				t.Errorf("%+v", v)
			}
		})
	}
}

// said is a policy that says what a test wants.
type said struct {
	name, mode string
	applies    func() bool
	decide     func(ctx context.Context, e Evidence) Outcome
}

func (s said) Name() string          { return s.name }
func (s said) Mode() string          { return s.mode }
func (s said) Applies(*Subject) bool { return s.applies == nil || s.applies() }
func (s said) Decide(ctx context.Context, _ *Subject, e Evidence) Outcome {
	return s.decide(ctx, e)
}

func TestSetDecides(t *testing.T) {
	image := imageOf("registry.example/app")
	says := func(passed bool) func(context.Context, Evidence) Outcome {
		return func(context.Context, Evidence) Outcome {
			return Outcome{Passed: passed, Reason: map[bool]verify.Reason{false: verify.ReasonNoSignature}[passed]}
		}
	}
	yes, no := said{"yes", ModeEnforce, nil, says(true)}, said{"no", ModeEnforce, nil, says(false)}
	never := func() bool { return false }
	for _, tt := range []struct {
		name     string
		policies []Policy
		noMatch  string
		digest   string
		allowed  bool
		reason   string // of the verdict or its policies
		warnings int
	}{
		{name: "one that passes", policies: []Policy{yes}, allowed: true},
		{name: "one that refuses", policies: []Policy{no}, reason: "no-signature"},
		{name: "all have to pass", policies: []Policy{yes, no}, reason: "no-signature"},
		{name: "a warning lets through", policies: []Policy{yes, said{"w", ModeWarn, nil, says(false)}}, allowed: true, reason: "no-signature", warnings: 1},
		{name: "an audit lets through and says nothing", policies: []Policy{said{"a", ModeAudit, nil, says(false)}}, allowed: true, reason: "no-signature"},
		{name: "a warning does not save", policies: []Policy{said{"w", ModeWarn, nil, says(true)}, no}, reason: "no-signature"},
		{name: "no policy", reason: "no-matching-policy"},
		{name: "none that applies", policies: []Policy{said{"n", ModeEnforce, never, says(true)}}, noMatch: NoMatchDeny, reason: "no-matching-policy"},
		{name: "none that applies, and a warning", policies: []Policy{said{"n", ModeEnforce, never, says(false)}}, noMatch: NoMatchWarn, allowed: true, warnings: 1},
		{name: "none that applies, and all is well", policies: []Policy{said{"n", ModeEnforce, never, says(false)}}, noMatch: NoMatchAllow, allowed: true},
		{name: "a refusal without a reason", policies: []Policy{said{"n", ModeEnforce, nil, func(context.Context, Evidence) Outcome { return Outcome{} }}}, reason: "policy-denied"},
		{name: "a panic", policies: []Policy{yes, said{"p", ModeEnforce, nil, func(context.Context, Evidence) Outcome { panic("no") }}}, noMatch: NoMatchAllow, reason: "internal"},
		{name: "a panic that looks whether it applies", policies: []Policy{yes, said{"p", ModeEnforce, func() bool { panic("no") }, says(true)}}, noMatch: NoMatchAllow, reason: "internal"},
		{name: "no digest", policies: []Policy{yes}, digest: "latest", noMatch: NoMatchAllow, reason: "no-digest"},
		{name: "a digest that is too short", policies: []Policy{yes}, digest: "sha256:aa", noMatch: NoMatchAllow, reason: "no-digest"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set, err := NewSet(tt.policies, SetOptions{NoMatch: tt.noMatch})
			if err != nil {
				t.Fatal(err)
			}
			subject := &Subject{Image: image}
			if tt.digest != "" {
				subject.Image.Digest = tt.digest
			}
			v := set.Decide(t.Context(), subject, newShelf())
			reasons := string(v.Reason)
			for _, o := range v.Policies {
				reasons += string(o.Reason)
			}
			if v.Allowed != tt.allowed || reasons != tt.reason || len(v.Warnings) != tt.warnings {
				t.Errorf("%+v", v)
			}
		})
	}
	for name, o := range map[string]struct {
		policies []Policy
		options  SetOptions
	}{
		"a no-match that there is not": {nil, SetOptions{NoMatch: "maybe"}},
		"a negative number at a time":  {nil, SetOptions{Parallel: -1}},
		"a name twice":                 {[]Policy{yes, yes}, SetOptions{}},
		"a mode that there is not":     {[]Policy{said{"m", "maybe", nil, says(true)}}, SetOptions{}},
		"too many":                     {make([]Policy, maxPolicies+1), SetOptions{}},
	} {
		if _, err := NewSet(o.policies, o.options); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	version := func(o SetOptions, policies ...Policy) string {
		set, err := NewSet(policies, o)
		if err != nil {
			t.Fatal(err)
		}
		return set.Version()
	}
	first := version(SetOptions{Version: "a"}, yes, no)
	if first != version(SetOptions{Version: "a", NoMatch: NoMatchDeny}, yes, no) {
		t.Error("the same set has another version")
	}
	for _, other := range []string{version(SetOptions{Version: "b"}, yes, no), version(SetOptions{Version: "a", NoMatch: NoMatchWarn}, yes, no), version(SetOptions{Version: "a"}, yes)} {
		if other == first {
			t.Error("another set has the same version")
		}
	}
}

func TestACancelledDecisionRefuses(t *testing.T) {
	image := imageOf("registry.example/app")
	pass := func(t *testing.T, ctx context.Context, source oci.Source, policies ...Policy) Verdict {
		t.Helper()
		set, err := NewSet(policies, SetOptions{NoMatch: NoMatchAllow})
		if err != nil {
			t.Fatal(err)
		}
		return set.Decide(ctx, &Subject{Image: image}, source)
	}
	static := compileOne(t, cip("static: {action: pass}"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v := pass(t, ctx, newShelf(), static); v.Allowed || v.Reason == "" {
		t.Errorf("before: %+v", v)
	}
	// It ends while a policy that would pass is at work.
	ctx, cancel = context.WithCancel(t.Context())
	late := said{"late", ModeWarn, nil, func(context.Context, Evidence) Outcome { cancel(); return Outcome{Passed: true} }}
	if v := pass(t, ctx, newShelf(), late); v.Allowed || v.Reason == "" {
		t.Errorf("meanwhile: %+v", v)
	}
	// Two ask; the one that waits for the other's answer leaves with its context.
	ctx, cancel = context.WithCancel(t.Context())
	source := newShelf()
	source.ask = cancel
	ask := func(ctx context.Context, e Evidence) Outcome {
		_, err := e.Attachments(ctx, Place{})
		return Outcome{Passed: err == nil}
	}
	if v := pass(t, ctx, source, said{"a", ModeEnforce, nil, ask}, said{"b", ModeEnforce, nil, ask}); v.Allowed {
		t.Errorf("while it is fetched: %+v", v)
	}
}

func TestEvidenceIsFetchedOnce(t *testing.T) {
	source := newShelf()
	source.config = map[string][]byte{"linux/amd64": []byte(`{}`)}
	ask := func(ctx context.Context, e Evidence) Outcome {
		for _, at := range []Place{{}, {Repository: "registry.example/signatures"}, {}} {
			if _, err := e.Attachments(ctx, at); err != nil {
				return Outcome{Message: err.Error()}
			}
		}
		_, err := e.Configs(ctx)
		return Outcome{Passed: err == nil}
	}
	var policies []Policy
	for i := range 20 {
		policies = append(policies, said{fmt.Sprint(i), ModeEnforce, nil, ask})
	}
	set, err := NewSet(policies, SetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	v := set.Decide(t.Context(), &Subject{Image: imageOf("registry.example/app")}, source)
	if !v.Allowed || source.asked["attachments"] != 2 || source.asked["configs"] != 1 {
		t.Errorf("allowed %v, asked %v", v.Allowed, source.asked)
	}
	for i, o := range v.Policies {
		if o.Policy != fmt.Sprint(i) {
			t.Errorf("outcome %d is that of policy %s", i, o.Policy)
		}
	}
	// A source that panics refuses whoever asks.
	broken := newShelf()
	broken.ask = func() { panic("no") }
	if v := set.Decide(t.Context(), &Subject{Image: imageOf("registry.example/app")}, broken); v.Allowed || v.Policies[0].Passed || v.Policies[19].Passed {
		t.Errorf("%+v", v)
	}
	// What could not be read is told, and may be what is missing.
	unread := newShelf()
	unread.unread = refused(verify.ReasonRegistryUnreachable, "the registry does not answer")
	p := compileOne(t, cip("key: {data: "+fmt.Sprintf("%q", keyPEM)+"}"), nil)
	o := p.Decide(t.Context(), &Subject{Image: imageOf("registry.example/app")}, newEvidence(t.Context(), unread, imageOf("registry.example/app")))
	if o.Passed || o.Reason != verify.ReasonRegistryUnreachable || !strings.Contains(o.Message, "does not answer") {
		t.Errorf("%+v", o)
	}
}

func TestAnAuthorityLooksAtSoMany(t *testing.T) {
	image := imageOf("registry.example/app")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := compileOne(t, cip("key: {data: "+fmt.Sprintf("%q", publicPEM(t, key))+"}"), nil)
	list := make([]oci.Attachment, maxCandidates)
	for i := range list {
		list[i] = oci.Attachment{Form: oci.FormBundle, Bundle: []byte(`{}`)}
	}
	good := byKey(t, key, image, oci.PredicateSignature, nil)
	if o := p.Decide(t.Context(), &Subject{Image: image}, attached{all: append(list[:maxCandidates-1:maxCandidates-1], good)}); !o.Passed {
		t.Errorf("the last of %d: %+v", maxCandidates, o)
	}
	if o := p.Decide(t.Context(), &Subject{Image: image}, attached{all: append(list, good)}); o.Passed {
		t.Error("more were looked at than are allowed")
	}
}
