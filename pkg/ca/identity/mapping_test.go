package identity_test

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

var githubClaims = map[string]any{
	"email": nil, "email_verified": nil,
	"sub": "repo:octo/widgets:ref:refs/heads/main", "job_workflow_ref": "octo/widgets/.github/workflows/release.yml@refs/heads/main",
	"sha": "0123", "event_name": "push", "repository": "octo/widgets", "workflow": "Release it", "ref": "refs/heads/main",
	"job_workflow_sha": "4567", "runner_environment": "github-hosted", "repository_id": "11", "repository_owner": "octo",
	"repository_owner_id": "22", "repository_visibility": "public", "workflow_ref": "octo/widgets/.github/workflows/ci.yml@refs/heads/main",
	"workflow_sha": "89ab", "run_id": "33", "run_attempt": "1",
}

var gitlabClaims = map[string]any{
	"email": nil, "email_verified": nil,
	"sub": "project_path:group/project:ref_type:branch:ref:main", "project_path": "group/project", "pipeline_source": "push", "pipeline_id": "5",
	"ci_config_ref_uri": "gitlab.corp/group/project//.gitlab-ci.yml@refs/heads/main", "ci_config_sha": "fe", "job_id": "99", "ref": "main", "ref_type": "branch",
	"namespace_path": "group", "namespace_id": "7", "project_id": "8", "sha": "ab", "runner_environment": "self-hosted", "runner_id": 3, "project_visibility": "private",
}

func with(base map[string]any, changes map[string]any) map[string]any {
	out := maps.Clone(base)
	maps.Copy(out, changes)
	return out
}

