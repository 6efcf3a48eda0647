package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Finding is something about a policy that is allowed and probably not meant. Codes are part of the API.
type Finding struct {
	Code    string `json:"code"`
	Note    bool   `json:"note,omitempty"` // worth knowing; not a mistake by itself
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Policy  string `json:"policy,omitempty"`
	Field   string `json:"field,omitempty"` // "spec.keyless.identities[0].issuer_regex"
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

// The codes of findings.
const (
	LintRefused           = "refused"              // the policy does not load
	LintUnanchored        = "regexp-unanchored"    // the regular expression fits parts of values
	LintDot               = "regexp-dot"           // "." between letters is any character
	LintAny               = "identity-any"         // everybody fits
	LintSpan              = "regexp-span"          // ".*" goes over slashes
	LintIssuerWildcard    = "issuer-wildcard"      // the issuer's host is not fixed
	LintIssuerHTTP        = "issuer-http"          // the issuer is not authentic on its way
	LintAbsence           = "passes-by-absence"    // what is not there satisfies the constraint
	LintSCTIgnored        = "sct-ignored"          // certificates need not be in a CT log
	LintLogIgnored        = "log-ignored"          // signatures need not be in a log
	LintTimeless          = "key-without-time"     // nothing says when a key signed
	LintNoSCTLog          = "no-sct-log"           // the trusted root has no CT log
	LintShortName         = "predicate-short"      // a deprecated name in place of a predicate type
	LintOldField          = "field-deprecated"     // an old spelling
	LintNotEnforced       = "not-enforced"         // failures are let through
	LintNotRequired       = "not-required"         // the policy may pass without any signature
	LintUnusedPolicy      = "policy-unused"        // no image of the list fits
	LintImageWithoutRules = "image-without-policy" // no policy speaks of an image of the list
)

// LintOptions say what policies are looked at with.
type LintOptions struct {
	Options
	// Images are references of images that run somewhere: policies that none of them fits are found, and images that
	// no policy fits.
	Images []string
}

// Lint looks at each document of the files. Policies that do not load are findings too; the error is of what is no document
// at all. Findings are in the order of files and lines.
func Lint(files []File, o LintOptions) ([]Finding, error) {
	var l linter
	for _, f := range files {
		docs, err := splitDocuments(f.Name, f.Data)
		if err != nil {
			return nil, err
		}
		for _, d := range docs {
			l.document(d)
		}
	}
	loaded, err := Compile(files, o.Options)
	if err != nil {
		l.add(Finding{Code: LintRefused, Message: err.Error()})
	} else {
		l.modes(loaded.Policies)
		l.images(loaded.Policies, o.Images)
	}
	if len(o.TrustedRoot) > 0 {
		l.trustedRoot(Finding{Field: "the trusted root"}, string(o.TrustedRoot))
	}
	slices.SortStableFunc(l.findings, func(a, b Finding) int {
		if a.File != b.File {
			return slices.Index(fileNames(files), a.File) - slices.Index(fileNames(files), b.File)
		}
		return a.Line - b.Line
	})
	return l.findings, nil
}

func fileNames(files []File) []string {
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
	}
	return names
}

type linter struct {
	findings  []Finding
	positions []Finding // one for each document: where policies stand
}

func (l *linter) add(f Finding) { l.findings = append(l.findings, f) }

// document walks one document. Most rules know a field by its name, which means the same in all dialects.
func (l *linter) document(d *document) {
	name := d.name
	if d.namespace != "" {
		name = d.namespace + "/" + d.name
	}
	at := Finding{File: d.file, Line: d.node.Line, Policy: name}
	l.positions = append(l.positions, at)
	l.walk(d, d.node, at)
	switch d.group() {
	case "/sigstore_policy":
		if n := find(d.node, "spec", "key"); n != nil {
			l.timeless(at, "spec.key", n)
		}
	case "policy.sigstore.dev/ClusterImagePolicy":
		l.authorities(d, at)
	}
}

func find(n *yaml.Node, path ...string) *yaml.Node {
	for _, name := range path {
		if n == nil || n.Kind != yaml.MappingNode {
			return nil
		}
		n = member(n, name)
	}
	return n
}

func (l *linter) walk(d *document, n *yaml.Node, at Finding) {
	switch n.Kind {
	case yaml.SequenceNode:
		field := at.Field
		for i, item := range n.Content {
			at.Field = fmt.Sprintf("%s[%d]", field, i)
			l.walk(d, item, at)
		}
	case yaml.MappingNode:
		l.condition(n, at)
		field := at.Field
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			at.Field, at.Line = strings.TrimPrefix(field+"."+key.Value, "."), key.Line
			l.field(d, key.Value, value, at)
			l.walk(d, value, at)
		}
	}
}

