package log

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/transparency-dev/tessera/ctonly"
)

// The queue of a log is a table: submissions that are durable and not yet leaves, in the order of arrival. Whoever inserts an
// identity first owns it; the one process that leads turns the queue into leaves. See queued.go.

// queued is one submission of the queue.
type queued struct {
	sub      Submission
	received time.Time
}

// enqueue stores a batch in one commit and returns those identities that were new: neither queued nor a leaf yet.
func (r *rows) enqueue(ctx context.Context, batch []queued) (fresh map[[32]byte]bool, err error) {
	// Two replicas that insert the same identities in different orders would wait for each other.
	batch = slices.Clone(batch)
	slices.SortStableFunc(batch, func(a, b queued) int { return slices.Compare(a.sub.Identity[:], b.sub.Identity[:]) })
	// One that was answered with a 503 before it came here may have come again.
	batch = slices.CompactFunc(batch, func(a, b queued) bool { return a.sub.Identity == b.sub.Identity })
	values := make([][]any, len(batch))
	identities := make([][32]byte, len(batch))
	extras := make([]row, len(batch))
	for i, q := range batch {
		keys, err := encodeKeys(q.sub.Keys)
		if err != nil {
			return nil, err
		}
		data, err := encodeSubmission(q.sub)
		if err != nil {
			return nil, err
		}
		identities[i] = q.sub.Identity
		values[i] = []any{identities[i][:], q.received.Unix(), keys, data}
		extras[i] = row{identity: q.sub.Identity, extra: q.sub.Extra}
	}
	fresh = map[[32]byte]bool{}
	err = r.commit(ctx, "queueing", func(tx *sql.Tx) error {
		if err := r.whileOpen(ctx, tx); err != nil {
			return err
		}
		for rest := values; len(rest) > 0; {
			chunk := rest[:min(len(rest), rowsPerStatement)]
			rest = rest[len(chunk):]
			var args []any
			for _, v := range chunk {
				args = append(args, v...)
			}
			inserted, err := tx.QueryContext(ctx, `INSERT INTO queue (identity, received, keys, data) VALUES `+
				placeholders(len(chunk), 4, 0)+` ON CONFLICT (identity) DO NOTHING RETURNING identity`, args...)
			if err != nil {
				return err
			}
			if err := each(inserted, func() error {
				var identity []byte
				if err := inserted.Scan(&identity); err != nil {
					return err
				}
				fresh[[32]byte(identity)] = true
				return nil
			}); err != nil {
				return err
			}
		}
		// Only now: a leaf that was completed while this insert waited for it is seen by this statement.
		known, err := findAll(ctx, tx, identities)
		if err != nil {
			return err
		}
		var twins []row
		for identity := range known {
			if fresh[identity] {
				twins = append(twins, known[identity])
				delete(fresh, identity)
			}
		}
		if err := dequeue(ctx, tx, twins); err != nil {
			return err
		}
		if err := insertExtras(ctx, tx, extras); err != nil {
			return err
		}
		if !r.shared() || len(fresh) == 0 {
			return nil
		}
		_, err = tx.ExecContext(ctx, `SELECT pg_notify($1, 'queued')`, notifyChannel)
		return err
	})
	return fresh, err
}

// Submissions share this lock and freeze excludes them, so that none comes to a queue that was frozen. SQLite has one writer anyway.
const (
	lockShared    = `SELECT pg_advisory_xact_lock_shared(hashtextextended('attestry queue ' || current_schema(), 0))`
	lockExclusive = `SELECT pg_advisory_xact_lock(hashtextextended('attestry queue ' || current_schema(), 0))`
)

// whileOpen returns errFrozen when the queue was frozen, and keeps it open until tx ends otherwise.
func (r *rows) whileOpen(ctx context.Context, tx *sql.Tx) error {
	if r.shared() {
		if _, err := tx.ExecContext(ctx, lockShared); err != nil {
			return err
		}
	}
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM frozen`).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return errFrozen
	}
	return nil
}

// freeze ends the queue for all processes: what is in it still becomes leaves, nothing is added to it again.
func (r *rows) freeze(ctx context.Context) error {
	return r.commit(ctx, "freezing", func(tx *sql.Tx) error {
		if r.shared() {
			if _, err := tx.ExecContext(ctx, lockExclusive); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO frozen (id) VALUES (1) ON CONFLICT (id) DO NOTHING`)
		return err
	})
}

