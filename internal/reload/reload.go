// Package reload keeps what a server made of files equal to them while it runs. It compares contents: a
// file rewritten in place or replaced by a rename, a symbolic link turned elsewhere and a directory exchanged
// above it, as Kubernetes does it, are all the same to it.
package reload

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// MaxFile bounds how much of one file is compared, bytes. What a loader accepts must be smaller.
const MaxFile = 8 << 20

// attempts is how often files are read anew that changed while they were read.
const attempts = 3

// Outcome is what became of files that have changed.
type Outcome int

const (
	Taken     Outcome = iota // they are in force
	Refused                  // what was in force before stays; the error says why, each reason once
	Recovered                // after Refused: the files are good again
)

// Options of New.
type Options struct {
	// Load reads the files, telling reading the name of each before it opens it, and returns what
	// puts them in force. use may fail too, and then must have changed nothing.
	Load func(reading func(path string)) (use func() error, err error)
	// Report is told what Reload did, one call after another.
	Report func(Outcome, error)
	// Patient is for files that belong together and are not replaced at one instant: an error counts
	// when it meets the same contents twice.
	Patient bool
}

// Watcher takes files over when they change. Its methods may be called concurrently.
type Watcher struct {
	opts Options

	mu      sync.Mutex // guards what follows, held while files are taken over
	inForce prints     // what the files had when they were taken; nil before the first time
	failed  prints     // what they had when they were refused last
	problem string     // the reported reason; empty when there is none
}

// prints are the SHA-256 of files by name. One that cannot be read has the zero value.
type prints map[string][32]byte

// New returns a Watcher, which has read nothing yet: the first Reload does.
func New(o Options) *Watcher {
	if o.Report == nil {
		o.Report = func(Outcome, error) {}
	}
	return &Watcher{opts: o}
}

// Run reloads at each tick until ctx ends or ticks is closed. An error is reported by Options.Report and the
// next tick tries again.
func (w *Watcher) Run(ctx context.Context, ticks <-chan time.Time) {
	for {
		select {
		case _, ok := <-ticks:
			if !ok {
				return
			}
			_ = w.Reload()
		case <-ctx.Done():
			return
		}
	}
}

// Reload takes the files over if they have changed. While they are wrong or unreadable, what was in
// force stays.
func (w *Watcher) Reload() error { return w.look(false) }

// Force takes the files over whether they have changed or not, and reports an error at once.
func (w *Watcher) Force() error { return w.look(true) }

func (w *Watcher) look(force bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !force && w.inForce != nil && w.inForce.hold() {
		w.recovered()
		return nil
	}
	found, err := w.take()
	if err == nil {
		w.inForce = found
		w.opts.Report(Taken, nil)
		w.recovered()
		return nil
	}
	again := w.failed != nil && w.failed.equal(found)
	w.failed = found
	if w.opts.Patient && !again && !force {
		return err
	}
	if text := err.Error(); text != w.problem {
		w.problem = text
		w.opts.Report(Refused, err)
	}
	return err
}

func (w *Watcher) recovered() {
	w.failed = nil
	if w.problem != "" {
		w.problem = ""
		w.opts.Report(Recovered, nil)
	}
}

// take reads the files and puts them in force. Each was the same before and after it was read, so what is
// remembered of it is what was read.
func (w *Watcher) take() (prints, error) {
	var found prints
	for range attempts {
		found = prints{}
		use, err := w.opts.Load(func(path string) {
			if _, known := found[path]; !known {
				found[path] = digest(path)
			}
		})
		if !found.hold() {
			continue
		}
		if err == nil {
			err = use()
		}
		return found, err
	}
	return found, errors.New("the files change while they are read")
}

// hold reports whether the files still have what was found in them.
func (p prints) hold() bool {
	for path, sum := range p {
		if digest(path) != sum {
			return false
		}
	}
	return true
}

func (p prints) equal(other prints) bool {
	if len(p) != len(other) {
		return false
	}
	for path, sum := range p {
		if found, ok := other[path]; !ok || found != sum {
			return false
		}
	}
	return true
}

func digest(path string) [32]byte {
	f, err := os.Open(path)
	if err != nil {
		return [32]byte{}
	}
	defer f.Close()
	h := sha256.New()
	if n, err := io.Copy(h, io.LimitReader(f, MaxFile+1)); err != nil || n > MaxFile {
		return [32]byte{}
	}
	return [32]byte(h.Sum(nil))
}
