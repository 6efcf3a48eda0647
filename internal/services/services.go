// Package services runs the real servers that tests of the logs need, on free loopback ports and in
// temporary directories. What a test process started ends with it, also when it is killed: a
// shell waits at a pipe that only that process holds, then kills the servers and removes their files.
package services

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// missing ends the test: it fails where everything has to be there, and is skipped elsewhere with
// the line that would let it run.
func missing(t testing.TB, program, enable string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: %s", program, enable)
	}
	t.Skipf("skipped: %s is missing; to run this test: %s", program, enable)
}

// freePort returns a loopback port that nobody listened on a moment ago.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// unprivileged returns the first of the users that exists when the tests run as root, for
// servers that refuse to; nil stands for the present user.
func unprivileged(names ...string) (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("none of the users %v exists", names)
}

// janitor is the shell that clears the directory of this test process away once its input ends, however the process does.
type janitor struct {
	dir   string
	input io.Closer // open as long as this process lives
}

var workshop = sync.OnceValues(func() (janitor, error) {
	dir, err := os.MkdirTemp("", "attestry-services-")
	if err != nil {
		return janitor{}, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // servers of another user pass through
		return janitor{}, err
	}
	if err := os.Mkdir(filepath.Join(dir, "pids"), 0o700); err != nil {
		return janitor{}, err
	}
	shell := exec.Command("sh", "-c", `read -r _
for p in "$0"/pids/*; do [ -e "$p" ] && kill -KILL "${p##*/}"; done
rm -rf "$0" || { sleep 1; rm -rf "$0"; }`, dir)
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // not for ^C of the terminal
	pipe, err := shell.StdinPipe()
	if err != nil {
		return janitor{}, err
	}
	if err := shell.Start(); err != nil {
		return janitor{}, err
	}
	return janitor{dir, pipe}, nil
})

// newDir returns a new directory that belongs to who.
func newDir(name string, who *syscall.Credential) (string, error) {
	shop, err := workshop()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(shop.dir, name+"-")
	if err != nil || who == nil {
		return dir, err
	}
	return dir, os.Chown(dir, int(who.Uid), int(who.Gid))
}

// process is a running server.
type process struct {
	cmd  *exec.Cmd
	mark string        // file in pids/ by which the janitor knows it
	done chan struct{} // closed when it has ended
	err  error         // how, to be read after done
}

// start runs cmd as who, its output in the file at log.
func start(cmd *exec.Cmd, who *syscall.Credential, log string) (*process, error) {
	shop, err := workshop()
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: who}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, mark: filepath.Join(shop.dir, "pids", strconv.Itoa(cmd.Process.Pid)), done: make(chan struct{})}
	if err := os.WriteFile(p.mark, nil, 0o600); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	go func() {
		p.err = cmd.Wait()
		os.Remove(p.mark)
		close(p.done)
	}()
	return p, nil
}

// signal sends s and waits until the process has ended.
func (p *process) signal(s syscall.Signal) {
	p.cmd.Process.Signal(s)
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