func TestClaimsBecomeNamesAndExtensions(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	type m = map[string]any
	kubernetes := m{"email": nil, "sub": "system:serviceaccount:prod:builder", "kubernetes.io": m{"namespace": "prod", "serviceaccount": m{"name": "builder", "uid": "1"}}}
	for _, tt := range []struct {
		name   string
		issuer identity.Issuer // URL, audience and keys are filled in
		claims m
		san    string // "" when refused
		kind   identity.SANKind
		ext    map[int]string // checked entries; "-" for absent
		reason string
	}{
		{name: "email as it stands", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email": "Alice@Example.com"}, san: "Alice@Example.com", kind: identity.SANEmail, ext: map[int]string{1: "ISS", 8: "ISS", 24: "alice-id"}},
		{name: "email verified as text", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email_verified": "True"}, san: "alice@example.com", kind: identity.SANEmail},
		{name: "email unverified", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email_verified": false}, reason: "email_unverified"},
		{name: "email without verification claim", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email_verified": nil}, reason: "email_unverified"},
		{name: "email verified by a number", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email_verified": 1}, reason: "claim_rejected"},
		{name: "email unverified but excused", issuer: identity.Issuer{Type: identity.Email, SkipEmailVerification: true}, claims: m{"email_verified": nil}, san: "alice@example.com", kind: identity.SANEmail},
		{name: "no email", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email": nil}, reason: "claim_missing:email"},
		{name: "email without domain", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email": "alice@"}, reason: "claim_rejected"},
		{name: "email with two @", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email": "a@b@c.example"}, reason: "claim_rejected"},
		{name: "email with a line break", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email": "alice@example.com\n"}, reason: "claim_rejected"},
		{name: "email that no IA5String holds", issuer: identity.Issuer{Type: identity.Email}, claims: m{"email": "älice@example.com"}, reason: "claim_rejected"},
		{name: "issuer from a claim", issuer: identity.Issuer{Type: identity.Email, IssuerClaim: "$.federated_claims.connector_id"}, claims: m{"federated_claims": m{"connector_id": "https://github.com/login"}}, san: "alice@example.com", kind: identity.SANEmail, ext: map[int]string{1: "https://github.com/login", 8: "https://github.com/login"}},
		{name: "issuer from a claim that is absent", issuer: identity.Issuer{Type: identity.Email, IssuerClaim: "$['federated_claims']['connector_id']"}, reason: "claim_missing:federated_claims.connector_id"},

		{name: "username", issuer: identity.Issuer{Type: identity.Username, SubjectDomain: "127.0.0.1"}, claims: m{"sub": "alice"}, san: "alice!127.0.0.1", kind: identity.SANUsername, ext: map[int]string{24: "alice"}},
		{name: "username with !", issuer: identity.Issuer{Type: identity.Username, SubjectDomain: "127.0.0.1"}, claims: m{"sub": "a!b"}, reason: "claim_rejected"},
		{name: "username that is an address", issuer: identity.Issuer{Type: identity.Username, SubjectDomain: "127.0.0.1"}, claims: m{"sub": "a@b.example"}, reason: "claim_rejected"},
		{name: "username that turns the text around", issuer: identity.Issuer{Type: identity.Username, SubjectDomain: "127.0.0.1"}, claims: m{"sub": "a\u202eb"}, reason: "claim_rejected"},

		{name: "uri", issuer: identity.Issuer{Type: identity.URI, SubjectDomain: "http://127.0.0.1"}, claims: m{"sub": "http://127.0.0.1/users/1"}, san: "http://127.0.0.1/users/1", kind: identity.SANURI},
		{name: "uri of another host", issuer: identity.Issuer{Type: identity.URI, SubjectDomain: "http://127.0.0.1"}, claims: m{"sub": "http://127.0.0.2/users/1"}, reason: "claim_rejected"},
		{name: "uri of another port", issuer: identity.Issuer{Type: identity.URI, SubjectDomain: "http://127.0.0.1"}, claims: m{"sub": "http://127.0.0.1:81/users/1"}, reason: "claim_rejected"},
		{name: "uri with a user", issuer: identity.Issuer{Type: identity.URI, SubjectDomain: "http://127.0.0.1"}, claims: m{"sub": "http://x@127.0.0.1/users/1"}, reason: "claim_rejected"},
		{name: "uri of another scheme", issuer: identity.Issuer{Type: identity.URI, SubjectDomain: "http://127.0.0.1"}, claims: m{"sub": "https://127.0.0.1/users/1"}, reason: "claim_rejected"},

		{name: "kubernetes", issuer: identity.Issuer{Type: identity.Kubernetes}, claims: kubernetes, san: "https://kubernetes.io/namespaces/prod/serviceaccounts/builder", kind: identity.SANURI, ext: map[int]string{24: "system:serviceaccount:prod:builder"}},
		{name: "kubernetes without namespace", issuer: identity.Issuer{Type: identity.Kubernetes}, claims: m{"sub": "system:serviceaccount:prod:builder"}, reason: "claim_missing:kubernetes.io.namespace"},
		{name: "kubernetes without account", issuer: identity.Issuer{Type: identity.Kubernetes}, claims: m{"kubernetes.io": m{"namespace": "prod"}}, reason: "claim_missing:kubernetes.io.serviceaccount.name"},
		{name: "kubernetes with another subject", issuer: identity.Issuer{Type: identity.Kubernetes}, claims: with(kubernetes, m{"sub": "system:serviceaccount:prod:root"}), reason: "claim_rejected"},

		{name: "kubernetes by the cluster's name", issuer: identity.Issuer{Type: identity.Kubernetes, SANTemplate: "https://k8s.corp/namespaces/{{ .namespace }}/serviceaccounts/{{ .serviceaccount }}"}, claims: kubernetes, san: "https://k8s.corp/namespaces/prod/serviceaccounts/builder", kind: identity.SANURI, ext: map[int]string{24: "system:serviceaccount:prod:builder"}},
		{name: "kubernetes by template without namespace", issuer: identity.Issuer{Type: identity.Kubernetes, SANTemplate: "https://k8s.corp/{{ .serviceaccount }}"}, claims: m{"sub": "system:serviceaccount:prod:builder"}, reason: "claim_missing:kubernetes.io.namespace"},
		{name: "kubernetes by template with another subject", issuer: identity.Issuer{Type: identity.Kubernetes, SANTemplate: "https://k8s.corp/{{ .serviceaccount }}"}, claims: with(kubernetes, m{"sub": "system:serviceaccount:prod:root"}), reason: "claim_rejected"},
		{name: "kubernetes with dots for a name", issuer: identity.Issuer{Type: identity.Kubernetes}, claims: m{"email": nil, "sub": "system:serviceaccount:..:builder", "kubernetes.io": m{"namespace": "..", "serviceaccount": m{"name": "builder"}}}, reason: "claim_rejected"},
		{name: "Chainguard by template", issuer: identity.Issuer{Type: identity.Chainguard, SANTemplate: "https://ids.corp/{{ .sub }}"}, claims: m{"sub": "abc/d ef"}, san: "https://ids.corp/abc/d%20ef", kind: identity.SANURI},
		{name: "a template with a claim that climbs", issuer: identity.Issuer{Type: identity.Chainguard, SANTemplate: "https://ids.corp/a/{{ .sub }}"}, claims: m{"sub": "b/../../root"}, reason: "claim_rejected"},
		{name: "a template with a claim that skips", issuer: identity.Issuer{Type: identity.Chainguard, SANTemplate: "https://ids.corp/a/{{ .sub }}"}, claims: m{"sub": "b//c"}, reason: "claim_rejected"},
		{name: "a template with a claim that begins anew", issuer: identity.Issuer{Type: identity.Chainguard, SANTemplate: "https://ids.corp/{{ .sub }}"}, claims: m{"sub": "/evil.example/x"}, reason: "claim_rejected"},
		{name: "a template with a claim that completes dots", issuer: identity.Issuer{Type: identity.Chainguard, SANTemplate: "https://ids.corp/.{{ .sub }}"}, claims: m{"sub": "./x"}, reason: "claim_rejected"},
		{name: "a template with encoded claims", issuer: identity.Issuer{Type: identity.Chainguard, SANTemplate: "https://ids.corp/{{ .sub }}"}, claims: m{"sub": "a%2Fb?c#d"}, san: "https://ids.corp/a%252Fb%3Fc%23d", kind: identity.SANURI},
		{name: "a template with a template for a claim", issuer: identity.Issuer{Type: identity.Chainguard, SANTemplate: "https://ids.corp/{{ .sub }}"}, claims: m{"sub": "{{ .iss }}"}, san: "https://ids.corp/%7B%7B%20.iss%20%7D%7D", kind: identity.SANURI},
		{name: "a template with a claim that is turned around", issuer: identity.Issuer{Type: identity.Chainguard, SANTemplate: "https://ids.corp/{{ .sub }}"}, claims: m{"sub": "a\u202eb"}, reason: "claim_rejected"},
		{name: "a template with GitLab's file of another host", issuer: identity.Issuer{Type: identity.GitLabPipeline, SANTemplate: "https://gitlab.corp/{{ .ci_config_path }}"}, claims: with(gitlabClaims, m{"ci_config_ref_uri": "gitlab.evil/group/project//.gitlab-ci.yml@refs/heads/main"}), reason: "claim_rejected"},
		{name: "a template with GitLab's file", issuer: identity.Issuer{Type: identity.GitLabPipeline, SANTemplate: "https://gitlab.corp/{{ .ci_config_path }}"}, claims: gitlabClaims, san: "https://gitlab.corp/group/project//.gitlab-ci.yml@refs/heads/main", kind: identity.SANURI},
		{name: "a template with a file after two empty segments", issuer: identity.Issuer{Type: identity.GitLabPipeline, SANTemplate: "https://gitlab.corp/{{ .ci_config_path }}"}, claims: with(gitlabClaims, m{"ci_config_ref_uri": "gitlab.corp/group///x"}), reason: "claim_rejected"},
		{name: "a template with a slug of two segments", issuer: identity.Issuer{Type: identity.BuildkiteJob, SANTemplate: "https://bk.corp/{{ .organization_slug }}/{{ .pipeline_slug }}"}, claims: m{"organization_slug": "a/b", "pipeline_slug": "c"}, reason: "claim_rejected"},

		{name: "spiffe", issuer: identity.Issuer{Type: identity.SPIFFE, SPIFFETrustDomain: "corp.example"}, claims: m{"sub": "spiffe://corp.example/ns/a"}, san: "spiffe://corp.example/ns/a", kind: identity.SANURI},
		{name: "spiffe of a subdomain", issuer: identity.Issuer{Type: identity.SPIFFE, SPIFFETrustDomain: "corp.example"}, claims: m{"sub": "spiffe://x.corp.example/ns/a"}, reason: "claim_rejected"},
		{name: "spiffe with dots in its path", issuer: identity.Issuer{Type: identity.SPIFFE, SPIFFETrustDomain: "corp.example"}, claims: m{"sub": "spiffe://corp.example/../a"}, reason: "claim_rejected"},
		{name: "spiffe that is none", issuer: identity.Issuer{Type: identity.SPIFFE, SPIFFETrustDomain: "corp.example"}, claims: m{"sub": "https://corp.example/a"}, reason: "claim_rejected"},

		{name: "GitHub by template", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"environment": "prod"}),
			san: "https://github.com/octo/widgets/.github/workflows/release.yml@refs/heads/main", kind: identity.SANURI,
			ext: map[int]string{1: "ISS", 2: "push", 3: "0123", 4: "Release it", 5: "octo/widgets", 6: "refs/heads/main", 8: "ISS",
				9: "https://github.com/octo/widgets/.github/workflows/release.yml@refs/heads/main", 10: "4567", 11: "github-hosted",
				12: "https://github.com/octo/widgets", 13: "0123", 14: "refs/heads/main", 15: "11", 16: "https://github.com/octo", 17: "22",
				18: "https://github.com/octo/widgets/.github/workflows/ci.yml@refs/heads/main", 19: "89ab", 20: "push",
				21: "https://github.com/octo/widgets/actions/runs/33/attempts/1", 22: "public", 23: "prod", 24: "repo:octo/widgets:ref:refs/heads/main"}},
		{name: "GitHub without environment", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: githubClaims, san: "https://github.com/octo/widgets/.github/workflows/release.yml@refs/heads/main", kind: identity.SANURI, ext: map[int]string{23: "-"}},
		{name: "GitHub without a claim", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"run_attempt": nil}), reason: "claim_missing:run_attempt"},
		{name: "GitHub hard-coded", issuer: identity.Issuer{Type: identity.GitHubWorkflow}, claims: with(githubClaims, m{"environment": "prod"}), san: "https://github.com/octo/widgets/.github/workflows/release.yml@refs/heads/main", kind: identity.SANURI, ext: map[int]string{23: "-", 14: "refs/heads/main"}},
		{name: "GitHub hard-coded without a claim", issuer: identity.Issuer{Type: identity.GitHubWorkflow}, claims: with(githubClaims, m{"workflow": ""}), reason: "claim_missing:workflow"},
		{name: "GitLab by template, instance of one's own", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "own"}, claims: gitlabClaims,
			san: "https://gitlab.corp/group/project//.gitlab-ci.yml@refs/heads/main", kind: identity.SANURI,
			ext: map[int]string{2: "-", 9: "https://gitlab.corp/group/project//.gitlab-ci.yml@refs/heads/main", 10: "fe", 12: "https://gitlab.corp/group/project", 14: "refs/heads/main", 15: "8", 16: "https://gitlab.corp/group", 17: "7", 20: "push", 21: "https://gitlab.corp/group/project/-/jobs/99", 22: "private"}},
		{name: "GitLab tag", issuer: identity.Issuer{Type: identity.GitLabPipeline}, claims: with(gitlabClaims, m{"ref_type": "tag", "ref": "v1"}), san: "https://gitlab.corp/group/project//.gitlab-ci.yml@refs/heads/main", kind: identity.SANURI, ext: map[int]string{14: "refs/tags/v1", 12: "https://gitlab.com/group/project"}},
		{name: "GitLab ref of another kind", issuer: identity.Issuer{Type: identity.GitLabPipeline}, claims: with(gitlabClaims, m{"ref_type": "merge"}), reason: "claim_rejected"},
		{name: "GitLab runner 0", issuer: identity.Issuer{Type: identity.GitLabPipeline}, claims: with(gitlabClaims, m{"runner_id": 0}), reason: "claim_missing:runner_id"},
		{name: "Buildkite hard-coded", issuer: identity.Issuer{Type: identity.BuildkiteJob}, claims: m{"organization_slug": "acme", "pipeline_slug": "build", "build_number": 1, "job_id": "x", "runner_environment": "r", "build_commit": "c", "build_source": "ui"}, san: "https://buildkite.com/acme/build", kind: identity.SANURI, ext: map[int]string{13: "-", 21: "-"}},
		{name: "Chainguard", issuer: identity.Issuer{Type: identity.Chainguard}, claims: m{"sub": "abc/def"}, san: "ISS/abc/def", kind: identity.SANURI},

		{name: "CircleCI", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "circleci-job"}, claims: m{"oidc.circleci.com/project-id": "p", "oidc.circleci.com/pipeline-definition-id": "d", "oidc.circleci.com/ssh-rerun": false}, san: "https://circleci.com/api/v2/projects/p/pipeline-definitions/d", kind: identity.SANURI, ext: map[int]string{11: "-", 12: "-"}},
		{name: "CircleCI without project", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "circleci-job"}, claims: m{"oidc.circleci.com/pipeline-definition-id": "d"}, reason: "claim_missing:oidc.circleci.com/project-id"},
		{name: "Buddy without revision", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "buddy-pipeline"}, claims: m{"workspace_domain": "w", "project_name": "p", "pipeline_id": 7, "execution_id": "e", "triggered_on": "CLICK", "runner_environment": "buddy-hosted"}, san: "https://app.buddy.works/w/p/pipelines/pipeline/7", kind: identity.SANURI, ext: map[int]string{13: "-", 14: "-"}},
		{name: "Buddy with an empty project", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "buddy-pipeline"}, claims: m{"workspace_domain": "w", "project_name": "", "pipeline_id": 7}, reason: "claim_missing:project_name"},
		{name: "GitHub hard-coded with a url of its own", issuer: identity.Issuer{Type: identity.GitHubWorkflow}, claims: with(githubClaims, m{"url": "https://evil.example"}), san: "https://github.com/octo/widgets/.github/workflows/release.yml@refs/heads/main", kind: identity.SANURI},
		{name: "GitHub hard-coded with a ref that climbs", issuer: identity.Issuer{Type: identity.GitHubWorkflow}, claims: with(githubClaims, m{"job_workflow_ref": "octo/widgets/../evil"}), reason: "claim_rejected"},
		{name: "GitHub hard-coded with encoded dots", issuer: identity.Issuer{Type: identity.GitHubWorkflow}, claims: with(githubClaims, m{"job_workflow_ref": "octo/widgets/%2e%2e/evil"}), reason: "claim_rejected"},
		{name: "GitHub by template with encoded dots", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"job_workflow_ref": "octo/widgets/%2e%2e/evil"}), reason: "claim_rejected"},
		{name: "GitHub with a template for a claim", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"job_workflow_ref": "{{ .sub }}"}), san: "https://github.com/%7B%7B%20.sub%20%7D%7D", kind: identity.SANURI},
		{name: "GitHub with an emoji of several in the workflow's name", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"workflow": "\U0001f9d1\u200d\U0001f4bb CI"}), san: "https://github.com/octo/widgets/.github/workflows/release.yml@refs/heads/main", kind: identity.SANURI, ext: map[int]string{4: "\U0001f9d1\u200d\U0001f4bb CI"}},
		{name: "GitHub with a zero-width space in the workflow's name", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"workflow": "a\u200bb"}), reason: "claim_rejected"},
		{name: "GitHub with a joiner in the repository", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"repository": "octo/wid\u200dgets"}), reason: "claim_rejected"},
		{name: "GitHub with a zero-width space in its name, which would be encoded", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"job_workflow_ref": "octo/wid\u200bgets"}), reason: "claim_rejected"},
		{name: "GitHub with an encoded NUL in its name", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"job_workflow_ref": "octo/wid%00gets"}), reason: "claim_rejected"},
		{name: "a host behind a user", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "gitlab-pipeline"}, claims: with(gitlabClaims, m{"ci_config_ref_uri": "gitlab.com@evil.example/x"}), reason: "claim_rejected"},

		{name: "numbers, booleans and lists in templates", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "odd"},
			claims: m{"n": 12345678901234567, "f": 1e21, "h": 0.5, "b": true, "l": []string{"a", "b"}, "with space": "x y"},
			san:    "https://ci.corp/x%20y", kind: identity.SANURI, ext: map[int]string{10: "12345678901234567", 11: "1000000000000000000000 0.5 true [a b]", 20: "a&b<c>"}},
		{name: "a control character in the SAN", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "odd"}, claims: m{"n": "", "f": 1, "h": 1, "b": 1, "l": 1, "with space": "x\x01"}, reason: "claim_rejected"},
		{name: "a SAN without host", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "hostless"}, claims: m{"path": "x"}, reason: "claim_rejected"},
		{name: "a SAN with a foreign host", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "hostless"}, claims: m{"path": "https://münchen.example/x"}, reason: "claim_rejected"},
		{name: "a control character in an extension", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"workflow": "a\u0007b"}), reason: "claim_rejected"},
		{name: "an oversized extension", issuer: identity.Issuer{Type: identity.CIProvider, CIProvider: "github-workflow"}, claims: with(githubClaims, m{"workflow": strings.Repeat("w", 5000)}), reason: "claim_rejected"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.issuer.URL, tt.issuer.Audience, tt.issuer.AllowHTTP = p.URL, "sigstore", true
			v, err := identity.New(identity.Options{Now: c.now, Issuers: []identity.Issuer{tt.issuer}, Config: &identity.Config{Providers: map[string]identity.Provider{
				"own": {Extends: "gitlab-pipeline", Defaults: map[string]string{"url": "https://gitlab.corp"}},
				"odd": {SAN: `https://ci.corp/{{ index . "with space" }}`, Defaults: map[string]string{"lit": "a&b<c>"}, Extensions: map[string]string{
					"build-signer-digest": "n", "RunnerEnvironment": "{{ .f }} {{ .h }} {{ .b }} {{ .l }}", "build-trigger": "{{ .lit }}", "issuer": "ignored"}},
				"hostless": {SAN: "path"},
			}}})
			if err != nil {
				t.Fatal(err)
			}
			got, err := v.Verify(context.Background(), p.Token(c.now(), tt.claims))
			if tt.reason != "" {
				wantReason(t, err, tt.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			iss := func(s string) string { return strings.Replace(s, "ISS", p.URL, 1) }
			if want := (identity.SAN{Kind: tt.kind, Value: iss(tt.san)}); got.SAN != want {
				t.Errorf("SAN %+v, want %+v", got.SAN, want)
			}
			byArc, last := map[int]string{}, 0
			for _, e := range got.Extensions {
				if e.Arc <= last || e.Value == "" {
					t.Errorf("extension .%d after .%d with value %q", e.Arc, last, e.Value)
				}
				byArc[e.Arc], last = e.Value, e.Arc
			}
			for arc, want := range tt.ext {
				if value, ok := byArc[arc]; want == "-" && ok || want != "-" && value != iss(want) {
					t.Errorf("extension .%d is %q, want %q", arc, value, iss(want))
				}
			}
		})
	}
}

