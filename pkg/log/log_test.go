package log_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/ctonly"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// house is a log with all its storage on disk, which can be closed and opened again.
type house struct {
	t    *testing.T
	dir  string
	kind log.Kind
	key  crypto.Signer
	// final is the tree of a log that was frozen; nil for one that grows.
	final *log.Record

	queued   bool   // fed from the database
	postgres string // URI of the database; "" for SQLite
	db       *database.DB
	shut     func() // closes a replica
	change   func(*log.Options)

	tree  *faultyTree
	fence *faultyFence
	files *log.FileFence
	tiles *tiles.Tree
	log   *log.Log

	mu     sync.Mutex
	signed map[uint64][32]byte    // every tree that was ever signed
	acked  map[string]log.Receipt // every entry that was ever answered
}

func newHouse(t *testing.T, kind log.Kind) *house {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, dir: tempDir(t), kind: kind, key: key, signed: map[uint64][32]byte{}, acked: map[string]log.Receipt{}}
	t.Cleanup(h.close)
	return h
}

// tempDir is t.TempDir with patience: Tessera's publisher may still touch its lock file after its context ended.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 1000 {
			if err = os.RemoveAll(dir); err == nil {
				return
			}
		}
		t.Error(err)
	})
	return dir
}

func (h *house) open() error {
	h.t.Helper()
	var err error
	if h.files, err = log.OpenFileFence(filepath.Join(h.dir, "fence")); err != nil {
		h.t.Fatal(err)
	}
	if h.tiles, err = tiles.Open(h.t.Context(), filepath.Join(h.dir, "tiles"), h.kind); err != nil {
		h.t.Fatal(err)
	}
	if h.postgres != "" {
		if h.db, err = database.Open(h.t.Context(), h.postgres, database.Options{Schema: "log_test"}); err != nil {
			h.t.Fatal(err)
		}
	}
	h.tree = &faultyTree{TileTree: h.tiles}
	h.fence = &faultyFence{Fence: h.files}
	if h.log, err = log.Open(h.t.Context(), h.options()); err == nil {
		log.SetPatience(h.log, 200*time.Millisecond)
	}
	return err
}

func (h *house) options() log.Options {
	opts := log.Options{
		Kind: h.kind, Label: "test", Origin: "log.example", Name: "log.example", Dir: h.dir,
		Tree: h.tree, Key: h.key, Fence: h.fence, Frozen: h.final, Logger: slog.New(slog.DiscardHandler),
	}
	opts.Queued, opts.DB = h.queued, h.db
	if h.kind == log.Rekor1 {
		opts.Origin, opts.TreeID = "log.example - 42", 42
	}
	if h.change != nil {
		h.change(&opts)
	}
	return opts
}

func (h *house) mustOpen() {
	h.t.Helper()
	if err := h.open(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) close() {
	if h.log != nil {
		h.log.Close()
		h.log = nil
	}
	if h.tiles != nil {
		h.tiles.Close()
		h.files.Close()
		h.tiles = nil
		if h.db != nil {
			h.db.Close()
		}
	}
}

func (h *house) submission(text string) log.Submission {
	if h.kind == log.CT {
		entry := &ctonly.Entry{Timestamp: 1_700_000_000_000, Certificate: []byte(text)}
		return log.Submission{Identity: sha256.Sum256([]byte(text)), CT: entry}
	}
	if h.kind == log.CTPlain {
		leaf := append(make([]byte, 12), 0, 0, byte(len(text))) // a certificate at the time 0
		leaf = append(append(leaf, text...), 0, 0)
		identity, err := log.CTPlainIdentity(leaf)
		if err != nil {
			h.t.Error(err)
		}
		return log.Submission{Identity: identity, Data: leaf, Extra: []byte("extra of " + text)}
	}
	s := log.Submission{Data: []byte(text), Identity: [32]byte(rfc6962.DefaultHasher.HashLeaf([]byte(text)))}
	if strings.HasPrefix(text, "keyed") {
		s.Keys = []string{"sha256:of " + text}
	}
	return s
}

// add submits text and, when it is answered, remembers what was promised.
func (h *house) add(text string) error {
	receipt, err := h.log.Add(h.t.Context(), h.submission(text))
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.acked[text]; ok && (old.Index != receipt.Index || old.IntegratedUnix != receipt.IntegratedUnix || old.TimestampMillis != receipt.TimestampMillis) {
		h.t.Errorf("%q was answered with index %d time %d, now with %d and %d", text, old.Index, old.IntegratedUnix, receipt.Index, receipt.IntegratedUnix)
	}
	h.acked[text] = receipt
	h.sawLocked(receipt.Checkpoint)
	return nil
}

// addUntilAnswered retries as a client does after a 503.
func (h *house) addUntilAnswered(text string) {
	h.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := h.add(text)
		if err == nil {
			return
		}
		if fault.KindOf(err) != fault.Unavailable || time.Now().After(deadline) {
			h.t.Fatalf("adding %q: %v", text, err)
		}
	}
}

