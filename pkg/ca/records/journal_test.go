package records_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/records"
)

// journaled has a store on SQLite whose database cannot be written until back is called.
func journaled(t *testing.T) (s *records.Store, path string, c *clock, back func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "records.db")
	c = newClock()
	s = open(t, "sqlite:"+path, c)
	db := raw(t, "sqlite:"+path)
	if _, err := db.Exec(`CREATE TRIGGER away BEFORE UPDATE ON heads BEGIN SELECT RAISE(ABORT, 'away'); END`); err != nil {
		t.Fatal(err)
	}
	return s, path, c, func() {
		t.Helper()
		if _, err := db.Exec(`DROP TRIGGER away`); err != nil {
			t.Fatal(err)
		}
	}
}

func record(t testing.TB, s *records.Store, c *clock, identity string) {
	t.Helper()
	if err := s.Issued(t.Context(), issuance(c, identity)); err != nil {
		t.Fatal(err)
	}
}

// wantIssued checks who is in the records, oldest first, and their chain.
func wantIssued(t *testing.T, path string, pending int, identities ...string) {
	t.Helper()
	r := reader(t, "sqlite:"+path)
	var got []string
	for _, row := range find(t, r, records.Query{}) {
		if (row.Seq == 0) != (row.Hash == "") {
			t.Errorf("row %d has hash %q", row.Seq, row.Hash)
		}
		got = append(got, row.Identity)
	}
	slices.Reverse(got)
	if !slices.Equal(got, identities) {
		t.Errorf("issued to %v, want %v", got, identities)
	}
	if n, err := r.Pending(t.Context()); err != nil || n != pending {
		t.Errorf("%d are pending, %v; want %d", n, err, pending)
	}
}

func verified(t *testing.T, path string, rows int) {
	t.Helper()
	if heads, err := reader(t, "sqlite:"+path).Verify(t.Context(), nil); err != nil || heads["issued"].Seq != int64(rows) {
		t.Errorf("%v, %v: want %d rows", heads, err, rows)
	}
}

func TestWhatIsJournaledIsReadAndComesIntoTheDatabaseLater(t *testing.T) {
	s, path, c, back := journaled(t)
	for _, identity := range []string{"alice", "bob <&>\u2028", "carol"} {
		record(t, s, c, identity)
	}
	wantIssued(t, path, 3, "alice", "bob <&>\u2028", "carol")
	r := reader(t, "sqlite:"+path)
	for name, tt := range map[string]struct {
		q    records.Query
		want int
	}{
		"an identity": {records.Query{Identity: "alice"}, 1}, "a prefix": {records.Query{IdentityPrefix: "b"}, 1}, "another issuer": {records.Query{Issuer: "x"}, 0},
		"too early": {records.Query{Until: c.Now()}, 0}, "in time": {records.Query{Since: c.Now()}, 3}, "a page that is not the first": {records.Query{Before: 9}, 0},
		"two": {records.Query{Limit: 2}, 2}, "a serial number": {records.Query{Serial: "00"}, 0},
	} {
		if rows := find(t, r, tt.q); len(rows) != tt.want {
			t.Errorf("%s: %d rows, want %d", name, len(rows), tt.want)
		}
	}
	back()
	s.Settle()
	wantIssued(t, path, 0, "alice", "bob <&>\u2028", "carol")
	record(t, s, c, "dave")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantIssued(t, path, 0, "alice", "bob <&>\u2028", "carol", "dave")
	verified(t, path, 4)
}

func TestTheNextStartPutsWhatIsJournaledIntoTheDatabase(t *testing.T) {
	s, path, c, back := journaled(t)
	record(t, s, c, "alice")
	record(t, s, c, "bob")
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "the next start") {
		t.Errorf("closing: %v", err)
	}
	kept, err := os.ReadFile(records.JournalPath(path))
	if err != nil {
		t.Fatal(err)
	}
	back()
	for range 2 { // the second time it is all in the database already
		if err := os.WriteFile(records.JournalPath(path), kept, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := open(t, "sqlite:"+path, c).Close(); err != nil {
			t.Fatal(err)
		}
		wantIssued(t, path, 0, "alice", "bob")
		verified(t, path, 2)
	}
}

