package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/attestry/attestry/internal/journal"
)

const page = 4096

func open(t testing.TB, path string, size int64) (*journal.Journal, []journal.Frame) {
	t.Helper()
	j, frames, err := journal.Open(path, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Crash)
	return j, frames
}

func add(t testing.TB, j *journal.Journal, payload string) uint64 {
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

func load(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func save(t testing.TB, path string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFramesOutliveTheirProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	j, frames := open(t, path, 9*page)
	if len(frames) != 0 {
		t.Fatalf("a new ring has %s", text(frames))
	}
	for i := range 3 {
		if got := add(t, j, fmt.Sprintf("frame %d", i+1)); got != uint64(i+1) {
			t.Errorf("frame %d has number %d", i+1, got)
		}
	}
	if _, _, err := journal.Open(path, 9*page); !errors.Is(err, journal.ErrInUse) {
		t.Errorf("a second process gets %v", err)
	}
	if read, err := journal.Read(path); err != nil || text(read) != "1:frame 1 2:frame 2 3:frame 3 " {
		t.Errorf("a reader beside it gets %s, %v", text(read), err)
	}
	j.Free(2)
	add(t, j, "frame 4") // it says on disk that the first two are free
	j.Crash()
	j, frames = open(t, path, 9*page)
	if text(frames) != "3:frame 3 4:frame 4 " {
		t.Errorf("after a crash: %s", text(frames))
	}
	if got := add(t, j, "frame 5"); got != 5 {
		t.Errorf("the next frame has number %d", got)
	}
	j.Free(4)
	if err := j.Close(); err != nil { // it says so of the others
		t.Fatal(err)
	}
	j, frames = open(t, path, 9*page)
	if text(frames) != "5:frame 5 " {
		t.Errorf("after the end: %s", text(frames))
	}
	if got := add(t, j, "next"); got != 7 {
		t.Errorf("the next frame has number %d", got)
	}
	if read, err := journal.Read(filepath.Join(t.TempDir(), "none")); err != nil || read != nil {
		t.Errorf("no ring is read as %s, %v", text(read), err)
	}
}

// TestNoFaultTakesAwayWhatWasDurable appends and frees at random. Writes fail before and after they take effect, or tear; processes crash. After each
// step every frame that is needed is there, and nothing else but what was freed, or one whose append failed last.
func TestNoFaultTakesAwayWhatWasDurable(t *testing.T) {
	for seed := range uint64(4) {
		random := rand.New(rand.NewPCG(seed, 2))
		path := filepath.Join(t.TempDir(), "ring")
		j, _ := open(t, path, 17*page)
		needed := map[uint64][]byte{}
		var freed uint64
		var failed [][]byte // payloads of the appends that failed since one was durable
		full, faults, crashes, torn := 0, 0, 0, 0
		faulty := func(b []byte, at int64, real func([]byte, int64) error) error {
			switch random.IntN(12) {
			case 0:
				return errors.New("not stored")
			case 1:
				return errors.Join(real(b, at), errors.New("stored, though"))
			case 2:
				torn++
				return errors.Join(real(b[:random.IntN(len(b))], at), errors.New("torn"))
			default:
				return real(b, at)
			}
		}
		j.Writing(faulty)
		check := func(frames []journal.Frame) {
			t.Helper()
			found := map[uint64][]byte{}
			for i, f := range frames {
				found[f.Number] = f.Payload
				if needed[f.Number] == nil && f.Number > freed && (i != len(frames)-1 || !slices.ContainsFunc(failed, func(b []byte) bool { return bytes.Equal(b, f.Payload) })) {
					t.Fatalf("seed %d: frame %d is there, whose append failed before others were durable", seed, f.Number)
				}
			}
			for number, payload := range needed {
				if !bytes.Equal(found[number], payload) {
					t.Fatalf("seed %d: frame %d is gone; freed are those up to %d", seed, number, freed)
				}
			}
		}
		var newest uint64
		for range 1000 {
			if random.IntN(3) == 0 && newest > freed {
				to := freed + 1 + random.Uint64N(newest-freed)
				j.Free(to)
				for ; freed < to; freed++ {
					delete(needed, freed+1)
				}
			}
			payload := make([]byte, 1+random.IntN(5*page))
			for i := range payload {
				payload[i] = byte(random.Uint32())
			}
			number, err := j.Append(payload)
			switch {
			case err == nil && number <= newest:
				t.Fatalf("frame %d comes after frame %d", number, newest)
			case err == nil:
				newest, needed[number], failed = number, payload, nil
			case errors.Is(err, journal.ErrFull):
				full++
			default:
				faults++
				failed = append(failed, payload)
			}
			frames, err := journal.Read(path)
			if err != nil {
				t.Fatal(err)
			}
			check(frames)
			if random.IntN(10) == 0 {
				crashes++
				j.Crash()
				j, frames = open(t, path, 17*page)
				j.Writing(faulty)
				check(frames)
				j.Free(freed)                                                                                   // its owner finds that they are elsewhere
				if n := len(frames); n > 0 && frames[n-1].Number > freed && needed[frames[n-1].Number] == nil { // it counts from now on
					newest, needed[frames[n-1].Number] = frames[n-1].Number, frames[n-1].Payload
				}
				failed = nil
			}
		}
		if full == 0 || faults == 0 || crashes == 0 || torn == 0 || newest < 300 {
			t.Errorf("%d frames, %d times full, %d faults, %d crashes, %d torn: too little was tried", newest, full, faults, crashes, torn)
		}
	}
}

// TestATornFrameIsNone cuts the write of the last frame at each byte, over an empty ring and over frames of the turn before, whose pages do not
// begin where its own do.
func TestATornFrameIsNone(t *testing.T) {
	for name, turns := range map[string]int{"over nothing": 0, "over the turn before": 5} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ring")
			j, _ := open(t, path, 9*page)
			for range turns {
				j.Free(add(t, j, strings.Repeat("old", 2000)))
			}
			whole := add(t, j, "whole")
			before := load(t, path)
			last := add(t, j, "last"+strings.Repeat("x", 5000))
			after := load(t, path)
			j.Crash()
			from, to := 0, 0 // what the write changed
			for i := range after {
				if after[i] != before[i] {
					if from == 0 {
						from = i
					}
					to = i + 1
				}
			}
			want := []uint64{whole}
			for cut := from &^ (page - 1); cut < to; cut++ {
				torn := slices.Clone(before)
				copy(torn[from:cut], after[from:])
				save(t, path, torn)
				frames, err := journal.Read(path)
				if got := numbers(frames, whole); err != nil || !slices.Equal(got, want) {
					t.Fatalf("cut at byte %d of %d: %v, %v", cut, to, got, err)
				}
			}
			first := slices.Clone(after) // pages come to the disk in any order
			copy(first[from&^(page-1):][:page], before[from&^(page-1):])
			save(t, path, first)
			if frames, err := journal.Read(path); err != nil || !slices.Equal(numbers(frames, whole), want) {
				t.Errorf("without its first page: %s, %v", text(frames), err)
			}
			j, _ = open(t, path, 9*page)
			if got := add(t, j, "again"); got != last {
				t.Errorf("the frame in its place has number %d", got)
			}
		})
	}
}

