// Package bench measures servers that speak Sigstore's APIs, ours or anyone's, and the verifier.
//
// All requests of a run are built beforehand. Each client is one goroutine with one keep-alive
// connection that writes finished bytes and drains the answer, so that a load generator that
// shares its two cores with the server leaves them to the server.
package bench

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of one run.
const (
	MaxRequests = 1_000_000
	MaxClients  = 4096
	maxPrepared = 2 << 30 // bytes of all requests together
)

// Size is how much is asked for.
type Size struct {
	Requests int // 1 to MaxRequests
	Clients  int // requests under way at a time, 1 to MaxClients
}

// Check returns an error when s is out of bounds.
func (s Size) Check() error {
	switch {
	case s.Requests < 1 || s.Requests > MaxRequests:
		return fmt.Errorf("%d requests: between 1 and %d can be made", s.Requests, MaxRequests)
	case s.Clients < 1 || s.Clients > MaxClients:
		return fmt.Errorf("%d clients: between 1 and %d can run", s.Clients, MaxClients)
	}
	return nil
}

// Report is the result of one run. Latencies are those of successful requests.
type Report struct {
	Target     string         `json:"target"`
	N          int            `json:"n"` // requests made; fewer than asked for when the run was interrupted
	Clients    int            `json:"clients"`
	Seconds    float64        `json:"seconds"`
	Rate       float64        `json:"rate"` // successful requests per second
	P50Millis  float64        `json:"p50Millis"`
	P90Millis  float64        `json:"p90Millis"`
	P99Millis  float64        `json:"p99Millis"`
	MaxMillis  float64        `json:"maxMillis"`
	Errors     map[string]int `json:"errors"` // by HTTP status or kind; empty when all succeeded
	FirstError string         `json:"firstError,omitempty"`
	Floor      *Floor         `json:"floor,omitempty"` // target verify only
	Upstream   *Upstream      `json:"sigstoreGo,omitempty"`
}

// Upstream is what sigstore-go makes of the same bundle in the same run; target verify only, and where it verifies it.
type Upstream struct {
	Millis float64 `json:"millis"` // median
	Rate   float64 `json:"rate"`
	Times  float64 `json:"times"` // Report.Rate / Rate: how many times as fast ours is
}

// Floor is the time below which a bundle cannot be verified: its signatures alone.
type Floor struct {
	Signatures []string `json:"signatures"` // what was counted, such as "checkpoint ECDSA P-256"
	Millis     float64  `json:"millis"`     // all of them once, on one core
	Rate       float64  `json:"rate"`       // with as many clients, in the same run
	Share      float64  `json:"share"`      // Report.Rate / Rate; 1 is the floor itself
}

// Failed returns the number of requests that did not succeed.
func (r *Report) Failed() int {
	n := 0
	for _, count := range r.Errors {
		n += count
	}
	return n
}

// String is one line for people.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: n=%d clients=%d rate=%.0f/s p50=%.2f p90=%.2f p99=%.2f max=%.2f ms errors=%d",
		r.Target, r.N, r.Clients, r.Rate, r.P50Millis, r.P90Millis, r.P99Millis, r.MaxMillis, r.Failed())
	if len(r.Errors) > 0 {
		var kinds []string
		for kind, count := range r.Errors {
			kinds = append(kinds, fmt.Sprintf("%s: %d", kind, count))
		}
		sort.Strings(kinds)
		fmt.Fprintf(&b, " (%s) first=%q", strings.Join(kinds, ", "), r.FirstError)
	}
	if f := r.Floor; f != nil {
		fmt.Fprintf(&b, " floor=%.0f/s (%.3f ms: %s) share=%.0f%%", f.Rate, f.Millis, strings.Join(f.Signatures, " + "), 100*f.Share)
	}
	if u := r.Upstream; u != nil {
		fmt.Fprintf(&b, " sigstore-go=%.0f/s (%.3f ms, ours %.1f times as fast)", u.Rate, u.Millis, u.Times)
	}
	return b.String()
}

// failure is an unsuccessful request: kind is an HTTP status or a word, from a small set.
type failure struct{ kind, text string }

func (f *failure) Error() string { return f.text }

// worker is one client. Only one goroutine uses it.
type worker interface {
	do(i int) *failure // makes request i and returns when its answer is whole
	close()
}

// tally collects the outcomes of one run.
type tally struct {
	latencies []time.Duration // by request; negative: failed, 0: not made
	elapsed   time.Duration

	mu     sync.Mutex // guards what follows
	errors map[string]int
	first  string
}

func newTally(n int) *tally {
	return &tally{latencies: make([]time.Duration, n), errors: map[string]int{}}
}

// run makes requests from to to-1 with the given workers and adds its time. It ends early with ctx.
func (t *tally) run(ctx context.Context, from, to int, workers []worker) {
	var next atomic.Int64
	next.Store(int64(from))
	var wg sync.WaitGroup
	began := time.Now()
	for _, w := range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= to {
					return
				}
				start := time.Now()
				if failed := w.do(i); failed != nil {
					t.latencies[i] = -1
					t.fail(failed)
					continue
				}
				t.latencies[i] = max(time.Since(start), 1)
			}
		})
	}
	wg.Wait()
	t.elapsed += time.Since(began)
}

func (t *tally) fail(f *failure) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.errors[f.kind]++; t.first == "" {
		t.first = f.kind + ": " + f.text
	}
}

func (t *tally) report(target string, clients int) *Report {
	var good []time.Duration
	made := 0
	for _, d := range t.latencies {
		if d != 0 {
			made++
		}
		if d > 0 {
			good = append(good, d)
		}
	}
	slices.Sort(good)
	r := &Report{Target: target, N: made, Clients: clients, Seconds: t.elapsed.Seconds(), Errors: t.errors, FirstError: t.first}
	if len(good) == 0 {
		return r
	}
	r.Rate = float64(len(good)) / t.elapsed.Seconds()
	r.P50Millis, r.P90Millis, r.P99Millis = percentile(good, 0.50), percentile(good, 0.90), percentile(good, 0.99)
	r.MaxMillis = millis(good[len(good)-1])
	return r
}

// percentile returns the smallest latency, in ms, that a share p of the sorted ones does not exceed.
func percentile(sorted []time.Duration, p float64) float64 {
	k := int(math.Ceil(p*float64(len(sorted)))) - 1
	return millis(sorted[max(k, 0)])
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// prepare builds n requests on all cores.
func prepare(ctx context.Context, n int, build func() ([]byte, error)) ([][]byte, error) {
	requests := make([][]byte, n)
	var (
		next, size atomic.Int64
		wg         sync.WaitGroup
		once       sync.Once
		failed     error
	)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := func(err error) { once.Do(func() { failed = err; cancel() }) }
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				request, err := build()
				switch {
				case err != nil:
					stop(fmt.Errorf("building request %d: %w", i, err))
				case size.Add(int64(len(request))) > maxPrepared:
					stop(fmt.Errorf("%d requests need over %d bytes of memory: ask for fewer", n, maxPrepared))
				case ctx.Err() != nil:
					stop(ctx.Err())
				default:
					requests[i] = request
					continue
				}
				return
			}
		})
	}
	wg.Wait()
	return requests, failed
}
