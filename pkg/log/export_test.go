package log

import (
	"errors"
	"slices"
	"sync"
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
