package witness

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	cosignature "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

var _ log.Cosigner = (*Client)(nil)

// served is a witness behind HTTP; its answers can be changed on the way.
type served struct {
	*witnessHouse
	url      string
	requests atomic.Int64
	// instead answers in place of the witness, when it is not nil.
	instead atomic.Pointer[http.HandlerFunc]
}

func serve(t testing.TB, seed byte, l *testLog) *served {
	t.Helper()
	s := &served{witnessHouse: newWitnessHouse(t, l)}
	s.server.Close()
	s.opts.Name, s.opts.Key, s.opts.Dir = "witness.example.test/"+string(rune(seed)), newEd25519Key(seed), t.TempDir()
	s.open()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if h := s.instead.Load(); h != nil {
			(*h)(w, r)
			return
		}
		s.server.Routes().ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

func (s *served) lie(h http.HandlerFunc) { s.instead.Store(&h) }

// policy makes "threshold of all" out of witnesses.
func policyOf(t testing.TB, threshold string, witnesses ...*served) *Policy {
	t.Helper()
	text, names := "", ""
	for i, w := range witnesses {
		text += fmt.Sprintf("witness w%d %s %s\n", i, w.server.Key(), w.url)
		names += fmt.Sprintf(" w%d", i)
	}
	p, err := ParsePolicy(text + "group all-of-them " + threshold + names + "\nquorum all-of-them\n")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newTestClient(t testing.TB, p *Policy, clock *clock) *Client {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	c, err := NewClient(ClientOptions{Policy: p, Label: "test", Transport: transport, Timeout: 3 * time.Second, Logger: quiet(), Now: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// cosign asks for the cosignatures of l's tree and checks those that come with another implementation.
func cosign(c *Client, l *testLog, size uint64) (int, error) {
	note0 := l.checkpoint(size)
	out, err := c.Cosign(context.Background(), note0, size, func(_ context.Context, from uint64) ([][]byte, error) {
		if from == 0 || from >= size {
			return nil, fmt.Errorf("a proof from size %d to %d was asked for", from, size)
		}
		return l.tree.ConsistencyProof(from, size)
	})
	if err != nil {
		return 0, err
	}
	if !strings.HasPrefix(string(out), string(note0)) {
		return 0, fmt.Errorf("%q does not begin with the note", out)
	}
	var verifiers []note.Verifier
	for _, w := range c.policy.Witnesses {
		v, err := cosignature.NewVerifierForCosignatureV1(w.Key.String())
		if err != nil {
			return 0, err
		}
		verifiers = append(verifiers, v)
	}
	n, err := note.Open(out, note.VerifierList(verifiers...))
	if err != nil {
		return 0, err
	}
	if len(n.UnverifiedSigs) != 1 { // the log's
		return 0, fmt.Errorf("lines of nobody: %+v", n.UnverifiedSigs)
	}
	return len(n.Sigs), nil
}

func TestAQuorumOfWitnessesCosigns(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 1000, "leaf")
	a, b, c := serve(t, 'a', l), serve(t, 'b', l), serve(t, 'c', l)
	client := newTestClient(t, policyOf(t, "all", a, b, c), a.clock)
	for _, size := range []uint64{0, 1, 7, 256, 256, 999} {
		if n, err := cosign(client, l, size); err != nil || n != 3 {
			t.Fatalf("size %d: %d cosignatures, %v", size, n, err)
		}
	}
	if n := a.requests.Load(); n != 6 {
		t.Errorf("%d requests for 6 checkpoints: the size of the witness is not remembered", n)
	}
	// A client that starts again does not know the sizes: the witness names its own.
	client = newTestClient(t, policyOf(t, "all", a, b, c), a.clock)
	if n, err := cosign(client, l, 1000); err != nil || n != 3 || a.requests.Load() != 8 {
		t.Errorf("after a start: %d cosignatures, %v, %d requests", n, err, a.requests.Load())
	}
	// One that was away comes back by the size that it names.
	c.lie(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "away", http.StatusBadGateway) })
	two := newTestClient(t, policyOf(t, "2", a, b, c), a.clock)
	if _, err := cosign(two, l, 1000); err != nil {
		t.Fatal(err)
	}
	c.instead.Store(nil)
	if n, err := cosign(newTestClient(t, policyOf(t, "all", a, b, c), a.clock), l, 1000); err != nil || n != 3 {
		t.Errorf("%d cosignatures, %v", n, err)
	}
}

func TestWithoutAQuorumThereIsNoNote(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	fork := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "fork")
	good, bad := serve(t, 'a', l), serve(t, 'b', l)
	stranger := serve(t, 's', l)
	mine := func(size uint64, unix uint64) string {
		sig, err := bad.server.cosigner.sign([]byte(l.text(size)), unix)
		if err != nil {
			t.Fatal(err)
		}
		return sig.line()
	}
	now := uint64(began.Unix())
	status := func(code int, kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if kind != "" {
				w.Header().Set("Content-Type", kind)
			}
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	const size = "text/x.tlog.size"
	release := make(chan struct{})
	defer close(release)
	for _, tt := range []struct {
		name     string
		lie      http.HandlerFunc
		requests int64
		want     string // in the error
	}{
		{"a stranger's cosignature", func(w http.ResponseWriter, _ *http.Request) {
			sig, _ := stranger.server.cosigner.sign([]byte(l.text(60)), now)
			io.WriteString(w, sig.line())
		}, 1, "no valid cosignature by witness.example.test/b"},
		{"a cosignature of another size", status(200, "", mine(59, now)), 1, "no valid cosignature"},
		{"a broken cosignature", status(200, "", string(broken([]byte(mine(60, now))))), 1, "no valid cosignature"},
		{"the log's own line", status(200, "", l.signedLine(60)), 1, "no valid cosignature"},
		{"a cosignature with another time before it", func(w http.ResponseWriter, _ *http.Request) {
			sigs, _ := parseSignatures([]byte(mine(60, now)))
			sigs[0].blob[7]++
			io.WriteString(w, sigs[0].line())
		}, 1, "no valid cosignature"},
		{"a cosignature of the future", status(200, "", mine(60, now+3600)), 1, "lies ahead of this clock"},
		{"a cosignature of the year 0", status(200, "", mine(60, 0)), 1, "has the time 0"},
		{"a note in place of lines", status(200, "", string(l.checkpoint(60))+mine(60, now)), 1, "line 1 of the signatures is none"},
		{"a blank line and a signature", status(200, "", "\n"+mine(60, now)), 1, "line 1 of the signatures is none"},
		{"nothing", status(200, "", ""), 1, "signature lines are missing"},
		{"a line without its newline", status(200, "", strings.TrimSuffix(mine(60, now), "\n")), 1, "do not end with a newline"},
		{"a thousand lines", status(200, "", strings.Repeat("— a AAAAAAA=\n", 1000)), 1, "over 64 signature lines"},
		{"an endless answer", func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		}, 1, "its answer has over 65536 bytes"},
		{"an endless refusal", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			for {
				if _, err := w.Write(make([]byte, 32<<10)); err != nil {
					return
				}
			}
		}, 1, "its answer has over 65536 bytes"},
		{"the size that was sent", status(409, size, "0\n"), 1, "named the size 0 that was sent"},
		{"another size each time", func() http.HandlerFunc {
			var n atomic.Int64
			return func(w http.ResponseWriter, r *http.Request) { status(409, size, fmt.Sprintf("%d\n", n.Add(1)))(w, r) }
		}(), 2, "it has cosigned size 2, not 1"},
		{"a size over the tree's", status(409, size, "61\n"), 1, "it has cosigned size 61, this tree has 60: the log was rolled back"},
		{"a size that is none", status(409, size, "many\n"), 1, `"many" is not a tree size`},
		{"a size over 64 bits", status(409, size, "99999999999999999999\n"), 1, "is not a tree size"},
		{"a conflict without a size", status(409, "", "conflict"), 1, "another root of this size: the log forked"},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, good.url+"/add-checkpoint", http.StatusTemporaryRedirect)
		}, 1, "a redirect to \"" + good.url + "/add-checkpoint\", which is not followed"},
		{"a redirect with 303", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, good.url, http.StatusSeeOther) }, 1, "which is not followed"},
		{"404", status(404, "", ""), 1, "does not know the log's origin"},
		{"403", status(403, "", ""), 1, "does not know the log's key"},
		{"422", status(422, "", ""), 1, "the consistency proof from size 0 does not verify there"},
		{"500 with a long text", status(500, "", strings.Repeat("\n\x1b[31mtrouble", 3000)), 1, `answered 500: "\n\x1b[31mtrouble`},
		{"204", status(204, "", ""), 1, "answered 204"},
		{"no answer in time", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-release:
			}
		}, 1, "context deadline exceeded"},
		{"a connection that breaks", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 1, "EOF"},
		{"an answer that breaks", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "— ")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, 1, "reading its answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad.lie(tt.lie)
			before := bad.requests.Load()
			client := newTestClient(t, policyOf(t, "all", good, bad), good.clock)
			if tt.name == "no answer in time" {
				client.timeout = 100 * time.Millisecond
			}
			n, err := cosign(client, l, 60)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), bad.url) {
				t.Errorf("%d cosignatures, error %v, want %q and %s", n, err, tt.want, bad.url)
			}
			if fault.KindOf(err) != fault.Unavailable || fault.ReasonOf(err) != "witness_quorum" || strings.Contains(fault.Public(err), bad.url) {
				t.Errorf("classified %v %s %q", fault.KindOf(err), fault.ReasonOf(err), fault.Public(err))
			}
			if strings.Contains(fmt.Sprint(err), good.url+":") {
				t.Errorf("the good witness is blamed: %v", err)
			}
			if len(fmt.Sprint(err)) > 2000 {
				t.Errorf("the error has %d bytes", len(fmt.Sprint(err)))
			}
			if got := bad.requests.Load() - before; got != tt.requests {
				t.Errorf("%d requests, want %d", got, tt.requests)
			}
			// One good one is enough where the policy says so.
			if n, err := cosign(newTestClient(t, policyOf(t, "any", good, bad), good.clock), l, 60); err != nil || n != 1 {
				t.Errorf("any: %d cosignatures, %v", n, err)
			}
		})
	}
	// A log that forked is told so.
	bad.instead.Store(nil)
	client := newTestClient(t, policyOf(t, "all", good, bad), good.clock)
	if _, err := cosign(client, l, 60); err != nil {
		t.Fatal(err)
	}
	if _, err := cosign(client, fork, 60); err == nil || !strings.Contains(err.Error(), "the log forked") {
		t.Errorf("a fork of the same size: %v", err)
	}
	if _, err := cosign(client, fork, 80); err == nil || !strings.Contains(err.Error(), "consistency proof from size 60 does not verify") {
		t.Errorf("a fork of a larger size: %v", err)
	}
	if _, err := cosign(client, l, 40); err == nil || !strings.Contains(err.Error(), "the log was rolled back") {
		t.Errorf("a smaller tree: %v", err)
	}
	if n, err := cosign(client, l, 90); err != nil || n != 2 {
		t.Errorf("after all that: %d, %v", n, err)
	}
}

