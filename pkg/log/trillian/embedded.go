package trillian

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	api "github.com/google/trillian"
	"github.com/google/trillian/extension"
	tlog "github.com/google/trillian/log"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/server"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/storage/postgresql"
	"github.com/google/trillian/trees"
	"github.com/google/trillian/util/clock"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// EmbeddedOptions name a tree in a PostgreSQL database.
type EmbeddedOptions struct {
	// URI is postgres://user@host/database?sslmode=…; a password may stand in it or in the
	// file that its parameter passfile names (libpq's format).
	URI string
	// TreeID is the tree's; 0 for the tree called Name, which is made when there is none.
	TreeID int64
	// Name has up to 20 characters.
	Name     string
	MaxConns int           // to the database; 0 means 8, 2 is the least
	Timeout  time.Duration // of one append or read; 0 means 10 s
	// Now is the clock of Trillian's roots; nil for time.Now.
	Now func() time.Time
}

const (
	defaultConns = 8
	// clockSkew is how far the clock of another process that queued a leaf may run ahead.
	clockSkew = time.Hour
	// maxConflicts is how often an append may lose against other writers' integrations.
	maxConflicts = 8
)

// EmbeddedTree is a log.ProofTree in a PostgreSQL database, on Trillian's storage and sequencer in this
// process. Append integrates what it queued at once, instead of waiting for a signer's next
// turn. Several processes may have one tree open and append to it, and a Trillian log server (with
// --quota_system=noop) may serve it beside them; a log signer is not needed.
type EmbeddedTree struct {
	reader
	pool    *pgxpool.Pool
	tree    *api.Tree
	storage storage.LogStorage
	clock   *forwardClock
}

// OpenEmbedded opens the tree, and creates Trillian's tables and the tree when they are missing.
// Errors: fault.Invalid for what is wrong in o.
func OpenEmbedded(ctx context.Context, o EmbeddedOptions) (*EmbeddedTree, error) {
	o, cfg, err := o.complete()
	if err != nil {
		return nil, err
	}
	t, admin, rpc, err := newEmbedded(ctx, o, cfg)
	if err != nil {
		return nil, err
	}
	if err := t.prepare(ctx, o, admin, rpc); err != nil {
		t.pool.Close()
		return nil, fmt.Errorf("opening the Trillian tree: %w", err)
	}
	t.reader = reader{server: local{rpc, t.tree}, treeID: t.tree.TreeId, timeout: o.Timeout}
	return t, nil
}

// EmbeddedReader reads the tree of an EmbeddedTree, which other processes may have open.
type EmbeddedReader struct {
	reader
	pool *pgxpool.Pool
}

// OpenEmbeddedReader opens a tree that is there, in sessions that cannot write.
func OpenEmbeddedReader(ctx context.Context, o EmbeddedOptions) (*EmbeddedReader, error) {
	o, cfg, err := o.complete()
	if err != nil {
		return nil, err
	}
	cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	cfg.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary // a standby may be behind
	t, admin, rpc, err := newEmbedded(ctx, o, cfg)
	if err != nil {
		return nil, err
	}
	if t.tree, err = lookUpTree(ctx, o, admin); err == nil && t.tree == nil {
		err = fault.New(fault.Invalid, "tree_unknown", nil, "the Trillian database has no tree called %q", o.Name)
	}
	if err != nil {
		t.pool.Close()
		return nil, fmt.Errorf("opening the Trillian tree: %w", err)
	}
	return &EmbeddedReader{reader{server: local{rpc, t.tree}, treeID: t.tree.TreeId, timeout: o.Timeout}, t.pool}, nil
}

// Close closes the connections to the database.
func (r *EmbeddedReader) Close() error {
	r.pool.Close()
	return nil
}

// complete checks o and fills in its defaults.
func (o EmbeddedOptions) complete() (EmbeddedOptions, *pgxpool.Config, error) {
	if o.TreeID == 0 && o.Name == "" {
		return o, nil, fault.New(fault.Invalid, "tree_missing", nil, "neither ID nor name of a Trillian tree is configured")
	}
	cfg, err := pgxpool.ParseConfig(o.URI)
	if err != nil { // pgx keeps the password out of it
		return o, nil, fault.New(fault.Invalid, "postgres_uri_invalid", err, "the PostgreSQL URI of the Trillian tree cannot be read")
	}
	cfg.MaxConns = defaultConns
	if o.MaxConns > 0 {
		cfg.MaxConns = int32(max(o.MaxConns, 2))
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if cfg.ConnConfig.ConnectTimeout <= 0 {
		cfg.ConnConfig.ConnectTimeout = o.Timeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o, cfg, nil
}

// newEmbedded connects to the database; the tree is still to be found.
func newEmbedded(ctx context.Context, o EmbeddedOptions, cfg *pgxpool.Config) (*EmbeddedTree, storage.AdminStorage, *server.TrillianLogRPCServer, error) {
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), cfg)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("opening the Trillian database: %w", err)
	}
	t := &EmbeddedTree{pool: pool, storage: postgresql.NewLogStorage(pool, nil), clock: &forwardClock{TimeSource: clock.System, now: o.Now}}
	tlog.InitMetrics(nil)
	admin := postgresql.NewAdminStorage(pool)
	rpc := server.NewTrillianLogRPCServer(extension.Registry{AdminStorage: admin, LogStorage: t.storage, QuotaManager: quota.Noop()}, t.clock)
	return t, admin, rpc, nil
}

