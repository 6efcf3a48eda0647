// Package ct serves a log as a Certificate Transparency log: the RFC 6962 API for writing
// and reading, and the tiles of c2sp.org/static-ct-api for reading. A certificate authority
// in the same process calls Handler.AddPreChain directly; one elsewhere speaks RFC 6962 over HTTP.
package ct

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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
	// Add returns once the entry is durable and may be promised. A submission whose identity
	// is already in the log returns the receipt of the first one, with Duplicate set.
	Add(ctx context.Context, s log.Submission) (log.Receipt, error)
	// SignSCT returns a DER ECDSA signature over the structure of RFC 6962, section 3.2.
	SignSCT(ctx context.Context, index uint64, in log.SCTInput) ([]byte, error)
	// TreeHead returns the newest signed tree head (RFC 6962, section 3.5).
	TreeHead(ctx context.Context) (log.TreeHead, error)
	// Checkpoint returns the newest signed checkpoint; reads never go past its size.
	Checkpoint() *log.Checkpoint
	InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error)
	ConsistencyProof(ctx context.Context, first, second uint64) ([][]byte, error)
	// Leaf and Leaves carry static-ct TileLeaf bytes.
	Leaf(ctx context.Context, index uint64) (log.Leaf, error)
	Leaves(ctx context.Context, from uint64, max int) ([]log.Leaf, error)
	IndexOf(ctx context.Context, leafHash [32]byte) (uint64, error)
	// Tile and Bundle take the width of a partial tile, 0 for a full one.
	Tile(ctx context.Context, level, index uint64, width int) ([]byte, error)
	Bundle(ctx context.Context, index uint64, width int) ([]byte, error)
	LogID() [32]byte
	PublicKey() crypto.PublicKey
}

// Options configures a Handler. Log, Roots and IssuerDir are required.
type Options struct {
	Log Log
	// Roots are the accepted root certificates, DER each. They come from the operator's own
	// files: a log that fetches its roots trusts whoever answers.
	Roots [][]byte
	// IssuerDir is a directory for issuer certificates, created when it is missing. The log's
	// entries name issuers by hash only, so it belongs to the log's data and to its backups.
	IssuerDir string
	Body      limit.Body
	Callers   *limit.Callers // pays for get-entries; nil: no budgets
	Verify    *limit.Work    // checks submitted chains; nil: as many at once as there are requests
	Logger    *slog.Logger
	// Registerer takes the metrics attestry_ct_*; nil means none. With several logs in a
	// process, wrap it with a label for each.
	Registerer prometheus.Registerer
	Now        func() time.Time // nil means time.Now
}

// Handler speaks the CT APIs of one log. It is an http.Handler for the paths below the
// log's base URL ("/ct/v1/add-chain", "/checkpoint", …): mount it with http.StripPrefix.
// It is safe for concurrent use.
type Handler struct {
	log      Log
	logID    [32]byte
	issuers  *issuerStore
	verifier *verifier
	body     limit.Body
	callers  *limit.Callers
	work     *limit.Work
	logger   *slog.Logger
	now      func() time.Time
	metrics  *metrics
}

// New returns a Handler. It fails when a root does not parse, when there is none, or when
// the issuer directory is not writable.
func New(o Options) (*Handler, error) {
	if o.Log == nil {
		return nil, errors.New("ct: no log given")
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
	issuers, err := openIssuerStore(o.IssuerDir)
	if err != nil {
		return nil, err
	}
	verifier, err := newVerifier(o.Roots, issuers)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("registering ct metrics: %w", err)
	}
	return &Handler{
		log: o.Log, logID: o.Log.LogID(), issuers: issuers, verifier: verifier,
		body: o.Body, callers: o.Callers, work: o.Verify, logger: o.Logger, now: o.Now, metrics: m,
	}, nil
}

// LogKey returns the log's key, ECDSA P-256.
func (h *Handler) LogKey() crypto.PublicKey { return h.log.PublicKey() }
