package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/attestry/attestry/pkg/verify"
)

const maxGlobBytes = 1 << 10

// imageValidatingPolicy is ImageValidatingPolicy and its namespaced form of policies.kyverno.io. As in clusterPolicy, what has
// no field here is refused.
type imageValidatingPolicy struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   anything `json:"metadata"`
	Status     anything `json:"status"`
	Spec       struct {
		MatchConstraints     *matchConstraints `json:"matchConstraints"`
		MatchConditions      []namedExpression `json:"matchConditions"`
		FailurePolicy        anything          `json:"failurePolicy"` // here a failure is always a refusal
		AuditAnnotations     anything          `json:"auditAnnotations"`
		ValidationActions    []string          `json:"validationActions"`
		Variables            []namedExpression `json:"variables"`
		Configurations       kyvernoDigests    `json:"validationConfigurations"`
		MatchImageReferences []imageReference  `json:"matchImageReferences"`
		Credentials          *struct {
			AllowInsecureRegistry bool     `json:"allowInsecureRegistry"`
			Providers             anything `json:"providers"`
			Secrets               anything `json:"secrets"`
		} `json:"credentials"`
		Images               []namedExpression `json:"images"`
		Attestors            []celAttestor     `json:"attestors"`
		Attestations         []celAttestation  `json:"attestations"`
		Validations          []celValidation   `json:"validations"`
		WebhookConfiguration anything          `json:"webhookConfiguration"`
		Evaluation           *struct {
			Mode       string   `json:"mode"`
			Admission  anything `json:"admission"`
			Background anything `json:"background"`
		} `json:"evaluation"`
		Autogen anything `json:"autogen"`
	} `json:"spec"`
}

type namedExpression struct {
	Name       string `json:"name"`
	Expression string `json:"expression"`
}

type kyvernoDigests struct {
	MutateDigest *bool `json:"mutateDigest"`
	VerifyDigest *bool `json:"verifyDigest"`
	Required     *bool `json:"required"`
}

type imageReference struct {
	Glob       string `json:"glob"`
	Expression string `json:"expression"`
}

type celValidation struct {
	Expression        string   `json:"expression"`
	Message           string   `json:"message"`
	MessageExpression string   `json:"messageExpression"`
	Reason            anything `json:"reason"`
}

type celAttestation struct {
	Name   string `json:"name"`
	InToto *struct {
		Type string `json:"type"`
	} `json:"intoto"`
	Referrer *anything `json:"referrer"`
}

type celAttestor struct {
	Name   string     `json:"name"`
	Cosign *celCosign `json:"cosign"`
	Notary *anything  `json:"notary"`
}

type celCosign struct {
	Key *struct {
		Data          string `json:"data"`
		KMS           string `json:"kms"`
		HashAlgorithm string `json:"hashAlgorithm"`
		Expression    string `json:"expression"`
	} `json:"key"`
	Keyless *struct {
		Identities           []celIdentity     `json:"identities"`
		Roots                string            `json:"roots"`
		AdditionalExtensions map[string]string `json:"additionalExtensions"`
	} `json:"keyless"`
	Certificate *struct {
		Cert      stringOrExpression `json:"cert"`
		CertChain stringOrExpression `json:"certChain"`
	} `json:"certificate"`
	Source *struct {
		Repository  string   `json:"repository"`
		PullSecrets anything `json:"PullSecrets"`
		TagPrefix   string   `json:"tagPrefix"`
	} `json:"source"`
	CTLog *struct {
		URL                string `json:"url"`
		RekorPubKey        string `json:"rekorPubKey"`
		CTLogPubKey        string `json:"ctLogPubKey"`
		TSACertChain       string `json:"tsaCertChain"`
		InsecureIgnoreTlog bool   `json:"insecureIgnoreTlog"`
		InsecureIgnoreSCT  bool   `json:"insecureIgnoreSCT"`
	} `json:"ctlog"`
	TUF *struct {
		Root struct {
			Path string `json:"path"`
			Data []byte `json:"data"`
		} `json:"root"`
		Mirror string `json:"mirror"`
	} `json:"tuf"`
	Annotations map[string]string  `json:"annotations"`
	TrustedRoot stringOrExpression `json:"trustedRoot"`
}

type celIdentity struct {
	Issuer            string `json:"issuer"`
	Subject           string `json:"subject"`
	IssuerRegExp      string `json:"issuerRegExp"`
	SubjectRegExp     string `json:"subjectRegExp"`
	SubjectExpression string `json:"subjectExpression"`
}

