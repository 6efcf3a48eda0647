package log

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"

	"github.com/attestry/attestry/internal/fault"
)

// InclusionProof proves the leaf at index in the tree of size, which may be no larger than the
// newest signed one: sibling hashes, leaf to root.
func (l *Log) InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error) {
	v, err := l.viewAt(size)
	if err != nil {
		return nil, err
	}
	if index >= size {
		return nil, fault.New(fault.Invalid, "index_beyond_tree", nil, "index %d is beyond a tree of size %d", index, size)
	}
	path, err := v.inclusion(ctx, index)
	if err != nil {
		return nil, err
	}
	if _, ok := l.opts.Tree.(ProofTree); ok {
		if err := l.verifyInclusion(ctx, v, index, path); err != nil {
			return nil, err
		}
	}
	return path, nil
}

// verifyInclusion checks a proof that an engine made against the root of the tree and the leaf that the rows know.
func (l *Log) verifyInclusion(ctx context.Context, v *view, index uint64, path [][]byte) error {
	if v.rooted == nil {
		return nil // a tree of the past: its root is not in memory, and whoever asks for it has the root
	}
	leafHash, ok, err := l.rows.identityAt(ctx, index)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("the leaf at index %d has no row", index)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, v.size, leafHash[:], path, v.rooted[:]); err != nil {
		return fmt.Errorf("the engine's proof for index %d: %w", index, err)
	}
	return nil
}

// ConsistencyProof proves that the tree of size first is a prefix of that of size second.
func (l *Log) ConsistencyProof(ctx context.Context, first, second uint64) ([][]byte, error) {
	v, err := l.viewAt(second)
	if err != nil {
		return nil, err
	}
	if first > second {
		return nil, fault.New(fault.Invalid, "sizes_reversed", nil, "first size %d is larger than second size %d", first, second)
	}
	return v.consistency(ctx, first)
}

// RootAt returns the root of the tree of size, computed from the tiles.
func (l *Log) RootAt(ctx context.Context, size uint64) ([32]byte, error) {
	v, err := l.viewAt(size)
	if err != nil {
		return [32]byte{}, err
	}
	return v.root(ctx)
}

func (l *Log) viewAt(size uint64) (*view, error) {
	for _, cp := range *l.recent.Load() {
		if size == cp.Size {
			return cp.view, nil
		}
		if size > cp.Size {
			break
		}
	}
	cp := l.Checkpoint()
	if size > cp.Size {
		return nil, fault.New(fault.Invalid, "size_beyond_tree", nil, "size %d is beyond the signed tree of size %d", size, cp.Size)
	}
	v := newView(l.opts.Tree, l.tiles, size)
	v.stands = cp.Size
	return v, nil
}

// Leaf returns the leaf at index, or fault.NotFound beyond the signed tree.
func (l *Log) Leaf(ctx context.Context, index uint64) (Leaf, error) {
	leaves, err := l.Leaves(ctx, index, 1)
	if err != nil {
		return Leaf{}, err
	}
	if len(leaves) == 0 {
		return Leaf{}, fault.New(fault.NotFound, "index_beyond_tree", nil, "index %d is beyond the tree", index)
	}
	return leaves[0], nil
}

// Leaves returns leaves from index from on: at most max, as many as their entry bundle holds, none
// at the end of the signed tree.
func (l *Log) Leaves(ctx context.Context, from uint64, max int) ([]Leaf, error) {
	size := l.Checkpoint().Size
	if from >= size || max <= 0 {
		return nil, nil
	}
	parsed, err := l.parsedUpTo(ctx, from, uint64(max), size)
	if err != nil {
		return nil, err
	}
	known, err := l.rows.slice(ctx, from, from+uint64(len(parsed)))
	if err != nil {
		return nil, err
	}
	leaves := make([]Leaf, len(parsed))
	for i, p := range parsed {
		index := from + uint64(i)
		leaves[i] = Leaf{Index: index, Data: p.data, LeafHash: p.leafHash}
		row, ok := known[index]
		leaves[i].Keys, leaves[i].Extra = row.keys, row.extra
		if l.opts.Kind != Rekor1 {
			continue
		}
		if !ok { // a twin: the row of its identity names another leaf, and has the time of both
			if _, row.integrated, ok, err = l.rows.find(ctx, p.identity); err != nil {
				return nil, err
			}
		}
		if !ok {
			return nil, fmt.Errorf("the leaf at index %d has no row", index)
		}
		leaves[i].IntegratedUnix = row.integrated
	}
	return leaves, nil
}

