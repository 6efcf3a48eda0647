package tiles_test

import (
	"context"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/logtest"
	"github.com/attestry/attestry/pkg/log/tiles"
)

func TestPOSIXKeepsTheContract(t *testing.T) {
	logtest.Tree(t, func(t *testing.T) *logtest.TreeStore {
		dir := t.TempDir()
		return &logtest.TreeStore{Open: func(ctx context.Context) (logtest.OpenTree, error) { return tiles.Open(ctx, dir, log.Rekor1) }}
	})
}

func TestS3KeepsTheContract(t *testing.T) {
	t.Parallel() // with tests that wait for clocks too
	logtest.Tree(t, func(t *testing.T) *logtest.TreeStore {
		s3, db := services.VersityGW(t), services.StartMariaDB(t)
		endpoint, s3Line := services.Through(t, s3.Endpoint)
		address, dbLine := services.Through(t, "tcp://"+db.Address())
		options := tiles.S3Options{
			Endpoint: endpoint, Bucket: s3.Bucket, Prefix: "rekor/one", PathStyle: true,
			AccessKey: s3.AccessKey, SecretKey: s3.SecretKey,
			MySQLDSN: strings.Replace(db.Database(t), db.Address(), strings.TrimPrefix(address, "tcp://"), 1),
		}
		return &logtest.TreeStore{
			Open:    func(ctx context.Context) (logtest.OpenTree, error) { return tiles.OpenS3(ctx, options, log.Rekor1) },
			Writers: true,
			Crashes: []logtest.Crash{{Name: "object store", Kill: s3.Kill, Start: s3.Start}, {Name: "database", Kill: db.Kill, Start: db.Start}},
			Links:   []logtest.Link{{Name: "object store", Line: s3Line, Reads: true}, {Name: "database", Line: dbLine, Size: true, Appends: true}},
		}
	})
}

func BenchmarkPOSIX(b *testing.B) {
	logtest.BenchTree(b, func(b *testing.B) *logtest.TreeStore {
		dir := b.TempDir()
		return &logtest.TreeStore{Open: func(ctx context.Context) (logtest.OpenTree, error) { return tiles.Open(ctx, dir, log.Rekor1) }}
	})
}

func BenchmarkS3(b *testing.B) {
	logtest.BenchTree(b, func(b *testing.B) *logtest.TreeStore {
		s3 := services.VersityGW(b)
		options := tiles.S3Options{Endpoint: s3.Endpoint, Bucket: s3.Bucket, PathStyle: true, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, MySQLDSN: services.MariaDB(b)}
		return &logtest.TreeStore{Open: func(ctx context.Context) (logtest.OpenTree, error) { return tiles.OpenS3(ctx, options, log.Rekor1) }}
	})
}
