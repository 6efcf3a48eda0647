package log

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/attestry/attestry/internal/durable"
)

// KeyID names a log key: SHA-256 of its DER SubjectPublicKeyInfo, 32 raw bytes.
type KeyID [32]byte

func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// Record is what a log key has committed itself to.
type Record struct {
	Size     uint64   // leaves of the newest tree that may be signed
	Root     [32]byte // its root hash
	Promised uint64   // indexes below this may stand in an SCT or SET; never under Size
}

var (
	// ErrNoRecord says that a key has no record in the fence: it never signed, or the fence was lost.
	ErrNoRecord = errors.New("the fence has no record of this key")
	// ErrStale says that the record moved since it was read: somebody else signs with this key.
	ErrStale = errors.New("the fence moved: another writer signs with this key")
	// ErrFenceInUse says that another process holds the fence of this key.
	ErrFenceInUse = errors.New("the fence of this log key is held by another process")
)

// Fence remembers, for each log key, the newest tree it has signed and how many indexes it
// has promised, so that no crash, second replica or restored backup can make a key sign two
// trees of one size. It lives apart from the trees and from their backups.
//
// Calls for one key are linearizable across processes and restarts. Writes are durable on
// return. Any error but those named above means the outcome is unknown: call Last before
// signing anything.
type Fence interface {
	// Last returns the key's record, or ErrNoRecord.
	Last(ctx context.Context, key KeyID) (Record, error)
	// Advance stores next if the record still equals prev, else returns ErrStale. The zero
	// prev means that there must be none yet.
	Advance(ctx context.Context, key KeyID, prev, next Record) error
	// Recorded returns the newest of the last 1,000 records whose size is size, or ErrNoRecord.
	Recorded(ctx context.Context, key KeyID, size uint64) (Record, error)
}

// A fence file is a ring of fixed slots. The record with the highest sequence number counts;
// a slot that a crash tore fails its checksum and the one before it counts, which is right
// because Advance had not returned. Overwriting in place needs one data sync and no
// change of metadata, where a renamed file needs two.
//
//	slot = "ATF1" seq(8) size(8) root(32) promised(8) sum(16)   big endian, sum = SHA-256(key ID ‖ what precedes)[:16]
const (
	slotMagic = "ATF1"
	slotBytes = 4 + 8 + 8 + 32 + 8 + 16
	slotPitch = 128 // no slot crosses a disk sector
	slotCount = 1024
)

// FileFence keeps each key's ring in DIR/<key ID in hex>.fence and holds the file's lock as long as it is
// open, so a second process with the same key cannot start.
type FileFence struct {
	dir string

	mu    sync.Mutex // guards rings and what hangs from it
	rings map[KeyID]*ring
}

type ring struct {
	file    *os.File
	seq     uint64          // of the newest record, 0 when there is none
	records [slotCount]slot // by seq modulo slotCount
	unsure  bool            // a write failed: the file must be read and synced again
}

type slot struct {
	seq    uint64
	record Record
}

// OpenFileFence returns the fence in dir, which is made when it is missing.
func OpenFileFence(dir string) (*FileFence, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening fence: %w", err)
	}
	return &FileFence{dir: dir, rings: map[KeyID]*ring{}}, nil
}

// Close gives up all locks.
func (f *FileFence) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for id, r := range f.rings {
		errs = append(errs, r.file.Close())
		delete(f.rings, id)
	}
	return errors.Join(errs...)
}

// Last implements Fence.
func (f *FileFence) Last(_ context.Context, key KeyID) (Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.ring(key)
	if err != nil {
		return Record{}, err
	}
	if r.seq == 0 {
		return Record{}, ErrNoRecord
	}
	return r.records[r.seq%slotCount].record, nil
}

// Recorded implements Fence.
func (f *FileFence) Recorded(_ context.Context, key KeyID, size uint64) (Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.ring(key)
	if err != nil {
		return Record{}, err
	}
	for seq := r.seq; seq > 0 && seq+slotCount > r.seq; seq-- {
		if s := r.records[seq%slotCount]; s.seq == seq && s.record.Size == size {
			return s.record, nil
		}
	}
	return Record{}, ErrNoRecord
}

