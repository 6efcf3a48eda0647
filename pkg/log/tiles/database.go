package tiles

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

const (
	// dialTimeout and answerTimeout bound what a database that is gone can hold up. A statement may
	// wait for the lock of another process's integration, which takes up to 10 seconds.
	dialTimeout   = 5 * time.Second
	answerTimeout = 20 * time.Second
	// idleSeconds is when the server closes a connection that nobody uses: Tessera closes none, and a
	// process whose machine is gone must not keep its locks.
	idleSeconds = "60"
	// minPacket is what a row of flushBytes needs.
	minPacket = 2 * flushBytes
)

// mysqlDSN is where Tessera keeps the order of entries, with our time limits.
func mysqlDSN(o S3Options) (*mysql.Config, error) {
	cfg, err := mysql.ParseDSN(o.MySQLDSN)
	if err != nil { // without the cause: it may quote the password
		return nil, fault.New(fault.Invalid, "mysql_dsn_invalid", nil, "the MySQL DSN does not have the form user@tcp(host:port)/database")
	}
	if cfg.DBName == "" {
		return nil, fault.New(fault.Invalid, "mysql_dsn_invalid", nil, "the MySQL DSN names no database; each log needs one of its own")
	}
	if o.MySQLPasswordFile != "" {
		if cfg.Passwd, err = secret("", o.MySQLPasswordFile, "MySQL password"); err != nil {
			return nil, err
		}
	}
	cfg.Timeout, cfg.ReadTimeout, cfg.WriteTimeout = dialTimeout, answerTimeout, answerTimeout
	if cfg.Params == nil {
		cfg.Params = map[string]string{}
	}
	cfg.Params["wait_timeout"] = idleSeconds
	return cfg, nil
}

// claimDatabase checks that the server keeps what it has acknowledged, and writes into the database
// which log it belongs to: two logs over one database would mix their entries.
func claimDatabase(ctx context.Context, dsn *mysql.Config, o S3Options, kind log.Kind) (err error) {
	connector, err := mysql.NewConnector(dsn)
	if err != nil {
		return fmt.Errorf("opening MySQL database %s: %w", dsn.DBName, err)
	}
	db := sql.OpenDB(connector)
	defer func() { err = errors.Join(err, db.Close()) }()
	var flush int
	var packet uint64
	if err := db.QueryRowContext(ctx, `SELECT @@innodb_flush_log_at_trx_commit, @@max_allowed_packet`).Scan(&flush, &packet); err != nil {
		return fmt.Errorf("asking MySQL database %s for its settings: %w", dsn.DBName, err)
	}
	if flush != 1 {
		return fault.New(fault.Invalid, "mysql_not_durable", nil,
			"the MySQL server may lose what it has acknowledged: innodb_flush_log_at_trx_commit is %d and must be 1", flush)
	}
	if packet < minPacket {
		return fault.New(fault.Invalid, "mysql_packet_small", nil, "max_allowed_packet of the MySQL server is %d and must be at least %d", packet, minPacket)
	}
	location := o.Bucket + "/" + o.Prefix
	if kind == log.CT {
		location += " (static-ct)"
	}
	if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS AttestryTree (id INT UNSIGNED NOT NULL PRIMARY KEY, location VARBINARY(2048) NOT NULL)`); err != nil {
		return fmt.Errorf("claiming MySQL database %s: %w", dsn.DBName, err)
	}
	if _, err := db.ExecContext(ctx, `INSERT IGNORE INTO AttestryTree (id, location) VALUES (0, ?)`, []byte(location)); err != nil {
		return fmt.Errorf("claiming MySQL database %s: %w", dsn.DBName, err)
	}
	var owner []byte
	if err := db.QueryRowContext(ctx, `SELECT location FROM AttestryTree WHERE id = 0`).Scan(&owner); err != nil {
		return fmt.Errorf("claiming MySQL database %s: %w", dsn.DBName, err)
	}
	if string(owner) != location {
		return fault.New(fault.Invalid, "mysql_of_other_log", nil, "MySQL database %s belongs to the log at %s, not to the one at %s; "+
			"give each log its own, or change the row of table AttestryTree when objects were moved", dsn.DBName, owner, location)
	}
	return nil
}
