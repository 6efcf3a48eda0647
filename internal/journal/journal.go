// Package journal makes bytes durable at the price of one write in place and one data sync. Its file is a ring of pages of 4 KiB that has
// its whole size from the beginning, so that a sync changes no metadata and a full disk takes nothing away. It is for what goes to another
// store soon, which takes it in larger pieces.
//
// The first page is the ring's head. What one Append made durable is a frame, which begins on a page of its own, so that no write touches a
// page of another frame that is needed:
//
//	head  = "attestry ring 1\n" id(8) key(32) sum(16)                                   sum = SHA-256(what else there is)[:16]
//	frame = id(8) number(8) before(8) freed(8) length(4) sum(16) payload(length)        sum = HMAC-SHA-256(key, what else there is)[:16]
//
// Integers are big endian. id and key are random and the file is its owner's alone: whoever chooses bytes of a payload cannot have them taken for a frame. Frames are numbered
// upwards from 1. The frames that the newest one needs are those with numbers above its freed, each found by the before of the one that follows
// it; all of them must be there, and nothing writes over them. A frame that fails its checksum is one that was overwritten or, if it would
// be the newest, one that a crash tore before Append returned. A frame that is in nobody's before is one whose Append failed.
package journal

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
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
	magic     = "attestry ring 1\n"
	idBytes   = 8
	keyBytes  = 32
	sumBytes  = 16
	ringHead  = len(magic) + idBytes + keyBytes + sumBytes
	frameHead = idBytes + 8 + 8 + 8 + 4 + sumBytes
	pageBytes = 4096
	maxBytes  = 1 << 30 // of a file
	readTries = 20      // of a ring that is being written
)

var (
	// ErrFull says that the frame fits only once others are freed, or never.
	ErrFull = errors.New("the journal is full")
	// ErrInUse says that another process has the journal open.
	ErrInUse = errors.New("the journal is held by another process")
	// ErrDamaged says that the file is no journal, or that frames are missing that were durable and not freed.
	ErrDamaged = errors.New("the journal is damaged")
)

// Frame is what one Append made durable.
type Frame struct {
	Number  uint64
	Payload []byte

	before      uint64 // number of the frame before it; 0 for none
	freed       uint64 // frames up to it were free when it was written
	page, pages int
}

// Journal is an open ring, locked against other processes. Append is for one goroutine at a time.
type Journal struct {
	file  *os.File
	ident ident
	write func(b []byte, at int64) error // on return b is durable

	mu     sync.Mutex // guards what follows
	pages  int
	newest uint64  // number that was used last, if in vain
	last   uint64  // number of the last frame
	freed  uint64  // frames up to it are not needed
	marked uint64  // what the last frame says of that: it decides after a crash
	next   int     // page after the last frame
	kept   []Frame // after marked, in order, without their payloads
}

// ident tells a ring's frames from all other bytes.
type ident struct {
	id  [idBytes]byte
	key [keyBytes]byte
}

// Open opens or makes the ring of size bytes, a multiple of 4 KiB, at path, and returns the frames that were not known to be free when
// the last of them was written, oldest first. A ring that is longer stays so, one that is shorter (Create) grows.
func Open(path string, size int64) (*Journal, []Frame, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err = create(path, size); err == nil || errors.Is(err, fs.ErrExist) { // another process makes it, too
			file, err = os.OpenFile(path, os.O_RDWR, 0)
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("opening journal: %w", err)
	}
	j, frames, err := open(file, size)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("opening journal %s: %w", path, err), file.Close())
	}
	return j, frames, nil
}

// create makes an empty ring, whole or not at all. It never replaces one: another process may have locked it.
func create(path string, size int64) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), durable.Temp+"*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(newIdent().head(), make([]byte, size-pageBytes)...))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
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
	if info.Size() < pageBytes || info.Size() > maxBytes {
		return nil, nil, fmt.Errorf("%w: it has %d bytes", ErrDamaged, info.Size())
	}
	raw := make([]byte, max(info.Size(), size)/pageBytes*pageBytes)
	if n, err := file.ReadAt(raw[:min(info.Size(), int64(len(raw)))], 0); err != nil {
		return nil, nil, fmt.Errorf("after %d bytes: %w", n, err)
	}
	ring, err := parse(raw)
	if err != nil {
		return nil, nil, err
	}
	if info.Size() < size {
		if _, err := file.WriteAt(make([]byte, size-info.Size()), info.Size()); err != nil {
			return nil, nil, err
		}
		if err := file.Sync(); err != nil {
			return nil, nil, err
		}
	}
	// A frame whose sync failed may be read from memory and not be on disk: only a new write makes sure.
	for _, f := range ring.frames {
		from := f.page * pageBytes
		if _, err := file.WriteAt(raw[from:from+frameHead+len(f.Payload)], int64(from)); err != nil {
			return nil, nil, err
		}
	}
	if err := syscall.Fdatasync(int(file.Fd())); err != nil {
		return nil, nil, err
	}
	j := &Journal{file: file, ident: ring.ident, write: writer(file), pages: len(raw) / pageBytes, next: 1}
	for _, f := range ring.frames {
		j.newest, j.last, j.freed, j.marked, j.next = f.Number, f.Number, f.freed, f.freed, f.page+f.pages
		f.Payload = nil
		j.kept = append(j.kept, f)
	}
	return j, ring.filled(), nil
}

