package log_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
)

// behindItsFence returns a stopped log that had 6 entries and was restored to 3 of them, tree and rows.
func behindItsFence(t *testing.T, kind log.Kind, queued bool) *house {
	t.Helper()
	h := newHouse(t, kind)
	h.queued = queued
	h.mustOpen()
	for i := range 3 {
		h.addUntilAnswered(fmt.Sprintf("entry %d", i))
	}
	h.close()
	backup := filepath.Join(t.TempDir(), "backup")
	copyDir(t, h.dir, backup)
	h.mustOpen()
	for i := range 3 {
		h.addUntilAnswered(fmt.Sprintf("later %d", i))
	}
	h.close()
	for _, path := range []string{"tiles", "entries.db", "entries.db-wal", "entries.db-shm"} {
		os.RemoveAll(filepath.Join(h.dir, path))
	}
	copyDir(t, filepath.Join(backup, "tiles"), filepath.Join(h.dir, "tiles"))
	copyDir(t, filepath.Join(backup, "entries.db"), filepath.Join(h.dir, "entries.db"))
	for i := range 3 {
		delete(h.acked, fmt.Sprintf("later %d", i))
		delete(h.signed, uint64(4+i))
	}
	return h
}

// adopt tries to end the log, with its storage open as a command has it.
func (h *house) adopt(from, to uint64) (*log.Checkpoint, error) {
	h.t.Helper()
	if err := h.open(); err == nil {
		h.t.Fatal("a log behind its fence started")
	}
	defer h.close()
	return log.AdoptLost(h.t.Context(), h.options(), from, to)
}

func (h *house) fenceFile() []byte {
	h.t.Helper()
	raw, err := os.ReadFile(filepath.Join(h.dir, "fence", h.keyID().String()+".fence"))
	if err != nil {
		h.t.Fatal(err)
	}
	return raw
}

func TestALogThatLostEntriesIsReadAndNeverSignsAgainWhatItLost(t *testing.T) {
	for kindName, kind := range kinds {
		for name, queued := range map[string]bool{"fed from memory": false, "fed from a queue": true} {
			if queued && kind == log.CTPlain {
				continue
			}
			t.Run(kindName+", "+name, func(t *testing.T) {
				h := behindItsFence(t, kind, queued)
				before := h.fenceFile()
				if err := h.open(); err == nil || !strings.Contains(err.Error(), "`attestry log adopt --log test --lost 3..6` (or `tlog -adopt test -lost 3..6`)") {
					t.Fatalf("the error does not say what to type: %v", err)
				}
				h.close()
				for _, wrong := range [][2]uint64{{2, 6}, {3, 5}, {3, 7}, {4, 6}} {
					if _, err := h.adopt(wrong[0], wrong[1]); err == nil || !strings.Contains(err.Error(), "lost is 3..6, not") {
						t.Errorf("adopting with %v lost: %v", wrong, err)
					}
				}
				var cp *log.Checkpoint
				for range 2 { // the second time it is there already
					var err error
					if cp, err = h.adopt(3, 6); err != nil {
						t.Fatal(err)
					}
				}
				if cp.Size != 3 || cp.Root != h.signed[3] {
					t.Fatalf("the last tree has size %d and root %x, signed was %x", cp.Size, cp.Root, h.signed[3])
				}
				checkNote(t, kind, cp, h.key.Public())

				if err := h.open(); err == nil {
					t.Fatal("a log behind its fence started without its end")
				}
				h.close()
				h.final = &log.Record{Size: 3, Root: cp.Root, Promised: 6}
				h.change = func(o *log.Options) { o.FrozenNote = cp.Note }
				for range 2 {
					h.mustOpen()
					if err := h.log.Ready(); err != nil {
						t.Error(err)
					}
					if err := h.add("another"); fault.KindOf(err) != fault.Frozen {
						t.Errorf("an entry gets %v, want fault.Frozen", err)
					}
					h.verify()
					if _, err := h.log.SignSET(t.Context(), 3, []byte("body"), 1); err == nil {
						t.Error("a SET for a lost index was signed")
					}
					if _, err := h.log.SignSCT(t.Context(), 3, log.SCTInput{}); err == nil {
						t.Error("an SCT for a lost index was signed")
					}
					switch kind {
					case log.Rekor1:
						if _, err := h.log.SignSET(t.Context(), 2, []byte("body"), 1); err != nil {
							t.Error(err)
						}
					case log.CT, log.CTPlain:
						if head, err := h.log.TreeHead(t.Context()); err != nil || head.Size != 3 || head.Root != cp.Root {
							t.Errorf("the head is %+v, %v", head, err)
						}
					}
					h.close()
				}
				if !bytes.Equal(before, h.fenceFile()) {
					t.Error("the fence was written")
				}
				h.final.Promised = 5
				if err := h.open(); err == nil || !strings.Contains(err.Error(), "somebody else signs with this key") {
					t.Errorf("with a fence that moved on it starts: %v", err)
				}
			})
		}
	}
}

