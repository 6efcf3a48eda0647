package rekor1

import (
	_ "embed" // swagger.json
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/rs/cors"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// newRouter lists the operations.
func (h *Handler) newRouter() http.Handler {
	r := chi.NewRouter()
	r.Use(cors.Default().Handler) // the search UI runs in a browser
	r.NotFound(h.serve("unknown", func(_ http.ResponseWriter, r *http.Request) error {
		return noPathError{r.URL.Path}
	}))
	r.MethodNotAllowed(h.serve("unknown", func(_ http.ResponseWriter, req *http.Request) error {
		return methodError{req.Method, allowed(r, req.URL.Path)}
	}))
	for _, op := range []struct {
		id, method, path string
		serve            func(http.ResponseWriter, *http.Request) error
	}{
		{"createLogEntry", http.MethodPost, "/api/v1/log/entries", h.createEntry},
		{"getLogEntryByIndex", http.MethodGet, "/api/v1/log/entries", h.entryByIndex},
		{"searchLogQuery", http.MethodPost, "/api/v1/log/entries/retrieve", h.retrieveEntries},
		{"searchLogQuery", http.MethodPost, "/api/v1/log/entries/retrieve/", h.retrieveEntries}, // sigstore-python's helper adds the slash
		{"getLogEntryByUUID", http.MethodGet, "/api/v1/log/entries/{entryUUID}", h.entryByUUID},
		{"getLogInfo", http.MethodGet, "/api/v1/log", h.logInfo},
		{"getLogProof", http.MethodGet, "/api/v1/log/proof", h.logProof},
		{"getPublicKey", http.MethodGet, "/api/v1/log/publicKey", h.logPublicKey},
		{"searchIndex", http.MethodPost, "/api/v1/index/retrieve", h.searchIndex},
	} {
		if slices.Contains(h.off, op.id) {
			op.serve = func(http.ResponseWriter, *http.Request) error { return offError{op.id} }
		}
		var handler http.Handler = h.serve(strings.TrimSuffix(op.path, "/"), op.serve)
		if op.method == http.MethodGet {
			handler = middleware.NoCache(handler)
		}
		r.Method(op.method, op.path, handler)
	}
	r.Get("/ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, ".")
	})
	r.Get("/swagger.json", func(w http.ResponseWriter, _ *http.Request) {
		write(w, "application/json", http.StatusOK, swagger)
	})
	return r
}

// swagger describes the API as OpenAPI 2.0, which its path is of.
//
//go:embed swagger.json
var swagger []byte

// Operations are what a server may switch off, by the names that upstream's enabled_api_endpoints has.
func Operations() []string {
	return []string{"createLogEntry", "getLogEntryByIndex", "getLogEntryByUUID", "getLogInfo", "getLogProof", "getPublicKey", "searchIndex", "searchLogQuery"}
}

// offError says that an operation is switched off.
type offError struct{ id string }

func (e offError) Error() string { return "operation " + e.id + " is not enabled on this server" }

func allowed(r chi.Routes, path string) []string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost} {
		if r.Match(chi.NewRouteContext(), m, path) {
			methods = append(methods, m)
		}
	}
	return methods
}

// serve turns an operation into a handler that reports its error and counts it.
func (h *Handler) serve(path string, op func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		started := h.now()
		defer limit.Release(r)
		answer := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		if err := op(answer, r); err != nil {
			h.fail(answer, r, path, err)
		}
		h.metrics.observe(path, r.Method, answer.Status(), h.now().Sub(started))
	}
}

// Errors that have a shape of their own in this API.
type (
	// schemaError is a breach of the OpenAPI schema: HTTP 422, and in the body the validator's code.
	schemaError struct {
		code int
		text string
	}
	methodError struct {
		method  string
		allowed []string
	}
	noPathError   struct{ path string }
	conflictError struct{ entryID string }
)

// Codes of go-openapi's validator.
const (
	codeType     = 601
	codeRequired = 602
	codeTooLong  = 603
	codePattern  = 605
	codeEnum     = 606
	codeMinimum  = 609
	codeMaxItems = 611
	codeMinItems = 612
)

