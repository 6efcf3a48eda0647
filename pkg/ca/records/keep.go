package records

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/attestry/attestry/internal/database"
)

// keep writes to the database what nobody waits for, until Close.
func (s *Store) keep() {
	defer close(s.kept)
	gather := time.Duration(0) // PostgreSQL has no rows to gather but refusals
	if s.journal != nil {
		gather = gatherTime
	}
	pause := gather
	for last := false; !last; {
		select {
		case <-s.later:
			select {
			case <-time.After(pause):
			case <-s.stop:
				last = true
			}
		case <-s.stop:
			last = true
		}
		if s.catchUp(last) {
			pause = gather
		} else {
			pause = pauseTime
			notify(s.later)
		}
	}
}

// catchUp writes the rows of the journal and the refusals. While the database is away they stay.
func (s *Store) catchUp(last bool) (done bool) {
	held := true
	if s.journal != nil {
		if held = s.journal.held() != nil || s.take(); held && !s.flush() {
			return false
		}
	}
	s.mu.Lock()
	refused := s.refusals.take(s.opts.Now(), last)
	s.mu.Unlock()
	return (len(refused) == 0 || s.refuse(refused)) && held
}

// take opens the journal that another process had. What that left in it may be in the database already.
func (s *Store) take() bool {
	err := s.journal.take()
	switch {
	case err == nil:
		s.unsure = true
		s.opts.Logger.Info("the journal of the CA's records is free now", "journal", s.journal.path)
	case !s.told:
		s.told = true
		s.opts.Logger.Error("there is no journal for the CA's records: each certificate waits for the database", "err", err)
	}
	return err == nil
}

// flush puts the rows of the journal into the database, in their order.
func (s *Store) flush() bool {
	for {
		rows, through := s.journal.pending(maxFlush)
		s.metrics.pending.Set(float64(len(rows)))
		if len(rows) == 0 {
			s.unsure = false
			return true
		}
		err := s.commit(func(ctx context.Context, tx *sql.Tx) error {
			head, err := lockHead(ctx, tx, s.db.Engine(), issuedTable)
			if err != nil {
				return err
			}
			missing := rows
			if s.unsure {
				if missing, err = s.missing(ctx, tx, rows); err != nil {
					return err
				}
			}
			return appendRows(ctx, tx, s.db.Engine(), issuedTable, head, missing)
		})
		if err != nil {
			s.unsure = true
			return false
		}
		s.journal.stored(rows, through)
	}
}

// missing returns those of rows that are not in the database. A second certificate with a serial number, which random numbers that repeat
// would give, is no row of issued, but leaves one in refused.
func (s *Store) missing(ctx context.Context, tx *sql.Tx, rows []*Issued) (missing []*Issued, err error) {
	there, err := certificates(ctx, tx, rows)
	if err != nil {
		return nil, err
	}
	var twins []*Refused
	for _, r := range rows {
		switch certificate, ok := there[r.Serial]; {
		case !ok:
			missing = append(missing, r)
			there[r.Serial] = r.Certificate
		case certificate != r.Certificate:
			detail := fmt.Sprintf("certificate %s was issued with serial number %s of another, for %s", r.Certificate, r.Serial, r.Identity)
			s.opts.Logger.Error("two certificates have one serial number: stop the CA and find out why its random numbers repeat", "serial", r.Serial)
			twins = append(twins, &Refused{
				Time: r.Time, Reason: reasonTwin, Issuer: r.Issuer, Token: r.Token, RequestID: r.RequestID, Detail: clean(detail[:min(len(detail), maxDetail)]),
			})
		}
	}
	if len(twins) == 0 {
		return missing, nil
	}
	head, err := lockHead(ctx, tx, s.db.Engine(), refusedTable)
	if err != nil {
		return nil, err
	}
	return missing, appendRows(ctx, tx, s.db.Engine(), refusedTable, head, twins)
}

const reasonTwin = "serial_number_twice"

// certificates returns the hash of the certificate with each serial number that is in the database.
func certificates(ctx context.Context, tx *sql.Tx, rows []*Issued) (map[string]string, error) {
	there := map[string]string{}
	for len(rows) > 0 {
		chunk := rows[:min(len(rows), perQuery)]
		rows = rows[len(chunk):]
		args := make([]any, len(chunk))
		for i, r := range chunk {
			args[i] = r.Serial
		}
		found, err := tx.QueryContext(ctx, `SELECT serial, certificate FROM issued WHERE serial IN `+placeholders(1, len(args)), args...)
		if err != nil {
			return nil, err
		}
		for found.Next() {
			var serial, certificate string
			if err := found.Scan(&serial, &certificate); err != nil {
				found.Close()
				return nil, err
			}
			there[serial] = certificate
		}
		if err := found.Err(); err != nil {
			return nil, err
		}
	}
	return there, nil
}

// perQuery is how many rows are looked up at once.
const perQuery = 32

// refuse commits refusals, or puts them back.
func (s *Store) refuse(rows []*Refused) bool {
	err := s.commit(func(ctx context.Context, tx *sql.Tx) error {
		head, err := lockHead(ctx, tx, s.db.Engine(), refusedTable)
		if err != nil {
			return err
		}
		return appendRows(ctx, tx, s.db.Engine(), refusedTable, head, rows)
	})
	// An unknown outcome is not tried again: it could stand there twice, and two rows that are one request mislead more than none.
	if err == nil || database.Unsure(err) {
		s.metrics.rows.WithLabelValues("refused").Add(float64(len(rows)))
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusals.back(rows)
	return false
}
