package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// output is a log that is read while it is written.
type output struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// take returns what was written since it was called last.
func (o *output) take() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := o.text.String()
	o.text.Reset()
	return text
}

// panicking is a gRPC service whose only handler panics with what it was sent.
type panicking struct {
	healthpb.UnimplementedHealthServer
}

func (panicking) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	panic("secret " + r.Service)
}

// serve runs a server as the roles do and returns its URL, address and log.
func serve(t *testing.T, h http.Handler) (addr string, logged *output) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	logged = new(output)
	logger := slog.New(LogHandler(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	g := grpc.NewServer(GRPCRecover(logger)...)
	healthpb.RegisterHealthServer(g, panicking{})
	mux := http.NewServeMux()
	mux.HandleFunc("/logs", func(_ http.ResponseWriter, r *http.Request) {
		logger.With("k", "v").WithGroup("g").InfoContext(r.Context(), "inside", "x", 1)
	})
	mux.Handle("/", h)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, ln, Duplex(g, mux), time.Second, logger) }() // ends with ctx
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String(), logged
}

func TestEachRequestHasAnIDInItsAnswerAndInItsLines(t *testing.T) {
	addr, logged := serve(t, http.NotFoundHandler())
	for name, tt := range map[string]struct {
		given string
		kept  bool
	}{
		"an id that is fit is kept":      {"build-4711/attempt:2", true},
		"none is made":                   {"", false},
		"a quotation mark is refused":    {`a"b`, false},
		"a space is refused":             {"a b", false},
		"what is not ASCII is refused":   {"größe", false},
		"what is too long is refused":    {strings.Repeat("x", maxRequestID+1), false},
		"what closes a field is refused": {"a] [reason=ok", false},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/logs", nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.given != "" {
			req.Header.Set(RequestIDHeader, tt.given)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		id := resp.Header.Get(RequestIDHeader)
		if (id == tt.given) != tt.kept || id == "" || len(resp.Header.Values(RequestIDHeader)) != 1 {
			t.Errorf("%s: sent %q, got %q", name, tt.given, resp.Header.Values(RequestIDHeader))
		}
		var text string
		for !strings.Contains(text, "msg=request ") { // it comes after the answer
			text += logged.take()
		}
		if strings.Count(text, "request_id="+id) != 2 || !strings.Contains(text, "k=v g.x=1") {
			t.Errorf("%s: the lines do not carry %q: %s", name, id, text)
		}
	}
}

func TestPanicsAreAnsweredAndTellNoSecret(t *testing.T) {
	addr, logged := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/value":
			panic(errors.New("secret value"))
		case "/index":
			_ = make([]int, 1)[len(r.URL.Path)]
		case "/half":
			io.WriteString(w, "half")
			http.NewResponseController(w).Flush()
			panic("secret half")
		case "/abort":
			panic(http.ErrAbortHandler)
		}
	}))
	get := func(path string) (int, string, error) {
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	var text string
	for path, wanted := range map[string]string{"/value": "*errors.errorString", "/index": "index out of range"} {
		code, body, err := get(path)
		if err != nil || code != http.StatusInternalServerError || !strings.Contains(body, "reason=panic") {
			t.Errorf("%s: %d %s %v", path, code, body, err)
		}
		lines := logged.take()
		if text += lines; !strings.Contains(lines, wanted) || !strings.Contains(lines, "reason=panic") || !strings.Contains(lines, "request_test.go") {
			t.Errorf("%s: the log says neither what nor where: %s", path, lines)
		}
	}
	for _, path := range []string{"/half", "/abort"} {
		if _, body, err := get(path); err == nil {
			t.Errorf("%s: half an answer looks whole: %q", path, body)
		}
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "call-1")
	var header metadata.MD
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: "service"}, grpc.Header(&header))
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "id=call-1") || len(header.Get("x-request-id")) != 1 {
		t.Errorf("a gRPC handler that panicked: %v, header %v", err, header)
	}
	text += logged.take()
	if strings.Contains(text, "secret") || !strings.Contains(text, "request_id=call-1") {
		t.Errorf("the log: %s", text)
	}
	if code, _, err := get("/"); err != nil || code != http.StatusOK {
		t.Errorf("after the panics: %d %v", code, err)
	}
}

func TestALineShowsNoPathThatLeadsNowhere(t *testing.T) {
	token := "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
	for _, tt := range []struct {
		path   string
		status int
		want   string
	}{
		{"/api/v1/log/entries", 200, "/api/v1/log/entries"},
		{"/nothing/hunter2", 404, ""},
		{"/api/v1/log/entries/" + strings.Repeat("0", 64), 200, "/api/v1/log/entries/…"},
		{"/api/v2/signingCert/" + token, 405, "/api/v2/signingCert/…"},
		{"/1/2/3/4/5/6", 200, "/1/2/3/4/5/…"},
		{"/", 200, "/"},
	} {
		if got := shownPath(tt.path, tt.status); got != tt.want {
			t.Errorf("%s with %d is shown as %q, want %q", tt.path, tt.status, got, tt.want)
		}
	}
	if got := shownMethod(token); got != "other" {
		t.Errorf("a method that is a token is shown as %q", got)
	}
}