// TestACopyTakesTheJournalAlong is what a backup does.
func TestACopyTakesTheJournalAlong(t *testing.T) {
	s, path, c, back := journaled(t)
	for n := range 3 {
		record(t, s, c, fmt.Sprint("user ", n))
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	files, err := records.Snapshot(t.Context(), path, copied)
	if err != nil || !slices.Equal(files, []string{copied, records.JournalPath(copied)}) {
		t.Fatalf("%v, %v", files, err)
	}
	wantIssued(t, copied, 3, "user 0", "user 1", "user 2")
	back()
	record(t, s, c, "user 3")
	if _, err := raw(t, "sqlite:"+copied).Exec(`DROP TRIGGER away`); err != nil {
		t.Fatal(err)
	}
	restored := open(t, "sqlite:"+copied, c)
	record(t, restored, c, "another user 3")
	restored.Settle()
	wantIssued(t, copied, 0, "user 0", "user 1", "user 2", "another user 3")
	verified(t, copied, 4)
}

func TestAFullJournalWaitsForTheDatabase(t *testing.T) {
	s, path, c, back := journaled(t)
	long := strings.Repeat("x", 100_000)
	most := records.RingBytes / (2 * len(long)) // the subject is as long as the identity
	var want []string
	for n := 0; ; n++ {
		identity := fmt.Sprint(n, long)
		if err := s.Issued(t.Context(), issuance(c, identity)); err != nil {
			wantReason(t, err, fault.Unavailable, "record_unavailable")
			break
		}
		if want = append(want, identity); len(want) > most {
			t.Fatal("the journal takes more than it can hold")
		}
	}
	if len(want) < most*8/10 {
		t.Errorf("only %d rows were taken where %d fit", len(want), most)
	}
	wantReason(t, s.Ready(t.Context()), fault.Unavailable, "record_unavailable")
	wantReason(t, s.Issued(t.Context(), issuance(c, "short")), fault.Unavailable, "record_unavailable")
	back()
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("not ready again: %v", err)
	}
	record(t, s, c, "last") // waits for the database
	s.Settle()
	for n := range 50 { // a journal that was made anew
		record(t, s, c, fmt.Sprint(n, long))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, row := range find(t, reader(t, "sqlite:"+path), records.Query{}) {
		got[row.Identity] = true
	}
	for _, identity := range append(want, "last") {
		if !got[identity] {
			t.Errorf("the certificate of %.10s… was answered for and has no record", identity)
		}
	}
	verified(t, path, len(want)+1+50)
}

func TestAJournalThatCannotBeWrittenIsMadeAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	c := newClock()
	s := open(t, "sqlite:"+path, c)
	record(t, s, c, "alice")
	if err := s.FailJournal(); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(records.JournalPath(path))
	if err != nil {
		t.Fatal(err)
	}
	record(t, s, c, "bob") // straight to the database
	s.Settle()
	for {
		if after, err := os.Stat(records.JournalPath(path)); err != nil {
			t.Fatal(err)
		} else if !os.SameFile(before, after) {
			break
		}
	}
	record(t, s, c, "carol")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	verified(t, path, 3)
}

