package policy

import (
	"context"
	"fmt"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Children says what of an index of several platforms has to be allowed.
type Children string

// The values of Children.
const (
	ChildrenIndex Children = "index" // the index: it binds its images by their digests
	ChildrenAll   Children = "all"   // each of its images
	ChildrenAny   Children = "any"   // either
)

// Check refuses other values.
func (c Children) Check() error {
	switch c {
	case ChildrenIndex, ChildrenAll, ChildrenAny:
		return nil
	}
	return fmt.Errorf("%q is not index, all or any", string(c))
}

// DecideTree is Decide for an image or an index and, as which says, the images of that. Those go by the name that was asked for,
// so that the same policies speak of them.
func (s *Set) DecideTree(ctx context.Context, subject *Subject, source oci.Source, which Children) Verdict {
	if which == ChildrenIndex {
		return s.Decide(ctx, subject, source)
	}
	if err := which.Check(); err != nil {
		return Verdict{Image: subject.Image, Reason: verify.ReasonInternal, Message: err.Error()}
	}
	children, err := source.Children(ctx, subject.Image)
	if err != nil {
		return Verdict{Image: subject.Image, Reason: verify.ReasonOf(err), Message: "images of the index: " + oneLine(err)}
	}
	if len(children) == 0 { // no index
		return s.Decide(ctx, subject, source)
	}
	v := Verdict{Image: subject.Image, Policies: []Outcome{}}
	if which == ChildrenAny {
		if v = s.Decide(ctx, subject, source); v.Allowed {
			return v
		}
	}
	var refusal verify.Reason
	index, refused := v.deciding(), 0
	for _, child := range children {
		one := *subject
		one.Image = child
		one.Image.Reference, one.Image.Name = subject.Image.Reference, subject.Image.Name
		decided := s.Decide(ctx, &one, source)
		if !decided.Allowed {
			refused++
			refusal = deciding(refusal, decided.deciding())
		}
		v.Children = append(v.Children, decided)
		v.Warnings = append(v.Warnings, decided.Warnings...)
	}
	if refused == 0 {
		v.Allowed, v.Reason, v.Message = true, "", ""
		return v
	}
	if index.Undecided() { // the index would have done
		refusal = index
	}
	v.Reason, v.Message = refusal, fmt.Sprintf("%d of %d images of the index are refused", refused, len(children))
	return v
}

// deciding is the reason of what refuses v whatever else may come, else of what is undecided.
func (v *Verdict) deciding() verify.Reason {
	if len(v.Children) > 0 { // DecideTree has weighed them
		return v.Reason
	}
	var reason verify.Reason
	for _, r := range v.reasons() {
		reason = deciding(reason, r)
	}
	return reason
}

// Undecided reports whether the image is refused for no other reason than that somebody did not answer or time ran out: asked
// again, it may be allowed.
func (v *Verdict) Undecided() bool { return !v.Allowed && v.deciding().Undecided() }
