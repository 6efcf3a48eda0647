package services

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // to wait for the server and to create databases
)

// MariaDBServer is a MariaDB server with its default durability: every commit is flushed to disk. It
// listens on 127.0.0.1 alone.
type MariaDBServer struct {
	Port int

	dir       string
	settings  []string
	who       *syscall.Credential
	databases atomic.Int64

	mu      sync.Mutex // guards process
	process *process
}

const mariadbPassword = "s3cret@of/tests"

// sharedMariaDB is the server of all tests of this process that do not kill theirs.
var sharedMariaDB = sync.OnceValues(func() (*MariaDBServer, error) { return newMariaDB(nil) })

// MariaDB returns the DSN (github.com/go-sql-driver/mysql) of a fresh database on a server that all
// tests of the process share. Without MariaDB the test is skipped, or fails when CI=true.
func MariaDB(t testing.TB) string {
	t.Helper()
	needMariaDB(t)
	s, err := sharedMariaDB()
	if err != nil {
		t.Fatal(err)
	}
	return s.Database(t)
}

// StartMariaDB starts a server of t's own, which t may kill; it ends with t. Settings are options
// of mariadbd such as "--max-connections=10".
func StartMariaDB(t testing.TB, settings ...string) *MariaDBServer {
	t.Helper()
	needMariaDB(t)
	s, err := newMariaDB(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(s.dir)
	})
	return s
}

func needMariaDB(t testing.TB) {
	t.Helper()
	for _, program := range []string{"mariadbd", "mariadb-install-db"} {
		if mariadbProgram(program) == "" {
			missing(t, "MariaDB", "apt-get install mariadb-server")
		}
	}
}

// mariadbProgram finds a program that Debian keeps in sbin, which a user's PATH may lack.
func mariadbProgram(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		return path
	}
	return ""
}

func newMariaDB(settings []string) (*MariaDBServer, error) {
	who, err := unprivileged("mysql", "nobody")
	if err != nil {
		return nil, err
	}
	dir, err := newDir("mariadb", who)
	if err != nil {
		return nil, err
	}
	s := &MariaDBServer{dir: dir, settings: settings, who: who}
	cmd := exec.Command(mariadbProgram("mariadb-install-db"), "--no-defaults", "--datadir="+filepath.Join(dir, "data"),
		"--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("preparing MariaDB: %w: %s", err, out)
	}
	init := filepath.Join(dir, "init.sql")
	statements := fmt.Sprintf("CREATE USER IF NOT EXISTS attestry@'127.0.0.1' IDENTIFIED BY '%s';\nGRANT ALL ON *.* TO attestry@'127.0.0.1';\n", mariadbPassword)
	if err := os.WriteFile(init, []byte(statements), 0o644); err != nil {
		return nil, err
	}
	for range 5 { // somebody else may take the port in between
		if s.Port, err = freePort(); err != nil {
			return nil, err
		}
		if err = s.Start(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// Start runs the server on its port, after Kill, and returns when it takes connections.
func (s *MariaDBServer) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cmd := exec.Command(mariadbProgram("mariadbd"), append([]string{"--no-defaults", "--datadir=" + filepath.Join(s.dir, "data"),
		"--bind-address=127.0.0.1", fmt.Sprintf("--port=%d", s.Port), "--socket=" + filepath.Join(s.dir, "socket"),
		"--pid-file=" + filepath.Join(s.dir, "pid"), "--init-file=" + filepath.Join(s.dir, "init.sql"),
		"--skip-name-resolve", "--max-connections=500", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=64M"}, s.settings...)...)
	cmd.Dir = s.dir
	log := filepath.Join(s.dir, "log")
	p, err := start(cmd, s.who, log)
	if err != nil {
		return fmt.Errorf("starting MariaDB: %w", err)
	}
	db, err := sql.Open("mysql", s.dsn(""))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := p.await(func(ctx context.Context) bool { return db.PingContext(ctx) == nil }, "MariaDB", log); err != nil {
		return err
	}
	s.process = p
	return nil
}

// Kill ends the server with SIGKILL. What was written stays written.
func (s *MariaDBServer) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && !s.process.ended() {
		s.process.signal(syscall.SIGKILL)
	}
}

// Database returns the DSN of a new database on the server.
func (s *MariaDBServer) Database(t testing.TB) string {
	t.Helper()
	db, err := sql.Open("mysql", s.dsn(""))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return s.dsn(name)
}

// Address is host:port of the server, as its DSNs have it.
func (s *MariaDBServer) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.Port) }

func (s *MariaDBServer) dsn(database string) string {
	return fmt.Sprintf("attestry:%s@tcp(%s)/%s", mariadbPassword, s.Address(), database)
}

// await returns when ready holds. Otherwise it ends p and says what p wrote last into the file at log.
func (p *process) await(ready func(context.Context) bool, name, log string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for !ready(ctx) {
		select {
		case <-poll.C:
			continue
		case <-p.done:
		case <-ctx.Done():
			p.signal(syscall.SIGKILL)
		}
		out, _ := os.ReadFile(log)
		return fmt.Errorf("%s did not start: %v: %s", name, p.err, out[max(0, len(out)-2000):])
	}
	return nil
}