func (h *house) sawLocked(cp *log.Checkpoint) {
	if root, ok := h.signed[cp.Size]; ok && root != cp.Root {
		h.t.Errorf("FORK: size %d was signed with root %x and with root %x", cp.Size, root, cp.Root)
	}
	h.signed[cp.Size] = cp.Root
}

// verify checks the whole log from storage: leaves, roots, proofs, signatures and everything
// that was ever answered.
func (h *house) verify() {
	h.t.Helper()
	ctx := h.t.Context()
	h.mu.Lock()
	defer h.mu.Unlock()
	cp := h.log.Checkpoint()
	h.sawLocked(cp)
	checkNote(h.t, h.kind, cp, h.key.Public())
	var leaves []log.Leaf
	for uint64(len(leaves)) < cp.Size {
		more, err := h.log.Leaves(ctx, uint64(len(leaves)), 1000)
		if err != nil || len(more) == 0 {
			h.t.Fatalf("reading leaves from %d of %d: %d, %v", len(leaves), cp.Size, len(more), err)
		}
		leaves = append(leaves, more...)
	}
	leaves = leaves[:cp.Size] // a queue that a restart found may have made the tree grow meanwhile
	seen := map[[32]byte]uint64{}
	for i, leaf := range leaves {
		if leaf.Index != uint64(i) {
			h.t.Fatalf("leaf %d says it is %d", i, leaf.Index)
		}
		if first, ok := seen[leaf.LeafHash]; ok {
			h.t.Errorf("index %d repeats the leaf at %d", i, first)
		}
		seen[leaf.LeafHash] = leaf.Index
		path, err := h.log.InclusionProof(ctx, leaf.Index, cp.Size)
		if err != nil {
			h.t.Fatal(err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, leaf.Index, cp.Size, leaf.LeafHash[:], path, cp.Root[:]); err != nil {
			h.t.Errorf("inclusion of %d: %v", i, err)
		}
		if index, err := h.log.IndexOf(ctx, leaf.LeafHash); err != nil || index != leaf.Index {
			h.t.Errorf("IndexOf(leaf %d) = %d, %v", i, index, err)
		}
	}
	for size, root := range h.signed {
		path, err := h.log.ConsistencyProof(ctx, size, cp.Size)
		if err != nil {
			h.t.Fatal(err)
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, size, cp.Size, path, root[:], cp.Root[:]); err != nil {
			h.t.Errorf("the signed tree of size %d is no prefix: %v", size, err)
		}
	}
	for text, receipt := range h.acked {
		if receipt.Index >= cp.Size {
			h.t.Errorf("%q was answered with index %d, the log has %d", text, receipt.Index, cp.Size)
			continue
		}
		leaf := leaves[receipt.Index]
		switch {
		case h.kind != log.CT && string(leaf.Data) != string(h.submission(text).Data):
			h.t.Errorf("index %d holds %q, want %q", receipt.Index, leaf.Data, text)
		case h.kind == log.CTPlain:
			if string(leaf.Extra) != "extra of "+text {
				h.t.Errorf("%q lost what was kept beside it: %q", text, leaf.Extra)
			}
		case h.kind == log.Rekor1 && leaf.IntegratedUnix != receipt.IntegratedUnix:
			h.t.Errorf("%q was integrated at %d, now at %d", text, receipt.IntegratedUnix, leaf.IntegratedUnix)
		case h.kind != log.CT && strings.HasPrefix(text, "keyed") && (len(leaf.Keys) != 1 || leaf.Keys[0] != "sha256:of "+text):
			h.t.Errorf("%q lost its search keys: %q", text, leaf.Keys)
		}
	}
}

// checkNote verifies a checkpoint without the code that made it.
func checkNote(t *testing.T, kind log.Kind, cp *log.Checkpoint, pub crypto.PublicKey) {
	t.Helper()
	text, sigs, ok := strings.Cut(string(cp.Note), "\n\n")
	lines := strings.Split(text, "\n")
	fields := strings.Fields(sigs)
	if !ok || len(lines) != 3 || len(fields) != 3 || lines[1] != strconv.FormatUint(cp.Size, 10) {
		t.Fatalf("checkpoint is malformed: %q", cp.Note)
	}
	blob, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil {
		t.Fatal(err)
	}
	if kind == log.CT || kind == log.CTPlain {
		return // the timestamped form is checked where certificate-transparency-go can
	}
	digest := sha256.Sum256([]byte(text + "\n"))
	if !ecdsa.VerifyASN1(pub.(*ecdsa.PublicKey), digest[:], blob[4:]) {
		t.Errorf("the checkpoint's signature does not verify")
	}
}

var errInjected = errors.New("injected fault")

// faultyTree fails its next append, before or after it takes effect.
type faultyTree struct {
	log.TileTree
	before, after atomic.Bool
}

func (f *faultyTree) Append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	if f.before.CompareAndSwap(true, false) {
		return nil, errInjected
	}
	indexes, err := f.TileTree.Append(ctx, batch)
	if f.after.CompareAndSwap(true, false) {
		return nil, errInjected
	}
	return indexes, err
}

