// Package index finds log entries by key: digests, public keys, e-mail addresses, subjects. It is
// derived data: a follower reads the log behind a durable cursor and writes keys and cursor in
// one transaction, so that no entry can be missing, and a file that is lost, damaged or of
// another log is built again from the log.
package index

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// Options configures an Index. Path and Keys are required.
type Options struct {
	Path string // of the SQLite file
	// Keys returns the search keys of an entry's bytes, as entry.Keys does. It must depend on
	// the bytes alone. An error means that the entry has none.
	Keys   func(body []byte) ([]string, error)
	Logger *slog.Logger
	// Registerer takes the metrics attestry_index_*; nil means none. With several indexes in
	// a process, wrap it with a label for each.
	Registerer prometheus.Registerer
}

// Index is a search index over one log. It is safe for concurrent use; one Follow runs at a time.
type Index struct {
	path    string
	keys    func([]byte) ([]string, error)
	logger  *slog.Logger
	metrics *metrics
	retry   func(attempt int) time.Duration // pause after a failed step of the follower
	age     time.Duration                   // how long leaves may be pending

	following sync.Mutex // held by Follow

	// The database, replaced as a whole when the file turns out to be damaged.
	dbMu sync.RWMutex
	db   *sql.DB

	mu       sync.Mutex         // guards what follows
	cursor   uint64             // leaves below it are indexed, in the file or pending
	pending  pending            // the newest of them, not in the file yet
	lastLeaf [32]byte           // leaf hash of cursor-1 while something is pending
	fitted   bool               // the cursor was compared with the log that is followed
	moved    chan struct{}      // closed and replaced when cursor changes
	damaged  bool               // a search met a damaged file: the follower must rebuild
	wake     context.CancelFunc // ends Follow
	poke     context.CancelFunc // ends its wait for the log to grow
	closed   bool
}

// Open opens or creates the index at o.Path. A file that is damaged, not SQLite or of another
// version is put aside with a log line (as Path with .damaged behind it, in place of an older
// one) and a new one starts empty.
func Open(ctx context.Context, o Options) (*Index, error) {
	if o.Path == "" || o.Keys == nil {
		return nil, errors.New("index: Path and Keys are required")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("registering index metrics: %w", err)
	}
	x := &Index{
		path: o.Path, keys: o.Keys, logger: o.Logger, metrics: m,
		retry: backoff, age: flushAge, moved: make(chan struct{}),
	}
	x.db, x.cursor, err = openFile(ctx, x.path)
	if isDamaged(err) || isForeign(err) {
		x.logger.Warn("the search index is unusable and is built again from the log", "path", x.path, "err", err)
		if err := putAside(x.path); err != nil {
			return nil, err
		}
		x.db, x.cursor, err = openFile(ctx, x.path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening search index %s: %w", o.Path, err)
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

// restart sets the cursor to what the file has; fitted says that it was compared with the log.
func (x *Index) restart(cursor uint64, fitted bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pending.clear()
	x.fitted = fitted
	x.moveTo(cursor)
}

// moveTo needs x.mu.
func (x *Index) moveTo(cursor uint64) {
	x.cursor = cursor
	close(x.moved)
	x.moved = make(chan struct{})
	x.metrics.setCursor(cursor)
}

// openFile opens the SQLite file, creates its tables when they are missing and reads the
// cursor. errVersion stands for a file of another version.
func openFile(ctx context.Context, path string) (*sql.DB, uint64, error) {
	// NORMAL: a power cut may undo the last transactions, each with keys and cursor
	// together, and the follower does them again. A write-ahead log of 32 MiB gathers the
	// many pages that random keys touch.
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() +
		"?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_pragma=busy_timeout(5000)" +
		"&_pragma=wal_autocheckpoint(8192)&_pragma=journal_size_limit(67108864)&_pragma=cache_size(-8192)&_txlock=immediate"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, 0, err
	}
	db.SetMaxOpenConns(4)
	cursor, err := prepare(ctx, db)
	if err != nil {
		return nil, 0, errors.Join(err, db.Close())
	}
	return db, cursor, nil
}

var errVersion = errors.New("the search index has another version")

func prepare(ctx context.Context, db *sql.DB) (uint64, error) {
	for _, statement := range []string{createKeys + sqliteClustered, createState} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return 0, err
		}
	}
	if _, err := db.ExecContext(ctx, insertState, version, []byte{}); err != nil {
		return 0, err
	}
	s, err := readState(ctx, db)
	if err != nil {
		return 0, err
	}
	if s.version != version {
		return 0, errVersion
	}
	return s.next, nil
}

// state is the row of index_state.
type state struct {
	version  int
	next     uint64
	lastLeaf []byte // leaf hash of next-1, empty when next is 0
}

func readState(ctx context.Context, db *sql.DB) (state, error) {
	var s state
	var next int64
	if err := db.QueryRowContext(ctx, selectState).Scan(&s.version, &next, &s.lastLeaf); err != nil {
		return s, fmt.Errorf("reading the index's cursor: %w", err)
	}
	s.next = uint64(next)
	return s, nil
}

// isDamaged reports whether err says that the file cannot be read any more.
func isDamaged(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	primary := e.Code() & 0xff // of an extended code
	return primary == sqlite3.SQLITE_CORRUPT || primary == sqlite3.SQLITE_NOTADB
}

// isForeign reports whether err, from preparing a file, says that its tables are not ours.
func isForeign(err error) bool {
	var e *sqlite.Error
	return errors.Is(err, errVersion) || errors.Is(err, sql.ErrNoRows) ||
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
	}
	for _, collector := range []prometheus.Collector{m.cursor, m.skipped, m.rebuilt} {
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

func (m *metrics) rebuild() {
	if m != nil {
		m.rebuilt.Inc()
	}
}
