package records_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/journal"
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
	wantReason(t, s.Issued(t.Context(), issuance(c, long)), fault.Unavailable, "record_unavailable")
	back()
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("not ready again: %v", err)
	}
	record(t, s, c, "last") // waits for the database
	s.Settle()
	for n := range 50 { // in the journal
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

func TestWithoutItsJournalACertificateWaitsForTheDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	c := newClock()
	s := open(t, "sqlite:"+path, c)
	record(t, s, c, "alice")
	s.Settle()
	if err := s.FailJournal(); err != nil {
		t.Fatal(err)
	}
	record(t, s, c, "bob")
	verified(t, path, 2) // bob's at once
	if err := s.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closing: %v", err)
	}
	s = open(t, "sqlite:"+path, c)
	record(t, s, c, "carol")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantIssued(t, path, 0, "alice", "bob", "carol")
	verified(t, path, 3)
}

// TestTheJournalOfAnotherProcessIsTakenOver once that has ended, with what it left.
func TestTheJournalOfAnotherProcessIsTakenOver(t *testing.T) {
	first, path, c, back := journaled(t)
	second := open(t, "sqlite:"+path, c)
	record(t, first, c, "alice") // in the journal
	wantReason(t, second.Issued(t.Context(), issuance(c, "bob")), fault.Unavailable, "record_unavailable")
	if err := first.Close(); err == nil {
		t.Error("closed with rows in the journal")
	}
	back()
	record(t, second, c, "carol")
	for !second.HasJournal() {
		runtime.Gosched()
	}
	record(t, second, c, "dave")
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	verified(t, path, 3)
	if rows := find(t, reader(t, "sqlite:"+path), records.Query{Identity: "alice"}); len(rows) != 1 {
		t.Errorf("alice's certificate left and has %d rows", len(rows))
	}
}

func TestRowsOfANewerProgramAreNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	if err := journal.Create(records.JournalPath(path), [][]byte{[]byte(`{"serial":"01","colour":"red"}` + "\n")}); err != nil {
		t.Fatal(err)
	}
	if _, err := records.Open(t.Context(), records.Options{URI: "sqlite:" + path}); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("opened: %v", err)
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
	ring[bytes.Index(ring, []byte("user 1"))] ^= 1 // where it was answered for
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
