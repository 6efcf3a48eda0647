package records

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca"
)

const (
	// keepTime is how long a token is remembered after its end: a clock that is set back by less makes no token new.
	keepTime  = 2 * time.Hour
	sweepTime = time.Minute // between commits that forget
	maxSweep  = 100_000     // rows that one of them forgets
	perTokens = 32          // tokens in one statement

	reasonInUse    = "token_in_use"
	reasonReplayed = "replayed"
)

func inUse() error {
	return fault.New(fault.Overloaded, reasonInUse, nil, "the token is in use by another request; try again")
}

func replayed() error {
	return fault.New(fault.Unauthentic, reasonReplayed, nil, "the token was used for a certificate before")
}

// applyTokens releases, reserves and uses up the tokens of jobs; the outcome of a job that may not go on is set.
// Nobody else writes tokens meanwhile: the head is locked.
func (s *Store) applyTokens(ctx context.Context, tx *sql.Tx, jobs []*job, outcomes []error) error {
	now := s.opts.Now()
	reserve, use := map[string][]int{}, map[string][]int{} // indexes of jobs by token
	for i, j := range jobs {
		switch {
		case j.release != nil:
			if _, err := tx.ExecContext(ctx, `DELETE FROM tokens WHERE token = $1 AND holder = $2 AND serial = ''`,
				hex.EncodeToString(j.release.TokenID[:]), hex.EncodeToString(j.release.Holder[:])); err != nil {
				return err
			}
		case j.reserve != nil:
			token := hex.EncodeToString(j.reserve.TokenID[:])
			reserve[token] = append(reserve[token], i)
		case j.use != nil:
			token := hex.EncodeToString(j.use.TokenID[:])
			use[token] = append(use[token], i)
		}
	}
	if err := s.reserve(ctx, tx, jobs, reserve, outcomes, now); err != nil {
		return err
	}
	if err := useUp(ctx, tx, jobs, use, outcomes); err != nil {
		return err
	}
	if since := now.Sub(s.swept); len(reserve) == 0 || since >= 0 && since < sweepTime {
		return nil
	}
	s.swept = now
	_, err := tx.ExecContext(ctx, `DELETE FROM tokens WHERE token IN (SELECT token FROM tokens WHERE expires < $1 LIMIT $2)`,
		now.Add(-keepTime).UnixMilli(), maxSweep)
	return err
}

// reserve holds each token for the first of its jobs, unless it was used or is held.
func (s *Store) reserve(ctx context.Context, tx *sql.Tx, jobs []*job, byToken map[string][]int, outcomes []error, now time.Time) error {
	var values [][]any
	var tokens []any
	for token, indexes := range byToken {
		u := jobs[indexes[0]].reserve
		values = append(values, []any{token, hex.EncodeToString(u.Holder[:]), now.Add(ca.HoldTime).UnixMilli(), u.Expires.UnixMilli(), ""})
		tokens = append(tokens, token)
		for _, i := range indexes {
			outcomes[i] = inUse()
		}
	}
	for chunk := range slices.Chunk(values, perTokens) {
		args := append(flat(chunk), now.UnixMilli())
		held, err := texts(tx.QueryContext(ctx, `INSERT INTO tokens (token, holder, held_until, expires, serial) VALUES `+placeholders(len(chunk), 5)+
			` ON CONFLICT (token) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until, expires = excluded.expires
				WHERE tokens.serial = '' AND tokens.held_until < `+fmt.Sprintf("$%d", len(args))+` RETURNING token`, args...))
		if err != nil {
			return err
		}
		for _, token := range held {
			outcomes[byToken[token][0]] = nil
		}
	}
	for chunk := range slices.Chunk(tokens, perTokens) {
		used, err := texts(tx.QueryContext(ctx, `SELECT token FROM tokens WHERE serial <> '' AND token IN `+placeholders(1, len(chunk)), chunk...))
		if err != nil {
			return err
		}
		for _, token := range used {
			for _, i := range byToken[token] {
				outcomes[i] = replayed()
			}
		}
	}
	return nil
}

// useUp marks tokens as used by those who hold them.
func useUp(ctx context.Context, tx *sql.Tx, jobs []*job, byToken map[string][]int, outcomes []error) error {
	var values [][]any
	bySerial := map[string]int{}
	for token, indexes := range byToken {
		for _, i := range indexes {
			values = append(values, []any{token, hex.EncodeToString(jobs[i].use.Holder[:]), jobs[i].issued.Serial})
			bySerial[jobs[i].issued.Serial] = i
			outcomes[i] = replayed()
		}
	}
	for chunk := range slices.Chunk(values, perTokens) {
		serials, err := texts(tx.QueryContext(ctx, `UPDATE tokens SET serial = n.column3 FROM (VALUES `+placeholders(len(chunk), 3)+`) AS n
			WHERE tokens.token = n.column1 AND tokens.holder = n.column2 AND tokens.serial = '' RETURNING serial`, flat(chunk)...))
		if err != nil {
			return err
		}
		for _, serial := range serials {
			outcomes[bySerial[serial]] = nil
		}
	}
	return nil
}

// texts reads a query of one column.
func texts(found *sql.Rows, err error) ([]string, error) {
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var all []string
	for found.Next() {
		var text string
		if err := found.Scan(&text); err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	return all, found.Err()
}
