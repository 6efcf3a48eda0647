package identity

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"

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

func compileValue(arc int, text string, funcs template.FuncMap) (valueTemplate, error) {
	if !strings.Contains(text, "{{") {
		return valueTemplate{arc: arc, claim: text}, nil
	}
	t, err := template.New("").Option("missingkey=error").Funcs(funcs).Parse(text)
	if err != nil {
		return valueTemplate{}, err
	}
	if len(t.Templates()) != 1 || t.Tree == nil || loops(t.Root) {
		return valueTemplate{}, errors.New("range, define, block and template have no use here and could run without end")
	}
	return valueTemplate{arc: arc, tmpl: t}, nil
}

// strictIndex replaces text/template's index in names, where a claim that is absent would leave a
// hole: that one returns "" for it, also under missingkey=error.
func strictIndex(data map[string]string, name string) (string, error) {
	value, ok := data[name]
	if !ok {
		return "", fault.New(fault.Invalid, ReasonClaimMissing+":"+name, nil, "value <%s> not present in either claims or defaults", name)
	}
	return value, nil
}

// loops reports whether a template repeats a part or calls another.
func loops(list *parse.ListNode) bool {
	if list == nil {
		return false
	}
	for _, n := range list.Nodes {
		switch n := n.(type) {
		case *parse.RangeNode, *parse.TemplateNode:
			return true
		case *parse.IfNode:
			if loops(n.List) || loops(n.ElseList) {
				return true
			}
		case *parse.WithNode:
			if loops(n.List) || loops(n.ElseList) {
				return true
			}
		}
	}
	return false
}

// bounded takes no more than a value of a certificate may have.
type bounded struct{ text []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.text)+len(p) > maxValue {
		return 0, fmt.Errorf("over %d bytes", maxValue)
	}
	b.text = append(b.text, p...)
	return len(p), nil
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
	var out bounded
	if err := v.tmpl.Execute(&out, data); err != nil {
		var absent *fault.Error
		if errors.As(err, &absent) {
			return "", absent
		}
		var exec template.ExecError
		if errors.As(err, &exec) {
			if _, name, ok := strings.Cut(exec.Error(), `map has no entry for key "`); ok {
				name, _, _ = strings.Cut(name, `"`)
				return "", fault.New(fault.Invalid, ReasonClaimMissing+":"+name, err, "value <%s> not present in either claims or defaults", name)
			}
		}
		return "", fault.New(fault.Invalid, ReasonClaimRejected, err, "a template of this issuer does not fit the token's claims")
	}
	return string(out.text), nil
}

// provider returns the named provider compiled: the file's own, else a built-in one. seen
// holds the names that led here by `extends`.
func (c *Config) provider(name string, seen []string) (*compiledProvider, error) {
	merged, err := c.merge(name, seen)
	if err != nil {
		return nil, err
	}
	return merged.compile(template.FuncMap{})
}

// compile prepares a provider that extends none. Its templates may use funcs.
func (p Provider) compile(funcs template.FuncMap) (*compiledProvider, error) {
	if strings.TrimSpace(p.SAN) == "" {
		return nil, errors.New("subject-alternative-name-template is required")
	}
	out := &compiledProvider{defaults: p.Defaults}
	var err error
	inName := maps.Clone(funcs)
	inName["index"] = strictIndex
	if out.san, err = compileValue(0, p.SAN, inName); err != nil {
		return nil, fmt.Errorf("subject-alternative-name-template: %w", err)
	}
	byArc := map[int]string{}
	for _, key := range slices.Sorted(maps.Keys(p.Extensions)) {
		text := p.Extensions[key]
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
		v, err := compileValue(arc, text, funcs)
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

// principal maps claims, flattened over the defaults in data, to what the certificate says.
func (p *compiledProvider) principal(c claims, data map[string]string) (SAN, string, []Extension, error) {
	// In a name an empty claim counts as absent, unless a default says that it is optional.
	var empty []string
	for name, value := range data {
		if _, optional := p.defaults[name]; value == "" && !optional {
			empty = append(empty, name)
			delete(data, name)
		}
	}
	name, err := p.san.apply(data)
	if err != nil {
		return SAN{}, "", nil, err
	}
	for _, name := range empty {
		data[name] = ""
	}
	san, err := uriName(name)
	if err != nil {
		return SAN{}, "", nil, err
	}
	var extensions []Extension
	for _, v := range p.extensions {
		value, err := v.apply(data)
		if err != nil {
			return SAN{}, "", nil, err
		}
		if value != "" {
			extensions = append(extensions, Extension{Arc: v.arc, Value: value})
		}
	}
	return san, c.text("iss"), extensions, nil
}
