package stack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/sys/unix"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/pkg/ca/records"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// BackupOptions say what to back up and where to.
type BackupOptions struct {
	Root        string // directory of the instance, or LogsOptions.Dir of a server of logs alone
	Logs        LogsOptions
	KeyFile     string // signs the manifest; made when it is missing
	WithoutKeys bool   // leave Root/keys and Secrets out
	// Secrets are files of keys and passwords that a configuration names, by the name that those outside Root get under keys/.
	Secrets map[string]string
	To      string // the backup; must not exist
	Onto    string // an earlier backup, from which what has not changed is linked; "" for none
	Now     func() time.Time
}

// BackedUp is the outcome of a backup.
type BackedUp struct {
	Manifest *Manifest
	Verifier string // public backup key, which restore asks for
	Copied   int64  // bytes that were read from the instance
	Linked   int    // files that were taken from the earlier backup
}

// Backup copies an instance, which may run. Of each log the order is: the fence's record, then the rows, then the
// tree at the record's size. Rows precede the fence, so those of all its leaves are there; tiles that
// a record covers never change. The backup appears under its name when it is complete and durable;
// what a crash leaves is called To.partial and replaced by the next try.
func Backup(ctx context.Context, o BackupOptions) (*BackedUp, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if text := o.Logs.ElsewhereBackup(); text != "" {
		return nil, errors.New(text)
	}
	if _, err := os.Lstat(o.To); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is there already: a backup is never written over", o.To)
	}
	key, verifier, err := openBackupKey(o.KeyFile)
	if err != nil {
		return nil, err
	}
	b := &backup{BackupOptions: o, dir: o.To + ".partial", manifest: &Manifest{Format: manifestFormat, Made: o.Now().UTC().Truncate(time.Second)}}
	if o.Onto != "" {
		earlier, err := readManifest(o.Onto, verifier)
		if err != nil {
			return nil, fmt.Errorf("earlier backup %s: %w", o.Onto, err)
		}
		b.earlier = map[string]BackupFile{}
		for _, f := range earlier.Files {
			b.earlier[f.Path] = f
		}
	}
	if err := errors.Join(os.RemoveAll(b.dir), os.MkdirAll(filepath.Join(b.dir, dataName), 0o700)); err != nil {
		return nil, fmt.Errorf("making the backup: %w", err)
	}
	before, err := ReadShards(o.Logs.Dir)
	if err != nil {
		return nil, err
	}
	stored, err := o.Logs.storedLogs(ctx)
	if err != nil {
		return nil, err
	}
	defer closeStored(stored)
	for _, s := range stored {
		if err := b.log(ctx, s); err != nil {
			return nil, fmt.Errorf("backing up log %s: %w", s.Label, err)
		}
	}
	if err := b.records(ctx); err != nil {
		return nil, err
	}
	if err := b.others(ctx); err != nil {
		return nil, err
	}
	if err := b.secrets(); err != nil {
		return nil, err
	}
	// shards.json tells which logs there are and the final size of the frozen ones: it must be of the same
	// moment as the trees. States never go back, so what is the same now was the same throughout.
	if after, err := ReadShards(o.Logs.Dir); err != nil || !reflect.DeepEqual(before, after) {
		return nil, errors.Join(err, errors.New("a log changed over during the backup: make it again"))
	}
	if err := b.manifest.write(b.dir, key); err != nil {
		return nil, err
	}
	if err := syncFileSystem(b.dir); err != nil {
		return nil, fmt.Errorf("making the backup durable: %w", err)
	}
	if err := os.Rename(b.dir, o.To); err != nil {
		return nil, err
	}
	return &BackedUp{b.manifest, verifier, b.copied, b.linked}, durable.SyncDir(filepath.Dir(o.To))
}

type backup struct {
	BackupOptions
	dir      string
	manifest *Manifest
	earlier  map[string]BackupFile // by path; nil without an earlier backup
	copied   int64
	linked   int
}

func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// rel returns a path of the instance as it stands in the manifest.
func (b *backup) rel(file string) (string, error) {
	rel, err := filepath.Rel(b.Root, file)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("%s is not under %s", file, b.Root)
	}
	return filepath.ToSlash(rel), nil
}

