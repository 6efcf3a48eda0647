package log_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
	"github.com/transparency-dev/tessera/api/layout"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

func (h *house) keyID() log.KeyID {
	h.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(h.key.Public())
	if err != nil {
		h.t.Fatal(err)
	}
	return sha256.Sum256(spki)
}

// check runs a check as the command does: from the files alone, whether the log runs or not.
func (h *house) check() (log.Checked, []log.Finding) {
	h.t.Helper()
	dir, err := tiles.OpenDir(filepath.Join(h.dir, "tiles"), h.kind)
	if err != nil {
		h.t.Fatal(err)
	}
	rows, err := log.OpenStoredRows(h.dir)
	if err != nil {
		h.t.Fatal(err)
	}
	defer rows.Close()
	records, err := log.PeekFence(filepath.Join(h.dir, "fence"), h.keyID())
	if err != nil {
		h.t.Fatal(err)
	}
	var signed []log.SignedTree
	for _, r := range records {
		signed = append(signed, log.SignedTree{Size: r.Size, Root: r.Root, By: "fence"})
	}
	var found []log.Finding
	checked, err := log.Check(h.t.Context(), log.CheckOptions{
		Kind: h.kind, Tree: dir, Rows: rows, Signed: signed, Report: func(f log.Finding) { found = append(found, f) },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return checked, found
}

func (h *house) fill(from, to int) {
	h.t.Helper()
	var wg sync.WaitGroup
	for worker := range 32 {
		wg.Go(func() {
			for i := from + worker; i < to; i += 32 {
				if err := h.add("entry " + strconv.Itoa(i)); err != nil {
					h.t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestAHealthyLogHasNoFindings(t *testing.T) {
	for _, kind := range []log.Kind{log.Rekor1, log.Rekor2} {
		h := newHouse(t, kind)
		h.mustOpen()
		if checked, found := h.check(); checked.Size != 0 || len(found) > 0 {
			t.Errorf("an empty log: size %d, %v", checked.Size, found)
		}
		h.fill(0, 700)
		// It runs: every signed tree up to now is there, and entries come meanwhile.
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.fill(700, 1400)
		}()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			if checked, found := h.check(); checked.Size < 700 || len(found) > 0 {
				t.Errorf("a running log: size %d, %v", checked.Size, found)
			}
		}
		root := h.log.Checkpoint().Root
		h.close()
		if checked, found := h.check(); checked.Size != 1400 || checked.Root != root || len(found) > 0 {
			t.Errorf("a stopped log: size %d, root %x (want %x), %v", checked.Size, checked.Root, root, found)
		}
	}
}

// TestABatchThatWasCutLeavesNothingThatIsRead has what a crash can leave past the tree, a partial tile and bundle, be
// overtaken by other entries: readers of that width get the tree's, and a check says what lies there.
func TestABatchThatWasCutLeavesNothingThatIsRead(t *testing.T) {
	h := newHouse(t, log.Rekor1)
	h.mustOpen()
	h.fill(0, 3)
	h.close()
	tree, err := tiles.Open(t.Context(), filepath.Join(h.dir, "tiles"), h.kind)
	if err != nil {
		t.Fatal(err)
	}
	var batch []log.Submission
	for i := range 40 {
		batch = append(batch, h.submission(fmt.Sprintf("later %d", i)))
	}
	if _, err := tree.Append(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	path := func(name string, width int) string {
		return filepath.Join(h.dir, "tiles", name, strconv.Itoa(width))
	}
	width := 4 // at which no batch ended
	for ; width < 43; width++ {
		if _, err := os.Stat(path("tile/0/000.p", width)); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	for _, name := range []string{"tile/0/000.p", "tile/entries/000.p"} {
		raw, err := os.ReadFile(path(name, 43))
		if err != nil {
			t.Fatal(err)
		}
		used := 32 * width
		if name == "tile/entries/000.p" {
			used = bundleBytes(raw, width)
		}
		raw[used-1] ^= 1
		if err := os.WriteFile(path(name, width), raw[:used], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h.mustOpen()
	whole, err := h.log.Bundle(t.Context(), 0, 43)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := h.log.Bundle(t.Context(), 0, width)
	if err != nil || !bytes.Equal(bundle, whole[:bundleBytes(whole, width)]) {
		t.Errorf("the bundle of width %d has other entries than the tree, %v", width, err)
	}
	edge, err := h.log.Tile(t.Context(), 0, 0, 43)
	if err != nil {
		t.Fatal(err)
	}
	tile, err := h.log.Tile(t.Context(), 0, 0, width)
	if err != nil || !bytes.Equal(tile, edge[:32*width]) {
		t.Errorf("the tile of width %d has other hashes than the tree, %v", width, err)
	}
	h.close()
	checked, found := h.check()
	if checked.Damaged > 0 || len(found) != 2 || found[0].What != "partial" || found[1].What != "partial" {
		t.Errorf("%d damaged, found %v", checked.Damaged, found)
	}
}

// Each kind of damage is found, is named, and hides nothing else.
func TestDamageIsFound(t *testing.T) {
	flip := func(name string, at int) func(h *house) {
		return func(h *house) {
			h.edit(name, func(raw []byte) []byte { raw[at] ^= 1; return raw })
		}
	}
	sqlite := func(statement string) func(h *house) {
		return func(h *house) {
			db, err := sql.Open("sqlite", filepath.Join(h.dir, "entries.db"))
			if err != nil {
				h.t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Exec(statement); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(h *house)
		want   []string // what and where
		also   []string // beginnings of what follows from it, depending on how the entries came
	}{
		{"a bit of an entry", flip("tile/entries/001", 5), []string{"tile tile 0/1", "root the tree of size 700", "row_identity leaf 256"},
			[]string{"tile tile 1/0", "partial ", "root "}},
		{"the length of an entry", flip("tile/entries/001", 0), []string{"bundle entry bundle 1"}, nil},
		{"a lost bundle", remove("tile/entries/000"), []string{"bundle entry bundle 0"}, nil},
		{"a bit of a full tile", flip("tile/0/000", 40), []string{"tile tile 0/0"}, nil},
		{"a short tile", func(h *house) {
			h.edit("tile/0/001", func(raw []byte) []byte { return raw[:100] })
		}, []string{"tile tile 0/1"}, nil},
		{"a lost tile", remove("tile/0/001"), []string{"tile tile 0/1"}, nil},
		{"a bit of the partial tile at the edge", flip("tile/0/002.p/188", 40), []string{"tile tile 0/2", "partial tile 0/2"}, nil},
		{"a bit of a higher tile", flip("tile/1/000.p/2", 40), []string{"tile tile 1/0", "partial tile 1/0"}, nil},
		{"bundle and tile", func(h *house) { remove("tile/entries/000")(h); remove("tile/0/000")(h) },
			[]string{"bundle entry bundle 0", "tile tile 0/0", "root the tree"}, nil},
		{"a smaller tree", func(h *house) { h.resize(600) }, []string{"behind the tree", "rows_beyond the rows"}, nil},
		{"a lost row", sqlite(`DELETE FROM leaves WHERE idx = 300`), []string{"row_missing leaf 300"}, nil},
		{"rows that changed places", sqlite(`UPDATE leaves SET idx = -1 WHERE idx = 3; UPDATE leaves SET idx = 3 WHERE idx = 4; UPDATE leaves SET idx = 4 WHERE idx = -1`),
			[]string{"row_identity leaf 3", "row_identity leaf 4"}, nil},
		{"a row without a time", sqlite(`UPDATE leaves SET integrated = 0 WHERE idx = 699`), []string{"row_time leaf 699"}, nil},
		{"a time in the future", sqlite(`UPDATE leaves SET integrated = 99999999999 WHERE idx = 0`), []string{"row_time leaf 0"}, nil},
		{"a count that is behind", sqlite(`UPDATE state SET next = 512`), []string{"rows_behind the rows"}, nil},
		{"a row past the tree", sqlite(`INSERT INTO leaves (identity, idx, integrated) VALUES (zeroblob(32), 700, 1)`), []string{"rows_beyond the rows"}, nil},
		{"another root in the fence", func(h *house) {
			fence, err := log.OpenFileFence(filepath.Join(h.dir, "fence"))
			if err != nil {
				h.t.Fatal(err)
			}
			defer fence.Close()
			last, err := fence.Last(h.t.Context(), h.keyID())
			if err != nil {
				h.t.Fatal(err)
			}
			next := last
			next.Root[0] ^= 1
			if err := fence.Advance(h.t.Context(), h.keyID(), last, next); err != nil {
				h.t.Fatal(err)
			}
		}, []string{"root the tree of size 700"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t, log.Rekor1)
			h.mustOpen()
			h.fill(0, 700)
			h.close()
			tt.damage(h)
			_, found := h.check()
			seen := map[string]bool{}
			for _, f := range found {
				seen[f.What+" "+f.Where] = true
			}
			for _, want := range tt.want {
				if !seen[want] {
					t.Errorf("%q was not found, only %v", want, found)
				}
				delete(seen, want)
			}
			for other := range seen {
				if !slices.ContainsFunc(tt.also, func(prefix string) bool { return strings.HasPrefix(other, prefix) }) {
					t.Errorf("found without damage: %s", other)
				}
			}
		})
	}
}

func remove(name string) func(h *house) {
	return func(h *house) {
		if err := os.Remove(filepath.Join(h.dir, "tiles", name)); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *house) edit(name string, change func([]byte) []byte) {
	h.t.Helper()
	path := filepath.Join(h.dir, "tiles", name)
	raw, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(raw), 0o644)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// resize makes the tree as one restored from an older copy: its size and its edge.
func (h *house) resize(size uint64) {
	h.t.Helper()
	extent := func(level, index uint64) string {
		return layout.TilePath(level, index, layout.PartialTileSize(level, index, size))
	}
	for _, name := range []struct{ full, partial string }{
		{"tile/0/002.p/188", extent(0, 2)}, {"tile/entries/002.p/188", layout.EntriesPath(2, layout.PartialTileSize(0, 2, size))},
	} {
		raw, err := os.ReadFile(filepath.Join(h.dir, "tiles", name.full))
		if err != nil {
			h.t.Fatal(err)
		}
		width := int(layout.PartialTileSize(0, 2, size))
		if strings.HasPrefix(name.full, "tile/0/") {
			raw = raw[:32*width]
		} else {
			raw = raw[:bundleBytes(raw, width)]
		}
		if err := os.WriteFile(filepath.Join(h.dir, "tiles", name.partial), raw, 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	state, err := json.Marshal(map[string]any{"size": size, "root": []byte{}})
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(h.dir, "tiles", ".state/treeState"), state, 0o644), os.Remove(filepath.Join(h.dir, "tiles", ".state/tail")))
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

func bundleBytes(raw []byte, entries int) (n int) {
	for range entries {
		n += 2 + int(raw[n])<<8 + int(raw[n+1])
	}
	return n
}

// BenchmarkCheck checks a log on disk, tiles and rows, of entries of 600 bytes; ATTESTRY_CHECK_ENTRIES sets how many.
func BenchmarkCheck(b *testing.B) {
	size := uint64(1 << 16)
	if text := os.Getenv("ATTESTRY_CHECK_ENTRIES"); text != "" {
		var err error
		if size, err = strconv.ParseUint(text, 10, 64); err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	writeLog(b, dir, size)
	tree, err := tiles.OpenDir(filepath.Join(dir, "tiles"), log.Rekor1)
	if err != nil {
		b.Fatal(err)
	}
	rows, err := log.OpenStoredRows(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer rows.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	for b.Loop() {
		checked, err := log.Check(b.Context(), log.CheckOptions{Kind: log.Rekor1, Tree: tree, Rows: rows, Report: func(f log.Finding) { b.Error(f) }})
		if err != nil || checked.Size != size {
			b.Fatal(checked, err)
		}
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(size)*float64(b.N)/time.Since(began).Seconds(), "entries/s")
	b.ReportMetric(float64(int64(after.HeapSys)-int64(before.HeapSys))/(1<<20), "MiB-heap")
}

// writeLog writes tiles and rows of a Rekor v1 log as it would be after size entries.
func writeLog(b *testing.B, dir string, size uint64) {
	b.Helper()
	file := func(name string, raw []byte) {
		path := filepath.Join(dir, "tiles", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, raw, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "entries.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`PRAGMA synchronous = OFF; CREATE TABLE leaves (identity BYTEA PRIMARY KEY, idx BIGINT UNIQUE, integrated BIGINT NOT NULL, leaf_hash BYTEA, keys TEXT);
		CREATE TABLE state (id INTEGER PRIMARY KEY, next BIGINT NOT NULL); BEGIN`); err != nil {
		b.Fatal(err)
	}
	insert, err := db.Prepare(`INSERT INTO leaves (identity, idx, integrated) VALUES ($1, $2, 1700000000)`)
	if err != nil {
		b.Fatal(err)
	}
	var levels [8][]byte
	var full [8]uint64
	var push func(level int, node []byte)
	push = func(level int, node []byte) {
		if levels[level] = append(levels[level], node...); len(levels[level]) < 32*layout.TileWidth {
			return
		}
		file(layout.TilePath(uint64(level), full[level], 0), levels[level])
		nodes := levels[level]
		for len(nodes) > 32 {
			var above []byte
			for i := 0; i < len(nodes); i += 64 {
				above = append(above, rfc6962.DefaultHasher.HashChildren(nodes[i:i+32], nodes[i+32:i+64])...)
			}
			nodes = above
		}
		full[level]++
		levels[level] = nil
		push(level+1, nodes)
	}
	var bundle []byte
	for index := range size {
		entry := fmt.Appendf(nil, "%0600d", index)
		hash := rfc6962.DefaultHasher.HashLeaf(entry)
		bundle = append(append(bundle, byte(len(entry)>>8), byte(len(entry))), entry...)
		if _, err := insert.Exec(hash, index); err != nil {
			b.Fatal(err)
		}
		if (index+1)%layout.EntryBundleWidth == 0 {
			file(layout.EntriesPath(index/layout.EntryBundleWidth, 0), bundle)
			bundle = nil
		}
		push(0, hash)
	}
	if len(bundle) > 0 {
		file(layout.EntriesPath(size/layout.EntryBundleWidth, uint8(size%layout.EntryBundleWidth)), bundle)
	}
	for level, nodes := range levels {
		if len(nodes) > 0 {
			file(layout.TilePath(uint64(level), full[level], uint8(len(nodes)/32)), nodes)
		}
	}
	file(".state/treeState", fmt.Appendf(nil, `{"size":%d,"root":""}`, size))
	if _, err := db.Exec(`INSERT INTO state (id, next) VALUES (1, $1); COMMIT`, size); err != nil {
		b.Fatal(err)
	}
}

// engineTree keeps its hashes to itself, as Trillian does.
type engineTree struct {
	log.ProofTree // nil: a check neither appends nor asks for anything else
	hashes        *testonly.Tree
	bundle        []byte
}

func (e *engineTree) Size(context.Context) (uint64, error) { return e.hashes.Size(), nil }

func (e *engineTree) Bundle(context.Context, uint64, uint8) ([]byte, error) { return e.bundle, nil }

func (e *engineTree) Inclusion(_ context.Context, index, size uint64) ([][]byte, error) {
	return e.hashes.InclusionProof(index, size)
}

func TestATreeWithoutTilesIsCheckedByItsProofs(t *testing.T) {
	tree := &engineTree{hashes: testonly.New(rfc6962.DefaultHasher)}
	for i := range 5 {
		entry := fmt.Appendf(nil, "entry %d", i)
		tree.hashes.AppendData(entry)
		tree.bundle = append(append(tree.bundle, 0, byte(len(entry))), entry...)
	}
	signed := log.SignedTree{Size: 5, Root: [32]byte(tree.hashes.Hash()), By: "test"}
	check := func() (found []string) {
		if _, err := log.Check(t.Context(), log.CheckOptions{Kind: log.Rekor2, Tree: tree, Signed: []log.SignedTree{signed},
			Report: func(f log.Finding) { found = append(found, f.What) }}); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := check(); len(found) > 0 {
		t.Errorf("a healthy tree: %v", found)
	}
	tree.bundle[5] ^= 1
	if found := check(); !slices.Equal(found, []string{"proof", "root"}) {
		t.Errorf("with another first entry: %v, want its proof and the root", found)
	}
}