// lines are the rows of a frame.
func lines(t testing.TB, identities ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	for n, identity := range identities {
		i := issuance(newClock(), identity)
		if err := json.NewEncoder(&b).Encode(records.Issued{Serial: fmt.Sprintf("%x%02x", i.Serial, n), Identity: identity}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// ringOf is a journal with frames one after another.
func ringOf(frames ...[]byte) []byte {
	ring := make([]byte, 0, records.RingBytes)
	for _, f := range frames {
		ring = append(ring, f...)
		ring = append(ring, make([]byte, -len(f)&(records.PageBytes-1))...)
	}
	return ring
}

func TestATornFrameIsDropped(t *testing.T) {
	first, second := records.MarshalFrame(7, 6, lines(t, "alice")), records.MarshalFrame(8, 6, lines(t, "bob"))
	last := records.MarshalFrame(9, 6, lines(t, strings.Repeat("x", 5000), "dave"))
	whole := ringOf(first, second, last)
	stale := ringOf(first, second, records.MarshalFrame(3, 2, lines(t, strings.Repeat("old", 3000))))
	for name, below := range map[string][]byte{"on zeros": ringOf(first, second), "on an old frame": stale} {
		t.Run(name, func(t *testing.T) {
			for cut := range last {
				torn := make([]byte, len(whole))
				copy(torn, below)
				copy(torn[2*records.PageBytes:], last[:cut])
				pending, newest, err := records.ParseRing(torn)
				if err != nil || len(pending) != 2 {
					t.Fatalf("cut at byte %d: frame %v, %v", cut, newest, err)
				}
			}
		})
	}
	// Pages come to the disk in any order.
	torn := bytes.Clone(whole)
	clear(torn[2*records.PageBytes : 3*records.PageBytes])
	if pending, _, err := records.ParseRing(torn); err != nil || len(pending) != 2 {
		t.Errorf("without the first page: %d frames, %v", len(pending), err)
	}
	if pending, _, err := records.ParseRing(whole); err != nil || len(pending) != 3 {
		t.Errorf("whole: %d frames, %v", len(pending), err)
	}
}

func TestADamagedFrameIsAnErrorWhereItWasAnsweredFor(t *testing.T) {
	frames := [][]byte{records.MarshalFrame(1, 0, lines(t, "alice")), records.MarshalFrame(2, 0, lines(t, "bob")), records.MarshalFrame(3, 0, lines(t, "carol"))}
	ring := ringOf(frames...)
	for n, f := range frames[:2] {
		for at := range f {
			damaged := bytes.Clone(ring)
			damaged[n*records.PageBytes+at] ^= 0x20
			if _, _, err := records.ParseRing(damaged); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("frame %d is missing", n+1)) {
				t.Fatalf("frame %d, byte %d: %v", n+1, at, err)
			}
		}
	}
	done := ringOf(frames[0], frames[1], records.MarshalFrame(3, 2, lines(t, "carol")))
	clear(done[:2*records.PageBytes])
	if pending, _, err := records.ParseRing(done); err != nil || len(pending) != 1 {
		t.Errorf("frames that are in the database: %d, %v", len(pending), err)
	}
	newer := ringOf(records.MarshalFrame(1, 0, []byte(`{"serial":"01","colour":"red"}`+"\n")))
	if _, _, err := records.ParseRing(newer); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("a row with a field that is not known: %v", err)
	}
}

func TestADamagedJournalStopsTheStartAndIsLeftAlone(t *testing.T) {
	s, path, c, back := journaled(t)
	for n := range 3 {
		record(t, s, c, fmt.Sprint("user ", n))
	}
	if err := s.Close(); err == nil {
		t.Error("closed with rows in the journal")
	}
	back()
	ring, err := os.ReadFile(records.JournalPath(path))
	if err != nil {
		t.Fatal(err)
	}
	ring[records.FrameHead+5] ^= 1
	if err := os.WriteFile(records.JournalPath(path), ring, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := records.Open(t.Context(), records.Options{URI: "sqlite:" + path}); err == nil || !strings.Contains(err.Error(), "move it away") {
			t.Fatalf("opened: %v", err)
		}
	}
	if _, err := reader(t, "sqlite:"+path).Issued(t.Context(), records.Query{Limit: 10}); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("read: %v", err)
	}
	if after, err := os.ReadFile(records.JournalPath(path)); err != nil || !bytes.Equal(after, ring) {
		t.Errorf("the damaged journal was changed, %v", err)
	}
	if err := os.Rename(records.JournalPath(path), path+".damaged"); err != nil {
		t.Fatal(err)
	}
	issue(t, open(t, "sqlite:"+path, c), issuance(c, "bob"))
	verified(t, path, 1)
}

// TestAReaderMissesNothingThatWasAnsweredFor reads while rows go from the journal to the database and the ring comes round.
func TestAReaderMissesNothingThatWasAnsweredFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	c := newClock()
	s := open(t, "sqlite:"+path, c)
	const rows = 1000
	long := strings.Repeat("x", 20_000) // the ring comes round twice
	var mu sync.Mutex                   // guards answered
	var answered []string
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			for range rows / 4 {
				i := issuance(c, fmt.Sprint(n, long))
				if err := s.Issued(context.Background(), i); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				answered = append(answered, hex.EncodeToString(i.Serial))
				mu.Unlock()
			}
		})
	}
	r := reader(t, "sqlite:"+path)
	for count := 0; count < rows && !t.Failed(); {
		mu.Lock()
		before := slices.Clone(answered)
		mu.Unlock()
		count = len(before)
		for from := max(0, count-100); from < count; from += 25 {
			serial := before[from]
			if found := find(t, r, records.Query{Serial: serial}); len(found) != 1 {
				t.Errorf("certificate %s was answered for and %d rows were found", serial, len(found))
			}
		}
		all := find(t, r, records.Query{Limit: 200})
		serials := map[string]bool{}
		for _, row := range all {
			if serials[row.Serial] {
				t.Errorf("certificate %s is there twice", row.Serial)
			}
			serials[row.Serial] = true
		}
	}
	all.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	verified(t, path, rows)
}

