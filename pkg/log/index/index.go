// Package index finds log entries by key: digests, public keys, e-mail addresses, subjects. It is
// derived data: a follower reads the log behind a durable cursor and writes keys and cursor in
// one transaction, so that no entry can be missing, and an index that is lost, damaged or of
// another log is built again from the log.
//
// The rows are in an SQLite file of the index's own, or in PostgreSQL, where the followers of
// several replicas share them: each follows its own log, and whoever moves the cursor first has
// written for all.
package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// Options configures an Index. Keys and either URI or DB are required.
type Options struct {
	// URI is "sqlite:PATH", a file that the index has for itself.
	URI string
	// DB is a PostgreSQL database that the caller closes after the index. Its schema has one index.
	DB *database.DB
	// Keys returns the search keys of an entry's bytes, as entry.Keys does. It must depend on
	// the bytes alone. An error means that the entry has none.
	Keys   func(body []byte) ([]string, error)
	Logger *slog.Logger
	// Registerer takes the metrics attestry_index_*; nil means none. With several indexes in
	// a process, wrap it with a label for each.
	Registerer prometheus.Registerer
}

// aheadGrace is longer than a replica may take to see what another one has signed.
const aheadGrace = time.Minute

// Index is a search index over one log. It is safe for concurrent use; one Follow runs at a time.
type Index struct {
	uri     string // of the file; "" with PostgreSQL
	keys    func([]byte) ([]string, error)
	logger  *slog.Logger
	metrics *metrics
	retry   func(attempt int) time.Duration // pause after a failed step of the follower
	age     time.Duration                   // how long leaves may be pending
	grace   time.Duration                   // how long a shared index may be ahead of this replica's log at its start

	following sync.Mutex // held by Follow

	// The database, replaced as a whole when the file turns out to be damaged.
	dbMu sync.RWMutex
	db   *database.DB

	mu       sync.Mutex         // guards what follows
	cursor   uint64             // leaves below it are indexed, in the database or pending
	pending  pending            // the newest of them, which this index has not stored
	lastLeaf [32]byte           // leaf hash of cursor-1 while something is pending
	fitted   bool               // the cursor was compared with the log that is followed
	unsure   bool               // the last write failed, or another follower was first: read the stored cursor
	others   state              // how far another follower has stored, not compared with the log yet; zero when there is none
	moved    chan struct{}      // closed and replaced when cursor changes
	damaged  bool               // a search met a damaged file: the follower must rebuild
	wake     context.CancelFunc // ends Follow
	poke     context.CancelFunc // ends its wait for the log to grow
	closed   bool
}

// Open opens or creates the index. A file that is damaged, not SQLite or of another version is put
// aside with a log line (as its path with .damaged behind it, in place of an older one) and a new
// one starts empty. PostgreSQL tables of an older version are dropped; those of a newer one are an error.
func Open(ctx context.Context, o Options) (*Index, error) {
	if (o.URI == "") == (o.DB == nil) || o.Keys == nil {
		return nil, errors.New("index: Keys and either URI or DB are required")
	}
	if o.URI != "" && !strings.HasPrefix(o.URI, "sqlite:") || o.DB != nil && o.DB.Engine() != database.PostgreSQL {
		return nil, errors.New("index: URI is for SQLite, DB for PostgreSQL")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("registering index metrics: %w", err)
	}
	x := &Index{
		uri: o.URI, db: o.DB, keys: o.Keys, logger: o.Logger, metrics: m,
		retry: backoff, age: flushAge, grace: aheadGrace, moved: make(chan struct{}),
	}
	if x.uri != "" {
		x.db, x.cursor, err = x.openFile(ctx)
	} else {
		x.cursor, err = x.openShared(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("opening search index: %w", err)
	}
	x.metrics.setCursor(x.cursor)
	return x, nil
}

// Close makes Follow store what is pending and return, and closes the file.
func (x *Index) Close() error {
	x.mu.Lock()
	x.closed = true
	if x.wake != nil {
		x.wake()
	}
	close(x.moved) // CaughtUp sees closed
	x.moved = make(chan struct{})
	x.mu.Unlock()
	x.following.Lock() // until Follow has returned
	defer x.following.Unlock()
	x.dbMu.Lock()
	defer x.dbMu.Unlock()
	if x.uri == "" {
		return nil
	}
	return x.db.Close()
}

// Cursor returns how many leaves can be found: those with a smaller index.
func (x *Index) Cursor() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.cursor
}

// CaughtUp returns nil once Follow has seen that the index is of its log and the leaves below
// size can be found, or an error when ctx ends or the index is closed before.
func (x *Index) CaughtUp(ctx context.Context, size uint64) error {
	for {
		x.mu.Lock()
		cursor, fitted, moved, closed := x.cursor, x.fitted, x.moved, x.closed
		x.mu.Unlock()
		switch {
		case fitted && cursor >= size:
			return nil
		case closed:
			return errClosed
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the search index to reach %d, it is at %d: %w", size, cursor, ctx.Err())
		}
	}
}

var errClosed = fault.New(fault.Unavailable, "index_closed", nil, "the search index is closed")

// advance makes the rows of the next leaves searchable.
func (x *Index) advance(leaves []log.Leaf, rows []indexRow) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pending.add(rows, len(leaves))
	x.lastLeaf = leaves[len(leaves)-1].LeafHash
	x.moveTo(x.cursor + uint64(len(leaves)))
}

