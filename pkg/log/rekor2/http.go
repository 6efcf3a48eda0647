package rekor2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
)

// indexHeader names the index of the entry that a duplicate is of.
const indexHeader = "x-log-index"

// Cache rules of what is served: a tile never changes, a checkpoint always may.
const (
	cacheNever   = "no-cache"
	cacheForever = "max-age=604800, immutable"
)

// longWord is longer than any name in a request: what protojson quotes of one may be a token, which must reach no log.
var longWord = regexp.MustCompile(`[^\s"{}\[\]:,]{40,}`)

func (h *Handler) newRouter() http.Handler {
	r := chi.NewRouter()
	r.NotFound(h.serve("unknown", func(http.ResponseWriter, *http.Request) error { return noPathError{} }))
	r.MethodNotAllowed(h.serve("unknown", func(_ http.ResponseWriter, req *http.Request) error {
		if strings.HasSuffix(req.URL.Path, "/log/entries") {
			return methodError{http.MethodPost}
		}
		return methodError{"GET, HEAD"}
	}))
	r.Post("/api/v2/log/entries", h.serve("/api/v2/log/entries", h.postEntry))
	for _, base := range []string{"", "/api/v2"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r.Method(method, base+"/checkpoint", h.serve(base+"/checkpoint", h.getCheckpoint))
			r.Method(method, base+"/tile/*", h.serve(base+"/tile", h.getTile))
		}
	}
	return r
}

// serve turns an operation into a handler that reports its error and counts it.
func (h *Handler) serve(path string, op func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		started := h.opts.Now()
		defer limit.Release(r)
		answer := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		if err := op(answer, r); err != nil {
			h.fail(answer, r, path, err)
		}
		h.metrics.observe(path, r.Method, answer.Status(), r.ContentLength, h.opts.Now().Sub(started))
	}
}

// Errors of the HTTP edge, with grpc-gateway's texts.
type (
	methodError struct{ allow string }
	noPathError struct{}
)

func (noPathError) Error() string { return "Not Found" }

func (e methodError) Error() string { return "Method Not Allowed" }

// postEntry serves POST /api/v2/log/entries. The body is a CreateEntryRequest in protobuf's JSON, whatever its
// Content-Type; unknown members are refused, as upstream does.
func (h *Handler) postEntry(w http.ResponseWriter, r *http.Request) error {
	body, err := h.opts.Body.Read(w, r)
	if err != nil {
		return err
	}
	req := new(rekorpb.CreateEntryRequest)
	if err := protojson.Unmarshal(body, req); err != nil {
		text := longWord.ReplaceAllString(err.Error(), "…")
		return fault.New(fault.Invalid, "bad_json", nil, "invalid request: %s", text)
	}
	entry, err := h.createEntry(r.Context(), r.Host, req)
	if err != nil {
		return err
	}
	out, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(entry)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	write(w, "application/json", http.StatusCreated, out) // Go's and Java's clients take 200 for a failure
	return nil
}

// getCheckpoint serves GET [/api/v2]/checkpoint.
func (h *Handler) getCheckpoint(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", cacheNever)
	w.Header().Set("Access-Control-Allow-Origin", "*")
	write(w, "text/plain; charset=utf-8", http.StatusOK, h.shards.Load().at(r.Host).Checkpoint().Note)
	return nil
}

// getTile serves GET [/api/v2]/tile/….
func (h *Handler) getTile(w http.ResponseWriter, r *http.Request) error {
	tile, ok := parseTile(chi.URLParam(r, "*"))
	if !ok {
		return noPathError{}
	}
	s := h.shards.Load().at(r.Host)
	var raw []byte
	var err error
	if tile.entries {
		raw, err = s.Bundle(r.Context(), tile.index, tile.width)
	} else {
		raw, err = s.Tile(r.Context(), tile.level, tile.index, tile.width)
	}
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", cacheForever)
	w.Header().Set("Access-Control-Allow-Origin", "*")
	write(w, "application/octet-stream", http.StatusOK, raw)
	return nil
}

// outcome says how an error is answered: HTTP status, gRPC code, text and reason. It is the one place for both.
func outcome(err error) (status int, code codes.Code, reason, text string) {
	kind := fault.KindOf(err)
	status, reason, text = kind.HTTPStatus(), fault.ReasonOf(err), fault.Public(err)
	var method methodError
	var conflict conflictError
	switch {
	case errors.As(err, &method):
		return http.StatusMethodNotAllowed, codes.Unimplemented, "method_not_allowed", err.Error()
	case errors.As(err, &conflict):
		return http.StatusConflict, codes.AlreadyExists, "duplicate", err.Error()
	case errors.Is(err, noPathError{}):
		return http.StatusNotFound, codes.NotFound, "no_such_path", err.Error()
	}
	switch kind {
	case fault.Invalid, fault.Unprocessable, fault.Unsupported:
		status, code = http.StatusBadRequest, codes.InvalidArgument
	case fault.TooLarge, fault.Limited:
		code = codes.ResourceExhausted
	case fault.Slow:
		code = codes.DeadlineExceeded
	case fault.NotFound:
		code = codes.NotFound
	case fault.Frozen:
		code, text = codes.Unimplemented, "This log has been frozen, please switch to the latest log."
	case fault.Overloaded:
		code, text = codes.Unavailable, "reached max pushback; retry"
	case fault.Unavailable:
		code = codes.Unavailable
	case fault.Canceled:
		code = codes.Canceled
	default:
		code = codes.Unknown
	}
	return status, code, reason, text
}

// fail writes an error as grpc-gateway does: {"code","message","details"}.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, path string, err error) {
	status, code, reason, text := outcome(err)
	h.report(r.Context(), status, reason, err, "method", r.Method, "path", path)
	w.Header().Set("Cache-Control", "no-store")
	var conflict conflictError
	var method methodError
	switch {
	case errors.As(err, &conflict):
		w.Header().Set(indexHeader, strconv.FormatUint(conflict.index, 10))
	case errors.As(err, &method):
		w.Header().Set("Allow", method.allow)
	case fault.KindOf(err) == fault.Frozen:
		write(w, "text/plain; charset=utf-8", status, []byte(text+"\n"))
		return
	case fault.RetryAfter(err) != "":
		w.Header().Set("Retry-After", fault.RetryAfter(err)) // POSTs are idempotent, clients may come again
	}
	body, err := json.Marshal(struct {
		Code    codes.Code `json:"code"`
		Message string     `json:"message"`
		Details []struct{} `json:"details"`
	}{code, text, []struct{}{}})
	if err == nil {
		write(w, "application/json", status, body)
	}
}

// report is the one log line of a refused request.
func (h *Handler) report(ctx context.Context, status int, reason string, err error, where ...any) {
	level := slog.LevelInfo
	if status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	h.opts.Logger.Log(ctx, level, "rekor v2 request refused", append(where, "status", status, "reason", reason, "err", err)...)
}

func write(w http.ResponseWriter, contentType string, status int, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body) // an error here is a client that left
}
