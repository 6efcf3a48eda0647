package log

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// TreeReader is the part of a Tree that a check reads. A check also compares the tiles of a TileReader, and verifies
// proofs of a ProofReader.
type TreeReader interface {
	Size(ctx context.Context) (uint64, error)
	Bundle(ctx context.Context, index uint64, width uint8) ([]byte, error)
}

// TileReader is the part of a TileTree that a check reads.
type TileReader interface {
	TreeReader
	Tile(ctx context.Context, level, index uint64, width uint8) ([]byte, error)
}

// ProofReader is the part of a ProofTree that a check reads.
type ProofReader interface {
	TreeReader
	Inclusion(ctx context.Context, index, size uint64) ([][]byte, error)
}

// PartialLister is a TreeReader that also knows which partial tiles are stored beside one: content by width.
type PartialLister interface {
	Partials(level, index uint64) (map[int][]byte, error)
	PartialBundles(index uint64) (map[int][]byte, error)
}

// SignedTree is a tree that the log's key has committed itself to.
type SignedTree struct {
	Size uint64
	Root [32]byte
	By   string // who says so: "fence", or the name of a checkpoint's file
}

// Finding is one thing that a check has found.
type Finding struct {
	Harmless bool   `json:"harmless"` // expected after a crash, or known before: nothing to do
	What     string `json:"what"`     // stable code, such as "tile" or "row_missing"
	Where    string `json:"where"`    // such as "tile 0/17" or "leaf 4711"
	Detail   string `json:"detail"`
}

func (f Finding) String() string {
	kind := "DAMAGED"
	if f.Harmless {
		kind = "harmless"
	}
	return fmt.Sprintf("%s %s: %s: %s", kind, f.What, f.Where, f.Detail)
}

// CheckOptions are the parts of a check.
type CheckOptions struct {
	Kind Kind
	Tree TreeReader
	// Signed are the trees that must be this tree or its beginnings; the largest says how far
	// the check goes. Without any, it goes to the tree's size.
	Signed []SignedTree
	Rows   *StoredRows // nil: rows are not looked at
	// Issuer returns the issuer certificate (DER) with this SHA-256; nil: issuers are not looked at.
	Issuer func(fingerprint [32]byte) ([]byte, error)
	Now    func() time.Time // nil means time.Now
	Report func(Finding)
}

// Checked is what a check has gone through.
type Checked struct {
	Size    uint64
	Root    [32]byte // of the leaves; zero when they could not all be read
	Damaged int      // findings that are not harmless
}

// maxDamaged is how many findings a check reports before it gives up: a tree that lost a disk has one for each file.
const maxDamaged = 1000

var errTooDamaged = errors.New("too much is damaged to go on")

// Check derives the whole tree again from its entry bundles and compares all that is stored: hash tiles of every level byte
// for byte, partial ones too, the signed trees, the rows. It reads only and needs memory for a few bundles,
// whatever the tree's size; the log may run meanwhile. The error is nil when it came to
// the end, whatever it found.
func Check(ctx context.Context, opts CheckOptions) (Checked, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	c := &check{CheckOptions: opts, extent: hashing.NewEmptyRange(0), issuers: map[[32]byte]bool{}}
	c.tiles, _ = opts.Tree.(TileReader)
	c.partials, _ = opts.Tree.(PartialLister)
	c.proofs, _ = opts.Tree.(ProofReader)
	if err := c.span(ctx); err != nil {
		return Checked{}, err
	}
	err := c.leaves(ctx)
	if err == nil {
		err = c.edges(ctx)
	}
	if err == nil && opts.Rows != nil {
		err = c.rowCounts(ctx)
	}
	done := Checked{Size: c.size, Root: c.root, Damaged: c.damaged}
	if errors.Is(err, errTooDamaged) {
		c.Report(Finding{What: "too_much", Where: "the log", Detail: fmt.Sprintf("%d findings; the check ends here", c.damaged)})
		return done, nil
	}
	return done, err
}