// forgetful is a fence whose last records do not reach far enough back.
type forgetful struct{ log.Fence }

func (forgetful) Recorded(context.Context, log.KeyID, uint64) (log.Record, error) {
	return log.Record{}, log.ErrNoRecord
}

func TestATreeIsSignedAgainOnlyWhenItIsKnownToHaveBeenSigned(t *testing.T) {
	for kindName, kind := range kinds {
		t.Run(kindName, func(t *testing.T) {
			h := behindItsFence(t, kind, false)
			cp, err := h.adopt(3, 6)
			if err != nil {
				t.Fatal(err)
			}
			other := behindItsFence(t, kind, false) // of another key
			foreign, err := other.adopt(3, 6)
			if err != nil {
				t.Fatal(err)
			}
			with := func(note []byte) {
				h.change = func(o *log.Options) { o.Fence, o.FrozenNote = forgetful{o.Fence}, note }
			}
			for name, tt := range map[string]struct {
				note []byte
				want string
			}{
				"no checkpoint":                  {nil, "nothing shows that the key has signed the tree of size 3"},
				"a checkpoint under another key": {foreign.Note, "checkpoint: "},
				"a changed checkpoint":           {bytes.Replace(cp.Note, []byte("\n3\n"), []byte("\n2\n"), 1), "checkpoint: "},
				"something else":                 {[]byte("hello"), "checkpoint: "},
				"the checkpoint":                 {cp.Note, ""},
			} {
				with(tt.note)
				again, err := h.adopt(3, 6)
				if tt.want == "" && (err != nil || again.Root != cp.Root) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("%s: %v, want %q", name, err, tt.want)
				}
				h.final = &log.Record{Size: 3, Root: cp.Root, Promised: 6}
				if err := h.open(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: opening: %v, want %q", name, err, tt.want)
				}
				h.close()
				h.final = nil
			}
		})
	}
}

func TestAdoptingRefusesATreeThatIsNotWhatWasSigned(t *testing.T) {
	h := behindItsFence(t, log.Rekor2, false)
	other := newHouse(t, log.Rekor2)
	other.mustOpen()
	for i := range 3 {
		other.addUntilAnswered(fmt.Sprintf("something else %d", i))
	}
	other.close()
	os.RemoveAll(filepath.Join(h.dir, "tiles"))
	copyDir(t, filepath.Join(other.dir, "tiles"), filepath.Join(h.dir, "tiles"))
	if _, err := h.adopt(3, 6); err == nil || !strings.Contains(err.Error(), "it is not what was signed") {
		t.Errorf("another history: %v", err)
	}

	h = behindItsFence(t, log.Rekor2, false)
	h.edit("tile/entries/000.p/3", func(raw []byte) []byte { raw[4] ^= 1; return raw })
	if _, err := h.adopt(3, 6); err == nil || !strings.Contains(err.Error(), "the tree is damaged") {
		t.Errorf("a changed entry: %v", err)
	}

	for kind, want := range map[log.Kind]string{log.Rekor1: "integratedTime is lost", log.CTPlain: "the chains of the rest are lost"} {
		h = behindItsFence(t, kind, false)
		removeRows(t, h.dir)
		if _, err := h.adopt(3, 6); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("lost rows: %v, want %q", err, want)
		}
	}

	h = behindItsFence(t, log.CT, false) // whose rows are derived again
	removeRows(t, h.dir)
	cp, err := h.adopt(3, 6)
	if err != nil {
		t.Fatal(err)
	}
	h.final = &log.Record{Size: 3, Root: cp.Root, Promised: 6}
	h.change = func(o *log.Options) { o.FrozenNote = cp.Note }
	h.mustOpen()
	h.verify()

	h = newHouse(t, log.Rekor2)
	h.mustOpen()
	h.addUntilAnswered("one")
	if _, err := log.AdoptLost(t.Context(), h.options(), 1, 2); err == nil || !strings.Contains(err.Error(), "nothing is lost") {
		t.Errorf("a whole log: %v", err)
	}
	h.close()
	os.RemoveAll(filepath.Join(h.dir, "fence"))
	if _, err := h.adopt(1, 2); err == nil || !strings.Contains(err.Error(), "nothing says what this log has lost") {
		t.Errorf("a log without its fence: %v", err)
	}
}

