package carry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/attestry/attestry/internal/limit"
)

const (
	targetName   = "trusted_root.json"
	maxTUFFile   = 5_000_000 // go-tuf v2's limit for targets, the largest
	maxRoots     = 1024
	fetchTimeout = 30 * time.Second
)

// tufReader returns a file of a TUF repository by its name there, or fs.ErrNotExist.
type tufReader func(ctx context.Context, name string) ([]byte, error)

// tufFrom reads a repository from a directory or, when place is an http or https URL, from there.
func tufFrom(place string, client *http.Client) (tufReader, func() error, error) {
	if !strings.HasPrefix(place, "http://") && !strings.HasPrefix(place, "https://") {
		root, err := os.OpenRoot(place)
		if err != nil {
			return nil, nil, fmt.Errorf("TUF repository: %w", err)
		}
		return filesReader(root.FS(), "."), root.Close, nil
	}
	return func(ctx context.Context, name string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(place, "/")+"/"+name, nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, fmt.Errorf("TUF repository: %w", err)
		}
		defer resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusOK:
			return limit.ReadAll(resp.Body, maxTUFFile)
		case http.StatusNotFound, http.StatusForbidden: // as an object store answers for what is not there
			return nil, fs.ErrNotExist
		}
		return nil, fmt.Errorf("TUF repository: %s: status %d", name, resp.StatusCode)
	}, func() error { return nil }, nil
}

func filesReader(files fs.FS, dir string) tufReader {
	return func(_ context.Context, name string) ([]byte, error) {
		return limit.ReadFS(files, path.Join(dir, name), maxTUFFile)
	}
}

// chain is what leads from a root of trust to trusted_root.json.
type chain struct {
	files       map[string][]byte // by name in the repository
	trustedRoot []byte
	root        int64 // version that it ends at
	expires     map[string]time.Time
}

// readChain reads and verifies as a TUF client does that holds root: root by root, then timestamp, snapshot, targets and the one
// target. What has expired at now is refused; the zero time accepts any: what was imported stays good where nothing newer
// comes.
func readChain(ctx context.Context, read tufReader, root []byte, now time.Time) (*chain, error) {
	trusted, err := trustedmetadata.New(root)
	if err != nil {
		return nil, fmt.Errorf("TUF root: %w", err)
	}
	trusted.RefTime = now
	c := &chain{files: map[string][]byte{}, expires: map[string]time.Time{}}
	first := trusted.Root.Signed.Version
	if first > maxRoots {
		return nil, fmt.Errorf("TUF root of version %d: at most %d are followed", first, maxRoots)
	}
	c.files[versioned(metadata.ROOT, first)] = root
	for v := int64(1); v < first; v++ { // for those who hold an older one
		old, err := read(ctx, versioned(metadata.ROOT, v))
		if err == nil {
			c.files[versioned(metadata.ROOT, v)] = old
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for v := first + 1; ; v++ {
		if v > maxRoots {
			return nil, fmt.Errorf("over %d TUF roots", maxRoots)
		}
		name := versioned(metadata.ROOT, v)
		data, err := read(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		if _, err := trusted.UpdateRoot(data); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		c.files[name] = data
	}
	c.root = trusted.Root.Signed.Version
	c.expires[metadata.ROOT] = trusted.Root.Signed.Expires

	get := func(name string) ([]byte, error) {
		data, err := read(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("TUF repository: %s: %w", name, err)
		}
		c.files[name] = data
		return data, nil
	}
	data, err := get("timestamp.json")
	if err != nil {
		return nil, err
	}
	timestamp, err := trusted.UpdateTimestamp(data)
	if err != nil {
		return nil, fmt.Errorf("timestamp.json: %w", err)
	}
	c.expires[metadata.TIMESTAMP] = timestamp.Signed.Expires
	name := func(role string, meta *metadata.MetaFiles) (string, error) {
		if meta == nil {
			return "", fmt.Errorf("TUF repository: nothing says which %s counts", role)
		}
		if trusted.Root.Signed.ConsistentSnapshot {
			return versioned(role, meta.Version), nil
		}
		return role + ".json", nil
	}
	file, err := name(metadata.SNAPSHOT, timestamp.Signed.Meta["snapshot.json"])
	if err != nil {
		return nil, err
	}
	if data, err = get(file); err != nil {
		return nil, err
	}
	snapshot, err := trusted.UpdateSnapshot(data, false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	c.expires[metadata.SNAPSHOT] = snapshot.Signed.Expires
	if file, err = name(metadata.TARGETS, snapshot.Signed.Meta["targets.json"]); err != nil {
		return nil, err
	}
	if data, err = get(file); err != nil {
		return nil, err
	}
	targets, err := trusted.UpdateTargets(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	c.expires[metadata.TARGETS] = targets.Signed.Expires
	target := targets.Signed.Targets[targetName]
	if target == nil {
		return nil, fmt.Errorf("the TUF repository has no %s", targetName)
	}
	file = "targets/" + targetName
	if hash, ok := target.Hashes["sha256"]; ok && trusted.Root.Signed.ConsistentSnapshot {
		file = "targets/" + hash.String() + "." + targetName
	}
	if c.trustedRoot, err = get(file); err != nil {
		return nil, err
	}
	if err := target.VerifyLengthHashes(c.trustedRoot); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func versioned(role string, version int64) string {
	return strconv.FormatInt(version, 10) + "." + role + ".json"
}
