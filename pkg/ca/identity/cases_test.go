package identity_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/ca/identity"
)

const casesYAML = `claims: &base
  iss: https://gitlab.example.com
  sub: "project_path:acme/app:ref_type:branch:ref:main"
  project_path: acme/app
  ci_config_ref_uri: gitlab.example.com/acme/app//.gitlab-ci.yml@refs/heads/main
  ci_config_sha: c0ffee
  namespace_path: acme
  namespace_id: "7"
  project_id: "42"
  job_id: 9007199254740993
  pipeline_source: push
  project_visibility: private
  runner_environment: self-hosted
  ref: main
  ref_type: branch
  ref_protected: "true"
  sha: badc0de
cases:
  - name: a protected branch
    issued:
      san: https://gitlab.example.com/acme/app//.gitlab-ci.yml@refs/heads/main
      rule: protected
      extensions:
        source-repository-ref: refs/heads/main
        run-invocation-uri: https://gitlab.com/acme/app/-/jobs/9007199254740993
        1.3.6.1.4.1.57264.1.20: push
        deployment-environment: ""
  - name: another branch
    claims: {ref_protected: "false"}
    refused: {reason: policy_denied}
  - name: a fork
    claims: {namespace_path: mallory}
    refused: {reason: policy_denied, rule: no-forks}
  - name: a token without the claim
    claims: {ref_protected: null}
    refused: {reason: policy_denied, rule: protected}
  - name: after the freeze
    now: 2027-01-01T00:00:00Z
    refused: {reason: policy_denied, rule: frozen}
  - name: expired
    now: 2026-05-01T12:00:00Z
    claims: {exp: 1777636799}
    refused: {reason: expired}
  - name: for somebody else
    claims: {aud: [other]}
    refused: {reason: aud_mismatch}
`

