package log

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

// A log with Options.Queued takes the same steps as append.go, with the database between reserving and adding:
//
//	submit    every process: the submission is committed to the queue (1); the insert decides who was first
//	sequence  the process that leads: queue → tree (2, 3)
//	seal      the same: rows (4), fence (5), checkpoint (6)
//	observe   every other process: sees the fence move, computes the root itself, signs the recorded pair (6)
//	answer    every process: finds its own submissions among the rows below the signed size (7)
//
// Who leads is decided by a lock of the database session (lead.go). A process that has lost it without knowing cannot fork the log: the
// fence is a compare-and-set. It could at worst add a second leaf for a submission whose first it has just added; an
// engine that drops twins rules out that too, and for others a new leader waits until everything queued is integrated.

// notifyChannel is where PostgreSQL tells of queued submissions and moved fences.
const notifyChannel = "attestry_log"

const (
	treePoll   = 5 * time.Millisecond   // while a tree integrates what was queued in it
	idlePoll   = 500 * time.Millisecond // when nothing was notified
	closeGrace = 5 * time.Second        // for what is in flight when the log closes
	patience   = 5 * time.Second        // for what is in flight while the log cannot take a step
	slowness   = 30 * time.Second       // for what is in flight while nobody empties the queue
	maxWaiting = 8 * MaxBatch           // of the queue that is looked at
	maxStored  = 32 * MaxBatch          // of the queue before submitters get a 503
)

// errFollow ends a term: another process leads, or may.
var errFollow = errors.New("another process leads this log")

// attend reads the state of the log without taking part: what Open needs to serve reads.
func (l *Log) attend(ctx context.Context) error {
	size, err := l.opts.Tree.Size(ctx)
	if err != nil {
		return fmt.Errorf("reading the tree's size: %w", err)
	}
	if _, err := l.fenced(ctx, size); err != nil && !errors.Is(err, ErrStale) { // stale: another process has made the first record
		return err
	}
	return l.observe(ctx)
}

// observe signs and publishes the tree that the fence records, if it is newer than what is published.
func (l *Log) observe(ctx context.Context) error {
	record, err := l.key.load(ctx)
	if err != nil {
		return err
	}
	if cp := l.Checkpoint(); cp != nil && cp.Size == record.Size && cp.Root == record.Root {
		return nil
	}
	size, err := l.opts.Tree.Size(ctx)
	if err != nil {
		return fmt.Errorf("reading the tree's size: %w", err)
	}
	if size < record.Size {
		return behindFence(l.opts.Label, size, record)
	}
	v, err := l.matchFence(ctx, record)
	if err != nil {
		return err
	}
	cp, err := l.signTree(ctx, v)
	if err != nil {
		return err
	}
	l.publish(cp)
	return nil
}

// runQueued runs until ctx ends and what is in flight was answered, or closeGrace is over.
func (l *Log) runQueued(ctx context.Context) {
	defer close(l.done)
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(closeGrace, stop) }) // the database may not answer any more
	var wg sync.WaitGroup
	if l.rows.shared() {
		wg.Go(func() { l.listen(work) })
	}
	wg.Go(func() { l.hold(work) })
	wg.Go(func() { l.watch(work) })
	l.submit(ctx, work) // ends when ctx has ended and everything has been queued or refused
	l.awaitAnswers(work)
	stop()
	wg.Wait()
	l.failAll()
}

// awaitAnswers returns when nothing is in flight, or ctx ends.
func (l *Log) awaitAnswers(ctx context.Context) {
	for {
		l.mu.Lock()
		left := len(l.inFlight)
		l.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-l.idle:
		case <-ctx.Done():
			return
		}
	}
}

// submit moves submissions of this process into the queue until ctx ends. work is the context of doing so.
func (l *Log) submit(ctx, work context.Context) {
	var room int         // what the queue takes
	var looked time.Time // when it was counted
	for {
		batch := l.collect(ctx, nil, 0)
		if batch == nil {
			return
		}
		start := time.Now()
		subs := make([]queued, len(batch))
		for i, p := range batch {
			subs[i] = queued{p.sub, p.received}
		}
		var fresh map[[32]byte]bool
		var err error
		if room < len(batch) || start.Sub(looked) > idlePoll {
			var stored int
			if stored, err = l.rows.stored(work, l.maxStored); err == nil {
				room, looked = l.maxStored-stored, start
			}
		}
		if err == nil && room < len(batch) {
			err = errFull
		}
		if err == nil {
			fresh, err = l.rows.enqueue(work, subs)
			room -= len(fresh)
		}
		var twins [][32]byte
		for _, p := range batch {
			if p.twin = !fresh[p.sub.Identity]; p.twin {
				twins = append(twins, p.sub.Identity)
			}
			close(p.queued)
		}
		if err == nil {
			err = l.answerSealed(work, twins)
		}
		if errors.Is(err, errFrozen) { // another process froze the log
			l.mu.Lock()
			l.frozen = true
			l.mu.Unlock()
			l.refuse(batch, errFrozen)
			continue
		}
		if errors.Is(err, errFull) {
			l.refuse(batch, errFull)
			continue
		}
		if err != nil {
			l.metrics.faults.Inc()
			l.opts.Logger.Error("submissions could not be queued", "count", len(batch), "err", err)
			l.refuse(batch, errQueue)
			continue
		}
		l.metrics.step("reserve", start)
		l.poke()
	}
}