func (b *backup) target(name string) (string, error) {
	target := filepath.Join(b.dir, dataName, filepath.FromSlash(name))
	return target, os.MkdirAll(filepath.Dir(target), 0o700)
}

// store writes one file of the backup.
func (b *backup) store(name string, mode fs.FileMode, r io.Reader) (int64, error) {
	target, err := b.target(name)
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), r)
	if err := errors.Join(err, f.Close()); err != nil {
		return n, fmt.Errorf("copying %s: %w", name, err)
	}
	b.copied += n
	b.add(BackupFile{Path: name, Mode: uint32(mode.Perm()), Bytes: n, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return n, nil
}

func (b *backup) add(f BackupFile) { b.manifest.Files = append(b.manifest.Files, f) }

// link takes a file from the earlier backup, if it is there as its manifest says.
func (b *backup) link(name string) bool {
	f, ok := b.earlier[name]
	if !ok {
		return false
	}
	source := filepath.Join(b.Onto, dataName, filepath.FromSlash(name))
	target, err := b.target(name)
	if err != nil || f.compare(source) != nil || os.Link(source, target) != nil {
		return false
	}
	b.linked++
	b.add(f)
	return true
}

// log backs up a log at the newest tree that its key has signed.
func (b *backup) log(ctx context.Context, s storedLog) error {
	dir, err := b.rel(s.Dir)
	if err != nil {
		return err
	}
	id, err := log.IDOf(s.Key)
	if err != nil {
		return err
	}
	public, err := publicPEM(s.Key)
	if err != nil {
		return err
	}
	l := BackedUpLog{
		Label: s.Label, Kind: s.Kind, Dir: dir, Origin: s.Origin, Name: s.Name, PublicKey: public, KeyID: id.String(),
		Root: hex.EncodeToString(rfc6962.DefaultHasher.EmptyRoot()),
	}
	if len(s.records) > 0 {
		cp, err := log.SignRecorded(s.Options, s.records, b.Now())
		if err != nil {
			return err
		}
		l.Size, l.Root, l.Checkpoint = cp.Size, hex.EncodeToString(cp.Root[:]), string(cp.Note)
	} else if size, err := s.tree.Size(ctx); err != nil || size > 0 {
		return errors.Join(err, fmt.Errorf("the tree holds %d entries and the fence has no record of its key: it is not known what was signed", size))
	}
	if err := b.rows(ctx, s.Dir, dir, l.Size); err != nil {
		return err
	}
	tree, ok := s.tree.(*tiles.Dir)
	if !ok {
		return fmt.Errorf("its tree, a %T, is no directory", s.tree)
	}
	into := path.Join(dir, "tiles")
	err = tree.Files(l.Size, func(name string, full bool) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		stored := path.Join(into, name)
		if full && b.link(stored) {
			return nil
		}
		raw, err := tree.Content(s.Kind, name)
		if err != nil {
			return err
		}
		_, err = b.store(stored, 0o644, bytes.NewReader(raw))
		return err
	})
	if err != nil {
		return err
	}
	root, err := hex.DecodeString(l.Root)
	if err != nil {
		return err
	}
	state, err := json.Marshal(struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}{l.Size, root})
	if err != nil {
		return err
	}
	if _, err := b.store(path.Join(into, ".state", "treeState"), 0o644, bytes.NewReader(state)); err != nil {
		return err
	}
	if err := b.copy(filepath.Join(s.Dir, "tiles", ".state", "version")); err != nil {
		return err
	}
	b.manifest.Logs = append(b.manifest.Logs, l)
	return nil
}

// rows stores the rows of the leaves below size.
func (b *backup) rows(ctx context.Context, from, dir string, size uint64) error {
	name := path.Join(dir, "entries.db")
	target, err := b.target(name)
	if err != nil {
		return err
	}
	if err := log.SnapshotRows(ctx, from, target, size); err != nil {
		return err
	}
	return b.made(name, target)
}

