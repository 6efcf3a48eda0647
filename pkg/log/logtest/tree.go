package logtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
)

// OpenTree is a tree that its owner closes.
type OpenTree interface {
	log.Tree
	io.Closer
}

// TreeStore is where one tree of Rekor entries is kept.
type TreeStore struct {
	// Open opens the tree: it is empty at the first call, the same at later ones.
	Open func(ctx context.Context) (OpenTree, error)
	// Writers tells that several trees may be open and append at the same time.
	Writers bool
	// Crashes are the services that may be killed. Links are the connections that may fail.
	Crashes []Crash
	Links   []Link
}

// Crash kills a service with SIGKILL, and starts it again.
type Crash struct {
	Name  string
	Kill  func()
	Start func() error
}

// Link is a connection of the tree.
type Link struct {
	Name string
	Line *services.Line
	// Size, Reads and Appends tell what cannot work without it.
	Size, Reads, Appends bool
}

// patience is how long a leaf may take from a durable queue into the tree, on a busy machine.
const patience = 60 * time.Second

// Tree runs the contract of log.Tree, with -short without its faults. newStore makes an empty store.
func Tree(t *testing.T, newStore func(t *testing.T) *TreeStore) {
	t.Run("entries stand where Append says, and every size has its tree", func(t *testing.T) { testSizes(t, newStore(t)) })
	t.Run("entries of any size are kept", func(t *testing.T) { testLargeEntries(t, newStore(t)) })
	t.Run("a tree that is opened again is the same", func(t *testing.T) { testReopen(t, newStore(t)) })
	t.Run("a call whose context has ended is an error and does no harm", func(t *testing.T) { testContext(t, newStore(t)) })
	t.Run("two writers share a tree", func(t *testing.T) {
		store := newStore(t)
		if !store.Writers {
			t.Skip("this backend takes one writer")
		}
		testWriters(t, store)
	})
	if testing.Short() {
		return
	}
	t.Run("what was acknowledged survives a crash of the store", func(t *testing.T) {
		store := newStore(t)
		for _, crash := range store.Crashes {
			t.Run(crash.Name, func(t *testing.T) { testCrash(t, store, crash) })
		}
		if len(store.Crashes) == 0 {
			t.Skip("this backend has no service")
		}
	})
	t.Run("a store that fails is an error, a late one is late", func(t *testing.T) {
		store := newStore(t)
		for _, link := range store.Links {
			t.Run(link.Name, func(t *testing.T) { testLink(t, store, link) })
		}
		if len(store.Links) == 0 {
			t.Skip("this backend has no connections")
		}
	})
}

func testSizes(t *testing.T, store *TreeStore) {
	s := open(t, store)
	s.check(t)
	if _, err := s.tree.Bundle(t.Context(), 0, 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a bundle of the empty tree: %v, want os.ErrNotExist", err)
	}
	for _, n := range []int{1, 2, 5, 1, 63, 183, 1, 1, 255, 90} { // up to 602, and exactly 256
		s.append(t, s.fresh(n)...)
	}
	s.check(t)
	roots := roots(t, s.leaves)
	for size := 1; size <= len(s.leaves); size++ {
		s.checkAt(t, roots, uint64(size))
		if t.Failed() {
			return
		}
	}
	s.checkBundles(t)
}

func testLargeEntries(t *testing.T, store *TreeStore) {
	s := open(t, store)
	s.append(t, largest(0), []byte{'x'}, largest(1))
	batch := make([][]byte, 300) // over the default message and packet limits of gRPC and MySQL
	for i := range batch {
		batch[i] = largest(2 + i)
	}
	s.append(t, batch...)
	s.check(t)
	s.checkAt(t, roots(t, s.leaves), uint64(len(s.leaves)))
}

// largest returns an entry of log.MaxEntry bytes.
func largest(i int) []byte {
	return fmt.Appendf(nil, "%05d%s", i, strings.Repeat("x", log.MaxEntry-5))
}

func testReopen(t *testing.T, store *TreeStore) {
	s := open(t, store)
	s.append(t, s.fresh(37)...)
	for range 2 {
		if err := s.tree.Close(); err != nil {
			t.Fatal(err)
		}
		s.tree = reopen(t, store)
		s.check(t)
		s.append(t, s.fresh(11)...)
	}
	s.check(t)
	s.checkAt(t, roots(t, s.leaves), uint64(len(s.leaves)))
}

