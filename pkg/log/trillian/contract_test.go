package trillian_test

import (
	"context"
	"strings"
	"testing"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/pkg/log/logtest"
	"github.com/attestry/attestry/pkg/log/trillian"
)

func TestGRPCKeepsTheContract(t *testing.T) {
	t.Parallel() // with tests that wait for clocks too
	logtest.Tree(t, func(t *testing.T) *logtest.TreeStore {
		db := services.StartPostgres(t)
		service := services.Trillian(t, db.Database(t))
		address, line := services.Through(t, "tcp://"+service.Address)
		o := trillian.Options{Address: strings.TrimPrefix(address, "tcp://")}
		var err error
		if o.TreeID, err = trillian.CreateTree(t.Context(), o, "rekor"); err != nil {
			t.Fatal(err)
		}
		return &logtest.TreeStore{
			Open:    func(ctx context.Context) (logtest.OpenTree, error) { return trillian.Open(ctx, o) },
			Writers: true,
			Crashes: []logtest.Crash{{Name: "log server and signer", Kill: service.Kill, Start: service.Start}, {Name: "database", Kill: db.Kill, Start: db.Start}},
			Links:   []logtest.Link{{Name: "log server", Line: line, Size: true, Reads: true, Appends: true}},
		}
	})
}

func TestEmbeddedKeepsTheContract(t *testing.T) {
	t.Parallel() // with tests that wait for clocks too
	logtest.Tree(t, func(t *testing.T) *logtest.TreeStore {
		db := services.StartPostgres(t)
		uri, line := services.Through(t, db.Database(t))
		o := trillian.EmbeddedOptions{URI: uri, Name: "rekor"}
		return &logtest.TreeStore{
			Open:    func(ctx context.Context) (logtest.OpenTree, error) { return trillian.OpenEmbedded(ctx, o) },
			Writers: true,
			Crashes: []logtest.Crash{{Name: "database", Kill: db.Kill, Start: db.Start}},
			Links:   []logtest.Link{{Name: "database", Line: line, Size: true, Reads: true, Appends: true}},
		}
	})
}

func BenchmarkGRPC(b *testing.B) {
	logtest.BenchTree(b, func(b *testing.B) *logtest.TreeStore {
		service := services.Trillian(b, services.Postgres(b))
		o := trillian.Options{Address: service.Address}
		var err error
		if o.TreeID, err = trillian.CreateTree(b.Context(), o, "rekor"); err != nil {
			b.Fatal(err)
		}
		return &logtest.TreeStore{Open: func(ctx context.Context) (logtest.OpenTree, error) { return trillian.Open(ctx, o) }}
	})
}

func BenchmarkEmbedded(b *testing.B) {
	logtest.BenchTree(b, func(b *testing.B) *logtest.TreeStore {
		o := trillian.EmbeddedOptions{URI: services.Postgres(b), Name: "rekor"}
		return &logtest.TreeStore{Open: func(ctx context.Context) (logtest.OpenTree, error) { return trillian.OpenEmbedded(ctx, o) }}
	})
}