// prepare finds or makes tables and tree. Of several processes one does it, the others wait.
func (t *EmbeddedTree) prepare(ctx context.Context, o EmbeddedOptions, admin storage.AdminStorage, rpc *server.TrillianLogRPCServer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*o.Timeout)
	defer cancel()
	conn, err := t.pool.Acquire(ctx)
	if err != nil {
		return storeError(ctx, err)
	}
	defer conn.Release()
	if err := checkDurable(ctx, conn.Conn()); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, schemaLock); err != nil {
		return storeError(ctx, err)
	}
	defer func() {
		_, unlockErr := conn.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, schemaLock)
		err = errors.Join(err, unlockErr)
	}()
	if err := createSchema(ctx, conn.Conn()); err != nil {
		return err
	}
	if t.tree, err = findTree(ctx, o, admin); err != nil {
		return err
	}
	_, err = rpc.InitLog(trees.NewContext(ctx, t.tree), &api.InitLogRequest{LogId: t.tree.TreeId})
	if err != nil && status.Code(err) != codes.AlreadyExists {
		return fmt.Errorf("initialising tree %d: %w", t.tree.TreeId, err)
	}
	return nil
}

func findTree(ctx context.Context, o EmbeddedOptions, admin storage.AdminStorage) (*api.Tree, error) {
	tree, err := lookUpTree(ctx, o, admin)
	if err != nil || tree != nil {
		return tree, err
	}
	if tree, err = storage.CreateTree(ctx, admin, newTree(o.Name)); err != nil {
		return nil, fmt.Errorf("creating tree %q: %w", o.Name, err)
	}
	return tree, nil
}

// lookUpTree returns the tree that o names, nil when there is none of that name.
func lookUpTree(ctx context.Context, o EmbeddedOptions, admin storage.AdminStorage) (*api.Tree, error) {
	all, err := storage.ListTrees(ctx, admin, false)
	if err != nil {
		return nil, storeError(ctx, fmt.Errorf("listing trees: %w", err))
	}
	var found []*api.Tree
	for _, tree := range all {
		if tree.TreeId == o.TreeID || o.TreeID == 0 && tree.DisplayName == o.Name {
			found = append(found, tree)
		}
	}
	switch {
	case len(found) > 1:
		return nil, fault.New(fault.Invalid, "tree_ambiguous", nil, "%d trees are called %q; name one by its ID, such as %d", len(found), o.Name, found[0].TreeId)
	case len(found) == 1 && found[0].TreeType != api.TreeType_LOG:
		return nil, fault.New(fault.Invalid, "tree_of_other_type", nil, "tree %d is no LOG but a %v", found[0].TreeId, found[0].TreeType)
	case len(found) == 1:
		return found[0], nil
	case o.TreeID != 0:
		return nil, fault.New(fault.Invalid, "tree_unknown", nil, "the Trillian database has no tree %d", o.TreeID)
	}
	return nil, nil
}

// Close closes the connections to the database.
func (t *EmbeddedTree) Close() error {
	t.pool.Close()
	return nil
}

// Append implements log.Tree. A leaf that was there before keeps its index. Leaves of one batch stand
// in the order of their hashes, mixed with what others queued at the same time.
func (t *EmbeddedTree) Append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	if len(batch) == 0 {
		return nil, nil
	}
	callCtx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	indexes, err := t.append(callCtx, batch)
	if err != nil {
		return nil, storeError(ctx, fmt.Errorf("appending %d entries: %w", len(batch), err))
	}
	return indexes, nil
}

