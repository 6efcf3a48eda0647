package log_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// onlooker cosigns what is consistent with what it saw, while it is there.
type onlooker struct {
	t    *testing.T
	gone atomic.Bool
	size uint64
	root []byte
}

func (o *onlooker) Cosign(ctx context.Context, note []byte, size uint64, prove func(context.Context, uint64) ([][]byte, error)) ([]byte, error) {
	if o.gone.Load() {
		return nil, errors.New("nobody there")
	}
	root := rootLine(o.t, note)
	if o.size > 0 && size > o.size {
		path, err := prove(ctx, o.size)
		if err != nil {
			return nil, err
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, o.size, size, path, o.root, root); err != nil {
			o.t.Error(err)
		}
	}
	o.size, o.root = size, root
	return append(note, "— onlooker AAAAAA==\n"...), nil
}

func TestWithoutAQuorumNoCheckpointIsShown(t *testing.T) {
	ways(t, func(t *testing.T, way func(h *house) *house) {
		h := way(newHouse(t, log.Rekor2))
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		who := &onlooker{t: t}
		h.change = func(o *log.Options) { o.Cosigner, o.WitnessKey = who, key }
		h.mustOpen()
		add := func(text string) (log.Receipt, error) { return h.log.Add(t.Context(), h.submission(text)) }
		receipt, err := add("seen")
		if err != nil {
			t.Fatal(err)
		}
		if note := string(receipt.Checkpoint.Note); strings.Count(note, "— log.example ") != 2 || !strings.HasSuffix(note, "— onlooker AAAAAA==\n") {
			t.Errorf("the receipt's checkpoint is not the witnessed one: %q", note)
		}
		who.gone.Store(true)
		if _, err := add("unseen"); fault.ReasonOf(err) != "no_witness_quorum" || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("without a quorum: %v, want a 503", err)
		}
		if size := h.log.Checkpoint().Size; size != 1 {
			t.Errorf("a checkpoint of size %d was published without a quorum", size)
		}
		if fault.ReasonOf(h.log.Ready()) != "no_witness_quorum" {
			t.Errorf("Ready = %v", h.log.Ready())
		}
		who.gone.Store(false)
		for {
			if receipt, err = add("unseen"); err == nil {
				break
			}
			if fault.KindOf(err) != fault.Unavailable {
				t.Fatal(err)
			}
		}
		if receipt.Index != 1 || !strings.HasSuffix(string(receipt.Checkpoint.Note), "— onlooker AAAAAA==\n") {
			t.Errorf("once the witness is back: index %d, %q", receipt.Index, receipt.Checkpoint.Note)
		}
	})
}

func TestRekor1CheckpointsCarryOneSignature(t *testing.T) {
	h := newHouse(t, log.Rekor1)
	who := &onlooker{t: t}
	h.change = func(o *log.Options) { o.Cosigner = who }
	h.mustOpen()
	h.addUntilAnswered("entry")
	h.verify() // refuses a second signature line
}

func rootLine(t *testing.T, note []byte) []byte {
	t.Helper()
	lines := strings.SplitN(string(note), "\n", 4)
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(lines) < 4 {
		t.Fatalf("%q: %v", note, err)
	}
	return root
}
