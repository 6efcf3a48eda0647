package tiles_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/ctonly"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/journal"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// leaves are n submissions from index first on.
func leaves(kind log.Kind, first, n int) []log.Submission {
	batch := make([]log.Submission, n)
	for i := range batch {
		text := fmt.Appendf(nil, "leaf %d, and what it says", first+i)
		batch[i].Identity = sha256.Sum256(text)
		if kind == log.CT {
			batch[i].CT = &ctonly.Entry{
				Timestamp: uint64(first + i), IsPrecert: true, Certificate: text, Precertificate: append([]byte("pre "), text...),
				IssuerKeyHash: bytes.Repeat([]byte{7}, 32), FingerprintsChain: [][32]byte{sha256.Sum256([]byte("issuer"))},
			}
		} else {
			batch[i].Data = text
		}
	}
	return batch
}

// reader is what Tree and Dir have in common.
type reader interface {
	Size(ctx context.Context) (uint64, error)
	Tile(ctx context.Context, level, index uint64, width uint8) ([]byte, error)
	Bundle(ctx context.Context, index uint64, width uint8) ([]byte, error)
}

// holds compares every tile and bundle of a tree with what its leaves make.
func holds(t *testing.T, what string, r reader, kind log.Kind, size int) {
	t.Helper()
	ctx := t.Context()
	if got, err := r.Size(ctx); err != nil || got != uint64(size) {
		t.Fatalf("%s: size %d, %v, want %d", what, got, err, size)
	}
	nodes := map[compact.NodeID][]byte{}
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	var bundles [][]byte
	for i, sub := range leaves(kind, 0, size) {
		var hash, entry []byte
		if kind == log.CT {
			hash, entry = sub.CT.MerkleLeafHash(uint64(i)), sub.CT.LeafData(uint64(i))
		} else {
			hash, entry = rfc6962.DefaultHasher.HashLeaf(sub.Data), append(binary.BigEndian.AppendUint16(nil, uint16(len(sub.Data))), sub.Data...)
		}
		nodes[compact.NodeID{Index: uint64(i)}] = hash
		if err := tree.Append(hash, func(id compact.NodeID, hash []byte) { nodes[id] = hash }); err != nil {
			t.Fatal(err)
		}
		if i%layout.EntryBundleWidth == 0 {
			bundles = append(bundles, nil)
		}
		bundles[len(bundles)-1] = append(bundles[len(bundles)-1], entry...)
	}
	for index, want := range bundles {
		width := layout.PartialTileSize(0, uint64(index), uint64(size))
		got, err := r.Bundle(ctx, uint64(index), width)
		if err != nil || !bytes.HasPrefix(got, want) {
			t.Fatalf("%s: bundle %d of width %d has %d bytes, %v, want %d", what, index, width, len(got), err, len(want))
		}
	}
	for level := uint64(0); size>>(layout.TileHeight*level) > 0; level++ {
		count := uint64(size) >> (layout.TileHeight * level)
		for index := uint64(0); index*layout.TileWidth < count; index++ {
			var want []byte
			for i := index * layout.TileWidth; i < min(count, (index+1)*layout.TileWidth); i++ {
				want = append(want, nodes[compact.NodeID{Level: uint(level * layout.TileHeight), Index: i}]...)
			}
			width := layout.PartialTileSize(level, index, uint64(size))
			got, err := r.Tile(ctx, level, index, width)
			if err != nil || !bytes.HasPrefix(got, want) {
				t.Fatalf("%s: tile %d/%d of width %d has %d bytes, %v, want %d", what, level, index, width, len(got), err, len(want))
			}
		}
	}
}

