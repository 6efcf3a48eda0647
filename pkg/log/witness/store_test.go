package witness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var errFault = errors.New("injected fault")

// faultAt makes a store fail at one step of a write, before or after it took effect. With dead, all
// later steps fail too, as after a kill.
func faultAt(s *store, name string, after, dead bool) (heal func(), struck *bool) {
	struck = new(bool)
	whole := s.step
	s.step = func(step string, do func() error) error {
		if *struck && dead {
			return errFault
		}
		if step != name || *struck {
			return do()
		}
		*struck = true
		if after {
			if err := do(); err != nil {
				return err
			}
		}
		return errFault
	}
	return func() { s.step = whole }, struck
}

// Each step of storing a record fails, before and after it took effect, with the process going on and killed. No cosignature leaves,
// the record is the old or the new one, and what was answered before is still there.
func TestAFaultAtAnyWriteLosesNothing(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	for _, step := range []string{"create", "write", "sync", "rename", "sync directory"} {
		for _, after := range []bool{false, true} {
			for _, killed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, took effect %v, killed %v", step, after, killed), func(t *testing.T) {
					h := newWitnessHouse(t, l)
					h.cosigned(h.post(l.body(0, 10)), l, 10)
					heal, struck := faultAt(h.server.store, step, after, killed)
					if r := h.post(l.body(10, 20)); r.status != 503 || !*struck {
						t.Fatalf("%+v, struck %v", r, *struck)
					}
					heal()
					if killed {
						h.reopen()
					}
					moved := step == "sync directory" || step == "rename" && after
					want := uint64(10)
					if moved {
						want = 20
					}
					r := h.post(l.body(10, 30))
					if moved {
						if r.status != 409 || r.body != "20\n" {
							t.Fatalf("the write took effect, but the answer is %+v", r)
						}
						r = h.post(l.body(20, 30))
					}
					h.cosigned(r, l, 30)
					if held := h.server.watched[logOrigin].held; held.size != 30 {
						t.Errorf("held size %d after %d", held.size, want)
					}
					h.reopen()
					h.cosigned(h.post(l.body(30, 31)), l, 31)
				})
			}
		}
	}
}

// While the disk fails nothing is cosigned, reads go on, and when it is well again all goes on.
func TestADiskThatKeepsFailing(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	h := newWitnessHouse(t, l)
	h.cosigned(h.post(l.body(0, 10)), l, 10)
	heal, _ := faultAt(h.server.store, "rename", true, true)
	for range 3 {
		if r := h.post(l.body(10, 20)); r.status != 503 {
			t.Fatalf("%+v", r)
		}
		if r := h.get("/readyz"); r.status != 503 {
			t.Errorf("%+v", r)
		}
	}
	if r := h.get("/" + originHash(logOrigin) + "/checkpoint"); r.status != 200 {
		t.Errorf("%+v", r)
	}
	heal()
	if r := h.get("/readyz"); r.status != 200 {
		t.Errorf("%+v", r)
	}
	if r := h.post(l.body(10, 20)); r.status != 409 || r.body != "20\n" {
		t.Errorf("%+v", r)
	}
	h.cosigned(h.post(l.body(20, 20)), l, 20)
}

// A fork is refused whether or not its evidence can be kept, and a torn file of evidence is replaced.
func TestEvidenceThatCannotBeKept(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "leaf")
	fork := newTestLog(t, logOrigin, newEd25519Key('l'), 100, "fork")
	for _, step := range []string{"create", "write", "sync", "rename"} {
		for _, after := range []bool{false, true} {
			h := newWitnessHouse(t, l)
			h.cosigned(h.post(l.body(0, 10)), l, 10)
			heal, struck := faultAt(h.server.store, step, after, false)
			if r := h.post(fork.body(10, 10)); r.status != 409 || !*struck {
				t.Fatalf("%s: %+v, struck %v", step, r, *struck)
			}
			heal()
			if r := h.post(fork.body(10, 10)); r.status != 409 {
				t.Fatalf("%s: %+v", step, r)
			}
			files, err := filepath.Glob(filepath.Join(h.opts.Dir, originHash(logOrigin), evidenceGlob))
			if err != nil || len(files) != 1 {
				t.Fatalf("%s: %v, %v", step, files, err)
			}
			if info, err := os.Stat(files[0]); err != nil || info.Size() < 500 {
				t.Errorf("%s: %v, %v", step, info, err)
			}
		}
	}
}
