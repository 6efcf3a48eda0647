package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Limits of one policy of Kyverno.
const (
	maxRules     = 64
	maxEntries   = 64 // of one set of attestors
	maxNestedSet = 8
)

// clusterPolicy is kyverno.io/v1 ClusterPolicy and Policy, as far as it verifies images. Fields that cannot lower what is
// demanded are of type anything; those that could, and are not understood, have no field here and are refused.
type clusterPolicy struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   anything `json:"metadata"`
	Status     anything `json:"status"`
	Spec       struct {
		ValidationFailureAction string   `json:"validationFailureAction"`
		FailurePolicy           anything `json:"failurePolicy"` // here a failure of the evidence is always a refusal
		Background              anything `json:"background"`
		WebhookTimeoutSeconds   anything `json:"webhookTimeoutSeconds"`
		WebhookConfiguration    *struct {
			FailurePolicy  anything `json:"failurePolicy"`
			TimeoutSeconds anything `json:"timeoutSeconds"`
		} `json:"webhookConfiguration"`
		SchemaValidation anything      `json:"schemaValidation"`
		EmitWarning      anything      `json:"emitWarning"`
		ApplyRules       string        `json:"applyRules"`
		Rules            []kyvernoRule `json:"rules"`
	} `json:"spec"`
}

type kyvernoRule struct {
	Name           string               `json:"name"`
	Match          *kyvernoMatch        `json:"match"`
	Exclude        *kyvernoMatch        `json:"exclude"`
	SkipBackground anything             `json:"skipBackgroundRequests"`
	VerifyImages   []kyvernoVerifyImage `json:"verifyImages"`
}

type kyvernoVerifyImage struct {
	FailureAction       string               `json:"failureAction"`
	Type                string               `json:"type"`
	Image               string               `json:"image"`
	ImageReferences     []string             `json:"imageReferences"`
	SkipImageReferences []string             `json:"skipImageReferences"`
	Key                 string               `json:"key"`
	Roots               string               `json:"roots"`
	Subject             string               `json:"subject"`
	Issuer              string               `json:"issuer"`
	Annotations         map[string]string    `json:"annotations"`
	Attestors           []kyvernoSet         `json:"attestors"`
	Attestations        []kyvernoAttestation `json:"attestations"`
	Repository          string               `json:"repository"`
	CosignOCI11         anything             `json:"cosignOCI11"` // signatures are looked for everywhere
	MutateDigest        *bool                `json:"mutateDigest"`
	VerifyDigest        *bool                `json:"verifyDigest"`
	Required            *bool                `json:"required"`
	UseCache            anything             `json:"useCache"`
	Credentials         *struct {
		AllowInsecureRegistry bool     `json:"allowInsecureRegistry"`
		Providers             anything `json:"providers"` // access to registries is configured where it is needed
		Secrets               anything `json:"secrets"`
	} `json:"imageRegistryCredentials"`
}

type kyvernoSet struct {
	Count   *int           `json:"count"`
	Entries []kyvernoEntry `json:"entries"`
}

type kyvernoEntry struct {
	Keys               *kyvernoKeys         `json:"keys"`
	Certificates       *kyvernoCertificates `json:"certificates"`
	Keyless            *kyvernoKeyless      `json:"keyless"`
	Attestor           *kyvernoSet          `json:"attestor"`
	Annotations        map[string]string    `json:"annotations"`
	Repository         string               `json:"repository"`
	SignatureAlgorithm string               `json:"signatureAlgorithm"`
}

