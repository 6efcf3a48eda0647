package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/attestry/attestry/internal/journal"
)

const page = 4096

func open(t *testing.T, path string, size int64) (*journal.Journal, []journal.Frame) {
	t.Helper()
	j, frames, err := journal.Open(path, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j, frames
}

func add(t *testing.T, j *journal.Journal, payload string) uint64 {
	t.Helper()
	number, err := j.Append([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func text(frames []journal.Frame) (s string) {
	for _, f := range frames {
		s += fmt.Sprintf("%d:%.8s ", f.Number, f.Payload)
	}
	return s
}

func TestFramesOutliveTheirProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	j, frames := open(t, path, 8*page)
	if len(frames) != 0 {
		t.Fatalf("a new ring has %s", text(frames))
	}
	for i := range 3 {
		if got := add(t, j, fmt.Sprintf("frame %d", i+1)); got != uint64(i+1) {
			t.Errorf("frame %d has number %d", i+1, got)
		}
	}
	if _, _, err := journal.Open(path, 8*page); !errors.Is(err, journal.ErrInUse) {
		t.Errorf("a second process gets %v", err)
	}
	if read, err := journal.Read(path); err != nil || text(read) != "1:frame 1 2:frame 2 3:frame 3 " {
		t.Errorf("a reader beside it gets %s, %v", text(read), err)
	}
	j.Free(2)
	add(t, j, "frame 4") // it says on disk that the first two are free
	j.Close()
	j, frames = open(t, path, 8*page)
	if text(frames) != "3:frame 3 4:frame 4 " {
		t.Errorf("after the restart: %s", text(frames))
	}
	if got := add(t, j, "frame 5"); got != 5 {
		t.Errorf("the next frame has number %d", got)
	}
	if read, err := journal.Read(filepath.Join(t.TempDir(), "none")); err != nil || read != nil {
		t.Errorf("no ring is read as %s, %v", text(read), err)
	}
}

// TestKeptFramesAreNeverOverwritten appends and frees at random, and opens a copy after each step, as after a crash.
func TestKeptFramesAreNeverOverwritten(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "ring")
	j, _ := open(t, path, 16*page)
	kept := map[uint64][]byte{}
	var freed, newest uint64
	full := 0
	for range 2000 {
		if random.IntN(3) == 0 && newest > freed {
			to := freed + 1 + random.Uint64N(newest-freed)
			j.Free(to)
			for ; freed < to; freed++ {
				delete(kept, freed+1)
			}
		}
		payload := make([]byte, 1+random.IntN(5*page))
		for i := range payload {
			payload[i] = byte(random.Uint32())
		}
		number, err := j.Append(payload)
		if errors.Is(err, journal.ErrFull) {
			full++
			continue
		}
		if err != nil || number != newest+1 {
			t.Fatalf("frame %d has number %d, %v", newest+1, number, err)
		}
		newest, kept[number] = number, payload
		frames, err := journal.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		found := map[uint64][]byte{}
		for _, f := range frames {
			found[f.Number] = f.Payload
		}
		for number, payload := range kept {
			if !bytes.Equal(found[number], payload) {
				t.Fatalf("frame %d of %d is gone; freed are those up to %d", number, newest, freed)
			}
		}
	}
	if full == 0 || newest < 500 {
		t.Errorf("%d frames, %d times full: nothing was tried", newest, full)
	}
}

func TestATornFrameIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	j, _ := open(t, path, 8*page)
	add(t, j, "whole")
	add(t, j, "torn, by a crash")
	j.Close()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range 60 { // the frame's head and its payload
		raw[page+at] ^= 1
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		frames, err := journal.Read(path)
		if err != nil || text(frames) != "1:whole " {
			t.Fatalf("with byte %d changed: %s, %v", at, text(frames), err)
		}
		raw[page+at] ^= 1
	}
	raw[page] ^= 1
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	j, frames := open(t, path, 8*page)
	if text(frames) != "1:whole " {
		t.Fatal(text(frames))
	}
	if got := add(t, j, "again"); got != 2 {
		t.Errorf("the frame in its place has number %d", got)
	}
}

func TestWhatDoesNotFitIsFull(t *testing.T) {
	j, _ := open(t, filepath.Join(t.TempDir(), "ring"), 4*page)
	if _, err := j.Append(make([]byte, 5*page)); !errors.Is(err, journal.ErrFull) {
		t.Errorf("more than the ring: %v", err)
	}
	first := add(t, j, string(make([]byte, 2*page)))
	if _, err := j.Append(make([]byte, page)); !errors.Is(err, journal.ErrFull) {
		t.Errorf("more than is left: %v", err)
	}
	j.Free(first)
	add(t, j, string(make([]byte, page)))
}

func FuzzRead(f *testing.F) {
	path := filepath.Join(f.TempDir(), "ring")
	j, _, err := journal.Open(path, 4*page)
	if err != nil {
		f.Fatal(err)
	}
	for range 3 {
		if _, err := j.Append([]byte("seed")); err != nil {
			f.Fatal(err)
		}
	}
	j.Close()
	raw, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "ring")
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		frames, err := journal.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range frames {
			if i > 0 && f.Number < frames[i-1].Number || f.Number == 0 {
				t.Fatalf("frames out of order: %s", text(frames))
			}
		}
		j, again, err := journal.Open(path, 4*page)
		if err != nil {
			return // no multiple of a page
		}
		defer j.Close()
		if len(again) < len(frames) {
			t.Fatalf("Open found %d frames, Read %d", len(again), len(frames))
		}
		if _, err := j.Append([]byte("next")); err != nil && !errors.Is(err, journal.ErrFull) {
			t.Fatal(err)
		}
	})
}