func TestWhatTheClientIsGivenIsChecked(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	w := serve(t, 'a', l)
	client := newTestClient(t, policyOf(t, "all", w), w.clock)
	ctx := context.Background()
	noProof := func(context.Context, uint64) ([][]byte, error) { return nil, errors.New("the tiles are gone") }
	if _, err := client.Cosign(ctx, []byte("no note"), 5, noProof); err == nil {
		t.Error("no note is taken")
	}
	if _, err := client.Cosign(ctx, l.checkpoint(5), 6, noProof); err == nil || !strings.Contains(err.Error(), "size is 5, not 6") {
		t.Error(err)
	}
	if _, err := cosign(client, l, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Cosign(ctx, l.checkpoint(20), 20, noProof); err == nil || !strings.Contains(err.Error(), "the tiles are gone") {
		t.Error(err)
	}
	long := func(context.Context, uint64) ([][]byte, error) { return make64(nil), nil }
	if _, err := client.Cosign(ctx, l.checkpoint(20), 20, long); err == nil || !strings.Contains(err.Error(), "has 64 hashes") {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := client.Cosign(gone, l.checkpoint(20), 20, l.prove(20)); err == nil {
		t.Error("a caller that left gets an answer")
	}
	p, err := ParsePolicy(fmt.Sprintf("witness a %s\nquorum a\n", w.server.Key()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(ClientOptions{Policy: p, Logger: quiet()}); err == nil || !strings.Contains(err.Error(), "witness a: the policy gives no URL") {
		t.Error(err)
	}
	none, err := ParsePolicy("quorum none\n")
	if err != nil {
		t.Fatal(err)
	}
	out, err := newTestClient(t, none, w.clock).Cosign(ctx, l.checkpoint(20), 20, noProof)
	if err != nil || string(out) != string(l.checkpoint(20)) {
		t.Errorf("quorum none: %q, %v", out, err)
	}
}

func (l *testLog) prove(size uint64) func(context.Context, uint64) ([][]byte, error) {
	return func(_ context.Context, from uint64) ([][]byte, error) { return l.tree.ConsistencyProof(from, size) }
}

func TestWhatWitnessesAnswerIsCounted(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	good, refuses, fails := serve(t, 'a', l), serve(t, 'b', l), serve(t, 'c', l)
	refuses.lie(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	fails.lie(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "nonsense") })
	client := newTestClient(t, policyOf(t, "all", good, refuses, fails), good.clock)
	if _, err := cosign(client, l, 10); err == nil {
		t.Fatal("a quorum of liars")
	}
	for _, want := range [][2]string{{"w0", "cosigned"}, {"w1", "refused"}, {"w2", "failed"}} {
		var m dto.Metric
		if err := client.metrics.answers.WithLabelValues(want[0], want[1]).Write(&m); err != nil || m.Counter.GetValue() != 1 {
			t.Errorf("%s %s: %v, %v", want[0], want[1], m.Counter, err)
		}
	}
	reg := prometheus.NewRegistry()
	for _, label := range []string{"rekor2", "ct-main"} { // two logs of one process
		if _, err := NewClient(ClientOptions{Policy: client.policy, Label: label, Logger: quiet(), Registerer: reg}); err != nil {
			t.Error(err)
		}
	}
}

// One endpoint may answer for several witnesses, of both kinds of cosignature; lines of unknown keys are passed over.
func TestOneAnswerMayHoldSeveralCosignatures(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	w := serve(t, 'a', l)
	skey, vkey, err := cosignature.GenerateMLDSAKey("witness.example.test/pq")
	if err != nil {
		t.Fatal(err)
	}
	pq, err := cosignature.NewMLDSASigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	withPQ := true
	w.lie(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		answer := w.post(string(body))
		rw.Header().Set("Content-Type", answer.kind)
		rw.WriteHeader(answer.status)
		io.WriteString(rw, answer.body)
		sub, err := parseSubmission(body)
		if err != nil || answer.status != 200 {
			return
		}
		io.WriteString(rw, "— somebody.example.test AAAAAAAA\n")
		if withPQ {
			sig, err := pq.SignSubtree(uint64(began.Unix()), l.origin, 0, sub.size, sub.root[:])
			if err != nil {
				t.Error(err)
			}
			io.WriteString(rw, signature{pq.Name(), pq.KeyHash(), sig}.line())
		}
	})
	p, err := ParsePolicy(fmt.Sprintf("witness a %s %s/\nwitness pq %s %s\ngroup g all a pq\nquorum g\n", w.server.Key(), w.url, vkey, w.url))
	if err != nil {
		t.Fatal(err)
	}
	client := newTestClient(t, p, w.clock)
	if n, err := cosign(client, l, 10); err != nil || n != 2 || w.requests.Load() != 1 {
		t.Errorf("%d cosignatures, %v, %d requests", n, err, w.requests.Load())
	}
	withPQ = false
	if _, err := cosign(client, l, 20); err == nil || !strings.Contains(err.Error(), "no valid cosignature by witness.example.test/pq") {
		t.Error(err)
	}
}

// Verifiers need not take more than 16 lines: what the quorum does without is left out.
func TestANoteHasNoMoreLinesThanVerifiersTake(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 5, "leaf")
	var policy strings.Builder
	lines := map[int]string{}
	for i := range 20 {
		c, err := newCosigner(fmt.Sprintf("witness.example.test/%d", i), newEd25519Key(byte('A'+i)))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&policy, "witness w%d %s http://127.0.0.1:1/%d\n", i, c.key, i)
		lines[i] = signature{c.key.name, c.key.Hash(), []byte(base64.StdEncoding.EncodeToString(make([]byte, 72)))}.line()
	}
	members := " w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17 w18 w19\nquorum g\n"
	for _, tt := range []struct {
		threshold string
		want      int // lines of the note, 0 for an error
	}{{"3", maxLines}, {"15", maxLines}, {"16", 0}, {"all", 0}} {
		p, err := ParsePolicy(policy.String() + "group g " + tt.threshold + members)
		if err != nil {
			t.Fatal(err)
		}
		all := map[int]string{}
		for i, line := range lines {
			all[i] = line
		}
		out, err := newTestClient(t, p, &clock{now: began}).assemble(l.checkpoint(5), 1, all)
		if got := strings.Count(string(out), "\n— "); got != tt.want || (err == nil) != (tt.want > 0) {
			t.Errorf("threshold %s: %d lines, %v", tt.threshold, got, err)
		}
	}
}

