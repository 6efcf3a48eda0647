package records

import (
	"fmt"
	"strings"
	"time"
)

const (
	perMinute  = 60   // refusals with a row of their own, for each reason
	maxPending = 2048 // rows that wait for their commit
	maxReasons = 64   // told apart
)

// refusals are rows that wait, within what a minute may have: a flood of bad requests must not fill the disk. What is left
// out is counted, in one row for each reason and minute.
type refusals struct {
	minute  int64 // since the epoch
	counts  map[string]int
	left    map[string]int64
	pending []*Refused
}

func newRefusals(now time.Time) refusals {
	return refusals{minute: now.Unix() / 60, counts: map[string]int{}, left: map[string]int64{}}
}

// add takes row along, or counts it as left out and returns false.
func (r *refusals) add(row *Refused, now time.Time) bool {
	r.turn(now)
	reason, _, _ := strings.Cut(row.Reason, ":") // claims have names of their own
	if _, known := r.counts[reason]; !known && len(r.counts) >= maxReasons {
		reason = "other"
	}
	if r.counts[reason] >= perMinute || len(r.pending) >= maxPending {
		r.left[reason]++
		return false
	}
	r.counts[reason]++
	r.pending = append(r.pending, row)
	return true
}

// turn begins another minute, also when the clock went back.
func (r *refusals) turn(now time.Time) {
	if now.Unix()/60 != r.minute {
		r.count(now)
		r.minute = now.Unix() / 60
		clear(r.counts)
	}
}

// count adds the rows of what was left out. They are few, so that there is room for more than maxPending; while the database is
// away for hours the numbers add up.
func (r *refusals) count(now time.Time) {
	if len(r.pending) >= 2*maxPending {
		return
	}
	for reason, n := range r.left {
		r.pending = append(r.pending, &Refused{
			Time: stamp(now), Reason: reason, LeftOut: n, Detail: fmt.Sprintf("%d more requests were refused for this reason and have no record", n),
		})
	}
	clear(r.left)
}

// take returns what waits; at the end also the counts of a minute that is not over.
func (r *refusals) take(now time.Time, last bool) []*Refused {
	r.turn(now)
	if last {
		r.count(now)
	}
	rows := r.pending
	r.pending = nil
	return rows
}

// back returns rows that could not be written.
func (r *refusals) back(rows []*Refused) {
	r.pending = append(rows, r.pending...)
}

func (r *refusals) waiting() bool { return len(r.pending) > 0 }
