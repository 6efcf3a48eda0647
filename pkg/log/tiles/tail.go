package tiles

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/ctonly"
	"golang.org/x/crypto/cryptobyte"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/journal"
	"github.com/attestry/attestry/pkg/log"
)

const (
	tailPath = ".state/tail"           // the journal of leaves that the driver has not integrated yet
	lockPath = ".state/treeState.lock" // Tessera's
)

const (
	tailBytes  = 8 << 20                // of the journal
	gatherTime = 100 * time.Millisecond // how long leaves gather before the driver gets them
	gatherMany = log.MaxBatch           // leaves that do not wait any longer
	feedPause  = time.Second            // after a driver's error
)

// leaf is an entry that is in the journal and perhaps not in the driver's tree.
type leaf struct {
	sub    log.Submission // Data or CT alone
	bundle []byte         // what it is in an entry bundle
}

// run is the end of a tree that the driver has not integrated: leaves from first on, and the hashes that they add to tiles.
type run struct {
	first  uint64
	leaves []leaf
	extent *compact.Range // of the whole tree, the leaves included
	nodes  map[compact.NodeID][]byte
}

func newRun(extent *compact.Range) *run {
	return &run{first: extent.End(), extent: extent, nodes: map[compact.NodeID][]byte{}}
}

func (r *run) size() uint64 { return r.first + uint64(len(r.leaves)) }

func (r *run) push(sub *log.Submission) error {
	l := leaf{sub: log.Submission{Data: sub.Data, CT: sub.CT}}
	var hash []byte
	index := r.size()
	if sub.CT != nil {
		l.bundle, hash = sub.CT.LeafData(index), sub.CT.MerkleLeafHash(index)
	} else {
		l.bundle = append(binary.BigEndian.AppendUint16(nil, uint16(len(sub.Data))), sub.Data...)
		hash = rfc6962.DefaultHasher.HashLeaf(sub.Data)
	}
	keep := func(id compact.NodeID, hash []byte) {
		if id.Level%layout.TileHeight == 0 {
			r.nodes[id] = hash
		}
	}
	if err := r.extent.Append(hash, keep); err != nil {
		return err
	}
	keep(compact.NodeID{Index: index}, hash)
	r.leaves = append(r.leaves, l)
	return nil
}

// advance drops what the driver has integrated up to size.
func (r *run) advance(size uint64) {
	r.leaves = append([]leaf(nil), r.leaves[size-r.first:]...) // the old array would keep what was dropped
	r.first = size
	for id := range r.nodes {
		if (id.Index+1)<<id.Level <= size {
			delete(r.nodes, id)
		}
	}
}

// tile returns what there is of a hash tile.
func (r *run) tile(level, index uint64) part {
	from := index * layout.TileWidth
	p := part{base: within(r.first>>(layout.TileHeight*level), from)}
	for i := from + uint64(p.base); i < from+layout.TileWidth; i++ {
		hash := r.nodes[compact.NodeID{Level: uint(level) * layout.TileHeight, Index: i}]
		if hash == nil {
			break
		}
		p.own = append(p.own, hash...)
		p.count++
	}
	return p
}

// bundle returns what there is of an entry bundle.
func (r *run) bundle(index uint64) part {
	from := index * layout.EntryBundleWidth
	p := part{base: within(r.first, from)}
	for i := max(from, r.first); i < min(from+layout.EntryBundleWidth, r.size()); i++ {
		p.own = append(p.own, r.leaves[i-r.first].bundle...)
		p.count++
	}
	return p
}

// within returns how many of the 256 nodes from from on lie below end.
func within(end, from uint64) int {
	if end <= from {
		return 0
	}
	return int(min(end-from, layout.TileWidth))
}

// elements is a width as tiles have it in their names: 0 is 256.
func elements(width uint8) int {
	if width == 0 {
		return layout.TileWidth
	}
	return int(width)
}

// part is what a tail has of a tile or bundle: count elements behind the base elements that the driver has.
type part struct {
	base, count int
	own         []byte
}

