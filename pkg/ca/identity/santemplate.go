package identity

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template/parse"
)

// sanTemplate makes the URI of an issuer of a fixed type, in place of the type's own:
//
//	https://{{ .issuer_host }}/namespaces/{{ .namespace }}/serviceaccounts/{{ .serviceaccount }}
//
// It is text and variables, nothing else of text/template, so that all of it is checked before the
// first token. Its host is written out or the issuer's: no claim can move a name to another host.
type sanTemplate struct {
	host  string // "" for the issuer's
	parts []sanPart
}

// sanPart is text, or with a name a variable.
type sanPart struct {
	text, name string
	variable   sanVariable
}

// sanVariable is a value for a template. Whatever it holds beyond letters of a URI's path is
// percent-encoded. A segment has no slash; a path has segments that are not empty.
type sanVariable struct {
	value func(c claims) string
	path  bool // several segments
	twice bool // one // within, as between GitLab's project and file
}

const (
	varIssuerHost = "issuer_host"
	varIssuerPath = "issuer_path"
	varConfigPath = "ci_config_path"
)

// sanVariables lists what a template of an issuer of type t may use, nil when its names are no
// URIs or are the subject itself.
func sanVariables(t Type) map[string]sanVariable {
	out := map[string]sanVariable{
		varIssuerHost: {value: func(c claims) string { return issuerPart(c).Host }},
		varIssuerPath: {value: func(c claims) string { return strings.Trim(issuerPart(c).EscapedPath(), "/") }, path: true},
	}
	claim := func(path bool, names ...string) {
		for _, name := range names {
			out[name] = sanVariable{value: func(c claims) string { return c.at([]string{name}) }, path: path}
		}
	}
	switch t {
	case Kubernetes:
		out["namespace"] = sanVariable{value: func(c claims) string { namespace, _ := serviceAccountOf(c); return namespace }}
		out["serviceaccount"] = sanVariable{value: func(c claims) string { _, name := serviceAccountOf(c); return name }}
	case Chainguard:
		claim(true, "sub")
	case GitHubWorkflow:
		claim(true, "job_workflow_ref", "workflow_ref", "repository", "ref")
		claim(false, "repository_owner", "repository_id", "repository_owner_id", "workflow", "sha")
	case GitLabPipeline:
		claim(true, "project_path", "namespace_path", "ref")
		claim(false, "project_id", "namespace_id", "ref_type", "sha")
		out[varConfigPath] = sanVariable{path: true, twice: true, value: func(c claims) string {
			_, path, _ := strings.Cut(c.text("ci_config_ref_uri"), "/")
			return path
		}}
	case BuildkiteJob:
		claim(false, "organization_slug", "pipeline_slug")
	case CodefreshWorkflow:
		claim(true, "pipeline_name")
		claim(false, "account_name", "account_id", "pipeline_id")
	default:
		return nil
	}
	return out
}

// issuerPart is the URL of a token's issuer, which is one that the configuration knows.
func issuerPart(c claims) *url.URL {
	u, err := url.Parse(c.text("iss"))
	if err != nil {
		return &url.URL{}
	}
	return u
}

// templateHost is how a template begins.
var templateHost = regexp.MustCompile(`\Ahttps://(?:([A-Za-z0-9.-]+(?::[0-9]+)?)|\{\{ *\.issuer_host *\}\})(/|\z)`)

