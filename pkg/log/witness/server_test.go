package witness

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
)

const logOrigin = "log.example.test"

func TestTheWitnessAnswersWithTheStatusesOfTheSpecification(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 300, "leaf")
	other := newTestLog(t, logOrigin, newEd25519Key('l'), 300, "other leaf")
	stranger := newTestLog(t, "stranger.example.test", newEd25519Key('s'), 300, "leaf")
	thief := newTestLog(t, logOrigin, newEd25519Key('t'), 300, "leaf")
	held := other.checkpoint(100)
	signedTwice := append(l.checkpoint(150), thief.signedLine(150)...)
	for _, tt := range []struct {
		name, body string
		status     int
		kind       string // of the answer, "" for any
		want       string // the answer, or a part of it
	}{
		{"a continuation", l.body(100, 150), 200, "", "— witness.example.test/w1 "},
		{"the same checkpoint again", l.body(100, 100), 200, "", "— witness.example.test/w1 "},
		{"a signature of an unknown key beside the log's", requestBody(100, l.proof(100, 150), signedTwice), 200, "", "— "},
		{"extension lines that the log signed", requestBody(100, l.proof(100, 150), l.signed(l.text(150)+"extension\n")), 200, "", "— "},

		{"an empty body", "", 400, "", "malformed request"},
		{"no old line", strings.TrimPrefix(l.body(100, 150), "old 100\n"), 400, "", "malformed"},
		{"an old size with a zero before it", "old 0" + strings.TrimPrefix(l.body(100, 150), "old "), 400, "", "malformed"},
		{"an old size that is negative", "old -" + strings.TrimPrefix(l.body(100, 150), "old "), 400, "", "malformed"},
		{"64 proof lines", requestBody(100, make64(l.tree.HashAt(1)), l.checkpoint(150)), 400, "", "64 proof lines, at most 63"},
		{"a proof line that is no hash", strings.Replace(l.body(100, 150), "\n", "\nAAAA\n", 1), 400, "", "proof line 1"},
		{"an unsigned checkpoint", "old 100\n\n" + l.text(100), 400, "", "malformed"},
		{"a checkpoint without its last newline", strings.TrimSuffix(l.body(100, 150), "\n"), 400, "", "malformed"},
		{"an old size over the new one", requestBody(150, nil, l.checkpoint(120)), 400, "", "old size 150 exceeds"},

		{"an unknown log", stranger.body(0, 150), 404, "", "does not know"},
		{"an unknown log with an old size over the new one", requestBody(150, nil, stranger.checkpoint(120)), 404, "", "does not know"},
		{"a known log with another key", thief.body(100, 150), 403, "", "no signature"},
		{"a known log with a broken signature", requestBody(100, l.proof(100, 150), broken(l.checkpoint(150))), 403, "", "no signature"},
		{"another key and an old size over the new one", requestBody(150, nil, thief.checkpoint(120)), 403, "", "no signature"},

		{"old size 0", l.body(0, 150), 409, "text/x.tlog.size", "100\n"},
		{"a smaller old size", l.body(99, 150), 409, "text/x.tlog.size", "100\n"},
		{"a larger old size", l.body(101, 150), 409, "text/x.tlog.size", "100\n"},
		{"a smaller checkpoint", l.body(50, 50), 409, "text/x.tlog.size", "100\n"},
		{"a wrong old size and a bad proof", requestBody(99, nil, l.checkpoint(150)), 409, "text/x.tlog.size", "100\n"},
		{"the same size with another root", requestBody(100, nil, held), 409, "text/plain; charset=utf-8", "another root"},

		{"no proof", requestBody(100, nil, l.checkpoint(150)), 422, "", "does not verify"},
		{"the proof of another size", requestBody(100, l.proof(99, 150), l.checkpoint(150)), 422, "", "does not verify"},
		{"another tree", other.body(100, 150), 422, "", "does not verify"},
		{"a hash too many", requestBody(100, append(l.proof(100, 150), l.tree.HashAt(1)), l.checkpoint(150)), 422, "", "does not verify"},
		{"a proof for the same size", requestBody(100, l.proof(99, 100), l.checkpoint(100)), 422, "", "does not verify"},

		{"too much", "old 100\n\n" + strings.Repeat("x", 1<<20), 413, "", "over"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newWitnessHouse(t, l)
			h.cosigned(h.post(l.body(0, 100)), l, 100)
			before := h.get("/" + originHash(logOrigin) + "/checkpoint")
			r := h.post(tt.body)
			if r.status != tt.status || tt.kind != "" && r.kind != tt.kind || !strings.Contains(r.body, tt.want) {
				t.Errorf("%+v, want %d %s %q", r, tt.status, tt.kind, tt.want)
			}
			if r.status == 200 {
				return
			}
			if tt.kind == "text/x.tlog.size" && r.body != tt.want {
				t.Errorf("the size is %q", r.body)
			}
			if strings.Contains(r.body, "— ") {
				t.Errorf("a refusal carries a signature: %q", r.body)
			}
			if after := h.get("/" + originHash(logOrigin) + "/checkpoint"); after != before {
				t.Errorf("what is cosigned changed from\n%s\nto\n%s", before.body, after.body)
			}
			h.cosigned(h.post(l.body(100, 150)), l, 150)
		})
	}
}

