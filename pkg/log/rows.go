package log

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/attestry/attestry/internal/database"
)

// rows keeps what belongs to a log's leaves and is not in them: the identity that tells
// duplicates apart, Rekor v1's integratedTime, search keys that only the submission carried, and
// the extra data of plain CT leaves.
//
// A row without an index is a reservation (step 1 of the append protocol). state.next counts the
// leaves that have rows: they are written in index order. The queue holds whole submissions
// for trees that are fed from the database; see queued.go.
type rows struct {
	db                      *database.DB
	owned                   bool        // close closes db
	queued                  bool        // the tree is fed from the queue
	lead                    *leadership // of a queued log: who has it writes the rows of leaves; else nil
	lookup, byHash, counted *sql.Stmt

	fault func(when string) error // makes commits fail in tests; nil otherwise
}

// rowsSchema is SQL that SQLite and PostgreSQL both take. BYTEA has no meaning to SQLite, which stores the bytes as
// they are; %s is the type of a number that counts up by itself.
const rowsSchema = `
CREATE TABLE IF NOT EXISTS leaves (
	identity   BYTEA PRIMARY KEY,
	idx        BIGINT UNIQUE,
	integrated BIGINT NOT NULL DEFAULT 0,
	leaf_hash  BYTEA,
	keys       TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS leaves_by_hash ON leaves (leaf_hash) WHERE leaf_hash IS NOT NULL;
CREATE TABLE IF NOT EXISTS extras (identity BYTEA PRIMARY KEY, extra BYTEA NOT NULL);
CREATE TABLE IF NOT EXISTS queue (
	seq      %s,
	identity BYTEA NOT NULL UNIQUE,
	received BIGINT NOT NULL,
	keys     TEXT,
	data     BYTEA NOT NULL
);
CREATE TABLE IF NOT EXISTS frozen (id INTEGER PRIMARY KEY CHECK (id = 1));
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
	extra      []byte
}

// openRows opens the rows in db, or in an SQLite file at path when db is nil.
func openRows(ctx context.Context, db *database.DB, path string, queued bool) (*rows, error) {
	r := &rows{db: db, queued: queued}
	if db == nil {
		var err error
		if r.db, err = database.Open(ctx, "sqlite:"+path, database.Options{}); err != nil {
			return nil, err
		}
		r.owned = true
	}
	if err := r.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the rows of a log: %w", err), r.close())
	}
	return r, nil
}

func (r *rows) prepare(ctx context.Context) error {
	serial := "INTEGER PRIMARY KEY AUTOINCREMENT"
	if r.shared() {
		serial = "BIGSERIAL PRIMARY KEY"
	}
	if err := r.db.Create(ctx, fmt.Sprintf(rowsSchema, serial)); err != nil {
		return err
	}
	for _, p := range []struct {
		stmt  **sql.Stmt
		query string
	}{
		{&r.lookup, `SELECT idx, integrated FROM leaves WHERE identity = $1 AND idx IS NOT NULL`},
		{&r.byHash, `SELECT idx FROM leaves WHERE leaf_hash = $1 AND idx IS NOT NULL`},
		{&r.counted, `SELECT next FROM state WHERE id = 1`},
	} {
		var err error
		if *p.stmt, err = r.db.PrepareContext(ctx, p.query); err != nil {
			return err
		}
	}
	return nil
}

// String names the database for error texts.
func (r *rows) String() string {
	if r.db.Path() != "" {
		return filepath.Base(r.db.Path())
	}
	return r.db.String()
}

// shared tells whether other processes may use these rows at the same time.
func (r *rows) shared() bool { return r.db.Engine() == database.PostgreSQL }

func (r *rows) close() error {
	var errs []error
	for _, s := range []*sql.Stmt{r.lookup, r.byHash, r.counted} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	if r.owned {
		errs = append(errs, r.db.Close())
	}
	return errors.Join(errs...)
}

// find returns the index and time of the leaf with this identity; ok is false when there is none.
func (r *rows) find(ctx context.Context, identity [32]byte) (index uint64, integrated int64, ok bool, err error) {
	err = r.lookup.QueryRowContext(ctx, identity[:]).Scan(&index, &integrated)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, fmt.Errorf("looking for a duplicate: %w", database.Away(err))
	}
	return index, integrated, true, nil
}

// findAll is find for many: what is not there is not in the answer.
func (r *rows) findAll(ctx context.Context, identities [][32]byte) (map[[32]byte]row, error) {
	return findAll(ctx, r.db, identities)
}

// queryer is a database or a transaction.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func findAll(ctx context.Context, db queryer, identities [][32]byte) (map[[32]byte]row, error) {
	out := map[[32]byte]row{}
	for len(identities) > 0 {
		chunk := identities[:min(len(identities), rowsPerStatement)]
		identities = identities[len(chunk):]
		found, err := db.QueryContext(ctx, `SELECT identity, idx, integrated FROM leaves WHERE idx IS NOT NULL AND identity IN `+
			placeholders(1, len(chunk), 0), bytesOf(chunk)...)
		if err != nil {
			return nil, fmt.Errorf("looking for duplicates: %w", database.Away(err))
		}
		if err := each(found, func() error {
			var identity []byte
			var r row
			if err := found.Scan(&identity, &r.index, &r.integrated); err != nil {
				return err
			}
			r.identity = [32]byte(identity)
			out[r.identity] = r
			return nil
		}); err != nil {
			return nil, fmt.Errorf("looking for duplicates: %w", database.Away(err))
		}
	}
	return out, nil
}

func each(found *sql.Rows, f func() error) error {
	defer found.Close()
	for found.Next() {
		if err := f(); err != nil {
			return err
		}
	}
	return found.Err()
}

// slice returns time, keys and extra data of the leaves from ≤ index < to, by index. Where an
// identity stands twice in a tree of another maker, only its first leaf has a row.
func (r *rows) slice(ctx context.Context, from, to uint64) (map[uint64]row, error) {
	found, err := r.db.QueryContext(ctx, `SELECT l.idx, l.integrated, l.keys, e.extra FROM leaves l LEFT JOIN extras e ON e.identity = l.identity
		WHERE l.idx >= $1 AND l.idx < $2`, from, to)
	if err != nil {
		return nil, fmt.Errorf("reading rows: %w", database.Away(err))
	}
	out := make(map[uint64]row, to-from)
	err = each(found, func() error {
		var r row
		var raw sql.NullString
		if err := found.Scan(&r.index, &r.integrated, &raw, &r.extra); err != nil {
			return err
		}
		var err error
		if r.keys, err = decodeKeys(raw); err != nil {
			return err
		}
		out[r.index] = r
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading rows: %w", database.Away(err))
	}
	return out, nil
}

// indexOf returns the index of the leaf with this leaf hash where that differs from its identity.
func (r *rows) indexOf(ctx context.Context, leafHash [32]byte) (uint64, bool, error) {
	var index uint64
	err := r.byHash.QueryRowContext(ctx, leafHash[:]).Scan(&index)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return index, err == nil, database.Away(err)
}

// identityAt returns the identity of the leaf at index.
func (r *rows) identityAt(ctx context.Context, index uint64) (identity [32]byte, ok bool, err error) {
	var raw []byte
	err = r.db.QueryRowContext(ctx, `SELECT identity FROM leaves WHERE idx = $1`, index).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return identity, false, nil
	}
	if err != nil || len(raw) != len(identity) {
		return identity, false, fmt.Errorf("reading the row of index %d: %w", index, database.Away(err))
	}
	return [32]byte(raw), true, nil
}

// next returns how many leaves have rows.
func (r *rows) next(ctx context.Context) (uint64, error) {
	var n uint64
	if err := r.counted.QueryRowContext(ctx).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting rows: %w", database.Away(err))
	}
	return n, nil
}

// reserve stores rows without an index in one commit; integrated is the time of receipt.
func (r *rows) reserve(ctx context.Context, batch []row) error {
	return r.commit(ctx, "reserving", func(tx *sql.Tx) error {
		values := make([][]any, len(batch))
		for i, row := range batch {
			keys, err := encodeKeys(row.keys)
			if err != nil {
				return err
			}
			values[i] = []any{batch[i].identity[:], row.integrated, keys}
		}
		if _, err := insert(ctx, tx, `INSERT INTO leaves (identity, integrated, keys) VALUES `, values,
			` ON CONFLICT (identity) DO UPDATE SET integrated = excluded.integrated, keys = excluded.keys WHERE leaves.idx IS NULL`); err != nil {
			return err
		}
		return insertExtras(ctx, tx, batch)
	})
}

// complete gives rows their index and time in one commit, moves next to the last index + 1, and takes what has
// become a leaf out of the queue, whose keys it keeps. A reservation keeps its keys too; an identity that already has an index
// keeps its first, and batch has that index and time afterwards: what is answered is what is stored.
func (r *rows) complete(ctx context.Context, batch []row) error {
	if len(batch) == 0 {
		return nil
	}
	next := batch[len(batch)-1].index + 1
	var known map[[32]byte]row
	if err := r.commitLed(ctx, "completing", func(tx *sql.Tx) error {
		known = nil
		values := make([][]any, 0, len(batch))
		seen := make(map[[32]byte]bool, len(batch)) // a tree of another maker may hold twins
		for i := range batch {
			if seen[batch[i].identity] {
				continue
			}
			seen[batch[i].identity] = true
			keys, err := encodeKeys(batch[i].keys)
			if err != nil {
				return err
			}
			values = append(values, []any{batch[i].identity[:], batch[i].index, batch[i].integrated, null(batch[i].leafHash), keys})
		}
		written, err := insert(ctx, tx, `INSERT INTO leaves (identity, idx, integrated, leaf_hash, keys) VALUES `, values,
			` ON CONFLICT (identity) DO UPDATE SET idx = excluded.idx, integrated = excluded.integrated, leaf_hash = excluded.leaf_hash,
				keys = COALESCE(excluded.keys, leaves.keys) WHERE leaves.idx IS NULL`)
		if err != nil {
			return err
		}
		if written < int64(len(batch)) { // twins
			if known, err = findAll(ctx, tx, identitiesOf(batch)); err != nil {
				return err
			}
		}
		if r.queued {
			if err := dequeue(ctx, tx, batch); err != nil {
				return err
			}
		}
		_, err = tx.ExecContext(ctx, `UPDATE state SET next = $1 WHERE id = 1`, next)
		return err
	}); err != nil {
		return err
	}
	for i := range batch {
		if first, ok := known[batch[i].identity]; ok {
			batch[i].index, batch[i].integrated = first.index, first.integrated
		}
	}
	return nil
}

func identitiesOf(batch []row) [][32]byte {
	identities := make([][32]byte, len(batch))
	for i := range batch {
		identities[i] = batch[i].identity
	}
	return identities
}

func insertExtras(ctx context.Context, tx *sql.Tx, batch []row) error {
	var values [][]any
	for i := range batch {
		if batch[i].extra != nil {
			values = append(values, []any{batch[i].identity[:], batch[i].extra})
		}
	}
	// A second submission of one identity may come with another chain: the one that is not yet in the tree counts.
	_, err := insert(ctx, tx, `INSERT INTO extras (identity, extra) VALUES `, values,
		` ON CONFLICT (identity) DO UPDATE SET extra = excluded.extra
			WHERE NOT EXISTS (SELECT 1 FROM leaves WHERE leaves.identity = extras.identity AND leaves.idx IS NOT NULL)`)
	return err
}

// hasExtra tells whether extra data is kept for an identity.
func (r *rows) hasExtra(ctx context.Context, identity [32]byte) (bool, error) {
	var n int
	if err := r.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM extras WHERE identity = $1`, identity[:]).Scan(&n); err != nil {
		return false, fmt.Errorf("looking for extra data: %w", database.Away(err))
	}
	return n > 0, nil
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
	return r.commitLed(ctx, "truncating", func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM leaves WHERE idx IS NULL OR idx >= $1`, size); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE state SET next = $1 WHERE id = 1 AND next > $2`, size, size)
		return err
	})
}

