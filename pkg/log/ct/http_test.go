package ct_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

func TestGetEntriesSendsAtMostAThousand(t *testing.T) {
	ca := newAuthority(t, "a")
	l := &fakeReads{Log: openLog(t, t.TempDir(), newKey(t)), size: 5000}
	h, err := ct.New(ct.Options{Log: l, Roots: [][]byte{ca.root.Raw}, IssuerDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"?start=10&end=4999": 1000, "?start=10&end=1009": 1000, "?start=4500&end=6000": 500, "?start=0&end=0": 1} {
		recorder := httptest.NewRecorder()
		h.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/ct/v1/get-entries"+path, nil))
		var answer struct{ Entries []struct{} }
		if err := json.Unmarshal(recorder.Body.Bytes(), &answer); err != nil || len(answer.Entries) != want {
			t.Errorf("%s: %d entries, want %d: %v", path, len(answer.Entries), want, err)
		}
	}
	l.extra = 96 << 10 // large certificates: the answer stays within bounds
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/ct/v1/get-entries?start=0&end=999", nil))
	if n := recorder.Body.Len(); recorder.Code != http.StatusOK || n > 12<<20 {
		t.Errorf("status %d with %d bytes", recorder.Code, n)
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
	} {
		h, err := ct.New(ct.Options{Log: failingLog{l, tt.err}, Roots: [][]byte{ca.root.Raw}, IssuerDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		recorder := httptest.NewRecorder()
		h.ServeHTTP(recorder, httptest.NewRequest(http.MethodPost, "/ct/v1/add-pre-chain", strings.NewReader(chainJSON(ca.precertChain()))))
		if recorder.Code != tt.status || recorder.Header().Get("Retry-After") != tt.retryAfter {
			t.Errorf("%s: %d with Retry-After %q, want %d with %q", name, recorder.Code, recorder.Header().Get("Retry-After"), tt.status, tt.retryAfter)
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
