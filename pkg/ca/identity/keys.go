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
	refreshAfter = 10 * time.Minute // keys older than this are fetched anew in the background
	refetchEvery = 10 * time.Second // at most this often for an unknown kid or a bad signature
	retryAfter   = 3 * time.Second  // an unreachable issuer is asked again after this
	retryRefresh = time.Minute      // a failed background refresh is tried again after this
)

// remoteKeys holds the last good keys of one issuer. It fetches when a token needs it, never
// at start; one fetch runs at a time and each ends after fetchTimeout.
type remoteKeys struct {
	source  *source
	now     func() time.Time
	observe func(error) // counts and logs fetches

	mu        sync.Mutex // guards the fields below
	last      *fetched
	fetchedAt time.Time
	triedAt   time.Time
	err       error // of the last fetch
	flight    chan struct{}
}

func (r *remoteKeys) loaded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last != nil
}

// current returns the keys, fetching them first only if there are none.
func (r *remoteKeys) current(ctx context.Context) (*fetched, error) {
	r.mu.Lock()
	last, now := r.last, r.now()
	if last != nil {
		if now.Sub(r.fetchedAt) > refreshAfter && (r.err == nil || now.Sub(r.triedAt) > retryRefresh) {
			r.start(ctx) // the old keys serve until it ends, and after it if it fails
		}
		r.mu.Unlock()
		return last, nil
	}
	if r.flight == nil && r.err != nil && now.Sub(r.triedAt) < retryAfter {
		err := r.err
		r.mu.Unlock()
		return nil, unreachable(err)
	}
	done := r.start(ctx)
	r.mu.Unlock()
	return r.wait(ctx, done)
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
	done := r.start(ctx)
	r.mu.Unlock()
	newer, err := r.wait(ctx, done)
	if err != nil || newer == have {
		return nil
	}
	return newer
}

// start begins a fetch unless one runs; r.mu is held. The fetch outlives the request that
// asked for it, since others wait for it as well.
func (r *remoteKeys) start(ctx context.Context) chan struct{} {
	if r.flight != nil {
		return r.flight
	}
	done := make(chan struct{})
	r.flight, r.triedAt = done, r.now()
	go func() { // ends after fetchTimeout at the latest
		found, err := r.source.fetch(context.WithoutCancel(ctx))
		r.mu.Lock()
		r.err = err
		if err == nil {
			// Spread, so that many issuers and replicas do not refresh together.
			r.last, r.fetchedAt = found, r.now().Add(-rand.N(refreshAfter/5))
		}
		r.flight = nil
		r.mu.Unlock()
		r.observe(err)
		close(done)
	}()
	return done
}

func (r *remoteKeys) wait(ctx context.Context, done chan struct{}) (*fetched, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-done:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		return nil, unreachable(r.err)
	}
	return r.last, nil
}

func unreachable(err error) error {
	return fault.New(fault.Unavailable, ReasonIssuerUnreachable, err, "the keys of the token's issuer could not be fetched")
}

// verify returns the payload of jws if one of the keys of have verifies it, else if a newly
// fetched one does. remote is nil for static keys.
func verify(ctx context.Context, jws *jose.JSONWebSignature, have *fetched, remote *remoteKeys) ([]byte, bool) {
	payload, ok := tryKeys(jws, have.keys)
	if !ok && remote != nil {
		if newer := remote.refetch(ctx, have); newer != nil {
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
