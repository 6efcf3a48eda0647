package records

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/attestry/attestry/internal/durable"
)

const (
	ringPages = 2048 // 8 MiB: some seconds of the most that a CA can issue
	ringBytes = ringPages * pageBytes
	readTries = 20 // of a ring that is being written
)

func journalPath(database string) string { return database + ".pending" }

var (
	errInUse  = errors.New("another process has the journal")
	errFull   = errors.New("the journal is full")
	errRemake = errors.New("the journal must be made anew")
)

// journal makes rows durable before they are in SQLite: one write in place and one data sync, where a commit of random keys
// writes several pages for each row and syncs them two or three times. Its file has its whole size from the beginning, so that a
// sync changes no metadata. append is for one goroutine, the rest for another.
type journal struct {
	path string
	lock *os.File // locked as long as the journal is this process's
	file *os.File

	mu      sync.Mutex // guards what follows, and file
	ring    ring
	done    uint64          // frames up to it are in the database
	serials map[string]bool // of the frames after it
	broken  error           // why nothing is appended until renew
	known   bool            // it is locked, and what was in it is in ring
}

// ring is which pages are taken. Frames after the done of the newest frame are kept: what is on disk, not what is known, decides after a crash.
type ring struct {
	newest uint64  // number of the last frame
	marked uint64  // its done
	next   int     // page after it
	kept   []frame // after marked, in order
}

// place returns where pages fit without touching kept frames.
func (r *ring) place(pages int) (page int, ok bool) {
	if len(r.kept) == 0 {
		if r.next+pages > ringPages {
			return 0, pages <= ringPages
		}
		return r.next, true
	}
	switch oldest := r.kept[0].page; {
	case r.next <= oldest:
		return r.next, r.next+pages < oldest
	case r.next+pages <= ringPages:
		return r.next, true
	default:
		return 0, pages < oldest
	}
}

// openJournal opens the journal of a database. While another process has it, and when it is missing or a backup's, it is given up
// until renew.
func openJournal(database string) (*journal, error) {
	lock, err := os.OpenFile(database+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	j := &journal{path: journalPath(database), lock: lock, serials: map[string]bool{}}
	if j.broken = j.open(); j.broken != nil && !errors.Is(j.broken, errInUse) && !errors.Is(j.broken, errRemake) {
		return nil, errors.Join(j.broken, lock.Close())
	}
	return j, nil
}

// open takes the lock, if nobody has it, and reads what is pending.
func (j *journal) open() error {
	if err := syscall.Flock(int(j.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("%s: %w", j.lock.Name(), errInUse)
		}
		return fmt.Errorf("locking %s: %w", j.lock.Name(), err)
	}
	raw, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.known = true
		return fmt.Errorf("%s is not there: %w", j.path, errRemake)
	}
	if err != nil {
		return err
	}
	pending, newest, err := parseRing(raw)
	if err != nil {
		return damaged(j.path, err)
	}
	if len(raw) == ringBytes {
		if j.file, err = os.OpenFile(j.path, os.O_RDWR, 0); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.known = true
	j.ring = ring{newest: newest.number, marked: newest.done, next: newest.page + newest.pages, kept: pending}
	j.done = newest.done
	for _, f := range pending {
		for _, r := range f.rows {
			j.serials[r.Serial] = true
		}
	}
	if j.file == nil { // a backup's
		return fmt.Errorf("%s has %d bytes instead of %d: %w", j.path, len(raw), ringBytes, errRemake)
	}
	return nil
}

// renew mends a journal that was given up, once all its rows are in the database; there may be others then.
func (j *journal) renew() error {
	if j.ours() {
		return j.create()
	}
	err := j.open()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken = err; errors.Is(err, errRemake) {
		return nil
	}
	return err
}

// ours tells whether nobody else has the journal and what was in it is known: only then may it be replaced.
func (j *journal) ours() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.known
}

// damaged says what to do about a journal that cannot be read.
func damaged(path string, err error) error {
	return fmt.Errorf("%s, which holds records that are not in the database yet, is damaged: %w; restore both from a backup, or move it away to go on "+
		"without those records: what can be read of them are lines of JSON, and the CT log has the certificates", path, err)
}

