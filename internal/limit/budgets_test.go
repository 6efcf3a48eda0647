package limit

import (
	"testing"
	"time"
)

func TestBudgetsOfKeys(t *testing.T) {
	now := time.Unix(1000, 0)
	b := NewBudgets[string](2, 3, 2)
	spend := func(doing, key string, units int, want time.Duration) {
		t.Helper()
		if got := b.Spend(key, now, units); got != want {
			t.Errorf("%s: wait %v, want %v", doing, got, want)
		}
	}
	spend("as much as was saved", "a", 3, 0)
	spend("one more", "a", 1, 500*time.Millisecond)
	spend("the refused one took nothing", "a", 1, 500*time.Millisecond)
	spend("more than a budget holds", "b", 100, 0)
	for key, want := range map[string]time.Duration{"a": 500 * time.Millisecond, "b": 500 * time.Millisecond, "unknown": 0} {
		if got := b.Wait(key, now); got != want {
			t.Errorf("wait for %s is %v, want %v", key, got, want)
		}
	}
	now = now.Add(time.Second)
	spend("two came back", "a", 2, 0)
	spend("and no more", "a", 1, 500*time.Millisecond)
	if got := b.Wait("b", now); got != 0 {
		t.Errorf("b must wait %v", got)
	}
	spend("a third key", "c", 3, 0) // b is forgotten: a was used after it
	spend("what was used last is remembered", "a", 1, 500*time.Millisecond)
	spend("what was forgotten is full again", "b", 3, 0)

	b.Set(now, 1, 1)
	spend("a smaller budget goes on from what is left", "a", 1, time.Second)
	b.Set(now, 1, 1)
	now = now.Add(time.Hour)
	spend("and holds no more than the new burst", "a", 3, 0)
	spend("which is one", "a", 1, time.Second)
	spend("new ones as well", "new", 1, 0)
	spend("have one", "new", 1, time.Second)
}
