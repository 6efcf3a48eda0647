package policy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/sigstore/sigstore-go/pkg/root"
)

// Limits of one sigstore_policy.
const (
	maxRootsOfPolicy   = 16
	maxAttestationsOf  = 32
	kindSigstorePolicy = "sigstore_policy"
)

// teleportPolicy is Teleport's kind sigstore_policy, version v1, as `tctl create` takes it.
type teleportPolicy struct {
	Kind     string `json:"kind"`
	SubKind  string `json:"sub_kind"`
	Version  string `json:"version"`
	Metadata struct {
		Name        string            `json:"name"`
		Description string            `json:"description"`
		Labels      map[string]string `json:"labels"`
		Namespace   string            `json:"namespace"`
		Revision    string            `json:"revision"`
		Expires     string            `json:"expires"`
	} `json:"metadata"`
	Spec struct {
		Keyless      *teleportKeyless `json:"keyless"`
		Key          *teleportKey     `json:"key"`
		Requirements struct {
			ArtifactSignature bool `json:"artifact_signature"`
			Attestations      []struct {
				PredicateType string `json:"predicate_type"`
			} `json:"attestations"`
		} `json:"requirements"`
	} `json:"spec"`
}

type teleportKeyless struct {
	Identities   []teleportIdentity `json:"identities"`
	TrustedRoots []string           `json:"trusted_roots"`
}

type teleportIdentity struct {
	Issuer       *string `json:"issuer"`
	IssuerRegex  *string `json:"issuer_regex"`
	Subject      *string `json:"subject"`
	SubjectRegex *string `json:"subject_regex"`
}

type teleportKey struct {
	Public string `json:"public"`
}

// sigstorePolicy is a compiled sigstore_policy. It applies to every image: which workloads it guards is said where it is
// named, in rules.
type sigstorePolicy struct {
	name       string
	signer     signer
	signature  bool     // artifact_signature
	predicates []string // attestations
}

// compileTeleport compiles one document of kind sigstore_policy. trusted is the trusted root of policies that name none, one
// or several as verify.New takes them; it may be empty.
func compileTeleport(d *document, trusted []byte) (Policy, error) {
	p, err := newSigstorePolicy(d, trusted)
	if err != nil {
		return nil, d.errorf("%w", err)
	}
	return p, nil
}

