package ca

import (
	"context"
	"os"
	"time"

	"github.com/attestry/attestry/internal/reload"
)

// LookEvery is how often the files of a configuration are looked at.
const LookEvery = 2 * time.Second

// Loader reads a configuration. It tells reading the name of each file before it opens it, and
// takes over from before, the options in force (nil at the start), what has not changed: the keys of
// issuers (identity.Options.Previous), connections to the CT log. then, which may be nil, is called once the options are in force.
type Loader func(reading func(path string), before *Options) (o Options, then func(), err error)

// Open makes a CA of what load reads. Watch keeps it so.
func Open(load Loader) (*CA, error) {
	ca := &CA{}
	ca.files = reload.New(reload.Options{
		Load: func(reading func(string)) (func() error, error) {
			var before *Options
			if s := ca.current.Load(); s != nil {
				before = &s.opts
			}
			o, then, err := load(reading, before)
			if err != nil {
				return nil, err
			}
			return func() error {
				if err := ca.use(o); err != nil {
					return err
				}
				if then != nil {
					then()
				}
				return nil
			}, nil
		},
		Report:  ca.report,
		Patient: true, // a key and its chain are two files
	})
	if err := ca.files.Reload(); err != nil {
		return nil, err
	}
	return ca, nil
}

// use is New or Reload.
func (ca *CA) use(o Options) error {
	if ca.current.Load() == nil {
		return ca.begin(o)
	}
	return ca.Reload(o)
}

// report tells the log and the metrics of configurations that were taken or refused. It is first called
// when the CA has begun.
func (ca *CA) report(outcome reload.Outcome, err error) {
	s := ca.current.Load()
	switch outcome {
	case reload.Taken:
		s.logger.Info("configuration in force", "certificate", s.opts.Chain[0].Subject.String(), "not_after", s.notAfter.UTC().Format(time.RFC3339),
			"oidc_issuers", len(s.opts.Identity.Issuers()), "generation", ca.generation.Load())
	case reload.Refused:
		s.logger.Error("configuration refused; the one before it stays in force", "err", err)
		why := err.Error()
		ca.refused.Store(&why)
		ca.metrics.reloadFailed.Set(1)
		return
	case reload.Recovered:
		s.logger.Info("configuration is good again")
	}
	ca.refused.Store(nil)
	ca.metrics.reloadFailed.Set(0)
}

// Watch keeps a CA of Open equal to its files: it looks at each tick, every LookEvery say, and takes them over
// at each of signals (nil for none) at once. It warns of certificates that expire. It returns when ctx ends.
func (ca *CA) Watch(ctx context.Context, ticks <-chan time.Time, signals <-chan os.Signal) {
	for {
		ca.WarnOfExpiry()
		select {
		case <-ticks:
			_ = ca.files.Reload() // what it says is in the log already
		case <-signals:
			_ = ca.files.Force()
		case <-ctx.Done():
			return
		}
	}
}
