package rekor2

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log"
)

// shards is the logs behind the API between two cut-overs. A log's origin is the host name it answers to:
// Go clients verify its checkpoints under the host of its base URL, so two logs cannot share one.
type shards struct {
	byHost map[string]*shard
	newest *shard
}

type shard struct {
	Log
	logID []byte
}

// SetShards puts other logs behind the API, oldest first: after a cut-over the same ones and the next. Those
// that are frozen refuse entries themselves.
func (h *Handler) SetShards(list []Log) error {
	set, err := newShards(list)
	if err != nil {
		return fmt.Errorf("rekor2: %w", err)
	}
	h.shards.Store(set)
	return nil
}

func newShards(list []Log) (*shards, error) {
	if len(list) == 0 {
		return nil, errors.New("at least one log is required")
	}
	set := &shards{byHost: map[string]*shard{}}
	for i, l := range list {
		if l == nil {
			return nil, fmt.Errorf("shard %d has no log", i)
		}
		host := strings.ToLower(l.Origin())
		if set.byHost[host] != nil {
			return nil, fmt.Errorf("two logs have the origin %q", host)
		}
		logID := l.LogID()
		set.newest = &shard{Log: l, logID: logID[:]}
		set.byHost[host] = set.newest
	}
	return set, nil
}

// size is how many entries the logs have.
func (h *Handler) size() (total uint64) {
	for _, s := range h.shards.Load().byHost {
		total += s.Checkpoint().Size
	}
	return total
}

// halted is how many of the logs have halted for good.
func (h *Handler) halted() (count uint64) {
	for _, s := range h.shards.Load().byHost {
		if l, ok := s.Log.(interface{ Ready() error }); ok && log.Halted(l.Ready()) {
			count++
		}
	}
	return count
}

// at returns the log that a request for this host is meant for: its own, else the newest, which is the
// active one as long as there is any. host is a request's Host header or :authority, with or without
// port. A header that a client may set to something else, such as X-Forwarded-Host, has no say: a
// proxy before several logs must pass Host on.
func (set *shards) at(host string) *shard {
	name := (&url.URL{Host: host}).Hostname()
	if s := set.byHost[strings.TrimSuffix(strings.ToLower(name), ".")]; s != nil {
		return s
	}
	return set.newest
}

// add puts the entry into the log that host names. One that was sent to whatever log is active goes to the
// next when that is frozen under it.
func (h *Handler) add(ctx context.Context, host string, sub log.Submission) (*shard, log.Receipt, error) {
	s := h.shards.Load().at(host)
	for {
		receipt, err := s.Add(ctx, sub)
		if fault.KindOf(err) != fault.Frozen {
			return s, receipt, err
		}
		now := h.shards.Load().at(host)
		if now.Origin() == s.Origin() {
			return s, receipt, err
		}
		s = now
	}
}

// authority is the host that a gRPC call names.
func authority(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if values := md.Get(":authority"); len(values) > 0 {
		return values[0]
	}
	return ""
}
