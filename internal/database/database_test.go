package database_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/services"
)

func open(t testing.TB, uri string, o database.Options) *database.DB {
	t.Helper()
	if o.Schema == "" {
		o.Schema = "test"
	}
	db, err := database.Open(t.Context(), uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// onEach runs f with a fresh database of each engine.
func onEach(t *testing.T, f func(t *testing.T, db *database.DB)) {
	t.Run("sqlite", func(t *testing.T) {
		f(t, open(t, "sqlite:"+filepath.Join(t.TempDir(), "a ?#%.db"), database.Options{}))
	})
	t.Run("postgres", func(t *testing.T) { f(t, open(t, services.Postgres(t), database.Options{})) })
}

const createThings = `CREATE TABLE IF NOT EXISTS things (id BIGINT PRIMARY KEY, body BYTEA)`

func count(t *testing.T, db *database.DB) int {
	t.Helper()
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM things`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOneTextOfSQLServesBothEngines(t *testing.T) {
	onEach(t, func(t *testing.T, db *database.DB) {
		ctx := t.Context()
		if err := db.Create(ctx, createThings); err != nil {
			t.Fatal(err)
		}
		if _, err := db.ExecContext(ctx, `INSERT INTO things (id, body) VALUES ($1, $2)`, 1, []byte{0, 255}); err != nil {
			t.Fatal(err)
		}
		var body []byte
		if err := db.QueryRowContext(ctx, `SELECT body FROM things WHERE id = $1`, 1).Scan(&body); err != nil || string(body) != "\x00\xff" {
			t.Errorf("body = %x, %v", body, err)
		}
		_, err := db.ExecContext(ctx, `INSERT INTO things (id) VALUES ($1)`, 1)
		if !database.Unique(err) || database.Unsure(err) || database.Retryable(err) {
			t.Errorf("a second row with the key: %v", err)
		}
		err = db.Transact(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, `INSERT INTO things (id) VALUES (2)`); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `INSERT INTO things (id) VALUES (1)`)
			return err
		})
		if !database.Unique(err) {
			t.Errorf("a second row with the key in a transaction: %v", err)
		}
		stop := errors.New("stop")
		if err := db.Transact(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, `INSERT INTO things (id) VALUES (3)`); err != nil {
				return err
			}
			return stop
		}); err != stop {
			t.Errorf("the caller's error came back as %v", err)
		}
		if n := count(t, db); n != 1 {
			t.Errorf("%d rows after two transactions that failed, want 1", n)
		}
	})
}

func TestTablesAreMadeByManyAtOnce(t *testing.T) {
	uri := services.Postgres(t)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			db, err := database.Open(t.Context(), uri, database.Options{Schema: "log_1"})
			if err != nil {
				t.Error(err)
				return
			}
			defer db.Close()
			if err := db.Create(t.Context(), createThings, `CREATE INDEX IF NOT EXISTS bodies ON things (body)`); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	one, other := open(t, uri, database.Options{Schema: "log_1"}), open(t, uri, database.Options{Schema: "log_2"})
	if n := count(t, one); n != 0 {
		t.Errorf("%d rows", n)
	}
	if _, err := other.Exec(`SELECT 1 FROM things`); err == nil {
		t.Error("a log sees the tables of another")
	}
}

func TestALosingWriterMayTryAgain(t *testing.T) {
	db := open(t, services.Postgres(t), database.Options{})
	ctx := t.Context()
	if err := db.Create(ctx, createThings, `INSERT INTO things (id) VALUES (1), (2)`); err != nil {
		t.Fatal(err)
	}
	begin := func() *sql.Tx {
		tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelSerializable})
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	a, b := begin(), begin()
	update := func(tx *sql.Tx, id int) error {
		_, err := tx.ExecContext(ctx, `UPDATE things SET body = '' WHERE id = $1`, id)
		return err
	}
	if err := errors.Join(update(a, 1), update(b, 2)); err != nil {
		t.Fatal(err)
	}
	crossed := make(chan error, 1)
	go func() { crossed <- update(a, 2) }()
	errs := []error{update(b, 1), <-crossed} // each waits for the other: the server ends one
	retryable := 0
	for _, err := range errs {
		if database.Retryable(err) {
			retryable++
		}
	}
	a.Rollback()
	b.Rollback()
	if retryable == 0 {
		t.Errorf("no deadlock that may be tried again: %v", errs)
	}
}

func TestALostServer(t *testing.T) {
	server := services.StartPostgres(t)
	db := open(t, server.Database(t), database.Options{})
	ctx := t.Context()
	if err := db.Create(ctx, createThings); err != nil {
		t.Fatal(err)
	}
	restart := func() {
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
	}

	err := db.Transact(ctx, func(tx *sql.Tx) error {
		server.Kill()
		_, err := tx.ExecContext(ctx, `INSERT INTO things (id) VALUES (1)`)
		return err
	})
	if !database.Retryable(err) || database.Unsure(err) {
		t.Errorf("lost before the commit: retryable %t, unsure %t: %v", database.Retryable(err), database.Unsure(err), err)
	}
	if err := db.Transact(ctx, func(*sql.Tx) error { return nil }); !database.Retryable(err) {
		t.Errorf("a server that is not there: %v", err)
	}
	restart()

	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO things (id) VALUES (2)`); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if err := database.Commit(tx); !database.Unsure(err) || database.Retryable(err) {
		t.Errorf("lost at the commit: %v", err)
	}
	restart()
	if n := count(t, db); n != 0 {
		t.Errorf("%d rows, want none", n)
	}
}

// TestAStatementIsNeverSentTwice lets a server do its work and cuts the connection before the
// answer: database/sql would send the statement again.
func TestAStatementIsNeverSentTwice(t *testing.T) {
	uri, line := services.Through(t, services.Postgres(t))
	db := open(t, uri, database.Options{})
	ctx := t.Context()
	if err := db.Create(ctx, `CREATE TABLE counts (n BIGINT)`, `INSERT INTO counts VALUES (0)`); err != nil {
		t.Fatal(err)
	}
	line.CutAfter(0)
	_, err := db.ExecContext(ctx, `UPDATE counts SET n = n + 1`)
	line.Mend()
	if !database.Unsure(err) {
		t.Errorf("cut before the answer: %v", err)
	}
	var n int
	if err := db.QueryRow(`SELECT n FROM counts`).Scan(&n); err != nil || n != 1 {
		t.Errorf("the statement ran %d times, %v", n, err)
	}
}

func TestASilentServerCountsAsLost(t *testing.T) {
	t.Parallel()
	uri, line := services.Through(t, services.Postgres(t))
	db := open(t, uri, database.Options{StatementTimeout: time.Millisecond, ConnectTimeout: time.Second})
	line.Hold(true)
	defer line.Hold(false)
	start := time.Now()
	err := db.Transact(t.Context(), func(*sql.Tx) error { return nil })
	if !database.Retryable(err) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 40*time.Second {
		t.Errorf("noticed after %v", took)
	}
}

func TestThePasswordStaysSecret(t *testing.T) {
	server := services.StartPostgres(t)
	with := server.Database(t)
	u, err := url.Parse(with)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(u.User.Username())
	without := u.String()
	dir := t.TempDir()
	file := func(content string) string {
		path := filepath.Join(dir, "password")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	admin := open(t, with, database.Options{})
	if strings.Contains(fmt.Sprintf("%v %+v %s", admin, admin, admin), server.Password()) || !strings.Contains(admin.String(), "127.0.0.1") {
		t.Errorf("the database calls itself %s", admin)
	}

	right := file(server.Password() + "\n")
	db := open(t, without, database.Options{PasswordFile: right, MaxConns: 1})
	if _, err := db.Exec(`ALTER USER attestry PASSWORD 'rotated'`); err != nil {
		t.Fatal(err)
	}
	file("rotated")
	if _, err := admin.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first one finds the broken connection
		_, err = db.Exec(`SELECT 1`)
	}
	if err != nil {
		t.Errorf("with the rotated password: %v", err)
	}

	const secret = "hunter2-of-the-test"
	for name, o := range map[string]struct {
		uri  string
		file string
	}{
		"wrong":              {strings.Replace(without, "attestry@", "attestry:"+secret+"@", 1), ""},
		"wrong, in a file":   {without, file(secret)},
		"in a malformed URI": {"postgres://attestry:" + secret + "%zz@127.0.0.1/x", ""},
		"with a bad port":    {"postgres://attestry:" + secret + "@127.0.0.1:x/x", ""},
		"as a port":          {"postgres://attestry:" + secret + "/x@127.0.0.1/x", ""},
		"as a parameter":     {without + "&password=" + secret, ""},
		"given twice":        {strings.Replace(without, "attestry@", "attestry:"+secret+"@", 1), filepath.Join(dir, "password")},
		"and a bad sslmode":  {strings.Replace(without, "attestry@", "attestry:"+secret+"@", 1) + "x", ""},
		"of another scheme":  {"mysql://attestry:" + secret + "@127.0.0.1/x", ""},
	} {
		_, err := database.Open(t.Context(), o.uri, database.Options{Schema: "test", PasswordFile: o.file})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("a password that is %s: %v", name, err)
		}
	}
}

