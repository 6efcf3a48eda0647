package tiles

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/go-sql-driver/mysql"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	tesseraaws "github.com/transparency-dev/tessera/storage/aws"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// S3Options say where the tree is.
type S3Options struct {
	// Endpoint is the URL of the S3 API and the only host that is asked for objects. The server must
	// honour If-None-Match on PUT and show a write to the next read.
	Endpoint string
	Region   string // what requests are signed for; "" means us-east-1
	Bucket   string // exists already
	Prefix   string // before every key; one for each log in a bucket
	// PathStyle puts the bucket into the path, not into the host name.
	PathStyle bool
	// AccessKey and SecretKey, or the files that hold them.
	AccessKey, AccessKeyFile string
	SecretKey, SecretKeyFile string
	// AmbientCredentials takes credentials from where the AWS SDK finds them instead: environment,
	// shared files, web identity, and the metadata service of the cloud. It is the one setting with which
	// hosts other than Endpoint and the database are contacted.
	AmbientCredentials bool
	// MySQLDSN is "user@tcp(host:port)/database?tls=true" (github.com/go-sql-driver/mysql), of
	// MySQL 8 or MariaDB 10.11 and later. Each log has a database of its own.
	MySQLDSN          string
	MySQLPasswordFile string // "" for the password in MySQLDSN
	// MaxOutstanding is how many entries may wait for integration before Append waits too; 0 means 8192.
	// Tessera integrates all that wait once a second, and gives up, to begin again, after 10 seconds:
	// the store must take 2*MaxOutstanding/256 objects in that time.
	MaxOutstanding uint
	// MaxConns bounds the connections to MySQL; 0 means 8.
	MaxConns int
}

const (
	defaultMaxOutstanding = 8 * log.MaxBatch
	defaultMaxConns       = 8
	// flushBytes bounds what one flush of Tessera's, a row of MySQL, may carry. Every server takes
	// packets of 8 MiB or is refused by checkDatabase.
	flushBytes = 4 << 20
	// pushbackWait is how long Append waits for an integration to make room, pushbackPoll how often it looks.
	pushbackWait = 10 * time.Second
	pushbackPoll = 100 * time.Millisecond
)

// S3Tree is a log.TileTree on Tessera's AWS driver. MySQL puts entries in order and counts them, the
// object store holds bundles and tiles. Several processes may have one tree open and append to it.
//
// Append returns once the entries have their places durably in MySQL. Integration runs on the driver's
// own clock, once a second, which cannot be set; its own publication runs once a second too, the least
// that the driver takes, and is bookkeeping for garbage collection alone (see bookkeeper). Collected are
// partial tiles and bundles whose full ones exist.
//
// Nothing here can make the log sign a fork, whatever is restored. A database behind the bucket
// makes the driver meet objects that differ from what it writes, and it stops integrating; a bucket behind
// the database lacks tiles that the next integration needs; and in both cases the log finds that the tree is
// smaller than what the fence has seen signed, or that its root, computed from the tiles, is another. The
// driver's own checkpoint, which it would publish anew for a smaller tree, carries no signature of a log.
type S3Tree struct {
	add    addFunc
	reader tessera.LogReader
	store  *objects
	bundle func(index uint64, width uint8) string // key of an entry bundle
	books  *bookkeeper
	ctx    context.Context // ends with Close
	stop   context.CancelFunc

	appending sync.WaitGroup // calls that wait for Tessera
}

