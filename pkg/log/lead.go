package log

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/attestry/attestry/internal/database"
)

// leadership is the right to append to a log, held as an advisory lock of one PostgreSQL session for
// each key. It ends with the session, so a process that dies or loses its database gives it up. In
// SQLite one process has the file, and leads.
//
// Rows of leaves are written in that session alone. A process that was held up while another took
// over, for whatever time, cannot write them: its session has ended, or the other does not lead yet.
type leadership struct {
	db      *database.DB
	lock    int64
	yields  bool          // a process that is silent for longer than silence gives the lock up
	silence time.Duration // see the constant

	mu   sync.Mutex // guards conn, and keeps a statement out of another's transaction
	conn *sql.Conn  // that holds the lock; nil while somebody else may
}

// leadSilence is how long a leader may send nothing; it looks at its lock twice a second.
const leadSilence = 20 * time.Second

// newLeadership returns the right to append under key, not held. yields says that a leader may be taken for dead while it is
// only paused: an append that it was in the middle of may then come after those of its successor, which is
// for engines that drop twins.
func newLeadership(db *database.DB, key KeyID, yields bool) *leadership {
	return &leadership{db: db, lock: int64(binary.BigEndian.Uint64(key[:8])), yields: yields, silence: leadSilence}
}

// shared tells whether another process may lead.
func (l *leadership) shared() bool { return l.db.Engine() == database.PostgreSQL }

// try takes the lock if nobody has it.
func (l *leadership) try(ctx context.Context) (bool, error) {
	if !l.shared() {
		return true, nil
	}
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return false, fmt.Errorf("asking for the lead: %w", err)
	}
	var got bool
	if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, l.lock).Scan(&got); err != nil {
		end(conn) // it may have the lock
		return false, fmt.Errorf("asking for the lead: %w", err)
	}
	if !got {
		return false, conn.Close()
	}
	if err := l.tie(ctx, conn); err != nil {
		end(conn)
		return false, fmt.Errorf("taking the lead: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	return true, nil
}

// tie makes the server notice within half a minute that this machine is gone without a word, which TCP's own default
// takes two hours for, and that this process is, if it yields. What is committed here is durable
// where the fence is: the fence may stand on another server, and is moved next.
func (l *leadership) tie(ctx context.Context, conn *sql.Conn) error {
	idle := "0"
	if l.yields {
		idle = strconv.FormatInt(max(1, l.silence.Milliseconds()), 10)
	}
	_, err := conn.ExecContext(ctx, `SELECT set_config(s.name, w.value, false) FROM (VALUES
		('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '3'),
		('idle_session_timeout', $1), ('idle_in_transaction_session_timeout', $1),
		('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END)
	) AS w (name, value) JOIN pg_settings s ON s.name = w.name`, idle) // before PostgreSQL 14 there is no idle_session_timeout
	return err
}

// check returns errFollow when the session that holds the lock is gone.
func (l *leadership) check(ctx context.Context) error {
	if !l.shared() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.checkLocked(ctx)
}

func (l *leadership) checkLocked(ctx context.Context) error {
	if l.conn == nil {
		return errFollow
	}
	if _, err := l.conn.ExecContext(ctx, `SELECT 1`); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: its database session ended: %w", errFollow, err)
	}
	return nil
}

// transact commits what do did only as long as this process leads: errFollow otherwise.
func (l *leadership) transact(ctx context.Context, do func(tx *sql.Tx) error) error {
	if !l.shared() {
		return l.db.Transact(ctx, do)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return errFollow
	}
	err := database.TransactOn(ctx, l.conn, do)
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, l.checkLocked(ctx))
	}
	return err
}

// release ends the session and the lock with it.
func (l *leadership) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return
	}
	end(l.conn)
	l.conn = nil
}

// end ends a session: given back to the pool, it would keep its locks.
func end(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = conn.Close()
}