// join returns at least width elements: those that read gives of the driver's, and the part's own. Where the driver has collected a partial tile
// meanwhile, the full one is there, and is the answer.
func (p part) join(width uint8, read func(width uint8) ([]byte, error)) ([]byte, error) {
	if p.base+p.count < elements(width) {
		return nil, os.ErrNotExist
	}
	if p.base == 0 {
		return p.own, nil
	}
	stored, err := read(uint8(p.base)) // 0 for all 256
	if p.base < layout.TileWidth && errors.Is(err, os.ErrNotExist) {
		return read(0)
	}
	if err != nil {
		return nil, err
	}
	return append(stored[:len(stored):len(stored)], p.own...), nil
}

// tail makes leaves durable and readable before the driver has integrated them: a batch is one write in place and one sync, where the driver
// replaces a handful of files and syncs each of them and its directory. The driver gets the leaves a little later, many at once. A crash
// between the two leaves them in the journal, which the next start reads.
type tail struct {
	journal *journal.Journal
	kind    log.Kind
	driver  *driver

	wake    chan struct{}      // one token: there are leaves
	many    chan struct{}      // one token: there are many
	stop    context.CancelFunc // ends the gathering
	stopped context.Context
	ended   chan struct{} // closed when feed has ended

	disorder error // the driver's tree is not what the journal has; feed's alone

	mu      sync.RWMutex // guards what follows
	run     *run
	frames  []frameEnd
	failed  error         // the driver's last error, nil once it went on
	tell    func(error)   // see watch; nil for nobody
	changed chan struct{} // closed and replaced when run.first or failed changes
}

// frameEnd is the size of the tree after a frame of the journal.
type frameEnd struct{ number, size uint64 }

// openTail reads what the driver has not integrated, and lets it have it.
func openTail(ctx context.Context, dir string, kind log.Kind, d *driver) (*tail, error) {
	j, frames, err := journal.Open(filepath.Join(dir, tailPath), tailBytes)
	if errors.Is(err, journal.ErrDamaged) {
		return nil, unusable(dir, err)
	}
	if err != nil {
		return nil, err
	}
	extent, err := d.extent(ctx)
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	r := newRun(extent)
	subs, ends, err := unintegrated(kind, frames, r.first)
	if err == nil {
		err = r.add(subs...)
	}
	if err != nil {
		return nil, errors.Join(unusable(dir, err), j.Close())
	}
	stopped, stop := context.WithCancel(context.WithoutCancel(ctx))
	t := &tail{
		journal: j, kind: kind, driver: d, run: r, frames: ends, stop: stop, stopped: stopped,
		wake: make(chan struct{}, 1), many: make(chan struct{}, 1), ended: make(chan struct{}), changed: make(chan struct{}),
	}
	if len(frames) > 0 && len(r.leaves) == 0 {
		j.Free(frames[len(frames)-1].Number) // all of it is integrated
	}
	poke(t.wake)
	go t.feed()
	return t, nil
}

// unusable says what to do about a journal that cannot be read, or does not continue the tree.
func unusable(dir string, err error) error {
	return fmt.Errorf("%w; %s has the newest leaves of the tree: bring both back as they were, or move it away, and the log says at its start what was lost",
		err, filepath.Join(dir, tailPath))
}

// unintegrated returns the leaves of a journal's frames from first on. Frames that end before it may be missing.
func unintegrated(kind log.Kind, frames []journal.Frame, first uint64) (subs []log.Submission, ends []frameEnd, err error) {
	for _, f := range frames {
		index, batch, err := parseFrame(kind, f.Payload)
		if err != nil {
			return nil, nil, fmt.Errorf("frame %d: %w", f.Number, err)
		}
		end := index + uint64(len(batch))
		if end <= first {
			continue
		}
		if index < first {
			index, batch = first, batch[first-index:]
		}
		if next := first + uint64(len(subs)); index != next {
			return nil, nil, fmt.Errorf("frame %d has the leaves from %d on, and those from %d on come next", f.Number, index, next)
		}
		subs = append(subs, batch...)
		ends = append(ends, frameEnd{f.Number, end})
	}
	return subs, ends, nil
}

