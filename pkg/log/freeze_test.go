package log_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// TestAFrozenLogHasEveryEntryThatWasAnswered freezes each kind of log under writers.
func TestAFrozenLogHasEveryEntryThatWasAnswered(t *testing.T) {
	ways(t, func(t *testing.T, way func(h *house) *house) {
		for name, kind := range map[string]log.Kind{"rekor1": log.Rekor1, "rekor2": log.Rekor2, "ct": log.CT} {
			t.Run(name, func(t *testing.T) {
				h := way(newHouse(t, kind))
				h.mustOpen()
				begun := make(chan struct{}, 8)
				var answered sync.Map
				var wg sync.WaitGroup
				for w := range 8 {
					wg.Go(func() {
						for i := 0; ; i++ {
							text := fmt.Sprintf("writer %d entry %d", w, i)
							err := h.add(text)
							if fault.KindOf(err) == fault.Frozen {
								return
							}
							if err != nil {
								t.Errorf("%s: %v", text, err)
								return
							}
							answered.Store(text, true)
							if i == 3 {
								begun <- struct{}{}
							}
						}
					})
				}
				for range 8 {
					<-begun
				}
				cp, err := h.log.Freeze(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				wg.Wait() // every writer has met the end
				if now := h.log.Checkpoint(); now.Size != cp.Size || now.Root != cp.Root {
					t.Errorf("the tree grew from %d to %d after Freeze returned", cp.Size, now.Size)
				}
				count := uint64(0)
				answered.Range(func(any, any) bool { count++; return true })
				if count != cp.Size {
					t.Errorf("%d entries were answered, the final tree has %d", count, cp.Size)
				}
				if again, err := h.log.Freeze(t.Context()); err != nil || again.Root != cp.Root {
					t.Errorf("freezing again: %v", err)
				}
				if err := h.log.Ready(); err != nil {
					t.Errorf("a frozen log is not ready to be read: %v", err)
				}

				h.close()
				h.final = &log.Record{Size: cp.Size, Root: cp.Root}
				h.mustOpen()
				if err := h.add("after a restart"); fault.KindOf(err) != fault.Frozen {
					t.Errorf("after a restart an entry gets %v, want fault.Frozen", err)
				}
				if now := h.log.Checkpoint(); now.Size != cp.Size || now.Root != cp.Root {
					t.Errorf("after a restart the tree has size %d, want %d", now.Size, cp.Size)
				}
				if _, err := h.log.InclusionProof(t.Context(), 0, cp.Size); err != nil {
					t.Errorf("a frozen log proves nothing: %v", err)
				}

				for text, final := range map[string]log.Record{
					"was frozen with": {Size: cp.Size - 1, Root: cp.Root},
					"has root":        {Size: cp.Size, Root: [32]byte{1}},
				} {
					h.close()
					h.final = &final
					if err := h.open(); err == nil || !strings.Contains(err.Error(), text) {
						t.Errorf("with another final tree the log opens: %v, want %q", err, text)
					}
				}
			})
		}
	})
}

// TestAFaultDoesNotMakeAFrozenLogFinalTooEarly fails the commit of an entry in flight while the log freezes.
func TestAFaultDoesNotMakeAFrozenLogFinalTooEarly(t *testing.T) {
	h := newHouse(t, log.Rekor1)
	h.mustOpen()
	if err := h.add("first"); err != nil {
		t.Fatal(err)
	}
	log.FailCommits(h.log, "before completing")
	if err := h.add("in the tree, and nobody was told"); err == nil {
		t.Fatal("the injected fault did not show")
	}
	var cp *log.Checkpoint
	for {
		var err error
		if cp, err = h.log.Freeze(t.Context()); err == nil {
			break
		}
		if fault.KindOf(err) != fault.Unavailable {
			t.Fatal(err)
		}
	}
	if cp.Size != 2 {
		t.Errorf("the final tree has %d entries, want both leaves", cp.Size)
	}
	if err := h.add("third"); fault.KindOf(err) != fault.Frozen {
		t.Errorf("recovery opened a frozen log again: %v", err)
	}
	h.close()
	h.final = &log.Record{Size: cp.Size, Root: cp.Root}
	h.mustOpen()
}
