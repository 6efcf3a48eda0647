package tiles_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/ctonly"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// liar stands before an S3 server. lie, when set, answers a request itself or returns false.
type liar struct {
	proxy *httputil.ReverseProxy
	lie   atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if lie := l.lie.Load(); lie != nil && (*lie)(w, r) {
		return
	}
	l.proxy.ServeHTTP(w, r)
}

func (l *liar) tell(lie func(w http.ResponseWriter, r *http.Request) bool) { l.lie.Store(&lie) }

// behindLiar returns options for a new log on real services, with a liar before the object store.
func behindLiar(t *testing.T) (tiles.S3Options, *liar) {
	s3 := services.VersityGW(t)
	target, err := url.Parse(s3.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	l := &liar{proxy: &httputil.ReverseProxy{
		Rewrite:      func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host }, // the signed Host stays
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}}
	server := httptest.NewServer(l)
	t.Cleanup(server.Close)
	return tiles.S3Options{Endpoint: server.URL, Bucket: s3.Bucket, Prefix: "log", PathStyle: true,
		AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, MySQLDSN: services.MariaDB(t)}, l
}

func openS3(t *testing.T, o tiles.S3Options, kind log.Kind) *tiles.S3Tree {
	t.Helper()
	tree, err := tiles.OpenS3(t.Context(), o, kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

func add(t *testing.T, tree log.Tree, entries ...string) {
	t.Helper()
	subs := make([]log.Submission, len(entries))
	for i, e := range entries {
		subs[i] = log.Submission{Data: []byte(e)}
	}
	if _, err := tree.Append(t.Context(), subs); err != nil {
		t.Fatal(err)
	}
}

// within polls until ok holds.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for end := time.After(d); !ok(); {
		select {
		case <-poll.C:
		case <-end:
			t.Fatalf("not so after %v: %s", d, what)
		}
	}
}

func sizeOf(t *testing.T, tree log.Tree) uint64 {
	t.Helper()
	size, err := tree.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// bundleOf is the entry bundle of entries.
func bundleOf(entries ...string) []byte {
	var raw []byte
	for _, e := range entries {
		raw = append(binary.BigEndian.AppendUint16(raw, uint16(len(e))), e...)
	}
	return raw
}

func isWrite(r *http.Request) bool {
	return r.Method == http.MethodPut && r.URL.Path != "/logs/log/checkpoint"
}

func TestAStoreThatErrsDelaysTheTree(t *testing.T) {
	for name, lie := range map[string]func(l *liar) func(http.ResponseWriter, *http.Request) bool{
		"500, and nothing is stored": func(*liar) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isWrite(r) {
					w.WriteHeader(http.StatusInternalServerError)
				}
				return isWrite(r)
			}
		},
		"500, but it is stored": func(l *liar) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isWrite(r) {
					l.proxy.ServeHTTP(httptest.NewRecorder(), r)
					w.WriteHeader(http.StatusInternalServerError)
				}
				return isWrite(r)
			}
		},
		"a precondition that fails though there is no object": func(*liar) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isWrite(r) {
					w.WriteHeader(http.StatusPreconditionFailed)
					io.WriteString(w, `<Error><Code>PreconditionFailed</Code></Error>`)
				}
				return isWrite(r)
			}
		},
		"answers that end early": func(l *liar) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet {
					return false
				}
				answer := httptest.NewRecorder()
				l.proxy.ServeHTTP(answer, r)
				if answer.Code != http.StatusOK || answer.Body.Len() < 2 {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()))
				w.WriteHeader(answer.Code)
				w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
				panic(http.ErrAbortHandler)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // these wait for Tessera's clock
			o, l := behindLiar(t)
			tree := openS3(t, o, log.Rekor1)
			add(t, tree, "one", "two")
			within(t, 10*time.Second, "the first entries are in", func() bool { return sizeOf(t, tree) == 2 })
			told := make(chan struct{}, 1000)
			truth := lie(l)
			l.tell(func(w http.ResponseWriter, r *http.Request) bool {
				select {
				case told <- struct{}{}:
				default:
				}
				return truth(w, r)
			})
			add(t, tree, "three")
			for range 6 { // both writes of an integration, repeated
				<-told
			}
			// It may be stored already, though the tree does not count it yet.
			if raw, err := tree.Bundle(t.Context(), 0, 3); err == nil && !bytes.Equal(raw, bundleOf("one", "two", "three")) {
				t.Errorf("meanwhile the bundle is %q", raw)
			}
			l.lie.Store(nil)
			within(t, 20*time.Second, "the third entry is in", func() bool { return sizeOf(t, tree) == 3 })
			if raw, err := tree.Bundle(t.Context(), 0, 3); err != nil || !bytes.Equal(raw, bundleOf("one", "two", "three")) {
				t.Errorf("afterwards the bundle is %q, %v", raw, err)
			}
		})
	}
}