// add puts leaves behind the others.
func (r *run) add(subs ...log.Submission) error {
	for i := range subs {
		if err := r.push(&subs[i]); err != nil {
			return fmt.Errorf("hashing leaf %d: %w", r.size(), err)
		}
	}
	return nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// append makes a batch durable. It is for one goroutine at a time. When the journal is full it waits for the driver, unless that fails.
func (t *tail) append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	first := t.size()
	payload, err := marshalFrame(t.kind, first, batch)
	if err != nil {
		return nil, err
	}
	for again := false; ; {
		number, err := t.journal.Append(payload)
		if err == nil {
			return t.took(batch, first, number)
		}
		if !errors.Is(err, journal.ErrFull) {
			return nil, err
		}
		waiting, changed, failed := t.state()
		if waiting == 0 {
			if again {
				return t.direct(ctx, batch) // larger than the journal
			}
			again = true // the last ones may have left it just now
			continue
		}
		if failed != nil {
			return nil, fault.New(fault.Unavailable, "log_storage", failed, "the log's storage takes nothing; the entry is not in the log, try again later")
		}
		poke(t.many)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (t *tail) state() (waiting int, changed chan struct{}, failed error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.run.leaves), t.changed, t.failed
}

// watch has f called with the error when the driver begins to fail, and with nil when it goes on.
func (t *tail) watch(f func(error)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tell = f
	if t.failed != nil {
		f(t.failed)
	}
}

// took adds a batch that is durable.
func (t *tail) took(batch []log.Submission, first, number uint64) ([]uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	indexes := make([]uint64, len(batch))
	for i := range batch {
		indexes[i] = first + uint64(i)
	}
	if err := t.run.add(batch...); err != nil {
		return nil, err
	}
	t.frames = append(t.frames, frameEnd{number, t.run.size()})
	poke(t.wake)
	if len(t.run.leaves) >= gatherMany {
		poke(t.many)
	}
	return indexes, nil
}

// direct gives a batch to the driver at once. Nothing waits in the journal; what may come back of an append that failed would stand beside the batch.
func (t *tail) direct(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	nothing, err := marshalFrame(t.kind, t.size(), nil)
	if err == nil {
		_, err = t.journal.Append(nothing)
	}
	if err != nil {
		return nil, err
	}
	indexes, err := t.driver.append(ctx, batch)
	extent, extentErr := t.driver.extent(context.WithoutCancel(ctx)) // after an error, too: some of the batch may be there
	if err := errors.Join(err, extentErr); err != nil && extentErr != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.run = newRun(extent)
	t.signal(nil)
	return indexes, err
}

// signal tells who waits that something changed, t.mu held.
func (t *tail) signal(failed error) {
	if t.tell != nil && (failed == nil) != (t.failed == nil) {
		t.tell(failed)
	}
	t.failed = failed
	close(t.changed)
	t.changed = make(chan struct{})
}

// feed gives the driver what is in the journal until close.
func (t *tail) feed() {
	defer close(t.ended)
	for {
		select {
		case <-t.wake:
			t.wait(gatherTime, t.many)
		case <-t.stopped.Done():
		}
		for {
			batch := t.oldest()
			if len(batch) == 0 {
				break
			}
			if err := t.integrate(batch); err != nil {
				if t.stopped.Err() != nil {
					return // the next start does it
				}
				t.wait(feedPause, nil)
			} else if t.fewer(gatherMany) && t.stopped.Err() == nil {
				break
			}
		}
		if t.stopped.Err() != nil {
			return
		}
	}
}

// fewer tells whether less than n leaves wait. Those that do have a token.
func (t *tail) fewer(n int) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.run.leaves) > 0 {
		poke(t.wake)
	}
	return len(t.run.leaves) < n
}

// wait ends after d, at a token, or at close.
func (t *tail) wait(d time.Duration, token <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-token:
	case <-t.stopped.Done():
	}
}

// oldest returns the leaves that the driver gets next.
func (t *tail) oldest() []log.Submission {
	t.mu.RLock()
	defer t.mu.RUnlock()
	batch := make([]log.Submission, min(len(t.run.leaves), log.MaxBatch))
	for i := range batch {
		batch[i] = t.run.leaves[i].sub
	}
	return batch
}

