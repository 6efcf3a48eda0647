package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

// Of several failures the one that decides gives the reason: an outage while what would pass may be behind it.
func TestAnOutageAmongRefusals(t *testing.T) {
	outage := func(after time.Duration) error {
		e := fault.New(fault.Unavailable, string(verify.ReasonRegistryUnreachable), nil, "down")
		e.RetryAfter = after
		return fmt.Errorf("reading: %w", e)
	}
	wrongSigner := Failure{Err: fault.New(fault.Denied, string(verify.ReasonIdentitySubject), nil, "bob")}
	otherType := Failure{Err: fault.New(fault.Denied, string(verify.ReasonPredicateMissing), nil, "a scan")}
	for _, tt := range []struct {
		name   string
		failed []Failure
		unread []error
		reason verify.Reason
		after  time.Duration
	}{
		{"nothing at all", nil, nil, verify.ReasonNoSignature, 0},
		{"an outage alone", nil, []error{outage(0)}, verify.ReasonRegistryUnreachable, 0},
		{"an outage after a limit", nil, []error{tooLarge("51"), outage(time.Second)}, verify.ReasonRegistryUnreachable, time.Second},
		{"two outages, the longer counts", nil, []error{outage(0), outage(time.Minute), outage(time.Second)}, verify.ReasonRegistryUnreachable, time.Minute},
		{"somebody else signed, and the rest is down", []Failure{wrongSigner}, []error{tooLarge("51"), outage(0)}, verify.ReasonRegistryUnreachable, 0},
		{"somebody else signed, and the rest is too large", []Failure{wrongSigner}, []error{tooLarge("51")}, verify.ReasonIdentitySubject, 0},
		{"another type, and the rest is too large", []Failure{otherType}, []error{tooLarge("51")}, verify.ReasonTooLarge, 0},
		{"somebody else signed another type", []Failure{otherType, wrongSigner}, nil, verify.ReasonIdentitySubject, 0},
		{"time ran out among limits", []Failure{wrongSigner}, []error{tooLarge("51"), context.DeadlineExceeded}, "deadline", 0},
		{"a file that cannot be read, among limits", []Failure{wrongSigner}, []error{tooLarge("51"), errors.New("input/output error")}, verify.ReasonInternal, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Deepest(tt.failed, Unread(tt.unread...), "signature", "the image")
			down, after := IsUnavailable(err)
			if verify.ReasonOf(err) != tt.reason || down != (tt.reason == verify.ReasonRegistryUnreachable) || after != tt.after {
				t.Errorf("%s, retriable %v after %v, want %s after %v: %v", verify.ReasonOf(err), down, after, tt.reason, tt.after, err)
			}
			for _, each := range tt.unread { // nothing is kept from people, but for what a deeper refusal has settled
				if !strings.Contains(err.Error(), each.Error()) {
					t.Errorf("%q does not say %q", err, each)
				}
			}
		})
	}
}

// The same through a registry: a broken signature, one bundle that is read and one that is down.
func TestARegistryThatIsDownForOneBundle(t *testing.T) {
	c := newContent(t)
	down := digestOf([]byte(`{"another":"bundle"}`))
	c.bundle(`{"another":"bundle"}`, "2026-01-02T00:00:00Z")
	broken := digestOf([]byte(`{"critical":{}}`))
	whole := c.handler(true)
	srv, image := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, down):
			w.WriteHeader(http.StatusServiceUnavailable)
		case strings.HasSuffix(r.URL.Path, broken):
			fmt.Fprint(w, `{"critical":[]}`)
		default:
			whole.ServeHTTP(w, r)
		}
	}))
	found, err := registryOf(t, srv, nil).Attachments(t.Context(), image)
	if retry, _ := IsUnavailable(err); len(found) != 2 || !retry || !strings.Contains(err.Error(), broken) {
		t.Errorf("%d attachments, retriable %v: %v", len(found), retry, err)
	}
}
