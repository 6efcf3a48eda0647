package ct_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
)

func chainJSON(chain [][]byte) string {
	body, _ := json.Marshal(map[string][][]byte{"chain": chain})
	return string(body)
}

func TestStatusesBodiesAndCacheHeaders(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSite(t, ca.root)
	for range 3 {
		if _, err := s.handler.AddPreChain(t.Context(), ca.precertChain()); err != nil {
			t.Fatal(err)
		}
	}
	leaf, err := s.log.Leaf(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	hash := base64.StdEncoding.EncodeToString(leaf.LeafHash[:])
	const (
		forever  = "public, max-age=604800, immutable"
		complete = "public, max-age=86400, immutable"
		partial  = "public, max-age=60"
		never    = "no-cache"
	)
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		text                     string // part of the body
		cache                    string
	}{
		{"body is not JSON", "POST", "/ct/v1/add-pre-chain", "{", 400, "reason=bad_json", never},
		{"certificate is not base64", "POST", "/ct/v1/add-chain", `{"chain":["%"]}`, 400, "reason=bad_json", never},
		{"data behind the JSON", "POST", "/ct/v1/add-chain", chainJSON(ca.precertChain()) + "{}", 400, "reason=bad_json", never},
		{"body is empty", "POST", "/ct/v1/add-chain", "", 400, "reason=bad_json", never},
		{"chain is missing", "POST", "/ct/v1/add-chain", "{}", 400, "reason=empty_chain", never},
		{"body over 512 KiB", "POST", "/ct/v1/add-chain", `{"chain":["` + strings.Repeat("A", 512<<10) + `"]}`, 413, "reason=body_too_large", never},
		{"blanks over 512 KiB", "POST", "/ct/v1/add-chain", "{}" + strings.Repeat(" ", 512<<10), 413, "reason=body_too_large", never},
		{"precertificate on add-chain", "POST", "/ct/v1/add-chain", chainJSON(ca.precertChain()), 400, "reason=is_precertificate", never},
		{"certificate on add-pre-chain", "POST", "/ct/v1/add-pre-chain", chainJSON([][]byte{ca.leaf(), ca.issuer.Raw}), 400, "reason=not_precertificate", never},
		{"unknown member beside the chain", "POST", "/ct/v1/add-pre-chain", strings.Replace(chainJSON(ca.precertChain()), "{", `{"x":1,`, 1), 200, `"sct_version":0`, never},
		{"add-chain with GET", "GET", "/ct/v1/add-chain", "", 405, "Method Not Allowed", never},
		{"get-sth with POST", "POST", "/ct/v1/get-sth", "", 405, "use GET", never},

		{"tree head", "GET", "/ct/v1/get-sth", "", 200, `"tree_size":4`, never},
		{"roots", "GET", "/ct/v1/get-roots", "", 200, base64.StdEncoding.EncodeToString(ca.root.Raw), partial},
		{"consistency from nothing", "GET", "/ct/v1/get-sth-consistency?first=0&second=2", "", 200, `{"consistency":[]}`, complete},
		{"consistency with itself", "GET", "/ct/v1/get-sth-consistency?first=2&second=2", "", 200, `{"consistency":[]}`, complete},
		{"consistency backwards", "GET", "/ct/v1/get-sth-consistency?first=3&second=2", "", 400, "reason=bad_range", never},
		{"consistency beyond the tree", "GET", "/ct/v1/get-sth-consistency?first=1&second=9", "", 400, "reason=beyond_tree", never},
		{"consistency without second", "GET", "/ct/v1/get-sth-consistency?first=1", "", 400, "second is missing", never},
		{"negative first", "GET", "/ct/v1/get-sth-consistency?first=-1&second=2", "", 400, "reason=bad_parameter", never},

		{"proof by hash", "GET", "/ct/v1/get-proof-by-hash" + query("hash", hash, "tree_size", "3"), "", 200, `"leaf_index":2`, complete},
		{"proof in a tree that is too new", "GET", "/ct/v1/get-proof-by-hash" + query("hash", hash, "tree_size", "9"), "", 404, "reason=beyond_tree", never},
		{"proof in a tree before the leaf", "GET", "/ct/v1/get-proof-by-hash" + query("hash", hash, "tree_size", "2"), "", 404, "reason=leaf_unknown", never},
		{"proof of an unknown hash", "GET", "/ct/v1/get-proof-by-hash" + query("hash", base64.StdEncoding.EncodeToString(make([]byte, 32)), "tree_size", "3"), "", 404, "reason=leaf_unknown", never},
		{"hash of the wrong length", "GET", "/ct/v1/get-proof-by-hash" + query("hash", "AAAA", "tree_size", "3"), "", 400, "reason=bad_parameter", never},
		{"proof in the empty tree", "GET", "/ct/v1/get-proof-by-hash" + query("hash", hash, "tree_size", "0"), "", 400, "reason=bad_parameter", never},

		{"entries, all asked for", "GET", "/ct/v1/get-entries?start=0&end=1", "", 200, `{"entries":[{"leaf_input":`, complete},
		{"entries, fewer than asked for", "GET", "/ct/v1/get-entries?start=3&end=99999999", "", 200, `{"entries":[{"leaf_input":`, partial},
		{"entries beyond the tree", "GET", "/ct/v1/get-entries?start=4&end=5", "", 400, "reason=beyond_tree", never},
		{"entries backwards", "GET", "/ct/v1/get-entries?start=2&end=1", "", 400, "reason=bad_range", never},
		{"entries without end", "GET", "/ct/v1/get-entries?start=2", "", 400, "end is missing", never},
		{"entry and proof", "GET", "/ct/v1/get-entry-and-proof?leaf_index=0&tree_size=1", "", 200, `"audit_path":[]`, complete},
		{"entry and proof outside the tree", "GET", "/ct/v1/get-entry-and-proof?leaf_index=1&tree_size=1", "", 400, "reason=bad_range", never},
		{"entry and proof beyond the tree", "GET", "/ct/v1/get-entry-and-proof?leaf_index=1&tree_size=9", "", 400, "reason=beyond_tree", never},

		{"checkpoint", "GET", "/checkpoint", "", 200, origin + "\n4\n", never},
		{"partial tile", "GET", "/tile/0/000.p/4", "", 200, "", forever},
		{"smaller partial tile of an earlier tree", "GET", "/tile/0/000.p/2", "", 200, "", forever},
		{"data tile", "GET", "/tile/data/000.p/4", "", 200, "", forever},
		{"tile beyond the tree", "GET", "/tile/0/000.p/5", "", 404, "reason=beyond_tree", never},
		{"full tile that is not full", "GET", "/tile/0/000", "", 404, "reason=beyond_tree", never},
		{"tile of width 0", "GET", "/tile/0/000.p/0", "", 404, "reason=no_such_path", never},
		{"tile in another spelling", "GET", "/tile/0/x000/000.p/4", "", 404, "reason=no_such_path", never},
		{"tlog-tiles entry bundle", "GET", "/tile/entries/000.p/4", "", 404, "reason=no_such_path", never},
		{"unknown issuer", "GET", "/issuer/" + strings.Repeat("ab", 32), "", 404, "reason=issuer_unknown", never},
		{"issuer in upper case", "GET", "/issuer/" + strings.Repeat("AB", 32), "", 404, "reason=no_such_path", never},
		{"issuer path with dots", "GET", "/issuer/..%2f..%2fentries.db", "", 404, "reason=no_such_path", never},
		{"unknown path", "GET", "/ct/v1/get-nothing", "", 404, "Not Found\n", never},
	} {
		t.Run(tt.name, func(t *testing.T) {
			request, err := http.NewRequest(tt.method, s.url+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.DefaultTransport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			var body bytes.Buffer
			body.ReadFrom(response.Body)
			if response.StatusCode != tt.status || !strings.Contains(body.String(), tt.text) {
				t.Errorf("status %d body %.200q, want %d and %q", response.StatusCode, body.String(), tt.status, tt.text)
			}
			if got := response.Header.Get("Cache-Control"); got != tt.cache {
				t.Errorf("Cache-Control %q, want %q", got, tt.cache)
			}
			if tt.status >= 400 && !strings.HasPrefix(body.String(), http.StatusText(tt.status)+"\n") {
				t.Errorf("the error body %q does not begin with the status text", body.String())
			}
		})
	}
}

// serve has h answer one request.
func serve(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, httptest.NewRequest(method, path, strings.NewReader(body)))
	return recorder
}