func TestAStoreThatLosesAWriteIsAnError(t *testing.T) {
	t.Parallel()
	o, l := behindLiar(t)
	tree := openS3(t, o, log.Rekor1)
	add(t, tree, "one", "two")
	within(t, 10*time.Second, "the first entries are in", func() bool { return sizeOf(t, tree) == 2 })
	l.tell(func(w http.ResponseWriter, r *http.Request) bool {
		if isWrite(r) {
			w.Header().Set("ETag", `"0"`)
			w.WriteHeader(http.StatusOK)
		}
		return isWrite(r)
	})
	add(t, tree, "three")
	within(t, 10*time.Second, "Tessera believes the store", func() bool { return sizeOf(t, tree) == 3 })
	l.lie.Store(nil)
	if raw, err := tree.Tile(t.Context(), 0, 0, 3); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a tile that was lost: %x, %v", raw, err)
	}
	if raw, err := tree.Bundle(t.Context(), 0, 3); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a bundle that was lost: %q, %v", raw, err)
	}
	if raw, err := tree.Bundle(t.Context(), 0, 2); err != nil || !bytes.Equal(raw, bundleOf("one", "two")) {
		t.Errorf("what was there before: %q, %v", raw, err)
	}
}

// TestADatabaseBehindItsBucketStopsTheTree is a restored backup of the database: the bucket holds more.
func TestADatabaseBehindItsBucketStopsTheTree(t *testing.T) {
	t.Parallel()
	o, l := behindLiar(t)
	tree := openS3(t, o, log.Rekor1)
	add(t, tree, "one", "two")
	within(t, 10*time.Second, "the entries are in", func() bool { return sizeOf(t, tree) == 2 })
	tree.Close()

	o.MySQLDSN = services.MariaDB(t)
	refused := make(chan struct{}, 100)
	l.tell(func(w http.ResponseWriter, r *http.Request) bool {
		if isWrite(r) {
			refused <- struct{}{}
		}
		return false
	})
	tree = openS3(t, o, log.Rekor1)
	add(t, tree, "other", "entries")
	for range 4 { // two integrations
		<-refused
	}
	if size := sizeOf(t, tree); size != 0 {
		t.Errorf("the tree has size %d over objects of another one", size)
	}
	if raw, err := tree.Bundle(t.Context(), 0, 2); err != nil || !bytes.Equal(raw, bundleOf("one", "two")) {
		t.Errorf("the objects were changed: %q, %v", raw, err)
	}
}