func TestChallengesAreWhatClientsSign(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	for _, tt := range []struct {
		name   string
		issuer identity.Issuer
		claims map[string]any
		want   string
	}{
		{"an email issuer takes email and sub", identity.Issuer{Type: identity.Email}, nil, "alice@example.com alice-id"},
		{"a username issuer whose tokens have an email takes it too", identity.Issuer{Type: identity.Username, SubjectDomain: "127.0.0.1"}, nil, "alice@example.com alice-id"},
		{"without email only sub", identity.Issuer{Type: identity.Username, SubjectDomain: "127.0.0.1"}, map[string]any{"email": nil}, "alice-id"},
		{"the configured claim counts", identity.Issuer{Type: identity.Username, SubjectDomain: "127.0.0.1", ChallengeClaim: "upn"}, map[string]any{"email": nil, "upn": "alice"}, "alice-id alice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.issuer.URL, tt.issuer.Audience, tt.issuer.AllowHTTP = p.URL, "sigstore", true
			got, err := verifier(t, c, tt.issuer).Verify(context.Background(), p.Token(c.now(), tt.claims))
			if err != nil {
				t.Fatal(err)
			}
			if joined := strings.Join(got.Challenges, " "); joined != tt.want {
				t.Errorf("challenges %q, want %q", joined, tt.want)
			}
		})
	}
}

