package tiles

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/transparency-dev/tessera/api/layout"

	"github.com/attestry/attestry/internal/journal"
	"github.com/attestry/attestry/pkg/log"
)

// Dir reads the tree in a directory without a driver, what is in its journal included: it writes nothing and takes no lock, so the log may
// run.
type Dir struct {
	path    string
	kind    log.Kind
	entries string // directory of the entry bundles under "tile"

	mu  sync.Mutex // guards run
	run *run       // as it was read last
}

// OpenDir returns the tree in dir, which must be there.
func OpenDir(dir string, kind log.Kind) (*Dir, error) {
	if _, err := os.Stat(filepath.Join(dir, statePath)); err != nil {
		return nil, fmt.Errorf("there is no tree in %s: %w", dir, err)
	}
	d := &Dir{path: dir, kind: kind, entries: "entries"}
	if kind == log.CT {
		d.entries = "data"
	}
	return d, d.load()
}

// statePath is the driver's own record of the integrated tree.
const statePath = ".state/treeState"

// loadTries is how often what changes while it is read is read again.
const loadTries = 20

// load reads how far the driver has come, and what is in the journal beyond.
func (d *Dir) load() error {
	var r *run
	var err error
	for range loadTries {
		if r, err = d.read(); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.run = r
	return nil
}

func (d *Dir) read() (*run, error) {
	// The journal first: what goes over to the driver meanwhile is found there.
	frames, err := journal.Read(filepath.Join(d.path, tailPath))
	if err != nil {
		return nil, err
	}
	size, err := d.integrated()
	if err != nil {
		return nil, err
	}
	subs, _, err := unintegrated(d.kind, frames, size)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(d.path, tailPath), err)
	}
	if len(subs) == 0 {
		return &run{first: size}, nil
	}
	extent, err := extentOf(size, func(level, index uint64, width uint8) ([]byte, error) {
		return d.stored(layout.TilePath(level, index, 0), width)
	})
	if err != nil {
		return nil, err
	}
	r := newRun(extent)
	if err := r.add(subs...); err != nil {
		return nil, err
	}
	return r, nil
}

