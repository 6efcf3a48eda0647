package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// storedLog is a log where it is stored. It is only read: it may run.
type storedLog struct {
	log.Options
	tree    log.TreeReader
	final   *FinalTree   // of a frozen log
	records []log.Record // of the fence, newest first; none when it has no record or no fence is named
	db      *database.DB // of rows and issuers; nil for files in Dir
	close   func() error // closes tree and db
}

// storedLogs opens the logs that have begun, in the order of configuration. closeStored closes them.
func (o LogsOptions) storedLogs(ctx context.Context) (stored []storedLog, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeStored(stored))
		}
	}()
	file, err := ReadShards(o.Dir)
	if err != nil {
		return nil, err
	}
	members, err := o.members(file)
	if err != nil {
		return nil, err
	}
	recorded, closeFence, err := o.peekFence(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeFence()) }()
	for _, m := range members {
		if m.record.State == Planned || m.record.State == Published {
			continue
		}
		s, err := o.stored(ctx, m, recorded)
		if err != nil {
			return stored, fmt.Errorf("log %s: %w", m.spec.Label, err)
		}
		stored = append(stored, s)
	}
	return stored, nil
}

func closeStored(stored []storedLog) error {
	var errs []error
	for _, s := range stored {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// stored opens one log. What the fence has recorded is read before the tree, which then has it all.
func (o LogsOptions) stored(ctx context.Context, m *member, recorded peek) (s storedLog, err error) {
	s.close = func() error { return nil }
	if s.Options, err = o.options(m); err != nil {
		return s, err
	}
	id, err := log.IDOf(s.Key)
	if err != nil {
		return s, err
	}
	if s.records, err = recorded(ctx, id); err != nil && !errors.Is(err, log.ErrNoRecord) {
		return s, err
	}
	if s.final = m.record.Final; s.final.lost() > 0 {
		if s.records, err = s.final.seal(s.Options, s.records); err != nil {
			return s, err
		}
	}
	if o.Database != "" {
		if s.db, err = database.Open(ctx, o.Database, o.schema(s.Label, true)); err != nil {
			return s, err
		}
		s.close = s.db.Close
	}
	tree, closeTree, err := m.spec.Tree.read(ctx, s.Kind, s.Label, s.Dir)
	if err != nil {
		return s, errors.Join(err, s.close())
	}
	closeDB := s.close
	s.tree, s.close = tree, func() error { return errors.Join(closeTree(), closeDB()) }
	return s, nil
}

// peek returns what the fence has recorded of a key, newest first, or log.ErrNoRecord.
type peek func(ctx context.Context, key log.KeyID) ([]log.Record, error)

// peekFence reads the fence where it is, without its lock and without writing. The second result closes it.
func (o LogsOptions) peekFence(ctx context.Context) (peek, func() error, error) {
	if o.FenceURI == "" {
		return func(_ context.Context, key log.KeyID) ([]log.Record, error) { return log.PeekFence(o.FenceDir, key) }, func() error { return nil }, nil
	}
	db, err := database.Open(ctx, o.FenceURI, o.fenceSchema(true))
	if err != nil {
		return nil, nil, fmt.Errorf("opening the fence: %w", err)
	}
	return func(ctx context.Context, key log.KeyID) ([]log.Record, error) {
		return log.PeekPostgresFence(ctx, db, key)
	}, db.Close, nil
}

// rows reads the rows where they are. The second result closes them.
func (s storedLog) rows() (*log.StoredRows, func() error, error) {
	if s.db != nil {
		return log.StoredRowsIn(s.db), func() error { return nil }, nil
	}
	rows, err := log.OpenStoredRows(s.Dir)
	if err != nil {
		return nil, nil, err
	}
	return rows, rows.Close, nil
}

// issuer reads a certificate that a CT log stores under its fingerprint.
func (s storedLog) issuer(fingerprint [32]byte) ([]byte, error) {
	if s.db == nil {
		return os.ReadFile(filepath.Join(s.Dir, "issuers", fmt.Sprintf("%x", fingerprint)))
	}
	der, ok, err := database.StoredBlobs(s.db, "issuers").Get(context.Background(), fingerprint)
	if err == nil && !ok {
		err = errors.New("the database does not have it")
	}
	return der, err
}

// CheckedLog is the outcome of one log's check.
type CheckedLog struct {
	Label string
	log.Checked
}

// maxStrays is how many files past the tree are reported for one log.
const maxStrays = 100

// CheckLogs checks the logs with these labels, all when there are none, see log.Check. Checkpoints are signed notes by the names of
// their files: each must be of one of the logs, and of this tree or a beginning of it.
func CheckLogs(ctx context.Context, o LogsOptions, labels []string, checkpoints map[string][]byte, report func(label string, f log.Finding)) (all []CheckedLog, err error) {
	stored, err := o.storedLogs(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeStored(stored)) }()
	if err := known(stored, labels); err != nil {
		return nil, err
	}
	signed, err := attribute(stored, checkpoints)
	if err != nil {
		return nil, err
	}
	for _, s := range stored {
		if len(labels) > 0 && !slices.Contains(labels, s.Label) {
			continue
		}
		rows, closeRows, err := s.rows()
		if err != nil {
			return all, fmt.Errorf("checking log %s: %w", s.Label, err)
		}
		checked, err := s.check(ctx, rows, signed[s.Label], o.Now, func(f log.Finding) { report(s.Label, f) })
		if err := errors.Join(err, closeRows()); err != nil {
			return all, fmt.Errorf("checking log %s: %w", s.Label, err)
		}
		all = append(all, CheckedLog{s.Label, checked})
	}
	return all, nil
}

func known(stored []storedLog, labels []string) error {
	var there []string
	for _, s := range stored {
		there = append(there, s.Label)
	}
	for _, label := range labels {
		if !slices.Contains(there, label) {
			return fmt.Errorf("there is no log %q here, only %q", label, there)
		}
	}
	return nil
}

// attribute finds the log of each checkpoint by its origin and verifies its signature.
func attribute(stored []storedLog, checkpoints map[string][]byte) (map[string][]log.SignedTree, error) {
	signed := map[string][]log.SignedTree{}
	var errs []error
	for name, raw := range checkpoints {
		origin, _, _ := bytes.Cut(raw, []byte("\n"))
		i := slices.IndexFunc(stored, func(s storedLog) bool { return s.Origin == string(origin) })
		if i < 0 {
			errs = append(errs, fmt.Errorf("checkpoint %s is of %q, which is no log here", name, origin))
			continue
		}
		s := stored[i]
		tree, err := log.ParseCheckpoint(s.Kind, s.Origin, s.Name, s.Key, raw)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		tree.By = name
		signed[s.Label] = append(signed[s.Label], tree)
	}
	return signed, errors.Join(errs...)
}

func (s storedLog) check(ctx context.Context, rows *log.StoredRows, signed []log.SignedTree, now func() time.Time, report func(log.Finding)) (log.Checked, error) {
	for _, r := range s.records {
		signed = append(signed, log.SignedTree{Size: r.Size, Root: r.Root, By: "fence"})
	}
	if s.final != nil {
		final, err := s.final.record()
		if err != nil {
			return log.Checked{}, err
		}
		signed = append(signed, log.SignedTree{Size: final.Size, Root: final.Root, By: shardsName})
		if lost := s.final.Lost; lost != nil {
			report(log.Finding{Harmless: true, What: "lost", Where: shardsName, Detail: fmt.Sprintf("entries %d to %d are lost; the log ended there", lost.From, lost.To-1)})
		}
	}
	if size, err := s.tree.Size(ctx); len(s.records) == 0 && (err != nil || size > 0) {
		if err != nil {
			return log.Checked{}, err
		}
		report(log.Finding{Harmless: true, What: "no_fence", Where: "the fence", Detail: "it has no record of the log's key: what the key has signed was not compared"})
	}
	opts := log.CheckOptions{Kind: s.Kind, Tree: s.tree, Signed: signed, Rows: rows, Now: now, Report: report}
	if s.Kind == log.CT {
		opts.Issuer = s.issuer
	}
	checked, err := log.Check(ctx, opts)
	if err != nil {
		return checked, err
	}
	if dir, ok := s.tree.(*tiles.Dir); ok {
		return checked, strays(ctx, dir, report)
	}
	return checked, nil
}

// strayPause is longer than a file that is being written has its temporary name.
const strayPause = 200 * time.Millisecond

// strays reports files past the tree. While the log runs, those of a batch on its way are not past it for long.
func strays(ctx context.Context, tree *tiles.Dir, report func(log.Finding)) error {
	list := func() (map[string]bool, error) {
		size, err := tree.Size(ctx)
		if err != nil {
			return nil, err
		}
		names := map[string]bool{}
		err = tree.Strays(size, func(name string) error { names[name] = true; return nil })
		return names, err
	}
	first, err := list()
	if err != nil || len(first) == 0 {
		return err
	}
	select {
	case <-time.After(strayPause):
	case <-ctx.Done():
		return ctx.Err()
	}
	still, err := list()
	if err != nil {
		return err
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range first {
			if still[name] && !yield(name) {
				return
			}
		}
	})
	for i, name := range names {
		if i == maxStrays {
			report(log.Finding{Harmless: true, What: "stray", Where: "the tiles", Detail: fmt.Sprintf("%d more files are past the tree", len(names)-i)})
			break
		}
		report(log.Finding{Harmless: true, What: "stray", Where: name, Detail: "it does not belong to the tree; the next entries overwrite what a crash left"})
	}
	return nil
}

