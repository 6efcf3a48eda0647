package log_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// site is one log that several processes run: one tree, one PostgreSQL with rows and fence. Each
// replica is a house that shares what was signed and answered.
type site struct {
	t        *testing.T
	first    *house
	server   *services.PostgresServer
	uri      string
	replicas []*house
}

func newSite(t *testing.T, kind log.Kind, replicas int) *site {
	s := &site{t: t, first: newHouse(t, kind), server: services.StartPostgres(t)}
	s.uri = s.server.Database(t)
	for range replicas {
		s.replicas = append(s.replicas, s.open())
	}
	return s
}

// open starts another replica.
func (s *site) open() *house {
	s.t.Helper()
	h := &house{t: s.t, dir: s.first.dir, kind: s.first.kind, key: s.first.key, queued: true, signed: map[uint64][32]byte{}, acked: map[string]log.Receipt{}}
	var err error
	if h.db, err = database.Open(s.t.Context(), s.uri, database.Options{Schema: "site"}); err != nil {
		s.t.Fatal(err)
	}
	fence, err := log.OpenPostgresFence(s.t.Context(), h.db)
	if err != nil {
		s.t.Fatal(err)
	}
	if h.tiles, err = tiles.Open(s.t.Context(), filepath.Join(h.dir, "tiles"), h.kind); err != nil {
		s.t.Fatal(err)
	}
	h.tree, h.fence = &faultyTree{TileTree: h.tiles}, &faultyFence{Fence: fence}
	opts := h.options()
	opts.Logger = slog.New(slog.NewTextHandler(s.t.Output(), nil))
	if h.log, err = log.Open(s.t.Context(), opts); err != nil {
		s.t.Fatal(err)
	}
	var closed sync.Once
	h.shut = func() {
		closed.Do(func() {
			h.log.Close()
			h.tiles.Close()
			h.db.Close()
		})
	}
	s.t.Cleanup(h.shut)
	return h
}

// verify checks every replica, and that what any of them signed or answered is one history.
func (s *site) verify() {
	s.t.Helper()
	var newest uint64
	for _, h := range s.replicas {
		newest = max(newest, h.log.Checkpoint().Size)
	}
	for _, h := range s.replicas {
		if newest > 0 {
			if err := h.log.Wait(s.t.Context(), newest-1); err != nil {
				s.t.Fatal(err)
			}
		}
		for _, other := range s.replicas {
			if other == h {
				continue
			}
			h.mu.Lock()
			other.mu.Lock()
			for size, root := range other.signed {
				h.sawLocked(&log.Checkpoint{Size: size, Root: root})
			}
			for text, receipt := range other.acked {
				if mine, ok := h.acked[text]; ok && (mine.Index != receipt.Index || mine.IntegratedUnix != receipt.IntegratedUnix) {
					s.t.Errorf("%q is at %d and at %d", text, mine.Index, receipt.Index)
				}
				h.acked[text] = receipt
			}
			other.mu.Unlock()
			h.mu.Unlock()
		}
		h.verify()
	}
}

func TestTheSameEntryAddedOnTwoReplicasIsOneLeaf(t *testing.T) {
	for kindName, kind := range kinds {
		t.Run(kindName, func(t *testing.T) {
			s := newSite(t, kind, 2)
			for round := range 5 {
				text := fmt.Sprintf("keyed %d", round)
				var firsts atomic.Int32
				var wg sync.WaitGroup
				for i := range 100 {
					wg.Go(func() {
						h := s.replicas[i%2]
						receipt, err := h.log.Add(t.Context(), h.submission(text))
						if err != nil {
							t.Error(err)
							return
						}
						if !receipt.Duplicate {
							firsts.Add(1)
						}
						if receipt.Index != uint64(round) {
							t.Errorf("%q got index %d, want %d", text, receipt.Index, round)
						}
					})
				}
				wg.Wait()
				if firsts.Load() != 1 {
					t.Errorf("%d replies say that %q was new", firsts.Load(), text)
				}
			}
			s.verify()
		})
	}
}

// load adds n entries on each replica, some of them on all, from eight clients a replica.
func (s *site) load(name string, n int) {
	var wg sync.WaitGroup
	for r, h := range s.replicas {
		for c := range 8 {
			wg.Go(func() {
				for i := range n / 8 {
					text := fmt.Sprintf("%s %d %d of %d", name, i, c, r)
					if i%4 == 0 {
						text = fmt.Sprintf("keyed %s %d %d", name, i, c)
					}
					h.addUntilAnswered(text)
				}
			})
		}
	}
	wg.Wait()
}

func TestReplicasUnderLoadAreOneLog(t *testing.T) {
	for kindName, kind := range kinds {
		t.Run(kindName, func(t *testing.T) {
			s := newSite(t, kind, 2)
			s.load("at ease", 160)
			s.verify()

			// The session that holds the lead is ended from outside, several times.
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.load("without sessions", 320)
			}()
			for range 5 {
				if _, err := s.replicas[0].db.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()`); err != nil {
					t.Log(err)
				}
				select {
				case <-done:
				case <-time.After(100 * time.Millisecond):
				}
			}
			<-done
			s.verify()

			// The database dies and comes back.
			done = make(chan struct{})
			go func() {
				defer close(done)
				s.load("without a database", 320)
			}()
			s.server.Kill()
			if err := s.server.Start(); err != nil {
				t.Fatal(err)
			}
			<-done
			s.verify()

			// One replica leaves, another comes.
			s.replicas[0].shut()
			s.replicas = append(s.replicas[1:], s.open())
			s.load("in new company", 80)
			s.verify()
		})
	}
}

func TestOneReplicaFreezesTheLogForAll(t *testing.T) {
	s := newSite(t, log.Rekor2, 2)
	var answered atomic.Int64
	begun := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				err := s.replicas[w%2].add(fmt.Sprintf("writer %d entry %d", w, i))
				if fault.KindOf(err) == fault.Frozen {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				answered.Add(1)
				if i == 3 {
					begun <- struct{}{}
				}
			}
		})
	}
	for range 8 {
		<-begun
	}
	cp, err := s.replicas[0].log.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if uint64(answered.Load()) != cp.Size {
		t.Errorf("%d entries were answered, the final tree has %d", answered.Load(), cp.Size)
	}
	for i, h := range s.replicas {
		other, err := h.log.Freeze(t.Context())
		if err != nil || other.Size != cp.Size || other.Root != cp.Root {
			t.Errorf("replica %d froze another tree: %v", i, err)
		}
	}
	s.verify()
}
