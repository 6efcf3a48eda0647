package ct_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// A check reads what SCTs stand for: fields, times, issuers, and the chains of a plain log.
func TestACheckKnowsCertificates(t *testing.T) {
	for name, kind := range map[string]log.Kind{"static": log.CT, "plain": log.CTPlain} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t, "root")
			s := newSiteOf(t, kind, ct.Options{}, a.root)
			for range 20 {
				if _, err := s.handler.AddPreChain(t.Context(), a.precertChain()); err != nil {
					t.Fatal(err)
				}
			}
			cp := s.log.Checkpoint()
			signed, err := log.ParseCheckpoint(kind, origin, origin, s.key, cp.Note)
			if err != nil || signed.Size != 20 || signed.Root != cp.Root {
				t.Fatalf("its checkpoint: %v, %v", signed, err)
			}
			forged := append([]byte{}, cp.Note...)
			forged[len(origin)+1] = '3' // size 30
			if _, err := log.ParseCheckpoint(kind, origin, origin, s.key, forged); err == nil {
				t.Error("a forged checkpoint was taken")
			}
			issuers := filepath.Join(s.dir, "issuers")
			check := func(now time.Time) (found []string) {
				tree, err := tiles.OpenDir(filepath.Join(s.dir, "tiles"), kind)
				if err != nil {
					t.Fatal(err)
				}
				rows, err := log.OpenStoredRows(s.dir)
				if err != nil {
					t.Fatal(err)
				}
				defer rows.Close()
				_, err = log.Check(t.Context(), log.CheckOptions{
					Kind: kind, Tree: tree, Rows: rows, Signed: []log.SignedTree{signed}, Now: func() time.Time { return now },
					Issuer: func(f [32]byte) ([]byte, error) { return os.ReadFile(filepath.Join(issuers, fmt.Sprintf("%x", f))) },
					Report: func(f log.Finding) { found = append(found, f.What) },
				})
				if err != nil {
					t.Fatal(err)
				}
				return found
			}
			if found := check(time.Now()); len(found) > 0 {
				t.Errorf("a healthy log: %v", found)
			}
			if found := check(time.Now().Add(-time.Hour)); len(found) != 20 || found[0] != "leaf" {
				t.Errorf("a clock before the timestamps: %v", found)
			}
			want := "row_extra"
			if kind == log.CT {
				want = "issuer"
				files, err := filepath.Glob(filepath.Join(issuers, "*"))
				if err != nil || len(files) == 0 {
					t.Fatal(files, err)
				}
				for _, file := range files {
					if err := os.WriteFile(file, []byte("another"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			} else {
				db, err := sql.Open("sqlite", filepath.Join(s.dir, "entries.db"))
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				if _, err := db.Exec(`DELETE FROM extras WHERE identity = (SELECT identity FROM leaves WHERE idx = 7)`); err != nil {
					t.Fatal(err)
				}
			}
			if found := check(time.Now()); len(found) == 0 || found[0] != want {
				t.Errorf("with lost chains: %v, want %s", found, want)
			}
		})
	}
}