var (
	errQueue = fault.New(fault.Unavailable, "queue_unavailable", nil,
		"the entry could not be queued, or it is not known whether it was; try again")
	errFull = fault.New(fault.Overloaded, "queue_full", nil, "too many entries wait for the log's store; try again")
	errSlow = fault.New(fault.Unavailable, "log_slow", nil,
		"the entry is queued, but nothing takes it into the log now; it will be there later, try again")
)

// poke makes the process look at the queue and the fence now.
func (l *Log) poke() {
	select {
	case l.poked <- struct{}{}:
	default:
	}
}

// listen pokes whenever the database tells of something new.
func (l *Log) listen(ctx context.Context) {
	notified, err := l.opts.DB.Listen(ctx, notifyChannel)
	for err != nil {
		l.opts.Logger.Error("no notifications from the database; the log polls", "err", err)
		if sleep(ctx, closeGrace) != nil {
			return
		}
		notified, err = l.opts.DB.Listen(ctx, notifyChannel)
	}
	for range notified { // closed when ctx ends
		l.poke()
	}
}

// hold leads when nobody else does, and follows otherwise.
func (l *Log) hold(ctx context.Context) {
	lead := l.rows.lead
	others := false // somebody else was seen to lead
	var pause time.Duration
	for ctx.Err() == nil {
		leads, err := lead.try(ctx)
		if err == nil && leads {
			err = l.term(ctx, lead, others)
			others = false
			lead.release()
		} else if err == nil {
			others = true
			if err = l.observe(ctx); err == nil {
				l.resume()
				err = l.answerAll(ctx)
			}
		}
		if l.halts(err) {
			<-ctx.Done()
			return
		}
		if err != nil && ctx.Err() == nil {
			if !errors.Is(err, errFollow) {
				l.metrics.faults.Inc()
				l.opts.Logger.Error("the log lost its step; reading back what is stored", "err", err)
				l.stop(whileRecovering(err))
				l.expire()
			}
			pause = min(max(2*pause, 50*time.Millisecond), 2*time.Second)
		} else {
			pause = 0
		}
		if !l.wait(ctx, pause) {
			return
		}
	}
}

// watch expires submissions also while nothing fails: the process that leads may be paused, or wait for a store.
func (l *Log) watch(ctx context.Context) {
	tick := time.NewTicker(idlePoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.expire()
		case <-ctx.Done():
			return
		}
	}
}

// expire answers what has been in flight for longer than patience while the log cannot take a step, or slowness
// otherwise: it is in the queue or the tree, but nobody knows for how long.
func (l *Log) expire() {
	now := l.opts.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	limit, err := l.slowness, error(errSlow)
	if l.stopped != nil {
		limit, err = l.patience, l.stopped
	}
	for _, p := range l.inFlight {
		if now.Sub(p.received) > limit {
			p.err = err
			l.land(p)
		}
	}
}

// wait returns true after a poke or idlePoll, but not before pause is over; false when ctx has ended.
func (l *Log) wait(ctx context.Context, pause time.Duration) bool {
	poked := l.poked
	if pause > 0 {
		poked = nil
	} else {
		pause = idlePoll
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-poked:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// appended is a batch that stands in the tree; indexes is nil when its place is not known yet.
type appended struct {
	batch   []queued
	indexes []uint64
}

// term leads until ctx ends, an error, or the loss of the lock.
func (l *Log) term(ctx context.Context, lead *leadership, takeover bool) error {
	if err := l.settle(ctx, lead, takeover); err != nil {
		return err
	}
	if err := l.recover(ctx); err != nil {
		return l.stale(err)
	}
	if err := l.answerAll(ctx); err != nil {
		return err
	}
	l.opts.Logger.Info("leading", "size", l.Checkpoint().Size)

	seqCtx, cancel := context.WithCancel(ctx)
	results, failed := make(chan appended), make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait() // before the lock is released: an append must not outlive its term
	defer cancel()
	s := &sequencer{log: l, lead: lead, results: results, taken: map[[32]byte]bool{}}
	wg.Go(func() { failed <- s.run(seqCtx) })
	poll := time.NewTicker(treePoll)
	defer poll.Stop()
	idle := time.NewTicker(idlePoll)
	defer idle.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case err = <-failed:
		case a := <-results:
			err = l.sealAppended(ctx, s, a)
		case <-poll.C:
			if s.takenCount() > 0 {
				err = l.sealGrowth(ctx, s)
			}
		case <-idle.C: // what a leader before this one has queued, and the lock
			if err = lead.check(ctx); err == nil {
				err = l.sealGrowth(ctx, s)
			}
		}
		if err != nil {
			return l.stale(err)
		}
	}
}

