package admission

import (
	"context"
	"sync"
	"time"

	"github.com/attestry/attestry/pkg/verify/oci"
)

// timedSource measures how long a registry takes.
type timedSource struct {
	oci.Source
	*clock
}

func newTimedSource(s oci.Source, now func() time.Time) *timedSource {
	return &timedSource{s, &clock{now: now}}
}

// At is the source at another place, under the same clock. A source that has only one place is the same everywhere.
func (s *timedSource) At(repository, tagPrefix string) (oci.Source, error) {
	other, ok := s.Source.(oci.Elsewhere)
	if !ok {
		return s, nil
	}
	source, err := other.At(repository, tagPrefix)
	if err != nil {
		return nil, err
	}
	return &timedSource{source, s.clock}, nil
}

// With is the source with other credentials, under the same clock.
func (s *timedSource) With(ctx context.Context, pullSecrets []string) (oci.Source, error) {
	keyed, ok := s.Source.(oci.Keyed)
	if !ok {
		return s, nil
	}
	defer s.enter()()
	source, err := keyed.With(ctx, pullSecrets)
	if err != nil {
		return nil, err
	}
	return &timedSource{source, s.clock}, nil
}

// clock counts the time in which at least one call is under way.
type clock struct {
	now func() time.Time

	mu    sync.Mutex // guards what follows
	busy  int        // calls under way
	since time.Time  // when the first of them began
	total time.Duration
}

func (s *clock) enter() (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy++; s.busy == 1 {
		s.since = s.now()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.busy--; s.busy == 0 {
			s.total += s.now().Sub(s.since)
		}
	}
}

func (s *clock) spent() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

func (s *timedSource) Resolve(ctx context.Context, reference string) (oci.Image, error) {
	defer s.enter()()
	return s.Source.Resolve(ctx, reference)
}

func (s *timedSource) Children(ctx context.Context, image oci.Image) ([]oci.Image, error) {
	defer s.enter()()
	return s.Source.Children(ctx, image)
}

func (s *timedSource) Attachments(ctx context.Context, image oci.Image) ([]oci.Attachment, error) {
	defer s.enter()()
	return s.Source.Attachments(ctx, image)
}

func (s *timedSource) Configs(ctx context.Context, image oci.Image) (map[string][]byte, error) {
	defer s.enter()()
	return s.Source.Configs(ctx, image)
}