type stringOrExpression struct {
	Value      string `json:"value"`
	Expression string `json:"expression"`
}

// matchConstraints is MatchResources of Kubernetes' admission policies.
type matchConstraints struct {
	ResourceRules        []resourceRule `json:"resourceRules"`
	ExcludeResourceRules []resourceRule `json:"excludeResourceRules"`
	ObjectSelector       *cipSelector   `json:"objectSelector"`
	MatchPolicy          anything       `json:"matchPolicy"`

	selector labels.Selector
}

type resourceRule struct {
	APIGroups     []string `json:"apiGroups"`
	APIVersions   []string `json:"apiVersions"`
	Operations    anything `json:"operations"` // those that run an image are all asked for
	Resources     []string `json:"resources"`
	ResourceNames []string `json:"resourceNames"`
	Scope         anything `json:"scope"`
}

func (r *resourceRule) fits(s *Subject) bool {
	in := func(list []string, value string) bool {
		return slices.Contains(list, "*") || slices.Contains(list, value)
	}
	resource := in(r.Resources, s.Resource) || slices.Contains(r.Resources, "*/*")
	// What makes pods is asked about its pods: Kyverno writes the rules for these by itself.
	pods := in(r.Resources, "pods") && in(r.APIGroups, "") && in(r.APIVersions, "v1")
	return (pods || resource && in(r.APIGroups, s.Group) && in(r.APIVersions, s.Version)) &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, nameOf(s)))
}

func (m *matchConstraints) fits(s *Subject) bool {
	if m == nil {
		return true
	}
	fits := func(r resourceRule) bool { return r.fits(s) }
	return slices.ContainsFunc(m.ResourceRules, fits) && !slices.ContainsFunc(m.ExcludeResourceRules, fits) && m.selector.Matches(labels.Set(s.Labels))
}

// validatingPolicy is a compiled ImageValidatingPolicy. It is asked about one image at a time, which stands in each of the
// lists of images; so it holds for an object when it holds for each of its images.
type validatingPolicy struct {
	name, namespace string
	mode            string
	match           *matchConstraints
	conditions      []celProgram
	images          []imageMatcher
	pinned          bool // the reference itself must have a digest
	required        bool
	attestors       map[string]*signer
	attestations    map[string]string // predicate types
	variables       []celProgram
	validations     []celRule
}

type celProgram struct {
	name    string
	program cel.Program
}

type celRule struct {
	check, text cel.Program // text may be nil
	message     string
}

type imageMatcher struct {
	glob       *regexp.Regexp
	expression cel.Program
}

func (c *compiler) compileImageValidating(d *document, version string) (*validatingPolicy, error) {
	switch version {
	case "v1", "v1beta1", "v1alpha1":
	default:
		return nil, fmt.Errorf("version %q is not known", version)
	}
	t := &imageValidatingPolicy{}
	if err := d.decode(t); err != nil {
		return nil, err
	}
	p := &validatingPolicy{name: d.name, match: t.Spec.MatchConstraints}
	switch {
	case d.kind == "NamespacedImageValidatingPolicy" && d.namespace != "":
		p.name, p.namespace = d.namespace+"/"+d.name, d.namespace
	case d.kind != "ImageValidatingPolicy":
		return nil, fmt.Errorf("kind %q is not known, or has no namespace", d.kind)
	}
	if err := p.configure(t); err != nil {
		return nil, err
	}
	if err := c.attestorsOf(p, t.Spec.Attestors); err != nil {
		return nil, err
	}
	for i, a := range t.Spec.Attestations {
		switch {
		case a.InToto == nil || a.Referrer != nil:
			return nil, fmt.Errorf("spec.attestations[%d]: only intoto attestations are signed with Sigstore; referrers of other kinds are Notary's", i)
		case a.Name == "" || a.InToto.Type == "":
			return nil, fmt.Errorf("spec.attestations[%d]: name and intoto.type are required", i)
		case p.attestations[a.Name] != "":
			return nil, fmt.Errorf("spec.attestations[%d]: %q is there already", i, a.Name)
		}
		p.attestations[a.Name] = a.InToto.Type
	}
	return p, p.compileExpressions(t)
}

