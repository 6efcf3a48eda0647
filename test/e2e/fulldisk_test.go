package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestAFullDiskRefusesWritesAndLosesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, false, "a full disk needs a small tmpfs; enable by running as root")
	}
	disk := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk).CombinedOutput(); err != nil {
		missing(t, false, "mounting a tmpfs: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", disk).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	s := newStack(t, filepath.Join(disk, "data"))
	s.start()
	a := newAudit(t, s)
	token := s.alice()
	a.loaded(token, 2, 200*time.Millisecond, func() {})
	a.check()

	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	refused := map[string]int{}
	for deadline := time.Now().Add(20 * time.Second); len(refused) < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s on a full disk only these were refused: %v", refused)
		}
		for name, submit := range a.submitters(token) {
			err := submit()
			var cut *cutOff
			switch {
			case errors.Is(err, errUnavailable):
				refused[name]++
			case errors.As(err, &cut):
				t.Fatalf("%s on a full disk: %v", name, err)
			case err != nil:
				t.Errorf("%s on a full disk: %v, want 503", name, err)
				refused[name]++
			}
		}
		fill(t, filler) // what was freed meanwhile
	}
	a.check() // reading goes on

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	for name, submit := range a.submitters(token) {
		eventually(t, name+" takes entries again", func() bool { return submit() == nil })
	}
	a.check()
	s.kill()
	s.start()
	a.replay()
}

// submitters are one submission to each log.
func (a *audit) submitters(token string) map[string]func() error {
	ctx := a.t.Context()
	return map[string]func() error{
		rekor1: func() error { return a.l.submit1(ctx, a.s) },
		rekor2: func() error { return a.l.submit2(ctx, a.s) },
		ctLog:  func() error { return a.l.certificate(ctx, a.s, token) },
	}
}

// fill writes to path until no byte is left on its disk.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, chunk := range []int{1 << 20, 4096, 1} {
		for {
			if _, err := f.Write(make([]byte, chunk)); errors.Is(err, syscall.ENOSPC) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
}
