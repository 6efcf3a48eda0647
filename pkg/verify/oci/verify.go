package oci

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

// PredicateSignature is the predicate type of cosign 3 for a signature that says nothing but "signed". As the type that a
// policy demands it means a signature of either form, so simple signing documents fit too.
const PredicateSignature = "https://sigstore.dev/cosign/sign/v1"

// Option adds a demand to Verify.
type Option func(*demands)

type demands struct{ repository string }

// RequireReference demands that what was signed names this repository, "registry.example/team/app", beside the digest: a
// signature then does not follow an image that is copied elsewhere. Of bundles it is the name of the subject.
func RequireReference(repository string) Option {
	return func(d *demands) { d.repository = repository }
}

// Verify checks that a is a signature or attestation of the manifest digest ("sha256:…") under p. Errors carry the reasons of
// package verify. Without a predicate type in p any kind passes: demand PredicateSignature for a signature, since else an
// attestation of a failed scan would do.
func Verify(v *verify.Verifier, a Attachment, digest string, p *verify.Policy, opts ...Option) (*verify.Result, error) {
	var d demands
	for _, o := range opts {
		o(&d)
	}
	artifact, ok := verify.ParseDigest(digest)
	if !ok {
		return nil, malformed(nil, "digest %q", digest)
	}
	if a.Form == FormSimpleSigning {
		return verifySimpleSigning(v, a, digest, p, d)
	}
	if a.Form == FormEnvelope {
		artifact = artifact.AlsoStamped(a.Payload)
	}
	result, err := v.Verify(a.Bundle, artifact, p)
	if err != nil {
		return nil, err
	}
	if d.repository != "" {
		if err := subjectNamed(result.Statement, digest, d.repository); err != nil {
			return nil, err
		}
	}
	return result, nil
}

func verifySimpleSigning(v *verify.Verifier, a Attachment, digest string, p *verify.Policy, d demands) (*verify.Result, error) {
	if p != nil && p.PredicateType == PredicateSignature {
		signature := *p
		signature.PredicateType = ""
		p = &signature
	}
	result, err := v.Verify(a.Bundle, verify.FromBytes(a.Payload), p)
	if err != nil {
		return nil, err
	}
	signed, err := ParseSimpleSigning(a.Payload)
	if err != nil {
		return nil, err
	}
	if got := signed.Critical.Image.DockerManifestDigest; got != digest {
		return nil, mismatch("the signature is for %.160q, the image is %s", got, digest)
	}
	if got := signed.Critical.Identity.DockerReference; d.repository != "" && repositoryOf(got) != d.repository {
		return nil, mismatch("the signature is for the repository %.300q, not %q", got, d.repository)
	}
	return result, nil
}

// repositoryOf cuts tag and digest off a reference.
func repositoryOf(reference string) string {
	reference, _, _ = strings.Cut(reference, "@")
	if i := strings.LastIndexByte(reference, ':'); i > strings.LastIndexByte(reference, '/') {
		reference = reference[:i]
	}
	return reference
}

func subjectNamed(s *verify.Statement, digest, repository string) error {
	if s == nil {
		return mismatch("the signature names no repository, %q is demanded", repository)
	}
	alg, value, _ := strings.Cut(digest, ":")
	if slices.ContainsFunc(s.Subject, func(subject verify.Subject) bool {
		return subject.Digest[alg] == value && repositoryOf(subject.Name) == repository
	}) {
		return nil
	}
	return mismatch("no subject of the statement names the repository %q", repository)
}

func mismatch(format string, args ...any) error {
	return fault.New(fault.Denied, string(verify.ReasonSubjectMismatch), nil, format, args...)
}

// Verified is an attachment that passed.
type Verified struct {
	Attachment Attachment
	Result     *verify.Result
}

// Failure is an attachment that did not pass, or could not be read; then its location is empty.
type Failure struct {
	Location string
	Form     Form
	Err      error
}

