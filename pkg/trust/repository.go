package trust

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
)

// The directory of a TUF repository is its URL layout: every N.root.json for ever, root.json
// as a copy of the newest, timestamp.json, N.snapshot.json, N.targets.json, and
// targets/<sha256>.<name>. Metadata lists sha256 alone: go-tuf v2 takes the URL's hash from
// a random entry of the map.

const (
	rootCopy       = "root.json"
	timestampFile  = "timestamp.json"
	targetsDir     = "targets"
	lockName       = ".lock"
	maxMetadata    = 5_000_000 // go-tuf v2's limit for targets, the largest
	maxTarget      = 5_000_000
	maxRootVersion = 100_000
)

// Limits of go-tuf v2, over which clients refuse what we publish.
var metadataLimits = map[string]int{
	metadata.ROOT: 512_000, metadata.TIMESTAMP: 16_384, metadata.SNAPSHOT: 2_000_000, metadata.TARGETS: maxMetadata,
}

const maxTargetName = 128

var (
	versionedFile = regexp.MustCompile(`^([1-9][0-9]{0,17})\.(root|snapshot|targets)\.json$`)
	targetName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

// repository is what clients see: the newest metadata of each role, all verified. Fields are
// nil as far as nothing was published yet.
type repository struct {
	root      *metadata.Metadata[metadata.RootType]
	rootBytes []byte
	timestamp *metadata.Metadata[metadata.TimestampType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	targets   *metadata.Metadata[metadata.TargetsType]
}

// reader returns the content of a name below the repository, or fs.ErrNotExist.
type reader func(name string) ([]byte, error)

// loadRepository reads and verifies as a client does that holds 1.root.json: root by root,
// then timestamp, snapshot, targets and every target. Metadata expired at ref is refused;
// the zero time accepts any, for a publisher that starts late and is about to sign again.
func loadRepository(read reader, ref time.Time) (*repository, error) {
	repo := &repository{}
	first, err := read(versioned(metadata.ROOT, 1))
	if errors.Is(err, fs.ErrNotExist) {
		return repo, nil
	}
	if err != nil {
		return nil, err
	}
	trusted, err := trustedmetadata.New(first)
	if err != nil {
		return nil, fmt.Errorf("1.root.json: %w", err)
	}
	trusted.RefTime = ref
	repo.root, repo.rootBytes = trusted.Root, first
	for repo.root.Signed.Version < maxRootVersion {
		name := versioned(metadata.ROOT, repo.root.Signed.Version+1)
		data, err := read(name)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		if repo.root, err = trusted.UpdateRoot(data); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		repo.rootBytes = data
	}

	data, err := read(timestampFile)
	if errors.Is(err, fs.ErrNotExist) {
		return repo, nil
	}
	if err != nil {
		return nil, err
	}
	if repo.timestamp, err = trusted.UpdateTimestamp(data); err != nil {
		return nil, fmt.Errorf("%s: %w", timestampFile, err)
	}
	meta := repo.timestamp.Signed.Meta["snapshot.json"]
	if meta == nil {
		return nil, errors.New("timestamp.json names no snapshot")
	}
	name := versioned(metadata.SNAPSHOT, meta.Version)
	if data, err = read(name); err != nil {
		return nil, err
	}
	if repo.snapshot, err = trusted.UpdateSnapshot(data, false); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if meta = repo.snapshot.Signed.Meta["targets.json"]; meta == nil {
		return nil, fmt.Errorf("%s names no targets", name)
	}
	name = versioned(metadata.TARGETS, meta.Version)
	if data, err = read(name); err != nil {
		return nil, err
	}
	if repo.targets, err = trusted.UpdateTargets(data); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for target := range repo.targets.Signed.Targets {
		if _, err := repo.target(read, target); err != nil {
			return nil, err
		}
	}
	return repo, nil
}

// target reads the verified content of a published target.
func (repo *repository) target(read reader, name string) ([]byte, error) {
	if repo.targets == nil || repo.targets.Signed.Targets[name] == nil {
		return nil, fmt.Errorf("target %s: %w", name, fs.ErrNotExist)
	}
	meta := repo.targets.Signed.Targets[name]
	path, err := targetPath(name, meta)
	if err != nil {
		return nil, err
	}
	data, err := read(path)
	if err != nil {
		return nil, err
	}
	if err := meta.VerifyLengthHashes(data); err != nil {
		return nil, fmt.Errorf("target %s: %w", name, err)
	}
	return data, nil
}

// targetPath is where a target lies: targets/<sha256>.<name>.
func targetPath(name string, meta *metadata.TargetFiles) (string, error) {
	hash, ok := meta.Hashes["sha256"]
	if !ok || len(hash) != sha256.Size || len(name) > maxTargetName || !targetName.MatchString(name) {
		return "", fmt.Errorf("target %q: unusual name or no sha256", name)
	}
	return targetsDir + "/" + hash.String() + "." + name, nil
}

func versioned(role string, version int64) string {
	return strconv.FormatInt(version, 10) + "." + role + ".json"
}

// diskReader reads below dir, whole files up to the limit.
func diskReader(dir string) reader {
	return func(name string) ([]byte, error) {
		path := filepath.Join(dir, filepath.FromSlash(name))
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if info.Size() > maxMetadata || !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s: not a file of at most %d bytes", path, maxMetadata)
		}
		return os.ReadFile(path)
	}
}

// highest is the greatest version of role that has a file in dir, 0 for none. Files that a
// killed publication left count: no client was told of them, but one version number shall
// never stand for two contents.
func highest(dir, role string) (int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	var top int64
	for _, e := range entries {
		m := versionedFile.FindStringSubmatch(e.Name())
		if m == nil || m[2] != role {
			continue
		}
		version, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", e.Name(), err)
		}
		top = max(top, version)
	}
	return top, nil
}

