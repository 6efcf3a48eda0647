package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const keyPEM = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAazk4s7JDiyYvQ9OOP7eQRfEEqFl
T7oNg2BRkUPn3fn2K+fyW8X5d5YXE8cSffCdnYoCihxt6CwW9dWe9X2YJQ==
-----END PUBLIC KEY-----
`

// cip is a ClusterImagePolicy with one authority; lines are of its spec, indented by two.
func cip(authority string, more ...string) string {
	return "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p}\nspec:\n  images: [{glob: '**'}]\n" +
		strings.Join(more, "") + "  authorities:\n  - " + authority + "\n"
}

const keyless = `keyless: {url: https://ca.example, identities: [{issuer: https://issuer.example, subject: a@example.com}]}`

func TestRefusedWhenLoaded(t *testing.T) {
	static := "static: {action: pass}"
	for _, tt := range []struct{ name, doc, want string }{
		{"an unknown field", cip(static, "  imagez: []\n"), "p.yaml:6: spec.imagez: is not a field"},
		{"another spelling", cip(static, "  Match: []\n"), `it is spelled "match"`},
		{"attestations beside authorities", cip(static, "  attestations: []\n"), "attestations belong to an authority"},
		{"identities beside keyless", cip("{name: a, identities: [], " + static + "}"), "identities belong to an authority's keyless"},
		{"images in match", cip(static, "  match: [{images: []}]\n"), "images are chosen by spec.images"},
		{"a key twice", cip(static, "  mode: warn\n  mode: enforce\n"), `p.yaml:7: key "mode" appears twice`},
		{"a number for a string", cip("{name: 1, " + static + "}"), "spec.authorities[0].name: must be a string"},
		{"a string for a bool", cip(`keyless: {insecureIgnoreSCT: "yes", identities: [{issuer: i, subject: s}]}`), "must be true or false"},
		{"a mapping for a list", cip(static, "  match: {}\n"), "must be a list"},
		{"an alias", cip(static, "  match: &m []\n"), "anchors and aliases"},
		{"a list", "- a\n", "is a mapping"},
		{"no YAML", "a: [", "p.yaml"},
		{"too deep", "a: " + strings.Repeat("[", 70) + strings.Repeat("]", 70), "nested deeper"},
		{"an unknown kind", "apiVersion: v1\nkind: Pod\n", "no policy that is known here"},
		{"OpenShift's kind of that name", "apiVersion: config.openshift.io/v1\nkind: ClusterImagePolicy\n", "no policy that is known here"},
		{"a version that there is not", strings.Replace(cip(static), "v1beta1", "v1", 1), "neither policy.sigstore.dev/v1beta1 nor v1alpha1"},
		{"no name", strings.Replace(cip(static), "{name: p}", "{}", 1), "metadata.name: is missing"},
		{"a name twice", cip(static) + "---\n" + cip(static), "a policy of this name is at p.yaml:1 already"},
		{"no images", strings.Replace(cip(static), "[{glob: '**'}]", "[]", 1), "spec.images: has 0 entries"},
		{"a glob with a question mark", strings.Replace(cip(static), "'**'", "'a?'", 1), "spec.images[0].glob"},
		{"no authorities", strings.Split(cip(static), "  authorities")[0], "spec.authorities: has 0 entries"},
		{"a mode that there is not", cip(static, "  mode: audit\n"), "neither enforce nor warn"},
		{"CUE semantics that there are not", strings.Replace(cip(static), "{name: p}", "{name: p, annotations: {attestry.dev/cue-semantics: lax}}", 1), "neither strict nor upstream"},
		{"no kind of authority", cip("name: a"), "exactly one of key, keyless and static"},
		{"two kinds", cip("{static: {action: pass}, " + keyless + "}"), "exactly one of key, keyless and static"},
		{"names that collide", cip("{name: a, static: {action: pass}}\n  - {name: a, static: {action: pass}}"), `"a" is taken`},
		{"static with attestations", cip("{static: {action: pass}, attestations: [{name: a, predicateType: custom}]}"), "makes no sense beside static"},
		{"static with a source", cip("{static: {action: pass}, source: [{oci: registry.example/s}]}"), "source: makes no sense"},
		{"static with ctlog", cip("{static: {action: pass}, ctlog: {}}"), "ctlog: makes no sense"},
		{"static with a timestamp", cip("{static: {action: pass}, rfc3161timestamp: {}}"), "rfc3161timestamp: makes no sense"},
		{"a static action that there is not", cip("static: {action: maybe}"), "neither pass nor fail"},
		{"two sources", cip("{" + keyless + ", source: [{oci: registry.example/a}, {oci: registry.example/b}]}"), "only one is supported"},
		{"a source without a repository", cip("{" + keyless + ", source: [{oci: registry}]}"), "source[0].oci"},
		{"a tag prefix that is none", cip("{" + keyless + ", source: [{tagPrefix: a/b}]}"), "cannot begin a tag"},
		{"a pull secret of no such name", cip("{" + keyless + ", source: [{signaturePullSecrets: [{name: \"a,b\"}]}]}"), "cannot be the name of a secret"},
		{"a pull secret without a name", cip("{" + keyless + ", source: [{signaturePullSecrets: [{}]}]}"), "name: is missing"},
		{"a signature format that there is not", cip("{" + keyless + ", signatureFormat: new}"), "neither legacy nor bundle"},
		{"a key from nowhere", cip("key: {}"), "exactly one of data, secretRef and kms"},
		{"a key from two places", cip("key: {data: x, kms: 'awskms:///k'}"), "exactly one of data, secretRef and kms"},
		{"a key in a KMS", cip("key: {kms: 'awskms:///k'}"), "put the public key into data"},
		{"a key that is none", cip("key: {data: x}"), "not PEM"},
		{"a secret that is not there", cip("key: {secretRef: {name: s}}"), "secret cosign-system/s is not among the documents"},
		{"a secret elsewhere", cip("key: {secretRef: {name: s, namespace: other}}"), `"other" is not "cosign-system"`},
		{"no identities", cip("keyless: {url: https://ca.example}"), "has 0 entries"},
		{"an identity without issuer", cip("keyless: {identities: [{subject: s}]}"), "identity issuer"},
		{"an identity without subject", cip("keyless: {identities: [{issuer: s}]}"), "identity subject"},
		{"issuer twice", cip("keyless: {identities: [{issuer: s, issuerRegExp: s, subject: s}]}"), "not both"},
		{"a regular expression that is none", cip("keyless: {identities: [{issuer: s, subjectRegExp: '('}]}"), "identity subject"},
		{"url and ca-cert", cip("keyless: {url: https://ca.example, ca-cert: {data: x}, identities: [{issuer: s, subject: s}]}"), "both url and ca-cert"},
		{"a URL that is none", cip("keyless: {url: ca.example, identities: [{issuer: s, subject: s}]}"), "not an http or https URL"},
		{"a trust root that is not there", cip("keyless: {trustRootRef: t, identities: [{issuer: s, subject: s}]}"), `TrustRoot "t" is not among the documents`},
		{"no trust at all", cip(keyless), "no trusted root was given"},
		{"an attestation without name", cip("{" + keyless + ", attestations: [{predicateType: custom}]}"), "attestations[0].name: is missing"},
		{"an attestation without type", cip("{" + keyless + ", attestations: [{name: a}]}"), "predicateType: is missing"},
		{"an attestation's name twice", cip("{" + keyless + ", attestations: [{name: a, predicateType: custom}, {name: a, predicateType: custom}]}"), `"a" is taken`},
		{"fetchConfigFile of an attestation", cip("{" + keyless + ", attestations: [{name: a, predicateType: custom, policy: {type: cue, data: 'predicate: {}', fetchConfigFile: true}}]}"), "only for spec.policy"},
		{"a policy in no language", cip(static, "  policy: {type: js, data: x}\n"), "neither cue nor rego"},
		{"a policy from nowhere", cip(static, "  policy: {type: cue}\n"), "exactly one of data, configMapRef and remote"},
		{"a policy from two places", cip(static, "  policy: {type: cue, data: x, configMapRef: {name: a, key: b}}\n"), "exactly one of data, configMapRef and remote"},
		{"a configMapRef without key", cip(static, "  policy: {type: cue, configMapRef: {name: a}}\n"), "needs name and key"},
		{"a ConfigMap that is not there", cip(static, "  policy: {type: cue, configMapRef: {name: a, key: b}}\n"), "ConfigMap cosign-system/a is not among"},
		{"a remote policy without a hash", cip(static, "  policy: {type: cue, remote: {url: 'https://policies.example/a'}}\n"), "not 64 hex digits"},
		{"a remote policy over http", cip(static, "  policy: {type: cue, remote: {url: 'http://policies.example/a', sha256sum: "+strings.Repeat("a", 64)+"}}\n"), "is not https"},
		{"a remote policy that nobody brought", cip(static, "  policy: {type: cue, remote: {url: 'https://policies.example/a', sha256sum: "+strings.Repeat("a", 64)+"}}\n"), "is not fetched here"},
		{"a selector without resource", cip(static, "  match: [{selector: {matchLabels: {a: b}}}]\n"), "needs a resource"},
		{"an operator that there is not", cip(static, "  match: [{resource: pods, selector: {matchExpressions: [{key: a, operator: Near}]}}]\n"), "none of In, NotIn"},
		{"a label that cannot be", cip(static, "  match: [{resource: pods, selector: {matchLabels: {'a b': c}}}]\n"), "selector"},
		{"a TrustRoot of nothing", "apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: t}\nspec: {}\n", "exactly one of remote, repository and sigstoreKeys"},
		{"a remote TrustRoot without its mirror", "apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: t}\nspec: {remote: {mirror: 'https://tuf.example', root: e30=}}\n", "nothing is fetched here"},
		{"a TrustRoot with a bad archive", "apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: t}\nspec: {repository: {root: e30=, mirrorFS: e30=}}\n", "mirrorFS"},
		{"keys that are no base64", "apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: t}\nspec: {sigstoreKeys: {certificateAuthorities: [{certChain: '?'}]}}\n", "must be base64"},
		{"a chain that is none", "apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: t}\nspec: {sigstoreKeys: {certificateAuthorities: [{certChain: eA==}]}}\n", "no certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compile([]File{{Name: "p.yaml", Data: []byte(tt.doc)}}, Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "p.yaml") {
				t.Errorf("%v does not say where it is", err)
			}
		})
	}
}