// integrated returns the size of the driver's tree.
func (d *Dir) integrated() (uint64, error) {
	raw, err := os.ReadFile(filepath.Join(d.path, statePath))
	if err != nil {
		return 0, fmt.Errorf("reading the tree's size: %w", err)
	}
	var state struct {
		Size uint64 `json:"size"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return 0, fmt.Errorf("reading the tree's size from %s: %w", statePath, err)
	}
	return state.Size, nil
}

// Size implements log.TreeReader.
func (d *Dir) Size(context.Context) (uint64, error) {
	if err := d.load(); err != nil {
		return 0, err
	}
	return d.pending().size(), nil
}

func (d *Dir) pending() *run {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.run
}

// Tile implements log.TreeReader.
func (d *Dir) Tile(_ context.Context, level, index uint64, width uint8) ([]byte, error) {
	return d.join(layout.TilePath(level, index, 0), width, func(r *run) part { return r.tile(level, index) })
}

// Bundle implements log.TreeReader.
func (d *Dir) Bundle(_ context.Context, index uint64, width uint8) ([]byte, error) {
	return d.join(d.bundle(index), width, func(r *run) part { return r.bundle(index) })
}

// join returns what is in the driver's files or, of what it has not integrated, in the journal. Files beyond are not asked: they are left
// from an integration that failed, and may have other leaves.
func (d *Dir) join(name string, width uint8, of func(*run) part) ([]byte, error) {
	stored := func(width uint8) ([]byte, error) { return d.stored(name, width) }
	var raw []byte
	var err error
	for range loadTries {
		had := d.pending()
		p := of(had)
		err = fs.ErrNotExist
		if p.base >= elements(width) {
			raw, err = stored(width)
		}
		if errors.Is(err, fs.ErrNotExist) { // the driver stores the sizes at which its own batches end
			raw, err = p.join(width, stored)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return raw, err
		}
		if err := d.load(); err != nil { // the log runs
			return nil, err
		}
		if now := d.pending(); now.first == had.first && now.size() == had.size() {
			break
		}
	}
	return raw, err
}

func (d *Dir) bundle(index uint64) string {
	return path.Join("tile", d.entries, layout.NWithSuffix(0, index, 0))
}

// stored returns the file of this width or, once partial tiles were collected, the full one.
func (d *Dir) stored(name string, width uint8) ([]byte, error) {
	if width > 0 {
		raw, err := os.ReadFile(filepath.Join(d.path, fmt.Sprintf("%s.p/%d", name, width)))
		if !errors.Is(err, fs.ErrNotExist) {
			return raw, err
		}
	}
	return os.ReadFile(filepath.Join(d.path, name))
}

// Partials implements log.PartialLister.
func (d *Dir) Partials(level, index uint64) (map[int][]byte, error) {
	return d.partials(layout.TilePath(level, index, 0))
}

// PartialBundles implements log.PartialLister.
func (d *Dir) PartialBundles(index uint64) (map[int][]byte, error) {
	return d.partials(d.bundle(index))
}

func (d *Dir) partials(name string) (map[int][]byte, error) {
	dir := filepath.Join(d.path, name+".p")
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := map[int][]byte{}
	for _, f := range files {
		width, err := strconv.Atoi(f.Name())
		if err != nil || width < 1 || width >= layout.TileWidth {
			continue // Strays reports it
		}
		raw, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if errors.Is(err, fs.ErrNotExist) { // collected meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		found[width] = raw
	}
	return found, nil
}

// Files calls f with every tile and bundle that a tree of size needs, partial ones at their width: a slash-separated
// path under the directory, and whether the file can never change.
func (d *Dir) Files(size uint64, f func(name string, full bool) error) error {
	for level := uint64(0); level < 8; level++ {
		nodes := size >> (layout.TileHeight * level)
		if nodes == 0 {
			break
		}
		for index := uint64(0); index*layout.TileWidth < nodes; index++ {
			width := layout.PartialTileSize(level, index, size)
			names := []string{layout.TilePath(level, index, width)}
			if level == 0 {
				names = append(names, path.Join("tile", d.entries, layout.NWithSuffix(0, index, width)))
			}
			for _, name := range names {
				if err := f(name, width == 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Content returns a file that Files named. When the driver has stored that tile or bundle for other sizes alone, it is the beginning of what
// is there.
func (d *Dir) Content(kind log.Kind, name string) ([]byte, error) {
	level, end, ok := d.extent(name)
	if !ok {
		return nil, fmt.Errorf("%s is no tile or entry bundle", name)
	}
	if end <= d.pending().first>>(layout.TileHeight*level) {
		raw, err := os.ReadFile(filepath.Join(d.path, filepath.FromSlash(name)))
		if !errors.Is(err, fs.ErrNotExist) {
			return raw, err
		}
	}
	index := (end - 1) / layout.TileWidth
	count := int(end - index*layout.TileWidth)
	width := uint8(count) // 0 for all 256
	used := 32 * count
	var raw []byte
	var err error
	if strings.HasPrefix(name, "tile/"+d.entries+"/") {
		if raw, err = d.Bundle(context.Background(), index, width); err == nil {
			used, err = log.BundleBytes(kind, raw, count)
		}
	} else {
		raw, err = d.Tile(context.Background(), level, index, width)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if used > len(raw) {
		return nil, fmt.Errorf("%s: there are %d bytes, want %d", name, len(raw), used)
	}
	return raw[:used], nil
}

// Strays calls f with every file that does not belong to a tree of size: what a crash left past it, and
// what no driver wrote.
func (d *Dir) Strays(size uint64, f func(name string) error) error {
	return filepath.WalkDir(filepath.Join(d.path, "tile"), func(file string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // collected meanwhile, or a tree without leaves
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(d.path, file)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if level, end, ok := d.extent(name); ok && end <= size>>(layout.TileHeight*level) {
			return nil
		}
		return f(name)
	})
}

// extent returns the level of a tile or bundle and how many nodes of that level lie before its end.
func (d *Dir) extent(name string) (level, end uint64, ok bool) {
	rest, ok := strings.CutPrefix(name, "tile/")
	if !ok {
		return 0, 0, false
	}
	kind, number, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, false
	}
	if kind != d.entries {
		n, err := strconv.ParseUint(kind, 10, 8)
		if err != nil || n > 7 {
			return 0, 0, false
		}
		level = n
	}
	width := uint64(layout.TileWidth)
	if number, partial, isPartial := strings.Cut(number, ".p/"); isPartial {
		w, err := strconv.ParseUint(partial, 10, 8)
		if err != nil || w == 0 {
			return 0, 0, false
		}
		return d.extentOf(level, number, w)
	}
	return d.extentOf(level, number, width)
}

func (d *Dir) extentOf(level uint64, number string, width uint64) (uint64, uint64, bool) {
	index, err := strconv.ParseUint(strings.NewReplacer("x", "", "/", "").Replace(number), 10, 40)
	if err != nil || layout.NWithSuffix(level, index, 0) != number {
		return 0, 0, false
	}
	return level, index*layout.TileWidth + width, true
}