// stale turns a fence that another process moved into the end of the term.
func (l *Log) stale(err error) error {
	if errors.Is(err, ErrStale) {
		return fmt.Errorf("%w: %w", errFollow, err)
	}
	return err
}

// takeoverPause is how long a new leader waits when it has seen another one, whose last append may still
// be on its way to the tree.
const takeoverPause = 2 * time.Second

// settle waits until everything that was queued in the tree is integrated, so that a submission
// which stands there already is not appended again.
func (l *Log) settle(ctx context.Context, lead *leadership, takeover bool) error {
	if _, drops := l.opts.Tree.(ProofTree); takeover && !drops {
		if err := sleep(ctx, takeoverPause); err != nil {
			return err
		}
	}
	for pause := treePoll; ; pause = min(2*pause, idlePoll) {
		if err := lead.check(ctx); err != nil {
			return err
		}
		queued, err := l.opts.Tree.Queued(ctx)
		if err != nil {
			return fmt.Errorf("reading what is queued in the tree: %w", err)
		}
		size, err := l.opts.Tree.Size(ctx)
		if err != nil {
			return fmt.Errorf("reading the tree's size: %w", err)
		}
		if size >= queued {
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sequencer turns the queue into leaves during one term.
type sequencer struct {
	log     *Log
	lead    *leadership
	results chan<- appended

	mu    sync.Mutex // guards taken
	taken map[[32]byte]bool
}

func (s *sequencer) takenCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.taken)
}

// done says that these are leaves.
func (s *sequencer) done(identities [][32]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range identities {
		delete(s.taken, id)
	}
}

func (s *sequencer) run(ctx context.Context) error {
	for {
		batch, err := s.next(ctx)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			if !s.log.wait(ctx, 0) {
				return nil
			}
			continue
		}
		// The lock first: whoever has lost it must not add what the next leader adds.
		if err := s.lead.check(ctx); err != nil {
			return err
		}
		start := time.Now()
		subs := make([]Submission, len(batch))
		for i := range batch {
			subs[i] = batch[i].sub
		}
		indexes, err := s.log.opts.Tree.Append(context.WithoutCancel(ctx), subs)
		if err != nil {
			return err
		}
		s.log.metrics.step("integrate", start)
		s.log.metrics.batch.Observe(float64(len(batch)))
		select {
		case s.results <- appended{batch, indexes}:
		case <-ctx.Done():
			return nil
		}
	}
}

// next returns up to MaxBatch submissions of the queue that were not taken yet, and marks them taken.
func (s *sequencer) next(ctx context.Context) ([]queued, error) {
	l := s.log
	waiting, err := l.rows.waiting(ctx, maxWaiting)
	if err != nil {
		return nil, err
	}
	// Marked before the rows are read: whoever seals one of them from here on takes the mark away.
	s.mu.Lock()
	waiting = slices.DeleteFunc(waiting, func(id [32]byte) bool { return s.taken[id] })
	waiting = waiting[:min(len(waiting), MaxBatch)]
	for _, id := range waiting {
		s.taken[id] = true
	}
	s.mu.Unlock()
	if len(waiting) == 0 {
		return nil, nil
	}
	// This process alone makes leaves now, so what is not a leaf here is none.
	known, err := l.rows.findAll(ctx, waiting)
	if err != nil {
		return nil, err
	}
	if len(known) > 0 {
		var twins []row
		for _, r := range known {
			twins = append(twins, r)
		}
		if err := l.rows.drop(ctx, twins); err != nil {
			return nil, err
		}
		l.answer(l.sealedOf(known))
	}
	own, foreign := map[[32]byte]queued{}, [][32]byte(nil)
	l.mu.Lock()
	for _, id := range waiting {
		if p := l.inFlight[id]; p != nil {
			own[id] = queued{p.sub, p.received}
		} else if _, leaf := known[id]; !leaf {
			foreign = append(foreign, id)
		}
	}
	l.mu.Unlock()
	theirs, err := l.rows.queuedAs(ctx, l.opts.Kind, foreign)
	if err != nil {
		return nil, err
	}
	var batch []queued
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range waiting {
		_, leaf := known[id]
		q, ok := own[id]
		if !ok {
			q, ok = theirs[id]
		}
		if leaf || !ok || !s.taken[id] { // it became a leaf before, or in between
			delete(s.taken, id)
			continue
		}
		batch = append(batch, q)
	}
	return batch, nil
}