// records stores those of the CA, if there are any: after the logs, so that each certificate in the CT log that was answered has its record.
func (b *backup) records(ctx context.Context) error {
	from := recordsFile(b.Root)
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	name, err := b.rel(from)
	if err != nil {
		return err
	}
	target, err := b.target(name)
	if err != nil {
		return err
	}
	files, err := records.Snapshot(ctx, from, target)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := b.made(path.Join(path.Dir(name), filepath.Base(file)), file); err != nil {
			return err
		}
	}
	return nil
}

// made adds a file that was written to its place in the backup.
func (b *backup) made(name, target string) error {
	f, err := os.Open(target)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	b.copied += n
	b.add(BackupFile{Path: name, Mode: 0o644, Bytes: n, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return err
}

// copyTries is how often a file that changes while it is copied is copied again.
const copyTries = 20

// copy stores a file of the instance as it is at one moment.
func (b *backup) copy(file string) error {
	name, err := b.rel(file)
	if err != nil {
		return err
	}
	for range copyTries {
		before := len(b.manifest.Files)
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) { // a file that was replaced or is gone
			return nil
		}
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil {
			_, err = b.store(name, info.Mode(), f)
		}
		var after fs.FileInfo
		if err == nil {
			after, err = f.Stat()
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if after.Size() == info.Size() && after.ModTime().Equal(info.ModTime()) {
			return nil
		}
		b.manifest.Files = b.manifest.Files[:before]
	}
	return fmt.Errorf("%s changes all the time", file)
}

// others stores what is not of a log's tree or rows. TUF metadata names other metadata, so the name that is
// read first comes first: what it names is there then.
func (b *backup) others(ctx context.Context) error {
	first := filepath.Join(b.Root, "tuf", "timestamp.json")
	if err := b.copy(first); err != nil {
		return err
	}
	return filepath.WalkDir(b.Root, func(file string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		name, err := filepath.Rel(b.Root, file)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name != "." && b.leftOut(filepath.ToSlash(name), file) {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || file == first || b.leftOut(filepath.ToSlash(name), file) {
			return nil
		}
		return b.copy(file)
	})
}

// secrets stores those that Root does not hold.
func (b *backup) secrets() error {
	if b.WithoutKeys {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(b.Secrets)) {
		file := b.Secrets[name]
		if inside, err := b.inRoot(file); err != nil || inside {
			if err != nil {
				return err
			}
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		_, err = b.store(path.Join("keys", name), 0o600, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (b *backup) inRoot(file string) (bool, error) {
	root, err := filepath.Abs(b.Root)
	if err != nil {
		return false, err
	}
	if file, err = filepath.Abs(file); err != nil {
		return false, err
	}
	rel, err := filepath.Rel(root, file)
	return err == nil && filepath.IsLocal(rel), nil
}

// leftOut tells what is no part of a backup: the fence, whatever its place; what a start makes again; what log and records have stored; and
// temporary files.
func (b *backup) leftOut(name, file string) bool {
	base := path.Base(name)
	if strings.HasPrefix(name, "ca/records.db") {
		return true
	}
	switch name {
	case "client", "fence", "lock":
		return true
	case "keys":
		return b.WithoutKeys
	}
	if strings.HasPrefix(base, ".") || strings.HasSuffix(base, ".lock") || strings.HasSuffix(base, ".fence") || same(file, b.Logs.FenceDir) || same(file, b.To) || same(file, b.dir) || same(file, b.Onto) {
		return true
	}
	for _, secret := range b.Secrets {
		if b.WithoutKeys && same(file, secret) {
			return true
		}
	}
	for _, l := range b.manifest.Logs {
		if path.Dir(name) == l.Dir && (base == "tiles" || base == restoredName || strings.HasPrefix(base, "entries.db") || strings.HasPrefix(base, "index.db")) {
			return true
		}
	}
	return false
}

func same(a, b string) bool {
	if b == "" {
		return false
	}
	left, leftErr := os.Stat(a)
	right, rightErr := os.Stat(b)
	return leftErr == nil && rightErr == nil && os.SameFile(left, right)
}
