package policy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const (
	maxAlternatives = 64
	maxCandidates   = 100 // attachments that one authority looks at
)

// trustAuthority sets what in verifies against. Each part comes from where the authority says: certificate authorities and CT
// logs from keyless.trustRootRef, logs from ctlog.trustRootRef, timestamp authorities from rfc3161timestamp.trustRootRef; a part
// that names none takes it from keyless, and that from the caller's trusted root.
//
// What has to be proven follows from what is there, also where policy-controller looks away (reference: verify.md, 10.3).
func (c *compiler) trustAuthority(in *cipAuthority, out *authority) error {
	if in.Key != nil && in.CTLog == nil && in.RFC3161Timestamp == nil {
		// A key is trusted by itself: without ctlog no log is asked.
		v, err := verify.New([]byte(`{"mediaType":"` + trustedRootMediaType + `"}`))
		if err != nil {
			return err
		}
		out.alternatives = []alternative{{verifier: v}}
		return nil
	}
	base := ""
	if in.Keyless != nil {
		base = in.Keyless.TrustRootRef
	}
	refs := struct{ authorities, logs, timestamps string }{base, base, base}
	if in.CTLog != nil && in.CTLog.TrustRootRef != "" {
		refs.logs = in.CTLog.TrustRootRef
	}
	if in.RFC3161Timestamp != nil && in.RFC3161Timestamp.TrustRootRef != "" {
		refs.timestamps = in.RFC3161Timestamp.TrustRootRef
	}
	// A key needs nothing but what it asks for.
	cas, logs, stamps := noTrust(), noTrust(), noTrust()
	var err error
	if in.Keyless != nil {
		if cas, err = c.authorityTrust(in, refs.authorities); err != nil {
			return err
		}
	}
	if in.Keyless != nil || in.CTLog != nil {
		if logs, err = c.trustOf(refs.logs); err != nil {
			return fmt.Errorf("ctlog: %w", err)
		}
	}
	if in.Keyless != nil || in.RFC3161Timestamp != nil {
		if stamps, err = c.trustOf(refs.timestamps); err != nil {
			return fmt.Errorf("rfc3161timestamp: %w", err)
		}
	}
	var refused error
	add := func(root *prototrust.TrustedRoot, raw []byte) error {
		r, err := requirementsOf(in, root)
		if err != nil {
			refused = err // another root may do
			return nil
		}
		if raw == nil {
			root.MediaType = trustedRootMediaType
			if raw, err = protojson.Marshal(root); err != nil {
				return err
			}
		}
		v, err := verify.New(raw)
		if err != nil {
			return err
		}
		if len(out.alternatives) == maxAlternatives {
			return fmt.Errorf("the trust roots combine to more than %d", maxAlternatives)
		}
		out.alternatives = append(out.alternatives, alternative{verifier: v, requirements: r})
		return nil
	}
	if in.Keyless != nil && in.Keyless.CACert == nil && refs.authorities == refs.logs && refs.logs == refs.timestamps {
		for i, root := range cas.roots { // as it was given: material of two is never mixed
			if err := add(root, cas.raw[i]); err != nil {
				return err
			}
		}
	} else {
		// Parts of one trust stay together: what one of its roots says is never mixed with what another says.
		apart := func(a, b trust, i, j int) bool { return a.name == b.name && a.name != "" && i != j }
		for i, ca := range cas.roots {
			for j, log := range logs.roots {
				for k, stamp := range stamps.roots {
					if apart(cas, logs, i, j) || apart(cas, stamps, i, k) || apart(logs, stamps, j, k) {
						continue
					}
					root := &prototrust.TrustedRoot{
						CertificateAuthorities: ca.GetCertificateAuthorities(), Ctlogs: ca.GetCtlogs(),
						Tlogs: log.GetTlogs(), TimestampAuthorities: stamp.GetTimestampAuthorities(),
					}
					if err := add(root, nil); err != nil {
						return err
					}
				}
			}
		}
	}
	if len(out.alternatives) == 0 {
		return refused
	}
	out.notes = strictness(in, out.alternatives)
	return nil
}

// noTrust has nothing in it.
func noTrust() trust { return trust{roots: []*prototrust.TrustedRoot{{}}} }

