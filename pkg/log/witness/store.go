package witness

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
)

// A witness remembers, for each origin, the last checkpoint that it cosigned, with the cosignature: that
// is the record, and what monitors read. It lies in DIR/<SHA-256 of the origin in hex>/checkpoint and is
// replaced by rename, so a crash leaves the old or the new one. The cosignature is made before the
// record is written and leaves the process after; a crash in between loses one that nobody saw.
const (
	recordFile   = "checkpoint"
	newFile      = ".checkpoint-new"
	evidenceGlob = "evidence-*.json"
	maxEvidence  = 16 // files for one origin
	lockFile     = "lock"
)

// ErrInUse says that another process holds the directory.
var ErrInUse = errors.New("the directory is held by another witness process")

// record is the last checkpoint that was cosigned. The zero value is none.
type record struct {
	checkpoint
	note []byte // text, the log's signatures, the cosignature
	unix uint64 // of the cosignature
}

// store keeps the records of one directory, which it holds the lock of.
type store struct {
	dir  string
	lock *os.File
	// step does a step of a write; tests make it fail before or after.
	step func(name string, do func() error) error
}

func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening witness directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening witness directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", dir, ErrInUse)
		}
		return nil, fmt.Errorf("locking witness directory %s: %w", dir, err)
	}
	return &store{dir: dir, lock: lock, step: func(_ string, do func() error) error { return do() }}, nil
}

func (s *store) close() error { return s.lock.Close() }

// originHash names an origin in paths.
func originHash(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return hex.EncodeToString(sum[:])
}

func (s *store) path(origin, name string) string {
	return filepath.Join(s.dir, originHash(origin), name)
}

// prepare makes the origin's directory durable.
func (s *store) prepare(origin string) error {
	if err := os.MkdirAll(s.path(origin, ""), 0o700); err != nil {
		return err
	}
	return durable.SyncDir(s.dir)
}

// load reads the origin's record and checks that by made it: a record that was damaged, or that another
// key or name made, says nothing about what by has cosigned.
func (s *store) load(origin string, by Key) (record, error) {
	path := s.path(origin, recordFile)
	note, err := limit.ReadFile(path, maxNote)
	if errors.Is(err, os.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("reading what was cosigned of %q: %w", origin, err)
	}
	c, sigs, err := parseNote(note)
	if err != nil {
		return record{}, fmt.Errorf("%s is damaged: %w", path, err)
	}
	for _, sig := range sigs {
		if c.origin == origin && by.signed(c.text, sig) {
			unix, err := cosignedUnix(sig)
			if err != nil {
				return record{}, fmt.Errorf("%s is damaged: %w", path, err)
			}
			return record{c, note, unix}, nil
		}
	}
	return record{}, fmt.Errorf("%s is not a checkpoint of %q with a cosignature by %s: it is damaged, or the key or name of this witness was changed (a new key needs a new directory)", path, origin, by)
}

// save makes r the origin's record. After an error either record may be the one on disk.
func (s *store) save(r record) error {
	if err := s.write(s.path(r.origin, newFile), s.path(r.origin, recordFile), r.note); err != nil {
		return fmt.Errorf("storing what was cosigned of %q: %w", r.origin, err)
	}
	return nil
}

// write makes data durable under a name by way of another.
func (s *store) write(aside, path string, data []byte) error {
	var file *os.File
	if err := s.step("create", func() (err error) {
		file, err = os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		return err
	}); err != nil {
		if file != nil {
			file.Close()
		}
		return err
	}
	err := s.step("write", func() error { _, err := file.Write(data); return err })
	if err == nil {
		err = s.step("sync", file.Sync)
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := s.step("rename", func() error { return os.Rename(aside, path) }); err != nil {
		return err
	}
	return s.step("sync directory", func() error { return durable.SyncDir(filepath.Dir(path)) })
}

// evidence is two checkpoints of one size with different roots, both signed by the log: proof that it forked.
type evidence struct {
	Origin    string    `json:"origin"`
	Size      uint64    `json:"size"`
	HeldRoot  string    `json:"heldRoot"` // base64
	SeenRoot  string    `json:"seenRoot"` // base64
	Held      string    `json:"held"`     // signed note, with our cosignature
	Seen      string    `json:"seen"`     // signed note, as it was submitted
	SeenAt    time.Time `json:"seenAt"`
	WitnessBy string    `json:"witness"` // verifier key
}

// keepEvidence stores the two and returns the path. The same fork is stored once, and no more
// than maxEvidence of one origin: then the path is "".
func (s *store) keepEvidence(held record, seen checkpoint, note []byte, at time.Time, by Key) (string, error) {
	path := s.path(held.origin, fmt.Sprintf("evidence-%d-%x.json", seen.size, seen.root[:8]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if all, err := filepath.Glob(s.path(held.origin, evidenceGlob)); err != nil || len(all) >= maxEvidence {
		return "", err
	}
	data, err := json.MarshalIndent(evidence{
		held.origin, seen.size, base64.StdEncoding.EncodeToString(held.root[:]), base64.StdEncoding.EncodeToString(seen.root[:]),
		string(held.note), string(note), at.UTC(), by.String(),
	}, "", "  ")
	if err != nil {
		return "", err
	}
	return path, s.write(path+".new", path, append(data, '\n'))
}
