// Package freshness says how old a trusted root is, by the TUF metadata that was carried with it. Verification itself never
// asks: behind an air gap metadata ends sooner or later, and what it vouched for stays as true as it was.
package freshness

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

const (
	maxMetadataBytes = 4 << 20 // of one file
	maxRoots         = 1024    // versions of root.json
	target           = "trusted_root.json"
)

// Age is what TUF metadata says of the age of a trusted root.
type Age struct {
	// Expires is when the first of timestamp, snapshot, targets and root ended or will end; the zero time when nothing is known. TUF
	// signs no other date: when metadata was made is not in it.
	Expires time.Time
}

// Past is how long the metadata has been out of date at now; 0 while it is current.
func (a Age) Past(now time.Time) time.Duration {
	return max(0, now.Sub(a.Expires))
}

// Known is Expires, nil when nothing is known.
func (a Age) Known() *time.Time {
	if a.Expires.IsZero() {
		return nil
	}
	return &a.Expires
}

// Read verifies the TUF metadata in dir from root to targets, without regard to its age, and requires that it names trustedRoot
// as its target trusted_root.json. The anchor is the lowest root version in dir (N.root.json, else root.json): dir is believed as much as
// the trusted root that lies there, what the signatures add is that the age is that of this very trusted root.
func Read(dir fs.FS, trustedRoot []byte) (Age, error) {
	age, err := read(dir, trustedRoot)
	if err != nil {
		return Age{}, fmt.Errorf("TUF metadata of the trusted root: %w", err)
	}
	return age, nil
}

func read(dir fs.FS, trustedRoot []byte) (Age, error) {
	roots, err := readRoots(dir)
	if err != nil {
		return Age{}, err
	}
	trusted, err := trustedmetadata.New(roots[0])
	if err != nil {
		return Age{}, err
	}
	trusted.RefTime = time.Time{} // before any expiry
	for _, root := range roots[1:] {
		if _, err := trusted.UpdateRoot(root); err != nil {
			return Age{}, err
		}
	}
	data, err := readFile(dir, "timestamp.json")
	if err != nil {
		return Age{}, err
	}
	timestamp, err := trusted.UpdateTimestamp(data)
	if err != nil {
		return Age{}, err
	}
	if data, err = readVersion(dir, "snapshot.json", timestamp.Signed.Meta["snapshot.json"].Version); err != nil {
		return Age{}, err
	}
	snapshot, err := trusted.UpdateSnapshot(data, false)
	if err != nil {
		return Age{}, err
	}
	meta, ok := snapshot.Signed.Meta["targets.json"]
	if !ok {
		return Age{}, errors.New("the snapshot names no targets")
	}
	if data, err = readVersion(dir, "targets.json", meta.Version); err != nil {
		return Age{}, err
	}
	targets, err := trusted.UpdateTargets(data)
	if err != nil {
		return Age{}, err
	}
	entry, ok := targets.Signed.Targets[target]
	if !ok {
		return Age{}, fmt.Errorf("it names no target %s", target)
	}
	sum := sha256.Sum256(trustedRoot)
	if entry.Length != int64(len(trustedRoot)) || !bytes.Equal(entry.Hashes["sha256"], sum[:]) {
		return Age{}, fmt.Errorf("it names another %s than this one", target)
	}
	age := Age{Expires: trusted.Root.Signed.Expires}
	for _, expires := range []time.Time{timestamp.Signed.Expires, snapshot.Signed.Expires, targets.Signed.Expires} {
		if expires.Before(age.Expires) {
			age.Expires = expires
		}
	}
	return age, nil
}

// readRoots returns the versions of root.json from the lowest in dir on, without a gap.
func readRoots(dir fs.FS) ([][]byte, error) {
	var roots [][]byte
	for version := 1; version <= maxRoots; version++ {
		data, err := readFile(dir, fmt.Sprintf("%d.root.json", version))
		switch {
		case err == nil:
			roots = append(roots, data)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case len(roots) > 0:
			return roots, nil
		}
	}
	if len(roots) > 0 {
		return roots, nil
	}
	data, err := readFile(dir, "root.json")
	return [][]byte{data}, err
}

// readVersion reads N.NAME, or NAME in a repository without consistent snapshots.
func readVersion(dir fs.FS, name string, version int64) ([]byte, error) {
	data, err := readFile(dir, fmt.Sprintf("%d.%s", version, name))
	if errors.Is(err, fs.ErrNotExist) {
		return readFile(dir, name)
	}
	return data, err
}

func readFile(dir fs.FS, name string) ([]byte, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMetadataBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if len(data) > maxMetadataBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxMetadataBytes)
	}
	return data, nil
}

// Limits are how long metadata may have been out of date. Zero sets no limit.
type Limits struct {
	Warn, Max time.Duration
}

// Judge holds age, or the error of Read, against l at now. warning is a text for people, "" when there is nothing to say; err has
// the reason verify.ReasonTrustStale.
func (l Limits) Judge(age Age, readErr error, now time.Time) (warning string, err error) {
	problem := func(limit time.Duration) string {
		switch {
		case limit == 0:
			return ""
		case readErr != nil:
			return "the age of the trusted root is not known: " + readErr.Error()
		case age.Past(now) > limit:
			return fmt.Sprintf("the TUF metadata of the trusted root ended at %s, more than %s ago", age.Expires.UTC().Format(time.RFC3339), limit)
		}
		return ""
	}
	if text := problem(l.Max); text != "" {
		return "", fault.New(fault.Denied, string(verify.ReasonTrustStale), nil, "%s", text)
	}
	return problem(l.Warn), nil
}