// authorityTrust is the trust that vouches for certificates. A ca-cert replaces the certificate authorities and keeps the CT logs.
func (c *compiler) authorityTrust(in *cipAuthority, ref string) (trust, error) {
	t, err := c.trustOf(ref)
	if err != nil {
		return trust{}, fmt.Errorf("keyless: %w", err)
	}
	if in.Keyless.CACert == nil {
		return t, nil
	}
	pem, err := c.keyData(in.Keyless.CACert)
	if err != nil {
		return trust{}, fmt.Errorf("keyless.ca-cert: %w", err)
	}
	ca, err := protoAuthority("", "", "", pem)
	if err != nil {
		return trust{}, fmt.Errorf("keyless.ca-cert: %w", err)
	}
	out := trust{name: t.name}
	for _, root := range t.roots {
		out.roots = append(out.roots, &prototrust.TrustedRoot{CertificateAuthorities: []*prototrust.CertificateAuthority{ca}, Ctlogs: root.GetCtlogs()})
	}
	return out, nil
}

// requirementsOf derives what has to be proven from what root has and what the authority says. An error means that root cannot
// serve the authority.
func requirementsOf(in *cipAuthority, root *prototrust.TrustedRoot) (verify.Requirements, error) {
	var r verify.Requirements
	keyless := in.Keyless != nil
	hasLogs, hasStamps := len(root.GetTlogs()) > 0, len(root.GetTimestampAuthorities()) > 0
	if in.CTLog != nil && !hasLogs {
		return r, errors.New("ctlog demands a log entry, and the trust has no transparency log")
	}
	if in.RFC3161Timestamp != nil {
		if !hasStamps {
			return r, errors.New("rfc3161timestamp demands a timestamp, and the trust has no timestamp authority")
		}
		r.SignedTimestamps = 1
	}
	if hasLogs && (keyless || in.CTLog != nil) {
		r.LogEntries = 1
	}
	if !keyless {
		return r, nil
	}
	if len(root.GetCertificateAuthorities()) == 0 {
		return r, errors.New("keyless: the trust has no certificate authority")
	}
	if len(root.GetCtlogs()) > 0 && !in.Keyless.InsecureIgnoreSCT {
		r.SCTs = 1
	}
	switch {
	case hasLogs:
		r.ObserverTimestamps = 1
	case hasStamps:
		r.SignedTimestamps = 1
	default:
		return r, errors.New("keyless: the trust has neither a transparency log nor a timestamp authority, so no certificate can be judged")
	}
	return r, nil
}

// strictness says what is demanded here that policy-controller does not look at for the same authority.
func strictness(in *cipAuthority, alternatives []alternative) []string {
	if in.Keyless == nil || in.Keyless.TrustRootRef == "" || alternatives[0].requirements.LogEntries == 0 {
		return nil
	}
	switch {
	case in.RFC3161Timestamp != nil && in.CTLog == nil:
		return []string{"a log entry is demanded beside the timestamp, because the trust root has a log"}
	case in.CTLog == nil:
		return []string{"a log entry is demanded, because the trust root has a log"}
	}
	return nil
}

// proven is one attachment that verified.
type proven struct {
	attachment *oci.Attachment
	result     *verify.Result
}

// candidates are the attachments that an authority may look at, each verified at most once.
type candidates struct {
	authority *authority
	digest    string
	list      []oci.Attachment
	results   []*proven
	errors    []error
}

func (a *authority) candidates(attachments []oci.Attachment, digest string) *candidates {
	c := &candidates{authority: a, digest: digest}
	for _, at := range attachments {
		switch {
		case a.format == formatBundle && at.Form != oci.FormBundle, a.format == formatLegacy && at.Form == oci.FormBundle:
			continue
		case len(c.list) == maxCandidates:
			continue
		}
		c.list = append(c.list, at)
	}
	c.results, c.errors = make([]*proven, len(c.list)), make([]error, len(c.list))
	return c
}

// verify verifies candidate i against every trusted root that would do. The error is that of the one under which it came
// furthest.
func (c *candidates) verify(i int) (*proven, error) {
	if c.results[i] != nil || c.errors[i] != nil {
		return c.results[i], c.errors[i]
	}
	var deepest error
	for _, alt := range c.authority.alternatives {
		p := c.authority.signer
		p.Requirements = &alt.requirements
		result, err := oci.Verify(alt.verifier, c.list[i], c.digest, &p)
		if err == nil {
			c.results[i] = &proven{attachment: &c.list[i], result: result}
			return c.results[i], nil
		}
		if deepest == nil || depth(err) > depth(deepest) {
			deepest = err
		}
	}
	c.errors[i] = deepest
	return nil, deepest
}

