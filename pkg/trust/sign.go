package trust

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// build signs the metadata that new entries and due roles ask for, and all that names it.
func (p *Publisher) build(entries map[string]*metadata.TargetFiles, files []file, due map[string]bool) (*publication, error) {
	next := &publication{targetFiles: files}
	root := p.repo.root
	var err error
	switch {
	case root == nil && p.opts.SignedRoots != "":
		if next.signedRoots, root, err = p.newRoots(); err != nil {
			return nil, err
		}
		if root == nil {
			return nil, fmt.Errorf("%s has no 1.root.json", p.opts.SignedRoots)
		}
	case root == nil || due[metadata.ROOT]:
		if root, err = p.buildRoot(); err != nil {
			return nil, err
		}
		next.root = root
	}
	return next, p.buildUnder(next, entries, due, root.Signed)
}

// buildUnder adds the other roles to next, signed by the keys of every one of roots.
func (p *Publisher) buildUnder(next *publication, entries map[string]*metadata.TargetFiles, due map[string]bool, roots ...metadata.RootType) error {
	if p.repo.targets == nil && entries == nil {
		return errors.New("there are no targets yet")
	}
	if entries != nil || due[metadata.TARGETS] {
		targets := metadata.Targets(p.expiry(metadata.TARGETS))
		if p.repo.targets != nil {
			targets.Signed.Delegations = p.repo.targets.Signed.Delegations
			targets.Signed.Targets = p.repo.targets.Signed.Targets
		}
		if entries != nil {
			targets.Signed.Targets = entries
		}
		var err error
		if targets.Signed.Version, err = p.nextVersion(metadata.TARGETS); err != nil {
			return err
		}
		if err := sign(targets, metadata.TARGETS, p.ring, roots...); err != nil {
			return err
		}
		next.targets = targets
	}

	if next.targets != nil || due[metadata.SNAPSHOT] {
		snapshot, err := p.buildSnapshot(next.targets, roots...)
		if err != nil {
			return err
		}
		next.snapshot = snapshot
	}
	if next.snapshot != nil || due[metadata.TIMESTAMP] {
		timestamp, err := p.buildTimestamp(next.snapshot, roots...)
		if err != nil {
			return err
		}
		next.timestamp = timestamp
	}
	return nil
}

// buildRoot is the first root, or the present one signed for another life.
func (p *Publisher) buildRoot() (*metadata.Metadata[metadata.RootType], error) {
	if p.repo.root == nil {
		holders, online, err := p.ring.roots(p.opts.Holders, p.opts.CreateKeys)
		if err != nil {
			return nil, err
		}
		root, err := firstRoot(holders, p.opts.Threshold, online, p.expiry(metadata.ROOT))
		if err != nil {
			return nil, err
		}
		return root, sign(root, metadata.ROOT, p.ring, root.Signed)
	}
	root, err := nextRoot(p.repo.rootBytes, p.expiry(metadata.ROOT))
	if err != nil {
		return nil, err
	}
	return root, sign(root, metadata.ROOT, p.ring, p.repo.root.Signed)
}

func (p *Publisher) buildSnapshot(targets *metadata.Metadata[metadata.TargetsType], roots ...metadata.RootType) (*metadata.Metadata[metadata.SnapshotType], error) {
	snapshot := metadata.Snapshot(p.expiry(metadata.SNAPSHOT))
	if p.repo.snapshot != nil {
		// Clients refuse a snapshot in which an entry of an older one is missing.
		snapshot.Signed.Meta = maps.Clone(p.repo.snapshot.Signed.Meta)
	}
	var err error
	if targets != nil {
		if snapshot.Signed.Meta["targets.json"], err = metaFile(targets, targets.Signed.Version); err != nil {
			return nil, err
		}
	}
	if snapshot.Signed.Version, err = p.nextVersion(metadata.SNAPSHOT); err != nil {
		return nil, err
	}
	return snapshot, sign(snapshot, metadata.SNAPSHOT, p.ring, roots...)
}

func (p *Publisher) buildTimestamp(snapshot *metadata.Metadata[metadata.SnapshotType], roots ...metadata.RootType) (*metadata.Metadata[metadata.TimestampType], error) {
	timestamp := metadata.Timestamp(p.expiry(metadata.TIMESTAMP))
	if p.repo.timestamp != nil {
		// Clients ignore a timestamp of a version that they have.
		timestamp.Signed.Version = p.repo.timestamp.Signed.Version + 1
		timestamp.Signed.Meta = maps.Clone(p.repo.timestamp.Signed.Meta)
	}
	if snapshot != nil {
		meta, err := metaFile(snapshot, snapshot.Signed.Version)
		if err != nil {
			return nil, err
		}
		timestamp.Signed.Meta["snapshot.json"] = meta
	}
	return timestamp, sign(timestamp, metadata.TIMESTAMP, p.ring, roots...)
}

// nextVersion skips versions that a killed publication has used up.
func (p *Publisher) nextVersion(role string) (int64, error) {
	top, err := highest(p.opts.Dir, role)
	return top + 1, err
}

// commit verifies next as a client that sees it over what is published, then writes it stage
// by stage. Whatever happens, the publisher goes on from what is on disk then.
func (p *Publisher) commit(next *publication) error {
	if err := next.encode(); err != nil {
		return err
	}
	after, err := loadRepository(next.over(p.read), p.opts.Now())
	if err != nil {
		return fmt.Errorf("clients would refuse the new metadata, nothing was written: %w", err)
	}
	for _, stage := range next.stages {
		if err := p.dir.writeStage(stage); err != nil {
			repo, reloadErr := loadRepository(p.read, time.Time{})
			if reloadErr == nil {
				p.repo = repo
			}
			return errors.Join(err, reloadErr)
		}
	}
	// The same again from the disk: what was meant is what is there.
	live, err := loadRepository(p.read, p.opts.Now())
	if err != nil {
		return fmt.Errorf("what was published does not verify: %w", err)
	}
	if live.timestamp == nil || live.timestamp.Signed.Version != after.timestamp.Signed.Version {
		return errors.New("the published timestamp is not the one just written")
	}
	p.repo = live
	p.metrics.show(live)
	p.metrics.count(nil)
	p.opts.Logger.Info("published TUF metadata", "root", live.root.Signed.Version, "targets", live.targets.Signed.Version,
		"snapshot", live.snapshot.Signed.Version, "timestamp", live.timestamp.Signed.Version,
		"timestampExpires", stamp(live.timestamp.Signed.Expires))
	return nil
}
