package ca

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/server"
)

const pemChain = "application/pem-certificate-chain"

// Routes returns the CA's whole HTTP API for a listener of its own, /healthz included.
func (h *Handler) Routes() http.Handler {
	r := chi.NewRouter()
	h.Register(r)
	r.Get("/healthz", server.Healthz)
	r.NotFound(func(w http.ResponseWriter, _ *http.Request) {
		writeStatus(w, http.StatusNotFound, codes.NotFound, "Not Found")
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, _ *http.Request) {
		writeStatus(w, http.StatusMethodNotAllowed, codes.Unimplemented, "Method Not Allowed")
	})
	return r
}

// Register adds the API's own paths to r, for a listener that several services share.
func (h *Handler) Register(r chi.Router) {
	r.Group(func(r chi.Router) {
		r.Use(h.cors, h.observe)
		r.Post("/api/v1/signingCert", h.signingCertV1)
		r.Post("/api/v2/signingCert", h.signingCertV2)
		for path, get := range map[string]http.HandlerFunc{
			"/api/v1/rootCert":      h.rootCert,
			"/api/v2/trustBundle":   func(w http.ResponseWriter, _ *http.Request) { writeMessage(w, h.trustBundle()) },
			"/api/v2/configuration": func(w http.ResponseWriter, _ *http.Request) { writeMessage(w, h.configuration()) },
		} {
			r.Get(path, get)
			r.Head(path, get)
			r.Options(path, preflight)
		}
		r.Options("/api/v1/signingCert", preflight)
		r.Options("/api/v2/signingCert", preflight)
	})
}

// signingCertV2 serves POST /api/v2/signingCert. 200 only: sigstore-go takes nothing else. JSON
// whatever Accept says: sigstore-python asks for PEM and expects JSON.
func (h *Handler) signingCertV2(w http.ResponseWriter, r *http.Request) {
	id := server.FitRequestID(r.Header.Get(server.RequestIDHeader))
	w.Header().Set(server.RequestIDHeader, id)
	defer limit.Release(r)
	issued, err := h.issueV2(w, r, id)
	if err != nil {
		h.fail(w, r, err, id)
		return
	}
	writeMessage(w, response(issued))
}

func (h *Handler) issueV2(w http.ResponseWriter, r *http.Request, id string) (*Issued, error) {
	body, err := h.readBody(w, r)
	if err != nil {
		return nil, err
	}
	message, err := decodeV2(body)
	if err != nil {
		return nil, err
	}
	outer, err := bearer(r.Header.Values("Authorization"))
	if err != nil {
		return nil, err
	}
	req, err := request(message, outer, id)
	if err != nil {
		return nil, err
	}
	return h.issue(r.Context(), req, r)
}

// decodeV2 reads protobuf JSON. Unknown fields and enum names are ignored: sigstore-go sends
// the algorithm "RSA", which the enum does not have.
func decodeV2(body []byte) (*fulcio.CreateSigningCertificateRequest, error) {
	message := new(fulcio.CreateSigningCertificateRequest)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 32}).Unmarshal(body, message); err != nil {
		return nil, fault.New(fault.Invalid, "malformed_request", errors.New("not protobuf JSON of the request"+place(err)), "the request body could not be decoded")
	}
	return message, nil
}

// place returns where err of protojson says that it is. The rest of its text quotes the input, which may be a
// token without its quotation marks, and must not get into the log.
func place(err error) string {
	_, at, ok := strings.Cut(err.Error(), "(line ")
	at, _, closed := strings.Cut(at, ")")
	if !ok || !closed || strings.Trim(at, "0123456789:") != "" {
		return ""
	}
	return " at line " + at
}

// signingCertV1 serves POST /api/v1/signingCert, for cosign 2.x and 3.0.x: 201 only.
func (h *Handler) signingCertV1(w http.ResponseWriter, r *http.Request) {
	id := server.FitRequestID(r.Header.Get(server.RequestIDHeader))
	w.Header().Set(server.RequestIDHeader, id)
	defer limit.Release(r)
	issued, err := h.issueV1(w, r, id)
	if err != nil {
		h.fail(w, r, err, id)
		return
	}
	w.Header().Set("Content-Type", pemChain)
	if issued.SCT != nil {
		w.Header().Set("SCT", base64.StdEncoding.EncodeToString(issued.SCT))
	}
	w.WriteHeader(http.StatusCreated)
	io.WriteString(w, strings.Join(issued.PEM, "\n"))
}

func (h *Handler) issueV1(w http.ResponseWriter, r *http.Request, id string) (*Issued, error) {
	body, err := h.readBody(w, r)
	if err != nil {
		return nil, err
	}
	req, err := decodeV1(body)
	if err != nil {
		return nil, err
	}
	req.ID = id
	if req.Token, err = bearer(r.Header.Values("Authorization")); err != nil {
		return nil, err
	}
	return h.issue(r.Context(), req, r)
}