type kyvernoKeys struct {
	PublicKeys         string `json:"publicKeys"`
	SignatureAlgorithm string `json:"signatureAlgorithm"`
	KMS                string `json:"kms"`
	Secret             *struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"secret"`
	Rekor *kyvernoRekor `json:"rekor"`
	CTLog *kyvernoCTLog `json:"ctlog"`
}

type kyvernoCertificates struct {
	Cert      string        `json:"cert"`
	CertChain string        `json:"certChain"`
	Rekor     *kyvernoRekor `json:"rekor"`
	CTLog     *kyvernoCTLog `json:"ctlog"`
}

type kyvernoKeyless struct {
	Issuer               string            `json:"issuer"`
	IssuerRegExp         string            `json:"issuerRegExp"`
	Subject              string            `json:"subject"`
	SubjectRegExp        string            `json:"subjectRegExp"`
	Roots                string            `json:"roots"`
	AdditionalExtensions map[string]string `json:"additionalExtensions"`
	Rekor                *kyvernoRekor     `json:"rekor"`
	CTLog                *kyvernoCTLog     `json:"ctlog"`
}

type kyvernoRekor struct {
	URL        string `json:"url"`
	PubKey     string `json:"pubkey"`
	IgnoreTlog bool   `json:"ignoreTlog"`
}

type kyvernoCTLog struct {
	IgnoreSCT    bool   `json:"ignoreSCT"`
	PubKey       string `json:"pubkey"`
	TSACertChain string `json:"tsaCertChain"`
}

type kyvernoAttestation struct {
	Name          string              `json:"name"`
	PredicateType string              `json:"predicateType"`
	Type          string              `json:"type"`
	Attestors     []kyvernoSet        `json:"attestors"`
	Conditions    []kyvernoConditions `json:"conditions"`
}

// imagePolicy is a compiled ClusterPolicy or Policy.
type imagePolicy struct {
	name      string
	namespace string // of a Policy; empty for a ClusterPolicy
	mode      string
	rules     []imageRule
}

// imageRule is one item of verifyImages with the match of its rule.
type imageRule struct {
	name         string
	match        *kyvernoMatch
	exclude      *kyvernoMatch
	images, skip []wildcard
	pinned       bool // the reference itself must have a digest
	attestors    []attestorSet
	attestations []attestationRule
}

type attestorSet struct {
	required int
	entries  []attestorEntry
}

// attestorEntry is a signer or a nested set.
type attestorEntry struct {
	where  string
	signer *signer
	nested *attestorSet
}

type attestationRule struct {
	name, predicateType string
	sets                []attestorSet
	conditions          []conditionSet
}

// compileKyverno compiles a ClusterPolicy or Policy of kyverno.io/v1, or an ImageValidatingPolicy of policies.kyverno.io in any
// of its versions.
func (c *compiler) compileKyverno(d *document) (Policy, error) {
	var p Policy
	var err error
	switch group, version, _ := strings.Cut(d.apiVersion, "/"); {
	case group == "policies.kyverno.io":
		p, err = c.compileImageValidating(d, version)
	case d.apiVersion == "kyverno.io/v1" && (d.kind == "ClusterPolicy" || d.kind == "Policy"):
		p, err = c.compileClusterPolicy(d)
	default:
		err = fmt.Errorf("apiVersion %q with kind %q is not known", d.apiVersion, d.kind)
	}
	if err != nil {
		return nil, d.errorf("%w", err)
	}
	return p, nil
}

func (c *compiler) compileClusterPolicy(d *document) (*imagePolicy, error) {
	t := &clusterPolicy{}
	if err := d.decode(t); err != nil {
		return nil, err
	}
	p := &imagePolicy{name: d.name}
	if d.kind == "Policy" {
		p.name, p.namespace = d.namespace+"/"+d.name, d.namespace
	}
	switch n := len(t.Spec.Rules); {
	case d.name == "":
		return nil, errors.New("metadata.name is required")
	case d.kind == "Policy" && d.namespace == "":
		return nil, errors.New("metadata.namespace is required: a Policy speaks of its namespace alone")
	case n == 0 || n > maxRules:
		return nil, fmt.Errorf("spec.rules: 1 to %d are required, there are %d", maxRules, n)
	case t.Spec.ApplyRules != "" && t.Spec.ApplyRules != "All":
		return nil, fmt.Errorf("spec.applyRules %q is not supported: all rules are applied", t.Spec.ApplyRules)
	}
	for i := range t.Spec.Rules {
		r := &t.Spec.Rules[i]
		where := fmt.Sprintf("spec.rules[%d]", i)
		if len(r.VerifyImages) == 0 {
			return nil, fmt.Errorf("%s: %q has no verifyImages; keep what validates or changes objects in a policy of its own", where, r.Name)
		}
		if r.Match == nil {
			return nil, fmt.Errorf("%s.match is required", where)
		}
		for _, m := range []*kyvernoMatch{r.Match, r.Exclude} {
			if err := m.compile(where); err != nil {
				return nil, err
			}
		}
		for j := range r.VerifyImages {
			v := &r.VerifyImages[j]
			where := fmt.Sprintf("%s.verifyImages[%d]", where, j)
			if err := p.setMode(where, v.FailureAction, t.Spec.ValidationFailureAction); err != nil {
				return nil, err
			}
			rule, err := c.compileVerifyImage(where, v)
			if err != nil {
				return nil, err
			}
			rule.name, rule.match, rule.exclude = r.Name, r.Match, r.Exclude
			p.rules = append(p.rules, *rule)
		}
	}
	return p, nil
}

// setMode takes the action of an item of verifyImages, else that of the policy, which is Audit when absent.
func (p *imagePolicy) setMode(where, action, ofPolicy string) error {
	if action == "" {
		action = ofPolicy
	}
	var mode string
	switch strings.ToLower(action) {
	case "enforce":
		mode = ModeEnforce
	case "audit", "":
		mode = ModeAudit
	default:
		return fmt.Errorf("%s: failure action %q is neither Enforce nor Audit", where, action)
	}
	if p.mode != "" && p.mode != mode {
		return fmt.Errorf("%s: some rules are enforced and others only audited; make two policies of them", where)
	}
	p.mode = mode
	return nil
}

func (c *compiler) compileVerifyImage(where string, v *kyvernoVerifyImage) (*imageRule, error) {
	switch v.Type {
	case "", "Cosign", "SigstoreBundle":
	case "Notary":
		return nil, fmt.Errorf("%s.type: Notary signatures are not Sigstore's; verify them with Kyverno or Ratify", where)
	default:
		return nil, fmt.Errorf("%s.type %q is neither Cosign nor SigstoreBundle", where, v.Type)
	}
	if v.Credentials != nil && v.Credentials.AllowInsecureRegistry {
		return nil, fmt.Errorf("%s.imageRegistryCredentials.allowInsecureRegistry: a policy does not open registries; name the host where registries are configured", where)
	}
	v.convert()
	r := &imageRule{pinned: !isFalse(v.VerifyDigest) && isFalse(v.MutateDigest)}
	var err error
	if len(v.ImageReferences) == 0 {
		return nil, fmt.Errorf("%s.imageReferences is required", where)
	}
	if r.images, err = newWildcards(where+".imageReferences", v.ImageReferences); err != nil {
		return nil, err
	}
	if r.skip, err = newWildcards(where+".skipImageReferences", v.SkipImageReferences); err != nil {
		return nil, err
	}
	if len(v.Attestors) == 0 && len(v.Attestations) == 0 {
		return nil, fmt.Errorf("%s: attestors or attestations are required", where)
	}
	a := attestorCompiler{compiler: c, repository: v.Repository, annotations: v.Annotations}
	if r.attestors, err = a.sets(where+".attestors", v.Attestors); err != nil {
		return nil, err
	}
	for i, from := range v.Attestations {
		compiled, err := a.attestation(fmt.Sprintf("%s.attestations[%d]", where, i), from)
		if err != nil {
			return nil, err
		}
		r.attestations = append(r.attestations, *compiled)
	}
	return r, nil
}

func isFalse(b *bool) bool { return b != nil && !*b }

// convert turns the fields of old policies into attestors, as Kyverno does.
func (v *kyvernoVerifyImage) convert() {
	if v.Image != "" {
		v.ImageReferences = append(v.ImageReferences, v.Image)
	}
	if v.Key == "" && v.Issuer == "" && v.Subject == "" && v.Roots == "" {
		return
	}
	e := kyvernoEntry{Annotations: v.Annotations}
	if v.Key != "" {
		e.Keys = &kyvernoKeys{PublicKeys: v.Key}
	} else {
		e.Keyless = &kyvernoKeyless{Issuer: v.Issuer, Subject: v.Subject, Roots: v.Roots}
	}
	set := kyvernoSet{Entries: []kyvernoEntry{e}}
	if len(v.Attestations) == 0 {
		v.Attestors = append(v.Attestors, set)
	}
	for i := range v.Attestations {
		v.Attestations[i].Attestors = append(v.Attestations[i].Attestors, set)
	}
}

// attestorCompiler makes signers of one item of verifyImages.
type attestorCompiler struct {
	*compiler
	repository  string
	annotations map[string]string
}

func (c *attestorCompiler) sets(where string, sets []kyvernoSet) ([]attestorSet, error) {
	if len(sets) > maxEntries {
		return nil, fmt.Errorf("%s: %d are more than %d", where, len(sets), maxEntries)
	}
	var all []attestorSet
	for i := range sets {
		s, err := c.set(fmt.Sprintf("%s[%d]", where, i), &sets[i], 0)
		if err != nil {
			return nil, err
		}
		all = append(all, *s)
	}
	return all, nil
}

func (c *attestorCompiler) set(where string, s *kyvernoSet, depth int) (*attestorSet, error) {
	if depth == maxNestedSet {
		return nil, fmt.Errorf("%s: nested deeper than %d", where, maxNestedSet)
	}
	out := &attestorSet{}
	for i := range s.Entries {
		entries, err := c.entry(fmt.Sprintf("%s.entries[%d]", where, i), &s.Entries[i], depth)
		if err != nil {
			return nil, err
		}
		if out.entries = append(out.entries, entries...); len(out.entries) > maxEntries {
			return nil, fmt.Errorf("%s.entries: more than %d", where, maxEntries)
		}
	}
	if len(out.entries) == 0 {
		return nil, fmt.Errorf("%s.entries is required", where)
	}
	out.required = len(out.entries)
	if s.Count != nil {
		if *s.Count < 1 || *s.Count > len(out.entries) {
			return nil, fmt.Errorf("%s.count: %d is not between 1 and the number of entries, %d", where, *s.Count, len(out.entries))
		}
		out.required = *s.Count
	}
	return out, nil
}

// entry compiles one entry; several keys in one are as many entries.
func (c *attestorCompiler) entry(where string, e *kyvernoEntry, depth int) ([]attestorEntry, error) {
	kinds := 0
	for _, given := range []bool{e.Keys != nil, e.Certificates != nil, e.Keyless != nil, e.Attestor != nil} {
		if given {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, fmt.Errorf("%s: exactly one of keys, certificates, keyless and attestor is required", where)
	}
	if err := hashFollowsKey(where+".signatureAlgorithm", e.SignatureAlgorithm); err != nil {
		return nil, err
	}
	if e.Attestor != nil {
		nested, err := c.set(where+".attestor", e.Attestor, depth+1)
		if err != nil {
			return nil, err
		}
		return []attestorEntry{{where: where, nested: nested}}, nil
	}
	var signers []*signer
	var err error
	switch {
	case e.Keys != nil:
		signers, err = c.keys(where+".keys", e.Keys)
	case e.Certificates != nil:
		signers, err = c.certificates(where+".certificates", e.Certificates)
	default:
		signers, err = c.keyless(where+".keyless", e.Keyless)
	}
	if err != nil {
		return nil, err
	}
	var all []attestorEntry
	for _, s := range signers {
		s.place.Repository, s.annotations = c.repository, c.annotations
		if e.Repository != "" {
			s.place.Repository = e.Repository
		}
		if e.Annotations != nil {
			s.annotations = e.Annotations
		}
		all = append(all, attestorEntry{where: where, signer: s})
	}
	return all, nil
}

// hashFollowsKey refuses another hash than the one that belongs to the key: SHA-256 is Kyverno's default for every key, and
// what old clients sign with under all of them.
func hashFollowsKey(where, algorithm string) error {
	if algorithm != "" && algorithm != "sha256" {
		return fmt.Errorf("%s: %q is not supported: the hash follows the key, with SHA-256 beside it", where, algorithm)
	}
	return nil
}

func (c *attestorCompiler) keys(where string, k *kyvernoKeys) ([]*signer, error) {
	text, err := c.keyText(k)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if err := hashFollowsKey(where+".signatureAlgorithm", k.SignatureAlgorithm); err != nil {
		return nil, err
	}
	keys, err := splitKeys(where+".publicKeys", text)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s.publicKeys is required", where)
	}
	var signers []*signer
	for _, pem := range keys {
		s := &signer{}
		if s.policy.Key, err = verify.ParseKey([]byte(pem)); err != nil {
			return nil, fmt.Errorf("%s.publicKeys: %w", where, err)
		}
		if err := kyvernoTrustOf(k.Rekor, k.CTLog, "").complete(s, c.standard); err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		signers = append(signers, s)
	}
	return signers, nil
}

// keyText returns the keys themselves, or those of a Secret among the documents.
func (c *attestorCompiler) keyText(k *kyvernoKeys) (string, error) {
	namespace, name := "", ""
	switch {
	case k.KMS != "" || strings.Contains(k.PublicKeys, "{{"):
		return "", errors.New("keys of a KMS or in a variable are not looked up here; write the public key itself")
	case k.Secret != nil:
		namespace, name = k.Secret.Namespace, k.Secret.Name
	case strings.HasPrefix(k.PublicKeys, "k8s://"):
		namespace, name, _ = strings.Cut(strings.TrimSpace(k.PublicKeys[len("k8s://"):]), "/")
	default:
		return k.PublicKeys, nil
	}
	pem, err := c.secretKey(name, namespace)
	return string(pem), err
}

func (c *attestorCompiler) certificates(where string, k *kyvernoCertificates) ([]*signer, error) {
	key, err := certifiedKey(k.Cert, k.CertChain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	s := &signer{policy: verify.Policy{Key: key}}
	if err := kyvernoTrustOf(k.Rekor, k.CTLog, "").complete(s, c.standard); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return []*signer{s}, nil
}

func (c *attestorCompiler) keyless(where string, k *kyvernoKeyless) ([]*signer, error) {
	issuer, err := kyvernoMatcher(where, "issuer", k.Issuer, k.IssuerRegExp)
	if err != nil {
		return nil, err
	}
	subject, err := kyvernoMatcher(where, "subject", k.Subject, k.SubjectRegExp)
	if err != nil {
		return nil, err
	}
	id, err := verify.NewSearchingIdentity("", issuer, "", subject)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if id.Extensions, err = kyvernoExtensions(where+".additionalExtensions", k.AdditionalExtensions); err != nil {
		return nil, err
	}
	s := &signer{policy: verify.Policy{Identities: []verify.Identity{id}}}
	if err := kyvernoTrustOf(k.Rekor, k.CTLog, k.Roots).complete(s, c.standard); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return []*signer{s}, nil
}

// kyvernoMatcher returns the pattern of a value in which * and ? are wildcards, or the regular expression, which Kyverno reads
// unanchored. Kyverno takes an absent one for anybody; here that has to be written.
func kyvernoMatcher(where, field, value, pattern string) (string, error) {
	switch {
	case value != "" && pattern != "":
		return "", fmt.Errorf("%s: give %s or %sRegExp, not both", where, field, field)
	case strings.Contains(value, "{{") || strings.Contains(pattern, "{{"):
		return "", fmt.Errorf("%s.%s: variables are not supported", where, field)
	case value != "":
		return wildcardRegexp(value), nil
	case pattern == "":
		return "", fmt.Errorf("%s: %s or %sRegExp is required: without it anybody would do", where, field, field)
	}
	return pattern, nil
}

// kyvernoExtensions takes the extensions that Kyverno knows, by name or OID.
func kyvernoExtensions(where string, given map[string]string) (certificate.Extensions, error) {
	var x certificate.Extensions
	for name, value := range given {
		if value == "" || strings.ContainsAny(value, "*?") {
			return x, fmt.Errorf("%s.%s: wildcards are not supported in extensions, and a value is required", where, name)
		}
		switch name {
		case "oidcIssuer", "1.3.6.1.4.1.57264.1.1":
			x.Issuer = value
		case "githubWorkflowTrigger", "1.3.6.1.4.1.57264.1.2":
			x.GithubWorkflowTrigger = value
		case "githubWorkflowSha", "1.3.6.1.4.1.57264.1.3":
			x.GithubWorkflowSHA = value
		case "githubWorkflowName", "1.3.6.1.4.1.57264.1.4":
			x.GithubWorkflowName = value
		case "githubWorkflowRepository", "1.3.6.1.4.1.57264.1.5":
			x.GithubWorkflowRepository = value
		case "githubWorkflowRef", "1.3.6.1.4.1.57264.1.6":
			x.GithubWorkflowRef = value
		default:
			return x, fmt.Errorf("%s: extension %q is not known", where, name)
		}
	}
	return x, nil
}

func kyvernoTrustOf(rekor *kyvernoRekor, ct *kyvernoCTLog, roots string) *kyvernoTrust {
	t := &kyvernoTrust{roots: roots}
	if rekor != nil {
		t.rekorURL, t.rekorKey, t.ignoreTlog = rekor.URL, rekor.PubKey, rekor.IgnoreTlog
	}
	if ct != nil {
		t.ctKey, t.tsaChain, t.ignoreSCT = ct.PubKey, ct.TSACertChain, ct.IgnoreSCT
	}
	return t
}

func (c *attestorCompiler) attestation(where string, a kyvernoAttestation) (*attestationRule, error) {
	r := &attestationRule{name: a.Name, predicateType: a.Type}
	if r.predicateType == "" {
		r.predicateType = a.PredicateType
	}
	switch {
	case r.predicateType == "":
		return nil, fmt.Errorf("%s.type is required", where)
	case a.Type != "" && a.PredicateType != "" && a.Type != a.PredicateType:
		return nil, fmt.Errorf("%s: type and predicateType differ", where)
	case len(a.Attestors) == 0:
		return nil, fmt.Errorf("%s.attestors is required: without them an attestation by anybody would do", where)
	}
	if r.name == "" {
		r.name = r.predicateType
	}
	var err error
	if r.sets, err = c.sets(where+".attestors", a.Attestors); err != nil {
		return nil, err
	}
	r.conditions, err = compileConditions(where+".conditions", a.Conditions)
	return r, err
}

func (p *imagePolicy) Name() string { return p.name }
func (p *imagePolicy) Mode() string { return p.mode }

func (p *imagePolicy) Applies(s *Subject) bool {
	for i := range p.rules {
		if p.rules[i].applies(p.namespace, s) {
			return true
		}
	}
	return false
}

func (r *imageRule) applies(namespace string, s *Subject) bool {
	forms := imageForms(s.Image)
	if !anyWildcard(r.images, forms.all...) || anyWildcard(r.skip, forms.kyverno) {
		return false
	}
	if s.Resource == "" {
		return true
	}
	return (namespace == "" || namespace == s.Namespace) && r.match.fits(s) && !r.exclude.fits(s)
}

// Decide requires every rule that speaks of the image: all sets of attestors, and all attestations.
func (p *imagePolicy) Decide(ctx context.Context, s *Subject, e Evidence) Outcome {
	out := Outcome{Policy: p.name, Mode: p.mode}
	for i := range p.rules {
		r := &p.rules[i]
		if !r.applies(p.namespace, s) {
			continue
		}
		if r.pinned && !strings.Contains(s.Image.Reference, "@") {
			out.Checks = append(out.Checks, Check{Authority: r.name, Name: "digest", Reason: ReasonNoDigest,
				Message: "the reference has no digest, and the policy neither adds one nor does without"})
		}
		for j := range r.attestors {
			found, err := r.attestors[j].hold(func(signer *signer) ([]*proven, error) { return signer.signatures(ctx, s, e) })
			out.Checks = append(out.Checks, checked(r.name, "signature", "", found, err))
		}
		for j := range r.attestations {
			a := &r.attestations[j]
			for k := range a.sets {
				found, err := a.sets[k].hold(func(signer *signer) ([]*proven, error) { return a.prove(ctx, signer, s, e) })
				out.Checks = append(out.Checks, checked(r.name, a.name, a.predicateType, found, err))
			}
		}
	}
	conclude(&out)
	return out
}

// hold counts the entries that prove returns something for. Of those that fail, the first says why, or the first that is undecided if
// enough might still hold.
func (s *attestorSet) hold(prove func(*signer) ([]*proven, error)) ([]*proven, error) {
	var all []*proven
	var decided, undecided error // the first of each
	count, open := 0, 0
	for _, e := range s.entries {
		var found []*proven
		var err error
		if e.nested != nil {
			found, err = e.nested.hold(prove)
		} else {
			found, err = prove(e.signer)
		}
		if len(found) == 0 {
			if verify.ReasonOf(err).Undecided() {
				undecided = cmpOr(undecided, err)
				open++
			} else {
				decided = cmpOr(decided, err)
			}
			continue
		}
		all = append(all, found...)
		if count++; count == s.required {
			return all, nil
		}
	}
	first := cmpOr(decided, undecided)
	if count+open >= s.required {
		first = cmpOr(undecided, decided)
	}
	if s.required > 1 {
		return nil, refused(verify.ReasonOf(first), "%d of %d required attestors hold: %s", count, s.required, oneLine(first))
	}
	return nil, first
}

// prove returns the attestations by the signer, all of which have to meet the conditions, as in Kyverno: one report that is bad
// is not outweighed by another. What could not be read might be such a one.
func (a *attestationRule) prove(ctx context.Context, by *signer, s *Subject, e Evidence) ([]*proven, error) {
	found, err := by.attestations(ctx, s, e, a.predicateType)
	if len(found) == 0 || len(a.conditions) == 0 {
		return found, err
	}
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		var predicate any
		if err := json.Unmarshal(f.result.Statement.Predicate, &predicate); err != nil {
			return nil, refused(verify.ReasonPolicyDenied, "the attestation has no predicate to look at")
		}
		for i := range a.conditions {
			if err := a.conditions[i].hold(predicate); err != nil {
				return nil, refused(verify.ReasonPolicyDenied, "conditions[%d]: %s", i, oneLine(err))
			}
		}
	}
	return found, nil
}

// forms are the spellings of an image that patterns may mean.
type forms struct {
	kyverno string   // name@digest if the reference has a digest, else name:tag
	all     []string // also the others
}

// imageForms returns the ways to write an image. A tag in a reference beside a digest is a claim: it can make a policy apply,
// never skip.
func imageForms(image oci.Image) forms {
	reference, digest, pinned := strings.Cut(image.Reference, "@")
	tag := "latest"
	if i := strings.LastIndexByte(reference, ':'); i > strings.LastIndexByte(reference, '/') {
		tag = reference[i+1:]
		reference = reference[:i]
	}
	name := image.Name
	if name == "" {
		name = reference
	}
	if !pinned {
		digest = image.Digest
	}
	f := forms{kyverno: name + ":" + tag}
	if pinned {
		f.kyverno = name + "@" + digest
	}
	for _, n := range dockerSpellings(name) {
		f.all = append(f.all, n+":"+tag, n+"@"+digest, n+":"+tag+"@"+digest)
	}
	return f
}

// dockerSpellings are the ways to name a repository of the registry that images without one come from.
func dockerSpellings(name string) []string {
	names := []string{name}
	if rest, ok := strings.CutPrefix(name, "index.docker.io/"); ok {
		names = append(names, "docker.io/"+rest)
		if short, ok := strings.CutPrefix(rest, "library/"); ok {
			names = append(names, "docker.io/"+short)
		}
	}
	return names
}
