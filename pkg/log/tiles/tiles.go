// Package tiles keeps a log's tree as tiles, on Tessera's drivers: in a directory (Tree), or in a
// bucket of an S3 API with MySQL beside it (S3Tree). A tree for Rekor has the layout of
// c2sp.org/tlog-tiles, one for CT that of c2sp.org/static-ct-api.
package tiles

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestry/attestry/pkg/log"
)

// Tree is a log.TileTree in one directory.
type Tree struct {
	driver  *driver
	tail    *tail // nil with a queue
	books   *bookkeeper
	stopped context.CancelFunc
}

const (
	// batchAge is how long Tessera waits for a batch to fill. Our batches arrive whole, so
	// this is only the time that handing one over may take before it would be split.
	batchAge = 4 * time.Millisecond
	// s3BatchAge is the same for the driver of S3, which queues, so that the order of its batches does not matter.
	s3BatchAge = time.Millisecond
	// publishInterval paces Tessera's own publisher, which only its garbage collector reads.
	publishInterval = time.Second
)

// Open opens or creates the tree in dir, for one process. The driver publishes under a signer without a key:
// only the log's fence signs what clients see.
func Open(ctx context.Context, dir string, kind log.Kind) (*Tree, error) {
	t, err := openDriver(ctx, dir, kind)
	if err != nil {
		return nil, err
	}
	if t.tail, err = openTail(ctx, dir, kind, t.driver); err != nil {
		return nil, errors.Join(fmt.Errorf("opening tiles in %s: %w", dir, err), t.Close())
	}
	return t, nil
}

// OpenQueued is Open for a log that is fed from a queue: its submissions are durable already, and several processes may append in turn, so there
// is no journal before the driver.
func OpenQueued(ctx context.Context, dir string, kind log.Kind) (*Tree, error) {
	if _, err := os.Lstat(filepath.Join(dir, tailPath)); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("the tree in %s has a journal: it is for one process", dir), err)
	}
	return openDriver(ctx, dir, kind)
}

func openDriver(ctx context.Context, dir string, kind log.Kind) (*Tree, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	storage, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening tiles in %s: %w", dir, err)
	}
	books := &bookkeeper{}
	appender, _, reader, err := tessera.NewAppender(ctx, storage, appendOptions(kind, books, 8*log.MaxBatch, batchAge))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening tiles in %s: %w", dir, err)
	}
	return &Tree{driver: &driver{dir: dir, add: adding(appender, kind), reader: reader}, books: books, stopped: cancel}, nil
}

// addFunc hands one submission to Tessera.
type addFunc func(context.Context, *log.Submission) tessera.IndexFuture

func adding(appender *tessera.Appender, kind log.Kind) addFunc {
	if kind == log.CT {
		add := tessera.NewCertificateTransparencyAppender(appender)
		return func(ctx context.Context, s *log.Submission) tessera.IndexFuture { return add(ctx, s.CT) }
	}
	return func(ctx context.Context, s *log.Submission) tessera.IndexFuture {
		return appender.Add(ctx, tessera.NewEntry(s.Data))
	}
}

func appendOptions(kind log.Kind, books *bookkeeper, maxOutstanding uint, age time.Duration) *tessera.AppendOptions {
	opts := tessera.NewAppendOptions().
		WithCheckpointSigner(books).
		WithCheckpointInterval(publishInterval).
		WithBatching(log.MaxBatch, age).
		WithPushback(maxOutstanding)
	if kind == log.CT {
		opts = opts.WithCTLayout()
	}
	return opts
}

// publisherRest is what Tessera's publisher gets at the end to notice it.
const publisherRest = 10 * time.Millisecond

// closeWait bounds how long Close waits for a file that Tessera is writing.
const closeWait = 10 * time.Second

// Close ends Tessera's background work. Every Append that returned is durable already. Tessera has no
// way to wait for its publisher, and a file that comes late would recreate a directory that its
// owner has removed: so no new publication may begin, and the one that has begun is waited for.
func (t *Tree) Close() error {
	var err error
	if t.tail != nil {
		err = t.tail.close()
	}
	t.stopped()
	last := t.books.close()
	// The last integration has woken the publisher, who may still open its lock file, and would disturb a directory that is being removed.
	// Nothing tells when it has, so this is a matter of likelihood; no leaf depends on it.
	time.Sleep(publisherRest)
	if last == nil {
		return err
	}
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(closeWait); ; {
		if published, readErr := t.driver.reader.ReadCheckpoint(context.Background()); readErr == nil && bytes.HasPrefix(published, last) {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline: // a full disk, or a directory that is gone
			return err
		}
	}
}

