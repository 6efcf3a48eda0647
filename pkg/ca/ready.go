package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Ready returns nil while certificates can be issued: the key signs, the chain is valid now, the clock
// has not gone back, records can be written, and the CT log, where it can tell, takes entries. It signs only after a signature has
// failed. Issuers that are down do not count, see Notes.
func (ca *CA) Ready(ctx context.Context) error {
	s := ca.current.Load()
	_, _, err := s.window()
	errs := []error{err, s.signer.ready(ctx, func() error { return s.issuing.selfTest(s.opts.Rand) })}
	if s.opts.Recorder != nil {
		errs = append(errs, s.opts.Recorder.Ready(ctx))
	}
	if log, ok := s.opts.CT.(interface{ Ready(context.Context) error }); ok {
		errs = append(errs, log.Ready(ctx))
	}
	return errors.Join(errs...)
}

// Notes says what an operator should see and what does not make the CA unready, a line each: issuers
// whose keys could not be fetched, and a configuration that was refused.
func (ca *CA) Notes() []string {
	var notes []string
	if why := ca.refused.Load(); why != nil {
		notes = append(notes, fmt.Sprintf("the configuration was changed and refused, the one before it is in force: %s", *why))
	}
	for _, k := range ca.current.Load().opts.Identity.KeyStatus() {
		switch {
		case k.Err != nil && k.Fetched.IsZero():
			notes = append(notes, fmt.Sprintf("issuer %s: there are no keys: %s", k.Issuer, k.Err))
		case k.Err != nil:
			notes = append(notes, fmt.Sprintf("issuer %s: the keys are of %s: %s", k.Issuer, k.Fetched.UTC().Format(time.RFC3339), k.Err))
		}
	}
	return notes
}

// expiryWarnings are the days before the end of a CA certificate from which on the log says so, once a day.
var expiryWarnings = [...]struct {
	days  int
	level slog.Level
}{{7, slog.LevelError}, {30, slog.LevelWarn}, {60, slog.LevelWarn}}

// warned remembers what the log has been told of certificates that will expire.
type warned struct {
	mu   sync.Mutex // guards what follows
	last map[[32]byte]warning
}

type warning struct {
	days int // of the threshold
	when time.Time
}

// WarnOfExpiry writes a line for each certificate of the chain whose end is near: from 60, 30 and 7 days before it, and then
// once a day. Call it from time to time; Watch does.
func (ca *CA) WarnOfExpiry() {
	s := ca.current.Load()
	now := s.opts.Now()
	ca.warned.mu.Lock()
	defer ca.warned.mu.Unlock()
	last := map[[32]byte]warning{} // of this chain only
	for _, cert := range s.opts.Chain {
		fingerprint := sha256.Sum256(cert.Raw)
		if w, ok := s.warnOfExpiry(cert, now, ca.warned.last[fingerprint]); ok {
			last[fingerprint] = w
		}
	}
	ca.warned.last = last
}

func (ca *snapshot) warnOfExpiry(cert *x509.Certificate, now time.Time, before warning) (warning, bool) {
	left := cert.NotAfter.Sub(now)
	for _, w := range expiryWarnings {
		if left > time.Duration(w.days)*24*time.Hour {
			continue
		}
		if before.days == w.days && now.Sub(before.when) < 24*time.Hour {
			return before, true
		}
		fingerprint := sha256.Sum256(cert.Raw)
		ca.logger.Log(context.Background(), w.level, "a certificate of the CA expires soon", "subject", cert.Subject.String(),
			"sha256", hex.EncodeToString(fingerprint[:]), "not_after", cert.NotAfter.UTC().Format(time.RFC3339), "days", int(left.Hours()/24))
		return warning{w.days, now}, true
	}
	return warning{}, false
}
