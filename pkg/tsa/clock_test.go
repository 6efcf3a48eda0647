package tsa

import (
	"crypto"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

// fakeTime is a machine's two clocks.
type fakeTime struct {
	wall      time.Time
	monotonic time.Duration
}

func (f *fakeTime) read() (time.Time, time.Duration) { return f.wall, f.monotonic }
func (f *fakeTime) pass(d time.Duration)             { f.wall, f.monotonic = f.wall.Add(d), f.monotonic+d }
func (f *fakeTime) set(d time.Duration)              { f.wall = f.wall.Add(d) }

// fakeMemory is a LastIssued whose Store can be made to fail.
type fakeMemory struct {
	stored time.Time
	err    error
}

func (m *fakeMemory) Load() (time.Time, error) { return m.stored, nil }
func (m *fakeMemory) Store(t time.Time) error {
	if m.err == nil {
		m.stored = t
	}
	return m.err
}

func TestTheClockIsBelievedOnlyWhileNothingSpeaksAgainstIt(t *testing.T) {
	begin := time.Date(2026, 5, 1, 12, 0, 0, 900e6, time.UTC)
	for _, tt := range []struct {
		name   string
		memory time.Time // stored before the start
		happen func(*fakeTime, *clock)
		want   string // of the last genTime, RFC 3339; "" is a refusal
	}{
		{"genTime is cut to the second", time.Time{}, func(*fakeTime, *clock) {}, "2026-05-01T12:00:00Z"},
		{"time passes", time.Time{}, func(f *fakeTime, _ *clock) { f.pass(time.Hour) }, "2026-05-01T13:00:00Z"},
		{"a step forward stops it", time.Time{}, func(f *fakeTime, _ *clock) { f.set(time.Minute) }, ""},
		{"a step back stops it", time.Time{}, func(f *fakeTime, _ *clock) { f.set(-time.Minute) }, ""},
		{"a step under half a second is within the accuracy", time.Time{}, func(f *fakeTime, _ *clock) { f.set(-400 * time.Millisecond) }, "2026-05-01T12:00:00Z"},
		{"small steps add up", time.Time{}, func(f *fakeTime, c *clock) {
			for range 3 {
				f.set(300 * time.Millisecond)
				c.genTime()
			}
		}, ""},
		{"after a step forward it settles", time.Time{}, func(f *fakeTime, c *clock) {
			f.set(time.Minute)
			c.genTime()
			f.pass(settling)
		}, "2026-05-01T12:01:05Z"},
		{"another step while settling starts over", time.Time{}, func(f *fakeTime, c *clock) {
			f.set(time.Minute)
			c.genTime()
			f.pass(settling - time.Second)
			f.set(time.Minute)
			c.genTime()
			f.pass(settling - time.Second)
		}, ""},
		{"after a step back it stays below no issued second", time.Time{}, func(f *fakeTime, c *clock) {
			c.genTime()
			f.set(-time.Minute)
			c.genTime()
			f.pass(settling)
		}, ""},
		{"it goes on once the newest second is reached again", time.Time{}, func(f *fakeTime, c *clock) {
			c.genTime()
			f.set(-time.Minute)
			c.genTime()
			f.pass(time.Minute)
		}, "2026-05-01T12:00:00Z"},
		{"a restart with the clock a minute back", begin.Add(time.Minute), func(*fakeTime, *clock) {}, ""},
		{"a restart with the clock a little back repeats the newest second", begin.Add(100 * time.Millisecond), func(*fakeTime, *clock) {}, "2026-05-01T12:00:01Z"},
		{"before the chain is valid", time.Time{}, func(f *fakeTime, _ *clock) { f.pass(-2 * time.Hour) }, ""},
		{"in the chain's last second", time.Time{}, func(f *fakeTime, _ *clock) { f.pass(48*time.Hour - time.Second) }, "2026-05-03T11:59:59Z"},
		{"when the chain expired", time.Time{}, func(f *fakeTime, _ *clock) { f.pass(48 * time.Hour) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fakeTime{wall: begin}
			c, err := newClock(f.read, time.Second, begin.Truncate(time.Second).Add(-time.Hour), begin.Truncate(time.Second).Add(48*time.Hour),
				&fakeMemory{stored: tt.memory.Truncate(time.Second)}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			tt.happen(f, c)
			ready := c.ready()
			got, err := c.genTime()
			if tt.want == "" {
				if err == nil || failureOf(err) != timeNotAvailable || fault.KindOf(err) != fault.Unavailable {
					t.Fatalf("genTime = %v, %v, want timeNotAvailable", got, err)
				}
				if ready == nil {
					t.Error("ready, but refusing")
				}
				return
			}
			if err != nil || got.Format(time.RFC3339) != tt.want {
				t.Errorf("genTime = %v, %v, want %s", got, err, tt.want)
			}
			if ready != nil {
				t.Errorf("issuing, but not ready: %v", ready)
			}
		})
	}
}

func TestASecondThatCannotBeStoredIsNotIssued(t *testing.T) {
	begin := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	f, memory := &fakeTime{wall: begin}, &fakeMemory{err: errors.New("no space left on device")}
	c, err := newClock(f.read, time.Second, begin, begin.Add(time.Hour), memory, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // also within the same second
		if _, err := c.genTime(); err == nil || failureOf(err) != systemFailure {
			t.Fatalf("error %v, want systemFailure", err)
		}
	}
	if c.ready() == nil {
		t.Error("ready without memory")
	}
	memory.err = nil
	if _, err := c.genTime(); err != nil || !memory.stored.Equal(begin) {
		t.Errorf("after the disk was mended: %v, stored %v", err, memory.stored)
	}
}

func TestTheNewestSecondSurvivesARestart(t *testing.T) {
	path := FileLastIssued(filepath.Join(t.TempDir(), "last-issued"))
	now := time.Now().Truncate(time.Second)
	q := &Query{Hash: crypto.SHA256, Digest: make([]byte, 32)}
	first := newAuthority(t, func(o *Options) { o.LastIssued, o.Now = path, func() time.Time { return now } })
	issue(t, first, q)
	if stored, err := path.Load(); err != nil || !stored.Equal(now) {
		t.Fatalf("stored %v, %v, want %v", stored, err, now)
	}
	second := newAuthority(t, func(o *Options) {
		o.LastIssued, o.Now = path, func() time.Time { return now.Add(-10 * time.Second) }
	})
	if _, err := second.Issue(t.Context(), q); failureOf(err) != timeNotAvailable {
		t.Errorf("error %v, want timeNotAvailable", err)
	}
	if err := os.WriteFile(string(path), []byte("yesterday"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := path.Load()
	mention(t, err, "write the genTime of the newest timestamp into it")
}

func TestTheRealClockIsReadWithItsMonotonicHalf(t *testing.T) {
	read := reader(nil, nil)
	wall, first := read()
	_, second := read()
	if first < 0 || second < first {
		t.Errorf("monotonic %v, then %v", first, second)
	}
	if wall != wall.Round(0) {
		t.Error("the wall time still has a monotonic reading: comparing two would not see a step")
	}
}