type check struct {
	CheckOptions
	tiles    TileReader    // nil: the engine keeps no tiles
	partials PartialLister // nil: the tree does not list them
	proofs   ProofReader   // nil: proofs are made of the tiles
	newest   SignedTree    // the largest signed tree that is not beyond the tree
	treeSize uint64
	size     uint64            // the check goes so far
	sizes    []uint64          // size, and those of all signed trees
	extent   *compact.Range    // of the leaves so far
	broken   bool              // a leaf hash is unknown: no roots from here on
	levels   [8][]byte         // nodes of the tile that is being filled, for each tile level
	full     [8]uint64         // tiles filled before it
	issuers  map[[32]byte]bool // fingerprints that are known to be there, or not
	root     [32]byte          // of size, once known
	damaged  int
}

func (c *check) report(f Finding) error {
	c.Report(f)
	if !f.Harmless {
		if c.damaged++; c.damaged >= maxDamaged {
			return errTooDamaged
		}
	}
	return nil
}

// span decides how far to check, and reports signed trees that are not there.
func (c *check) span(ctx context.Context) (err error) {
	if c.treeSize, err = c.Tree.Size(ctx); err != nil {
		return err
	}
	c.size = c.treeSize
	if len(c.Signed) > 0 {
		c.Signed = slices.Clone(c.Signed)
		slices.SortFunc(c.Signed, func(a, b SignedTree) int { return cmp.Compare(a.Size, b.Size) })
		largest := c.Signed[len(c.Signed)-1]
		c.size = min(c.treeSize, largest.Size)
		if largest.Size > c.treeSize {
			if err := c.report(Finding{What: "behind", Where: "the tree", Detail: fmt.Sprintf("it holds %d entries, but its key has signed %d (%s): entries are lost", c.treeSize, largest.Size, largest.By)}); err != nil {
				return err
			}
		}
		for _, s := range c.Signed {
			c.sizes = append(c.sizes, s.Size)
			if s.Size <= c.size {
				c.newest = s
			}
		}
	}
	c.sizes = append(c.sizes, c.size)
	return nil
}

// part is one entry bundle with all that belongs to its leaves.
type part struct {
	index    uint64
	leaves   []parsedLeaf // nil when the bundle is damaged
	hashes   []byte       // leaf hashes, 32 bytes each; of the tile when the bundle is damaged, nil when that is too
	rows     []StoredRow
	findings []Finding
	err      error
}

