package log_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/logtest"
)

func openFence(t *testing.T, dir string) *log.FileFence {
	t.Helper()
	f, err := log.OpenFileFence(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func record(n uint64) log.Record {
	return log.Record{Size: n, Root: [32]byte{byte(n), byte(n >> 8)}, Promised: n}
}

func TestFileFenceKeepsItsContract(t *testing.T) {
	logtest.Fence(t, func(t *testing.T) func() log.Fence {
		dir := t.TempDir()
		var last *log.FileFence
		return func() log.Fence {
			if last != nil {
				last.Close() // and with it its lock
			}
			last = openFence(t, dir)
			return last
		}
	})
}

func TestASecondProcessCannotHoldTheFence(t *testing.T) {
	dir := t.TempDir()
	if _, err := openFence(t, dir).Last(t.Context(), log.KeyID{1}); !errors.Is(err, log.ErrNoRecord) {
		t.Fatal(err)
	}
	if _, err := openFence(t, dir).Last(t.Context(), log.KeyID{1}); !errors.Is(err, log.ErrFenceInUse) {
		t.Errorf("a second holder got %v, want ErrFenceInUse", err)
	}
}

func advanceTo(ctx context.Context, t *testing.T, f log.Fence, key log.KeyID, n uint64) {
	t.Helper()
	prev := log.Record{}
	for i := uint64(1); i <= n; i++ {
		if err := f.Advance(ctx, key, prev, record(i)); err != nil {
			t.Fatal(err)
		}
		prev = record(i)
	}
}

func TestADamagedFenceFile(t *testing.T) {
	const pitch = 128
	for _, tt := range []struct {
		name   string
		damage func([]byte)
		want   uint64 // size of the last record, 0 for an error
	}{
		{"a torn newest record falls back to the one before", func(b []byte) { b[5*pitch+20] ^= 1 }, 4},
		{"a torn old record does not matter", func(b []byte) { b[2*pitch+20] ^= 1 }, 5},
		{"two torn records are refused", func(b []byte) { b[5*pitch+20] ^= 1; b[4*pitch+20] ^= 1 }, 0},
		{"a record copied to another place counts as torn", func(b []byte) { copy(b[6*pitch:7*pitch], b[5*pitch:6*pitch]) }, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, key, dir := t.Context(), log.KeyID{4}, t.TempDir()
			f := openFence(t, dir)
			advanceTo(ctx, t, f, key, 5)
			f.Close()
			path := filepath.Join(dir, key.String()+".fence")
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			tt.damage(raw)
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			last, err := openFence(t, dir).Last(ctx, key)
			switch {
			case tt.want == 0 && err == nil:
				t.Errorf("read %v from a damaged fence", last)
			case tt.want != 0 && (err != nil || last != record(tt.want)):
				t.Errorf("last = %v, %v, want size %d", last, err, tt.want)
			}
		})
	}
}
