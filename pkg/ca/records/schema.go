package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/attestry/attestry/internal/database"
)

// table is one of the two.
type table struct {
	name    string // also of its line in heads
	columns string // in the order of row.fields
	count   int    // of columns
}

var (
	issuedTable = table{"issued", "seq, time, serial, not_after, identity, issuer, subject, token, rule, key, certificate, issuing_cert, " +
		"ct_log, ct_leaf, ct_index, request_id, hash", 17}
	refusedTable = table{"refused", "seq, time, reason, status, issuer, token, request_id, detail, left_out, hash", 10}
)

// The schema, in SQL that both engines take. {text} compares bytes, so that prefixes and times are ranges: SQLite
// does by itself. tokens has those that count once: serial is "" until a certificate was recorded for the token, and until then
// the holder may go on with it.
const schema = `
CREATE TABLE IF NOT EXISTS issued (
	seq          BIGINT PRIMARY KEY,
	time         {text} NOT NULL,
	serial       {text} NOT NULL UNIQUE,
	not_after    {text} NOT NULL,
	identity     {text} NOT NULL,
	issuer       {text} NOT NULL,
	subject      {text} NOT NULL,
	token        {text} NOT NULL,
	rule         {text} NOT NULL,
	key          {text} NOT NULL,
	certificate  {text} NOT NULL,
	issuing_cert {text} NOT NULL,
	ct_log       {text} NOT NULL,
	ct_leaf      {text} NOT NULL,
	ct_index     BIGINT NOT NULL,
	request_id   {text} NOT NULL,
	hash         {text} NOT NULL
);
CREATE INDEX IF NOT EXISTS issued_by_identity ON issued (identity, seq);
CREATE INDEX IF NOT EXISTS issued_by_issuer ON issued (issuer, seq);
CREATE INDEX IF NOT EXISTS issued_by_time ON issued (time);
CREATE TABLE IF NOT EXISTS refused (
	seq        BIGINT PRIMARY KEY,
	time       {text} NOT NULL,
	reason     {text} NOT NULL,
	status     BIGINT NOT NULL,
	issuer     {text} NOT NULL,
	token      {text} NOT NULL,
	request_id {text} NOT NULL,
	detail     {text} NOT NULL,
	left_out   BIGINT NOT NULL,
	hash       {text} NOT NULL
);
CREATE INDEX IF NOT EXISTS refused_by_time ON refused (time);
CREATE TABLE IF NOT EXISTS heads (name {text} PRIMARY KEY, seq BIGINT NOT NULL, hash {text} NOT NULL);
INSERT INTO heads (name, seq, hash) VALUES ('issued', 0, '{zero}'), ('refused', 0, '{zero}') ON CONFLICT (name) DO NOTHING;
CREATE TABLE IF NOT EXISTS tokens (
	token      {text} PRIMARY KEY,
	holder     {text} NOT NULL,
	held_until BIGINT NOT NULL,
	expires    BIGINT NOT NULL,
	serial     {text} NOT NULL
);
CREATE INDEX IF NOT EXISTS tokens_by_end ON tokens (expires);
`

const sqliteAppendOnly = `
CREATE TRIGGER IF NOT EXISTS {table}_stays BEFORE UPDATE ON {table} BEGIN SELECT RAISE(ABORT, 'records are never changed'); END;
CREATE TRIGGER IF NOT EXISTS {table}_remains BEFORE DELETE ON {table} BEGIN SELECT RAISE(ABORT, 'records are never removed'); END;
`

const postgresAppendOnly = `
CREATE OR REPLACE FUNCTION records_stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'records are never changed or removed'; END $$;
DROP TRIGGER IF EXISTS {table}_stays ON {table};
CREATE TRIGGER {table}_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION records_stay();
`

// create makes what is missing. Tables that are there are left alone, so that a user without the right to make any can write to those of an administrator.
func create(ctx context.Context, db *database.DB) error {
	if db.Engine() == database.PostgreSQL {
		var fsync, fullPages string
		if err := db.QueryRowContext(ctx, `SELECT current_setting('fsync'), current_setting('full_page_writes')`).Scan(&fsync, &fullPages); err != nil {
			return err
		}
		if fsync != "on" || fullPages != "on" {
			return fmt.Errorf("%s runs with fsync=%s and full_page_writes=%s, so a power cut could undo records; switch both on", db, fsync, fullPages)
		}
	}
	if there, err := created(ctx, db); there || err != nil {
		return err
	}
	text, appendOnly := "TEXT", sqliteAppendOnly
	if db.Engine() == database.PostgreSQL {
		text, appendOnly = `TEXT COLLATE "C"`, postgresAppendOnly
	}
	statements := []string{strings.NewReplacer("{text}", text, "{zero}", zeroHash).Replace(schema)}
	for _, t := range []table{issuedTable, refusedTable} {
		statements = append(statements, strings.ReplaceAll(appendOnly, "{table}", t.name))
	}
	return db.Create(ctx, statements...)
}