// configure takes over what is not an expression.
func (p *validatingPolicy) configure(t *imageValidatingPolicy) error {
	spec := &t.Spec
	switch {
	case p.name == "":
		return errors.New("metadata.name is required")
	case len(spec.Images) > 0:
		return errors.New("spec.images is not supported: here a policy is asked about each image of an object, wherever it stands")
	case spec.Evaluation != nil && spec.Evaluation.Mode != "" && spec.Evaluation.Mode != "Kubernetes":
		return fmt.Errorf("spec.evaluation.mode %q is not supported", spec.Evaluation.Mode)
	case spec.Credentials != nil && spec.Credentials.AllowInsecureRegistry:
		return errors.New("spec.credentials.allowInsecureRegistry: a policy does not open registries; name the host where registries are configured")
	case len(spec.Validations) == 0:
		return errors.New("spec.validations is required")
	case max(len(spec.Validations), len(spec.Variables), len(spec.MatchConditions), len(spec.MatchImageReferences), len(spec.Attestors), len(spec.Attestations)) > maxEntries:
		return fmt.Errorf("spec has a list of more than %d", maxEntries)
	}
	p.mode = ModeEnforce
	if len(spec.ValidationActions) > 0 {
		p.mode = ModeAudit
	}
	for _, action := range spec.ValidationActions {
		switch action {
		case "Deny":
			p.mode = ModeEnforce
		case "Warn":
			if p.mode == ModeAudit {
				p.mode = ModeWarn
			}
		case "Audit":
		default:
			return fmt.Errorf("spec.validationActions: %q is not known", action)
		}
	}
	digests := spec.Configurations
	p.pinned = !isFalse(digests.VerifyDigest) && isFalse(digests.MutateDigest)
	p.required = !isFalse(digests.Required)
	p.attestors, p.attestations = map[string]*signer{}, map[string]string{}
	if spec.MatchConstraints == nil {
		return nil
	}
	var err error
	spec.MatchConstraints.selector, err = compileSelector(spec.MatchConstraints.ObjectSelector)
	return err
}

func (c *compiler) attestorsOf(p *validatingPolicy, list []celAttestor) error {
	for i, a := range list {
		where := fmt.Sprintf("spec.attestors[%d]", i)
		switch {
		case a.Name == "":
			return fmt.Errorf("%s.name is required", where)
		case p.attestors[a.Name] != nil:
			return fmt.Errorf("%s: %q is there already", where, a.Name)
		case a.Notary != nil:
			return fmt.Errorf("%s.notary: Notary signatures are not Sigstore's; verify them with Kyverno or Ratify", where)
		case a.Cosign == nil:
			return fmt.Errorf("%s.cosign is required", where)
		}
		s, err := c.cosignSigner(a.Cosign)
		if err != nil {
			return fmt.Errorf("%s.cosign: %w", where, err)
		}
		p.attestors[a.Name] = s
	}
	return nil
}

func (c *compiler) cosignSigner(from *celCosign) (*signer, error) {
	s := &signer{annotations: from.Annotations}
	t := &kyvernoTrust{trustedRoot: from.TrustedRoot.Value}
	if from.TrustedRoot.Expression != "" {
		return nil, errors.New("trustedRoot.expression is not supported: write the trusted root as value")
	}
	given := 0
	for _, has := range []bool{from.Key != nil, from.Keyless != nil, from.Certificate != nil} {
		if has {
			given++
		}
	}
	if given != 1 {
		return nil, errors.New("exactly one of key, keyless and certificate is required")
	}
	var err error
	switch {
	case from.Key != nil:
		err = from.key(s)
	case from.Certificate != nil:
		if from.Certificate.Cert.Expression != "" || from.Certificate.CertChain.Expression != "" {
			return nil, errors.New("certificate: expressions are not supported: write the certificates as value")
		}
		s.policy.Key, err = certifiedKey(from.Certificate.Cert.Value, from.Certificate.CertChain.Value)
	default:
		t.roots = from.Keyless.Roots
		err = from.keyless(s)
	}
	if err != nil {
		return nil, err
	}
	if from.Source != nil {
		s.place = Place{Repository: from.Source.Repository, TagPrefix: from.Source.TagPrefix}
	}
	if l := from.CTLog; l != nil {
		t.rekorURL, t.rekorKey, t.ctKey, t.tsaChain = l.URL, l.RekorPubKey, l.CTLogPubKey, l.TSACertChain
		t.ignoreTlog, t.ignoreSCT = l.InsecureIgnoreTlog, l.InsecureIgnoreSCT
	}
	standard := c.standard
	if from.TUF != nil && t.trustedRoot == "" {
		if from.TUF.Root.Path != "" || len(from.TUF.Root.Data) == 0 || from.TUF.Mirror == "" {
			return nil, errors.New("tuf: root.data and mirror are required; a path is not read from a policy")
		}
		if standard, err = c.remoteTrust("tuf", &tufRemote{Root: from.TUF.Root.Data, Mirror: from.TUF.Mirror}); err != nil {
			return nil, fmt.Errorf("tuf: %w", err)
		}
	}
	return s, t.complete(s, standard)
}

