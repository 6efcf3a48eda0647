package policy

import (
	"crypto"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// CUEAnnotation of a ClusterImagePolicy is "strict" or "upstream".
const CUEAnnotation = "attestry.dev/cue-semantics"

const (
	maxGlobs        = 256
	maxAuthorities  = 32
	maxIdentities   = 64
	maxAttestations = 32
	maxMatches      = 64
)

// The values of an authority's signatureFormat. Without one either form will do.
const (
	formatLegacy = "legacy"
	formatBundle = "bundle"
)

// cipDocument is ClusterImagePolicy v1beta1 and v1alpha1 of policy.sigstore.dev, which have the same fields.
type cipDocument struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   objectMeta `json:"metadata"`
	Spec       struct {
		Images      []cipImage     `json:"images"`
		Authorities []cipAuthority `json:"authorities"`
		Policy      *cipPolicy     `json:"policy"`
		Mode        string         `json:"mode"`
		Match       []cipMatch     `json:"match"`
	} `json:"spec"`
	Status anything `json:"status"`
}

type cipImage struct {
	Glob string `json:"glob"`
}

type cipAuthority struct {
	Name             string           `json:"name"`
	Key              *cipKey          `json:"key"`
	Keyless          *cipKeyless      `json:"keyless"`
	Static           *cipStatic       `json:"static"`
	Source           []cipSource      `json:"source"`
	CTLog            *cipLog          `json:"ctlog"`
	RFC3161Timestamp *cipTimestamp    `json:"rfc3161timestamp"`
	Attestations     []cipAttestation `json:"attestations"`
	SignatureFormat  string           `json:"signatureFormat"`
}

type cipKey struct {
	Data          string        `json:"data"`
	SecretRef     *cipSecretRef `json:"secretRef"`
	KMS           string        `json:"kms"`
	HashAlgorithm string        `json:"hashAlgorithm"`
}

type cipSecretRef struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type cipKeyless struct {
	URL               string        `json:"url"`
	Identities        []cipIdentity `json:"identities"`
	CACert            *cipKey       `json:"ca-cert"`
	TrustRootRef      string        `json:"trustRootRef"`
	InsecureIgnoreSCT bool          `json:"insecureIgnoreSCT"`
}

type cipIdentity struct {
	Issuer        string `json:"issuer"`
	IssuerRegExp  string `json:"issuerRegExp"`
	Subject       string `json:"subject"`
	SubjectRegExp string `json:"subjectRegExp"`
}

type cipStatic struct {
	Action  string `json:"action"`
	Message string `json:"message"`
}

type cipSource struct {
	OCI                  string          `json:"oci"`
	TagPrefix            string          `json:"tagPrefix"`
	SignaturePullSecrets []cipPullSecret `json:"signaturePullSecrets"`
}

type cipPullSecret struct {
	Name string `json:"name"`
}

type cipLog struct {
	URL          string `json:"url"`
	TrustRootRef string `json:"trustRootRef"`
}

type cipTimestamp struct {
	TrustRootRef string `json:"trustRootRef"`
}

type cipAttestation struct {
	Name          string     `json:"name"`
	PredicateType string     `json:"predicateType"`
	Policy        *cipPolicy `json:"policy"`
}

type cipPolicy struct {
	Type              string        `json:"type"`
	Data              string        `json:"data"`
	Remote            *cipRemote    `json:"remote"`
	ConfigMapRef      *cipConfigRef `json:"configMapRef"`
	FetchConfigFile   *bool         `json:"fetchConfigFile"`
	IncludeSpec       *bool         `json:"includeSpec"`
	IncludeObjectMeta *bool         `json:"includeObjectMeta"`
	IncludeTypeMeta   *bool         `json:"includeTypeMeta"`
}

type cipRemote struct {
	URL       string `json:"url"`
	Sha256sum string `json:"sha256sum"`
}

type cipConfigRef struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Key       string `json:"key"`
}

type cipMatch struct {
	Group    string       `json:"group"`
	Version  string       `json:"version"`
	Resource string       `json:"resource"`
	Selector *cipSelector `json:"selector"`
}

type cipSelector struct {
	MatchLabels      map[string]string `json:"matchLabels"`
	MatchExpressions []struct {
		Key      string   `json:"key"`
		Operator string   `json:"operator"`
		Values   []string `json:"values"`
	} `json:"matchExpressions"`
}