// field applies the rules for fields of this name.
func (l *linter) field(d *document, name string, n *yaml.Node, at Finding) {
	text := scalar(n)
	kyverno := d.group() == "kyverno.io/ClusterPolicy" || d.group() == "kyverno.io/Policy"
	switch name {
	case "issuer", "subject":
		l.value(name, text, kyverno, at)
	case "issuerRegExp", "issuer_regex", "subjectRegExp", "subject_regex":
		l.regexp(strings.HasPrefix(name, "issuer"), text, at)
	case "insecureIgnoreSCT", "ignoreSCT":
		if n.Value == "true" {
			l.finding(at, LintSCTIgnored, "certificates need not be in a CT log, so that a CA's mistake stays unseen", "leave "+name+" out and give the CT log's key")
		}
	case "insecureIgnoreTlog", "ignoreTlog":
		if n.Value == "true" {
			l.finding(at, LintLogIgnored, "signatures need not be in a transparency log", "leave "+name+" out and give the log's key")
		}
	case "predicateType":
		if long := sign.PredicateType(text); long != text {
			l.finding(at, LintShortName, fmt.Sprintf("%q is a deprecated short name", text), "write "+long)
		} else if kyverno {
			l.finding(at, LintOldField, "predicateType is deprecated", "rename it to type")
		}
	case "key", "roots":
		if kyverno && strings.HasPrefix(at.Field, "spec.rules[") && strings.Count(at.Field, ".") == 3 {
			l.finding(at, LintOldField, name+" beside attestors is deprecated", "name it in an entry of attestors")
		}
	case "trusted_roots":
		for i, item := range n.Content {
			where := at
			where.Field, where.Line = fmt.Sprintf("%s[%d]", at.Field, i), item.Line
			l.trustedRoot(where, scalar(item))
		}
	case "required":
		if n.Value == "false" {
			l.finding(at, LintNotRequired, "an image may pass without any signature", "leave required out")
		}
	}
}

// finding adds a warning.
func (l *linter) finding(at Finding, code, message, fix string) {
	at.Code, at.Message, at.Fix = code, message, fix
	l.add(at)
}

func (l *linter) note(at Finding, code, message, fix string) {
	at.Note = true
	l.finding(at, code, message, fix)
}

// value looks at an exact issuer or subject, in which some dialects have wildcards.
func (l *linter) value(name, text string, wildcards bool, at Finding) {
	issuer := name == "issuer"
	if issuer && strings.HasPrefix(text, "http://") {
		l.finding(at, LintIssuerHTTP, "the issuer's keys are fetched without TLS, by whoever issues certificates", "use an https issuer")
	}
	if !wildcards || !strings.ContainsAny(text, "*?") {
		return
	}
	switch {
	case strings.Trim(text, "*?") == "":
		l.finding(at, LintAny, "everybody fits", "name the "+name)
	case issuer:
		l.finding(at, LintIssuerWildcard, "an issuer with a wildcard may be anybody's", "name each issuer in an entry of its own")
	}
}

// regexp looks at a regular expression, which all dialects read unanchored.
func (l *linter) regexp(issuer bool, text string, at Finding) {
	p, err := readPattern(text)
	if err != nil {
		return // refused when loaded
	}
	switch {
	case p.anything():
		l.finding(at, LintAny, "everybody fits", "name who may sign")
		return
	case issuer && p.openHost():
		l.finding(at, LintIssuerWildcard, "the host of the issuer is not fixed", "write the host out, with \\. for each dot")
	}
	if !p.anchored() {
		l.finding(at, LintUnanchored, fmt.Sprintf("%q also fits values that only contain it", text), fmt.Sprintf("write ^(?:%s)$", strings.TrimSuffix(strings.TrimPrefix(text, "^"), "$")))
	}
	if p.looseDot() {
		l.finding(at, LintDot, "\".\" is any character, also between letters of a name", "write \\. for a dot")
	}
	if issuer && (strings.HasPrefix(strings.TrimPrefix(text, "^"), "http://") || strings.HasPrefix(strings.TrimPrefix(text, "^"), "https?://")) {
		l.finding(at, LintIssuerHTTP, "the issuer's keys are fetched without TLS, by whoever issues certificates", "use an https issuer")
	}
	if p.spans() {
		l.note(at, LintSpan, "\".*\" goes over slashes: what it stands for may be any number of path elements", "write [^/]+ for one element")
	}
}

// condition finds conditions of Kyverno that say what must not be, and take a default for what is not there.
func (l *linter) condition(n *yaml.Node, at Finding) {
	operator := strings.ToLower(scalar(member(n, "operator")))
	key := scalar(member(n, "key"))
	if !strings.HasPrefix(operator, "not") && !strings.HasSuffix(operator, "notin") {
		return
	}
	if strings.Contains(key, "{{") && strings.Contains(key, "||") {
		at.Line = n.Line
		l.finding(at, LintAbsence, "an attestation without the field passes: its default is not among what is refused", "demand the value that the field must have, or leave the default out")
	}
}

