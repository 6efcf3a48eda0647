package ca

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"golang.org/x/time/rate"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// maxIdentities is how many identities' budgets are remembered, about 4 MiB.
const maxIdentities = 16384

// issuerBudgets makes a budget for each configured issuer that has a limit. Those that had one before go on
// from what is left of it.
func issuerBudgets(v *identity.Verifier, before map[string]*rate.Limiter, now time.Time) map[string]*rate.Limiter {
	out := map[string]*rate.Limiter{}
	for _, i := range v.Issuers() {
		if i.RateLimit == nil {
			continue
		}
		limiter := before[i.URL]
		if limiter == nil {
			limiter = rate.NewLimiter(0, i.RateLimit.Burst)
		}
		limiter.SetLimitAt(now, rate.Limit(i.RateLimit.PerSecond))
		limiter.SetBurstAt(now, i.RateLimit.Burst)
		out[i.URL] = limiter
	}
	return out
}

// admit takes a certificate from the budgets of p's identity and, behind it, of the issuer: one identity must not
// use up what is meant for all. It runs once the token is verified, so that nobody spends what is another's, and
// before anything is signed.
func (ca *snapshot) admit(p *identity.Principal, entry *identity.Issuer) error {
	now := ca.opts.Now()
	if ca.opts.IdentityLimit.PerSecond > 0 {
		if wait := ca.identities.Spend(identityKey(p), now, 1); wait > 0 {
			return limited(wait, "too many certificates for one identity")
		}
	}
	limiter := ca.issuers[entry.URL]
	if limiter == nil {
		return nil
	}
	reserved := limiter.ReserveN(now, 1)
	wait := reserved.DelayFrom(now)
	if wait > 0 {
		reserved.CancelAt(now)
		return limited(wait, "too many certificates for tokens of one issuer")
	}
	return nil
}

func limited(wait time.Duration, what string) error {
	err := fault.New(fault.Limited, "rate_limited", nil, "%s; try again later", what)
	err.RetryAfter = wait
	return err
}

func identityKey(p *identity.Principal) [32]byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(p.OIDCIssuer)))
	b = append(append(b, p.OIDCIssuer...), byte(p.SAN.Kind))
	return sha256.Sum256(append(b, p.SAN.Value...))
}
