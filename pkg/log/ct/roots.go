package ct

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/reload"
)

// maxRootsFile bounds a file of roots, bytes. The largest public stores have a few hundred KiB.
const maxRootsFile = 4 << 20

// SetRoots accepts chains to these roots, DER each, and to no others from now on. When it returns
// an error nothing has changed: roots that do not parse and no roots at all are refused. What is
// in the log stays, and so do the certificates above it.
func (h *Handler) SetRoots(roots [][]byte) error {
	fresh, err := newVerifier(roots, h.issuers, h.shard)
	if err != nil {
		return err
	}
	before := h.verifier.Swap(fresh)
	h.metrics.accepting(len(fresh.roots))
	if before == nil {
		return nil
	}
	added, removed := missingFrom(before, fresh), missingFrom(fresh, before)
	if len(added)+len(removed) > 0 {
		h.logger.Info("ct accepted roots changed", "roots", len(fresh.roots), "added", added, "removed", removed)
	}
	return nil
}

// missingFrom names the roots of b that are not in a: hex SHA-256 and subject.
func missingFrom(a, b *verifier) []string {
	have := make(map[string]bool, len(a.roots))
	for _, root := range a.roots {
		have[string(root.Raw)] = true
	}
	var names []string
	for _, root := range b.roots {
		if !have[string(root.Raw)] {
			fingerprint := sha256.Sum256(root.Raw)
			names = append(names, hex.EncodeToString(fingerprint[:])+" "+root.Subject.String())
		}
	}
	return names
}

// ParseRoots returns the DER of the certificates in a PEM file. Text between the blocks is fine; a
// block that is broken or of another type is an error, since a root would be missing.
func ParseRoots(text []byte) ([][]byte, error) {
	begun := bytes.Count(text, []byte("-----BEGIN "))
	var roots [][]byte
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block %d is a %q, not a CERTIFICATE", len(roots)+1, block.Type)
		}
		if _, err := parseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(roots)+1, err)
		}
		roots = append(roots, block.Bytes)
	}
	if len(roots) != begun {
		return nil, fmt.Errorf("%d PEM blocks begin, %d are whole", begun, len(roots))
	}
	if len(roots) == 0 {
		return nil, errors.New("there is no PEM block of a certificate")
	}
	return roots, nil
}

// ReadRoots reads a file as ParseRoots has it, for Options.Roots.
func ReadRoots(path string) ([][]byte, error) {
	text, err := limit.ReadFile(path, maxRootsFile)
	if err != nil {
		return nil, fmt.Errorf("reading accepted roots: %w", err)
	}
	roots, err := ParseRoots(text)
	if err != nil {
		return nil, fmt.Errorf("reading accepted roots from %s: %w", path, err)
	}
	return roots, nil
}

// RootsWatcher keeps the accepted roots of handlers equal to a PEM file, see internal/reload.
type RootsWatcher struct {
	path     string
	handlers []*Handler
	logger   *slog.Logger
	watcher  *reload.Watcher
}

// NewRootsWatcher watches path for handlers, whose roots it sets at the first Reload.
func NewRootsWatcher(path string, logger *slog.Logger, handlers ...*Handler) *RootsWatcher {
	w := &RootsWatcher{path: path, handlers: handlers, logger: logger}
	w.watcher = reload.New(reload.Options{Load: w.load, Report: w.report})
	return w
}

// Run reloads at each tick until ctx ends or ticks is closed. An error is reported by Reload and
// the next tick tries again.
func (w *RootsWatcher) Run(ctx context.Context, ticks <-chan time.Time) {
	w.watcher.Run(ctx, ticks)
}

// Reload takes the file over if it has changed. While the file is wrong or unreadable, the roots
// in force stay, an error line says once why, and attestry_ct_roots_file_bad is 1.
func (w *RootsWatcher) Reload() error { return w.watcher.Reload() }

func (w *RootsWatcher) load(reading func(string)) (func() error, error) {
	reading(w.path)
	roots, err := ReadRoots(w.path)
	if err != nil {
		return nil, err
	}
	return func() error {
		for _, h := range w.handlers { // what one refuses, the first refuses
			if err := h.SetRoots(roots); err != nil {
				return fmt.Errorf("reading accepted roots from %s: %w", w.path, err)
			}
		}
		return nil
	}, nil
}

func (w *RootsWatcher) report(o reload.Outcome, err error) {
	switch o {
	case reload.Taken:
		w.count(true, "taken")
	case reload.Refused:
		w.logger.Error("ct accepted roots file refused; the roots before it stay in force", "file", w.path, "err", err)
		w.count(false, "refused")
	case reload.Recovered:
		w.logger.Info("ct accepted roots file is good again", "file", w.path)
		w.count(true, "")
	}
}

// count shows whether the file is good, and what became of a reload unless that is "".
func (w *RootsWatcher) count(good bool, result string) {
	for _, h := range w.handlers {
		h.metrics.rootsFile(good)
		if result != "" {
			h.metrics.reloaded(result)
		}
	}
}
