package tsa

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// maxStep is how far the wall clock may move against the monotonic one before it counts
	// as set. NTP's slewing moves both together, so that only steps (and a suspended machine,
	// during which Linux stops the monotonic clock) get here.
	maxStep = 500 * time.Millisecond
	// settling is how long a clock that was set must then run undisturbed before it is trusted.
	settling = 5 * time.Second
)

// LastIssued remembers the newest second of genTime across restarts. Calls are serialized.
type LastIssued interface {
	// Load returns the stored second, the zero time when there is none yet.
	Load() (time.Time, error)
	// Store makes t durable. Later values are never before earlier ones.
	Store(t time.Time) error
}

// FileLastIssued keeps the second as RFC 3339 text in the file it names.
type FileLastIssued string

// Load implements LastIssued. A file with other content is an error: a lost memory would let
// a clock that was set back issue a second time for the same period.
func (path FileLastIssued) Load() (time.Time, error) {
	data, err := os.ReadFile(string(path))
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the last issued second: %w", err)
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	if err != nil {
		return time.Time{}, fmt.Errorf("file %s holds no RFC 3339 time; write the genTime of the newest timestamp into it: %w", string(path), err)
	}
	return t, nil
}

// Store implements LastIssued: a crash leaves the old or the new content.
func (path FileLastIssued) Store(t time.Time) error {
	dir := filepath.Dir(string(path))
	f, err := os.CreateTemp(dir, ".last-issued-*")
	if err != nil {
		return fmt.Errorf("storing the last issued second: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(t.UTC().Format(time.RFC3339) + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("storing the last issued second: %w", err)
	}
	if err := os.Rename(f.Name(), string(path)); err != nil {
		return fmt.Errorf("storing the last issued second: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("storing the last issued second: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// clock gives out genTime, or refuses while the machine's time cannot be believed.
type clock struct {
	read     func() (wall time.Time, monotonic time.Duration) // one moment on both clocks
	accuracy time.Duration
	first    time.Time // notBefore of the chain's youngest certificate
	end      time.Time // notAfter of the chain's oldest certificate
	memory   LastIssued
	logger   *slog.Logger

	storing sync.Mutex // held by the one request that stores a new second

	mu       sync.Mutex    // guards what follows
	offset   time.Duration // wall minus monotonic, counted from origin
	origin   time.Time     // wall time of the first reading
	since    time.Duration // monotonic time of the last step; meaningful while stepped
	stepped  bool
	last     time.Time // newest second given out, or loaded
	storeErr error     // of the newest Store
}

func newClock(read func() (time.Time, time.Duration), accuracy time.Duration, first, end time.Time, memory LastIssued, logger *slog.Logger) (*clock, error) {
	c := &clock{read: read, accuracy: accuracy, first: first, end: end, memory: memory, logger: logger}
	wall, monotonic := read()
	c.origin, c.offset = wall, -monotonic
	if memory != nil {
		last, err := memory.Load()
		if err != nil {
			return nil, err
		}
		c.last = last
	}
	return c, nil
}

// genTime returns the current second, in UTC and never before one that it returned earlier.
// A clock that is behind by at most the accuracy gets the newest second again, which is still
// true within the accuracy; one further behind, or one that was just set, is a refusal.
func (c *clock) genTime() (time.Time, error) {
	now, fresh, storeErr, err := c.advance()
	if err != nil {
		return time.Time{}, err
	}
	if c.memory == nil || !fresh && storeErr == nil {
		return now, nil
	}
	// The other requests of this second do not wait for the disk, unless the last write failed.
	// A crash before the write is durable forgets this one second, which the accuracy covers.
	if c.storing.TryLock() {
		defer c.storing.Unlock()
		storeErr = c.memory.Store(c.newest())
		c.mu.Lock()
		c.storeErr = storeErr
		c.mu.Unlock()
	}
	if storeErr != nil {
		return time.Time{}, refuse(systemFailure, storeErr, "the time of the newest timestamp cannot be stored")
	}
	return now, nil
}

// advance returns the current second, whether it is a new one, and how the newest Store ended.
func (c *clock) advance() (now time.Time, fresh bool, storeErr, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall, err := c.check()
	if err != nil {
		return time.Time{}, false, nil, err
	}
	now = wall.UTC().Truncate(time.Second)
	if now.Before(c.last) {
		now = c.last
	}
	// notAfter itself is a valid second (RFC 5280), but sigstore-python wants genTime before the end.
	if now.Before(c.first) || !now.Before(c.end) {
		return time.Time{}, false, nil, refuse(timeNotAvailable, nil, "the time %s is outside the validity of the certificate chain, %s to %s",
			now.Format(time.RFC3339), c.first.Format(time.RFC3339), c.end.Format(time.RFC3339))
	}
	fresh = now.After(c.last)
	c.last = now
	return now, fresh, c.storeErr, nil
}

// check reads both clocks and returns the wall time if it can be believed. c.mu is held.
func (c *clock) check() (time.Time, error) {
	wall, monotonic := c.read()
	offset := wall.Sub(c.origin) - monotonic
	if step := offset - c.offset; step.Abs() > maxStep {
		c.logger.Error("the wall clock was set", "step", step, "wall", wall.UTC(), "refusing_for", settling)
		c.stepped, c.since, c.offset = true, monotonic, offset
	}
	if c.stepped && monotonic-c.since < settling {
		return time.Time{}, refuse(timeNotAvailable, nil, "the clock was set a moment ago; try again in %v", settling)
	}
	if c.stepped {
		c.stepped = false
		c.logger.Warn("the wall clock is trusted again", "wall", wall.UTC())
	}
	if behind := c.last.Sub(wall); behind > c.accuracy {
		return time.Time{}, refuse(timeNotAvailable, nil, "the clock is %v behind the newest timestamp of this authority", behind.Round(time.Second))
	}
	return wall, nil
}

// ready tells whether genTime would give out a time now. After a second could not be stored it tries again, since nobody may ask
// for a timestamp meanwhile.
func (c *clock) ready() error {
	if err := c.believed(); err != nil {
		return err
	}
	c.mu.Lock()
	err := c.storeErr
	c.mu.Unlock()
	if err != nil && c.storing.TryLock() {
		defer c.storing.Unlock()
		err = c.memory.Store(c.newest())
		c.mu.Lock()
		c.storeErr = err
		c.mu.Unlock()
	}
	return err
}

// believed tells whether the time can be believed and the chain is valid.
func (c *clock) believed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall, err := c.check()
	if err != nil {
		return err
	}
	if wall.Before(c.first) || !wall.Before(c.end) {
		return fmt.Errorf("the certificate chain is valid from %s to %s", c.first.Format(time.RFC3339), c.end.Format(time.RFC3339))
	}
	return nil
}

// newest returns the newest second given out, zero when there is none.
func (c *clock) newest() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}
