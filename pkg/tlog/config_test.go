package tlog

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestTheConfigurationsInTheDocsLoad checks each YAML block of docs/storage.md as tlog does before it opens anything.
func TestTheConfigurationsInTheDocsLoad(t *testing.T) {
	page, err := os.ReadFile("../../docs/storage.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(page, -1)
	if len(blocks) < 3 {
		t.Fatalf("docs/storage.md has %d configurations", len(blocks))
	}
	for i, b := range blocks {
		path := filepath.Join(t.TempDir(), "tlog.yaml")
		if err := os.WriteFile(path, b[1], 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := Load(path)
		if err != nil {
			t.Errorf("configuration %d: %v", i+1, err)
			continue
		}
		for _, l := range cfg.list() {
			if !l.Tree.Shared() {
				t.Errorf("configuration %d keeps %s in a directory", i+1, l.at)
			}
		}
	}
}
