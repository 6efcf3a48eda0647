package index

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/pkg/log"
)

// Source is the log that is followed; *log.Log is one.
type Source interface {
	// Leaves returns at most max leaves from index from on, none at the end of the signed tree.
	Leaves(ctx context.Context, from uint64, max int) ([]log.Leaf, error)
	// Checkpoint returns the newest signed tree, nil when there is none yet.
	Checkpoint() *log.Checkpoint
	// Wait returns once the signed size exceeds size.
	Wait(ctx context.Context, size uint64) error
}

const (
	batchEntries = 2048     // leaves that one step reads
	batchBytes   = 16 << 20 // and their bytes, give or take a bundle
	writeTimeout = 10 * time.Second
	// maxKeys is how many keys of one entry are indexed; an entry of 64 KiB has far fewer.
	maxKeys = 4096
)

// Follow indexes the source's leaves until ctx ends or the index is closed; it returns nil then.
// A failing source or database is logged and tried again with growing pauses. An index that
// does not fit the source (it is ahead of it, or its last leaf is another) is built again.
func (x *Index) Follow(ctx context.Context, source Source) error {
	if !x.following.TryLock() {
		return errors.New("index: already following")
	}
	defer x.following.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.mu.Lock()
	x.wake, x.fitted = cancel, false
	closed := x.closed
	x.mu.Unlock()
	if closed {
		return nil
	}
	defer x.flushAtEnd(ctx)
	for failures := 0; ctx.Err() == nil; {
		err := x.followOnce(ctx, source)
		if err == nil || ctx.Err() != nil {
			failures = 0
			continue
		}
		if isDamaged(err) {
			x.markDamaged()
		}
		failures++
		x.logger.Error("the search index cannot follow its log and tries again", "path", x.path, "cursor", x.Cursor(), "err", err)
		pause(ctx, x.retry(failures))
	}
	return nil
}

// followOnce makes sure that the file is sound and of this log, and indexes one batch.
func (x *Index) followOnce(ctx context.Context, source Source) error {
	x.mu.Lock()
	damaged, fitted := x.damaged, x.fitted
	x.mu.Unlock()
	if damaged {
		if err := x.replace(ctx); err != nil {
			return err
		}
	}
	if damaged || !fitted {
		if err := x.fit(ctx, source); err != nil {
			return err
		}
	}
	return x.step(ctx, source)
}

