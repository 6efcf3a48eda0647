package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second // the contract of SIGTERM
)

// stack is one `attestry up`, or what clients take for one: see newSite.
type stack struct {
	t       *testing.T
	dir     string
	files   string   // directory of the files for clients
	logs    []string // which it has of rekor1, rekor2 and ctLog
	listen  string
	url     string
	args    []string
	ready   time.Duration // from start to /readyz
	cmd     *exec.Cmd
	exited  chan error
	logFile string
}

// up starts `attestry up` in a new directory and waits until it is ready. The test's end stops
// it, and fails the test if that is not orderly.
func up(t *testing.T, args ...string) *stack {
	t.Helper()
	s := newStack(t, filepath.Join(t.TempDir(), "data"), args...)
	s.start()
	return s
}

func newStack(t *testing.T, dir string, args ...string) *stack {
	t.Helper()
	listen := freeAddress(t)
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	s := &stack{t: t, dir: dir, files: filepath.Join(dir, "client"), logs: []string{rekor1, rekor2, ctLog},
		listen: listen, url: "http://localhost:" + port, args: args, logFile: filepath.Join(t.TempDir(), "up.log")}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.stop()
		}
		if t.Failed() {
			t.Logf("the last lines of attestry up:\n%s", tail(s.logFile, 40))
		}
	})
	return s
}

func (s *stack) start() {
	s.t.Helper()
	started := time.Now()
	s.launch()
	for {
		if s.isReady() {
			s.ready = time.Since(started)
			return
		}
		select {
		case err := <-s.exited:
			s.cmd = nil
			s.t.Fatalf("attestry up ended: %v\n%s", err, tail(s.logFile, 40))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(started) > readyTimeout {
			s.t.Fatalf("attestry up was not ready after %v\n%s", readyTimeout, tail(s.logFile, 40))
		}
	}
}

// launch starts the process and does not wait for it.
func (s *stack) launch() {
	s.t.Helper()
	f, err := os.OpenFile(s.logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close() // the child has its own
	args := []string{"up", "--listen", s.listen}
	if s.dir != "" {
		args = append(args, "--dir", s.dir)
	}
	cmd := exec.Command(attestry, append(args, s.args...)...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // ends with the process
	s.cmd, s.exited = cmd, exited
}

func (s *stack) isReady() bool {
	resp, err := http.Get(s.url + "/readyz")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// stop sends SIGTERM and wants exit status 0 in time.
func (s *stack) stop() {
	s.t.Helper()
	cmd := s.cmd
	s.cmd = nil
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Errorf("stopping attestry up: %v", err)
	}
	select {
	case err := <-s.exited:
		if err != nil {
			s.t.Errorf("attestry up after SIGTERM: %v", err)
		}
	case <-time.After(stopTimeout):
		s.t.Errorf("attestry up did not stop within %v", stopTimeout)
		_ = cmd.Process.Kill()
		<-s.exited
	}
}

// kill is kill -9.
func (s *stack) kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-s.exited
	s.cmd = nil
}

// fsck has `attestry log fsck` read all logs, whether the stack runs or not.
func (s *stack) fsck() {
	s.t.Helper()
	args := []string{"log", "fsck", "--dir", s.dir}
	if i := slices.Index(s.args, "--fence"); i >= 0 {
		args = append(args, s.args[i:i+2]...)
	}
	if out, err := exec.Command(attestry, args...).CombinedOutput(); err != nil {
		s.t.Errorf("attestry log fsck: %v\n%s", err, out)
	}
}

// client returns the path of one of the files for clients.
func (s *stack) client(name string) string { return filepath.Join(s.files, name) }

// rekorVersion is one of the two APIs: by name, by sigstore-python's number, the signing config that leads to
// it, and the entry that cosign and sigstore-python make there of a blob.
type rekorVersion struct{ name, number, config, entry string }

// rekors returns the versions whose logs the stack has.
func (s *stack) rekors() []rekorVersion {
	return slices.DeleteFunc([]rekorVersion{
		{rekor2, "2", "signing_config.v0.2.json", `{"kind":"hashedrekord","version":"0.0.2"}`},
		{rekor1, "1", "signing_config.rekor1.v0.2.json", `{"kind":"hashedrekord","version":"0.0.1"}`},
	}, func(v rekorVersion) bool { return !slices.Contains(s.logs, v.name) })
}

func (s *stack) issuer() string { return s.url + "/oidc" }

// token prints a token of the development issuer with `attestry token`.
func (s *stack) token(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(attestry, append([]string{"token", "--dir", s.dir}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("attestry token %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

func (s *stack) alice() string { return s.token("--email", "alice@example.com") }

// freeAddress returns a loopback address on which nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// runUp runs `attestry up` in the foreground for at most ten seconds and returns what it
// printed, and whether it ended by itself with a failure.
func runUp(t *testing.T, args ...string) (out string, refused bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	raw, err := exec.CommandContext(ctx, attestry, append([]string{"up"}, args...)...).CombinedOutput()
	return string(raw), err != nil && ctx.Err() == nil
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// call sends one HTTP request and returns status, body and whatever went wrong on the way.
func call(ctx context.Context, method, url, contentType, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(answer), err
}

// get fetches a URL that must answer 200.
func get(t *testing.T, url string) string {
	t.Helper()
	status, body, err := call(t.Context(), http.MethodGet, url, "", "")
	if err != nil || status != http.StatusOK {
		t.Fatalf("GET %s: %d %v\n%s", url, status, err, body)
	}
	return body
}

// lines collects what a process writes, for tests that react to it while it runs.
type lines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// eventually asks until done says yes, or fails the test after a while.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting: %s", what)
		}
	}
}

// measured logs a figure that scripts/test prints.
func measured(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Log("measured: " + fmt.Sprintf(format, args...))
}
