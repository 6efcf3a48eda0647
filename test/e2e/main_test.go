package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	commandTimeout = time.Minute // one run of one client
	clientsTable   = "../../scripts/clients.txt"
)

// The binaries under test, set by TestMain before any test and never again.
var attestry, tlog, ca, tufPublisher, admission string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "attestry-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir+"/", "../../cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building cmd: %v\n%s", err, out)
		return 1
	}
	for name, path := range map[string]*string{"attestry": &attestry, "tlog": &tlog, "ca": &ca, "tuf-publisher": &tufPublisher, "admission": &admission} {
		*path = filepath.Join(dir, name)
	}
	return m.Run()
}

// long tells whether tests may take their time.
func long() bool { return os.Getenv("ATTESTRY_LONG") != "" }

// missing skips the test, or fails it in CI when it must not be skipped there.
func missing(t *testing.T, neededInCI bool, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if neededInCI && os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip("skipped: " + reason)
}

// client returns the path of an unmodified client, such as client(t, "cosign", "v3.1.3"). With
// no version it is the first of that name in scripts/clients.txt.
func client(t *testing.T, name, version string) string {
	t.Helper()
	f, err := os.Open(clientsTable)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		row := strings.Split(lines.Text(), "|")
		if len(row) != 6 || row[0] != name || version != "" && row[1] != version {
			continue
		}
		path := filepath.Join(clientsDir(t), row[0]+"-"+row[1])
		switch row[2] {
		case "npm":
			path = filepath.Join(path, "node_modules", ".bin", row[3])
		case "pip":
			path = filepath.Join(path, "bin", row[3])
		default:
			path = filepath.Join(path, name)
		}
		if _, err := os.Stat(path); err != nil {
			missing(t, row[5] == "yes" || row[5] == "long" && long(), "%s %s is not installed; enable with: scripts/clients %s@%s", name, row[1], name, row[1])
		}
		return path
	}
	t.Fatalf("%s has no %s %s", clientsTable, name, version)
	return ""
}

func clientsDir(t *testing.T) string {
	if dir := os.Getenv("ATTESTRY_CLIENTS"); dir != "" {
		return dir
	}
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(home, ".cache")
	}
	return filepath.Join(cache, "attestry-clients")
}

// system returns the path of a program of the operating system.
func system(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, true, "%s is not installed; enable with: apt-get install %s", name, debianPackage)
	}
	return path
}

// sandbox is a new user's account: an empty home, no caches, no proxy, no settings.
type sandbox struct {
	t    *testing.T
	home string
	env  []string
}

func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	home := t.TempDir()
	return &sandbox{t, home, []string{
		"HOME=" + home,
		"PATH=" + os.Getenv("PATH"),
		"TMPDIR=" + t.TempDir(),
		"TUF_ROOT=" + filepath.Join(home, "tuf"),
		"DOCKER_CONFIG=" + filepath.Join(home, "docker"),
	}}
}

// in returns the same account for a subtest.
func (s *sandbox) in(t *testing.T) *sandbox { return &sandbox{t, s.home, s.env} }

// set adds an environment variable, replacing one of the same name.
func (s *sandbox) set(name, value string) { s.env = append(s.env, name+"="+value) }

// source adds what a file of `export` lines sets when a shell reads it.
func (s *sandbox) source(path string) {
	s.t.Helper()
	out := s.must("/bin/sh", "-c", `set -a; . "$0"; env -0`, path)
	for _, pair := range strings.Split(out, "\x00") {
		if name, value, ok := strings.Cut(pair, "="); ok && name != "_" && name != "PWD" {
			s.set(name, value)
		}
	}
}

// file writes a file into the home directory and returns its path.
func (s *sandbox) file(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.home, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *sandbox) path(name string) string { return filepath.Join(s.home, name) }

// result is what a command printed. JSON is on stdout; most tools explain on stderr.
type result struct {
	stdout, stderr string
	err            error
}

func (r result) String() string { return r.stdout + r.stderr }

func (s *sandbox) command(ctx context.Context, exe string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env, cmd.Dir = s.env, s.home
	cmd.WaitDelay = time.Second
	return cmd
}

func (s *sandbox) run(exe string, args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), commandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := s.command(ctx, exe, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		err = errors.Join(err, ctx.Err())
	}
	return result{stdout.String(), stderr.String(), err}
}

// must runs a command that has to succeed and returns its stdout.
func (s *sandbox) must(exe string, args ...string) string {
	s.t.Helper()
	r := s.run(exe, args...)
	if r.err != nil {
		s.t.Fatalf("%s\n%v\n%s", line(exe, args), r.err, r)
	}
	return r.stdout
}

// refused runs a command that has to fail and give the reason, a regular expression.
func (s *sandbox) refused(reason, exe string, args ...string) {
	s.t.Helper()
	r := s.run(exe, args...)
	if r.err == nil {
		s.t.Fatalf("%s\nsucceeded:\n%s", line(exe, args), r)
	}
	if !regexp.MustCompile(reason).MatchString(r.String()) {
		s.t.Errorf("%s\nfailed, but not with %q:\n%s", line(exe, args), reason, r)
	}
}

// line shows a command without its tokens.
func line(exe string, args []string) string {
	shown := []string{filepath.Base(exe)}
	for _, arg := range args {
		if strings.Count(arg, ".") == 2 && strings.HasPrefix(arg, "ey") {
			arg = "<token>"
		}
		shown = append(shown, arg)
	}
	return "$ " + strings.Join(shown, " ")
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