// commit runs f in a transaction. An error from f means that nothing took effect.
func (r *rows) commit(ctx context.Context, doing string, f func(*sql.Tx) error) error {
	return r.commitBy(ctx, r.db.Transact, doing, f)
}

// commitLed is commit for what only the process that leads may write, errFollow when another one does.
func (r *rows) commitLed(ctx context.Context, doing string, f func(*sql.Tx) error) error {
	if r.lead == nil {
		return r.commit(ctx, doing, f)
	}
	return r.commitBy(ctx, r.lead.transact, doing, f)
}

func (r *rows) commitBy(ctx context.Context, transact func(context.Context, func(*sql.Tx) error) error, doing string, f func(*sql.Tx) error) error {
	if r.fault != nil {
		if err := r.fault("beginning " + doing); err != nil {
			return err
		}
	}
	err := transact(ctx, func(tx *sql.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		if r.fault != nil {
			return r.fault("before " + doing)
		}
		return nil
	})
	if err == nil && r.fault != nil {
		err = r.fault("after " + doing)
	}
	if err != nil {
		return fmt.Errorf("%s rows: %w", doing, err)
	}
	return nil
}

// rowsPerStatement is how many rows one statement carries. SQLite's driver looks each $n up in a list of
// all, so that the cost of long statements grows with the square of their length; for PostgreSQL a
// statement is a round trip.
const rowsPerStatement = 32