// TestIssuing is the process that TestKilledProcessesLoseNothing kills: it prints the serial number of each certificate that
// may leave.
func TestIssuing(t *testing.T) {
	path := os.Getenv("RECORDS_TEST_ISSUE")
	if path == "" {
		t.Skip("this is a helper of TestKilledProcessesLoseNothing")
	}
	s, err := records.Open(context.Background(), records.Options{URI: "sqlite:" + path})
	if err != nil {
		t.Fatal(err)
	}
	c := newClock()
	for n := range 8 {
		go func() {
			for {
				i := issuance(c, fmt.Sprint("user ", n))
				if err := s.Issued(context.Background(), i); err != nil {
					fmt.Println("error", err)
					return
				}
				fmt.Printf("issued %x\n", i.Serial)
			}
		}()
	}
	select {}
}

func TestKilledProcessesLoseNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	answered := map[string]bool{}
	for range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestIssuing$")
		cmd.Env = append(os.Environ(), "RECORDS_TEST_ISSUE="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		left := 1 + rand.IntN(1500) // lines until it is killed
		for lines := bufio.NewScanner(out); lines.Scan(); left-- {
			word, serial, _ := strings.Cut(lines.Text(), " ")
			if word != "issued" {
				t.Error(lines.Text())
				cmd.Process.Kill()
				break
			}
			if len(serial) == 40 { // the last line may be cut
				answered[serial] = true
			}
			if left == 0 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait() // killed
	}
	r := reader(t, "sqlite:"+path)
	present := func() (rows int) {
		t.Helper()
		found := map[string]bool{}
		before := int64(0)
		for {
			page, err := r.Issued(t.Context(), records.Query{Limit: records.MaxRows, Before: before})
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range page {
				if found[row.Serial] {
					t.Errorf("certificate %s is there twice", row.Serial)
				}
				found[row.Serial] = true
			}
			if len(page) < records.MaxRows {
				break
			}
			before = page[len(page)-1].Seq
		}
		for serial := range answered {
			if !found[serial] {
				t.Fatalf("certificate %s left and has no record; %d of %d are there", serial, len(found), len(answered))
			}
		}
		return len(found)
	}
	rows := present() // before a start
	if err := open(t, "sqlite:"+path, newClock()).Close(); err != nil {
		t.Fatal(err)
	}
	if again := present(); again != rows {
		t.Errorf("%d rows, and %d before the start", again, rows)
	}
	verified(t, path, rows)
	t.Logf("%d certificates left, %d have a record", len(answered), rows)
}

// FuzzJournal holds the reader of journals to what it may say of any file: what is pending is without gaps. layout places frames, three bytes each:
// page, number, done; rows are what each of them has.
func FuzzJournal(f *testing.F) {
	rows := lines(f, "alice", "bob")
	f.Add([]byte{0, 1, 0, 1, 2, 1, 2, 3, 1}, rows, uint16(0), byte(0))
	f.Add([]byte{2, 1, 0, 0, 2, 0, 1, 3, 0}, rows, uint16(records.FrameHead), byte(1))
	f.Add([]byte{0, 7, 3, 1, 6, 3}, []byte(`{"serial":1}`), uint16(9), byte(0x80))
	f.Fuzz(func(t *testing.T, layout, rows []byte, at uint16, change byte) {
		ring := make([]byte, 16*records.PageBytes)
		for ; len(layout) >= 3; layout = layout[3:] {
			copy(ring[int(layout[0])%16*records.PageBytes:], records.MarshalFrame(uint64(layout[1]), uint64(layout[2]), rows))
		}
		ring[int(at)%len(ring)] ^= change
		pending, newest, err := records.ParseRing(ring)
		if err != nil {
			if pending != nil {
				t.Error("rows beside an error")
			}
			return
		}
		number, done := records.Numbers(newest)
		if len(pending) > 0 && uint64(len(pending)) != number-done {
			t.Errorf("%d frames are pending between %d and %d", len(pending), done, number)
		}
		for n, p := range pending {
			if got, _ := records.Numbers(p); got != done+1+uint64(n) {
				t.Errorf("frame %d comes %dth after %d", got, n, done)
			}
		}
	})
}
