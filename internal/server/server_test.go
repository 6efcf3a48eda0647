package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func TestOnePortSpeaksHTTP1AndGRPCAndDrainsBeforeItStops(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	healthpb.RegisterHealthServer(g, health.NewServer())
	entered, release := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-release
		}
		io.WriteString(w, "plain")
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, ln, Duplex(g, h), 10*time.Second, slog.New(slog.DiscardHandler)) }()

	conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reply, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || reply.Status != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("gRPC health = %v, %v", reply, err)
	}
	conn.Close()

	body := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String() + "/slow")
		if err != nil {
			body <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		body <- string(b)
	}()
	<-entered
	cancel()
	close(release)
	if got := <-body; got != "plain" {
		t.Errorf("request in flight at the stop got %q", got)
	}
	if err := <-done; err != nil {
		t.Errorf("Run = %v after an ordered stop", err)
	}
}

func TestReadyzTellsWhatIsMissing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		status int
	}{
		{"200 when everything answers", nil, 200},
		{"503 when a part does not", errors.New("log rekor1 is recovering"), 503},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			notes := func() []string { return []string{"an issuer is down"} }
			Readyz(func(context.Context) error { return tt.err }, notes).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
			if w.Code != tt.status || !strings.HasSuffix(w.Body.String(), "\nnote: an issuer is down\n") {
				t.Errorf("status = %d, want %d and a note: %s", w.Code, tt.status, w.Body)
			}
		})
	}
}