// sanTemplate compiles the issuer's template.
func (i *Issuer) sanTemplate() (*sanTemplate, error) {
	variables := sanVariables(i.Type)
	if variables == nil {
		return nil, fmt.Errorf("does not apply to type %s", i.Type)
	}
	begin := templateHost.FindStringSubmatch(i.SANTemplate)
	if len(i.SANTemplate) > maxValue || begin == nil {
		return nil, errors.New("must begin with https:// and a host, written out or {{ .issuer_host }}")
	}
	trees, err := parse.Parse("san", i.SANTemplate, "", "")
	if err != nil {
		return nil, err
	}
	if len(trees) != 1 || trees["san"] == nil {
		return nil, errors.New("must not define templates")
	}
	t := &sanTemplate{host: begin[1]}
	filled := "" // with x for each variable
	separated := true
	for _, n := range trees["san"].Root.Nodes {
		if text, ok := n.(*parse.TextNode); ok {
			t.parts = append(t.parts, sanPart{text: string(text.Text)})
			filled += string(text.Text)
			separated = separated || strings.Contains(string(text.Text), "/")
			continue
		}
		name := fieldOf(n)
		v, ok := variables[name]
		switch {
		case !ok:
			return nil, fmt.Errorf("%s is not one of the variables of type %s", n, i.Type)
		case !separated:
			return nil, fmt.Errorf("no / between %s and the variable before it: two names could read alike", n)
		case name == varIssuerHost && filled != "https://":
			return nil, errors.New("{{ .issuer_host }} may only stand for the host")
		case name == varIssuerPath && strings.Trim(i.URL[strings.Index(i.URL, "//")+2:], "/") == issuerHost(i.URL):
			return nil, errors.New("{{ .issuer_path }} is empty for this issuer")
		}
		separated = false
		t.parts = append(t.parts, sanPart{name: name, variable: v})
		filled += "x"
	}
	if strings.ContainsAny(filled, "?#%") {
		return nil, errors.New("must be scheme, host and path without %")
	}
	_, err = uriName(filled)
	return t, err
}

func issuerHost(issuer string) string {
	_, rest, _ := strings.Cut(issuer, "//")
	host, _, _ := strings.Cut(rest, "/")
	return host
}

// fieldOf returns NAME of {{ .NAME }}, "" for anything else.
func fieldOf(n parse.Node) string {
	action, ok := n.(*parse.ActionNode)
	if !ok || len(action.Pipe.Decl) > 0 || len(action.Pipe.Cmds) != 1 || len(action.Pipe.Cmds[0].Args) != 1 {
		return ""
	}
	field, ok := action.Pipe.Cmds[0].Args[0].(*parse.FieldNode)
	if !ok || len(field.Ident) != 1 {
		return ""
	}
	return field.Ident[0]
}

// san fills the template with the claims of a verified token.
func (t *sanTemplate) san(c claims) (SAN, error) {
	host := t.host
	if host == "" {
		host = issuerPart(c).Host
	}
	var out strings.Builder
	for _, p := range t.parts {
		if p.name == "" {
			out.WriteString(p.text)
			continue
		}
		value := p.variable.value(c)
		switch {
		case value == "":
			return SAN{}, missing(p.name)
		case p.name == varIssuerHost:
			out.WriteString(value)
			continue
		case p.name == varConfigPath && issuerHost("//"+c.text("ci_config_ref_uri")) != host:
			// A configuration that another instance holds must not pass for one of this host.
			return SAN{}, rejected("the token's ci_config_ref_uri is not on the host of the subject alternative name")
		}
		escaped, ok := p.variable.escape(value)
		if !ok {
			return SAN{}, rejected("the token's %s does not fit into a URI", p.name)
		}
		out.WriteString(escaped)
	}
	name, err := uriName(out.String())
	if err != nil {
		return SAN{}, err
	}
	if !strings.HasPrefix(name.Value, "https://"+host+"/") && name.Value != "https://"+host {
		return SAN{}, rejected("the token's claims lead the subject alternative name to another host")
	}
	return name, nil
}

// escape returns value percent-encoded as a segment or path.
func (v sanVariable) escape(value string) (string, bool) {
	if !printable(value) {
		return "", false
	}
	segments := []string{value}
	if v.path {
		segments = strings.Split(value, "/")
	} else if strings.Contains(value, "/") {
		return "", false
	}
	empty := 0
	for k, s := range segments {
		if s == "" {
			empty++
		}
		if s == "." || s == ".." || s == "" && (!v.twice || empty > 1 || k == 0 || k == len(segments)-1) {
			return "", false
		}
		segments[k] = url.PathEscape(s)
	}
	return strings.Join(segments, "/"), true
}

// dotSegments reports whether a path has segments that whoever resolves it would take away.
func dotSegments(path string) bool {
	return slices.ContainsFunc(strings.Split(path, "/"), func(s string) bool { return s == "." || s == ".." })
}
