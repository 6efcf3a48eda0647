package index

import (
	"fmt"
	"strconv"
	"strings"
)

// The schema in one place, in SQL that SQLite and PostgreSQL both take. BYTEA has no meaning
// to SQLite, which then stores the bytes as they are.
//
// A key is kept as the first 16 bytes of its SHA-256: rows stay small whatever a subject's
// length, and the file holds no addresses in clear. Rows are grouped in segments of
// segmentEntries leaves, so that inserts touch only the newest part of the tree of rows,
// however large the whole has become; a search walks the segments from the newest.
//
// index_state has one row: how far the log is indexed (the cursor) and the leaf hash before
// the cursor, by which a file that belongs to another log is recognized.
const (
	createKeys = `CREATE TABLE IF NOT EXISTS index_keys (
	segment   BIGINT NOT NULL,
	key_hash  BYTEA  NOT NULL,
	log_index BIGINT NOT NULL,
	PRIMARY KEY (segment, key_hash, log_index)
)`
	createState = `CREATE TABLE IF NOT EXISTS index_state (
	id          BIGINT PRIMARY KEY CHECK (id = 1),
	version     BIGINT NOT NULL,
	next_index  BIGINT NOT NULL,
	last_leaf   BYTEA  NOT NULL
)`
	// SQLite alone: the rows live in the primary key's tree and not beside it a second time.
	sqliteClustered = ` WITHOUT ROWID`

	insertState = `INSERT INTO index_state (id, version, next_index, last_leaf) VALUES (1, $1, 0, $2) ON CONFLICT (id) DO NOTHING`
	selectState = `SELECT version, next_index, last_leaf, EXISTS (SELECT 1 FROM index_keys) FROM index_state WHERE id = 1`
	// The condition keeps a second follower from moving the cursor over this one's keys.
	updateState = `UPDATE index_state SET next_index = $1, last_leaf = $2 WHERE id = 1 AND next_index = $3`
	deleteKeys  = `DELETE FROM index_keys`
	dropKeys    = `DROP TABLE index_keys`
	dropState   = `DROP TABLE index_state`
	// PostgreSQL alone: it is done at once, however many rows there are, and returns their space.
	truncateKeys = `TRUNCATE index_keys`
	// PostgreSQL alone: all rows in three arrays.
	insertArrays = `INSERT INTO index_keys (segment, key_hash, log_index) SELECT * FROM unnest($1::BIGINT[], $2::BYTEA[], $3::BIGINT[]) ON CONFLICT DO NOTHING`
)

// The questions of a search, each for one of its keys. %s is a list of segments, which are
// numbers, and %d the number of the key's parameter; $1 is the end of what may be found and $2 the limit.
const (
	selectKey  = `SELECT log_index FROM index_keys WHERE segment IN (%s) AND key_hash = $%d AND log_index < $1 ORDER BY log_index DESC LIMIT $2`
	countKey   = `SELECT COUNT(*) FROM (SELECT 1 FROM index_keys WHERE segment IN (%s) AND key_hash = $%d AND log_index < $1 LIMIT $2) AS few`
	selectBoth = `SELECT a.log_index FROM index_keys a WHERE a.segment IN (%s) AND a.key_hash = $%d AND a.log_index < $1`
	andAlso    = ` AND EXISTS (SELECT 1 FROM index_keys b WHERE b.segment = a.segment AND b.key_hash = $%d AND b.log_index = a.log_index)`
	newestOf   = ` ORDER BY a.log_index DESC LIMIT $2`

	firstKey = 3 // number of the first key's parameter
)

// version is of the schema and of how keys are hashed: a file of another one is rebuilt.
const version = 1

// segmentEntries is how many leaves share a segment.
const segmentEntries = 1 << 16

// rowsPerInsert is how many rows one INSERT of SQLite carries. The driver looks each $n up in a
// list of all, so that the cost of long statements grows with the square of their length.
const rowsPerInsert = 32

// rowsPerArray is how many rows one INSERT of PostgreSQL carries.
const rowsPerArray = 8192

// insertKeys returns the statement that inserts n rows into SQLite.
func insertKeys(n int) string {
	statement := make([]byte, 0, 64+n*24)
	statement = append(statement, "INSERT INTO index_keys (segment, key_hash, log_index) VALUES "...)
	for i := range n {
		if i > 0 {
			statement = append(statement, ',')
		}
		statement = fmt.Appendf(statement, "($%d,$%d,$%d)", 3*i+1, 3*i+2, 3*i+3)
	}
	return string(append(statement, " ON CONFLICT DO NOTHING"...))
}

// list returns the segments from first down, n of them, for IN.
func list(first int64, n int) string {
	var b []byte
	for i := range int64(n) {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, first-i, 10)
	}
	return string(b)
}

// unionOf returns the statement for entries that have any of n keys.
func unionOf(segments string, n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf(`SELECT log_index FROM (`+selectKey+`) AS k%d`, segments, firstKey+i, i)
	}
	return strings.Join(parts, " UNION ALL ")
}

// countsOf returns the statement for how many entries each of n keys has, in one row.
func countsOf(segments string, n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf(`(`+countKey+`)`, segments, firstKey+i)
	}
	return "SELECT " + strings.Join(parts, ", ")
}

// intersectionOf returns the statement for entries that have all of n keys, the first of them few.
func intersectionOf(segments string, n int) string {
	statement := fmt.Sprintf(selectBoth, segments, firstKey)
	for i := range n - 1 {
		statement += fmt.Sprintf(andAlso, firstKey+1+i)
	}
	return statement + newestOf
}
