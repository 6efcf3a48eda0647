// Package logtest holds the contracts of pkg/log that every implementation has to pass.
package logtest

import (
	"errors"
	"sync"
	"testing"

	"github.com/attestry/attestry/pkg/log"
)

// Record returns a record of n leaves, with a root of its own and nothing promised beyond.
func Record(n uint64) log.Record {
	return log.Record{Size: n, Root: [32]byte{byte(n), byte(n >> 8), byte(n >> 16)}, Promised: n}
}

// Fence runs the contract of log.Fence. store makes an empty store and returns how to open it: as
// a process does that starts when the one before it, if any, has ended.
func Fence(t *testing.T, store func(t *testing.T) (open func() log.Fence)) {
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, open func() log.Fence)
	}{
		{"a record moves only from where the caller saw it", movesFromWhatWasSeen},
		{"one of sixteen writers wins", oneWriterWins},
		{"a record outlives its process", outlivesItsProcess},
		{"the last thousand records are kept and no more than that", keepsAThousand},
		{"counts of 63 bits are kept", keepsLargeCounts},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, store(t)) })
	}
}

func movesFromWhatWasSeen(t *testing.T, open func() log.Fence) {
	ctx, key, f := t.Context(), log.KeyID{1, 31: 1}, open()
	if r, err := f.Last(ctx, key); !errors.Is(err, log.ErrNoRecord) {
		t.Fatalf("a new key has %v, %v", r, err)
	}
	if err := f.Advance(ctx, key, Record(1), Record(2)); !errors.Is(err, log.ErrStale) {
		t.Errorf("from a record that is not there: %v", err)
	}
	if err := f.Advance(ctx, key, log.Record{}, Record(5)); err != nil {
		t.Fatal(err)
	}
	promised, forked := Record(5), Record(5)
	promised.Promised++
	forked.Root[31]++
	for name, prev := range map[string]log.Record{
		"none": {}, "another size": Record(4), "another root": forked, "another promise": promised,
	} {
		if err := f.Advance(ctx, key, prev, Record(6)); !errors.Is(err, log.ErrStale) {
			t.Errorf("from %s: %v, want ErrStale", name, err)
		}
	}
	if last, err := f.Last(ctx, key); err != nil || last != Record(5) {
		t.Errorf("stale calls left %v, %v", last, err)
	}
	if err := f.Advance(ctx, key, Record(5), promised); err != nil {
		t.Fatal(err)
	}
	if err := f.Advance(ctx, key, promised, Record(7)); err != nil {
		t.Fatal(err)
	}
	if r, err := f.Recorded(ctx, key, 5); err != nil || r != promised {
		t.Errorf("the newest record of size 5 is %v, %v", r, err)
	}
	if r, err := f.Recorded(ctx, key, 6); !errors.Is(err, log.ErrNoRecord) {
		t.Errorf("a size that never was has %v, %v", r, err)
	}
	for _, other := range []log.KeyID{{2}, {1}} { // the second one shares its beginning
		if r, err := f.Last(ctx, other); !errors.Is(err, log.ErrNoRecord) {
			t.Errorf("another key has %v, %v", r, err)
		}
		if err := f.Advance(ctx, other, log.Record{}, Record(3)); err != nil {
			t.Error(err)
		}
	}
	if last, err := f.Last(ctx, key); err != nil || last != Record(7) {
		t.Errorf("other keys moved the record to %v, %v", last, err)
	}
}

func oneWriterWins(t *testing.T, open func() log.Fence) {
	ctx, key, f := t.Context(), log.KeyID{2}, open()
	const writers = 16
	var prev log.Record
	for round := range uint64(30) {
		var next [writers]log.Record
		var errs [writers]error
		var wait sync.WaitGroup
		start := make(chan struct{})
		for i := range writers {
			next[i] = Record(round + 1)
			next[i].Root[30] = byte(i)
			wait.Go(func() {
				<-start
				errs[i] = f.Advance(ctx, key, prev, next[i])
			})
		}
		close(start)
		wait.Wait()
		var winners []int
		for i, err := range errs {
			if err == nil {
				winners = append(winners, i)
			} else if !errors.Is(err, log.ErrStale) {
				t.Errorf("round %d: %v", round, err)
			}
		}
		last, err := f.Last(ctx, key)
		if len(winners) != 1 || err != nil || last != next[winners[0]] {
			t.Fatalf("round %d: writers %v won, the record is %v, %v", round, winners, last, err)
		}
		prev = last
	}
}

func outlivesItsProcess(t *testing.T, open func() log.Fence) {
	ctx, key := t.Context(), log.KeyID{3}
	advanceTo(t, open(), key, 10)
	f := open()
	if last, err := f.Last(ctx, key); err != nil || last != Record(10) {
		t.Fatalf("after a restart the record is %v, %v", last, err)
	}
	if err := f.Advance(ctx, key, Record(9), Record(11)); !errors.Is(err, log.ErrStale) {
		t.Errorf("after a restart, from an old record: %v", err)
	}
	if err := f.Advance(ctx, key, Record(10), Record(11)); err != nil {
		t.Error(err)
	}
	if r, err := open().Recorded(ctx, key, 7); err != nil || r != Record(7) {
		t.Errorf("after a restart the record of size 7 is %v, %v", r, err)
	}
}

func keepsAThousand(t *testing.T, open func() log.Fence) {
	ctx, key := t.Context(), log.KeyID{4}
	advanceTo(t, open(), key, 1200)
	f := open()
	for _, size := range []uint64{1200, 1000, 201} {
		if r, err := f.Recorded(ctx, key, size); err != nil || r != Record(size) {
			t.Errorf("the record of size %d is %v, %v", size, r, err)
		}
	}
	if r, err := f.Recorded(ctx, key, 100); !errors.Is(err, log.ErrNoRecord) {
		t.Errorf("the record of long ago is %v, %v", r, err)
	}
}

func keepsLargeCounts(t *testing.T, open func() log.Fence) {
	ctx, key := t.Context(), log.KeyID{5}
	large := log.Record{Size: 1<<63 - 2, Root: [32]byte{1}, Promised: 1<<63 - 1}
	if err := open().Advance(ctx, key, log.Record{}, large); err != nil {
		t.Fatal(err)
	}
	if last, err := open().Last(ctx, key); err != nil || last != large {
		t.Errorf("the record is %v, %v", last, err)
	}
}

func advanceTo(t *testing.T, f log.Fence, key log.KeyID, n uint64) {
	t.Helper()
	prev := log.Record{}
	for i := uint64(1); i <= n; i++ {
		if err := f.Advance(t.Context(), key, prev, Record(i)); err != nil {
			t.Fatal(err)
		}
		prev = Record(i)
	}
}
