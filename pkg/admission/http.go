package admission

import (
	"context"
	"mime"
	"net/http"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/server"
)

// maxInFlight bounds the reviews under way; the API server asks again, or refuses, when there are more.
const maxInFlight = 1024

// Handler serves a webhook.
type Handler struct {
	hook  *Webhook
	body  limit.Body
	slots chan struct{}
}

// NewHandler returns the handler of hook. bytes bounds the bodies of all reviews in memory, nil for no bound.
func NewHandler(hook *Webhook, bytes *limit.Bytes) *Handler {
	return &Handler{hook: hook, body: limit.Body{Max: maxReview, Time: hook.opts.Timeout, Bytes: bytes}, slots: make(chan struct{}, maxInFlight)}
}

// Routes serves POST /validate and /mutate, GET /livez and /readyz.
func (h *Handler) Routes(ready func(context.Context) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /validate", func(w http.ResponseWriter, r *http.Request) {
		h.serve(w, r, "validate", h.hook.validate)
	})
	mux.HandleFunc("POST /mutate", func(w http.ResponseWriter, r *http.Request) {
		h.serve(w, r, "mutate", func(ctx context.Context, review *request) (*response, string, bool) {
			answer, decided := h.hook.mutate(ctx, review)
			return answer, decided, false
		})
	})
	mux.HandleFunc("GET /livez", server.Healthz)
	mux.Handle("GET /readyz", server.Readyz(ready))
	return mux
}

// serve answers one review.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, webhook string, answer func(context.Context, *request) (*response, string, bool)) {
	began := h.hook.opts.Now()
	defer limit.Release(r)
	review, body, err := h.read(w, r, answer, webhook)
	if err != nil {
		h.hook.opts.Logger.Info("review refused", "webhook", webhook, "status", fault.KindOf(err).HTTPStatus(), "reason", fault.ReasonOf(err), "err", err)
		if after := fault.RetryAfter(err); after != "" {
			w.Header().Set("Retry-After", after)
		}
		http.Error(w, fault.Public(err), fault.KindOf(err).HTTPStatus())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(body)
	h.hook.metrics.reviewed(webhook, review.request, review.decided, review.cached, h.hook.opts.Now().Sub(began))
}

// reviewed is a request with what became of it.
type reviewed struct {
	request *request
	decided string
	cached  bool
}

func (h *Handler) read(w http.ResponseWriter, r *http.Request, answer func(context.Context, *request) (*response, string, bool), webhook string) (*reviewed, []byte, error) {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		return nil, nil, fault.New(fault.Overloaded, "reviews_in_flight", nil, "%d reviews are under way already; try again", maxInFlight)
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return nil, nil, fault.New(fault.Unsupported, "content_type", nil, "a review is application/json")
	}
	allowed, err := h.hook.timeout(r)
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "timeout_malformed", err, "%v", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), allowed)
	defer cancel()
	body, err := h.body.Read(w, r)
	if err != nil {
		return nil, nil, err
	}
	review, err := parseReview(body)
	if err != nil {
		return nil, nil, err
	}
	result, decided, cached := answer(ctx, review)
	text, err := result.review()
	if err != nil {
		return nil, nil, err
	}
	return &reviewed{review, decided, cached}, text, nil
}
