package log

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// A tree that was restored behind its fence lacks entries whose indexes were given away: its key must never sign
// on over it. It may still be read. Its own pair of size and root was signed before, so signing that once more
// says nothing new; a key that is pinned to it signs nothing else, and the fence stays where it is.

// lost reports whether entries that the log's key has signed are missing behind its last tree.
func (o *Options) lost() bool { return o.Frozen != nil && o.Frozen.Promised > o.Frozen.Size }

// AdoptLost ends a log whose tree holds from entries while its key has promised indexes below to: what is between is
// lost. Both are the caller's word and are checked. Every leaf is read and hashed; the tree must be one that the
// key has signed, as the fence's last records or opts.FrozenNote show; and rows that nothing can make again must
// reach its size. The log must not be open.
//
// It returns the log's last tree: the caller keeps it and opens the log with Options.Frozen of this size and root, to
// as Promised, and its note as FrozenNote. It may be called again.
func AdoptLost(ctx context.Context, opts Options, from, to uint64) (*Checkpoint, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	key, err := newFencedKey(opts.Kind, opts.Origin, opts.Name, opts.Key, opts.Fence)
	if err != nil {
		return nil, err
	}
	held, err := key.load(ctx)
	if errors.Is(err, ErrNoRecord) {
		return nil, fmt.Errorf("the fence knows nothing of key %s: nothing says what this log has lost; bring the fence back", key.id)
	}
	if err != nil {
		return nil, err
	}
	have, err := opts.Tree.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the tree's size: %w", err)
	}
	queued, err := opts.Tree.Queued(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading what is queued in the tree: %w", err)
	}
	switch {
	case have >= held.Size:
		return nil, fmt.Errorf("nothing is lost: the tree holds %d entries, its key has signed %d", have, held.Size)
	case queued > have:
		return nil, fmt.Errorf("the tree holds %d entries and integrates %d more that were queued in its store: try again", have, queued-have)
	case from != have || to != held.Promised:
		return nil, fmt.Errorf("the tree holds %d entries and its key has signed %d: lost is %d..%d, not %d..%d", have, held.Promised, have, held.Promised, from, to)
	}
	rows, err := openRows(ctx, opts.DB, filepath.Join(opts.Dir, "entries.db"), opts.Queued)
	if err != nil {
		return nil, err
	}
	defer rows.close()
	l := &Log{opts: opts, key: key, rows: rows, tiles: newTileCache()}
	if err := l.rowsReach(ctx, have); err != nil {
		return nil, err
	}
	root, err := l.derive(ctx, have)
	if err != nil {
		return nil, err
	}
	if err := key.pin(ctx, Record{Size: have, Root: root, Promised: to}, opts.FrozenNote); err != nil {
		return nil, err
	}
	if err := rows.abandon(ctx); err != nil {
		return nil, err
	}
	cp := &Checkpoint{Size: have, Root: root, Note: opts.FrozenNote, Time: opts.Now()}
	if opts.Kind == Rekor1 || len(cp.Note) == 0 { // what somebody kept may carry cosignatures, which Rekor v1 knows nothing of
		cp.Note, err = key.checkpoint(cp.Time)
	}
	return cp, err
}

// rowsReach halts when rows of a tree of size are missing that cannot be derived from its leaves.
func (l *Log) rowsReach(ctx context.Context, size uint64) error {
	next, err := l.rows.next(ctx)
	switch {
	case err != nil:
		return err
	case next >= size:
	case l.opts.Kind == Rekor1:
		return &haltError{fmt.Errorf("%s knows the times of %d entries, but %d were signed: their integratedTime is lost; "+
			"restore it from the backup of this log", l.rows, next, size)}
	case l.opts.Kind == CTPlain:
		return &haltError{fmt.Errorf("%s knows %d entries, but %d were signed: the chains of the rest are lost; "+
			"restore it from the backup of this log", l.rows, next, size)}
	}
	return nil
}

// derive returns the root of all size leaves of the tree, which must be that of its tiles.
func (l *Log) derive(ctx context.Context, size uint64) ([32]byte, error) {
	extent := hashing.NewEmptyRange(0)
	if err := l.hashLeaves(ctx, extent, size); err != nil {
		return [32]byte{}, err
	}
	want, err := rootOf(extent)
	if err != nil {
		return [32]byte{}, err
	}
	root, err := newView(l.opts.Tree, l.tiles, size).root(ctx)
	if err != nil {
		return [32]byte{}, err
	}
	if root != want {
		return [32]byte{}, fmt.Errorf("the tiles have root %x, the leaves %x: the tree is damaged", root, want)
	}
	return root, nil
}

// pin ties the key to the tree in final for as long as it is open: it signs this one and no other, and never moves
// the fence. The fence must not know of more than final says was promised, and the tree must have been signed
// before: by one of the fence's last records, or by note, a checkpoint of it.
func (k *fencedKey) pin(ctx context.Context, final Record, note []byte) error {
	held, err := k.fence.Last(ctx, k.id)
	if err != nil {
		return err
	}
	if held.Promised > final.Promised {
		return &haltError{fmt.Errorf("the log was ended with %d of %d entries, but its key has signed %d: somebody else signs with this key",
			final.Size, final.Promised, held.Promised)}
	}
	recorded, err := k.fence.Recorded(ctx, k.id, final.Size)
	switch {
	case err == nil && recorded.Root != final.Root:
		return &haltError{fmt.Errorf("the tree at size %d has root %x, but its key has signed root %x: it is not what was signed", final.Size, final.Root, recorded.Root)}
	case err == nil:
	case !errors.Is(err, ErrNoRecord):
		return err
	case len(note) == 0:
		return fmt.Errorf("nothing shows that the key has signed the tree of size %d with root %x: the fence keeps the last 1,000 trees alone; "+
			"name a file with a checkpoint of it (--checkpoint), from a backup's manifest, a monitor or a client", final.Size, final.Root)
	}
	if len(note) > 0 {
		tree, err := ParseCheckpoint(k.kind, k.origin, k.name, k.signer, note)
		if err != nil {
			return err
		}
		if tree.Size != final.Size || tree.Root != final.Root {
			return fmt.Errorf("the checkpoint is of the tree of size %d with root %x, not of that of size %d with root %x", tree.Size, tree.Root, final.Size, final.Root)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pinned, k.last = true, Record{Size: final.Size, Root: final.Root, Promised: final.Size}
	return nil
}

// rest is run for a log that takes nothing any more and follows nobody.
func (l *Log) rest(ctx context.Context) {
	defer close(l.done)
	<-ctx.Done()
}
