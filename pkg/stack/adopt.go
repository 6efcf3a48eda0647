package stack

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/pkg/log"
)

// Adoption is what an operator says of a log that does not start by itself: how large it is when its fence was
// lost, or what it has lost when its fence is ahead of it.
type Adoption struct {
	Label string // "rekor1", "rekor2", "ct-<shard>", or another of shards.json
	Size  uint64 // entries that it must have; without Lost
	Lost  *LostEntries
	// Checkpoint is one of exactly the tree that is left, a signed note; nil for what a restore has put beside the log.
	Checkpoint []byte
}

// ParseLost reads "A..B".
func ParseLost(text string) (*LostEntries, error) {
	from, to, ok := strings.Cut(text, "..")
	a, errA := strconv.ParseUint(from, 10, 63)
	b, errB := strconv.ParseUint(to, 10, 63)
	if !ok || errA != nil || errB != nil || a >= b {
		return nil, fmt.Errorf("%q is not A..B: how many entries are left, and how many its key has signed", text)
	}
	return &LostEntries{a, b}, nil
}

// AdoptLog makes a log of this server startable. Without Lost it gets a new fence record, see log.Adopt. With it the log is
// frozen in shards.json as it is, see log.AdoptLost, and is served for reading from the next start on; that may be said
// again. The logs must not be open. It returns the tree that may be signed.
func AdoptLog(ctx context.Context, opts LogsOptions, a Adoption) (log.Record, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	file, err := ReadShards(opts.Dir)
	if err != nil {
		return log.Record{}, err
	}
	members, err := opts.members(file)
	if err != nil {
		return log.Record{}, err
	}
	var labels []string
	for _, m := range members {
		if m.spec.Label == a.Label {
			return opts.adopt(ctx, m, a)
		}
		labels = append(labels, m.spec.Label)
	}
	return log.Record{}, fmt.Errorf("there is no log %q here, only %q", a.Label, labels)
}

func (o LogsOptions) adopt(ctx context.Context, m *member, a Adoption) (log.Record, error) {
	l, err := o.options(m)
	if err != nil {
		return log.Record{}, err
	}
	fence, closeFence, err := o.openFence(ctx)
	if err != nil {
		return log.Record{}, err
	}
	defer closeFence()
	l.Fence = fence
	if l.DB, err = o.openDatabase(ctx, l.Label); err != nil {
		return log.Record{}, err
	}
	if l.DB != nil {
		defer func(db *database.DB) { db.Close() }(l.DB)
	}
	tree, err := m.spec.Tree.open(ctx, l.Kind, l.Label, l.Dir)
	if err != nil {
		return log.Record{}, err
	}
	defer tree.Close()
	l.Tree = tree
	if a.Lost == nil {
		return log.Adopt(ctx, l, a.Size)
	}
	l.Frozen = nil
	if l.FrozenNote, err = checkpointOf(l, m.record.Final, a); err != nil {
		return log.Record{}, err
	}
	cp, err := log.AdoptLost(ctx, l, a.Lost.From, a.Lost.To)
	if err != nil {
		return log.Record{}, fmt.Errorf("adopting log %s: %w", l.Label, err)
	}
	final := finalTree(cp, o.Now())
	final.Lost = a.Lost
	_, err = changeShards(o.Dir, func(file *ShardFile) error {
		r := file.at(l.Label, m.spec.Kind)
		if f := r.Final; f != nil && f.Size == final.Size && f.Root == final.Root && f.Lost != nil && *f.Lost == *final.Lost {
			return nil // it was adopted before
		} else if f != nil {
			final.Time = f.Time // its key has signed nothing since
		}
		r.State, r.Final, r.FreezeAt = Frozen, final, time.Time{}
		return nil
	})
	if err != nil {
		return log.Record{}, fmt.Errorf("adopting log %s: %w", l.Label, err)
	}
	return log.Record{Size: cp.Size, Root: cp.Root, Promised: a.Lost.To}, nil
}

// checkpointOf returns the checkpoint to hold the tree against: what the operator gives, or what an adoption before or a restore has
// kept of this size; nil when there is none.
func checkpointOf(l log.Options, final *FinalTree, a Adoption) ([]byte, error) {
	if a.Checkpoint != nil {
		return a.Checkpoint, nil
	}
	if final != nil && final.Size == a.Lost.From {
		return []byte(final.Checkpoint), nil
	}
	raw, err := os.ReadFile(filepath.Join(l.Dir, restoredName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if tree, err := log.ParseCheckpoint(l.Kind, l.Origin, l.Name, l.Key, raw); err != nil || tree.Size != a.Lost.From {
		return nil, nil // of a restore before
	}
	return raw, nil
}

// seal returns a log that lost entries as its key may still speak of it: its last tree alone, if that was signed before.
func (f *FinalTree) seal(l log.Options, records []log.Record) ([]log.Record, error) {
	final, err := f.record()
	if err != nil {
		return nil, err
	}
	final.Promised = final.Size
	var kept []log.Record
	for _, r := range records {
		if r.Size < final.Size {
			kept = append(kept, r)
		}
		if r.Size == final.Size && r.Root != final.Root {
			return nil, fmt.Errorf("the fence has another tree of size %d than root %s", f.Size, f.Root)
		}
	}
	tree, err := log.ParseCheckpoint(l.Kind, l.Origin, l.Name, l.Key, []byte(f.Checkpoint))
	if err != nil {
		return nil, err
	}
	if tree.Size != final.Size || tree.Root != final.Root {
		return nil, fmt.Errorf("the checkpoint of the final tree is of size %d and root %s", tree.Size, hex.EncodeToString(tree.Root[:]))
	}
	return append([]log.Record{*final}, kept...), nil
}