// bytesField is protobuf JSON's bytes: base64, standard or URL alphabet, padded or not.
type bytesField []byte

func (b *bytesField) UnmarshalJSON(data []byte) error {
	var text *string
	if err := json.Unmarshal(data, &text); err != nil || text == nil {
		return err
	}
	plain := strings.NewReplacer("-", "+", "_", "/", "\r", "", "\n", "").Replace(*text) // line breaks as protobuf takes them
	plain = strings.TrimRight(plain, "=")
	decoded, err := base64.RawStdEncoding.DecodeString(plain)
	*b = decoded
	return err
}

// requestV1 is the body of the v1 API. cosign always sends all three keys, unused ones empty
// or null.
type requestV1 struct {
	PublicKey struct {
		Content bytesField `json:"content"`
	} `json:"publicKey"`
	SignedEmailAddress        bytesField `json:"signedEmailAddress"`
	CertificateSigningRequest bytesField `json:"certificateSigningRequest"`
}

func decodeV1(body []byte) (Request, error) {
	var v1 requestV1
	dec := json.NewDecoder(bytes.NewReader(body))
	err := dec.Decode(&v1)
	if err == nil {
		if _, trailing := dec.Token(); !errors.Is(trailing, io.EOF) {
			err = errors.New("trailing data")
		}
	}
	if err != nil {
		return Request{}, fault.New(fault.Invalid, "malformed_request", err, "the request body could not be decoded")
	}
	return Request{PublicKey: v1.PublicKey.Content, Proof: v1.SignedEmailAddress, CSR: v1.CertificateSigningRequest}, nil
}

// rootCert serves GET /api/v1/rootCert: all chains of the trust bundle, despite the name.
func (h *Handler) rootCert(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", pemChain)
	for _, chain := range h.trustBundle().Chains {
		for _, c := range chain.Certificates {
			io.WriteString(w, c)
		}
	}
}

func (h *Handler) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := limit.Body{Max: MaxBody, Time: bodyTime, Bytes: h.options.Load().Bytes}.Read(w, r)
	if fault.KindOf(err) == fault.TooLarge {
		return nil, fault.New(fault.TooLarge, "request_too_large", err, textTooLarge)
	}
	return body, err
}

func writeMessage(w http.ResponseWriter, m proto.Message) {
	body, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		writeStatus(w, http.StatusInternalServerError, codes.Internal, "Error marshaling code signing certificate")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(body)
}

func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error, id string) {
	a := h.refuse(r.Context(), err, id, r.URL.Path)
	if a.retry != "" {
		w.Header().Set("Retry-After", a.retry)
	}
	writeStatus(w, a.status, a.code, a.message)
}

// writeStatus writes a google.rpc.Status in protobuf JSON, as grpc-gateway does.
func writeStatus(w http.ResponseWriter, status int, code codes.Code, message string) {
	body, _ := json.Marshal(struct { // cannot fail
		Code    codes.Code `json:"code"`
		Message string     `json:"message"`
		Details []struct{} `json:"details"`
	}{code, message, []struct{}{}})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// cors lets browsers in. The API holds no cookies, so any origin may call it by default.
func (h *Handler) cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		origins := h.options.Load().Origins
		switch {
		case origin == "":
		case len(origins) == 0:
			w.Header().Set("Access-Control-Allow-Origin", "*")
		case slices.Contains(origins, origin):
			w.Header().Set("Access-Control-Allow-Origin", origin)
			w.Header().Add("Vary", "Origin")
		}
		next.ServeHTTP(w, r)
	})
}

func preflight(w http.ResponseWriter, _ *http.Request) {
	if w.Header().Get("Access-Control-Allow-Origin") != "" {
		w.Header().Set("Access-Control-Allow-Methods", "GET, POST, HEAD")
		w.Header().Set("Access-Control-Allow-Headers", "Accept, Authorization, Content-Type, X-Requested-With")
		w.Header().Set("Access-Control-Max-Age", "600")
	}
	w.WriteHeader(http.StatusNoContent)
}

// observe measures every request.
func (h *Handler) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := time.Now()
		s := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(s, r)
		took := time.Since(started)
		code, method := strconv.Itoa(s.status), strings.ToLower(r.Method)
		h.ca.metrics.latency.WithLabelValues(code, method).Observe(took.Seconds())
		h.ca.metrics.requests.WithLabelValues(code, method).Inc()
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// Ready is CA.Ready, for readiness probes.
func (h *Handler) Ready(ctx context.Context) error { return h.ca.Ready(ctx) }