// ahead is a witness that has cosigned a larger tree.
type ahead struct{}

func (ahead) Cosign(context.Context, []byte, uint64, func(context.Context, uint64) ([][]byte, error)) ([]byte, error) {
	return nil, errors.New("409")
}

func TestTheWitnessesOfALogThatLostEntriesAreNotAsked(t *testing.T) {
	h := behindItsFence(t, log.Rekor2, false)
	cp, err := h.adopt(3, 6)
	if err != nil {
		t.Fatal(err)
	}
	kept := append(bytes.Clone(cp.Note), "— witness.example AAAAAAAA\n"...) // with a cosignature
	h.final = &log.Record{Size: 3, Root: cp.Root, Promised: 6}
	h.change = func(o *log.Options) { o.FrozenNote, o.Cosigner = kept, ahead{} }
	h.mustOpen()
	if got := h.log.Checkpoint().Note; !bytes.Equal(got, kept) {
		t.Errorf("the checkpoint is %s", got)
	}
}

func TestAFrozenLogBehindItsFenceSaysWhatToType(t *testing.T) {
	h := behindItsFence(t, log.Rekor2, false)
	h.final = &log.Record{Size: 6, Root: [32]byte{1}}
	if err := h.open(); err == nil || !strings.Contains(err.Error(), "was frozen with 6 entries and its tree has 3") || !strings.Contains(err.Error(), "--lost 3..6") {
		t.Errorf("%v", err)
	}
}

// TestRowsAndQueueBehindALostTreeAreDropped has rows in PostgreSQL that are newer than the tree, and a submission that waits.
func TestRowsAndQueueBehindALostTreeAreDropped(t *testing.T) {
	h := newHouse(t, log.Rekor1)
	h.queued, h.postgres = true, services.Postgres(t)
	h.mustOpen()
	for i := range 3 {
		h.addUntilAnswered(fmt.Sprintf("entry %d", i))
	}
	h.close()
	backup := filepath.Join(t.TempDir(), "backup")
	copyDir(t, h.dir, backup)
	h.mustOpen()
	for i := range 3 {
		h.addUntilAnswered(fmt.Sprintf("later %d", i))
	}
	if _, err := h.db.ExecContext(t.Context(), `INSERT INTO queue (identity, received, data) VALUES ($1, 1, $2)`, make([]byte, 32), []byte("waits")); err != nil {
		t.Fatal(err)
	}
	h.close()
	os.RemoveAll(filepath.Join(h.dir, "tiles"))
	copyDir(t, filepath.Join(backup, "tiles"), filepath.Join(h.dir, "tiles"))
	records, err := log.PeekFence(filepath.Join(h.dir, "fence"), h.keyID())
	if err != nil {
		t.Fatal(err)
	}
	to := records[0].Promised // 6, or 7 when what waits became a leaf before the end
	cp, err := h.adopt(3, to)
	if err != nil {
		t.Fatal(err)
	}
	h.final = &log.Record{Size: 3, Root: cp.Root, Promised: to}
	h.change = func(o *log.Options) { o.FrozenNote = cp.Note }
	for range 2 {
		h.mustOpen()
		for i := range 3 {
			delete(h.acked, fmt.Sprintf("later %d", i))
		}
		h.signed = map[uint64][32]byte{}
		h.verify()
		if err := h.add("another"); fault.KindOf(err) != fault.Frozen {
			t.Errorf("an entry gets %v, want fault.Frozen", err)
		}
		var leaves, queued, frozen int
		if err := h.db.QueryRowContext(t.Context(), `SELECT (SELECT COUNT(*) FROM leaves), (SELECT COUNT(*) FROM queue), (SELECT COUNT(*) FROM frozen)`).Scan(&leaves, &queued, &frozen); err != nil {
			t.Fatal(err)
		}
		if leaves != 3 || queued != 0 || frozen != 1 {
			t.Errorf("%d rows, %d queued, frozen %d; want 3, 0, 1", leaves, queued, frozen)
		}
		h.close()
	}
}
