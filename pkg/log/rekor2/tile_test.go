package rekor2

import (
	"testing"

	"github.com/transparency-dev/tessera/api/layout"
)

func TestTilePaths(t *testing.T) {
	for path, want := range map[string]tilePath{
		"0/000":                               {},
		"0/x001/x234/067":                     {index: 1234067},
		"0/x001/x234/067.p/8":                 {index: 1234067, width: 8},
		"63/255.p/255":                        {level: 63, index: 255, width: 255},
		"entries/000.p/1":                     {entries: true, width: 1},
		"entries/x001/000":                    {entries: true, index: 1000},
		"0/x018/x446/x744/x073/x709/x551/615": {index: 1<<64 - 1},
	} {
		if got, ok := parseTile(path); !ok || got != want {
			t.Errorf("parseTile(%q) = %+v, %v, want %+v", path, got, ok, want)
		}
	}
	for _, path := range []string{
		"", "0", "0/", "/000", "64/000", "-1/000", "+1/000", "00/000", "0/0", "0/1000", "0/x000/000", "0/001/000", "0/x001", "0/x001/x002",
		"0/000.p/0", "0/000.p/256", "0/000.p/01", "0/000.p/+1", "0/000.p", "0/000.p/", "0/000.p/1/", "0/000/", "0/000.p/1.p/1", "0//000",
		"0/x018/x446/x744/x073/x709/x551/616", "entries", "entries/", "entries/x000/001", "Entries/000", "0/.p/1", "0/x001.p/067", "0/0x0",
	} {
		if got, ok := parseTile(path); ok {
			t.Errorf("parseTile(%q) = %+v, want it refused", path, got)
		}
	}
}

// FuzzTilePaths wants one path for each tile: what is taken is what Tessera would write.
func FuzzTilePaths(f *testing.F) {
	for _, path := range []string{"0/x001/x234/067.p/8", "entries/000", "63/255.p/255", "0/.p/1", "0/x.p/1"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		tile, ok := parseTile(path)
		if !ok {
			return
		}
		want := layout.TilePath(tile.level, tile.index, uint8(tile.width))
		if tile.entries {
			want = layout.EntriesPath(tile.index, uint8(tile.width))
		}
		if tile.width < 0 || tile.width > 255 || tile.level > 63 || "tile/"+path != want {
			t.Errorf("parseTile(%q) = %+v, which is %q", path, tile, want)
		}
	})
}
