package reload_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/reload"
)

// house has two files that belong together: their contents must be equal.
type house struct {
	t        *testing.T
	a, b     string
	reading  func() // called between the two reads
	inForce  string
	loads    int
	reported []string
	watcher  *reload.Watcher
}

func newHouse(t *testing.T, patient bool) *house {
	dir := t.TempDir()
	h := &house{t: t, a: filepath.Join(dir, "a"), b: filepath.Join(dir, "b"), reading: func() {}}
	h.write("1", "1")
	h.watcher = reload.New(reload.Options{Load: h.load, Patient: patient, Report: func(o reload.Outcome, err error) {
		text := map[reload.Outcome]string{reload.Taken: "taken", reload.Refused: "refused", reload.Recovered: "recovered"}[o]
		if err != nil {
			text += ": " + err.Error()
		}
		h.reported = append(h.reported, text)
	}})
	return h
}

func (h *house) write(a, b string) {
	h.t.Helper()
	for path, text := range map[string]string{h.a: a, h.b: b} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *house) load(reading func(string)) (func() error, error) {
	h.loads++
	reading(h.a)
	a, err := os.ReadFile(h.a)
	if err != nil {
		return nil, errors.New("a is missing")
	}
	h.reading()
	reading(h.b)
	b, err := os.ReadFile(h.b)
	if err != nil {
		return nil, errors.New("b is missing")
	}
	return func() error {
		if string(a) != string(b) {
			return fmt.Errorf("%s is not %s", a, b)
		}
		h.inForce = string(a)
		return nil
	}, nil
}

// want checks what is in force, and what was reported since the last time.
func (h *house) want(doing, inForce string, reported ...string) {
	h.t.Helper()
	if h.inForce != inForce || strings.Join(h.reported, "; ") != strings.Join(reported, "; ") {
		h.t.Errorf("%s: %q in force, reported %q, want %q and %q", doing, h.inForce, h.reported, inForce, reported)
	}
	h.reported = nil
}

func TestFilesAreTakenOverWhenTheyAreGood(t *testing.T) {
	h := newHouse(t, false)
	h.watcher.Reload()
	h.want("at the start", "1", "taken")
	h.watcher.Reload()
	h.want("unchanged", "1")
	if h.loads != 1 {
		t.Errorf("loaded %d times", h.loads)
	}
	h.write("2", "2")
	h.watcher.Reload()
	h.want("both changed", "2", "taken")
	h.write("3", "2")
	h.watcher.Reload()
	h.want("one changed", "2", "refused: 3 is not 2")
	h.watcher.Reload()
	h.want("the same again", "2")
	if err := os.Remove(h.b); err != nil {
		t.Fatal(err)
	}
	h.watcher.Reload()
	h.want("one is missing", "2", "refused: b is missing")
	h.write("2", "2")
	h.watcher.Reload()
	h.want("as before", "2", "recovered")
	h.write("3", "2")
	h.watcher.Reload()
	h.write("3", "3")
	h.watcher.Reload()
	h.want("wrong, then good", "3", "refused: 3 is not 2", "taken", "recovered")
	h.watcher.Force()
	h.want("by force", "3", "taken")
}

func TestPatienceWaitsForTheSecondFile(t *testing.T) {
	h := newHouse(t, true)
	h.watcher.Reload()
	h.write("2", "1")
	if h.watcher.Reload() == nil {
		t.Error("a half-written pair is no error")
	}
	h.want("half written", "1", "taken")
	h.write("3", "1")
	h.watcher.Reload()
	h.want("still being written", "1")
	h.write("3", "3")
	h.watcher.Reload()
	h.want("written", "3", "taken")
	h.write("4", "3")
	h.watcher.Reload()
	h.watcher.Reload()
	h.watcher.Reload()
	h.want("left half written", "3", "refused: 4 is not 3")
	h.write("5", "3")
	h.watcher.Force()
	h.want("by force", "3", "refused: 5 is not 3")
}

func TestFilesThatChangeWhileTheyAreReadAreReadAgain(t *testing.T) {
	h := newHouse(t, false)
	h.reading = func() { h.reading = func() {}; h.write("2", "2") }
	if err := h.watcher.Reload(); err != nil {
		t.Error(err)
	}
	h.want("changed once", "2", "taken")
	n := 2
	h.reading = func() { n++; h.write(fmt.Sprint(n), fmt.Sprint(n)) }
	h.write("x", "x")
	h.watcher.Reload()
	h.want("changed each time", "2", "refused: the files change while they are read")
	h.reading = func() {}
	h.watcher.Reload()
	h.want("at rest", fmt.Sprint(n), "taken", "recovered")
}

func TestRunReloadsAtEachTick(t *testing.T) {
	h := newHouse(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	ticks, ended := make(chan time.Time), make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		h.watcher.Run(ctx, ticks)
	}()
	ticks <- time.Time{}
	ticks <- time.Time{} // taken when the reload of the first is through
	cancel()
	<-ended
	h.want("two ticks", "1", "taken")

	closed := make(chan time.Time)
	close(closed)
	h.watcher.Run(t.Context(), closed) // returns
}
