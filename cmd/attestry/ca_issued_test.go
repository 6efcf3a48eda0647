package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/records"
	"github.com/attestry/attestry/pkg/stack"
)

func openRecords(t *testing.T, dir string) *records.Store {
	t.Helper()
	store, err := records.Open(t.Context(), records.Options{URI: stack.RecordsURI(dir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// issuedRecords makes an instance's records of three certificates and a refusal, each an hour after the one before.
func issuedRecords(t *testing.T, dir string) *records.Store {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "ca"), 0o700); err != nil {
		t.Fatal(err)
	}
	store := openRecords(t, dir)
	when := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	for n, identity := range []string{"alice@example.com", "https://ci.example/octo/a\x1b[2J", "https://ci.example/octo/b"} {
		if err := store.Issued(t.Context(), &ca.Issuance{
			Time: when.Add(time.Duration(n) * time.Hour), Serial: []byte{0x0a, byte(n)}, NotAfter: when, Identity: identity, OIDCIssuer: "https://idp.example",
			CT: &ca.CTLeaf{LogID: sha256.Sum256(nil), Index: int64(n) - 1},
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil { // all are in the database
		t.Fatal(err)
	}
	store = openRecords(t, dir)
	store.Refused(&ca.Refusal{Time: when, Reason: "expired", Status: 400, Detail: "the token expired"})
	return store
}

func TestIssuedAnswersFromTheRecords(t *testing.T) {
	dir := t.TempDir()
	store := issuedRecords(t, dir)
	config := filepath.Join(dir, "ca.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "key: file:k\nissuer-file: i\ndatabase: %s\n", stack.RecordsURI(dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	bare := filepath.Join(dir, "bare.yaml")
	if err := os.WriteFile(bare, []byte("key: file:k\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		name        string
		args        []string
		rows        string // serial numbers
		complaint   string // on standard error, or the error
		otherSource bool
	}
	issued := func(t *testing.T, args ...string) (stdout, stderr string, err error) {
		var out, errOut bytes.Buffer
		err = run(t.Context(), append([]string{"ca", "issued"}, args...), &out, &errOut)
		return out.String(), errOut.String(), err
	}
	for _, tt := range []answer{
		{name: "all, newest first", rows: "0a02 0a01 0a00"},
		{name: "an identity", args: []string{"--identity", "alice@example.com"}, rows: "0a00"},
		{name: "a prefix", args: []string{"--identity-prefix", "https://ci.example/octo/"}, rows: "0a02 0a01"},
		{name: "a serial number as openssl prints it", args: []string{"--serial", "0A:01"}, rows: "0a01"},
		{name: "a serial number without its zero", args: []string{"--serial", "A01"}, rows: "0a01"},
		{name: "since", args: []string{"--since", "2026-05-01T11:00:00Z"}, rows: "0a02 0a01"},
		{name: "a day, until", args: []string{"--since", "2026-05-01", "--until", "2026-05-01T11:00:00+00:00"}, rows: "0a00"},
		{name: "how long ago", args: []string{"--since", "1s"}},
		{name: "a page", args: []string{"--limit", "2"}, rows: "0a02 0a01", complaint: "--before 2"},
		{name: "the next page", args: []string{"--limit", "2", "--before", "2"}, rows: "0a00"},
		{name: "an issuer", args: []string{"--issuer", "https://other.example"}},
		{name: "by configuration", args: []string{"--config", config}, rows: "0a02 0a01 0a00", otherSource: true},
		{name: "by database", args: []string{"--database", stack.RecordsURI(dir)}, rows: "0a02 0a01 0a00", otherSource: true},
		{name: "a configuration without records", args: []string{"--config", bare}, complaint: "keeps no records", otherSource: true},
		{name: "an instance that has none", args: []string{"--dir", t.TempDir()}, complaint: "no records", otherSource: true},
		{name: "a time that is none", args: []string{"--since", "yesterday"}, complaint: "is not a time"},
		{name: "too much", args: []string{"--limit", "10001"}, complaint: "limit"},
		{name: "a reason of certificates", args: []string{"--reason", "expired"}, complaint: "--refused"},
		{name: "an identity of refusals", args: []string{"--refused", "--identity", "a"}, complaint: "none of the others can be"},
		{name: "a head without --verify", args: []string{"--head", "issued:0:" + strings.Repeat("0", 64)}, complaint: "--verify"},
		{name: "a head that is none", args: []string{"--verify", "--head", "issued:0"}, complaint: "is not issued:ROW:HASH"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append(tt.args, "--output", "json")
			if !tt.otherSource {
				args = append(args, "--dir", dir)
			}
			stdout, stderr, err := issued(t, args...)
			if err != nil {
				stderr += err.Error()
			}
			var got []string
			for line := range strings.Lines(stdout) {
				var row records.Issued
				if err := json.Unmarshal([]byte(line), &row); err != nil {
					t.Fatal(err)
				}
				got = append(got, row.Serial)
			}
			if strings.Join(got, " ") != tt.rows || (tt.complaint == "") != (stderr == "") || !strings.Contains(stderr, tt.complaint) {
				t.Errorf("rows %v, %q", got, stderr)
			}
		})
	}
	t.Run("text does not move the cursor", func(t *testing.T) {
		stdout, _, err := issued(t, "--dir", dir)
		if err != nil || strings.Contains(stdout, "\x1b") || !strings.Contains(stdout, `"https://ci.example/octo/a\x1b[2J"`) || !strings.Contains(stdout, "alice@example.com") {
			t.Errorf("%v\n%s", err, stdout)
		}
	})
	t.Run("verify, and remember", func(t *testing.T) {
		first, _, err := issued(t, "--dir", dir, "--verify")
		if err != nil || !strings.HasPrefix(first, "issued:3:") {
			t.Fatalf("%v\n%s", err, first)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		head := strings.Fields(first)[0]
		if _, _, err := issued(t, "--dir", dir, "--verify", "--head", head); err != nil {
			t.Error(err)
		}
		if _, _, err := issued(t, "--dir", dir, "--verify", "--head", head[:len(head)-2]+"zz"); err == nil {
			t.Error("another head was accepted")
		}
	})
	t.Run("refusals", func(t *testing.T) {
		stdout, _, err := issued(t, "--dir", dir, "--refused", "--reason", "expired")
		if err != nil || !strings.Contains(stdout, "the token expired") {
			t.Errorf("%v\n%s", err, stdout)
		}
		if stdout, _, err = issued(t, "--dir", dir, "--refused", "--reason", "replayed", "--output", "json"); err != nil || stdout != "" {
			t.Errorf("%v\n%s", err, stdout)
		}
	})
}

// TestIssuedShowsWhatIsOnlyInTheJournal has a database that takes nothing.
func TestIssuedShowsWhatIsOnlyInTheJournal(t *testing.T) {
	dir := t.TempDir()
	store := issuedRecords(t, dir)
	db, err := database.Open(t.Context(), stack.RecordsURI(dir), database.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`CREATE TRIGGER away BEFORE UPDATE ON heads BEGIN SELECT RAISE(ABORT, 'away'); END`); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := store.Issued(t.Context(), &ca.Issuance{Time: now, Serial: []byte{0x0b}, NotAfter: now, Identity: "dave@example.com"}); err != nil {
		t.Fatal(err)
	}
	issued := func(args ...string) (string, string) {
		t.Helper()
		var out, errOut bytes.Buffer
		if err := run(t.Context(), append([]string{"ca", "issued", "--dir", dir}, args...), &out, &errOut); err != nil {
			t.Fatal(err)
		}
		return out.String(), errOut.String()
	}
	stdout, stderr := issued("--limit", "1")
	if lines := strings.Split(stdout, "\n"); !strings.HasPrefix(lines[1], "pending ") || !strings.Contains(lines[1], "dave@example.com") || !strings.Contains(stderr, "no numbers yet") {
		t.Errorf("%s\n%s", stdout, stderr)
	}
	if stdout, stderr := issued("--verify"); !strings.HasPrefix(stdout, "issued:3:") || !strings.HasPrefix(stderr, "1 certificates more are in the journal") {
		t.Errorf("%s\n%s", stdout, stderr)
	}
}
