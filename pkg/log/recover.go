package log

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
)

// recover brings tree, rows, fence and the signed checkpoint into step, and opens the log. It
// runs at every start and after every fault, and may be cut at any point and run again.
func (l *Log) recover(ctx context.Context) error {
	size, err := l.opts.Tree.Size(ctx)
	if err != nil {
		return fmt.Errorf("reading the tree's size: %w", err)
	}
	record, err := l.fenced(ctx, size)
	if err != nil {
		return err
	}
	if size < record.Size { // it may have grown between the two readings, by another's hand
		if size, err = l.opts.Tree.Size(ctx); err != nil {
			return fmt.Errorf("reading the tree's size: %w", err)
		}
	}
	if size < record.Size {
		return behindFence(l.opts.Label, size, record)
	}
	if _, err := l.matchFence(ctx, record); err != nil {
		return err
	}
	if err := l.mendRows(ctx, record, size); err != nil {
		return err
	}
	if err := l.sealUpTo(ctx, size); err != nil {
		return err
	}
	l.resume()
	return nil
}

func behindFence(label string, size uint64, record Record) error {
	return &haltError{fmt.Errorf("the tree holds %d entries, but its key has signed %d: the tree was restored or lost entries; "+
		"bring back the missing ones, or end the log here, for reading alone: %s", size, record.Size, adoptCommand(label, size, record))}
}

// adoptCommand is what an operator types when what is behind size is lost for good.
func adoptCommand(label string, size uint64, record Record) string {
	lost := fmt.Sprintf("%d..%d", size, record.Promised)
	return fmt.Sprintf("`attestry log adopt --log %s --lost %s` (or `tlog -adopt %[1]s -lost %[2]s`)", label, lost)
}

// fenced returns the fence's record of the log's key. A key without one is new, if its tree is empty.
func (l *Log) fenced(ctx context.Context, size uint64) (Record, error) {
	record, err := l.key.load(ctx)
	if !errors.Is(err, ErrNoRecord) {
		return record, err
	}
	if size > 0 {
		return Record{}, &haltError{fmt.Errorf("the tree holds %d entries and the fence knows nothing of key %s: "+
			"the fence was lost or belongs to another log; bring it back; if nothing that this key signed is missing from the tree, `attestry log adopt` (or `tlog -adopt`) makes a new one", size, l.key.id)}
	}
	empty, err := newView(l.opts.Tree, l.tiles, 0).root(ctx)
	if err != nil {
		return Record{}, err
	}
	record = Record{Root: empty}
	return record, l.key.advance(ctx, record)
}

// matchFence loads the signed tree from what is stored; its root must be the fence's.
func (l *Log) matchFence(ctx context.Context, record Record) (*view, error) {
	v := newView(l.opts.Tree, l.tiles, record.Size)
	extent, err := v.compactRange(ctx)
	if err != nil {
		return nil, err
	}
	root, err := rootOf(extent)
	if err != nil {
		return nil, err
	}
	if root != record.Root {
		err := fmt.Errorf("the tree at size %d has root %x, but its key has signed root %x: the log has forked or its tiles were changed", record.Size, root, record.Root)
		return nil, &haltError{errors.Join(err, l.keepEvidence(record, root))}
	}
	l.extent, v.rooted = extent, &root
	return v, nil
}

// keepEvidence stores both roots beside the log.
func (l *Log) keepEvidence(record Record, treeRoot [32]byte) error {
	now := l.opts.Now().UTC()
	raw, err := json.MarshalIndent(map[string]any{
		"log": l.opts.Label, "origin": l.opts.Origin, "keyID": l.key.id.String(), "found": now,
		"size": record.Size, "signedRoot": fmt.Sprintf("%x", record.Root), "treeRoot": fmt.Sprintf("%x", treeRoot),
	}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(l.opts.Dir, fmt.Sprintf("evidence-%d-%x.json", record.Size, treeRoot[:4]))
	if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("keeping evidence: %w", err)
	}
	return nil
}

// mendRows gives every leaf its row and drops rows of what is not in the tree.
func (l *Log) mendRows(ctx context.Context, record Record, size uint64) error {
	if err := l.rowsReach(ctx, record.Size); err != nil {
		return err
	}
	next, err := l.rows.next(ctx)
	if err != nil {
		return err
	}
	for next < size {
		leaves, err := l.parsed(ctx, next, size)
		if err != nil {
			return err
		}
		batch, err := l.rowsOf(ctx, next, leaves)
		if err != nil {
			return err
		}
		if err := l.rows.complete(ctx, batch); err != nil {
			return err
		}
		next += uint64(len(batch))
	}
	// Only now: the reservations of leaves that are in the tree have become rows above.
	return l.rows.truncate(ctx, size)
}

