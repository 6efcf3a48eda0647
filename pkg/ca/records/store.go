package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
	ring "github.com/attestry/attestry/internal/journal"
	"github.com/attestry/attestry/pkg/ca"
)

const (
	commitTime = 4 * time.Second        // for one commit
	waitTime   = 5 * time.Second        // of a request for its commit
	maxWaiting = 4096                   // requests; more are answered at once
	maxBatch   = 512                    // requests that share a commit
	gatherTime = 100 * time.Millisecond // before rows that nobody waits for are written
	pauseTime  = time.Second            // between attempts to write them while the database is away
	maxFlush   = 4096                   // rows of the journal in one commit, about
	yields     = 20                     // before a commit
)

// Store writes records; it is a ca.Recorder. One goroutine commits what requests wait for, all of it at once: while a commit is under way
// the next requests gather. With SQLite such a commit is a write to the journal, from which another goroutine puts the rows into the
// database, many at once; it writes the refusals, too. With PostgreSQL there is no journal, and replicas on one database take turns.
type Store struct {
	db      *database.DB
	opts    Options
	metrics *metrics
	journal *journal      // nil with PostgreSQL
	wake    chan struct{} // one token: requests wait
	ended   chan struct{} // closed when run has ended
	later   chan struct{} // one token: there are rows that nobody waits for
	stop    chan struct{} // closed once nothing is added to them
	kept    chan struct{} // closed when keep has ended
	swept   time.Time     // tokens were forgotten last; run's alone
	unsure  bool          // rows of the journal may be in the database already; keep's alone
	told    bool          // that another process has the journal; keep's alone
	waits   bool          // rows go to the database, since the journal failed; run's alone

	mu       sync.Mutex // guards the fields below
	waiting  []*job
	refusals refusals
	failed   error // of the last commit
	closing  bool
}

// job is what one request waits for: exactly one of issued, reserve, release and probe is set.
type job struct {
	issued  *Issued
	use     *ca.TokenUse // with issued: the token that is used up
	reserve *ca.TokenUse
	release *ca.TokenUse
	probe   bool

	err  error         // to be read after done
	done chan struct{} // closed when it was decided
}

var errClosed = errors.New("the records are closed")

// Issued implements ca.Recorder.
func (s *Store) Issued(ctx context.Context, r *ca.Issuance) error {
	return s.wait(ctx, &job{issued: newIssued(r), use: r.Use})
}

// Reserve implements ca.Recorder.
func (s *Store) Reserve(ctx context.Context, u ca.TokenUse) (release func(), err error) {
	release = func() { s.enqueue(&job{release: &u}) } // nobody waits; what is dropped ends with ca.HoldTime
	if err := s.wait(ctx, &job{reserve: &u}); err != nil {
		if reason := fault.ReasonOf(err); reason != reasonInUse && reason != reasonReplayed {
			release() // it may have been reserved
		}
		return nil, err
	}
	return release, nil
}

// Refused implements ca.Recorder.
func (s *Store) Refused(r *ca.Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return
	}
	if !s.refusals.add(newRefused(r), r.Time) {
		s.metrics.rows.WithLabelValues("left_out").Inc()
	}
	notify(s.later)
}

// Ready implements ca.Recorder. After a failure it writes, since a full disk can be read.
func (s *Store) Ready(ctx context.Context) error {
	s.mu.Lock()
	failed := s.failed
	s.mu.Unlock()
	if failed != nil {
		return s.wait(ctx, &job{probe: true})
	}
	ctx, cancel := context.WithTimeout(ctx, commitTime)
	defer cancel()
	var n int64
	if err := s.db.QueryRowContext(ctx, `SELECT seq FROM heads WHERE name = $1`, issuedTable.name).Scan(&n); err != nil {
		return unavailable(err, "the records cannot be read")
	}
	return nil
}

// Close writes what is queued, refusals too, and closes the database. Nobody may wait for anything any more.
func (s *Store) Close() error {
	s.mu.Lock()
	already := s.closing
	s.closing = true
	notify(s.wake)
	s.mu.Unlock()
	if already {
		return nil
	}
	<-s.ended
	close(s.stop)
	<-s.kept
	var errs []error
	if s.journal != nil {
		if rows, _ := s.journal.pending(maxFlush); len(rows) > 0 {
			errs = append(errs, fmt.Errorf("the database does not answer: the next start puts into it what is in %s", s.journal.path))
		}
		errs = append(errs, s.journal.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusals.waiting() {
		errs = append(errs, errors.New("refusals could not be recorded: the database does not answer"))
	}
	return errors.Join(append(errs, s.db.Close())...)
}

// notify leaves a token in c.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *Store) enqueue(j *job) error {
	j.done = make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return unavailable(errClosed, "the CA is stopping")
	case len(s.waiting) >= maxWaiting:
		return unavailable(nil, "too much waits for the records")
	}
	s.waiting = append(s.waiting, j)
	notify(s.wake)
	return nil
}

// wait queues j and returns its outcome, or leaves after a while: what is not under way by then is dropped.
func (s *Store) wait(ctx context.Context, j *job) error {
	if err := s.enqueue(j); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	select {
	case <-j.done:
		return j.err
	case <-limited.Done():
	}
	s.mu.Lock()
	s.waiting = slices.DeleteFunc(s.waiting, func(other *job) bool { return other == j })
	s.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return unavailable(limited.Err(), "the records could not be written in time")
}