// restart sets the cursor to what is stored; fitted says that it was compared with the log.
func (x *Index) restart(cursor uint64, fitted bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pending.clear()
	x.fitted, x.unsure, x.others = fitted, false, state{}
	x.moveTo(cursor)
}

// moveTo needs x.mu.
func (x *Index) moveTo(cursor uint64) {
	x.cursor = cursor
	close(x.moved)
	x.moved = make(chan struct{})
	x.metrics.setCursor(cursor)
}

// openFile opens the file, or puts it aside and makes a new one, and reads the cursor.
func (x *Index) openFile(ctx context.Context) (*database.DB, uint64, error) {
	db, cursor, err := openFile(ctx, x.uri)
	if database.Damaged(err) || isForeign(err) {
		x.logger.Warn("the search index is unusable and is built again from the log", "index", x.uri, "err", err)
		if err := putAside(strings.TrimPrefix(x.uri, "sqlite:")); err != nil {
			return nil, 0, err
		}
		db, cursor, err = openFile(ctx, x.uri)
	}
	return db, cursor, err
}

func openFile(ctx context.Context, uri string) (*database.DB, uint64, error) {
	db, err := database.Open(ctx, uri, database.Options{Derived: true}) // the follower does again what a power cut undid
	if err != nil {
		return nil, 0, err
	}
	cursor, err := prepare(ctx, db, createKeys+sqliteClustered)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("%s: %w", db, err), db.Close())
	}
	return db, cursor, nil
}

func (x *Index) openShared(ctx context.Context) (uint64, error) {
	cursor, err := prepare(ctx, x.db, createKeys)
	var other versionError
	if errors.As(err, &other) && other < version {
		x.logger.Warn("the search index is of an older version and is built again from the log", "index", x.db.String())
		x.metrics.rebuild()
		if err := x.db.Create(ctx, dropKeys, dropState); err != nil {
			return 0, err
		}
		cursor, err = prepare(ctx, x.db, createKeys)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", x.db, err)
	}
	return cursor, nil
}

// versionError is the version of an index that is not ours.
type versionError int

func (v versionError) Error() string {
	return fmt.Sprintf("the search index is of version %d, this program's is %d", int(v), version)
}

// prepare makes the tables when they are missing and returns the stored cursor.
func prepare(ctx context.Context, db *database.DB, createKeys string) (uint64, error) {
	if err := db.Create(ctx, createKeys, createState); err != nil {
		return 0, err
	}
	if _, err := db.ExecContext(ctx, insertState, version, []byte{}); err != nil {
		return 0, err
	}
	s, err := readState(ctx, db)
	return s.next, err
}

// state is the row of index_state.
type state struct {
	next     uint64
	lastLeaf []byte // leaf hash of next-1, empty when next is 0
	rows     bool   // there are any
}

// readState returns the stored cursor, or a versionError.
func readState(ctx context.Context, db *database.DB) (state, error) {
	var s state
	var found int
	var next int64
	if err := db.QueryRowContext(ctx, selectState).Scan(&found, &next, &s.lastLeaf, &s.rows); err != nil {
		return s, fmt.Errorf("reading the index's cursor: %w", err)
	}
	if found != version {
		return s, versionError(found)
	}
	s.next = uint64(next)
	return s, nil
}

// isForeign reports whether err, from opening a file, says that its tables are not ours.
func isForeign(err error) bool {
	var other versionError
	var e *sqlite.Error
	return errors.As(err, &other) || errors.Is(err, sql.ErrNoRows) ||
		errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_ERROR
}

// putAside moves the file away rather than deleting it: a path that was mistyped in the
// configuration must not cost somebody else's file.
func putAside(path string) error {
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("dropping the search index: %w", err)
		}
	}
	if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("dropping the search index: %w", err)
	}
	// A write-ahead log that a power cut brings back beside a new file would be damage.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("dropping the search index: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// metrics are nil when nobody collects them.
type metrics struct {
	cursor           prometheus.Gauge
	skipped, rebuilt prometheus.Counter
	writes           *prometheus.SummaryVec
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	if registerer == nil {
		return nil, nil
	}
	m := &metrics{
		cursor: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "attestry_index_cursor", Help: "Leaves of the log that the search index covers.",
		}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "attestry_index_skipped_total", Help: "Entries whose body gave no search keys because it could not be parsed.",
		}),
		rebuilt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "attestry_index_rebuilds_total", Help: "Times the search index was dropped and built again.",
		}),
		writes: prometheus.NewSummaryVec(prometheus.SummaryOpts{
			Name: "rekor_index_storage_latency_summary", Help: "Nanoseconds that storing a batch of search keys took, by success.",
		}, []string{"success"}),
	}
	for _, collector := range []prometheus.Collector{m.cursor, m.skipped, m.rebuilt, m.writes} {
		if err := registerer.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) setCursor(cursor uint64) {
	if m != nil {
		m.cursor.Set(float64(cursor))
	}
}

func (m *metrics) skip() {
	if m != nil {
		m.skipped.Inc()
	}
}

func (m *metrics) wrote(started time.Time, err error) {
	if m != nil {
		m.writes.WithLabelValues(strconv.FormatBool(err == nil)).Observe(float64(time.Since(started)))
	}
}

func (m *metrics) rebuild() {
	if m != nil {
		m.rebuilt.Inc()
	}
}
