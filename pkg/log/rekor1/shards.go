package rekor1

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log"
)

// Shard is one tree of the API, under a key of its own.
type Shard struct {
	Log   Log
	Index Index // finds its entries; nil when the server has no search, for all shards alike
	// Lost is how many entries behind its last one were lost. Their virtual indexes stay taken.
	Lost uint64
}

// shards is the trees behind the API between two cut-overs. An entry's virtual index is its index in
// its tree and the sizes of all older trees, with what these have lost; they are frozen, so that it never changes.
type shards struct {
	list     []*shard      // oldest first
	frozen   bool          // the newest takes no entries either
	replaced chan struct{} // closed when others have taken their place
}

type shard struct {
	log       Log
	index     Index
	first     uint64 // virtual index of the tree's first entry
	treeID    int64
	tree      string // treeID, decimal
	logID     string // hex
	publicKey []byte // PEM
}

// cutoverWait is how long a submission waits for the successor of a log that was frozen under it.
const cutoverWait = 10 * time.Second

// SetShards puts other trees behind the API, oldest first: after a cut-over the same ones and the next. All
// but the last must be frozen, and with frozen set the last as well. Submissions that met the old
// last tree frozen go on with the new one.
func (h *Handler) SetShards(list []Shard, frozen bool) error {
	next, err := newShards(list, frozen)
	if err != nil {
		return fmt.Errorf("rekor1: %w", err)
	}
	if old := h.shards.Swap(next); old != nil {
		close(old.replaced)
	}
	return nil
}

func newShards(list []Shard, frozen bool) (*shards, error) {
	if len(list) == 0 {
		return nil, errors.New("at least one shard is required")
	}
	set := &shards{frozen: frozen, replaced: make(chan struct{})}
	var first uint64
	for i, given := range list {
		if given.Log == nil {
			return nil, fmt.Errorf("shard %d has no log", i)
		}
		if (given.Index == nil) != (list[0].Index == nil) {
			return nil, errors.New("some shards have a search index and others none: a search would miss entries")
		}
		s := &shard{log: given.Log, index: given.Index, first: first, treeID: given.Log.TreeID()}
		if s.treeID <= 0 {
			return nil, fmt.Errorf("tree ID %d is not positive", s.treeID)
		}
		if set.byTree(s.treeID) != nil {
			return nil, fmt.Errorf("two shards have tree ID %d", s.treeID)
		}
		var err error
		if s.publicKey, err = signer.PublicPEM(given.Log.PublicKey()); err != nil {
			return nil, fmt.Errorf("encoding the public key of tree %d: %w", s.treeID, err)
		}
		logID := given.Log.LogID()
		s.tree, s.logID = strconv.FormatInt(s.treeID, 10), hex.EncodeToString(logID[:])
		set.list = append(set.list, s)
		first += given.Log.Checkpoint().Size + given.Lost
	}
	return set, nil
}

// size is how many entries the shards have, without what was lost.
func (h *Handler) size() (total uint64) {
	for _, s := range h.shards.Load().list {
		total += s.log.Checkpoint().Size
	}
	return total
}

// active is the newest shard, which takes entries unless all are frozen.
func (set *shards) active() *shard { return set.list[len(set.list)-1] }

// newestFirst lists the shards in the order in which a UUID is looked up: active, then inactive ones.
func (set *shards) newestFirst() []*shard {
	out := make([]*shard, 0, len(set.list))
	for i := len(set.list) - 1; i >= 0; i-- {
		out = append(out, set.list[i])
	}
	return out
}

// byTree returns the shard of a tree ID, nil when there is none.
func (set *shards) byTree(treeID int64) *shard {
	for _, s := range set.list {
		if s.treeID == treeID {
			return s
		}
	}
	return nil
}

// named returns the shard of a treeID parameter, decimal, the active one for "", nil when there is none.
func (set *shards) named(tree string) *shard {
	if tree == "" {
		return set.active()
	}
	for _, s := range set.list {
		if s.tree == tree {
			return s
		}
	}
	return nil
}

// resolve returns the shard of a virtual index. What lies behind the last entry belongs to the active one.
func (set *shards) resolve(virtual uint64) *shard {
	for _, s := range set.newestFirst() {
		if virtual >= s.first {
			return s
		}
	}
	return set.list[0] // not reached: its first index is 0
}

// entryID names an entry among all shards.
func (s *shard) entryID(leafHash [32]byte) string { return fmt.Sprintf("%016x%x", s.treeID, leafHash) }

// errFrozen is the answer of an API without an active shard, in the words of reference rekor-tiles.
var errFrozen = fault.New(fault.Frozen, "log_frozen", nil, "This log has been frozen, please switch to the latest log.")

// add puts the entry into the active shard. When that is frozen while the request is on its way, a
// cut-over is going on: the request waits for the next shard and goes there.
func (h *Handler) add(ctx context.Context, sub log.Submission) (*shard, log.Receipt, error) {
	timeout := time.NewTimer(cutoverWait)
	defer timeout.Stop()
	for {
		set := h.shards.Load()
		if set.frozen {
			return nil, log.Receipt{}, errFrozen
		}
		s := set.active()
		receipt, err := s.log.Add(ctx, sub)
		if fault.KindOf(err) != fault.Frozen {
			return s, receipt, err
		}
		select {
		case <-set.replaced:
		case <-ctx.Done():
			return nil, log.Receipt{}, ctx.Err()
		case <-timeout.C:
			return nil, log.Receipt{}, fault.New(fault.Unavailable, "cutting_over", err, "the log is moving to its next shard; try again")
		}
	}
}
