package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// leaf is what a log shows at an index.
type leaf struct {
	data       []byte
	integrated int64 // Rekor v1
}

// source reads one log through its public API.
type source interface {
	// head returns the newest signed tree head.
	head(ctx context.Context) (size uint64, root []byte, err error)
	// leaves returns at least one leaf from the index from on, below size.
	leaves(ctx context.Context, from, size uint64) ([]leaf, error)
}

// replica replays a log leaf by leaf, the way a monitor does, and keeps the root of every size:
// when the log's signed root is the replica's, no leaf below it has changed.
type replica struct {
	name   string
	source source
	tree   *compact.Range
	hashes [][]byte
	roots  [][]byte // by size
	times  []int64
	byHash map[string]bool

	checked int // how many of the log's promises
}

func newReplica(name string, s source) *replica {
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	return &replica{name: name, source: s, tree: f.NewEmptyRange(0), roots: [][]byte{rfc6962.DefaultHasher.EmptyRoot()}, byHash: map[string]bool{}}
}

// follow reads what is new and compares the roots.
func (r *replica) follow(ctx context.Context) error {
	size, root, err := r.source.head(ctx)
	if err != nil {
		return fmt.Errorf("%s: tree head: %w", r.name, err)
	}
	if size < uint64(len(r.hashes)) {
		return fmt.Errorf("%s: the log shrank from %d to %d leaves", r.name, len(r.hashes), size)
	}
	for uint64(len(r.hashes)) < size {
		from := uint64(len(r.hashes))
		leaves, err := r.source.leaves(ctx, from, size)
		if err != nil || len(leaves) == 0 {
			return fmt.Errorf("%s: leaves from %d: %d of them, %w", r.name, from, len(leaves), err)
		}
		for _, l := range leaves {
			hash := rfc6962.DefaultHasher.HashLeaf(l.data)
			if err := r.tree.Append(hash, nil); err != nil {
				return err
			}
			root, err := r.tree.GetRootHash(nil)
			if err != nil {
				return err
			}
			r.hashes, r.roots, r.times = append(r.hashes, hash), append(r.roots, root), append(r.times, l.integrated)
			r.byHash[string(hash)] = true
		}
	}
	if !bytes.Equal(r.roots[size], root) {
		return fmt.Errorf("%s: the signed root at size %d is %x, its leaves hash to %x", r.name, size, root, r.roots[size])
	}
	return nil
}

// holds checks one promise.
func (r *replica) holds(a ack) error {
	if a.leafHash != nil {
		if !r.byHash[string(a.leafHash)] {
			return fmt.Errorf("%s: the log lost the leaf %x that an SCT promised", r.name, a.leafHash)
		}
		return nil
	}
	switch {
	case a.index >= uint64(len(r.hashes)):
		return fmt.Errorf("%s: acknowledged entry %d is gone, the log has %d", r.name, a.index, len(r.hashes))
	case !bytes.Equal(r.hashes[a.index], rfc6962.DefaultHasher.HashLeaf(a.leaf)):
		return fmt.Errorf("%s: entry %d is not the one that was acknowledged", r.name, a.index)
	case a.size <= a.index || a.size >= uint64(len(r.roots)):
		return fmt.Errorf("%s: entry %d was acknowledged under a tree of %d leaves, the log has %d", r.name, a.index, a.size, len(r.hashes))
	case !bytes.Equal(r.roots[a.size], a.root):
		return fmt.Errorf("%s: the root acknowledged at size %d is %x, now it is %x", r.name, a.size, a.root, r.roots[a.size])
	case a.integrated != r.times[a.index]:
		return fmt.Errorf("%s: entry %d was integrated at %d, now it says %d", r.name, a.index, a.integrated, r.times[a.index])
	}
	return nil
}

func getJSON(ctx context.Context, method, url, body string, to any) error {
	status, answer, err := call(ctx, method, url, "application/json", body)
	if err != nil {
		return err
	}
	if status == http.StatusServiceUnavailable {
		return fmt.Errorf("%s %s: %w %s", method, url, errUnavailable, answer)
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s %s: %d %s", method, url, status, answer)
	}
	return json.Unmarshal([]byte(answer), to)
}

// rekor1Source reads over /api/v1/log; its entries come in tens.
type rekor1Source struct {
	url string
	l   *ledger
}

