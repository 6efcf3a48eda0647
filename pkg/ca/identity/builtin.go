package identity

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
	}
}

// fixedType describes Fulcio's deprecated hard-coded CI types by the built-in provider that
// says the same, less the extensions that the hard-coded type does not write.
type fixedType struct {
	provider string
	required []string // claims that must be present and not empty
	without  []int
}

var fixedTypes = map[Type]fixedType{
	GitHubWorkflow: {
		provider: "github-workflow",
		required: []string{"job_workflow_ref", "sha", "event_name", "repository", "workflow", "ref", "job_workflow_sha", "runner_environment",
			"repository_id", "repository_owner", "repository_owner_id", "repository_visibility", "workflow_ref", "workflow_sha", "run_id", "run_attempt"},
		without: []int{23},
	},
	GitLabPipeline: {
		provider: "gitlab-pipeline",
		required: []string{"project_path", "pipeline_source", "pipeline_id", "ci_config_ref_uri", "job_id", "ref", "ref_type",
			"namespace_path", "namespace_id", "project_id", "sha", "runner_environment", "runner_id"},
		without: []int{23},
	},
	BuildkiteJob: {
		provider: "buildkite-job",
		required: []string{"organization_slug", "pipeline_slug"},
		without:  []int{11, 13, 20, 21},
	},
	CodefreshWorkflow: {
		provider: "codefresh-workflow",
		required: []string{"account_id", "pipeline_id", "workflow_id"},
	},
}
