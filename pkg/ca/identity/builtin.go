package identity

import "maps"

const (
	circleDefinition = `{{ .api_url }}/projects/{{ index . "oidc.circleci.com/project-id" }}/pipeline-definitions/{{ index . "oidc.circleci.com/pipeline-definition-id" }}`
	buddyPipeline    = "{{ .base_url }}/{{ .workspace_domain }}/{{ .project_name }}/pipelines/pipeline/{{ .pipeline_id }}"
)

// builtinProviders are the CI systems that ci-provider may name without ci-issuer-metadata, by
// the names of Fulcio's sample configuration. Their hosts only appear inside certificates and
// are defaults: `extends` with another `url` serves an instance of one's own.
func builtinProviders() map[string]Provider {
	github := map[string]string{
		"github-workflow-trigger":                 "event_name",
		"github-workflow-sha":                     "sha",
		"github-workflow-name":                    "workflow",
		"github-workflow-repository":              "repository",
		"github-workflow-ref":                     "ref",
		"build-signer-uri":                        "{{ .url }}/{{ .job_workflow_ref }}",
		"build-signer-digest":                     "job_workflow_sha",
		"runner-environment":                      "runner_environment",
		"source-repository-uri":                   "{{ .url }}/{{ .repository }}",
		"source-repository-digest":                "sha",
		"source-repository-ref":                   "ref",
		"source-repository-identifier":            "repository_id",
		"source-repository-owner-uri":             "{{ .url }}/{{ .repository_owner }}",
		"source-repository-owner-identifier":      "repository_owner_id",
		"build-config-uri":                        "{{ .url }}/{{ .workflow_ref }}",
		"build-config-digest":                     "workflow_sha",
		"build-trigger":                           "event_name",
		"run-invocation-uri":                      "{{ .url }}/{{ .repository }}/actions/runs/{{ .run_id }}/attempts/{{ .run_attempt }}",
		"source-repository-visibility-at-signing": "repository_visibility",
		"deployment-environment":                  "environment",
	}
	gitlab := map[string]string{
		"build-signer-uri":                        "https://{{ .ci_config_ref_uri }}",
		"build-signer-digest":                     "ci_config_sha",
		"runner-environment":                      "runner_environment",
		"source-repository-uri":                   "{{ .url }}/{{ .project_path }}",
		"source-repository-digest":                "sha",
		"source-repository-ref":                   `refs/{{ if eq .ref_type "branch" }}heads/{{ else }}tags/{{ end }}{{ .ref }}`,
		"source-repository-identifier":            "project_id",
		"source-repository-owner-uri":             "{{ .url }}/{{ .namespace_path }}",
		"source-repository-owner-identifier":      "namespace_id",
		"build-config-uri":                        "https://{{ .ci_config_ref_uri }}",
		"build-config-digest":                     "ci_config_sha",
		"build-trigger":                           "pipeline_source",
		"run-invocation-uri":                      "{{ .url }}/{{ .project_path }}/-/jobs/{{ .job_id }}",
		"source-repository-visibility-at-signing": "project_visibility",
		"deployment-environment":                  "environment",
	}
	return map[string]Provider{
		"github-workflow": {
			Defaults:   map[string]string{"url": "https://github.com", "environment": ""},
			Extensions: github,
			SAN:        "{{ .url }}/{{ .job_workflow_ref }}",
		},
		"gitlab-pipeline": {
			Defaults:   map[string]string{"url": "https://gitlab.com", "environment": ""},
			Extensions: gitlab,
			SAN:        "https://{{ .ci_config_ref_uri }}",
		},
		"buildkite-job": {
			Defaults: map[string]string{"url": "https://buildkite.com"},
			Extensions: map[string]string{
				"run-invocation-uri":       "{{ .url }}/{{ .organization_slug }}/{{ .pipeline_slug }}/builds/{{ .build_number }}#{{ .job_id }}",
				"runner-environment":       "runner_environment",
				"source-repository-digest": "build_commit",
				"build-trigger":            "build_source",
			},
			SAN: "{{ .url }}/{{ .organization_slug }}/{{ .pipeline_slug }}",
		},
		"codefresh-workflow": {
			Defaults: map[string]string{"platform_url": "https://g.codefresh.io", "scm_repo_url": "", "scm_ref": "", "runner_environment": ""},
			Extensions: map[string]string{
				"build-signer-uri":      "{{ .platform_url }}/build/{{ .workflow_id }}",
				"runner-environment":    "runner_environment",
				"source-repository-uri": "scm_repo_url",
				"source-repository-ref": "scm_ref",
				"build-config-uri":      "{{ .platform_url }}/api/pipelines/{{ .pipeline_id }}",
				"run-invocation-uri":    "{{ .platform_url }}/build/{{ .workflow_id }}",
			},
			SAN: "{{ .platform_url }}/{{ .account_name }}/{{ .pipeline_name }}:{{ .account_id }}/{{ .pipeline_id }}",
		},
		// Upstream's sample writes two quotes as the runner environment of jobs that are no reruns, and
		// a double slash into the run's URI.
		"circleci-job": {
			Defaults: map[string]string{"api_url": "https://circleci.com/api/v2", "platform_url": "https://app.circleci.com"},
			Extensions: map[string]string{
				"build-signer-uri":      circleDefinition,
				"runner-environment":    `{{ if eq (index . "oidc.circleci.com/ssh-rerun") "true" }}ssh-rerun{{ end }}`,
				"source-repository-uri": `{{ index . "oidc.circleci.com/vcs-origin" }}`,
				"source-repository-ref": `{{ index . "oidc.circleci.com/vcs-ref" }}`,
				"build-config-uri":      `{{ .api_url }}/pipeline/{{ index . "oidc.circleci.com/pipeline-id" }}/config`,
				"run-invocation-uri":    `{{ .platform_url }}/workflow/{{ index . "oidc.circleci.com/workflow-id" }}/job/{{ index . "oidc.circleci.com/job-id" }}`,
			},
			SAN: circleDefinition,
		},
		"buddy-pipeline": { // Fulcio after 1.8.8, sigstore/fulcio#2371
			Defaults: map[string]string{"base_url": "https://app.buddy.works", "revision": "", "ref": ""},
			Extensions: map[string]string{
				"build-signer-uri":            buddyPipeline,
				"runner-environment":          "runner_environment",
				"source-repository-uri":       "{{ .base_url }}/{{ .workspace_domain }}/{{ .project_name }}",
				"source-repository-digest":    "revision",
				"source-repository-ref":       "ref",
				"source-repository-owner-uri": "{{ .base_url }}/{{ .workspace_domain }}",
				"build-trigger":               "triggered_on",
				"run-invocation-uri":          buddyPipeline + "/execution/{{ .execution_id }}",
			},
			SAN: buddyPipeline,
		},
	}
}