func (l *testLog) signedLine(size uint64) string {
	note := string(l.checkpoint(size))
	return note[strings.Index(note, "— "):]
}

func make64(hash []byte) (hashes [][]byte) {
	for range 64 {
		hashes = append(hashes, hash)
	}
	return hashes
}

// broken changes the last byte of the last signature.
func broken(note []byte) []byte {
	at := strings.LastIndex(string(note), " ") + 20
	changed := []byte(string(note))
	if changed[at] == 'A' {
		changed[at] = 'B'
	} else {
		changed[at] = 'A'
	}
	return changed
}

func TestTheFirstCheckpointOfALogIsTakenOnItsSignature(t *testing.T) {
	for _, key := range []string{"ed25519", "p256"} {
		for _, first := range []uint64{0, 1, 77} {
			t.Run(fmt.Sprintf("%s from size %d", key, first), func(t *testing.T) {
				l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
				if key == "p256" {
					l.key = newP256Key(t)
				}
				h := newWitnessHouse(t, l)
				if r := h.get("/" + originHash(logOrigin) + "/checkpoint"); r.status != 404 {
					t.Errorf("before the first: %+v", r)
				}
				if r := h.post(requestBody(0, l.proof(3, 5), l.checkpoint(first))); r.status != 422 {
					t.Errorf("a proof from size 0: %+v", r)
				}
				if r := h.post(l.body(1, 90)); r.status != 409 || r.body != "0\n" {
					t.Errorf("old size 1 of a log that was never cosigned: %+v", r)
				}
				h.cosigned(h.post(l.body(0, first)), l, first)
				h.cosigned(h.post(l.body(first, 90)), l, 90)
				h.reopen()
				h.cosigned(h.post(l.body(90, 100)), l, 100)
			})
		}
	}
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 3, "leaf")
	h := newWitnessHouse(t, l)
	wrong := strings.Replace(l.text(3), "\n3\n", "\n0\n", 1)
	if r := h.post(requestBody(0, nil, l.signed(wrong))); r.status != 422 {
		t.Errorf("an empty tree with a root of leaves: %+v", r)
	}
}

func TestALogMayHaveSeveralKeys(t *testing.T) {
	first := newTestLog(t, logOrigin, newP256Key(t), 10, "leaf")
	second := newTestLog(t, logOrigin, newEd25519Key('l'), 10, "leaf")
	h := newWitnessHouse(t, first, second, first)
	h.cosigned(h.post(first.body(0, 3)), first, 3)
	h.cosigned(h.post(second.body(3, 4)), first, 4)
	both := append(first.checkpoint(6), second.signedLine(6)...)
	h.cosigned(h.post(requestBody(4, first.proof(4, 6), both)), first, 6)
	if r := h.get("/" + originHash(logOrigin) + "/checkpoint"); strings.Count(r.body, "\n— ") != 3 {
		t.Errorf("the cosigned checkpoint has not both signatures: %s", r.body)
	}
	// One broken signature does not matter beside a good one.
	mixed := append(broken(first.checkpoint(7)), second.signedLine(7)...)
	h.cosigned(h.post(requestBody(6, first.proof(6, 7), mixed)), first, 7)
}