// OpenS3 opens the tree, and creates tables in the database and first objects in the bucket when
// there are none. The bucket must exist. Errors: fault.Invalid for what is wrong in o.
func OpenS3(ctx context.Context, o S3Options, kind log.Kind) (*S3Tree, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	cfg, err := sdkConfig(ctx, o)
	if err != nil {
		return nil, err
	}
	dsn, err := mysqlDSN(o)
	if err != nil {
		return nil, err
	}
	if err := claimDatabase(ctx, dsn, o, kind); err != nil {
		return nil, err
	}
	driver, err := tesseraaws.New(ctx, tesseraaws.Config{
		SDKConfig: &cfg, S3Options: clientOptions(o), Bucket: o.Bucket,
		DSN: dsn.FormatDSN(), MaxOpenConns: o.MaxConns, MaxIdleConns: o.MaxConns,
	})
	if err != nil {
		return nil, fmt.Errorf("opening tiles in bucket %s: %w", o.Bucket, err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	books := &bookkeeper{}
	opts := appendOptions(kind, books, o.MaxOutstanding, s3BatchAge)
	appender, _, reader, err := tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening tiles in bucket %s: %w", o.Bucket, err)
	}
	return &S3Tree{
		add: adding(appender, kind), reader: reader, books: books, ctx: ctx, stop: cancel,
		store:  &objects{client: s3.NewFromConfig(cfg, clientOptions(o)), bucket: o.Bucket},
		bundle: opts.EntriesPath(),
	}, nil
}

// S3Reader reads the tree of an S3Tree, which other processes may have open. It writes nothing, neither into the bucket nor
// into MySQL.
type S3Reader struct {
	store  *objects
	db     *sql.DB
	bundle func(index uint64, width uint8) string
}

// OpenS3Reader opens a tree that is there.
func OpenS3Reader(ctx context.Context, o S3Options, kind log.Kind) (*S3Reader, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	cfg, err := sdkConfig(ctx, o)
	if err != nil {
		return nil, err
	}
	dsn, err := mysqlDSN(o)
	if err != nil {
		return nil, err
	}
	connector, err := mysql.NewConnector(dsn)
	if err != nil {
		return nil, fmt.Errorf("opening MySQL database %s: %w", dsn.DBName, err)
	}
	r := &S3Reader{
		store:  &objects{client: s3.NewFromConfig(cfg, clientOptions(o)), bucket: o.Bucket},
		db:     sql.OpenDB(connector),
		bundle: appendOptions(kind, &bookkeeper{}, o.MaxOutstanding, s3BatchAge).EntriesPath(),
	}
	r.db.SetMaxOpenConns(o.MaxConns)
	if _, err := r.Size(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("there is no tree in MySQL database %s: %w", dsn.DBName, err), r.db.Close())
	}
	return r, nil
}

// Close closes the connections to MySQL.
func (r *S3Reader) Close() error { return r.db.Close() }

// Size implements log.TreeReader: what Tessera's driver has integrated.
func (r *S3Reader) Size(ctx context.Context) (size uint64, err error) {
	if err := r.db.QueryRowContext(ctx, `SELECT seq FROM IntCoord WHERE id = 0`).Scan(&size); err != nil {
		return 0, fmt.Errorf("reading the tree's size: %w", err)
	}
	return size, nil
}

// Tile implements log.TileReader.
func (r *S3Reader) Tile(ctx context.Context, level, index uint64, width uint8) ([]byte, error) {
	return atLeast(ctx, level, index, width, r.Size, func(ctx context.Context, width uint8) ([]byte, error) {
		return r.store.get(ctx, layout.TilePath(level, index, width))
	})
}

// Bundle implements log.TreeReader.
func (r *S3Reader) Bundle(ctx context.Context, index uint64, width uint8) ([]byte, error) {
	return atLeast(ctx, 0, index, width, r.Size, func(ctx context.Context, width uint8) ([]byte, error) {
		return r.store.get(ctx, r.bundle(index, width))
	})
}

// complete checks o and fills in its defaults.
func (o S3Options) complete() (S3Options, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return o, fault.New(fault.Invalid, "endpoint_invalid", err, "the S3 endpoint %q is no http or https URL", o.Endpoint)
	}
	if o.Bucket == "" {
		return o, fault.New(fault.Invalid, "bucket_missing", nil, "no S3 bucket is configured")
	}
	if o.Prefix, err = cleanPrefix(o.Prefix); err != nil {
		return o, err
	}
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	if o.MaxOutstanding == 0 {
		o.MaxOutstanding = defaultMaxOutstanding
	}
	if o.MaxConns <= 0 {
		o.MaxConns = defaultMaxConns
	}
	return o, nil
}

// Close ends Tessera's work on the tree in this process; a call of Append that has not returned gets an error.
// Entries that are queued stay queued, and the next process integrates them. Tessera
// never closes its connections to MySQL; the server does, a minute later.
func (t *S3Tree) Close() error {
	t.books.close()
	t.stop()
	t.appending.Wait()
	return nil
}

