package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tmpfs mounts one of so many MiB, until the end of t.
func tmpfs(t *testing.T, mib int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, false, "this needs a file system of its own; enable by running as root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", mib), "tmpfs", dir).CombinedOutput(); err != nil {
		missing(t, false, "mounting a tmpfs: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	return dir
}

// volume is an ext4 file system in a file.
type volume struct {
	t          *testing.T
	image, dir string
	device     string // while it is mounted
}

// newVolume makes a file system of so many MiB at image, with options of mkfs.ext4, and mounts it until the end of t.
func newVolume(t *testing.T, image string, mib int64, mountOptions string, options ...string) *volume {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, false, "this needs a file system of its own; enable by running as root")
	}
	mkfs := system(t, "mkfs.ext4", "e2fsprogs")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(mib<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, append(options, "-q", "-F", image)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v %s", err, out)
	}
	v := &volume{t: t, image: image, dir: t.TempDir()}
	if err := v.tryMount(mountOptions); err != nil {
		missing(t, false, "mounting a file: %v", err)
	}
	t.Cleanup(func() {
		if v.device != "" {
			v.unmount()
		}
	})
	return v
}

func (v *volume) tryMount(options string) error {
	if out, err := exec.Command("mount", "-o", "loop,"+options, v.image, v.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	out, err := exec.Command("findmnt", "-no", "SOURCE", v.dir).Output()
	v.device = filepath.Base(strings.TrimSpace(string(out)))
	return err
}

func (v *volume) mount(options string) {
	v.t.Helper()
	if err := v.tryMount(options); err != nil {
		v.t.Fatal(err)
	}
}

func (v *volume) unmount() {
	v.t.Helper()
	v.device = ""
	v.do("umount", v.dir)
}

func (v *volume) do(program string, args ...string) {
	v.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		v.t.Errorf("%s: %v %s", line(program, args), err, out)
	}
}

// repair does what an operator does after an error: e2fsck. 1 says that it has corrected something.
func (v *volume) repair() {
	v.t.Helper()
	out, err := exec.Command("e2fsck", "-fy", v.image).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		v.t.Errorf("e2fsck: %v %s", err, out)
	}
}

// snapshot copies the whole volume as of one instant.
func (v *volume) snapshot(image string) *volume {
	v.t.Helper()
	v.do("fsfreeze", "--freeze", v.dir)
	defer v.do("fsfreeze", "--unfreeze", v.dir)
	v.do("cp", "--sparse=always", v.image, image)
	return &volume{t: v.t, image: image, dir: v.t.TempDir()}
}

// grows waits until every log has acknowledged another entry.
func (a *audit) grows(what string, logs ...string) {
	a.t.Helper()
	for _, log := range logs {
		before := a.l.count(log)
		eventually(a.t, log+" takes entries "+what, func() bool { return a.l.count(log) > before })
	}
}

// refuses waits until every log has refused an entry with 503.
func (a *audit) refuses(what string, logs ...string) {
	a.t.Helper()
	for _, log := range logs {
		before := a.l.refusals(log)
		eventually(a.t, log+" refuses entries "+what, func() bool { return a.l.refusals(log) > before })
	}
}

// refused wants that attestry up does not start, for a reason.
func (s *stack) refused(reason string) {
	s.t.Helper()
	args := append([]string{"--listen", freeAddress(s.t), "--dir", s.dir}, s.args...)
	out, refused := runUp(s.t, args...)
	if !refused || !strings.Contains(out, reason) {
		s.t.Errorf("refused %v, want because of %q:\n%s", refused, reason, out)
	}
}