// numbers returns those of frames from first on.
func numbers(frames []journal.Frame, first uint64) (all []uint64) {
	for _, f := range frames {
		if f.Number >= first {
			all = append(all, f.Number)
		}
	}
	return all
}

func TestWhatIsDamagedIsAnErrorWhereItWasDurable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	j, _ := open(t, path, 9*page)
	for i := range 3 {
		add(t, j, fmt.Sprint("frame ", i))
	}
	j.Crash()
	raw := load(t, path)
	wanted := map[int]string{0: "damaged", page: "frame 1 is missing before frame 2", 2 * page: "frame 2 is missing before frame 3"}
	for from, want := range wanted {
		for at := range journal.FrameHead + 7 {
			damaged := slices.Clone(raw)
			damaged[from+at] ^= 0x20
			save(t, path, damaged)
			if _, err := journal.Read(path); !errors.Is(err, journal.ErrDamaged) || !strings.Contains(err.Error(), want) {
				t.Fatalf("byte %d: %v", from+at, err)
			}
			if _, _, err := journal.Open(path, 9*page); !errors.Is(err, journal.ErrDamaged) {
				t.Fatalf("byte %d: opened: %v", from+at, err)
			}
		}
		if after := load(t, path); bytes.Equal(after, raw) {
			t.Fatal("nothing was damaged")
		}
	}
	for name, raw := range map[string][]byte{"empty": {}, "short": raw[:100], "another file": bytes.Repeat([]byte("x"), 9*page)} {
		save(t, path, raw)
		if _, _, err := journal.Open(path, 9*page); !errors.Is(err, journal.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if after := load(t, path); !bytes.Equal(after, raw) {
			t.Errorf("%s: it was changed", name)
		}
	}
}

// TestAPayloadIsNoFrame has a payload with whole frames of another ring, of higher numbers, where pages begin.
func TestAPayloadIsNoFrame(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other")
	j, _ := open(t, other, 9*page)
	for range 20 {
		j.Free(add(t, j, "forged"))
	}
	frames := load(t, other)[page:]
	path := filepath.Join(t.TempDir(), "ring")
	j, _ = open(t, path, 20*page)
	payload := append(make([]byte, page-journal.FrameHead), frames...)
	if number, err := j.Append(payload); err != nil || number != 1 {
		t.Fatal(number, err)
	}
	if !bytes.Contains(load(t, path), frames) || !bytes.Equal(load(t, path)[2*page:2*page+100], frames[:100]) {
		t.Fatal("no page begins with a frame of the other ring")
	}
	if read, err := journal.Read(path); err != nil || len(read) != 1 || !bytes.Equal(read[0].Payload, payload) {
		t.Errorf("%s, %v", text(read), err)
	}
}

func TestWhatDoesNotFitIsFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	j, _ := open(t, path, 9*page)
	if _, err := j.Append(make([]byte, 8*page)); !errors.Is(err, journal.ErrFull) {
		t.Errorf("more than the ring: %v", err)
	}
	var last uint64
	for n := 0; ; n++ {
		number, err := j.Append([]byte{byte(n)})
		if errors.Is(err, journal.ErrFull) {
			break
		}
		if err != nil || n > 8 {
			t.Fatal(n, err)
		}
		last = number
	}
	if last != 7 { // of eight pages one stays for what says that others are free
		t.Errorf("full after %d frames", last)
	}
	for range 30 { // round after round, always full
		j.Free(last - 4)
		var err error
		if last, err = j.Append([]byte("again")); err != nil {
			t.Fatal(err)
		}
	}
	j.Free(math.MaxUint64)
	add(t, j, string(make([]byte, 2*page)))
}

func TestARingForACopyGrows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	want := [][]byte{[]byte("first"), bytes.Repeat([]byte("second"), 2000), []byte("third")}
	if err := journal.Create(path, want); err != nil {
		t.Fatal(err)
	}
	if err := journal.Create(path, want); !errors.Is(err, os.ErrExist) {
		t.Errorf("made where one is: %v", err)
	}
	j, frames := open(t, path, 32*page)
	for i, f := range frames {
		if f.Number != uint64(i+1) || !bytes.Equal(f.Payload, want[i]) {
			t.Errorf("frame %d is %s", i, text(frames))
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() != 32*page || len(frames) != 3 {
		t.Errorf("%d bytes, %d frames, %v", info.Size(), len(frames), err)
	}
	if got := add(t, j, "next"); got != 4 {
		t.Errorf("the next frame has number %d", got)
	}
}

// TestOneOfManyHasANewRing: whoever makes it, they agree on one file.
func TestOneOfManyHasANewRing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	var all sync.WaitGroup
	won := make(chan *journal.Journal, 8)
	for range 8 {
		all.Go(func() {
			j, _, err := journal.Open(path, 9*page)
			if err == nil {
				won <- j
			} else if !errors.Is(err, journal.ErrInUse) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(won) != 1 {
		t.Fatalf("%d have it open", len(won))
	}
	j := <-won
	defer j.Close()
	add(t, j, "theirs")
	if read, err := journal.Read(path); err != nil || text(read) != "1:theirs " {
		t.Errorf("in the file: %s, %v", text(read), err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("files %v, %v", left, err)
	}
}

// FuzzRing holds the reader of rings to what it may say of any frames in any order: those that it returns are linked without gaps, and Open agrees with
// Read. layout places frames, five bytes each: page, number, before, freed, pages.
func FuzzRing(f *testing.F) {
	f.Add([]byte{1, 1, 0, 0, 0, 2, 2, 1, 0, 1, 5, 3, 2, 1, 0}, uint16(0), byte(0))
	f.Add([]byte{3, 1, 0, 0, 0, 1, 2, 1, 1, 0, 2, 4, 2, 0, 0}, uint16(2*page+40), byte(1))
	f.Add([]byte{1, 9, 7, 6, 0, 4, 7, 6, 5, 0, 2, 8, 7, 6, 0}, uint16(0), byte(0x80))
	f.Fuzz(func(t *testing.T, layout []byte, at uint16, change byte) {
		path := filepath.Join(t.TempDir(), "ring")
		j, _ := open(t, path, 16*page)
		j.Crash()
		raw := load(t, path)
		for ; len(layout) >= 5; layout = layout[5:] {
			journal.Place(raw, 1+int(layout[0])%15, uint64(layout[1]), uint64(layout[2]), uint64(layout[3]), make([]byte, 1+int(layout[4]%3)*page))
		}
		raw[int(at)%len(raw)] ^= change
		save(t, path, raw[:16*page])
		frames, err := journal.Read(path)
		if err != nil {
			if frames != nil || !errors.Is(err, journal.ErrDamaged) {
				t.Errorf("%s beside %v", text(frames), err)
			}
			return
		}
		for i, f := range frames {
			number, before, _ := journal.Links(f)
			_, _, freed := journal.Links(frames[len(frames)-1])
			if number <= freed || i > 0 && before != frames[i-1].Number || i == 0 && before > freed {
				t.Fatalf("frame %d follows frame %d, free is %d: %s", number, before, freed, text(frames))
			}
		}
		j, again, err := journal.Open(path, 16*page)
		if err != nil || text(again) != text(frames) {
			t.Fatalf("Open found %s, Read %s: %v", text(again), text(frames), err)
		}
		defer j.Close()
		if _, err := j.Append([]byte("next")); err != nil && !errors.Is(err, journal.ErrFull) {
			t.Fatal(err)
		}
	})
}
