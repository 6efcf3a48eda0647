package log_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

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
