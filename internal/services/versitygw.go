package services

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// VersityGWServer is a versitygw S3 server over a directory, on 127.0.0.1 alone. It honours
// If-None-Match and If-Match on PUT. Bucket exists.
type VersityGWServer struct {
	Endpoint             string // http://127.0.0.1:PORT, to be used with path style
	Bucket               string
	AccessKey, SecretKey string

	program string
	dir     string
	port    int

	mu      sync.Mutex // guards process
	process *process
}

// VersityGW starts a server of t's own, which t may kill; it ends with t. Without versitygw the test is
// skipped, or fails when CI=true.
func VersityGW(t testing.TB) *VersityGWServer {
	t.Helper()
	s := &VersityGWServer{Bucket: "logs", AccessKey: "attestry", SecretKey: "s3cret-of/tests", program: client(t, "versitygw")}
	var err error
	if s.dir, err = newDir("versitygw", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "data", s.Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 5 { // somebody else may take the port in between
		if s.port, err = freePort(); err != nil {
			break
		}
		s.Endpoint = fmt.Sprintf("http://127.0.0.1:%d", s.port)
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

// Start runs the server on its port, after Kill, and returns when it answers.
func (s *VersityGWServer) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	args := []string{"--port", fmt.Sprintf("127.0.0.1:%d", s.port), "--quiet", "--health", "/health", "posix"}
	data := filepath.Join(s.dir, "data")
	if err := unix.Setxattr(data, "user.attestry", []byte("1"), 0); err != nil { // a file system without user attributes
		sidecar := filepath.Join(s.dir, "sidecar")
		if err := os.MkdirAll(sidecar, 0o755); err != nil {
			return err
		}
		args = append(args, "--sidecar", sidecar)
	}
	cmd := exec.Command(s.program, append(args, data)...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+s.AccessKey, "ROOT_SECRET_KEY="+s.SecretKey)
	log := filepath.Join(s.dir, "log")
	p, err := start(cmd, nil, log)
	if err != nil {
		return fmt.Errorf("starting versitygw: %w", err)
	}
	if err := p.await(answers(s.Endpoint+"/health"), "versitygw", log); err != nil {
		return err
	}
	s.process = p
	return nil
}

// Kill ends the server with SIGKILL. What was written stays written.
func (s *VersityGWServer) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && !s.process.ended() {
		s.process.signal(syscall.SIGKILL)
	}
}

// answers tells whether a GET of url has status 200.
func answers(url string) func(context.Context) bool {
	return func(ctx context.Context) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		return errors.Join(resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
	}
}

// client returns the path of an unmodified program that scripts/clients installs: the newest version there is.
func client(t testing.TB, name string) string {
	t.Helper()
	cache, err := clientsDir()
	if err != nil {
		t.Fatal(err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, name+"-v*", name))
	if len(found) == 0 {
		missing(t, name, "scripts/clients "+name)
	}
	return slices.MaxFunc(found, func(a, b string) int { return len(a) - len(b) + strings.Compare(a, b) })
}

// clientsDir is where scripts/clients installs to.
func clientsDir() (string, error) {
	if dir := os.Getenv("ATTESTRY_CLIENTS"); dir != "" {
		return dir, nil
	}
	user, err := os.UserCacheDir()
	return filepath.Join(user, "attestry-clients"), err
}