func TestEveryMistakeIsReported(t *testing.T) {
	doc := cip("{name: a, static: {action: maybe}}\n  - {name: b, key: {data: x}}\n  - {name: c, colour: red, static: {action: pass}}")
	_, err := Compile([]File{{Name: "p.yaml", Data: []byte(doc)}}, Options{})
	if err == nil || !strings.Contains(err.Error(), "colour") {
		t.Errorf("%v", err)
	}
	doc = strings.Replace(doc, "colour: red, ", "", 1)
	_, err = Compile([]File{{Name: "p.yaml", Data: []byte(doc)}}, Options{})
	if err == nil || !strings.Contains(err.Error(), "maybe") || !strings.Contains(err.Error(), "not PEM") {
		t.Errorf("%v", err)
	}
}

func TestLoadedFromFilesAndDirectories(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	named := func(name, authority string) string {
		return strings.Replace(cip(authority), "name: p", "name: "+name, 1)
	}
	single := write("one.txt", "# a comment\n---\n"+named("one", "static: {action: pass}"))
	write("d/b.json", `{"apiVersion":"policy.sigstore.dev/v1alpha1","kind":"ClusterImagePolicy","metadata":{"name":"b","uid":"x","creationTimestamp":null},
		"spec":{"images":[{"glob":"**"}],"authorities":[{"key":{"secretRef":{"name":"keys"}}}]},"status":{"conditions":[]}}`)
	write("d/a.yaml", `apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Secret, metadata: {name: keys}, stringData: {cosign.pub: "`+strings.ReplaceAll(keyPEM, "\n", "\\n")+`"}}
- apiVersion: policy.sigstore.dev/v1beta1
  kind: ClusterImagePolicy
  metadata: {name: a}
  spec:
    images: [{glob: '**'}]
    authorities: [{static: {action: pass}}]
    policy: {type: cue, configMapRef: {name: rules, key: p.cue}}
`)
	write("d/sub/c.yml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: rules, namespace: cosign-system}\ndata: {p.cue: 'authorityMatches: {}'}\n")
	write("d/ignored.md", "no policy")
	loaded, err := Load([]string{single, filepath.Join(dir, "d")}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range loaded.Policies {
		names = append(names, p.Name())
	}
	if got := strings.Join(names, " "); got != "one a b" {
		t.Errorf("policies %q", got)
	}
	again, err := Load([]string{single, filepath.Join(dir, "d")}, Options{})
	if err != nil || again.Version != loaded.Version {
		t.Errorf("the version is not that of the contents: %v", err)
	}
	write("d/sub/c.yml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: rules, namespace: cosign-system}\ndata: {p.cue: 'authorityMatches: {a: _}'}\n")
	if changed, err := Load([]string{single, filepath.Join(dir, "d")}, Options{}); err != nil || changed.Version == loaded.Version {
		t.Errorf("another policy has the same version: %v", err)
	}
	if _, err := Load([]string{t.TempDir()}, Options{}); err == nil {
		t.Error("a directory without policies was accepted")
	}
	if _, err := Load([]string{filepath.Join(dir, "absent")}, Options{}); err == nil {
		t.Error("a file that is not there was accepted")
	}
}

func TestRemotePolicyIsKnownByItsHash(t *testing.T) {
	// SHA-256 of "authorityMatches: {}"
	const sum = "1c5c0935dbfe089b04198082995f33532cbfda6f2eead687d31c83a5e755ba8a"
	doc := cip("static: {action: pass}", "  policy: {type: cue, remote: {url: 'https://policies.example/a', sha256sum: "+sum+"}}\n")
	brought := "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: brought}\ndata: {any: 'authorityMatches: {}'}\n"
	if _, err := Compile([]File{{Name: "p.yaml", Data: []byte(doc + brought)}}, Options{}); err != nil {
		t.Error(err)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add([]byte(cip("key: {data: \"" + strings.ReplaceAll(keyPEM, "\n", "\\n") + "\"}")))
	f.Add([]byte(cip("static: {action: fail, message: no}", "  match: [{resource: pods, version: '*', selector: {matchLabels: {a: b}}}]\n")))
	f.Add([]byte(cip("static: {action: pass}", "  policy: {type: rego, data: \"package sigstore\\nisCompliant { true }\"}\n")))
	f.Add([]byte("apiVersion: policy.sigstore.dev/v1alpha1\nkind: TrustRoot\nmetadata: {name: t}\nspec: {sigstoreKeys: {certificateAuthorities: []}}\n"))
	f.Add([]byte("{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": []}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		loaded, err := Compile([]File{{Name: "fuzz", Data: data}}, Options{})
		if err != nil {
			return
		}
		set, err := NewSet(loaded.Policies, SetOptions{Version: loaded.Version})
		if err != nil {
			t.Fatal(err)
		}
		if v := set.Decide(t.Context(), &Subject{}, nil); v.Allowed {
			t.Error("an image without digest is allowed")
		}
	})
}
