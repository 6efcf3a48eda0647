package tiles_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/ctonly"

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
