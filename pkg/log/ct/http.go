package ct

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
)

// Cache-Control values. What a signed tree holds never changes; an answer that a larger tree
// would make longer is good for a minute; the newest tree is asked for again each time.
const (
	cacheForever  = "public, max-age=604800, immutable" // tiles, issuers
	cacheComplete = "public, max-age=86400, immutable"  // whole ranges and proofs
	cachePartial  = "public, max-age=60"
	cacheNever    = "no-cache"
)

// endpoint answers a request or returns an error for Handler.fail; it writes nothing then.
type endpoint func(w http.ResponseWriter, r *http.Request) error

// route returns the endpoint for a path below the base URL, the method it takes and a name
// from a closed set for logs and metrics. A nil endpoint means that there is none.
func (h *Handler) route(path string) (serve endpoint, method, name string) {
	if name, ok := strings.CutPrefix(path, "/ct/v1/"); ok {
		switch name {
		case "add-chain":
			return h.addChain, http.MethodPost, name
		case "add-pre-chain":
			return h.addPreChain, http.MethodPost, name
		case "get-sth":
			return h.getSTH, http.MethodGet, name
		case "get-sth-consistency":
			return h.getSTHConsistency, http.MethodGet, name
		case "get-proof-by-hash":
			return h.getProofByHash, http.MethodGet, name
		case "get-entries":
			return h.getEntries, http.MethodGet, name
		case "get-entry-and-proof":
			return h.getEntryAndProof, http.MethodGet, name
		case "get-roots":
			return h.getRoots, http.MethodGet, name
		}
		return nil, "", "unknown"
	}
	if path == "/log.v3.json" {
		return h.describeLog, http.MethodGet, "log.v3.json"
	}
	if h.plain && (path == "/checkpoint" || strings.HasPrefix(path, "/tile/") || strings.HasPrefix(path, "/issuer/")) {
		return h.noStatic, http.MethodGet, "static-ct"
	}
	if path == "/checkpoint" {
		return h.checkpoint, http.MethodGet, "checkpoint"
	}
	if rest, ok := strings.CutPrefix(path, "/tile/"); ok {
		if tile, err := parseTilePath(rest); err == nil {
			return h.tile(tile), http.MethodGet, "tile"
		}
	}
	if name, ok := strings.CutPrefix(path, "/issuer/"); ok {
		if fingerprint, ok := parseFingerprint(name); ok {
			return h.issuer(fingerprint), http.MethodGet, "issuer"
		}
	}
	return nil, "", "unknown"
}

// ServeHTTP serves the paths below the log's base URL.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer limit.Release(r)
	started := h.now()
	serve, method, name := h.route(r.URL.Path)
	var err error
	switch {
	case serve == nil:
		err = fault.New(fault.NotFound, "no_such_path", nil, "this CT log has nothing at this path")
	case r.Method != method && !(method == http.MethodGet && r.Method == http.MethodHead):
		w.Header().Set("Allow", method)
		err = errMethod{method}
	default:
		err = serve(w, r)
	}
	status := http.StatusOK
	if err != nil {
		status = h.fail(w, r, name, err)
	}
	h.metrics.observe(name, status, h.now().Sub(started))
}

// errMethod is the one error whose status no fault.Kind has: 405 belongs to frozen logs there.
type errMethod struct{ allowed string }

func (e errMethod) Error() string { return "method not allowed: use " + e.allowed }

// fail is the one place that chooses status, body and log level of an error. The body has the
// form of RFC 6962 logs: the status text, then the reason, as text/plain.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, name string, err error) int {
	kind, reason, public := fault.KindOf(err), fault.ReasonOf(err), fault.Public(err)
	status := kind.HTTPStatus()
	if wrong := (errMethod{}); errors.As(err, &wrong) {
		status, reason, public = http.StatusMethodNotAllowed, "method_not_allowed", wrong.Error()
	}
	switch kind {
	case fault.Overloaded: // CT clients know 429 as push-back (static-ct-api, TesseraCT)
		status = http.StatusTooManyRequests
	case fault.Frozen: // a 405, and no method is left
		w.Header().Set("Allow", "")
	}
	if after := fault.RetryAfter(err); after != "" && kind != fault.Internal {
		w.Header().Set("Retry-After", after)
	}
	level := slog.LevelInfo
	if status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	h.logger.Log(r.Context(), level, "ct request refused", "endpoint", name, "status", status, "reason", reason, "err", err)

	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", cacheNever)
	w.WriteHeader(status)
	statusText := http.StatusText(status)
	if statusText == "" {
		statusText = "Client Closed Request"
	}
	fmt.Fprintf(w, "%s\n%s [reason=%s]\n", statusText, public, reason)
	return status
}

// addChainRequest is the body of add-chain and add-pre-chain (RFC 6962, sections 4.1 and 4.2).
type addChainRequest struct {
	Chain [][]byte `json:"chain"` // base64 of DER, the submitted certificate first
}

// addChainResponse is an SCT as JSON (RFC 6962, section 4.1).
type addChainResponse struct {
	SCTVersion int    `json:"sct_version"`
	ID         []byte `json:"id"`
	Timestamp  uint64 `json:"timestamp"`
	Extensions string `json:"extensions"` // base64 of CtExtensions, "" for none
	Signature  []byte `json:"signature"`  // TLS DigitallySigned
}

// parseAddChain reads a request body. Unknown members are ignored as
// reference logs do; anything after the object is an error.
func parseAddChain(body io.Reader) ([][]byte, error) {
	decoder := json.NewDecoder(body)
	var request addChainRequest
	if err := decoder.Decode(&request); err != nil {
		return nil, fault.New(fault.Invalid, "bad_json", err, "the body is not a JSON object with a chain of base64 certificates")
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fault.New(fault.Invalid, "bad_json", err, "there is data after the JSON object")
	}
	return request.Chain, nil
}

func (h *Handler) addChain(w http.ResponseWriter, r *http.Request) error {
	return h.addOverHTTP(w, r, false)
}

func (h *Handler) addPreChain(w http.ResponseWriter, r *http.Request) error {
	return h.addOverHTTP(w, r, true)
}

func (h *Handler) addOverHTTP(w http.ResponseWriter, r *http.Request, precert bool) error {
	body, err := h.body.Read(w, r)
	if err != nil {
		return err
	}
	chain, err := parseAddChain(bytes.NewReader(body))
	if err != nil {
		return err
	}
	s, receipt, err := h.add(r.Context(), chain, precert, false)
	if err != nil {
		return err
	}
	h.logger.InfoContext(r.Context(), "ct entry added", "index", receipt.Index, "timestampMillis", receipt.TimestampMillis, "precert", precert, "duplicate", receipt.Duplicate)
	return writeJSON(w, cacheNever, addChainResponse{
		ID: s.logID[:], Timestamp: s.timestampMillis,
		Extensions: encodeBase64(s.extensions), Signature: s.digitallySigned(),
	})
}

func writeJSON(w http.ResponseWriter, cache string, body any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	return write(w, "application/json", cache, encoded)
}

func write(w http.ResponseWriter, contentType, cache string, body []byte) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", cache)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body) // an error here is a client that left
	return nil
}
