package trust

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/attestry/attestry/internal/durable"
)

// tempPrefix starts the name of every file that is not finished. The HTTP handler never
// serves such a name and the next start removes what a kill left.
const tempPrefix = ".tmp-"

// file is a name relative to a directory, with its whole content.
type file struct {
	name string
	data []byte
	mode os.FileMode
}

// directory writes whole files. A reader, and the next start after a kill, finds each file
// as it was or as it is meant to be, never in between.
type directory struct {
	path string
	// fault lets a test fail the write of name before or after it takes effect; nil otherwise.
	fault func(name string, after bool) error
}

// writeStage makes all files of one stage durable, in the order given. When it returns nil
// they survive a power cut; when it fails, some of them may be in place.
func (d directory) writeStage(files []file) error {
	dirs := map[string]bool{}
	for _, f := range files {
		if err := d.inject(f.name, false); err != nil {
			return err
		}
		if err := d.writeOne(f); err != nil {
			return fmt.Errorf("writing %s: %w", filepath.Join(d.path, f.name), err)
		}
		dirs[filepath.Dir(filepath.Join(d.path, f.name))] = true
		if err := d.inject(f.name, true); err != nil {
			return err
		}
	}
	for dir := range dirs {
		if err := durable.SyncDir(dir); err != nil {
			return fmt.Errorf("syncing %s: %w", dir, err)
		}
	}
	return nil
}

func (d directory) inject(name string, after bool) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(name, after)
}

func (d directory) writeOne(f file) error {
	path := filepath.Join(d.path, f.name)
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once the rename has happened
	_, err = tmp.Write(f.data)
	if err := errors.Join(err, tmp.Chmod(f.mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// writeChanged is writeStage for the files whose content on disk differs.
func (d directory) writeChanged(files []file) error {
	var changed []file
	for _, f := range files {
		have, err := os.ReadFile(filepath.Join(d.path, f.name))
		if err == nil && bytes.Equal(have, f.data) {
			continue
		}
		changed = append(changed, f)
	}
	return d.writeStage(changed)
}

// removeTemps deletes what a killed process left half-written. Call it only under the lock.
func (d directory) removeTemps(subdirs ...string) error {
	for _, sub := range append(subdirs, ".") {
		entries, err := os.ReadDir(filepath.Join(d.path, sub))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), tempPrefix) {
				if err := os.Remove(filepath.Join(d.path, sub, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// errLocked says that another process, or another part of this one, holds the lock.
var errLocked = errors.New("in use by another process")

// lockFile takes an exclusive lock that ends with the process or with release, whichever is
// first. With wait it waits for the holder, otherwise a held lock is errLocked.
func lockFile(path string, wait bool) (release func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	for {
		err = syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, err
	}
	return f.Close, nil
}
