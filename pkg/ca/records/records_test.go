package records_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/records"
)

// onEach runs f with a fresh database of each engine.
func onEach(t *testing.T, f func(t *testing.T, uri string)) {
	t.Run("sqlite", func(t *testing.T) { f(t, "sqlite:"+filepath.Join(t.TempDir(), "records ?#%.db")) })
	t.Run("postgres", func(t *testing.T) { f(t, services.Postgres(t)) })
}

// clock is a time that tests set.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func open(t testing.TB, uri string, c *clock) *records.Store {
	t.Helper()
	s, err := records.Open(t.Context(), records.Options{URI: uri, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func reader(t testing.TB, uri string) *records.Reader {
	t.Helper()
	r, err := records.OpenReader(t.Context(), uri, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// raw is the database beside the store, as somebody with its password has it.
func raw(t testing.TB, uri string) *database.DB {
	t.Helper()
	db, err := database.Open(t.Context(), uri, database.Options{Schema: "ca"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func sum(text string) [32]byte { return sha256.Sum256([]byte(text)) }

// issuance is a certificate of identity that nobody had before.
func issuance(c *clock, identity string) *ca.Issuance {
	serial := make([]byte, 20)
	rand.Read(serial)
	serial[0] = 0x41
	return &ca.Issuance{
		Time: c.Now(), Serial: serial, NotAfter: c.Now().Add(10 * time.Minute), Identity: identity, OIDCIssuer: "https://idp.example", Subject: "sub of " + identity,
		Token: sum("token"), KeyID: sum("key"), Certificate: sum(string(serial)), IssuingCert: sum("issuing"), RequestID: "req-1",
		CT: &ca.CTLeaf{LogID: sum("log"), LeafHash: sum("leaf"), Index: 7},
	}
}

// issue records i, and returns when it is in the database.
func issue(t testing.TB, s *records.Store, i *ca.Issuance) {
	t.Helper()
	if err := s.Issued(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	s.Settle()
}

func refusal(c *clock, reason string) *ca.Refusal {
	return &ca.Refusal{Time: c.Now(), Reason: reason, Status: 400, RequestID: "req-2", Detail: "refused for " + reason}
}

func find(t testing.TB, r *records.Reader, q records.Query) []*records.Issued {
	t.Helper()
	q.Limit = max(q.Limit, 1)
	if q.Limit == 1 {
		q.Limit = 1000
	}
	rows, err := r.Issued(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func refused(t testing.TB, r *records.Reader, q records.Query) []*records.Refused {
	t.Helper()
	q.Limit = 1000
	rows, err := r.Refused(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func wantReason(t testing.TB, err error, kind fault.Kind, reason string) {
	t.Helper()
	if fault.KindOf(err) != kind || fault.ReasonOf(err) != reason {
		t.Errorf("got %v (kind %d, reason %s), want reason %s", err, fault.KindOf(err), fault.ReasonOf(err), reason)
	}
}

func TestEveryFieldComesBackAsItWasRecorded(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		c.advance(7 * time.Millisecond)
		s := open(t, uri, c)
		i := issuance(c, "älice!example ' \u2028 \U0010FFFF <&>")
		i.Rule = "main only"
		issue(t, s, i)
		bare := issuance(c, "no log")
		bare.CT = nil
		issue(t, s, bare)
		rows := find(t, reader(t, uri), records.Query{})
		want := records.Issued{
			Seq: 1, Time: "2026-05-01T12:00:00.007Z", Serial: hex.EncodeToString(i.Serial), NotAfter: "2026-05-01T12:10:00.007Z", Identity: i.Identity, Issuer: i.OIDCIssuer,
			Subject: i.Subject, Token: hex.EncodeToString(i.Token[:]), Rule: "main only", Key: hex.EncodeToString(i.KeyID[:]), Certificate: hex.EncodeToString(i.Certificate[:]),
			IssuingCert: hex.EncodeToString(i.IssuingCert[:]), CTLog: hex.EncodeToString(i.CT.LogID[:]), CTLeaf: hex.EncodeToString(i.CT.LeafHash[:]), CTIndex: 7, RequestID: "req-1",
		}
		if len(rows) != 2 {
			t.Fatalf("%d rows", len(rows))
		}
		want.Hash = rows[1].Hash
		if *rows[1] != want {
			t.Errorf("got %+v\nwant %+v", *rows[1], want)
		}
		if rows[0].CTLog != "" || rows[0].CTIndex != -1 {
			t.Errorf("without a log: %+v", rows[0])
		}

		print := sum("t")
		s.Refused(&ca.Refusal{Time: c.Now(), Reason: "aud_mismatch", Status: 400, OIDCIssuer: "https://idp.example", Token: &print, RequestID: "r", Detail: "x\x00\xff" + strings.Repeat("y", 600)})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		got := refused(t, reader(t, uri), records.Query{})
		if len(got) != 1 {
			t.Fatalf("%d refusals", len(got))
		}
		wantRefused := records.Refused{Seq: 1, Time: "2026-05-01T12:00:00.007Z", Reason: "aud_mismatch", Status: 400, Issuer: "https://idp.example", Token: hex.EncodeToString(print[:]),
			RequestID: "r", Detail: "x\uFFFD\uFFFD" + strings.Repeat("y", 509), Hash: got[0].Hash}
		if *got[0] != wantRefused {
			t.Errorf("got %+v\nwant %+v", *got[0], wantRefused)
		}
	})
}

func TestSearches(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s := open(t, uri, c)
		var serials []string
		for _, identity := range []string{
			"https://github.com/octo/a", "https://github.com/octo/b", "https://github.com/octopus/a", "alice@example.com", "Alice@example.com",
			"https://github.com/octo/\U0010FFFF\U0010FFFF", "https://github.com/octo0", "alice@example.com",
		} {
			i := issuance(c, identity)
			if strings.HasPrefix(identity, "https://github.com/octo/") {
				i.OIDCIssuer = "https://ci.example"
			}
			issue(t, s, i)
			serials = append(serials, hex.EncodeToString(i.Serial))
			c.advance(time.Minute)
		}
		r := reader(t, uri)
		begin := newClock().Now()
		for _, tt := range []struct {
			name string
			q    records.Query
			want []int64
		}{
			{"everything, newest first", records.Query{}, []int64{8, 7, 6, 5, 4, 3, 2, 1}},
			{"an identity exactly", records.Query{Identity: "alice@example.com"}, []int64{8, 4}},
			{"an identity that is a beginning of others", records.Query{Identity: "https://github.com/octo"}, nil},
			{"a prefix", records.Query{IdentityPrefix: "https://github.com/octo/"}, []int64{6, 2, 1}},
			{"a prefix with the last of all characters", records.Query{IdentityPrefix: "https://github.com/octo/\U0010FFFF"}, []int64{6}},
			{"a prefix of wild cards is text", records.Query{IdentityPrefix: "%"}, nil},
			{"an issuer", records.Query{Issuer: "https://ci.example"}, []int64{6, 2, 1}},
			{"an issuer and an identity", records.Query{Issuer: "https://ci.example", Identity: "alice@example.com"}, nil},
			{"a serial number", records.Query{Serial: serials[2]}, []int64{3}},
			{"since and until", records.Query{Since: begin.Add(2 * time.Minute), Until: begin.Add(4 * time.Minute)}, []int64{4, 3}},
			{"a page", records.Query{Before: 6, Limit: 3}, []int64{5, 4, 3}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				var got []int64
				for _, row := range find(t, r, tt.q) {
					got = append(got, row.Seq)
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("got rows %v, want %v", got, tt.want)
				}
			})
		}
		t.Run("refusals by reason", func(t *testing.T) {
			for _, reason := range []string{"expired", "claim_missing:email", "claim_missing", "claim_missing_not"} {
				s.Refused(refusal(c, reason))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if got := refused(t, r, records.Query{Reason: "claim_missing"}); len(got) != 2 || got[0].Reason != "claim_missing" || got[1].Reason != "claim_missing:email" {
				t.Errorf("got %v", got)
			}
		})
		t.Run("questions that have no answer", func(t *testing.T) {
			for _, limit := range []int{0, -1, records.MaxRows + 1} {
				if _, err := r.Issued(t.Context(), records.Query{Limit: limit}); err == nil {
					t.Errorf("a limit of %d was taken", limit)
				}
			}
			if _, err := r.Refused(t.Context(), records.Query{Limit: 1, Identity: "x"}); err == nil {
				t.Error("a refusal was looked for by identity")
			}
			if _, err := r.Issued(t.Context(), records.Query{Limit: 1, Reason: "x"}); err == nil {
				t.Error("a certificate was looked for by reason")
			}
		})
	})
}

func TestRecordsAreNeitherChangedNorRemoved(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s := open(t, uri, c)
		issue(t, s, issuance(c, "alice"))
		s.Refused(refusal(c, "expired"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		db := raw(t, uri)
		statements := []string{`UPDATE %s SET time = 'x'`, `DELETE FROM %s`}
		if db.Engine() == database.PostgreSQL {
			statements = append(statements, `TRUNCATE %s`)
		}
		for _, table := range []string{"issued", "refused"} {
			for _, statement := range statements {
				if _, err := db.Exec(fmt.Sprintf(statement, table)); err == nil || !strings.Contains(err.Error(), "records are never") {
					t.Errorf("%s on %s: %v", statement, table, err)
				}
			}
		}
		open(t, uri, c) // finds them as they are
		if _, err := reader(t, uri).Verify(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})
}

// tamper does what only somebody can who may change the tables themselves.
func tamper(t *testing.T, uri string, statements ...string) {
	t.Helper()
	db := raw(t, uri)
	drop := []string{`DROP TRIGGER issued_stays`, `DROP TRIGGER issued_remains`}
	if db.Engine() == database.PostgreSQL {
		drop = []string{`DROP TRIGGER issued_stays ON issued`}
	}
	for _, statement := range append(drop, statements...) {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTamperingShows(t *testing.T) {
	for _, tt := range []struct {
		name       string
		statements []string
		want       string
	}{
		{"a changed row", []string{`UPDATE issued SET identity = 'mallory' WHERE seq = 3`}, "row 3 was changed"},
		{"a changed row with a hash of its own", []string{`UPDATE issued SET identity = 'mallory', hash = '` + strings.Repeat("ab", 32) + `' WHERE seq = 3`}, "row 3 was changed"},
		{"a removed row", []string{`DELETE FROM issued WHERE seq = 3`}, "row 3 is missing"},
		{"a removed row, the others moved up", []string{`DELETE FROM issued WHERE seq = 3`, `UPDATE issued SET seq = 3 WHERE seq = 4`, `UPDATE issued SET seq = 4 WHERE seq = 5`, `UPDATE heads SET seq = 4 WHERE name = 'issued'`}, "row 3 was changed"},
		{"the last row removed", []string{`DELETE FROM issued WHERE seq = 5`}, "row 5 is missing"},
		{"the first row removed", []string{`DELETE FROM issued WHERE seq = 1`}, "row 1 is missing"},
		{"a row that the CA did not write", []string{`UPDATE heads SET seq = 4, hash = (SELECT hash FROM issued WHERE seq = 4) WHERE name = 'issued'`}, "1 rows come after the last"},
		{"another head", []string{`UPDATE heads SET hash = (SELECT hash FROM issued WHERE seq = 4) WHERE name = 'issued'`}, "row 5 has hash"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onEach(t, func(t *testing.T, uri string) {
				c := newClock()
				s := open(t, uri, c)
				for n := range 5 {
					issue(t, s, issuance(c, fmt.Sprint("user ", n)))
				}
				r := reader(t, uri)
				heads, err := r.Verify(t.Context(), nil)
				if err != nil || heads["issued"].Seq != 5 || heads["refused"].Seq != 0 {
					t.Fatalf("%v, %v", heads, err)
				}
				tamper(t, uri, tt.statements...)
				if _, err := r.Verify(t.Context(), nil); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			})
		})
	}
}

// TestARewrittenChainShowsOnlyToWhoRemembers is the limit of the chain, and how to move it.
func TestARewrittenChainShowsOnlyToWhoRemembers(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s := open(t, uri, c)
		for n := range 3 {
			issue(t, s, issuance(c, fmt.Sprint("user ", n)))
		}
		r := reader(t, uri)
		kept, err := r.Verify(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		issue(t, s, issuance(c, "user 3"))
		if _, err := r.Verify(t.Context(), map[string][]records.Head{"issued": {kept["issued"]}, "refused": {kept["refused"]}}); err != nil {
			t.Errorf("rows that were added: %v", err)
		}
		tamper(t, uri, `DELETE FROM issued`, `UPDATE heads SET seq = 0, hash = '`+strings.Repeat("0", 64)+`' WHERE name = 'issued'`)
		remember := map[string][]records.Head{"issued": {kept["issued"]}}
		if _, err := r.Verify(t.Context(), remember); err == nil || !strings.Contains(err.Error(), "there were 3") {
			t.Errorf("rows that are gone: %v", err)
		}
		for n := range 4 {
			issue(t, s, issuance(c, fmt.Sprint("user ", n, " of another history")))
		}
		if _, err := r.Verify(t.Context(), nil); err != nil {
			t.Errorf("another history, by itself: %v", err)
		}
		if _, err := r.Verify(t.Context(), remember); err == nil || !strings.Contains(err.Error(), "were changed") {
			t.Errorf("another history: %v", err)
		}
	})
}

// TestTheChainIsCheckedWithPlainTools derives the hashes again as docs/ca.md says.
func TestTheChainIsCheckedWithPlainTools(t *testing.T) {
	for _, tool := range []string{"jq", "sha256sum", "xxd"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is missing: apt-get install jq xxd", tool)
			}
			t.Skipf("skipped: %s is missing; to run this test: apt-get install jq xxd", tool)
		}
	}
	c := newClock()
	uri := "sqlite:" + filepath.Join(t.TempDir(), "records.db")
	s := open(t, uri, c)
	for _, identity := range []string{"alice@example.com", "https://ci.example/a?b=<c>&d"} {
		issue(t, s, issuance(c, identity))
	}
	rows := find(t, reader(t, uri), records.Query{})
	slices.Reverse(rows)
	before := strings.Repeat("0", 64)
	for _, row := range rows {
		line, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", `{ printf %s "$1" | xxd -r -p; printf %s "$(printf %s "$2" | jq -c 'del(.hash)')"; } | sha256sum`, "sh", before, string(line))
		out, err := cmd.Output()
		if got, _, _ := strings.Cut(string(out), " "); err != nil || got != row.Hash {
			t.Errorf("row %d: %v, %s instead of %s", row.Seq, err, got, row.Hash)
		}
		before = row.Hash
	}
}

// TestReplicasShareOneChain has many requests at two stores of one database.
func TestReplicasShareOneChain(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		const each = 100
		c := newClock()
		stores := []*records.Store{open(t, uri, c), open(t, uri, c)}
		var all sync.WaitGroup
		for n := range 2 * each {
			all.Go(func() {
				if err := stores[n%2].Issued(t.Context(), issuance(c, fmt.Sprint("user ", n))); err != nil {
					t.Error(err)
				}
				stores[n%2].Refused(refusal(c, "expired"))
			})
		}
		all.Wait()
		for _, s := range stores {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		heads, err := reader(t, uri).Verify(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if heads["issued"].Seq != 2*each || heads["refused"].Seq != 2*61 {
			t.Errorf("heads %v, want %d issued and for each replica 60 refused and the row that counts", heads, 2*each)
		}
	})
}

func TestASecondCertificateWithOneSerialNumberIsNotRecorded(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s := open(t, uri, c)
		i := issuance(c, "alice")
		if err := s.Issued(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		wantReason(t, s.Issued(t.Context(), i), fault.Unavailable, "record_unavailable")
		issue(t, s, issuance(c, "bob"))
		if heads, err := reader(t, uri).Verify(t.Context(), nil); err != nil || heads["issued"].Seq != 2 {
			t.Errorf("%v, %v", heads, err)
		}
	})
}

// TestASerialNumberThatComesAgainLaterIsRefused: the journal does not ask the database, which is where it shows.
func TestASerialNumberThatComesAgainLaterIsRefused(t *testing.T) {
	uri := "sqlite:" + filepath.Join(t.TempDir(), "records.db")
	c := newClock()
	s := open(t, uri, c)
	i := issuance(c, "alice")
	issue(t, s, i)
	i.Certificate, i.Identity = sum("another"), "mallory"
	issue(t, s, i)
	issue(t, s, issuance(c, "bob"))
	r := reader(t, uri)
	twins := refused(t, r, records.Query{Reason: "serial_number_twice"})
	if len(twins) != 1 || !strings.Contains(twins[0].Detail, "mallory") || !strings.Contains(twins[0].Detail, hex.EncodeToString(i.Serial)) {
		t.Errorf("refused: %+v", twins)
	}
	if heads, err := r.Verify(t.Context(), nil); err != nil || heads["issued"].Seq != 2 {
		t.Errorf("%v, %v", heads, err)
	}
}

// TestWhileTheTablesAreAway: PostgreSQL takes nothing then; with SQLite the journal does, as long as there is room.
func TestWhileTheTablesAreAway(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s := open(t, uri, c)
		if err := s.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		db := raw(t, uri)
		if _, err := db.Exec(`ALTER TABLE heads RENAME TO away`); err != nil {
			t.Fatal(err)
		}
		want := int64(1)
		err := s.Issued(t.Context(), issuance(c, "alice"))
		if db.Engine() == database.SQLite {
			want++
			if err != nil {
				t.Error(err)
			}
		} else {
			wantReason(t, err, fault.Unavailable, "record_unavailable")
		}
		wantReason(t, s.Ready(t.Context()), fault.Unavailable, "record_unavailable")
		s.Refused(refusal(c, "expired"))
		if _, err := db.Exec(`ALTER TABLE away RENAME TO heads`); err != nil {
			t.Fatal(err)
		}
		if err := s.Ready(t.Context()); err != nil {
			t.Errorf("not ready again: %v", err)
		}
		issue(t, s, issuance(c, "bob"))
		c.advance(time.Minute)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		wantReason(t, s.Issued(t.Context(), issuance(c, "carol")), fault.Unavailable, "record_unavailable")
		heads, err := reader(t, uri).Verify(t.Context(), nil)
		if err != nil || heads["issued"].Seq != want || heads["refused"].Seq != 1 {
			t.Errorf("%v, %v: want %d certificates and the refusal", heads, err, want)
		}
	})
}

func TestAServerThatIsKilledLosesNothingThatWasAnswered(t *testing.T) {
	server := services.StartPostgres(t)
	uri := server.Database(t)
	c := newClock()
	s := open(t, uri, c)
	answered := 0
	for range 3 {
		for range 20 {
			issue(t, s, issuance(c, "alice"))
			answered++
		}
		server.Kill()
		wantReason(t, s.Issued(t.Context(), issuance(c, "alice")), fault.Unavailable, "record_unavailable")
		wantReason(t, s.Ready(t.Context()), fault.Unavailable, "record_unavailable")
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(30 * time.Second); s.Ready(t.Context()) != nil; {
			if time.Now().After(end) {
				t.Fatal(s.Ready(t.Context()))
			}
		}
	}
	heads, err := reader(t, uri).Verify(t.Context(), nil)
	if err != nil || heads["issued"].Seq != int64(answered) {
		t.Errorf("%v, %v: %d were answered", heads, err, answered)
	}
}

func TestAServerThatDoesNotSyncIsRefused(t *testing.T) {
	uri := services.StartPostgres(t, "fsync=off").Database(t)
	if _, err := records.Open(t.Context(), records.Options{URI: uri}); err == nil || !strings.Contains(err.Error(), "fsync=off") {
		t.Errorf("got %v", err)
	}
}

// TestAUserWhoMayOnlyAppendIsEnough is how the database itself keeps records from the CA.
func TestAUserWhoMayOnlyAppendIsEnough(t *testing.T) {
	uri := services.Postgres(t)
	c := newClock()
	if err := open(t, uri, c).Close(); err != nil { // makes the tables
		t.Fatal(err)
	}
	user := "appender" + strings.ToLower(rand.Text()[:8])
	db := raw(t, uri)
	for _, statement := range []string{
		`CREATE ROLE ` + user + ` LOGIN PASSWORD 'p'`,
		`GRANT USAGE ON SCHEMA ca TO ` + user,
		`GRANT SELECT, INSERT ON issued, refused TO ` + user,
		`GRANT SELECT, UPDATE ON heads TO ` + user,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON tokens TO ` + user,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // before raw's
		for _, statement := range []string{`DROP OWNED BY ` + user, `DROP ROLE ` + user} {
			if _, err := db.Exec(statement); err != nil {
				t.Error(err)
			}
		}
	})
	at := strings.LastIndex(uri, "@")
	limited := "postgres://" + user + ":p" + uri[at:]
	s := open(t, limited, c)
	release, err := s.Reserve(t.Context(), use(c, "t"))
	if err != nil {
		t.Fatal(err)
	}
	release()
	issue(t, s, issuance(c, "alice"))
	s.Refused(refusal(c, "expired"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	theirs := raw(t, limited)
	for _, statement := range []string{`DROP TRIGGER issued_stays ON issued`, `DELETE FROM issued`, `ALTER TABLE issued DISABLE TRIGGER ALL`, `TRUNCATE refused`} {
		if _, err := theirs.Exec(statement); err == nil {
			t.Errorf("%s was done", statement)
		}
	}
	if heads, err := reader(t, limited).Verify(t.Context(), nil); err != nil || heads["issued"].Seq != 1 || heads["refused"].Seq != 1 {
		t.Errorf("%v, %v", heads, err)
	}
	theirs.Close()
}

// TestWhoLeavesTheQueueIsNotRecorded holds the lock that commits take.
func TestWhoLeavesTheQueueIsNotRecorded(t *testing.T) {
	uri := services.Postgres(t)
	c := newClock()
	s := open(t, uri, c)
	tx, err := raw(t, uri).BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`SELECT seq FROM heads FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	first := make(chan error)
	go func() { first <- s.Issued(context.Background(), issuance(c, "first")) }()
	db := raw(t, uri)
	for waits := 0; waits == 0; { // until the first one's commit waits for the lock
		if err := db.QueryRow(`SELECT COUNT(*) FROM pg_locks WHERE NOT granted`).Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error)
	go func() { second <- s.Issued(ctx, issuance(c, "second")) }()
	cancel()
	if err := <-second; err != context.Canceled {
		t.Errorf("who left got %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil {
		t.Errorf("who stayed got %v", err)
	}
	issue(t, s, issuance(c, "third"))
	if rows := find(t, reader(t, uri), records.Query{}); len(rows) != 2 || rows[0].Identity != "third" || rows[1].Identity != "first" {
		t.Errorf("recorded: %d rows", len(rows))
	}
}

func TestAFloodOfRefusalsIsCounted(t *testing.T) {
	onEach(t, func(t *testing.T, uri string) {
		c := newClock()
		s := open(t, uri, c)
		for range 1000 {
			s.Refused(refusal(c, "malformed_token"))
		}
		for n := range 1000 {
			s.Refused(refusal(c, fmt.Sprint("claim_missing:c", n))) // names that a client makes up
		}
		for n := range 200 {
			s.Refused(refusal(c, fmt.Sprint("reason ", n))) // more reasons than there are
		}
		s.Refused(refusal(c, "policy_denied"))
		c.advance(time.Minute)
		s.Refused(refusal(c, "malformed_token"))
		s.Refused(refusal(c, "policy_denied"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		r := reader(t, uri)
		rows, left := map[string]int{}, map[string]int64{}
		for _, row := range refused(t, r, records.Query{}) {
			reason, _, _ := strings.Cut(row.Reason, ":")
			if row.LeftOut == 0 {
				rows[reason]++
			}
			left[reason] += row.LeftOut
		}
		if rows["malformed_token"] != 61 || left["malformed_token"] != 940 || rows["claim_missing"] != 60 || left["claim_missing"] != 940 {
			t.Errorf("rows %v, left out %v", rows["malformed_token"], left)
		}
		if rows["policy_denied"] == 0 {
			t.Error("the flood left no room for a refusal of another kind")
		}
		total := int64(0)
		for _, n := range left {
			total += n
		}
		for _, n := range rows {
			total += int64(n)
		}
		if total != 2203 {
			t.Errorf("%d refusals are recorded or counted, 2203 were made", total)
		}
	})
}

func TestTheRecordsAreReadByWhoMayNotWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	if _, err := records.OpenReader(t.Context(), "sqlite:"+path, ""); err == nil || !strings.Contains(err.Error(), "no records") {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("reading made a file")
	}
	c := newClock()
	s := open(t, "sqlite:"+path, c)
	issue(t, s, issuance(c, "alice"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy's.db")
	if files, err := records.Snapshot(t.Context(), path, copied); err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	issue(t, open(t, "sqlite:"+path, c), issuance(c, "bob"))
	if rows := find(t, reader(t, "sqlite:"+copied), records.Query{}); len(rows) != 1 || rows[0].Identity != "alice" {
		t.Errorf("the copy has %d rows", len(rows))
	}
	if _, err := records.OpenReader(t.Context(), services.Postgres(t), ""); err == nil || !strings.Contains(err.Error(), "no records") {
		t.Errorf("an empty database: %v", err)
	}
}
