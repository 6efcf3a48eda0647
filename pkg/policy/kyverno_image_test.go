package policy

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

func pemEncode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func ivpolYAML(spec string) string {
	return "apiVersion: policies.kyverno.io/v1\nkind: ImageValidatingPolicy\nmetadata:\n  name: p\nspec:\n  matchConstraints:\n    resourceRules:\n" +
		"      - {apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [pods]}\n  " + indented(spec, 2) + "\n"
}

const verified = `
validations:
  - expression: images.containers.map(image, verifyImageSignatures(image, [attestors.alice])).all(e, e > 0)
    message: it is not signed`

// imageValidating is part of the test of ClusterPolicy, which has a stack that signs.
func imageValidating(t *testing.T, s *site, image oci.Image) {
	const alice, bob = "alice@example.com", "bob@example.com"
	raw, err := json.Marshal(string(s.trusted))
	if err != nil {
		t.Fatal(err)
	}
	spec := func(rest string) string {
		return fmt.Sprintf(`matchImageReferences:
  - glob: registry.example/team/*
attestors:
  - name: alice
    cosign:
      keyless: {identities: [{issuer: %q, subject: alice@example.com}]}
      trustedRoot: {value: %s}
  - name: bobs
    cosign:
      keyless: {identities: [{issuer: %q, subjectRegExp: ^bob@}, {issuer: %q, subject: carol@example.com}]}
attestations:
  - {name: sbom, intoto: {type: %q}}
  - {name: scan, intoto: {type: "https://example.com/scan"}}
%s`, s.issuer, raw, s.issuer, s.issuer, spdx, strings.TrimSpace(rest))
	}
	sbom := func(who, predicate string) oci.Attachment { return s.attest(who, image, spdx, predicate) }
	const both = `
validations:
  - expression: images.containers.map(image, verifyAttestationSignatures(image, attestations.sbom, [attestors.alice])).all(e, e > 0)
    message: there is no SBOM
  - expression: images.containers.map(image, extractPayload(image, attestations.sbom).predicate.format == 'SPDX').all(e, e)
    messageExpression: "'the SBOM is ' + string(extractPayload(images.containers[0], attestations.sbom).predicate.format)"`
	const two = `
variables:
  - {name: n, expression: "images.containers.map(i, verifyImageSignatures(i, [attestors.alice, attestors.bobs]))"}
validations:
  - expression: variables.n.all(n, n == 2)`
	for name, tt := range map[string]struct {
		spec     string
		attached []oci.Attachment
		reason   verify.Reason
		message  string
	}{
		"signed":                            {verified, []oci.Attachment{s.sign(alice, image)}, "", ""},
		"signed as before cosign 3":         {verified, []oci.Attachment{s.simple(alice, image, nil)}, "", ""},
		"unsigned":                          {verified, nil, verify.ReasonNoSignature, "it is not signed"},
		"signed by another":                 {verified, []oci.Attachment{s.sign(bob, image)}, verify.ReasonIdentitySubject, bob},
		"an attestation is not a signature": {verified, []oci.Attachment{sbom(alice, `{}`)}, verify.ReasonNoSignature, ""},
		"both have signed":                  {two, []oci.Attachment{s.sign(alice, image), s.sign(bob, image)}, "", ""},
		"one of both has signed":            {two, []oci.Attachment{s.sign(alice, image)}, verify.ReasonPolicyDenied, "validations[0] does not hold"},
		"an SBOM":                           {both, []oci.Attachment{sbom(alice, `{"format":"SPDX"}`)}, "", ""},
		"an SBOM by another":                {both, []oci.Attachment{sbom(bob, `{"format":"SPDX"}`)}, verify.ReasonIdentitySubject, "there is no SBOM"},
		"another SBOM":                      {both, []oci.Attachment{sbom(alice, `{"format":"CDX"}`)}, verify.ReasonPolicyDenied, "the SBOM is CDX"},
		"an SBOM without the field":         {both, []oci.Attachment{sbom(alice, `{}`)}, verify.ReasonPolicyDenied, "no such key"},
		"one of two SBOMs is bad": {both, []oci.Attachment{sbom(alice, `{"format":"SPDX"}`), sbom(alice, `{"format":"CDX"}`)},
			verify.ReasonPolicyDenied, "the SBOM is CDX"},
		"a payload that nobody verified": {"validations: [{expression: \"extractPayload(images.containers[0], attestations.scan).predicate.ok\"}]",
			[]oci.Attachment{s.attest(alice, image, "https://example.com/scan", `{"ok":true}`)}, verify.ReasonPolicyDenied, "no attestation \"scan\" is verified"},
		"nothing was verified, and required": {"validations: [{expression: \"true\"}]", []oci.Attachment{s.sign(alice, image)}, verify.ReasonPolicyDenied, "requires"},
		"nothing was verified, nor required": {"validationConfigurations: {required: false}\nvalidations: [{expression: \"true\"}]", nil, "", ""},
		"another image": {"validations: [{expression: \"verifyImageSignatures('registry.example/team/x', [attestors.alice]) > 0\"}]", nil,
			verify.ReasonPolicyDenied, "the policy is asked about"},
		"an attestor that is none": {"validations: [{expression: \"verifyImageSignatures(images.containers[0], ['dave']) > 0\"}]", nil,
			verify.ReasonPolicyDenied, "there is no attestor"},
		"an attestor of the policy that is none": {"validations: [{expression: \"verifyImageSignatures(images.containers[0], [attestors.dave]) > 0\"}]", nil,
			verify.ReasonPolicyDenied, "no such key"},
		"init containers are asked about too": {strings.ReplaceAll(verified, "images.containers", "images.initContainers"), nil, verify.ReasonNoSignature, ""},
		"an expression without end": {"validations: [{expression: \"" + strings.Repeat("[0,1,2,3,4,5,6,7,8,9].all(x, ", 7) + "true" + strings.Repeat(")", 7) + "\"}]", nil,
			verify.ReasonPolicyDenied, "cost limit"},
	} {
		t.Run(name, func(t *testing.T) {
			p := compileOne(t, ivpolYAML(spec(tt.spec)), s.trusted)
			out := p.Decide(t.Context(), &Subject{Image: image}, attached{all: tt.attached})
			if out.Passed != (tt.reason == "") || out.Reason != tt.reason || !strings.Contains(out.Message, tt.message) {
				t.Errorf("%+v, want %q with %q", out, tt.reason, tt.message)
			}
		})
	}
}

