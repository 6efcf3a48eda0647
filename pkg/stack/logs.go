package stack

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/index"
	"github.com/attestry/attestry/pkg/log/rekor1"
	"github.com/attestry/attestry/pkg/log/rekor2"
	"github.com/attestry/attestry/pkg/log/witness"
	"github.com/attestry/attestry/pkg/trust"
)

// LogSpec is one log that configuration names.
type LogSpec struct {
	Kind  log.Kind
	Label string // names its directory and metrics, for life
	Key   crypto.Signer
	Host  string   // host name in its origin; "" for LogsOptions.Host
	Shard string   // CT: its name in the paths, /ct/<shard>
	Roots [][]byte // CT: accepted roots, DER
	// RootsFile is read again when it changes, and replaces Roots then; "" for roots that stay.
	RootsFile string
	// Plain makes a CT log's leaves and SCTs have no extensions, for clients that refuse them; it is
	// read by RFC 6962 alone. For the log's life.
	Plain bool
	// NotAfterStart and NotAfterLimit are a CT log's window: certificates that expire at or after the one and before the other.
	NotAfterStart, NotAfterLimit time.Time
	Tree                         TreeSpec
	// Witnesses is the policy of who cosigns the log's checkpoints (Rekor v2 and CT); nil for nobody.
	// WitnessKey, Ed25519, signs them a second time for witnesses that know no ECDSA; nil for no such line.
	Witnesses  *witness.Policy
	WitnessKey crypto.Signer
	Frozen     bool // takes no entry; its tree is final from the first start with this on
}

// LogsOptions names the transparency logs of one server.
type LogsOptions struct {
	Dir      string // tiles, rows, issuer certificates, search indexes and shards.json
	FenceDir string
	// FenceURI names a PostgreSQL database for the fence, in place of FenceDir.
	FenceURI string
	// Database is a PostgreSQL URI: rows, queue and search index of each log are in a schema of its own there.
	// "" for SQLite files in Dir. With a shared tree and the fence there too, several processes may serve the same logs.
	Database string
	// DatabasePasswordFile holds the password of both URIs; "" when they need none.
	DatabasePasswordFile string
	Host                 string // host name of the public URL: note name of the Rekor logs, for life
	URL                  string // public URL without a closing slash, for what CT logs say of themselves; "" for nothing

	// Logs are those that configuration names, of each kind oldest first. shards.json adds others and
	// keeps the state of all. Of Rekor v1 only the newest takes entries: the older ones are
	// frozen, since virtual indexes count through them.
	Logs []LogSpec
	// KeyPassword decrypts keys that shards.json names; nil for none.
	KeyPassword []byte

	Rekor1Off            []string    // operations of its API that are switched off
	Rekor1Kinds          entry.Kinds // what Rekor v1 takes; the zero value is the defaults
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
	bounds bounds
	fence  log.Fence
	close  func() error    // closes the fence
	rekor1 *rekor1.Handler // nil when there is no such log; likewise rekor2
	rekor2 *rekor2.Handler
	ct     *CTLogs

	mu      sync.Mutex // guards what follows
	roots   [][]byte   // of SetRoots, nil before: what CT logs without a RootsFile accept
	members []*member  // of each kind oldest first
	stale   bool       // trust material does not say yet what the members are

	fault func(when string) error // makes changes of shards.json fail in tests; nil otherwise
}

// member is a log in its state. What lies below spec and record is nil until it is opened.
type member struct {
	spec   LogSpec
	record ShardRecord

	log       *log.Log
	tree      openTree
	db        *database.DB // nil for SQLite
	index     *index.Index // Rekor v1
	ct        *ct.Handler
	roots     *ct.RootsWatcher // nil when its roots stay
	rehearsed bool             // everything that opening it needs was tried
}

