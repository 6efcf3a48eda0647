package stack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/tiles"
)

// restoredName is a file beside a log with the checkpoint of the backup that it was restored from. Should entries
// have come after that, it shows that this tree was signed.
const restoredName = "restored.checkpoint"

// unfinished marks a directory whose restore did not come to its end.
const unfinished = "restore-unfinished"

// Restore verifies the backup in from under the public backup key, wholly and before it writes anything, and restores it into dir, which must
// be missing or empty. Files are compared with the signed manifest; each log's tree is derived again from
// its entries and must be the one that its checkpoint signs, with every row. It writes no
// fence: whether a log may go on is for the fence to say, which was no part of the backup.
func Restore(ctx context.Context, from, verifier, dir string) (*Manifest, error) {
	m, err := readManifest(from, verifier)
	if err != nil {
		return nil, err
	}
	if err := empty(dir); err != nil {
		return nil, err
	}
	if err := m.verifyFiles(from); err != nil {
		return nil, fmt.Errorf("the backup is damaged: %w", err)
	}
	for _, l := range m.Logs {
		if err := verifyLog(ctx, filepath.Join(from, dataName), l); err != nil {
			return nil, fmt.Errorf("the backup of log %s: %w", l.Label, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	mark := filepath.Join(dir, unfinished)
	if err := durable.WriteFile(mark, nil, 0o644); err != nil {
		return nil, err
	}
	for _, f := range m.Files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := f.restore(filepath.Join(from, dataName), dir); err != nil {
			return nil, fmt.Errorf("restoring: %w", err)
		}
	}
	for _, l := range m.Logs {
		if l.Checkpoint == "" {
			continue
		}
		if err := durable.WriteFile(filepath.Join(dir, filepath.FromSlash(l.Dir), restoredName), []byte(l.Checkpoint), 0o644); err != nil {
			return nil, fmt.Errorf("restoring: %w", err)
		}
	}
	if err := syncFileSystem(dir); err != nil {
		return nil, fmt.Errorf("making what was restored durable: %w", err)
	}
	return m, errors.Join(os.Remove(mark), durable.SyncDir(dir))
}

// RestoreLogs restores the logs of a server that runs alone, whose backup they must be.
func RestoreLogs(ctx context.Context, from, verifier string, o LogsOptions) (*Manifest, error) {
	if text := o.ElsewhereRestore(); text != "" {
		return nil, errors.New(text)
	}
	m, err := readManifest(from, verifier)
	if err != nil {
		return nil, err
	}
	backedUp := map[string]BackedUpLog{}
	for _, l := range m.Logs {
		backedUp[l.Label] = l
	}
	for _, spec := range o.Logs {
		id, err := log.IDOf(spec.Key)
		if err != nil {
			return nil, fmt.Errorf("log %s: %w", spec.Label, err)
		}
		switch l, ok := backedUp[spec.Label]; {
		case !ok:
			return nil, fmt.Errorf("the backup has no log %s", spec.Label)
		case l.Dir != spec.Label:
			return nil, fmt.Errorf("the backup is of an instance of `attestry up`: restore it with --dir")
		case l.KeyID != id.String():
			return nil, fmt.Errorf("the backup's log %s has key %s, configuration names %s", l.Label, l.KeyID, id)
		}
	}
	return Restore(ctx, from, verifier, o.Dir)
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty (%s …): restore into a new directory", dir, entries[0].Name())
	}
	return nil
}

// finished fails for a directory whose restore was cut.
func finished(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, unfinished)); err == nil {
		return fmt.Errorf("the restore into %s did not come to its end: remove the directory and restore again", dir)
	}
	return nil
}

func verifyLog(ctx context.Context, data string, l BackedUpLog) error {
	signed, err := l.tree()
	if err != nil {
		return err
	}
	dir := filepath.Join(data, filepath.FromSlash(l.Dir))
	tree, err := tiles.OpenDir(filepath.Join(dir, "tiles"), l.Kind)
	if err != nil {
		return err
	}
	if size, err := tree.Size(ctx); err != nil || size != l.Size {
		return errors.Join(err, fmt.Errorf("its tree has size %d, its checkpoint %d", size, l.Size))
	}
	var damage []error
	s := storedLog{Options: log.Options{Kind: l.Kind, Dir: dir}, tree: tree, records: []log.Record{{Size: signed.Size, Root: signed.Root}}}
	rows, err := log.OpenStoredRows(dir)
	if err != nil {
		return err
	}
	defer rows.Close()
	if _, err := s.check(ctx, rows, nil, nil, func(f log.Finding) {
		if len(damage) < 20 {
			damage = append(damage, errors.New(f.String()))
		}
	}); err != nil {
		return err
	}
	return errors.Join(damage...)
}

// restore copies a file and fails when it is not what was verified.
func (f BackupFile) restore(from, to string) error {
	source, err := os.Open(filepath.Join(from, filepath.FromSlash(f.Path)))
	if err != nil {
		return err
	}
	defer source.Close()
	target := filepath.Join(to, filepath.FromSlash(f.Path))
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.copyTo(file, source), file.Chmod(fs.FileMode(f.Mode)&fs.ModePerm), file.Close())
}