// VerifyAll verifies each attachment by itself. passed and failed keep their order.
func VerifyAll(v *verify.Verifier, found []Attachment, digest string, p *verify.Policy, opts ...Option) (passed []Verified, failed []Failure) {
	for _, a := range found {
		result, err := Verify(v, a, digest, p, opts...)
		if err != nil {
			failed = append(failed, Failure{Location: a.Location, Form: a.Form, Err: err})
			continue
		}
		passed = append(passed, Verified{a, result})
	}
	return passed, failed
}

// depth orders reasons by how far verification came; of several failures the deepest says most.
var depth = []verify.Reason{
	verify.ReasonNoSignature, verify.ReasonFormatUnsupported, verify.ReasonBundleMalformed, verify.ReasonTooLarge,
	verify.ReasonImageUnknown, verify.ReasonKeyMismatch, verify.ReasonPredicateMissing, verify.ReasonTrustMissing,
	verify.ReasonLogUnknown, verify.ReasonEntryMismatch, verify.ReasonSETInvalid, verify.ReasonInclusionInvalid,
	verify.ReasonCheckpointInvalid, verify.ReasonNoTime, verify.ReasonTimestampInvalid, verify.ReasonCertChain,
	verify.ReasonCertExpired, verify.ReasonSCTMissing, verify.ReasonSCTInvalid, verify.ReasonSignatureInvalid,
	verify.ReasonSubjectMismatch, verify.ReasonIdentityIssuer, verify.ReasonIdentitySubject, verify.ReasonPolicyDenied,
}

func rankOf(err error) int { return slices.Index(depth, verify.ReasonOf(err).Class()) }

// Deepest returns the error that says most about why nothing passed: of the attachments that came furthest, weighed against what
// could not be read (unread, which may be nil), else that there is nothing.
func Deepest(failed []Failure, unread error, what, image string) error {
	var best error
	for _, f := range failed {
		if best == nil || rankOf(f.Err) > rankOf(best) {
			best = f.Err
		}
	}
	if best == nil && unread == nil {
		return fault.New(fault.Denied, string(verify.ReasonNoSignature), nil, "%s has no %s", image, what)
	}
	return Weigh(best, unread)
}

// Weigh returns what to say when nothing that was read passed, for refusal, and some could not be read; either may be nil. The one that
// decides comes first and gives the reason. After an outage it is unread: what would pass may be there, so nothing is decided,
// and asking again can help. What will not get better with time comes first only where the refusal is of something that was not found at all.
func Weigh(refusal, unread error) error {
	switch {
	case unread == nil:
		return refusal
	case refusal == nil:
		return unread
	case verify.ReasonOf(unread).Undecided(), rankOf(refusal) <= slices.Index(depth, verify.ReasonPredicateMissing):
		return Unread(unread, refusal)
	}
	return Unread(refusal, unread)
}

// Unread joins errors, nils left out, so that the whole has the reason of an outage if there is one among them, that which asks for
// the longest patience, else that of the first.
func Unread(problems ...error) error {
	problems = slices.DeleteFunc(slices.Clone(problems), func(err error) bool { return err == nil })
	if len(problems) == 0 {
		return nil
	}
	patience := func(err error) time.Duration {
		if down, after := IsUnavailable(err); down {
			return max(after, 1)
		}
		return 0
	}
	slices.SortStableFunc(problems, func(a, b error) int {
		return cmp.Or(cmp.Compare(patience(b), patience(a)), undecidedFirst(a, b))
	})
	var classified *fault.Error
	if first := problems[0]; !errors.As(first, &classified) { // or the next one would give the whole its reason
		problems[0] = fault.New(fault.KindOf(first), fault.ReasonOf(first), first, "not read")
	}
	joined := problems[0]
	for _, p := range problems[1:] {
		joined = fmt.Errorf("%w; %w", joined, p)
	}
	return joined
}

func undecidedFirst(a, b error) int {
	before := func(err error) int {
		if verify.ReasonOf(err).Undecided() {
			return 0
		}
		return 1
	}
	return before(a) - before(b)
}
