package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"

	"github.com/attestry/attestry/internal/limit"
)

const (
	replayTimeout = 30 * time.Second // of one request
	retrieved     = 10               // entries that a Rekor v1 log returns at a time
	maxLogAnswer  = 64 << 20
)

// errNotServed is a path that the server does not have.
var errNotServed = errors.New("not served")

// replayServed reads the logs at a URL: a Rekor v1 log by its API, a Rekor v2 log by its tiles. One of them has to be there.
func replayServed(ctx context.Context, base string, max int, entry func(body []byte, at time.Time) error) error {
	r := &logReader{base: strings.TrimSuffix(base, "/"), client: &http.Client{Timeout: replayTimeout}, max: max, entry: entry}
	first := r.rekor1(ctx)
	if first != nil && !errors.Is(first, errNotServed) {
		return first
	}
	second := r.rekor2(ctx)
	if errors.Is(second, errNotServed) {
		if first != nil {
			return fmt.Errorf("--log: %s serves neither Rekor v1's /api/v1/log nor Rekor v2's /checkpoint", base)
		}
		return nil
	}
	return second
}

type logReader struct {
	base   string
	client *http.Client
	max    int
	entry  func(body []byte, at time.Time) error
}

func (r *logReader) get(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "*/*")
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", path, errNotServed)
	default:
		return nil, fmt.Errorf("%s%s answers %s", r.base, path, resp.Status)
	}
	return limit.ReadAll(resp.Body, maxLogAnswer)
}

// rekor1 reads by global index, over all shards.
func (r *logReader) rekor1(ctx context.Context) error {
	raw, err := r.get(ctx, http.MethodGet, "/api/v1/log", nil)
	if err != nil {
		return err
	}
	type shard struct {
		TreeSize int `json:"treeSize"`
	}
	var info struct {
		shard
		InactiveShards []shard `json:"inactiveShards"`
	}
	if err := json.Unmarshal(raw, &info); err != nil {
		return fmt.Errorf("%s/api/v1/log: %w", r.base, err)
	}
	size := info.TreeSize
	for _, s := range info.InactiveShards {
		size += s.TreeSize
	}
	for index := max(0, size-r.max); index < size; index += retrieved {
		var query struct {
			LogIndexes []int `json:"logIndexes"`
		}
		for i := index; i < min(index+retrieved, size); i++ {
			query.LogIndexes = append(query.LogIndexes, i)
		}
		body, err := json.Marshal(query)
		if err != nil {
			return err
		}
		raw, err := r.get(ctx, http.MethodPost, "/api/v1/log/entries/retrieve", body)
		if err != nil {
			return err
		}
		var answer []map[string]struct {
			Body           []byte `json:"body"`
			IntegratedTime int64  `json:"integratedTime"`
		}
		if err := json.Unmarshal(raw, &answer); err != nil {
			return fmt.Errorf("entries %d of the Rekor v1 log: %w", index, err)
		}
		if len(answer) != len(query.LogIndexes) {
			return fmt.Errorf("the Rekor v1 log returned %d of %d entries from %d on", len(answer), len(query.LogIndexes), index)
		}
		for _, one := range answer {
			for _, e := range one {
				if err := r.entry(e.Body, time.Unix(e.IntegratedTime, 0)); err != nil {
					return fmt.Errorf("entries %d of the Rekor v1 log: %w", index, err)
				}
			}
		}
	}
	return nil
}

// rekor2 reads entry bundles.
func (r *logReader) rekor2(ctx context.Context) error {
	checkpoint, err := r.get(ctx, http.MethodGet, "/checkpoint", nil)
	if err != nil {
		return err
	}
	lines := strings.SplitN(string(checkpoint), "\n", 3)
	if len(lines) < 3 {
		return fmt.Errorf("%s/checkpoint is none", r.base)
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return fmt.Errorf("%s/checkpoint: %w", r.base, err)
	}
	return readBundles(size, r.max, r.entry, func(path string) ([]byte, error) {
		return r.get(ctx, http.MethodGet, "/"+path, nil)
	})
}

// readBundles reads the newest max entries of a tree of this size.
func readBundles(size uint64, max int, entry func([]byte, time.Time) error, get func(path string) ([]byte, error)) error {
	from := uint64(0)
	if n := uint64(max); size > n {
		from = size - n
	}
	for index := from / layout.EntryBundleWidth; index*layout.EntryBundleWidth < size; index++ {
		path := layout.EntriesPath(index, layout.PartialTileSize(0, index, size))
		raw, err := get(path)
		if err != nil {
			return err
		}
		var bundle api.EntryBundle
		if err := bundle.UnmarshalText(raw); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for i, body := range bundle.Entries {
			if at := index*layout.EntryBundleWidth + uint64(i); at < from || at >= size {
				continue
			}
			if err := entry(body, time.Time{}); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return nil
}

// replayStored reads the Rekor logs of an instance from its directory, which may be in use: what is in a bundle stays.
func replayStored(dir string, max int, entry func([]byte, time.Time) error) error {
	logs, err := filepath.Glob(filepath.Join(dir, "log", "rekor*", "tiles"))
	if err != nil {
		return err
	}
	if len(logs) == 0 {
		return fmt.Errorf("--dir: %s has no Rekor logs in log/rekor*/tiles", dir)
	}
	for _, tiles := range logs {
		size, err := storedSize(tiles)
		if err != nil {
			return err
		}
		err = readBundles(size, max, entry, func(path string) ([]byte, error) {
			return limit.ReadFile(filepath.Join(tiles, filepath.FromSlash(path)), maxLogAnswer)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", tiles, err)
		}
	}
	return nil
}

// storedSize counts entries by the bundles that are there: full ones, and the largest part of the last.
func storedSize(tiles string) (uint64, error) {
	for index := uint64(0); ; index++ {
		full := filepath.Join(tiles, filepath.FromSlash(layout.EntriesPath(index, 0)))
		if _, err := os.Stat(full); err == nil {
			continue
		} else if !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		size := index * layout.EntryBundleWidth
		parts, err := os.ReadDir(full + ".p")
		if errors.Is(err, os.ErrNotExist) {
			return size, nil
		}
		if err != nil {
			return 0, err
		}
		largest := uint64(0)
		for _, p := range parts {
			if n, err := strconv.ParseUint(p.Name(), 10, 8); err == nil {
				largest = max(largest, n)
			}
		}
		return size + largest, nil
	}
}
