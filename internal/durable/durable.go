// Package durable writes files that are whole after a crash, and there after a power cut.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Temp begins the names of files that WriteFile is writing. Those of a process that was killed stay behind.
const Temp = ".tmp-"

// WriteFile replaces the file at path as a whole: a crash leaves the old content or the new one, and on return it is
// the new one, under its name.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), Temp+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once the rename has happened
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// RemoveTemps deletes what killed processes left half-written in a directory. Nobody may be writing there.
func RemoveTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), Temp) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// LockDir keeps two commands from changing files of a directory at once: it fails while another process, or an earlier
// call, holds the lock. It ends with release or with the process, and leaves no file.
func LockDir(path string) (release func(), err error) { return lockDir(path, syscall.LOCK_NB) }

// WaitDir is LockDir for commands that do the same and may follow each other: it waits until the lock is free.
func WaitDir(path string) (release func(), err error) { return lockDir(path, 0) }

func lockDir(path string, how int) (release func(), err error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|how); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		dir.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another command is changing %s", path)
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return func() { dir.Close() }, nil
}