func TestEveryPathKnowsItsMethods(t *testing.T) {
	ca := newAuthority(t, "a")
	for name, kind := range kinds {
		s := newSiteOf(t, kind, ct.Options{URL: "https://ct.example.test"}, ca.root)
		if _, err := s.handler.AddPreChain(t.Context(), ca.precertChain()); err != nil {
			t.Fatal(err)
		}
		gets := []string{
			"/ct/v1/get-sth", "/ct/v1/get-roots", "/ct/v1/get-sth-consistency?first=0&second=1", "/ct/v1/get-entries?start=0&end=0",
			"/ct/v1/get-entry-and-proof?leaf_index=0&tree_size=1", "/ct/v1/get-proof-by-hash?hash=x", "/log.v3.json", "/checkpoint", "/tile/0/000.p/1",
		}
		for _, path := range append(gets, "/ct/v1/add-chain", "/ct/v1/add-pre-chain") {
			allowed := http.MethodPost
			if slices.Contains(gets, path) {
				allowed = http.MethodGet
			}
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} {
				request, err := http.NewRequest(method, s.url+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				response, err := http.DefaultTransport.RoundTrip(request)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(response.Body)
				if err != nil || response.Body.Close() != nil {
					t.Fatal(err)
				}
				good := method == allowed || method == http.MethodHead && allowed == http.MethodGet
				if refused := response.StatusCode == http.StatusMethodNotAllowed; refused == good || refused && response.Header.Get("Allow") != allowed {
					t.Errorf("%s: %s %s: %d, Allow %q", name, method, path, response.StatusCode, response.Header.Get("Allow"))
				}
				if method == http.MethodHead && len(body) > 0 {
					t.Errorf("%s: HEAD %s has a body", name, path)
				}
			}
			if allowed == http.MethodPost {
				continue
			}
			// HEAD tells what GET would send.
			get, err := http.Get(s.url + path)
			if err != nil {
				t.Fatal(err)
			}
			get.Body.Close()
			head, err := http.Head(s.url + path)
			if err != nil {
				t.Fatal(err)
			}
			head.Body.Close()
			if get.StatusCode != head.StatusCode || get.StatusCode == http.StatusOK && get.ContentLength != head.ContentLength && path != "/ct/v1/get-sth" ||
				get.Header.Get("Content-Type") != head.Header.Get("Content-Type") || get.Header.Get("Cache-Control") != head.Header.Get("Cache-Control") {
				t.Errorf("%s: %s: GET %d %v, HEAD %d %v", name, path, get.StatusCode, get.Header, head.StatusCode, head.Header)
			}
		}
	}
}