// integrate gives the driver a batch, unless it turns out to have some of it already: after an error nobody knows.
func (t *tail) integrate(batch []log.Submission) error {
	ctx := context.WithoutCancel(t.stopped)
	size, err := t.driver.size(ctx)
	if first := t.first(); err == nil && size == first && t.disorder == nil {
		var indexes []uint64
		indexes, err = t.driver.append(ctx, batch)
		for i, index := range indexes {
			if index != first+uint64(i) {
				t.disorder = fmt.Errorf("the driver gave leaf %d index %d: its tree is not the one that was signed; keep the directory, and its .state/tail above all", first+uint64(i), index)
				break
			}
		}
		if err == nil {
			size += uint64(len(batch))
		} else if now, sizeErr := t.driver.size(ctx); sizeErr == nil {
			size = now
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.disorder == nil && (size < t.run.first || size > t.run.size()) && err == nil {
		t.disorder = fmt.Errorf("the driver's tree has size %d where %d to %d was expected: another writer adds to it", size, t.run.first, t.run.size())
	}
	if t.disorder != nil { // for good: the leaves stay in the journal
		t.signal(t.disorder)
		return t.disorder
	}
	if size > t.run.first && size <= t.run.size() {
		t.run.advance(size)
		for len(t.frames) > 0 && t.frames[0].size <= size {
			t.journal.Free(t.frames[0].number)
			t.frames = t.frames[1:]
		}
	}
	t.signal(err)
	return err
}

// tile and bundle return what there is now.
func (t *tail) tile(level, index uint64) part {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.run.tile(level, index)
}

func (t *tail) bundle(index uint64) part {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.run.bundle(index)
}

func (t *tail) first() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.run.first
}

func (t *tail) size() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.run.size()
}

// close gives the driver what is left, if it takes it, and the journal up.
func (t *tail) close() error {
	t.stop()
	<-t.ended
	return t.journal.Close()
}

// marshalFrame returns the payload of a frame: the index of its first leaf (8 bytes, big endian), then each leaf.
//
//	Rekor and plain CT: uint16 entry
//	static-ct: uint64 timestamp, uint8 precertificate?, uint24 certificate or TBS, uint24 precertificate, uint8 issuer key hash, uint16 fingerprints
func marshalFrame(kind log.Kind, index uint64, batch []log.Submission) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddUint64(index)
	for _, sub := range batch {
		if kind != log.CT {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sub.Data) })
			continue
		}
		precert := uint8(0)
		if sub.CT.IsPrecert {
			precert = 1
		}
		b.AddUint64(sub.CT.Timestamp)
		b.AddUint8(precert)
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sub.CT.Certificate) })
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sub.CT.Precertificate) })
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(sub.CT.IssuerKeyHash) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, f := range sub.CT.FingerprintsChain {
				b.AddBytes(f[:])
			}
		})
	}
	return b.Bytes()
}

func parseFrame(kind log.Kind, payload []byte) (index uint64, batch []log.Submission, err error) {
	s := cryptobyte.String(payload)
	if !s.ReadUint64(&index) {
		return 0, nil, errors.New("truncated")
	}
	for !s.Empty() {
		var sub log.Submission
		var ok bool
		if kind == log.CT {
			sub.CT, ok = parseEntry(&s)
		} else {
			ok = s.ReadUint16LengthPrefixed((*cryptobyte.String)(&sub.Data))
		}
		if !ok {
			return 0, nil, fmt.Errorf("leaf %d is truncated", len(batch))
		}
		batch = append(batch, sub)
	}
	return index, batch, nil
}

