package stack_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/stack"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// serveLogs serves a v1, a v2 and a CT log with these limits.
func serveLogs(t *testing.T, limits stack.Limits) *httptest.Server {
	t.Helper()
	dir := t.TempDir()
	root, issuing := newKey(t), newKey(t)
	chain, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: issuing, Organization: "test", NotBefore: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	logs, err := stack.OpenLogs(t.Context(), stack.LogsOptions{
		Dir: filepath.Join(dir, "log"), FenceDir: filepath.Join(dir, "fence"), Host: "localhost",
		Logs: []stack.LogSpec{
			{Kind: log.Rekor1, Label: "rekor1", Key: newKey(t)}, {Kind: log.Rekor2, Label: "rekor2", Key: newKey(t)},
			{Kind: log.CT, Label: "ct-main", Shard: "main", Key: newKey(t), Roots: [][]byte{chain[len(chain)-1].Raw}},
		},
		Limits: limits, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r := chi.NewRouter()
	logs.Register(r)
	server := httptest.NewServer(r)
	t.Cleanup(func() {
		server.Close()
		if err := logs.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// writes are the paths that take entries; each with the shape of its errors.
var writes = []struct {
	path, shape string
	full        int // status when there is no room
}{
	{"/api/v1/log/entries", `{"code":%d,"message":"`, 503},
	{"/api/v2/log/entries", `"details":[]}`, 503},
	{"/ct/main/ct/v1/add-chain", `[reason=`, 429}, // what CT clients know as push-back
}

func shape(format string, status int) string {
	if strings.Contains(format, "%d") {
		return fmt.Sprintf(format, status)
	}
	return format
}

func TestEachAPIRefusesLargeSlowAndTooManyBodiesInItsShape(t *testing.T) {
	limits := stack.DefaultLimits()
	limits.Rekor1Body, limits.Rekor2Body, limits.CTBody = 1<<20, 1<<20, 1<<20
	limits.BodyTime = 4 * time.Second // longer than a body waits for room
	limits.BodiesInFlight = 2 << 20
	if err := limits.Validate(); err != nil {
		t.Fatal(err)
	}
	server := serveLogs(t, limits)
	check := func(i int, what string, resp *http.Response, err error, want int) {
		t.Helper()
		w := writes[i]
		if err != nil {
			t.Errorf("%s, %s: %v", w.path, what, err)
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != want || !strings.Contains(string(text), shape(w.shape, want)) {
			t.Errorf("%s, %s: %d %s, want %d and %q", w.path, what, resp.StatusCode, text, want, w.shape)
		}
		if retry := resp.Header.Get("Retry-After"); (want == 503 || want == 429) != (retry != "") {
			t.Errorf("%s, %s: %d with Retry-After %q", w.path, what, want, retry)
		}
	}
	huge := bytes.Repeat([]byte("a"), 100<<20)
	for i, w := range writes {
		resp, err := http.Post(server.URL+w.path, "application/json", bytes.NewReader(huge))
		check(i, "100 MiB", resp, err, 413)
		resp, err = http.Post(server.URL+w.path, "application/json", io.MultiReader(bytes.NewReader(huge)))
		check(i, "100 MiB chunked", resp, err, 413)
	}
	// One body of each API that never ends: together they have all that large bodies may have, so
	// the next of each finds no room in time. Then they are cut.
	var slow [3]*bufio.Reader
	for i, w := range writes {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 600000\r\n\r\n", w.path)
		slow[i] = bufio.NewReader(conn)
		if resp, err := http.ReadResponse(slow[i], nil); err != nil || resp.StatusCode != http.StatusContinue { // its bytes are claimed
			t.Fatalf("%s: %v, %v", w.path, resp, err)
		}
	}
	var wg sync.WaitGroup
	for i, w := range writes {
		wg.Go(func() {
			resp, err := http.Post(server.URL+w.path, "application/json", bytes.NewReader(make([]byte, 600_000)))
			check(i, "one body too many", resp, err, w.full)
		})
	}
	wg.Wait()
	for i := range writes {
		resp, err := http.ReadResponse(slow[i], nil)
		check(i, "a slow body", resp, err, 408)
	}
}

func TestHostileEntriesAreRefusedCheaply(t *testing.T) {
	limits := stack.DefaultLimits()
	limits.CallerPerSecond, limits.CallerBurst = 0.001, 25
	server := serveLogs(t, limits)
	var signatures []map[string]string
	for i := range 10_000 {
		signatures = append(signatures, map[string]string{"sig": base64.StdEncoding.EncodeToString(fmt.Append(nil, i))})
	}
	envelope := toJSON(t, map[string]any{"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": signatures})
	proposal := func(envelope string) string {
		return toJSON(t, map[string]any{"kind": "dsse", "apiVersion": "0.0.1", "spec": map[string]any{
			"proposedContent": map[string]any{"envelope": envelope, "verifiers": []string{base64.StdEncoding.EncodeToString([]byte("x"))}},
		}})
	}
	deep := strings.Repeat("[", 1_000_000)
	for _, tt := range []struct {
		name, path, body string
		status           int
	}{
		{"10,000 signatures, v1", "/api/v1/log/entries", proposal(envelope), 400},
		{"10,000 signatures, v2", "/api/v2/log/entries", toJSON(t, map[string]any{"dsseRequestV002": map[string]any{
			"envelope": json.RawMessage(envelope), "verifiers": []any{map[string]any{"publicKey": map[string]any{"rawBytes": "AA=="}, "keyDetails": "PKIX_ECDSA_P256_SHA_256"}},
		}}), 400},
		{"a million levels, v1", "/api/v1/log/entries", `{"kind":"dsse","apiVersion":"0.0.1","spec":` + deep, 400},
		{"a million levels inside an envelope", "/api/v1/log/entries", proposal(`{"payload":` + deep), 400},
		{"a million levels, v2", "/api/v2/log/entries", `{"hashedRekordRequestV002":` + deep, 400},
		{"a million levels, retrieve", "/api/v1/log/entries/retrieve", `{"entries":` + deep, 400},
		{"a hundred thousand levels, CT", "/ct/main/ct/v1/add-chain", `{"chain":` + deep[:100_000], 400},
	} {
		began := time.Now()
		resp, err := http.Post(server.URL+tt.path, "application/json", strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || time.Since(began) > 5*time.Second {
			t.Errorf("%s: %d after %v, want %d at once: %.200s", tt.name, resp.StatusCode, time.Since(began), tt.status, text)
		}
	}

	// Ten proposals are ten units: after two calls the third is over the budget, and says so.
	ten := `{"entries":[` + strings.TrimSuffix(strings.Repeat(proposal(`{}`)+",", 10), ",") + `]}`
	for i, want := range []int{400, 400, 429} {
		resp, err := http.Post(server.URL+"/api/v1/log/entries/retrieve", "application/json", strings.NewReader(ten))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || want == 429 && (resp.Header.Get("Retry-After") == "" || !strings.HasPrefix(string(text), `{"code":429,"message":"`)) {
			t.Errorf("retrieve %d: %d %s, Retry-After %q; want %d", i, resp.StatusCode, text, resp.Header.Get("Retry-After"), want)
		}
	}
	// The other budgeted calls share the budget; what is cheap goes on.
	for path, want := range map[string]int{"/ct/main/ct/v1/get-sth": 200, "/api/v1/log": 200} {
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, resp.Status, want)
		}
	}
}

// Many bodies of the largest size at once, each slow: memory follows the bytes in flight and not the number of clients.
func TestMemoryIsBoundedUnderManyLargeBodies(t *testing.T) {
	if testing.Short() {
		t.Skip("sends a gigabyte")
	}
	const body, clients = 8 << 20, 128
	limits := stack.DefaultLimits()
	limits.Rekor1Body, limits.BodiesInFlight = body, 64<<20
	server := serveLogs(t, limits)
	payload := append([]byte(`{"kind":"dsse","apiVersion":"0.0.1","spec":{"a":"`), bytes.Repeat([]byte("a"), body-100)...)
	payload = append(payload, `"}}`...)
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() { // ends with done
		defer close(watched)
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
				runtime.ReadMemStats(&now)
				peak.Store(max(peak.Load(), now.HeapInuse))
			}
		}
	}()
	var refused, full atomic.Int64
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			resp, err := http.Post(server.URL+"/api/v1/log/entries", "application/json", bytes.NewReader(payload))
			if err != nil {
				return // cut while it sent what was refused
			}
			resp.Body.Close()
			switch resp.StatusCode {
			case http.StatusBadRequest: // read whole, and no entry
				refused.Add(1)
			case http.StatusServiceUnavailable:
				full.Add(1)
			default:
				t.Errorf("%s", resp.Status)
			}
		})
	}
	wg.Wait()
	close(done)
	<-watched
	grown := peak.Load() - min(peak.Load(), before.HeapInuse)
	t.Logf("%d bodies of %d MiB: %d read, %d refused for want of room, heap grew by %d MiB", clients, body>>20, refused.Load(), full.Load(), grown>>20)
	if refused.Load() == 0 {
		t.Error("no body got through")
	}
	// A body is in memory as it came and once more as its strings; garbage of bodies that are over doubles that.
	if most := uint64(4 * limits.BodiesInFlight); grown > most {
		t.Errorf("the heap grew by %d MiB for %d MiB in flight, over %d", grown>>20, limits.BodiesInFlight>>20, most>>20)
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
