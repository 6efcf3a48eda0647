package services

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq" // to wait for the server and to create databases
)

const (
	postgresUser     = "attestry"
	postgresPassword = "s3cret-of/tests"
	startTimeout     = 60 * time.Second
)

// PostgresServer is a PostgreSQL server with fsync on, password authentication and TLS beside
// plain connections. It listens on 127.0.0.1 alone.
type PostgresServer struct {
	Port     int
	RootCert string // path of the PEM certificate that the server shows; for the name "localhost"

	bin       string
	dir       string
	settings  []string
	who       *syscall.Credential
	databases atomic.Int64

	mu      sync.Mutex // guards process
	process *process
}

// shared is the server of all tests of this process that do not kill theirs.
var shared = sync.OnceValues(func() (*PostgresServer, error) { return newPostgres(nil) })

// Postgres returns the URI of a fresh database on a server that all tests of the process share:
// postgres://attestry:PASSWORD@127.0.0.1:PORT/NAME?sslmode=disable. Without PostgreSQL the test
// is skipped, or fails when CI=true.
func Postgres(t testing.TB) string {
	t.Helper()
	needPostgres(t)
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return s.Database(t)
}

// StartPostgres starts a server of t's own, which t may kill; it ends with t. Settings are lines
// of postgresql.conf such as "max_connections=10".
func StartPostgres(t testing.TB, settings ...string) *PostgresServer {
	t.Helper()
	needPostgres(t)
	s, err := newPostgres(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(s.dir)
	})
	return s
}

func needPostgres(t testing.TB) {
	t.Helper()
	if postgresBin() == "" {
		missing(t, "PostgreSQL", "apt-get install postgresql")
	}
}

// postgresBin returns the directory of initdb and postgres: that of PATH, else Debian's newest.
func postgresBin() string {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path)
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return len(a) - len(b) + strings.Compare(a, b) }))
}

func newPostgres(settings []string) (*PostgresServer, error) {
	who, err := unprivileged("postgres", "nobody")
	if err != nil {
		return nil, err
	}
	dir, err := newDir("postgres", who)
	if err != nil {
		return nil, err
	}
	s := &PostgresServer{bin: postgresBin(), dir: dir, settings: settings, who: who, RootCert: filepath.Join(dir, "server.crt")}
	if err := s.init(); err != nil {
		return nil, fmt.Errorf("preparing PostgreSQL: %w", err)
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

func (s *PostgresServer) init() error {
	password := filepath.Join(s.dir, "password")
	if err := s.write(password, []byte(postgresPassword), 0o600); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(s.bin, "initdb"), "-D", filepath.Join(s.dir, "data"), "-U", postgresUser, "-E", "UTF8", "--locale=C",
		"--auth=scram-sha-256", "--pwfile="+password, "--no-sync", "--no-instructions")
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.who}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	cert, key, err := selfSigned()
	if err != nil {
		return err
	}
	if err := s.write(s.RootCert, cert, 0o644); err != nil {
		return err
	}
	return s.write(filepath.Join(s.dir, "server.key"), key, 0o600)
}

func (s *PostgresServer) write(path string, content []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, content, mode); err != nil || s.who == nil {
		return err
	}
	return os.Chown(path, int(s.who.Uid), int(s.who.Gid))
}

// Start runs the server on its port, after Kill or Stop, and returns when it takes connections.
func (s *PostgresServer) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	args := []string{"-D", filepath.Join(s.dir, "data"), "-p", fmt.Sprint(s.Port)}
	for _, setting := range append([]string{
		"listen_addresses=127.0.0.1", "unix_socket_directories=" + s.dir, "fsync=on", "shared_buffers=64MB", "max_connections=100",
		"ssl=on", "ssl_cert_file=" + s.RootCert, "ssl_key_file=" + filepath.Join(s.dir, "server.key"),
	}, s.settings...) {
		args = append(args, "-c", setting)
	}
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), args...)
	cmd.Dir = s.dir
	log := filepath.Join(s.dir, "log")
	p, err := start(cmd, s.who, log)
	if err != nil {
		return fmt.Errorf("starting PostgreSQL: %w", err)
	}
	db, err := sql.Open("postgres", s.uri("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for db.PingContext(ctx) != nil {
		select {
		case <-poll.C:
			continue
		case <-p.done:
		case <-ctx.Done():
			p.signal(syscall.SIGKILL)
		}
		out, _ := os.ReadFile(log)
		return fmt.Errorf("PostgreSQL did not start: %v: %s", p.err, out[max(0, len(out)-2000):])
	}
	s.process = p
	return nil
}

// Kill ends all processes of the server at once with SIGKILL, as a crash of its machine would,
// except that what was written stays written.
func (s *PostgresServer) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.process.ended() {
		return
	}
	pid := s.process.cmd.Process.Pid
	// Stopped, it forks no more while its children are killed. They lead process groups of their own.
	syscall.Kill(pid, syscall.SIGSTOP)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, child := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(child); err == nil {
			syscall.Kill(n, syscall.SIGKILL)
		}
	}
	s.process.signal(syscall.SIGKILL)
	// The next start fails while one of them still has the shared memory.
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for _, child := range strings.Fields(string(children)) {
		for alive(child) {
			<-poll.C
		}
	}
}

// alive reports whether the process is there and not just waiting to be reaped.
func alive(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// Stop shuts the server down: open transactions roll back, connections end.
func (s *PostgresServer) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && !s.process.ended() {
		s.process.signal(syscall.SIGINT)
	}
}

// Database returns the URI of a new database on the server.
func (s *PostgresServer) Database(t testing.TB) string {
	t.Helper()
	db, err := sql.Open("postgres", s.uri("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return s.uri(name)
}

// Password returns the password that is in the server's URIs.
func (s *PostgresServer) Password() string { return postgresPassword }

func (s *PostgresServer) uri(database string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/%s?sslmode=disable", postgresUser, strings.ReplaceAll(postgresPassword, "/", "%2F"), s.Port, database)
}

// selfSigned returns certificate and key for localhost in PEM.
func selfSigned() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