func (s rekor1Source) head(ctx context.Context) (uint64, []byte, error) {
	var info struct {
		RootHash string `json:"rootHash"`
		TreeSize uint64 `json:"treeSize"`
	}
	if err := getJSON(ctx, http.MethodGet, s.url+"/api/v1/log", "", &info); err != nil {
		return 0, nil, err
	}
	root, err := hex.DecodeString(info.RootHash)
	return info.TreeSize, root, err
}

func (s rekor1Source) leaves(ctx context.Context, from, size uint64) ([]leaf, error) {
	var indexes []uint64
	for i := from; i < min(size, from+10); i++ {
		indexes = append(indexes, i)
	}
	query, err := json.Marshal(map[string]any{"logIndexes": indexes})
	if err != nil {
		return nil, err
	}
	var answer []map[string]entry1
	if err := getJSON(ctx, http.MethodPost, s.url+"/api/v1/log/entries/retrieve", string(query), &answer); err != nil {
		return nil, err
	}
	found := map[uint64]leaf{}
	for _, one := range answer {
		for _, e := range one {
			a, err := s.l.check1(e)
			if err != nil {
				return nil, err
			}
			found[a.index] = leaf{e.Body, e.IntegratedTime}
		}
	}
	var leaves []leaf
	for _, i := range indexes {
		l, ok := found[i]
		if !ok {
			return nil, fmt.Errorf("retrieve does not return index %d", i)
		}
		leaves = append(leaves, l)
	}
	return leaves, nil
}

// tilesSource reads checkpoint and entry bundles (c2sp.org/tlog-tiles) below a URL.
type tilesSource struct{ url string }

func (s tilesSource) head(ctx context.Context) (uint64, []byte, error) {
	status, note, err := call(ctx, http.MethodGet, s.url+"/checkpoint", "", "")
	if err != nil || status != http.StatusOK {
		return 0, nil, fmt.Errorf("checkpoint: %d %w %s", status, err, note)
	}
	text := strings.SplitN(note, "\n", 4)
	if len(text) < 4 {
		return 0, nil, fmt.Errorf("checkpoint: %q", note)
	}
	size, err := strconv.ParseUint(text[1], 10, 64)
	if err != nil {
		return 0, nil, err
	}
	root, err := base64.StdEncoding.DecodeString(text[2])
	return size, root, err
}

func (s tilesSource) leaves(ctx context.Context, from, size uint64) ([]leaf, error) {
	bundle := from / 256
	if bundle > 999 {
		return nil, fmt.Errorf("these tests read 256,000 leaves at most")
	}
	path := fmt.Sprintf("/tile/entries/%03d", bundle)
	if width := size - bundle*256; width < 256 {
		path += fmt.Sprintf(".p/%d", width)
	}
	status, data, err := call(ctx, http.MethodGet, s.url+path, "", "")
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("%s: %d %w", path, status, err)
	}
	var leaves []leaf
	for rest := []byte(data); len(rest) > 0; {
		if len(rest) < 2 || len(rest) < 2+int(binary.BigEndian.Uint16(rest)) {
			return nil, fmt.Errorf("%s: cut off", path)
		}
		n := 2 + int(binary.BigEndian.Uint16(rest))
		leaves = append(leaves, leaf{data: rest[2:n]})
		rest = rest[n:]
	}
	skip := from - bundle*256
	if uint64(len(leaves)) <= skip {
		return nil, fmt.Errorf("%s: %d entries", path, len(leaves))
	}
	return leaves[skip:min(uint64(len(leaves)), size-bundle*256)], nil
}

// ctSource reads a CT log over RFC 6962.
type ctSource struct{ base string }

func (s ctSource) head(ctx context.Context) (uint64, []byte, error) {
	var sth struct {
		TreeSize uint64 `json:"tree_size"`
		Root     []byte `json:"sha256_root_hash"`
	}
	err := getJSON(ctx, http.MethodGet, s.base+"/ct/v1/get-sth", "", &sth)
	return sth.TreeSize, sth.Root, err
}

func (s ctSource) leaves(ctx context.Context, from, size uint64) ([]leaf, error) {
	var answer struct {
		Entries []struct {
			LeafInput []byte `json:"leaf_input"`
		} `json:"entries"`
	}
	url := fmt.Sprintf("%s/ct/v1/get-entries?start=%d&end=%d", s.base, from, min(size, from+256)-1)
	if err := getJSON(ctx, http.MethodGet, url, "", &answer); err != nil {
		return nil, err
	}
	var leaves []leaf
	for _, e := range answer.Entries {
		leaves = append(leaves, leaf{data: e.LeafInput})
	}
	return leaves, nil
}