func TestAFullDiskRefusesWritesAndLosesNothing(t *testing.T) {
	for name, disk := range map[string]func(t *testing.T) string{
		"tmpfs": func(t *testing.T) string { return tmpfs(t, 64) },
		"ext4":  func(t *testing.T) string { return newVolume(t, filepath.Join(t.TempDir(), "image"), 64, "noatime").dir },
	} {
		t.Run(name, func(t *testing.T) {
			disk := disk(t)
			s := newStack(t, filepath.Join(disk, "data"))
			s.start()
			a := newAudit(t, s)
			a.loaded(s.alice(), 4, 200*time.Millisecond, func() {
				filler := filepath.Join(disk, "filler")
				eventually(t, "every log refuses entries on a full disk", func() bool {
					fill(t, filler) // also what is freed meanwhile
					return a.l.refusals(rekor1) > 2 && a.l.refusals(rekor2) > 2 && a.l.refusals(ctLog) > 2
				})
				a.check() // reading goes on
				if err := os.Remove(filler); err != nil {
					t.Fatal(err)
				}
				a.grows("again", s.logs...)
			})
			a.check()
			s.kill()
			s.start()
			a.replay()
		})
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

// TestAFullFenceVolumeStopsNothing: a fence has all its room from the start. Only a key that is new to it needs more.
func TestAFullFenceVolumeStopsNothing(t *testing.T) {
	disk := tmpfs(t, 4)
	s := up(t, "--fence", filepath.Join(disk, "fence"))
	a := newAudit(t, s)
	filler := filepath.Join(disk, "filler")
	a.loaded(s.alice(), 2, 100*time.Millisecond, func() {
		fill(t, filler)
		a.grows("beside a full fence volume", s.logs...)
	})
	s.kill()
	s.start()
	a.loaded(s.alice(), 2, 100*time.Millisecond, func() {})
	a.replay()

	other := newStack(t, filepath.Join(t.TempDir(), "data"), "--fence", filepath.Join(disk, "other"))
	other.refused("no space left on device")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	other.start()
	b := newAudit(t, other)
	b.loaded(other.alice(), 1, 0, func() {})
	b.replay()
}

// TestAFullWitnessVolumeHoldsTheLogUp: a witness that cannot store what it cosigns does not cosign, and a log without
// its quorum shows nothing.
func TestAFullWitnessVolumeHoldsTheLogUp(t *testing.T) {
	disk := tmpfs(t, 1)
	site, w := newWitnessed(t, filepath.Join(disk, "witness"))
	a := newSiteAudit(t, &stack{t: t}, site, rekor1, rekor2)
	a.under(a.loadSite(site, 2, rekor1, rekor2), 100*time.Millisecond, func() {
		filler := filepath.Join(disk, "filler")
		eventually(t, "Rekor v2 refuses entries", func() bool {
			fill(t, filler)
			return a.l.refusals(rekor2) > 2
		})
		a.grows("whatever witnesses do", rekor1)
		a.check() // reading goes on
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		a.grows("again", rekor2)
	})
	a.check()
	w.kill()
	w.start()
	a.under(a.loadSite(site, 2, rekor1, rekor2), 100*time.Millisecond, func() { a.grows("with the witness back", rekor2) })
	a.replay()
}

// TestAVolumeThatTurnsReadOnlyLosesNothing: an error in ext4 (errors=remount-ro, Debian's default) makes the volume read-only
// at once, whoever writes. The kernel lets nobody remount it for writing again: it is unmounted and repaired. An operator's
// own `mount -o remount,ro` is refused as long as the logs have files open.
func TestAVolumeThatTurnsReadOnlyLosesNothing(t *testing.T) {
	v := newVolume(t, filepath.Join(t.TempDir(), "image"), 64, "errors=remount-ro")
	s := newStack(t, filepath.Join(v.dir, "data"))
	s.start()
	a := newAudit(t, s)
	a.loaded(s.alice(), 4, 200*time.Millisecond, func() {
		if out, err := exec.Command("mount", "-o", "remount,ro", v.dir).CombinedOutput(); err == nil {
			t.Errorf("the volume was remounted: %s", out)
		}
		if err := os.WriteFile("/sys/fs/ext4/"+v.device+"/trigger_fs_error", []byte("a test"), 0); err != nil {
			missing(t, false, "errors of ext4 at will: %v", err)
		}
		// Tessera panics where it cannot open its lock, which is looked at before each integration: a few milliseconds remain in which the
		// process ends instead. What was answered is there all the same.
		before := map[string]int{}
		for _, log := range s.logs {
			before[log] = a.l.refusals(log)
		}
		ended := func() bool { return strings.Contains(readFile(t, s.logFile), "\npanic: open "+s.dir) }
		eventually(t, "all logs refuse entries on a read-only volume", func() bool {
			return ended() || !slices.ContainsFunc(s.logs, func(log string) bool { return a.l.refusals(log) <= before[log] })
		})
		if ended() {
			measured(t, "Tessera ended the process")
			<-s.exited
			s.cmd = nil
			return
		}
		a.check() // reading goes on
	})
	if s.cmd != nil {
		s.kill() // nothing that was answered waits for an orderly end
	}
	v.unmount()
	v.repair()
	v.mount("errors=remount-ro")
	s.start()
	a.loaded(s.alice(), 4, 100*time.Millisecond, func() { a.grows("again", s.logs...) })
	a.replay()
}

// inject has system calls of the program fail as strace's inject= says, until stop or the program's end.
func (s *stack) inject(fault string) (stop func()) {
	s.t.Helper()
	calls, _, _ := strings.Cut(fault, ":")
	tracing := exec.Command(tracer(s.t), "-f", "-qq", "-o", os.DevNull, "-e", "trace="+calls, "-e", "inject="+fault, "-p", fmt.Sprint(s.cmd.Process.Pid))
	if err := tracing.Start(); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		if err := tracing.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) { // the program goes on alone
			s.t.Error(err)
		}
		_ = tracing.Wait() // by the signal
	}
}