func parseEntry(s *cryptobyte.String) (*ctonly.Entry, bool) {
	e := &ctonly.Entry{}
	var precert uint8
	var fingerprints cryptobyte.String
	ok := s.ReadUint64(&e.Timestamp) && s.ReadUint8(&precert) && precert <= 1 &&
		s.ReadUint24LengthPrefixed((*cryptobyte.String)(&e.Certificate)) && s.ReadUint24LengthPrefixed((*cryptobyte.String)(&e.Precertificate)) &&
		s.ReadUint8LengthPrefixed((*cryptobyte.String)(&e.IssuerKeyHash)) && s.ReadUint16LengthPrefixed(&fingerprints)
	if !ok || len(fingerprints)%32 != 0 {
		return nil, false
	}
	e.IsPrecert = precert == 1
	for ; len(fingerprints) > 0; fingerprints = fingerprints[32:] {
		e.FingerprintsChain = append(e.FingerprintsChain, [32]byte(fingerprints[:32]))
	}
	return e, true
}

// driver is Tessera's tree.
type driver struct {
	dir    string
	add    addFunc
	reader tessera.LogReader
}

// append puts the batch behind all leaves there are, in its order. After an error any part of it may have been added.
func (d *driver) append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	indexes := make([]uint64, 0, len(batch))
	for len(indexes) < len(batch) {
		some, err := d.hand(ctx, batch[len(indexes):])
		if err != nil {
			return nil, fmt.Errorf("appending %d entries: %w", len(batch), err)
		}
		indexes = append(indexes, some...)
	}
	return indexes, nil
}

// hand adds the beginning of batch: as much as can be handed over before Tessera takes what it has, since two of its batches that are on their way
// at once may change places.
func (d *driver) hand(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	if err := d.lockable(); err != nil {
		return nil, err
	}
	began := time.Now()
	var futures []tessera.IndexFuture
	for i := range batch {
		if i > 0 && time.Since(began) > batchAge/2 {
			break
		}
		futures = append(futures, d.add(ctx, &batch[i]))
	}
	indexes := make([]uint64, len(futures))
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
		return nil, errs[0]
	}
	return indexes, nil
}

// lockable tells whether Tessera can open its lock: it panics where it cannot, as on a volume that has turned read-only. This leaves a few
// milliseconds for that. Closing the file releases this process's locks on it (fcntl(2)); Tessera holds it while it integrates, and nothing
// has been handed over yet. access(2) would not do: ext4 does not call itself read-only after an error.
func (d *driver) lockable() error {
	lock, err := os.OpenFile(filepath.Join(d.dir, lockPath), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	return lock.Close()
}

func (d *driver) size(ctx context.Context) (uint64, error) { return d.reader.IntegratedSize(ctx) }

func (d *driver) tile(ctx context.Context, level, index uint64, width uint8) ([]byte, error) {
	return d.reader.ReadTile(ctx, level, index, width)
}

// extent returns the tree as its perfect subtrees.
func (d *driver) extent(ctx context.Context) (*compact.Range, error) {
	size, err := d.size(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the tree's size: %w", err)
	}
	return extentOf(size, func(level, index uint64, width uint8) ([]byte, error) { return d.tile(ctx, level, index, width) })
}

// extentOf returns the tree of a size at which a batch of the driver ended as its perfect subtrees, from its tiles.
func extentOf(size uint64, tile func(level, index uint64, width uint8) ([]byte, error)) (*compact.Range, error) {
	hashing := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	var hashes [][]byte
	for _, id := range compact.RangeNodes(0, size, nil) {
		level, index, nodeLevel, nodeIndex := layout.NodeCoordsToTileAddress(uint64(id.Level), id.Index)
		width := layout.PartialTileSize(level, index, size)
		raw, err := tile(level, index, width)
		if errors.Is(err, os.ErrNotExist) && width > 0 {
			raw, err = tile(level, index, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("reading tile %d/%d: %w", level, index, err)
		}
		// The node covers 2^nodeLevel hashes of the tile.
		from, count := int(nodeIndex)<<nodeLevel, 1<<nodeLevel
		if len(raw) < 32*(from+count) {
			return nil, fmt.Errorf("tile %d/%d has %d bytes, want %d hashes", level, index, len(raw), from+count)
		}
		part := hashing.NewEmptyRange(0)
		for i := from; i < from+count; i++ {
			if err := part.Append(raw[32*i:32*i+32], nil); err != nil {
				return nil, err
			}
		}
		root, err := part.GetRootHash(nil)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, root)
	}
	return hashing.NewRange(0, size, hashes)
}