func TestAppendWaitsForRoomAndNotForEver(t *testing.T) {
	t.Parallel()
	o, l := behindLiar(t)
	o.MaxOutstanding = 4
	tree := openS3(t, o, log.Rekor1)
	add(t, tree, "a", "b", "c", "d", "e")
	add(t, tree, "f") // behind the next integration
	within(t, 10*time.Second, "all entries are in", func() bool { return sizeOf(t, tree) == 6 })
	l.tell(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	add(t, tree, "g", "h", "i", "j", "k")
	if _, err := tree.Append(t.Context(), []log.Submission{{Data: []byte("l")}}); fault.KindOf(err) != fault.Overloaded {
		t.Errorf("an entry over the limit of a tree that does not integrate: %v", err)
	}
	l.lie.Store(nil)
	within(t, 20*time.Second, "what was queued is in", func() bool { return sizeOf(t, tree) == 11 })
	if raw, err := tree.Bundle(t.Context(), 0, 11); err != nil || !bytes.Equal(raw, bundleOf(strings.Split("abcdefghijk", "")...)) {
		t.Errorf("the bundle is %q, %v", raw, err)
	}
}

func TestFullObjectsReplacePartialOnes(t *testing.T) {
	t.Parallel()
	o, l := behindLiar(t)
	tree := openS3(t, o, log.Rekor1)
	entries := make([]string, 256)
	for i := range entries {
		entries[i] = fmt.Sprint("entry ", i)
	}
	add(t, tree, entries[:100]...)
	within(t, 10*time.Second, "a partial bundle is there", func() bool { return sizeOf(t, tree) == 100 })
	add(t, tree, entries[100:]...)
	within(t, 10*time.Second, "the full one is there", func() bool { return sizeOf(t, tree) == 256 })
	l.tell(func(w http.ResponseWriter, r *http.Request) bool { // as after Tessera's garbage collection
		if strings.Contains(r.URL.Path, ".p/") {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `<Error><Code>NoSuchKey</Code></Error>`)
			return true
		}
		return false
	})
	if raw, err := tree.Bundle(t.Context(), 0, 100); err != nil || !bytes.Equal(raw, bundleOf(entries...)) {
		t.Errorf("the bundle of 100 entries has %d bytes, %v, want the full one", len(raw), err)
	}
	if raw, err := tree.Tile(t.Context(), 0, 0, 100); err != nil || len(raw) != 32*256 {
		t.Errorf("the tile of 100 hashes has %d bytes, %v, want the full one", len(raw), err)
	}
	l.tell(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `<Error><Code>NoSuchBucket</Code></Error>`)
		return true
	})
	if _, err := tree.Bundle(t.Context(), 0, 0); err == nil || errors.Is(err, os.ErrNotExist) || fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a bucket that is gone: %v", err)
	}
}

func TestCTTreesLieInDataTiles(t *testing.T) {
	t.Parallel()
	o, l := behindLiar(t)
	tree := openS3(t, o, log.CT)
	entry := &ctonly.Entry{Timestamp: 1234, Certificate: []byte("certificate"), FingerprintsChain: [][32]byte{{1}, {2}}}
	if _, err := tree.Append(t.Context(), []log.Submission{{CT: entry}}); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the entry is in", func() bool { return sizeOf(t, tree) == 1 })
	var asked atomic.Pointer[string]
	l.tell(func(_ http.ResponseWriter, r *http.Request) bool {
		asked.Store(&r.URL.Path)
		return false
	})
	if raw, err := tree.Bundle(t.Context(), 0, 1); err != nil || !bytes.Equal(raw, entry.LeafData(0)) {
		t.Errorf("the data tile is %x, %v, want %x", raw, err, entry.LeafData(0))
	}
	if path := asked.Load(); *path != "/logs/log/tile/data/000.p/1" {
		t.Errorf("the data tile lies at %s", *path)
	}
	root := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	if err := root.Append(entry.MerkleLeafHash(0), nil); err != nil {
		t.Fatal(err)
	}
	if raw, err := tree.Tile(t.Context(), 0, 0, 1); err != nil || !bytes.Equal(raw, entry.MerkleLeafHash(0)) {
		t.Errorf("the hash tile is %x, %v", raw, err)
	}
}

// TestOnlyTheConfiguredHostsAreContacted gives the SDK's environment variables, which must not count.
func TestOnlyTheConfiguredHostsAreContacted(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"} {
		t.Setenv(name, "of-somebody-else")
	}
	var strangers atomic.Int64
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		strangers.Add(1)
		w.WriteHeader(http.StatusTeapot)
	}))
	defer stranger.Close()
	for _, name := range []string{"AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
		"AWS_ENDPOINT_URL_STS", "HTTP_PROXY", "HTTPS_PROXY"} {
		t.Setenv(name, stranger.URL)
	}
	o, _ := behindLiar(t)
	dir := t.TempDir()
	for name, value := range map[string]string{"access": o.AccessKey, "secret": o.SecretKey} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.AccessKey, o.AccessKeyFile = "", filepath.Join(dir, "access")
	o.SecretKey, o.SecretKeyFile = "", filepath.Join(dir, "secret")
	dsn, err := mysql.ParseDSN(o.MySQLDSN)
	if err != nil {
		t.Fatal(err)
	}
	o.MySQLPasswordFile = filepath.Join(dir, "password")
	if err := os.WriteFile(o.MySQLPasswordFile, []byte(dsn.Passwd), 0o600); err != nil {
		t.Fatal(err)
	}
	dsn.Passwd = ""
	o.MySQLDSN = dsn.FormatDSN()
	tree := openS3(t, o, log.Rekor2)
	add(t, tree, "one")
	within(t, 10*time.Second, "the entry is in", func() bool { return sizeOf(t, tree) == 1 })
	if n := strangers.Load(); n != 0 {
		t.Errorf("%d requests went to a host that only the environment names", n)
	}
}