func (from *celCosign) key(s *signer) error {
	k := from.Key
	if k.KMS != "" || k.Expression != "" {
		return errors.New("key: keys of a KMS or of an expression are not looked up here; write the public key as data")
	}
	if err := hashFollowsKey("key.hashAlgorithm", k.HashAlgorithm); err != nil {
		return err
	}
	var err error
	if s.policy.Key, err = verify.ParseKey([]byte(k.Data)); err != nil {
		return fmt.Errorf("key.data: %w", err)
	}
	return nil
}

func (from *celCosign) keyless(s *signer) error {
	if n := len(from.Keyless.Identities); n == 0 || n > maxIdentities {
		return fmt.Errorf("keyless.identities: 1 to %d are required, there are %d", maxIdentities, n)
	}
	extensions, err := kyvernoExtensions("keyless.additionalExtensions", from.Keyless.AdditionalExtensions)
	if err != nil {
		return err
	}
	for i, from := range from.Keyless.Identities {
		where := fmt.Sprintf("keyless.identities[%d]", i)
		if from.SubjectExpression != "" {
			return fmt.Errorf("%s.subjectExpression is not supported", where)
		}
		issuer, issuerRegexp, err := valueOrRegexp(where, "issuer", from.Issuer, from.IssuerRegExp)
		if err != nil {
			return err
		}
		subject, subjectRegexp, err := valueOrRegexp(where, "subject", from.Subject, from.SubjectRegExp)
		if err != nil {
			return err
		}
		id, err := verify.NewSearchingIdentity(issuer, issuerRegexp, subject, subjectRegexp)
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		id.Extensions = extensions
		s.policy.Identities = append(s.policy.Identities, id)
	}
	return nil
}

// valueOrRegexp demands one of the two.
func valueOrRegexp(where, field, value, pattern string) (exact, regexp string, err error) {
	switch {
	case value != "" && pattern != "":
		return "", "", fmt.Errorf("%s: give %s or %sRegExp, not both", where, field, field)
	case value == "" && pattern == "":
		return "", "", fmt.Errorf("%s: %s or %sRegExp is required: without it anybody would do", where, field, field)
	}
	return value, pattern, nil
}

// compileExpressions compiles all that is written in CEL.
func (p *validatingPolicy) compileExpressions(t *imageValidatingPolicy) error {
	spec := &t.Spec
	for i, m := range spec.MatchImageReferences {
		matcher, err := newImageMatcher(m)
		if err != nil {
			return fmt.Errorf("spec.matchImageReferences[%d]: %w", i, err)
		}
		p.images = append(p.images, *matcher)
	}
	env, err := newImageEnvironment(p)
	if err != nil {
		return err
	}
	for i, condition := range spec.MatchConditions {
		program, err := compileCEL(env.conditions, condition.Expression, cel.BoolType)
		if err != nil {
			return fmt.Errorf("spec.matchConditions[%d]: %w", i, err)
		}
		p.conditions = append(p.conditions, celProgram{condition.Name, program})
	}
	for i, v := range spec.Variables {
		program, err := compileCEL(env.validations, v.Expression, nil)
		if err != nil {
			return fmt.Errorf("spec.variables[%d]: %w", i, err)
		}
		p.variables = append(p.variables, celProgram{v.Name, program})
	}
	for i, v := range spec.Validations {
		rule := celRule{message: v.Message}
		if rule.check, err = compileCEL(env.validations, v.Expression, cel.BoolType); err != nil {
			return fmt.Errorf("spec.validations[%d].expression: %w", i, err)
		}
		if v.MessageExpression != "" {
			if rule.text, err = compileCEL(env.validations, v.MessageExpression, cel.StringType); err != nil {
				return fmt.Errorf("spec.validations[%d].messageExpression: %w", i, err)
			}
		}
		p.validations = append(p.validations, rule)
	}
	return nil
}

func newImageMatcher(from imageReference) (*imageMatcher, error) {
	switch {
	case from.Glob != "" && from.Expression != "":
		return nil, errors.New("give glob or expression, not both")
	case from.Glob != "":
		re, err := globRegexp(from.Glob)
		return &imageMatcher{glob: re}, err
	}
	env, err := cel.NewEnv(append(celLimits(), cel.Variable("ref", cel.StringType))...)
	if err != nil {
		return nil, err
	}
	program, err := compileCEL(env, from.Expression, cel.BoolType)
	return &imageMatcher{expression: program}, err
}

