package stack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/log"
)

// TestABackupIsOfOneMomentInTheLifeOfTheLogs backs up frozen and active logs, and has one change over meanwhile.
func TestABackupIsOfOneMomentInTheLifeOfTheLogs(t *testing.T) {
	h, a := newHouse(t), newAuthor(t)
	if _, err := h.add1(a, "one"); err != nil {
		t.Fatal(err)
	}
	h.order(Order{Kind: log.Rekor1, Begin: h.time()})
	h.step()
	h.step()
	if _, err := h.add1(a, "two"); err != nil {
		t.Fatal(err)
	}
	root := filepath.Dir(h.opts.Dir)
	o := BackupOptions{Logs: h.opts, Root: root, KeyFile: filepath.Join(t.TempDir(), "backup.key"), To: filepath.Join(t.TempDir(), "first")}
	done, err := Backup(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Manifest.Logs) != 4 {
		t.Errorf("%d logs are in the backup, want the frozen one too", len(done.Manifest.Logs))
	}
	var copied, now ShardFile
	for path, to := range map[string]*ShardFile{filepath.Join(o.To, dataName, "log", shardsName): &copied, filepath.Join(h.opts.Dir, shardsName): &now} {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, to); err != nil {
			t.Fatal(err)
		}
	}
	if len(copied.Shards) != 2 || copied.find("rekor1").Final == nil || copied.find("rekor1").Final.Size != now.find("rekor1").Final.Size {
		t.Errorf("the copy of shards.json is %+v", copied)
	}

	o.To = filepath.Join(t.TempDir(), "second")
	calls := 0
	o.Now = func() time.Time {
		if calls++; calls == 2 { // the first dates the manifest, the second the first log's checkpoint
			h.order(Order{Kind: log.CT, Shard: "next", Begin: h.time()})
			h.step()
			h.step()
		}
		return h.time()
	}
	if _, err := Backup(t.Context(), o); err == nil || !strings.Contains(err.Error(), "a log changed over during the backup") {
		t.Errorf("a backup over a cut-over: %v", err)
	}
	if _, err := os.Stat(o.To); !os.IsNotExist(err) {
		t.Errorf("it left a backup: %v", err)
	}
}
