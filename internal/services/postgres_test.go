package services

import (
	"database/sql"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func query(t *testing.T, uri, statement string) (string, error) {
	t.Helper()
	db, err := sql.Open("postgres", uri)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var answer string
	err = db.QueryRowContext(t.Context(), statement).Scan(&answer)
	return answer, err
}

func TestDatabasesAreFreshAndSafe(t *testing.T) {
	one, two := Postgres(t), Postgres(t)
	if one == two {
		t.Fatal("two tests share a database")
	}
	if _, err := query(t, one, `CREATE TABLE kept (x INT); SELECT 'made'`); err != nil {
		t.Fatal(err)
	}
	if answer, err := query(t, two, `SELECT count(*) FROM pg_tables WHERE tablename = 'kept'`); err != nil || answer != "0" {
		t.Errorf("another database has the table: %s, %v", answer, err)
	}
	for setting, want := range map[string]string{"fsync": "on", "synchronous_commit": "on", "listen_addresses": "127.0.0.1"} {
		if answer, err := query(t, one, `SHOW `+setting); err != nil || answer != want {
			t.Errorf("%s is %s, %v", setting, answer, err)
		}
	}
}

func TestAKilledServerComesBackWithWhatWasCommitted(t *testing.T) {
	s := StartPostgres(t, "max_connections=20")
	uri := s.Database(t)
	if answer, err := query(t, uri, `SHOW max_connections`); err != nil || answer != "20" {
		t.Errorf("max_connections is %s, %v", answer, err)
	}
	if _, err := query(t, uri, `CREATE TABLE kept AS SELECT 42 AS x; SELECT 'made'`); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(){"killed": s.Kill, "stopped": s.Stop} {
		end()
		if conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port(s))); err == nil {
			conn.Close()
			t.Errorf("%s, the server still listens", name)
		}
		if err := s.Start(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if answer, err := query(t, uri, `SELECT x FROM kept`); err != nil || answer != "42" {
			t.Errorf("%s: %s, %v", name, answer, err)
		}
	}
	shop, err := workshop()
	if err != nil {
		t.Fatal(err)
	}
	if marks, _ := filepath.Glob(filepath.Join(shop.dir, "pids", "*")); len(marks) == 0 {
		t.Error("nobody would clear the server away")
	}
}

// TestServersEndWithTheirProcess runs a test process that kills itself and looks what it left.
func TestServersEndWithTheirProcess(t *testing.T) {
	if os.Getenv("ATTESTRY_TEST_DIE") != "" {
		s := StartPostgres(t)
		shop, err := workshop()
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(shop.dir + " " + port(s) + "\n")
		die()
	}
	needPostgres(t)
	root, address := runDying(t)
	waitFor(t, "the files of the dead process are gone", func() bool {
		_, err := os.Stat(root)
		return os.IsNotExist(err)
	})
	waitFor(t, "its server is gone", func() bool {
		conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", address))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
}