func TestGetSTHSignsOnceASecond(t *testing.T) {
	ca := newAuthority(t, "a")
	key := &countingSigner{key: newKey(t)}
	var clock atomic.Int64
	clock.Store(1_790_000_000_000)
	now := func() time.Time { return time.UnixMilli(clock.Load()) }
	l := openLogOf(t, log.CT, t.TempDir(), key, now)
	h, err := ct.New(ct.Options{Log: l, Roots: rawCerts(ca.root), IssuerDir: t.TempDir(), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
	sth := func() (head struct {
		Size      uint64 `json:"tree_size"`
		Timestamp int64
	}) {
		t.Helper()
		if err := json.Unmarshal(serve(h, http.MethodGet, "/ct/v1/get-sth", "").Body.Bytes(), &head); err != nil {
			t.Fatal(err)
		}
		return head
	}
	before := key.count.Load()
	first := sth()
	var wait sync.WaitGroup
	for range 50 {
		wait.Go(func() {
			if got := sth(); got != first || got.Size != 1 {
				t.Errorf("head %+v after %+v", got, first)
			}
		})
	}
	wait.Wait()
	if n := key.count.Load() - before; n != 0 {
		t.Errorf("%d signatures for an unchanged tree, want that of its checkpoint alone", n)
	}
	clock.Add(1000)
	if second := sth(); second.Timestamp < clock.Load() {
		t.Errorf("the head is of %d, the clock stands at %d", second.Timestamp, clock.Load())
	}
	for range 50 {
		sth()
	}
	if n := key.count.Load() - before; n != 1 {
		t.Errorf("%d signatures a second later, want 1", n)
	}
	if _, err := h.AddPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
	if head := sth(); head.Size != 2 {
		t.Errorf("the head has size %d after the answer to the second entry", head.Size)
	}
}

type countingSigner struct {
	key   *ecdsa.PrivateKey
	count atomic.Int64
}

func (s *countingSigner) Public() crypto.PublicKey { return s.key.Public() }

func (s *countingSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.count.Add(1)
	return s.key.Sign(random, digest, opts)
}

// earlyLog has a tree head that its checkpoint follows.
type earlyLog struct {
	*memoryLog
	waited chan uint64
	ready  chan struct{}
}

func (l *earlyLog) Checkpoint() *log.Checkpoint {
	checkpoint := l.memoryLog.Checkpoint()
	select {
	case <-l.ready:
	default:
		checkpoint.Size--
	}
	return checkpoint
}

func (l *earlyLog) Wait(ctx context.Context, size uint64) error {
	l.waited <- size
	select {
	case <-l.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestGetSTHShowsNoTreeThatCannotBeReadYet(t *testing.T) {
	ca := newAuthority(t, "a")
	l := &earlyLog{newMemoryLog(newKey(t)), make(chan uint64), make(chan struct{})}
	h, err := ct.New(ct.Options{Log: l, Roots: rawCerts(ca.root), IssuerDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
	answer := make(chan *httptest.ResponseRecorder)
	go func() { answer <- serve(h, http.MethodGet, "/ct/v1/get-sth", "") }()
	if size := <-l.waited; size != 0 {
		t.Errorf("waits for more than %d, want 0", size)
	}
	select {
	case <-answer:
		t.Error("answered before the tree is readable")
	default:
	}
	close(l.ready)
	if got := <-answer; got.Code != http.StatusOK || !strings.Contains(got.Body.String(), `"tree_size":1`) {
		t.Errorf("%d %s", got.Code, got.Body)
	}
}

func TestGetEntriesSendsAtMostAThousand(t *testing.T) {
	ca := newAuthority(t, "a")
	l := &fakeReads{Log: openLog(t, t.TempDir(), newKey(t)), size: 5000}
	h, err := ct.New(ct.Options{Log: l, Roots: [][]byte{ca.root.Raw}, IssuerDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		entries int
		whole   bool
	}{
		"?start=10&end=4999":                  {1000, false},
		"?start=10&end=1010":                  {1000, false},
		"?start=10&end=1009":                  {1000, true},
		"?start=4500&end=6000":                {500, false},
		"?start=4500&end=4999":                {500, true},
		"?start=4999&end=9223372036854775807": {1, false},
		"?start=0&end=0":                      {1, true},
	} {
		recorder := serve(h, http.MethodGet, "/ct/v1/get-entries"+path, "")
		var answer struct{ Entries []struct{} }
		if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil || len(answer.Entries) != want.entries {
			t.Errorf("%s: %d entries, want %d: %v", path, len(answer.Entries), want.entries, err)
		}
		if cache := recorder.Header().Get("Cache-Control"); strings.Contains(cache, "immutable") != want.whole {
			t.Errorf("%s: Cache-Control %q", path, cache)
		}
	}
	l.extra = 96 << 10 // large certificates: the answer stays within bounds
	recorder := serve(h, http.MethodGet, "/ct/v1/get-entries?start=0&end=999", "")
	if n := recorder.Body.Len(); recorder.Code != http.StatusOK || n > 12<<20 || strings.Contains(recorder.Header().Get("Cache-Control"), "immutable") {
		t.Errorf("status %d with %d bytes, Cache-Control %q", recorder.Code, n, recorder.Header().Get("Cache-Control"))
	}
}

// fakeReads is a log of many leaves that nobody had to add.
type fakeReads struct {
	*log.Log
	size  uint64
	extra int
}

func (l *fakeReads) Checkpoint() *log.Checkpoint { return &log.Checkpoint{Size: l.size} }

func (l *fakeReads) Leaves(_ context.Context, from uint64, max int) (leaves []log.Leaf, err error) {
	certificate := make([]byte, 3+l.extra)
	tile := append(make([]byte, 10), byte(len(certificate)>>16), byte(len(certificate)>>8), byte(len(certificate)))
	tile = append(append(tile, certificate...), 0, 0, 0, 0)
	for i := from; i < min(l.size, from+uint64(max)); i++ {
		leaves = append(leaves, log.Leaf{Index: i, Data: tile})
	}
	return leaves, nil
}

// failingLog refuses additions.
type failingLog struct {
	*log.Log
	err error
}

func (l failingLog) Add(context.Context, log.Submission) (log.Receipt, error) {
	return log.Receipt{}, l.err
}

func TestBusyLogPushesBackAndHaltedLogIsUnavailable(t *testing.T) {
	ca := newAuthority(t, "a")
	l := openLog(t, t.TempDir(), newKey(t))
	for name, tt := range map[string]struct {
		err        error
		status     int
		retryAfter string
	}{
		"busy":       {fault.New(fault.Overloaded, "queue_full", nil, "busy"), 429, "1"},
		"recovering": {fault.New(fault.Unavailable, "log_recovering", nil, "recovering"), 503, "1"},
		"too slow":   {context.DeadlineExceeded, 503, "1"},
		"ours":       {http.ErrAbortHandler, 500, ""},
		"frozen":     {fault.New(fault.Frozen, "log_frozen", nil, "the log is frozen"), 405, ""},
		"too large":  {fault.New(fault.TooLarge, "entry_too_large", nil, "too large"), 413, ""},
		"hung up":    {context.Canceled, 499, ""},
	} {
		h, err := ct.New(ct.Options{Log: failingLog{l, tt.err}, Roots: [][]byte{ca.root.Raw}, IssuerDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		recorder := serve(h, http.MethodPost, "/ct/v1/add-pre-chain", chainJSON(ca.precertChain()))
		if recorder.Code != tt.status || recorder.Header().Get("Retry-After") != tt.retryAfter {
			t.Errorf("%s: %d with Retry-After %q, want %d with %q", name, recorder.Code, recorder.Header().Get("Retry-After"), tt.status, tt.retryAfter)
		}
		if _, ok := recorder.Header()["Allow"]; ok != (tt.status == http.StatusMethodNotAllowed) {
			t.Errorf("%s: Allow is there: %t", name, ok)
		}
		if strings.Contains(recorder.Body.String(), http.ErrAbortHandler.Error()) {
			t.Errorf("%s: the cause leaks: %s", name, recorder.Body)
		}
	}
}

// orderLog checks at Add that every issuer the entry names is a file already.
type orderLog struct {
	*log.Log
	t   *testing.T
	dir string
}

func (l orderLog) Add(ctx context.Context, s log.Submission) (log.Receipt, error) {
	for _, fingerprint := range s.CT.FingerprintsChain {
		if _, err := os.Stat(filepath.Join(l.dir, hex.EncodeToString(fingerprint[:]))); err != nil {
			l.t.Errorf("issuer %x is not stored before the leaf is added", fingerprint)
		}
	}
	return l.Log.Add(ctx, s)
}

func TestIssuersAreStoredBeforeTheLeaf(t *testing.T) {
	ca := newAuthority(t, "a")
	dir := t.TempDir()
	h, err := ct.New(ct.Options{Log: orderLog{openLog(t, t.TempDir(), newKey(t)), t, dir}, Roots: [][]byte{ca.root.Raw}, IssuerDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
}

// FuzzRequests: whatever a client asks, it gets an answer in our shape, and none is our fault.
func FuzzRequests(f *testing.F) {
	ca := newAuthority(f, "a")
	l := newMemoryLog(newKey(f))
	plain, err := ct.New(ct.Options{Log: l, Roots: rawCerts(ca.root), IssuerDir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	for range 5 {
		if _, err := plain.AddPreChain(f.Context(), ca.precertChain()); err != nil {
			f.Fatal(err)
		}
	}
	tiled, err := ct.New(ct.Options{Log: openLog(f, f.TempDir(), newKey(f)), Roots: rawCerts(ca.root), IssuerDir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := tiled.AddPreChain(f.Context(), ca.precertChain()); err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		"GET /ct/v1/get-sth-consistency?first=0&second=1", "GET /ct/v1/get-entries?start=0&end=18446744073709551615",
		"GET /ct/v1/get-entries?start=9223372036854775807&end=9223372036854775807", "GET /ct/v1/get-proof-by-hash?hash=%2B&tree_size=1",
		"GET /ct/v1/get-entry-and-proof?leaf_index=4&tree_size=5", "GET /tile/0/x001/x234/067.p/8", "GET /tile/data/000", "HEAD /issuer/00",
		"POST /ct/v1/add-chain", "GET /ct/v1/get-entries?start=0&start=9&end=3;", "GET /%2e%2e/checkpoint", "GET //ct/v1/get-sth",
	} {
		method, path, _ := strings.Cut(seed, " ")
		f.Add(method, path, `{"chain":["AAAA"]}`)
	}
	f.Fuzz(func(t *testing.T, method, path, body string) {
		target, err := url.ParseRequestURI(path)
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		for _, h := range []http.Handler{plain, tiled} {
			recorder := httptest.NewRecorder()
			h.ServeHTTP(recorder, (&http.Request{Method: method, URL: target, Body: io.NopCloser(strings.NewReader(body))}).WithContext(t.Context()))
			text := recorder.Body.String()
			switch {
			case recorder.Code >= 500:
				t.Errorf("%s %s: %d %s", method, path, recorder.Code, text)
			case recorder.Code >= 400 && (!strings.HasPrefix(text, http.StatusText(recorder.Code)+"\n") || !strings.Contains(text, "[reason=")):
				t.Errorf("%s %s: %d in another shape: %q", method, path, recorder.Code, text)
			case recorder.Code == 200 && strings.Contains(text, "null"):
				t.Errorf("%s %s: null in %q", method, path, text)
			case recorder.Header().Get("Cache-Control") == "" || recorder.Header().Get("Content-Type") == "":
				t.Errorf("%s %s: headers %v", method, path, recorder.Header())
			}
		}
	})
}
