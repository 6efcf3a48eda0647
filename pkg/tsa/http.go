package tsa

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/attestry/attestry/internal/fault"
)

const (
	pathTimestamp = "/api/v1/timestamp"
	pathCertChain = "/api/v1/timestamp/certchain"
	pathRoot      = "/"
	pathPing      = "/ping"

	typeQuery = "application/timestamp-query" // RFC 3161 section 3.4
	typeReply = "application/timestamp-reply"
	typeJSON  = "application/json"
	typeChain = "application/pem-certificate-chain"

	bodyTimeout = 10 * time.Second // for a query to arrive
	retryAfter  = "5"              // seconds: as long as a clock that was set takes to settle
)

// Handler speaks HTTP for an authority.
type Handler struct {
	Authority *Authority
	Logger    *slog.Logger // nil discards

	// Reject400 answers refused DER queries as sigstore's timestamp-authority does, with HTTP
	// 400 and JSON. Otherwise they get HTTP 200 and a TimeStampResp that states the reason,
	// which openssl, jarsigner and signtool can show.
	Reject400 bool
}

// Register adds the paths that every installation has: the query's and the chain's.
func (h *Handler) Register(r chi.Router) {
	r.HandleFunc(pathTimestamp, h.handle(pathTimestamp, http.MethodPost, h.timestamp))
	r.HandleFunc(pathCertChain, h.handle(pathCertChain, http.MethodGet, h.certChain))
}

// Routes is the whole server of an authority that runs alone: also POST / (users of openssl,
// jarsigner and signtool expect the URL they typed to work, and sigstore-js appends the path
// only to a bare host) and upstream's probe /ping.
func (h *Handler) Routes() http.Handler {
	r := chi.NewRouter()
	h.Register(r)
	r.HandleFunc(pathRoot, h.handle(pathRoot, http.MethodPost, h.timestamp))
	r.HandleFunc(pathPing, h.handle(pathPing, http.MethodGet, func(w http.ResponseWriter, _ *http.Request, _ *outcome) {
		w.Header().Set("Content-Type", "text/plain")
		w.Write([]byte("."))
	}))
	r.NotFound(h.handle("unrecognized", "", func(w http.ResponseWriter, _ *http.Request, out *outcome) {
		h.problem(w, out, fault.New(fault.NotFound, "unknown_path", nil, "no such path; timestamps are at %s", pathTimestamp))
	}))
	// chi answers methods that it does not know by itself; ours has the body and the metrics.
	r.MethodNotAllowed(h.handle("unrecognized", http.MethodPost, h.timestamp))
	return r
}

// outcome is what the log line and the metrics say about a request.
type outcome struct {
	status int
	token  *Token
	hash   string
	err    error
}

// handle wraps an endpoint: method check, one log line, metrics.
func (h *Handler) handle(path, method string, endpoint func(http.ResponseWriter, *http.Request, *outcome)) http.HandlerFunc {
	logger := h.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		out := &outcome{status: http.StatusOK}
		if method != "" && r.Method != method && !(method == http.MethodGet && r.Method == http.MethodHead) {
			w.Header().Set("Allow", method)
			out.status = http.StatusMethodNotAllowed
			out.err = fault.New(fault.Unsupported, "method", nil, "the method is not %s", method)
			writeProblem(w, out.status, fault.Public(out.err))
		} else {
			endpoint(w, r, out)
		}
		h.Authority.metrics.answered(path, r.Method, out.status, time.Since(start))
		fields := []slog.Attr{slog.String("path", path), slog.Int("status", out.status), slog.Duration("took", time.Since(start))}
		level := slog.LevelInfo
		switch {
		case out.token != nil:
			// The audit line: serial and second find the token again.
			fields = append(fields, slog.String("serial", hex.EncodeToString(out.token.Serial)),
				slog.Time("gen_time", out.token.GenTime), slog.String("hash", out.hash))
		case out.err != nil:
			fields = append(fields, slog.String("reason", fault.ReasonOf(out.err)), slog.String("err", out.err.Error()))
			if k := fault.KindOf(out.err); k == fault.Internal || k == fault.Unavailable {
				level = slog.LevelError
			}
		default:
			level = slog.LevelDebug // probes and chain downloads
		}
		logger.LogAttrs(r.Context(), level, "timestamp", fields...)
	}
}

