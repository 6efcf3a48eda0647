package log_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
)

// newSite is a log of two replicas in a directory, on a PostgreSQL server of its own.
func newSite(t *testing.T, kind log.Kind) *site {
	s := &site{t: t, kind: kind, key: newHouse(t, kind).key, server: services.StartPostgres(t)}
	s.uri, s.tree = s.server.Database(t), stores[0].tree(t, kind)
	return s
}

// endLead ends the session that holds the lead.
func (s *site) endLead() {
	s.t.Helper()
	if _, err := s.replicas[len(s.replicas)-1].db.ExecContext(s.t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_backend_pid()`); err != nil {
		s.t.Fatal(err)
	}
}

// stall holds h up once, for as long as a machine may be paused, where it is about to write rows. It returns when that is.
type stall struct {
	reached, release chan struct{}
	once             sync.Once
}

func stallBefore(h *house, point string) *stall {
	s := &stall{reached: make(chan struct{}), release: make(chan struct{})}
	log.HookCommits(h.log, func(when string) error {
		if when == point {
			s.once.Do(func() {
				close(s.reached)
				<-s.release
			})
		}
		return nil
	})
	return s
}

// A leader is held up between its last look at the lock and its rows, until another process has led and
// answered. Nothing that it does then may change what was answered.
func TestALeaderThatWasPausedWritesNoRows(t *testing.T) {
	s := newSite(t, log.Rekor1)
	now := time.Unix(1_700_000_000, 0)
	s.change = func(o *log.Options) {
		at := now.Add(time.Duration(len(s.replicas)) * time.Hour) // clocks that differ show who wrote a time
		o.Now = func() time.Time { return at }
	}
	first := s.open()
	s.replicas = append(s.replicas, first)
	first.addUntilAnswered("before")
	second := s.open()
	s.replicas = append(s.replicas, second)

	paused := stallBefore(first, "beginning completing")
	var wg sync.WaitGroup
	wg.Go(func() { first.addUntilAnswered("in flight") })
	<-paused.reached
	s.endLead()
	second.addUntilAnswered("in flight")
	for i := range 3 {
		second.addUntilAnswered(fmt.Sprintf("under the second %d", i))
	}
	close(paused.release)
	wg.Wait()
	s.verify()

	// The next leader reads the rows back.
	s.endLead()
	first.addUntilAnswered("after")
	second.addUntilAnswered("after that")
	s.verify()
	third := s.open()
	s.replicas = append(s.replicas, third)
	third.addUntilAnswered("at last")
	s.verify()
}

// A leader that was paused in its very append adds what another has added meanwhile, to a tree that does not
// drop twins. The second leaf is never answered, and the log stays readable to its end.
func TestATwinInTheTreeIsReadableAndNeverAnswered(t *testing.T) {
	for kindName, kind := range kinds {
		t.Run(kindName, func(t *testing.T) {
			h := newHouse(t, kind)
			h.queued = true
			h.mustOpen()
			h.addUntilAnswered("keyed once")
			first := h.acked["keyed once"]
			if _, err := h.tiles.Append(t.Context(), []log.Submission{h.submission("keyed once"), h.submission("other")}); err != nil {
				t.Fatal(err)
			}
			h.addUntilAnswered("after")
			cp := h.log.Checkpoint()
			if cp.Size != 4 {
				t.Fatalf("the tree has %d leaves, want 4", cp.Size)
			}
			leaves, err := h.log.Leaves(t.Context(), 0, 10)
			if err != nil || len(leaves) != 4 {
				t.Fatalf("%d leaves, %v", len(leaves), err)
			}
			if leaves[1].IntegratedUnix != first.IntegratedUnix {
				t.Errorf("the twin was integrated at %d, its first leaf at %d", leaves[1].IntegratedUnix, first.IntegratedUnix)
			}
			h.addUntilAnswered("keyed once") // add compares with what was answered
			again, err := h.log.Add(t.Context(), h.submission("keyed once"))
			if err != nil || !again.Duplicate || again.Index != 0 {
				t.Errorf("a duplicate got %+v, %v", again, err)
			}
			h.close()
			h.mustOpen()
			h.addUntilAnswered("keyed once")
		})
	}
}

// olderFence answers with a record of the past, as a standby does that was promoted without its last commits.
type olderFence struct {
	log.Fence
	mu     sync.Mutex
	record *log.Record
}

func (f *olderFence) Last(ctx context.Context, key log.KeyID) (log.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.record != nil {
		return *f.record, nil
	}
	return f.Fence.Last(ctx, key)
}

func TestAFenceThatGoesBackHaltsTheLog(t *testing.T) {
	ways(t, func(t *testing.T, way func(h *house) *house) {
		h := way(newHouse(t, log.Rekor1))
		fence := &olderFence{}
		h.change = func(o *log.Options) { fence.Fence, o.Fence = o.Fence, fence }
		h.mustOpen()
		h.addUntilAnswered("one")
		older := log.Record{Size: 1, Root: h.log.Checkpoint().Root, Promised: 1}
		h.addUntilAnswered("two")
		size := h.log.Checkpoint().Size
		fence.mu.Lock()
		fence.record = &older
		fence.mu.Unlock()
		h.failRows("before completing")
		deadline := time.Now().Add(20 * time.Second)
		for {
			err := h.add("three")
			if err == nil {
				t.Fatal("an entry was answered though the fence went back")
			}
			if strings.Contains(err.Error(), "the fence went back") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the log does not halt: %v", err)
			}
		}
		if now := h.log.Checkpoint().Size; now != size {
			t.Errorf("the checkpoint went from size %d to %d", size, now)
		}
	})
}

// stuckTree appends nothing until it is let go.
type stuckTree struct {
	log.TileTree
	gate chan struct{} // closed lets appends through
}

func (s *stuckTree) Append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	<-s.gate
	return s.TileTree.Append(ctx, batch)
}

// The one that leads waits in its append, without an error, for longer than anybody waits for an answer.
func TestAQueueThatNobodyEmptiesAnswersAndIsBounded(t *testing.T) {
	for name, postgres := range map[string]bool{"sqlite": false, "postgres": true} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, log.Rekor1)
			h.queued = true
			if postgres {
				h.postgres = services.Postgres(t)
			}
			stuck := &stuckTree{gate: make(chan struct{})}
			h.change = func(o *log.Options) { stuck.TileTree, o.Tree = o.Tree.(log.TileTree), stuck }
			h.mustOpen()
			var open sync.Once
			letGo := func() { open.Do(func() { close(stuck.gate) }) }
			defer letGo()
			const most = 5
			log.SetMaxStored(h.log, most)
			log.SetSlowness(h.log, 50*time.Millisecond)
			var slow, full int
			for i := range most + 3 {
				switch err := h.add(fmt.Sprintf("entry %d", i)); fault.KindOf(err) {
				case fault.Unavailable:
					slow++
				case fault.Overloaded:
					full++
				default:
					t.Fatalf("entry %d got %v", i, err)
				}
			}
			if slow != most || full != 3 {
				t.Errorf("%d entries were queued and %d refused, want %d and 3", slow, full, most)
			}
			log.SetSlowness(h.log, time.Minute)
			letGo()
			for i := range most + 3 {
				for deadline := time.Now().Add(20 * time.Second); ; {
					err := h.add(fmt.Sprintf("entry %d", i))
					if err == nil {
						break
					}
					if fault.KindOf(err) != fault.Overloaded || time.Now().After(deadline) {
						t.Fatal(err)
					}
				}
			}
			if size := h.log.Checkpoint().Size; size != most+3 {
				t.Errorf("the log has %d entries, want %d", size, most+3)
			}
			h.verify()
		})
	}
}

// The database takes connections and answers nothing. Who submits is told so in time, and the log closes in time.
func TestADatabaseThatSaysNothingHoldsNobodyUp(t *testing.T) {
	uri, line := services.Through(t, services.Postgres(t))
	h := newHouse(t, log.Rekor1)
	h.queued, h.postgres = true, uri
	h.mustOpen()
	h.addUntilAnswered("before")
	log.SetSlowness(h.log, 100*time.Millisecond)
	line.Hold(true)
	defer line.Hold(false)
	start := time.Now()
	if err := h.add("held"); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("an entry got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := h.log.Add(ctx, h.submission("left")); err == nil {
		t.Error("an entry was answered without a database")
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("two submissions waited %v", took)
	}
}

// A log that lost entries has no leader. Its rows stand in a database that was not restored, ahead of its tree.
func TestALogThatLostEntriesOpensWithoutALeader(t *testing.T) {
	h := newHouse(t, log.Rekor1)
	h.queued, h.postgres = true, services.Postgres(t)
	h.mustOpen()
	h.addUntilAnswered("kept")
	h.close()
	backup := filepath.Join(t.TempDir(), "tiles")
	copyDir(t, filepath.Join(h.dir, "tiles"), backup)
	h.mustOpen()
	h.addUntilAnswered("lost")
	h.close()
	os.RemoveAll(filepath.Join(h.dir, "tiles"))
	copyDir(t, backup, filepath.Join(h.dir, "tiles"))
	cp, err := h.adopt(1, 2)
	if err != nil {
		t.Fatal(err)
	}
	h.final = &log.Record{Size: 1, Root: cp.Root, Promised: 2}
	h.change = func(o *log.Options) { o.FrozenNote = cp.Note }
	h.mustOpen()
	delete(h.acked, "lost")
	delete(h.signed, 2)
	h.verify()
}