func TestWhereAnImageValidatingPolicyApplies(t *testing.T) {
	attestor := "attestors:\n  - {name: alice, cosign: {key: {data: \"" + strings.ReplaceAll(testKey, "\n", "\\n") + "\"}, ctlog: {insecureIgnoreTlog: true}}}\n"
	policy := func(spec string) Policy {
		return compileOne(t, ivpolYAML(attestor+spec+verified), nil)
	}
	image := imageOf("ghcr.io/team/app")
	for references, want := range map[string]bool{
		``:                               true,
		`[{glob: "ghcr.io/*"}]`:          true,
		`[{glob: "ghcr.io/team/app"}]`:   false, // of the name alone, as in Kyverno
		`[{glob: "ghcr.io/team/app@*"}]`: true,
		`[{glob: "{quay,ghcr}.io/**"}]`:  true,
		`[{glob: "quay.io/*"}]`:          false,
		`[{expression: "ref.startsWith('ghcr.io/')"}]`: true,
		`[{expression: "ref.startsWith('quay.io/')"}]`: false,
		`[{expression: "ref.split('/')[9] == ''"}]`:    true, // an expression that fails lets nothing pass by
	} {
		text := ""
		if references != "" {
			text = "matchImageReferences: " + references
		}
		if got := policy(text).Applies(&Subject{Image: image}); got != want {
			t.Errorf("%s: %v", references, got)
		}
	}
	p := policy("matchConditions: [{name: a, expression: \"object.metadata.labels.app == 'x'\"}]")
	pod := Subject{Image: image, Resource: "pods", Version: "v1", Kind: "Pod", Namespace: "a"}
	for metadata, want := range map[string]bool{`{"labels":{"app":"x"}}`: true, `{"labels":{"app":"y"}}`: false, `{}`: true, `{`: true} {
		pod.Metadata = []byte(metadata)
		if got := p.Applies(&pod); got != want {
			t.Errorf("%s: %v", metadata, got)
		}
	}
	p = policy("")
	for _, tt := range []struct {
		subject Subject
		want    bool
	}{
		{Subject{Resource: "pods", Version: "v1", Kind: "Pod"}, true},
		{Subject{Resource: "deployments", Group: "apps", Version: "v1", Kind: "Deployment"}, true}, // makes pods
	} {
		tt.subject.Image = image
		if got := p.Applies(&tt.subject); got != tt.want {
			t.Errorf("%+v: %v", tt.subject, got)
		}
	}
	for actions, want := range map[string]string{"[]": ModeEnforce, "[Deny]": ModeEnforce, "[Audit, Deny]": ModeEnforce, "[Audit]": ModeAudit, "[Warn, Audit]": ModeWarn} {
		if p := policy("validationActions: " + actions); p.Mode() != want {
			t.Errorf("%s: %s", actions, p.Mode())
		}
	}
	inNamespace := compileOne(t, strings.NewReplacer("kind: ImageV", "kind: NamespacedImageV", "  name: p", "  name: p\n  namespace: a", "kyverno.io/v1", "kyverno.io/v1beta1").
		Replace(ivpolYAML(attestor+verified)), nil)
	pod.Metadata = nil
	for namespace, want := range map[string]bool{"a": true, "b": false} {
		if pod.Namespace = namespace; inNamespace.Applies(&pod) != want || inNamespace.Name() != "a/p" {
			t.Errorf("%s in namespace %s", inNamespace.Name(), namespace)
		}
	}
}

