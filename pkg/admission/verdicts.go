package admission

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// Decider is a set of policies with its trust, as *policy.Set is.
type Decider interface {
	// Decide returns the verdict over one image. What it could not find out is a refusal.
	Decide(ctx context.Context, s *policy.Subject, from oci.Source) policy.Verdict
	// Version names policies and trust: another one decides otherwise.
	Version() string
}

// Reader is a Decider that says what of the object its policies look at. What they do not is no reason to decide
// about an image again. Of a Decider that is none, all is taken to be looked at.
type Reader interface {
	// Reads tells whether a verdict depends on the object's labels, and on its metadata or specification.
	Reads() (labels, object bool)
}

// MultiArch says what must be signed where an image is an index.
type MultiArch string

const (
	IndexOnly   MultiArch = "index"        // the index: its children are bound by digest
	AllChildren MultiArch = "all-children" // each image of the index
	AnyOfThem   MultiArch = "any"          // the index, or each of its images
)

const (
	flightTime  = 30 * time.Second // for one verification, whoever still waits for it: as long as a webhook's timeout can be
	waitingWork = 4096             // verifications that wait for a worker
)

// verdictCache remembers verdicts and makes each once, however many wait for it.
type verdictCache struct {
	positive, negative time.Duration
	multiArch          MultiArch
	now                func() time.Time
	metrics            *metrics
	entries            *lru.Cache[[32]byte, entry] // safe for concurrent use, like what follows
	flights            singleflight.Group
	work               *limit.Work
}

type entry struct {
	verdict policy.Verdict
	until   time.Time
}

func newVerdictCache(o Options, m *metrics) (*verdictCache, error) {
	entries, err := lru.New[[32]byte, entry](o.CacheEntries)
	if err != nil {
		return nil, fmt.Errorf("verdict cache: %w", err)
	}
	return &verdictCache{
		positive: o.PositiveTTL, negative: o.NegativeTTL, multiArch: o.MultiArch, now: o.Now, metrics: m,
		entries: entries, work: limit.NewWork(o.Workers, waitingWork),
	}, nil
}

// question is what a verdict is asked for.
type question struct {
	decider   Decider
	subject   policy.Subject // Image has Reference, Name and Digest only
	workload  *Workload
	sources   Sources
	reference reference
}

// key is what a verdict depends on. The tag is part of the reference, which globs see; the digest decides what was verified.
func (q *question) key() [32]byte {
	labels, object := true, true
	if r, ok := q.decider.(Reader); ok {
		labels, object = r.Reads()
	}
	of := struct {
		Version                              string
		Reference, Name, Digest              string
		Namespace, Group, Version2, Resource string
		Labels                               map[string]string
		Kind, APIVersion                     string
		Metadata, Spec                       []byte
	}{
		Version: q.decider.Version(), Reference: q.reference.Written, Name: q.reference.Name, Digest: q.reference.Digest,
		Namespace: q.subject.Namespace, Group: q.subject.Group, Version2: q.subject.Version, Resource: q.subject.Resource,
	}
	if labels {
		of.Labels = q.subject.Labels
	}
	if object {
		of.Kind, of.APIVersion, of.Metadata, of.Spec = q.subject.Kind, q.subject.APIVersion, q.subject.Metadata, q.subject.Spec
	}
	text, _ := json.Marshal(of) // strings and bytes: cannot fail
	return sha256.Sum256(text)
}

// flight tells verifications apart that may end differently: with other credentials a registry may answer otherwise.
func (q *question) flight(key [32]byte) string {
	text, _ := json.Marshal([]any{key[:], q.workload.ServiceAccount, q.workload.PullSecrets})
	return string(text)
}