// BenchmarkCosign is the time that a quorum of two out of three witnesses adds to a checkpoint, each with its fsync, on one machine.
func BenchmarkCosign(b *testing.B) {
	l := newTestLog(b, logOrigin, newEd25519Key('l'), 20_000, "leaf")
	w := []*served{serve(b, 'a', l), serve(b, 'b', l), serve(b, 'c', l)}
	client, err := NewClient(ClientOptions{Policy: policyOf(b, "2", w...), Label: "test", Logger: quiet(), Now: w[0].clock.Now})
	if err != nil {
		b.Fatal(err)
	}
	size := uint64(0)
	for b.Loop() {
		size = min(size+1, 20_000) // past it the same tree again, with a new time
		if _, err := client.Cosign(b.Context(), l.checkpoint(size), size, l.prove(size)); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzAnswer gives a client any answer: it may only take its witness's cosignature of this tree.
func FuzzAnswer(f *testing.F) {
	l := newTestLog(f, logOrigin, newEd25519Key('l'), 20, "leaf")
	c, err := newCosigner("witness.example.test/a", newEd25519Key('a'))
	if err != nil {
		f.Fatal(err)
	}
	for size := range uint64(3) {
		sig, err := c.sign([]byte(l.text(9+size)), uint64(began.Unix()))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(200, "text/plain", sig.line())
	}
	f.Add(409, "text/x.tlog.size", "5\n")
	p, err := ParsePolicy("witness a " + c.key.String() + " http://127.0.0.1:1\nquorum a\n")
	if err != nil {
		f.Fatal(err)
	}
	good, err := c.sign([]byte(l.text(10)), uint64(began.Unix()))
	if err != nil {
		f.Fatal(err)
	}
	cp, prove := l.checkpoint(10), l.prove(10)
	f.Fuzz(func(t *testing.T, status int, kind, body string) {
		client, err := NewClient(ClientOptions{Policy: p, Label: "test", Logger: quiet(), Now: (&clock{now: began}).Now,
			Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(body))}, nil
			})})
		if err != nil {
			t.Fatal(err)
		}
		out, err := client.Cosign(context.Background(), cp, 10, prove)
		if err == nil && (string(out) != string(cp)+good.line() || status != 200) {
			t.Fatalf("took %q", out)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