// Advance implements Fence.
func (f *FileFence) Advance(_ context.Context, key KeyID, prev, next Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.ring(key)
	if err != nil {
		return err
	}
	var last Record
	if r.seq > 0 {
		last = r.records[r.seq%slotCount].record
	}
	if last != prev {
		return ErrStale
	}
	s := slot{seq: r.seq + 1, record: next}
	if err := r.write(key, s); err != nil {
		// The slot may be on disk or not, and a later sync would not tell (a failed fsync
		// drops the error): read and write again before anybody relies on either.
		r.unsure = true
		return fmt.Errorf("writing fence record: %w", err)
	}
	r.seq, r.records[s.seq%slotCount] = s.seq, s
	return nil
}

// ring returns key's open ring, f.mu held.
func (f *FileFence) ring(key KeyID) (*ring, error) {
	r := f.rings[key]
	if r != nil && !r.unsure {
		return r, nil
	}
	if r == nil {
		file, err := openRing(filepath.Join(f.dir, key.String()+".fence"))
		if err != nil {
			return nil, err
		}
		r = &ring{file: file}
		f.rings[key] = r
	}
	// Until the newest record has been read and synced again the ring stays unsure.
	r.unsure = true
	if err := r.read(key); err != nil {
		return nil, err
	}
	if r.seq > 0 {
		if err := r.write(key, r.records[r.seq%slotCount]); err != nil {
			return nil, fmt.Errorf("syncing fence record: %w", err)
		}
	}
	r.unsure = false
	return r, nil
}

func openRing(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := createRing(path); err != nil {
			return nil, fmt.Errorf("creating fence: %w", err)
		}
		file, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("opening fence: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", path, ErrFenceInUse)
		}
		return nil, fmt.Errorf("locking fence %s: %w", path, err)
	}
	return file, nil
}

// createRing makes an empty ring durable under its name, or finds that another process did.
func createRing(path string) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".fence-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(make([]byte, slotPitch*slotCount))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

func (r *ring) read(key KeyID) error {
	raw := make([]byte, slotPitch*slotCount)
	if _, err := r.file.ReadAt(raw, 0); err != nil {
		return fmt.Errorf("reading fence %s: %w", r.file.Name(), err)
	}
	r.seq, r.records = 0, [slotCount]slot{}
	blank := make([]byte, slotPitch)
	var written, torn int
	for i := range slotCount {
		raw := raw[i*slotPitch : (i+1)*slotPitch]
		if bytes.Equal(raw, blank) {
			continue
		}
		written++
		s, ok := parseSlot(key, raw)
		if !ok || s.seq%slotCount != uint64(i) {
			torn++
			continue
		}
		r.records[i] = s
		r.seq = max(r.seq, s.seq)
	}
	// One torn slot is a crash in the last write. With more, or with nothing but a torn one
	// past the first write, it is not known what the key has signed.
	if torn > 1 || torn == 1 && r.seq == 0 && written > 1 {
		return fmt.Errorf("fence %s is damaged: %d of %d records fail their checksum", r.file.Name(), torn, written)
	}
	return nil
}

func (r *ring) write(key KeyID, s slot) error {
	if _, err := r.file.WriteAt(marshalSlot(key, s), int64(s.seq%slotCount)*slotPitch); err != nil {
		return err
	}
	return syscall.Fdatasync(int(r.file.Fd()))
}

func marshalSlot(key KeyID, s slot) []byte {
	b := make([]byte, 0, slotBytes)
	b = append(b, slotMagic...)
	b = binary.BigEndian.AppendUint64(b, s.seq)
	b = binary.BigEndian.AppendUint64(b, s.record.Size)
	b = append(b, s.record.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, s.record.Promised)
	sum := sha256.Sum256(append(key[:], b...))
	return append(b, sum[:16]...)
}

func parseSlot(key KeyID, raw []byte) (slot, bool) {
	var s slot
	body := raw[:slotBytes-16]
	sum := sha256.Sum256(append(key[:], body...))
	if string(body[:4]) != slotMagic || !bytes.Equal(sum[:16], raw[slotBytes-16:slotBytes]) {
		return slot{}, false
	}
	s.seq = binary.BigEndian.Uint64(body[4:])
	s.record.Size = binary.BigEndian.Uint64(body[12:])
	copy(s.record.Root[:], body[20:52])
	s.record.Promised = binary.BigEndian.Uint64(body[52:])
	return s, true
}
