// Package server runs an HTTP handler (HTTP/1.1, cleartext HTTP/2 and gRPC) on a listener and stops it in order.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/attestry/attestry/internal/build"
)

// Limits on how long a connection may keep us waiting. A handler that reads a body sets a deadline of its own
// (internal/limit); readTimeout is for bodies that no handler wants, which net/http reads to find the next request.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 2 * time.Minute
	writeTimeout      = 5 * time.Minute // from the end of the header to that of the answer
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// Run serves handler on ln until ctx ends, then stops accepting, lets running requests finish
// for at most grace, and returns. It owns ln. The error is nil after an ordered stop.
func Run(ctx context.Context, ln net.Listener, handler http.Handler, grace time.Duration, logger *slog.Logger) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP2(true) // where the listener speaks TLS and offers it
	srv := &http.Server{
		Handler:           Edge(handler, logger),
		Protocols:         &protocols,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // ends at Shutdown or Close
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		logger.Warn("requests were cut at the end of the grace period", "grace", grace, "err", err)
		srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Listen opens the two listeners of a role, by the configuration's keys listen and ops-listen.
func Listen(listen, opsListen string) (ln, ops net.Listener, err error) {
	if ln, err = net.Listen("tcp", listen); err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	if ops, err = net.Listen("tcp", opsListen); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("ops-listen: %w", err), ln.Close())
	}
	return ln, ops, nil
}

// Duplex sends gRPC requests to g, a *grpc.Server or what stands before it, and everything else to h. sigstore-java before its HTTP
// client and go-witness derive the gRPC address from the HTTP URL, so both share one port.
func Duplex(g, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			g.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// NewRegistry returns the registry of a program: what Go and the operating system know of the process, and attestry_build_info.
func NewRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build.Gauge(prometheus.GaugeOpts{Name: "attestry_build_info", Help: "1, with what this program was built from."}))
	return reg
}

// Ops serves /metrics, /healthz (the process lives) and /readyz (ready returns nil) for the second listener. What
// notes return stands below the answer of /readyz and changes nothing in it. Roles add to it what only operators may ask.
func Ops(reg *prometheus.Registry, ready func(context.Context) error, notes ...func() []string) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", Healthz)
	mux.Handle("GET /readyz", Readyz(ready, notes...))
	return mux
}

// Healthz answers 200 while the process lives. The body is the one Fulcio's and Rekor's probes expect.
func Healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte(`{"status":"SERVING"}` + "\n"))
}

// Readyz answers 200 when ready returns nil, else 503 with its text: an operator reads it, no client does. A line for each of
// notes follows.
func Readyz(ready func(context.Context) error, notes ...func() []string) http.Handler {
	below := func(w io.Writer) {
		for _, list := range notes {
			for _, note := range list() {
				fmt.Fprintf(w, "note: %s\n", note)
			}
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := ready(ctx); err != nil {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			w.Write([]byte("not ready: " + err.Error() + "\n"))
			below(w)
			return
		}
		w.Write([]byte("ready\n"))
		below(w)
	})
}
