package log

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/attestry/attestry/internal/database"
)

// PeekFence reads a key's records from the fence in dir, newest first and no more than 1,000, without
// its lock: whoever holds that may move on meanwhile. ErrNoRecord when there is none. It is
// for looking; to sign, open the fence.
func PeekFence(dir string, key KeyID) ([]Record, error) {
	file, err := os.Open(filepath.Join(dir, key.String()+".fence"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoRecord
	}
	if err != nil {
		return nil, fmt.Errorf("reading fence: %w", err)
	}
	defer file.Close()
	r := &ring{file: file}
	if err := r.read(key); err != nil {
		return nil, err
	}
	if r.seq == 0 {
		return nil, ErrNoRecord
	}
	var records []Record
	for seq := r.seq; seq > 0 && seq+slotCount > r.seq; seq-- {
		if s := r.records[seq%slotCount]; s.seq == seq {
			records = append(records, s.record)
		}
	}
	return records, nil
}

// PeekPostgresFence is PeekFence for a fence in PostgreSQL. It reads only.
func PeekPostgresFence(ctx context.Context, db *database.DB, key KeyID) ([]Record, error) {
	var there bool
	if err := db.QueryRowContext(ctx, `SELECT to_regclass('fence_records') IS NOT NULL`).Scan(&there); err != nil {
		return nil, fmt.Errorf("reading fence: %w", err)
	}
	if !there {
		return nil, ErrNoRecord
	}
	found, err := db.QueryContext(ctx, `SELECT size, root, promised FROM fence_records WHERE key_id = $1 ORDER BY seq DESC`, key[:])
	if err != nil {
		return nil, fmt.Errorf("reading fence: %w", err)
	}
	var records []Record
	if err := each(found, func() error {
		var r Record
		var root []byte
		if err := found.Scan(&r.Size, &root, &r.Promised); err != nil {
			return err
		}
		if len(root) != len(r.Root) {
			return fmt.Errorf("a root hash of %d bytes", len(root))
		}
		r.Root = [32]byte(root)
		records = append(records, r)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading fence: %w", err)
	}
	if len(records) == 0 {
		return nil, ErrNoRecord
	}
	return records, nil
}

// StoredRow is a leaf's row as it is stored.
type StoredRow struct {
	Identity   [32]byte
	Index      uint64
	Integrated int64  // seconds for Rekor v1, milliseconds for CT
	LeafHash   []byte // CT only, where it differs from the identity
	Extra      bool   // extra data is stored with it, if that was asked for
}

// StoredRows reads the rows of a log that may be running.
type StoredRows struct{ db *sql.DB }

// OpenStoredRows opens the rows in dir for reading only.
func OpenStoredRows(dir string) (*StoredRows, error) {
	path := filepath.Join(dir, "entries.db")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("opening rows: %w", err)
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=ro&_pragma=query_only(1)&_pragma=busy_timeout(5000)")
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	db.SetMaxOpenConns(4)
	return &StoredRows{db: db}, nil
}

// StoredRowsIn reads the rows in a database that the caller owns.
func StoredRowsIn(db *database.DB) *StoredRows { return &StoredRows{db: db.DB} }

// Close closes the database.
func (s *StoredRows) Close() error { return s.db.Close() }

// Range returns the rows of the leaves from ≤ index < to, by index; extra asks whether they have extra data.
func (s *StoredRows) Range(ctx context.Context, from, to uint64, extra bool) ([]StoredRow, error) {
	query := `SELECT identity, idx, integrated, leaf_hash, FALSE FROM leaves WHERE idx >= $1 AND idx < $2 ORDER BY idx`
	if extra {
		query = `SELECT l.identity, l.idx, l.integrated, l.leaf_hash, e.identity IS NOT NULL FROM leaves l LEFT JOIN extras e ON e.identity = l.identity
			WHERE l.idx >= $1 AND l.idx < $2 ORDER BY l.idx`
	}
	found, err := s.db.QueryContext(ctx, query, from, to)
	if err != nil {
		return nil, fmt.Errorf("reading rows: %w", err)
	}
	defer found.Close()
	out := make([]StoredRow, 0, min(to-from, 256))
	for found.Next() {
		var r StoredRow
		var identity []byte
		if err := found.Scan(&identity, &r.Index, &r.Integrated, &r.LeafHash, &r.Extra); err != nil {
			return nil, fmt.Errorf("reading rows: %w", err)
		}
		if len(identity) == len(r.Identity) { // else it stays zero, which is nobody's
			r.Identity = [32]byte(identity)
		}
		out = append(out, r)
	}
	return out, found.Err()
}

// IndexOf returns the index in the row of an identity.
func (s *StoredRows) IndexOf(ctx context.Context, identity [32]byte) (index uint64, ok bool, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT idx FROM leaves WHERE identity = $1 AND idx IS NOT NULL`, identity[:]).Scan(&index)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return index, err == nil, err
}

// Next returns how many leaves have rows, by the log's own count.
func (s *StoredRows) Next(ctx context.Context) (n uint64, err error) {
	return n, s.db.QueryRowContext(ctx, `SELECT next FROM state WHERE id = 1`).Scan(&n)
}

// End returns the index after that of the last row.
func (s *StoredRows) End(ctx context.Context) (n uint64, err error) {
	return n, s.db.QueryRowContext(ctx, `SELECT COALESCE(MAX(idx) + 1, 0) FROM leaves`).Scan(&n)
}

// Beyond returns how many rows have an index of size or more.
func (s *StoredRows) Beyond(ctx context.Context, size uint64) (n uint64, err error) {
	return n, s.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM leaves WHERE idx >= $1`, size).Scan(&n)
}

// SnapshotRows copies the rows in dir, of a log that may be running, to a new file at to: those of the
// leaves below size and nothing else, as a tree of that size has them. The copy is one file, not yet synced.
func SnapshotRows(ctx context.Context, dir, to string, size uint64) error {
	source, err := OpenStoredRows(dir)
	if err != nil {
		return err
	}
	// The connection is read-only by its mode; VACUUM INTO writes elsewhere, in one transaction.
	_, err = source.db.ExecContext(ctx, `PRAGMA query_only = 0; VACUUM INTO '`+strings.ReplaceAll(to, "'", "''")+`'`)
	if err := errors.Join(err, source.Close()); err != nil {
		return fmt.Errorf("copying rows: %w", err)
	}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: to}).EscapedPath()+"?_pragma=journal_mode(DELETE)")
	if err != nil {
		return fmt.Errorf("copying rows: %w", err)
	}
	db.SetMaxOpenConns(1)
	var next uint64
	err = db.QueryRowContext(ctx, `SELECT next FROM state WHERE id = 1`).Scan(&next)
	if err == nil && next < size {
		err = fmt.Errorf("they count %d leaves, %d were signed", next, size)
	}
	if err == nil {
		_, err = db.ExecContext(ctx, `DELETE FROM leaves WHERE idx IS NULL OR idx >= $1`, size)
	}
	if err == nil {
		_, err = db.ExecContext(ctx, `DELETE FROM queue; DELETE FROM extras WHERE identity NOT IN (SELECT identity FROM leaves); UPDATE state SET next = `+strconv.FormatUint(size, 10))
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("cutting the copy of the rows: %w", err)
	}
	return nil
}
