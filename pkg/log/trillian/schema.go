package trillian

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/attestry/attestry/internal/fault"
)

// schema has the tables and the function that Trillian 1.8.0's PostgreSQL storage works on for logs.
//
//go:embed schema.sql
var schema string

// schemaLock is the advisory lock under which tables and trees are made ("attestry").
const schemaLock = 0x6174746573747279

// createSchema makes what is missing. A schema that Trillian's own file made stays as it is.
func createSchema(ctx context.Context, conn *pgx.Conn) error {
	var there bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass('trees') IS NOT NULL`).Scan(&there); err != nil {
		return storeError(ctx, fmt.Errorf("looking for Trillian's tables: %w", err))
	}
	if there {
		return nil
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, schema); err != nil {
			return fmt.Errorf("creating Trillian's tables: %w", err)
		}
		return nil
	})
}

// checkDurable refuses a server that acknowledges commits which a crash can undo.
func checkDurable(ctx context.Context, conn *pgx.Conn) error {
	for _, setting := range []string{"fsync", "synchronous_commit"} {
		var value string
		if err := conn.QueryRow(ctx, `SELECT current_setting($1)`, setting).Scan(&value); err != nil {
			return storeError(ctx, fmt.Errorf("reading the setting %s: %w", setting, err))
		}
		if value == "off" {
			return fault.New(fault.Invalid, "postgres_not_durable", nil, "the PostgreSQL server may lose what it has acknowledged: %s is off", setting)
		}
	}
	return nil
}
