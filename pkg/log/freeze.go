package log

import (
	"context"
	"fmt"

	"github.com/attestry/attestry/internal/fault"
)

// errFrozen has the words of reference rekor-tiles, which operators search for.
var errFrozen = fault.New(fault.Frozen, "log_frozen", nil, "This log has been frozen, please switch to the latest log.")

// Freeze ends the log's growth: Add answers fault.Frozen from the call on, entries in flight are finished,
// and the tree that has them all is returned with its signature. It stays readable. The caller
// makes the end durable: it keeps size and root, and opens the log with Options.Frozen from then on.
//
// After an error the log still takes no entries. fault.Unavailable says that it recovers from a fault or has
// halted: the tree is not final then, and Freeze is to be called again.
func (l *Log) Freeze(ctx context.Context) (*Checkpoint, error) {
	l.mu.Lock()
	l.frozen = true
	var waiting []*pending
	for _, p := range l.inFlight {
		waiting = append(waiting, p)
	}
	l.mu.Unlock()
	for _, p := range waiting {
		select {
		case <-p.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if l.opts.Queued {
		if err := l.drain(ctx); err != nil {
			return nil, err
		}
	}
	// Whoever was answered stands in the sealed tree. A fault answers with an error and may leave leaves
	// behind that recovery has yet to seal; stopped was set before.
	if err := l.Ready(); err != nil {
		return nil, fault.New(fault.Unavailable, "log_not_final", err, "the log cannot be frozen now")
	}
	cp := l.Checkpoint()
	size, err := l.opts.Tree.Size(ctx)
	if err != nil {
		return nil, fmt.Errorf("freezing log %s: reading the tree's size: %w", l.opts.Label, err)
	}
	if size != cp.Size {
		return nil, fault.New(fault.Unavailable, "log_not_final", nil, "the log cannot be frozen now: its tree has %d entries, %d of them signed", size, cp.Size)
	}
	l.opts.Logger.Info("the log is frozen", "size", cp.Size, "root", fmt.Sprintf("%x", cp.Root))
	return cp, nil
}

// drain freezes the queue for every process, and returns once all of it is in the signed tree, whoever leads.
func (l *Log) drain(ctx context.Context) error {
	if err := l.rows.freeze(ctx); err != nil {
		return err
	}
	for {
		waiting, err := l.rows.waiting(ctx, 1)
		if err != nil {
			return err
		}
		queued, err := l.opts.Tree.Queued(ctx)
		if err != nil {
			return fmt.Errorf("reading what is queued in the tree: %w", err)
		}
		if size := l.Checkpoint().Size; len(waiting) == 0 && size >= queued {
			return nil
		}
		l.poke()
		if err := sleep(ctx, treePoll); err != nil {
			return err
		}
	}
}

// checkFinal holds the tree of a frozen log against what was recorded when it was frozen, before anything
// is signed.
func (l *Log) checkFinal(ctx context.Context) error {
	final := l.opts.Frozen
	size, err := l.opts.Tree.Size(ctx)
	if err != nil {
		return fmt.Errorf("reading the tree's size: %w", err)
	}
	if size != final.Size {
		err := fmt.Errorf("the log was frozen with %d entries and its tree has %d", final.Size, size)
		if held, loadErr := l.key.load(ctx); loadErr == nil && size < held.Size {
			return fmt.Errorf("%w: %w", err, behindFence(l.opts.Label, size, held))
		}
		return err
	}
	root, err := newView(l.opts.Tree, l.tiles, size).root(ctx)
	if err != nil {
		return err
	}
	if root != final.Root {
		return fmt.Errorf("the log was frozen at size %d with root %x, its tree has root %x", size, final.Root, root)
	}
	if l.opts.lost() {
		if err := l.key.pin(ctx, *final, l.opts.FrozenNote); err != nil {
			return err
		}
		l.opts.Logger.Warn("entries of this log are lost; it is served for reading and takes none", "size", final.Size, "promised", final.Promised)
	}
	l.frozen = true
	return nil
}
