// Package log is a Merkle log that cannot fork: submit, prove, publish. A Log is one tree under one
// key; Rekor v1, Rekor v2 and CT are the same log with different leaves and signatures.
//
// The order of side effects, and what a crash after each leaves, is docs/design.md section 7:
// reserve, add, integrate, time, fence, sign, answer. append.go walks it, recover.go mends it.
package log

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/merkle/compact"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
)

// Tree stores the leaves of one log. Its methods may be called concurrently, Append by one
// goroutine at a time.
type Tree interface {
	// Append puts the batch behind all leaves there are and returns the index of each, in the batch's order.
	// On return leaves and hashes are durable and Size counts them. A tree that integrates on a clock of
	// its own returns nil indexes as soon as the batch is durably queued: its leaves appear, in any order, as
	// Size grows. After an error any part of the batch may have been added.
	Append(ctx context.Context, batch []Submission) (indexes []uint64, err error)
	// Size returns how many leaves are durable and integrated.
	Size(ctx context.Context) (uint64, error)
	// Queued returns the size that the tree will have once everything that was queued until now is integrated.
	// It is Size when nothing is, or when the engine drops twins of what it has queued.
	Queued(ctx context.Context) (uint64, error)
	// Bundle returns the entry bundle at index with at least width entries (0 means 256).
	Bundle(ctx context.Context, index uint64, width uint8) ([]byte, error)
}

// TileTree is a Tree that stores its hashes as tiles.
type TileTree interface {
	Tree
	// Tile returns the hash tile at level and index, at least width hashes of it (0 means 256)
	// of 32 bytes each. os.ErrNotExist when there is none.
	Tile(ctx context.Context, level, index uint64, width uint8) ([]byte, error)
}

// Backlogged is a Tree that makes leaves durable, and shows them, before its engine has them.
type Backlogged interface {
	// Backlog returns how many leaves the engine has not taken yet, and the error with which it refused them last; nil when it did not.
	Backlog() (leaves int, err error)
	// Watch has f called with the error when the engine begins to refuse leaves, at once if it does now, and with nil when it takes them again. f must
	// not call the tree.
	Watch(f func(err error))
}

// ProofTree is a Tree whose engine keeps the hashes to itself and makes proofs of them (Trillian).
type ProofTree interface {
	Tree
	// Inclusion returns the audit path of the leaf at index in the tree of size, leaf to root (RFC 6962, section 2.1.1).
	Inclusion(ctx context.Context, index, size uint64) ([][]byte, error)
	// Consistency returns the proof that the tree of size first is a prefix of that of size second (RFC 6962, section 2.1.2).
	Consistency(ctx context.Context, first, second uint64) ([][]byte, error)
}

// Options are a log's parts. The log does not own Tree, Key and Fence.
type Options struct {
	Kind   Kind
	Label  string // names the log in log lines and metrics: "rekor1", "ct"
	Origin string // first line of checkpoints
	Name   string // signature line's name; for Rekor the host of the base URL
	TreeID int64  // Rekor v1 only, positive
	// FirstIndex is the virtual index of the first leaf: how many entries the older shards of a
	// Rekor v1 log hold. SETs carry virtual indexes.
	FirstIndex uint64
	Dir        string // directory of evidence, and of entries.db when DB is nil
	// DB holds the rows; nil for an SQLite file of the log's own. With PostgreSQL and Queued, several processes may
	// run one log: they share tree, rows and Fence, and one of them at a time appends.
	DB   *database.DB
	Tree Tree
	// Queued feeds the tree from a queue in the database instead of from memory. Trees that integrate on a
	// clock of their own need it.
	Queued bool
	Key    crypto.Signer // reached through the fence alone
	Fence  Fence
	// Frozen is the last tree of a log that Freeze ended: it takes no entry again, and Open fails when
	// the tree is another. Nil for a log that grows. Promised above Size says that the log ended by losing what
	// is between (AdoptLost): the fence is ahead of it and stays there.
	Frozen *Record
	// FrozenNote is a checkpoint of Frozen that the log's key has signed; needed when entries were lost.
	FrozenNote []byte
	// Cosigner has every checkpoint cosigned by witnesses before it is published; nil for none. Rekor v1 checkpoints are
	// never: their verifiers refuse a second signature.
	Cosigner Cosigner
	// WitnessKey adds an Ed25519 line of the same name for witnesses that know no ECDSA; nil for none.
	WitnessKey crypto.Signer
	Logger     *slog.Logger
	// Registerer takes the log's metrics; nil for none.
	Registerer prometheus.Registerer
	// Now is the clock of integratedTime and tree heads; nil for time.Now.
	Now func() time.Time
}