// Append implements log.Tree. It returns nil indexes. Errors: fault.Overloaded when integration
// falls behind by MaxOutstanding entries; ctx.Err() when ctx ended first, though the entries may yet be queued:
// Tessera queues them under a context of its own.
func (t *S3Tree) Append(ctx context.Context, batch []log.Submission) ([]uint64, error) {
	if err := t.ctx.Err(); err != nil {
		return nil, fmt.Errorf("appending %d entries to a closed tree: %w", len(batch), err)
	}
	t.appending.Add(1)
	defer t.appending.Done()
	deadline := time.NewTimer(pushbackWait)
	defer deadline.Stop()
	for rest := batch; len(rest) > 0; {
		n := flushLen(rest)
		chunk := rest[:n]
		for len(chunk) > 0 {
			refused, err := t.flush(ctx, chunk)
			if err != nil {
				return nil, fmt.Errorf("appending %d entries: %w", len(batch), err)
			}
			if chunk = refused; len(chunk) == 0 {
				break
			}
			select {
			case <-time.After(pushbackPoll):
			case <-ctx.Done():
				return nil, fmt.Errorf("appending %d entries: %w", len(batch), ctx.Err())
			case <-t.ctx.Done():
				return nil, fmt.Errorf("appending %d entries: %w", len(batch), t.ctx.Err())
			case <-deadline.C:
				return nil, fault.New(fault.Overloaded, "integration_behind", tessera.ErrPushbackIntegration,
					"too many entries wait for the log's store; try again")
			}
		}
		rest = rest[n:]
	}
	return nil, nil
}

// flushLen returns how many entries from the front of batch fit into one flush: one at least.
func flushLen(batch []log.Submission) int {
	size := 0
	for i := range batch {
		size += len(batch[i].Data)
		if ct := batch[i].CT; ct != nil {
			size += len(ct.Certificate) + len(ct.Precertificate)
		}
		if size > flushBytes && i > 0 {
			return i
		}
	}
	return len(batch)
}

// flush returns once every entry of chunk is durable in MySQL, or was refused since too many wait.
func (t *S3Tree) flush(ctx context.Context, chunk []log.Submission) (refused []log.Submission, err error) {
	type outcome struct {
		refused []log.Submission
		err     error
	}
	done := make(chan outcome, 1)
	// Ends with Tessera's flush, which MySQL's timeouts bound. Only a Close in between leaves it
	// behind: Tessera does not resolve futures any more then.
	go func() {
		futures := make([]tessera.IndexFuture, len(chunk))
		for i := range chunk {
			futures[i] = t.add(t.ctx, &chunk[i])
		}
		var o outcome
		for i, future := range futures { // all of them: an error must not leave adds in flight
			if _, err := future(); errors.Is(err, tessera.ErrPushback) {
				o.refused = append(o.refused, chunk[i])
			} else if err != nil && o.err == nil {
				o.err = storeError(t.ctx, err)
			}
		}
		done <- o
	}()
	select {
	case o := <-done:
		return o.refused, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.ctx.Done():
		return nil, t.ctx.Err()
	}
}

// Size implements log.Tree.
func (t *S3Tree) Size(ctx context.Context) (uint64, error) {
	size, err := t.reader.IntegratedSize(ctx)
	if err != nil {
		return 0, storeError(ctx, err)
	}
	return size, nil
}

// Queued implements log.Tree: entries have their places already.
func (t *S3Tree) Queued(ctx context.Context) (uint64, error) {
	next, err := t.reader.NextIndex(ctx)
	if err != nil {
		return 0, storeError(ctx, err)
	}
	return next, nil
}

// Tile implements log.TileTree.
func (t *S3Tree) Tile(ctx context.Context, level, index uint64, width uint8) ([]byte, error) {
	raw, err := atLeast(ctx, level, index, width, t.Size, func(ctx context.Context, width uint8) ([]byte, error) {
		return t.store.get(ctx, layout.TilePath(level, index, width))
	})
	if err != nil {
		return nil, err
	}
	want := int(width)
	if width == 0 {
		want = layout.TileWidth
	}
	if len(raw)%32 != 0 || len(raw) < 32*want || len(raw) > 32*layout.TileWidth {
		return nil, fmt.Errorf("the object of tile %d/%d has %d bytes, want %d hashes", level, index, len(raw), want)
	}
	return raw, nil
}

// Bundle implements log.Tree.
func (t *S3Tree) Bundle(ctx context.Context, index uint64, width uint8) ([]byte, error) {
	return atLeast(ctx, 0, index, width, t.Size, func(ctx context.Context, width uint8) ([]byte, error) {
		return t.store.get(ctx, t.bundle(index, width))
	})
}

var (
	_ log.TileTree   = (*S3Tree)(nil)
	_ log.TileReader = (*S3Reader)(nil)
)