// sealAppended seals a batch whose indexes are known.
func (l *Log) sealAppended(ctx context.Context, s *sequencer, a appended) error {
	if a.indexes == nil {
		return nil // sealGrowth meets it
	}
	rows, hashes := make([]row, len(a.batch)), make([][]byte, len(a.batch))
	order := make([]int, len(a.batch))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(x, y int) int { return int(int64(a.indexes[x]) - int64(a.indexes[y])) })
	for n, i := range order {
		rows[n], hashes[n] = l.newRow(a.batch[i].sub, a.indexes[i])
		if want := l.extent.End() + uint64(n); a.indexes[i] != want {
			// Leaves of somebody else are between, or the engine dropped twins: read them all back.
			if err := l.sealGrowth(ctx, s); err != nil {
				return err
			}
			identities := make([][32]byte, len(a.batch))
			for i := range a.batch {
				identities[i] = a.batch[i].sub.Identity
			}
			s.done(identities)
			return nil
		}
	}
	return l.sealLed(ctx, s, rows, hashes)
}

// sealGrowth seals what the tree has integrated since the last seal, by reading it back.
func (l *Log) sealGrowth(ctx context.Context, s *sequencer) error {
	for {
		size, err := l.opts.Tree.Size(ctx)
		if err != nil {
			return fmt.Errorf("reading the tree's size: %w", err)
		}
		from := l.extent.End()
		if size <= from {
			return nil
		}
		size = min(size, from+4*MaxBatch)
		var leaves []parsedLeaf
		for from < size {
			more, err := l.parsed(ctx, from, size)
			if err != nil {
				return err
			}
			leaves, from = append(leaves, more...), from+uint64(len(more))
		}
		first := size - uint64(len(leaves))
		identities := make([][32]byte, len(leaves))
		for i := range leaves {
			identities[i] = leaves[i].identity
		}
		kept, err := l.rows.queuedAs(ctx, l.opts.Kind, identities)
		if err != nil {
			return err
		}
		rows, hashes := make([]row, len(leaves)), make([][]byte, len(leaves))
		for i, leaf := range leaves {
			rows[i] = row{identity: leaf.identity, index: first + uint64(i), keys: kept[leaf.identity].sub.Keys}
			switch l.opts.Kind {
			case CT, CTPlain:
				rows[i].integrated, rows[i].leafHash = int64(leaf.timestampMillis), leaf.leafHash[:]
			case Rekor1:
				rows[i].integrated = l.opts.Now().Unix()
			}
			hashes[i] = leaf.leafHash[:]
		}
		if err := l.sealLed(ctx, s, rows, hashes); err != nil {
			return err
		}
	}
}

// sealLed takes leaves through steps 4 to 7 while this process leads.
func (l *Log) sealLed(ctx context.Context, s *sequencer, rows []row, hashes [][]byte) error {
	if err := l.sealRows(ctx, rows, hashes); err != nil {
		return err
	}
	s.done(identitiesOf(rows))
	l.answer(rows)
	return nil
}

// answerAll answers what is in flight here and has become a leaf, whoever made it one.
func (l *Log) answerAll(ctx context.Context) error {
	l.mu.Lock()
	identities := make([][32]byte, 0, len(l.inFlight))
	for id := range l.inFlight {
		identities = append(identities, id)
	}
	l.mu.Unlock()
	if len(identities) == 0 {
		return nil
	}
	return l.answerSealed(ctx, identities)
}

// answerSealed answers those in flight here that are leaves of the signed tree.
func (l *Log) answerSealed(ctx context.Context, identities [][32]byte) error {
	known, err := l.rows.findAll(ctx, identities)
	if err != nil {
		return err
	}
	l.answer(l.sealedOf(known))
	return nil
}

func (l *Log) sealedOf(known map[[32]byte]row) []row {
	size := l.Checkpoint().Size
	var rows []row
	for _, r := range known {
		if r.index < size {
			rows = append(rows, r)
		}
	}
	return rows
}

// refuse answers a batch with an error, as far as it was not answered yet.
func (l *Log) refuse(batch []*pending, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range batch {
		if l.inFlight[p.sub.Identity] != p {
			continue
		}
		p.err = err
		l.land(p)
	}
}