const (
	// recentViews is how many signed trees keep what is in memory of them: a receipt's proof is often made when
	// the next tree is signed already.
	recentViews = 8
	// MaxBatch is how many entries one integration takes at most.
	MaxBatch = 1024
	// maxQueue is how many entries may wait for a batch before submitters get a 503.
	maxQueue = 4096
	// maxInFlight is how many may wait for their answers. Only a queued log has so many: they have left
	// for the database.
	maxInFlight = 4 * maxQueue
)

// Checkpoint is a signed tree.
type Checkpoint struct {
	Size uint64
	Root [32]byte
	Note []byte // signed note (c2sp.org/tlog-checkpoint)
	Time time.Time

	view *view
}

// Receipt says where an entry is. Proofs for it come from the checkpoint's tree.
type Receipt struct {
	Index           uint64
	IntegratedUnix  int64  // Rekor v1, seconds
	TimestampMillis uint64 // CT, the timestamp in the leaf
	Duplicate       bool   // it was there before this submission
	Checkpoint      *Checkpoint
}

// Log is one log. Its methods may be called concurrently.
type Log struct {
	opts    Options
	key     *fencedKey
	rows    *rows
	tiles   *tileCache
	metrics *metrics

	queue  chan *pending
	cancel context.CancelFunc
	done   chan struct{}                 // closed when the goroutines of the log have ended
	recent atomic.Pointer[[]*Checkpoint] // the newest few, for proofs in trees that were just superseded

	sealed atomic.Pointer[Checkpoint] // newest; nil until the first recovery is through

	mu       sync.Mutex            // guards what follows
	inFlight map[[32]byte]*pending // from submission until the answer
	grown    chan struct{}         // closed and replaced whenever sealed changes
	stopped  error                 // why the log takes no entries now; nil when it does
	closing  bool                  // Close was called: stopped stays
	frozen   bool                  // Freeze was called, or the log was opened frozen

	idle  chan struct{} // poked when nothing is in flight any more
	poked chan struct{} // of a queued log: there may be something new in the database

	patience, slowness time.Duration // see the constants
	maxStored          int           // see the constant

	extent *compact.Range // the sealed tree, owned by the goroutine that seals; at most one has that role
}

// haltError stops a log for good: going on could sign a fork.
type haltError struct{ err error }

func (e *haltError) Error() string { return e.err.Error() }
func (e *haltError) Unwrap() error { return e.err }

// Halted reports whether err says that a log must not run before an operator has looked at it.
func Halted(err error) bool {
	var halted *haltError
	return errors.As(err, &halted)
}

// Open recovers the log (design.md section 7) and starts it. It fails when the tree does not agree
// with the fence, and when the fence has no record of a tree that has leaves.
func Open(ctx context.Context, opts Options) (*Log, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	opts.Logger = opts.Logger.With("log", opts.Label)
	key, err := newFencedKey(opts.Kind, opts.Origin, opts.Name, opts.Key, opts.Fence)
	if err != nil {
		return nil, err
	}
	key.shared = opts.Queued && opts.DB != nil && opts.DB.Engine() == database.PostgreSQL
	metrics, err := newMetrics(opts.Registerer, opts.Label, opts.Tree)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("opening log %s: %w", opts.Label, err)
	}
	rows, err := openRows(ctx, opts.DB, filepath.Join(opts.Dir, "entries.db"), opts.Queued)
	if err != nil {
		return nil, err
	}
	l := &Log{
		opts: opts, key: key, rows: rows, tiles: newTileCache(), metrics: metrics,
		queue: make(chan *pending, maxQueue), done: make(chan struct{}),
		inFlight: map[[32]byte]*pending{}, grown: make(chan struct{}),
		idle: make(chan struct{}, 1), poked: make(chan struct{}, 1), patience: patience, slowness: slowness, maxStored: maxStored,
	}
	if opts.Queued && !opts.lost() { // what is lost has nobody who leads: every process mends the same rows alike
		_, drops := opts.Tree.(ProofTree)
		rows.lead = newLeadership(rows.db, key.id, drops)
	}
	if opts.Frozen != nil {
		if err := l.checkFinal(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("opening log %s: %w", opts.Label, err), rows.close())
		}
	}
	start, run := l.recover, l.run
	switch {
	case opts.lost():
		run = l.rest
	case opts.Queued:
		start, run = l.attend, l.runQueued
	}
	if err := start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening log %s: %w", opts.Label, err), rows.close())
	}
	if b, ok := opts.Tree.(Backlogged); ok {
		l.watchStorage(b)
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	go run(runCtx) // ends when Close cancels runCtx, or when the log halts
	return l, nil
}

