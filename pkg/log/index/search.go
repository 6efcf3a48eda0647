package index

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
)

// Limits of one search.
const (
	maxSearchKeys = 32
	maxResults    = 10_000
)

// Search returns the indexes of entries that have any of the keys, or all of them, in ascending
// order. Keys are compared in lower case. It returns at most max, and never more than 10,000:
// the newest when there are more. No keys find nothing.
//
// It finds what is below Cursor, also when other replicas have stored more.
//
// Errors: fault.Invalid for more than 32 keys; fault.Unavailable while a damaged index is built
// again or the database does not answer.
func (x *Index) Search(ctx context.Context, keys []string, all bool, max int) ([]uint64, error) {
	if len(keys) > maxSearchKeys {
		return nil, fault.New(fault.Invalid, "too_many_keys", nil, "a search takes at most %d keys", maxSearchKeys)
	}
	var hashes []keyHash
	for _, key := range keys {
		if hash := hashKey(key); !slices.Contains(hashes, hash) {
			hashes = append(hashes, hash)
		}
	}
	max = min(max, maxResults)
	if len(hashes) == 0 || max <= 0 {
		return nil, nil
	}
	found, err := x.search(ctx, hashes, all, max)
	if database.Damaged(err) {
		x.markDamaged() // the follower replaces the file at its next step
		return nil, fault.New(fault.Unavailable, "index_damaged", err, "the search index is being built again; try again later")
	}
	if database.Retryable(err) {
		return nil, fault.New(fault.Unavailable, "index_unavailable", err, "the search index does not answer; try again")
	}
	if err != nil {
		return nil, fmt.Errorf("searching: %w", database.Away(err))
	}
	return found, nil
}

func (x *Index) search(ctx context.Context, hashes []keyHash, all bool, max int) ([]uint64, error) {
	x.dbMu.RLock()
	defer x.dbMu.RUnlock()
	// Memory before the file: rows that move from one to the other in between are met twice
	// and not missed.
	x.mu.Lock()
	cursor, closed := x.cursor, x.closed
	found := x.pending.newest(hashes, all, max)
	x.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	if cursor == 0 || len(found) == max {
		return found, nil
	}
	// Segments from the newest, one and then ever more at once: where few entries were found
	// so far, the older segments have few as well.
	s := searcher{db: x.db, hashes: slices.Clone(hashes), all: all && len(hashes) > 1, below: cursor}
	first, n := int64((cursor-1)/segmentEntries), 1
	for first >= 0 && len(found) < max {
		n = min(n, maxSegments, int(first)+1)
		more, err := s.segments(ctx, list(first, n), max)
		if err != nil {
			return nil, err
		}
		found = newest(append(found, more...), max)
		first, n = first-int64(n), 4*n
	}
	return found, nil
}

// newest returns the largest max of the indexes, ascending and each once.
func newest(indexes []uint64, max int) []uint64 {
	slices.Sort(indexes)
	indexes = slices.Compact(indexes)
	return indexes[len(indexes)-min(len(indexes), max):]
}

// searcher holds what stays the same over one search.
type searcher struct {
	db     *database.DB
	hashes []keyHash
	all    bool
	below  uint64
}

// maxSegments is how many segments one statement looks through.
const maxSegments = 256

// segments returns the newest max results in a list of segments, in any order.
func (s *searcher) segments(ctx context.Context, segments string, max int) ([]uint64, error) {
	if !s.all {
		return scan(s.db.QueryContext(ctx, unionOf(segments, len(s.hashes)), s.parameters(max)...))
	}
	// From the rarest key: a digest and a busy identity cost one lookup then, not one for
	// each entry of that identity.
	counts := make([]int, len(s.hashes))
	into := make([]any, len(counts))
	for i := range counts {
		into[i] = &counts[i]
	}
	if err := s.db.QueryRowContext(ctx, countsOf(segments, len(s.hashes)), s.parameters(fewEnough)...).Scan(into...); err != nil {
		return nil, err
	}
	rarest := 0
	for i := range counts {
		if counts[i] < counts[rarest] {
			rarest = i
		}
	}
	if counts[rarest] == 0 {
		return nil, nil
	}
	arguments := s.parameters(max)
	keys := arguments[firstKey-1:]
	keys[0], keys[rarest] = keys[rarest], keys[0]
	return scan(s.db.QueryContext(ctx, intersectionOf(segments, len(s.hashes)), arguments...))
}

// fewEnough is how far rows are counted to find the rarest key.
const fewEnough = 1000

func (s *searcher) parameters(limit int) []any {
	list := []any{s.below, limit}
	for i := range s.hashes {
		list = append(list, s.hashes[i][:])
	}
	return list
}

func scan(rows *sql.Rows, err error) ([]uint64, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var found []uint64
	for rows.Next() {
		var index int64
		if err := rows.Scan(&index); err != nil {
			return nil, err
		}
		found = append(found, uint64(index))
	}
	return found, rows.Err()
}
