package log

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/internal/fault"
)

// pending is a submission on its way. done is closed when receipt and err are final.
type pending struct {
	sub      Submission
	received time.Time
	index    uint64
	done     chan struct{}
	receipt  Receipt
	err      error

	queued chan struct{} // of a queued log: closed when twin is final; else nil
	twin   bool          // another process was first with this identity, or an earlier time
}

var errRecovering = fault.New(fault.Unavailable, "log_recovering", nil,
	"the log is reading back what it stored after a fault; the entry may or may not be in it, try again")

// Add returns once the entry stands durably in a signed tree. The same identity is one leaf, however
// often and from however many goroutines it is added: all but the first get Duplicate.
// Errors: fault.Overloaded when too many entries wait, fault.Unavailable while the log
// recovers, shuts down or has halted, fault.Frozen for good after Freeze, fault.TooLarge over MaxEntry;
// ctx.Err() when the caller leaves, though the entry may still be added.
func (l *Log) Add(ctx context.Context, sub Submission) (Receipt, error) {
	if len(sub.Data) > MaxEntry {
		return Receipt{}, fault.New(fault.TooLarge, "entry_too_large", nil,
			"the canonical entry has %d bytes, the log takes at most %d", len(sub.Data), MaxEntry)
	}
	p, first, err := l.join(sub)
	if err != nil {
		return Receipt{}, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return Receipt{}, ctx.Err()
	}
	if p.err != nil {
		return Receipt{}, p.err
	}
	if p.queued != nil { // another process may have been first, which the commit tells
		select {
		case <-p.queued:
		case <-ctx.Done():
			return Receipt{}, ctx.Err()
		}
	}
	receipt := p.receipt
	receipt.Duplicate = receipt.Duplicate || !first || p.twin
	return receipt, nil
}

// join queues sub, or finds the same identity in flight (step 0).
func (l *Log) join(sub Submission) (p *pending, first bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.inFlight[sub.Identity]; p != nil {
		return p, false, nil
	}
	if l.stopped != nil {
		return nil, false, l.stopped
	}
	if l.frozen {
		return nil, false, errFrozen
	}
	if len(l.inFlight) >= maxInFlight {
		return nil, false, fault.New(fault.Overloaded, "queue_full", nil, "%d entries wait already; try again", len(l.inFlight))
	}
	p = &pending{sub: sub, received: l.opts.Now(), done: make(chan struct{})}
	if l.opts.Queued {
		p.queued = make(chan struct{})
	}
	select {
	case l.queue <- p:
	default:
		return nil, false, fault.New(fault.Overloaded, "queue_full", nil, "%d entries wait already; try again", maxQueue)
	}
	l.inFlight[sub.Identity] = p
	return p, true, nil
}

// run appends until ctx ends. After a fault it recovers, with growing pauses, and goes on.
func (l *Log) run(ctx context.Context) {
	defer close(l.done)
	for {
		err := l.pump(ctx)
		if err == nil { // ctx ended and everything in flight was answered
			return
		}
		for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
			l.metrics.faults.Inc()
			if l.halts(err) {
				<-ctx.Done()
				return
			}
			l.opts.Logger.Error("an append failed; reading back what is stored", "err", err)
			l.stop(whileRecovering(err))
			l.failAll()
			if err = l.recover(ctx); err == nil {
				break
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				l.failAll()
				return
			}
		}
	}
}

// whileRecovering is what submitters are told after err.
func whileRecovering(err error) error {
	if fault.KindOf(err) == fault.Unavailable {
		return err
	}
	return errRecovering
}

// halts stops the log for good when err says so.
func (l *Log) halts(err error) bool {
	var halted *haltError
	if !errors.As(err, &halted) {
		return false
	}
	l.opts.Logger.Error("the log halted; it will not sign again before an operator has looked", "err", err)
	l.stop(&haltError{fault.New(fault.Unavailable, "log_halted", err, "the log has halted and takes no entries")})
	l.failAll()
	return true
}

// pump moves entries through the protocol: this goroutine appends (steps 1 to 3), a second one
// seals (4 to 7), so that one batch is integrated while the one before it is sealed. It
// returns nil when ctx ended and the queue is empty, else the first error of either.
func (l *Log) pump(ctx context.Context) error {
	integrated := make(chan []*pending)
	failed := make(chan error, 1)
	ended := make(chan struct{})
	go func() { // ends when integrated is closed, or at its first error
		defer close(ended)
		for batch := range integrated {
			if err := l.seal(context.WithoutCancel(ctx), batch); err != nil {
				failed <- err
				return
			}
		}
	}()
	finish := func(err error) error {
		close(integrated)
		<-ended
		select {
		case sealErr := <-failed:
			return errors.Join(sealErr, err)
		default:
			return err
		}
	}
	var linger time.Duration
	for {
		batch := l.collect(ctx, ended, linger)
		if batch == nil {
			return finish(nil)
		}
		if linger = 0; len(batch) >= busyBatch {
			linger = batchLinger
		}
		batch, err := l.integrate(context.WithoutCancel(ctx), batch)
		if err != nil {
			return finish(err)
		}
		if len(batch) == 0 {
			continue
		}
		select {
		case integrated <- batch:
		case <-ended:
			return finish(nil)
		}
	}
}

