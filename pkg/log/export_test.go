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

// HookCommits calls hook "beginning", "before" and "after" each commit, which fails with its error. Call it
// before there are any.
func HookCommits(l *Log, hook func(when string) error) { l.rows.fault = hook }
