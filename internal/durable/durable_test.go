package durable_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/durable"
)

func TestAFileIsReplacedAsAWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"first", "the second, longer"} {
		if err := durable.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v left behind, %v", entries, err)
	}
	if err := durable.WriteFile(filepath.Join(path, "below a file"), nil, 0o600); err == nil {
		t.Error("a file below a file was written")
	}
}

func TestWhatAKilledProcessLeftIsRemoved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{durable.Temp + "123", "kept"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := durable.RemoveTemps(dir); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != "kept" {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestOneCommandAtATimeChangesADirectory(t *testing.T) {
	dir := t.TempDir()
	release, err := durable.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := durable.LockDir(dir); err == nil || !strings.Contains(err.Error(), "another command is changing") {
		t.Errorf("a second lock: %v", err)
	}
	release()
	release, err = durable.LockDir(dir)
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	release()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("the lock left %v, %v", left, err)
	}
}