// Close stops taking entries, finishes those in flight, and closes rows of the log's own.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closing = true // together with the reason: a resume between the two would take entries that nobody answers
	l.stopLocked(fault.New(fault.Unavailable, "shutting_down", nil, "the log is shutting down"))
	l.mu.Unlock()
	l.cancel()
	<-l.done
	return l.rows.close()
}

// Ready returns nil when the log takes entries, or is frozen and could be read; else why it does not, or will not for long.
func (l *Log) Ready() error {
	l.mu.Lock()
	stopped := l.stopped
	l.mu.Unlock()
	if b, ok := l.opts.Tree.(Backlogged); ok && stopped == nil {
		if leaves, err := b.Backlog(); err != nil {
			return fault.New(fault.Unavailable, "log_storage", err, "the log's storage takes nothing: %d entries wait in its journal, and when that is full the log takes none", leaves)
		}
	}
	return stopped
}

// watchStorage tells in the log and the metrics when the tree's engine fails behind a journal: no append does until that is full.
func (l *Log) watchStorage(b Backlogged) {
	b.Watch(func(err error) {
		if err == nil {
			l.opts.Logger.Info("the tree's storage takes entries again")
			return
		}
		l.metrics.faults.Inc()
		l.opts.Logger.Error("the tree's storage takes nothing: entries stay in the journal, and when that is full the log takes none", "err", err)
	})
}

// Checkpoint returns the newest signed tree.
func (l *Log) Checkpoint() *Checkpoint { return l.sealed.Load() }

// Wait returns once the signed size exceeds size.
func (l *Log) Wait(ctx context.Context, size uint64) error {
	for {
		l.mu.Lock()
		grown := l.grown
		l.mu.Unlock()
		if l.Checkpoint().Size > size {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// LogID is what trusted roots, SCTs and Rekor entries name the log by (reference: C2SP signed-note key ID, untruncated).
func (l *Log) LogID() [32]byte { return l.key.logID }

// Origin is the first line of the log's checkpoints.
func (l *Log) Origin() string { return l.opts.Origin }

// PublicKey verifies what the log signs.
func (l *Log) PublicKey() crypto.PublicKey { return l.key.signer.Public() }

// TreeID is a Rekor v1 log's tree ID.
func (l *Log) TreeID() int64 { return l.opts.TreeID }

// SignSET signs Rekor v1's promise for the entry at a virtual index (FirstIndex + index in this tree): ECDSA, DER.
func (l *Log) SignSET(_ context.Context, virtualIndex uint64, body []byte, integratedUnix int64) ([]byte, error) {
	return l.key.set(l.opts.FirstIndex, virtualIndex, body, integratedUnix)
}

// SignSCT signs an SCT for the leaf at index: ECDSA, DER (RFC 6962, section 3.2).
func (l *Log) SignSCT(_ context.Context, index uint64, in SCTInput) ([]byte, error) {
	return l.key.sct(index, in)
}

// TreeHead signs the newest tree with the current time (RFC 6962, section 3.5).
func (l *Log) TreeHead(context.Context) (TreeHead, error) { return l.key.treeHead(l.opts.Now()) }

// publish makes cp the newest signed tree and wakes who waits for it.
func (l *Log) publish(cp *Checkpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sealed.Store(cp)
	var kept []*Checkpoint
	if old := l.recent.Load(); old != nil {
		kept = (*old)[:min(len(*old), recentViews-1)]
	}
	recent := append([]*Checkpoint{cp}, kept...)
	l.recent.Store(&recent)
	close(l.grown)
	l.grown = make(chan struct{})
	l.metrics.size.Set(float64(cp.Size))
}

// resume makes Add take entries again, unless the log has halted or closes.
func (l *Log) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var halted *haltError
	if !errors.As(l.stopped, &halted) && !l.closing {
		l.stopped = nil
	}
}

// stop makes Add answer err from now on; resume undoes it.
func (l *Log) stop(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopLocked(err)
}

func (l *Log) stopLocked(err error) {
	var halted *haltError
	if !errors.As(l.stopped, &halted) { // nothing undoes a halt
		l.stopped = err
	}
}
