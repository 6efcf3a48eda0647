package log

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"

	_ "modernc.org/sqlite" // the embedded engine
)

// rows keeps what belongs to a log's leaves and is not in them: the identity that tells
// duplicates apart, Rekor v1's integratedTime, and search keys that only the submission carried.
//
// A row without an index is a reservation (step 1 of the append protocol). state.next counts the
// leaves that have rows: they are written in index order.
type rows struct {
	db                      *sql.DB
	lookup, byHash, counted *sql.Stmt

	fault func(when string) error // makes commits fail in tests; nil otherwise
}

const rowsSchema = `
CREATE TABLE IF NOT EXISTS leaves (
	identity   BLOB PRIMARY KEY,
	idx        BIGINT UNIQUE,
	integrated BIGINT NOT NULL DEFAULT 0,
	leaf_hash  BLOB,
	keys       TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS leaves_by_hash ON leaves (leaf_hash) WHERE leaf_hash IS NOT NULL;
CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 1), next BIGINT NOT NULL);
INSERT INTO state (id, next) VALUES (1, 0) ON CONFLICT (id) DO NOTHING;
`

// row is one line of leaves. integrated is in seconds since the epoch for Rekor v1 and in
// milliseconds for CT (the leaf's own timestamp); leafHash is nil where identity is the leaf hash.
type row struct {
	identity   [32]byte
	index      uint64
	integrated int64
	leafHash   []byte
	keys       []string
}

func openRows(ctx context.Context, path string) (*rows, error) {
	// synchronous=FULL: a commit that returned survives a power cut.
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() +
		"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=busy_timeout(5000)&_pragma=cache_size(-16384)&_txlock=immediate"
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	db.SetMaxOpenConns(4)
	r := &rows{db: db}
	if _, err := db.ExecContext(ctx, rowsSchema); err != nil {
		db.Close()
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	for _, p := range []struct {
		stmt  **sql.Stmt
		query string
	}{
		{&r.lookup, `SELECT idx, integrated FROM leaves WHERE identity = $1 AND idx IS NOT NULL`},
		{&r.byHash, `SELECT idx FROM leaves WHERE leaf_hash = $1 AND idx IS NOT NULL`},
		{&r.counted, `SELECT next FROM state WHERE id = 1`},
	} {
		if *p.stmt, err = db.PrepareContext(ctx, p.query); err != nil {
			db.Close()
			return nil, fmt.Errorf("opening %s: %w", path, err)
		}
	}
	return r, nil
}

func (r *rows) close() error { return r.db.Close() }

// find returns the index and time of the leaf with this identity; ok is false when there is none.
func (r *rows) find(ctx context.Context, identity [32]byte) (index uint64, integrated int64, ok bool, err error) {
	err = r.lookup.QueryRowContext(ctx, identity[:]).Scan(&index, &integrated)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("looking for a duplicate: %w", err)
	}
	return index, integrated, true, nil
}

// slice returns time and keys of the leaves from ≤ index < to, by index. Where an
// identity stands twice in a tree of another maker, only its first leaf has a row.
func (r *rows) slice(ctx context.Context, from, to uint64) (map[uint64]row, error) {
	found, err := r.db.QueryContext(ctx, `SELECT idx, integrated, keys FROM leaves WHERE idx >= $1 AND idx < $2`, from, to)
	if err != nil {
		return nil, fmt.Errorf("reading rows: %w", err)
	}
	defer found.Close()
	out := make(map[uint64]row, to-from)
	for found.Next() {
		var r row
		var raw sql.NullString
		if err := found.Scan(&r.index, &r.integrated, &raw); err != nil {
			return nil, fmt.Errorf("reading rows: %w", err)
		}
		if r.keys, err = decodeKeys(raw); err != nil {
			return nil, err
		}
		out[r.index] = r
	}
	return out, found.Err()
}

// indexOf returns the index of the leaf with this leaf hash where that differs from its identity.
func (r *rows) indexOf(ctx context.Context, leafHash [32]byte) (uint64, bool, error) {
	var index uint64
	err := r.byHash.QueryRowContext(ctx, leafHash[:]).Scan(&index)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return index, err == nil, err
}

// next returns how many leaves have rows.
func (r *rows) next(ctx context.Context) (uint64, error) {
	var n uint64
	if err := r.counted.QueryRowContext(ctx).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting rows: %w", err)
	}
	return n, nil
}

// reserve stores rows without an index in one commit; integrated is the time of receipt.
func (r *rows) reserve(ctx context.Context, batch []row) error {
	return r.commit(ctx, "reserving", func(tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `INSERT INTO leaves (identity, integrated, keys) VALUES ($1, $2, $3)
			ON CONFLICT (identity) DO UPDATE SET integrated = excluded.integrated, keys = excluded.keys WHERE leaves.idx IS NULL`)
		if err != nil {
			return err
		}
		defer stmt.Close()
		for _, row := range batch {
			keys, err := json.Marshal(row.keys)
			if err != nil {
				return err
			}
			if _, err := stmt.ExecContext(ctx, row.identity[:], row.integrated, string(keys)); err != nil {
				return err
			}
		}
		return nil
	})
}

// complete gives rows their index and time in one commit and moves next to the last index + 1. A
// reservation keeps its keys; an identity that already has an index keeps its first.
func (r *rows) complete(ctx context.Context, batch []row) error {
	if len(batch) == 0 {
		return nil
	}
	return r.commit(ctx, "completing", func(tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `INSERT INTO leaves (identity, idx, integrated, leaf_hash) VALUES ($1, $2, $3, $4)
			ON CONFLICT (identity) DO UPDATE SET idx = excluded.idx, integrated = excluded.integrated, leaf_hash = excluded.leaf_hash
			WHERE leaves.idx IS NULL`)
		if err != nil {
			return err
		}
		defer stmt.Close()
		for _, row := range batch {
			if _, err := stmt.ExecContext(ctx, row.identity[:], row.index, row.integrated, row.leafHash); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `UPDATE state SET next = $1 WHERE id = 1`, batch[len(batch)-1].index+1)
		return err
	})
}

// reservation returns the time of receipt of a row that has no index yet.
func (r *rows) reservation(ctx context.Context, identity [32]byte) (receivedUnix int64, ok bool, err error) {
	err = r.db.QueryRowContext(ctx, `SELECT integrated FROM leaves WHERE identity = $1 AND idx IS NULL`, identity[:]).Scan(&receivedUnix)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return receivedUnix, err == nil, err
}

// truncate drops reservations and the rows at or past size, which nobody was told of.
func (r *rows) truncate(ctx context.Context, size uint64) error {
	return r.commit(ctx, "truncating", func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM leaves WHERE idx IS NULL OR idx >= $1`, size); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE state SET next = $1 WHERE id = 1 AND next > $1`, size)
		return err
	})
}

func (r *rows) commit(ctx context.Context, doing string, f func(*sql.Tx) error) error {
	tx, err := r.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("%s rows: %w", doing, err)
	}
	defer tx.Rollback() // after Commit it does nothing
	if err := f(tx); err != nil {
		return fmt.Errorf("%s rows: %w", doing, err)
	}
	if r.fault != nil {
		if err := r.fault("before " + doing); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("%s rows: %w", doing, err)
	}
	if r.fault != nil {
		return r.fault("after " + doing)
	}
	return nil
}

func decodeKeys(raw sql.NullString) ([]string, error) {
	if !raw.Valid {
		return nil, nil
	}
	var keys []string
	if err := json.Unmarshal([]byte(raw.String), &keys); err != nil {
		return nil, fmt.Errorf("decoding search keys: %w", err)
	}
	return keys, nil
}