// writer returns a Journal's write.
func writer(file *os.File) func([]byte, int64) error {
	return func(b []byte, at int64) error {
		if _, err := file.WriteAt(b, at); err != nil {
			return err
		}
		return syscall.Fdatasync(int(file.Fd()))
	}
}

// Read returns the frames of the ring at path as Open does, while another process may be writing it, and none when there is no ring. What the
// other frees before Read returns may be missing.
func Read(path string) ([]Frame, error) {
	var err error
	for range readTries { // what is missing was being written, or overwritten
		var raw []byte
		if raw, err = read(path); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		} else if err != nil {
			break
		}
		var r ring
		if r, err = parse(raw); err == nil {
			return r.filled(), nil
		}
	}
	return nil, fmt.Errorf("reading journal %s: %w", path, err)
}

func read(path string) ([]byte, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.Size() > maxBytes {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrDamaged, info.Size())
	}
	return os.ReadFile(path)
}

// Create makes a ring with a frame for each payload, no longer than they need, at path, where nothing is yet. It is not synced.
func Create(path string, payloads [][]byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("making journal: %w", err)
	}
	n := newIdent()
	b := n.head()
	for i, payload := range payloads {
		b = append(b, n.marshal(Frame{Number: uint64(i) + 1, before: uint64(i)}, payload)...)
		b = append(b, make([]byte, -len(b)&(pageBytes-1))...)
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func newIdent() (n ident) {
	rand.Read(n.id[:]) // never fails
	rand.Read(n.key[:])
	return n
}

// head returns the first page.
func (n ident) head() []byte {
	b := append(append([]byte(magic), n.id[:]...), n.key[:]...)
	sum := sha256.Sum256(b)
	b = append(b, sum[:sumBytes]...)
	return append(b, make([]byte, pageBytes-len(b))...)
}

func parseHead(b []byte) (n ident, err error) {
	if len(b) < pageBytes || string(b[:len(magic)]) != magic {
		return n, fmt.Errorf("%w: it has no head", ErrDamaged)
	}
	if sum := sha256.Sum256(b[:ringHead-sumBytes]); !bytes.Equal(sum[:sumBytes], b[ringHead-sumBytes:ringHead]) {
		return n, fmt.Errorf("%w: its head has a wrong checksum", ErrDamaged)
	}
	copy(n.key[:], b[len(magic)+copy(n.id[:], b[len(magic):]):])
	return n, nil
}

// ring is what a file has.
type ring struct {
	ident  ident
	frames []Frame // that the newest needs, it included, in order
}

// filled returns the frames that have a payload; the others only say what is free.
func (r ring) filled() []Frame {
	return slices.DeleteFunc(slices.Clone(r.frames), func(f Frame) bool { return len(f.Payload) == 0 })
}

func parse(raw []byte) (r ring, err error) {
	if r.ident, err = parseHead(raw); err != nil {
		return r, err
	}
	all := map[uint64]Frame{}
	var newest Frame
	for page := 1; page*pageBytes < len(raw); {
		f, ok := r.ident.parse(raw[page*pageBytes:])
		if !ok {
			page++
			continue
		}
		f.page = page
		if _, twice := all[f.Number]; twice {
			return r, fmt.Errorf("%w: there are two frames %d", ErrDamaged, f.Number)
		}
		all[f.Number] = f
		if f.Number > newest.Number {
			newest = f
		}
		page += f.pages
	}
	for f := newest; f.Number > newest.freed; {
		r.frames = append(r.frames, f)
		if f.before <= newest.freed {
			break
		}
		before, ok := all[f.before]
		if !ok {
			return ring{}, fmt.Errorf("%w: frame %d is missing before frame %d, of which all after %d must be there", ErrDamaged, f.before, f.Number, newest.freed)
		}
		f = before
	}
	slices.Reverse(r.frames)
	return r, nil
}

// parse returns the frame at the beginning of b, if there is one that is whole.
func (n ident) parse(b []byte) (f Frame, ok bool) {
	if len(b) < frameHead || !bytes.Equal(b[:idBytes], n.id[:]) {
		return f, false
	}
	f.Number = binary.BigEndian.Uint64(b[idBytes:])
	f.before = binary.BigEndian.Uint64(b[idBytes+8:])
	f.freed = binary.BigEndian.Uint64(b[idBytes+16:])
	length := uint64(binary.BigEndian.Uint32(b[idBytes+24:]))
	if length > uint64(len(b)-frameHead) || f.before >= f.Number || f.freed >= f.Number {
		return f, false
	}
	b = b[:frameHead+int(length)]
	if !hmac.Equal(n.sum(b), b[frameHead-sumBytes:frameHead]) {
		return f, false
	}
	f.Payload, f.pages = b[frameHead:], pagesOf(int(length))
	return f, true
}

func (n ident) marshal(f Frame, payload []byte) []byte {
	b := make([]byte, frameHead, frameHead+len(payload))
	copy(b, n.id[:])
	binary.BigEndian.PutUint64(b[idBytes:], f.Number)
	binary.BigEndian.PutUint64(b[idBytes+8:], f.before)
	binary.BigEndian.PutUint64(b[idBytes+16:], f.freed)
	binary.BigEndian.PutUint32(b[idBytes+24:], uint32(len(payload)))
	b = append(b, payload...)
	copy(b[frameHead-sumBytes:], n.sum(b))
	return b
}

// sum is over all of a frame but the sum.
func (n ident) sum(b []byte) []byte {
	h := hmac.New(sha256.New, n.key[:])
	h.Write(b[:frameHead-sumBytes])
	h.Write(b[frameHead:])
	return h.Sum(nil)[:sumBytes]
}

func pagesOf(length int) int { return (frameHead + length + pageBytes - 1) / pageBytes }

// Append makes payload, which is not empty, durable as the next frame and returns its number. After ErrFull nothing was written. After any
// other error the frame may come back from Open or not, until a later one is durable: then it does not.
func (j *Journal) Append(payload []byte) (number uint64, err error) {
	f, err := j.prepare(len(payload), 1)
	if errors.Is(err, ErrFull) && j.unmarked() {
		if err := j.mark(); err != nil {
			return 0, err
		}
		f, err = j.prepare(len(payload), 1)
	}
	if err != nil {
		return 0, err
	}
	return f.Number, j.put(f, payload)
}

// mark says on disk what is free: before that its pages stay taken. Other frames leave a page for it.
func (j *Journal) mark() error {
	f, err := j.prepare(0, 0)
	if err != nil {
		return err
	}
	return j.put(f, nil)
}

// unmarked tells whether more is free than the last frame says.
func (j *Journal) unmarked() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.freed > j.marked
}

