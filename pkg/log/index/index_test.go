package index

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// fakeLog is a log in memory whose calls a test may watch or make fail.
type fakeLog struct {
	mu     sync.Mutex // guards what follows
	leaves []log.Leaf
	grown  chan struct{}
	// before, when set, runs before each call of Leaves; its error is returned.
	before func(from uint64) error
}

func newFakeLog(bodies ...string) *fakeLog {
	l := &fakeLog{grown: make(chan struct{})}
	l.add(bodies...)
	return l
}

func (l *fakeLog) add(bodies ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, body := range bodies {
		data := []byte(body)
		l.leaves = append(l.leaves, log.Leaf{
			Index: uint64(len(l.leaves)), Data: data, LeafHash: [32]byte(rfc6962.DefaultHasher.HashLeaf(data)),
			Keys: []string{fmt.Sprintf("subject:%d", len(l.leaves))},
		})
	}
	close(l.grown)
	l.grown = make(chan struct{})
}

func (l *fakeLog) Leaves(_ context.Context, from uint64, max int) ([]log.Leaf, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.before != nil {
		if err := l.before(from); err != nil {
			return nil, err
		}
	}
	if from >= uint64(len(l.leaves)) {
		return nil, nil
	}
	rest := l.leaves[from:]
	return rest[:min(len(rest), max, 7)], nil // fewer than asked for, as bundles end
}

func (l *fakeLog) Checkpoint() *log.Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &log.Checkpoint{Size: uint64(len(l.leaves))}
}

