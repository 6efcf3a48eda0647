package identity_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/ca/identity"
)

const fulcioYAML = `define:
  - &gitlab "gitlab-internal"
oidc-issuers:
  https://gitlab.internal:
    issuer-url: https://gitlab.internal
    client-id: sigstore
    type: ci-provider
    ci-provider: *gitlab
    contact: ops@example.com
    description: "CI"
  https://dex.example.com/auth: &dex
    client-id: sigstore
    type: email
    issuer-claim: $.federated_claims.connector_id
  https://dex2.example.com/auth:
    <<: *dex
    skip-email-verification: true
meta-issuers:
  https://oidc.eks.*.amazonaws.com/id/*:
    client-id: sigstore
    type: kubernetes
ci-issuer-metadata:
  *gitlab :
    default-template-values: {url: "https://gitlab.internal", environment: ""}
    extension-templates:
      build-signer-uri: "https://{{ .ci_config_ref_uri }}"
      build-signer-digest: "ci_config_sha"
    subject-alternative-name-template: "https://{{ .ci_config_ref_uri }}"
`

func TestConfigurationFormsMeanTheSame(t *testing.T) {
	want, err := identity.Parse([]byte(fulcioYAML))
	if err != nil {
		t.Fatal(err)
	}
	if len(want.Issuers) != 4 || want.Issuers[0].URL != "https://gitlab.internal" || want.Issuers[0].CIProvider != "gitlab-internal" || !want.Issuers[2].SkipEmailVerification || !want.Issuers[3].Wildcard {
		t.Fatalf("parsed %+v", want.Issuers)
	}
	for name, text := range map[string]string{
		"lists": `
oidc-issuers:
  - {issuer-url: https://gitlab.internal, client-id: sigstore, type: ci-provider, ci-provider: gitlab-internal, contact: ops@example.com, description: CI}
  - {issuer-url: https://dex.example.com/auth, client-id: sigstore, type: email, issuer-claim: $.federated_claims.connector_id}
  - {issuer-url: https://dex2.example.com/auth, client-id: sigstore, type: email, issuer-claim: $.federated_claims.connector_id, skip-email-verification: true}
meta-issuers:
  - {issuer-url: "https://oidc.eks.*.amazonaws.com/id/*", client-id: sigstore, type: kubernetes}
ci-issuer-metadata:
  gitlab-internal:
    default-template-values: {url: "https://gitlab.internal", environment: ""}
    extension-templates: {build-signer-uri: "https://{{ .ci_config_ref_uri }}", build-signer-digest: ci_config_sha}
    subject-alternative-name-template: "https://{{ .ci_config_ref_uri }}"
`,
		"older JSON with tabs": `{
	"OIDCIssuers": {
		"https://gitlab.internal": {"IssuerURL": "https://gitlab.internal", "ClientID": "sigstore", "Type": "ci-provider", "CIProvider": "gitlab-internal", "Contact": "ops@example.com", "Description": "CI"},
		"https://dex.example.com/auth": {"ClientID": "sigstore", "Type": "email", "IssuerClaim": "$.federated_claims.connector_id"},
		"https://dex2.example.com/auth": {"ClientID": "sigstore", "Type": "email", "IssuerClaim": "$.federated_claims.connector_id", "SkipEmailVerification": true}
	},
	"MetaIssuers": {"https://oidc.eks.*.amazonaws.com/id/*": {"ClientID": "sigstore", "Type": "kubernetes"}},
	"CIIssuerMetadata": {"gitlab-internal": {
		"DefaultTemplateValues": {"url": "https://gitlab.internal", "environment": ""},
		"ExtensionTemplates": {"build-signer-uri": "https://{{ .ci_config_ref_uri }}", "build-signer-digest": "ci_config_sha"},
		"SubjectAlternativeNameTemplate": "https://{{ .ci_config_ref_uri }}"
	}}
}`,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := identity.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(withoutLines(got), withoutLines(want)) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// withoutLines drops what only error texts use, by copying exported fields.
func withoutLines(c *identity.Config) any {
	var issuers []map[string]any
	for _, i := range c.Issuers {
		issuers = append(issuers, exported(reflect.ValueOf(i)))
	}
	providers := map[string]any{}
	for name, p := range c.Providers {
		providers[name] = exported(reflect.ValueOf(p))
	}
	return []any{issuers, providers}
}

func exported(v reflect.Value) map[string]any {
	out := map[string]any{}
	for k := range v.NumField() {
		if v.Type().Field(k).IsExported() {
			out[v.Type().Field(k).Name] = v.Field(k).Interface()
		}
	}
	return out
}

func TestConfigurationMistakesAreNamed(t *testing.T) {
	issuer := func(lines ...string) string {
		return "oidc-issuers:\n  https://idp.example.com:\n    client-id: sigstore\n    " + strings.Join(lines, "\n    ") + "\n"
	}
	meta := func(patterns ...string) string {
		out := "meta-issuers:\n"
		for _, p := range patterns {
			out += "  \"" + p + "\": {client-id: sigstore, type: email}\n"
		}
		return out
	}
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"an empty file", "", []string{"empty"}},
		{"no issuer", "oidc-issuers: {}\n", []string{"no issuer"}},
		{"nothing but anchors", "define: [a]\n", []string{"no issuer"}},
		{"two documents", issuer("type: email") + "---\na: b\n", []string{"more than one"}},
		{"unknown keys with their lines", "oidc-isuers: {}\n" + issuer("type: email", "clientid: x"), []string{`line 1: the configuration has no key "oidc-isuers"`, `line 6: issuer has no key "clientid"`}},
		{"unknown keys in JSON with their lines", "{\n\"OIDCIssuers\": {\n\"https://idp.example.com\": {\"ClientID\": \"a\", \"Type\": \"email\",\n\"Nope\": 1}}}", []string{`line 4: issuer has no key "Nope"`}},
		{"a key twice", issuer("type: email", "type: uri"), []string{"twice"}},
		{"both spellings of a key", issuer("type: email", "Type: uri"), []string{"type twice"}},
		{"an issuer twice", "oidc-issuers:\n  - {issuer-url: https://a.example, client-id: x, type: email}\n  - {issuer-url: https://a.example, client-id: y, type: email}\n", []string{"configured twice"}},
		{"a key that differs from issuer-url", issuer("type: email", "issuer-url: https://idp.example.com/"), []string{"differs from its key"}},
		{"no client-id", "oidc-issuers:\n  https://a.example: {type: email}\n", []string{"client-id is required"}},
		{"no type", issuer(), []string{`type "" is not known`}},
		{"several mistakes at once", issuer("type: uri", "discovery-url: x", "ca-cert: y", "issuer-claim: $.a"), []string{"subject-domain", "discovery-url", "ca-cert", "issuer-claim does not apply"}},
		{"plain http", "oidc-issuers:\n  http://a.example: {type: email, client-id: x}\n", []string{"allow-http"}},
		{"another scheme", "oidc-issuers:\n  ftp://a.example: {type: email, client-id: x, allow-http: true}\n", []string{"not https"}},
		{"a flag that is no boolean", issuer("type: email", "allow-http: maybe"), []string{"line 5: expected true or false"}},
		{"a list for a string", issuer("type: [email]"), []string{"line 4: expected a string"}},
		{"a star in an exact issuer", "oidc-issuers:\n  https://*.a.example: {type: email, client-id: x}\n", []string{"meta-issuers"}},
		{"ci-provider without provider", issuer("type: ci-provider"), []string{"ci-provider is required"}},
		{"an unknown provider", issuer("type: ci-provider", "ci-provider: jenkins"), []string{`no "jenkins"`}},
		{"a template that does not parse", issuer("type: ci-provider", "ci-provider: x") + "ci-issuer-metadata:\n  x:\n    subject-alternative-name-template: '{{ .a'\n", []string{"subject-alternative-name-template"}},
		{"a provider without SAN", issuer("type: email") + "ci-issuer-metadata:\n  x:\n    extension-templates: {build-trigger: a}\n", []string{"subject-alternative-name-template is required"}},
		{"an unknown extension", issuer("type: email") + "ci-issuer-metadata:\n  x:\n    subject-alternative-name-template: a\n    extension-templates: {build-tigger: a}\n", []string{`no key "build-tigger"`}},
		{"providers that extend each other", issuer("type: email") + "ci-issuer-metadata:\n  x: {extends: y}\n  y: {extends: x}\n", []string{"extends itself"}},
		{"an issuer-claim that is no path", issuer("type: email", "issuer-claim: $..a"), []string{"issuer-claim"}},
		{"a SPIFFE issuer without trust domain", issuer("type: spiffe"), []string{"spiffe-trust-domain"}},
		{"a SPIFFE meta issuer", "meta-issuers:\n  https://*.a.example.com/x: {type: spiffe, client-id: x, spiffe-trust-domain: a.example.com}\n", []string{"cannot be a meta issuer"}},
		{"a username domain with scheme", issuer("type: username", "subject-domain: https://example.com"), []string{"without scheme"}},
		{"a username domain of someone else", issuer("type: username", "subject-domain: other.com"), []string{"another registrable domain"}},
		{"a subject domain with another scheme", issuer("type: uri", "subject-domain: spiffe://example.com"), []string{"scheme"}},
		{"neighbours under a public suffix", "oidc-issuers:\n  https://good.co.uk: {type: uri, client-id: x, subject-domain: https://evil.co.uk}\n", []string{"another registrable domain"}},
		{"a star over a whole host", meta("https://*/x"), []string{"whole host"}},
		{"a star over a registrable domain", meta("https://*.com"), []string{"registrable domain"}},
		{"a star over a public suffix", meta("https://*.co.uk/x"), []string{"registrable domain"}},
		{"a meta issuer without star", meta("https://a.example"), []string{"needs a *"}},
		{"patterns that overlap", meta("https://a.example.com/*/xy", "https://a.example.com/yx/*"), []string{"match the same URLs"}},
		{"keys given for a pattern", "meta-issuers:\n  https://*.a.example.com: {type: email, client-id: x, jwks: '{}'}\n", []string{"exact issuer-url"}},
		{"an empty list of audiences", issuer("type: email", "audiences: []"), []string{"line 5: audiences must be a list of 1 to 64 strings"}},
		{"audiences that are no list", issuer("type: email", "audiences: a"), []string{"must be a list"}},
		{"an empty audience", issuer("type: email", `audiences: ["", a, a]`), []string{"audiences has an empty or repeated string"}},
		{"a verification of emails by another word", issuer("type: email", "email-verified: maybe"), []string{`"maybe" is neither require nor ignore`}},
		{"verification that is demanded and skipped", issuer("type: email", "email-verified: require", "skip-email-verification: true"), []string{"email-verified: require contradicts skip-email-verification: true"}},
		{"verification that is ignored and not skipped", issuer("type: email", "email-verified: ignore", "skip-email-verification: false"), []string{"email-verified: ignore contradicts skip-email-verification: false"}},
		{"verification of emails that are no names", issuer("type: kubernetes", "email-verified: ignore"), []string{"does not apply to type kubernetes"}},
		{"a leeway that is no duration", issuer("type: email", "clock-leeway: 5"), []string{"expected a duration"}},
		{"a leeway over five minutes", issuer("type: email", "clock-leeway: 6m"), []string{"clock-leeway 6m0s is not between 0s and 5m0s"}},
		{"a negative leeway", issuer("type: email", "clock-leeway: -1s"), []string{"clock-leeway -1s is not between"}},
		{"a name by template for a type whose names are no URIs", issuer("type: email", "subject-alternative-name-template: https://a.example/x"), []string{"does not apply to type email"}},
		{"a name by template for a type that has them in its provider", issuer("type: ci-provider", "ci-provider: github-workflow", "subject-alternative-name-template: https://a.example/x"), []string{"does not apply to type ci-provider"}},
		{"a template with a host from a claim", issuer("type: kubernetes", `subject-alternative-name-template: "https://{{ .namespace }}/x"`), []string{"must begin with https:// and a host"}},
		{"a template with a part of a host from a claim", issuer("type: kubernetes", `subject-alternative-name-template: "https://a{{ .namespace }}.example/x"`), []string{"must begin with https:// and a host"}},
		{"a template with a user before its host", issuer("type: kubernetes", `subject-alternative-name-template: "https://a@{{ .issuer_host }}/x"`), []string{"must begin with https:// and a host"}},
		{"a template without TLS", issuer("type: kubernetes", `subject-alternative-name-template: "http://a.example/{{ .namespace }}"`), []string{"must begin with https:// and a host"}},
		{"a template with a variable of another type", issuer("type: kubernetes", `subject-alternative-name-template: "https://a.example/{{ .repository }}"`), []string{"{{.repository}} is not one of the variables of type kubernetes"}},
		{"a template that computes", issuer("type: kubernetes", `subject-alternative-name-template: "https://a.example/{{ printf \"%s\" .namespace }}"`), []string{"function \"printf\" not defined"}},
		{"a template that repeats", issuer("type: kubernetes", `subject-alternative-name-template: "https://a.example/{{ range . }}{{ .namespace }}{{ end }}"`), []string{"is not one of the variables"}},
		{"a template that defines another", issuer("type: kubernetes", `subject-alternative-name-template: "https://a.example/{{ define \"x\" }}{{ end }}"`), []string{"must not define templates"}},
		{"a template whose variables run into each other", issuer("type: kubernetes", `subject-alternative-name-template: "https://a.example/{{ .namespace }}-{{ .serviceaccount }}"`), []string{"no / between"}},
		{"a template with a query", issuer("type: kubernetes", `subject-alternative-name-template: "https://a.example/x?{{ .namespace }}"`), []string{"must be scheme, host and path"}},
		{"a template with dots", issuer("type: kubernetes", `subject-alternative-name-template: "https://a.example/../{{ .namespace }}"`), []string{"dots for a segment"}},
		{"a template with an issuer's path that is not there", issuer("type: kubernetes", `subject-alternative-name-template: "https://a.example/{{ .issuer_path }}/{{ .namespace }}"`), []string{"{{ .issuer_path }} is empty"}},
		{"a provider that repeats", issuer("type: email") + "ci-issuer-metadata:\n  x:\n    subject-alternative-name-template: '{{ if .a }}{{ range 1000000000 }}{{ end }}{{ end }}'\n", []string{"range, define, block and template"}},
		{"a merge that never ends", "define:\n  - &a {<<: *a}\noidc-issuers:\n  https://a.example: *a\n", []string{""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := identity.Parse([]byte(tt.text))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestConfigurationsThatMustLoad(t *testing.T) {
	for name, text := range map[string]string{
		"a sibling host":                       "oidc-issuers:\n  https://accounts.example.co.uk: {type: uri, client-id: x, subject-domain: https://users.example.co.uk}\n",
		"an exact private name":                "oidc-issuers:\n  https://idp.corp: {type: username, client-id: x, subject-domain: idp.corp}\n",
		"a built-in provider":                  "oidc-issuers:\n  https://token.actions.githubusercontent.com: {type: ci-provider, client-id: x, ci-provider: github-workflow}\n",
		"a built-in provider with another url": "oidc-issuers:\n  https://gitlab.corp: {type: ci-provider, client-id: x, ci-provider: own}\nci-issuer-metadata:\n  own: {extends: gitlab-pipeline, default-template-values: {url: https://gitlab.corp}}\n",
		"patterns with and without slash":      "meta-issuers:\n  https://*.oic.prod-aks.azure.com/*/*: {type: kubernetes, client-id: x}\n  https://*.oic.prod-aks.azure.com/*/*/: {type: kubernetes, client-id: x}\n",
		"a star within a label":                "meta-issuers:\n  https://eks-*.corp.example.com/id: {type: kubernetes, client-id: x}\n",
		"audiences without client-id":          "oidc-issuers:\n  https://a.example: {type: email, audiences: [x, y], clock-leeway: 30s, email-verified: ignore}\n",
		"both ways to skip verification":       "oidc-issuers:\n  https://a.example: {type: email, client-id: x, email-verified: require, skip-email-verification: false}\n",
		"a leeway of 0":                        "oidc-issuers:\n  https://a.example: {type: email, client-id: x, clock-leeway: 0}\n",
		"a cluster's names by its path":        "meta-issuers:\n  https://oidc.eks.*.amazonaws.com/id/*:\n    {type: kubernetes, client-id: x, subject-alternative-name-template: 'https://{{ .issuer_host }}/{{ .issuer_path }}/namespaces/{{ .namespace }}/serviceaccounts/{{ .serviceaccount }}'}\n",
		"a numeric client-id":                  "oidc-issuers:\n  https://a.example: {type: email, client-id: 1234}\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := identity.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := identity.New(identity.Options{Config: c}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestHelmsListForm reads what `--set config.contents.OIDCIssuers[0].IssuerURL=…` makes.
func TestHelmsListForm(t *testing.T) {
	c, err := identity.Parse([]byte(`{"OIDCIssuers":[{"IssuerURL":"https://keycloak.corp/realms/ci","ClientID":"sigstore","Type":"email"},` +
		`{"IssuerURL":"https://idp.corp","ClientID":"a","Type":"username","SubjectDomain":"idp.corp","ChallengeClaim":"sub"}],` +
		`"MetaIssuers":[{"IssuerURL":"https://oidc.eks.*.amazonaws.com/id/*","ClientID":"sigstore","Type":"kubernetes"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range c.Issuers {
		got = append(got, fmt.Sprint(i.URL, " ", i.ClientID(), " ", i.Type, " ", i.Wildcard))
	}
	want := "https://keycloak.corp/realms/ci sigstore email false, https://idp.corp a username false, https://oidc.eks.*.amazonaws.com/id/* sigstore kubernetes true"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %s", strings.Join(got, ", "))
	}
}

func TestAMissingFileTrustsNobody(t *testing.T) {
	if _, err := identity.Load(filepath.Join(t.TempDir(), "config.yaml")); !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("got %v, want that the file does not exist", err)
	}
	if _, err := identity.New(identity.Options{}); err == nil {
		t.Error("a verifier without issuers was made")
	}
}

func unwrapAll(err error) error {
	for {
		next, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		if _, isPath := err.(*os.PathError); isPath {
			return err
		}
		err = next.Unwrap()
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(fulcioYAML))
	f.Add([]byte(`{"OIDCIssuers":{"https://a.example":{"ClientID":"x","Type":"email"}}}`))
	f.Add([]byte("a: &a\n  <<: *a\n"))
	f.Add([]byte("oidc-issuers:\n- issuer-url: https://a.example\n  audiences: [x]\n  clock-leeway: 1m\n  type: kubernetes\n  subject-alternative-name-template: https://{{ .issuer_host }}/{{ .namespace }}/{{ .serviceaccount }}\n"))
	sample, err := os.ReadFile("testdata/fulcio.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sample)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := identity.Parse(data)
		if err != nil {
			return
		}
		if len(c.Issuers) == 0 {
			t.Error("a configuration without issuers was accepted")
		}
		if err := c.Validate(); err != nil {
			t.Errorf("accepted, then invalid: %v", err)
		}
	})
}
