package witness

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

// began is the tests' time; nothing depends on the real one.
var began = time.Unix(1_780_000_000, 0)

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

// testLog is a log that signs what it is told to.
type testLog struct {
	t      testing.TB
	origin string
	key    crypto.Signer
	tree   *testonly.Tree
}

// newTestLog returns a log of size leaves; logs with another seed have other leaves.
func newTestLog(t testing.TB, origin string, key crypto.Signer, size int, seed string) *testLog {
	l := &testLog{t, origin, key, testonly.New(rfc6962.DefaultHasher)}
	for i := range size {
		l.tree.AppendData(fmt.Appendf(nil, "%s %d", seed, i))
	}
	return l
}

func newEd25519Key(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), ed25519.SeedSize)))
}

func newP256Key(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (l *testLog) vkey() Key {
	l.t.Helper()
	key, err := LogKey(l.origin, l.key.Public())
	if err != nil {
		l.t.Fatal(err)
	}
	return key
}

func (l *testLog) text(size uint64) string {
	return fmt.Sprintf("%s\n%d\n%s\n", l.origin, size, base64.StdEncoding.EncodeToString(l.tree.HashAt(size)))
}

// signed returns the text as a note with the log's line.
func (l *testLog) signed(text string) []byte {
	l.t.Helper()
	message, hash := []byte(text), crypto.Hash(0)
	if l.vkey().Type() == ECDSA {
		sum := sha256.Sum256(message)
		message, hash = sum[:], crypto.SHA256
	}
	sig, err := l.key.Sign(rand.Reader, message, hash)
	if err != nil {
		l.t.Fatal(err)
	}
	return []byte(text + "\n" + signature{l.origin, l.vkey().Hash(), sig}.line())
}

func (l *testLog) checkpoint(size uint64) []byte { return l.signed(l.text(size)) }

func (l *testLog) proof(from, to uint64) [][]byte {
	l.t.Helper()
	hashes, err := l.tree.ConsistencyProof(from, to)
	if err != nil {
		l.t.Fatal(err)
	}
	return hashes
}

// body is a whole request from one size to another.
func (l *testLog) body(from, to uint64) string {
	l.t.Helper()
	var hashes [][]byte
	if from > 0 && from < to {
		hashes = l.proof(from, to)
	}
	return requestBody(from, hashes, l.checkpoint(to))
}

func requestBody(old uint64, hashes [][]byte, note []byte) string {
	body := fmt.Sprintf("old %d\n", old)
	for _, hash := range hashes {
		body += base64.StdEncoding.EncodeToString(hash) + "\n"
	}
	return body + "\n" + string(note)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// witnessHouse is a witness in a directory that outlives it.
type witnessHouse struct {
	t      testing.TB
	opts   ServerOptions
	clock  *clock
	server *Server
}

func newWitnessHouse(t testing.TB, logs ...*testLog) *witnessHouse {
	t.Helper()
	h := &witnessHouse{t: t, clock: &clock{now: began}}
	h.opts = ServerOptions{Name: "witness.example.test/w1", Key: newEd25519Key('w'), Dir: t.TempDir(), Logger: quiet(), Now: h.clock.Now}
	for _, l := range logs {
		h.opts.Logs = append(h.opts.Logs, l.vkey())
	}
	h.open()
	t.Cleanup(func() { h.server.Close() })
	return h
}

func (h *witnessHouse) open() {
	h.t.Helper()
	var err error
	if h.server, err = OpenServer(h.opts); err != nil {
		h.t.Fatal(err)
	}
}

// reopen is what a kill and a new start do: nothing but the files remains.
func (h *witnessHouse) reopen() {
	h.t.Helper()
	h.server.store.lock.Close()
	h.open()
}

// reply is what a server answered.
type reply struct {
	status int
	kind   string // Content-Type
	body   string
}

func (h *witnessHouse) post(body string) reply {
	h.t.Helper()
	return h.do(httptest.NewRequest(http.MethodPost, "/add-checkpoint", strings.NewReader(body)))
}

func (h *witnessHouse) get(path string) reply {
	h.t.Helper()
	return h.do(httptest.NewRequest(http.MethodGet, path, nil))
}

func (h *witnessHouse) do(r *http.Request) reply {
	h.t.Helper()
	w := httptest.NewRecorder()
	h.server.Routes().ServeHTTP(w, r)
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return reply{w.Code, w.Result().Header.Get("Content-Type"), string(body)}
}

// cosigned checks that a reply is the witness's cosignature of l's tree and returns its time.
func (h *witnessHouse) cosigned(r reply, l *testLog, size uint64) time.Time {
	h.t.Helper()
	if r.status != http.StatusOK {
		h.t.Fatalf("size %d: %d %s", size, r.status, r.body)
	}
	sigs, err := parseSignatures([]byte(r.body))
	if err != nil || len(sigs) != 1 || !h.server.Key().signed([]byte(l.text(size)), sigs[0]) {
		h.t.Fatalf("size %d: %q is no cosignature (%v)", size, r.body, err)
	}
	unix, err := cosignedUnix(sigs[0])
	if err != nil {
		h.t.Fatal(err)
	}
	return time.Unix(int64(unix), 0)
}