// created tells whether the tables are there: they are made in one transaction.
func created(ctx context.Context, db *database.DB) (bool, error) {
	query := `SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'heads'`
	if db.Engine() == database.PostgreSQL {
		query = `SELECT COUNT(*) FROM pg_class WHERE oid = to_regclass('heads')`
	}
	var n int
	err := db.QueryRowContext(ctx, query).Scan(&n)
	return n > 0, err
}

var zeroHash = strings.Repeat("0", 64)

// lockHead returns the head of a table, which nobody else moves until tx ends: what orders the writers of all replicas.
func lockHead(ctx context.Context, tx *sql.Tx, engine database.Engine, t table) (h Head, err error) {
	query := `SELECT seq, hash FROM heads WHERE name = $1`
	if engine == database.PostgreSQL {
		// A server that does not wait for the disk by default does for this commit.
		query = `SELECT seq, hash FROM heads, set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply'
			THEN 'remote_apply' ELSE 'on' END, true) WHERE name = $1 FOR UPDATE OF heads`
	}
	err = tx.QueryRowContext(ctx, query, t.name).Scan(&h.Seq, &h.Hash)
	return h, err
}

// appendRows chains rows to the head and inserts them.
func appendRows[R row](ctx context.Context, tx *sql.Tx, engine database.Engine, t table, head Head, rows []R) error {
	if len(rows) == 0 {
		return nil
	}
	values := make([][]any, len(rows))
	for i, r := range rows {
		var err error
		if head, err = head.after(r); err != nil {
			return err
		}
		values[i] = plain(r.fields())
	}
	perStatement := 1 // SQLite's driver looks each $n up in a list of all, and a statement of several rows keeps a journal of its own
	if engine == database.PostgreSQL {
		perStatement = 64 // a statement is a round trip
	}
	if err := insert(ctx, tx, perStatement, `INSERT INTO `+t.name+` (`+t.columns+`) VALUES `, values); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `UPDATE heads SET seq = $1, hash = $2 WHERE name = $3`, head.Seq, head.Hash, t.name)
	return err
}

func plain(fields []any) []any {
	for i, f := range fields {
		switch p := f.(type) {
		case *string:
			fields[i] = *p
		case *int64:
			fields[i] = *p
		}
	}
	return fields
}

// insert runs statements of up to perStatement rows each.
func insert(ctx context.Context, tx *sql.Tx, perStatement int, before string, values [][]any) (err error) {
	var full *sql.Stmt
	for chunk := range slices.Chunk(values, perStatement) {
		if len(chunk) < perStatement || len(values) == len(chunk) {
			_, err = tx.ExecContext(ctx, before+placeholders(len(chunk), len(chunk[0])), flat(chunk)...)
		} else {
			if full == nil {
				if full, err = tx.PrepareContext(ctx, before+placeholders(len(chunk), len(chunk[0]))); err != nil {
					return err
				}
				defer full.Close()
			}
			_, err = full.ExecContext(ctx, flat(chunk)...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func flat(values [][]any) []any {
	args := make([]any, 0, len(values)*len(values[0]))
	for _, v := range values {
		args = append(args, v...)
	}
	return args
}

// placeholders returns "($1,$2),($3,$4)" for rows of columns.
func placeholders(rows, columns int) string {
	var b strings.Builder
	for i := range rows {
		for j := range columns {
			switch {
			case j > 0:
				b.WriteByte(',')
			case i > 0:
				b.WriteString("),(")
			default:
				b.WriteByte('(')
			}
			fmt.Fprintf(&b, "$%d", i*columns+j+1)
		}
	}
	return b.String() + ")"
}

// scan reads the rows of a query of all columns.
func scan[T any, R interface {
	*T
	row
}](found *sql.Rows, err error) ([]R, error) {
	if err != nil {
		return nil, err
	}
	var all []R
	for found.Next() {
		r := R(new(T))
		if err := found.Scan(r.fields()...); err != nil {
			return nil, errors.Join(err, found.Close())
		}
		all = append(all, r)
	}
	return all, errors.Join(found.Err(), found.Close())
}
