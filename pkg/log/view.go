package log

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
)

// hashing merges nodes as RFC 6962, section 2.1 does.
var hashing = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// view computes roots and proofs of one tree size from the tiles. Requests that wait on one
// checkpoint share a view: each tile is read and hashed upwards once for all of them.
type view struct {
	size uint64
	tree Tree
	full *tileCache // shared by all views of a log

	mu      sync.Mutex // guards partial
	partial map[tileID]*tileNodes
}

type tileID struct{ level, index uint64 }

// tileNodes holds a tile's hashes and all complete nodes above them: levels[0] is the tile,
// levels[8] its root when it is full.
type tileNodes struct {
	levels [layout.TileHeight + 1][][]byte
}

func newView(tree Tree, full *tileCache, size uint64) *view {
	return &view{size: size, tree: tree, full: full, partial: map[tileID]*tileNodes{}}
}

// root returns the tree's root hash, computed from the tiles.
func (v *view) root(ctx context.Context) ([32]byte, error) {
	r, err := v.compactRange(ctx)
	if err != nil {
		return [32]byte{}, err
	}
	return rootOf(r)
}

// compactRange returns the tree as its perfect subtrees, left to right.
func (v *view) compactRange(ctx context.Context) (*compact.Range, error) {
	ids := compact.RangeNodes(0, v.size, nil)
	hashes := make([][]byte, len(ids))
	for i, id := range ids {
		h, err := v.node(ctx, id)
		if err != nil {
			return nil, err
		}
		hashes[i] = h
	}
	return hashing.NewRange(0, v.size, hashes)
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
	return v.prove(ctx, nodes)
}

// consistency returns the proof that the tree of size first is a prefix of v's (RFC 6962, section 2.1.2).
func (v *view) consistency(ctx context.Context, first uint64) ([][]byte, error) {
	nodes, err := proof.Consistency(first, v.size)
	if err != nil {
		return nil, fmt.Errorf("proving consistency: %w", err)
	}
	return v.prove(ctx, nodes)
}

func (v *view) prove(ctx context.Context, nodes proof.Nodes) ([][]byte, error) {
	hashes := make([][]byte, len(nodes.IDs))
	for i, id := range nodes.IDs {
		h, err := v.node(ctx, id)
		if err != nil {
			return nil, err
		}
		hashes[i] = h
	}
	return nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
}

// node returns the hash of a node that lies wholly inside the tree.
func (v *view) node(ctx context.Context, id compact.NodeID) ([]byte, error) {
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
	width := layout.PartialTileSize(id.level, id.index, v.size)
	if width == 0 {
		return v.full.get(ctx, v.tree, id)
	}
	v.mu.Lock()
	defer v.mu.Unlock() // held while reading: all waiters of a batch want the same tile
	if t := v.partial[id]; t != nil {
		return t, nil
	}
	t, err := loadTile(ctx, v.tree, id, width)
	if err == nil {
		v.partial[id] = t
	}
	return t, err
}

func loadTile(ctx context.Context, tree Tree, id tileID, width uint8) (*tileNodes, error) {
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

func (c *tileCache) get(ctx context.Context, tree Tree, id tileID) (*tileNodes, error) {
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
