package database

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/attestry/attestry/internal/fault"
)

// unsureError marks a write of which nobody knows whether it took effect.
type unsureError struct{ err error }

func (e *unsureError) Error() string { return "the outcome is unknown: " + e.err.Error() }
func (e *unsureError) Unwrap() error { return e.err }

// Unsure reports whether err, from Transact, Commit or ExecContext, leaves open whether the write
// took effect: the connection was lost, or the context ended, while the server had it. Read before
// you write again.
func Unsure(err error) bool {
	var e *unsureError
	return errors.As(err, &e)
}

// Retryable reports whether nothing took effect and the same transaction, begun anew, can go
// through: it met another one (serialization failure, deadlock, a busy file), or the connection
// was lost or refused before the commit.
func Retryable(err error) bool {
	if err == nil || Unsure(err) {
		return false
	}
	if code, ok := sqliteCode(err); ok {
		return code == sqlite3.SQLITE_BUSY || code == sqlite3.SQLITE_LOCKED
	}
	var e *pq.Error
	if !errors.As(err, &e) {
		return lost(err)
	}
	switch e.Code {
	case pqerror.TRSerializationFailure, pqerror.TRDeadlockDetected, pqerror.LockNotAvailable,
		pqerror.AdminShutdown, pqerror.CrashShutdown, pqerror.CannotConnectNow, pqerror.TooManyConnections,
		pqerror.ReadOnlySQLTransaction: // the server has become a standby
		return true
	default:
		return e.Code.Class() == pqerror.ClassConnectionException
	}
}

// Unique reports whether err says that a row with this key exists.
func Unique(err error) bool {
	var e *pq.Error
	if errors.As(err, &e) {
		return e.Code == pqerror.UniqueViolation
	}
	var s *sqlite.Error
	return errors.As(err, &s) &&
		(s.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || s.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY || s.Code() == sqlite3.SQLITE_CONSTRAINT_ROWID)
}

// Damaged reports whether err says that an SQLite file cannot be read any more.
func Damaged(err error) bool {
	code, ok := sqliteCode(err)
	return ok && (code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB)
}

// sqliteCode returns the primary result code of err when it is SQLite's.
func sqliteCode(err error) (int, bool) {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.Code() & 0xff, true
}

// lost reports whether err is of a connection that broke or never came to be.
func lost(err error) bool {
	var op *net.OpError
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op)
}

// definite reports whether err, from a commit or a statement that commits by itself, says that
// nothing took effect: the engine answered and rolled back, or was never asked. A PostgreSQL
// server that shuts down may say so after it has committed (while it waits for its standby).
func definite(err error) bool {
	if code, ok := sqliteCode(err); ok {
		switch code {
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY:
			return true
		}
		return false
	}
	var e *pq.Error
	if errors.As(err, &e) {
		if e.Severity == pqerror.SeverityFatal || e.Severity == pqerror.SeverityPanic {
			return false
		}
		switch e.Code.Class() { // server texts may be translated, codes are not
		case pqerror.ClassConnectionException, pqerror.ClassSystemError, pqerror.ClassInternalError:
			return false
		}
		return e.Code != pqerror.AdminShutdown && e.Code != pqerror.CrashShutdown
	}
	return errors.Is(err, pq.ErrInFailedTransaction) || errors.Is(err, sql.ErrTxDone)
}

// Away returns err, and as fault.Unavailable when it says that the database does not answer now and may soon.
func Away(err error) error {
	if !Retryable(err) && !Unsure(err) {
		return err
	}
	return fault.New(fault.Unavailable, "store_unavailable", err, "the database does not answer now; try again")
}
