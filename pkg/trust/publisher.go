package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// PublisherOptions says where a TUF repository lives and who signs it. Zero values mean the
// defaults named.
type PublisherOptions struct {
	// Dir is the repository, exactly as clients fetch it; any static file server may serve
	// it. KeysDir holds the private keys (PEM, one each) and is never inside Dir.
	Dir, KeysDir string
	// CreateKeys lets the first publication make the keys that KeysDir lacks.
	CreateKeys bool
	// SignedRoots, if set, is a directory with the root metadata, N.root.json, that holders signed elsewhere, see CreateRoot. The
	// publisher then makes no root: it starts with what is there, and publishes each further version once it finds it. May be KeysDir.
	SignedRoots string
	// Holders and Threshold shape the first root: how many keys for root and targets, and
	// how many of them must sign (3 and 2).
	Holders, Threshold int
	// Lives of the metadata: 365 days for root, targets and snapshot, 7 days for timestamp.
	RootLife, TargetsLife, SnapshotLife, TimestampLife time.Duration
	// Derive is what the signing config says beside the inventory.
	Derive DeriveOptions
	// Check, if set, sees what is about to be published and may refuse it, for example by
	// verifying stored bundles against the new trusted root.
	Check func(context.Context, *Derived) error

	Now        func() time.Time      // nil: time.Now
	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: no metrics

	fault func(name string, after bool) error  // tests: see directory
	after func(time.Duration) <-chan time.Time // tests: time.After
}

var roles = []string{metadata.ROOT, metadata.TARGETS, metadata.SNAPSHOT, metadata.TIMESTAMP}

// Publisher keeps one TUF repository signed and fresh. It holds the directory's lock until
// Close, so a second one on the same directory is refused. Methods are safe for concurrent
// use.
type Publisher struct {
	opts    PublisherOptions
	dir     directory
	read    reader
	files   *os.Root
	unlock  func() error
	metrics *publisherMetrics

	mu      sync.Mutex // guards the rest
	ring    *keyring
	repo    *repository
	derived *Derived // of the last Publish
	warned  map[string]time.Time
}

// ErrLocked says that another publisher has the directory.
var ErrLocked = errors.New("TUF repository is in use by another publisher")

// OpenPublisher takes the lock, removes what a kill left half-written and verifies the
// repository as a client would, except for expiry. An empty or missing directory is fine:
// the first Publish fills it.
func OpenPublisher(opts PublisherOptions) (*Publisher, error) {
	if err := opts.complete(); err != nil {
		return nil, fmt.Errorf("TUF publisher: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(opts.Dir, targetsDir), 0o755); err != nil {
		return nil, fmt.Errorf("TUF publisher: %w", err)
	}
	unlock, err := lockFile(filepath.Join(opts.Dir, lockName), false)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("%s: %w", opts.Dir, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("TUF publisher: locking: %w", err)
	}
	p := &Publisher{
		opts: opts, unlock: unlock, warned: map[string]time.Time{},
		dir:  directory{path: opts.Dir, fault: opts.fault},
		read: diskReader(opts.Dir),
	}
	if err := p.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("TUF repository %s: %w", opts.Dir, err), p.Close())
	}
	return p, nil
}

