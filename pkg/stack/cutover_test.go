package stack

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/log"
)

// house is the logs of one server on disk, which can crash and start again.
type house struct {
	t    testing.TB
	opts LogsOptions
	logs *Logs
	http http.Handler

	clock sync.Mutex
	now   time.Time

	published []LogInfo // what trust material was last told
}

func newHouse(t testing.TB) *house {
	t.Helper()
	dir, err := os.MkdirTemp("", "shards")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, now: time.Now().UTC().Truncate(time.Second)}
	key := func(name string, alg signer.Algorithm) crypto.Signer {
		k, err := signer.OpenOrCreate(filepath.Join(dir, name+".pem"), alg)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	root := key("root", signer.P384)
	chain, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key("issuing", signer.P256), Organization: "test", NotBefore: h.now})
	if err != nil {
		t.Fatal(err)
	}
	h.opts = LogsOptions{
		Dir: filepath.Join(dir, "log"), FenceDir: filepath.Join(dir, "fence"), Host: "localhost",
		Logs: instanceLogs(key("ct", signer.P256), key("rekor2", signer.P256), key("rekor1", signer.P256), [][]byte{chain[1].Raw}), Limits: DefaultLimits(),
		Logger: slog.New(slog.DiscardHandler), Now: h.time,
	}
	h.start()
	t.Cleanup(func() {
		if h.logs != nil {
			h.crash()
		}
		for range 1000 { // Tessera's publisher may still touch a file
			if err = os.RemoveAll(dir); err == nil {
				return
			}
		}
		t.Error(err)
	})
	return h
}

func (h *house) time() time.Time {
	h.clock.Lock()
	defer h.clock.Unlock()
	return h.now
}

func (h *house) pass(d time.Duration) {
	h.clock.Lock()
	defer h.clock.Unlock()
	h.now = h.now.Add(d)
}

func (h *house) start() {
	h.t.Helper()
	h.opts.Registerer = prometheus.NewRegistry()
	var err error
	if h.logs, err = OpenLogs(h.t.Context(), h.opts); err != nil {
		h.t.Fatal(err)
	}
	r := chi.NewRouter()
	h.logs.Register(r)
	h.http = r
}

// crash gives the directory back without a step more.
func (h *house) crash() {
	h.t.Helper()
	if err := h.logs.Close(); err != nil {
		h.t.Error(err)
	}
	h.logs = nil
}

func (h *house) publish(_ context.Context, logs []LogInfo) error {
	h.published = logs
	return nil
}

func (h *house) order(o Order) ShardRecord {
	h.t.Helper()
	o.KeysDir = filepath.Join(h.opts.Dir, "..", "keys")
	r, err := OrderShard(h.opts, o)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *house) step() {
	h.t.Helper()
	if err := h.logs.step(h.t.Context(), h.publish); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) state(label string) ShardState {
	h.t.Helper()
	file, err := ReadShards(h.opts.Dir)
	if err != nil {
		h.t.Fatal(err)
	}
	if r := file.find(label); r != nil {
		return r.State
	}
	return "unrecorded"
}

// author signs what is submitted.
type author struct {
	key *ecdsa.PrivateKey
	der []byte
}

