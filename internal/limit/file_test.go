package limit_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/limit"
)

func TestFilesAreReadUpToALimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if _, err := limit.ReadFile(path, 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	for text, want := range map[string]string{"": "", "four": "four", "five5": path + ": over 4 bytes"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		data, err := limit.ReadFile(path, 4)
		if got := string(data); err == nil && got != want || err != nil && err.Error() != want {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
	if _, err := limit.ReadAll(strings.NewReader("five5"), 4); err == nil || err.Error() != "over 4 bytes" {
		t.Errorf("a reader: %v", err)
	}
}