func testContext(t *testing.T, store *TreeStore) {
	s := open(t, store)
	s.append(t, s.fresh(3)...)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	// An engine may have taken the batch before it looked; then the entries are there.
	batch := s.fresh(3)
	if _, err := s.tree.Append(ended, submissions(batch)); err == nil {
		s.expect(batch...)
	} else {
		s.allow(batch...)
	}
	s.append(t, s.fresh(4)...)
	s.check(t)
}

func testWriters(t *testing.T, store *TreeStore) {
	const writers, batches, entries = 2, 6, 25
	s := open(t, store)
	var trees []OpenTree
	for range writers {
		trees = append(trees, reopen(t, store))
	}
	var wg sync.WaitGroup
	for w, tree := range trees {
		for b := range batches {
			batch := make([][]byte, entries)
			for i := range batch {
				batch[i] = fmt.Appendf(nil, "writer %d batch %d entry %d", w, b, i)
			}
			s.expect(batch...)
		}
		wg.Go(func() {
			for b := range batches {
				batch := make([][]byte, entries)
				for i := range batch {
					batch[i] = fmt.Appendf(nil, "writer %d batch %d entry %d", w, b, i)
				}
				indexes, err := tree.Append(t.Context(), submissions(batch))
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				for i, index := range indexes {
					if leaves, err := leavesOf(t.Context(), tree, index, 1); err != nil || !bytes.Equal(leaves[0], batch[i]) {
						t.Errorf("index %d, which Append returned for %q, holds %q, %v", index, batch[i], leaves, err)
					}
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	s.await(t, writers*batches*entries)
	s.check(t)
	s.checkAt(t, roots(t, s.leaves), uint64(len(s.leaves)))
}

func testCrash(t *testing.T, store *TreeStore, crash Crash) {
	s := open(t, store)
	s.append(t, s.fresh(20)...)
	const before, after = 5, 3 // batches that are acknowledged before the crash, and that may fail after it
	acknowledged := make(chan struct{})
	done := make(chan error, 1)
	go func() { // ends after its batches, which fail fast once the store is gone
		defer close(done)
		for b := range before + after {
			batch := make([][]byte, 30)
			for i := range batch {
				batch[i] = fmt.Appendf(nil, "%s: batch %d entry %d", t.Name(), b, i)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := s.tree.Append(ctx, submissions(batch))
			cancel()
			if err == nil {
				s.expect(batch...)
			} else {
				s.allow(batch...)
			}
			if b == before-1 {
				if err != nil {
					done <- fmt.Errorf("an append before the crash: %w", err)
				}
				close(acknowledged)
			}
		}
	}()
	<-acknowledged
	crash.Kill()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := crash.Start(); err != nil {
		t.Fatal(err)
	}
	if err := s.tree.Close(); err != nil {
		t.Fatal(err)
	}
	s.tree = reopen(t, store)
	s.append(t, s.fresh(9)...)
	s.check(t)
	s.checkAt(t, roots(t, s.leaves), uint64(len(s.leaves)))
}

func testLink(t *testing.T, store *TreeStore, link Link) {
	s := open(t, store)
	s.append(t, s.fresh(300)...)
	for name, harm := range map[string]func(){
		"cut":  func() { link.Line.CutAfter(0); link.Line.Break() },
		"held": func() { link.Line.Hold(true) },
	} {
		harm()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		start := time.Now()
		batch := s.fresh(5)
		_, err := s.tree.Append(ctx, submissions(batch))
		if err == nil {
			s.expect(batch...)
		} else {
			s.allow(batch...)
		}
		_, sizeErr := s.tree.Size(ctx)
		_, readErr := s.tree.Bundle(ctx, 0, 0)
		cancel()
		if err == nil && link.Appends || sizeErr == nil && link.Size || readErr == nil && link.Reads {
			t.Errorf("%s: Append %v, Size %v, Bundle %v, want errors", name, err, sizeErr, readErr)
		}
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("%s: the errors took %v", name, took)
		}
		link.Line.Mend()
		link.Line.Hold(false)
		s.await(t, 0) // until the tree has found the store again
		s.append(t, s.fresh(5)...)
		s.check(t)
	}
	link.Line.Late(150 * time.Millisecond)
	s.append(t, s.fresh(5)...)
	link.Line.Late(0)
	s.check(t)
	s.checkAt(t, roots(t, s.leaves), uint64(len(s.leaves)))
}

// subject is a tree and what must be in it.
type subject struct {
	tree   OpenTree
	leaves [][]byte // as of the last check, in order
	made   int      // entries that fresh has returned

	mu       sync.Mutex // guards what follows
	expected map[string]bool
	allowed  map[string]bool
}

func open(t *testing.T, store *TreeStore) *subject {
	t.Helper()
	s := &subject{tree: reopen(t, store), expected: map[string]bool{}, allowed: map[string]bool{}}
	size, err := s.tree.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	there, err := leavesOf(t.Context(), s.tree, 0, int(size))
	if err != nil {
		t.Fatal(err)
	}
	s.expect(there...)
	return s
}

func reopen(t *testing.T, store *TreeStore) OpenTree {
	t.Helper()
	tree, err := store.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

// fresh returns n entries that are in no tree yet.
func (s *subject) fresh(n int) [][]byte {
	entries := make([][]byte, n)
	for i := range entries {
		s.made++
		entries[i] = fmt.Appendf(nil, "entry %d at %d", s.made, time.Now().UnixNano())
	}
	return entries
}

// expect notes entries that must be in the tree, allow those that may be.
func (s *subject) expect(entries ...[]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		s.expected[string(e)] = true
	}
}

func (s *subject) allow(entries ...[]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		s.allowed[string(e)] = true
	}
}

func submissions(entries [][]byte) []log.Submission {
	subs := make([]log.Submission, len(entries))
	for i, e := range entries {
		subs[i] = log.Submission{Identity: [32]byte(rfc6962.DefaultHasher.HashLeaf(e)), Data: e}
	}
	return subs
}

// append appends entries, waits until they are in the tree, and checks that they stand behind all that were
// there, and where Append said.
func (s *subject) append(t *testing.T, entries ...[]byte) {
	t.Helper()
	before, err := s.tree.Queued(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	indexes, err := s.tree.Append(t.Context(), submissions(entries))
	if err != nil {
		t.Fatalf("appending %d entries: %v", len(entries), err)
	}
	s.expect(entries...)
	if indexes == nil {
		s.await(t, int(before)+len(entries))
		return
	}
	if len(indexes) != len(entries) {
		t.Fatalf("%d indexes for %d entries", len(indexes), len(entries))
	}
	size, err := s.tree.Size(t.Context())
	if err != nil || size < before+uint64(len(entries)) {
		t.Fatalf("the size is %d, %v after %d entries were added to %d", size, err, len(entries), before)
	}
	if first := slices.Min(indexes); first < before {
		t.Fatalf("index %d was given in a tree of size %d", first, before)
	}
	leaves, err := leavesOf(t.Context(), s.tree, before, int(size-before))
	if err != nil {
		t.Fatal(err)
	}
	for i, index := range indexes {
		if index >= size {
			t.Fatalf("index %d was given in a tree of size %d", index, size)
		}
		if got := leaves[index-before]; !bytes.Equal(got, entries[i]) {
			t.Fatalf("index %d, which Append returned for %.40q, holds %.40q", index, entries[i], got)
		}
	}
}

// await waits until the tree has size.
func (s *subject) await(t *testing.T, size int) {
	t.Helper()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	end := time.After(patience)
	for {
		have, err := s.tree.Size(t.Context())
		if err == nil && have >= uint64(size) {
			return
		}
		select {
		case <-poll.C:
		case <-end:
			t.Fatalf("the size is %d, %v, want %d", have, err, size)
		}
	}
}

// check reads every leaf: each expected entry is there once, no other is but allowed ones.
func (s *subject) check(t *testing.T) {
	t.Helper()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	end := time.After(patience)
	for {
		missing, err := s.read(t)
		if err == nil && missing == nil {
			return
		}
		select {
		case <-poll.C:
		case <-end:
			t.Fatalf("the entry %.40q was acknowledged and is not in the tree of size %d, %v", missing, len(s.leaves), err)
		}
	}
}

// read reads every leaf and returns an expected entry that is not there yet.
func (s *subject) read(t *testing.T) (missing []byte, err error) {
	t.Helper()
	size, err := s.tree.Size(t.Context())
	if err != nil {
		return nil, err
	}
	if s.leaves, err = leavesOf(t.Context(), s.tree, 0, int(size)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[string]bool{}
	for i, leaf := range s.leaves {
		if seen[string(leaf)] {
			t.Fatalf("leaf %d, %.40q, is there twice", i, leaf)
		}
		seen[string(leaf)] = true
		if !s.expected[string(leaf)] && !s.allowed[string(leaf)] {
			t.Fatalf("leaf %d is %.40q, which was never added", i, leaf)
		}
	}
	for e := range s.expected {
		if !seen[e] {
			return []byte(e), nil
		}
	}
	return nil, nil
}

// checkBundles reads bundles of every width.
func (s *subject) checkBundles(t *testing.T) {
	t.Helper()
	for index := 0; index*layout.EntryBundleWidth < len(s.leaves); index++ {
		first := index * layout.EntryBundleWidth
		most := min(len(s.leaves)-first, layout.EntryBundleWidth)
		for width := 1; width <= most; width += 1 + width/16 {
			raw, err := s.tree.Bundle(t.Context(), uint64(index), uint8(width%layout.EntryBundleWidth))
			if err != nil {
				t.Fatalf("bundle %d with %d entries: %v", index, width, err)
			}
			entries, err := split(raw)
			if err != nil || len(entries) < width || len(entries) > most {
				t.Fatalf("bundle %d has %d entries, %v; asked for %d", index, len(entries), err, width)
			}
			for i, e := range entries {
				if !bytes.Equal(e, s.leaves[first+i]) {
					t.Fatalf("bundle %d has %.40q at %d, want %.40q", index, e, i, s.leaves[first+i])
				}
			}
		}
	}
	last := uint64(len(s.leaves) / layout.EntryBundleWidth)
	for _, beyond := range []struct {
		index uint64
		width uint8
	}{{last, uint8(len(s.leaves)%layout.EntryBundleWidth) + 1}, {last, 0}, {last + 1, 1}, {last + 1, 0}, {1 << 40, 0}} {
		if _, err := s.tree.Bundle(t.Context(), beyond.index, beyond.width); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("bundle %d with %d entries, beyond the tree: %v, want os.ErrNotExist", beyond.index, beyond.width, err)
		}
	}
}

// roots returns the root of every size, computed from the leaves alone.
func roots(t *testing.T, leaves [][]byte) [][]byte {
	t.Helper()
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	roots := [][]byte{rfc6962.DefaultHasher.EmptyRoot()}
	for _, leaf := range leaves {
		if err := tree.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
			t.Fatal(err)
		}
		root, err := tree.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
	return roots
}

// checkAt holds the tree of size against roots: the root that its tiles make, or the proofs that its engine makes.
func (s *subject) checkAt(t *testing.T, roots [][]byte, size uint64) {
	t.Helper()
	switch tree := s.tree.(type) {
	case log.TileTree:
		root, err := rootFromTiles(t.Context(), tree, size)
		if err != nil {
			t.Errorf("size %d: %v", size, err)
		} else if !bytes.Equal(root, roots[size]) {
			t.Errorf("the tiles at size %d make root %x, want %x", size, root, roots[size])
		}
	case log.ProofTree:
		for _, index := range []uint64{0, size / 3, size - 1} {
			path, err := tree.Inclusion(t.Context(), index, size)
			if err == nil {
				err = proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, rfc6962.DefaultHasher.HashLeaf(s.leaves[index]), path, roots[size])
			}
			if err != nil {
				t.Errorf("leaf %d in size %d: %v", index, size, err)
			}
		}
		for _, first := range []uint64{size / 2, size} {
			path, err := tree.Consistency(t.Context(), first, size)
			if err == nil && first > 0 {
				err = proof.VerifyConsistency(rfc6962.DefaultHasher, first, size, path, roots[first], roots[size])
			}
			if err != nil {
				t.Errorf("consistency of %d and %d: %v", first, size, err)
			}
		}
		if size == uint64(len(s.leaves)) {
			if _, err := tree.Inclusion(t.Context(), 0, size+1); err == nil {
				t.Errorf("a proof for size %d, beyond the tree", size+1)
			}
			if _, err := tree.Consistency(t.Context(), size, size+1); err == nil {
				t.Errorf("a consistency proof for size %d, beyond the tree", size+1)
			}
		}
	default:
		t.Fatalf("%T is neither a log.TileTree nor a log.ProofTree", s.tree)
	}
}

func rootFromTiles(ctx context.Context, tree log.TileTree, size uint64) ([]byte, error) {
	factory := &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	ids := compact.RangeNodes(0, size, nil)
	hashes := make([][]byte, len(ids))
	for i, id := range ids {
		level, index, nodeLevel, nodeIndex := layout.NodeCoordsToTileAddress(uint64(id.Level), id.Index)
		raw, err := tree.Tile(ctx, level, index, layout.PartialTileSize(level, index, size))
		if err != nil {
			return nil, err
		}
		inside := factory.NewEmptyRange(0)
		for n := nodeIndex << nodeLevel; n < (nodeIndex+1)<<nodeLevel; n++ {
			if uint64(len(raw)) < 32*(n+1) {
				return nil, fmt.Errorf("tile %d/%d has %d bytes and no hash %d", level, index, len(raw), n)
			}
			if err := inside.Append(raw[32*n:32*n+32], nil); err != nil {
				return nil, err
			}
		}
		if hashes[i], err = inside.GetRootHash(nil); err != nil {
			return nil, err
		}
	}
	whole, err := factory.NewRange(0, size, hashes)
	if err != nil {
		return nil, err
	}
	return whole.GetRootHash(nil)
}

// leavesOf reads count leaves from index first on.
func leavesOf(ctx context.Context, tree log.Tree, first uint64, count int) ([][]byte, error) {
	var leaves [][]byte
	for len(leaves) < count {
		index := (first + uint64(len(leaves))) / layout.EntryBundleWidth
		raw, err := tree.Bundle(ctx, index, layout.PartialTileSize(0, index, first+uint64(count)))
		if err != nil {
			return nil, err
		}
		entries, err := split(raw)
		if err != nil {
			return nil, fmt.Errorf("bundle %d: %w", index, err)
		}
		offset := first + uint64(len(leaves)) - index*layout.EntryBundleWidth
		if uint64(len(entries)) <= offset {
			return nil, fmt.Errorf("bundle %d has %d entries", index, len(entries))
		}
		leaves = append(leaves, entries[offset:]...)
	}
	return leaves[:count], nil
}

// split decodes an entry bundle: entries, each behind its 16-bit length.
func split(raw []byte) ([][]byte, error) {
	var entries [][]byte
	for len(raw) > 0 {
		if len(raw) < 2 || len(raw) < 2+int(binary.BigEndian.Uint16(raw)) {
			return nil, fmt.Errorf("entry %d is cut", len(entries))
		}
		n := 2 + int(binary.BigEndian.Uint16(raw))
		entries = append(entries, raw[2:n])
		raw = raw[n:]
	}
	return entries, nil
}

// BenchTree appends entries of 600 bytes in full batches and in batches as 32 waiting clients make them, and
// reports how many a second are in the tree.
func BenchTree(b *testing.B, newStore func(b *testing.B) *TreeStore) {
	for _, size := range []int{32, log.MaxBatch} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			tree, err := newStore(b).Open(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			defer tree.Close()
			padding := strings.Repeat("x", 580)
			b.ResetTimer()
			for have := 0; have < b.N; {
				batch := make([][]byte, min(size, b.N-have))
				for i := range batch {
					batch[i] = fmt.Appendf(nil, "%020d%s", have+i, padding)
				}
				if _, err := tree.Append(b.Context(), submissions(batch)); err != nil {
					b.Fatal(err)
				}
				have += len(batch)
			}
			poll := time.NewTicker(5 * time.Millisecond)
			defer poll.Stop()
			for {
				size, err := tree.Size(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				if size >= uint64(b.N) {
					break
				}
				<-poll.C
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
