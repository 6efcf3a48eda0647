package log

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
)

// hashing merges nodes as RFC 6962, section 2.1 does.
var hashing = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// view computes roots and proofs of one tree size. Requests that wait on one checkpoint share a
// view: each tile is read and hashed upwards once for all of them, and the nodes that the newest leaves
// made are in memory from when they were hashed.
type view struct {
	size uint64
	tree Tree
	full *tileCache // shared by all views of a log

	// stands is the size of a later tree that was signed, or 0: partial tiles are stored for the sizes at
	// which a batch ended, and another size has its nodes in those of a later one.
	stands uint64

	// Of a tree that was just signed; not written once the view is shared.
	fresh  nodes
	rooted *[32]byte // root hash

	mu      sync.Mutex // guards partial
	partial map[tileID]*tileNodes
}

// nodes are hashes of nodes that are complete in a tree.
type nodes map[compact.NodeID][]byte

// nodesOf returns the perfect subtrees of a tree.
func nodesOf(r *compact.Range) nodes {
	n := nodes{}
	for i, id := range compact.RangeNodes(0, r.End(), nil) {
		n[id] = r.Hashes()[i]
	}
	return n
}

func (n nodes) visit(id compact.NodeID, hash []byte) { n[id] = hash }

type tileID struct{ level, index uint64 }

// tileNodes holds a tile's hashes and all complete nodes above them: levels[0] is the tile,
// levels[8] its root when it is full.
type tileNodes struct {
	levels [layout.TileHeight + 1][][]byte
}

func newView(tree Tree, full *tileCache, size uint64) *view {
	return &view{size: size, tree: tree, full: full, partial: map[tileID]*tileNodes{}}
}

// root returns the tree's root hash, computed from what is stored.
func (v *view) root(ctx context.Context) ([32]byte, error) {
	r, err := v.compactRange(ctx)
	if err != nil {
		return [32]byte{}, err
	}
	return rootOf(r)
}

// compactRange returns the tree as its perfect subtrees, left to right, from what is stored.
func (v *view) compactRange(ctx context.Context) (*compact.Range, error) {
	ids := compact.RangeNodes(0, v.size, nil)
	if engine, ok := v.tree.(ProofTree); ok {
		hashes, err := rangeFromProof(ctx, engine, v.size, len(ids))
		if err != nil {
			return nil, err
		}
		return hashing.NewRange(0, v.size, hashes)
	}
	hashes := make([][]byte, len(ids))
	for i, id := range ids {
		h, err := v.stored(ctx, id)
		if err != nil {
			return nil, err
		}
		hashes[i] = h
	}
	return hashing.NewRange(0, v.size, hashes)
}

// rangeFromProof returns the count perfect subtrees of the tree of size, left to right. The audit path of the
// last leaf leads first up the right edge of the last of them and then over all the others.
func rangeFromProof(ctx context.Context, engine ProofTree, size uint64, count int) ([][]byte, error) {
	if size == 0 {
		return nil, nil
	}
	last := size - 1
	raw, err := engine.Bundle(ctx, last/layout.EntryBundleWidth, layout.PartialTileSize(0, last/layout.EntryBundleWidth, size))
	if err != nil {
		return nil, fmt.Errorf("reading leaf %d: %w", last, err)
	}
	leaves, err := parseBundle(Rekor1, raw)
	if err != nil {
		return nil, fmt.Errorf("reading leaf %d: %w", last, err)
	}
	if uint64(len(leaves)) <= last%layout.EntryBundleWidth {
		return nil, fmt.Errorf("reading leaf %d: the engine returned %d leaves of its bundle", last, len(leaves))
	}
	path, err := engine.Inclusion(ctx, last, size)
	if err != nil {
		return nil, fmt.Errorf("proving leaf %d: %w", last, err)
	}
	height := bits.TrailingZeros64(size)
	if len(path) != height+count-1 {
		return nil, fmt.Errorf("proving leaf %d: the engine returned %d hashes, want %d", last, len(path), height+count-1)
	}
	hash := leaves[last%layout.EntryBundleWidth].leafHash[:]
	for _, left := range path[:height] {
		hash = appendParent(nil, left, hash)
	}
	hashes := append([][]byte{hash}, path[height:]...)
	slices.Reverse(hashes)
	return hashes, nil
}