// get returns the verdict, from memory where it is there. When ctx ends first, err says so, and the verification goes
// on for whoever asks next.
func (c *verdictCache) get(ctx context.Context, q *question) (v policy.Verdict, hit bool, err error) {
	if err := ctx.Err(); err != nil {
		return policy.Verdict{}, false, late(err)
	}
	key := q.key()
	if v, ok := c.remembered(key); ok {
		c.metrics.cache(true)
		return v, true, nil
	}
	c.metrics.cache(false)
	result := c.flights.DoChan(q.flight(key), func() (_ any, err error) {
		defer func() { // in a goroutine that is not the server's, a panic would end the process
			if p := recover(); p != nil {
				err = fault.New(fault.Internal, "verification_panic", fmt.Errorf("%v", p), "the image could not be judged")
			}
		}()
		if v, ok := c.remembered(key); ok { // a flight ended between the look above and this one
			return v, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flightTime)
		defer cancel()
		var v policy.Verdict
		var failed error
		if err := c.work.Do(ctx, func() { v, failed = c.decide(ctx, q) }); err != nil {
			return nil, err
		}
		if failed != nil {
			return nil, failed
		}
		if ttl := c.ttl(&v); ttl > 0 {
			if c.entries.Add(key, entry{v, c.now().Add(ttl)}) {
				c.metrics.evicted()
			}
		}
		return v, nil
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return policy.Verdict{}, false, r.Err
		}
		return r.Val.(policy.Verdict), false, nil
	case <-ctx.Done():
		return policy.Verdict{}, false, late(ctx.Err())
	}
}

func (c *verdictCache) remembered(key [32]byte) (policy.Verdict, bool) {
	e, ok := c.entries.Get(key)
	return e.verdict, ok && c.now().Before(e.until)
}

func late(err error) error {
	return fault.New(fault.Unavailable, "deadline", err, "verification timed out; try again: it goes on meanwhile")
}

// decide asks the policies.
func (c *verdictCache) decide(ctx context.Context, q *question) (policy.Verdict, error) {
	began := c.now()
	source, err := q.sources.Open(ctx, q.workload)
	if err != nil {
		return policy.Verdict{}, fmt.Errorf("opening the registry of %s: %w", q.reference.Name, err)
	}
	timed := newTimedSource(source, c.now)
	defer func() { c.metrics.verified(c.now().Sub(began), timed.spent()) }()
	subject := q.subject
	if subject.Image, err = timed.Resolve(ctx, q.reference.Written); err != nil {
		return policy.Verdict{}, err
	}
	if subject.Image.Digest != q.reference.Digest {
		return policy.Verdict{}, fault.New(fault.Denied, "digest_mismatch", nil, "the registry has %s for %s", subject.Image.Digest, q.reference.Written)
	}
	var whole policy.Verdict
	if c.multiArch != AllChildren {
		whole = q.decider.Decide(ctx, &subject, timed)
		if whole.Allowed || c.multiArch == IndexOnly {
			return whole, nil
		}
	}
	children, err := timed.Children(ctx, subject.Image)
	if err != nil {
		return policy.Verdict{}, err
	}
	if len(children) == 0 { // an image
		if c.multiArch == AllChildren {
			whole = q.decider.Decide(ctx, &subject, timed)
		}
		return whole, nil
	}
	return c.ofChildren(ctx, q, &subject, children, timed), nil
}

// ofChildren returns the verdict over an index that is as good as its worst image.
func (c *verdictCache) ofChildren(ctx context.Context, q *question, index *policy.Subject, children []oci.Image, from oci.Source) policy.Verdict {
	all := policy.Verdict{Image: index.Image, Allowed: true}
	for _, child := range children {
		one := *index
		one.Image = child
		one.Image.Reference = index.Image.Reference // globs are about the name that was asked for
		v := q.decider.Decide(ctx, &one, from)
		for _, o := range v.Policies {
			if !o.Passed {
				o.Message = child.Digest + ": " + o.Message
			}
			all.Policies = append(all.Policies, o)
		}
		all.Warnings = append(all.Warnings, v.Warnings...)
		all.Allowed = all.Allowed && v.Allowed
	}
	return all
}

// ttl is how long a verdict may be remembered; 0 where the cause may be gone in a moment or lies with this workload's credentials.
func (c *verdictCache) ttl(v *policy.Verdict) time.Duration {
	passed := v.Allowed
	if transient(v.Reason) {
		return 0
	}
	for _, o := range v.Policies {
		if transient(o.Reason) {
			return 0
		}
		for _, check := range o.Checks {
			if transient(check.Reason) && !o.Passed {
				return 0
			}
		}
		passed = passed && o.Passed
	}
	if passed {
		return c.positive
	}
	return c.negative
}

// transient tells whether a reason says nothing about the image.
func transient(r verify.Reason) bool {
	switch r {
	case verify.ReasonRegistryUnreachable, verify.ReasonRegistryDenied, verify.ReasonRegistryBlocked, verify.ReasonInternal, "deadline", "canceled":
		return true
	}
	return false
}