// publication is the files of one step from a state that clients accept to the next.
type publication struct {
	targetFiles []file
	signedRoots []file // that holders signed elsewhere, in the order of their versions
	targets     *metadata.Metadata[metadata.TargetsType]
	snapshot    *metadata.Metadata[metadata.SnapshotType]
	root        *metadata.Metadata[metadata.RootType]
	timestamp   *metadata.Metadata[metadata.TimestampType]

	stages [][]file
}

// encode fills in stages, in the order that keeps every moment in between whole for a client:
// what is named comes before what names it, and a root that changes the timestamp's key
// before a timestamp of that key.
func (p *publication) encode() error {
	p.stages = nil
	if len(p.targetFiles) > 0 {
		p.stages = append(p.stages, p.targetFiles)
	}
	if p.targets != nil {
		if err := addStage(p, metadata.TARGETS, versioned(metadata.TARGETS, p.targets.Signed.Version), p.targets); err != nil {
			return err
		}
	}
	if p.snapshot != nil {
		if err := addStage(p, metadata.SNAPSHOT, versioned(metadata.SNAPSHOT, p.snapshot.Signed.Version), p.snapshot); err != nil {
			return err
		}
	}
	for _, root := range p.signedRoots { // as they were signed, byte for byte
		p.stages = append(p.stages, []file{root})
	}
	if n := len(p.signedRoots); n > 0 {
		p.stages = append(p.stages, []file{{rootCopy, p.signedRoots[n-1].data, 0o644}})
	}
	if p.root != nil {
		if err := addStage(p, metadata.ROOT, versioned(metadata.ROOT, p.root.Signed.Version), p.root); err != nil {
			return err
		}
		if err := addStage(p, metadata.ROOT, rootCopy, p.root); err != nil {
			return err
		}
	}
	if p.timestamp != nil {
		return addStage(p, metadata.TIMESTAMP, timestampFile, p.timestamp)
	}
	return nil
}

func addStage[T metadata.Roles](p *publication, role, name string, meta *metadata.Metadata[T]) error {
	data, err := meta.ToBytes(false)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	if limit := metadataLimits[role]; len(data) > limit {
		return fmt.Errorf("%s would have %d bytes, clients take %d", name, len(data), limit)
	}
	p.stages = append(p.stages, []file{{name, data, 0o644}})
	return nil
}

