package identity

import (
	"fmt"
	"math"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// RateLimit is a budget of certificates.
type RateLimit struct {
	PerSecond float64 // what comes back each second, up to a million; 0 for no limit
	Burst     int     // what an unused budget has saved up, at least 1
}

const maxRate = 1e6

// Check reports a limit that is none.
func (r RateLimit) Check() error {
	switch {
	case !(r.PerSecond > 0 && r.PerSecond <= maxRate): // NaN is neither
		return fmt.Errorf("per-second %v is not over 0 and up to %v", r.PerSecond, maxRate)
	case r.Burst < 1 || r.Burst > maxRate:
		return fmt.Errorf("burst %d is not between 1 and %v", r.Burst, maxRate)
	}
	return nil
}

// rate sets a limit. Without a burst it is what comes back in a second.
func (d *decoder) rate(dst **RateLimit) func(*yaml.Node) {
	return func(n *yaml.Node) {
		limit := &RateLimit{}
		var perSecond, burst string
		d.fields(n, "rate-limit", []field{{"per-second", "", d.text(&perSecond)}, {"burst", "", d.text(&burst)}})
		var err error
		if limit.PerSecond, err = strconv.ParseFloat(perSecond, 64); err != nil {
			d.addf(resolve(n), "rate-limit: per-second %q is not a number", perSecond)
			return
		}
		if limit.Burst = int(math.Ceil(min(limit.PerSecond, maxRate))); burst != "" {
			if limit.Burst, err = strconv.Atoi(burst); err != nil {
				d.addf(resolve(n), "rate-limit: burst %q is not a whole number", burst)
				return
			}
		}
		*dst = limit
	}
}
