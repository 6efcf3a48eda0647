package witness

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/ctonly"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// A log of ours shows nobody a tree that its witnesses have not cosigned: with one of two away, nothing is answered
// and the checkpoint stays where it was; when it is back, all goes on. The witnesses know the log by an
// Ed25519 key beside its own.
func TestALogPublishesNothingWithoutItsWitnesses(t *testing.T) {
	for kind, name := range map[log.Kind]string{log.Rekor2: "Rekor v2", log.CT: "CT"} {
		t.Run(name, func(t *testing.T) {
			// What the witnesses know of the log is its Ed25519 key.
			known := newTestLog(t, logOrigin, newEd25519Key('l'), 0, "")
			a, b := serve(t, 'a', known), serve(t, 'b', known)
			policy := policyOf(t, "all", a, b)
			dir := t.TempDir()
			key := newP256Key(t)
			add := func(l *log.Log, text string) (log.Receipt, error) {
				sub := log.Submission{Data: []byte(text), Identity: [32]byte(rfc6962.DefaultHasher.HashLeaf([]byte(text)))}
				if kind == log.CT {
					sub = log.Submission{Identity: sha256.Sum256([]byte(text)), CT: &ctonly.Entry{Timestamp: 1_700_000_000_000, Certificate: []byte(text)}}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				return l.Add(ctx, sub)
			}
			cosigned := func(cp *log.Checkpoint) {
				t.Helper()
				c, sigs, err := parseNote(cp.Note)
				if err != nil || c.size != cp.Size || len(sigs) != 4 {
					t.Fatalf("%v\n%s", err, cp.Note)
				}
				if !policy.Satisfied(func(i int) bool {
					for _, s := range sigs {
						if policy.Witnesses[i].Key.signed(c.text, s) {
							return true
						}
					}
					return false
				}) {
					t.Fatalf("published without the quorum:\n%s", cp.Note)
				}
			}
			var l *log.Log
			open := func() (shut func()) {
				t.Helper()
				fence, err := log.OpenFileFence(filepath.Join(dir, "fence"))
				if err != nil {
					t.Fatal(err)
				}
				tree, err := tiles.Open(t.Context(), filepath.Join(dir, "tiles"), kind)
				if err != nil {
					t.Fatal(err)
				}
				l, err = log.Open(t.Context(), log.Options{
					Kind: kind, Label: "test", Origin: logOrigin, Name: logOrigin, Dir: dir, Tree: tree, Key: key, Fence: fence,
					Logger: quiet(), Cosigner: newTestClient(t, policy, a.clock), WitnessKey: known.key,
				})
				if err != nil {
					t.Fatal(err)
				}
				return func() {
					if err := errors.Join(l.Close(), tree.Close(), fence.Close()); err != nil {
						t.Error(err)
					}
				}
			}
			shut := open()
			var group sync.WaitGroup
			for i := range 50 {
				group.Go(func() {
					receipt, err := add(l, fmt.Sprintf("entry %d", i))
					if err != nil {
						t.Error(err)
						return
					}
					cosigned(receipt.Checkpoint)
				})
			}
			group.Wait()
			if size := l.Checkpoint().Size; size != 50 {
				t.Fatalf("size %d", size)
			}
			b.lie(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
			if _, err := add(l, "while a witness is away"); fault.KindOf(err) != fault.Unavailable {
				t.Errorf("without a witness: %v", err)
			}
			if cp := l.Checkpoint(); cp.Size != 50 {
				t.Errorf("published size %d without a witness", cp.Size)
			}
			b.instead.Store(nil)
			for end := time.Now().Add(20 * time.Second); l.Ready() != nil; { // the log's own recovery asks again
				if time.Now().After(end) {
					t.Fatal(l.Ready())
				}
				<-time.After(5 * time.Millisecond)
			}
			receipt, err := add(l, "while a witness is away")
			if err != nil || receipt.Index != 50 {
				t.Fatalf("%+v, %v", receipt, err)
			}
			cosigned(receipt.Checkpoint)
			shut()
			defer open()() // a new client, which does not know the witnesses' sizes
			cosigned(l.Checkpoint())
			if receipt, err = add(l, "after a start"); err != nil || receipt.Index != 51 {
				t.Fatalf("%+v, %v", receipt, err)
			}
			cosigned(receipt.Checkpoint)
		})
	}
}
