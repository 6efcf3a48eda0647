package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// The values of SetOptions.NoMatch.
const (
	NoMatchDeny  = "deny"
	NoMatchWarn  = "warn"
	NoMatchAllow = "allow"
)

// The modes of a policy.
const (
	ModeEnforce = "enforce"
	ModeWarn    = "warn"
	ModeAudit   = "audit"
)

// Reasons of this package beside those of verify.
const (
	ReasonNoPolicy verify.Reason = "no-matching-policy" // nobody speaks for this image
	ReasonNoDigest verify.Reason = "no-digest"          // a tag can move: only a digest can be decided about
	ReasonStatic   verify.Reason = "static-fail"        // an authority that always refuses
)

const (
	defaultParallel = 8
	maxPolicies     = 1000
)

// SetOptions say how a Set decides.
type SetOptions struct {
	// NoMatch is what becomes of an image that no policy speaks of: "deny", the default, "warn" or "allow".
	NoMatch string
	// Combine is an expression over the policies' names, see the function of that name: then it alone decides.
	Combine string
	// Parallel bounds how many policies are evaluated at a time for one image; 0 is 8.
	Parallel int
	// Version names the policies' contents and their trust: Loaded.Version.
	Version string
}

// Set decides about images by all policies together. It is immutable and safe for concurrent use.
type Set struct {
	policies []Policy
	noMatch  string
	parallel int
	version  string
}

// NewSet makes a set. Its policies keep their order, and need names that differ.
func NewSet(policies []Policy, o SetOptions) (*Set, error) {
	switch o.NoMatch {
	case "":
		o.NoMatch = NoMatchDeny
	case NoMatchDeny, NoMatchWarn, NoMatchAllow:
	default:
		return nil, fmt.Errorf("no-match %q is neither deny, warn nor allow", o.NoMatch)
	}
	if o.Parallel == 0 {
		o.Parallel = defaultParallel
	}
	if o.Parallel < 0 {
		return nil, fmt.Errorf("%d policies at a time", o.Parallel)
	}
	if len(policies) > maxPolicies {
		return nil, fmt.Errorf("%d policies, at most %d are allowed", len(policies), maxPolicies)
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n%s\n", o.Version, o.NoMatch)
	names := make(map[string]bool, len(policies))
	for _, p := range policies {
		switch p.Mode() {
		case ModeEnforce, ModeWarn, ModeAudit:
		default:
			return nil, fmt.Errorf("policy %q has mode %q", p.Name(), p.Mode())
		}
		if names[p.Name()] {
			return nil, fmt.Errorf("two policies are named %q", p.Name())
		}
		names[p.Name()] = true
		fmt.Fprintf(hash, "%q %s\n", p.Name(), p.Mode())
	}
	if o.Combine != "" {
		combined, err := Combine("combine", o.Combine, policies)
		if err != nil {
			return nil, fmt.Errorf("combine: %w", err)
		}
		policies = []Policy{combined}
		fmt.Fprintf(hash, "combine %q\n", o.Combine)
	}
	return &Set{policies: policies, noMatch: o.NoMatch, parallel: o.Parallel, version: hex.EncodeToString(hash.Sum(nil))}, nil
}

// Version changes whenever a decision could: it hashes policies, trust and no-match. Lower-case hex.
func (s *Set) Version() string { return s.version }

// Policies returns the policies in their order. The caller must not change the slice.
func (s *Set) Policies() []Policy { return s.policies }

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$|^sha384:[0-9a-f]{96}$|^sha512:[0-9a-f]{128}$`)

// Decide evaluates every policy that applies, all of them over the same evidence, fetched once from source. All that enforce have
// to pass. What is not positively allowed is refused: without a digest, when ctx ends, when a policy panics.
func (s *Set) Decide(ctx context.Context, subject *Subject, source oci.Source) Verdict {
	v := Verdict{Image: subject.Image}
	if !digestPattern.MatchString(subject.Image.Digest) {
		v.Reason, v.Message = ReasonNoDigest, fmt.Sprintf("%s is not known by its digest", subject.Image.Reference)
		return v
	}
	var policies []Policy
	for _, p := range s.policies {
		applies, err := appliesTo(p, subject)
		if err != nil {
			v.Policies = append(v.Policies, refusal(p, verify.ReasonInternal, err.Error()))
			return v
		}
		if applies {
			policies = append(policies, p)
		}
	}
	if len(policies) == 0 {
		return s.withoutPolicy(v)
	}
	// Each has its own slot, so the order is that of the policies.
	v.Policies = make([]Outcome, len(policies))
	e := newEvidence(ctx, source, subject.Image)
	var group errgroup.Group
	group.SetLimit(s.parallel)
	for i, p := range policies {
		group.Go(func() error {
			v.Policies[i] = decideOne(ctx, p, subject, e)
			return nil
		})
	}
	_ = group.Wait() // no function returns an error
	v.Allowed = true
	for i := range v.Policies {
		o := &v.Policies[i]
		switch {
		case o.Passed:
		case o.Mode == ModeEnforce:
			v.Allowed = false
		case o.Mode == ModeWarn:
			v.Warnings = append(v.Warnings, fmt.Sprintf("policy %q: %s: %s", o.Policy, o.Reason, o.Message))
		}
	}
	if err := ctx.Err(); err != nil {
		v.Allowed, v.Reason, v.Message = false, verify.ReasonOf(err), "the decision was not made in time"
	}
	return v
}

func (s *Set) withoutPolicy(v Verdict) Verdict {
	message := fmt.Sprintf("no policy speaks of %s", v.Image.Reference)
	switch s.noMatch {
	case NoMatchAllow:
		v.Allowed = true
	case NoMatchWarn:
		v.Allowed = true
		v.Warnings = []string{message}
	default:
		v.Reason, v.Message = ReasonNoPolicy, message
	}
	return v
}

func appliesTo(p Policy, subject *Subject) (applies bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = panicked(r)
		}
	}()
	return p.Applies(subject), nil
}

// decideOne never lets an outcome through that is not the policy's own word.
func decideOne(ctx context.Context, p Policy, subject *Subject, e Evidence) (o Outcome) {
	defer func() {
		if r := recover(); r != nil {
			o = refusal(p, verify.ReasonInternal, panicked(r).Error())
		}
	}()
	if err := ctx.Err(); err != nil {
		return refusal(p, verify.ReasonOf(err), err.Error())
	}
	o = p.Decide(ctx, subject, e)
	o.Policy, o.Mode = p.Name(), p.Mode()
	if err := ctx.Err(); err != nil {
		return refusal(p, verify.ReasonOf(err), err.Error())
	}
	if !o.Passed && o.Reason == "" {
		o.Reason = verify.ReasonPolicyDenied
	}
	return o
}

func refusal(p Policy, reason verify.Reason, message string) Outcome {
	return Outcome{Policy: p.Name(), Mode: p.Mode(), Reason: reason, Message: message}
}

// panicked keeps where it happened: an operator has nothing else to report.
func panicked(r any) error {
	where := ""
	for _, line := range strings.Split(string(debug.Stack()), "\n") {
		if strings.Contains(line, ".go:") && !strings.Contains(line, "runtime/") && !strings.Contains(line, "set.go:") {
			where = " at " + strings.TrimSpace(line)
			break
		}
	}
	return errors.New(clip(fmt.Sprintf("the evaluation panicked: %v%s", r, where)))
}
