package log_test

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/logtest"
)

func openDB(t *testing.T, uri string) *database.DB {
	t.Helper()
	db, err := database.Open(t.Context(), uri, database.Options{Schema: "fence"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func openPostgresFence(t *testing.T, uri string) *log.PostgresFence {
	t.Helper()
	f, err := log.OpenPostgresFence(t.Context(), openDB(t, uri))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestPostgresFenceKeepsItsContract(t *testing.T) {
	logtest.Fence(t, func(t *testing.T) func() log.Fence {
		uri := services.Postgres(t)
		return func() log.Fence { return openPostgresFence(t, uri) }
	})
}

func TestPostgresFenceOverOneSessionKeepsItsContract(t *testing.T) {
	logtest.Fence(t, func(t *testing.T) func() log.Fence {
		uri := services.Postgres(t)
		return func() log.Fence {
			db := openDB(t, uri)
			f, err := log.OpenPostgresFence(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			return &oneAtATime{fence: f.On(session(t, db))}
		}
	})
}

// oneAtATime is what the leader's own order of calls does: a session serves one at a time.
type oneAtATime struct {
	mu    sync.Mutex
	fence log.Fence
}

func (o *oneAtATime) Last(ctx context.Context, key log.KeyID) (log.Record, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.fence.Last(ctx, key)
}

func (o *oneAtATime) Advance(ctx context.Context, key log.KeyID, prev, next log.Record) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.fence.Advance(ctx, key, prev, next)
}

func (o *oneAtATime) Recorded(ctx context.Context, key log.KeyID, size uint64) (log.Record, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.fence.Recorded(ctx, key, size)
}

func session(t *testing.T, db *database.DB) *sql.Conn {
	t.Helper()
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestReplicasShareThePostgresFence(t *testing.T) {
	uri := services.Postgres(t)
	const replicas, each = 3, 60
	key := log.KeyID{1}
	var wait sync.WaitGroup
	var lost atomic.Int64
	for range replicas {
		f := openPostgresFence(t, uri)
		wait.Go(func() {
			for won := 0; won < each; {
				last, err := f.Last(t.Context(), key)
				if err != nil && !errors.Is(err, log.ErrNoRecord) {
					t.Error(err)
					return
				}
				switch err := f.Advance(t.Context(), key, last, logtest.Record(last.Size+1)); {
				case err == nil:
					won++
				case errors.Is(err, log.ErrStale):
					lost.Add(1)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	last, err := openPostgresFence(t, uri).Last(t.Context(), key)
	if err != nil || last != logtest.Record(replicas*each) {
		t.Errorf("after %d moves the record is %v, %v", replicas*each, last, err)
	}
	if lost.Load() == 0 {
		t.Error("the replicas never met")
	}
}

// TestAKilledServerLosesNoRecord kills the server again and again while a writer moves the record.
// What it reads after that is what was acknowledged last, or the move whose outcome was unknown.
func TestAKilledServerLosesNoRecord(t *testing.T) {
	server := services.StartPostgres(t)
	f := openPostgresFence(t, server.Database(t))
	ctx, key := t.Context(), log.KeyID{2}
	random := rand.New(rand.NewPCG(3, 4))
	const kills = 10
	var acknowledged log.Record
	moves, tookEffect := 0, 0
	for range kills {
		killed := make(chan struct{})
		time.AfterFunc(time.Duration(1+random.IntN(60))*time.Millisecond, func() {
			server.Kill()
			close(killed)
		})
		var unknown log.Record
		for {
			unknown = logtest.Record(acknowledged.Size + 1)
			err := f.Advance(ctx, key, acknowledged, unknown)
			if errors.Is(err, log.ErrStale) {
				t.Fatalf("the only writer is stale at %d", acknowledged.Size)
			}
			if err != nil {
				break
			}
			acknowledged = unknown
			moves++
		}
		<-killed
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		last, err := f.Last(ctx, key)
		for attempt := 0; err != nil && !errors.Is(err, log.ErrNoRecord) && attempt < 20; attempt++ { // connections of the pool that broke
			last, err = f.Last(ctx, key)
		}
		if err != nil && !(errors.Is(err, log.ErrNoRecord) && acknowledged == log.Record{}) {
			t.Fatal(err)
		}
		switch last {
		case acknowledged:
		case unknown:
			acknowledged = unknown
			tookEffect++
		default:
			t.Fatalf("the record is of size %d, acknowledged was %d", last.Size, acknowledged.Size)
		}
	}
	if moves < kills {
		t.Errorf("only %d moves", moves)
	}
	t.Logf("measured: %d moves and %d kills, of which %d hit a move that took effect", moves, kills, tookEffect)
}

// TestAnAnswerThatIsLostIsNoStaleRecord cuts the line after the server has done its work.
func TestAnAnswerThatIsLostIsNoStaleRecord(t *testing.T) {
	uri, line := services.Through(t, services.Postgres(t))
	f := openPostgresFence(t, uri)
	ctx, key := t.Context(), log.KeyID{3}
	if err := f.Advance(ctx, key, log.Record{}, logtest.Record(1)); err != nil {
		t.Fatal(err)
	}
	took := false
	for n := uint64(1); n <= 8 && !took; n++ { // answers to setting up, parsing and executing pass first
		line.CutAfter(int(n) - 1)
		err := f.Advance(ctx, key, logtest.Record(n), logtest.Record(n+1))
		line.Mend()
		if errors.Is(err, log.ErrStale) {
			t.Fatalf("the only writer is stale at %d", n)
		}
		last, readErr := f.Last(ctx, key)
		for attempt := 0; readErr != nil && attempt < 20; attempt++ {
			last, readErr = f.Last(ctx, key)
		}
		switch {
		case readErr != nil:
			t.Fatal(readErr)
		case err == nil && last != logtest.Record(n+1):
			t.Fatalf("an acknowledged move to %d left %d", n+1, last.Size)
		case last == logtest.Record(n):
			if err := f.Advance(ctx, key, last, logtest.Record(n+1)); err != nil {
				t.Fatal(err)
			}
		case last == logtest.Record(n+1):
			took = err != nil
		default:
			t.Fatalf("a move from %d left %d", n, last.Size)
		}
	}
	if !took {
		t.Error("no answer was cut after its move")
	}
}

// TestACommitThatWaitsForItsStandby names a standby that is not there.
func TestACommitThatWaitsForItsStandby(t *testing.T) {
	server := services.StartPostgres(t, "synchronous_standby_names=nobody", "synchronous_commit=local")
	uri := server.Database(t)
	admin := openDB(t, uri)
	f := openPostgresFence(t, uri)
	key := log.KeyID{4}
	waiting := func() (pid int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
			err := admin.QueryRow(`SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&pid)
			if err == nil {
				return pid
			}
			if !errors.Is(err, sql.ErrNoRows) {
				t.Fatal(err)
			}
		}
		t.Fatal("no commit waits for the standby: synchronous_commit=local was kept")
		return 0
	}

	t.Run("is unknown when the server is told not to wait", func(t *testing.T) {
		advanced := make(chan error)
		go func() { advanced <- f.Advance(t.Context(), key, log.Record{}, logtest.Record(1)) }()
		if _, err := admin.Exec(`SELECT pg_cancel_backend($1)`, waiting()); err != nil {
			t.Fatal(err)
		}
		if err := <-advanced; err == nil || errors.Is(err, log.ErrStale) || !strings.Contains(err.Error(), "warned") {
			t.Errorf("Advance = %v", err)
		}
	})
	t.Run("is unknown when the line breaks, and a reader waits for it", func(t *testing.T) {
		last, err := f.Last(t.Context(), key)
		if err != nil || last != logtest.Record(1) {
			t.Fatalf("last = %v, %v", last, err)
		}
		cut, line := services.Through(t, uri)
		g := openPostgresFence(t, cut)
		advanced := make(chan error)
		go func() { advanced <- g.Advance(t.Context(), key, last, logtest.Record(2)) }()
		pid := waiting()
		line.Break()
		if err := <-advanced; err == nil || errors.Is(err, log.ErrStale) {
			t.Errorf("Advance = %v", err)
		}
		read := make(chan log.Record)
		go func() {
			last, err := f.Last(t.Context(), key)
			if err != nil {
				t.Error(err)
			}
			read <- last
		}()
		blocked := 0
		for end := time.Now().Add(20 * time.Second); blocked == 0 && time.Now().Before(end); {
			if err := admin.QueryRow(`SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))`, pid).Scan(&blocked); err != nil {
				t.Fatal(err)
			}
		}
		if blocked == 0 {
			t.Error("the reader does not wait for the commit")
		}
		if _, err := admin.Exec(`SELECT pg_cancel_backend($1)`, pid); err != nil {
			t.Fatal(err)
		}
		if last := <-read; last != logtest.Record(2) {
			t.Errorf("the reader saw %d, the commit went through after it", last.Size)
		}
	})
	t.Run("is unknown when its context ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		advanced := make(chan error)
		go func() { advanced <- f.Advance(ctx, key, logtest.Record(2), logtest.Record(3)) }()
		waiting()
		cancel()
		if err := <-advanced; err == nil || errors.Is(err, log.ErrStale) {
			t.Errorf("Advance = %v", err)
		}
	})
}

func TestAFenceThatCouldForgetIsRefused(t *testing.T) {
	for _, setting := range []string{"fsync=off", "full_page_writes=off"} {
		t.Run(setting, func(t *testing.T) {
			server := services.StartPostgres(t, setting)
			_, err := log.OpenPostgresFence(t.Context(), openDB(t, server.Database(t)))
			if err == nil || !strings.Contains(err.Error(), setting) {
				t.Errorf("opened: %v", err)
			}
		})
	}
	lite, err := database.Open(t.Context(), "sqlite:"+t.TempDir()+"/x", database.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer lite.Close()
	if _, err := log.OpenPostgresFence(t.Context(), lite); err == nil {
		t.Error("opened on SQLite")
	}
}

func TestTheFenceMovesOnlyAsLongAsItsSessionLives(t *testing.T) {
	uri := services.Postgres(t)
	db := openDB(t, uri)
	f, err := log.OpenPostgresFence(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	ctx, key, conn := t.Context(), log.KeyID{5}, session(t, db)
	leader := f.On(conn)
	if err := leader.Advance(ctx, key, log.Record{}, logtest.Record(1)); err != nil {
		t.Fatal(err)
	}
	var pid, back int
	if err := conn.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(`SELECT pg_backend_pid()`).Scan(&back); err != nil || back == pid {
		t.Fatalf("the pool gave the session out: %v", err)
	}
	if _, err := db.Exec(`SELECT pg_terminate_backend($1)`, pid); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := leader.Advance(ctx, key, logtest.Record(1), logtest.Record(2)); err == nil || errors.Is(err, log.ErrStale) {
			t.Errorf("without its session the leader moved the record: %v", err)
		}
	}
	if last, err := f.Last(ctx, key); err != nil || last != logtest.Record(1) {
		t.Errorf("last = %v, %v", last, err)
	}
}

func TestWatchersLearnOfMovesSoon(t *testing.T) {
	server := services.StartPostgres(t)
	uri := server.Database(t)
	writer, reader := openPostgresFence(t, uri), openPostgresFence(t, uri)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	moved, err := reader.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	next := func() log.KeyID {
		t.Helper()
		select {
		case key, ok := <-moved:
			if !ok {
				t.Fatal("the watch ended")
			}
			return key
		case <-time.After(20 * time.Second):
			t.Fatal("no move was seen")
		}
		return log.KeyID{}
	}
	one, two := log.KeyID{1, 2, 3}, log.KeyID{4, 5, 6}
	start := time.Now()
	if err := writer.Advance(ctx, one, log.Record{}, logtest.Record(1)); err != nil {
		t.Fatal(err)
	}
	if key := next(); key != one {
		t.Errorf("key %s moved, want %s", key, one)
	}
	t.Logf("measured: a move was seen %v after its begin", time.Since(start).Round(time.Microsecond))
	if err := writer.Advance(ctx, one, log.Record{}, logtest.Record(2)); !errors.Is(err, log.ErrStale) {
		t.Fatal(err)
	}
	if err := writer.Advance(ctx, two, log.Record{}, logtest.Record(1)); err != nil {
		t.Fatal(err)
	}
	if key := next(); key != two { // a stale call says nothing
		t.Errorf("key %s moved, want %s", key, two)
	}
	// Nobody reads while the record moves: the moves come as few.
	for n := uint64(1); n < 200; n++ {
		if err := writer.Advance(ctx, one, logtest.Record(n), logtest.Record(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openDB(t, uri).Exec(`SELECT pg_notify('attestry_log', 'not a key')`); err != nil {
		t.Fatal(err)
	}
	if err := writer.Advance(ctx, two, logtest.Record(1), logtest.Record(2)); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for next() == one {
		seen++
	}
	if seen == 0 || seen > 5 {
		t.Errorf("200 moves came as %d", seen)
	}
	// What moved while the connection was lost is told after it.
	server.Kill()
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	if keys := map[log.KeyID]bool{next(): true, next(): true}; !keys[one] || !keys[two] {
		t.Errorf("after a lost connection %v", keys)
	}
	cancel()
	for range moved { // closed
	}
}

func BenchmarkPostgresFence(b *testing.B) {
	db, err := database.Open(b.Context(), services.Postgres(b), database.Options{Schema: "fence"})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	f, err := log.OpenPostgresFence(b.Context(), db)
	if err != nil {
		b.Fatal(err)
	}
	conn, err := db.Conn(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	f = f.On(conn)
	var prev log.Record
	for b.Loop() {
		next := logtest.Record(prev.Size + 1)
		if err := f.Advance(b.Context(), log.KeyID{1}, prev, next); err != nil {
			b.Fatal(err)
		}
		prev = next
	}
}
