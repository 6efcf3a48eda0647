package log_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// TestAClockThatIsSteppedStopsNothingAndRewritesNothing steps the clock back and ahead while entries come, across a
// fault and across a restart. What was said stays said: times that were answered, SETs, and tree heads that only get newer.
func TestAClockThatIsSteppedStopsNothingAndRewritesNothing(t *testing.T) {
	ways(t, func(t *testing.T, way func(h *house) *house) {
		for kindName, kind := range kinds {
			t.Run(kindName, func(t *testing.T) {
				var unix atomic.Int64
				unix.Store(1_800_000_000)
				h := way(newHouse(t, kind))
				h.change = func(o *log.Options) { o.Now = func() time.Time { return time.Unix(unix.Load(), 0) } }
				h.mustOpen()
				var newest uint64 // timestamp of a tree head, in this process
				said := map[string]int64{}
				steps := []time.Duration{0, -time.Hour, 2 * time.Hour, -24 * time.Hour, time.Second, -time.Second, 365 * 24 * time.Hour, -2 * 365 * 24 * time.Hour}
				for i, step := range steps {
					unix.Add(int64(step.Seconds()))
					name := fmt.Sprintf("keyed entry %d, after a step of %v", i, step)
					switch i {
					case 3: // time and index are not durable, so the entry gets its time again by the new clock, or keeps that of receipt
						h.failRows("before completing")
					case 5:
						h.close()
						h.mustOpen()
						newest = 0
					}
					h.addUntilAnswered(name)
					receipt := h.acked[name]
					if at := receipt.IntegratedUnix; kind == log.Rekor1 && at != unix.Load() {
						t.Errorf("%s: integrated at %d, the clock says %d", name, at, unix.Load())
					}
					said[name] = receipt.IntegratedUnix
					if cp := h.log.Checkpoint(); cp.Size != uint64(i+1) {
						t.Errorf("%s: the signed tree has %d leaves, want %d", name, cp.Size, i+1)
					}
					if kind == log.CT || kind == log.CTPlain {
						for range 3 {
							head, err := h.log.TreeHead(t.Context())
							if err != nil {
								t.Fatal(err)
							}
							if head.Size != uint64(i+1) || head.TimestampMillis < newest {
								t.Errorf("%s: head of size %d at %d after one at %d", name, head.Size, head.TimestampMillis, newest)
							}
							newest = head.TimestampMillis
						}
					}
				}
				// The same entries again, by another clock: what was said is said again.
				unix.Add(-12345)
				for name, at := range said {
					receipt, err := h.log.Add(t.Context(), h.submission(name))
					if err != nil || !receipt.Duplicate || receipt.IntegratedUnix != at {
						t.Errorf("%s again: duplicate %v, integrated at %d, was %d, %v", name, receipt.Duplicate, receipt.IntegratedUnix, at, err)
					}
				}
				h.verify()
				h.close()
				h.mustOpen()
				h.verify()
			})
		}
	})
}

// steppingTree steps the clock in an append that takes effect and fails.
type steppingTree struct {
	log.TileTree
	step func()
}

func (s *steppingTree) Append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	indexes, err := s.TileTree.Append(ctx, batch)
	if step := s.step; step != nil && err == nil {
		s.step = nil
		step()
		return nil, errInjected
	}
	return indexes, err
}

// TestALeafThatNobodyWasAnsweredForKeepsItsTimeOfReceipt has the clock go back between the tree and the rows: recovery gives
// the leaf the time that its reservation kept.
func TestALeafThatNobodyWasAnsweredForKeepsItsTimeOfReceipt(t *testing.T) {
	const received = 1_800_000_000
	var unix atomic.Int64
	unix.Store(received)
	h := newHouse(t, log.Rekor1)
	h.change = func(o *log.Options) {
		o.Now = func() time.Time { return time.Unix(unix.Load(), 0) }
		o.Tree = &steppingTree{TileTree: h.tree, step: func() { unix.Add(-3600) }}
	}
	h.mustOpen()
	if err := h.add("keyed and cut off"); fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("an append that failed was answered with %v", err)
	}
	h.addUntilAnswered("keyed and cut off")
	if at := h.acked["keyed and cut off"].IntegratedUnix; at != received {
		t.Errorf("integrated at %d, want the time of receipt %d", at, received)
	}
	h.verify()
}
