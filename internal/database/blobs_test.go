package database_test

import (
	"crypto/sha256"
	"path/filepath"
	"testing"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/services"
)

func TestBlobsAreFoundByTheirHashAlone(t *testing.T) {
	for name, uri := range map[string]string{"sqlite": "sqlite:" + filepath.Join(t.TempDir(), "blobs.db"), "postgres": services.Postgres(t)} {
		t.Run(name, func(t *testing.T) {
			db, err := database.Open(t.Context(), uri, database.Options{Schema: "blobs"})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for range 2 { // a second process finds the table
				blobs, err := database.OpenBlobs(t.Context(), db, "issuers")
				if err != nil {
					t.Fatal(err)
				}
				data := []byte("a certificate")
				for range 2 {
					if sum, err := blobs.Put(t.Context(), data); err != nil || sum != sha256.Sum256(data) {
						t.Fatalf("Put = %x, %v", sum, err)
					}
				}
				got, ok, err := blobs.Get(t.Context(), sha256.Sum256(data))
				if err != nil || !ok || string(got) != string(data) {
					t.Errorf("Get = %q, %v, %v", got, ok, err)
				}
				if _, ok, err := blobs.Get(t.Context(), [32]byte{1}); ok || err != nil {
					t.Errorf("something that was never stored: %v, %v", ok, err)
				}
			}
			if _, err := db.ExecContext(t.Context(), `UPDATE issuers SET data = $1`, []byte("another")); err != nil {
				t.Fatal(err)
			}
			blobs, err := database.OpenBlobs(t.Context(), db, "issuers")
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := blobs.Get(t.Context(), sha256.Sum256([]byte("a certificate"))); err == nil {
				t.Error("damaged data was returned")
			}
		})
	}
}
