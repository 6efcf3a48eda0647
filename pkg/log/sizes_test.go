package log_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

// TestProofsForEverySize: batches end at few of the sizes, and only for those are partial tiles stored. A
// client may ask for any size: a monitor that saw one replica's head, or one that takes equal steps.
func TestProofsForEverySize(t *testing.T) {
	h := newHouse(t, kinds["rekor2"])
	h.mustOpen()
	const n = 300
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() { h.addUntilAnswered(fmt.Sprintf("entry %d", i)) })
	}
	wait.Wait()
	reference := testonly.New(rfc6962.DefaultHasher)
	for i := range uint64(n) {
		leaf, err := h.log.Leaf(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		reference.AppendData(leaf.Data)
	}
	for size := uint64(1); size <= n; size++ {
		root, err := h.log.RootAt(t.Context(), size)
		if err != nil || root != [32]byte(reference.HashAt(size)) {
			t.Fatalf("size %d: root %x, want %x: %v", size, root, reference.HashAt(size), err)
		}
		for _, index := range []uint64{0, size / 2, size - 1} {
			path, err := h.log.InclusionProof(t.Context(), index, size)
			if err == nil {
				err = proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, reference.LeafHash(index), path, root[:])
			}
			if err != nil {
				t.Fatalf("index %d in size %d: %v", index, size, err)
			}
			first := index + 1
			path, err = h.log.ConsistencyProof(t.Context(), first, size)
			if err == nil {
				err = proof.VerifyConsistency(rfc6962.DefaultHasher, first, size, path, reference.HashAt(first), root[:])
			}
			if err != nil {
				t.Fatalf("size %d to %d: %v", first, size, err)
			}
		}
	}
}
