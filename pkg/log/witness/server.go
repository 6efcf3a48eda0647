package witness

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/server"
)

const (
	bodyTimeout = 10 * time.Second
	maxInFlight = 64   // submissions at once; more get a 503
	maxWatched  = 1024 // logs
)

// ServerOptions says what a witness is and which logs it knows.
type ServerOptions struct {
	Name   string        // of its signature lines, such as witness.example/w1; for life
	Key    crypto.Signer // Ed25519, used for nothing else
	Dir    string        // what it has cosigned; of this key alone, and never brought back from a backup
	Logs   []Key         // several of one name are keys of one log
	Logger *slog.Logger
	// Registerer takes the metrics; nil for none.
	Registerer prometheus.Registerer
	// Now is the clock of the cosignatures; nil for time.Now.
	Now func() time.Time
}

// Server is a witness. Its methods may be called concurrently.
type Server struct {
	cosigner cosigner
	store    *store
	watched  map[string]*watched // by origin
	logger   *slog.Logger
	metrics  *serverMetrics
	now      func() time.Time
	slots    chan struct{} // holds an element for each submission in flight
	// bodyTimeout is how long the whole body of a request may take.
	bodyTimeout time.Duration
}

// OpenServer reads what the witness has cosigned and holds its directory until Close. It fails with ErrInUse when another process
// does, and when a record is damaged or another key's.
func OpenServer(opts ServerOptions) (*Server, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	cosigner, err := newCosigner(opts.Name, opts.Key)
	if err != nil {
		return nil, err
	}
	s := &Server{cosigner: cosigner, watched: map[string]*watched{}, logger: opts.Logger, now: opts.Now, slots: make(chan struct{}, maxInFlight), bodyTimeout: bodyTimeout}
	if s.metrics, err = newServerMetrics(opts.Registerer); err != nil {
		return nil, err
	}
	for _, key := range opts.Logs {
		if key.kind != Ed25519 && key.kind != ECDSA {
			return nil, fmt.Errorf("log %s: signature type 0x%02x is no log's", key.name, byte(key.kind))
		}
		if key.same(cosigner.key) {
			return nil, fmt.Errorf("log %s has the key of this witness", key.name)
		}
		w := s.watched[key.name]
		if w == nil {
			w = &watched{origin: key.name}
			s.watched[key.name] = w
		}
		if !slices.ContainsFunc(w.keys, key.same) {
			w.keys = append(w.keys, key)
		}
	}
	if len(s.watched) == 0 || len(s.watched) > maxWatched {
		return nil, fmt.Errorf("a witness knows 1 to %d logs, this one %d", maxWatched, len(s.watched))
	}
	if s.store, err = openStore(opts.Dir); err != nil {
		return nil, err
	}
	for _, w := range s.watched {
		if err := s.open(w); err != nil {
			return nil, errors.Join(err, s.store.close())
		}
	}
	return s, nil
}

func (s *Server) open(w *watched) error {
	if err := s.store.prepare(w.origin); err != nil {
		return fmt.Errorf("opening witness directory: %w", err)
	}
	var err error
	if w.held, err = s.store.load(w.origin, s.cosigner.key); err != nil {
		return err
	}
	s.metrics.cosigned(w.held)
	return nil
}

// Close gives up the directory. No request may be running.
func (s *Server) Close() error { return s.store.close() }

// Key is the verifier key of the witness's cosignatures.
func (s *Server) Key() Key { return s.cosigner.key }

// Ready returns nil when every log could be cosigned now, else why not.
func (s *Server) Ready(context.Context) error {
	var errs []error
	for origin, w := range s.watched {
		w.mu.Lock()
		if err := s.settle(w); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", origin, err))
		} else if _, err := s.unixAfter(w.held); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", origin, err))
		}
		w.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Routes is the submission prefix (c2sp.org/tlog-witness) and the monitoring prefix, where the last cosigned checkpoint of a log is
// at the path of c2sp.org/tlog-mirror: /<SHA-256 of the origin, hex>/checkpoint.
func (s *Server) Routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", s.addCheckpoint)
	mux.HandleFunc("GET /{hash}/checkpoint", s.checkpoint)
	mux.HandleFunc("GET /{$}", s.list)
	mux.HandleFunc("GET /healthz", server.Healthz)
	mux.Handle("GET /readyz", server.Readyz(s.Ready))
	return mux
}

func (s *Server) addCheckpoint(w http.ResponseWriter, r *http.Request) {
	var sub submission
	line, err := s.admit(w, r, &sub)
	status, contentType, body := http.StatusOK, "text/plain; charset=utf-8", line
	if err != nil {
		status, body = fault.KindOf(err).HTTPStatus(), fault.Public(err)+"\n"
		var conflict *conflictError
		if errors.As(err, &conflict) {
			contentType, body = "text/x.tlog.size", fmt.Sprintf("%d\n", conflict.held)
		}
		if status >= http.StatusInternalServerError {
			w.Header().Set("Retry-After", "1")
		}
	}
	level := slog.LevelInfo
	if status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	attrs := []slog.Attr{slog.Int("status", status), slog.String("origin", sub.origin), slog.Uint64("size", sub.size), slog.Uint64("old", sub.old)}
	if err != nil {
		attrs = append(attrs, slog.String("reason", fault.ReasonOf(err)), slog.Any("err", err))
	} else {
		attrs = append(attrs, slog.String("root", fmt.Sprintf("%x", sub.root)))
	}
	s.logger.LogAttrs(r.Context(), level, "add-checkpoint", attrs...)
	s.metrics.requests.WithLabelValues(fmt.Sprint(status)).Inc()
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	io.WriteString(w, body)
}

// admit reads the submission into sub, and submits it when there is room.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, sub *submission) (string, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return "", fault.New(fault.Overloaded, "queue_full", nil, "%d submissions are in work; try again", maxInFlight)
	}
	conn := http.NewResponseController(w)
	conn.SetReadDeadline(time.Now().Add(s.bodyTimeout)) // where a connection has none, the body is there already
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return "", fault.New(fault.TooLarge, "body_too_large", nil, "the request has over %d bytes", maxRequest)
	}
	if err != nil {
		return "", fault.New(fault.Invalid, "body", err, "the request could not be read within %v", s.bodyTimeout)
	}
	conn.SetReadDeadline(time.Time{})
	if *sub, err = parseSubmission(body); err != nil {
		return "", fault.New(fault.Invalid, "request", err, "malformed request: %v", err)
	}
	return s.submit(r.Context(), *sub)
}

func (s *Server) checkpoint(w http.ResponseWriter, r *http.Request) {
	for origin, watched := range s.watched {
		if originHash(origin) != r.PathValue("hash") {
			continue
		}
		watched.mu.Lock()
		note := watched.held.note
		watched.mu.Unlock()
		if note != nil {
			text(w, http.StatusOK, string(note))
			return
		}
		break
	}
	text(w, http.StatusNotFound, "no checkpoint of such a log was cosigned\n")
}

// list shows people what the witness knows: its key, then a line for each log.
func (s *Server) list(w http.ResponseWriter, _ *http.Request) {
	var lines []string
	for origin, watched := range s.watched {
		watched.mu.Lock()
		lines = append(lines, fmt.Sprintf("%s/checkpoint\t%d\t%s\n", originHash(origin), watched.held.size, origin))
		watched.mu.Unlock()
	}
	slices.Sort(lines)
	text(w, http.StatusOK, s.cosigner.key.String()+"\n"+strings.Join(lines, ""))
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	io.WriteString(w, body)
}
