package rekor2

import (
	"strings"

	"github.com/transparency-dev/tessera/api/layout"
)

// tilePath is a parsed tile path (c2sp.org/tlog-tiles).
type tilePath struct {
	entries bool   // an entry bundle, else a hash tile
	level   uint64 // of a hash tile, 0 to 63
	index   uint64
	width   int // 1 to 255, 0 for a full tile
}

// parseTile reads what follows "tile/": <L>/<N>[.p/<W>] or entries/<N>[.p/<W>], with N as in
// x001/x234/067. Each resource has exactly one path, so that caches hold it once.
func parseTile(path string) (tilePath, bool) {
	level, rest, ok := strings.Cut(path, "/")
	if !ok {
		return tilePath{}, false
	}
	t := tilePath{entries: level == "entries"}
	index, width, err := layout.ParseTileIndexPartial(rest)
	if err != nil {
		return tilePath{}, false
	}
	t.index, t.width = index, int(width)
	canonical := layout.EntriesPath(index, width)
	if !t.entries {
		if t.level, err = layout.ParseTileLevel(level); err != nil {
			return tilePath{}, false
		}
		canonical = layout.TilePath(t.level, index, width)
	}
	return t, "tile/"+path == canonical
}
