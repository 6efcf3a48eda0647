package admission

import (
	"context"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
)

const (
	// pairing is how long a tag keeps the digest that it was resolved to: long enough for the calls of one admission, all replicas
	// of one template among them, too short for a tag that is pushed and deployed to run its predecessor.
	pairing = 5 * time.Second
	tags    = 4096
)

// resolver finds the digests of tags.
type resolver struct {
	now     func() time.Time
	known   *lru.Cache[string, resolved] // safe for concurrent use, like what follows
	flights singleflight.Group
	work    *limit.Work
}

// resolved is what became of a tag.
type resolved struct {
	digest string
	err    error // why there is none, for the validating call that follows; the next mutating one tries again
	until  time.Time
}

func newResolver(o Options) (*resolver, error) {
	known, err := lru.New[string, resolved](tags)
	if err != nil {
		return nil, err
	}
	return &resolver{now: o.Now, known: known, work: limit.NewWork(o.Workers, waitingWork)}, nil
}

// digest resolves a tag with the credentials of w.
func (r *resolver) digest(ctx context.Context, ref reference, sources Sources, w *Workload) (string, error) {
	key := fmt.Sprintf("%s:%s", ref.Name, ref.Tag)
	if digest, ok := r.pinned(key); ok {
		return digest, nil
	}
	flight := fmt.Sprintf("%s %q %q %q", key, w.Namespace, w.ServiceAccount, w.PullSecrets)
	result := r.flights.DoChan(flight, func() (_ any, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fault.New(fault.Internal, "resolve_panic", fmt.Errorf("%v", p), "the tag could not be resolved")
			}
			if err != nil {
				r.known.Add(key, resolved{err: err, until: r.now().Add(pairing)})
			}
		}()
		if digest, ok := r.pinned(key); ok { // a flight ended between the look above and this one
			return digest, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flightTime)
		defer cancel()
		var digest string
		var failed error
		if err := r.work.Do(ctx, func() {
			source, err := sources.Open(ctx, w)
			if err != nil {
				failed = err
				return
			}
			image, err := source.Resolve(ctx, ref.Written)
			digest, failed = image.Digest, err
		}); err != nil {
			return nil, err
		}
		if failed != nil {
			return nil, failed
		}
		if _, err := parseReference(ref.pinned(digest)); err != nil {
			return nil, err
		}
		r.known.Add(key, resolved{digest: digest, until: r.now().Add(pairing)})
		return digest, nil
	})
	select {
	case found := <-result:
		if found.Err != nil {
			return "", found.Err
		}
		return found.Val.(string), nil
	case <-ctx.Done():
		return "", fault.New(fault.Unavailable, "deadline", ctx.Err(), "resolving %s timed out; try again", ref.Written)
	}
}

// pinned returns the digest that a tag was resolved to a moment ago.
func (r *resolver) pinned(key string) (digest string, ok bool) {
	found, ok := r.known.Get(key)
	return found.digest, ok && found.err == nil && r.now().Before(found.until)
}

// why returns the reason for which the tag has no digest, if it was asked for a moment ago.
func (r *resolver) why(ref reference) error {
	found, ok := r.known.Get(fmt.Sprintf("%s:%s", ref.Name, ref.Tag))
	if !ok || !r.now().Before(found.until) {
		return nil
	}
	return found.err
}
