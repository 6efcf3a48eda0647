// Package rekor2 serves a log as Rekor v2: entries are written over HTTP with protobuf's JSON or over gRPC, and
// read as checkpoints and tiles (c2sp.org/tlog-tiles).
//
//	POST /api/v2/log/entries                 201 TransparencyLogEntry
//	GET  /api/v2/checkpoint                  signed note
//	GET  /api/v2/tile/<L>/<N>[.p/<W>]        hash tile
//	GET  /api/v2/tile/entries/<N>[.p/<W>]    entry bundle
//
// The reads are served at the root as well (/checkpoint, /tile/…), where generic tlog-tiles tools look.
// Several logs share the paths and are told apart by host name (hosts.go).
package rekor2

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorv1 "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/entry"
)

//lint:file-ignore SA1019 clients in use send the deprecated dsseRequestV002

// DefaultMaxBody is what a request's body may have in bytes unless Options.Body says otherwise: upstream's limit.
const DefaultMaxBody = 4 << 20

// Log is what this package needs of a Rekor v2 log; *log.Log has it.
type Log interface {
	// Add returns once the entry stands in a signed tree; a second time with Duplicate set.
	Add(ctx context.Context, s log.Submission) (log.Receipt, error)
	// Checkpoint returns the newest signed tree.
	Checkpoint() *log.Checkpoint
	InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error)
	// Tile and Bundle return fault.NotFound for what the newest checkpoint does not cover; width 0 means full.
	Tile(ctx context.Context, level, index uint64, width int) ([]byte, error)
	Bundle(ctx context.Context, index uint64, width int) ([]byte, error)
	LogID() [32]byte
	// Origin is the first line of checkpoints: the host name that the log answers to.
	Origin() string
}

// Options are a handler's parts.
type Options struct {
	Shards []Log // oldest first; requests for an unknown host name reach the last
	Body   limit.Body
	Verify *limit.Work // checks what is submitted; nil: as many at once as there are requests
	// RefuseDSSE answers 400 to dsseRequestV002, as upstream does since 2.3. Taken by default:
	// cosign 2.6 and 3.0 and sigstore-js send it and verify it, newer verifiers refuse the entry.
	RefuseDSSE bool
	// RefuseDuplicates answers 409 to an entry that is there, as upstream does. By default the answer
	// is 201 with that entry: no client handles 409, and deterministic signers meet it at every retry.
	RefuseDuplicates bool
	Logger           *slog.Logger
	// Registerer takes the metrics, under the names that upstream's dashboards know; nil for none.
	Registerer prometheus.Registerer
	Now        func() time.Time // nil means time.Now; measures requests
}

// Handler serves the API over HTTP, and over gRPC once registered.
type Handler struct {
	opts    Options
	shards  atomic.Pointer[shards]
	metrics *metrics
	router  http.Handler
}

// New returns a handler of the logs.
func New(opts Options) (*Handler, error) {
	if opts.Logger == nil {
		return nil, errors.New("rekor2: Logger is required")
	}
	if opts.Body.Max == 0 {
		opts.Body.Max = DefaultMaxBody
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	h := &Handler{opts: opts}
	if err := h.SetShards(opts.Shards); err != nil {
		return nil, err
	}
	var err error
	if h.metrics, err = newMetrics(opts.Registerer, h.size, h.halted); err != nil {
		return nil, fmt.Errorf("rekor2: %w", err)
	}
	h.router = h.newRouter()
	return h, nil
}

// ServeHTTP serves the absolute paths of the API; anything else is 404 in the API's shape.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.router.ServeHTTP(w, r) }

// Routes puts the API's paths on r, whatever the method: wrong ones are answered in the API's shape.
func (h *Handler) Routes(r chi.Router) {
	for _, path := range []string{"/api/v2/log/entries", "/api/v2/checkpoint", "/api/v2/tile/*", "/checkpoint", "/tile/*"} {
		r.Handle(path, h)
	}
}

// conflictError says where the entry already is.
type conflictError struct{ index uint64 }

func (e conflictError) Error() string {
	return fmt.Sprintf("an equivalent entry already exists in the transparency log with index %d", e.index)
}

// createEntry adds what req holds to the log that host names, if it is not there yet, and returns it once a
// signed checkpoint covers it.
func (h *Handler) createEntry(ctx context.Context, host string, req *rekorpb.CreateEntryRequest) (*rekorv1.TransparencyLogEntry, error) {
	var e entry.Entry
	var err error
	if busy := h.opts.Verify.Do(ctx, func() { e, err = h.verify(ctx, req) }); busy != nil {
		return nil, busy
	}
	if err != nil {
		return nil, err
	}
	s, receipt, err := h.add(ctx, host, log.Submission{Identity: e.LeafHash, Data: e.Body, Keys: e.SubmittedKeys})
	if err != nil {
		return nil, err
	}
	if receipt.Duplicate && h.opts.RefuseDuplicates {
		return nil, conflictError{receipt.Index}
	}
	cp := receipt.Checkpoint
	hashes, err := s.InclusionProof(ctx, receipt.Index, cp.Size)
	if err != nil {
		return nil, err
	}
	if !receipt.Duplicate {
		h.metrics.added(e.Kind)
		h.opts.Logger.InfoContext(ctx, "rekor v2 entry added", "origin", s.Origin(), "index", receipt.Index, "kind", e.Kind, "version", e.Version, "leafHash", fmt.Sprintf("%x", e.LeafHash))
	}
	return &rekorv1.TransparencyLogEntry{
		LogIndex:    int64(receipt.Index), // sigstore-go verifies with this one
		LogId:       &common.LogId{KeyId: s.logID},
		KindVersion: &rekorv1.KindVersion{Kind: e.Kind, Version: e.Version},
		InclusionProof: &rekorv1.InclusionProof{
			LogIndex: int64(receipt.Index), RootHash: cp.Root[:], TreeSize: int64(cp.Size), Hashes: hashes,
			Checkpoint: &rekorv1.Checkpoint{Envelope: string(cp.Note)},
		},
		CanonicalizedBody: e.Body,
	}, nil
}

func (h *Handler) verify(ctx context.Context, req *rekorpb.CreateEntryRequest) (entry.Entry, error) {
	switch spec := req.GetSpec().(type) {
	case *rekorpb.CreateEntryRequest_HashedRekordRequestV002:
		return entry.HashedRekord(spec.HashedRekordRequestV002)
	case *rekorpb.CreateEntryRequest_DsseRequestV002:
		if h.opts.RefuseDSSE {
			return entry.Entry{}, fault.New(fault.Invalid, "dsse_off", nil, "invalid type, must be hashedrekord: this log takes no dsseRequestV002; use a client that sends the digest of the envelope (cosign 3.1 or newer)")
		}
		h.opts.Logger.WarnContext(ctx, "a client sends dsseRequestV002; verifiers since sigstore-go 1.2 refuse such entries, cosign 3.1 or newer sends what all accept")
		return entry.DSSE(spec.DsseRequestV002)
	default:
		return entry.Entry{}, fault.New(fault.Invalid, "missing_field", nil, "invalid type, must be hashedrekord or dsse")
	}
}
