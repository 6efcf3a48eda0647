// Package fault classifies errors for the edge of a server: which status a client
// sees, what text it may read, and which stable reason code an operator can search for.
// An error that nobody classified is Internal and its text never leaves the process.
package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Kind says whose mistake an error is and whether trying again can help.
type Kind int

const (
	Internal      Kind = iota // ours; the text stays inside
	Invalid                   // the request is wrong
	Unauthentic               // the identity token or credential is wrong
	Denied                    // understood and refused by policy
	NotFound                  // no such thing
	Duplicate                 // it is already there
	TooLarge                  // over a constant limit
	Unsupported               // media type or method that is not spoken here
	Unprocessable             // well-formed, but against the schema
	Slow                      // the request took too long to arrive
	Limited                   // one caller asks for too much; try again later
	Overloaded                // too much at once; try again
	Unavailable               // a part is missing now; try again
	Frozen                    // the log takes no more entries
	Canceled                  // the caller went away
)

// HTTPStatus is the status code of RFC 9110 for k; 499 stands for a caller who hung up.
func (k Kind) HTTPStatus() int {
	switch k {
	case Invalid:
		return http.StatusBadRequest
	case Unauthentic:
		return http.StatusUnauthorized
	case Denied:
		return http.StatusForbidden
	case NotFound:
		return http.StatusNotFound
	case Duplicate:
		return http.StatusConflict
	case TooLarge:
		return http.StatusRequestEntityTooLarge
	case Unsupported:
		return http.StatusUnsupportedMediaType
	case Unprocessable:
		return http.StatusUnprocessableEntity
	case Slow:
		return http.StatusRequestTimeout
	case Limited:
		return http.StatusTooManyRequests
	case Overloaded, Unavailable:
		return http.StatusServiceUnavailable
	case Frozen:
		return http.StatusMethodNotAllowed
	case Canceled:
		return 499
	default:
		return http.StatusInternalServerError
	}
}

// Error carries text that a client may see beside a cause that it may not.
type Error struct {
	Kind   Kind
	Reason string // stable code such as "aud_mismatch": in the log line, and in the reply where its shape has room
	Detail string // sent to the client
	Err    error  // cause: logged, never sent; may be nil
	// RetryAfter is when trying again can help, if it is known.
	RetryAfter time.Duration
}

// New classifies err (which may be nil); format and args make the text for the client.
func New(kind Kind, reason string, err error, format string, args ...any) *Error {
	return &Error{Kind: kind, Reason: reason, Detail: fmt.Sprintf(format, args...), Err: err}
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Detail
	}
	return e.Detail + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the outermost classified error in err's chain. A context that
// ended is Canceled or, when its deadline passed, Unavailable; anything else is Internal.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable
	default:
		return Internal
	}
}

// ReasonOf returns the stable reason code of err, "internal" when nobody gave one.
func ReasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Reason != "" {
		return e.Reason
	}
	switch KindOf(err) {
	case Canceled:
		return "canceled"
	case Unavailable:
		return "deadline"
	default:
		return "internal"
	}
}

// Public returns the text of err that a client may read.
func Public(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Detail
	}
	switch KindOf(err) {
	case Canceled:
		return "the client closed the request"
	case Unavailable:
		return "the request took too long; try again"
	default:
		return "internal error"
	}
}

// RetryAfter returns the Retry-After header of an answer with this error: seconds where trying again can help, else "".
func RetryAfter(err error) string {
	kind := KindOf(err)
	if kind != Limited && kind.HTTPStatus() < http.StatusInternalServerError {
		return ""
	}
	var e *Error
	if errors.As(err, &e) && e.RetryAfter > time.Second {
		return strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10)
	}
	return "1"
}