// prepare returns the next frame. Behind it there is room for so many pages to spare.
func (j *Journal) prepare(length, spare int) (Frame, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := Frame{Number: j.newest + 1, before: j.last, freed: j.freed, pages: pagesOf(length)}
	var ok bool
	if f.page, ok = j.place(f.pages, spare); !ok {
		return Frame{}, fmt.Errorf("%s: %w", j.file.Name(), ErrFull)
	}
	return f, nil
}

func (j *Journal) put(f Frame, payload []byte) error {
	err := j.write(j.ident.marshal(f, payload), int64(f.page)*pageBytes)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.newest = f.Number // also in vain: it may be on disk, and no other may have its number
	if err != nil {
		return fmt.Errorf("writing journal %s: %w", j.file.Name(), err)
	}
	j.last, j.marked, j.next = f.Number, f.freed, f.page+f.pages
	j.kept = append(j.kept, f)
	for j.kept[0].Number <= j.marked {
		j.kept = j.kept[1:]
	}
	return nil
}

// place returns where pages fit without touching frames that are kept, with so many to spare behind them.
func (j *Journal) place(pages, spare int) (page int, ok bool) {
	if len(j.kept) == 0 {
		return j.next, j.next+pages+spare <= j.pages
	}
	oldest := j.kept[0].page
	switch {
	case j.next <= oldest: // the ring has come round
		return j.next, j.next+pages+spare <= oldest
	case j.next+pages+spare <= j.pages, j.next+pages <= j.pages && 1+spare <= oldest:
		return j.next, true
	default:
		return 1, 1+pages+spare <= oldest
	}
}

// Free says that frames up to number are durable elsewhere. They are overwritten once a frame has said so on disk.
func (j *Journal) Free(number uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.freed = max(j.freed, min(number, j.last))
}

// Close notes on disk what is free, and gives up the file and its lock. What was appended stays.
func (j *Journal) Close() error {
	var err error
	if j.unmarked() {
		err = j.mark()
	}
	return errors.Join(err, j.file.Close())
}
