package stack

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/pkg/log"
)

// backup makes a backup of the logs, and returns its directory and public key.
func (h *house) backup(name string) (string, string) {
	h.t.Helper()
	to := filepath.Join(h.opts.Dir, "..", name)
	done, err := Backup(h.t.Context(), BackupOptions{Root: h.opts.Dir, Logs: h.opts, KeyFile: filepath.Join(h.opts.Dir, "..", "backup.key"), To: to, Now: h.time})
	if err != nil {
		h.t.Fatal(err)
	}
	return to, done.Verifier
}

// check is fsck: it fails on damage and returns what else is found.
func (h *house) check() (found []string) {
	h.t.Helper()
	opts := h.opts
	opts.Now = time.Now // integratedTime is of the real clock
	checked, err := CheckLogs(h.t.Context(), opts, nil, nil, func(label string, f log.Finding) {
		if found = append(found, label+" "+f.What); !f.Harmless {
			h.t.Errorf("fsck: %s: %v", label, f)
		}
	})
	if err != nil || len(checked) == 0 {
		h.t.Errorf("fsck: %v, %v", checked, err)
	}
	return found
}

// refused returns why the logs do not open.
func (h *house) refused() string {
	h.t.Helper()
	h.opts.Registerer = prometheus.NewRegistry()
	logs, err := OpenLogs(h.t.Context(), h.opts)
	if err == nil {
		logs.Close()
		h.t.Fatal("the logs open")
	}
	return err.Error()
}

func (h *house) adopt(label string, from, to uint64) error {
	_, err := AdoptLog(h.t.Context(), h.opts, Adoption{Label: label, Lost: &LostEntries{from, to}})
	return err
}

func TestARekor1LogThatLostEntriesIsFollowedByOneWhoseIndexesNobodyWasPromised(t *testing.T) {
	h, a := newHouse(t), newAuthor(t)
	h.pass(-time.Hour) // in the past, so that a later check believes its times
	add := func(artifact string, want uint64) {
		t.Helper()
		if index, err := h.add1(a, artifact); err != nil || index != want {
			t.Fatalf("%s got index %d (%v), want %d", artifact, index, err, want)
		}
	}
	for i := range 3 {
		add(fmt.Sprintf("entry %d", i), uint64(i))
	}
	kept, verifier := h.backup("kept")
	for i := range 2 {
		add(fmt.Sprintf("lost %d", i), uint64(3+i))
	}
	newest := h.opts.Dir
	h.crash()
	if err := os.RemoveAll(newest); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), kept, verifier, newest); err != nil {
		t.Fatal(err)
	}
	fence := h.fence("rekor1")
	if text := h.refused(); !strings.Contains(text, "`attestry log adopt --log rekor1 --lost 3..5`") {
		t.Errorf("the error does not say what to type: %s", text)
	}
	for text, lost := range map[string][2]uint64{"lost is 3..5, not 3..6": {3, 6}, "lost is 3..5, not 2..5": {2, 5}} {
		if err := h.adopt("rekor1", lost[0], lost[1]); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("adopting %v: %v", lost, err)
		}
	}
	if state := h.state("rekor1"); state != "unrecorded" {
		t.Errorf("a refused adoption left the state %s", state)
	}
	if err := h.adopt("rekor1", 3, 5); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(newest, shardsName))
	if err != nil || !strings.Contains(string(before), `"lost"`) {
		t.Fatalf("%s %v", before, err)
	}
	h.pass(time.Minute)
	if err := h.adopt("rekor1", 3, 5); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(filepath.Join(newest, shardsName)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("adopting again changed %s to %s (%v)", before, after, err)
	}

	read := func() {
		t.Helper()
		entries := map[uint64]string{0: "entry 0", 1: "entry 1", 2: "entry 2"}
		for _, index := range []string{"3", "4"} {
			if status, body := h.call(http.MethodGet, "localhost", "/api/v1/log/entries?logIndex="+index, nil); status != http.StatusNotFound {
				t.Errorf("the lost index %s: %d %s", index, status, body)
			}
		}
		h.has1(entries)
		if found := h.check(); strings.Join(found, ", ") != "rekor1 lost" {
			t.Errorf("fsck finds %q", found)
		}
		if err := h.logs.Ready(t.Context()); err != nil {
			t.Error(err)
		}
	}
	h.start()
	read()
	if _, err := h.add1(a, "refused"); err == nil || !strings.Contains(err.Error(), "405") {
		t.Errorf("a new entry: %v", err)
	}
	h.order(Order{Kind: log.Rekor1, Begin: h.time()})
	h.step()
	h.step()
	add("after the loss", 5)
	read()
	h.crash()
	h.start()
	add("after a restart", 6)
	h.has1(map[uint64]string{5: "after the loss", 6: "after a restart"})
	read()
	if after := h.fence("rekor1"); !bytes.Equal(fence, after) {
		t.Error("the fence of the log that lost entries was written")
	}

	// A backup of all that is whole, and is as far as before.
	again, verifier := h.backup("again")
	h.crash()
	if err := os.RemoveAll(newest); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), again, verifier, newest); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.has1(map[uint64]string{5: "after the loss", 6: "after a restart"})
	read()
	add("after another restore", 7)
}

// fence is the file of a configured log's record.
func (h *house) fence(label string) []byte {
	h.t.Helper()
	for _, spec := range h.opts.Logs {
		if spec.Label != label {
			continue
		}
		id, err := log.IDOf(spec.Key)
		if err != nil {
			h.t.Fatal(err)
		}
		raw, err := os.ReadFile(filepath.Join(h.opts.FenceDir, id.String()+".fence"))
		if err != nil {
			h.t.Fatal(err)
		}
		return raw
	}
	h.t.Fatalf("there is no log %s", label)
	return nil
}

