package keys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
)

// Init makes DIR/ca, DIR/tlog, DIR/tsa, DIR/tuf and DIR/public, each of which may be a volume of its own. A run that was
// killed leaves whole files, and the next one adds the others; another run under way is waited for.
func Init(ctx context.Context, dir string, o Options) (Made, error) {
	return initialize(ctx, directory(dir), o)
}

// directory is a store of files.
type directory string

func (d directory) name(role Role, file string) string {
	return filepath.Join(string(d), string(role), file)
}

// lock makes the directory of role. The lock lies on it, not on d, which containers that share its volumes do not share.
func (d directory) lock(role Role) (func(), error) {
	path := d.name(role, "")
	mode := os.FileMode(0o700)
	if role == public {
		mode = 0o755
	}
	if err := os.MkdirAll(path, mode); err != nil {
		return nil, err
	}
	release, err := durable.WaitDir(path)
	if err != nil {
		return nil, err
	}
	if err := durable.RemoveTemps(path); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

func (d directory) load(_ context.Context, role Role) (Files, error) {
	files := Files{}
	for _, name := range filesOf(role) {
		text, err := limit.ReadFile(d.name(role, name), maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = text
	}
	return files, nil
}

func (d directory) add(_ context.Context, role Role, names []string, files Files) error {
	for _, name := range names {
		path := d.name(role, name)
		var err error
		if isPublic(name) {
			err = durable.WriteFile(path, files[name], 0o644) // nobody else writes here, thanks to the lock
		} else {
			err = signer.Store(path, files[name])
		}
		if errors.Is(err, fs.ErrExist) {
			return errTaken // a program that takes no lock
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// filesOf names the files of role.
func filesOf(role Role) []string {
	switch role {
	case CA:
		return []string{caKey, caChain}
	case TSA:
		return []string{tsaKey, tsaChain}
	case TLog:
		return []string{"ct.pem", "rekor1.pem", "rekor2.pem"}
	case TUF:
		return []string{tufRoot, tufOnline}
	}
	var all []string // public
	for _, r := range Roles() {
		all = append(all, publicFiles(r)...)
	}
	return all
}

// isPublic tells chains and public keys from private ones.
func isPublic(name string) bool {
	return name == caChain || name == caRoot || name == tsaChain || filepath.Ext(name) == ".pub"
}
