package records

import "os"

// Settle returns once the rows of the journal are in the database.
func (s *Store) Settle() {
	for s.journal != nil {
		if rows, _ := s.journal.pending(1); len(rows) == 0 {
			return
		}
	}
}

var (
	ParseRing    = parseRing
	MarshalFrame = marshalFrame
	JournalPath  = journalPath
)

const (
	PageBytes = pageBytes
	RingBytes = ringBytes
	FrameHead = frameHead
)

// FailJournal has the next write to the journal fail.
func (s *Store) FailJournal() error {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	file, err := os.Open(s.journal.path) // for reading
	if err == nil {
		s.journal.file.Close()
		s.journal.file = file
	}
	return err
}

// Numbers returns a frame's number and done.
func Numbers(f frame) (number, done uint64) { return f.number, f.done }