func (o *PublisherOptions) complete() error {
	if o.Dir == "" || o.KeysDir == "" {
		return errors.New("a repository directory and a keys directory are required")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	keys, err := filepath.Abs(o.KeysDir)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(dir, keys); err == nil && filepath.IsLocal(rel) {
		return fmt.Errorf("keys directory %s is inside the repository %s, which is served", keys, dir)
	}
	o.Dir, o.KeysDir = dir, keys
	const day = 24 * time.Hour
	for _, life := range []struct {
		to       *time.Duration
		standard time.Duration
	}{{&o.RootLife, 365 * day}, {&o.TargetsLife, 365 * day}, {&o.SnapshotLife, 365 * day}, {&o.TimestampLife, 7 * day}} {
		if *life.to == 0 {
			*life.to = life.standard
		}
		if *life.to < time.Minute {
			return fmt.Errorf("metadata cannot live for %s only", *life.to)
		}
	}
	if o.SignedRoots != "" && o.CreateKeys {
		return errors.New("a root that was signed elsewhere names its keys, so none can be made")
	}
	if o.Holders == 0 && o.Threshold == 0 {
		o.Holders, o.Threshold = 3, 2
	}
	if o.Threshold < 1 || o.Threshold > o.Holders || o.Holders > maxKeys-2 {
		return fmt.Errorf("threshold %d of %d holders makes no sense", o.Threshold, o.Holders)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.after == nil {
		o.after = time.After
	}
	return nil
}

func (p *Publisher) open() error {
	if err := p.dir.removeTemps(targetsDir); err != nil {
		return err
	}
	var err error
	if p.files, err = os.OpenRoot(p.opts.Dir); err != nil {
		return err
	}
	if p.ring, err = openKeyring(p.opts.KeysDir); err != nil {
		return err
	}
	if p.repo, err = loadRepository(p.read, time.Time{}); err != nil {
		return err
	}
	if p.metrics, err = newPublisherMetrics(p.opts.Registerer); err != nil {
		return err
	}
	p.metrics.show(p.repo)
	if p.repo.root == nil {
		return nil
	}
	// A kill may have left the copy behind the root that is in force.
	return p.dir.writeChanged([]file{{rootCopy, p.repo.rootBytes, 0o644}})
}

// Close gives the lock back. The repository stays as it is.
func (p *Publisher) Close() error {
	var err error
	if p.files != nil {
		err = p.files.Close()
	}
	p.metrics.unregister(p.opts.Registerer)
	return errors.Join(err, p.unlock())
}

// Root returns the newest root metadata, nil before the first publication: the file for
// `cosign initialize --root`.
func (p *Publisher) Root() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.repo.rootBytes)
}

// Derived returns what the last Publish of this process published, nil before it.
func (p *Publisher) Derived() *Derived {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.derived
}

// Ready says why clients cannot use the repository now, nil when they can.
func (p *Publisher) Ready(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.repo.timestamp == nil {
		return errors.New("TUF repository: nothing is published yet")
	}
	for _, role := range roles {
		if expires := p.repo.expires(role); !p.opts.Now().Before(expires) {
			return fmt.Errorf("TUF repository: %s expired at %s", role, stamp(expires))
		}
	}
	if _, err := p.files.Stat(timestampFile); err != nil { // what clients ask for is read from there
		return fmt.Errorf("TUF repository: %w", err)
	}
	return nil
}

// Publish makes the repository say what inv says, and signs what is due. It writes nothing
// when neither changed. A trusted root that would lose or shorten an entry which inv does
// not list as revoked is refused.
//
// After an error clients see the state before or the new one, never a broken one, and
// calling again completes it.
func (p *Publisher) Publish(ctx context.Context, inv *Inventory) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	records := inv.Records()
	opts := p.opts.Derive
	opts.At = p.opts.Now()
	derived, err := derive(records, opts)
	if err != nil {
		return err
	}
	entries, files, err := describe(derived.Targets)
	if err != nil {
		return fmt.Errorf("publishing trust: %w", err)
	}
	if p.repo.targets == nil || !sameTargets(entries, p.repo.targets.Signed.Targets) {
		if err := p.refuseLoss(records, derived); err != nil {
			return fmt.Errorf("publishing trust: %w", err)
		}
		if p.opts.Check != nil {
			if err := p.opts.Check(ctx, derived); err != nil {
				return fmt.Errorf("publishing trust: check: %w", err)
			}
		}
	} else {
		entries, files = nil, nil
	}
	if err := p.update(entries, files); err != nil {
		return fmt.Errorf("publishing trust: %w", err)
	}
	p.derived = derived
	return nil
}

