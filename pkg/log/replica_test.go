package log_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/logtest"
	"github.com/attestry/attestry/pkg/log/tiles"
	"github.com/attestry/attestry/pkg/log/trillian"
)

// store is where the replicas of a log keep its tree.
type store struct {
	name  string
	kinds []string // of log
	slow  bool     // integrates once a second
	// tree makes an empty tree, which what it returns opens.
	tree func(t *testing.T, kind log.Kind) func(ctx context.Context) (logtest.OpenTree, error)
}

var stores = []store{
	{"posix", []string{"rekor1", "rekor2", "ct"}, false, func(t *testing.T, kind log.Kind) func(context.Context) (logtest.OpenTree, error) {
		dir := tempDir(t)
		return func(ctx context.Context) (logtest.OpenTree, error) { return tiles.OpenQueued(ctx, dir, kind) }
	}},
	{"trillian", []string{"rekor1"}, false, func(t *testing.T, _ log.Kind) func(context.Context) (logtest.OpenTree, error) {
		service := services.Trillian(t, services.Postgres(t))
		o := trillian.Options{Address: service.Address}
		var err error
		if o.TreeID, err = trillian.CreateTree(t.Context(), o, "rekor"); err != nil {
			t.Fatal(err)
		}
		return func(ctx context.Context) (logtest.OpenTree, error) { return trillian.Open(ctx, o) }
	}},
	{"trillian-embedded", []string{"rekor1"}, false, func(t *testing.T, _ log.Kind) func(context.Context) (logtest.OpenTree, error) {
		o := trillian.EmbeddedOptions{URI: services.Postgres(t), Name: "rekor"}
		return func(ctx context.Context) (logtest.OpenTree, error) { return trillian.OpenEmbedded(ctx, o) }
	}},
	{"s3", []string{"rekor1", "ct"}, true, func(t *testing.T, kind log.Kind) func(context.Context) (logtest.OpenTree, error) {
		gateway := services.VersityGW(t)
		o := tiles.S3Options{
			Endpoint: gateway.Endpoint, Bucket: gateway.Bucket, PathStyle: true,
			AccessKey: gateway.AccessKey, SecretKey: gateway.SecretKey, MySQLDSN: services.MariaDB(t),
		}
		return func(ctx context.Context) (logtest.OpenTree, error) { return tiles.OpenS3(ctx, o, kind) }
	}},
}

// site is one log that several processes run: one tree, one PostgreSQL with rows and fence. Each
// replica is a house of its own.
type site struct {
	t        *testing.T
	kind     log.Kind
	key      crypto.Signer
	server   *services.PostgresServer
	uri      string
	tree     func(ctx context.Context) (logtest.OpenTree, error)
	store    string
	slow     bool
	change   func(*log.Options) // of a replica that opens; nil for nothing
	replicas []*house
}

// sites runs a test on two replicas of each kind of log in each store.
func sites(t *testing.T, run func(t *testing.T, s *site)) {
	for _, store := range stores {
		if testing.Short() && store.name != "posix" {
			continue
		}
		for i, kind := range store.kinds {
			if i > 0 && os.Getenv("ATTESTRY_LONG") == "" {
				break // one kind of log in each store is enough between two long runs
			}
			t.Run(store.name+"/"+kind, func(t *testing.T) {
				s := &site{t: t, kind: kinds[kind], key: newHouse(t, kinds[kind]).key, server: services.StartPostgres(t), store: store.name, slow: store.slow}
				s.uri, s.tree = s.server.Database(t), store.tree(t, s.kind)
				s.replicas = []*house{s.open(), s.open()}
				run(t, s)
			})
		}
	}
}

