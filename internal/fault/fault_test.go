package fault

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestWhatAClientSees(t *testing.T) {
	cause := errors.New("pq: password for user fails")
	for _, tt := range []struct {
		name           string
		err            error
		status         int
		public, reason string
	}{
		{"an unclassified error says nothing", cause, 500, "internal error", "internal"},
		{"a classified error shows its detail and hides its cause", New(Invalid, "bad_key", cause, "key %q is unreadable", "x"), 400, `key "x" is unreadable`, "bad_key"},
		{"wrapping keeps the class", fmt.Errorf("adding entry: %w", New(TooLarge, "entry_too_large", nil, "too large")), 413, "too large", "entry_too_large"},
		{"a caller who hung up is not our fault", fmt.Errorf("waiting: %w", context.Canceled), 499, "the client closed the request", "canceled"},
		{"a passed deadline may be tried again", context.DeadlineExceeded, 503, "the request took too long; try again", "deadline"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := KindOf(tt.err).HTTPStatus(); got != tt.status {
				t.Errorf("status = %d, want %d", got, tt.status)
			}
			if got := Public(tt.err); got != tt.public {
				t.Errorf("public text = %q, want %q", got, tt.public)
			}
			if got := ReasonOf(tt.err); got != tt.reason {
				t.Errorf("reason = %q, want %q", got, tt.reason)
			}
		})
	}
}