func TestTLSIsVerified(t *testing.T) {
	server := services.StartPostgres(t, "listen_addresses=127.0.0.1,127.0.0.2")
	plain := server.Database(t)
	base, _, _ := strings.Cut(plain, "?")
	named := strings.Replace(base, "127.0.0.1", "localhost", 1)
	for _, tt := range []struct {
		name, uri string
		tls       bool
		err       string
	}{
		{"a known certificate", named + "?sslrootcert=" + url.QueryEscape(server.RootCert), true, ""},
		{"an unknown certificate", named, false, "certificate"},
		{"another name", strings.Replace(base, "127.0.0.1", "127.0.0.2", 1) + "?sslrootcert=" + url.QueryEscape(server.RootCert), false, "127.0.0.2"},
		{"switched off by name", plain, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			db, err := database.Open(t.Context(), tt.uri, database.Options{Schema: "test"})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var tls bool
			if err := db.QueryRow(`SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`).Scan(&tls); err != nil || tls != tt.tls {
				t.Errorf("TLS %t, %v", tls, err)
			}
		})
	}
}

func TestMistakesInTheURIAreNamed(t *testing.T) {
	for _, tt := range []struct {
		name, uri, schema, want string
	}{
		{"no scheme", "/var/lib/x.db", "log", "sqlite:PATH"},
		{"no file", "sqlite:", "log", "names no file"},
		{"no user", "postgres://localhost/x", "log", "names a user"},
		{"no database", "postgres://u@localhost", "log", "names a user"},
		{"no host", "postgres://u@/x", "log", "names a user"},
		{"a search path", "postgres://u@localhost/x?search_path=public", "log", "search_path"},
		{"a parameter twice", "postgres://u@localhost/x?sslmode=disable&sslmode=require", "log", "more than once"},
		{"an unknown sslmode", "postgres://u@localhost/x?sslmode=on", "log", "sslmode"},
		{"no schema", "postgres://u@localhost/x", "", "schema"},
		{"the schema of all", "postgres://u@localhost/x", "public", "schema"},
		{"a schema with quotes", "postgres://u@localhost/x", `a"; DROP TABLE x; --`, "schema"},
		{"a schema that is too long", "postgres://u@localhost/x", strings.Repeat("a", 64), "schema"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := database.Open(t.Context(), tt.uri, database.Options{Schema: tt.schema})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("an environment that leads elsewhere", func(t *testing.T) {
		t.Setenv("PGHOSTADDR", "192.0.2.1")
		_, err := database.Open(t.Context(), "postgres://u@localhost/x", database.Options{Schema: "log"})
		if err == nil || !strings.Contains(err.Error(), "PGHOSTADDR") {
			t.Errorf("got %v", err)
		}
	})
}

func TestNotificationsSurviveALostServer(t *testing.T) {
	server := services.StartPostgres(t)
	db := open(t, server.Database(t), database.Options{Schema: "one"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	payloads, err := db.Listen(ctx, "News")
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		select {
		case got, ok := <-payloads:
			if !ok || got != want {
				t.Fatalf("got %q, %t, want %q", got, ok, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%q did not come", want)
		}
	}
	notify := func(payload string) {
		t.Helper()
		var err error
		for range 20 { // a broken connection for each in the pool
			if _, err = db.Exec(`SELECT pg_notify('News', $1)`, payload); err == nil {
				return
			}
		}
		t.Fatal(err)
	}
	notify("first")
	expect("first")
	server.Kill()
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	expect("") // what may have been missed
	notify("second")
	expect("second")
	cancel()
	if _, ok := <-payloads; ok {
		t.Error("a payload after the end")
	}
	server.Stop()
	if _, err := db.Listen(t.Context(), "News"); err == nil {
		t.Error("listening to a server that is not there")
	}
	if _, err := open(t, "sqlite:"+filepath.Join(t.TempDir(), "x"), database.Options{}).Listen(t.Context(), "News"); err == nil {
		t.Error("SQLite notifies")
	}
}

func TestADamagedFileIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("garbage ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := database.Open(t.Context(), "sqlite:"+path, database.Options{}); !database.Damaged(err) {
		t.Errorf("got %v", err)
	}
}

func TestWhoOnlyReadsWritesNothing(t *testing.T) {
	onEach(t, func(t *testing.T, db *database.DB) {
		if err := db.Create(t.Context(), createThings, `INSERT INTO things (id) VALUES (1)`); err != nil {
			t.Fatal(err)
		}
		uri := db.String()
		if db.Engine() == database.PostgreSQL {
			uri = services.Postgres(t)
			if _, err := database.Open(t.Context(), uri, database.Options{Schema: "missing", ReadOnly: true}); err != nil {
				t.Fatal(err)
			}
			db = open(t, uri, database.Options{})
			if err := db.Create(t.Context(), createThings, `INSERT INTO things (id) VALUES (1)`); err != nil {
				t.Fatal(err)
			}
		}
		only := open(t, uri, database.Options{ReadOnly: true})
		if n := count(t, only); n != 1 {
			t.Errorf("%d rows", n)
		}
		if _, err := only.Exec(`INSERT INTO things (id) VALUES (2)`); err == nil {
			t.Error("a row was written")
		}
	})
	path := filepath.Join(t.TempDir(), "missing.db")
	if _, err := database.Open(t.Context(), "sqlite:"+path, database.Options{ReadOnly: true}); err == nil {
		t.Error("a file that is missing was opened for reading")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file that was missing was made by reading")
	}
}
