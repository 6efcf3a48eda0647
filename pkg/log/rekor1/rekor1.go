// Package rekor1 serves a log as Rekor v1: the REST API of cosign 2, cosign 3 with a v1 signing
// config, rekor-cli, policy-controller and the search UI. Status codes, headers and error
// bodies are those of upstream's generated server where a client reads them.
//
//	POST /api/v1/log/entries                 201 LogEntry map, ETag, Location; 409 with Location
//	GET  /api/v1/log/entries?logIndex=N      200 LogEntry map; 404 without body
//	GET  /api/v1/log/entries/{entryID|UUID}  200 LogEntry map; 404 without body
//	POST /api/v1/log/entries/retrieve        200 array of LogEntry maps
//	GET  /api/v1/log                         200 size, root, checkpoint
//	GET  /api/v1/log/proof                   200 consistency proof
//	GET  /api/v1/log/publicKey               200 PEM
//	POST /api/v1/index/retrieve              200 array of entry IDs
//	GET  /ping                               200 "."
//	GET  /swagger.json                       200 this API as OpenAPI 2.0
//
// An entry's UUID is its leaf hash in hex; its entry ID is the tree ID in 16 hex digits and the UUID. Several
// trees may follow each other behind one API (shards.go): logIndex counts through them all.
package rekor1

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/entry"
)

// DefaultMaxBody is what a request's body may have in bytes unless Options.Body says otherwise: an attestation of some tens of megabytes is legitimate.
const DefaultMaxBody = 64 << 20

// Log is what this package needs of a Rekor v1 log; *log.Log has it.
type Log interface {
	// Add returns once the entry stands in a signed tree; a second time with Duplicate set.
	Add(ctx context.Context, s log.Submission) (log.Receipt, error)
	// Checkpoint returns the newest signed tree; reads never go past its size.
	Checkpoint() *log.Checkpoint
	// Refresh returns once Checkpoint is no older than any answer that another server of this log gave before the call, or
	// when that takes too long.
	Refresh(ctx context.Context)
	InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error)
	ConsistencyProof(ctx context.Context, first, second uint64) ([][]byte, error)
	Leaf(ctx context.Context, index uint64) (log.Leaf, error)
	// IndexOf returns fault.NotFound for a leaf that the signed tree does not have.
	IndexOf(ctx context.Context, leafHash [32]byte) (uint64, error)
	// SignSET returns a DER ECDSA signature over the JCS form of body, integratedTime, logID and logIndex,
	// which is the virtual index.
	SignSET(ctx context.Context, virtualIndex uint64, body []byte, integratedUnix int64) ([]byte, error)
	LogID() [32]byte
	PublicKey() crypto.PublicKey
	TreeID() int64
}

// Index finds entries.
type Index interface {
	// Search returns the indexes of entries that have any of the keys, or all of them: at most max, the newest.
	Search(ctx context.Context, keys []string, all bool, max int) ([]uint64, error)
	// CaughtUp returns nil once entries below size are found, or an error when ctx ends before.
	CaughtUp(ctx context.Context, size uint64) error
}

// Options are a handler's parts.
type Options struct {
	Shards  []Shard // oldest first; the last takes entries, the others must be frozen
	Frozen  bool    // the last is frozen too: submissions get 405
	Body    limit.Body
	Callers *limit.Callers // pays for retrieve and search; nil: no budgets
	Verify  *limit.Work    // checks what is submitted; nil: as many at once as there are requests
	Off     []string       // Operations that are switched off: 501
	// Kinds are the entry kinds to take; the zero value is the defaults. Entries of other kinds stay readable.
	Kinds entry.Kinds
	// Attestations keeps what belongs to intoto and cose entries, and reads return it; nil for none.
	Attestations   Attestations
	MaxAttestation int // bytes of one; larger ones are not kept; 0 means DefaultMaxAttestation
	Logger         *slog.Logger
	// Registerer takes the metrics, under the names that upstream's dashboards know; nil for none.
	Registerer prometheus.Registerer
	Now        func() time.Time // nil means time.Now; measures requests
}

// Handler serves the API.
type Handler struct {
	shards         atomic.Pointer[shards]
	body           limit.Body
	callers        *limit.Callers
	verify         *limit.Work
	off            []string
	kinds          entry.Kinds
	attestations   Attestations // nil: none are kept
	maxAttestation int
	logger         *slog.Logger
	now            func() time.Time
	metrics        *metrics
	router         http.Handler
}

// New returns a handler of the shards.
func New(opts Options) (*Handler, error) {
	if opts.Logger == nil {
		return nil, errors.New("rekor1: Logger is required")
	}
	if opts.Body.Max == 0 {
		opts.Body.Max = DefaultMaxBody
	}
	if opts.MaxAttestation == 0 {
		opts.MaxAttestation = DefaultMaxAttestation
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	h := &Handler{
		body: opts.Body, callers: opts.Callers, verify: opts.Verify, off: opts.Off, kinds: opts.Kinds,
		attestations: opts.Attestations, maxAttestation: opts.MaxAttestation,
		logger: opts.Logger, now: opts.Now,
	}
	if err := h.SetShards(opts.Shards, opts.Frozen); err != nil {
		return nil, err
	}
	var err error
	if h.metrics, err = newMetrics(opts.Registerer, h.size); err != nil {
		return nil, fmt.Errorf("rekor1: %w", err)
	}
	h.router = h.newRouter()
	return h, nil
}

// ServeHTTP serves the absolute paths of the API; anything else is 404 in the API's shape.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.router.ServeHTTP(w, r) }

// Routes puts the API's paths on r, whatever the method: wrong ones are answered in the API's shape.
func (h *Handler) Routes(r chi.Router) {
	for _, path := range []string{"/api/v1/log", "/api/v1/log/*", "/api/v1/index/*", "/ping", "/swagger.json"} {
		r.Handle(path, h)
	}
}
