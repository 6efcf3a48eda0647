package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// answer is how a failed request is answered on each wire.
type answer struct {
	status  int        // HTTP
	code    codes.Code // gRPC, also in the HTTP body
	message string     // Fulcio's text, then what we add in brackets
	level   slog.Level // client mistakes are Info, ours are Error
	retry   string     // Retry-After in s, where trying again can help; else ""
}

// answerTo is the one mapping from errors to answers. Fulcio answers 400 (code 3) to every
// mistake in a request, a bad token included; what can pass by waiting is 429 or 503.
func answerTo(err error, requestID string) answer {
	a := answer{level: slog.LevelInfo}
	switch fault.KindOf(err) {
	case fault.Invalid, fault.Unauthentic, fault.TooLarge, fault.Unprocessable, fault.Unsupported:
		a.status, a.code = http.StatusBadRequest, codes.InvalidArgument
	case fault.Denied:
		a.status, a.code = http.StatusForbidden, codes.PermissionDenied
	case fault.NotFound:
		a.status, a.code = http.StatusNotFound, codes.NotFound
	case fault.Slow:
		a.status, a.code = http.StatusRequestTimeout, codes.DeadlineExceeded
	case fault.Overloaded, fault.Limited:
		a.status, a.code, a.retry = http.StatusTooManyRequests, codes.ResourceExhausted, fault.RetryAfter(err)
	case fault.Unavailable:
		a.status, a.code, a.retry, a.level = http.StatusServiceUnavailable, codes.Unavailable, fault.RetryAfter(err), slog.LevelError
	case fault.Canceled:
		a.status, a.code = fault.Canceled.HTTPStatus(), codes.Canceled
	default:
		a.status, a.code, a.level = http.StatusInternalServerError, codes.Internal, slog.LevelError
	}
	a.message = fmt.Sprintf("%s [reason=%s id=%s]", fault.Public(err), fault.ReasonOf(err), requestID)
	return a
}

// refuse counts, logs and records a failed request: one line, never token or key.
func (h *Handler) refuse(ctx context.Context, err error, requestID, wire string) answer {
	a := answerTo(err, requestID)
	h.ca.current.Load().recordRefusal(err, a, requestID)
	h.ca.metrics.rejected.WithLabelValues(reasonLabel(err)).Inc()
	cause := err
	var f *fault.Error
	if errors.As(err, &f) && f.Err != nil {
		cause = f.Err
	}
	attrs := []any{"wire", wire, "status", a.status, "reason", fault.ReasonOf(err), "request_id", requestID, "err", cause}
	if rule := identity.RuleOf(err); rule != "" {
		attrs = append(attrs, "rule", rule)
	}
	h.ca.current.Load().logger.Log(ctx, a.level, "request refused", attrs...)
	return a
}

// signFault puts Fulcio's text before what a key outside the process reports of itself: one that is away is 503, one that
// errs 500.
func signFault(err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return fault.New(f.Kind, f.Reason, err, "%s: %s", textBackend, f.Detail)
	}
	return fault.New(fault.Internal, "signer_failed", err, textBackend)
}
