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

	"github.com/lib/pq"

	"github.com/attestry/attestry/internal/database"
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
// does not fit the source (it is ahead of it, or its last leaf is another) is built again; one
// that is shared is given a minute to be ahead, since other replicas may have seen more of the log.
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
		if database.Damaged(err) {
			x.markDamaged()
		}
		failures++
		x.logger.Error("the search index cannot follow its log and tries again", "index", x.name(), "cursor", x.Cursor(), "err", err)
		pause(ctx, x.retry(failures))
	}
	return nil
}

func (x *Index) name() string {
	x.dbMu.RLock()
	defer x.dbMu.RUnlock()
	return x.db.String()
}

// followOnce makes sure that the database is sound and of this log, and indexes one batch.
func (x *Index) followOnce(ctx context.Context, source Source) error {
	x.mu.Lock()
	damaged, fitted, unsure := x.damaged, x.fitted, x.unsure
	x.mu.Unlock()
	if damaged {
		if err := x.replace(ctx); err != nil {
			return err
		}
	}
	if !damaged && fitted && unsure {
		if err := x.reread(ctx); err != nil {
			return err
		}
		x.mu.Lock()
		fitted = x.fitted
		x.mu.Unlock()
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
	from, full, waiting, others := x.cursor, x.pending.full(), x.pending.leaves > 0, x.others
	due := x.pending.since.Add(x.age)
	x.mu.Unlock()
	if others.next > 0 {
		if checkpoint := source.Checkpoint(); checkpoint != nil && checkpoint.Size >= others.next {
			return x.join(ctx, source, others)
		}
		// Another replica is ahead of what this one's log has signed. Until that is there to
		// be compared, what is pending is kept.
		waiting = false
		if full {
			return x.wait(ctx, source, others.next-1)
		}
	} else if full || waiting && !time.Now().Before(due) {
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
	if waiting {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, due)
		defer cancel()
	}
	return x.wait(ctx, source, from)
}

// wait returns when the log has grown past size, when ctx ends or when a search met damage.
func (x *Index) wait(ctx context.Context, source Source, size uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.mu.Lock()
	x.poke = cancel
	damaged := x.damaged
	x.mu.Unlock()
	if damaged {
		return nil
	}
	if err := source.Wait(ctx, size); err != nil && ctx.Err() == nil {
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

// flush stores the pending rows and the cursor behind them in one transaction. When another
// follower was first it stores nothing, and the next step sees how far that one is.
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
		// Whether a failed commit took effect only the database knows. What is pending stays
		// searchable until then.
		x.unsure = true
		if errors.Is(err, errMoved) {
			return nil
		}
		return err
	}
	x.pending.clear()
	return nil
}

// errMoved says that the stored cursor is not where this follower's rows begin.
var errMoved = errors.New("another follower has moved the cursor of the search index")

// reread finds out how far the log is stored, by whomever.
func (x *Index) reread(ctx context.Context) error {
	x.dbMu.RLock()
	s, err := readState(ctx, x.db)
	x.dbMu.RUnlock()
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unsure = false
	switch stored := x.cursor - uint64(x.pending.leaves); {
	case s.next < stored: // emptied, or put back to an older state
		x.fitted = false
	case s.next > stored:
		x.others = s
	}
	return nil
}

// join takes over what others have stored, if it is of this log, and keeps pending what is past it.
func (x *Index) join(ctx context.Context, source Source, others state) error {
	same, err := isOf(ctx, source, others)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !same {
		x.fitted = false
		return nil
	}
	x.others = state{}
	if x.cursor <= others.next {
		x.pending.clear()
		x.moveTo(others.next)
		return nil
	}
	x.pending.drop(others.next, int(x.cursor-others.next))
	return nil
}

// isOf reports whether the leaf before a stored cursor, which the source has, is the source's.
func isOf(ctx context.Context, source Source, s state) (bool, error) {
	last, err := source.Leaves(ctx, s.next-1, 1)
	if err != nil || len(last) == 0 {
		return false, errors.Join(fmt.Errorf("reading leaf %d to compare it with the index", s.next-1), err)
	}
	return bytes.Equal(last[0].LeafHash[:], s.lastLeaf), nil
}

// flushAtEnd saves the next start from reading the pending leaves again.
func (x *Index) flushAtEnd(ctx context.Context) {
	x.mu.Lock()
	fitted := x.fitted
	x.mu.Unlock()
	if fitted {
		if err := x.flush(ctx); err != nil {
			x.logger.Warn("the search index could not store its newest keys and will read them from the log again", "index", x.name(), "err", err)
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

// write moves the cursor from from to next and stores the rows between, all or nothing. The cursor
// comes first: a follower that lost the race need not write rows to learn it.
func (x *Index) write(ctx context.Context, from, next uint64, lastLeaf [32]byte, rows []indexRow) (err error) {
	started := time.Now()
	defer func() { x.metrics.wrote(started, err) }()
	return x.transact(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, updateState, int64(next), lastLeaf[:], int64(from))
		if err != nil {
			return fmt.Errorf("moving the cursor to %d: %w", next, err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.Join(errMoved, err)
		}
		if err := x.insert(ctx, tx, rows); err != nil {
			return fmt.Errorf("writing keys: %w", err)
		}
		return nil
	})
}

// insert needs x.dbMu.
func (x *Index) insert(ctx context.Context, tx *sql.Tx, rows []indexRow) error {
	if x.db.Engine() == database.PostgreSQL {
		for chunk := range slices.Chunk(rows, rowsPerArray) {
			segments, keys, indexes := make([]int64, len(chunk)), make([][]byte, len(chunk)), make([]int64, len(chunk))
			for i := range chunk {
				segments[i], keys[i], indexes[i] = int64(chunk[i].segment()), chunk[i].key[:], int64(chunk[i].index)
			}
			if _, err := tx.ExecContext(ctx, insertArrays, pq.Array(segments), pq.Array(keys), pq.Array(indexes)); err != nil {
				return err
			}
		}
		return nil
	}
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

// transact commits what do did, or nothing. do runs under x.dbMu.
func (x *Index) transact(ctx context.Context, do func(tx *sql.Tx) error) error {
	x.dbMu.RLock()
	defer x.dbMu.RUnlock()
	return x.db.Transact(ctx, do)
}

// fit empties an index that is not of this source: the log was restored to an older state, or
// the index is another log's.
func (x *Index) fit(ctx context.Context, source Source) error {
	x.dbMu.RLock()
	s, err := readState(ctx, x.db)
	shared := x.db.Engine() == database.PostgreSQL
	x.dbMu.RUnlock()
	if err != nil {
		return err
	}
	why, size := "", uint64(0)
	if s.next == 0 && s.rows {
		why = "the index has rows and no cursor"
	}
	if s.next > 0 {
		if shared {
			if err := x.await(ctx, source, s); err != nil {
				return err
			}
		}
		checkpoint := source.Checkpoint()
		if checkpoint == nil {
			return errors.New("the log has not signed a tree yet")
		}
		if size = checkpoint.Size; s.next > size {
			why = "the index is ahead of the log"
		} else if same, err := isOf(ctx, source, s); err != nil {
			return err
		} else if !same {
			why = "the index is of another log"
		}
	}
	if why == "" {
		x.restart(s.next, true)
		return nil
	}
	x.logger.Warn("the search index does not fit its log and is built again", "index", x.name(), "why", why, "cursor", s.next, "size", size)
	x.metrics.rebuild()
	x.restart(0, false)
	if err := x.empty(ctx, s); err != nil {
		return err
	}
	x.restart(0, true)
	return nil
}

// await gives the log time to grow to a shared cursor that is ahead of it. Its error says that
// the cursor moves still, so that other replicas follow a longer log than this one sees.
func (x *Index) await(ctx context.Context, source Source, s state) error {
	patience, cancel := context.WithTimeout(ctx, x.grace)
	defer cancel()
	if err := source.Wait(patience, s.next-1); err == nil || patience.Err() == nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	x.dbMu.RLock()
	defer x.dbMu.RUnlock()
	now, err := readState(ctx, x.db)
	if err == nil && now.next != s.next {
		err = fmt.Errorf("other replicas have indexed %d leaves, this one's log has not reached %d", now.next, s.next)
	}
	return err
}

// empty drops all rows, if the cursor is still where it was seen.
func (x *Index) empty(ctx context.Context, seen state) error {
	return x.transact(ctx, func(tx *sql.Tx) error {
		result, err := tx.ExecContext(ctx, updateState, 0, []byte{}, int64(seen.next))
		if err != nil {
			return fmt.Errorf("resetting the cursor: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n != 1 {
			return errors.Join(errMoved, err)
		}
		statement := deleteKeys
		if x.db.Engine() == database.PostgreSQL {
			statement = truncateKeys
		}
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("emptying the index: %w", err)
		}
		return nil
	})
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

// replace puts an empty file in the place of a damaged one. PostgreSQL never gets here: damage
// there is for its administrator.
func (x *Index) replace(ctx context.Context) error {
	x.logger.Warn("the search index is damaged and is built again from the log", "index", x.uri)
	x.metrics.rebuild()
	x.dbMu.Lock()
	defer x.dbMu.Unlock()
	if err := errors.Join(x.db.Close(), putAside(x.db.Path())); err != nil {
		return err
	}
	db, cursor, err := openFile(ctx, x.uri)
	if err != nil {
		return fmt.Errorf("opening search index: %w", err)
	}
	x.db = db
	x.restart(cursor, false)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.damaged = false
	return nil
}