// open starts another replica.
func (s *site) open() *house {
	s.t.Helper()
	ctx := s.t.Context()
	h := &house{t: s.t, dir: tempDir(s.t), kind: s.kind, key: s.key, queued: true, signed: map[uint64][32]byte{}, acked: map[string]log.Receipt{}}
	var err error
	if h.db, err = database.Open(ctx, s.uri, database.Options{Schema: "site"}); err != nil {
		s.t.Fatal(err)
	}
	fence, err := log.OpenPostgresFence(ctx, h.db)
	if err != nil {
		s.t.Fatal(err)
	}
	tree, err := s.tree(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	h.change = func(o *log.Options) {
		o.Tree, o.Fence, o.Logger = tree, fence, slog.New(slog.NewTextHandler(s.t.Output(), nil))
		if s.change != nil {
			s.change(o)
		}
	}
	if h.log, err = log.Open(ctx, h.options()); err != nil {
		s.t.Fatal(err)
	}
	var closed sync.Once
	h.shut = func() {
		closed.Do(func() {
			if err := errors.Join(h.log.Close(), tree.Close(), h.db.Close()); err != nil {
				s.t.Error(err)
			}
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
	sites(t, func(t *testing.T, s *site) {
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

// load adds n entries on each replica, some of them on all, from eight clients a replica.
func (s *site) load(name string, n int) {
	if s.slow {
		n /= 8
	}
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
	sites(t, func(t *testing.T, s *site) {
		if s.store != "posix" && s.store != "trillian-embedded" && os.Getenv("ATTESTRY_LONG") == "" {
			t.Skip("skipped: takes a minute; enable with ATTESTRY_LONG=1")
		}
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

func TestOneReplicaFreezesTheLogForAll(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
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
	})
}

func TestWhatOneReplicaAnsweredTheOtherShows(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		rounds := 20
		if s.slow {
			rounds = 6
		}
		for i := range rounds {
			here, there := s.replicas[i%2], s.replicas[(i+1)%2]
			sub := here.submission(fmt.Sprintf("entry %d", i))
			receipt, err := here.log.Add(t.Context(), sub)
			if err != nil {
				t.Fatal(err)
			}
			if i%3 == 0 && s.kind != log.CT {
				if index, err := there.log.IndexOf(t.Context(), [32]byte(rfc6962.DefaultHasher.HashLeaf(sub.Data))); err != nil || index != receipt.Index {
					t.Errorf("the other replica finds %d, %v, want %d", index, err, receipt.Index)
				}
			} else if i%3 == 1 {
				if _, err := there.log.Bundle(t.Context(), 0, int(receipt.Index)+1); err != nil {
					t.Errorf("the other replica does not show the bundle that ends with entry %d: %v", receipt.Index, err)
				}
			} else {
				there.log.Refresh(t.Context())
				if size := there.log.Checkpoint().Size; size <= receipt.Index {
					t.Errorf("the other replica shows %d entries, though %d was answered", size, receipt.Index)
				}
			}
		}
	})
}

// TestADatabaseThatIsAwayIsNoFaultOfOurs reads a log whose rows do not answer: a 503, and the same entry again afterwards.
func TestADatabaseThatIsAwayIsNoFaultOfOurs(t *testing.T) {
	s := &site{t: t, kind: log.Rekor1, key: newHouse(t, log.Rekor1).key, server: services.StartPostgres(t)}
	s.uri, s.tree = s.server.Database(t), stores[0].tree(t, s.kind)
	h := s.open()
	h.addUntilAnswered("entry")
	s.server.Kill()
	for name, read := range map[string]func() error{
		"a leaf":  func() error { _, err := h.log.Leaf(t.Context(), 0); return err },
		"a hash":  func() error { _, err := h.log.IndexOf(t.Context(), h.submission("entry").Identity); return err },
		"no hash": func() error { _, err := h.log.IndexOf(t.Context(), [32]byte{1}); return err },
	} {
		if err := read(); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s without a database: %v, want a 503", name, err)
		}
	}
	if err := s.server.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		leaf, err := h.log.Leaf(t.Context(), 0)
		if err == nil && string(leaf.Data) == "entry" {
			return
		}
		if fault.KindOf(err) != fault.Unavailable {
			t.Fatal(err)
		}
	}
}