func TestARekor2LogThatLostEntriesIsFollowedByAnother(t *testing.T) {
	h, a := newHouse(t), newAuthor(t)
	add := func(host, want, artifact string) {
		t.Helper()
		if origin, err := h.add2(a, host, artifact); err != nil || origin != want {
			t.Errorf("Host %s: entry in %q (%v), want %s", host, origin, err, want)
		}
	}
	add("localhost", "localhost", "one")
	kept, verifier := h.backup("kept")
	add("localhost", "localhost", "two")
	h.crash()
	if err := os.RemoveAll(h.opts.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), kept, verifier, h.opts.Dir); err != nil {
		t.Fatal(err)
	}
	if err := h.adopt("rekor2", 1, 2); err != nil {
		t.Fatal(err)
	}
	h.start()
	if _, err := h.add2(a, "localhost", "three"); err == nil || !strings.Contains(err.Error(), "405") {
		t.Errorf("a new entry: %v", err)
	}
	h.order(Order{Kind: log.Rekor2, Host: "log2.localhost", Begin: h.time(), Drain: time.Hour})
	h.step()
	h.step()
	for range 2 {
		add("log2.localhost", "log2.localhost", fmt.Sprint("four", time.Now()))
		add("elsewhere", "log2.localhost", fmt.Sprint("five", time.Now()))
		if _, err := h.add2(a, "localhost", "six"); err == nil || !strings.Contains(err.Error(), "405") {
			t.Errorf("a new entry for the old log: %v", err)
		}
		if status, note := h.call(http.MethodGet, "localhost", "/api/v2/checkpoint", nil); status != http.StatusOK || !strings.HasPrefix(note, "localhost\n1\n") {
			t.Errorf("the old log's checkpoint: %d %s", status, note)
		}
		if state := h.state("rekor2"); state != Frozen {
			t.Errorf("the old log is %s", state)
		}
		h.check()
		h.crash()
		h.start()
	}
}

// TestAnOldBackupIsAdoptedWithItsCheckpoint lets the fence forget the tree that is restored.
func TestAnOldBackupIsAdoptedWithItsCheckpoint(t *testing.T) {
	h, a := newHouse(t), newAuthor(t)
	if _, err := h.add2(a, "localhost", "one"); err != nil {
		t.Fatal(err)
	}
	kept, verifier := h.backup("kept")
	if _, err := h.add2(a, "localhost", "two"); err != nil {
		t.Fatal(err)
	}
	h.crash()
	h.forget("rekor2")
	if err := os.RemoveAll(h.opts.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), kept, verifier, h.opts.Dir); err != nil {
		t.Fatal(err)
	}
	beside := filepath.Join(h.opts.Dir, "rekor2", restoredName)
	note, err := os.ReadFile(beside)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(beside); err != nil {
		t.Fatal(err)
	}
	if err := h.adopt("rekor2", 1, 2); err == nil || !strings.Contains(err.Error(), "--checkpoint") {
		t.Errorf("without a checkpoint: %v", err)
	}
	for name, how := range map[string]func() error{
		"named": func() error {
			_, err := AdoptLog(t.Context(), h.opts, Adoption{Label: "rekor2", Lost: &LostEntries{1, 2}, Checkpoint: note})
			return err
		},
		"left by the restore": func() error {
			if err := os.WriteFile(beside, note, 0o600); err != nil {
				return err
			}
			return h.adopt("rekor2", 1, 2)
		},
	} {
		if err := os.RemoveAll(filepath.Join(h.opts.Dir, shardsName)); err != nil {
			t.Fatal(err)
		}
		if err := how(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		h.start()
		h.check()
		h.crash()
	}
	h.start()
}

// forget makes a log's fence one that has its newest record alone.
func (h *house) forget(label string) {
	h.t.Helper()
	for _, spec := range h.opts.Logs {
		if spec.Label != label {
			continue
		}
		id, err := log.IDOf(spec.Key)
		if err != nil {
			h.t.Fatal(err)
		}
		records, err := log.PeekFence(h.opts.FenceDir, id)
		if err != nil {
			h.t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(h.opts.FenceDir, id.String()+".fence")); err != nil {
			h.t.Fatal(err)
		}
		fence, err := log.OpenFileFence(h.opts.FenceDir)
		if err != nil {
			h.t.Fatal(err)
		}
		if err := fence.Advance(h.t.Context(), id, log.Record{}, records[0]); err != nil {
			h.t.Fatal(err)
		}
		if err := fence.Close(); err != nil {
			h.t.Fatal(err)
		}
	}
}

func TestFinalTreesThatCannotBe(t *testing.T) {
	root := strings.Repeat("0", 64)
	for _, lost := range []LostEntries{{2, 5}, {3, 3}, {3, 2}} {
		if _, err := (&FinalTree{Size: 3, Root: root, Lost: &lost}).record(); err == nil {
			t.Errorf("a tree of size 3 that lost %v is taken", lost)
		}
	}
	for _, text := range []string{"", "3", "3..", "..5", "5..3", "3..3", "-1..2", "3...5", "3..5 ", "03x..5"} {
		if lost, err := ParseLost(text); err == nil {
			t.Errorf("%q is %v", text, lost)
		}
	}
	if lost, err := ParseLost("3..5"); err != nil || *lost != (LostEntries{3, 5}) {
		t.Errorf("3..5 is %v, %v", lost, err)
	}
}