// globRegexp reads a glob of Kyverno: * is any text, ? one character, {a,b} one of two.
func globRegexp(glob string) (*regexp.Regexp, error) {
	if len(glob) > maxGlobBytes {
		return nil, fmt.Errorf("the glob is longer than %d bytes", maxGlobBytes)
	}
	var re strings.Builder
	depth := 0
	for _, r := range glob {
		switch {
		case r == '*':
			re.WriteString(`.*`)
		case r == '?':
			re.WriteString(`.`)
		case r == '{' && depth == 0:
			re.WriteString(`(?:`)
			depth++
		case r == '}' && depth == 1:
			re.WriteString(`)`)
			depth--
		case r == ',' && depth == 1:
			re.WriteString(`|`)
		case strings.ContainsRune(`[]{}\`, r):
			return nil, fmt.Errorf("glob %q: %q is not supported here", glob, r)
		default:
			re.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	if depth != 0 {
		return nil, fmt.Errorf("glob %q: { without }", glob)
	}
	return regexp.Compile(`^(?s:` + re.String() + `)$`)
}

// fits takes an expression that fails for one that fits: then the validations are asked.
func (m *imageMatcher) fits(names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		if m.glob != nil {
			return m.glob.MatchString(name)
		}
		out, _, err := m.expression.Eval(map[string]any{"ref": name})
		return err != nil || out.Value() == true
	})
}

func (p *validatingPolicy) Name() string { return p.name }
func (p *validatingPolicy) Mode() string { return p.mode }

func (p *validatingPolicy) Applies(s *Subject) bool {
	names := imageForms(s.Image).all
	if len(p.images) > 0 && !slices.ContainsFunc(p.images, func(m imageMatcher) bool { return m.fits(names) }) {
		return false
	}
	if s.Resource == "" {
		return true
	}
	if p.namespace != "" && p.namespace != s.Namespace || !p.match.fits(s) {
		return false
	}
	object, err := objectOf(s)
	if err != nil {
		return true // validations cannot be evaluated either, and refuse
	}
	for _, c := range p.conditions {
		if out, _, err := c.program.Eval(map[string]any{"object": object}); err == nil && out.Value() == false {
			return false
		}
	}
	return true
}

// objectOf is what expressions see of the object: what a Subject has of it.
func objectOf(s *Subject) (map[string]any, error) {
	object := map[string]any{"apiVersion": s.APIVersion, "kind": s.Kind}
	for name, raw := range map[string][]byte{"metadata": s.Metadata, "spec": s.Spec} {
		if len(raw) == 0 {
			continue
		}
		var value any
		if err := json.Unmarshal(raw, &value); err != nil {
			return nil, fmt.Errorf("reading the object's %s: %w", name, err)
		}
		object[name] = value
	}
	return object, nil
}

// Decide evaluates the validations. Where several attestations of one type are verified, they have to hold with each.
func (p *validatingPolicy) Decide(ctx context.Context, s *Subject, e Evidence) Outcome {
	out := Outcome{Policy: p.name, Mode: p.mode}
	if p.pinned && !strings.Contains(s.Image.Reference, "@") {
		out.Reason, out.Message = ReasonNoDigest, "the reference has no digest, and the policy neither adds one nor does without"
		return out
	}
	object, err := objectOf(s)
	if err != nil {
		out.Reason, out.Message = verify.ReasonPolicyDenied, oneLine(err)
		return out
	}
	run := &evaluation{ctx: ctx, policy: p, subject: s, evidence: e, object: object, memo: map[string]held{}, payloads: map[string][]*proven{}}
	failure := run.validate()
	for failure == nil && run.more {
		run.round++
		failure = run.validate()
	}
	out.Checks = run.checks
	if failure == nil && p.required && !run.verified {
		failure = errors.New("no signature or attestation of the image was verified, which the policy requires")
	}
	if out.Passed = failure == nil; out.Passed {
		return out
	}
	out.Reason, out.Message = verify.ReasonPolicyDenied, oneLine(failure)
	passed := false
	for _, c := range run.checks {
		if passed = passed || c.Passed; c.Passed {
			continue
		}
		if out.Reason == verify.ReasonPolicyDenied {
			out.Reason = c.Reason
		}
		out.Message += fmt.Sprintf("; %s by %s: %s", c.Name, c.Authority, c.Message)
	}
	if passed { // the expressions say what is missing, not one signature
		out.Reason = verify.ReasonPolicyDenied
	}
	return out
}