func newAuthor(t testing.TB) author {
	t.Helper()
	key, err := signer.Create(filepath.Join(t.TempDir(), "author.pem"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return author{key.(*ecdsa.PrivateKey), der}
}

// proposals returns an entry for the artifact in the form of Rekor v1 and in that of v2.
func (a author) proposals(t testing.TB, artifact string) (v1, v2 []byte) {
	t.Helper()
	sum := sha256.Sum256([]byte(artifact))
	sig, err := a.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: a.der})
	v1, err = json.Marshal(map[string]any{"kind": "hashedrekord", "apiVersion": "0.0.1", "spec": map[string]any{
		"signature": map[string]any{"content": sig, "publicKey": map[string]any{"content": text}},
		"data":      map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	v2, err = json.Marshal(map[string]any{"hashedRekordRequestV002": map[string]any{"digest": sum[:], "signature": map[string]any{
		"content":  sig,
		"verifier": map[string]any{"keyDetails": "PKIX_ECDSA_P256_SHA_256", "publicKey": map[string]any{"rawBytes": a.der}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return v1, v2
}

func (h *house) call(method, host, path string, body []byte) (int, string) {
	r := httptest.NewRequest(method, "http://"+host+path, bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.http.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// add1 adds an entry to the Rekor v1 log and returns its virtual index.
func (h *house) add1(a author, artifact string) (uint64, error) {
	v1, _ := a.proposals(h.t, artifact)
	status, body := h.call(http.MethodPost, "localhost", "/api/v1/log/entries", v1)
	var answer map[string]struct{ LogIndex uint64 }
	if err := json.Unmarshal([]byte(body), &answer); status != http.StatusCreated || err != nil {
		return 0, fmt.Errorf("%d %s", status, body)
	}
	for _, e := range answer {
		return e.LogIndex, nil
	}
	return 0, errors.New("no entry")
}

// add2 adds an entry to the Rekor v2 log of host and returns the origin that took it.
func (h *house) add2(a author, host, artifact string) (string, error) {
	_, v2 := a.proposals(h.t, artifact)
	status, body := h.call(http.MethodPost, host, "/api/v2/log/entries", v2)
	var answer struct {
		InclusionProof struct{ Checkpoint struct{ Envelope string } }
	}
	if err := json.Unmarshal([]byte(body), &answer); status != http.StatusCreated || err != nil {
		return "", fmt.Errorf("%d %s", status, body)
	}
	origin, _, _ := strings.Cut(answer.InclusionProof.Checkpoint.Envelope, "\n")
	return origin, nil
}

// has1 checks that the entries of artifacts stand at their virtual indexes.
func (h *house) has1(want map[uint64]string) {
	h.t.Helper()
	for index, artifact := range want {
		sum := sha256.Sum256([]byte(artifact))
		status, body := h.call(http.MethodGet, "localhost", fmt.Sprintf("/api/v1/log/entries?logIndex=%d", index), nil)
		var answer map[string]struct{ Body []byte }
		if err := json.Unmarshal([]byte(body), &answer); status != http.StatusOK || err != nil {
			h.t.Errorf("entry %d: %d %s", index, status, body)
			continue
		}
		for _, e := range answer {
			if !bytes.Contains(e.Body, []byte(hex.EncodeToString(sum[:]))) {
				h.t.Errorf("entry %d is not %q: %s", index, artifact, e.Body)
			}
		}
	}
}

func TestTheLifeOfARekor1Log(t *testing.T) {
	h, a := newHouse(t), newAuthor(t)
	entries := map[uint64]string{}
	add := func(artifact string) {
		t.Helper()
		index, err := h.add1(a, artifact)
		if err != nil || index != uint64(len(entries)) {
			t.Fatalf("%s got index %d, want %d (%v)", artifact, index, len(entries), err)
		}
		entries[index] = artifact
	}
	add("one")
	add("two")
	begin := h.time().Add(time.Hour)
	r := h.order(Order{Kind: log.Rekor1, Begin: begin})
	if r.Label != "rekor1-2" || r.State != Planned || h.state(r.Label) != Planned {
		t.Fatalf("the order is %+v", r)
	}
	if again := h.order(Order{Kind: log.Rekor1, Begin: begin.Add(time.Hour)}); again != r {
		t.Errorf("a second order while the first waits is %+v", again)
	}
	h.step()
	last := h.published[len(h.published)-1]
	if h.state(r.Label) != Published || last.Label != r.Label || !last.Begin.Equal(begin) {
		t.Errorf("state %s, published %+v", h.state(r.Label), last)
	}
	add("three")
	h.step()
	if h.state(r.Label) != Published {
		t.Errorf("the log began before its time")
	}
	h.pass(time.Hour)
	h.step()
	if h.state("rekor1") != Frozen || h.state(r.Label) != Active {
		t.Errorf("after the cut-over: %s, %s", h.state("rekor1"), h.state(r.Label))
	}
	for _, info := range h.published {
		if info.Label == "rekor1" && (info.State != Frozen || info.Final.Size != 3) {
			t.Errorf("the end of the old log was not published: %+v", info)
		}
	}
	add("four")
	h.crash()
	h.start()
	add("five")
	h.has1(entries)
	if err := h.logs.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	// And once more.
	third := h.order(Order{Kind: log.Rekor1, Begin: h.time()})
	h.step()
	h.step()
	add("six")
	h.has1(entries)
	if third.Label != "rekor1-3" || h.state("rekor1-2") != Frozen {
		t.Errorf("%+v, %s", third, h.state("rekor1-2"))
	}
	// A frozen tree is not touched again: another one under its name does not open.
	h.crash()
	if _, err := changeShards(h.opts.Dir, func(f *ShardFile) error { f.find("rekor1").Final.Size--; return nil }); err != nil {
		t.Fatal(err)
	}
	h.opts.Registerer = nil
	if _, err := OpenLogs(t.Context(), h.opts); err == nil || !strings.Contains(err.Error(), "was frozen with 2 entries") {
		t.Errorf("a frozen log with another tree opens: %v", err)
	}
}

func TestTheLifeOfARekor2Log(t *testing.T) {
	h, a := newHouse(t), newAuthor(t)
	add := func(host, want string) {
		t.Helper()
		if origin, err := h.add2(a, host, fmt.Sprint(host, want, time.Now())); err != nil || origin != want {
			t.Errorf("Host %s: entry in %q (%v), want %s", host, origin, err, want)
		}
	}
	add("localhost", "localhost")
	if _, err := OrderShard(h.opts, Order{Kind: log.Rekor2, Host: "localhost", Begin: h.time(), KeysDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "one host name") {
		t.Errorf("a host that a log has: %v", err)
	}
	if _, err := OrderShard(h.opts, Order{Kind: log.Rekor2, Host: "Log 2", Begin: h.time(), KeysDir: t.TempDir()}); err == nil {
		t.Error("a host that is none was taken")
	}
	r := h.order(Order{Kind: log.Rekor2, Host: "log2.localhost", Begin: h.time(), Drain: time.Hour})
	h.step()
	h.step()
	if h.state("rekor2") != Draining || h.state(r.Label) != Active {
		t.Fatalf("%s, %s", h.state("rekor2"), h.state(r.Label))
	}
	add("log2.localhost", "log2.localhost")
	add("unknown.example", "log2.localhost")
	add("localhost", "localhost") // a client with yesterday's signing config
	h.crash()
	h.start()
	add("localhost", "localhost")
	h.pass(time.Hour)
	h.step()
	if h.state("rekor2") != Frozen {
		t.Errorf("the old log is %s after its time", h.state("rekor2"))
	}
	for range 2 {
		if _, err := h.add2(a, "localhost", "late"); err == nil || !strings.HasPrefix(err.Error(), "405 This log has been frozen") {
			t.Errorf("a frozen log answers %v", err)
		}
		add("unknown.example", "log2.localhost")
		if status, body := h.call(http.MethodGet, "localhost", "/checkpoint", nil); status != http.StatusOK || !strings.HasPrefix(body, "localhost\n3\n") {
			t.Errorf("the frozen log's checkpoint: %d %s", status, body)
		}
		h.crash()
		h.start()
	}
}

func TestTheLifeOfACTLog(t *testing.T) {
	h := newHouse(t)
	before := h.logs.CT().LogKey()
	h.order(Order{Kind: log.CT, Shard: "2027h1", Begin: h.time(), Drain: time.Hour, NotAfterLimit: h.time().Add(time.Hour)})
	h.step()
	h.step()
	if last := h.logs.members[len(h.logs.members)-1]; !last.spec.NotAfterLimit.Equal(h.time().Add(time.Hour)) {
		t.Errorf("the log's window ends at %v", last.spec.NotAfterLimit)
	}
	if h.state("ct-main") != Draining || h.state("ct-2027h1") != Active || h.logs.CT().LogKey() == before {
		t.Errorf("%s, %s", h.state("ct-main"), h.state("ct-2027h1"))
	}
	for _, path := range []string{"/ct/main/checkpoint", "/ct/2027h1/checkpoint", "/ct/2027h1/ct/v1/get-roots"} {
		if status, body := h.call(http.MethodGet, "localhost", path, nil); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _ := h.call(http.MethodGet, "localhost", "/ct/2028h1/checkpoint", nil); status != http.StatusNotFound {
		t.Errorf("a log that is not there: %d", status)
	}
	h.pass(time.Hour)
	h.step()
	if h.state("ct-main") != Frozen {
		t.Errorf("%s", h.state("ct-main"))
	}
}

// TestACrashAtAnyStepIsContinued fails each change of shards.json, before and after it takes effect, and starts anew.
func TestACrashAtAnyStepIsContinued(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		for change := 1; ; change++ {
			h, a := newHouse(t), newAuthor(t)
			entries := map[uint64]string{}
			add := func(artifact string) {
				t.Helper()
				index, err := h.add1(a, artifact)
				if err != nil || entries[index] != "" {
					t.Fatalf("%s %d: %s got index %d (%v)", when, change, artifact, index, err)
				}
				entries[index] = artifact
			}
			add("one")
			h.order(Order{Kind: log.Rekor1, Begin: h.time()})
			h.order(Order{Kind: log.Rekor2, Host: "log2.localhost", Begin: h.time()})
			h.order(Order{Kind: log.CT, Shard: "next", Begin: h.time()})
			count := 0
			h.logs.fault = func(point string) error {
				if point == when {
					if count++; count == change {
						return errors.New("injected crash")
					}
				}
				return nil
			}
			crashed := false
			for range 6 {
				if err := h.logs.step(t.Context(), h.publish); err != nil {
					crashed = true
					break
				}
			}
			if crashed {
				h.crash()
				h.start()
			}
			for range 6 {
				h.step()
			}
			add("two")
			h.has1(entries)
			for label, want := range map[string]ShardState{
				"rekor1": Frozen, "rekor1-2": Active, "rekor2": Frozen, "rekor2-2": Active, "ct-main": Frozen, "ct-next": Active,
			} {
				if got := h.state(label); got != want {
					t.Errorf("%s change %d: %s is %s, want %s", when, change, label, got, want)
				}
			}
			frozen := 0
			for _, info := range h.published {
				if info.Final != nil {
					frozen++
				}
			}
			if frozen != 3 {
				t.Errorf("%s change %d: the ends of %d logs were published, want 3", when, change, frozen)
			}
			h.crash()
			if !crashed {
				break // there are no more changes
			}
		}
	}
}

// TestAnErrorInACutOverFailsNoWrite repeats failed steps in the running process, as Run does, under a writer.
func TestAnErrorInACutOverFailsNoWrite(t *testing.T) {
	h, a := newHouse(t), newAuthor(t)
	h.order(Order{Kind: log.Rekor1, Begin: h.time()})
	failures := 0
	h.logs.fault = func(point string) error {
		if failures++; failures%2 == 1 {
			return errors.New("injected fault")
		}
		return nil
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	written := 0
	go func() { // ends with stop
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if index, err := h.add1(a, fmt.Sprint(i)); err != nil || index != uint64(i) {
				t.Errorf("entry %d: index %d, %v", i, index, err)
				return
			}
			written++
		}
	}()
	errs := 0
	for {
		err := h.logs.step(t.Context(), h.publish)
		if err == nil && h.state("rekor1-2") == Active {
			break
		}
		if err != nil {
			errs++
		}
	}
	close(stop)
	<-ended
	if index, err := h.add1(a, "after"); err != nil || index != uint64(written) {
		t.Errorf("the entry after %d others got index %d (%v)", written, index, err)
	}
	if errs == 0 || written == 0 {
		t.Errorf("%d steps failed, %d entries were written", errs, written)
	}
}

// TestABadOrderHoldsUpNoOther has a key vanish between its order and the server's next look.
func TestABadOrderHoldsUpNoOther(t *testing.T) {
	h := newHouse(t)
	h.order(Order{Kind: log.CT, Shard: "lost", Begin: h.time()})
	h.order(Order{Kind: log.Rekor1, Begin: h.time()})
	if err := os.Remove(filepath.Join(h.opts.Dir, "..", "keys", "ct-lost.pem")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := h.logs.step(t.Context(), h.publish); err == nil || !strings.Contains(err.Error(), "ct-lost") {
			t.Errorf("the missing key is not named: %v", err)
		}
	}
	if h.state("rekor1-2") != Active || h.state("ct-lost") != Planned {
		t.Errorf("%s, %s", h.state("rekor1-2"), h.state("ct-lost"))
	}
}

func TestConfigurationNamesShards(t *testing.T) {
	h, a := newHouse(t), newAuthor(t)
	if _, err := h.add1(a, "one"); err != nil {
		t.Fatal(err)
	}
	h.crash()
	next, err := signer.Create(filepath.Join(t.TempDir(), "next.pem"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	base := h.opts.Logs
	h.opts.Logs = append(base[:len(base):len(base)], LogSpec{Kind: log.Rekor1, Label: "rekor1-b", Key: next})
	h.start()
	if index, err := h.add1(a, "two"); err != nil || index != 1 || h.state("rekor1") != Frozen {
		t.Errorf("index %d, %v; the first log is %s", index, err, h.state("rekor1"))
	}
	h.crash()
	h.opts.Logs[len(h.opts.Logs)-1].Frozen = true
	h.opts.Logs[1].Frozen = true
	h.start()
	if _, err := h.add1(a, "three"); err == nil || !strings.HasPrefix(err.Error(), "405 ") {
		t.Errorf("without an active log: %v", err)
	}
	if _, err := h.add2(a, "localhost", "x"); err == nil || !strings.HasPrefix(err.Error(), "405 ") {
		t.Errorf("a frozen v2 log: %v", err)
	}
	h.has1(map[uint64]string{0: "one", 1: "two"})
	h.crash()

	for want, logs := range map[string][]LogSpec{
		"two logs are called":            {base[2], base[2]},
		"one key":                        {base[2], {Kind: log.Rekor2, Label: "x", Key: base[2].Key}},
		"one host name":                  {base[1], {Kind: log.Rekor2, Label: "x", Key: next}},
		"two CT logs":                    {base[0], {Kind: log.CT, Label: "x", Key: next, Shard: ctShard}},
		"does not name any more":         {base[0]},
		"the log \"rekor1\" is a rekor2": {{Kind: log.Rekor2, Label: "rekor1", Key: next}},
	} {
		opts := h.opts
		opts.Logs = logs
		if l, err := OpenLogs(t.Context(), opts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
			if l != nil {
				l.Close()
			}
		}
	}
}

func FuzzParseShards(f *testing.F) {
	f.Add([]byte(`{"version":1,"shards":[{"label":"rekor2-2","kind":"rekor2","key":"file:k","host":"h","state":"published","begin":"2027-01-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"version":1,"shards":[{"label":"a","kind":"ct","state":"frozen","final":{"size":1,"root":"00"}}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := parseShards(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseShards(again); err != nil {
			t.Fatalf("what was read is refused once written: %v", err)
		}
	})
}
