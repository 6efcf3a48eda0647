package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attestry/attestry/internal/database"
)

// MaxRows bounds one answer.
const MaxRows = 10_000

// Reader answers from the records of a CA that may run. It writes nothing.
type Reader struct{ db *database.DB }

// OpenReader opens the records at uri, see Options, for reading.
func OpenReader(ctx context.Context, uri, passwordFile string) (*Reader, error) {
	if path, ok := strings.CutPrefix(uri, "sqlite:"); ok {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there are no records at %s: the CA has not made them yet, or keeps them elsewhere", path)
		}
	}
	db, err := database.Open(ctx, uri, database.Options{Schema: schemaName, PasswordFile: passwordFile, ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("opening the records: %w", err)
	}
	there, err := created(ctx, db)
	if err == nil && !there {
		err = fmt.Errorf("there are no records in %s", db)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &Reader{db}, nil
}

// Close closes the database.
func (r *Reader) Close() error { return r.db.Close() }

// Query says which rows are asked for: those to which all that is set applies.
type Query struct {
	Identity       string // subject alternative name, exactly
	IdentityPrefix string
	Issuer         string // OIDC issuer, exactly
	Serial         string // lower-case hex
	Reason         string // of refusals; "claim_missing" also finds "claim_missing:email"
	Since, Until   time.Time
	Before         int64 // rows with a smaller seq: what comes after the last one of an answer; 0 for all
	Limit          int   // 1 to MaxRows
}

// Issued returns certificates, newest first. Those that are in the journal and not yet in the database come first, and their Seq and Hash are
// not set; with q.Before they are left out.
func (r *Reader) Issued(ctx context.Context, q Query) ([]*Issued, error) {
	if q.Reason != "" {
		return nil, errors.New("certificates have no reason")
	}
	where, args, err := q.where()
	if err != nil {
		return nil, err
	}
	var rows []*Issued
	pending, err := r.pending(ctx, func(tx *sql.Tx) (err error) {
		rows, err = scan[Issued](tx.QueryContext(ctx, `SELECT `+issuedTable.columns+` FROM issued`+where, args...))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the records: %w", err)
	}
	pending = slices.DeleteFunc(pending, func(row *Issued) bool { return !q.matches(row) })
	slices.Reverse(pending)
	rows = append(pending, rows...)
	return rows[:min(len(rows), q.Limit)], nil
}

// pending returns the rows of the journal that are not in the database as read sees it, oldest first.
func (r *Reader) pending(ctx context.Context, read func(tx *sql.Tx) error) (pending []*Issued, err error) {
	var journaled []*Issued
	if path := r.db.Path(); path != "" {
		// Before the database: a row that goes over meanwhile is found there.
		if journaled, err = readPending(path); err != nil {
			return nil, err
		}
	}
	err = r.db.Transact(ctx, func(tx *sql.Tx) error {
		if err := read(tx); err != nil {
			return err
		}
		there, err := certificates(ctx, tx, journaled)
		pending = slices.DeleteFunc(journaled, func(row *Issued) bool { return there[row.Serial] != "" })
		return err
	})
	return pending, database.Away(err)
}

// Pending returns how many certificates are in the journal and not yet in the database, and so not part of what Verify checks.
func (r *Reader) Pending(ctx context.Context) (int, error) {
	rows, err := r.pending(ctx, func(*sql.Tx) error { return nil })
	if err != nil {
		return 0, fmt.Errorf("reading the records: %w", err)
	}
	return len(rows), nil
}

// matches tells what where says, of a row that has no number yet.
func (q Query) matches(r *Issued) bool {
	return (q.Identity == "" || r.Identity == q.Identity) && strings.HasPrefix(r.Identity, q.IdentityPrefix) && (q.Issuer == "" || r.Issuer == q.Issuer) &&
		(q.Serial == "" || r.Serial == q.Serial) && (q.Since.IsZero() || r.Time >= stamp(q.Since)) && (q.Until.IsZero() || r.Time < stamp(q.Until)) && q.Before == 0
}

// Refused returns refusals, newest first.
func (r *Reader) Refused(ctx context.Context, q Query) ([]*Refused, error) {
	if q.Identity != "" || q.IdentityPrefix != "" || q.Serial != "" {
		return nil, errors.New("a refusal has neither identity nor serial number")
	}
	where, args, err := q.where()
	if err != nil {
		return nil, err
	}
	rows, err := scan[Refused](r.db.QueryContext(ctx, `SELECT `+refusedTable.columns+` FROM refused`+where, args...))
	if err != nil {
		return nil, fmt.Errorf("reading the records: %w", database.Away(err))
	}
	return rows, nil
}

// where returns the end of the statement, with its parameters.
func (q Query) where() (clause string, args []any, err error) {
	if q.Limit < 1 || q.Limit > MaxRows {
		return "", nil, fmt.Errorf("a limit of %d is not between 1 and %d", q.Limit, MaxRows)
	}
	var conditions []string
	add := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		conditions = append(conditions, condition)
	}
	if q.Identity != "" {
		add("identity = ?", q.Identity)
	}
	if q.IdentityPrefix != "" {
		add("identity >= ?", q.IdentityPrefix)
		if end := after(q.IdentityPrefix); end != "" {
			add("identity < ?", end)
		}
	}
	if q.Issuer != "" {
		add("issuer = ?", q.Issuer)
	}
	if q.Serial != "" {
		add("serial = ?", q.Serial)
	}
	if q.Reason != "" {
		add("(reason = ? OR reason >= ? AND reason < ?)", q.Reason, q.Reason+":", q.Reason+";")
	}
	if !q.Since.IsZero() {
		add("time >= ?", stamp(q.Since))
	}
	if !q.Until.IsZero() {
		add("time < ?", stamp(q.Until))
	}
	if q.Before > 0 {
		add("seq < ?", q.Before)
	}
	if len(conditions) > 0 {
		clause = " WHERE " + strings.Join(conditions, " AND ")
	}
	args = append(args, q.Limit)
	return fmt.Sprintf("%s ORDER BY seq DESC LIMIT $%d", clause, len(args)), args, nil
}

// after returns the first text that sorts, by bytes, after all that begin with prefix; "" when there is none.
func after(prefix string) string {
	for prefix != "" {
		last, n := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-n]
		switch {
		case last == utf8.MaxRune: // nothing comes after it: count up the one before
			continue
		case last == 0xd7ff: // surrogates are no text
			last = 0xdfff
		}
		return prefix + string(last+1)
	}
	return ""
}

