package limit

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Budgets gives each of many keys a budget of its own. Those used last are remembered, a fixed number of
// them; a key that was forgotten begins again with a full budget. Its methods may be called concurrently.
type Budgets[K comparable] struct {
	max int

	mu        sync.Mutex // guards what follows
	perSecond float64
	burst     int
	known     map[K]*list.Element
	recent    *list.List // of *budget[K], most recent first
}

type budget[K comparable] struct {
	key     K
	limiter *rate.Limiter
}

// NewBudgets remembers up to max budgets, which are full at first: burst units, and perSecond more each second.
func NewBudgets[K comparable](perSecond float64, burst, max int) *Budgets[K] {
	return &Budgets[K]{max: max, perSecond: perSecond, burst: burst, known: map[K]*list.Element{}, recent: list.New()}
}

// Set changes what a budget is. Budgets that are known go on from what is left of them.
func (b *Budgets[K]) Set(now time.Time, perSecond float64, burst int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if perSecond == b.perSecond && burst == b.burst {
		return
	}
	b.perSecond, b.burst = perSecond, burst
	for _, e := range b.known {
		limiter := e.Value.(*budget[K]).limiter
		limiter.SetLimitAt(now, rate.Limit(perSecond))
		limiter.SetBurstAt(now, burst)
	}
}

// Spend takes units, at most the burst, from the budget of key. When the budget does not have them nothing is taken,
// and wait is when it will.
func (b *Budgets[K]) Spend(key K, now time.Time, units int) (wait time.Duration) {
	limiter := b.of(key)
	reserved := limiter.ReserveN(now, min(units, limiter.Burst()))
	if !reserved.OK() { // the burst has become smaller at this very moment
		return time.Second
	}
	if wait = reserved.DelayFrom(now); wait > 0 {
		reserved.CancelAt(now)
	}
	return wait
}

// Wait is how long it will be until the budget of key has a unit, 0 when it has one. It takes nothing.
func (b *Budgets[K]) Wait(key K, now time.Time) time.Duration {
	b.mu.Lock()
	e := b.known[key]
	b.mu.Unlock()
	if e == nil {
		return 0
	}
	limiter := e.Value.(*budget[K]).limiter
	missing := 1 - limiter.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / float64(limiter.Limit()) * float64(time.Second))
}

func (b *Budgets[K]) of(key K) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.known[key]; e != nil {
		b.recent.MoveToFront(e)
		return e.Value.(*budget[K]).limiter
	}
	if b.recent.Len() >= b.max {
		oldest := b.recent.Remove(b.recent.Back()).(*budget[K])
		delete(b.known, oldest.key)
	}
	fresh := &budget[K]{key, rate.NewLimiter(rate.Limit(b.perSecond), b.burst)}
	b.known[key] = b.recent.PushFront(fresh)
	return fresh.limiter
}
