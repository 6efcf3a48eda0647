package ca

import (
	"sync/atomic"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

// maxStepBack is how far the clock may go back behind the newest certificate: what NTP corrects now and then.
const maxStepBack = time.Minute

// clock remembers the newest time at which this process issued a certificate. A clock that was set back would
// make expired tokens count again and give certificates a validity that is over. A clock that runs ahead leaves
// no mark here: the SCT of the CT log would be too old for it.
type clock struct {
	newest atomic.Int64 // seconds since the epoch
}

// issued notes that a certificate was issued at now.
func (c *clock) issued(now time.Time) {
	for {
		newest := c.newest.Load()
		if now.Unix() <= newest || c.newest.CompareAndSwap(newest, now.Unix()) {
			return
		}
	}
}

// check returns an error when now cannot be.
func (c *clock) check(now time.Time) error {
	newest := time.Unix(c.newest.Load(), 0)
	if newest.Unix() == 0 || newest.Sub(now) <= maxStepBack {
		return nil
	}
	return fault.New(fault.Unavailable, "clock_untrusted", nil,
		"%s: the CA's clock says %s, but a certificate was issued at %s; the operator must set the clock right, or restart the CA if that certificate's time was wrong",
		textBackend, now.UTC().Format(time.RFC3339), newest.UTC().Format(time.RFC3339))
}