// tracer returns strace, if it may attach to a process that runs.
func tracer(t *testing.T) string {
	t.Helper()
	strace := system(t, "strace", "strace")
	traced := exec.Command("sleep", "60")
	if err := traced.Start(); err != nil {
		t.Fatal(err)
	}
	tracing := exec.Command(strace, "-qq", "-e", "trace=none", "-p", fmt.Sprint(traced.Process.Pid))
	time.AfterFunc(100*time.Millisecond, func() { traced.Process.Kill() })
	out, err := tracing.CombinedOutput() // ends with what it traces
	_ = traced.Wait()                    // killed
	if strings.Contains(string(out), "not permitted") {
		missing(t, false, "strace may not trace: %v %s", err, out)
	}
	return strace
}

// restored puts a restored backup of an instance that does not run into its place, with its fence.
func (s *stack) restored() {
	s.t.Helper()
	b := newSandbox(s.t)
	backup, before := filepath.Join(s.t.TempDir(), "backup"), s.dir+".before"
	key := publicBackupKey(s.t, b.must(attestry, "backup", "--dir", s.dir, "--to", backup))
	if err := os.Rename(s.dir, before); err != nil {
		s.t.Fatal(err)
	}
	b.must(attestry, "restore", "--from", backup, "--backup-key", key, "--dir", s.dir)
	if err := os.Rename(filepath.Join(before, "fence"), filepath.Join(s.dir, "fence")); err != nil {
		s.t.Fatal(err)
	}
}

// TestIOErrorsLoseNothing has system calls fail with EIO in the running program, every few of them, and then none
// any more. (A device that fails would be nearer to life. Loop devices on a full file system report short writes as whole
// ones, so that fsync succeeds without the data; device-mapper's error target is not in every kernel.)
func TestIOErrorsLoseNothing(t *testing.T) {
	s := up(t)
	a := newAudit(t, s)
	for _, fault := range []string{
		"fsync,fdatasync:error=EIO:when=1+3", "fsync,fdatasync:error=EIO:when=2+7", "pwrite64:error=EIO:when=2+3", "pwrite64:error=ENOSPC:when=3+5",
	} {
		a.loaded(s.alice(), 4, 50*time.Millisecond, func() {
			stop := s.inject(fault)
			eventually(t, "Rekor v1 and v2 refuse entries with "+fault, func() bool { return a.l.refusals(rekor1) > 0 && a.l.refusals(rekor2) > 0 })
			time.Sleep(300 * time.Millisecond) // many faults, at any step
			stop()
			a.grows("after "+fault, s.logs...)
		})
		a.check()
		a.l.mu.Lock()
		clear(a.l.refused)
		a.l.mu.Unlock()
	}
	a.resubmit()
	s.kill()
	s.start()
	a.replay()

	// Without renames no tile comes into being. What is acknowledged is in the journals, at an end without warning too.
	for _, end := range []func(){s.kill, nil} {
		a.loaded(s.alice(), 4, 50*time.Millisecond, func() {
			stop := s.inject("rename,renameat,renameat2,linkat:error=EIO")
			eventually(t, "/readyz tells that the logs' files cannot be replaced", func() bool {
				status, body, err := call(t.Context(), http.MethodGet, s.url+"/readyz", "", "")
				return err == nil && status == http.StatusServiceUnavailable && strings.Count(body, "storage takes nothing") == len(s.logs)
			})
			a.grows("while their files cannot be replaced", s.logs...)
			if end != nil {
				end()
			}
			stop()
		})
		if end != nil {
			s.fsck()
			s.restored() // what is in the journals alone is in a backup, too
			if n := strings.Count(runAttestry(t, "ca", "issued", "--dir", s.dir, "--limit", "10000", "--output", "json"), "\n"); n < a.l.count(ctLog) {
				t.Errorf("%d certificates left, %d have a record", a.l.count(ctLog), n)
			}
			s.start()
		} else {
			eventually(t, "it is ready again", func() bool {
				status, _, err := call(t.Context(), http.MethodGet, s.url+"/readyz", "", "")
				return err == nil && status == http.StatusOK
			})
		}
		a.check()
		a.resubmit()
	}
	a.replay()
}

// TestAFrozenVolumeIsWaitedFor: a snapshot of a hypervisor freezes the file system for a moment. Writes wait and then succeed.
func TestAFrozenVolumeIsWaitedFor(t *testing.T) {
	v := newVolume(t, filepath.Join(t.TempDir(), "image"), 64, "noatime")
	s := newStack(t, filepath.Join(v.dir, "data"))
	s.start()
	a := newAudit(t, s)
	var frozen []*volume
	a.loaded(s.alice(), 4, 100*time.Millisecond, func() {
		for i := range 3 {
			frozen = append(frozen, v.snapshot(filepath.Join(t.TempDir(), fmt.Sprintf("copy-%d", i))))
			a.grows("after a snapshot", s.logs...)
		}
	})
	if n := a.l.refusals(rekor1) + a.l.refusals(rekor2) + a.l.refusals(ctLog); n > 0 {
		t.Errorf("%d entries were refused", n)
	}
	a.replay()
}