// timestamp serves POST /api/v1/timestamp (RFC 3161 section 3.4, and sigstore-js's JSON).
func (h *Handler) timestamp(w http.ResponseWriter, r *http.Request, out *outcome) {
	w.Header().Set("Cache-Control", "no-store")
	isJSON, err := isJSONQuery(r.Header.Get("Content-Type"))
	if err != nil {
		h.problem(w, out, err)
		return
	}
	// A connection that trickles its body is cut; ResponseRecorders have no deadline to set.
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		h.problem(w, out, err)
		return
	}
	limit, parse := maxQuery, ParseQuery
	if isJSON {
		limit, parse = maxJSONQuery, ParseJSONQuery
	}
	body, err := readBody(w, r, limit)
	if err != nil {
		h.problem(w, out, err)
		return
	}
	query, err := parse(body)
	var token *Token
	if err == nil {
		token, err = h.Authority.Issue(r.Context(), query)
	}
	if err != nil {
		h.refuse(w, isJSON, out, err)
		return
	}
	out.token, out.hash = token, query.Hash.String()
	writeReply(w, http.StatusOK, token.Reply)
}

// certChain serves the PEM chain, leaf first.
func (h *Handler) certChain(w http.ResponseWriter, _ *http.Request, _ *outcome) {
	text := EncodeChain(h.Authority.Chain())
	w.Header().Set("Content-Type", typeChain)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.Write(text)
}

// isJSONQuery tells the two forms of a query apart. Parameters such as a charset are allowed.
func isJSONQuery(contentType string) (bool, error) {
	media := contentType
	if media != typeQuery && media != typeJSON {
		media, _, _ = mime.ParseMediaType(contentType)
	}
	switch media {
	case typeQuery:
		return false, nil
	case typeJSON:
		return true, nil
	}
	return false, fault.New(fault.Unsupported, "content_type", nil, "the Content-Type is neither %s nor %s", typeQuery, typeJSON)
}

func readBody(w http.ResponseWriter, r *http.Request, limit int) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(limit)))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, fault.New(fault.TooLarge, "query_too_large", err, "the query is over %d bytes", limit)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "unreadable", err, "the query could not be read")
	}
	return body, nil
}

// refuse answers a query that was read but not granted. A DER query gets a DER reply: with
// HTTP 200 when the query is at fault, as commercial authorities do, with 503 when the clock
// or the signer is, because cosign and sigstore-go try again only then. A JSON query gets JSON.
func (h *Handler) refuse(w http.ResponseWriter, isJSON bool, out *outcome, err error) {
	info := failureOf(err)
	h.Authority.metrics.refused(info)
	status := fault.KindOf(err).HTTPStatus()
	ours := status >= http.StatusInternalServerError
	if ours {
		w.Header().Set("Retry-After", retryAfter)
	}
	if isJSON || h.Reject400 && !ours {
		out.status, out.err = status, err
		writeProblem(w, status, info.String()+": "+fault.Public(err))
		return
	}
	if !ours {
		status = http.StatusOK
	}
	out.status, out.err = status, err
	writeReply(w, status, rejection(info, fault.Public(err)))
}

// problem answers a request that never became a query.
func (h *Handler) problem(w http.ResponseWriter, out *outcome, err error) {
	out.status, out.err = fault.KindOf(err).HTTPStatus(), err
	writeProblem(w, out.status, fault.Public(err))
}

func writeReply(w http.ResponseWriter, status int, reply []byte) {
	w.Header().Set("Content-Type", typeReply)
	w.Header().Set("Content-Length", strconv.Itoa(len(reply)))
	w.WriteHeader(status)
	w.Write(reply) // a client that hung up is not our fault
}

// writeProblem writes sigstore's error body, {"code":400,"message":"…"}.
func writeProblem(w http.ResponseWriter, status int, message string) {
	body, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
	if err != nil {
		body = []byte("{}")
	}
	w.Header().Set("Content-Type", typeJSON)
	w.WriteHeader(status)
	w.Write(body)
}
