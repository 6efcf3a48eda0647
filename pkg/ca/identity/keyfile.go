package identity

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/attestry/attestry/internal/limit"
)

// statEvery is how long a file of keys is used without a look at it.
const statEvery = time.Second

// fixedKeys are keys that never change.
type fixedKeys struct{ keys *fetched }

func (f fixedKeys) current(context.Context) (*fetched, error) { return f.keys, nil }

func (f fixedKeys) refetch(context.Context, *fetched) *fetched { return nil }

// fileKeys are keys from a file, read again when it changes. While it is missing or wrong, the
// last good keys serve: they are the operator's, who sees the error in the log and the metrics.
type fileKeys struct {
	path    string
	now     func() time.Time
	observe func(error) // counts and logs what changed

	mu        sync.Mutex // guards the fields below
	last      *fetched
	seen      os.FileInfo // of last
	checkedAt time.Time
	problem   string // reported last
}

// newFileKeys reads the keys; a file that is wrong at first is an error.
func newFileKeys(path string, now func() time.Time, observe func(error)) (*fileKeys, error) {
	f := &fileKeys{path: path, now: now, observe: observe, checkedAt: now()}
	var err error
	f.last, f.seen, err = readKeys(path, nil)
	return f, err
}

func (f *fileKeys) current(context.Context) (*fetched, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if since := now.Sub(f.checkedAt); since >= 0 && since < statEvery {
		return f.last, nil
	}
	f.checkedAt = now
	keys, seen, err := readKeys(f.path, f.seen)
	switch {
	case err != nil:
		if f.problem != err.Error() { // once, not once a second
			f.problem = err.Error()
			f.observe(err)
		}
	case keys != nil:
		f.last, f.seen, f.problem = keys, seen, ""
		f.observe(nil)
	default:
		f.problem = ""
	}
	return f.last, nil
}

func (f *fileKeys) refetch(ctx context.Context, have *fetched) *fetched {
	if now, err := f.current(ctx); err == nil && now != have {
		return now
	}
	return nil
}

// readKeys reads the file, or returns nil keys when it is the one seen before. Kubernetes changes
// files by replacing a symbolic link, so the file behind it is compared as well as its time and size.
func readKeys(path string, before os.FileInfo) (*fetched, os.FileInfo, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	if before != nil && os.SameFile(before, info) && before.ModTime().Equal(info.ModTime()) && before.Size() == info.Size() {
		return nil, info, nil
	}
	data, err := limit.ReadAll(file, maxDocument)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	keys, err := parseJWKS(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return &fetched{keys: keys, algs: supported(allAlgorithms)}, info, nil
}

// staticKeys parses keys of the configuration itself.
func staticKeys(jwks string) (fixedKeys, error) {
	keys, err := parseJWKS([]byte(jwks))
	if err != nil {
		return fixedKeys{}, err
	}
	return fixedKeys{&fetched{keys: keys, algs: supported(allAlgorithms)}}, nil
}
