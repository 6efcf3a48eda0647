package log

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"

	"github.com/attestry/attestry/internal/database"
)

// Tables of a PostgresFence. fence has the newest record of each key, fence_records a ring of
// the last 1,000 of them.
const (
	createFence = `CREATE TABLE IF NOT EXISTS fence (
	key_id   BYTEA  PRIMARY KEY,
	seq      BIGINT NOT NULL,
	size     BIGINT NOT NULL,
	root     BYTEA  NOT NULL,
	promised BIGINT NOT NULL
)`
	createFenceRecords = `CREATE TABLE IF NOT EXISTS fence_records (
	key_id   BYTEA  NOT NULL,
	slot     BIGINT NOT NULL,
	seq      BIGINT NOT NULL,
	size     BIGINT NOT NULL,
	root     BYTEA  NOT NULL,
	promised BIGINT NOT NULL,
	PRIMARY KEY (key_id, slot)
)`

	firstRecord = `WITH moved AS (
	INSERT INTO fence (key_id, seq, size, root, promised) VALUES ($1, 1, $2, $3, $4)
	ON CONFLICT (key_id) DO NOTHING RETURNING key_id, seq, size, root, promised
)`
	nextRecord = `WITH moved AS (
	UPDATE fence SET seq = seq + 1, size = $2, root = $3, promised = $4
	WHERE key_id = $1 AND size = $8 AND root = $9 AND promised = $10 RETURNING key_id, seq, size, root, promised
)`
	// It answers with one row if the record moved. The lock, given up once the commit can be
	// seen, lets a reader wait for a commit whose writer was cut off.
	keepRecord = `, kept AS (
	INSERT INTO fence_records (key_id, slot, seq, size, root, promised)
	SELECT key_id, seq % 1000, seq, size, root, promised FROM moved
	ON CONFLICT (key_id, slot) DO UPDATE SET seq = excluded.seq, size = excluded.size, root = excluded.root, promised = excluded.promised
)
SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
	pg_advisory_xact_lock($5, $6), pg_notify('` + pgFenceChannel + `', $7)
FROM moved`

	lastRecord     = `SELECT size, root, promised FROM fence WHERE key_id = $1`
	recordOfSize   = `SELECT size, root, promised FROM fence_records WHERE key_id = $1 AND size = $2 ORDER BY seq DESC LIMIT 1`
	waitForCommits = `SELECT pg_advisory_xact_lock_shared($1, $2)`
	allFenceKeys   = `SELECT key_id FROM fence LIMIT $1`

	pgFenceChannel = "attestry_log" // of notifications; the payload is a key ID in hex
	pgFenceLock    = 0x41544631     // class of advisory locks, "ATF1"
	maxFenceKeys   = 10_000         // whose moves wait for a watcher
)

// PostgresFence keeps the records in PostgreSQL, where several replicas share them. Unlike a
// FileFence it holds no lock: whoever comes first moves the record, the others get ErrStale.
//
// It is as durable as its server. With a standby, list it in synchronous_standby_names: a
// record that was only on the primary is lost with it, and a fence that went back cannot do its work.
type PostgresFence struct {
	db      *database.DB
	session *sql.Conn // nil takes any
}

// OpenPostgresFence returns the fence in db, whose tables are made when they are missing. A server
// that does not sync its commits (fsync=off) is refused.
func OpenPostgresFence(ctx context.Context, db *database.DB) (*PostgresFence, error) {
	if db.Engine() != database.PostgreSQL {
		return nil, fmt.Errorf("opening fence: %s is not PostgreSQL", db)
	}
	var fsync, fullPages string
	if err := db.QueryRowContext(ctx, `SELECT current_setting('fsync'), current_setting('full_page_writes')`).Scan(&fsync, &fullPages); err != nil {
		return nil, fmt.Errorf("opening fence: %w", err)
	}
	if fsync != "on" || fullPages != "on" {
		return nil, fmt.Errorf("opening fence: %s runs with fsync=%s and full_page_writes=%s, so a power cut could undo what was signed; switch both on", db, fsync, fullPages)
	}
	if err := db.Create(ctx, createFence, createFenceRecords); err != nil {
		return nil, fmt.Errorf("opening fence: %w", err)
	}
	return &PostgresFence{db: db}, nil
}

// On returns the same fence over one session, so that it moves only as long as the session
// lives and holds what it holds, such as the lock of the replica that leads. Nobody else may use
// conn during a call.
func (f *PostgresFence) On(conn *sql.Conn) *PostgresFence {
	return &PostgresFence{db: f.db, session: conn}
}

// Last implements Fence. It waits for commits that are under way, also those whose writer is gone.
func (f *PostgresFence) Last(ctx context.Context, key KeyID) (Record, error) {
	return f.read(ctx, key, lastRecord, key[:])
}

// Recorded implements Fence.
func (f *PostgresFence) Recorded(ctx context.Context, key KeyID, size uint64) (Record, error) {
	return f.read(ctx, key, recordOfSize, key[:], size)
}