// create replaces the file by an empty one, once all its rows are in the database.
func (j *journal) create() error {
	tmp, err := os.CreateTemp(filepath.Dir(j.path), durable.Temp+"*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once the rename has happened
	_, err = tmp.Write(make([]byte, ringBytes))
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Sync()); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := os.Rename(tmp.Name(), j.path); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := durable.SyncDir(filepath.Dir(j.path)); err != nil {
		return errors.Join(err, tmp.Close())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.file
	j.file, j.broken, j.done = tmp, nil, j.ring.newest
	j.ring = ring{newest: j.ring.newest, marked: j.ring.newest}
	if before != nil {
		before.Close() // what it holds is in the database
	}
	return nil
}

// append makes rows durable; lines are those of fit. After an error nobody knows whether they are, and the journal is given up until
// renew.
func (j *journal) append(rows []*Issued, lines []byte) error {
	f, b, err := j.prepare(rows, lines)
	if err != nil {
		return err
	}
	// The file is replaced only while the journal is given up, so nobody does now.
	_, err = j.file.WriteAt(b, int64(f.page)*pageBytes)
	if err == nil {
		err = syscall.Fdatasync(int(j.file.Fd()))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		// The frame may be on disk or not, and a later sync would not tell.
		j.broken = fmt.Errorf("writing %s: %w", j.path, err)
		return j.broken
	}
	j.ring.newest, j.ring.marked, j.ring.next = f.number, f.done, f.page+f.pages
	j.ring.kept = append(j.ring.kept, f)
	for j.ring.kept[0].number <= f.done {
		j.ring.kept = j.ring.kept[1:]
	}
	for _, r := range f.rows {
		j.serials[r.Serial] = true
	}
	return nil
}

// prepare returns the next frame, its place and its bytes.
func (j *journal) prepare(rows []*Issued, lines []byte) (frame, []byte, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return frame{}, nil, j.broken
	}
	f := frame{number: j.ring.newest + 1, done: j.done, rows: rows, pages: pagesOf(len(lines))}
	var ok bool
	if f.page, ok = j.ring.place(f.pages); !ok {
		// Frames stay taken until a later one says that they are in the database, for which there may be no room any more: begin anew.
		j.broken = fmt.Errorf("%s: %w", j.path, errFull)
		return frame{}, nil, j.broken
	}
	return f, marshalFrame(f.number, f.done, lines), nil
}

// has tells whether a serial number is pending.
func (j *journal) has(serial string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.serials[serial]
}

// pending returns the rows that are not in the database, oldest first, at most about limit; through is the number of their last frame.
func (j *journal) pending(limit int) (rows []*Issued, through uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	through = j.done
	for _, f := range j.ring.kept {
		if f.number <= j.done {
			continue
		}
		if len(rows) > 0 && len(rows)+len(f.rows) > limit {
			break
		}
		rows, through = append(rows, f.rows...), f.number
	}
	return rows, through
}

// stored notes that the rows of the frames up to through are durable in the database.
func (j *journal) stored(rows []*Issued, through uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.done = through
	for _, r := range rows {
		delete(j.serials, r.Serial)
	}
	for i := range j.ring.kept { // their pages stay taken
		if j.ring.kept[i].number <= through {
			j.ring.kept[i].rows = nil
		}
	}
}

func (j *journal) failure() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.broken
}

// close marks what is in the database, so that the next start has nothing to compare, and gives up the lock.
func (j *journal) close() error {
	var err error
	if j.failure() == nil && j.unmarked() {
		err = j.append(nil, nil)
	}
	if j.file != nil {
		err = errors.Join(err, j.file.Close())
	}
	return errors.Join(err, j.lock.Close())
}

// unmarked tells whether the newest frame on disk does not say what is in the database.
func (j *journal) unmarked() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.done > j.ring.marked
}

// readPending returns the rows in the journal of a database that another process may be writing, oldest first. They may be in the
// database already, and when the caller looks there afterwards no row is in neither.
func readPending(database string) ([]*Issued, error) {
	path := journalPath(database)
	var err error
	for range readTries { // what is missing was being written, or overwritten
		var raw []byte
		if raw, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		var frames []frame
		if frames, _, err = parseRing(raw); err == nil {
			var rows []*Issued
			for _, f := range frames {
				rows = append(rows, f.rows...)
			}
			return rows, nil
		}
	}
	return nil, damaged(path, err)
}

// writePending makes a journal of rows alone, as a backup has it. It is not synced.
func writePending(database string, rows []*Issued) error {
	f, err := os.OpenFile(journalPath(database), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	var number uint64
	for len(rows) > 0 && err == nil {
		var lines []byte
		var n int
		if lines, n, err = fit(rows); err != nil {
			break
		}
		number++
		b := marshalFrame(number, 0, lines)
		_, err = f.Write(append(b, make([]byte, pagesOf(len(lines))*pageBytes-len(b))...))
		rows = rows[n:]
	}
	return errors.Join(err, f.Close())
}

// fit returns the lines of the first n rows, as many as fit into a frame.
func fit(rows []*Issued) (lines []byte, n int, err error) {
	for _, r := range rows {
		longer, err := appendRow(lines, r)
		if err != nil {
			return nil, 0, err
		}
		if len(longer) > maxFrame {
			if n == 0 {
				return nil, 0, fmt.Errorf("the record of certificate %s has %d bytes", r.Serial, len(longer))
			}
			return lines, n, nil
		}
		lines, n = longer, n+1
	}
	return lines, n, nil
}
