package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

const (
	connectTimeout   = 10 * time.Second
	statementTimeout = 30 * time.Second
	silence          = 10 * time.Second // of a server past its statement timeout
	maxPassword      = 4096             // bytes of a password file
)

// server makes connections to a PostgreSQL server; it is a driver.Connector.
type server struct {
	uri          url.URL // without the password, if a file holds it
	passwordFile string
	dialer       dialer
}

func openPostgres(ctx context.Context, uri string, o Options) (*DB, error) {
	s, err := newServer(uri, o)
	if err != nil {
		return nil, err
	}
	db := &DB{engine: PostgreSQL, name: s.uri.Redacted() + ", schema " + o.Schema, schema: o.Schema, server: s}
	if _, err := s.config(); err != nil {
		return nil, fmt.Errorf("opening %s: %w", db, err)
	}
	db.DB = sql.OpenDB(s)
	db.SetMaxOpenConns(orElse(o.MaxConns, 16))
	db.SetMaxIdleConns(orElse(o.MaxConns, 16))
	db.SetConnMaxIdleTime(5 * time.Minute)
	db.SetConnMaxLifetime(time.Hour)
	if o.ReadOnly {
		err = db.PingContext(ctx)
	} else {
		err = db.createSchema(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", db, err), db.Close())
	}
	return db, nil
}

func newServer(uri string, o Options) (*server, error) {
	if !regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`).MatchString(o.Schema) || o.Schema == "public" || strings.HasPrefix(o.Schema, "pg_") {
		return nil, fmt.Errorf("%q cannot be the PostgreSQL schema of a log: take a lower-case letter and at most 62 letters, digits and _", o.Schema)
	}
	u, err := url.Parse(uri)
	if err != nil { // it quotes the URI, and that may hold a password
		return nil, errors.New("the PostgreSQL URI is malformed (percent-encode what is special in its parts)")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("the parameters of the PostgreSQL URI are malformed")
	}
	for _, name := range []string{"password", "sslinline", "service", "search_path", "options", "statement_timeout"} {
		if q.Has(name) {
			return nil, fmt.Errorf("the PostgreSQL URI sets %s: secrets belong into files, the rest into the configuration", name)
		}
	}
	for name, values := range q {
		if len(values) > 1 {
			return nil, fmt.Errorf("the PostgreSQL URI sets %s more than once", name)
		}
	}
	if u.Opaque != "" || u.Fragment != "" || u.User.Username() == "" || len(u.Path) < 2 || u.Host == "" && q.Get("host") == "" {
		return nil, errors.New("a PostgreSQL URI names a user, a host and a database: postgres://USER@HOST/DATABASE")
	}
	if _, has := u.User.Password(); has && o.PasswordFile != "" {
		return nil, errors.New("the PostgreSQL password is given both in the URI and as a file")
	}
	// lib/pq takes defaults from these, and they would lead elsewhere than the URI says.
	for _, name := range []string{"PGHOSTADDR", "PGSERVICE", "PGOPTIONS"} {
		if os.Getenv(name) != "" {
			return nil, fmt.Errorf("the environment variable %s would change where or how the database is used; unset it", name)
		}
	}
	session := "read-write"
	if o.ReadOnly {
		session = "primary" // the same server, whose transactions here do not write
		q.Set("default_transaction_read_only", "on")
	}
	for name, value := range map[string]string{
		"sslmode":                   "verify-full",
		"target_session_attrs":      session,
		"connect_timeout":           strconv.Itoa(int(max(time.Second, orElse(o.ConnectTimeout, connectTimeout)) / time.Second)),
		"fallback_application_name": "attestry",
	} {
		if !q.Has(name) {
			q.Set(name, value)
		}
	}
	statement := orElse(o.StatementTimeout, statementTimeout)
	q.Set("search_path", o.Schema)
	q.Set("jit", "off") // our statements are short: compiling one, or starting workers for it, takes longer than it does
	q.Set("max_parallel_workers_per_gather", "0")
	q.Set("statement_timeout", strconv.FormatInt(max(1, statement.Milliseconds()), 10))
	u.RawQuery = q.Encode()
	return &server{uri: *u, passwordFile: o.PasswordFile, dialer: dialer{patience: statement + silence}}, nil
}

// createSchema makes the schema when it is missing. Asking first lets a user without the
// right to make schemas work in one that an administrator made.
func (db *DB) createSchema(ctx context.Context) error {
	var n int
	if err := db.QueryRowContext(ctx, `SELECT count(*) FROM pg_namespace WHERE nspname = $1`, db.schema).Scan(&n); err != nil || n == 1 {
		return err
	}
	_, err := db.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS `+pq.QuoteIdentifier(db.schema))
	if Unique(err) || pq.As(err, pqerror.DuplicateSchema) != nil {
		return nil // another process made it meanwhile
	}
	return err
}

// dsn returns the URI with the password.
func (s *server) dsn() (string, error) {
	u := s.uri
	if s.passwordFile != "" {
		password, err := readPassword(s.passwordFile)
		if err != nil {
			return "", err
		}
		u.User = url.UserPassword(u.User.Username(), password)
	}
	return u.String(), nil
}

func (s *server) config() (pq.Config, error) {
	dsn, err := s.dsn()
	if err != nil {
		return pq.Config{}, err
	}
	return pq.NewConfig(dsn)
}

// Connect implements driver.Connector.
func (s *server) Connect(ctx context.Context) (driver.Conn, error) {
	cfg, err := s.config()
	if err != nil {
		return nil, err
	}
	c, err := pq.NewConnectorConfig(cfg)
	if err != nil {
		return nil, err
	}
	c.Dialer(s.dialer)
	return c.Connect(ctx)
}

// Driver implements driver.Connector.
func (s *server) Driver() driver.Driver { return &pq.Driver{} }

func readPassword(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("reading the database password: %w", err)
	}
	if info.Size() > maxPassword {
		return "", fmt.Errorf("the database password file %s is over %d bytes", path, maxPassword)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the database password: %w", err)
	}
	password := strings.TrimRight(string(raw), "\r\n")
	if password == "" {
		return "", fmt.Errorf("the database password file %s is empty", path)
	}
	return password, nil
}

// dialer gives connections that do not wait for ever on a server that went away without a word.
type dialer struct {
	net      net.Dialer
	patience time.Duration // 0 waits for ever
}

func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.net.DialContext(ctx, network, address)
	if err != nil || d.patience == 0 {
		return conn, err
	}
	return &patientConn{Conn: conn, patience: d.patience}, nil
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialTimeout(network, address, connectTimeout)
}

func (d dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// patientConn bounds each read and write, except while a deadline for all of them is set, as
// lib/pq does until a connection has started up. lib/pq reads only while it waits for an answer.
type patientConn struct {
	net.Conn
	patience time.Duration
	bounded  bool
}

func (c *patientConn) SetDeadline(t time.Time) error {
	c.bounded = !t.IsZero()
	return c.Conn.SetDeadline(t)
}

func (c *patientConn) Read(b []byte) (int, error) {
	if !c.bounded {
		if err := c.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(b)
}

func (c *patientConn) Write(b []byte) (int, error) {
	if !c.bounded {
		if err := c.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}