// clusterImagePolicy is a compiled ClusterImagePolicy.
type clusterImagePolicy struct {
	name, mode  string
	globs       []Glob
	match       []resourceMatch
	authorities []*authority
	program     program // of spec.policy; nil when there is none

	fetchConfigFile, includeSpec, includeObjectMeta, includeTypeMeta bool
}

type resourceMatch struct {
	group, version, resource string
	selector                 labels.Selector // nil selects everything
}

// authority is a compiled authority.
type authority struct {
	name         string
	static       *cipStatic
	place        Place
	format       string // formatLegacy, formatBundle, or empty for both
	wanted       []wantedAttestation
	signer       verify.Policy // identities or key
	alternatives []alternative
	notes        []string // what is demanded beyond upstream
}

// alternative is a trusted root and what a signature has to prove under it.
type alternative struct {
	verifier     *verify.Verifier
	requirements verify.Requirements
}

type wantedAttestation struct {
	name, predicateType string
	program             program // nil when the type is all that is asked
}

// problems collects the mistakes of one document.
type problems struct {
	doc  *document
	list []error
}

func (p *problems) add(field, format string, args ...any) {
	p.list = append(p.list, p.doc.errorf("%s: %w", field, fmt.Errorf(format, args...)))
}

// compileClusterImagePolicy checks everything that can be checked without an image: a policy that loads can be decided.
func (c *compiler) compileClusterImagePolicy(d *document) (*clusterImagePolicy, error) {
	var doc cipDocument
	if err := d.decode(&doc); err != nil {
		return nil, err
	}
	p := &problems{doc: d}
	out := &clusterImagePolicy{name: doc.Metadata.Name, mode: doc.Spec.Mode}
	spec := &doc.Spec
	switch d.apiVersion {
	case "policy.sigstore.dev/v1beta1", "policy.sigstore.dev/v1alpha1":
	default:
		p.add("apiVersion", "%q is neither policy.sigstore.dev/v1beta1 nor v1alpha1", d.apiVersion)
	}
	if out.name == "" {
		p.add("metadata.name", "is missing")
	}
	switch out.mode {
	case "":
		out.mode = ModeEnforce
	case ModeEnforce, ModeWarn:
	default:
		p.add("spec.mode", "%q is neither enforce nor warn", out.mode)
	}
	semantics := c.options.CUE
	switch s := doc.Metadata.Annotations[CUEAnnotation]; s {
	case "":
	case CUEStrict, CUEUpstream:
		semantics = s
	default:
		p.add("metadata.annotations", "%s is %q, neither strict nor upstream", CUEAnnotation, s)
	}
	counts := []struct {
		field       string
		n, min, max int
	}{
		{"spec.images", len(spec.Images), 1, maxGlobs},
		{"spec.authorities", len(spec.Authorities), 1, maxAuthorities},
		{"spec.match", len(spec.Match), 0, maxMatches},
	}
	for _, n := range counts {
		if n.n < n.min || n.n > n.max {
			p.add(n.field, "has %d entries, there must be %d to %d", n.n, n.min, n.max)
		}
	}
	if len(p.list) > 0 {
		return nil, joinLimited(p.list)
	}
	for i, image := range spec.Images {
		g, err := NewGlob(image.Glob)
		if err != nil {
			p.add(fmt.Sprintf("spec.images[%d].glob", i), "%w", err)
		}
		out.globs = append(out.globs, g)
	}
	for i := range spec.Match {
		m, err := spec.Match[i].compile()
		if err != nil {
			p.add(fmt.Sprintf("spec.match[%d]", i), "%w", err)
		}
		out.match = append(out.match, m)
	}
	names := make(map[string]bool)
	for i := range spec.Authorities {
		a := c.authority(p, fmt.Sprintf("spec.authorities[%d]", i), i, &spec.Authorities[i], semantics)
		if names[a.name] {
			p.add(fmt.Sprintf("spec.authorities[%d].name", i), "%q is taken", a.name)
		}
		names[a.name] = true
		out.authorities = append(out.authorities, a)
	}
	if s := spec.Policy; s != nil {
		out.program = c.program(p, "spec.policy", s, resultMembers, semantics)
		out.fetchConfigFile, out.includeSpec = isTrue(s.FetchConfigFile), isTrue(s.IncludeSpec)
		out.includeObjectMeta, out.includeTypeMeta = isTrue(s.IncludeObjectMeta), isTrue(s.IncludeTypeMeta)
	}
	return out, joinLimited(p.list)
}

