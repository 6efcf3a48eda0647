package stack

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/index"
	"github.com/attestry/attestry/pkg/log/rekor1"
	"github.com/attestry/attestry/pkg/log/rekor2"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// LogsOptions names the transparency logs of one server.
type LogsOptions struct {
	Dir      string // tiles, rows, issuer certificates and search index
	FenceDir string
	Host     string // host name of the public URL: note name of the Rekor logs, for life

	// A log runs when it has a key.
	Rekor1Key, Rekor2Key, CTKey crypto.Signer
	CTShard                     string
	CTRoots                     [][]byte // accepted roots, DER

	Rekor1Kinds          entry.Kinds // what the Rekor v1 log takes; the zero value is the defaults
	Rekor1Attestations   bool        // keep attestations of intoto and cose entries, in Dir/rekor1/attestations
	Rekor1MaxAttestation int         // bytes of one; 0 is rekor1.DefaultMaxAttestation

	Limits     Limits
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Logs is the transparency logs of one server: what `cmd/tlog` serves.
type Logs struct {
	opts   LogsOptions
	fence  *log.FileFence
	open   []*openLog
	rekor1 *rekor1.Handler
	rekor2 *rekor2.Handler
	ct     *ct.Handler
	index  *index.Index
}

type openLog struct {
	*log.Log
	tree *tiles.Tree
}

// OpenLogs recovers and starts the logs that have keys.
func OpenLogs(ctx context.Context, opts LogsOptions) (l *Logs, err error) {
	l = &Logs{opts: opts}
	bounds := opts.Limits.bounds()
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
			l = nil
		}
	}()
	if l.fence, err = log.OpenFileFence(opts.FenceDir); err != nil {
		return l, err
	}
	for _, o := range opts.list() {
		opened, err := l.openLog(ctx, o)
		if err != nil {
			return l, err
		}
		switch o.Kind {
		case log.CT:
			l.ct, err = ct.New(ct.Options{
				Log: opened, Roots: opts.CTRoots, IssuerDir: filepath.Join(opts.Dir, o.Label, "issuers"),
				Body: bounds.body(opts.Limits.CTBody), Callers: bounds.callers, Verify: bounds.verify,
				Logger: opts.Logger, Registerer: opts.Registerer, Now: opts.Now,
			})
		case log.Rekor2:
			l.rekor2, err = rekor2.New(rekor2.Options{Shards: []rekor2.Log{opened}, Body: bounds.body(opts.Limits.Rekor2Body), Verify: bounds.verify, Logger: opts.Logger, Registerer: opts.Registerer})
		case log.Rekor1:
			err = l.serveRekor1(ctx, opened, bounds)
		}
		if err != nil {
			return l, err
		}
	}
	return l, nil
}

// list describes the logs that have keys, without what openLog adds.
func (o LogsOptions) list() []log.Options {
	var logs []log.Options
	if o.CTKey != nil {
		origin := ctOrigin(o.Host, o.CTShard)
		logs = append(logs, log.Options{Kind: log.CT, Label: "ct-" + o.CTShard, Origin: origin, Name: origin, Key: o.CTKey})
	}
	if o.Rekor2Key != nil {
		logs = append(logs, log.Options{Kind: log.Rekor2, Label: "rekor2", Origin: o.Host, Name: o.Host, Key: o.Rekor2Key})
	}
	if o.Rekor1Key != nil {
		id := treeID(o.Rekor1Key)
		logs = append(logs, log.Options{
			Kind: log.Rekor1, Label: "rekor1", Origin: rekor1Origin(o.Host, id), Name: o.Host, TreeID: id, Key: o.Rekor1Key,
		})
	}
	return logs
}

// withTree opens the tiles of a log and completes its options.
func (o LogsOptions) withTree(ctx context.Context, l log.Options, fence log.Fence) (log.Options, *tiles.Tree, error) {
	l.Dir = filepath.Join(o.Dir, l.Label)
	tree, err := tiles.Open(ctx, filepath.Join(l.Dir, "tiles"), l.Kind)
	if err != nil {
		return l, nil, err
	}
	l.Tree, l.Fence, l.Logger, l.Registerer, l.Now = tree, fence, o.Logger, o.Registerer, o.Now
	return l, tree, nil
}

func (l *Logs) openLog(ctx context.Context, o log.Options) (*log.Log, error) {
	o, tree, err := l.opts.withTree(ctx, o, l.fence)
	if err != nil {
		return nil, err
	}
	opened, err := log.Open(ctx, o)
	if err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	l.open = append(l.open, &openLog{opened, tree})
	return opened, nil
}