func TestS3OptionsAreChecked(t *testing.T) {
	valid := tiles.S3Options{Endpoint: "http://127.0.0.1:1", Bucket: "b", AccessKey: "a", SecretKey: "s", MySQLDSN: "u:hunter2@tcp(127.0.0.1:1)/d"}
	for reason, change := range map[string]func(*tiles.S3Options){
		"endpoint_invalid":  func(o *tiles.S3Options) { o.Endpoint = "127.0.0.1:9000" },
		"bucket_missing":    func(o *tiles.S3Options) { o.Bucket = "" },
		"prefix_invalid":    func(o *tiles.S3Options) { o.Prefix = "a/../b" },
		"secret_missing":    func(o *tiles.S3Options) { o.SecretKey = "" },
		"mysql_dsn_invalid": func(o *tiles.S3Options) { o.MySQLDSN = "mysql://u:hunter2@host/d" },
	} {
		o := valid
		change(&o)
		_, err := tiles.OpenS3(t.Context(), o, log.Rekor1)
		if fault.KindOf(err) != fault.Invalid || fault.ReasonOf(err) != reason || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", reason, err)
		}
	}
	o := valid
	o.MySQLDSN = "u:hunter2@tcp(127.0.0.1:1)/"
	if _, err := tiles.OpenS3(t.Context(), o, log.Rekor1); fault.ReasonOf(err) != "mysql_dsn_invalid" {
		t.Errorf("a DSN without database: %v", err)
	}
}

func TestDatabasesAreRefused(t *testing.T) {
	s3 := services.VersityGW(t)
	o := tiles.S3Options{Endpoint: s3.Endpoint, Bucket: s3.Bucket, Prefix: "one", PathStyle: true, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey}
	forgetful := services.StartMariaDB(t, "--innodb-flush-log-at-trx-commit=2")
	o.MySQLDSN = forgetful.Database(t)
	if _, err := tiles.OpenS3(t.Context(), o, log.Rekor1); fault.ReasonOf(err) != "mysql_not_durable" {
		t.Errorf("a database that forgets: %v", err)
	}
	db, err := sql.Open("mysql", o.MySQLDSN)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), `SET GLOBAL innodb_flush_log_at_trx_commit = 1, GLOBAL max_allowed_packet = 1048576`); err != nil {
		t.Fatal(err)
	}
	if _, err := tiles.OpenS3(t.Context(), o, log.Rekor1); fault.ReasonOf(err) != "mysql_packet_small" {
		t.Errorf("a database with small packets: %v", err)
	}
	o.MySQLDSN = services.MariaDB(t)
	openS3(t, o, log.Rekor1)
	o.Prefix = "two"
	if _, err := tiles.OpenS3(t.Context(), o, log.Rekor1); fault.ReasonOf(err) != "mysql_of_other_log" {
		t.Errorf("a database of another log: %v", err)
	}
	o.Bucket, o.MySQLDSN = "missing", services.MariaDB(t)
	if _, err := tiles.OpenS3(t.Context(), o, log.Rekor1); err == nil {
		t.Error("a bucket that does not exist is opened")
	}
}

func TestAClosedS3TreeTakesNothing(t *testing.T) {
	o, _ := behindLiar(t)
	tree := openS3(t, o, log.Rekor1)
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Append(t.Context(), []log.Submission{{Data: []byte("late")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Append after Close: %v", err)
	}
}