// fixedType is one of Fulcio's deprecated hard-coded CI types: a provider whose URIs are joined by
// upstream's rules, whatever the configuration calls by its name.
type fixedType struct {
	provider Provider
	required []string // claims that must be present and not empty
}

// fixedURL is the host that upstream has in its code: no claim of that name replaces it.
const fixedURL = "url"

func fixedTypes() map[Type]fixedType {
	builtin := builtinProviders()
	// derive takes a built-in provider, less some extensions and with other templates.
	derive := func(name, san string, without []string, templates map[string]string) Provider {
		p := builtin[name]
		p.SAN = san
		for _, key := range without {
			delete(p.Extensions, key)
		}
		maps.Copy(p.Extensions, templates)
		return p
	}
	return map[Type]fixedType{
		GitHubWorkflow: {
			required: []string{"job_workflow_ref", "sha", "event_name", "repository", "workflow", "ref", "job_workflow_sha", "runner_environment",
				"repository_id", "repository_owner", "repository_owner_id", "repository_visibility", "workflow_ref", "workflow_sha", "run_id", "run_attempt"},
			provider: derive("github-workflow", "{{ joinpath .url .job_workflow_ref }}", []string{"deployment-environment"}, map[string]string{
				"build-signer-uri":            "{{ joinpath .url .job_workflow_ref }}",
				"source-repository-uri":       "{{ joinpath .url .repository }}",
				"source-repository-owner-uri": "{{ joinpath .url .repository_owner }}",
				"build-config-uri":            "{{ joinpath .url .workflow_ref }}",
				"run-invocation-uri":          `{{ joinpath .url .repository "actions/runs" .run_id "attempts" .run_attempt }}`,
			}),
		},
		GitLabPipeline: {
			required: []string{"project_path", "pipeline_source", "pipeline_id", "ci_config_ref_uri", "job_id", "ref", "ref_type",
				"namespace_path", "namespace_id", "project_id", "sha", "runner_environment", "runner_id"},
			provider: derive("gitlab-pipeline", "{{ https .ci_config_ref_uri }}", []string{"deployment-environment"}, map[string]string{
				"build-signer-uri":            "{{ https .ci_config_ref_uri }}",
				"source-repository-uri":       "{{ joinpath .url .project_path }}",
				"source-repository-owner-uri": "{{ joinpath .url .namespace_path }}",
				"build-config-uri":            "{{ https .ci_config_ref_uri }}",
				"run-invocation-uri":          `{{ joinpath .url .project_path "/-/jobs/" .job_id }}`,
			}),
		},
		BuildkiteJob: {
			required: []string{"organization_slug", "pipeline_slug"},
			provider: Provider{Defaults: builtin["buildkite-job"].Defaults, SAN: builtin["buildkite-job"].SAN},
		},
		CodefreshWorkflow: {
			required: []string{"account_id", "pipeline_id", "workflow_id", "account_name", "pipeline_name"},
			provider: derive("codefresh-workflow", `{{ joinpath .platform_url .account_name (printf "%s:%s/%s" .pipeline_name .account_id .pipeline_id) }}`, nil, map[string]string{
				"build-signer-uri":   `{{ joinpath .platform_url "build" .workflow_id }}`,
				"build-config-uri":   `{{ joinpath .platform_url "api" "pipelines" .pipeline_id }}`,
				"run-invocation-uri": `{{ joinpath .platform_url "build" .workflow_id }}`,
			}),
		},
	}
}
