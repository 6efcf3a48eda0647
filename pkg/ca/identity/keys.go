package identity

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/attestry/attestry/internal/fault"
)

const (
	refreshAfter = 10 * time.Minute // no token is verified with older keys if the issuer answers
	refreshEarly = 6 * time.Minute  // from this age on keys are fetched anew while they still serve
	refetchEvery = 10 * time.Second // at most this often for an unknown kid or a bad signature
	retryAfter   = 3 * time.Second  // an issuer without keys is asked again after this
	retryRefresh = time.Minute      // a failed refresh is tried again after this
	staleAfter   = 24 * time.Hour   // keys of an issuer that has not answered for so long count no more
	maxWaiting   = 128              // requests that wait for the keys of one issuer; more are turned away
)

// remoteKeys holds the last good keys of one issuer. It fetches when a token needs it, never
// at start; one fetch runs at a time and each ends after fetchTimeout.
//
// A key that the issuer withdraws counts for refreshAfter at most: older keys are only used while
// the issuer does not answer, and then not past staleAfter. That needs no fetches without tokens.
type remoteKeys struct {
	source  *source
	now     func() time.Time
	observe func(error)   // counts and logs fetches
	gate    chan struct{} // bounds fetches of issuers without keys, nil for no bound

	mu        sync.Mutex // guards the fields below
	last      *fetched
	fetchedAt time.Time
	refreshAt time.Time
	triedAt   time.Time
	err       error // of the last fetch
	flight    chan struct{}
	waiting   int
}

func (r *remoteKeys) loaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last != nil
}

// current returns the keys, fetching them first if there are none or they are too old.
func (r *remoteKeys) current(ctx context.Context) (*fetched, error) {
	r.mu.Lock()
	last, now := r.last, r.now()
	age, tried := now.Sub(r.fetchedAt), now.Sub(r.triedAt)
	if last == nil || age > staleAfter {
		if r.flight == nil && r.err != nil && tried < retryAfter {
			err := r.err
			r.mu.Unlock()
			return nil, unreachable(err)
		}
		return r.await(ctx)
	}
	switch {
	case r.err != nil && tried < retryRefresh: // the issuer is down
	case age > refreshAfter && (r.err == nil || tried > refreshAfter):
		return r.await(ctx)
	case r.err != nil || now.After(r.refreshAt):
		r.start(ctx) // the old keys serve until it ends
	}
	r.mu.Unlock()
	return last, nil
}

// refetch returns newer keys than have, or nil when the issuer was asked too recently or does
// not answer.
func (r *remoteKeys) refetch(ctx context.Context, have *fetched) *fetched {
	r.mu.Lock()
	if r.last != have {
		defer r.mu.Unlock()
		return r.last
	}
	if r.flight == nil && r.now().Sub(r.triedAt) < refetchEvery {
		r.mu.Unlock()
		return nil
	}
	newer, err := r.await(ctx)
	if err != nil || newer == have {
		return nil
	}
	return newer
}

// start begins a fetch unless one runs, and returns what is closed at its end; nil when too many
// run elsewhere. r.mu is held. The fetch outlives the request that asked for it, since others wait
// for it as well.
func (r *remoteKeys) start(ctx context.Context) chan struct{} {
	if r.flight != nil {
		return r.flight
	}
	gated := r.gate != nil && r.last == nil
	if gated {
		select {
		case r.gate <- struct{}{}:
		default:
			return nil
		}
	}
	done := make(chan struct{})
	r.flight, r.triedAt = done, r.now()
	go func() { // ends after fetchTimeout at the latest
		found, err := r.source.fetch(context.WithoutCancel(ctx))
		if gated {
			<-r.gate
		}
		r.mu.Lock()
		r.err = err
		if err == nil {
			// Spread, so that many issuers and replicas do not refresh together.
			r.last, r.fetchedAt = found, r.now()
			r.refreshAt = r.fetchedAt.Add(refreshEarly + rand.N(refreshAfter-refreshEarly))
		}
		r.flight = nil
		r.mu.Unlock()
		r.observe(err)
		close(done)
	}()
	return done
}

// await returns the keys after the fetch that it starts or joins, the old ones if that fails and
// they still count. r.mu is held and given back.
func (r *remoteKeys) await(ctx context.Context) (*fetched, error) {
	// A hung issuer must not hold all requests that the server takes.
	if r.waiting >= maxWaiting {
		r.mu.Unlock()
		return nil, fault.New(fault.Overloaded, "rate_limited", nil, "too many requests wait for the keys of the token's issuer")
	}
	done := r.start(ctx)
	if done == nil {
		r.mu.Unlock()
		return nil, fault.New(fault.Overloaded, "rate_limited", nil, "too many new issuers at once")
	}
	r.waiting++
	r.mu.Unlock()
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case <-done:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
	switch {
	case err != nil:
		return nil, err
	case r.last == nil || r.now().Sub(r.fetchedAt) > staleAfter:
		return nil, unreachable(r.err)
	}
	return r.last, nil
}

func unreachable(err error) error {
	return fault.New(fault.Unavailable, ReasonIssuerUnreachable, err, "the keys of the token's issuer could not be fetched")
}

// keySource is where newer keys than those at hand can be had.
type keySource interface {
	// current returns the keys to verify with now.
	current(ctx context.Context) (*fetched, error)
	// refetch returns newer keys than have after a signature that they do not verify, nil for none.
	refetch(ctx context.Context, have *fetched) *fetched
}

// verify returns the payload of jws if one of the keys of have verifies it, else if a newly
// fetched one does.
func verify(ctx context.Context, jws *jose.JSONWebSignature, have *fetched, from keySource) ([]byte, bool) {
	payload, ok := tryKeys(jws, have.keys)
	if !ok {
		if newer := from.refetch(ctx, have); newer != nil {
			return tryKeys(jws, newer.keys)
		}
	}
	return payload, ok
}

// tryKeys goes by kid when the token names one, else through all keys.
func tryKeys(jws *jose.JSONWebSignature, keys []jose.JSONWebKey) ([]byte, bool) {
	header := jws.Signatures[0].Header
	for k := range keys {
		key := &keys[k]
		if header.KeyID != "" && key.KeyID != header.KeyID || key.Algorithm != "" && key.Algorithm != header.Algorithm {
			continue
		}
		// go-jose refuses an algorithm that does not fit the key's type.
		if payload, err := jws.Verify(key); err == nil {
			return payload, true
		}
	}
	return nil, false
}
