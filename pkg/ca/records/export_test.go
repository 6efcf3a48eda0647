package records

import "errors"

// Settle returns once the rows of the journal are in the database.
func (s *Store) Settle() {
	for s.journal != nil {
		if rows, _ := s.journal.pending(1); len(rows) == 0 {
			return
		}
	}
}

var JournalPath = journalPath

const RingBytes = ringBytes

// FailJournal has all writes to the journal fail.
func (s *Store) FailJournal() error {
	r := s.journal.held()
	if r == nil {
		return errors.New("another process has it")
	}
	return r.Close()
}

// HasJournal tells whether s holds the journal.
func (s *Store) HasJournal() bool { return s.journal.held() != nil }
