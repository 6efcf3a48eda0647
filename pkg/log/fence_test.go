package log_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/attestry/attestry/pkg/log"
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

func TestTheFenceMovesOnlyFromWhereTheCallerSawIt(t *testing.T) {
	ctx, key := t.Context(), log.KeyID{1}
	dir := t.TempDir()
	f := openFence(t, dir)
	if _, err := f.Last(ctx, key); !errors.Is(err, log.ErrNoRecord) {
		t.Fatalf("a new key has a record: %v", err)
	}
	if err := f.Advance(ctx, key, log.Record{}, record(1)); err != nil {
		t.Fatal(err)
	}
	if err := f.Advance(ctx, key, log.Record{}, record(2)); !errors.Is(err, log.ErrStale) {
		t.Errorf("a second first record = %v, want ErrStale", err)
	}
	if err := f.Advance(ctx, key, record(1), record(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Last(ctx, log.KeyID{2}); !errors.Is(err, log.ErrNoRecord) {
		t.Errorf("another key shares the record: %v", err)
	}
	f.Close()
	if last, err := openFence(t, dir).Last(ctx, key); err != nil || last != record(2) {
		t.Errorf("after a restart the record is %v, %v", last, err)
	}
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

func TestTheLastThousandRecordsAreKept(t *testing.T) {
	ctx, key, dir := t.Context(), log.KeyID{3}, t.TempDir()
	f := openFence(t, dir)
	advanceTo(ctx, t, f, key, 2500)
	f.Close()
	f = openFence(t, dir)
	for _, size := range []uint64{2500, 2000, 1501} {
		if got, err := f.Recorded(ctx, key, size); err != nil || got != record(size) {
			t.Errorf("record of size %d = %v, %v", size, got, err)
		}
	}
	if _, err := f.Recorded(ctx, key, 1000); !errors.Is(err, log.ErrNoRecord) {
		t.Errorf("a record of long ago = %v, want ErrNoRecord", err)
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