func (t *EmbeddedTree) append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	hashes := make([][]byte, len(batch))
	var leaves []*api.LogLeaf
	seen := make(map[[32]byte]bool, len(batch))
	for i := range batch {
		leaf := leafOf(&batch[i])
		hashes[i] = leaf.LeafIdentityHash
		if id := [32]byte(leaf.LeafIdentityHash); !seen[id] {
			seen[id] = true
			leaves = append(leaves, leaf)
		}
	}
	if _, err := t.storage.QueueLeaves(ctx, t.tree, leaves, t.clock.Now()); err != nil {
		return nil, fmt.Errorf("queueing: %w", err)
	}
	for conflicts := 0; ; {
		// The transaction may lose against another process's; that one then integrated these leaves too, or
		// they are still queued.
		n, integrateErr := tlog.IntegrateBatch(ctx, t.tree, log.MaxBatch, -clockSkew, 0, t.clock, t.storage, quota.Noop())
		indexes, missing, err := t.indexes(ctx, hashes)
		switch {
		case err != nil:
			return nil, errors.Join(err, integrateErr)
		case missing == 0:
			return indexes, nil
		case integrateErr == nil && n == 0:
			return nil, fmt.Errorf("%d leaves are neither in the tree nor queued", missing)
		case integrateErr != nil:
			if conflicts++; conflicts > maxConflicts || ctx.Err() != nil {
				return nil, fmt.Errorf("integrating: %w", integrateErr)
			}
			root, err := t.root(ctx)
			if err != nil {
				return nil, errors.Join(err, integrateErr)
			}
			t.clock.passed(time.Unix(0, int64(root.TimestampNanos)))
		}
	}
}

// indexes returns where the leaves with hashes stand, and how many stand nowhere yet.
func (t *EmbeddedTree) indexes(ctx context.Context, hashes [][]byte) (indexes []uint64, missing int, err error) {
	rows, err := t.pool.Query(ctx, `SELECT LeafIdentityHash, SequenceNumber FROM SequencedLeafData WHERE TreeId = $1 AND LeafIdentityHash = ANY($2)`, t.treeID, hashes)
	if err != nil {
		return nil, 0, fmt.Errorf("reading indexes: %w", err)
	}
	defer rows.Close()
	at := make(map[[32]byte]uint64, len(hashes))
	for rows.Next() {
		var hash []byte
		var index int64
		if err := rows.Scan(&hash, &index); err != nil {
			return nil, 0, fmt.Errorf("reading indexes: %w", err)
		}
		if len(hash) != 32 || index < 0 {
			return nil, 0, fmt.Errorf("the database has leaf %x at index %d", hash, index)
		}
		at[[32]byte(hash)] = uint64(index)
	}
	if err := rows.Err(); err != nil {
		return nil, 0, fmt.Errorf("reading indexes: %w", err)
	}
	indexes = make([]uint64, len(hashes))
	for i, hash := range hashes {
		index, ok := at[[32]byte(hash)]
		if !ok {
			missing++
		}
		indexes[i] = index
	}
	return indexes, missing, nil
}

// forwardClock goes past the newest root's time: Trillian refuses a root that is not newer than the one before,
// and clocks are stepped back.
type forwardClock struct {
	clock.TimeSource // its timers
	now              func() time.Time

	mu    sync.Mutex // guards floor
	floor time.Time
}

// Now implements clock.TimeSource.
func (c *forwardClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.After(c.floor) {
		return now
	}
	c.floor = c.floor.Add(1)
	return c.floor
}

// passed tells the clock that a root was written at t.
func (c *forwardClock) passed(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.floor) {
		c.floor = t
	}
}

// local is a log server in this process that knows its tree already.
type local struct {
	server *server.TrillianLogRPCServer
	tree   *api.Tree
}

func (l local) GetLatestSignedLogRoot(ctx context.Context, req *api.GetLatestSignedLogRootRequest) (*api.GetLatestSignedLogRootResponse, error) {
	return l.server.GetLatestSignedLogRoot(trees.NewContext(ctx, l.tree), req)
}

func (l local) GetLeavesByRange(ctx context.Context, req *api.GetLeavesByRangeRequest) (*api.GetLeavesByRangeResponse, error) {
	return l.server.GetLeavesByRange(trees.NewContext(ctx, l.tree), req)
}

func (l local) GetInclusionProof(ctx context.Context, req *api.GetInclusionProofRequest) (*api.GetInclusionProofResponse, error) {
	return l.server.GetInclusionProof(trees.NewContext(ctx, l.tree), req)
}

func (l local) GetConsistencyProof(ctx context.Context, req *api.GetConsistencyProofRequest) (*api.GetConsistencyProofResponse, error) {
	return l.server.GetConsistencyProof(trees.NewContext(ctx, l.tree), req)
}

var (
	_ log.ProofTree    = (*EmbeddedTree)(nil)
	_ clock.TimeSource = (*forwardClock)(nil)
)
