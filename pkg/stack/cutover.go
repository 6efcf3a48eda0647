package stack

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/attestry/attestry/pkg/log"
)

// A log's successor is ordered in shards.json (order.go) and comes into force here, one durable step after
// the other; a crash between any two is continued at the next start.
//
//	planned    the order is stored, its key exists          → publish the key with its beginning
//	published  clients can know it                          → at its time, open it and put it behind the API
//	active     it is the newest; for Rekor v2 and CT its predecessor is draining, for Rekor v1 frozen
//	draining   still takes what is sent to its own address  → at its time, freeze it
//	frozen     its last tree is stored                      → publish the end of its key
//
// Rekor v1's logs share one address and count through, so there the successor can only begin where the
// predecessor ended: the old log is frozen, its size stored together with the new state, and the new
// one opened, while submissions wait in the handler for some tens of milliseconds.

// LogInfo is what trust material says of a log.
type LogInfo struct {
	Kind                       log.Kind
	Label, Host, Shard, Origin string // Shard: CT
	Key                        crypto.PublicKey
	State                      ShardState
	Begin                      time.Time // zero for a log that configuration names
	Final                      *FinalTree
}

// Publish makes trust material say what logs there are: a key from its beginning, and to its end once
// it is frozen. It returns when clients can fetch that, and may be called again with the same.
type Publish func(ctx context.Context, logs []LogInfo) error

const (
	// pollShards is how often shards.json is looked at.
	pollShards = 500 * time.Millisecond
	// freezeTime bounds one attempt to freeze a log.
	freezeTime = 30 * time.Second
)

// Infos lists the logs, of each kind oldest first, those that have not begun included.
func (l *Logs) Infos() ([]LogInfo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var infos []LogInfo
	for _, m := range l.members {
		opts, err := l.opts.options(m)
		if err != nil {
			return nil, err
		}
		infos = append(infos, LogInfo{
			Kind: m.spec.Kind, Label: m.spec.Label, Host: l.opts.host(m.spec), Shard: m.spec.Shard, Origin: opts.Origin,
			Key: m.spec.Key.Public(), State: m.record.State, Begin: m.record.Begin, Final: m.record.Final,
		})
	}
	return infos, nil
}

// Run carries out what shards.json orders, until ctx ends. Where trust material is published by another
// program, publish is nil: the operator has seen to it before a log begins.
func (l *Logs) Run(ctx context.Context, publish Publish) error {
	for {
		if err := l.step(ctx, publish); err != nil && ctx.Err() == nil {
			l.opts.Logger.Error("a step in the life of a log failed and is tried again", "err", err)
		}
		select {
		case <-time.After(pollShards):
		case <-ctx.Done():
			return nil
		}
	}
}

// step does what is due.
func (l *Logs) step(ctx context.Context, publish Publish) error {
	errs := []error{l.readOrders()} // one bad order must not hold up the others
	if err := l.publish(ctx, publish); err != nil {
		return errors.Join(append(errs, err)...)
	}
	now := l.opts.Now()
	for _, m := range l.snapshot() {
		if m.roots != nil {
			_ = m.roots.Reload() // logged and counted there; the roots before it stay
		}
		switch r := m.record; {
		case r.State == Published && !now.Before(r.Begin), m.log == nil && r.State != Planned && r.State != Published:
			errs = append(errs, l.cutOver(ctx, m))
		case r.State == Draining && !now.Before(r.FreezeAt):
			errs = append(errs, l.freeze(ctx, m))
		}
	}
	return errors.Join(append(errs, l.publish(ctx, publish))...)
}

func (l *Logs) snapshot() []*member {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*member(nil), l.members...)
}

// readOrders takes over what shards.json says, new logs included.
func (l *Logs) readOrders() error {
	file, err := ReadShards(l.opts.Dir)
	if err != nil {
		return err
	}
	return l.takeOver(file)
}

// takeOver makes the members' records those of the file.
func (l *Logs) takeOver(file *ShardFile) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, r := range file.Shards {
		known := false
		for _, m := range l.members {
			if m.spec.Label == r.Label {
				m.record, known = r, true
			}
		}
		if known {
			continue
		}
		m, err := l.opts.ordered(l.members, r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.members, l.stale = append(l.members, m), true
	}
	return errors.Join(errs...)
}

// change edits shards.json and takes over what it says then.
func (l *Logs) change(edit func(*ShardFile) error) error {
	if l.fault != nil {
		if err := l.fault("before"); err != nil {
			return err
		}
	}
	file, err := changeShards(l.opts.Dir, edit)
	if err != nil {
		return err
	}
	if l.fault != nil {
		if err := l.fault("after"); err != nil {
			return err
		}
	}
	return l.takeOver(file)
}