// PrintCheck is CheckLogs for people and programs: one line for each finding and each log, as JSON if asked. Damage is an error.
func PrintCheck(ctx context.Context, logs LogsOptions, names []string, checkpoints map[string][]byte, asJSON bool, w io.Writer) error {
	encoder := json.NewEncoder(w)
	began := time.Now()
	checked, err := CheckLogs(ctx, logs, names, checkpoints, func(label string, f log.Finding) {
		if asJSON {
			encoder.Encode(struct {
				Log string `json:"log"`
				log.Finding
			}{label, f})
			return
		}
		fmt.Fprintf(w, "%s: %v\n", label, f)
	})
	damaged := 0
	for _, c := range checked {
		damaged += c.Damaged
		if asJSON {
			encoder.Encode(struct {
				Log     string `json:"log"`
				Size    uint64 `json:"size"`
				Root    string `json:"root"`
				Damaged int    `json:"damaged"`
			}{c.Label, c.Size, fmt.Sprintf("%x", c.Root), c.Damaged})
			continue
		}
		state := "clean"
		if c.Damaged > 0 {
			state = fmt.Sprintf("%d findings", c.Damaged)
		}
		fmt.Fprintf(w, "%s: %s, %d entries, root %x\n", c.Label, state, c.Size, c.Root)
	}
	if err != nil {
		return err
	}
	if !asJSON {
		fmt.Fprintf(w, "checked in %v\n", time.Since(began).Round(time.Millisecond))
	}
	if damaged > 0 {
		return fmt.Errorf("%d findings of damage", damaged)
	}
	return nil
}

// FencedLog is how far a log and the fence of its key are.
type FencedLog struct {
	Label    string
	Size     uint64     // of the tree
	Recorded log.Record // newest record of the fence; the zero Record when it has none
	Lost     uint64     // entries that the log is known to have lost
}

// CompareFence reads how far the logs that have begun and their fence are. It writes nothing, and they may run.
func CompareFence(ctx context.Context, o LogsOptions) (all []FencedLog, err error) {
	stored, err := o.storedLogs(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeStored(stored)) }()
	for _, s := range stored {
		f := FencedLog{Label: s.Label, Lost: s.final.lost()}
		if len(s.records) > 0 {
			f.Recorded = s.records[0]
		}
		if f.Size, err = s.tree.Size(ctx); err != nil {
			return nil, fmt.Errorf("log %s: %w", s.Label, err)
		}
		all = append(all, f)
	}
	return all, nil
}
