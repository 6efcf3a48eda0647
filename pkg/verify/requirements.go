package verify

import "fmt"

// Requirements are how many proofs of each kind a bundle must carry. A threshold counts distinct
// logs and distinct authorities.
type Requirements struct {
	LogEntries           int // entries whose inclusion is proven (or, in v0.1 bundles, promised)
	SCTs                 int // SCTs in the certificate; ignored for keys
	IntegratedTimestamps int // times vouched for by the SET of a Rekor v1 entry
	SignedTimestamps     int // RFC 3161 timestamps
	ObserverTimestamps   int // of the last two kinds together
}

// requirements derives what a bundle must prove from the trusted root, so that removing a field from a
// bundle can never lower the bar. The policy may replace the derivation as a whole.
func (a *attempt) requirements() (Requirements, error) {
	r, err := a.derive()
	if err != nil {
		return r, err
	}
	a.policy.Thresholds.apply(&r)
	return r, nil
}

func (a *attempt) derive() (Requirements, error) {
	if r := a.policy.Requirements; r != nil {
		return *r, nil
	}
	root := a.root
	keyless := a.policy.Key == nil
	var r Requirements
	if len(root.tlogs) > 0 {
		r.LogEntries = 1
	}
	if keyless && len(root.ctlogs) > 0 {
		r.SCTs = 1
	}
	if keyless {
		switch {
		case len(root.tlogs) > 0:
			r.ObserverTimestamps = 1
		case len(root.tsas) > 0:
			r.SignedTimestamps = 1
		default:
			return r, fail(ReasonTrustMissing, nil, "the trusted root has neither a transparency log nor a timestamp authority: a short-lived certificate cannot be judged")
		}
		if len(root.cas) == 0 {
			return r, fail(ReasonTrustMissing, nil, "the trusted root has no certificate authority")
		}
	}
	return r, nil
}

// MaxThreshold is the highest number that a threshold may have: a bundle carries no more entries or timestamps.
const MaxThreshold = maxEntries

// Thresholds are numbers of Requirements to replace; nil leaves what is derived. A number may lower the bar, since who writes a policy
// may; what a bundle lacks never does.
type Thresholds struct {
	LogEntries, SCTs, IntegratedTimestamps, SignedTimestamps, ObserverTimestamps *int
}

func (t *Thresholds) check() error {
	for _, n := range []*int{t.LogEntries, t.SCTs, t.IntegratedTimestamps, t.SignedTimestamps, t.ObserverTimestamps} {
		if n != nil && (*n < 0 || *n > MaxThreshold) {
			return fmt.Errorf("the policy's threshold %d is not between 0 and %d", *n, MaxThreshold)
		}
	}
	return nil
}

func (t *Thresholds) apply(r *Requirements) {
	for _, n := range []struct{ given, of *int }{
		{t.LogEntries, &r.LogEntries},
		{t.SCTs, &r.SCTs},
		{t.IntegratedTimestamps, &r.IntegratedTimestamps},
		{t.SignedTimestamps, &r.SignedTimestamps},
		{t.ObserverTimestamps, &r.ObserverTimestamps},
	} {
		if n.given != nil {
			*n.of = *n.given
		}
	}
}
