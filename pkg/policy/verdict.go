// Package policy decides whether an image may run: ClusterImagePolicy of policy.sigstore.dev, Teleport's
// sigstore_policy, and what Kyverno's policies say of images, all by the same verifier.
package policy

import (
	"context"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Subject is an image and, in a cluster, the object that wants to run it.
type Subject struct {
	// Image is what runs. Its digest is known.
	Image oci.Image
	// Namespace, Group, Version, Resource (lower-case plural) and Labels are those of the object; Resource is empty
	// outside a cluster, where no policy is left out because of its match.
	Namespace, Group, Version, Resource string
	Labels                              map[string]string
	// Kind, Metadata and Spec are the object's, as JSON, for policies that ask for them.
	Kind, APIVersion string
	Metadata, Spec   []byte
}

// Verdict is the decision about one image.
type Verdict struct {
	Image    oci.Image `json:"image"`
	Allowed  bool      `json:"allowed"`
	Policies []Outcome `json:"policies"` // of each policy that applies; none is what no-match decides
	// Reason and Message say why the image is refused when no policy's outcome does: nobody speaks of it, it has no
	// digest, time ran out.
	Reason   verify.Reason `json:"reason,omitempty"`
	Message  string        `json:"message,omitempty"`
	Warnings []string      `json:"warnings,omitempty"`
	Children []Verdict     `json:"children,omitempty"` // of the images of an index, where those were asked about
}

// Outcome is what one policy says.
type Outcome struct {
	Policy  string        `json:"policy"`
	Mode    string        `json:"mode"` // enforce, warn or audit
	Passed  bool          `json:"passed"`
	Reason  verify.Reason `json:"reason,omitempty"`
	Message string        `json:"message,omitempty"` // for people: which of signature, provenance, SBOM… failed and why
	Checks  []Check       `json:"checks,omitempty"`
}

// Check is one thing that a policy demands: a signature, or an attestation of a type.
type Check struct {
	Authority     string         `json:"authority,omitempty"`
	Name          string         `json:"name"` // "signature" or the attestation's name
	PredicateType string         `json:"predicateType,omitempty"`
	Passed        bool           `json:"passed"`
	Reason        verify.Reason  `json:"reason,omitempty"`
	Message       string         `json:"message,omitempty"`
	Result        *verify.Result `json:"result,omitempty"` // what was proven, when it passed
}

// ChecksPassed reports whether one authority's checks all passed, so that what refuses came after them.
func (o *Outcome) ChecksPassed() bool {
	failed := make(map[string]bool)
	for _, c := range o.Checks {
		failed[c.Authority] = failed[c.Authority] || !c.Passed
	}
	for _, f := range failed {
		if !f {
			return true
		}
	}
	return false
}

// What names the check for people: "signature", "sbom (CycloneDX SBOM)".
func (c *Check) What() string {
	if kind := describe(c.PredicateType); kind != c.PredicateType {
		return c.Name + " (" + kind + ")"
	}
	return c.Name
}

// Policy is one compiled policy of any dialect.
type Policy interface {
	Name() string
	Mode() string // enforce, warn or audit
	// Applies says whether the policy speaks of this subject.
	Applies(s *Subject) bool
	// Decide evaluates the policy over what is attached to the image. A failure of the evidence is a refusal.
	Decide(ctx context.Context, s *Subject, e Evidence) Outcome
}

// Evidence is what is known of one image, fetched once for all policies.
type Evidence interface {
	// Attachments returns what is attached to the image, at the place that the policy names.
	Attachments(ctx context.Context, at Place) ([]oci.Attachment, error)
	// Configs returns the configuration of the image by platform, as oci.Source does.
	Configs(ctx context.Context) (map[string][]byte, error)
}

// Place is where a policy looks for signatures. The zero Place is beside the image.
type Place struct {
	Repository string // instead of the image's own
	TagPrefix  string // before legacy tags
	// PullSecrets are names of secrets with credentials for it, joined by commas. They are those of the namespace in which the image runs; outside
	// a cluster there are none, and the caller's own credentials count.
	PullSecrets string
}
