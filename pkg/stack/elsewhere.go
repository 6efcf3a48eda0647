package stack

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// Logs whose rows or trees are in a database or a bucket are copied with the tools of those. Trees come first and rows
// afterwards: rows of what is not in the tree are dropped, but a leaf without its row, whose time or chain that is, cannot be served.

// ElsewhereBackup says what to run in place of Backup, in its order, for logs that are not all in directories; "" when they are.
func (o LogsOptions) ElsewhereBackup() string {
	if !o.elsewhere() {
		return ""
	}
	var steps []string
	for _, spec := range o.Logs {
		steps = append(steps, "tree of "+spec.Label+": "+spec.Tree.dump(spec.Label, filepath.Join(o.Dir, spec.Label)))
	}
	if o.Database != "" {
		steps = append(steps, "rows, issuers, attestations: pg_dump --format=custom --schema='log_*' --file=rows.dump "+quote(withoutPassword(o.Database))+
			"\n     never the schema fence: a fence must not go back in time")
	} else {
		for _, spec := range o.Logs {
			steps = append(steps, fmt.Sprintf("rows of %s: sqlite3 %s \"VACUUM INTO '%s.entries.db'\"", spec.Label, quote(filepath.Join(o.Dir, spec.Label, "entries.db")), spec.Label))
		}
	}
	steps = append(steps, "the rest of "+o.Dir+", without entries.db and index.db",
		"the newest checkpoint of each log: should later entries be lost, `tlog -adopt` wants one of exactly the tree that is left, unless the fence knows it",
		"the keys, apart from all that")
	return list("these logs are not all in directories, and backup copies nothing else. Run, in this order, while the servers run:", steps)
}

// ElsewhereRestore says what to do in place of Restore, see ElsewhereBackup.
func (o LogsOptions) ElsewhereRestore() string {
	if !o.elsewhere() {
		return ""
	}
	steps := []string{"stop every server of these logs"}
	for _, spec := range o.Logs {
		steps = append(steps, "tree of "+spec.Label+": "+spec.Tree.load(spec.Label, filepath.Join(o.Dir, spec.Label)))
	}
	if o.Database != "" {
		steps = append(steps, "rows: drop the schemas log_* of "+withoutPassword(o.Database)+", then pg_restore --dbname="+quote(withoutPassword(o.Database))+" rows.dump")
	} else {
		for _, spec := range o.Logs {
			steps = append(steps, fmt.Sprintf("rows of %s: put %[1]s.entries.db in place as %s, without the -wal and -shm files", spec.Label, filepath.Join(o.Dir, spec.Label, "entries.db")))
		}
	}
	steps = append(steps, "the rest of "+o.Dir+", and the keys", "the fence stays as it is, never restored",
		"`attestry log fsck --config FILE`; a log that lacks what it has signed does not start and says what `tlog -adopt` it takes")
	return list("these logs are not all in directories, and restore writes nothing else. In this order:", steps)
}

func (o LogsOptions) elsewhere() bool {
	for _, spec := range o.Logs {
		if spec.Tree.Shared() {
			return true
		}
	}
	return o.Database != ""
}

// dump says how the tree is copied while the log runs.
func (s TreeSpec) dump(label, dir string) string {
	switch s.Store {
	case StoreS3:
		// Objects are never changed: a bucket that is copied after the database has all that this speaks of.
		return "mysqldump --single-transaction " + s.mysql() + " > " + label + ".sql\n     and then aws s3 sync " + s.objects(label) + " " + label
	case StoreTrillian:
		return "the database of the Trillian log server at " + s.Address + ", as a whole and in one transaction (pg_dump, mysqldump --single-transaction)"
	case StoreEmbedded:
		return "pg_dump --format=custom --file=" + label + ".dump " + quote(withoutPassword(s.PostgresURI))
	default:
		return "a snapshot of the volume of " + filepath.Join(dir, "tiles")
	}
}

func (s TreeSpec) load(label, dir string) string {
	switch s.Store {
	case StoreS3:
		return "aws s3 sync " + label + " " + s.objects(label) + "\n     and then, into an empty database, mysql " + s.mysql() + " < " + label + ".sql"
	case StoreTrillian:
		return "the database of the Trillian log server at " + s.Address
	case StoreEmbedded:
		return "into an empty database: pg_restore --dbname=" + quote(withoutPassword(s.PostgresURI)) + " " + label + ".dump"
	default:
		return filepath.Join(dir, "tiles")
	}
}

// mysql are the arguments of a MySQL client, without the password.
func (s TreeSpec) mysql() string {
	cfg, err := mysql.ParseDSN(s.MySQLDSN)
	if err != nil {
		return "the database of tree.mysql-dsn"
	}
	if host, port, err := net.SplitHostPort(cfg.Addr); err == nil && cfg.Net == "tcp" {
		return fmt.Sprintf("--host=%s --port=%s --user=%s --password %s", host, port, cfg.User, cfg.DBName)
	}
	return fmt.Sprintf("--socket=%s --user=%s --password %s", cfg.Addr, cfg.User, cfg.DBName)
}

func (s TreeSpec) objects(label string) string {
	return "--endpoint-url " + quote(s.Endpoint) + " " + quote("s3://"+s.Bucket+"/"+strings.Trim(s.s3(label).Prefix, "/")+"/")
}

func withoutPassword(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return "the database"
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}

// quote makes text one word of a shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func list(head string, steps []string) string {
	var b strings.Builder
	b.WriteString(head)
	for i, step := range steps {
		fmt.Fprintf(&b, "\n  %d. %s", i+1, step)
	}
	return b.String()
}