// OpenLogs recovers and starts the logs.
func OpenLogs(ctx context.Context, opts LogsOptions) (l *Logs, err error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if err := finished(opts.Dir); err != nil {
		return nil, err
	}
	l = &Logs{opts: opts, bounds: opts.Limits.bounds(), ct: &CTLogs{}, stale: true}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
			l = nil
		}
	}()
	if l.fence, l.close, err = opts.openFence(ctx); err != nil {
		return l, err
	}
	file, err := ReadShards(opts.Dir)
	if err != nil {
		return l, err
	}
	if l.members, err = opts.members(file); err != nil {
		return l, err
	}
	var halted []error // all of them: an operator has to look at each
	brokenV1 := false
	for i, m := range l.members {
		if m.record.State == Planned || m.record.State == Published || brokenV1 && m.spec.Kind == log.Rekor1 { // v1 indexes count through
			continue
		}
		if err := l.open(ctx, m); log.Halted(err) {
			halted = append(halted, err)
			brokenV1 = brokenV1 || m.spec.Kind == log.Rekor1
			continue
		} else if err != nil {
			return l, errors.Join(append(halted, err)...)
		}
		if len(halted) > 0 {
			continue
		}
		// Configuration may name a successor, or say that the log is frozen, without a cut-over.
		followed := m.spec.Kind == log.Rekor1 && later(l.members[i+1:], m.spec.Kind)
		if m.record.State != Frozen && (m.spec.Frozen || followed) {
			if err := l.freeze(ctx, m); err != nil {
				return l, err
			}
		}
	}
	if len(halted) > 0 {
		return l, errors.Join(halted...)
	}
	return l, l.show()
}

// later reports whether a log of this kind that has begun is among members.
func later(members []*member, kind log.Kind) bool {
	for _, m := range members {
		if m.spec.Kind == kind && m.record.State != Planned && m.record.State != Published {
			return true
		}
	}
	return false
}