// TestEveryMomentIsTheWholeTree appends batches of many sizes and, behind each, reads the open tree, a copy of its files as a crash
// leaves them, by a reader and by the next process, and that copy closed in order.
func TestEveryMomentIsTheWholeTree(t *testing.T) {
	for name, kind := range map[string]log.Kind{"rekor": log.Rekor1, "ct": log.CT} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "tiles")
			tree, err := tiles.Open(t.Context(), dir, kind)
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			size := 0
			for round, n := range []int{1, 2, 30, 222, 1, 1, 255, 300, 7, 256, 1, 500, 3} {
				indexes, err := tree.Append(t.Context(), leaves(kind, size, n))
				if err != nil || len(indexes) != n || indexes[0] != uint64(size) || indexes[n-1] != uint64(size+n-1) {
					t.Fatalf("batch of %d at %d: %v, %v", n, size, indexes, err)
				}
				size += n
				holds(t, fmt.Sprintf("open at %d", size), tree, kind, size)
				crashed := filepath.Join(t.TempDir(), "crashed")
				copyRunning(t, dir, crashed)
				d, err := tiles.OpenDir(crashed, kind)
				if err != nil {
					t.Fatal(err)
				}
				holds(t, fmt.Sprintf("read after a crash at %d", size), d, kind, size)
				beside, err := tiles.OpenDir(dir, kind)
				if err != nil {
					t.Fatal(err)
				}
				holds(t, fmt.Sprintf("read beside the log at %d", size), beside, kind, size)
				if round%3 != 0 {
					continue
				}
				next, err := tiles.Open(t.Context(), crashed, kind)
				if err != nil {
					t.Fatal(err)
				}
				holds(t, fmt.Sprintf("opened after a crash at %d", size), next, kind, size)
				if _, err := next.Append(t.Context(), leaves(kind, size, 5)); err != nil {
					t.Fatal(err)
				}
				holds(t, fmt.Sprintf("after a crash, and five more, at %d", size), next, kind, size+5)
				if err := next.Close(); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(filepath.Join(crashed, ".state", "tail")); err != nil {
					t.Fatal(err)
				}
				d, err = tiles.OpenDir(crashed, kind)
				if err != nil {
					t.Fatal(err)
				}
				holds(t, fmt.Sprintf("closed, without its journal, at %d", size), d, kind, size+5)
			}
		})
	}
}

