package records_test

import (
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/records"
)

// use is a new request's use of a token that is good for a minute.
func use(c *clock, token string) ca.TokenUse {
	u := ca.TokenUse{TokenID: sum(token), Expires: c.Now().Add(time.Minute)}
	rand.Read(u.Holder[:])
	return u
}

// issueWith records a certificate for a token.
func issueWith(t testing.TB, s *records.Store, c *clock, u ca.TokenUse) error {
	i := issuance(c, "alice")
	i.Use = &u
	return s.Issued(t.Context(), i)
}

func tokensLeft(t testing.TB, uri string) (n int) {
	t.Helper()
	if err := raw(t, uri).QueryRow(`SELECT COUNT(*) FROM tokens`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestATokenCountsOnce(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s, other := open(t, uri, c), open(t, uri, c)
		first := use(c, "a")
		if _, err := s.Reserve(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		for _, replica := range []*records.Store{s, other} {
			_, err := replica.Reserve(t.Context(), use(c, "a"))
			wantReason(t, err, fault.Overloaded, "token_in_use")
		}
		if _, err := other.Reserve(t.Context(), use(c, "b")); err != nil {
			t.Errorf("another token: %v", err)
		}
		wantReason(t, issueWith(t, s, c, use(c, "a")), fault.Unauthentic, "replayed") // somebody who does not hold it
		if err := issueWith(t, s, c, first); err != nil {
			t.Fatal(err)
		}
		for _, replica := range []*records.Store{s, other} {
			_, err := replica.Reserve(t.Context(), use(c, "a"))
			wantReason(t, err, fault.Unauthentic, "replayed")
			wantReason(t, issueWith(t, replica, c, first), fault.Unauthentic, "replayed")
		}
		if rows := find(t, reader(t, uri), records.Query{}); len(rows) != 1 {
			t.Errorf("%d certificates were recorded", len(rows))
		}
	})
}

func TestATokenWithoutACertificateCountsAgain(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s, other := open(t, uri, c), open(t, uri, c)
		release, err := s.Reserve(t.Context(), use(c, "a"))
		if err != nil {
			t.Fatal(err)
		}
		release()
		crashed := use(c, "a")
		if _, err := s.Reserve(t.Context(), crashed); err != nil {
			t.Fatalf("after the release: %v", err)
		}
		c.advance(ca.HoldTime + time.Millisecond)
		next := use(c, "a")
		if _, err := other.Reserve(t.Context(), next); err != nil {
			t.Fatalf("after a request that never ended: %v", err)
		}
		wantReason(t, issueWith(t, s, c, crashed), fault.Unauthentic, "replayed") // which ends after all
		if err := issueWith(t, other, c, next); err != nil {
			t.Error(err)
		}
		if rows := find(t, reader(t, uri), records.Query{}); len(rows) != 1 {
			t.Errorf("%d certificates were recorded", len(rows))
		}
	})
}

func TestReleasingGivesNothingBackThatWasUsed(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s := open(t, uri, c)
		u := use(c, "a")
		release, err := s.Reserve(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		if err := issueWith(t, s, c, u); err != nil {
			t.Fatal(err)
		}
		release()
		_, err = s.Reserve(t.Context(), use(c, "a"))
		wantReason(t, err, fault.Unauthentic, "replayed")
	})
}

func TestUsedTokensAreForgottenLongAfterTheirEnd(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s := open(t, uri, c)
		for n := range 70 { // more than one statement takes
			u := use(c, fmt.Sprint(n))
			if _, err := s.Reserve(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			if err := issueWith(t, s, c, u); err != nil {
				t.Fatal(err)
			}
		}
		c.advance(time.Hour)
		if _, err := s.Reserve(t.Context(), use(c, "later")); err != nil {
			t.Fatal(err)
		}
		if n := tokensLeft(t, uri); n != 71 {
			t.Errorf("%d tokens are remembered an hour later, want 71: the clock may be set back", n)
		}
		c.advance(2 * time.Hour)
		if _, err := s.Reserve(t.Context(), use(c, "much later")); err != nil {
			t.Fatal(err)
		}
		if n := tokensLeft(t, uri); n > 2 {
			t.Errorf("%d tokens are still remembered", n)
		}
	})
}

// TestOneTokenManyRequestsOneCertificate is a race on two replicas, over many tokens, each with as many requests.
func TestOneTokenManyRequestsOneCertificate(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		const tokens, requests = 20, 40
		c := newClock()
		replicas := []*records.Store{open(t, uri, c), open(t, uri, c)}
		var issued [tokens]atomic.Int64
		var all sync.WaitGroup
		for n := range tokens * requests {
			all.Go(func() {
				s := replicas[n/tokens%2]
				u := use(c, fmt.Sprint("token ", n%tokens))
				release, err := s.Reserve(t.Context(), u)
				if err != nil {
					if reason := fault.ReasonOf(err); reason != "token_in_use" && reason != "replayed" {
						t.Error(err)
					}
					return
				}
				if n%3 == 0 { // the CT log fails
					release()
					return
				}
				if err := issueWith(t, s, c, u); err != nil {
					t.Error(err)
					return
				}
				issued[n%tokens].Add(1)
			})
		}
		all.Wait()
		want := 0
		for n := range issued {
			got := issued[n].Load()
			if got > 1 {
				t.Errorf("token %d gave %d certificates", n, got)
			}
			want += int(got)
		}
		rows := find(t, reader(t, uri), records.Query{})
		if len(rows) != want || want == 0 {
			t.Errorf("%d certificates were answered, %d recorded", want, len(rows))
		}
	})
}