// members joins what configuration and shards.json say.
func (o LogsOptions) members(file *ShardFile) ([]*member, error) {
	var all []*member
	labels := map[string]bool{}
	for _, spec := range o.Logs {
		labels[spec.Label] = true
		m := &member{spec: spec, record: ShardRecord{Label: spec.Label, Kind: kindName(spec.Kind), State: Active}}
		if r := file.find(spec.Label); r != nil {
			if r.Kind != m.record.Kind {
				return nil, fmt.Errorf("%s: the log %q is a %s log, not %s", shardsName, spec.Label, m.record.Kind, r.Kind)
			}
			m.record = *r
		}
		if err := o.apart(all, spec); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	for _, r := range file.Shards {
		if labels[r.Label] {
			continue
		}
		m, err := o.ordered(all, r)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// apart checks that a log shares nothing with those before it that must be its own.
func (o LogsOptions) apart(before []*member, spec LogSpec) error {
	for _, m := range before {
		switch {
		case m.spec.Label == spec.Label:
			return fmt.Errorf("two logs are called %q", spec.Label)
		case samePublic(m.spec.Key, spec.Key):
			return fmt.Errorf("the logs %q and %q have one key: a key may not sign two trees", m.spec.Label, spec.Label)
		case m.spec.Kind != spec.Kind:
		case spec.Kind == log.Rekor2 && o.host(m.spec) == o.host(spec):
			return fmt.Errorf("the logs %q and %q have one host name, %q: Go clients could not tell them apart", m.spec.Label, spec.Label, o.host(spec))
		case spec.Kind == log.CT && m.spec.Shard == spec.Shard:
			return fmt.Errorf("two CT logs are called %q", spec.Shard)
		}
	}
	return nil
}

func samePublic(a, b crypto.Signer) bool {
	key, ok := a.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b.Public())
}

// ordered makes a member of a log that shards.json alone names. It takes over what an operator
// configured for its kind from the newest before it.
func (o LogsOptions) ordered(before []*member, r ShardRecord) (*member, error) {
	kind, err := parseKind(r.Kind)
	if err != nil {
		return nil, err
	}
	if r.Key == "" {
		return nil, fmt.Errorf("%s knows a log %q that configuration does not name any more: name it again, its entries stay", shardsName, r.Label)
	}
	key, err := signer.Open(ShardKey(o.Dir, r.Key), o.KeyPassword)
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", r.Label, err)
	}
	spec := LogSpec{Kind: kind, Label: r.Label, Key: key, Host: r.Host, Shard: r.Shard}
	for _, m := range before {
		if m.spec.Kind != kind {
			continue
		}
		spec.Roots, spec.RootsFile, spec.Plain, spec.Tree = m.spec.Roots, m.spec.RootsFile, m.spec.Plain, m.spec.Tree
		spec.Witnesses, spec.WitnessKey = m.spec.Witnesses, m.spec.WitnessKey
	}
	spec.NotAfterStart, spec.NotAfterLimit = r.NotAfterStart, r.NotAfterLimit
	if s := spec.Tree.Store; s == StoreS3 || s == StoreTrillian {
		return nil, fmt.Errorf("%s: log %s would need a tree of its own in store %s: configure it among the shards of its kind instead", shardsName, r.Label, s)
	}
	if err := o.apart(before, spec); err != nil {
		return nil, fmt.Errorf("%s: %w", shardsName, err)
	}
	return &member{spec: spec, record: r}, nil
}

// ShardKey returns the URI of a key that a shard record in dir names.
func ShardKey(dir, uri string) string {
	if path, ok := strings.CutPrefix(uri, "file:"); ok && !filepath.IsAbs(path) {
		return "file:" + filepath.Join(dir, path)
	}
	return uri
}

// host is the host name in a log's origin.
func (o LogsOptions) host(spec LogSpec) string {
	if spec.Host != "" {
		return spec.Host
	}
	return o.Host
}

// ctURL is the public URL of a CT log, "" when there is none.
func (o LogsOptions) ctURL(shard string) string {
	if o.URL == "" {
		return ""
	}
	return o.URL + "/ct/" + shard
}

// options describes the log without what openTree adds.
func (o LogsOptions) options(m *member) (log.Options, error) {
	host := o.host(m.spec)
	opts := log.Options{
		Kind: m.spec.Kind, Label: m.spec.Label, Origin: host, Name: host, Key: m.spec.Key,
		Dir: filepath.Join(o.Dir, m.spec.Label), Logger: o.Logger, Now: o.Now,
	}
	switch m.spec.Kind {
	case log.Rekor1:
		opts.TreeID = treeID(m.spec.Key)
		opts.Origin = trust.Rekor1Origin(host, opts.TreeID)
	case log.CT:
		opts.Origin = ctOrigin(host, m.spec.Shard)
		opts.Name = opts.Origin
		if m.spec.Plain {
			opts.Kind = log.CTPlain
		}
	}
	opts.Queued, opts.WitnessKey = m.spec.Tree.Shared(), m.spec.WitnessKey
	if m.record.Final != nil {
		final, err := m.record.Final.record()
		if err != nil {
			return opts, err
		}
		opts.Frozen, opts.FrozenNote = final, []byte(m.record.Final.Checkpoint)
	}
	return opts, nil
}

// openFence opens the fence in its directory or database.
func (o LogsOptions) openFence(ctx context.Context) (log.Fence, func() error, error) {
	if o.FenceURI == "" {
		f, err := log.OpenFileFence(o.FenceDir)
		if err != nil {
			return nil, nil, err
		}
		return f, f.Close, nil
	}
	db, err := database.Open(ctx, o.FenceURI, o.fenceSchema(false))
	if err != nil {
		return nil, nil, fmt.Errorf("opening the fence: %w", err)
	}
	f, err := log.OpenPostgresFence(ctx, db)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return f, db.Close, nil
}

// openDatabase opens the schema of a log, nil for SQLite files.
func (o LogsOptions) openDatabase(ctx context.Context, label string) (*database.DB, error) {
	if o.Database == "" {
		return nil, nil
	}
	return database.Open(ctx, o.Database, o.schema(label, false))
}

// schema is where PostgreSQL has the rows of a log.
func (o LogsOptions) schema(label string, readOnly bool) database.Options {
	return database.Options{Schema: "log_" + strings.ReplaceAll(label, "-", "_"), PasswordFile: o.DatabasePasswordFile, MaxConns: 12, ReadOnly: readOnly}
}

// fenceSchema is where it has the fence.
func (o LogsOptions) fenceSchema(readOnly bool) database.Options {
	return database.Options{Schema: "fence", PasswordFile: o.DatabasePasswordFile, MaxConns: 4, ReadOnly: readOnly}
}

// open opens a log and what serves it, and puts its metrics beside those of the others. A failed attempt
// leaves nothing behind and may be repeated.
func (l *Logs) open(ctx context.Context, m *member) error {
	var reg prometheus.Registerer
	own := prometheus.NewRegistry() // as a whole, so that a failed attempt leaves no name taken
	if l.opts.Registerer != nil {
		reg = own
	}
	opened, err := l.opened(ctx, m, reg)
	if err != nil {
		return err
	}
	if reg != nil {
		if err := l.opts.Registerer.Register(own); err != nil {
			return errors.Join(fmt.Errorf("registering metrics of log %s: %w", m.spec.Label, err), opened.close())
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m.log, m.tree, m.db, m.index, m.ct, m.roots = opened.log, opened.tree, opened.db, opened.index, opened.ct, opened.roots
	return l.acceptRoots(m)
}

// SetRoots has the CT logs that stand on LogSpec.Roots accept these, DER, and no others: those that are open when it
// returns, later ones from their beginning.
func (l *Logs) SetRoots(roots [][]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roots = roots
	for _, m := range l.members {
		if err := l.acceptRoots(m); err != nil {
			return err
		}
	}
	return nil
}

// acceptRoots gives m, when it is an open CT log, the roots of SetRoots. l.mu is held.
func (l *Logs) acceptRoots(m *member) error {
	if m.ct == nil || l.roots == nil || m.spec.RootsFile != "" {
		return nil
	}
	if err := m.ct.SetRoots(l.roots); err != nil {
		return fmt.Errorf("accepted roots of log %s: %w", m.spec.Label, err)
	}
	return nil
}

// opened returns a copy of m with its log, and what serves it, open.
func (l *Logs) opened(ctx context.Context, m *member, reg prometheus.Registerer) (_ *member, err error) {
	o := &member{spec: m.spec, record: m.record}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	opts, err := l.opts.options(m)
	if err != nil {
		return nil, err
	}
	if m.spec.Kind == log.Rekor1 {
		opts.FirstIndex = l.firstIndex(m)
	}
	opts.Fence, opts.Registerer = l.fence, reg
	if o.db, err = l.opts.openDatabase(ctx, opts.Label); err != nil {
		return nil, fmt.Errorf("log %s: %w", opts.Label, err)
	}
	if o.tree, err = m.spec.Tree.open(ctx, opts.Kind, opts.Label, opts.Dir); err != nil {
		return nil, fmt.Errorf("log %s: %w", opts.Label, err)
	}
	opts.DB, opts.Tree = o.db, o.tree
	if m.spec.Witnesses != nil {
		if opts.Cosigner, err = witness.NewClient(witness.ClientOptions{
			Policy: m.spec.Witnesses, Label: opts.Label, Logger: l.opts.Logger, Registerer: reg, Now: l.opts.Now,
		}); err != nil {
			return nil, fmt.Errorf("log %s: %w", opts.Label, err)
		}
	}
	if o.log, err = log.Open(ctx, opts); err != nil {
		return nil, err
	}
	var labelled prometheus.Registerer
	if reg != nil {
		labelled = prometheus.WrapRegistererWith(prometheus.Labels{"log": m.spec.Label}, reg)
	}
	switch m.spec.Kind {
	case log.CT:
		var issuers *database.Blobs
		if o.db != nil {
			if issuers, err = database.OpenBlobs(ctx, o.db, "issuers"); err != nil {
				return nil, err
			}
		}
		o.ct, err = ct.New(ct.Options{
			Log: o.log, Roots: m.spec.Roots, IssuerDir: filepath.Join(opts.Dir, "issuers"), Issuers: issuers,
			NotAfterStart: m.spec.NotAfterStart, NotAfterLimit: m.spec.NotAfterLimit, URL: l.opts.ctURL(m.spec.Shard),
			Body: l.bounds.body(l.opts.Limits.CTBody), Callers: l.bounds.callers, Verify: l.bounds.verify,
			Logger: l.opts.Logger, Registerer: labelled, Now: l.opts.Now,
		})
		if err == nil && m.spec.RootsFile != "" {
			o.roots = ct.NewRootsWatcher(m.spec.RootsFile, l.opts.Logger, o.ct)
		}
	case log.Rekor1:
		o.index, err = l.openIndex(ctx, opts.Dir, o.db, o.log, labelled)
	}
	return o, err
}

// firstIndex is how many indexes the Rekor v1 logs before m have given away: those of their entries and of what
// they have lost, which somebody may hold a promise for.
func (l *Logs) firstIndex(m *member) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var first uint64
	for _, older := range l.members {
		if older == m {
			break
		}
		if older.spec.Kind == log.Rekor1 && older.log != nil {
			first += older.log.Checkpoint().Size + older.record.Final.lost()
		}
	}
	return first
}

func (l *Logs) openIndex(ctx context.Context, dir string, db *database.DB, opened *log.Log, reg prometheus.Registerer) (*index.Index, error) {
	opts := index.Options{DB: db, Keys: entry.Keys, Logger: l.opts.Logger, Registerer: reg}
	if db == nil {
		opts.URI = "sqlite:" + filepath.Join(dir, "index.db")
	}
	x, err := index.Open(ctx, opts)
	if err != nil {
		return nil, err
	}
	// A search must not miss an entry that was answered, so nothing is served before the
	// index has reached the end of what is there.
	go x.Follow(context.WithoutCancel(ctx), opened) // ends with x.Close
	if err := x.CaughtUp(ctx, opened.Checkpoint().Size); err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

func (m *member) close() error {
	var errs []error
	if m.index != nil {
		errs = append(errs, m.index.Close())
	}
	if m.log != nil {
		errs = append(errs, m.log.Close())
	}
	if m.tree != nil {
		errs = append(errs, m.tree.Close())
	}
	if m.db != nil {
		errs = append(errs, m.db.Close())
	}
	return errors.Join(errs...)
}

// show puts the open logs behind the APIs.
func (l *Logs) show() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var v1 []rekor1.Shard
	var v2 []rekor2.Log
	var v1db *database.DB // of the first
	frozen := false
	cts := &ctSet{byShard: map[string]*ct.Handler{}}
	for _, m := range l.members {
		if m.log == nil {
			continue
		}
		switch m.spec.Kind {
		case log.Rekor1:
			if len(v1) == 0 {
				v1db = m.db
			}
			v1, frozen = append(v1, rekor1.Shard{Log: m.log, Index: m.index, Lost: m.record.Final.lost()}), m.record.State == Frozen
		case log.Rekor2:
			v2 = append(v2, m.log)
		case log.CT:
			cts.byShard[m.spec.Shard], cts.newest = m.ct, m.ct
		}
	}
	l.ct.set.Store(cts)
	var err error
	switch {
	case len(v1) == 0:
	case l.rekor1 == nil:
		var attestations rekor1.Attestations
		if l.opts.Rekor1Attestations {
			if attestations, err = l.openAttestations(v1db); err != nil {
				return err
			}
		}
		l.rekor1, err = rekor1.New(rekor1.Options{
			Shards: v1, Frozen: frozen, Body: l.bounds.body(l.opts.Limits.Rekor1Body), Callers: l.bounds.callers, Verify: l.bounds.verify,
			Off: l.opts.Rekor1Off, Kinds: l.opts.Rekor1Kinds, Attestations: attestations, MaxAttestation: l.opts.Rekor1MaxAttestation,
			Logger: l.opts.Logger, Registerer: l.opts.Registerer,
		})
	default:
		err = l.rekor1.SetShards(v1, frozen)
	}
	if err != nil {
		return err
	}
	switch {
	case len(v2) == 0:
	case l.rekor2 == nil:
		l.rekor2, err = rekor2.New(rekor2.Options{Shards: v2, Body: l.bounds.body(l.opts.Limits.Rekor2Body), Verify: l.bounds.verify, Logger: l.opts.Logger, Registerer: l.opts.Registerer})
	default:
		err = l.rekor2.SetShards(v2)
	}
	return err
}

// openAttestations returns the one store of all Rekor v1 logs.
func (l *Logs) openAttestations(db *database.DB) (rekor1.Attestations, error) {
	if db == nil {
		return rekor1.OpenDirectory(filepath.Join(l.opts.Dir, "rekor1", "attestations"))
	}
	blobs, err := database.OpenBlobs(context.Background(), db, "attestations")
	return rekor1.SharedAttestations{Blobs: blobs}, err
}

// CT submits to the newest CT log in this process.
func (l *Logs) CT() *CTLogs { return l.ct }

// Register adds the logs' paths to r.
func (l *Logs) Register(r chi.Router) {
	if l.rekor1 != nil {
		l.rekor1.Routes(r)
	}
	if l.rekor2 != nil {
		l.rekor2.Routes(r)
	}
	if l.ct.set.Load().newest != nil {
		r.Handle("/ct/{shard}/*", l.ct)
	}
}

// RegisterGRPC adds the Rekor v2 service.
func (l *Logs) RegisterGRPC(s grpc.ServiceRegistrar) {
	if l.rekor2 != nil {
		l.rekor2.Register(s)
	}
}

// Ready returns nil when every log that is not frozen takes entries, and what it stands on answers: the directory, the database,
// the fence and a store that is shared.
func (l *Logs) Ready(ctx context.Context) error {
	errs := []error{l.takesEntries()}
	dirs := []string{l.opts.Dir}
	if l.opts.FenceURI == "" {
		dirs = append(dirs, l.opts.FenceDir)
	}
	for _, dir := range dirs { // a volume that was taken away
		if _, err := os.Stat(dir); err != nil {
			errs = append(errs, err)
		}
	}
	for _, m := range l.snapshot() {
		l.mu.Lock()
		tree, db, open := m.tree, m.db, m.log != nil && m.record.State != Frozen
		l.mu.Unlock()
		if !open {
			continue
		}
		if db != nil {
			if _, err := db.ExecContext(ctx, "SELECT 1"); err != nil {
				errs = append(errs, fmt.Errorf("log %s: database %s: %w", m.spec.Label, db, err))
			}
		}
		if m.spec.Tree.Shared() {
			if _, err := tree.Size(ctx); err != nil {
				errs = append(errs, fmt.Errorf("log %s: store %s: %w", m.spec.Label, m.spec.Tree.Store, err))
			}
		}
		id, err := log.IDOf(m.spec.Key)
		if err == nil {
			_, err = l.fence.Last(ctx, id)
		}
		if err != nil && !errors.Is(err, log.ErrNoRecord) {
			errs = append(errs, fmt.Errorf("log %s: fence: %w", m.spec.Label, err))
		}
	}
	return errors.Join(errs...)
}

// takesEntries returns nil when every log that is not frozen does.
func (l *Logs) takesEntries() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, m := range l.members {
		switch {
		case m.log == nil && m.record.State != Planned && m.record.State != Published:
			errs = append(errs, fmt.Errorf("log %s is not open", m.spec.Label))
		case m.log == nil:
		default:
			if err := m.log.Ready(); err != nil {
				errs = append(errs, fmt.Errorf("log %s: %w", m.log.Origin(), err))
			}
		}
	}
	return errors.Join(errs...)
}

// Close finishes entries in flight and gives fence and directories back. Run must have ended.
func (l *Logs) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, m := range l.members {
		errs = append(errs, m.close())
	}
	if l.close != nil {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

// CTLogs is the CT logs of one server, each below /ct/<shard>.
type CTLogs struct{ set atomic.Pointer[ctSet] }

// ctSet is the CT logs between two cut-overs.
type ctSet struct {
	byShard map[string]*ct.Handler
	newest  *ct.Handler
}

// ServeHTTP serves the paths below /ct/<shard>.
func (c *CTLogs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := chi.URLParam(r, "shard")
	h := c.set.Load().byShard[name]
	if h == nil {
		http.Error(w, "there is no CT log of this name", http.StatusNotFound)
		return
	}
	http.StripPrefix("/ct/"+name, h).ServeHTTP(w, r)
}

// AddPreChain submits what the CA of this process signed to the newest log, see ct.Handler.AddOwnPreChain. A chain
// that meets it frozen goes to its successor.
func (c *CTLogs) AddPreChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return c.add(ctx, chain, (*ct.Handler).AddOwnPreChain)
}

// AddChain is AddPreChain for a certificate in place of a precertificate.
func (c *CTLogs) AddChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return c.add(ctx, chain, (*ct.Handler).AddChain)
}

func (c *CTLogs) add(ctx context.Context, chain [][]byte, submit func(*ct.Handler, context.Context, [][]byte) ([]byte, error)) ([]byte, error) {
	for {
		h := c.set.Load().newest
		sct, err := submit(h, ctx, chain)
		if fault.KindOf(err) != fault.Frozen || c.set.Load().newest == h {
			return sct, err
		}
	}
}

// LogKey is the newest log's key, ECDSA P-256.
func (c *CTLogs) LogKey() crypto.PublicKey { return c.set.Load().newest.LogKey() }

// treeID is trust.TreeID of a log's key.
func treeID(key crypto.Signer) int64 {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return 1 // log.Open refuses such a key with the reason
	}
	return trust.TreeID(spki)
}

// ctOrigin is the submission prefix without scheme and, since it may change, without port.
func ctOrigin(host, shard string) string { return host + "/ct/" + shard }
