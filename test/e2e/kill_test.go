package e2e

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// audit is the logs' replicas and the promises they are held to.
type audit struct {
	t        *testing.T
	s        *stack
	l        *ledger
	fresh    func() []*replica // that have read nothing yet
	fsck     func()            // derives the logs from what is stored and fails the test when that is not what they say
	replicas []*replica
	lag      time.Duration // how long a log may take to show what another server acknowledged
}

func newAudit(t *testing.T, s *stack) *audit {
	t.Helper()
	a := &audit{t: t, s: s, l: newLedger(t, s), fsck: s.fsck}
	a.fresh = func() []*replica {
		return []*replica{
			newReplica(rekor1, rekor1Source{a.s.url, a.l}),
			newReplica(rekor2, tilesSource{a.s.url + "/api/v2"}),
			newReplica(ctLog, ctSource{a.s.ctBase()}),
		}
	}
	a.replicas = a.fresh()
	return a
}

// check follows every log and checks every promise since the last check.
func (a *audit) check() {
	a.t.Helper()
	strange, acks := a.l.kept()
	for _, err := range strange {
		a.t.Error(err)
	}
	for _, r := range a.replicas {
		promises := acks[r.name][r.checked:]
		var want uint64
		for _, promise := range promises {
			want = max(want, promise.size, promise.index+1)
		}
		for deadline := time.Now().Add(a.lag); ; time.Sleep(20 * time.Millisecond) {
			err := r.follow(a.t.Context())
			if errors.Is(err, errUnavailable) && time.Now().Before(deadline) {
				continue // it was just started, or its database was
			}
			if err != nil {
				a.t.Fatal(err)
			}
			lacks := slices.ContainsFunc(promises, func(p ack) bool { return p.leafHash != nil && !r.byHash[string(p.leafHash)] }) // a certificate
			if uint64(len(r.hashes)) >= want && !lacks || !time.Now().Before(deadline) {
				break
			}
		}
		for _, promise := range promises {
			if err := r.holds(promise); err != nil {
				a.t.Fatal(err)
			}
		}
		r.checked += len(promises)
	}
}

// replay reads all logs again from the first leaf, checks every promise there ever was, and what is stored.
func (a *audit) replay() {
	a.t.Helper()
	a.replicas = a.fresh()
	a.check()
	a.fsck()
}

// resubmit sends the v1 entries again whose answers were lost; each is taken or known already.
func (a *audit) resubmit() {
	a.t.Helper()
	a.l.mu.Lock()
	bodies := a.l.inFlight
	a.l.inFlight = map[string]string{}
	a.l.mu.Unlock()
	var all sync.WaitGroup
	for _, body := range bodies { // as many as the load had clients
		all.Go(func() {
			for deadline := time.Now().Add(a.lag); ; time.Sleep(20 * time.Millisecond) {
				status, answer, err := call(a.t.Context(), http.MethodPost, a.s.url+"/api/v1/log/entries", "application/json", body)
				if err == nil && status == http.StatusServiceUnavailable && time.Now().Before(deadline) {
					continue
				}
				if err != nil || status != http.StatusCreated && status != http.StatusConflict {
					a.t.Errorf("an entry sent again after the crash: %d %v %s", status, err, answer)
				}
				return
			}
		})
	}
	all.Wait()
}

// loaded runs the load for d after the first promise, then end.
func (a *audit) loaded(token string, clients int, d time.Duration, end func()) {
	a.t.Helper()
	a.under(func(ctx context.Context) { a.l.load(ctx, a.s, token, clients) }, d, end)
}

// under runs a load for d after the first promise of Rekor v1, then end.
func (a *audit) under(load func(context.Context), d time.Duration, end func()) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(a.t.Context())
	stopped := make(chan struct{})
	before := a.l.count(rekor1)
	go func() { load(ctx); close(stopped) }() // ends with ctx
	defer func() { cancel(); <-stopped }()
	eventually(a.t, "a first acknowledged entry", func() bool { return a.l.count(rekor1) > before })
	time.Sleep(d) // a random moment under load is what this is about
	end()
}

// submitters are one submission to each log.
func (a *audit) submitters(token string) map[string]func() error {
	ctx := a.t.Context()
	return map[string]func() error{
		rekor1: func() error { return a.l.submit1(ctx, a.s) },
		rekor2: func() error { return a.l.submit2(ctx, a.s) },
		ctLog:  func() error { return a.l.certificate(ctx, a.s, token) },
	}
}

func TestKilledAtRandomMomentsNothingAcknowledgedIsLost(t *testing.T) {
	kills := 4
	if long() {
		kills = 500
	}
	s := up(t)
	a := newAudit(t, s)
	var slowest time.Duration
	done := 0
	for round := 0; done < kills; round++ {
		a.loaded(s.alice(), 4, rand.N(400*time.Millisecond), s.kill)
		done++
		if round%3 == 2 { // and once more while it is mending
			s.launch()
			time.Sleep(rand.N(300 * time.Millisecond))
			s.kill()
			done++
		}
		s.start()
		slowest = max(slowest, s.ready)
		a.check()
		a.resubmit()
	}
	a.loaded(s.alice(), 4, 100*time.Millisecond, func() {})
	a.replay()
	s.stop()
	s.start()
	slowest = max(slowest, s.ready)
	a.replay()
	var counts []int
	for _, r := range a.replicas {
		counts = append(counts, a.l.count(r.name))
	}
	if slices.Min(counts) < kills/2 {
		t.Errorf("only %v promises were made to %d crashes", counts, done)
	}
	measured(t, "%d crashes under load, %d v1 entries, %d v2 entries and %d certificates acknowledged, none lost; ready after %v at the slowest",
		done, counts[0], counts[1], counts[2], slowest.Round(time.Millisecond))
}

func TestStoppedUnderLoadNothingAcknowledgedIsLost(t *testing.T) {
	s := up(t)
	a := newAudit(t, s)
	a.loaded(s.alice(), 8, 300*time.Millisecond, s.stop)
	s.start()
	a.check()
	a.replay()
}