func (l *fakeLog) Wait(ctx context.Context, size uint64) error {
	for {
		l.mu.Lock()
		grown, n := l.grown, uint64(len(l.leaves))
		l.mu.Unlock()
		if n > size {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bodies returns n entries: some keys are shared, some their own, one in ten does not parse.
func bodies(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("sha256:%064x Alice%d@example.test", i, i%5)
		if i%10 == 9 {
			list[i] = "broken"
		}
	}
	return list
}

// testKeys is splitKeys for bodies that parse.
func testKeys(body []byte) ([]string, error) {
	switch string(body) {
	case "broken":
		return nil, errors.New("not an entry")
	case "panics":
		panic("parser bug")
	}
	return splitKeys(body)
}

// store is where an index keeps its rows: a file, or a schema of PostgreSQL.
type store struct {
	path   string // of the file
	server string // URI of the database
	schema string
}

// onEach runs f with an empty store of each engine.
func onEach(t *testing.T, f func(t *testing.T, s store)) {
	t.Run("sqlite", func(t *testing.T) { f(t, newFile(t)) })
	t.Run("postgres", func(t *testing.T) { f(t, store{server: services.Postgres(t), schema: "log"}) })
}

func newFile(t testing.TB) store { return store{path: filepath.Join(t.TempDir(), "index ?#%.db")} }

// empty returns another store of the same engine, which nothing was written to.
func (s store) empty(t testing.TB) store {
	if s.path != "" {
		return newFile(t)
	}
	s.schema = fmt.Sprint("log", rand.Text()[:10])
	s.schema = strings.ToLower(s.schema)
	return s
}

func (s store) database(t testing.TB) *database.DB {
	t.Helper()
	uri := s.server
	if s.path != "" {
		uri = "sqlite:" + s.path
	}
	db, err := database.Open(t.Context(), uri, database.Options{Schema: s.schema})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func (s store) exec(t testing.TB, statements ...string) {
	t.Helper()
	db := s.database(t)
	defer db.Close()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
}

// try opens the index and what it needs, for as long as the test runs.
func (s store) try(t testing.TB) (*Index, error) {
	t.Helper()
	o := Options{Keys: testKeys, Registerer: prometheus.NewRegistry()}
	if s.path != "" {
		o.URI = "sqlite:" + s.path
	} else {
		o.DB = s.database(t)
		t.Cleanup(func() { o.DB.Close() })
	}
	x, err := Open(t.Context(), o)
	if err != nil {
		return nil, err
	}
	x.retry = func(int) time.Duration { return 0 }
	x.grace = time.Millisecond
	t.Cleanup(func() { x.Close() })
	return x, nil
}

func open(t testing.TB, s store) *Index {
	t.Helper()
	x, err := s.try(t)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func count(t testing.TB, counter prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := counter.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// follow runs Follow until the index has all of source, and returns how to end it.
func follow(t testing.TB, x *Index, source *fakeLog) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- x.Follow(ctx, source) }()
	deadline, cancelDeadline := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancelDeadline()
	if err := x.CaughtUp(deadline, source.Checkpoint().Size); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// content returns all of a store: its rows in order, then the cursor.
func content(t testing.TB, s store) string {
	t.Helper()
	db := s.database(t)
	defer db.Close()
	stored, err := readState(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(`SELECT segment, key_hash, log_index FROM index_keys ORDER BY segment, key_hash, log_index`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all strings.Builder
	for rows.Next() {
		var segment, index int64
		var key []byte
		if err := rows.Scan(&segment, &key, &index); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%d %x %d\n", segment, key, index)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&all, "cursor %d\n", stored.next)
	return all.String()
}

// difference names the first line in which two contents differ, "" when none does.
func difference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d of %d is %q, want %q of %d", i, len(g), g[i], w[i], len(w))
		}
	}
	if len(g) != len(w) {
		return fmt.Sprintf("%d lines, want %d", len(g), len(w))
	}
	return ""
}

// built returns the content of an index that was built from source in one go.
func built(t testing.TB, source *fakeLog) string {
	t.Helper()
	file := newFile(t)
	x := open(t, file)
	follow(t, x, source)()
	x.Close()
	return content(t, file)
}

func expect(t *testing.T, x *Index, all bool, max int, want []uint64, keys ...string) {
	t.Helper()
	got, err := x.Search(t.Context(), keys, all, max)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("Search(%q, all %t, max %d) = %v, want %v", keys, all, max, got, want)
	}
}

func TestSearchFindsEntriesByAnyOrAllKeys(t *testing.T) {
	onEach(t, func(t *testing.T, s store) { searchFindsEntries(t, s) })
}

func searchFindsEntries(t *testing.T, s store) {
	for name, age := range map[string]time.Duration{"pending in memory": time.Hour, "stored": 0} {
		t.Run(name, func(t *testing.T) {
			x := open(t, s.empty(t))
			x.age = age
			source := newFakeLog(bodies(30)...)
			stop := follow(t, x, source)
			defer stop()
			if age == 0 {
				stop() // and so stored
			}
			expect(t, x, false, 100, []uint64{3}, fmt.Sprintf("sha256:%064x", 3))
			expect(t, x, false, 100, []uint64{3}, fmt.Sprintf("SHA256:%064X", 3))
			expect(t, x, false, 100, []uint64{0, 5, 10, 15, 20, 25}, "alice0@example.test")
			expect(t, x, false, 100, []uint64{0, 1, 5, 6, 10, 11, 15, 16, 20, 21, 25, 26}, "alice0@example.test", "ALICE1@example.test")
			expect(t, x, false, 3, []uint64{21, 25, 26}, "alice0@example.test", "alice1@example.test")
			expect(t, x, true, 100, []uint64{10}, "alice0@example.test", fmt.Sprintf("sha256:%064x", 10))
			expect(t, x, true, 100, nil, "alice0@example.test", "alice1@example.test")
			expect(t, x, true, 2, []uint64{20, 25}, "alice0@example.test", "alice0@example.test")
			expect(t, x, false, 100, []uint64{12}, "subject:12") // a key of the submission
			expect(t, x, false, 100, []uint64{9}, "subject:9")   // also when the body is broken
			expect(t, x, true, 100, []uint64{12}, "subject:12", "alice2@example.test")
			expect(t, x, false, 100, nil, "nobody@example.test")
			expect(t, x, false, 100, nil)
			expect(t, x, false, 0, nil, "subject:12")
			if got := count(t, x.metrics.skipped); got != 3 {
				t.Errorf("%v entries skipped, want 3", got)
			}
			if _, err := x.Search(t.Context(), make([]string, maxSearchKeys+1), false, 1); err == nil {
				t.Error("a search with too many keys went through")
			}
		})
	}
}

func TestFollowerPassesEntriesThatBreakTheirParser(t *testing.T) {
	x := open(t, newFile(t))
	defer follow(t, x, newFakeLog("a", "panics", "broken", "b"))()
	expect(t, x, false, 10, []uint64{0, 3}, "a", "b")
	if got := count(t, x.metrics.skipped); got != 2 {
		t.Errorf("%v entries skipped, want 2", got)
	}
}

// TestKilledFollowerResumes takes the files as they are at each step of a follower, as kill -9
// would leave them, and lets another follower go on from there.
func TestKilledFollowerResumes(t *testing.T) {
	source := newFakeLog(bodies(60)...)
	want := built(t, source)

	var snapshots []store
	dir := t.TempDir()
	file := store{path: filepath.Join(dir, "index.db")}
	x := open(t, file)
	x.age = 0 // every batch is stored
	source.before = func(from uint64) error {
		copyTo := filepath.Join(dir, fmt.Sprint("killed", len(snapshots)), "index.db")
		copyFiles(t, file.path, copyTo)
		snapshots = append(snapshots, store{path: copyTo})
		return nil
	}
	all := source.leaves
	source.leaves = nil
	stop := follow(t, x, source)
	for n := 5; n <= len(all); n += 5 { // grow while it follows
		source.mu.Lock()
		source.leaves = all[:n]
		close(source.grown)
		source.grown = make(chan struct{})
		source.mu.Unlock()
		if err := x.CaughtUp(t.Context(), uint64(n)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	x.Close()
	if got := difference(content(t, file), want); got != "" {
		t.Errorf("the follower that was not killed: %s", got)
	}
	source.before = nil
	if len(snapshots) < 12 {
		t.Fatalf("only %d steps", len(snapshots))
	}
	cursors := map[uint64]bool{}
	for i, killed := range snapshots {
		x := open(t, killed)
		cursors[x.Cursor()] = true
		follow(t, x, source)()
		x.Close()
		if diff := difference(content(t, killed), want); diff != "" {
			t.Errorf("killed at step %d and resumed %s", i, diff)
		}
	}
	if len(cursors) < 5 {
		t.Errorf("the kills met only %d stored cursors", len(cursors))
	}
}

func copyFiles(t testing.TB, from, to string) {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Error(err)
	}
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(from + suffix)
		if err == nil {
			err = os.WriteFile(to+suffix, data, 0o644)
		}
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	}
}

func TestFollowerOutlivesFailuresOfItsLog(t *testing.T) {
	onEach(t, followerOutlivesFailures)
}

func followerOutlivesFailures(t *testing.T, s store) {
	source := newFakeLog(bodies(60)...)
	want := built(t, source)
	for failAt := range 12 {
		s := s.empty(t)
		x := open(t, s)
		x.age = 0
		call := 0
		source.before = func(uint64) error {
			call++
			if call-1 == failAt {
				return errors.New("disk on fire")
			}
			return nil
		}
		follow(t, x, source)()
		x.Close()
		source.before = nil
		if diff := difference(content(t, s), want); diff != "" {
			t.Errorf("after a failure of call %d %s", failAt, diff)
		}
	}
}

// TestFailedWritesAreDoneAgain makes the follower's transaction fail, before it took effect and
// after, in whole or in part.
func TestFailedWritesAreDoneAgain(t *testing.T) {
	onEach(t, failedWritesAreDoneAgain)
}

func failedWritesAreDoneAgain(t *testing.T, s store) {
	source := newFakeLog(bodies(20)...)
	want := built(t, source)
	for name, stored := range map[string]uint64{
		"it took no effect":                          0,
		"somebody stored a part":                     7,
		"it took effect":                             20,
		"it took effect and somebody stored the end": 21,
	} {
		t.Run(name, func(t *testing.T) {
			s := s.empty(t)
			x := open(t, s)
			x.age = time.Hour
			stop := follow(t, x, source) // all is pending
			defer stop()
			all := newFakeLog(append(bodies(20), "late")...)
			if stored > 0 {
				other := open(t, s)
				if err := other.write(t.Context(), 0, stored, all.leaves[stored-1].LeafHash, other.rows(all.leaves[:stored])); err != nil {
					t.Fatal(err)
				}
			}
			x.mu.Lock()
			x.unsure = true // as a failed write leaves it
			x.age = 0
			x.mu.Unlock()
			expect(t, x, false, 100, []uint64{12}, "subject:12") // what is pending stays searchable
			source.add("late")
			if err := x.CaughtUp(t.Context(), 21); err != nil {
				t.Fatal(err)
			}
			expect(t, x, false, 100, []uint64{12, 20}, "subject:12", "late")
			stop()
			if got := count(t, x.metrics.rebuilt); got != 0 {
				t.Errorf("built again %v times", got)
			}
			x.Close()
			if diff := difference(content(t, s), built(t, all)); diff != "" {
				t.Error(diff)
			}
			source.mu.Lock()
			source.leaves = source.leaves[:20]
			source.mu.Unlock()
			y := open(t, s) // ahead of the shorter log: built again
			follow(t, y, source)()
			y.Close()
			if diff := difference(content(t, s), want); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestIndexThatDoesNotFitTheLogIsBuiltAgain(t *testing.T) {
	onEach(t, thatDoesNotFitIsBuiltAgain)
}

func thatDoesNotFitIsBuiltAgain(t *testing.T, s store) {
	whole := bodies(60)
	for name, source := range map[string]*fakeLog{
		"the log was restored to an older state":  newFakeLog(whole[:25]...),
		"the log was restored and grew otherwise": newFakeLog(append(slices.Clone(whole[:25]), strings.Split(strings.Repeat("new ", 50), " ")...)...),
		"the index is of another log":             newFakeLog(strings.Split(strings.Repeat("x ", 100), " ")...),
		"the log is empty":                        newFakeLog(),
		"the log is the same":                     newFakeLog(whole...),
		"the log is the same and longer":          newFakeLog(bodies(80)...),
	} {
		t.Run(name, func(t *testing.T) {
			s := s.empty(t)
			x := open(t, s)
			follow(t, x, newFakeLog(whole...))()
			x.Close()
			x = open(t, s)
			follow(t, x, source)()
			rebuilt := count(t, x.metrics.rebuilt)
			x.Close()
			if diff := difference(content(t, s), built(t, source)); diff != "" {
				t.Error(diff)
			}
			if want := !strings.Contains(name, "same"); (rebuilt == 1) != want {
				t.Errorf("built again %v times", rebuilt)
			}
		})
	}
}

func TestDamagedFileIsPutAsideAndBuiltAgain(t *testing.T) {
	source := newFakeLog(bodies(60)...)
	want := built(t, source)
	for name, damage := range map[string]func(t *testing.T, file store){
		"not SQLite": func(t *testing.T, file store) {
			if err := os.WriteFile(file.path, bytes.Repeat([]byte("garbage "), 4096), 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"of another version": func(t *testing.T, file store) { file.exec(t, `UPDATE index_state SET version = 99`) },
		"without its state":  func(t *testing.T, file store) { file.exec(t, `DROP TABLE index_state`) },
		"with other tables": func(t *testing.T, file store) {
			file.exec(t, `DROP TABLE index_state`, `CREATE TABLE index_state (x TEXT)`)
		},
		"empty": func(t *testing.T, file store) {
			if err := os.Truncate(file.path, 0); err != nil {
				t.Fatal(err)
			}
		},
		"gone": func(t *testing.T, file store) {
			if err := os.Remove(file.path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			file := newFile(t)
			x := open(t, file)
			follow(t, x, source)()
			x.Close()
			damage(t, file)
			x = open(t, file)
			follow(t, x, source)()
			x.Close()
			if diff := difference(content(t, file), want); diff != "" {
				t.Errorf("%s", diff)
			}
		})
	}
}

func TestSharedTablesThatAreNotOurs(t *testing.T) {
	source := newFakeLog(bodies(60)...)
	want := built(t, source)
	fresh := store{server: services.Postgres(t)}
	for _, tt := range []struct {
		name, statement string
		err             string
	}{
		{"of an older version are built again", `UPDATE index_state SET version = 0`, ""},
		{"of a newer version are left alone", `UPDATE index_state SET version = 99`, "version 99"},
		{"without their state are built again", `DROP TABLE index_state`, ""},
		{"without their cursor are built again", `DELETE FROM index_state`, ""},
		{"of somebody else are left alone", `ALTER TABLE index_state RENAME COLUMN version TO v`, "version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := fresh.empty(t)
			x := open(t, s)
			follow(t, x, newFakeLog("of", "another", "log"))()
			follow(t, x, source)()
			x.Close()
			s.exec(t, `INSERT INTO index_keys VALUES (9, 'x', 9)`, tt.statement)
			x, err := s.try(t)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Open = %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			follow(t, x, source)()
			x.Close()
			if diff := difference(content(t, s), want); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFileDamagedWhileInUseIsBuiltAgain(t *testing.T) {
	source := newFakeLog(bodies(3000)...)
	want := built(t, source)
	file := newFile(t)
	x := open(t, file)
	follow(t, x, source)()
	x.Close() // and the write-ahead log is in the file
	x = open(t, file)
	data, err := os.ReadFile(file.path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 3 * 4096; i < len(data); i += 7 {
		data[i] ^= 0xff
	}
	if err := os.WriteFile(file.path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	stop := follow(t, x, source)
	var failed error
	for i := 0; i < 3000 && failed == nil; i++ {
		_, failed = x.Search(t.Context(), []string{fmt.Sprintf("subject:%d", i)}, false, 10)
	}
	if failed == nil {
		t.Fatal("no search met the damage")
	}
	// The log does not grow: the search has to wake the follower.
	for failed != nil {
		if err := x.CaughtUp(t.Context(), 3000); err != nil {
			t.Fatal(err)
		}
		_, failed = x.Search(t.Context(), []string{"subject:2999"}, false, 10)
	}
	stop()
	x.Close()
	if diff := difference(content(t, file), want); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(file.path + ".damaged"); err != nil {
		t.Errorf("the damaged file was not kept: %v", err)
	}
}

func TestCaughtUpWaitsAndEndsWithTheIndex(t *testing.T) {
	onEach(t, caughtUpWaitsAndEnds)
}

func caughtUpWaitsAndEnds(t *testing.T, s store) {
	x := open(t, s)
	waited := make(chan error)
	go func() { waited <- x.CaughtUp(t.Context(), 1000) }()
	source := newFakeLog(bodies(10)...)
	go x.Follow(t.Context(), source)
	if err := x.CaughtUp(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := x.CaughtUp(gone, 11); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that ended: %v", err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if err := <-waited; err == nil {
		t.Error("CaughtUp returned nil from a closed index")
	}
	if _, err := x.Search(t.Context(), []string{"subject:1"}, false, 1); err == nil {
		t.Error("a closed index was searched")
	}
	again := open(t, s)
	if got := again.Cursor(); got != 10 {
		t.Errorf("stored cursor %d after Close, want 10", got)
	}
}

func TestHundredThousandEntriesAgainstAMap(t *testing.T) {
	onEach(t, manyEntriesAgainstAMap)
}

func manyEntriesAgainstAMap(t *testing.T, s store) {
	size := uint64(100_000)
	if testing.Short() {
		size = 10_000
	}
	x := open(t, s)
	x.keys = splitKeys
	source := steadySource{size, 256}
	go x.Follow(t.Context(), source)
	if err := x.CaughtUp(t.Context(), size); err != nil {
		t.Fatal(err)
	}
	want := map[string][]uint64{}
	for i := range size {
		keys, _ := splitKeys(source.leaf(i).Data)
		for _, key := range keys {
			if list := want[key]; len(list) == 0 || list[len(list)-1] != i {
				want[key] = append(list, i)
			}
		}
	}
	random := mathrand.New(mathrand.NewPCG(1, 2))
	for range 500 {
		keys, _ := splitKeys(source.leaf(random.Uint64N(size)).Data)
		other, _ := splitKeys(source.leaf(random.Uint64N(size)).Data)
		one, two := keys[random.IntN(len(keys))], other[random.IntN(len(other))]
		if random.IntN(2) == 0 {
			two = keys[random.IntN(len(keys))]
		}
		max := 1 + random.IntN(150)
		newest := func(list []uint64) []uint64 { return list[len(list)-min(len(list), max):] }
		union := append(slices.Clone(want[one]), want[two]...)
		slices.Sort(union)
		both := slices.DeleteFunc(slices.Clone(want[one]), func(i uint64) bool { return !slices.Contains(want[two], i) })
		expect(t, x, false, max, newest(want[one]), one)
		expect(t, x, false, max, newest(slices.Compact(union)), one, two)
		expect(t, x, true, max, newest(both), one, two)
	}
}

func TestFollowsARealLog(t *testing.T) {
	onEach(t, followsARealLog)
}

func followsARealLog(t *testing.T, s store) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fence, err := log.OpenFileFence(filepath.Join(dir, "fence"))
	if err != nil {
		t.Fatal(err)
	}
	defer fence.Close()
	tree, err := tiles.Open(t.Context(), filepath.Join(dir, "tiles"), log.Rekor2)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	l, err := log.Open(t.Context(), log.Options{
		Kind: log.Rekor2, Label: "test", Origin: "log.example.test", Name: "log.example.test", Dir: dir,
		Tree: tree, Key: key, Fence: fence, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x := open(t, s)
	go x.Follow(t.Context(), l)
	var wait sync.WaitGroup
	indexes := make([]uint64, 300)
	for i := range indexes {
		wait.Go(func() {
			body := fmt.Appendf(nil, "key%d", i)
			receipt, err := l.Add(t.Context(), log.Submission{
				Identity: [32]byte(rfc6962.DefaultHasher.HashLeaf(body)), Data: body, Keys: []string{fmt.Sprint("subject:", i)},
			})
			if err != nil {
				t.Error(err)
			}
			indexes[i] = receipt.Index
		})
	}
	wait.Wait()
	if err := x.CaughtUp(t.Context(), 300); err != nil {
		t.Fatal(err)
	}
	for i, index := range indexes {
		expect(t, x, true, 10, []uint64{index}, fmt.Sprint("key", i), fmt.Sprint("subject:", i))
	}
	x.Close()
}