// backoff grows from 50 ms to 5 s.
func backoff(attempt int) time.Duration {
	return min(50*time.Millisecond<<min(attempt-1, 10), 5*time.Second)
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// step makes the next leaves searchable, and stores pending ones when they are many or old. When
// there is nothing to do it waits for the log to grow.
func (x *Index) step(ctx context.Context, source Source) error {
	x.mu.Lock()
	from, full, waiting := x.cursor, x.pending.full(), x.pending.leaves > 0
	due := x.pending.since.Add(x.age)
	x.mu.Unlock()
	if full || waiting && !time.Now().Before(due) {
		return x.flush(ctx)
	}
	leaves, err := read(ctx, source, from)
	if err != nil {
		return err
	}
	if len(leaves) > 0 {
		x.advance(leaves, x.rows(leaves))
		return nil
	}
	wait, cancel := context.WithCancel(ctx)
	if waiting {
		wait, cancel = context.WithDeadline(ctx, due)
	}
	defer cancel()
	x.mu.Lock()
	x.poke = cancel
	damaged := x.damaged
	x.mu.Unlock()
	if damaged {
		return nil
	}
	if err := source.Wait(wait, from); err != nil && wait.Err() == nil {
		return err
	}
	return nil
}

// read returns the leaves from index from on, at most a batch of them, none at the end of the log.
func read(ctx context.Context, source Source, from uint64) ([]log.Leaf, error) {
	var leaves []log.Leaf
	bytes := 0
	for len(leaves) < batchEntries && bytes < batchBytes { // a log gives what one bundle holds
		more, err := source.Leaves(ctx, from+uint64(len(leaves)), batchEntries-len(leaves))
		if err != nil {
			return nil, fmt.Errorf("reading leaves from %d: %w", from, err)
		}
		if len(more) == 0 {
			break
		}
		for _, leaf := range more {
			if want := from + uint64(len(leaves)); leaf.Index != want {
				return nil, fmt.Errorf("the log gave leaf %d, asked for %d", leaf.Index, want)
			}
			leaves = append(leaves, leaf)
			bytes += len(leaf.Data)
		}
	}
	return leaves, nil
}

// flush stores the pending rows and the cursor behind them in one transaction.
func (x *Index) flush(ctx context.Context) error {
	x.mu.Lock()
	next, count, lastLeaf, rows := x.cursor, x.pending.leaves, x.lastLeaf, slices.Clone(x.pending.rows)
	x.mu.Unlock()
	if count == 0 {
		return nil
	}
	// A follower that is told to stop finishes its write.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	err := x.write(ctx, next-uint64(count), next, lastLeaf, sortRows(rows))
	x.mu.Lock()
	defer x.mu.Unlock()
	if err != nil {
		// Whether a failed commit took effect only the file knows: fit reads it.
		x.fitted = false
		return err
	}
	x.pending.clear()
	return nil
}

// flushAtEnd saves the next start from reading the pending leaves again.
func (x *Index) flushAtEnd(ctx context.Context) {
	x.mu.Lock()
	fitted := x.fitted
	x.mu.Unlock()
	if fitted {
		if err := x.flush(ctx); err != nil {
			x.logger.Warn("the search index could not store its newest keys and will read them from the log again", "path", x.path, "err", err)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fitted = false // nobody follows
}

// keyHash stands for a key in the table.
type keyHash [16]byte

func hashKey(key string) keyHash {
	sum := sha256.Sum256([]byte(strings.ToLower(key)))
	return keyHash(sum[:16])
}

// rows returns the rows of the leaves in the order of the primary key.
func (x *Index) rows(leaves []log.Leaf) []indexRow {
	rows := make([]indexRow, 0, 8*len(leaves))
	for _, leaf := range leaves {
		keys, err := x.keysOf(leaf.Data)
		if err != nil {
			x.metrics.skip()
			x.logger.Warn("an entry has no search keys of its own", "index", leaf.Index, "err", err)
		}
		for _, list := range [][]string{keys, leaf.Keys} {
			for _, key := range list[:min(len(list), maxKeys)] {
				rows = append(rows, indexRow{hashKey(key), leaf.Index})
			}
		}
	}
	return sortRows(rows)
}

// keysOf never panics: a body that breaks its parser would stop the follower at every start.
func (x *Index) keysOf(body []byte) (keys []string, err error) {
	defer func() {
		if broken := recover(); broken != nil {
			keys, err = nil, fmt.Errorf("deriving keys: panic: %v", broken)
		}
	}()
	return x.keys(body)
}

// write stores rows and moves the cursor from from to next, all or nothing.
func (x *Index) write(ctx context.Context, from, next uint64, lastLeaf [32]byte, rows []indexRow) error {
	return x.transact(ctx, func(tx *sql.Tx) error {
		if err := insert(ctx, tx, rows); err != nil {
			return fmt.Errorf("writing keys: %w", err)
		}
		result, err := tx.ExecContext(ctx, updateState, int64(next), lastLeaf[:], int64(from))
		if err != nil {
			return fmt.Errorf("moving the cursor to %d: %w", next, err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.Join(fmt.Errorf("the stored cursor is not %d: another process follows into this index", from), err)
		}
		return nil
	})
}

func insert(ctx context.Context, tx *sql.Tx, rows []indexRow) error {
	if len(rows) >= rowsPerInsert {
		full, err := tx.PrepareContext(ctx, insertKeys(rowsPerInsert))
		if err != nil {
			return err
		}
		defer full.Close()
		for ; len(rows) >= rowsPerInsert; rows = rows[rowsPerInsert:] {
			if _, err := full.ExecContext(ctx, parameters(rows[:rowsPerInsert])...); err != nil {
				return err
			}
		}
	}
	if len(rows) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, insertKeys(len(rows)), parameters(rows)...)
	return err
}

func parameters(rows []indexRow) []any {
	values := make([]any, 0, 3*len(rows))
	for i := range rows {
		values = append(values, int64(rows[i].segment()), rows[i].key[:], int64(rows[i].index))
	}
	return values
}

// transact commits what do did, or nothing.
func (x *Index) transact(ctx context.Context, do func(tx *sql.Tx) error) error {
	x.dbMu.RLock()
	defer x.dbMu.RUnlock()
	tx, err := x.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("beginning: %w", err)
	}
	if err := do(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// fit empties an index that is not of this source: the log was restored to an older state, or
// the file is another log's.
func (x *Index) fit(ctx context.Context, source Source) error {
	x.dbMu.RLock()
	s, err := readState(ctx, x.db)
	x.dbMu.RUnlock()
	if err != nil {
		return err
	}
	if s.next == 0 {
		x.restart(0, true)
		return nil
	}
	checkpoint := source.Checkpoint()
	if checkpoint == nil {
		return errors.New("the log has not signed a tree yet")
	}
	why := ""
	if s.next > checkpoint.Size {
		why = "the index is ahead of the log"
	} else {
		last, err := source.Leaves(ctx, s.next-1, 1)
		if err != nil || len(last) == 0 {
			return errors.Join(fmt.Errorf("reading leaf %d to compare it with the index", s.next-1), err)
		}
		if !bytes.Equal(last[0].LeafHash[:], s.lastLeaf) {
			why = "the index is of another log"
		}
	}
	if why == "" {
		x.restart(s.next, true)
		return nil
	}
	x.logger.Warn("the search index does not fit its log and is built again", "why", why, "cursor", s.next, "size", checkpoint.Size)
	x.metrics.rebuild()
	x.restart(0, false)
	err = x.transact(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, deleteKeys); err != nil {
			return fmt.Errorf("emptying the index: %w", err)
		}
		if _, err := tx.ExecContext(ctx, resetState, version, []byte{}); err != nil {
			return fmt.Errorf("resetting the cursor: %w", err)
		}
		return nil
	})
	if err == nil {
		x.restart(0, true)
	}
	return err
}

// markDamaged makes the follower replace the file, now if it waits for the log to grow.
func (x *Index) markDamaged() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.damaged, x.fitted = true, false
	if x.poke != nil {
		x.poke()
	}
}

// replace puts an empty file in the place of a damaged one.
func (x *Index) replace(ctx context.Context) error {
	x.logger.Warn("the search index is damaged and is built again from the log", "path", x.path)
	x.metrics.rebuild()
	x.dbMu.Lock()
	defer x.dbMu.Unlock()
	if err := errors.Join(x.db.Close(), putAside(x.path)); err != nil {
		return err
	}
	db, cursor, err := openFile(ctx, x.path)
	if err != nil {
		return fmt.Errorf("opening search index %s: %w", x.path, err)
	}
	x.db = db
	x.restart(cursor, false)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.damaged = false
	return nil
}
