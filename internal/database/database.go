// Package database opens the two engines that keep rows: SQLite, embedded in the process, and
// PostgreSQL, which several replicas share. One text of SQL serves both: parameters are $1, $2 …,
// bytes are BYTEA (a name without meaning to SQLite), counts are BIGINT. Where the engines differ
// in what an error means, Retryable, Unsure, Unique and Damaged answer for both.
package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the embedded engine
)

// Engine is what runs the SQL.
type Engine string

const (
	SQLite     Engine = "sqlite"
	PostgreSQL Engine = "postgres"
)

// Options are what the URI does not say. The zero value is useful for SQLite.
type Options struct {
	// Schema is the PostgreSQL schema that all tables live in, one for each log. It is made
	// when it is missing. Required with PostgreSQL: a lower-case letter and at most 62
	// lower-case letters, digits and underscores; not "public", not "pg_…". SQLite ignores it.
	Schema string
	// PasswordFile holds the PostgreSQL password, a line feed at its end is dropped. It is
	// read for each new connection, so a rotated secret needs no restart. "" takes the
	// password from the URI or from where lib/pq finds one (PGPASSWORD, ~/.pgpass).
	PasswordFile string
	// Derived says that the rows can be built again from elsewhere: SQLite then lets a power
	// cut undo the newest commits (never a part of one). PostgreSQL ignores it.
	Derived bool
	// ReadOnly makes every write fail. A schema or a file that is missing is not made.
	ReadOnly bool
	// MaxConns bounds open connections. 0 means 4 for SQLite, 16 for PostgreSQL.
	MaxConns int
	// ConnectTimeout bounds one connection attempt to one PostgreSQL host, in whole seconds.
	// 0 means 10 s.
	ConnectTimeout time.Duration
	// StatementTimeout is what the PostgreSQL server may spend on one statement, locks
	// included. A server that says nothing for 10 s longer counts as lost. 0 means 30 s.
	StatementTimeout time.Duration
}

// DB is a pool of connections to one database.
//
// Beware of what database/sql does on *sql.DB: a statement whose connection breaks is sent again,
// also when it had taken effect. ExecContext and Transact here never send anything twice. A
// statement that writes and returns rows belongs into Transact.
type DB struct {
	*sql.DB
	engine Engine
	name   string
	schema string
	server *server // nil for SQLite
}

// Open connects to `sqlite:PATH` (all after the colon is the path, unescaped) or
// `postgres://USER@HOST[:PORT][,HOST2…]/DATABASE[?PARAMETER=VALUE…]` with lib/pq's parameters.
// TLS is verified (sslmode=verify-full) unless sslmode says otherwise; a Unix socket goes into
// ?host=. New connections go to a server that takes writes, unless target_session_attrs says
// otherwise. Errors never hold the password.
func Open(ctx context.Context, uri string, o Options) (*DB, error) {
	scheme, rest, _ := strings.Cut(uri, ":")
	switch scheme {
	case "sqlite":
		return openSQLite(ctx, rest, o)
	case "postgres", "postgresql":
		return openPostgres(ctx, uri, o)
	default:
		return nil, errors.New(`a database URI is "sqlite:PATH" or "postgres://USER@HOST/DATABASE"`)
	}
}

func openSQLite(ctx context.Context, path string, o Options) (*DB, error) {
	if path == "" {
		return nil, errors.New(`the database URI "sqlite:" names no file`)
	}
	// FULL: a commit that returned survives a power cut. NORMAL: a power cut may undo the last
	// ones; a write-ahead log of 32 MiB then gathers the many pages that random keys touch.
	pragmas := "&_pragma=synchronous(FULL)&_pragma=cache_size(-16384)"
	if o.Derived {
		pragmas = "&_pragma=synchronous(NORMAL)&_pragma=cache_size(-8192)" +
			"&_pragma=wal_autocheckpoint(8192)&_pragma=journal_size_limit(67108864)"
	}
	parameters := "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)" + pragmas + "&_txlock=immediate"
	if o.ReadOnly {
		parameters = "?mode=ro&_pragma=query_only(1)&_pragma=busy_timeout(5000)"
	}
	pool, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+parameters)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	pool.SetMaxOpenConns(orElse(o.MaxConns, 4))
	pool.SetMaxIdleConns(orElse(o.MaxConns, 4))
	if err := pool.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), pool.Close())
	}
	return &DB{DB: pool, engine: SQLite, name: "sqlite:" + path}, nil
}

// Engine returns what runs the SQL.
func (db *DB) Engine() Engine { return db.engine }

// Path returns the file of SQLite, "" for PostgreSQL.
func (db *DB) Path() string {
	if db.engine != SQLite {
		return ""
	}
	return strings.TrimPrefix(db.name, "sqlite:")
}

// String returns the URI without a password and, for PostgreSQL, the schema.
func (db *DB) String() string { return db.name }

// ExecContext runs one statement in a transaction of its own, at most once. When the connection
// is lost meanwhile the error is Unsure.
func (db *DB) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	result, err := conn.ExecContext(ctx, query, args...)
	if err != nil && !definite(err) {
		return nil, &unsureError{err}
	}
	return result, err
}

// Exec is ExecContext without a context.
func (db *DB) Exec(query string, args ...any) (sql.Result, error) {
	return db.ExecContext(context.Background(), query, args...)
}

// Transact commits what do did, or nothing. An error from do or from beginning means that nothing
// took effect; one from committing may be Unsure. Nothing is tried again.
func (db *DB) Transact(ctx context.Context, do func(tx *sql.Tx) error) error {
	return transact(ctx, db, do)
}

// TransactOn is Transact in the session of conn: nothing takes effect once that has ended. Nobody else may use
// conn meanwhile.
func TransactOn(ctx context.Context, conn *sql.Conn, do func(tx *sql.Tx) error) error {
	return transact(ctx, conn, do)
}

func transact(ctx context.Context, by interface {
	BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error)
}, do func(tx *sql.Tx) error) error {
	tx, err := by.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("beginning: %w", err)
	}
	defer tx.Rollback() // after Commit it does nothing
	if err := do(tx); err != nil {
		return err
	}
	return Commit(tx)
}

// Commit commits tx. Its error is Unsure unless the engine said that it rolled back.
func Commit(tx *sql.Tx) error {
	err := tx.Commit()
	switch {
	case err == nil:
		return nil
	case definite(err):
		return fmt.Errorf("committing: %w", err)
	default:
		return fmt.Errorf("committing: %w", &unsureError{err})
	}
}

// Create runs statements that make tables, in one transaction and one process at a time: on
// PostgreSQL even CREATE TABLE IF NOT EXISTS fails when two do it at once.
func (db *DB) Create(ctx context.Context, statements ...string) error {
	err := db.Transact(ctx, func(tx *sql.Tx) error {
		if db.engine == PostgreSQL {
			if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtextextended($1, 0))`, "attestry create "+db.schema); err != nil {
				return err
			}
		}
		for _, statement := range statements {
			if _, err := tx.ExecContext(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("creating tables in %s: %w", db, err)
	}
	return nil
}

func orElse[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
