package log

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/attestry/attestry/internal/database"
)

// leadership is the right to append to a log, held as an advisory lock of one PostgreSQL session for
// each key. It ends with the session, so a process that dies or loses its database gives it up. In
// SQLite one process has the file, and leads.
type leadership struct {
	db   *database.DB
	lock int64
	conn *sql.Conn // that holds the lock; nil while somebody else may
}

func newLeadership(db *database.DB, key KeyID) *leadership {
	return &leadership{db: db, lock: int64(binary.BigEndian.Uint64(key[:8]))}
}

// try takes the lock if nobody has it.
func (l *leadership) try(ctx context.Context) (bool, error) {
	if l.db.Engine() != database.PostgreSQL {
		return true, nil
	}
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return false, fmt.Errorf("asking for the lead: %w", err)
	}
	var got bool
	if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, l.lock).Scan(&got); err != nil || !got {
		if err != nil {
			err = fmt.Errorf("asking for the lead: %w", err)
		}
		return false, errors.Join(err, conn.Close())
	}
	l.conn = conn
	return true, nil
}

// check returns errFollow when the session that holds the lock is gone.
func (l *leadership) check(ctx context.Context) error {
	if l.conn == nil {
		return nil // SQLite
	}
	if _, err := l.conn.ExecContext(ctx, `SELECT 1`); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: its database session ended: %w", errFollow, err)
	}
	return nil
}

// release ends the session and the lock with it.
func (l *leadership) release() {
	if l.conn == nil {
		return
	}
	// driver.ErrBadConn makes the pool drop the session; given back, it would keep the lock.
	_ = l.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = l.conn.Close()
	l.conn = nil
}
