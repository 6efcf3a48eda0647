// Package journal makes bytes durable at the price of one write in place and one data sync. Its file is a ring of pages that has its
// whole size from the beginning, so that a sync changes no metadata. It is for what goes to another store soon, which takes it in
// larger pieces.
//
// What one Append made durable is a frame, which begins on a page of its own, so that no write touches a page of another frame that is
// kept:
//
//	frame = "\xffATJ1\r\n\x00" number(8) freed(8) length(4) sum(16) payload(length)   big endian, sum = SHA-256(what else there is)[:16]
//
// Frames are numbered from 1, without gaps. A frame that fails its checksum is one that was overwritten or, after the newest, one that a
// crash tore before Append returned.
package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/attestry/attestry/internal/durable"
)

const (
	magic     = "\xffATJ1\r\n\x00"
	headBytes = len(magic) + 8 + 8 + 4 + sumBytes
	sumBytes  = 16
	pageBytes = 4096
)

var (
	// ErrFull says that the frame fits only once others are freed, or never.
	ErrFull = errors.New("the journal is full")
	// ErrInUse says that another process has the journal open.
	ErrInUse = errors.New("the journal is held by another process")
)

// Frame is what one Append made durable.
type Frame struct {
	Number  uint64
	Payload []byte

	freed       uint64 // frames up to it were free when it was written
	page, pages int
}

// Journal is an open ring, locked against other processes. Append is for one goroutine at a time.
type Journal struct {
	file *os.File

	mu     sync.Mutex // guards what follows
	pages  int
	newest uint64  // number of the last frame
	freed  uint64  // frames up to it are not needed
	next   int     // page after the last frame
	kept   []Frame // after freed, in order, without their payloads
}

// Open opens or makes the ring of size bytes, a multiple of 4 KiB, at path, and returns the frames that were not known to be free when
// the last of them was written, oldest first. A ring that is longer stays so.
func Open(path string, size int64) (*Journal, []Frame, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("opening journal: %w", err)
	}
	j, frames, err := open(file, size)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("opening journal %s: %w", path, err), file.Close())
	}
	return j, frames, nil
}

func open(file *os.File, size int64) (*Journal, []Frame, error) {
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nil, ErrInUse
		}
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	if info.Size() < size {
		if err := errors.Join(file.Truncate(size), file.Sync(), durable.SyncDir(filepath.Dir(file.Name()))); err != nil {
			return nil, nil, err
		}
	} else {
		size = info.Size()
	}
	raw := make([]byte, size)
	if _, err := file.ReadAt(raw, 0); err != nil {
		return nil, nil, err
	}
	j := &Journal{file: file, pages: int(size / pageBytes)}
	frames := parse(raw)
	for _, f := range frames {
		f.Payload = nil
		j.kept = append(j.kept, f)
	}
	if n := len(j.kept); n > 0 {
		last := j.kept[n-1]
		j.newest, j.freed, j.next = last.Number, last.freed, last.page+last.pages
	}
	return j, frames, nil
}

// Read returns the frames of the ring at path as Open does, while another process may be writing it: what it frees and overwrites
// meanwhile may be missing. It returns none when there is no ring.
func Read(path string) ([]Frame, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading journal: %w", err)
	}
	return parse(raw), nil
}

// parse returns the frames that the newest one does not know to be free, in order.
func parse(raw []byte) []Frame {
	var frames []Frame
	for page := 0; page*pageBytes < len(raw); page++ {
		if f, ok := parseFrame(raw[page*pageBytes:]); ok {
			f.page = page
			frames = append(frames, f)
		}
	}
	slices.SortFunc(frames, func(a, b Frame) int { return int(int64(a.Number - b.Number)) })
	if n := len(frames); n > 0 {
		freed := frames[n-1].freed
		frames = slices.DeleteFunc(frames, func(f Frame) bool { return f.Number <= freed })
	}
	return frames
}

func parseFrame(b []byte) (f Frame, ok bool) {
	if len(b) < headBytes || string(b[:len(magic)]) != magic {
		return f, false
	}
	at := len(magic)
	f.Number, f.freed = binary.BigEndian.Uint64(b[at:]), binary.BigEndian.Uint64(b[at+8:])
	length := uint64(binary.BigEndian.Uint32(b[at+16:]))
	if length > uint64(len(b)-headBytes) {
		return f, false
	}
	b = b[:headBytes+int(length)]
	if sum := sumOf(b); !bytes.Equal(sum[:], b[headBytes-sumBytes:headBytes]) || f.freed >= f.Number {
		return f, false
	}
	f.Payload, f.pages = b[headBytes:], pagesOf(int(length))
	return f, true
}

func marshal(number, freed uint64, payload []byte) []byte {
	b := make([]byte, headBytes, headBytes+len(payload))
	at := copy(b, magic)
	binary.BigEndian.PutUint64(b[at:], number)
	binary.BigEndian.PutUint64(b[at+8:], freed)
	binary.BigEndian.PutUint32(b[at+16:], uint32(len(payload)))
	b = append(b, payload...)
	sum := sumOf(b)
	copy(b[headBytes-sumBytes:], sum[:])
	return b
}

func sumOf(b []byte) (sum [sumBytes]byte) {
	h := sha256.New()
	h.Write(b[:headBytes-sumBytes])
	h.Write(b[headBytes:])
	copy(sum[:], h.Sum(nil))
	return sum
}

func pagesOf(length int) int { return (headBytes + length + pageBytes - 1) / pageBytes }

// Append makes payload durable as the next frame and returns its number. After ErrFull nothing was written. After any other error the
// frame may be on disk or not, and keeps its number and its place.
func (j *Journal) Append(payload []byte) (number uint64, err error) {
	f, err := j.prepare(len(payload))
	if err != nil {
		return 0, err
	}
	if _, err = j.file.WriteAt(marshal(f.Number, f.freed, payload), int64(f.page)*pageBytes); err == nil {
		err = syscall.Fdatasync(int(j.file.Fd()))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.newest, j.next = f.Number, f.page+f.pages
	j.kept = append(j.kept, f)
	if err != nil {
		return 0, fmt.Errorf("writing journal %s: %w", j.file.Name(), err)
	}
	return f.Number, nil
}

func (j *Journal) prepare(length int) (Frame, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := Frame{Number: j.newest + 1, freed: j.freed, pages: pagesOf(length)}
	var ok bool
	if f.page, ok = j.place(f.pages); !ok {
		return Frame{}, fmt.Errorf("%s: %w", j.file.Name(), ErrFull)
	}
	return f, nil
}

// place returns where pages fit without touching frames that are kept.
func (j *Journal) place(pages int) (page int, ok bool) {
	if len(j.kept) == 0 {
		if j.next+pages > j.pages {
			return 0, pages <= j.pages
		}
		return j.next, true
	}
	switch oldest := j.kept[0].page; {
	case j.next <= oldest:
		return j.next, j.next+pages <= oldest && j.next < oldest
	case j.next+pages <= j.pages:
		return j.next, true
	default:
		return 0, pages <= oldest
	}
}

// Free says that frames up to number are durable elsewhere: their pages may be overwritten.
func (j *Journal) Free(number uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.freed = max(j.freed, min(number, j.newest))
	for len(j.kept) > 0 && j.kept[0].Number <= j.freed {
		j.kept = j.kept[1:]
	}
}

// Close gives up the file and its lock. What was appended stays.
func (j *Journal) Close() error { return j.file.Close() }
