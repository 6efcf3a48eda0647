package e2e

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// resident returns how many MiB a process has in memory, now and at most until now.
func resident(t *testing.T, pid int) (now, peak int) {
	t.Helper()
	status := readFile(t, fmt.Sprintf("/proc/%d/status", pid))
	read := func(name string) int {
		m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindStringSubmatch(status)
		if m == nil {
			t.Fatalf("no %s", name)
		}
		kib, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return kib >> 10
	}
	return read("VmRSS"), read("VmHWM")
}

// stream is n bytes of a pattern between a head and a tail, which no side has in memory as a whole.
func stream(head, pattern string, n int, tail string) func() io.Reader {
	return func() io.Reader {
		return io.MultiReader(strings.NewReader(head), io.LimitReader(&repeated{pattern: bytes.Repeat([]byte(pattern), 4096)}, int64(n)), strings.NewReader(tail))
	}
}

type repeated struct {
	pattern []byte
	at      int
}

func (r *repeated) Read(p []byte) (int, error) {
	for n := 0; n < len(p); {
		m := copy(p[n:], r.pattern[r.at:])
		r.at = (r.at + m) % len(r.pattern)
		n += m
	}
	return len(p), nil
}

// envelope1 is a Rekor v1 dsse entry whose envelope has n signatures.
func (l *ledger) envelope1(t *testing.T, n int) string {
	t.Helper()
	payload := []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"x","predicate":{}}`)
	const payloadType = "application/vnd.in-toto+json"
	signatures := []map[string]string{}
	if n > 0 {
		// PAE, github.com/secure-systems-lab/dsse, protocol.md.
		sum := sha256.Sum256(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload))
		one, err := l.key.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			signatures = append(signatures, map[string]string{"sig": base64.StdEncoding.EncodeToString(one)})
		}
	}
	envelope, err := json.Marshal(map[string]any{"payloadType": payloadType, "payload": payload, "signatures": signatures})
	if err != nil {
		t.Fatal(err)
	}
	entry, err := json.Marshal(map[string]any{"apiVersion": "0.0.1", "kind": "dsse", "spec": map[string]any{
		"proposedContent": map[string]any{"envelope": string(envelope), "verifiers": [][]byte{l.keyPEM}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(entry)
}

// TestHostileBodiesAreRefusedInBoundedMemory sends what nobody honest sends, several at once, to the real program.
func TestHostileBodiesAreRefusedInBoundedMemory(t *testing.T) {
	s := up(t)
	a := newAudit(t, s)
	for name, submit := range a.submitters(s.alice()) {
		if err := submit(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	before, _ := resident(t, s.cmd.Process.Pid)
	good, _, err := a.l.body1()
	if err != nil {
		t.Fatal(err)
	}
	text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	const mib = 1 << 20
	paths := map[string]string{rekor1: s.url + "/api/v1/log/entries", rekor2: s.url + "/api/v2/log/entries", ctLog: s.ctBase() + "/ct/v1/add-chain"}
	for _, tt := range []struct {
		name   string
		log    string
		body   func() io.Reader
		length int64 // told in advance; 0 for chunks
		want   []int
	}{
		{"100 MiB of JSON, told in advance", rekor1, stream(`{"a":"`, "x", 100*mib, `"}`), 100*mib + 8, []int{413}},
		{"100 MiB of JSON, in chunks", rekor1, stream(`{"a":"`, "x", 100*mib, `"}`), 0, []int{413, 503}},
		{"63 MiB of one string", rekor1, stream(`{"kind":"`, "x", 63*mib, `"}`), 0, []int{400, 503}},
		{"63 MiB of small members", rekor1, stream(`{"a":1`, `,"b":1`, 63*mib/6*6, `}`), 0, []int{400, 503}},
		{"20 MiB of open brackets", rekor1, stream(``, "[", 20*mib, ``), 0, []int{400, 503}},
		{"20 MiB of open objects", rekor1, stream(``, `{"a":`, 20*mib, ``), 0, []int{400, 503}},
		{"100 MiB to Rekor v2", rekor2, stream(`{"a":"`, "x", 100*mib, `"}`), 0, []int{413, 503}},
		{"3 MiB of open brackets to Rekor v2", rekor2, stream(``, "[", 3*mib, ``), 0, []int{400}},
		{"100 MiB to CT", ctLog, stream(`{"chain":["`, "A", 100*mib, `"]}`), 0, []int{413, 429}},
		{"500,000 empty certificates", ctLog, stream(`{"chain":[""`, `,""`, 500_000, `]}`), 0, []int{400}},
		{"an envelope without signatures", rekor1, text(a.l.envelope1(t, 0)), 0, []int{400}},
		{"an envelope with 10,000 signatures", rekor1, text(a.l.envelope1(t, 10_000)), 0, []int{400}},
		{"a member twice", rekor1, text(strings.Replace(good, `"kind":"hashedrekord"`, `"kind":"hashedrekord","kind":"hashedrekord"`, 1)), 0, []int{400}},
		{"a member twice, deeper", rekor1, text(strings.Replace(good, `"algorithm":"sha256"`, `"algorithm":"sha256","algorithm":"sha256"`, 1)), 0, []int{400}},
		{"two documents", rekor1, text(good + good), 0, []int{400}},
		{"nothing", rekor1, text(""), 0, []int{400, 422}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, paths[tt.log], tt.body())
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Content-Type", "application/json")
					req.ContentLength = tt.length
					if tt.length == 0 {
						req.ContentLength = -1
					}
					resp, err := http.DefaultTransport.RoundTrip(req)
					if err != nil { // the answer may have been overtaken by the end of the connection
						var network *net.OpError
						if !errors.As(err, &network) || tt.want[0] != http.StatusRequestEntityTooLarge {
							t.Error(err)
						}
						return
					}
					defer resp.Body.Close()
					answer, err := io.ReadAll(io.LimitReader(resp.Body, mib))
					if err != nil {
						t.Error(err)
					}
					for _, want := range tt.want {
						if resp.StatusCode == want {
							return
						}
					}
					t.Errorf("%d, want one of %d: %.300s", resp.StatusCode, tt.want, answer)
				})
			}
			all.Wait()
		})
	}
	if t.Failed() {
		return
	}
	now, peak := resident(t, s.cmd.Process.Pid)
	measured(t, "%d MiB resident before hostile bodies, %d at most, %d after them", before, peak, now)
	// Bodies in flight are bounded by 512 MiB, each byte costs up to four; four bodies of 64 MiB are the most here.
	if peak > 4*4*64+before {
		t.Errorf("%d MiB resident at most, %d before", peak, before)
	}
	for name, submit := range a.submitters(s.alice()) {
		if err := submit(); err != nil {
			t.Errorf("%s after all that: %v", name, err)
		}
	}
	a.replay()
}

// TestSlowBodiesHoldNobodyUp has a thousand clients begin a body and stop; entries of others go on.
func TestSlowBodiesHoldNobodyUp(t *testing.T) {
	t.Parallel() // with tests that wait, too
	s := up(t)
	a := newAudit(t, s)
	const slow = 1000
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			conn.Close()
		}
	}()
	for i := range slow {
		conn, err := net.Dial("tcp", s.listen)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		path := []string{"/api/v1/log/entries", "/api/v2/log/entries", "/api/v1/log/entries/retrieve"}[i%3]
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{\"a\":", path); err != nil {
			t.Fatal(err)
		}
	}
	token := s.alice()
	started := time.Now()
	a.loaded(token, 4, 2*time.Second, func() {})
	if a.l.count(rekor1) == 0 || a.l.count(rekor2) == 0 || a.l.count(ctLog) == 0 {
		t.Errorf("beside %d slow bodies: %d, %d and %d entries", slow, a.l.count(rekor1), a.l.count(rekor2), a.l.count(ctLog))
	}
	// A body that is silent for 10 s is given up with 408 (internal/limit).
	for _, conn := range conns[:3] {
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 16)
		if _, err := io.ReadFull(conn, head); err != nil || !bytes.HasPrefix(head, []byte("HTTP/1.1 408")) {
			t.Errorf("a silent body is answered with %q, %v", head, err)
		}
	}
	waited := time.Since(started)
	now, peak := resident(t, s.cmd.Process.Pid)
	measured(t, "%d silent bodies were given up after %v; %d entries went by; %d MiB resident, %d at most", slow, waited.Round(time.Second), a.l.count(rekor1)+a.l.count(rekor2), now, peak)
	if peak > 300 {
		t.Errorf("%d MiB resident at most", peak)
	}
	a.check()
}

// TestAClientThatLeavesLeavesAWholeEntryOrNone closes connections once the request is sent. Sent again, each is taken or
// known, and is one leaf.
func TestAClientThatLeavesLeavesAWholeEntryOrNone(t *testing.T) {
	s := up(t)
	a := newAudit(t, s)
	n := 200
	there := 0
	for i := range n {
		body, _, err := a.l.body1()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", s.listen)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST /api/v1/log/entries HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body)); err != nil {
			t.Fatal(err)
		}
		cut := len(body) // after the whole body, or within it
		if i%4 == 3 {
			cut = len(body) * (i % 17) / 17
		}
		if _, err := io.WriteString(conn, body[:cut]); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%20)*time.Millisecond)
		<-ctx.Done() // the wait of a client that leaves, 0 to 19 ms
		cancel()
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		var status int
		var answer string
		eventually(t, "the entry can be sent again", func() bool {
			status, answer, err = call(t.Context(), http.MethodPost, s.url+"/api/v1/log/entries", "application/json", body)
			return err == nil && status != http.StatusServiceUnavailable
		})
		switch status {
		case http.StatusConflict:
			there++
			resp, err := http.Post(s.url+"/api/v1/log/entries", "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			answer = get(t, s.url+resp.Header.Get("Location"))
		case http.StatusCreated:
		default:
			t.Fatalf("an entry sent again: %d %s", status, answer)
		}
		var entries map[string]entry1
		if err := json.Unmarshal([]byte(answer), &entries); err != nil || len(entries) != 1 {
			t.Fatalf("%d entries, %v in %s", len(entries), err, answer)
		}
		for _, e := range entries {
			promise, err := a.l.check1(e)
			if err != nil {
				t.Fatal(err)
			}
			a.l.promised(rekor1, promise)
		}
	}
	a.replay()
	if size := len(a.replicas[0].hashes); size != n {
		t.Errorf("%d leaves for %d entries", size, n)
	}
	measured(t, "of %d clients that left, %d had got their entry in", n, there)
}