func rootOf(r *compact.Range) ([32]byte, error) {
	if r.End() == 0 {
		return [32]byte(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return [32]byte{}, fmt.Errorf("computing root: %w", err)
	}
	return [32]byte(root), nil
}

// inclusion returns the audit path of the leaf at index, leaf to root (RFC 6962, section 2.1.1).
func (v *view) inclusion(ctx context.Context, index uint64) ([][]byte, error) {
	nodes, err := proof.Inclusion(index, v.size)
	if err != nil {
		return nil, fmt.Errorf("proving inclusion: %w", err)
	}
	if engine, ok := v.tree.(ProofTree); ok && !v.holds(nodes) {
		return engine.Inclusion(ctx, index, v.size)
	}
	return v.prove(ctx, nodes)
}

// consistency returns the proof that the tree of size first is a prefix of v's (RFC 6962, section 2.1.2).
func (v *view) consistency(ctx context.Context, first uint64) ([][]byte, error) {
	nodes, err := proof.Consistency(first, v.size)
	if err != nil {
		return nil, fmt.Errorf("proving consistency: %w", err)
	}
	if engine, ok := v.tree.(ProofTree); ok && !v.holds(nodes) {
		return engine.Consistency(ctx, first, v.size)
	}
	return v.prove(ctx, nodes)
}

// holds tells whether all nodes are in memory.
func (v *view) holds(nodes proof.Nodes) bool {
	for _, id := range nodes.IDs {
		if v.fresh[id] == nil {
			return false
		}
	}
	return true
}

func (v *view) prove(ctx context.Context, nodes proof.Nodes) ([][]byte, error) {
	hashes := make([][]byte, len(nodes.IDs))
	for i, id := range nodes.IDs {
		if h := v.fresh[id]; h != nil {
			hashes[i] = h
			continue
		}
		h, err := v.stored(ctx, id)
		if err != nil {
			return nil, err
		}
		hashes[i] = h
	}
	return nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
}

// stored returns the hash of a node that lies wholly inside the tree, from the tiles.
func (v *view) stored(ctx context.Context, id compact.NodeID) ([]byte, error) {
	tileLevel, tileIndex, nodeLevel, nodeIndex := layout.NodeCoordsToTileAddress(uint64(id.Level), id.Index)
	tile, err := v.tile(ctx, tileID{tileLevel, tileIndex})
	if err != nil {
		return nil, err
	}
	if nodes := tile.levels[nodeLevel]; nodeIndex < uint64(len(nodes)) {
		return nodes[nodeIndex], nil
	}
	return nil, fmt.Errorf("tile %d/%d holds no node %d at level %d in a tree of size %d", tileLevel, tileIndex, nodeIndex, nodeLevel, v.size)
}

func (v *view) tile(ctx context.Context, id tileID) (*tileNodes, error) {
	tree, ok := v.tree.(TileTree)
	if !ok {
		return nil, fmt.Errorf("a %T has no tiles", v.tree)
	}
	width := layout.PartialTileSize(id.level, id.index, max(v.size, v.stands))
	if width == 0 {
		return v.full.get(ctx, tree, id)
	}
	v.mu.Lock()
	defer v.mu.Unlock() // held while reading: all waiters of a batch want the same tile
	if t := v.partial[id]; t != nil {
		return t, nil
	}
	t, err := loadTile(ctx, tree, id, width)
	if err == nil {
		v.partial[id] = t
	}
	return t, err
}

func loadTile(ctx context.Context, tree TileTree, id tileID, width uint8) (*tileNodes, error) {
	raw, err := tree.Tile(ctx, id.level, id.index, width)
	if err != nil {
		return nil, fmt.Errorf("reading tile %d/%d: %w", id.level, id.index, err)
	}
	count := int(width)
	if width == 0 {
		count = layout.TileWidth
	}
	if len(raw) < 32*count {
		return nil, fmt.Errorf("tile %d/%d has %d bytes, want %d hashes", id.level, id.index, len(raw), count)
	}
	t := &tileNodes{}
	t.levels[0] = make([][]byte, count)
	for i := range count {
		t.levels[0][i] = raw[32*i : 32*i+32 : 32*i+32]
	}
	inner := make([]byte, 0, 32*count) // fewer nodes above than hashes in the tile
	for level := 1; level < len(t.levels); level++ {
		below := t.levels[level-1]
		t.levels[level] = make([][]byte, len(below)/2)
		for i := range t.levels[level] {
			inner = appendParent(inner, below[2*i], below[2*i+1])
			t.levels[level][i] = inner[len(inner)-32 : len(inner) : len(inner)]
		}
	}
	return t, nil
}

// appendParent appends the node above left and right: SHA-256(0x01 ‖ left ‖ right), RFC 6962, section 2.1.
func appendParent(to, left, right []byte) []byte {
	var input [1 + 32 + 32]byte
	input[0] = rfc6962.RFC6962NodeHashPrefix
	copy(input[1:], left)
	copy(input[33:], right)
	sum := sha256.Sum256(input[:])
	return append(to, sum[:]...)
}

// tileCache keeps the most recently loaded full tiles; they never change. 256 tiles take about 7 MiB.
type tileCache struct {
	mu    sync.Mutex // guards what follows
	tiles map[tileID]*cachedTile
	order []tileID // first loaded first
}

// cachedTile is loaded once, however many requests of a batch want it at the same time.
type cachedTile struct {
	once  sync.Once
	nodes *tileNodes
	err   error
}

const cachedTiles = 256

func newTileCache() *tileCache { return &tileCache{tiles: map[tileID]*cachedTile{}} }

func (c *tileCache) get(ctx context.Context, tree TileTree, id tileID) (*tileNodes, error) {
	t := c.entry(id)
	t.once.Do(func() { t.nodes, t.err = loadTile(context.WithoutCancel(ctx), tree, id, 0) })
	if t.err != nil {
		c.drop(id, t) // the next request tries again
	}
	return t.nodes, t.err
}

func (c *tileCache) entry(id tileID) *cachedTile {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tiles[id]
	if t == nil {
		if len(c.order) == cachedTiles {
			delete(c.tiles, c.order[0])
			c.order = c.order[1:]
		}
		t = &cachedTile{}
		c.tiles[id] = t
		c.order = append(c.order, id)
	}
	return t
}

func (c *tileCache) drop(id tileID, t *cachedTile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tiles[id] == t {
		delete(c.tiles, id)
		c.order = slices.DeleteFunc(c.order, func(other tileID) bool { return other == id })
	}
}
