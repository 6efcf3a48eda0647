package ca

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// ExplainPath is where RegisterOps serves explanations.
const ExplainPath = "/ca/explain"

// RegisterOps adds what operators may ask to mux, which must belong to a listener that clients
// cannot reach: an answer quotes claims.
func (h *Handler) RegisterOps(mux *http.ServeMux) {
	mux.HandleFunc("POST "+ExplainPath, h.explain)
}

// explainRequest is the body of POST /ca/explain: a token, or claims as if they were signed.
type explainRequest struct {
	Token  string          `json:"token,omitempty"`
	Claims json.RawMessage `json:"claims,omitempty"`
}

// explain answers 200 with an identity.Explanation, whatever becomes of the token.
func (h *Handler) explain(w http.ResponseWriter, r *http.Request) {
	id := server.FitRequestID(r.Header.Get(server.RequestIDHeader))
	defer limit.Release(r)
	e, err := h.readEvidence(w, r)
	if err != nil {
		writeStatus(w, fault.KindOf(err).HTTPStatus(), codes.InvalidArgument, fault.Public(err))
		return
	}
	now := h.ca.current.Load()
	x := now.opts.Identity.Explain(r.Context(), e)
	now.logger.InfoContext(r.Context(), "token explained", "token", x.Token, "issued", x.Issued, "reason", x.Reason, "rule", x.Rule, "request_id", id)
	body, err := json.Marshal(x)
	if err != nil {
		writeStatus(w, http.StatusInternalServerError, codes.Internal, "the explanation could not be encoded")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(body)
}

func (h *Handler) readEvidence(w http.ResponseWriter, r *http.Request) (identity.Evidence, error) {
	body, err := h.readBody(w, r)
	if err != nil {
		return identity.Evidence{}, err
	}
	var req explainRequest
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err = dec.Decode(&req); err == nil {
		if _, trailing := dec.Token(); !errors.Is(trailing, io.EOF) {
			err = errors.New("trailing data")
		}
	}
	if err != nil || (req.Token == "") == (req.Claims == nil) {
		return identity.Evidence{}, fault.New(fault.Invalid, "malformed_request", err, `the request must be {"token": "…"} or {"claims": {…}}`)
	}
	return identity.Evidence{Token: req.Token, Claims: req.Claims}, nil
}