func TestWhatIsRefusedOfAnImageValidatingPolicy(t *testing.T) {
	trusted := publicGood(t)
	const attestor = "attestors: [{name: alice, cosign: {keyless: {identities: [{issuer: a, subject: b}]}}}]"
	cosign := func(c string) string { return "attestors: [{name: alice, cosign: {" + c + "}}]" + verified }
	with := func(more string) string { return attestor + "\n" + more + verified }
	expression := func(e string) string { return attestor + "\nvalidations: [{expression: \"" + e + "\"}]" }
	for text, want := range map[string]string{
		attestor: "spec.validations is required",
		"attestors: [{name: alice, notary: {}}]" + verified:                  "Notary",
		"attestors: [{name: alice}]" + verified:                              "cosign is required",
		"attestors: [{cosign: {}}]" + verified:                               "name is required",
		cosign(""):                                                           "exactly one of key",
		cosign("keyless: {}"):                                                "1 to 64",
		cosign("keyless: {identities: [{issuer: a}]}"):                       "anybody would do",
		cosign("keyless: {identities: [{issuer: a, subjectExpression: b}]}"): "subjectExpression",
		cosign("key: {kms: a}"):                                              "KMS",
		cosign("key: {data: a}"):                                             "not PEM",
		cosign("key: {data: a, hashAlgorithm: sha512}"):                      "the hash follows the key",
		cosign("certificate: {cert: {expression: a}}"):                       "expressions are not supported",
		cosign("keyless: {identities: [{issuer: a, subject: b}]}, trustedRoot: {expression: a}"):         "trustedRoot.expression",
		cosign("keyless: {identities: [{issuer: a, subject: b}]}, trustedRoot: {value: a}"):              "trustedRoot",
		cosign("keyless: {identities: [{issuer: a, subject: b}]}, tuf: {mirror: a}"):                     "root.data and mirror are required",
		cosign("keyless: {identities: [{issuer: a, subject: b}]}, tuf: {root: {data: YQ==}, mirror: a}"): "tuf",
		with("images: [{name: a, expression: b}]"):                                                       "spec.images",
		with("evaluation: {mode: JSON}"):                                                                 "mode",
		with("validationActions: [Block]"):                                                               "Block",
		with("attestations: [{name: a, referrer: {type: b}}]"):                                           "Notary's",
		with("attestations: [{name: a, intoto: {}}]"):                                                    "intoto.type are required",
		with("matchImageReferences: [{glob: '[a'}]"):                                                     "not supported here",
		with("matchImageReferences: [{glob: '{a'}]"):                                                     "without }",
		with("matchImageReferences: [{}]"):                                                               "an expression of 1 to",
		with("matchImageReferences: [{expression: '1'}]"):                                                "of type int, not bool",
		with("matchConditions: [{name: a, expression: request.x}]"):                                      "undeclared reference to 'request'",
		with("matchConstraints2: {}"):                                                                    "matchConstraints2",
		expression("1"):                                                                                  "of type int, not bool",
		expression("true || request.x"):                                                                  "undeclared reference to 'request'",
		expression("getImageData('a') == null"):                                                          "undeclared reference to 'getImageData'",
		expression("verifyImageSignatures('a') > 0"):                                                     "verifyImageSignatures",
		expression("("):                "1:2",
		expression("'a'.matches('(')"): "validations[0]",
	} {
		refusedToLoad(t, ivpolYAML(text), trusted, want)
	}
	good := ivpolYAML(attestor + verified)
	compileOne(t, good, trusted)
	refusedToLoad(t, good, nil, "no certificate authority is trusted")
	refusedToLoad(t, strings.Replace(good, "kyverno.io/v1", "kyverno.io/v3", 1), trusted, "version")
	refusedToLoad(t, strings.Replace(good, "resourceRules:", "namespaceSelector: {}\n    resourceRules:", 1), trusted, "namespaceSelector")
}