func (f *PostgresFence) read(ctx context.Context, key KeyID, query string, args ...any) (Record, error) {
	var r Record
	err := f.on(ctx, func(conn *sql.Conn) error {
		tx, err := conn.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted}) // each statement sees what is committed by then
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, waitForCommits, pgFenceLock, lockOf(key)); err != nil {
			return err
		}
		var root []byte
		if err := tx.QueryRowContext(ctx, query, args...).Scan(&r.Size, &root, &r.Promised); err != nil {
			return err
		}
		if len(root) != len(r.Root) {
			return fmt.Errorf("a root hash of %d bytes", len(root))
		}
		r.Root = [32]byte(root)
		return nil
	})
	if errors.Is(err, sql.ErrNoRows) {
		return Record{}, ErrNoRecord
	}
	if err != nil {
		return Record{}, fmt.Errorf("reading the fence: %w", err)
	}
	return r, nil
}

// Advance implements Fence in one statement, which commits by itself.
func (f *PostgresFence) Advance(ctx context.Context, key KeyID, prev, next Record) error {
	statement, args := firstRecord, []any{key[:], next.Size, next.Root[:], next.Promised, pgFenceLock, lockOf(key), key.String()}
	if prev != (Record{}) {
		statement, args = nextRecord, append(args, prev.Size, prev.Root[:], prev.Promised)
	}
	err := f.on(ctx, func(conn *sql.Conn) error {
		moved, err := commitExec(ctx, conn, statement+keepRecord, args)
		if err == nil && moved == 0 {
			return ErrStale
		}
		return err
	})
	if err != nil && err != ErrStale {
		return fmt.Errorf("advancing the fence: %w", err)
	}
	return err
}

// commitExec runs one statement that commits by itself and returns how many rows it answered with.
// A warning is an error: a server that is told to stop waiting for its standby warns and reports
// success. So is the end of ctx, which tells the server to stop.
func commitExec(ctx context.Context, conn *sql.Conn, statement string, args []any) (int64, error) {
	var warning *pq.Error
	handle := func(handler func(*pq.Error)) error {
		return conn.Raw(func(c any) error {
			pq.SetNoticeHandler(c.(driver.Conn), handler)
			return nil
		})
	}
	if err := handle(func(notice *pq.Error) {
		if notice.Code.Class() == pqerror.ClassWarning || notice.Code == pqerror.AdminShutdown {
			warning = notice
		}
	}); err != nil {
		return 0, err
	}
	defer handle(nil)
	result, err := conn.ExecContext(ctx, statement, args...)
	if err != nil {
		return 0, err
	}
	if warning != nil {
		return 0, fmt.Errorf("the server warned: %w", warning)
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// on runs do on the session, or on a connection that no statement is repeated on.
func (f *PostgresFence) on(ctx context.Context, do func(*sql.Conn) error) error {
	if f.session != nil {
		return do(f.session)
	}
	conn, err := f.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(conn)
}

// lockOf returns the second half of the key's advisory lock. Keys that share it wait for each other.
func lockOf(key KeyID) int32 { return int32(binary.BigEndian.Uint32(key[:4])) }

// Watch returns the IDs of keys whose record moved, by whichever replica, from now on and until
// ctx ends; then it is closed. Several moves may come as one, and none may come as one after a
// lost connection was made again: read the record.
func (f *PostgresFence) Watch(ctx context.Context) (<-chan KeyID, error) {
	payloads, err := f.db.Listen(ctx, pgFenceChannel)
	if err != nil {
		return nil, fmt.Errorf("watching the fence: %w", err)
	}
	out := make(chan KeyID)
	go func() {
		defer close(out)
		var waiting []KeyID // each once
		for {
			var send chan<- KeyID
			var first KeyID
			if len(waiting) > 0 {
				send, first = out, waiting[0]
			}
			select {
			case send <- first:
				waiting = waiting[1:]
			case payload, ok := <-payloads:
				if !ok {
					return
				}
				for _, key := range f.moved(ctx, payload) {
					if len(waiting) < maxFenceKeys && !slices.Contains(waiting, key) {
						waiting = append(waiting, key)
					}
				}
			}
		}
	}()
	return out, nil
}

// moved returns the key that a notification names, or all keys after notifications were missed.
func (f *PostgresFence) moved(ctx context.Context, payload string) []KeyID {
	if payload != "" {
		id, err := hex.DecodeString(payload)
		if err != nil || len(id) != len(KeyID{}) {
			return nil // somebody else's use of the channel
		}
		return []KeyID{KeyID(id)}
	}
	for {
		keys, err := f.keys(ctx)
		if err == nil || ctx.Err() != nil {
			return keys
		}
		pause := time.NewTimer(100 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

func (f *PostgresFence) keys(ctx context.Context) ([]KeyID, error) {
	rows, err := f.db.QueryContext(ctx, allFenceKeys, maxFenceKeys)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var keys []KeyID
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		if len(id) == len(KeyID{}) {
			keys = append(keys, KeyID(id))
		}
	}
	return keys, rows.Err()
}
