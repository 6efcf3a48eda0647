package log_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/log"
)

// copyDir copies a stopped log's directory as a backup tool would.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestALogThatDoesNotAgreeWithItsFenceDoesNotStart(t *testing.T) {
	for _, tt := range []struct {
		name string
		kind log.Kind
		// change damages the stopped log in dir; backup is its state when it had 3 of its 6 entries.
		change func(t *testing.T, dir, backup string)
		want   string // in the error; "" when it must start
	}{
		{"a tree restored from a backup", log.Rekor2, func(t *testing.T, dir, backup string) {
			os.RemoveAll(filepath.Join(dir, "tiles"))
			copyDir(t, filepath.Join(backup, "tiles"), filepath.Join(dir, "tiles"))
		}, "the tree holds 3 entries, but its key has signed 6"},
		{"a tree that was lost", log.CT, func(t *testing.T, dir, _ string) {
			os.RemoveAll(filepath.Join(dir, "tiles"))
		}, "the tree holds 0 entries, but its key has signed 6"},
		{"a fence that was lost", log.Rekor1, func(t *testing.T, dir, _ string) {
			os.RemoveAll(filepath.Join(dir, "fence"))
		}, "attestry log adopt"},
		{"rows restored from a backup, with times in them", log.Rekor1, restoreRows, "integratedTime is lost"},
		{"rows restored from a backup, derivable ones", log.Rekor2, restoreRows, ""},
		{"a CT log's rows lost", log.CT, func(t *testing.T, dir, _ string) { removeRows(t, dir) }, ""},
		{"a plain CT log's rows restored from a backup, with chains in them", log.CTPlain, restoreRows, "the chains of the rest are lost"},
		{"another history of the same size", log.Rekor2, func(t *testing.T, dir, _ string) {
			other := newHouse(t, log.Rekor2)
			other.mustOpen()
			for i := range 6 {
				other.addUntilAnswered(fmt.Sprintf("something else %d", i))
			}
			other.close()
			os.RemoveAll(filepath.Join(dir, "tiles"))
			copyDir(t, filepath.Join(other.dir, "tiles"), filepath.Join(dir, "tiles"))
		}, "the log has forked or its tiles were changed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t, tt.kind)
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
			tt.change(t, h.dir, backup)
			err := h.open()
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("Open = %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			h.verify()
		})
	}
}

func TestAForkLeavesEvidence(t *testing.T) {
	h, other := newHouse(t, log.Rekor2), newHouse(t, log.Rekor2)
	for _, x := range []*house{h, other} {
		x.mustOpen()
		x.addUntilAnswered("entry of " + x.dir)
		x.close()
	}
	os.RemoveAll(filepath.Join(h.dir, "tiles"))
	copyDir(t, filepath.Join(other.dir, "tiles"), filepath.Join(h.dir, "tiles"))
	if err := h.open(); err == nil {
		t.Fatal("a forked log started")
	}
	found, _ := filepath.Glob(filepath.Join(h.dir, "evidence-1-*.json"))
	if len(found) != 1 {
		t.Fatalf("evidence = %v", found)
	}
	raw, err := os.ReadFile(found[0])
	if err != nil || !strings.Contains(string(raw), "signedRoot") || !strings.Contains(string(raw), "treeRoot") {
		t.Errorf("evidence says %s, %v", raw, err)
	}
}

func restoreRows(t *testing.T, dir, backup string) {
	removeRows(t, dir)
	copyDir(t, filepath.Join(backup, "entries.db"), filepath.Join(dir, "entries.db"))
}

func removeRows(t *testing.T, dir string) {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(dir, "entries.db*"))
	for _, path := range found {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestALogWithoutItsFenceIsAdoptedOnlyAtTheSizeThatSomebodyKnows(t *testing.T) {
	for kindName, kind := range kinds {
		t.Run(kindName, func(t *testing.T) {
			h := newHouse(t, kind)
			h.mustOpen()
			for i := range 5 {
				h.addUntilAnswered(fmt.Sprintf("entry %d", i))
			}
			if _, err := log.Adopt(t.Context(), h.options(), 5); err == nil {
				t.Error("a log with a fence was adopted")
			}
			h.close()
			os.RemoveAll(filepath.Join(h.dir, "fence"))
			if err := h.open(); err == nil {
				t.Fatal("a log without its fence started")
			}
			for _, size := range []uint64{4, 6} {
				if _, err := log.Adopt(t.Context(), h.options(), size); err == nil || !strings.Contains(err.Error(), "holds 5 entries") {
					t.Errorf("adopting %d entries: %v", size, err)
				}
			}
			record, err := log.Adopt(t.Context(), h.options(), 5)
			if err != nil || record.Size != 5 {
				t.Fatalf("Adopt = %v, %v", record, err)
			}
			h.close()
			h.mustOpen()
			h.addUntilAnswered("after")
			h.verify()
		})
	}
}