type faultyFence struct {
	log.Fence
	mu            sync.Mutex
	before, after int // how many calls still fail
	readsFail     int
}

func (f *faultyFence) Advance(ctx context.Context, key log.KeyID, prev, next log.Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.before > 0 {
		f.before--
		return errInjected
	}
	err := f.Fence.Advance(ctx, key, prev, next)
	if f.after > 0 {
		f.after--
		return errInjected
	}
	return err
}

func (f *faultyFence) Last(ctx context.Context, key log.KeyID) (log.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readsFail > 0 {
		f.readsFail--
		return log.Record{}, errInjected
	}
	return f.Fence.Last(ctx, key)
}

var kinds = map[string]log.Kind{"rekor1": log.Rekor1, "rekor2": log.Rekor2, "ct": log.CT, "ct-plain": log.CTPlain}

// Each fault hits one append. The client gets a 503 or an answer, retries until answered, and
// afterwards, in this process and after a restart, the log is one consistent history.
func TestAFaultAtAnyStepLosesNothingAndForksNothing(t *testing.T) {
	ways(t, func(t *testing.T, way func(h *house) *house) {
		faults := map[string]func(h *house){
			"the add fails and nothing was stored":                func(h *house) { h.tree.before.Store(true) },
			"the add fails but everything was stored":             func(h *house) { h.tree.after.Store(true) },
			"the fence fails and did not move":                    func(h *house) { h.fence.before = 1 },
			"the fence fails but moved":                           func(h *house) { h.fence.after = 1 },
			"the fence fails, moved, and cannot be read":          func(h *house) { h.fence.after, h.fence.readsFail = 1, 2 },
			"the fence fails, did not move, and cannot be read":   func(h *house) { h.fence.before, h.fence.readsFail = 1, 2 },
			"the fence fails again and again":                     func(h *house) { h.fence.before = 4 },
			"the reservation fails and is not stored":             func(h *house) { h.failRows("before reserving") },
			"the reservation fails but is stored":                 func(h *house) { h.failRows("after reserving") },
			"the rows fail and are not stored":                    func(h *house) { h.failRows("before completing") },
			"the rows fail but are stored":                        func(h *house) { h.failRows("after completing") },
			"add stored, then rows, then truncation fail":         func(h *house) { h.tree.after.Store(true); h.failRows("before completing", "after truncating") },
			"rows stored, then the fence fails and is unreadable": func(h *house) { h.failRows("after completing"); h.fence.before, h.fence.readsFail = 1, 1 },
		}
		for kindName, kind := range kinds {
			for name, inject := range faults {
				t.Run(kindName+"/"+name, func(t *testing.T) {
					t.Parallel()
					h := way(newHouse(t, kind))
					h.mustOpen()
					for i := range 3 {
						h.addUntilAnswered(fmt.Sprintf("before %d", i))
					}
					inject(h)
					var wg sync.WaitGroup
					for i := range 8 {
						wg.Go(func() { h.addUntilAnswered(fmt.Sprintf("keyed during %d", i)) })
					}
					wg.Wait()
					h.verify()
					h.close()
					h.mustOpen()
					h.verify()
					h.addUntilAnswered("after")
					h.addUntilAnswered("before 1")
					h.verify()
				})
			}
		}
	})
}

// Here the process ends with the fault: what the log meets at its next start is what the failed
// step left on disk, without the recovery of the running process.
func TestAProcessThatEndsAtAFaultStartsAgain(t *testing.T) {
	ways(t, func(t *testing.T, way func(h *house) *house) {
		for kindName, kind := range kinds {
			for name, inject := range map[string]func(h *house){
				"after the reservation":             func(h *house) { h.failRows("after reserving"); h.fence.readsFail = 1 << 30 },
				"after the leaves":                  func(h *house) { h.tree.after.Store(true); h.fence.readsFail = 1 << 30 },
				"after the rows":                    func(h *house) { h.failRows("after completing"); h.fence.readsFail = 1 << 30 },
				"after the fence, before an answer": func(h *house) { h.fence.after, h.fence.readsFail = 1, 1<<30 },
			} {
				t.Run(kindName+"/"+name, func(t *testing.T) {
					t.Parallel()
					h := way(newHouse(t, kind))
					h.mustOpen()
					h.addUntilAnswered("before")
					inject(h)
					err := h.add("keyed in flight")
					if err != nil && fault.KindOf(err) != fault.Unavailable {
						t.Errorf("the client in flight got %v, want a 503", err)
					}
					h.close()
					h.mustOpen()
					h.verify()
					h.addUntilAnswered("keyed in flight")
					h.verify()
				})
			}
		}
	})
}