// over reads p's files where it has them and what is below otherwise.
func (p *publication) over(below reader) reader {
	return func(name string) ([]byte, error) {
		for _, stage := range p.stages {
			for _, f := range stage {
				if f.name == name {
					return f.data, nil
				}
			}
		}
		return below(name)
	}
}

// metaFile describes the file of an online role to the role above it.
func metaFile[T metadata.Roles](meta *metadata.Metadata[T], version int64) (*metadata.MetaFiles, error) {
	data, err := meta.ToBytes(false)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	m := metadata.MetaFile(version)
	m.Length, m.Hashes = int64(len(data)), metadata.Hashes{"sha256": sum[:]}
	return m, nil
}

// describe makes the targets metadata entries and the files for targets.
func describe(targets []Target) (map[string]*metadata.TargetFiles, []file, error) {
	entries := map[string]*metadata.TargetFiles{}
	var files []file
	for _, t := range targets {
		if len(t.Data) > maxTarget || len(t.Data) == 0 {
			return nil, nil, fmt.Errorf("target %s has %d bytes, want 1 to %d", t.Name, len(t.Data), maxTarget)
		}
		sum := sha256.Sum256(t.Data)
		meta := &metadata.TargetFiles{Length: int64(len(t.Data)), Hashes: metadata.Hashes{"sha256": sum[:]}, Path: t.Name}
		if t.Custom != nil {
			custom := json.RawMessage(bytes.Clone(t.Custom))
			meta.Custom = &custom
		}
		path, err := targetPath(t.Name, meta)
		if err != nil {
			return nil, nil, err
		}
		if entries[t.Name] != nil {
			return nil, nil, fmt.Errorf("target %q comes twice", t.Name)
		}
		entries[t.Name] = meta
		files = append(files, file{path, t.Data, 0o644})
	}
	return entries, files, nil
}

// sameTargets says whether two sets of entries mean the same.
func sameTargets(a, b map[string]*metadata.TargetFiles) bool {
	return maps.EqualFunc(a, b, func(x, y *metadata.TargetFiles) bool {
		if x.Length != y.Length || !bytes.Equal(x.Hashes["sha256"], y.Hashes["sha256"]) || (x.Custom == nil) != (y.Custom == nil) {
			return false
		}
		if x.Custom == nil {
			return true
		}
		var one, two bytes.Buffer
		if json.Compact(&one, *x.Custom) != nil || json.Compact(&two, *y.Custom) != nil {
			return false
		}
		return bytes.Equal(one.Bytes(), two.Bytes())
	})
}

// firstRoot is version 1: holders sign root and targets, the online key the rest.
func firstRoot(holders []*tufKey, threshold int, online *tufKey, expires time.Time) (*metadata.Metadata[metadata.RootType], error) {
	root := metadata.Root(expires)
	for _, role := range []string{metadata.ROOT, metadata.TARGETS} {
		for _, key := range holders {
			if err := root.Signed.AddKey(key.pub, role); err != nil {
				return nil, err
			}
		}
		root.Signed.Roles[role].Threshold = threshold
	}
	for _, role := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP} {
		if err := root.Signed.AddKey(online.pub, role); err != nil {
			return nil, err
		}
	}
	return root, nil
}

// nextRoot is a copy of root with the next version, to be changed and signed.
func nextRoot(rootBytes []byte, expires time.Time) (*metadata.Metadata[metadata.RootType], error) {
	root, err := metadata.Root().FromBytes(rootBytes)
	if err != nil {
		return nil, err
	}
	root.Signed.Version++
	root.Signed.Expires = expires
	root.Signatures = nil
	return root, nil
}

// signedBy says whether every one of sets has a signature under id.
func signedBy(id string, sets ...[]metadata.Signature) bool {
	for _, set := range sets {
		if !slices.ContainsFunc(set, func(s metadata.Signature) bool { return s.KeyID == id }) {
			return false
		}
	}
	return true
}
