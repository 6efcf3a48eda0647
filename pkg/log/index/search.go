package index

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

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
// Errors: fault.Invalid for more than 32 keys; fault.Unavailable while a damaged index is built again.
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
	if isDamaged(err) {
		x.markDamaged() // the follower replaces the file at its next step
		return nil, fault.New(fault.Unavailable, "index_damaged", err, "the search index is being built again; try again later")
	}
	if err != nil {
		return nil, fmt.Errorf("searching: %w", err)
	}
	slices.Sort(found)
	return found, nil
}

func (x *Index) search(ctx context.Context, hashes []keyHash, all bool, max int) ([]uint64, error) {
	x.dbMu.RLock()
	defer x.dbMu.RUnlock()
	// Memory before the file: rows that move from one to the other in between are met twice
	// and not missed.
	x.mu.Lock()
	cursor := x.cursor
	found := x.pending.newest(hashes, all, max)
	x.mu.Unlock()
	if cursor == 0 || len(found) == max {
		return found, nil
	}
	conn, err := x.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	s, err := newSearcher(ctx, conn, hashes, all)
	if err != nil {
		return nil, err
	}
	defer s.close()
	missing := max - len(found)
	for segment := int64((cursor - 1) / segmentEntries); segment >= 0 && missing > 0; segment-- {
		more, err := s.segment(ctx, segment, max)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
		slices.Sort(found)
		found = slices.Compact(found)
		missing = max - len(found)
	}
	return found[len(found)-min(len(found), max):], nil
}

// searcher holds the statements of one search.
type searcher struct {
	hashes     []keyHash
	all        bool
	one, count *sql.Stmt
	everyOf    *sql.Stmt
}

func newSearcher(ctx context.Context, conn *sql.Conn, hashes []keyHash, all bool) (*searcher, error) {
	s := &searcher{hashes: slices.Clone(hashes), all: all && len(hashes) > 1}
	var err error
	if !s.all {
		s.one, err = conn.PrepareContext(ctx, selectKey)
		return s, err
	}
	if s.count, err = conn.PrepareContext(ctx, countKey); err == nil {
		s.everyOf, err = conn.PrepareContext(ctx, intersection(len(hashes)))
	}
	if err != nil {
		s.close()
	}
	return s, err
}

func (s *searcher) close() {
	for _, statement := range []*sql.Stmt{s.one, s.count, s.everyOf} {
		if statement != nil {
			statement.Close()
		}
	}
}

// segment returns the newest max results in one segment, in any order.
func (s *searcher) segment(ctx context.Context, segment int64, max int) ([]uint64, error) {
	if s.all {
		return s.intersect(ctx, segment, max)
	}
	var found []uint64
	for i := range s.hashes {
		more, err := scan(s.one.QueryContext(ctx, segment, s.hashes[i][:], max))
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	slices.Sort(found)
	found = slices.Compact(found)
	return found[len(found)-min(len(found), max):], nil
}

// fewEnough is how far rows are counted to find the rarest key.
const fewEnough = 1000

// intersect starts from the rarest key: a digest and a busy identity cost one lookup then,
// not one for each entry of that identity.
func (s *searcher) intersect(ctx context.Context, segment int64, max int) ([]uint64, error) {
	rarest, fewest := 0, fewEnough+1
	for i := range s.hashes {
		var n int
		if err := s.count.QueryRowContext(ctx, segment, s.hashes[i][:], min(fewest, fewEnough)).Scan(&n); err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, nil
		}
		if n < fewest {
			rarest, fewest = i, n
		}
	}
	arguments := []any{segment, s.hashes[rarest][:], max}
	for i := range s.hashes {
		if i != rarest {
			arguments = append(arguments, s.hashes[i][:])
		}
	}
	return scan(s.everyOf.QueryContext(ctx, arguments...))
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