// authorities looks at a ClusterImagePolicy's authorities: keys without time, and CUE that holds of nothing.
func (l *linter) authorities(d *document, at Finding) {
	list := find(d.node, "spec", "authorities")
	if list == nil {
		return
	}
	for i, a := range list.Content {
		where := fmt.Sprintf("spec.authorities[%d]", i)
		if key := find(a, "key"); key != nil && find(a, "ctlog") == nil && find(a, "rfc3161timestamp") == nil {
			l.timeless(at, where+".key", key)
		}
		attestations := find(a, "attestations")
		if attestations == nil {
			continue
		}
		for j, w := range attestations.Content {
			if data := find(w, "policy", "data"); data != nil && scalar(find(w, "policy", "type")) == languageCUE {
				at.Field, at.Line = fmt.Sprintf("%s.attestations[%d].policy.data", where, j), data.Line
				l.cue(at, scalar(data), sign.PredicateType(scalar(find(w, "predicateType"))))
			}
		}
	}
}

func (l *linter) timeless(at Finding, field string, n *yaml.Node) {
	at.Field, at.Line = field, n.Line
	l.note(at, LintTimeless, "neither a log nor a timestamp is demanded: nothing says when the key signed, nor shows that it did", "demand a log entry, or use keyless")
}

// cue tries a policy as upstream reads it on a statement whose predicate is empty.
func (l *linter) cue(at Finding, source, predicateType string) {
	p, err := newProgram(languageCUE, source, statementMembers, CUEUpstream)
	if err != nil {
		return // refused when loaded
	}
	input, err := json.Marshal(map[string]any{
		"_type": "https://in-toto.io/Statement/v1", "predicateType": predicateType, "predicate": map[string]any{},
		"subject": []any{map[string]any{"digest": map[string]any{"sha256": strings.Repeat("0", 64)}}},
	})
	if err != nil {
		return
	}
	if loosened, err := p.evaluate(context.Background(), input); err == nil && loosened != "" {
		l.finding(at, LintAbsence, "upstream takes an empty predicate for one that fits ("+loosened+"); it is refused here unless attestry.dev/cue-semantics says upstream",
			"keep CUE strict, and mark each field that must be there with !")
	}
}

// trustedRoot notes roots without a CT log.
func (l *linter) trustedRoot(at Finding, text string) {
	t, err := newTrust("", []byte(text))
	if err != nil {
		return // refused when loaded
	}
	for _, root := range t.roots {
		if len(root.GetCertificateAuthorities()) > 0 && len(root.GetCtlogs()) == 0 {
			l.note(at, LintNoSCTLog, "a trusted root has no CT log: its certificates need no SCT", "add the ctlogs of the instance")
		}
	}
}

// modes finds policies that let failures through.
func (l *linter) modes(policies []Policy) {
	for _, p := range policies {
		if p.Mode() != ModeEnforce {
			l.note(l.position(p.Name()), LintNotEnforced, "what fails is let through: the mode is "+p.Mode(), "enforce it, once a replay shows nobody who would fail")
		}
	}
}

func (l *linter) position(policy string) Finding {
	for _, at := range l.positions {
		if at.Policy == policy || strings.HasSuffix(at.Policy, "/"+policy) { // a namespace that means nothing to the dialect
			return at
		}
	}
	return Finding{Policy: policy}
}

// images finds policies and images that miss each other.
func (l *linter) images(policies []Policy, references []string) {
	if len(references) == 0 {
		return
	}
	used := map[string]bool{}
	for _, reference := range references {
		image, err := imageOfReference(reference)
		if err != nil {
			l.finding(Finding{}, LintImageWithoutRules, fmt.Sprintf("%q: %v", reference, err), "write NAME:TAG or NAME@DIGEST")
			continue
		}
		spoken := false
		for _, p := range policies {
			if p.Applies(&Subject{Image: image}) {
				used[p.Name()], spoken = true, true
			}
		}
		if !spoken {
			l.finding(Finding{}, LintImageWithoutRules, "no policy speaks of "+reference, "write one, or decide what becomes of such images by no-match")
		}
	}
	for _, p := range policies {
		if !used[p.Name()] {
			l.finding(l.position(p.Name()), LintUnusedPolicy, "no image of the list fits", "mend the pattern of images, or take the policy away")
		}
	}
}

// imageOfReference makes the image of a reference as a registry would give it, with a digest of zeros when it has none.
func imageOfReference(reference string) (oci.Image, error) {
	name, digest, pinned := strings.Cut(reference, "@")
	if !pinned {
		digest = "sha256:" + strings.Repeat("0", 64)
	}
	if !digestPattern.MatchString(digest) {
		return oci.Image{}, errors.New("the digest is malformed")
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	if name == "" || strings.ContainsAny(name, " \t") {
		return oci.Image{}, errors.New("it is no reference")
	}
	return oci.Image{Reference: reference, Name: name, Digest: digest}, nil
}