// Refresh signs again what has passed a third of its life, as far as the keys are here, and
// completes a key rotation that was interrupted.
func (p *Publisher) Refresh(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.repo.timestamp == nil {
		return nil
	}
	if err := p.update(nil, nil); err != nil {
		return fmt.Errorf("refreshing TUF metadata: %w", err)
	}
	return nil
}

// update publishes entries (nil: the targets stay) together with everything that is due.
func (p *Publisher) update(entries map[string]*metadata.TargetFiles, files []file) error {
	// A root that cannot be adopted must not keep the timestamp from being signed.
	err := errors.Join(p.adopt(), p.publish(entries, files))
	if err == nil && p.ring.next != nil {
		err = p.continueRotation()
	}
	if err != nil {
		p.metrics.count(err)
	}
	return err
}

func (p *Publisher) publish(entries map[string]*metadata.TargetFiles, files []file) error {
	due := p.due(p.opts.Now())
	if entries == nil && len(due) == 0 {
		return nil
	}
	next, err := p.build(entries, files, due)
	if err != nil {
		return err
	}
	return p.commit(next)
}

// due lists the roles that are past a third of their life and whose keys are here, and warns
// of those whose keys are not.
func (p *Publisher) due(now time.Time) map[string]bool {
	due := map[string]bool{}
	if p.repo.root == nil {
		return due
	}
	for _, role := range roles {
		expires := p.repo.expires(role)
		if expires.IsZero() || now.Before(p.dueAt(role)) {
			continue
		}
		if p.ring.can(p.repo.root.Signed, role) && !(role == metadata.ROOT && p.opts.SignedRoots != "") {
			due[role] = true
		} else if now.Sub(p.warned[role]) >= 24*time.Hour {
			p.warned[role] = now
			p.opts.Logger.Warn("TUF metadata is due and its keys are not here", "role", role, "expires", stamp(expires))
		}
	}
	return due
}

func (p *Publisher) life(role string) time.Duration {
	switch role {
	case metadata.ROOT:
		return p.opts.RootLife
	case metadata.TARGETS:
		return p.opts.TargetsLife
	case metadata.SNAPSHOT:
		return p.opts.SnapshotLife
	default:
		return p.opts.TimestampLife
	}
}

// dueAt is when a third of role's life is over.
func (p *Publisher) dueAt(role string) time.Time {
	life := p.life(role)
	return p.repo.expires(role).Add(life/3 - life)
}

func (p *Publisher) expiry(role string) time.Time {
	return p.opts.Now().Add(p.life(role)).UTC().Truncate(time.Second)
}

// expires is when the published metadata of role ends, zero when there is none.
func (repo *repository) expires(role string) time.Time {
	switch {
	case role == metadata.ROOT && repo.root != nil:
		return repo.root.Signed.Expires
	case role == metadata.TARGETS && repo.targets != nil:
		return repo.targets.Signed.Expires
	case role == metadata.SNAPSHOT && repo.snapshot != nil:
		return repo.snapshot.Signed.Expires
	case role == metadata.TIMESTAMP && repo.timestamp != nil:
		return repo.timestamp.Signed.Expires
	}
	return time.Time{}
}

// Run keeps the metadata fresh until ctx ends: it wakes when something is due, and at least
// every ten minutes, because a machine may sleep and its clock may jump. Failures are logged
// and tried again after a minute.
func (p *Publisher) Run(ctx context.Context) error {
	for {
		wait := time.Minute
		if err := p.Refresh(ctx); err != nil {
			p.opts.Logger.Error("TUF metadata could not be refreshed", "err", err)
		} else {
			wait = p.untilDue()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.opts.after(wait):
		}
	}
}

// untilDue is the time until the next role is due, within a second and ten minutes.
func (p *Publisher) untilDue() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := 10 * time.Minute
	if p.repo.timestamp == nil {
		return wait
	}
	now := p.opts.Now()
	for _, role := range roles {
		if left := p.dueAt(role).Sub(now); left > 0 {
			wait = min(wait, left)
		}
	}
	return max(wait, time.Second)
}