func TestInvisibleCharactersNameNobody(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	i := emailIssuer(p)
	i.Type, i.SubjectDomain = identity.Username, "127.0.0.1"
	v := verifier(t, c, i)
	for _, r := range []rune{
		0, '\n', 0x7f, 0x85, 0xad, 0x61c, 0x180e, 0x200b, 0x200c, 0x200d, 0x200e, 0x200f, 0x2028, 0x2029, 0x202a, 0x202e, 0x2060, 0x2064, 0x2066, 0x2069, 0xfeff, 0xfff9, 0xe0041,
	} {
		_, err := v.Verify(context.Background(), p.Token(c.now(), map[string]any{"sub": "al" + string(r) + "ice", "email": nil}))
		if err == nil {
			t.Errorf("U+%04X was accepted in a user name", r)
			continue
		}
		wantReason(t, err, "claim_rejected")
	}
	for _, name := range []string{"älice", "アリス", "alice smith", "алиса"} {
		if _, err := v.Verify(context.Background(), p.Token(c.now(), map[string]any{"sub": name, "email": nil})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAudiencesAndLeewayAreTheIssuers(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	leeway, none := time.Minute, time.Duration(0)
	for _, tt := range []struct {
		name   string
		set    func(*identity.Issuer)
		claims map[string]any
		reason string
	}{
		{"the client-id", func(i *identity.Issuer) { i.Audiences = []string{"other"} }, nil, ""},
		{"one of the audiences", func(i *identity.Issuer) { i.Audiences = []string{"a", "b"} }, map[string]any{"aud": []string{"x", "b"}}, ""},
		{"an audience without client-id", func(i *identity.Issuer) { i.Audience, i.Audiences = "", []string{"a", "b"} }, map[string]any{"aud": "a"}, ""},
		{"none of them", func(i *identity.Issuer) { i.Audiences = []string{"a", "b"} }, map[string]any{"aud": []string{"x", "ab"}}, "aud_mismatch"},
		{"the client-id that is not there", func(i *identity.Issuer) { i.Audience, i.Audiences = "", []string{"a"} }, nil, "aud_mismatch"},
		{"an empty audience", func(i *identity.Issuer) { i.Audience, i.Audiences = "", []string{"a"} }, map[string]any{"aud": ""}, "aud_mismatch"},
		{"within the issuer's leeway", func(i *identity.Issuer) { i.ClockLeeway = &leeway }, map[string]any{"exp": c.now().Add(-time.Minute).Unix()}, ""},
		{"past the issuer's leeway", func(i *identity.Issuer) { i.ClockLeeway = &leeway }, map[string]any{"exp": c.now().Add(-61 * time.Second).Unix()}, "expired"},
		{"within the general leeway", func(*identity.Issuer) {}, map[string]any{"exp": c.now().Add(-30 * time.Second).Unix()}, ""},
		{"past the issuer's leeway of 0", func(i *identity.Issuer) { i.ClockLeeway = &none }, map[string]any{"exp": c.now().Add(-time.Second).Unix()}, "expired"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := emailIssuer(p)
			tt.set(&i)
			v, err := identity.New(identity.Options{Issuers: []identity.Issuer{i}, Now: c.now, Leeway: 30 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			_, err = v.Verify(context.Background(), p.Token(c.now(), tt.claims))
			if tt.reason != "" {
				wantReason(t, err, tt.reason)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	for _, tt := range []struct {
		issuer identity.Issuer
		want   string
	}{
		{identity.Issuer{Audience: "a", Audiences: []string{"b", "a"}}, "a"},
		{identity.Issuer{Audiences: []string{"b", "a"}}, "b"},
	} {
		if got := tt.issuer.ClientID(); got != tt.want {
			t.Errorf("%+v is advertised with %s, want %s", tt.issuer, got, tt.want)
		}
	}
}
