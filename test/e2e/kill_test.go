package e2e

import (
	"context"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"
)

// audit is the three logs' replicas and the promises they are held to.
type audit struct {
	t        *testing.T
	s        *stack
	l        *ledger
	replicas []*replica
	checked  map[string]int
}

func newAudit(t *testing.T, s *stack) *audit {
	t.Helper()
	a := &audit{t: t, s: s, l: newLedger(t, s), checked: map[string]int{}}
	a.replicas = a.fresh()
	return a
}

func (a *audit) fresh() []*replica {
	return []*replica{
		newReplica(rekor1, rekor1Source{a.s.url, a.l}),
		newReplica(rekor2, tilesSource{a.s.url + "/api/v2"}),
		newReplica(ctLog, ctSource{a.s.ctBase()}),
	}
}

// check follows every log and checks every promise since the last check.
func (a *audit) check() {
	a.t.Helper()
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	for _, err := range a.l.strange {
		a.t.Error(err)
	}
	for _, r := range a.replicas {
		if err := r.follow(a.t.Context()); err != nil {
			a.t.Fatal(err)
		}
		for _, promise := range a.l.acks[r.name][a.checked[r.name]:] {
			if err := r.holds(promise); err != nil {
				a.t.Fatal(err)
			}
		}
		a.checked[r.name] = len(a.l.acks[r.name])
	}
}

// replay reads all logs again from the first leaf and checks every promise there ever was.
func (a *audit) replay() {
	a.t.Helper()
	a.replicas, a.checked = a.fresh(), map[string]int{}
	a.check()
}

// resubmit sends the v1 entries again whose answers were lost; each is taken or known already.
func (a *audit) resubmit() {
	a.t.Helper()
	a.l.mu.Lock()
	bodies := a.l.inFlight
	a.l.inFlight = map[string]string{}
	a.l.mu.Unlock()
	for _, body := range bodies {
		status, answer, err := call(a.t.Context(), http.MethodPost, a.s.url+"/api/v1/log/entries", "application/json", body)
		if err != nil || status != http.StatusCreated && status != http.StatusConflict {
			a.t.Errorf("an entry sent again after the crash: %d %v %s", status, err, answer)
		}
	}
}

// loaded runs the load for d after the first promise, then end.
func (a *audit) loaded(token string, clients int, d time.Duration, end func()) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(a.t.Context())
	stopped := make(chan struct{})
	before := a.l.count(rekor1)
	go func() { a.l.load(ctx, a.s, token, clients); close(stopped) }() // ends with ctx
	defer func() { cancel(); <-stopped }()
	eventually(a.t, "a first acknowledged entry", func() bool { return a.l.count(rekor1) > before })
	time.Sleep(d) // a random moment under load is what this is about
	end()
}

func TestKilledAtRandomMomentsNothingAcknowledgedIsLost(t *testing.T) {
	kills := 3
	if long() {
		kills = 55
	}
	s := up(t)
	a := newAudit(t, s)
	for i := range kills {
		a.loaded(s.alice(), 4, rand.N(400*time.Millisecond), s.kill)
		if i%3 == 2 { // and once more while it is mending
			s.launch()
			time.Sleep(rand.N(300 * time.Millisecond))
			s.kill()
		}
		s.start()
		a.check()
		a.resubmit()
	}
	a.loaded(s.alice(), 4, 100*time.Millisecond, func() {})
	a.replay()
	s.stop()
	s.start()
	a.replay()
	var counts []int
	for _, r := range a.replicas {
		counts = append(counts, a.l.count(r.name))
	}
	if slices.Min(counts) < kills {
		t.Errorf("only %v promises were made to %d crashes", counts, kills)
	}
	measured(t, "%d crashes under load, %d v1 entries, %d v2 entries and %d certificates acknowledged, none lost; last start %v",
		kills, counts[0], counts[1], counts[2], s.ready.Round(time.Millisecond))
}

func TestStoppedUnderLoadNothingAcknowledgedIsLost(t *testing.T) {
	s := up(t)
	a := newAudit(t, s)
	a.loaded(s.alice(), 8, 300*time.Millisecond, s.stop)
	s.start()
	a.check()
	a.replay()
}