// An integration costs much the same for one entry as for a hundred. Under load a short wait for
// company makes fewer and larger ones; a client on its own does not wait.
const (
	batchLinger = 3 * time.Millisecond
	busyBatch   = 4
)

// collect waits for one entry and takes what else comes within linger. It returns nil once ctx has ended and the queue
// is empty, or when the sealing side has ended.
func (l *Log) collect(ctx context.Context, ended <-chan struct{}, linger time.Duration) []*pending {
	var batch []*pending
	select {
	case p := <-l.queue:
		batch = append(batch, p)
	case <-ctx.Done():
	case <-ended:
		return nil
	}
	if linger > 0 && batch != nil {
		enough := time.NewTimer(linger)
		defer enough.Stop()
		for len(batch) < MaxBatch {
			select {
			case p := <-l.queue:
				batch = append(batch, p)
				continue
			case <-enough.C:
			case <-ctx.Done():
			case <-ended:
			}
			break
		}
	}
	for len(batch) < MaxBatch {
		select {
		case p := <-l.queue:
			batch = append(batch, p)
		default:
			return batch
		}
	}
	return batch
}

// integrate answers duplicates, reserves (1) and appends (2, 3) the rest, and returns it with indexes, in their order.
func (l *Log) integrate(ctx context.Context, batch []*pending) ([]*pending, error) {
	start := time.Now()
	var fresh []*pending
	var reserved []row
	for _, p := range batch {
		index, integrated, found, err := l.rows.find(ctx, p.sub.Identity)
		if err != nil {
			return nil, err
		}
		if found {
			if err := l.answerDuplicate(p, index, integrated); err != nil {
				return nil, err
			}
			continue
		}
		fresh = append(fresh, p)
		if len(p.sub.Keys) > 0 || p.sub.Extra != nil {
			reserved = append(reserved, row{identity: p.sub.Identity, integrated: p.received.Unix(), keys: p.sub.Keys, extra: p.sub.Extra})
		}
	}
	if len(fresh) == 0 {
		return nil, nil
	}
	if len(reserved) > 0 {
		if err := l.rows.reserve(ctx, reserved); err != nil {
			return nil, err
		}
	}
	l.metrics.step("reserve", start)
	start = time.Now()
	subs := make([]Submission, len(fresh))
	for i, p := range fresh {
		subs[i] = p.sub
	}
	indexes, err := l.opts.Tree.Append(ctx, subs)
	if err != nil {
		return nil, err
	}
	for i, p := range fresh {
		p.index = indexes[i]
	}
	slices.SortFunc(fresh, func(a, b *pending) int { return int(int64(a.index) - int64(b.index)) })
	l.metrics.step("integrate", start)
	l.metrics.batch.Observe(float64(len(fresh)))
	return fresh, nil
}