func (e schemaError) Error() string { return e.text }
func (e methodError) Error() string {
	return fmt.Sprintf("method %s is not allowed, but [%s] are", e.method, strings.Join(e.allowed, ","))
}
func (e noPathError) Error() string { return fmt.Sprintf("path %s was not found", e.path) }
func (e conflictError) Error() string {
	return "an equivalent entry already exists in the transparency log with UUID " + e.entryID
}

func schema(code int, format string, args ...any) error {
	return schemaError{code, fmt.Sprintf(format, args...)}
}

// fail is the one place that chooses status, body and log level of an error.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, path string, err error) {
	kind, reason, text := fault.KindOf(err), fault.ReasonOf(err), fault.Public(err)
	status := kind.HTTPStatus()
	code, silent := status, kind == fault.NotFound // an entry that is not there is 404 without a body
	var schemaErr schemaError
	var methodErr methodError
	var pathErr noPathError
	var conflict conflictError
	var off offError
	switch {
	case errors.As(err, &schemaErr):
		status, code, reason, text = http.StatusUnprocessableEntity, schemaErr.code, "schema", err.Error()
	case errors.As(err, &methodErr):
		status, code, reason, text = http.StatusMethodNotAllowed, http.StatusMethodNotAllowed, "method_not_allowed", err.Error()
		w.Header().Set("Allow", strings.Join(methodErr.allowed, ","))
	case errors.As(err, &pathErr):
		status, code, reason, text = http.StatusNotFound, http.StatusNotFound, "no_such_path", err.Error()
	case errors.As(err, &conflict):
		status, code, reason, text = http.StatusConflict, http.StatusConflict, "duplicate", err.Error()
		w.Header().Set("Location", entriesPath+"/"+conflict.entryID)
	case errors.Is(err, noSearchError{}):
		status, code, reason, text = http.StatusNotImplemented, http.StatusNotImplemented, "search_off", err.Error()
	case errors.As(err, &off):
		status, code, reason, text = http.StatusNotImplemented, http.StatusNotImplemented, "operation_off", err.Error()
	case kind == fault.Frozen:
		w.Header().Set("Allow", "GET")
	case kind == fault.Canceled:
		text = "client disconnected during request"
	case fault.RetryAfter(err) != "":
		w.Header().Set("Retry-After", fault.RetryAfter(err)) // POSTs are idempotent, clients may come again
	}
	level := slog.LevelInfo
	if status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	h.logger.Log(r.Context(), level, "rekor v1 request refused", "method", r.Method, "path", path, "status", status, "reason", reason, "err", err)
	if silent {
		w.WriteHeader(status)
		return
	}
	body, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{code, text})
	if err == nil {
		write(w, "application/json", status, body)
	}
}

// readJSON reads a request's body; name is the parameter's in upstream's error texts.
func (h *Handler) readJSON(w http.ResponseWriter, r *http.Request, name string) (ijson.Value, error) {
	if r.ContentLength == 0 {
		return ijson.Value{}, schema(codeRequired, "%s in body is required", name)
	}
	contentType := r.Header.Get("Content-Type")
	if contentType == "" {
		contentType = "application/octet-stream"
	}
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "application/json" {
		return ijson.Value{}, fault.New(fault.Unsupported, "content_type", err, "unsupported media type %q, only [application/json] are allowed", contentType)
	}
	body, err := h.body.Read(w, r)
	if err != nil {
		return ijson.Value{}, err
	}
	if len(body) == 0 {
		return ijson.Value{}, schema(codeRequired, "%s in body is required", name)
	}
	v, err := ijson.Parse(body)
	if err == nil && v.Kind != ijson.Object {
		err = errors.New("it is not a JSON object")
	}
	if err != nil {
		return ijson.Value{}, parseError(name, err)
	}
	return v, nil
}

func parseError(name string, err error) error {
	return fault.New(fault.Invalid, "bad_json", err, "parsing %s body from %q failed, because %v", name, "", err)
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	write(w, "application/json", status, body)
	return nil
}

func write(w http.ResponseWriter, contentType string, status int, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body) // an error here is a client that left
}