// depth orders failures by how far verification came: the last is the most telling.
func depth(err error) int {
	return slices.Index([]verify.Reason{
		verify.ReasonKeyMismatch, verify.ReasonFormatUnsupported, verify.ReasonTooLarge, verify.ReasonBundleMalformed, verify.ReasonNoSignature,
		verify.ReasonTrustMissing, verify.ReasonLogUnknown, verify.ReasonSETInvalid, verify.ReasonEntryMismatch, verify.ReasonCheckpointInvalid,
		verify.ReasonInclusionInvalid, verify.ReasonNoTime, verify.ReasonTimestampInvalid, verify.ReasonCertExpired, verify.ReasonCertChain,
		verify.ReasonSCTMissing, verify.ReasonSCTInvalid, verify.ReasonSignatureInvalid, verify.ReasonSubjectMismatch,
		verify.ReasonIdentityIssuer, verify.ReasonIdentitySubject, verify.ReasonPredicateMissing, verify.ReasonPolicyDenied,
	}, verify.ReasonOf(err).Class())
}

// claims is the type that an attachment says it has, unproven: it chooses what to try first and which failures to tell.
func claims(a *oci.Attachment) string {
	if a.Form == oci.FormSimpleSigning {
		return oci.PredicateSignature
	}
	if a.PredicateType == "" && a.Form == oci.FormBundle {
		return oci.PredicateSignature // a message signature, or annotations that say nothing
	}
	return a.PredicateType
}

// isType reports whether p is an attestation of a type; oci.PredicateSignature means a signature of any form.
func (p *proven) isType(predicateType string) bool {
	if s := p.result.Statement; s != nil {
		return s.PredicateType == predicateType
	}
	return predicateType == oci.PredicateSignature
}

// find returns the candidates of a type that verify. When there are none, the error says which demand failed.
func (c *candidates) find(ctx context.Context, predicateType string) ([]*proven, error) {
	order := make([]int, 0, len(c.list))
	for _, likely := range []bool{true, false} {
		for i := range c.list {
			if (claims(&c.list[i]) == predicateType) == likely {
				order = append(order, i)
			}
		}
	}
	var found []*proven
	var deepest error
	for _, i := range order {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		likely := claims(&c.list[i]) == predicateType
		if !likely && len(found) > 0 {
			break // the rest claim to be something else
		}
		p, err := c.verify(i)
		switch {
		case err == nil && p.isType(predicateType):
			found = append(found, p)
		case err != nil && likely && (deepest == nil || depth(err) > depth(deepest)):
			deepest = err
		}
	}
	switch {
	case len(found) > 0:
		return found, nil
	case deepest != nil:
		return nil, deepest
	case predicateType == oci.PredicateSignature:
		return nil, refused(verify.ReasonNoSignature, "none of the %d attachments is a signature", len(c.list))
	}
	return nil, refused(verify.ReasonPredicateMissing, "none of the %d attachments is a %s of type %s", len(c.list), describe(predicateType), predicateType)
}

// decide looks for all that the authority demands. found is by the name of the attestation, "" for the signature.
func (a *authority) decide(ctx context.Context, s *Subject, e Evidence) (checks []Check, found map[string][]*proven) {
	if a.static != nil {
		c := Check{Authority: a.name, Name: "static", Passed: a.static.Action == "pass"}
		if !c.Passed {
			c.Reason, c.Message = ReasonStatic, clip("disallowed by static policy: "+a.static.Message)
		}
		return []Check{c}, nil
	}
	attachments, unread := e.Attachments(ctx, a.place)
	c := a.candidates(attachments, s.Image.Digest)
	found = make(map[string][]*proven)
	wanted := a.wanted
	if len(wanted) == 0 {
		wanted = []wantedAttestation{{predicateType: oci.PredicateSignature}}
	}
	for _, w := range wanted {
		check := Check{Authority: a.name, Name: w.name, PredicateType: w.predicateType, Message: strings.Join(a.notes, "; ")}
		if w.name == "" {
			check.Name, check.PredicateType = "signature", ""
		}
		matching, err := c.find(ctx, w.predicateType)
		if err == nil {
			matching, err = w.accepted(ctx, matching, &check)
		}
		if err != nil {
			err = oci.Weigh(err, unread)
			check.Reason, check.Message = verify.ReasonOf(err), clip(oneLine(err))
		} else {
			check.Passed, check.Result = true, matching[0].result
			found[w.name] = matching
		}
		checks = append(checks, check)
	}
	return checks, found
}