func isTrue(b *bool) bool { return b != nil && *b }

func (m *cipMatch) compile() (resourceMatch, error) {
	out := resourceMatch{group: m.Group, version: m.Version, resource: m.Resource}
	if m.Selector == nil {
		return out, nil
	}
	if m.Resource == "" && m.Version == "" && m.Group == "" {
		return out, errors.New("a selector needs a resource")
	}
	selector := labels.NewSelector()
	add := func(key string, op selection.Operator, values []string) error {
		r, err := labels.NewRequirement(key, op, values)
		if err != nil {
			return fmt.Errorf("selector: %w", err)
		}
		selector = selector.Add(*r)
		return nil
	}
	for k, v := range m.Selector.MatchLabels {
		if err := add(k, selection.Equals, []string{v}); err != nil {
			return out, err
		}
	}
	operators := map[string]selection.Operator{
		"In": selection.In, "NotIn": selection.NotIn, "Exists": selection.Exists, "DoesNotExist": selection.DoesNotExist,
	}
	for _, e := range m.Selector.MatchExpressions {
		op, ok := operators[e.Operator]
		if !ok {
			return out, fmt.Errorf("selector: operator %q is none of In, NotIn, Exists, DoesNotExist", e.Operator)
		}
		if err := add(e.Key, op, e.Values); err != nil {
			return out, err
		}
	}
	out.selector = selector
	return out, nil
}

// authority compiles one authority; what is wrong with it goes to p.
func (c *compiler) authority(p *problems, field string, index int, in *cipAuthority, semantics string) *authority {
	out := &authority{name: in.Name, static: in.Static, format: in.SignatureFormat}
	if out.name == "" {
		out.name = fmt.Sprintf("authority-%d", index)
	}
	kinds := 0
	for _, given := range []bool{in.Key != nil, in.Keyless != nil, in.Static != nil} {
		if given {
			kinds++
		}
	}
	if kinds != 1 {
		p.add(field, "needs exactly one of key, keyless and static")
		return out
	}
	if in.Static != nil {
		c.static(p, field, in)
		return out
	}
	switch in.SignatureFormat {
	case "", formatLegacy, formatBundle:
	default:
		p.add(field+".signatureFormat", "%q is neither legacy nor bundle", in.SignatureFormat)
	}
	c.source(p, field+".source", in.Source, out)
	c.attestations(p, field+".attestations", in.Attestations, semantics, out)
	before := len(p.list)
	if in.Key != nil {
		key, err := c.publicKey(in.Key)
		if err != nil {
			p.add(field+".key", "%w", err)
			return out
		}
		out.signer.Key = key
	} else {
		c.identities(p, field+".keyless.identities", in.Keyless.Identities, out)
		checkURL(p, field+".keyless.url", in.Keyless.URL)
		if in.Keyless.URL != "" && in.Keyless.CACert != nil {
			p.add(field+".keyless", "has both url and ca-cert")
		}
	}
	if in.CTLog != nil {
		checkURL(p, field+".ctlog.url", in.CTLog.URL)
	}
	if len(p.list) > before {
		return out
	}
	if err := c.trustAuthority(in, out); err != nil {
		p.add(field, "%w", err)
	}
	return out
}

func (c *compiler) static(p *problems, field string, in *cipAuthority) {
	switch in.Static.Action {
	case "pass":
		if in.Static.Message != "" {
			p.add(field+".static.message", "is only for action fail")
		}
	case "fail":
	default:
		p.add(field+".static.action", "%q is neither pass nor fail", in.Static.Action)
	}
	for _, with := range []struct {
		name  string
		given bool
	}{
		{"attestations", len(in.Attestations) > 0}, {"source", len(in.Source) > 0}, {"ctlog", in.CTLog != nil},
		{"rfc3161timestamp", in.RFC3161Timestamp != nil}, {"signatureFormat", in.SignatureFormat != ""},
	} {
		if with.given {
			p.add(field+"."+with.name, "makes no sense beside static")
		}
	}
}

const (
	maxPullSecrets = 16
	maxSecretName  = 253 // RFC 1123 subdomain, as Kubernetes has it
)

var secretPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

var tagPrefixPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,50}$`)

func (c *compiler) source(p *problems, field string, sources []cipSource, out *authority) {
	if len(sources) == 0 {
		return
	}
	if len(sources) > 1 {
		p.add(field, "has %d entries; only one is supported", len(sources))
		return
	}
	s := sources[0]
	if s.OCI != "" {
		if _, err := name.NewRepository(s.OCI, name.StrictValidation); err != nil {
			p.add(field+"[0].oci", "%w", err)
		}
	}
	if s.TagPrefix != "" && !tagPrefixPattern.MatchString(s.TagPrefix) {
		p.add(field+"[0].tagPrefix", "%q cannot begin a tag", s.TagPrefix)
	}
	if len(s.SignaturePullSecrets) > maxPullSecrets {
		p.add(field+"[0].signaturePullSecrets", "has %d entries, at most %d are allowed", len(s.SignaturePullSecrets), maxPullSecrets)
		return
	}
	var secrets []string
	for i, secret := range s.SignaturePullSecrets {
		at := fmt.Sprintf("%s[0].signaturePullSecrets[%d].name", field, i)
		switch {
		case secret.Name == "":
			p.add(at, "is missing")
		case len(secret.Name) > maxSecretName || !secretPattern.MatchString(secret.Name):
			p.add(at, "%q cannot be the name of a secret", secret.Name)
		}
		secrets = append(secrets, secret.Name)
	}
	out.place = Place{Repository: s.OCI, TagPrefix: s.TagPrefix, PullSecrets: strings.Join(secrets, ",")}
}

func (c *compiler) attestations(p *problems, field string, list []cipAttestation, semantics string, out *authority) {
	if len(list) > maxAttestations {
		p.add(field, "has %d entries, at most %d are allowed", len(list), maxAttestations)
		return
	}
	names := make(map[string]bool)
	for i := range list {
		a := &list[i]
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case a.Name == "":
			p.add(at+".name", "is missing")
		case names[a.Name]:
			p.add(at+".name", "%q is taken", a.Name)
		}
		names[a.Name] = true
		if a.PredicateType == "" {
			p.add(at+".predicateType", "is missing")
		}
		w := wantedAttestation{name: a.Name, predicateType: sign.PredicateType(a.PredicateType)}
		if a.Policy != nil {
			for _, only := range []struct {
				name string
				b    *bool
			}{
				{"fetchConfigFile", a.Policy.FetchConfigFile}, {"includeSpec", a.Policy.IncludeSpec},
				{"includeObjectMeta", a.Policy.IncludeObjectMeta}, {"includeTypeMeta", a.Policy.IncludeTypeMeta},
			} {
				if only.b != nil {
					p.add(at+".policy."+only.name, "is only for spec.policy")
				}
			}
			w.program = c.program(p, at+".policy", a.Policy, statementMembers, semantics)
		}
		out.wanted = append(out.wanted, w)
	}
}

func (c *compiler) identities(p *problems, field string, list []cipIdentity, out *authority) {
	if n := len(list); n < 1 || n > maxIdentities {
		p.add(field, "has %d entries, there must be 1 to %d", n, maxIdentities)
		return
	}
	for i, id := range list {
		identity, err := verify.NewSearchingIdentity(id.Issuer, id.IssuerRegExp, id.Subject, id.SubjectRegExp)
		if err != nil {
			p.add(fmt.Sprintf("%s[%d]", field, i), "%w", err)
		}
		out.signer.Identities = append(out.signer.Identities, identity)
	}
}

// publicKey reads a key that is in the documents.
func (c *compiler) publicKey(k *cipKey) (crypto.PublicKey, error) {
	pem, err := c.keyData(k)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(pem)
	if err != nil {
		return nil, err
	}
	return key, checkHash(key, k.HashAlgorithm)
}

func (c *compiler) keyData(k *cipKey) ([]byte, error) {
	given := 0
	for _, g := range []bool{k.Data != "", k.SecretRef != nil, k.KMS != ""} {
		if g {
			given++
		}
	}
	switch {
	case given != 1:
		return nil, errors.New("needs exactly one of data, secretRef and kms")
	case k.KMS != "":
		return nil, fmt.Errorf("kms %q is not asked here: put the public key into data", k.KMS)
	case k.SecretRef != nil:
		if ns := k.SecretRef.Namespace; ns != "" && ns != c.options.Namespace {
			return nil, fmt.Errorf("secretRef.namespace %q is not %q, where the controller's secrets are", ns, c.options.Namespace)
		}
		return c.secretKey(k.SecretRef.Name, k.SecretRef.Namespace)
	}
	return []byte(k.Data), nil
}

// program compiles the policy that a document holds or names.
func (c *compiler) program(p *problems, field string, in *cipPolicy, members []string, semantics string) program {
	if in.Type != languageCUE && in.Type != languageRego {
		p.add(field+".type", "%q is neither cue nor rego", in.Type)
		return nil
	}
	source, err := c.programSource(in)
	if err != nil {
		p.add(field, "%w", err)
		return nil
	}
	compiled, err := newProgram(in.Type, source, members, semantics)
	if err != nil {
		p.add(field, "%w", err)
		return nil
	}
	return compiled
}

func (c *compiler) programSource(in *cipPolicy) (string, error) {
	given := 0
	for _, g := range []bool{in.Data != "", in.ConfigMapRef != nil, in.Remote != nil} {
		if g {
			given++
		}
	}
	switch {
	case given != 1:
		return "", errors.New("needs exactly one of data, configMapRef and remote")
	case in.ConfigMapRef != nil:
		if in.ConfigMapRef.Name == "" || in.ConfigMapRef.Key == "" {
			return "", errors.New("configMapRef needs name and key")
		}
		return c.configValue(in.ConfigMapRef.Name, in.ConfigMapRef.Namespace, in.ConfigMapRef.Key)
	case in.Remote != nil:
		u, err := url.Parse(in.Remote.URL)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return "", fmt.Errorf("remote.url %q is not https", in.Remote.URL)
		}
		if !regexp.MustCompile(`^[0-9A-Fa-f]{64}$`).MatchString(in.Remote.Sha256sum) {
			return "", errors.New("remote.sha256sum is not 64 hex digits")
		}
		if source, ok := c.configWithSum(in.Remote.Sha256sum); ok {
			return source, nil
		}
		return "", fmt.Errorf("remote %s is not fetched here: give its content, with the SHA-256 that sha256sum says, as a value of a ConfigMap beside the policy", in.Remote.URL)
	}
	return in.Data, nil
}

func checkURL(p *problems, field, s string) {
	if s == "" {
		return
	}
	if u, err := url.Parse(s); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		p.add(field, "%q is not an http or https URL", s)
	}
}

func (p *clusterImagePolicy) Name() string { return p.name }
func (p *clusterImagePolicy) Mode() string { return p.mode }

// Applies compares match and globs as policy-controller does: group and resource exactly, the version exactly or by "*".
func (p *clusterImagePolicy) Applies(s *Subject) bool {
	if s.Resource != "" && len(p.match) > 0 && !slices.ContainsFunc(p.match, func(m resourceMatch) bool { return m.fits(s) }) {
		return false
	}
	names := []string{s.Image.Reference, s.Image.Name}
	if s.Image.Name != "" {
		names[1] += "@" + s.Image.Digest
	}
	return slices.ContainsFunc(p.globs, func(g Glob) bool {
		return slices.ContainsFunc(names, func(n string) bool { return n != "" && g.Match(n) })
	})
}

func (m *resourceMatch) fits(s *Subject) bool {
	return m.resource == s.Resource && (m.version == s.Version || m.version == "*") && m.group == s.Group &&
		(m.selector == nil || m.selector.Matches(labels.Set(s.Labels)))
}

// describe says what an attestation of a type is to people.
func describe(predicateType string) string {
	for _, known := range []struct{ prefix, name string }{
		{oci.PredicateSignature, "signature"},
		{"https://slsa.dev/provenance/", "SLSA provenance"},
		{"https://cyclonedx.org/", "CycloneDX SBOM"},
		{"https://spdx.dev/Document", "SPDX SBOM"},
		{"https://cosign.sigstore.dev/attestation/vuln/", "vulnerability scan"},
		{"https://openvex.dev/ns", "OpenVEX statement"},
		{"https://in-toto.io/Link/", "in-toto link"},
	} {
		if strings.HasPrefix(predicateType, known.prefix) {
			return known.name
		}
	}
	return predicateType
}