// publish brings trust material up to date. A planned log is published after it.
func (l *Logs) publish(ctx context.Context, publish Publish) error {
	l.mu.Lock()
	stale := l.stale
	l.stale = false // set again by whoever changes something meanwhile
	l.mu.Unlock()
	if !stale {
		return nil
	}
	err := l.publishNow(ctx, publish)
	if err != nil {
		l.mu.Lock()
		l.stale = true
		l.mu.Unlock()
	}
	return err
}

func (l *Logs) publishNow(ctx context.Context, publish Publish) error {
	infos, err := l.Infos()
	if err != nil {
		return err
	}
	if publish != nil {
		if err := publish(ctx, infos); err != nil {
			return fmt.Errorf("publishing the keys of the logs: %w", err)
		}
	}
	planned := false
	for _, info := range infos {
		planned = planned || info.State == Planned
	}
	if !planned {
		return nil
	}
	return l.change(func(file *ShardFile) error {
		for _, info := range infos {
			if r := file.find(info.Label); r != nil && r.State == Planned {
				r.State = Published
			}
		}
		return nil
	})
}

// cutOver opens m, whose time has come, and makes it the log of its kind that submissions reach. Every
// part may have been done before a crash or a fault.
func (l *Logs) cutOver(ctx context.Context, m *member) error {
	old := l.predecessor(m)
	if m.spec.Kind == log.Rekor1 {
		if err := l.endRekor1(ctx, old, m); err != nil {
			return fmt.Errorf("cutting over to log %s: %w", m.spec.Label, err)
		}
	}
	if m.log == nil {
		if err := l.open(ctx, m); err != nil {
			return fmt.Errorf("cutting over to log %s: %w", m.spec.Label, err)
		}
	}
	if m.record.State == Published {
		freezeAt := l.opts.Now().Add(time.Duration(m.record.DrainSeconds) * time.Second)
		if err := l.change(func(file *ShardFile) error {
			file.at(m.spec.Label, m.spec.Kind).State = Active
			if old != nil && old.record.State == Active {
				r := file.at(old.spec.Label, old.spec.Kind)
				r.State, r.FreezeAt = Draining, freezeAt.UTC()
			}
			return nil
		}); err != nil {
			return fmt.Errorf("cutting over to log %s: %w", m.spec.Label, err)
		}
	}
	if err := l.show(); err != nil {
		return fmt.Errorf("cutting over to log %s: %w", m.spec.Label, err)
	}
	l.changed()
	l.opts.Logger.Info("a log took over", "log", m.spec.Label)
	return nil
}

func (l *Logs) changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stale = true
}

// predecessor is the newest open log of m's kind before m, nil when there is none.
func (l *Logs) predecessor(m *member) *member {
	var old *member
	for _, other := range l.snapshot() {
		if other == m {
			break
		}
		if other.spec.Kind == m.spec.Kind && other.log != nil {
			old = other
		}
	}
	return old
}

// endRekor1 freezes the log before m and stores its size together with m's beginning: the virtual
// indexes of m stand on it.
func (l *Logs) endRekor1(ctx context.Context, old, m *member) error {
	if m.record.State != Published {
		return nil
	}
	if old == nil || old.record.State == Frozen {
		return l.change(func(file *ShardFile) error {
			file.at(m.spec.Label, m.spec.Kind).State = Active
			return nil
		})
	}
	// From the freeze on submissions wait, so all that can fail in opening m is tried before.
	if !m.rehearsed {
		o, err := l.opened(ctx, m, nil)
		if err != nil {
			return err
		}
		if err := o.close(); err != nil {
			return err
		}
		m.rehearsed = true
	}
	final, err := l.end(ctx, old)
	if err != nil {
		return err
	}
	return l.change(func(file *ShardFile) error {
		r := file.at(old.spec.Label, old.spec.Kind)
		r.State, r.Final, r.FreezeAt = Frozen, final, time.Time{}
		file.at(m.spec.Label, m.spec.Kind).State = Active
		return nil
	})
}

// end stops m's growth and returns its last tree.
func (l *Logs) end(ctx context.Context, m *member) (*FinalTree, error) {
	ctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	cp, err := m.log.Freeze(ctx)
	if err != nil {
		return nil, err
	}
	return finalTree(cp, l.opts.Now()), nil
}

// freeze ends m for good.
func (l *Logs) freeze(ctx context.Context, m *member) error {
	final, err := l.end(ctx, m)
	if err != nil {
		return fmt.Errorf("freezing log %s: %w", m.spec.Label, err)
	}
	if err := l.change(func(file *ShardFile) error {
		r := file.at(m.spec.Label, m.spec.Kind)
		r.State, r.Final, r.FreezeAt = Frozen, final, time.Time{}
		return nil
	}); err != nil {
		return fmt.Errorf("freezing log %s: %w", m.spec.Label, err)
	}
	l.changed()
	return nil
}