// accepted are those attestations whose statement satisfies the policy; the error is the first one's.
func (w *wantedAttestation) accepted(ctx context.Context, list []*proven, check *Check) ([]*proven, error) {
	if w.program == nil {
		return list, nil
	}
	var out []*proven
	var first error
	for _, p := range list {
		if p.result.Statement == nil {
			first = cmpOr(first, refused(verify.ReasonPolicyDenied, "a signature has no statement that a policy could look at"))
			continue
		}
		input, err := json.Marshal(p.result.Statement)
		if err != nil {
			return nil, err
		}
		loosened, err := w.program.evaluate(ctx, input)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			first = cmpOr(first, refused(verify.ReasonPolicyDenied, "%s", err.Error()))
			continue
		}
		if loosened != "" && len(out) == 0 {
			check.Message = joinNotes(check.Message, "passes by upstream's CUE semantics only: "+loosened)
		}
		out = append(out, p)
	}
	if len(out) == 0 {
		return nil, first
	}
	return out, nil
}

func cmpOr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func joinNotes(a, b string) string {
	if a == "" {
		return clip(b)
	}
	return clip(a + "; " + b)
}

// Decide tries the authorities in their order. One that passes is enough, unless spec.policy looks at all of them.
func (p *clusterImagePolicy) Decide(ctx context.Context, s *Subject, e Evidence) Outcome {
	out := Outcome{Policy: p.name, Mode: p.mode}
	matches := make(map[string]authorityMatch)
	for _, a := range p.authorities {
		checks, found := a.decide(ctx, s, e)
		out.Checks = append(out.Checks, checks...)
		if slices.ContainsFunc(checks, func(c Check) bool { return !c.Passed }) {
			continue
		}
		matches[a.name] = a.match(found)
		if p.program == nil {
			break
		}
	}
	if len(matches) == 0 {
		out.Reason, out.Message = summarize(out.Checks)
		return out
	}
	out.Passed = true
	if p.program != nil {
		loosened, err := p.evaluate(ctx, s, e, matches)
		if err != nil {
			out.Passed, out.Reason, out.Message = false, verify.ReasonOf(err), clip("spec.policy: "+err.Error())
			if open, _ := summarize(out.Checks); open.Undecided() { // with that authority it might have passed
				out.Reason = open
			}
			return out
		}
		if loosened != "" {
			out.Message = clip("spec.policy passes by upstream's CUE semantics only: " + loosened)
		}
	}
	return out
}

// summarize makes one line of what failed. All checks of an authority had to pass, so its reason is that of the first that decides;
// one authority would have done, so the whole has the reason of the first, unless another is undecided.
func summarize(checks []Check) (verify.Reason, string) {
	var parts, authorities []string
	reasons := make(map[string]verify.Reason)
	for _, c := range checks {
		if c.Passed {
			continue
		}
		if reasons[c.Authority] == "" {
			authorities = append(authorities, c.Authority)
		}
		reasons[c.Authority] = deciding(reasons[c.Authority], c.Reason)
		parts = append(parts, fmt.Sprintf("%s: %s: %s: %s", c.Authority, c.What(), c.Reason, c.Message))
	}
	var reason verify.Reason
	for i, a := range authorities {
		if i == 0 || reasons[a].Undecided() && !reason.Undecided() {
			reason = reasons[a]
		}
	}
	return reason, strings.Join(parts, "; ")
}

// authorityMatch and those below are the input of spec.policy (reference: verify.md, 9.3).
type authorityMatch struct {
	Signatures   []matchedSignature              `json:"signatures,omitempty"`
	Attestations map[string][]matchedAttestation `json:"attestations,omitempty"`
	Static       bool                            `json:"static,omitempty"`
}

type matchedSignature struct {
	ID              string `json:"id,omitempty"` // SHA-256 of the bundle, lower-case hex
	Subject         string `json:"subject,omitempty"`
	Issuer          string `json:"issuer,omitempty"`
	WorkflowTrigger string `json:"githubWorkflowTrigger,omitempty"`
	WorkflowSHA     string `json:"githubWorkflowSha,omitempty"`
	WorkflowName    string `json:"githubWorkflowName,omitempty"`
	WorkflowRepo    string `json:"githubWorkflowRepo,omitempty"`
	WorkflowRef     string `json:"githubWorkflowRef,omitempty"`
}

