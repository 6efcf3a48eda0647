package rekor2

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	rekorpb "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

func openLog(t testing.TB, host string) *log.Log {
	t.Helper()
	dir := tempDir(t)
	fence, err := log.OpenFileFence(filepath.Join(dir, "fence"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := tiles.Open(t.Context(), filepath.Join(dir, "tiles"), log.Rekor2)
	if err != nil {
		t.Fatal(err)
	}
	l, err := log.Open(t.Context(), log.Options{
		Kind: log.Rekor2, Label: "rekor2", Origin: host, Name: host, Dir: dir,
		Tree: tree, Key: ecdsaKey(t), Fence: fence, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		tree.Close()
		fence.Close()
	})
	return l
}

// TestLogsAreToldApartByHost serves two logs, the old one frozen, on one listener of HTTP and one of gRPC.
func TestLogsAreToldApartByHost(t *testing.T) {
	before, next, c := openLog(t, "log1.localhost"), openLog(t, "log2.localhost"), newClient(t)
	h, err := New(Options{Shards: []Log{before}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	g := grpc.NewServer()
	h.Register(g)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go g.Serve(ln) // ends with g.Stop
	t.Cleanup(g.Stop)

	call := func(method, host, path, body string, headers ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		for i := 0; i+1 < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	post := func(host, artifact string) (int, string) {
		t.Helper()
		return call(http.MethodPost, host, "/api/v2/log/entries", toJSON(t, request(c.blob(t, artifact))))
	}
	for i, host := range []string{"log1.localhost", "LOG1.localhost:8420", "elsewhere.example", "127.0.0.1:80", "[::1]:80"} {
		if status, body := post(host, fmt.Sprint("before ", i)); status != http.StatusCreated || !strings.Contains(body, `log1.localhost\n`) {
			t.Errorf("with one log, Host %s: %d %s", host, status, body)
		}
	}

	if err := h.SetShards([]Log{before, next}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ host, origin string }{
		{"log1.localhost", "log1.localhost"},
		{"log1.localhost:3000", "log1.localhost"},
		{"log1.localhost.", "log1.localhost"},
		{"Log2.LocalHost:443", "log2.localhost"},
		{"unknown.example", "log2.localhost"},
		{"127.0.0.1", "log2.localhost"},
		{"[::1]:8420", "log2.localhost"},
	} {
		if status, body := post(tt.host, "to "+tt.host); status != http.StatusCreated || !strings.Contains(body, tt.origin+`\n`) {
			t.Errorf("Host %s: %d %s, want an entry of %s", tt.host, status, body, tt.origin)
		}
		for _, base := range []string{"", "/api/v2"} {
			if _, body := call(http.MethodGet, tt.host, base+"/checkpoint", ""); !strings.HasPrefix(body, tt.origin+"\n") {
				t.Errorf("Host %s: checkpoint is %q, want that of %s", tt.host, body, tt.origin)
			}
		}
	}
	if _, body := call(http.MethodGet, "log2.localhost", "/checkpoint", "", "X-Forwarded-Host", "log1.localhost", "Forwarded", "host=log1.localhost"); !strings.HasPrefix(body, "log2.localhost\n") {
		t.Errorf("a header that any client can set chose the log: %q", body)
	}

	if _, err := before.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, body := post("log1.localhost:80", "too late"); status != http.StatusMethodNotAllowed || body != "This log has been frozen, please switch to the latest log.\n" {
		t.Errorf("a frozen log answers %d %q", status, body)
	}
	size := before.Checkpoint().Size
	if _, body := call(http.MethodGet, "log1.localhost", "/checkpoint", ""); !strings.HasPrefix(body, fmt.Sprintf("log1.localhost\n%d\n", size)) {
		t.Errorf("the frozen log's checkpoint is %q", body)
	}
	for _, path := range []string{fmt.Sprintf("/tile/0/000.p/%d", size), fmt.Sprintf("/api/v2/tile/entries/000.p/%d", size)} {
		if status, body := call(http.MethodGet, "log1.localhost", path, ""); status != http.StatusOK || body == "" {
			t.Errorf("%s of the frozen log: %d", path, status)
		}
	}
	if status, _ := post("unknown.example", "goes on"); status != http.StatusCreated {
		t.Errorf("the active log answers %d", status)
	}

	for _, tt := range []struct {
		authority, origin string
		code              codes.Code
	}{
		{"log2.localhost:3001", "log2.localhost", codes.OK},
		{"unknown.example", "log2.localhost", codes.OK},
		{"log1.localhost:3001", "", codes.Unimplemented},
	} {
		conn, err := grpc.NewClient(ln.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(tt.authority))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		answer, err := rekorpb.NewRekorClient(conn).CreateEntry(t.Context(), request(c.blob(t, "gRPC "+tt.authority)))
		if status.Code(err) != tt.code || !strings.HasPrefix(answer.GetInclusionProof().GetCheckpoint().GetEnvelope(), tt.origin) {
			t.Errorf(":authority %s: %v %v", tt.authority, answer, err)
		}
	}
}

// switching puts the next log in place just when an entry is on its way to the old one.
type switching struct {
	*log.Log
	during func()
}

func (l *switching) Add(ctx context.Context, s log.Submission) (log.Receipt, error) {
	l.during()
	return l.Log.Add(ctx, s)
}

func TestAnEntryForTheActiveLogGoesToItsSuccessor(t *testing.T) {
	next, c := openLog(t, "log2.localhost"), newClient(t)
	before := &switching{Log: openLog(t, "log1.localhost")}
	h, err := New(Options{Shards: []Log{before}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	before.during = func() {
		if err := h.SetShards([]Log{before, next}); err != nil {
			t.Error(err)
		}
		if _, err := before.Freeze(t.Context()); err != nil {
			t.Error(err)
		}
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "http://anywhere.example/api/v2/log/entries", strings.NewReader(toJSON(t, request(c.blob(t, "x")))))
	h.ServeHTTP(w, r)
	if w.Code != http.StatusCreated || next.Checkpoint().Size != 1 {
		t.Errorf("%d %s, the successor has %d entries", w.Code, w.Body, next.Checkpoint().Size)
	}
}

func TestWhatShardsMustBe(t *testing.T) {
	a := openLog(t, "log1.localhost")
	b := openLog(t, "LOG1.localhost")
	for want, shards := range map[string][]Log{"at least one log": nil, "two logs have the origin": {a, b}, "has no log": {nil}} {
		if _, err := New(Options{Shards: shards, Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