func (l *Logs) serveRekor1(ctx context.Context, opened *log.Log, bounds bounds) (err error) {
	if l.index, err = index.Open(ctx, index.Options{
		Path: filepath.Join(l.opts.Dir, "rekor1", "index.db"), Keys: entry.Keys, Logger: l.opts.Logger, Registerer: l.opts.Registerer,
	}); err != nil {
		return err
	}
	// A search must not miss an entry that was answered, so nothing is served before the
	// index has reached the end of what is there.
	go l.index.Follow(context.WithoutCancel(ctx), opened) // ends with index.Close
	if err := l.index.CaughtUp(ctx, opened.Checkpoint().Size); err != nil {
		return err
	}
	var attestations rekor1.Attestations
	if l.opts.Rekor1Attestations {
		if attestations, err = rekor1.OpenDirectory(filepath.Join(l.opts.Dir, "rekor1", "attestations")); err != nil {
			return err
		}
	}
	l.rekor1, err = rekor1.New(rekor1.Options{
		Shards: []rekor1.Shard{{Log: opened, Index: l.index}}, Body: bounds.body(l.opts.Limits.Rekor1Body), Callers: bounds.callers, Verify: bounds.verify,
		Kinds: l.opts.Rekor1Kinds, Attestations: attestations, MaxAttestation: l.opts.Rekor1MaxAttestation,
		Logger: l.opts.Logger, Registerer: l.opts.Registerer,
	})
	return err
}

// AdoptLog gives the log with this label ("rekor1", "rekor2", "ct-<shard>") a new fence record, see log.Adopt.
// The logs must not be open.
func AdoptLog(ctx context.Context, opts LogsOptions, label string, size uint64) (log.Record, error) {
	fence, err := log.OpenFileFence(opts.FenceDir)
	if err != nil {
		return log.Record{}, err
	}
	defer fence.Close()
	var labels []string
	for _, o := range opts.list() {
		labels = append(labels, o.Label)
		if o.Label != label {
			continue
		}
		o, tree, err := opts.withTree(ctx, o, fence)
		if err != nil {
			return log.Record{}, err
		}
		defer tree.Close()
		return log.Adopt(ctx, o, size)
	}
	return log.Record{}, fmt.Errorf("there is no log %q here, only %q", label, labels)
}

// CT submits to the CT log in this process.
func (l *Logs) CT() *ct.Handler { return l.ct }

// Register adds the logs' paths to r.
func (l *Logs) Register(r chi.Router) {
	if l.rekor1 != nil {
		l.rekor1.Routes(r)
	}
	if l.rekor2 != nil {
		l.rekor2.Routes(r)
	}
	if l.ct != nil {
		base := "/ct/" + l.opts.CTShard
		r.Mount(base, http.StripPrefix(base, l.ct))
	}
}

// RegisterGRPC adds the Rekor v2 service.
func (l *Logs) RegisterGRPC(s grpc.ServiceRegistrar) {
	if l.rekor2 != nil {
		l.rekor2.Register(s)
	}
}

// Ready returns nil when every log takes entries.
func (l *Logs) Ready(context.Context) error {
	var errs []error
	for _, o := range l.open {
		if err := o.Ready(); err != nil {
			errs = append(errs, fmt.Errorf("log %s: %w", o.Origin(), err))
		}
	}
	return errors.Join(errs...)
}

// Close finishes entries in flight and gives fence and directories back.
func (l *Logs) Close() error {
	var errs []error
	if l.index != nil {
		errs = append(errs, l.index.Close())
	}
	for _, o := range l.open {
		errs = append(errs, o.Close(), o.tree.Close())
	}
	if l.fence != nil {
		errs = append(errs, l.fence.Close())
	}
	return errors.Join(errs...)
}

// treeID is the positive 63-bit number that Rekor v1 calls its tree. A log here has one tree for one
// key, so it is made of the key and needs no storage.
func treeID(key crypto.Signer) int64 {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return 1 // log.Open refuses such a key with the reason
	}
	sum := sha256.Sum256(spki)
	return int64(binary.BigEndian.Uint64(sum[:8])>>1 | 1)
}

// rekor1Origin is the form by which clients tell v1 checkpoints from v2's.
func rekor1Origin(host string, id int64) string { return host + " - " + strconv.FormatInt(id, 10) }

// ctOrigin is the submission prefix without scheme and, since it may change, without port.
func ctOrigin(host, shard string) string { return host + "/ct/" + shard }
