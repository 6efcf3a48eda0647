package limit

import (
	"context"

	"github.com/attestry/attestry/internal/fault"
)

// Work bounds how many goroutines do a costly thing at once, and how many wait for it. Beyond the
// number of processors more at once only makes each slower.
type Work struct {
	busy, admitted chan struct{}
}

// NewWork lets workers run and queue wait.
func NewWork(workers, queue int) *Work {
	return &Work{busy: make(chan struct{}, workers), admitted: make(chan struct{}, workers+queue)}
}

// Do runs f when its turn comes. It returns fault.Overloaded at once when too many wait already, and ctx.Err()
// when ctx ends before f began; f's own errors go through f.
func (w *Work) Do(ctx context.Context, f func()) error {
	if w == nil {
		f()
		return nil
	}
	select {
	case w.admitted <- struct{}{}:
	default:
		return fault.New(fault.Overloaded, "verifiers_busy", nil, "%d requests wait for their verification already; try again", cap(w.admitted)-cap(w.busy))
	}
	defer func() { <-w.admitted }()
	select {
	case w.busy <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-w.busy }()
	f()
	return nil
}
