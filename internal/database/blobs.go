package database

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
)

// Blobs keeps bytes under their SHA-256, in one table. What is there never changes.
type Blobs struct {
	db          *DB
	insert, get string
}

// OpenBlobs returns the blobs of a table, which is made when it is missing. Its name is one of
// the program's own, not of a user.
func OpenBlobs(ctx context.Context, db *DB, table string) (*Blobs, error) {
	if err := db.Create(ctx, `CREATE TABLE IF NOT EXISTS `+table+` (sum BYTEA PRIMARY KEY, data BYTEA NOT NULL)`); err != nil {
		return nil, err
	}
	return StoredBlobs(db, table), nil
}

// StoredBlobs returns the blobs of a table that is there, for reading.
func StoredBlobs(db *DB, table string) *Blobs {
	return &Blobs{
		db:     db,
		insert: `INSERT INTO ` + table + ` (sum, data) VALUES ($1, $2) ON CONFLICT (sum) DO NOTHING`,
		get:    `SELECT data FROM ` + table + ` WHERE sum = $1`,
	}
}

// Put stores data, durably on return, and returns its sum. The same again changes nothing.
func (b *Blobs) Put(ctx context.Context, data []byte) ([32]byte, error) {
	sum := sha256.Sum256(data)
	if _, err := b.db.ExecContext(ctx, b.insert, sum[:], data); err != nil {
		return sum, fmt.Errorf("storing %x: %w", sum, Away(err))
	}
	return sum, nil
}

// Get returns the data of a sum; ok is false when there is none.
func (b *Blobs) Get(ctx context.Context, sum [32]byte) (data []byte, ok bool, err error) {
	err = b.db.QueryRowContext(ctx, b.get, sum[:]).Scan(&data)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("reading %x: %w", sum, Away(err))
	case sha256.Sum256(data) != sum:
		return nil, false, fmt.Errorf("what is stored as %x has another hash: restore it from a backup", sum)
	}
	return data, true, nil
}