// insert runs statements of up to rowsPerStatement rows each: before, the values, after. It returns how many rows were
// inserted or updated.
func insert(ctx context.Context, tx *sql.Tx, before string, values [][]any, after string) (written int64, err error) {
	var full *sql.Stmt
	for len(values) > 0 {
		chunk := values[:min(len(values), rowsPerStatement)]
		values = values[len(chunk):]
		args := make([]any, 0, len(chunk)*len(chunk[0]))
		for _, v := range chunk {
			args = append(args, v...)
		}
		if full == nil && len(values) >= rowsPerStatement {
			if full, err = tx.PrepareContext(ctx, before+placeholders(len(chunk), len(chunk[0]), 0)+after); err != nil {
				return written, err
			}
			defer full.Close()
		}
		var result sql.Result
		if full != nil && len(chunk) == rowsPerStatement {
			result, err = full.ExecContext(ctx, args...)
		} else {
			result, err = tx.ExecContext(ctx, before+placeholders(len(chunk), len(chunk[0]), 0)+after, args...)
		}
		if err != nil {
			return written, err
		}
		n, err := result.RowsAffected()
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// placeholders returns "($1,$2),($3,$4)" for rows of columns, counted from after+1.
func placeholders(rows, columns, after int) string {
	var b strings.Builder
	for i := range rows {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('(')
		for j := range columns {
			if j > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "$%d", after+i*columns+j+1)
		}
		b.WriteByte(')')
	}
	return b.String()
}

// null is b for a nullable column.
func null(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}

// encodeKeys returns search keys as a JSON array, NULL for none.
func encodeKeys(keys []string) (sql.NullString, error) {
	if len(keys) == 0 {
		return sql.NullString{}, nil
	}
	raw, err := json.Marshal(keys)
	return sql.NullString{String: string(raw), Valid: true}, err
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
