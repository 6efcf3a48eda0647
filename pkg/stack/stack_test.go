package stack_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"

	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/stack"
)

// start opens a stack on dir and serves it until the returned function is called.
func start(t *testing.T, opts stack.Options) (*stack.Stack, func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	opts.Listen, opts.Logger = ln.Addr().String(), slog.New(slog.DiscardHandler)
	if opts.Issuer == "" {
		opts.Issuer = stack.IssuerLoopback
	}
	s, err := stack.Open(t.Context(), opts)
	if err != nil {
		ln.Close()
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- server.Run(ctx, ln, s.Handler(), time.Second, opts.Logger) }()
	go func() { ended <- s.Run(ctx) }()
	var stopped bool
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Errorf("stopping: %v", err)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

func TestALaterRunContinuesTheFirst(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, stop := start(t, stack.Options{Dir: dir})
	if err := first.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	firstURL := first.URL()
	before := trustedKeys(t, dir)
	stop()

	second, _ := start(t, stack.Options{Dir: dir}) // another port
	if second.URL() == firstURL {
		t.Fatalf("both runs had %s", firstURL)
	}
	if after := trustedKeys(t, dir); after != before {
		t.Errorf("the keys changed:\n%s\n%s", before, after)
	}
	config, err := os.ReadFile(filepath.Join(dir, "client", "signing_config.v0.2.json"))
	if err != nil || !strings.Contains(string(config), second.URL()) || strings.Contains(string(config), firstURL) {
		t.Errorf("the signing config does not name %s alone: %s, %v", second.URL(), config, err)
	}
}

// trustedKeys returns the log keys of client/trusted_root.json.
func trustedKeys(t *testing.T, dir string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "client", "trusted_root.json"))
	if err != nil {
		t.Fatal(err)
	}
	var root struct {
		Tlogs, Ctlogs []struct{ LogID struct{ KeyID string } }
	}
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(root)
	if err != nil || len(root.Tlogs) != 2 || len(root.Ctlogs) != 1 {
		t.Fatalf("%s, %v", raw, err)
	}
	return string(text)
}

func TestWhatKeepsAnInstanceFromOpening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	_, stop := start(t, stack.Options{Dir: dir, URL: "https://sigstore.corp.example"})
	defer stop()
	for _, tt := range []struct {
		name string
		opts stack.Options
		want string
	}{
		{"another process has the directory", stack.Options{Dir: dir}, "in use by another process"},
		{"a URL with a path", stack.Options{URL: "http://localhost:1/x"}, "nothing behind it"},
		{"a URL without a scheme", stack.Options{URL: "localhost:8420"}, "want http[s]://"},
		{"an issuer that others can reach", stack.Options{Listen: "0.0.0.0:8420"}, "--issuer any"},
		{"no issuer at all", stack.Options{Issuer: stack.IssuerOff}, "--ca-config"},
		{"an issuer mode that is none", stack.Options{Issuer: "maybe"}, "loopback, any, off"},
		{"an issuer file that is missing", stack.Options{CAConfig: "/nowhere.yaml"}, "/nowhere.yaml"},
		{"a directory that cannot be made", stack.Options{Dir: "/dev/null/data"}, "making the data directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := tt.opts
			o.Logger = slog.New(slog.DiscardHandler)
			if o.Dir == "" {
				o.Dir = filepath.Join(t.TempDir(), "data")
			}
			if o.Listen == "" {
				o.Listen = "127.0.0.1:8420"
			}
			if o.Issuer == "" {
				o.Issuer = stack.IssuerLoopback
			}
			s, err := stack.Open(t.Context(), o)
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q", err, tt.want)
			}
		})
	}
	stop()
	_, err := stack.Open(t.Context(), stack.Options{Dir: dir, URL: "https://other.corp.example", Listen: "127.0.0.1:1",
		Issuer: stack.IssuerLoopback, Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "was made for https://sigstore.corp.example") {
		t.Errorf("another host on the same directory: %v", err)
	}
	again, err := stack.Open(t.Context(), stack.Options{Dir: dir, Listen: "127.0.0.1:1", Issuer: stack.IssuerLoopback, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.URL() != "https://sigstore.corp.example" {
		t.Errorf("the stored URL was forgotten: %s", again.URL())
	}
}

// sigstore-java and go-witness derive the gRPC address from the HTTP URL.
func TestGRPCAnswersOnTheSamePort(t *testing.T) {
	s, _ := start(t, stack.Options{Dir: filepath.Join(t.TempDir(), "data")})
	conn, err := grpc.NewClient(strings.TrimPrefix(s.URL(), "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bundle, err := fulcio.NewCAClient(conn).GetTrustBundle(t.Context(), &fulcio.GetTrustBundleRequest{})
	if err != nil || len(bundle.GetChains()) != 1 || len(bundle.GetChains()[0].GetCertificates()) != 2 {
		t.Errorf("trust bundle = %v, %v", bundle, err)
	}
	_, err = rekorpb.NewRekorClient(conn).CreateEntry(t.Context(), &rekorpb.CreateEntryRequest{})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("an empty Rekor v2 request = %v, want InvalidArgument", err)
	}
}

func TestAnUnknownPathIsNeverAPage(t *testing.T) {
	s, _ := start(t, stack.Options{Dir: filepath.Join(t.TempDir(), "data")})
	for path, want := range map[string]int{
		"/": 200, "/readyz": 200, "/healthz": 200, "/tuf/1.root.json": 200, "/tuf/2.root.json": 404, "/nothing": 404, "/tuf/": 404,
		"/api/v1/nothing": 404, "/checkpoint": 200, "/api/v2/checkpoint": 200, "/ct/main/checkpoint": 200, "/oidc/nothing": 404,
	} {
		resp, err := http.Get(s.URL() + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s = %d, want %d", path, resp.StatusCode, want)
		}
	}
}
