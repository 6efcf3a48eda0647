package log

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// FailCommits makes the next commit at each of the points fail once, "before" or "after" it takes effect.
func FailCommits(l *Log, points ...string) {
	var mu sync.Mutex
	l.rows.fault = func(when string) error {
		mu.Lock()
		defer mu.Unlock()
		if i := slices.Index(points, when); i >= 0 {
			points = slices.Delete(points, i, i+1)
			return errors.New("injected fault " + when)
		}
		return nil
	}
}

// SetPatience shortens how long a submission waits for a queued log that cannot take a step. Call it
// before there are any.
func SetPatience(l *Log, d time.Duration) { l.patience = d }

// SetSlowness shortens how long a submission waits in a queue that nobody empties.
func SetSlowness(l *Log, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slowness = d
}

// SetMaxStored is how much the queue in the database takes. Call it before there are any submissions.
func SetMaxStored(l *Log, n int) { l.maxStored = n }

// HookCommits calls hook "beginning", "before" and "after" each commit, which fails with its error. Call it
// before there are any.
func HookCommits(l *Log, hook func(when string) error) { l.rows.fault = hook }
