package identity

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"

	"github.com/attestry/attestry/internal/fault"
)

// extensionArcs lists the template keys of ci-issuer-metadata, YAML and JSON spelling, with the
// last arc of the extension they fill.
var extensionArcs = []struct {
	yaml, json string
	arc        int
}{
	{"github-workflow-trigger", "GithubWorkflowTrigger", 2},
	{"github-workflow-sha", "GithubWorkflowSHA", 3},
	{"github-workflow-name", "GithubWorkflowName", 4},
	{"github-workflow-repository", "GithubWorkflowRepository", 5},
	{"github-workflow-ref", "GithubWorkflowRef", 6},
	{"build-signer-uri", "BuildSignerURI", 9},
	{"build-signer-digest", "BuildSignerDigest", 10},
	{"runner-environment", "RunnerEnvironment", 11},
	{"source-repository-uri", "SourceRepositoryURI", 12},
	{"source-repository-digest", "SourceRepositoryDigest", 13},
	{"source-repository-ref", "SourceRepositoryRef", 14},
	{"source-repository-identifier", "SourceRepositoryIdentifier", 15},
	{"source-repository-owner-uri", "SourceRepositoryOwnerURI", 16},
	{"source-repository-owner-identifier", "SourceRepositoryOwnerIdentifier", 17},
	{"build-config-uri", "BuildConfigURI", 18},
	{"build-config-digest", "BuildConfigDigest", 19},
	{"build-trigger", "BuildTrigger", 20},
	{"run-invocation-uri", "RunInvocationURI", 21},
	{"source-repository-visibility-at-signing", "SourceRepositoryVisibilityAtSigning", 22},
	{"deployment-environment", "DeploymentEnvironment", 23},
	// Upstream accepts templates for these two and ignores them: iss and sub always win.
	{"issuer", "Issuer", 0},
	{"subject", "Subject", 0},
}

func extensionArc(name string) (arc int, ok bool) {
	for _, e := range extensionArcs {
		if e.yaml == name || e.json == name {
			return e.arc, true
		}
	}
	return 0, false
}

// compiledProvider is a Provider ready for use.
type compiledProvider struct {
	defaults   map[string]string
	extensions []valueTemplate // ascending by arc
	san        valueTemplate
}

// valueTemplate makes one value: from a template, or without one by copying the claim named.
type valueTemplate struct {
	arc   int
	claim string
	tmpl  *template.Template
}

func compileValue(arc int, text string) (valueTemplate, error) {
	if !strings.Contains(text, "{{") {
		return valueTemplate{arc: arc, claim: text}, nil
	}
	t, err := template.New("").Option("missingkey=error").Parse(text)
	return valueTemplate{arc: arc, tmpl: t}, err
}

// apply returns the value. A claim that neither the token nor the defaults have is the
// caller's mistake: the text names the claim, never its value.
func (v valueTemplate) apply(data map[string]string) (string, error) {
	if v.tmpl == nil {
		value, ok := data[v.claim]
		if !ok {
			return "", fault.New(fault.Invalid, ReasonClaimMissing+":"+v.claim, nil, "value <%s> not present in either claims or defaults", v.claim)
		}
		return value, nil
	}
	var out bytes.Buffer
	if err := v.tmpl.Execute(&out, data); err != nil {
		reason := ReasonClaimMissing
		var exec template.ExecError
		if errors.As(err, &exec) {
			if _, name, ok := strings.Cut(exec.Error(), `map has no entry for key "`); ok {
				name, _, _ = strings.Cut(name, `"`)
				return "", fault.New(fault.Invalid, reason+":"+name, err, "value <%s> not present in either claims or defaults", name)
			}
		}
		return "", fault.New(fault.Invalid, ReasonClaimRejected, err, "a template of this issuer does not fit the token's claims")
	}
	return out.String(), nil
}

// provider returns the named provider compiled: the file's own, else a built-in one. seen
// holds the names that led here by `extends`.
func (c *Config) provider(name string, seen []string) (*compiledProvider, error) {
	merged, err := c.merge(name, seen)
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(merged.SAN) == "" {
		return nil, errors.New("subject-alternative-name-template is required")
	}
	out := &compiledProvider{defaults: merged.Defaults}
	if out.san, err = compileValue(0, merged.SAN); err != nil {
		return nil, fmt.Errorf("subject-alternative-name-template: %w", err)
	}
	byArc := map[int]string{}
	for _, key := range slices.Sorted(maps.Keys(merged.Extensions)) {
		text := merged.Extensions[key]
		arc, ok := extensionArc(key)
		if !ok {
			return nil, fmt.Errorf("extension-templates has no key %q", key)
		}
		if arc == 0 || strings.TrimSpace(text) == "" {
			continue
		}
		if byArc[arc] != "" {
			return nil, fmt.Errorf("extension-templates has %s twice", key)
		}
		byArc[arc] = text
		v, err := compileValue(arc, text)
		if err != nil {
			return nil, fmt.Errorf("extension-templates: %s: %w", key, err)
		}
		out.extensions = append(out.extensions, v)
	}
	slices.SortFunc(out.extensions, func(a, b valueTemplate) int { return a.arc - b.arc })
	return out, nil
}

func (c *Config) merge(name string, seen []string) (Provider, error) {
	if slices.Contains(seen, name) {
		return Provider{}, fmt.Errorf("extends itself by way of %s", strings.Join(seen, ", "))
	}
	p, ok := c.Providers[name]
	if !ok {
		if p, ok = builtinProviders()[name]; !ok {
			return Provider{}, fmt.Errorf("ci-issuer-metadata has no %q", name)
		}
		return p, nil
	}
	if p.Extends == "" {
		return p, nil
	}
	parent := p.Extends
	var base Provider
	var err error
	if parent == name { // a file may refine a built-in provider under its own name
		if base, ok = builtinProviders()[name]; !ok {
			return Provider{}, errors.New("extends itself")
		}
	} else if base, err = c.merge(parent, append(seen, name)); err != nil {
		return Provider{}, err
	}
	out := Provider{Defaults: maps.Clone(base.Defaults), Extensions: maps.Clone(base.Extensions), SAN: base.SAN}
	if out.Defaults == nil {
		out.Defaults = map[string]string{}
	}
	if out.Extensions == nil {
		out.Extensions = map[string]string{}
	}
	maps.Copy(out.Defaults, p.Defaults)
	for key, text := range p.Extensions {
		arc, _ := extensionArc(key)
		for old := range out.Extensions { // the other spelling of the same extension
			if a, _ := extensionArc(old); a == arc {
				delete(out.Extensions, old)
			}
		}
		out.Extensions[key] = text
	}
	if p.SAN != "" {
		out.SAN = p.SAN
	}
	return out, nil
}

// principal maps claims to SAN and extensions.
func (p *compiledProvider) principal(c claims) (san string, extensions []Extension, err error) {
	data := maps.Clone(p.defaults)
	if data == nil {
		data = map[string]string{}
	}
	c.flatten(data)
	if san, err = p.san.apply(data); err != nil {
		return "", nil, err
	}
	for _, v := range p.extensions {
		value, err := v.apply(data)
		if err != nil {
			return "", nil, err
		}
		if value != "" {
			extensions = append(extensions, Extension{Arc: v.arc, Value: value})
		}
	}
	return san, extensions, nil
}
