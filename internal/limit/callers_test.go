package limit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

func request(remote string, forwarded ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.RemoteAddr = remote
	for _, f := range forwarded {
		r.Header.Add("X-Forwarded-For", f)
	}
	return r
}

func TestABudgetIsSpentAndComesBack(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	c := NewCallers(CallerOptions{PerSecond: 2, Burst: 10, Now: func() time.Time { return now }})
	alice, bob := request("192.0.2.1:1000"), request("192.0.2.2:1000")
	if err := c.Spend(alice, 10); err != nil {
		t.Fatal(err)
	}
	err := c.Spend(alice, 5)
	if fault.KindOf(err) != fault.Limited || fault.RetryAfter(err) != "3" {
		t.Errorf("an empty budget: %v, Retry-After %q; want fault.Limited for 2.5 s", err, fault.RetryAfter(err))
	}
	if err := c.Spend(bob, 10); err != nil {
		t.Errorf("another caller: %v", err)
	}
	now = now.Add(2500 * time.Millisecond)
	if err := c.Spend(alice, 5); err != nil {
		t.Errorf("after 2.5 s, the refusal having cost nothing: %v", err)
	}
	now = now.Add(time.Hour)
	if err := c.Spend(alice, 1000); err != nil {
		t.Errorf("more than a budget can ever hold, with a full one: %v", err)
	}
	if err := errors.Join((*Callers)(nil).Spend(alice, 1000), (*Callers)(nil).Left(alice)); err != nil {
		t.Errorf("without budgets: %v", err)
	}
	if err := c.Left(alice); fault.KindOf(err) != fault.Limited || fault.RetryAfter(err) != "1" {
		t.Errorf("nothing is left: %v, Retry-After %q", err, fault.RetryAfter(err))
	}
	now = now.Add(500 * time.Millisecond)
	for range 20 {
		if err := c.Left(alice); err != nil {
			t.Errorf("one unit is left, and asking takes none: %v", err)
		}
	}
}

func TestWhoTheCallerIs(t *testing.T) {
	proxies, err := ParseProxies([]string{"10.0.0.0/8", "fd00::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		request *http.Request
		want    string
	}{
		{"whoever opened the connection", request("192.0.2.1:1000"), "192.0.2.1"},
		{"an IPv6 network of 64 bits", request("[2001:db8:1:2:3:4:5:6]:1000"), "2001:db8:1:2::"},
		{"IPv4 in IPv6 is IPv4", request("[::ffff:192.0.2.1]:1000"), "192.0.2.1"},
		{"a zone does not tell callers apart", request("[fe80::1%eth0]:1000"), "fe80::"},
		{"a stranger's header counts for nothing", request("192.0.2.1:1000", "198.51.100.7"), "192.0.2.1"},
		{"a proxy's header names the caller", request("10.1.2.3:1000", "198.51.100.7"), "198.51.100.7"},
		{"by IPv6 too", request("[fd00::1]:1000", "2001:db8::7"), "2001:db8::"},
		{"what the caller wrote before it does not", request("10.1.2.3:1000", "203.0.113.9, 198.51.100.7"), "198.51.100.7"},
		{"proxies in a row are passed", request("10.1.2.3:1000", "198.51.100.7, 10.9.9.9", "10.8.8.8"), "198.51.100.7"},
		{"a proxy without header", request("10.1.2.3:1000"), "10.1.2.3"},
		{"nonsense leaves the hop that sent it", request("10.1.2.3:1000", "198.51.100.7, unknown"), "10.1.2.3"},
		{"no address", request("@"), "invalid IP"},
	} {
		c := NewCallers(CallerOptions{Proxies: proxies})
		if got := c.address(tt.request).String(); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	if _, err := ParseProxies([]string{"example.com"}); err == nil {
		t.Error("a host name was taken for an address")
	}
}

func TestCallersAreForgottenBeforeTheyFillTheMemory(t *testing.T) {
	c := NewCallers(CallerOptions{PerSecond: 0.001, Burst: 1})
	regular := request("192.0.2.1:1000")
	if err := c.Spend(regular, 1); err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxCallers {
		if err := c.Spend(request(fmt.Sprintf("[2001:db8:%x:%x::1]:1000", i>>16, i&0xffff)), 1); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 && c.Spend(regular, 1) == nil {
			t.Fatal("a caller who keeps coming was forgotten and got a new budget")
		}
	}
	if b := c.budgets; b.recent.Len() != maxCallers || len(b.known) != maxCallers {
		t.Errorf("%d and %d callers are remembered, want %d", b.recent.Len(), len(b.known), maxCallers)
	}
}

func TestWorkIsBoundedAndSoIsItsQueue(t *testing.T) {
	const workers, queue = 2, 3
	w := NewWork(workers, queue)
	var busy, most atomic.Int64
	leave, started := make(chan struct{}), make(chan struct{}, workers)
	f := func() {
		if n := busy.Add(1); n > most.Load() {
			most.Store(n)
		}
		started <- struct{}{}
		<-leave
		busy.Add(-1)
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			if err := w.Do(t.Context(), f); err != nil {
				t.Error(err)
			}
		})
		<-started
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, queue)
	for range queue {
		go func() { gone <- w.Do(ctx, func() { t.Error("ran though its caller had left") }) }()
	}
	for len(w.admitted) < workers+queue { // until all of them wait
		select {
		case err := <-gone:
			t.Fatal(err)
		default:
		}
	}
	if err := w.Do(t.Context(), f); fault.KindOf(err) != fault.Overloaded {
		t.Errorf("with a full queue: %v, want fault.Overloaded", err)
	}
	cancel()
	for range queue {
		if err := <-gone; fault.KindOf(err) != fault.Canceled {
			t.Errorf("a caller who left: %v", err)
		}
	}
	close(leave)
	wg.Wait()
	if most.Load() != workers {
		t.Errorf("%d at once, want %d", most.Load(), workers)
	}
	ran := false
	if err := (*Work)(nil).Do(t.Context(), func() { ran = true }); err != nil || !ran {
		t.Errorf("without a bound: %v, ran %t", err, ran)
	}
}