func gitlabTester(t *testing.T) *identity.Tester {
	t.Helper()
	tester, err := identity.NewTester(identity.Options{Config: &identity.Config{
		Rules: []identity.Rule{deny("frozen", `now >= timestamp("2027-01-01T00:00:00Z")`)},
		Issuers: []identity.Issuer{{
			URL: "https://gitlab.example.com", Audience: "sigstore", Type: identity.CIProvider, CIProvider: "gitlab-pipeline",
			Rules: []identity.Rule{deny("no-forks", `claims.namespace_path != "acme"`), allow("protected", `claims.ref_protected == "true"`)}, RulesDefault: "deny",
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return tester
}

func TestCases(t *testing.T) {
	cases, err := identity.ParseCases([]byte(casesYAML))
	if err != nil {
		t.Fatal(err)
	}
	tester := gitlabTester(t)
	var decided []string
	for _, one := range cases {
		x, differs, err := tester.Try(t.Context(), one, newClock().now())
		if err != nil {
			t.Fatal(err)
		}
		if len(differs) > 0 {
			t.Errorf("line %d: %s: %s", one.Line, one.Name, strings.Join(differs, "; "))
		}
		if rule, ok := x.DecidedBy(); ok {
			decided = append(decided, rule.Issuer+" "+rule.Name)
		}
	}
	// A rule that fails has not decided anything that its author meant.
	if want := []string{"https://gitlab.example.com protected", "https://gitlab.example.com no-forks", " frozen"}; !reflect.DeepEqual(decided, want) {
		t.Errorf("decided %q, want %q", decided, want)
	}
}

func TestCasesThatDifferAreTold(t *testing.T) {
	tester := gitlabTester(t)
	for text, want := range map[string][]string{
		`claims: {namespace_path: mallory}, issued: {}`:                                       {"refused with policy_denied (rule no-forks denies it), want issued"},
		`refused: {reason: policy_denied}`:                                                    {"issued to https://gitlab.example.com/acme/app//.gitlab-ci.yml@refs/heads/main, want refused with policy_denied"},
		`claims: {namespace_path: mallory}, refused: {reason: expired}`:                       {"want expired"},
		`claims: {namespace_path: mallory}, refused: {reason: policy_denied, rule: frozen}`:   {"decided by rule no-forks, want rule frozen"},
		`claims: {ref_protected: "false"}, refused: {reason: policy_denied, rule: protected}`: {"decided by no rule, want rule protected"},
		`issued: {rule: no-forks}`:                                                            {"decided by rule protected, want rule no-forks"},
		`issued: {san: https://other.example, extensions: {build-trigger: web, deployment-environment: prod, "1.3.6.1.4.1.57264.1.99": x}}`: {
			"SAN https://gitlab.example.com/acme/app//.gitlab-ci.yml@refs/heads/main, want https://other.example",
			`extension 1.3.6.1.4.1.57264.1.99 is "", want "x"`, `extension build-trigger is "push", want "web"`, `extension deployment-environment is "", want "prod"`,
		},
	} {
		base, _, _ := strings.Cut(casesYAML, "cases:\n")
		cases, err := identity.ParseCases([]byte(base + "cases:\n  - {name: it, " + text + "}\n"))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		_, differs, err := tester.Try(t.Context(), cases[0], newClock().now())
		if err != nil {
			t.Fatal(err)
		}
		if len(differs) != len(want) {
			t.Errorf("%s: %q, want %q", text, differs, want)
			continue
		}
		for k := range want {
			if !strings.Contains(differs[k], want[k]) {
				t.Errorf("%s: %q does not say %q", text, differs[k], want[k])
			}
		}
	}
}

func TestCaseMistakesAreNamed(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"an empty file":            {"", "empty"},
		"no cases":                 {"claims: {a: b}\n", "no cases"},
		"an unknown key":           {"cases:\n  - {name: a, isued: {}}\n", `line 2: case has no key "isued"`},
		"no name":                  {"cases:\n  - {issued: {}}\n", "line 2: the case has no name"},
		"no outcome":               {"cases:\n  - {name: a}\n", "either issued or refused"},
		"two outcomes":             {"cases:\n  - {name: a, issued: {}, refused: {reason: expired}}\n", "either issued or refused"},
		"no reason":                {"cases:\n  - {name: a, refused: {}}\n", "refused needs a reason"},
		"an unknown extension":     {"cases:\n  - {name: a, issued: {extensions: {build-tigger: x}}}\n", `there is no extension "build-tigger"`},
		"a time without zone":      {"cases:\n  - {name: a, issued: {}, now: 2026-05-01}\n", "now is not a time"},
		"a number that is not one": {"cases:\n  - {name: a, issued: {}, claims: {n: 0x10}}\n", `"0x10" is not a number of JSON`},
		"claims too deep":          {"cases:\n  - {name: a, issued: {}, claims: {n: " + strings.Repeat("[", 20) + strings.Repeat("]", 20) + "}}\n", "nested too deeply"},
		"aliases of aliases":       {bomb(), "too many"},
		"cases that are no list":   {"cases: {a: b}\n", "cases must be a list"},
	} {
		t.Run(name, func(t *testing.T) {
			started := time.Now()
			_, err := identity.ParseCases([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v does not say %q", err, tt.want)
			}
			if took := time.Since(started); took > 10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

// bomb says ten times ten times … the same.
func bomb() string {
	text := "claims:\n  a0: &a0 x\n"
	for k := range 12 {
		text += strings.ReplaceAll("  aN: &aN ["+strings.TrimSuffix(strings.Repeat("*aM,", 10), ",")+"]\n", "N", string(rune('b'+k)))
		text = strings.ReplaceAll(text, "M", map[bool]string{true: "0", false: string(rune('a' + k))}[k == 0])
	}
	return text + "cases: []\n"
}

func FuzzParseCases(f *testing.F) {
	f.Add([]byte(casesYAML))
	f.Add([]byte(`{"cases":[{"name":"a","claims":{"n":1e400,"m":[{"b":null}]},"issued":{"extensions":{"issuer":"x"}}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cases, err := identity.ParseCases(data)
		if err != nil {
			return
		}
		tester := gitlabTester(t)
		for _, one := range cases {
			x, differs, err := tester.Try(t.Context(), one, newClock().now())
			if err != nil {
				t.Fatalf("%+v: %v", one, err)
			}
			if len(differs) == 0 && (x.Issued != one.Issued || x.Reason != one.Reason) {
				t.Errorf("passes but differs: %+v, %+v", one, x)
			}
		}
	})
}