// FuzzKyverno: what loads decides without evidence, against the image unless the policy asks for none.
func FuzzKyverno(f *testing.F) {
	key := "{keys: {rekor: {url: a, ignoreTlog: true}, publicKeys: \"" + strings.ReplaceAll(testKey, "\n", "\\n") + "\"}}"
	f.Add([]byte(clusterYAML("imageReferences: [\"*\"]\nattestors: [{count: 1, entries: [" + key + ", {attestor: {entries: [" + key + "]}}]}]")))
	f.Add([]byte(clusterYAML("imageReferences: [\"a?b*\"]\nattestations: [{type: t, attestors: [{entries: [" + key +
		"]}], conditions: [{any: [{key: \"{{ a[?b=='c'] }}\", operator: AnyIn, value: [1, x]}]}]}]")))
	f.Add([]byte(ivpolYAML("attestors:\n  - {name: alice, cosign: {key: {data: \"" + strings.ReplaceAll(testKey, "\n", "\\n") +
		"\"}, ctlog: {insecureIgnoreTlog: true}}}\nmatchImageReferences: [{glob: 'a{b,c}*'}, {expression: \"ref == 'a'\"}]" + verified)))
	f.Fuzz(func(t *testing.T, data []byte) {
		loaded, err := Compile([]File{{Name: "f", Data: data}}, Options{})
		if err != nil {
			return
		}
		subject := &Subject{Image: imageOf("registry.example/app")}
		for _, p := range loaded.Policies {
			p.Applies(subject)
			switch p := p.(type) {
			case *imagePolicy:
				if out := p.Decide(t.Context(), subject, attached{}); out.Passed && p.Applies(subject) {
					t.Errorf("%+v", out)
				}
			case *validatingPolicy:
				if out := p.Decide(t.Context(), subject, attached{}); out.Passed && p.required {
					t.Errorf("%+v", out)
				}
			}
		}
	})
}
