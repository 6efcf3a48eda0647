// Package tiles keeps a log's tree as tiles in a directory, on Tessera's POSIX driver: a tree
// for Rekor in the layout of c2sp.org/tlog-tiles, one for CT in that of c2sp.org/static-ct-api.
package tiles

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestry/attestry/pkg/log"
)

// Tree is a log.Tree in one directory.
type Tree struct {
	ct      bool
	add     tessera.AddFn
	addCT   func(context.Context, *log.Submission) tessera.IndexFuture
	reader  tessera.LogReader
	stopped context.CancelFunc
}

const (
	// batchAge is how long Tessera waits for a batch to fill. Our batches arrive whole, so
	// this is only the time that handing one over may take before it would be split.
	batchAge = time.Millisecond
	// publishInterval paces Tessera's own publisher, which only its garbage collector reads.
	publishInterval = time.Second
)

// Open opens or creates the tree in dir. The driver publishes under a signer without a key:
// only the log's fence signs what clients see.
func Open(ctx context.Context, dir string, kind log.Kind) (*Tree, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening tiles in %s: %w", dir, err)
	}
	opts := tessera.NewAppendOptions().
		WithCheckpointSigner(bookkeeper{}).
		WithCheckpointInterval(publishInterval).
		WithBatching(log.MaxBatch, batchAge).
		WithPushback(8 * log.MaxBatch)
	if kind == log.CT {
		opts = opts.WithCTLayout()
	}
	appender, _, reader, err := tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening tiles in %s: %w", dir, err)
	}
	t := &Tree{ct: kind == log.CT, add: appender.Add, reader: reader, stopped: cancel}
	addCT := tessera.NewCertificateTransparencyAppender(appender)
	t.addCT = func(ctx context.Context, s *log.Submission) tessera.IndexFuture { return addCT(ctx, s.CT) }
	return t, nil
}

// Close ends Tessera's background work. Every Append that returned is durable already.
func (t *Tree) Close() error {
	t.stopped()
	return nil
}

// Append implements log.Tree.
func (t *Tree) Append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	futures := make([]tessera.IndexFuture, len(batch))
	for i := range batch {
		if t.ct {
			futures[i] = t.addCT(ctx, &batch[i])
		} else {
			futures[i] = t.add(ctx, tessera.NewEntry(batch[i].Data))
		}
	}
	indexes := make([]uint64, len(batch))
	var errs []error
	for i, future := range futures { // all of them: an error must not leave adds in flight
		index, err := future()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		indexes[i] = index.Index
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("appending %d entries: %w", len(batch), errs[0])
	}
	return indexes, nil
}

// Size implements log.Tree.
func (t *Tree) Size(ctx context.Context) (uint64, error) { return t.reader.IntegratedSize(ctx) }

// Tile implements log.Tree.
func (t *Tree) Tile(ctx context.Context, level, index uint64, width uint8) ([]byte, error) {
	return t.reader.ReadTile(ctx, level, index, width)
}

// Bundle implements log.Tree.
func (t *Tree) Bundle(ctx context.Context, index uint64, width uint8) ([]byte, error) {
	return t.reader.ReadEntryBundle(ctx, index, width)
}

// bookkeeper makes Tessera's own checkpoint file well-formed. It holds no key.
type bookkeeper struct{}

func (bookkeeper) Name() string    { return "attestry-tessera-bookkeeping" }
func (bookkeeper) KeyHash() uint32 { return 0 }
func (bookkeeper) Sign(msg []byte) ([]byte, error) {
	sum := sha256.Sum256(msg)
	return sum[:], nil
}

var _ note.Signer = bookkeeper{}