func TestAForkIsKeptAsEvidence(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	h := newWitnessHouse(t, l)
	h.cosigned(h.post(l.body(0, 50)), l, 50)
	for i := range maxEvidence + 4 {
		fork := newTestLog(t, logOrigin, newEd25519Key('l'), 100, fmt.Sprintf("fork %d", i))
		for range 2 { // the same one again makes no second file
			if r := h.post(fork.body(50, 50)); r.status != 409 || r.kind == "text/x.tlog.size" {
				t.Fatalf("%+v", r)
			}
		}
		// It is evidence also when the old size is wrong.
		if r := h.post(fork.body(0, 50)); r.status != 409 || r.body != "50\n" {
			t.Fatalf("%+v", r)
		}
	}
	files, err := filepath.Glob(filepath.Join(h.opts.Dir, originHash(logOrigin), evidenceGlob))
	if err != nil || len(files) != maxEvidence {
		t.Fatalf("%d files of evidence, %v", len(files), err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var e evidence
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	heldTree, heldSigs, err := parseNote([]byte(e.Held))
	if err != nil {
		t.Fatal(err)
	}
	seenTree, seenSigs, err := parseNote([]byte(e.Seen))
	if err != nil {
		t.Fatal(err)
	}
	if heldTree.size != seenTree.size || heldTree.root == seenTree.root || !l.vkey().signed(heldTree.text, heldSigs[0]) || !l.vkey().signed(seenTree.text, seenSigs[0]) {
		t.Errorf("the evidence proves nothing: %s", data)
	}
	var counted dto.Metric
	if err := h.server.metrics.forks.WithLabelValues(logOrigin).Write(&counted); err != nil || counted.Counter.GetValue() != 3*(maxEvidence+4) {
		t.Errorf("forks counted: %v, %v", counted.Counter, err)
	}
	// Strangers cannot make evidence.
	thief := newTestLog(t, logOrigin, newEd25519Key('t'), 100, "thief")
	if r := h.post(thief.body(50, 50)); r.status != 403 {
		t.Errorf("%+v", r)
	}
	h.cosigned(h.post(l.body(50, 60)), l, 60)
}

func TestTimesOfCosignaturesNeverGoBack(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 10, "leaf")
	h := newWitnessHouse(t, l)
	at := func(now time.Time, from, to uint64) time.Time {
		t.Helper()
		h.clock.set(now)
		return h.cosigned(h.post(l.body(from, to)), l, to)
	}
	if got := at(began, 0, 1); !got.Equal(began) {
		t.Errorf("first time %v", got)
	}
	if got := at(began.Add(time.Hour), 1, 1); !got.Equal(began.Add(time.Hour)) {
		t.Errorf("the same tree later: %v", got)
	}
	if got := at(began.Add(time.Hour-maxBehind), 1, 2); !got.Equal(began.Add(time.Hour)) {
		t.Errorf("a minute back: %v", got)
	}
	h.clock.set(began)
	h.reopen()
	if r := h.post(l.body(2, 3)); r.status != 503 || !strings.Contains(r.body, "clock is 1h0m0s behind") {
		t.Errorf("an hour back: %+v", r)
	}
	if r := h.get("/readyz"); r.status != 503 || !strings.Contains(r.body, "clock is 1h0m0s behind") {
		t.Errorf("an hour back: %+v", r)
	}
	if r := h.get("/healthz"); r.status != 200 {
		t.Errorf("%+v", r)
	}
	h.clock.set(time.Unix(0, 0))
	if r := h.post(l.body(2, 3)); r.status != 503 {
		t.Errorf("in 1970: %+v", r)
	}
	if got := at(began.Add(2*time.Hour), 2, 3); !got.Equal(began.Add(2 * time.Hour)) {
		t.Errorf("right again: %v", got)
	}
	if r := h.get("/readyz"); r.status != 200 {
		t.Errorf("right again: %+v", r)
	}
}

// Many submitters race from one size to different ones: one wins at a time, and sizes only grow.
func TestConcurrentSubmissionsAreOneAfterAnother(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 400, "leaf")
	h := newWitnessHouse(t, l)
	srv := httptest.NewServer(h.server.Routes())
	defer srv.Close()
	type won struct{ from, to uint64 }
	var mu sync.Mutex
	var wins []won
	var group sync.WaitGroup
	bodies := map[won]string{}
	for step := range uint64(8) {
		for to := step*50 + 1; to <= step*50+50; to += 7 {
			bodies[won{step * 50, to}] = l.body(step*50, to)
		}
	}
	for step := range uint64(8) {
		for move, body := range bodies {
			if move.from != step*50 {
				continue
			}
			group.Go(func() {
				resp, err := http.Post(srv.URL+"/add-checkpoint", "", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				io.Copy(io.Discard, resp.Body)
				switch resp.StatusCode {
				case 200:
					mu.Lock()
					wins = append(wins, move)
					mu.Unlock()
				case 409:
				default:
					t.Errorf("status %d", resp.StatusCode)
				}
			})
		}
		group.Wait()
		if len(wins) != int(step)+1 {
			t.Fatalf("step %d: %v won", step, wins)
		}
		last := wins[step].to
		if last < step*50+50 { // bring all to the next step's beginning
			h.cosigned(h.post(l.body(last, step*50+50)), l, step*50+50)
		}
	}
}

func TestADirectoryIsOneProcessesOneKeysAndUndamaged(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	h := newWitnessHouse(t, l)
	h.cosigned(h.post(l.body(0, 50)), l, 50)
	if _, err := OpenServer(h.opts); !errors.Is(err, ErrInUse) {
		t.Fatalf("a second witness on one directory: %v", err)
	}
	h.server.Close()
	refused := func(name, want string, opts ServerOptions) {
		t.Helper()
		s, err := OpenServer(opts)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	opts := h.opts
	opts.Key = newEd25519Key('x')
	refused("another key", "the key or name of this witness was changed", opts)
	opts = h.opts
	opts.Name = "witness.example.test/w2"
	refused("another name", "the key or name of this witness was changed", opts)
	opts = h.opts
	opts.Key = newP256Key(t)
	refused("an ECDSA key", "use Ed25519", opts)
	opts = h.opts
	opts.Key = l.key
	refused("the log's key", "has the key of this witness", opts)
	opts = h.opts
	opts.Logs = nil
	refused("no logs", "knows 1 to 1024 logs", opts)
	opts = h.opts
	opts.Logs = []Key{h.server.Key()}
	refused("a witness for a log", "signature type 0x04 is no log's", opts)

	path := filepath.Join(h.opts.Dir, originHash(logOrigin), recordFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	foreign := newTestLog(t, "other.example.test", newEd25519Key('l'), 100, "leaf")
	cosigned, err := h.server.cosigner.sign([]byte(foreign.text(9)), 5)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"an empty record":              {},
		"half a record":                good[:len(good)/2],
		"a changed size":               []byte(strings.Replace(string(good), "\n50\n", "\n51\n", 1)),
		"a record without cosignature": l.checkpoint(50),
		"a huge record":                []byte(string(good) + strings.Repeat("x", maxNote)),
		"another log's record":         []byte(foreign.text(9) + "\n" + cosigned.line()),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		refused(name, path[strings.LastIndex(path, "/"):], h.opts)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	h.open()
	h.cosigned(h.post(l.body(50, 60)), l, 60)
}

func TestWhatIsCosignedCanBeRead(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	quietLog := newTestLog(t, "quiet.example.test", newEd25519Key('q'), 1, "leaf")
	h := newWitnessHouse(t, l, quietLog)
	line := h.post(l.body(0, 50)).body
	r := h.get("/" + originHash(logOrigin) + "/checkpoint")
	if r.status != 200 || r.body != string(l.checkpoint(50))+line {
		t.Errorf("%+v", r)
	}
	if r := h.get("/" + originHash("quiet.example.test") + "/checkpoint"); r.status != 404 {
		t.Errorf("%+v", r)
	}
	if r := h.get("/" + originHash("stranger.example.test") + "/checkpoint"); r.status != 404 {
		t.Errorf("%+v", r)
	}
	want := h.server.Key().String() + "\n"
	for _, row := range []string{originHash(logOrigin) + "/checkpoint\t50\t" + logOrigin, originHash("quiet.example.test") + "/checkpoint\t0\tquiet.example.test"} {
		if r := h.get("/"); !strings.HasPrefix(r.body, want) || !strings.Contains(r.body, row+"\n") {
			t.Errorf("%q not in %s", row, r.body)
		}
	}
	if r := h.get("/add-checkpoint"); r.status != http.StatusMethodNotAllowed {
		t.Errorf("GET add-checkpoint: %+v", r)
	}
	if r := h.get("/nothing"); r.status != http.StatusNotFound {
		t.Errorf("%+v", r)
	}
}

// A body that never comes holds its slot no longer than it may take.
func TestABodyThatDoesNotComeIsGivenUp(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 10, "leaf")
	h := newWitnessHouse(t, l)
	h.server.bodyTimeout = 20 * time.Millisecond
	srv := httptest.NewServer(h.server.Routes())
	defer srv.Close()
	body, stuck := io.Pipe()
	defer stuck.Close()
	go stuck.Write([]byte("old 0\n")) // ends when the server closes the connection
	resp, err := http.Post(srv.URL+"/add-checkpoint", "", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 400 || len(h.server.slots) != 0 {
		t.Errorf("status %d, %d slots taken", resp.StatusCode, len(h.server.slots))
	}
}

func TestTooManySubmissionsAtOnceAreToldToComeBack(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 10, "leaf")
	h := newWitnessHouse(t, l)
	for range maxInFlight {
		h.server.slots <- struct{}{}
	}
	if r := h.post(l.body(0, 5)); r.status != 503 {
		t.Errorf("%+v", r)
	}
	<-h.server.slots
	h.cosigned(h.post(l.body(0, 5)), l, 5)
}

// FuzzSubmission sends any body to a witness that holds size 100: it may only cosign what the log signed and what continues.
func FuzzSubmission(f *testing.F) {
	l := newTestLog(f, logOrigin, newEd25519Key('l'), 300, "leaf")
	f.Add(l.body(100, 150))
	f.Add(l.body(100, 100))
	f.Add(l.body(0, 150))
	f.Add(requestBody(100, l.proof(99, 150), l.checkpoint(150)))
	f.Add("old 100\n\n")
	h := newWitnessHouse(f, l)
	start := h.post(l.body(0, 100)).body
	if start == "" {
		f.Fatal("no start")
	}
	held := h.server.watched[logOrigin].held
	f.Fuzz(func(t *testing.T, body string) {
		h := *h
		h.t = t
		h.server.watched[logOrigin].held = held
		r := h.post(body)
		switch r.status {
		case 200:
			sub, err := parseSubmission([]byte(body))
			if err != nil || sub.old != 100 || sub.size > 300 || string(sub.root[:]) != string(l.tree.HashAt(sub.size)) {
				t.Fatalf("cosigned %q", body)
			}
		case 400, 403, 404, 409, 413, 422:
			if strings.Contains(r.body, "— witness") {
				t.Fatalf("a refusal with a signature: %q", r.body)
			}
		default:
			t.Fatalf("status %d %s", r.status, r.body)
		}
	})
}