// rowsOf returns the rows of leaves that nobody was answered for. Their time is that of receipt when a
// reservation or the queue kept it: the log had the entry then, and a certificate of ten minutes may be over by now.
func (l *Log) rowsOf(ctx context.Context, first uint64, leaves []parsedLeaf) ([]row, error) {
	kept, err := l.keptOf(ctx, leaves)
	if err != nil {
		return nil, err
	}
	if l.opts.Kind == CTPlain {
		if err := l.checkExtras(ctx, first, leaves); err != nil {
			return nil, err
		}
	}
	batch := make([]row, len(leaves))
	for i, leaf := range leaves {
		q, ok := kept[leaf.identity]
		batch[i] = row{identity: leaf.identity, index: first + uint64(i), keys: q.sub.Keys}
		switch l.opts.Kind {
		case CT, CTPlain:
			batch[i].integrated, batch[i].leafHash = int64(leaf.timestampMillis), leaf.leafHash[:]
		case Rekor1:
			if !ok {
				q.received = l.opts.Now()
			}
			batch[i].integrated = q.received.Unix()
		}
	}
	return batch, nil
}

// checkExtras halts when what stands beside plain CT leaves is lost: it was durable before they were, so rows
// or extras come from an older state than the tree.
func (l *Log) checkExtras(ctx context.Context, first uint64, leaves []parsedLeaf) error {
	for i, leaf := range leaves {
		ok, err := l.rows.hasExtra(ctx, leaf.identity)
		if err != nil {
			return err
		}
		if !ok {
			return &haltError{fmt.Errorf("%s does not know the chain of the leaf at index %d: restore it from the backup of this log", l.rows, first+uint64(i))}
		}
	}
	return nil
}

// keptOf returns what queue or reservations keep of leaves.
func (l *Log) keptOf(ctx context.Context, leaves []parsedLeaf) (map[[32]byte]queued, error) {
	if l.opts.Queued {
		identities := make([][32]byte, len(leaves))
		for i := range leaves {
			identities[i] = leaves[i].identity
		}
		return l.rows.queuedAs(ctx, l.opts.Kind, identities)
	}
	kept := map[[32]byte]queued{}
	if l.opts.Kind != Rekor1 {
		return kept, nil
	}
	for _, leaf := range leaves {
		received, ok, err := l.rows.reservation(ctx, leaf.identity)
		if err != nil {
			return nil, fmt.Errorf("reading a reservation: %w", err)
		}
		if ok {
			kept[leaf.identity] = queued{received: time.Unix(received, 0)}
		}
	}
	return kept, nil
}

// parsed returns the leaves from index from to the end of their bundle, in a tree of size size.
func (l *Log) parsed(ctx context.Context, from, size uint64) ([]parsedLeaf, error) {
	return l.parsedUpTo(ctx, from, layout.EntryBundleWidth, size)
}

// parsedUpTo is parsed for no more than max leaves.
func (l *Log) parsedUpTo(ctx context.Context, from, max, size uint64) ([]parsedLeaf, error) {
	bundle := from / layout.EntryBundleWidth
	raw, err := l.opts.Tree.Bundle(ctx, bundle, layout.PartialTileSize(0, bundle, size))
	if err != nil {
		return nil, fmt.Errorf("reading entry bundle %d: %w", bundle, err)
	}
	first := bundle * layout.EntryBundleWidth
	end := min(from-first+max, layout.EntryBundleWidth)
	leaves, err := parseLeaves(l.opts.Kind, raw, from-first, end)
	if err != nil {
		return nil, fmt.Errorf("entry bundle %d: %w", bundle, err)
	}
	count := min(size-first, layout.EntryBundleWidth)
	if uint64(len(leaves)) < count {
		return nil, fmt.Errorf("entry bundle %d has %d entries, want %d", bundle, len(leaves), count)
	}
	return leaves[from-first : min(count, end)], nil
}

// sealUpTo extends the signed tree to size by its leaves and signs it.
func (l *Log) sealUpTo(ctx context.Context, size uint64) error {
	fresh := nodesOf(l.extent)
	if err := l.hashLeaves(ctx, l.extent, size); err != nil {
		return err
	}
	cp, err := l.commit(ctx, size, fresh)
	if err != nil {
		return err
	}
	l.publish(cp)
	return nil
}
