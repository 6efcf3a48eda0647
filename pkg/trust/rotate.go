package trust

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/attestry/attestry/internal/durable"
)

// RotateOnlineKey replaces the key of snapshot and timestamp by a new one. Three steps keep
// every client at every moment with metadata that verifies: a root with both keys, snapshot
// and timestamp signed by both, a root with the new key alone. A kill in between is completed
// by the next Publish, Refresh or RotateOnlineKey. It needs the holders' threshold.
func (p *Publisher) RotateOnlineKey(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.repo.timestamp == nil {
		return errors.New("rotating the online TUF key: nothing is published yet")
	}
	if !p.ring.can(p.repo.root.Signed, metadata.ROOT) {
		return fmt.Errorf("rotating the online TUF key: %s does not hold the threshold of root keys", p.ring.dir)
	}
	if p.ring.next == nil {
		key, err := p.ring.create(nextOnlineName)
		if err != nil {
			return fmt.Errorf("rotating the online TUF key: %w", err)
		}
		p.ring.next = key
	}
	if err := p.update(nil, nil); err != nil {
		return fmt.Errorf("rotating the online TUF key: %w", err)
	}
	return nil
}

var onlineRoles = []string{metadata.SNAPSHOT, metadata.TIMESTAMP}

func (p *Publisher) continueRotation() error {
	id := p.ring.next.id
	listed := func(want int) bool {
		for _, role := range onlineRoles {
			ids := p.repo.root.Signed.Roles[role].KeyIDs
			if !slices.Contains(ids, id) || (want > 0 && len(ids) != want) {
				return false
			}
		}
		return true
	}
	if !listed(0) {
		if err := p.changeRoot(func(root *metadata.RootType, role string) error {
			return root.AddKey(p.ring.next.pub, role)
		}); err != nil {
			return err
		}
	}
	if !signedBy(id, p.repo.snapshot.Signatures, p.repo.timestamp.Signatures) {
		next, err := p.build(nil, nil, map[string]bool{metadata.SNAPSHOT: true})
		if err != nil {
			return err
		}
		if err := p.commit(next); err != nil {
			return err
		}
	}
	if !listed(1) {
		if err := p.changeRoot(func(root *metadata.RootType, role string) error {
			for _, old := range slices.Clone(root.Roles[role].KeyIDs) {
				if old != id {
					if err := root.RevokeKey(old, role); err != nil {
						return err
					}
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	// The old key has no power any more; its file gives way to the new one.
	if err := os.Rename(filepath.Join(p.ring.dir, nextOnlineName), filepath.Join(p.ring.dir, onlineKeyName)); err != nil {
		return err
	}
	if err := durable.SyncDir(p.ring.dir); err != nil {
		return err
	}
	p.ring.next = nil
	return nil
}

// changeRoot publishes the next root with both online roles edited.
func (p *Publisher) changeRoot(edit func(root *metadata.RootType, role string) error) error {
	root, err := nextRoot(p.repo.rootBytes, p.expiry(metadata.ROOT))
	if err != nil {
		return err
	}
	for _, role := range onlineRoles {
		if err := edit(&root.Signed, role); err != nil {
			return err
		}
	}
	if err := sign(root, metadata.ROOT, p.ring, p.repo.root.Signed, root.Signed); err != nil {
		return err
	}
	return p.commit(&publication{root: root})
}
