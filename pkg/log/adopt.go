package log

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/transparency-dev/merkle/compact"
)

// Adopt gives a log whose fence was lost a new record: the tree as it is. What the key signed before is
// unknown then, so the caller says how many entries the tree should have, from a checkpoint that a
// client, a monitor or a backup kept; a tree of another size is refused. Every leaf is read and
// hashed, and the log must not be open. It returns the tree that may be signed from now on.
func Adopt(ctx context.Context, opts Options, size uint64) (Record, error) {
	key, err := newFencedKey(opts.Kind, opts.Origin, opts.Name, opts.Key, opts.Fence)
	if err != nil {
		return Record{}, err
	}
	switch record, err := key.load(ctx); {
	case err == nil:
		return Record{}, known(ctx, opts, key.id, record)
	case !errors.Is(err, ErrNoRecord):
		return Record{}, err
	}
	have, err := opts.Tree.Size(ctx)
	if err != nil {
		return Record{}, fmt.Errorf("reading the tree's size: %w", err)
	}
	if have != size {
		return Record{}, fmt.Errorf("the tree holds %d entries, not %d", have, size)
	}
	rows, err := openRows(ctx, opts.DB, filepath.Join(opts.Dir, "entries.db"), opts.Queued)
	if err != nil {
		return Record{}, err
	}
	defer rows.close()
	if next, err := rows.next(ctx); err != nil || opts.Kind == Rekor1 && next != size {
		return Record{}, errors.Join(err, fmt.Errorf("%s knows the times of %d entries, the tree holds %d", rows, next, size))
	}
	l := &Log{opts: opts, key: key, rows: rows, tiles: newTileCache()}
	root, err := l.derive(ctx, size)
	if err != nil {
		return Record{}, err
	}
	record := Record{Size: size, Root: root, Promised: size}
	return record, key.advance(ctx, record)
}

// known says why a key that the fence knows cannot be adopted, and what is lost if its tree is behind.
func known(ctx context.Context, opts Options, key KeyID, record Record) error {
	have, err := opts.Tree.Size(ctx)
	if err != nil {
		return fmt.Errorf("reading the tree's size: %w", err)
	}
	if have >= record.Size {
		return fmt.Errorf("the fence knows key %s: it has signed a tree of size %d", key, record.Size)
	}
	return fmt.Errorf("the tree holds %d entries and the fence knows that key %s has signed %d: entries %d to %d are lost with this tree. "+
		"Their indexes were given away, so that this key must never sign them again: bring the entries back, or end the log here, for reading alone: %s",
		have, key, record.Size, have, record.Size-1, adoptCommand(opts.Label, have, record))
}

// hashLeaves appends the leaves from the range's end to size.
func (l *Log) hashLeaves(ctx context.Context, extent *compact.Range, size uint64) error {
	for extent.End() < size {
		leaves, err := l.parsed(ctx, extent.End(), size)
		if err != nil {
			return err
		}
		for _, leaf := range leaves {
			if err := extent.Append(leaf.leafHash[:], nil); err != nil {
				return fmt.Errorf("hashing leaf %d: %w", extent.End(), err)
			}
		}
	}
	return nil
}