// run commits until Close.
func (s *Store) run() {
	defer close(s.ended)
	for range s.wake {
		s.mu.Lock()
		last := s.closing // whatever comes now is refused
		s.mu.Unlock()
		for range yields {
			runtime.Gosched() // a CT batch answers many requests at once: let those that can go on come along
		}
		for s.step() {
		}
		if last {
			return
		}
	}
}

// step commits one batch and tells whether there is another.
func (s *Store) step() bool {
	s.mu.Lock()
	n := min(len(s.waiting), maxBatch)
	jobs := slices.Clone(s.waiting[:n])
	s.waiting = slices.Delete(s.waiting, 0, n)
	s.mu.Unlock()
	if s.journal != nil {
		jobs = s.write(jobs)
	}
	if len(jobs) > 0 {
		s.decide(jobs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) > 0
}

// write journals certificates, tells those who wait, and returns the other jobs: tokens need the database, and it takes the rows, too,
// while the journal cannot. Serial numbers are looked for only among what is pending, which catches a certificate that is recorded twice: two of
// 158 random bits are never the same. If the source of random numbers broke down all the same, missing says so.
func (s *Store) write(jobs []*job) (others []*job) {
	var mine []*job
	var rows []*Issued
	serials := map[string]bool{}
	for _, j := range jobs {
		switch {
		case j.issued == nil || j.use != nil:
			others = append(others, j)
		case serials[j.issued.Serial] || s.journal.has(j.issued.Serial):
			j.err = unavailable(fmt.Errorf("serial number %s was issued before", j.issued.Serial), "the records could not be written")
			close(j.done)
		default:
			serials[j.issued.Serial] = true
			mine, rows = append(mine, j), append(rows, j.issued)
		}
	}
	for len(rows) > 0 {
		lines, n, err := fit(rows)
		if err == nil {
			began := time.Now()
			err = s.journal.append(rows[:n], lines)
			s.metrics.commit("journal", err, began)
			s.tell(err)
		}
		notify(s.later)
		if err != nil {
			return append(others, mine...)
		}
		for _, j := range mine[:n] {
			close(j.done)
		}
		s.metrics.rows.WithLabelValues("issued").Add(float64(n))
		mine, rows = mine[n:], rows[n:]
	}
	return others
}

// tell logs that the journal fails, and that it does no more. That another process has it keep tells.
func (s *Store) tell(err error) {
	switch fails := err != nil && !errors.Is(err, ring.ErrInUse); {
	case fails && !s.waits:
		s.opts.Logger.Error("the journal of the CA's records takes nothing: each certificate waits for the database", "err", err)
	case !fails && s.waits:
		s.opts.Logger.Info("the journal of the CA's records takes rows again")
	default:
		return
	}
	s.waits = !s.waits
}

// decide commits jobs and tells those who wait.
func (s *Store) decide(jobs []*job) {
	var outcomes []error
	err := s.commit(func(ctx context.Context, tx *sql.Tx) (err error) {
		outcomes, err = s.apply(ctx, tx, jobs)
		return err
	})
	issued := 0
	for i, j := range jobs {
		if err != nil {
			j.err = unavailable(err, "the records could not be written")
		} else if j.err = outcomes[i]; j.err == nil && j.issued != nil {
			issued++
		}
		close(j.done)
	}
	s.metrics.rows.WithLabelValues("issued").Add(float64(issued))
}

// commit runs do in a transaction, twice when nothing took effect the first time, and remembers how that went.
func (s *Store) commit(do func(context.Context, *sql.Tx) error) (err error) {
	for range 2 {
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), commitTime)
		err = s.db.Transact(ctx, func(tx *sql.Tx) error { return do(ctx, tx) })
		cancel()
		s.metrics.commit("database", err, began)
		if !database.Retryable(err) {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil && s.failed == nil:
		text := "the CA's records cannot be written: no certificate is issued"
		if s.journal != nil {
			text = "the CA's records cannot be written to the database: certificates are issued while there is room in the journal"
		}
		s.opts.Logger.Error(text, "database", s.db.String(), "err", err)
	case err == nil && s.failed != nil:
		s.opts.Logger.Info("the CA's records are written again", "database", s.db.String())
	}
	s.failed = err
	return err
}

// apply does all jobs in tx. An error is of all; outcomes are of each.
func (s *Store) apply(ctx context.Context, tx *sql.Tx, jobs []*job) (outcomes []error, err error) {
	head, err := lockHead(ctx, tx, s.db.Engine(), issuedTable)
	if err != nil {
		return nil, err
	}
	outcomes = make([]error, len(jobs))
	if err := s.applyTokens(ctx, tx, jobs, outcomes); err != nil {
		return nil, err
	}
	var rows []*Issued
	for i, j := range jobs {
		if j.issued != nil && outcomes[i] == nil {
			rows = append(rows, j.issued)
		}
	}
	if len(rows) == 0 {
		// A probe is a write, too.
		_, err := tx.ExecContext(ctx, `UPDATE heads SET seq = $1 WHERE name = $2`, head.Seq, issuedTable.name)
		return outcomes, err
	}
	return outcomes, appendRows(ctx, tx, s.db.Engine(), issuedTable, head, rows)
}
