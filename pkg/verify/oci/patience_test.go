package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/verify"
)

// A registry that asks for patience is asked again while that is short, and the caller is told how long it would be.
func TestRegistriesThatAskForPatience(t *testing.T) {
	c := newContent(t)
	whole := c.handler(true)
	for _, tt := range []struct {
		name, retryAfter string
		status, times    int   // how often it asks for patience
		requests         int64 // for the first manifest
		after            time.Duration
		ok               bool
	}{
		{"twice too many requests", "0", http.StatusTooManyRequests, 2, 3, 0, true},
		{"once not ready, for a second", "1", http.StatusServiceUnavailable, 1, 2, 0, true},
		{"a date that has passed", "Thu, 01 Jan 2026 00:00:00 GMT", http.StatusServiceUnavailable, 1, 2, 0, true},
		{"no word of when", "", http.StatusBadGateway, 2, 3, 0, true},
		{"never ready", "0", http.StatusServiceUnavailable, 1 << 20, 3, 0, false},
		{"not within an hour", "3600", http.StatusTooManyRequests, 1, 1, time.Hour, false},
		{"a number that no clock has", "99999999999999999999999", http.StatusTooManyRequests, 1, 1, 24 * time.Hour, false},
		{"more than a day", "31536000", http.StatusTooManyRequests, 1, 1, 24 * time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var requests atomic.Int64
			srv, image := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if requests.Add(1) <= int64(tt.times) {
					if tt.retryAfter != "" {
						w.Header().Set("Retry-After", tt.retryAfter)
					}
					w.WriteHeader(tt.status)
					return
				}
				whole.ServeHTTP(w, r)
			}))
			began := time.Now()
			_, err := registryOf(t, srv, nil).Children(t.Context(), image)
			if got := requests.Load(); got != tt.requests {
				t.Errorf("%d requests, want %d", got, tt.requests)
			}
			down, after := IsUnavailable(err)
			if tt.ok && err != nil || !tt.ok && (verify.ReasonOf(err) != verify.ReasonRegistryUnreachable || !down || after != tt.after) {
				t.Errorf("%v, after %v, want %v", err, after, tt.after)
			}
			if took := time.Since(began); tt.retryAfter == "1" && took < time.Second {
				t.Errorf("asked again after %v", took)
			}
		})
	}
}

// A caller who has less time than a registry asks for is told at once.
func TestPatienceEndsWithTheCallersTime(t *testing.T) {
	c := newContent(t)
	var requests atomic.Int64
	srv, image := c.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.Header().Set("Retry-After", "4")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := registryOf(t, srv, nil).Children(ctx, image)
	if down, after := IsUnavailable(err); !down || after != 4*time.Second || ctx.Err() != nil || requests.Load() != 1 {
		t.Errorf("%v, after %v, %d requests, context %v", err, after, requests.Load(), ctx.Err())
	}
}

func TestWhoDoesNotAnswerIsUnreachable(t *testing.T) {
	c := newContent(t)
	whole := c.handler(true)
	for _, tt := range []struct {
		name     string
		change   func(*Options)
		requests int64
	}{
		{"a certificate of nobody we know", nil, 1},
		{"a certificate for another name", func(o *Options) { o.Named = append(o.Named, "localhost") }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := httptest.NewTLSServer(whole)
			t.Cleanup(srv.Close)
			var requests atomic.Int64
			r := registryOf(t, srv, func(o *Options) {
				o.Observe = func(string, string, int) { requests.Add(1) }
				if tt.change != nil {
					tt.change(o)
				}
			})
			_, err := r.Children(t.Context(), Image{Name: srv.Listener.Addr().String() + "/app", Digest: c.image})
			if down, _ := IsUnavailable(err); !down || requests.Load() != tt.requests {
				t.Errorf("%v after %d requests, want %s after %d", err, requests.Load(), verify.ReasonRegistryUnreachable, tt.requests)
			}
		})
	}
	srv, image := c.serve(whole)
	srv.Close()
	if _, err := registryOf(t, srv, nil).Children(t.Context(), image); verify.ReasonOf(err) != verify.ReasonRegistryUnreachable {
		t.Errorf("nobody listens: %v", err)
	}
}

// Tokens are asked for by one at a time; whoever waits for that has no less time of its own.
func TestASlowTokenServerHoldsOnlyThoseWithTime(t *testing.T) {
	c := newContent(t)
	whole := c.handler(true)
	asked, release := make(chan struct{}, 8), make(chan struct{})
	var srv *httptest.Server
	srv, image := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			asked <- struct{}{}
			<-release
			fmt.Fprint(w, `{"token":"t"}`)
		case r.Header.Get("Authorization") != "Bearer t":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			whole.ServeHTTP(w, r)
		}
	}))
	r := registryOf(t, srv, nil)
	first := make(chan error, 1)
	go func() { // ends when the token comes
		_, err := r.Children(t.Context(), image)
		first <- err
	}()
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() { // ends with ctx
		_, err := r.Children(ctx, image)
		second <- err
	}()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("who waited for somebody else's token: %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if _, err := r.Children(t.Context(), image); err != nil || len(asked) > 0 {
		t.Errorf("%v; a token that is there was asked for again: %d", err, len(asked))
	}
}