func newSigstorePolicy(d *document, trusted []byte) (*sigstorePolicy, error) {
	t := &teleportPolicy{}
	if err := d.decode(t); err != nil {
		return nil, err
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	var err error
	p := &sigstorePolicy{name: t.Metadata.Name, signature: t.Spec.Requirements.ArtifactSignature}
	switch {
	case t.Spec.Keyless != nil && t.Spec.Key != nil:
		return nil, errors.New("spec: give keyless or key, not both")
	case t.Spec.Keyless != nil:
		err = p.keyless(t.Spec.Keyless, trusted)
	case t.Spec.Key != nil:
		err = p.key(t.Spec.Key)
	default:
		return nil, errors.New("spec: keyless or key is required")
	}
	if err != nil {
		return nil, err
	}
	return p, p.require(t)
}

func (t *teleportPolicy) check() error {
	switch {
	case t.Kind != kindSigstorePolicy:
		return fmt.Errorf("kind is %q, not %s", t.Kind, kindSigstorePolicy)
	case t.Version != "v1":
		return fmt.Errorf("version is %q, not v1", t.Version)
	case t.SubKind != "":
		return fmt.Errorf("sub_kind %q is not known", t.SubKind)
	case t.Metadata.Name == "":
		return errors.New("metadata.name is required")
	case t.Metadata.Expires != "":
		return errors.New("metadata.expires is not supported: nothing here takes an expired policy away")
	}
	return nil
}

func (p *sigstorePolicy) keyless(k *teleportKeyless, trusted []byte) error {
	if n := len(k.Identities); n == 0 || n > maxIdentities {
		return fmt.Errorf("spec.keyless.identities: 1 to %d are required, there are %d", maxIdentities, n)
	}
	for i, id := range k.Identities {
		where := fmt.Sprintf("spec.keyless.identities[%d]", i)
		issuer, issuerRegexp, err := oneOf(where, "issuer", id.Issuer, id.IssuerRegex)
		if err != nil {
			return err
		}
		subject, subjectRegexp, err := oneOf(where, "subject", id.Subject, id.SubjectRegex)
		if err != nil {
			return err
		}
		identity, err := verify.NewSearchingIdentity(issuer, issuerRegexp, subject, subjectRegexp)
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		p.signer.policy.Identities = append(p.signer.policy.Identities, identity)
	}
	if len(k.TrustedRoots) > maxRootsOfPolicy {
		return fmt.Errorf("spec.keyless.trusted_roots: %d are more than %d", len(k.TrustedRoots), maxRootsOfPolicy)
	}
	for i, item := range k.TrustedRoots {
		if err := provesTime([]byte(item)); err != nil {
			return fmt.Errorf("spec.keyless.trusted_roots[%d]: %w", i, err)
		}
	}
	if len(k.TrustedRoots) > 0 {
		trusted = []byte(strings.Join(k.TrustedRoots, "\n"))
	} else if len(trusted) == 0 {
		return errors.New("spec.keyless.trusted_roots is required: no trusted root was given for policies that name none")
	}
	var err error
	if p.signer.verifier, err = verify.New(trusted); err != nil {
		return fmt.Errorf("spec.keyless.trusted_roots: %w", err)
	}
	return nil
}

// oneOf returns the exact value or the regular expression of a oneof.
func oneOf(where, field string, exact, pattern *string) (value, regexp string, err error) {
	switch {
	case exact != nil && pattern != nil:
		return "", "", fmt.Errorf("%s: give %s or %s_regex, not both", where, field, field)
	case exact != nil && *exact != "":
		return *exact, "", nil
	case pattern != nil && *pattern != "":
		return "", *pattern, nil
	}
	return "", "", fmt.Errorf("%s: %s or %s_regex is required", where, field, field)
}

// provesTime requires of each trusted root in data, one JSON object or several, that it can prove when something was signed:
// without that a short-lived certificate means nothing.
func provesTime(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	for n := 0; ; n++ {
		var raw json.RawMessage
		switch err := dec.Decode(&raw); {
		case errors.Is(err, io.EOF) && n > 0:
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("it is empty")
		case err != nil:
			return fmt.Errorf("not JSON, nor JSON lines: %w", err)
		}
		parsed, err := root.NewTrustedRootFromJSON(raw)
		if err != nil {
			return err
		}
		if len(parsed.RekorLogs()) == 0 && len(parsed.TimestampingAuthorities()) == 0 {
			return errors.New("it has neither tlogs nor timestampAuthorities, so that it proves no time of signing")
		}
	}
}

// key takes the public key alone as the proof, as upstream does: no log, no time.
func (p *sigstorePolicy) key(k *teleportKey) error {
	public, err := verify.ParseKey([]byte(k.Public))
	if err != nil {
		return fmt.Errorf("spec.key.public: %w", err)
	}
	switch public.(type) {
	case ed25519.PublicKey, *ecdsa.PublicKey, *rsa.PublicKey:
	default:
		return fmt.Errorf("spec.key.public is of type %T: Ed25519, ECDSA and RSA are known", public)
	}
	p.signer.policy.Key, p.signer.policy.Requirements = public, &verify.Requirements{}
	p.signer.verifier, err = verify.New(emptyTrustedRoot())
	return err
}

// emptyTrustedRoot trusts nobody: for signers that are a key and nothing else.
func emptyTrustedRoot() []byte {
	return []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`)
}

func (p *sigstorePolicy) require(t *teleportPolicy) error {
	r := t.Spec.Requirements
	switch n := len(r.Attestations); {
	case n == 0 && !r.ArtifactSignature:
		return errors.New("spec.requirements: artifact_signature or attestations are required")
	case n > 0 && r.ArtifactSignature:
		return errors.New("spec.requirements: give artifact_signature or attestations, not both; name two policies where both are wanted")
	case n > maxAttestationsOf:
		return fmt.Errorf("spec.requirements.attestations: %d are more than %d", n, maxAttestationsOf)
	}
	for i, a := range r.Attestations {
		if a.PredicateType == "" {
			return fmt.Errorf("spec.requirements.attestations[%d].predicate_type is required", i)
		}
		p.predicates = append(p.predicates, a.PredicateType)
	}
	return nil
}

func (p *sigstorePolicy) Name() string          { return p.name }
func (p *sigstorePolicy) Mode() string          { return ModeEnforce }
func (p *sigstorePolicy) Applies(*Subject) bool { return true }

// Decide requires that what is attached has a signature, or an attestation of each type, by the signer.
func (p *sigstorePolicy) Decide(ctx context.Context, s *Subject, e Evidence) Outcome {
	out := Outcome{Policy: p.name, Mode: p.Mode()}
	if p.signature {
		found, err := p.signer.signatures(ctx, s, e)
		out.Checks = append(out.Checks, checked("", "signature", "", found, err))
	}
	for _, predicateType := range p.predicates {
		found, err := p.signer.attestations(ctx, s, e, predicateType)
		out.Checks = append(out.Checks, checked("", predicateType, predicateType, found, err))
	}
	conclude(&out)
	return out
}