// answerDuplicate answers from the row. An entry leaves flight only after its seal, so whoever finds its row
// here finds it in the signed tree.
func (l *Log) answerDuplicate(p *pending, index uint64, integrated int64) error {
	cp := l.Checkpoint()
	if index >= cp.Size {
		return fmt.Errorf("a row names index %d, the signed size is %d", index, cp.Size)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p.receipt = l.receipt(index, integrated)
	p.receipt.Duplicate, p.receipt.Checkpoint = true, cp
	l.land(p)
	return nil
}

// seal takes an integrated batch through steps 4 to 7.
func (l *Log) seal(ctx context.Context, batch []*pending) error {
	size := batch[len(batch)-1].index + 1
	if l.extent.End()+uint64(len(batch)) != size {
		return &haltError{fmt.Errorf("%d entries were integrated up to size %d over a sealed size of %d: another writer adds to this tree",
			len(batch), size, l.extent.End())}
	}
	rows, hashes := make([]row, len(batch)), make([][]byte, len(batch))
	for i, p := range batch {
		rows[i], hashes[i] = l.newRow(p.sub, p.index)
	}
	if err := l.sealRows(ctx, rows, hashes); err != nil {
		return err
	}
	l.answer(rows)
	return nil
}

// newRow returns the row of a submission that has its place, as of now, and its leaf hash.
func (l *Log) newRow(s Submission, index uint64) (row, []byte) {
	r := row{identity: s.Identity, index: index}
	if l.opts.Queued {
		r.keys = s.Keys // a reservation has them otherwise
	}
	switch l.opts.Kind {
	case CT:
		r.integrated, r.leafHash = int64(s.CT.Timestamp), s.CT.MerkleLeafHash(index)
		return r, r.leafHash
	case CTPlain:
		r.integrated, r.leafHash = int64(plainTimestamp(s.Data)), rfc6962.DefaultHasher.HashLeaf(s.Data)
		return r, r.leafHash
	case Rekor1:
		r.integrated = l.opts.Now().Unix()
	}
	return r, rfc6962.DefaultHasher.HashLeaf(s.Data)
}

// sealRows takes leaves that stand behind the sealed tree through steps 4 to 6.
func (l *Log) sealRows(ctx context.Context, rows []row, hashes [][]byte) error {
	start := time.Now()
	fresh := nodesOf(l.extent)
	for i, hash := range hashes {
		if err := l.extent.Append(hash, fresh.visit); err != nil {
			return fmt.Errorf("hashing leaf %d: %w", rows[i].index, err)
		}
	}
	// Step 4. A SET speaks of the time, so the time is durable before anything is signed; and who
	// follows the log reads the rows of whatever is signed.
	if err := l.rows.complete(ctx, rows); err != nil {
		return err
	}
	l.metrics.step("time", start)
	start = time.Now()
	cp, err := l.commit(ctx, l.extent.End(), fresh)
	if err != nil {
		return err
	}
	l.metrics.step("fence", start)
	l.publish(cp)
	return nil
}

// answer answers what is in flight here of the rows, which lie below the signed size (step 7).
func (l *Log) answer(rows []row) {
	cp := l.Checkpoint()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range rows {
		p := l.inFlight[rows[i].identity]
		if p == nil {
			continue
		}
		p.receipt = l.receipt(rows[i].index, rows[i].integrated)
		p.receipt.Checkpoint = cp
		l.land(p)
	}
}

// land gives p its answer, l.mu held.
func (l *Log) land(p *pending) {
	delete(l.inFlight, p.sub.Identity)
	close(p.done)
	if len(l.inFlight) == 0 {
		select {
		case l.idle <- struct{}{}:
		default:
		}
	}
}

// commit takes the tree of l.extent through the fence and signs it (steps 5 and 6).
func (l *Log) commit(ctx context.Context, size uint64, fresh nodes) (*Checkpoint, error) {
	want, err := rootOf(l.extent)
	if err != nil {
		return nil, err
	}
	v := newView(l.opts.Tree, l.tiles, size)
	v.fresh, v.rooted = fresh, &want
	root, err := v.root(ctx)
	if err != nil {
		return nil, err
	}
	if root != want {
		return nil, &haltError{fmt.Errorf("the tree at size %d has root %x, its leaves %x", size, root, want)}
	}
	if err := l.key.advance(ctx, Record{Size: size, Root: root, Promised: max(size, l.key.record().Promised)}); err != nil {
		return nil, err
	}
	return l.signTree(ctx, v)
}

// signTree returns the checkpoint of the fence's tree, v, with the cosignatures of a quorum where the log has
// witnesses. Without a quorum there is no checkpoint (fail closed): the tree stays where it is in the fence, and
// recovery asks again. Rekor v1 checkpoints carry one signature only, and an empty tree says nothing that a witness could hold against it.
func (l *Log) signTree(ctx context.Context, v *view) (*Checkpoint, error) {
	now := l.opts.Now()
	note, err := l.key.checkpoint(now)
	if err != nil {
		return nil, err
	}
	switch cosigned := l.opts.Cosigner != nil && l.opts.Kind != Rekor1 && v.size > 0; {
	case cosigned && l.key.isPinned(): // witnesses have seen larger trees and cosign this one no more
		if len(l.opts.FrozenNote) > 0 {
			note = l.opts.FrozenNote
		}
	case cosigned:
		if l.opts.WitnessKey != nil {
			text := note[:bytes.Index(note, []byte("\n\n"))+1]
			line, err := ed25519Line(text, l.opts.Name, l.opts.WitnessKey)
			if err != nil {
				return nil, err
			}
			note = append(note, line...)
		}
		if note, err = l.opts.Cosigner.Cosign(ctx, note, v.size, v.consistency); err != nil {
			return nil, fault.New(fault.Unavailable, "no_witness_quorum", err, "the log's witnesses have not cosigned yet; try again")
		}
	}
	return &Checkpoint{Size: v.size, Root: *v.rooted, Note: note, Time: now, view: v}, nil
}

func (l *Log) receipt(index uint64, integrated int64) Receipt {
	r := Receipt{Index: index}
	switch l.opts.Kind {
	case Rekor1:
		r.IntegratedUnix = integrated
	case CT, CTPlain:
		r.TimestampMillis = uint64(integrated)
	}
	return r
}

// failAll answers everything in flight with the reason why the log stopped.
func (l *Log) failAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		select {
		case p := <-l.queue:
			if p.queued != nil {
				close(p.queued)
			}
			continue
		default:
		}
		break
	}
	for _, p := range l.inFlight {
		p.err = l.stopped
		l.land(p)
	}
}