// copyRunning copies the files of an open tree, the journal first: what goes over to the driver meanwhile is in both.
func copyRunning(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(to, ".state"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, step := range [][]string{
		{"cp", filepath.Join(from, ".state", "tail"), filepath.Join(to, ".state", "tail")},
		{"cp", filepath.Join(from, ".state", "treeState"), filepath.Join(to, ".state", "treeState")}, // before the tiles that it counts
		{"sh", "-c", `cd "$1" && find . -type f ! -path ./.state/tail ! -path ./.state/treeState | while read -r f; do mkdir -p "$2/$(dirname "$f")" && cp "$f" "$2/$f" 2>/dev/null; done; true`, "sh", from, to},
	} {
		if out, err := exec.Command(step[0], step[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// TestABatchLargerThanTheJournal goes to the driver at once.
func TestABatchLargerThanTheJournal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiles")
	tree, err := tiles.Open(t.Context(), dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if _, err := tree.Append(t.Context(), leaves(log.Rekor1, 0, 3)); err != nil {
		t.Fatal(err)
	}
	batch := make([]log.Submission, 200)
	for i := range batch {
		batch[i].Data = bytes.Repeat([]byte{byte(i)}, 60_000)
		batch[i].Identity = sha256.Sum256(batch[i].Data)
	}
	indexes, err := tree.Append(t.Context(), batch)
	if err != nil || indexes[0] != 3 || indexes[199] != 202 {
		t.Fatal(indexes, err)
	}
	if indexes, err = tree.Append(t.Context(), leaves(log.Rekor1, 203, 2)); err != nil || indexes[1] != 204 {
		t.Fatal(indexes, err)
	}
	raw, err := tree.Bundle(t.Context(), 0, 205)
	if err != nil || len(raw) < 200*60_002 {
		t.Errorf("the bundle has %d bytes, %v", len(raw), err)
	}
}

func TestASecondProcessIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiles")
	tree, err := tiles.Open(t.Context(), dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if second, err := tiles.Open(t.Context(), dir, log.Rekor1); err == nil {
		second.Close()
		t.Error("two have one tree open")
	}
}

// big are n leaves of 60,000 bytes from index first on, and bundled what they are in an entry bundle.
func big(first, n int) (batch []log.Submission, bundled []byte) {
	batch = make([]log.Submission, n)
	for i := range batch {
		batch[i].Data = bytes.Repeat(fmt.Appendf(nil, "%05d ", first+i), 10_000)
		batch[i].Identity = sha256.Sum256(batch[i].Data)
		bundled = append(binary.BigEndian.AppendUint16(bundled, uint16(len(batch[i].Data))), batch[i].Data...)
	}
	return batch, bundled
}

// TestAJournalHoldsWhatADriverDoesNotTake until it is full: then appends fail, and nothing that was appended is lost, whether the driver goes on or
// the process ends.
func TestAJournalHoldsWhatADriverDoesNotTake(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiles")
	tree, err := tiles.Open(t.Context(), dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	told := make(chan error, 10)
	tree.Watch(func(err error) { told <- err })
	if err := os.WriteFile(filepath.Join(dir, "tile"), nil, 0o644); err != nil { // where the driver wants a directory
		t.Fatal(err)
	}
	size := 0
	for ; ; size += 10 {
		batch, _ := big(size, 10)
		if _, err := tree.Append(t.Context(), batch); fault.ReasonOf(err) == "log_storage" {
			break
		} else if err != nil || size > 140 {
			t.Fatalf("at %d: %v", size, err)
		}
	}
	if size < 120 {
		t.Errorf("full after %d leaves", size)
	}
	if leaves, err := tree.Backlog(); leaves != size || err == nil {
		t.Errorf("%d leaves wait, %v", leaves, err)
	}
	if err := <-told; err == nil {
		t.Error("it was not told that the driver fails")
	}
	_, want := big(0, size)
	whole := func(what string, r reader) {
		t.Helper()
		if got, err := r.Size(t.Context()); err != nil || got != uint64(size) {
			t.Errorf("%s: size %d, %v, want %d", what, got, err, size)
		}
		if got, err := r.Bundle(t.Context(), 0, uint8(size)); err != nil || !bytes.HasPrefix(got, want) {
			t.Errorf("%s: the bundle has %d bytes, %v, want %d", what, len(got), err, len(want))
		}
	}
	whole("while the driver fails", tree)
	beside, err := tiles.OpenDir(dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	whole("read beside it", beside)

	crashed := filepath.Join(t.TempDir(), "crashed")
	if out, err := exec.Command("cp", "-r", dir, crashed).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	for _, dir := range []string{crashed, dir} {
		if err := os.Remove(filepath.Join(dir, "tile")); err != nil {
			t.Fatal(err)
		}
	}
	next, err := tiles.Open(t.Context(), crashed, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	whole("the next process", next)
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(crashed, ".state", "tail")); err != nil {
		t.Fatal(err)
	}
	if d, err := tiles.OpenDir(crashed, log.Rekor1); err != nil {
		t.Error(err)
	} else {
		whole("integrated", d)
	}

	if err := <-told; err != nil {
		t.Errorf("it was told %v, not that the driver goes on", err)
	}
	batch, more := big(size, 10)
	if indexes, err := tree.Append(t.Context(), batch); err != nil || indexes[0] != uint64(size) {
		t.Fatal(indexes, err)
	}
	size, want = size+10, append(want, more...)
	whole("once the driver goes on", tree)
}

// TestFilesBeyondTheTreeAreNotRead: an integration that failed has left them.
func TestFilesBeyondTheTreeAreNotRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiles")
	tree, err := tiles.Open(t.Context(), dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if _, err := tree.Append(t.Context(), leaves(log.Rekor1, 0, 2)); err != nil {
		t.Fatal(err)
	}
	tree.Hold() // what is there is integrated, what comes stays in the journal
	if _, err := tree.Append(t.Context(), leaves(log.Rekor1, 2, 3)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tile/entries/000.p/5", "tile/0/000.p/5"} {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte{7}, 160), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := tiles.OpenDir(dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, "read", d, log.Rekor1, 5)
	holds(t, "open", tree, log.Rekor1, 5)
	if got, err := d.Content(log.Rekor1, "tile/entries/000.p/5"); err != nil || bytes.HasPrefix(got, []byte{7}) || !bytes.HasSuffix(got, []byte("leaf 4, and what it says")) {
		t.Errorf("copied: %q, %v", got, err)
	}
}

// TestSizesBetweenIntegrations: a signed size is the end of a batch, and the driver may have stored larger tiles alone.
func TestSizesBetweenIntegrations(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiles")
	tree, err := tiles.Open(t.Context(), dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for _, batch := range [][2]int{{0, 3}, {3, 5}} {
		if _, err := tree.Append(t.Context(), leaves(log.Rekor1, batch[0], batch[1])); err != nil {
			t.Fatal(err)
		}
	}
	tree.Hold() // what is there is integrated
	for _, name := range []string{"tile/entries/000.p/3", "tile/0/000.p/3"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	d, err := tiles.OpenDir(dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func() ([]byte, error){
		"bundle":  func() ([]byte, error) { return d.Bundle(t.Context(), 0, 3) },
		"content": func() ([]byte, error) { return d.Content(log.Rekor1, "tile/entries/000.p/3") },
	} {
		if got, err := read(); err != nil || !bytes.Contains(got, []byte("leaf 2, and what it says")) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := d.Tile(t.Context(), 0, 0, 3); err != nil || len(got) < 3*32 {
		t.Errorf("tile: %d bytes, %v", len(got), err)
	}
}

// TestADriverThatBreaksTheOrderStopsThere: the journal has what was signed, and keeps it.
func TestADriverThatBreaksTheOrderStopsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tiles")
	tree, err := tiles.Open(t.Context(), dir, log.Rekor1)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 10)
	tree.Watch(func(err error) { told <- err })
	tree.AddFirst(leaves(log.Rekor1, 99, 1)[0])
	if _, err := tree.Append(t.Context(), leaves(log.Rekor1, 0, 3)); err != nil {
		t.Fatal(err)
	}
	if err := <-told; err == nil || !strings.Contains(err.Error(), "gave leaf 0 index 1") {
		t.Errorf("it was told %v", err)
	}
	holds(t, "open", tree, log.Rekor1, 3)
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if frames, err := journal.Read(filepath.Join(dir, ".state", "tail")); err != nil || len(frames) != 1 {
		t.Errorf("%d frames are in the journal, %v", len(frames), err)
	}
}

// TestAJournalThatIsNotTheTreesStopsTheStart is one that is damaged, or begins beyond the tree.
func TestAJournalThatIsNotTheTreesStopsTheStart(t *testing.T) {
	for name, spoil := range map[string]func(tail string) error{
		"damaged": func(tail string) error { return os.WriteFile(tail, bytes.Repeat([]byte("x"), 8192), 0o644) },
		"of a later tree": func(tail string) error {
			return errors.Join(os.Remove(tail), journal.Create(tail, [][]byte{{0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 'x'}}))
		},
		"of another kind of log": func(tail string) error {
			return errors.Join(os.Remove(tail), journal.Create(tail, [][]byte{{0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 'x'}}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "tiles")
			tree, err := tiles.Open(t.Context(), dir, log.Rekor1)
			if err == nil {
				err = tree.Close()
			}
			if err == nil {
				err = spoil(filepath.Join(dir, ".state", "tail"))
			}
			if err != nil {
				t.Fatal(err)
			}
			if tree, err := tiles.Open(t.Context(), dir, log.Rekor1); err == nil || !strings.Contains(err.Error(), "move it away") {
				t.Errorf("opened %v: %v", tree, err)
			}
			if _, err := tiles.OpenDir(dir, log.Rekor1); err == nil {
				t.Error("read")
			}
			if _, err := tiles.OpenQueued(t.Context(), dir, log.Rekor1); err == nil {
				t.Error("opened for several processes")
			}
		})
	}
}
