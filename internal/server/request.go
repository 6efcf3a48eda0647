package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-chi/chi/v5/middleware"
)

// RequestIDHeader carries the id of a request, in it and in its answer. gRPC has it as metadata, in lower case.
const RequestIDHeader = "X-Request-Id"

const maxRequestID = 128 // bytes

// FitRequestID returns the caller's id if it is fit for a log line, else a new one.
func FitRequestID(given string) string {
	if given != "" && len(given) <= maxRequestID && !strings.ContainsFunc(given, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == ']' }) {
		return given
	}
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

type requestIDKey struct{}

// RequestID is the id of the request that ctx is of, "" when it is of none.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

const requestIDField = "request_id"

// LogHandler adds the request's id, as request_id, to the lines that are written with a request's context.
func LogHandler(h slog.Handler) slog.Handler { return logHandler{h} }

type logHandler struct{ slog.Handler }

func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	id, has := RequestID(ctx), false
	r.Attrs(func(a slog.Attr) bool {
		has = a.Key == requestIDField
		return !has
	})
	if id != "" && !has {
		r = r.Clone()
		r.AddAttrs(slog.String(requestIDField, id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logHandler{h.Handler.WithAttrs(attrs)}
}

func (h logHandler) WithGroup(name string) slog.Handler { return logHandler{h.Handler.WithGroup(name)} }

// Edge is what every request to every role passes first. It gives the request its id, logs it at debug, and answers for a handler
// that panicked. Run puts it around what it serves.
func Edge(next http.Handler, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		id := FitRequestID(r.Header.Get(RequestIDHeader))
		ctx := context.WithValue(r.Context(), requestIDKey{}, id)
		r = r.WithContext(ctx)
		r.Header.Set(RequestIDHeader, id) // what was sent may have been unfit; gRPC handlers see it as metadata
		w.Header().Set(RequestIDHeader, id)
		answer := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			reached := recover()
			if reached != nil && reached != http.ErrAbortHandler {
				logPanic(ctx, logger, reached)
				if answer.Status() != 0 { // half of an answer must not look like a whole one
					reached = http.ErrAbortHandler
				} else {
					reached = nil
					answer.Header().Set("Content-Type", "application/json")
					answer.WriteHeader(http.StatusInternalServerError)
					fmt.Fprintf(answer, `{"code":13,"message":"internal error [reason=panic id=%s]","details":[]}`+"\n", id)
				}
			}
			if logger.Enabled(ctx, slog.LevelDebug) {
				logger.LogAttrs(ctx, slog.LevelDebug, "request", slog.String("method", shownMethod(r.Method)), slog.String("path", shownPath(r.URL.Path, answer.Status())),
					slog.Int("status", max(answer.Status(), http.StatusOK)), slog.Int("bytes", answer.BytesWritten()),
					slog.Float64("seconds", time.Since(started).Seconds()), slog.String("remote", r.RemoteAddr))
			}
			if reached != nil {
				panic(reached)
			}
		}()
		next.ServeHTTP(answer, r)
	})
}

// logPanic writes where a handler panicked. Texts of the runtime are safe; any other value may hold what a client sent.
func logPanic(ctx context.Context, logger *slog.Logger, reached any) {
	what := fmt.Sprintf("%T", reached)
	if err, ok := reached.(runtime.Error); ok {
		what = err.Error()
	}
	logger.ErrorContext(ctx, "a handler panicked", "reason", "panic", "err", what, "stack", string(debug.Stack()))
}

const (
	maxShownSegments = 5
	maxShownSegment  = 32 // bytes; tokens are longer
)

// shownPath is what a log line may have of a path: nothing of one that leads nowhere, since anything may stand in it, and of others
// the first segments.
func shownPath(path string, status int) string {
	if status == http.StatusNotFound {
		return ""
	}
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, s := range segments {
		if i == maxShownSegments || len(s) > maxShownSegment {
			segments = append(segments[:i], "…")
			break
		}
	}
	return "/" + strings.Join(segments, "/")
}

// shownMethod is a method of HTTP, "other" for what else a client sends as one.
func shownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodConnect, http.MethodTrace:
		return method
	}
	return "other"
}
