package policy

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/attestry/attestry/pkg/verify/oci"
)

// evidence asks a source once for each thing that policies want to know of one image, however many of them ask at a time.
type evidence struct {
	source oci.Source
	image  oci.Image

	mu      sync.Mutex // guards places
	places  map[Place]*fetched
	configs func() (map[string][]byte, error)
}

type fetched struct {
	done  chan struct{} // closed when the rest is set
	found []oci.Attachment
	err   error
}

// newEvidence fetches under ctx, which has to outlive all who ask.
func newEvidence(ctx context.Context, source oci.Source, image oci.Image) *evidence {
	return &evidence{
		source: source, image: image, places: make(map[Place]*fetched),
		configs: sync.OnceValues(func() (map[string][]byte, error) { return source.Configs(ctx, image) }),
	}
}

func (e *evidence) Configs(context.Context) (map[string][]byte, error) { return e.configs() }

func (e *evidence) Attachments(ctx context.Context, at Place) ([]oci.Attachment, error) {
	e.mu.Lock()
	f, ok := e.places[at]
	if !ok {
		f = &fetched{done: make(chan struct{})}
		e.places[at] = f
	}
	e.mu.Unlock()
	if ok {
		select {
		case <-f.done:
			return f.found, f.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer close(f.done)
	f.err = errors.New("the source did not answer") // what others see when it panics
	source := e.source
	// A source on disk has everything in one place, and needs no credentials.
	if keyed, ok := source.(oci.Keyed); ok && at.PullSecrets != "" {
		var err error
		if source, err = keyed.With(ctx, strings.Split(at.PullSecrets, ",")); err != nil {
			f.err = err
			return nil, err
		}
	}
	if elsewhere, ok := source.(oci.Elsewhere); ok && (at.Repository != "" || at.TagPrefix != "") {
		var err error
		if source, err = elsewhere.At(at.Repository, at.TagPrefix); err != nil {
			f.err = err
			return nil, err
		}
	}
	f.found, f.err = source.Attachments(ctx, e.image)
	return f.found, f.err
}