// leaves goes through all bundles in order. They are read and hashed ahead, a few at a time.
func (c *check) leaves(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	ahead := make(chan chan part, 2*runtime.GOMAXPROCS(0))
	defer func() { // those that were begun end before the caller closes what they read
		cancel()
		for p := range ahead {
			<-p
		}
	}()
	go func() { // ends at the last bundle or with ctx
		defer close(ahead)
		for index := uint64(0); index*layout.EntryBundleWidth < c.size; index++ {
			p := make(chan part, 1)
			select {
			case ahead <- p:
			case <-ctx.Done():
				return
			}
			go func() { p <- c.read(ctx, index) }()
		}
	}()
	for p := range ahead {
		p := <-p
		if p.err != nil {
			return p.err
		}
		if err := c.take(ctx, p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// count is how many leaves of the bundle the check takes.
func (c *check) count(index uint64) int {
	return int(min(c.size-index*layout.EntryBundleWidth, layout.EntryBundleWidth))
}

// read gets a bundle, its tile and its rows. It touches nothing that other goroutines write.
func (c *check) read(ctx context.Context, index uint64) part {
	p := part{index: index}
	count := c.count(index)
	where := fmt.Sprintf("entry bundle %d", index)
	damaged := func(what, where, format string, args ...any) {
		p.findings = append(p.findings, Finding{What: what, Where: where, Detail: fmt.Sprintf(format, args...)})
	}
	width := layout.PartialTileSize(0, index, c.size)
	raw, err := c.Tree.Bundle(ctx, index, width)
	if err == nil {
		p.leaves, err = parseBundle(c.Kind, raw)
	}
	if err == nil && len(p.leaves) < count {
		err = fmt.Errorf("it has %d entries, want %d", len(p.leaves), count)
	}
	if err == nil && len(p.leaves) > layout.EntryBundleWidth {
		err = fmt.Errorf("it has %d entries, over %d", len(p.leaves), layout.EntryBundleWidth)
	}
	if ctx.Err() != nil {
		p.err = ctx.Err()
		return p
	}
	if err != nil {
		damaged("bundle", where, "%v", err)
		p.leaves = nil
	} else {
		p.leaves = p.leaves[:count]
		p.hashes = make([]byte, 0, 32*count)
		for _, leaf := range p.leaves {
			p.hashes = append(p.hashes, leaf.leafHash[:]...)
		}
	}
	if c.tiles != nil {
		tile, findings := c.compareTile(ctx, 0, index, p.hashes, count)
		p.findings = append(p.findings, findings...)
		if p.hashes == nil {
			p.hashes = tile
		}
	}
	if c.partials != nil && p.leaves != nil {
		stored, err := c.partials.PartialBundles(index)
		if err != nil {
			damaged("partial", where, "%v", err)
		}
		for width, content := range stored {
			if width <= count && !bytes.Equal(content, raw[:entriesBytes(c.Kind, p.leaves[:width])]) {
				p.findings = append(p.findings, c.partial(where, 0, index, width, "bundle", "entries"))
			}
		}
	}
	if c.proofs != nil && p.leaves != nil && c.newest.Size > index*layout.EntryBundleWidth {
		first := index * layout.EntryBundleWidth
		path, err := c.proofs.Inclusion(ctx, first, c.newest.Size)
		if err == nil {
			err = proof.VerifyInclusion(rfc6962.DefaultHasher, first, c.newest.Size, p.leaves[0].leafHash[:], path, c.newest.Root[:])
		}
		if err != nil {
			damaged("proof", fmt.Sprintf("leaf %d", first), "its inclusion in the tree of size %d: %v", c.newest.Size, err)
		}
	}
	if c.Rows != nil {
		first := index * layout.EntryBundleWidth
		if p.rows, err = c.Rows.Range(ctx, first, first+uint64(count), c.Kind == CTPlain); err != nil {
			p.err = err
		}
	}
	return p
}

// entriesBytes returns how many bytes leaves take in a bundle.
func entriesBytes(kind Kind, leaves []parsedLeaf) (n int) {
	for _, leaf := range leaves {
		n += len(leaf.data)
		if kind != CT {
			n += 2 // the length before each entry
		}
	}
	return n
}

// BundleBytes returns how many bytes the first count entries of a bundle take.
func BundleBytes(kind Kind, bundle []byte, count int) (int, error) {
	leaves, err := parseBundle(kind, bundle)
	if err != nil {
		return 0, err
	}
	if len(leaves) < count {
		return 0, fmt.Errorf("it has %d entries, want %d", len(leaves), count)
	}
	return entriesBytes(kind, leaves[:count]), nil
}

// compareTile compares a stored tile, and its partial forms, with the nodes that the leaves make; with nil nodes it only
// reads. It returns count nodes of what is stored, nil when there are not as many.
func (c *check) compareTile(ctx context.Context, level, index uint64, want []byte, count int) (stored []byte, findings []Finding) {
	where := fmt.Sprintf("tile %d/%d", level, index)
	damaged := func(what, format string, args ...any) {
		findings = append(findings, Finding{What: what, Where: where, Detail: fmt.Sprintf(format, args...)})
	}
	width := uint8(count % layout.TileWidth)
	raw, err := c.tiles.Tile(ctx, level, index, width)
	switch {
	case err != nil:
		damaged("tile", "%v", err)
	case len(raw) < 32*count || len(raw)%32 != 0 || len(raw) > 32*layout.TileWidth:
		damaged("tile", "it has %d bytes, want %d hashes", len(raw), count)
	default:
		stored = raw[:32*count]
		if want != nil && !bytes.Equal(stored, want) {
			damaged("tile", "hash %d is not that of the leaves", firstDifference(stored, want))
		}
	}
	if c.partials == nil || want == nil {
		return stored, findings
	}
	partials, err := c.partials.Partials(level, index)
	if err != nil {
		damaged("partial", "%v", err)
	}
	for width, content := range partials {
		if width <= count && !bytes.Equal(content, want[:32*width]) {
			findings = append(findings, c.partial(where, level, index, width, "tile", "hashes"))
		}
	}
	return stored, findings
}

// partial is what a partial tile or bundle with other content than the leaves give means. At the edge of a signed tree it
// is damage. At another width nothing reads it: a batch was cut before its tree became one, and others came in its place.
func (c *check) partial(where string, level, index uint64, width int, file, content string) Finding {
	f := Finding{What: "partial", Where: where, Detail: fmt.Sprintf("its partial %s of width %d holds other %s", file, width, content)}
	edge := func(size uint64) bool { return size>>(layout.TileHeight*level) == index*layout.TileWidth+uint64(width) }
	if f.Harmless = !slices.ContainsFunc(c.sizes, edge); f.Harmless {
		f.Detail += "; no signed tree ends there, a batch that was cut has left it"
	}
	return f
}

func firstDifference(a, b []byte) int {
	for i := 0; i < len(a); i += 32 {
		if !bytes.Equal(a[i:i+32], b[i:i+32]) {
			return i / 32
		}
	}
	return len(a) / 32
}

// take adds a bundle's leaves to the tree.
func (c *check) take(ctx context.Context, p part) error {
	for _, f := range p.findings {
		if err := c.report(f); err != nil {
			return err
		}
	}
	if p.leaves != nil {
		if err := c.checkLeaves(p); err != nil {
			return err
		}
		if c.Rows != nil {
			if err := c.checkRows(ctx, p); err != nil {
				return err
			}
		}
	}
	if p.hashes == nil { // neither leaves nor tile: what is above them cannot be known
		c.broken = true
		return nil
	}
	if c.broken {
		return nil
	}
	if err := c.checkRoots(p); err != nil {
		return err
	}
	return c.push(ctx, 0, p.hashes)
}

// checkRoots moves the extent over the bundle and compares the roots of the signed trees that end in it.
func (c *check) checkRoots(p part) error {
	first := p.index * layout.EntryBundleWidth
	end := first + uint64(len(p.hashes)/32)
	for len(c.Signed) > 0 && c.Signed[0].Size <= end {
		signed := c.Signed[0]
		c.Signed = c.Signed[1:]
		at, err := hashing.NewRange(0, c.extent.End(), slices.Clone(c.extent.Hashes()))
		if err != nil {
			return err
		}
		if err := appendHashes(at, p.hashes[:32*(signed.Size-first)]); err != nil {
			return err
		}
		root, err := rootOf(at)
		if err != nil {
			return err
		}
		if root == signed.Root {
			continue
		}
		if err := c.report(Finding{What: "root", Where: fmt.Sprintf("the tree of size %d", signed.Size),
			Detail: fmt.Sprintf("its root is %x, but the key has signed %x (%s)", root, signed.Root, signed.By)}); err != nil {
			return err
		}
	}
	if len(p.hashes) < 32*layout.EntryBundleWidth {
		return appendHashes(c.extent, p.hashes)
	}
	whole, err := hashing.NewRange(first, end, [][]byte{above(p.hashes)})
	if err != nil {
		return err
	}
	return c.extent.AppendRange(whole, nil)
}

func appendHashes(to *compact.Range, hashes []byte) error {
	for hash := range slices.Chunk(hashes, 32) {
		if err := to.Append(hash, nil); err != nil {
			return err
		}
	}
	return nil
}

// push adds nodes to the tile that is being filled at level. A full tile is compared (at level 0 it was already) and
// becomes one node of the level above.
func (c *check) push(ctx context.Context, level uint64, nodes []byte) error {
	c.levels[level] = append(c.levels[level], nodes...)
	if len(c.levels[level]) < 32*layout.TileWidth {
		return nil
	}
	full := c.levels[level]
	if level > 0 && c.tiles != nil {
		if err := c.compare(ctx, level, full); err != nil {
			return err
		}
	}
	node := above(full)
	c.levels[level] = full[:0]
	c.full[level]++
	if level == 7 {
		return nil
	}
	return c.push(ctx, level+1, node)
}

func (c *check) compare(ctx context.Context, level uint64, nodes []byte) error {
	_, findings := c.compareTile(ctx, level, c.full[level], nodes, len(nodes)/32)
	for _, f := range findings {
		if err := c.report(f); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// above returns the root of a full tile.
func above(tile []byte) []byte {
	nodes := slices.Clone(tile)
	for len(nodes) > 32 {
		half := nodes[:0:len(nodes)]
		for i := 0; i < len(nodes); i += 64 {
			half = appendParent(half, nodes[i:i+32], nodes[i+32:i+64]) // writes behind what it has read
		}
		nodes = half
	}
	return nodes
}

// edges compares the partial tiles at the right edge, and the root.
func (c *check) edges(ctx context.Context) error {
	if c.broken {
		return c.report(Finding{What: "root", Where: "the tree", Detail: "leaves and their tile are both unreadable; no root can be computed"})
	}
	for level := uint64(1); level < 8 && c.tiles != nil; level++ {
		if len(c.levels[level]) > 0 {
			if err := c.compare(ctx, level, c.levels[level]); err != nil {
				return err
			}
		}
	}
	root, err := rootOf(c.extent)
	if err != nil {
		return err
	}
	c.root = root
	for _, signed := range c.Signed { // left are those beyond the tree, and all when it is empty
		if signed.Size == c.size && signed.Root != root {
			if err := c.report(Finding{What: "root", Where: fmt.Sprintf("the tree of size %d", signed.Size),
				Detail: fmt.Sprintf("its root is %x, but the key has signed %x (%s)", root, signed.Root, signed.By)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkRows compares a bundle's leaves with their rows.
func (c *check) checkRows(ctx context.Context, p part) error {
	first := p.index * layout.EntryBundleWidth
	rows := map[uint64]StoredRow{}
	for _, r := range p.rows {
		rows[r.Index] = r
	}
	now := c.Now()
	for i, leaf := range p.leaves {
		index := first + uint64(i)
		where := fmt.Sprintf("leaf %d", index)
		r, ok := rows[index]
		var f Finding
		switch {
		case !ok:
			// A tree of another maker may have an identity twice; the first has the row.
			other, known, err := c.Rows.IndexOf(ctx, leaf.identity)
			if err != nil {
				return fmt.Errorf("reading rows: %w", err)
			}
			if known && other < index && c.Kind != Rekor1 {
				continue
			}
			f = Finding{What: "row_missing", Where: where, Detail: "it has no row"}
			if known {
				f.Detail = fmt.Sprintf("its row has index %d", other)
			}
		case r.Identity != leaf.identity:
			f = Finding{What: "row_identity", Where: where, Detail: fmt.Sprintf("its row has identity %x, the leaf %x", r.Identity, leaf.identity)}
		case c.Kind == Rekor1 && (r.Integrated <= 0 || r.Integrated > now.Unix()):
			f = Finding{What: "row_time", Where: where, Detail: fmt.Sprintf("its integratedTime %d is not between 1970 and now", r.Integrated)}
		case c.Kind.isCT() && uint64(r.Integrated) != leaf.timestampMillis:
			f = Finding{What: "row_time", Where: where, Detail: fmt.Sprintf("its row has timestamp %d, the leaf %d", r.Integrated, leaf.timestampMillis)}
		case c.Kind.isCT() && !bytes.Equal(r.LeafHash, leaf.leafHash[:]):
			f = Finding{What: "row_hash", Where: where, Detail: fmt.Sprintf("its row has leaf hash %x, the leaf %x", r.LeafHash, leaf.leafHash)}
		case c.Kind == CTPlain && !r.Extra:
			f = Finding{What: "row_extra", Where: where, Detail: "its extra data (the chain) is not there"}
		default:
			continue
		}
		if err := c.report(f); err != nil {
			return err
		}
	}
	return nil
}

// rowCounts compares what the rows say of themselves with the tree. Rows past the tree were never answered, and the next start drops
// them.
func (c *check) rowCounts(ctx context.Context) error {
	next, err := c.Rows.Next(ctx)
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	if next < c.size {
		if err := c.report(Finding{What: "rows_behind", Where: "the rows", Detail: fmt.Sprintf("they count %d leaves, the tree has %d", next, c.size)}); err != nil {
			return err
		}
	}
	// Rows follow their leaves: what has one by now is in a tree that is looked at afterwards.
	end, err := c.Rows.End(ctx)
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	size, err := c.Tree.Size(ctx)
	if err != nil || end <= max(size, c.size) {
		return err
	}
	beyond, err := c.Rows.Beyond(ctx, max(size, c.size))
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	return c.report(Finding{Harmless: true, What: "rows_beyond", Where: "the rows", Detail: fmt.Sprintf("%d are of leaves past the tree; nobody was answered for them", beyond)})
}

// checkLeaves looks into the leaves of a CT log: what SCTs and clients take from them must parse, and their
// issuers must be there.
func (c *check) checkLeaves(p part) error {
	if !c.Kind.isCT() {
		return nil
	}
	latest := uint64(c.Now().UnixMilli())
	for i, leaf := range p.leaves {
		index := p.index*layout.EntryBundleWidth + uint64(i)
		var fingerprints [][32]byte
		var err error
		if c.Kind == CT { // a plain one's fields were all read with the bundle
			fingerprints, err = ctFields(leaf.data, index)
		}
		if err == nil && leaf.timestampMillis > latest {
			err = fmt.Errorf("its timestamp %d is in the future", leaf.timestampMillis)
		}
		if err != nil {
			if err := c.report(Finding{What: "leaf", Where: fmt.Sprintf("leaf %d", index), Detail: err.Error()}); err != nil {
				return err
			}
		}
		for _, fingerprint := range fingerprints {
			if _, known := c.issuers[fingerprint]; known || c.Issuer == nil {
				continue
			}
			der, err := c.Issuer(fingerprint)
			if err == nil && sha256.Sum256(der) != fingerprint {
				err = errors.New("the certificate under this name is another")
			}
			c.issuers[fingerprint] = err == nil
			if err == nil {
				continue
			}
			if err := c.report(Finding{What: "issuer", Where: fmt.Sprintf("issuer %x", fingerprint), Detail: fmt.Sprintf("leaf %d names it: %v", index, err)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// ctFields reads a static-ct TileLeaf, see parseTileLeaf, to its end, and returns the issuers that it names.
func ctFields(data []byte, index uint64) (fingerprints [][32]byte, err error) {
	s := cryptobyte.String(data)
	var kind uint16
	var signed, extensions, precertificate, chain cryptobyte.String
	ok := s.Skip(8) && s.ReadUint16(&kind) && (kind == 0 || s.Skip(32)) &&
		s.ReadUint24LengthPrefixed(&signed) && s.ReadUint16LengthPrefixed(&extensions) &&
		(kind == 0 || s.ReadUint24LengthPrefixed(&precertificate)) && s.ReadUint16LengthPrefixed(&chain) && s.Empty()
	switch {
	case !ok:
		return nil, errors.New("it is cut off or has something behind it")
	case !isSequence(signed):
		return nil, errors.New("its certificate or TBS is not one ASN.1 sequence")
	case kind == 1 && !isSequence(precertificate):
		return nil, errors.New("its precertificate is not one ASN.1 sequence")
	case len(chain)%32 != 0:
		return nil, fmt.Errorf("its issuers take %d bytes, no multiple of 32", len(chain))
	}
	for raw := range slices.Chunk([]byte(chain), 32) {
		fingerprints = append(fingerprints, [32]byte(raw))
	}
	for !extensions.Empty() {
		var extension uint8
		var content cryptobyte.String
		if !extensions.ReadUint8(&extension) || !extensions.ReadUint16LengthPrefixed(&content) {
			return fingerprints, errors.New("its extensions are cut off")
		}
		if extension != 0 { // leaf_index, c2sp.org/static-ct-api
			continue
		}
		if len(content) != 5 {
			return fingerprints, fmt.Errorf("its leaf_index extension has %d bytes, want 5", len(content))
		}
		if named := binary.BigEndian.Uint64(append(make([]byte, 3, 8), content...)); named != index {
			return fingerprints, fmt.Errorf("its leaf_index extension says %d", named)
		}
	}
	return fingerprints, nil
}

func isSequence(der cryptobyte.String) bool {
	var inner cryptobyte.String
	return der.ReadASN1(&inner, asn1.SEQUENCE) && der.Empty()
}
