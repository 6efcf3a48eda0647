package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// signer is one identity set or key with the trust under which it counts: what Teleport's and Kyverno's policies are
// made of.
type signer struct {
	verifier    *verify.Verifier
	policy      verify.Policy     // without a predicate type
	annotations map[string]string // that a signature has to carry; exact
	place       Place
}

// signatures returns the signatures of the image by s. The error says why there is none, or beside some what could not be
// read. An attestation says something about an image, good or bad, and is no signature.
func (s *signer) signatures(ctx context.Context, subject *Subject, e Evidence) ([]*proven, error) {
	return s.attestations(ctx, subject, e, oci.PredicateSignature)
}

// attestations returns the attestations of exactly this type by s, in the same way.
func (s *signer) attestations(ctx context.Context, subject *Subject, e Evidence, predicateType string) ([]*proven, error) {
	attached, unread := e.Attachments(ctx, s.place)
	if n := len(attached); n > maxCandidates {
		attached = attached[:maxCandidates]
		unread = oci.Unread(unread, refused(verify.ReasonTooLarge, "%d attachments, of which %d are looked at", n, maxCandidates))
	}
	var found []*proven
	var failed []oci.Failure
	for i := range attached {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		a := &attached[i]
		if known, other := payloadType(a); known && other != predicateType {
			continue // what it would prove is something else
		}
		result, err := oci.Verify(s.verifier, *a, subject.Image.Digest, &s.policy)
		p := &proven{attachment: a, result: result}
		if err == nil && !p.isType(predicateType) {
			continue
		}
		if err == nil {
			err = s.annotated(*a, result, subject.Image.Digest)
		}
		if err != nil {
			failed = append(failed, oci.Failure{Location: a.Location, Form: a.Form, Err: err})
			continue
		}
		found = append(found, p)
	}
	switch {
	case len(found) > 0 || len(failed) == 0 && unread != nil:
		return found, unread
	case len(failed) > 0:
		return nil, oci.Deepest(failed, unread, "signature", subject.Image.Digest)
	case predicateType != oci.PredicateSignature:
		return nil, refused(verify.ReasonPredicateMissing, "no attestation of type %s is attached", predicateType)
	case len(attached) > 0:
		return nil, refused(verify.ReasonNoSignature, "no signature is attached, but what attests something")
	}
	return nil, refused(verify.ReasonNoSignature, "no signature is attached")
}

// payloadType is the type of what an attachment would prove if it verified, which saves the work of finding out. Unknown is what
// cannot be read: verifying it says why.
func payloadType(a *oci.Attachment) (known bool, predicateType string) {
	if a.Form == oci.FormSimpleSigning {
		return true, oci.PredicateSignature
	}
	var b struct {
		MessageSignature json.RawMessage `json:"messageSignature"`
		DSSEEnvelope     *struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(a.Bundle, &b); err != nil || b.DSSEEnvelope == nil {
		return err == nil && len(b.MessageSignature) > 0, oci.PredicateSignature
	}
	var statement struct {
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(b.DSSEEnvelope.Payload, &statement); err != nil {
		return false, ""
	}
	return true, statement.PredicateType
}

// annotated requires the annotations that were signed: "optional" of a simple signing document, the annotations of the
// image's subject in a statement.
func (s *signer) annotated(a oci.Attachment, r *verify.Result, digest string) error {
	if len(s.annotations) == 0 {
		return nil
	}
	has := map[string]any{}
	switch {
	case a.Form == oci.FormSimpleSigning:
		var document struct {
			Optional map[string]any `json:"optional"`
		}
		if err := json.Unmarshal(a.Payload, &document); err != nil {
			return fault.New(fault.Invalid, string(verify.ReasonBundleMalformed), err, "reading the signed document")
		}
		has = document.Optional
	case r.Statement != nil:
		algorithm, value, _ := strings.Cut(digest, ":")
		for _, of := range r.Statement.Subject {
			if !strings.EqualFold(of.Digest[algorithm], value) || len(of.Annotations) == 0 {
				continue
			}
			if err := json.Unmarshal(of.Annotations, &has); err != nil {
				return fault.New(fault.Invalid, string(verify.ReasonBundleMalformed), err, "reading the subject's annotations")
			}
		}
	}
	for key, want := range s.annotations {
		if got, ok := has[key].(string); !ok || got != want {
			return refused(verify.ReasonPolicyDenied, "the signature's annotation %q is not %q", key, want)
		}
	}
	return nil
}

// checked turns what was proven, or why nothing was, into a check.
func checked(authority, name, predicateType string, found []*proven, err error) Check {
	c := Check{Authority: authority, Name: name, PredicateType: predicateType}
	if len(found) > 0 {
		c.Passed, c.Result = true, found[0].result
		return c
	}
	c.Reason, c.Message = verify.ReasonOf(err), oneLine(err)
	return c
}

// oneLine is an error's text for a message: errors of libraries come in several lines.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// deciding chooses, of the reasons of two failures where both had to pass, the one that decides: the first, unless only the second
// is about the image.
func deciding(first, second verify.Reason) verify.Reason {
	if first == "" || first.Undecided() && !second.Undecided() {
		return second
	}
	return first
}

// conclude sums checks up: all must have passed. The reason is that of the first that decides.
func conclude(out *Outcome) {
	out.Passed = len(out.Checks) > 0
	var failed []string
	for _, c := range out.Checks {
		if c.Passed {
			continue
		}
		out.Passed, out.Reason = false, deciding(out.Reason, c.Reason)
		what := c.Name
		if c.PredicateType != "" && c.PredicateType != c.Name {
			what += " (" + c.PredicateType + ")"
		}
		failed = append(failed, fmt.Sprintf("%s: %s", what, c.Message))
	}
	out.Message = strings.Join(failed, "; ")
}