// abandon ends the queue for all processes and empties it: what waits there becomes no leaf any more.
func (r *rows) abandon(ctx context.Context) error {
	if err := r.freeze(ctx); err != nil {
		return err
	}
	return r.commit(ctx, "abandoning", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM queue`)
		return err
	})
}

// stored returns how many submissions the queue holds, limit at most.
func (r *rows) stored(ctx context.Context, limit int) (n int, err error) {
	if err := r.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM (SELECT seq FROM queue ORDER BY seq LIMIT $1) AS first`, limit).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the queue: %w", err)
	}
	return n, nil
}

// waiting returns up to limit identities of the queue, first come first.
func (r *rows) waiting(ctx context.Context, limit int) ([][32]byte, error) {
	found, err := r.db.QueryContext(ctx, `SELECT identity FROM queue ORDER BY seq LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the queue: %w", err)
	}
	var out [][32]byte
	if err := each(found, func() error {
		var identity []byte
		if err := found.Scan(&identity); err != nil {
			return err
		}
		out = append(out, [32]byte(identity))
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading the queue: %w", err)
	}
	return out, nil
}

// queuedAs returns what the queue holds of these identities.
func (r *rows) queuedAs(ctx context.Context, kind Kind, identities [][32]byte) (map[[32]byte]queued, error) {
	out := map[[32]byte]queued{}
	for len(identities) > 0 {
		chunk := identities[:min(len(identities), rowsPerStatement)]
		identities = identities[len(chunk):]
		found, err := r.db.QueryContext(ctx, `SELECT q.identity, q.received, q.keys, q.data, e.extra FROM queue q
			LEFT JOIN extras e ON e.identity = q.identity WHERE q.identity IN `+placeholders(1, len(chunk), 0), bytesOf(chunk)...)
		if err != nil {
			return nil, fmt.Errorf("reading queued submissions: %w", err)
		}
		if err := each(found, func() error {
			var identity, data []byte
			var received int64
			var keys sql.NullString
			var q queued
			if err := found.Scan(&identity, &received, &keys, &data, &q.sub.Extra); err != nil {
				return err
			}
			if err := decodeSubmission(kind, data, &q.sub); err != nil {
				return err
			}
			var err error
			q.sub.Identity, q.received = [32]byte(identity), time.Unix(received, 0)
			q.sub.Keys, err = decodeKeys(keys)
			out[q.sub.Identity] = q
			return err
		}); err != nil {
			return nil, fmt.Errorf("reading queued submissions: %w", err)
		}
	}
	return out, nil
}

// drop takes rows that are leaves already out of the queue.
func (r *rows) drop(ctx context.Context, batch []row) error {
	return r.commit(ctx, "dropping", func(tx *sql.Tx) error { return dequeue(ctx, tx, batch) })
}

func dequeue(ctx context.Context, tx *sql.Tx, batch []row) error {
	for len(batch) > 0 {
		chunk := batch[:min(len(batch), rowsPerStatement)]
		batch = batch[len(chunk):]
		args := make([]any, len(chunk))
		for i := range chunk {
			args[i] = chunk[i].identity[:]
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM queue WHERE identity IN `+placeholders(1, len(chunk), 0), args...); err != nil {
			return err
		}
	}
	return nil
}

func bytesOf(identities [][32]byte) []any {
	args := make([]any, len(identities))
	for i := range identities {
		args[i] = identities[i][:]
	}
	return args
}

// encodeSubmission returns what the tree needs of s: the entry, or for CT the JSON of its parts.
func encodeSubmission(s Submission) ([]byte, error) {
	if s.CT == nil {
		return s.Data, nil
	}
	raw, err := json.Marshal(s.CT)
	if err != nil {
		return nil, fmt.Errorf("encoding a submission: %w", err)
	}
	return raw, nil
}

func decodeSubmission(kind Kind, raw []byte, s *Submission) error {
	if kind != CT {
		s.Data = raw
		return nil
	}
	s.CT = new(ctonly.Entry)
	if err := json.Unmarshal(raw, s.CT); err != nil {
		return fmt.Errorf("decoding a queued submission: %w", err)
	}
	return nil
}
