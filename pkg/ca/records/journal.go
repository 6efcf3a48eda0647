package records

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	ring "github.com/attestry/attestry/internal/journal"
)

const (
	ringBytes = 8 << 20 // some seconds of the most that a CA can issue
	maxFrame  = 1 << 20 // bytes of rows that are journaled at once
)

func journalPath(database string) string { return database + ".pending" }

// journal makes rows durable before they are in SQLite: one write in place and one data sync, where a commit of random keys
// writes several pages for each row and syncs them two or three times. A frame of the ring has rows that were answered for together, as
// lines of JSON, which Issued prints; seq and hash come later. append is for one goroutine, the rest for another.
type journal struct {
	path string

	mu      sync.Mutex    // guards what follows
	ring    *ring.Journal // nil while another process has it
	frames  []frame       // whose rows are not in the database, in order
	serials map[string]bool
}

type frame struct {
	number uint64
	rows   []*Issued
}

// openJournal opens the journal of a database, if no other process has it.
func openJournal(database string) (*journal, error) {
	j := &journal{path: journalPath(database), serials: map[string]bool{}}
	if err := j.take(); err != nil && !errors.Is(err, ring.ErrInUse) {
		return nil, err
	}
	return j, nil
}

// take opens the ring, and reads what is pending in it.
func (j *journal) take() error {
	r, frames, err := ring.Open(j.path, ringBytes)
	if err != nil {
		return damaged(j.path, err)
	}
	var all []frame
	for _, f := range frames {
		rows, err := decode(f)
		if err != nil {
			return errors.Join(damaged(j.path, err), r.Close())
		}
		all = append(all, frame{f.Number, rows})
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ring = r
	j.add(all...)
	return nil
}

// add notes frames that are durable, j.mu held.
func (j *journal) add(frames ...frame) {
	j.frames = append(j.frames, frames...)
	for _, f := range frames {
		for _, r := range f.rows {
			j.serials[r.Serial] = true
		}
	}
}

// damaged says what to do about a journal that cannot be read.
func damaged(path string, err error) error {
	if !errors.Is(err, ring.ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w; %s holds records that are not in the database yet: restore both from a backup, or move it away to go on "+
		"without those records: what can be read of them are lines of JSON, and the CT log has the certificates", err, path)
}

// append makes rows durable; lines are those of fit. After an error nobody knows whether they are.
func (j *journal) append(rows []*Issued, lines []byte) error {
	r := j.held()
	if r == nil {
		return fmt.Errorf("%s: %w", j.path, ring.ErrInUse)
	}
	number, err := r.Append(lines)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.add(frame{number, rows})
	return nil
}

// held returns the ring; nil while another process has it.
func (j *journal) held() *ring.Journal {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ring
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
	for _, f := range j.frames {
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
	for len(j.frames) > 0 && j.frames[0].number <= through {
		j.frames = j.frames[1:]
	}
	for _, r := range rows {
		delete(j.serials, r.Serial)
	}
	j.ring.Free(through)
}

// close notes in the ring what is in the database, so that the next start has nothing to compare, and gives it up.
func (j *journal) close() error {
	if r := j.held(); r != nil {
		return r.Close()
	}
	return nil
}

// readPending returns the rows in the journal of a database that another process may be writing, oldest first. They may be in the
// database already, and when the caller looks there afterwards no row is in neither.
func readPending(database string) (rows []*Issued, err error) {
	path := journalPath(database)
	frames, err := ring.Read(path)
	if err != nil {
		return nil, damaged(path, err)
	}
	for _, f := range frames {
		some, err := decode(f)
		if err != nil {
			return nil, damaged(path, err)
		}
		rows = append(rows, some...)
	}
	return rows, nil
}

// writePending makes a journal of rows alone, as a backup has it. It is not synced.
func writePending(database string, rows []*Issued) error {
	var payloads [][]byte
	for len(rows) > 0 {
		lines, n, err := fit(rows)
		if err != nil {
			return err
		}
		payloads, rows = append(payloads, lines), rows[n:]
	}
	return ring.Create(journalPath(database), payloads)
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

// appendRow adds the line of r.
func appendRow(b []byte, r *Issued) ([]byte, error) {
	line := bytes.NewBuffer(b)
	enc := json.NewEncoder(line)
	enc.SetEscapeHTML(false)
	err := enc.Encode(r)
	return line.Bytes(), err
}

// decode reads the rows of a frame. A newer program's would lose what this one does not know, so they are an error.
func decode(f ring.Frame) (rows []*Issued, err error) {
	for line := range bytes.Lines(f.Payload) {
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		r := new(Issued)
		if err := dec.Decode(r); err != nil {
			return nil, fmt.Errorf("%w: frame %d is of another version: %w", ring.ErrDamaged, f.Number, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}