func TestTheSameEntryAddedByAHundredAtOnceIsOneLeaf(t *testing.T) {
	ways(t, func(t *testing.T, way func(h *house) *house) {
		for kindName, kind := range kinds {
			t.Run(kindName, func(t *testing.T) {
				h := way(newHouse(t, kind))
				h.mustOpen()
				var wg sync.WaitGroup
				var mu sync.Mutex
				firsts := 0
				for range 100 {
					wg.Go(func() {
						receipt, err := h.log.Add(t.Context(), h.submission("keyed one"))
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						defer mu.Unlock()
						if !receipt.Duplicate {
							firsts++
						}
					})
				}
				wg.Wait()
				if size := h.log.Checkpoint().Size; size != 1 || firsts != 1 {
					t.Errorf("size = %d, firsts = %d, want 1 and 1", size, firsts)
				}
				h.verify()
			})
		}
	})
}

func TestManyEntriesCrossTilesAndSurviveARestart(t *testing.T) {
	ways(t, func(t *testing.T, way func(h *house) *house) {
		for kindName, kind := range kinds {
			t.Run(kindName, func(t *testing.T) {
				h := way(newHouse(t, kind))
				h.mustOpen()
				const n = 1200
				var wg sync.WaitGroup
				for w := range 100 {
					wg.Go(func() {
						for i := range n / 100 {
							h.addUntilAnswered(fmt.Sprintf("entry %d of %d", i, w))
						}
					})
				}
				wg.Wait()
				h.verify()
				h.close()
				h.mustOpen()
				if size := h.log.Checkpoint().Size; size != n {
					t.Errorf("size = %d, want %d", size, n)
				}
				h.verify()
				h.checkTiles()
			})
		}
	})
}

// checkTiles reads the log as a tile client does, clamped to the checkpoint.
func (h *house) checkTiles() {
	h.t.Helper()
	ctx, size := h.t.Context(), h.log.Checkpoint().Size
	full, partial := size/256, int(size%256)
	for index := range full {
		if _, err := h.log.Bundle(ctx, index, 0); err != nil {
			h.t.Error(err)
		}
		raw, err := h.log.Tile(ctx, 0, index, 0)
		if err != nil || len(raw) != 8192 {
			h.t.Errorf("tile 0/%d: %d bytes, %v", index, len(raw), err)
		}
	}
	raw, err := h.log.Tile(ctx, 0, full, partial)
	if err != nil || len(raw) != 32*partial {
		h.t.Errorf("tile 0/%d.p/%d: %d bytes, %v", full, partial, len(raw), err)
	}
	if _, err := h.log.Bundle(ctx, full, partial); err != nil {
		h.t.Error(err)
	}
	for _, past := range []struct {
		level, index uint64
		width        int
	}{{0, full, 0}, {0, full, partial + 1}, {0, full + 1, 0}, {0, 1 << 60, 0}, {7, 0, 1}, {8, 0, 0}, {9, 0, 0}, {0, 0, -1}, {0, 0, 256}} {
		if _, err := h.log.Tile(ctx, past.level, past.index, past.width); fault.KindOf(err) != fault.NotFound {
			h.t.Errorf("tile %v = %v, want not found", past, err)
		}
	}
}

func (h *house) failRows(points ...string) {
	if h.queued { // step 1 is another one there
		for i := range points {
			points[i] = strings.Replace(points[i], "reserving", "queueing", 1)
		}
	}
	log.FailCommits(h.log, points...)
}

// ways are the ways from a submission to the tree: from memory, from a queue in SQLite, from one in PostgreSQL.
func ways(t *testing.T, run func(t *testing.T, way func(h *house) *house)) {
	t.Run("direct", func(t *testing.T) { run(t, func(h *house) *house { return h }) })
	t.Run("queued", func(t *testing.T) { run(t, func(h *house) *house { h.queued = true; return h }) })
	if testing.Short() {
		return
	}
	t.Run("queued in PostgreSQL", func(t *testing.T) {
		server := services.StartPostgres(t)
		run(t, func(h *house) *house {
			if h.kind != log.Rekor1 && os.Getenv("ATTESTRY_LONG") == "" {
				h.t.Skip("skipped: in PostgreSQL one kind of log is enough between two long runs; enable with ATTESTRY_LONG=1")
			}
			h.queued, h.postgres = true, server.Database(h.t)
			return h
		})
	})
}