// matchedAttestation has the members of a signature beside its own.
type matchedAttestation struct {
	matchedSignature
	PredicateType string `json:"predicateType,omitempty"`
	Digest        string `json:"digest,omitempty"`
}

func (a *authority) match(found map[string][]*proven) authorityMatch {
	if a.static != nil {
		return authorityMatch{Static: true}
	}
	var m authorityMatch
	for _, p := range found[""] {
		m.Signatures = append(m.Signatures, p.signature())
	}
	for _, w := range a.wanted {
		for _, p := range found[w.name] {
			if m.Attestations == nil {
				m.Attestations = make(map[string][]matchedAttestation)
			}
			content := p.attachment.Payload
			if len(content) == 0 {
				content = p.attachment.Bundle
			}
			sum := sha256.Sum256(content)
			m.Attestations[w.name] = append(m.Attestations[w.name], matchedAttestation{
				matchedSignature: p.signature(), PredicateType: w.predicateType, Digest: "sha256:" + hex.EncodeToString(sum[:]),
			})
		}
	}
	return m
}

func (p *proven) signature() matchedSignature {
	s := matchedSignature{ID: strings.TrimPrefix(p.result.BundleDigest, "sha256:")}
	if c := p.result.Signature.Certificate; c != nil {
		s.Subject, s.Issuer = c.SubjectAlternativeName, c.Issuer
		s.WorkflowTrigger, s.WorkflowSHA, s.WorkflowName = c.GithubWorkflowTrigger, c.GithubWorkflowSHA, c.GithubWorkflowName
		s.WorkflowRepo, s.WorkflowRef = c.GithubWorkflowRepository, c.GithubWorkflowRef
	}
	return s
}

func (p *clusterImagePolicy) evaluate(ctx context.Context, s *Subject, e Evidence, matches map[string]authorityMatch) (string, error) {
	input := struct {
		AuthorityMatches map[string]authorityMatch  `json:"authorityMatches"`
		Config           map[string]json.RawMessage `json:"config,omitempty"`
		Spec             json.RawMessage            `json:"spec,omitempty"`
		Metadata         json.RawMessage            `json:"metadata,omitempty"`
		TypeMeta         map[string]string          `json:"typemeta,omitempty"`
	}{AuthorityMatches: matches}
	if p.fetchConfigFile {
		configs, err := e.Configs(ctx)
		if err != nil {
			return "", fmt.Errorf("configuration of the image: %w", err)
		}
		input.Config = make(map[string]json.RawMessage, len(configs))
		for platform, config := range configs {
			input.Config[platform] = config
		}
	}
	if p.includeSpec {
		input.Spec = bytes.TrimSpace(s.Spec)
	}
	if p.includeObjectMeta {
		input.Metadata = bytes.TrimSpace(s.Metadata)
	}
	if p.includeTypeMeta && s.Kind != "" {
		input.TypeMeta = map[string]string{"kind": s.Kind, "apiVersion": s.APIVersion}
	}
	data, err := json.Marshal(input)
	if err != nil {
		return "", fmt.Errorf("input: %w", err)
	}
	loosened, err := p.program.evaluate(ctx, data)
	if err != nil && ctx.Err() == nil {
		return "", refused(verify.ReasonPolicyDenied, "%s", err.Error())
	}
	return loosened, err
}

// checkHash accepts the hash that the verifier uses with a key. SHA-256 also fits the larger curves, whose signatures were made
// with it before 2025.
func checkHash(key crypto.PublicKey, algorithm string) error {
	var fits []string
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		fits = []string{"sha256"}
		if size := k.Curve.Params().BitSize; size == 384 {
			fits = []string{"sha384", "sha256"}
		} else if size == 521 {
			fits = []string{"sha512", "sha256"}
		}
	case *rsa.PublicKey:
		fits = []string{"sha256"}
	case ed25519.PublicKey:
		fits = []string{"sha256", "sha384", "sha512"} // the message is signed as it is
	default:
		return fmt.Errorf("a key of type %T cannot be used", key)
	}
	if algorithm != "" && !slices.Contains(fits, algorithm) {
		return fmt.Errorf("hashAlgorithm %q does not go with this key; %s does", algorithm, strings.Join(fits, " or "))
	}
	return nil
}