// IndexOf returns the index of the leaf with this leaf hash, or fault.NotFound.
func (l *Log) IndexOf(ctx context.Context, leafHash [32]byte) (uint64, error) {
	var index uint64
	var ok bool
	var err error
	if l.opts.Kind.isCT() {
		index, ok, err = l.rows.indexOf(ctx, leafHash)
	} else {
		index, _, ok, err = l.rows.find(ctx, leafHash)
	}
	if err != nil {
		return 0, err
	}
	if ok && index >= l.Checkpoint().Size { // another process has signed it, or is about to
		l.Refresh(ctx)
	}
	if !ok || index >= l.Checkpoint().Size {
		return 0, fault.New(fault.NotFound, "leaf_unknown", nil, "no leaf has this hash")
	}
	return index, nil
}

// Tile returns a hash tile of width hashes (0 means 256), 32 bytes each (c2sp.org/tlog-tiles).
// What the newest checkpoint does not cover is fault.NotFound: files past it may still change.
func (l *Log) Tile(ctx context.Context, level, index uint64, width int) ([]byte, error) {
	count, stored, err := l.covered(ctx, level, index, width)
	if err != nil {
		return nil, err
	}
	tree, ok := l.opts.Tree.(TileTree)
	if !ok {
		return nil, fault.New(fault.NotFound, "no_tiles", nil, "this log keeps no tiles")
	}
	raw, err := tree.Tile(ctx, level, index, stored)
	if err != nil {
		return nil, missing(err, "tile %d/%d", level, index)
	}
	if len(raw) < 32*count {
		return nil, fmt.Errorf("tile %d/%d has %d bytes, want %d hashes", level, index, len(raw), count)
	}
	return raw[:32*count], nil
}

// Bundle returns an entry bundle of width entries (0 means 256), for CT a data tile.
func (l *Log) Bundle(ctx context.Context, index uint64, width int) ([]byte, error) {
	count, stored, err := l.covered(ctx, 0, index, width)
	if err != nil {
		return nil, err
	}
	raw, err := l.opts.Tree.Bundle(ctx, index, stored)
	if err != nil {
		return nil, missing(err, "entry bundle %d", index)
	}
	leaves, err := parseBundle(l.opts.Kind, raw)
	if err != nil {
		return nil, fmt.Errorf("entry bundle %d: %w", index, err)
	}
	if len(leaves) < count {
		return nil, fmt.Errorf("entry bundle %d has %d entries, want %d", index, len(leaves), count)
	}
	if len(leaves) == count {
		return raw, nil
	}
	var used int
	for _, leaf := range leaves[:count] {
		used += len(leaf.data)
		if l.opts.Kind != CT {
			used += 2 // the length before each entry
		}
	}
	return raw[:used], nil
}

// covered returns how many elements a tile of width has, if the signed tree covers them all, and the width at which
// the signed tree has it. That one is to be read: a batch whose append was cut may have left a tile of any other
// width, with what never became part of the tree.
func (l *Log) covered(ctx context.Context, level, index uint64, width int) (count int, stored uint8, err error) {
	if count = width; width == 0 {
		count = layout.TileWidth
	}
	notFound := fault.New(fault.NotFound, "beyond_tree", nil, "the signed tree does not reach there")
	if width < 0 || width >= layout.TileWidth || level > 7 {
		return 0, 0, notFound
	}
	reaches := func(size uint64) bool {
		elements := size >> (layout.TileHeight * level) // complete nodes on this tile level
		return index <= elements/layout.TileWidth && elements >= index*layout.TileWidth+uint64(count)
	}
	size := l.Checkpoint().Size
	if !reaches(size) {
		l.Refresh(ctx) // the checkpoint that names the tile may be another process's
		size = l.Checkpoint().Size
	}
	if !reaches(size) {
		return 0, 0, notFound
	}
	return count, layout.PartialTileSize(level, index, size), nil
}

func missing(err error, format string, args ...any) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.NotFound, "no_such_tile", err, format+" is not there; ask for the full one", args...)
	}
	return err
}