// Append implements log.Tree.
func (t *Tree) Append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	if t.tail != nil {
		return t.tail.append(ctx, batch)
	}
	return t.driver.append(ctx, batch)
}

// Size implements log.Tree.
func (t *Tree) Size(ctx context.Context) (uint64, error) {
	if t.tail != nil {
		return t.tail.size(), nil
	}
	return t.driver.size(ctx)
}

// Backlog implements log.Backlogged.
func (t *Tree) Backlog() (leaves int, err error) {
	if t.tail == nil {
		return 0, nil
	}
	leaves, _, err = t.tail.state()
	return leaves, err
}

// Watch implements log.Backlogged.
func (t *Tree) Watch(f func(error)) {
	if t.tail != nil {
		t.tail.watch(f)
	}
}

// Queued implements log.Tree: Append waits for integration, so nothing is ever queued behind it.
func (t *Tree) Queued(ctx context.Context) (uint64, error) { return t.Size(ctx) }

// Tile implements log.TileTree.
func (t *Tree) Tile(ctx context.Context, level, index uint64, width uint8) ([]byte, error) {
	read := func(ctx context.Context, width uint8) ([]byte, error) {
		return t.driver.reader.ReadTile(ctx, level, index, width)
	}
	if t.tail != nil {
		if p := t.tail.tile(level, index); p.base < elements(width) {
			return p.join(width, func(width uint8) ([]byte, error) { return read(ctx, width) })
		}
	}
	return atLeast(ctx, level, index, width, t.driver.size, read)
}

// Bundle implements log.Tree.
func (t *Tree) Bundle(ctx context.Context, index uint64, width uint8) ([]byte, error) {
	read := func(ctx context.Context, width uint8) ([]byte, error) {
		return t.driver.reader.ReadEntryBundle(ctx, index, width)
	}
	if t.tail != nil {
		if p := t.tail.bundle(index); p.base < elements(width) {
			return p.join(width, func(width uint8) ([]byte, error) { return read(ctx, width) })
		}
	}
	return atLeast(ctx, 0, index, width, t.driver.size, read)
}

// atLeast reads a tile or an entry bundle of at least width elements (0 means 256). Tessera stores a
// partial one only for the sizes at which an integration ended, and collects it once the full one is
// there; so where none has just that width, one of these two is the answer.
func atLeast(ctx context.Context, level, index uint64, width uint8, size func(context.Context) (uint64, error),
	read func(context.Context, uint8) ([]byte, error)) ([]byte, error) {
	raw, err := read(ctx, width)
	if width == 0 || !errors.Is(err, os.ErrNotExist) {
		return raw, err
	}
	if raw, err = read(ctx, 0); !errors.Is(err, os.ErrNotExist) {
		return raw, err
	}
	for range 3 { // the tree may outgrow what is read
		n, sizeErr := size(ctx)
		if sizeErr != nil {
			return nil, sizeErr
		}
		elements := n >> (layout.TileHeight * level)
		if elements < index*layout.TileWidth+uint64(width) {
			return nil, err
		}
		if raw, err = read(ctx, layout.PartialTileSize(level, index, n)); !errors.Is(err, os.ErrNotExist) {
			return raw, err
		}
	}
	return nil, err
}

// bookkeeper makes Tessera's own checkpoint file well-formed. It holds no key.
type bookkeeper struct {
	mu     sync.Mutex // guards what follows
	last   []byte     // text that was signed last; nil when none was
	closed bool
}

func (*bookkeeper) Name() string    { return "attestry-tessera-bookkeeping" }
func (*bookkeeper) KeyHash() uint32 { return 0 }

// Sign implements note.Signer.
func (b *bookkeeper) Sign(text []byte) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errors.New("the tree is closed")
	}
	b.last = bytes.Clone(text)
	sum := sha256.Sum256(text)
	return sum[:], nil
}

// close makes Sign fail from now on and returns what it signed last.
func (b *bookkeeper) close() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.last
}

var (
	_ note.Signer    = (*bookkeeper)(nil)
	_ log.TileTree   = (*Tree)(nil)
	_ log.Backlogged = (*Tree)(nil)
)
