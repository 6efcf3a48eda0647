// Package ct serves a log as a Certificate Transparency log: the RFC 6962 API for writing
// and reading, and the tiles of c2sp.org/static-ct-api for reading. Those need leaves and SCTs that
// name the leaf's index; a log of kind log.CTPlain has none and only the RFC 6962 API, for clients
// that refuse SCTs with extensions (sigstore-python before 4.2.0). A certificate authority
// in the same process calls Handler.AddPreChain directly; one elsewhere speaks RFC 6962 over HTTP.
package ct

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log"
)

// Limits of what a submitter may send. A static-ct data tile carries a precertificate twice
// (its TBS and itself) and Tessera takes entries up to 256 KiB.
const (
	maxChain       = 10       // certificates, the submitted one included
	maxCertificate = 96 << 10 // DER bytes of the submitted certificate
	maxIssuer      = 64 << 10 // DER bytes of each issuer certificate
)

// DefaultMaxBody is what a JSON request may have in bytes unless Options.Body says otherwise: the limit of TesseraCT.
const DefaultMaxBody = 512 << 10

// Log is what this package needs of a Certificate Transparency log; *log.Log has it.
type Log interface {
	// Kind is log.CT or log.CTPlain.
	Kind() log.Kind
	// Add returns once the entry is durable and may be promised. A submission whose identity
	// is already in the log returns the receipt of the first one, with Duplicate set.
	Add(ctx context.Context, s log.Submission) (log.Receipt, error)
	// SignSCT returns a DER ECDSA signature over the structure of RFC 6962, section 3.2.
	SignSCT(ctx context.Context, index uint64, in log.SCTInput) ([]byte, error)
	// TreeHead returns the newest signed tree head (RFC 6962, section 3.5). It may come before
	// the checkpoint of its size, and many may ask: it is not signed for each.
	TreeHead(ctx context.Context) (log.TreeHead, error)
	// Checkpoint returns the newest signed checkpoint; reads never go past its size.
	Checkpoint() *log.Checkpoint
	// Wait returns once the checkpoint's size exceeds size.
	Wait(ctx context.Context, size uint64) error
	InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error)
	ConsistencyProof(ctx context.Context, first, second uint64) ([][]byte, error)
	// Leaf and Leaves carry static-ct TileLeaf bytes; of a log.CTPlain, what was submitted.
	Leaf(ctx context.Context, index uint64) (log.Leaf, error)
	Leaves(ctx context.Context, from uint64, max int) ([]log.Leaf, error)
	IndexOf(ctx context.Context, leafHash [32]byte) (uint64, error)
	// Tile and Bundle take the width of a partial tile, 0 for a full one.
	Tile(ctx context.Context, level, index uint64, width int) ([]byte, error)
	Bundle(ctx context.Context, index uint64, width int) ([]byte, error)
	LogID() [32]byte
	PublicKey() crypto.PublicKey
}

// Options configures a Handler. Log, Roots and one of IssuerDir and Issuers are required.
type Options struct {
	Log Log
	// Roots are the accepted root certificates, DER each. They come from the operator's own
	// files: a log that fetches its roots trusts whoever answers.
	Roots [][]byte
	// IssuerDir is a directory for issuer certificates, created when it is missing. The log's
	// entries name issuers by hash only, so it belongs to the log's data and to its backups.
	IssuerDir string
	// Issuers keeps them in a database that replicas of the log share, in place of IssuerDir.
	Issuers *database.Blobs
	// NotAfterStart and NotAfterLimit are the shard's window: certificates that expire at or after
	// the one and before the other are taken. The zero time leaves that side open.
	NotAfterStart, NotAfterLimit time.Time
	// URL is the public base URL of the log: scheme, host and /ct/<shard>; empty
	// means that the log does not describe itself at log.v3.json.
	URL string
	// Description is for people who read log.v3.json.
	Description string
	// MaxMergeDelay is promised at log.v3.json, whole seconds; 0 means DefaultMaxMergeDelay. A
	// certificate is in the tree before its SCT is signed, but a monitor may find the log down.
	MaxMergeDelay time.Duration
	Body          limit.Body
	Callers       *limit.Callers // pays for get-entries; nil: no budgets
	Verify        *limit.Work    // checks submitted chains; nil: as many at once as there are requests
	Logger        *slog.Logger
	// Registerer takes the metrics attestry_ct_*; nil means none. With several logs in a
	// process, wrap it with a label for each.
	Registerer prometheus.Registerer
	Now        func() time.Time // nil means time.Now
}

// Handler speaks the CT APIs of one log. It is an http.Handler for the paths below the
// log's base URL ("/ct/v1/add-chain", "/checkpoint", …): mount it with http.StripPrefix.
// It is safe for concurrent use.
type Handler struct {
	log         Log
	plain       bool // the log's kind is log.CTPlain
	logID       [32]byte
	issuers     *issuerStore
	shard       window
	verifier    atomic.Pointer[verifier] // of the roots that are accepted now
	description []byte                   // of log.v3.json; nil when there is none
	body        limit.Body
	callers     *limit.Callers
	work        *limit.Work
	logger      *slog.Logger
	now         func() time.Time
	metrics     *metrics
}

// New returns a Handler. It fails when a root does not parse, when there is none, when the
// issuer directory is not writable, or when the shard's window is empty.
func New(o Options) (*Handler, error) {
	if o.Log == nil {
		return nil, errors.New("ct: no log given")
	}
	kind := o.Log.Kind()
	if kind != log.CT && kind != log.CTPlain {
		return nil, errors.New("ct: the log is of a kind that signs no SCTs")
	}
	shard, err := newWindow(o.NotAfterStart, o.NotAfterLimit)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Body.Max == 0 {
		o.Body.Max = DefaultMaxBody
	}
	issuers, err := openIssuerStore(o.IssuerDir, o.Issuers)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer, o.Log, cmp.Or(o.MaxMergeDelay, DefaultMaxMergeDelay))
	if err != nil {
		return nil, fmt.Errorf("registering ct metrics: %w", err)
	}
	h := &Handler{
		log: o.Log, plain: kind == log.CTPlain, logID: o.Log.LogID(), issuers: issuers, shard: shard,
		body: o.Body, callers: o.Callers, work: o.Verify, logger: o.Logger, now: o.Now, metrics: m,
	}
	if h.description, err = describe(o, shard); err != nil {
		return nil, err
	}
	if err := h.SetRoots(o.Roots); err != nil {
		return nil, err
	}
	return h, nil
}

// LogKey returns the log's key, ECDSA P-256.
func (h *Handler) LogKey() crypto.PublicKey { return h.log.PublicKey() }
