package services

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TrillianServer is a Trillian log server with a log signer, on 127.0.0.1 alone and over one
// PostgreSQL database, without quota.
type TrillianServer struct {
	Address string // of the gRPC services trillian.TrillianLog and TrillianAdmin

	database            string
	server, signer      string
	dir                 string
	settings            []string // of the signer
	rpc, http           int
	signerRPC, signHTTP int

	mu      sync.Mutex // guards what follows
	running []*process
}

// Trillian starts a log server and a log signer of t's own over the database at postgresURI, whose
// schema they find or get; t may kill them, and they end with t. Settings are options of the signer
// such as "--sequencer_interval=50ms". Without the programs the test is skipped, or fails when CI=true.
func Trillian(t testing.TB, postgresURI string, settings ...string) *TrillianServer {
	t.Helper()
	s := &TrillianServer{database: postgresURI, settings: settings, server: client(t, "trillian_log_server"), signer: client(t, "trillian_log_signer")}
	if err := loadTrillianSchema(t.Context(), postgresURI); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.dir, err = newDir("trillian", nil); err != nil {
		t.Fatal(err)
	}
	for range 5 { // somebody else may take a port in between
		if err = s.choosePorts(); err != nil {
			break
		}
		if err = s.Start(); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(s.dir)
	})
	return s
}

func (s *TrillianServer) choosePorts() error {
	for _, port := range []*int{&s.rpc, &s.http, &s.signerRPC, &s.signHTTP} {
		var err error
		if *port, err = freePort(); err != nil {
			return err
		}
	}
	s.Address = fmt.Sprintf("127.0.0.1:%d", s.rpc)
	return nil
}

// Start runs both programs, after Kill, and returns when both answer.
func (s *TrillianServer) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.run(s.server, s.rpc, s.http, "--tree_gc=false"); err != nil {
		return err
	}
	return s.run(s.signer, s.signerRPC, s.signHTTP, append([]string{"--force_master"}, s.settings...)...)
}

// run starts one of the programs; s.mu is held.
func (s *TrillianServer) run(program string, rpc, http int, args ...string) error {
	name := filepath.Base(program)
	cmd := exec.Command(program, append([]string{"--storage_system=postgresql", "--postgresql_uri=" + s.database, "--quota_system=noop",
		fmt.Sprintf("--rpc_endpoint=127.0.0.1:%d", rpc), fmt.Sprintf("--http_endpoint=127.0.0.1:%d", http), "--logtostderr"}, args...)...)
	cmd.Dir = s.dir
	log := filepath.Join(s.dir, name+".log")
	p, err := start(cmd, nil, log)
	if err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	s.running = append(s.running, p)
	return p.await(answers(fmt.Sprintf("http://127.0.0.1:%d/healthz", http)), name, log)
}

// Kill ends both programs with SIGKILL.
func (s *TrillianServer) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.running {
		if !p.ended() {
			p.signal(syscall.SIGKILL)
		}
	}
	s.running = nil
}

// loadTrillianSchema runs the schema file that Trillian's module ships, unless its tables are there.
func loadTrillianSchema(ctx context.Context, uri string) (err error) {
	db, err := sql.Open("postgres", uri)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var there bool
	if err := db.QueryRowContext(ctx, `SELECT to_regclass('trees') IS NOT NULL`).Scan(&there); err != nil || there {
		return err
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/trillian").Output()
	if err != nil {
		return fmt.Errorf("finding Trillian's schema: %w", err)
	}
	schema, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "storage/postgresql/schema/storage.sql"))
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, string(schema))
	return err
}
