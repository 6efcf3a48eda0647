package log

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/services"
)

// Two processes ask for the lead; the first sends nothing for a while, between statements or in a transaction.
func TestALeaderThatIsSilentLosesTheLead(t *testing.T) {
	uri := services.Postgres(t)
	for name, silent := range map[string]func(t *testing.T, first *leadership, lost func()){
		"between statements": func(_ *testing.T, _ *leadership, lost func()) { lost() },
		"in a transaction": func(t *testing.T, first *leadership, lost func()) {
			err := first.transact(t.Context(), func(tx *sql.Tx) error {
				if _, err := tx.ExecContext(t.Context(), `INSERT INTO things VALUES (1)`); err != nil {
					t.Error(err)
				}
				lost()
				return nil
			})
			if !errors.Is(err, errFollow) {
				t.Errorf("the transaction of a lost leader: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			db, err := database.Open(ctx, uri, database.Options{Schema: "lead"})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if err := db.Create(ctx, `CREATE TABLE IF NOT EXISTS things (n BIGINT)`); err != nil {
				t.Fatal(err)
			}
			// A lock of its own: the server ends a released session a moment later.
			key := KeyID(sha256.Sum256([]byte(name)))
			first, second := newLeadership(db, key, true), newLeadership(db, key, true)
			first.silence = 200 * time.Millisecond
			if err := first.transact(ctx, func(*sql.Tx) error { return nil }); !errors.Is(err, errFollow) {
				t.Errorf("a transaction before leading: %v", err)
			}
			if ok, err := first.try(ctx); !ok || err != nil {
				t.Fatalf("try = %v, %v", ok, err)
			}
			defer first.release()
			if ok, err := second.try(ctx); ok || err != nil {
				t.Fatalf("the second leads too: %v, %v", ok, err)
			}
			defer second.release()
			silent(t, first, func() {
				ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
				defer cancel()
				for {
					ok, err := second.try(ctx)
					if err != nil {
						t.Fatal(err)
					}
					if ok {
						return
					}
				}
			})
			if err := first.check(ctx); !errors.Is(err, errFollow) {
				t.Errorf("check = %v", err)
			}
			if err := first.transact(ctx, func(*sql.Tx) error { return nil }); !errors.Is(err, errFollow) {
				t.Errorf("transact = %v", err)
			}
			var n int
			if err := db.QueryRowContext(ctx, `SELECT COUNT(*) FROM things`).Scan(&n); err != nil || n != 0 {
				t.Errorf("%d rows of a leader that was gone, %v", n, err)
			}
			if err := second.transact(ctx, func(*sql.Tx) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
}
