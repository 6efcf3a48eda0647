package ca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// signerTestEvery is how often at most a signer that has failed is tried by a readiness probe.
const signerTestEvery = time.Second

// watchedSigner measures the issuing key and remembers whether it works.
type watchedSigner struct {
	crypto.Signer
	seconds *prometheus.HistogramVec // by outcome
	failure atomic.Pointer[error]    // of the last signature, nil when it was good

	mu     sync.Mutex // guards tried
	tried  time.Time  // when a probe tried it last
	trying sync.Mutex // held during that
}

// Sign implements crypto.Signer.
func (w *watchedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	started := time.Now()
	sig, err := w.Signer.Sign(random, digest, opts)
	if err != nil {
		w.failure.Store(&err)
		w.seconds.WithLabelValues("error").Observe(time.Since(started).Seconds())
		return nil, err
	}
	if w.failure.Load() != nil {
		w.failure.Store(nil)
	}
	w.seconds.WithLabelValues("ok").Observe(time.Since(started).Seconds())
	return sig, nil
}

// ready returns nil when the last signature was good. After one that failed it makes another with
// test, now and then, so that a server that gets no requests while it is not ready becomes ready again.
func (w *watchedSigner) ready(ctx context.Context, test func() error) error {
	failure := w.failure.Load()
	if failure == nil {
		return nil
	}
	if w.due() {
		done := make(chan error, 1)
		go func() { // ends when the signer answers; only one runs
			defer w.trying.Unlock()
			done <- test()
		}()
		select {
		case err := <-done:
			if err == nil {
				return nil
			}
			failure = &err
		case <-ctx.Done():
			return errors.New("the signing key has failed, and a test signature takes too long")
		}
	}
	return fmt.Errorf("the signing key has failed: %w", *failure)
}

// due locks trying and returns true when the signer may be tried.
func (w *watchedSigner) due() bool {
	if !w.trying.TryLock() {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.tried.IsZero() && time.Since(w.tried) < signerTestEvery {
		w.trying.Unlock()
		return false
	}
	w.tried = time.Now()
	return true
}