// Verify reads every row and checks that each is chained to the one before it, up to the table's head. kept are heads that somebody
// remembers of earlier, by table, "issued" or "refused": their rows must have the same hashes still. It returns the present heads.
func (r *Reader) Verify(ctx context.Context, kept map[string][]Head) (map[string]Head, error) {
	heads := map[string]Head{}
	for _, t := range []table{issuedTable, refusedTable} {
		h := Head{}
		if err := r.db.QueryRowContext(ctx, `SELECT seq, hash FROM heads WHERE name = $1`, t.name).Scan(&h.Seq, &h.Hash); err != nil {
			return nil, fmt.Errorf("reading the records: %w", database.Away(err))
		}
		if err := r.verify(ctx, t, h, kept[t.name]); err != nil {
			return nil, fmt.Errorf("table %s: %w", t.name, err)
		}
		var beyond int64
		if err := r.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM `+t.name+` WHERE seq > (SELECT seq FROM heads WHERE name = $1)`, t.name).Scan(&beyond); err != nil {
			return nil, fmt.Errorf("reading the records: %w", database.Away(err))
		}
		if beyond > 0 {
			return nil, fmt.Errorf("table %s: %d rows come after the last that the CA wrote", t.name, beyond)
		}
		heads[t.name] = h
	}
	return heads, nil
}

// verifyPage is how many rows are read at once.
const verifyPage = 1000

func (r *Reader) verify(ctx context.Context, t table, until Head, kept []Head) error {
	remembered := map[int64]string{until.Seq: until.Hash}
	for _, h := range kept {
		if h.Seq > until.Seq {
			return fmt.Errorf("there are %d rows, and there were %d: rows were removed, or an older copy was restored", until.Seq, h.Seq)
		}
		if other, ok := remembered[h.Seq]; ok && other != h.Hash {
			return fmt.Errorf("row %d has hash %s, and it had %s: the rows up to it were changed", h.Seq, other, h.Hash)
		}
		remembered[h.Seq] = h.Hash
	}
	head := Head{Hash: zeroHash}
	for head.Seq < until.Seq {
		rows, err := r.page(ctx, t, head.Seq, min(until.Seq, head.Seq+verifyPage))
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			return fmt.Errorf("row %d is missing", head.Seq+1)
		}
		for _, row := range rows {
			seq, hash := row.chained()
			storedSeq, storedHash := *seq, *hash
			if head, err = head.after(row); err != nil {
				return err
			}
			switch want, ok := remembered[head.Seq]; {
			case storedSeq != head.Seq:
				return fmt.Errorf("row %d is missing", head.Seq)
			case storedHash != head.Hash:
				return fmt.Errorf("row %d was changed, or what is before it: its hash is %s and must be %s", head.Seq, storedHash, head.Hash)
			case ok && want != head.Hash:
				return fmt.Errorf("row %d has hash %s, and it had %s: the rows up to it were changed", head.Seq, head.Hash, want)
			}
		}
	}
	if want, ok := remembered[0]; ok && want != zeroHash {
		return fmt.Errorf("row 0 has no hash but %s", zeroHash)
	}
	return nil
}

// page returns the rows with from < seq ≤ to, in order.
func (r *Reader) page(ctx context.Context, t table, from, to int64) ([]row, error) {
	found, err := r.db.QueryContext(ctx, `SELECT `+t.columns+` FROM `+t.name+` WHERE seq > $1 AND seq <= $2 ORDER BY seq`, from, to)
	var all []row
	if t.name == issuedTable.name {
		var rows []*Issued
		rows, err = scan[Issued](found, err)
		for _, r := range rows {
			all = append(all, r)
		}
	} else {
		var rows []*Refused
		rows, err = scan[Refused](found, err)
		for _, r := range rows {
			all = append(all, r)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the records: %w", database.Away(err))
	}
	return all, nil
}

// Snapshot copies the records in the SQLite file at from, which a CA may be writing, to a new file at to, and what is in the journal to one
// beside it. It returns the files, which are not yet synced.
func Snapshot(ctx context.Context, from, to string) (files []string, err error) {
	// Before the database: what goes over meanwhile is in both, and nothing is in neither.
	pending, err := readPending(from)
	if err != nil {
		return nil, fmt.Errorf("copying the records: %w", err)
	}
	db, err := database.Open(ctx, "sqlite:"+from, database.Options{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("copying the records: %w", err)
	}
	// The connection is read-only by its mode; VACUUM INTO writes elsewhere, in one transaction.
	_, err = db.ExecContext(ctx, `PRAGMA query_only = 0; VACUUM INTO '`+strings.ReplaceAll(to, "'", "''")+`'`)
	if err := errors.Join(err, db.Close()); err != nil {
		return nil, fmt.Errorf("copying the records: %w", err)
	}
	if len(pending) == 0 {
		return []string{to}, nil
	}
	if err := writePending(to, pending); err != nil {
		return nil, fmt.Errorf("copying the records: %w", err)
	}
	return []string{to, journalPath(to)}, nil
}
