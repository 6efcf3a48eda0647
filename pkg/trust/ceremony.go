package trust

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"github.com/attestry/attestry/internal/limit"
)

// A root of trust that is made and changed where no network is: holders have one key each and sign N.root.json; the publisher has
// a key for targets and one for snapshot and timestamp, and none of theirs (PublisherOptions.SignedRoots). All keys are
// ECDSA P-256. Root metadata is exchanged as the bytes of its file.

// RootKeys is what a root says about keys.
type RootKeys struct {
	Holders   []crypto.PublicKey // sign root
	Threshold int                // how many of Holders
	Targets   crypto.PublicKey   // signs what is published; may leave the publisher between changes
	Online    crypto.PublicKey   // signs snapshot and timestamp
}

// CreateRoot returns version 1 without signatures.
func CreateRoot(k RootKeys, expires time.Time) ([]byte, error) {
	root := metadata.Root(expires.UTC().Truncate(time.Second))
	root.Signatures = []metadata.Signature{}
	for _, role := range roles {
		holders, threshold := k.Holders, k.Threshold
		switch role {
		case metadata.TARGETS:
			holders, threshold = []crypto.PublicKey{k.Targets}, 1
		case metadata.SNAPSHOT, metadata.TIMESTAMP:
			holders, threshold = []crypto.PublicKey{k.Online}, 1
		}
		root.Signed.Roles[role].Threshold = threshold
		for _, key := range holders {
			if err := addKey(&root.Signed, role, key); err != nil {
				return nil, fmt.Errorf("root: %s: %w", role, err)
			}
		}
	}
	return encodeRoot(root)
}

// RootChange is how a version differs from the one before it. Zero values change nothing.
type RootChange struct {
	Add             []crypto.PublicKey // holders
	Remove          []string           // key IDs of holders
	Threshold       int
	Targets, Online crypto.PublicKey // replace all keys of the role
	Expires         time.Time        // required
}

// NextRoot returns the version after previous, changed, without signatures. It counts when the threshold of previous and its own have
// signed it.
func NextRoot(previous []byte, c RootChange) ([]byte, error) {
	if _, err := readRoot(previous); err != nil {
		return nil, err
	}
	root, err := nextRoot(previous, c.Expires.UTC().Truncate(time.Second))
	if err != nil {
		return nil, err
	}
	root.Signatures = []metadata.Signature{}
	for _, id := range c.Remove {
		if err := root.Signed.RevokeKey(id, metadata.ROOT); err != nil {
			return nil, fmt.Errorf("removing holder %s: %w", id, err)
		}
	}
	for _, key := range c.Add {
		if err := addKey(&root.Signed, metadata.ROOT, key); err != nil {
			return nil, fmt.Errorf("adding a holder: %w", err)
		}
	}
	if c.Threshold != 0 {
		root.Signed.Roles[metadata.ROOT].Threshold = c.Threshold
	}
	for _, replaced := range []struct {
		role string
		key  crypto.PublicKey
	}{{metadata.TARGETS, c.Targets}, {metadata.SNAPSHOT, c.Online}, {metadata.TIMESTAMP, c.Online}} {
		if replaced.key == nil {
			continue
		}
		for _, id := range slices.Clone(root.Signed.Roles[replaced.role].KeyIDs) {
			if err := root.Signed.RevokeKey(id, replaced.role); err != nil {
				return nil, err
			}
		}
		if err := addKey(&root.Signed, replaced.role, replaced.key); err != nil {
			return nil, fmt.Errorf("%s: %w", replaced.role, err)
		}
		root.Signed.Roles[replaced.role].Threshold = 1
	}
	return encodeRoot(root)
}

func addKey(root *metadata.RootType, role string, pub crypto.PublicKey) error {
	key, err := newTUFKey(publicHalf{pub})
	if err != nil {
		return err
	}
	if slices.Contains(root.Roles[role].KeyIDs, key.id) {
		return fmt.Errorf("key %s comes twice", key.id)
	}
	return root.AddKey(key.pub, role)
}

// publicHalf stands where a key is named and does not sign.
type publicHalf struct{ key crypto.PublicKey }

func (p publicHalf) Public() crypto.PublicKey { return p.key }

func (publicHalf) Sign(_ io.Reader, _ []byte, _ crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the private half is not here")
}

// encodeRoot returns root as the bytes that holders exchange, once it makes sense by itself.
func encodeRoot(root *metadata.Metadata[metadata.RootType]) ([]byte, error) {
	text, err := root.ToBytes(true)
	if err != nil {
		return nil, err
	}
	_, err = readRoot(text)
	return text, err
}

// readRoot reads root metadata and holds it to what every version must have; signatures are another matter.
func readRoot(text []byte) (*metadata.Metadata[metadata.RootType], error) {
	if len(text) > metadataLimits[metadata.ROOT] {
		return nil, fmt.Errorf("root: over %d bytes", metadataLimits[metadata.ROOT])
	}
	root, err := metadata.Root().FromBytes(text)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	for _, role := range roles {
		r := root.Signed.Roles[role]
		if r == nil || r.Threshold < 1 || r.Threshold > len(r.KeyIDs) || len(r.KeyIDs) > maxKeys {
			return nil, fmt.Errorf("root %d: the keys and the threshold of %s make no sense", root.Signed.Version, role)
		}
	}
	return root, nil
}

// SignRoot adds the signature of key, a holder's in root or in previous, the version before it (nil for version 1). A signature of
// this key that is there is replaced.
func SignRoot(text, previous []byte, key crypto.Signer) ([]byte, error) {
	root, before, err := readRoots(text, previous)
	if err != nil {
		return nil, err
	}
	k, err := newTUFKey(key)
	if err != nil {
		return nil, err
	}
	holds := func(r *metadata.Metadata[metadata.RootType]) bool {
		return r != nil && slices.Contains(r.Signed.Roles[metadata.ROOT].KeyIDs, k.id)
	}
	if !holds(root) && !holds(before) {
		return nil, fmt.Errorf("root %d: key %s is not one of its holders", root.Signed.Version, k.id)
	}
	root.Signatures = slices.DeleteFunc(root.Signatures, func(s metadata.Signature) bool { return s.KeyID == k.id })
	if _, err := root.Sign(k); err != nil {
		return nil, fmt.Errorf("signing root %d: %w", root.Signed.Version, err)
	}
	return root.ToBytes(true)
}

// RootStatus is how far the signing of a root has come.
type RootStatus struct {
	Version int64
	Expires time.Time
	Holders []HolderStatus
	// Missing says whose signatures are too few, one sentence each; empty when clients take the root.
	Missing []string
}

// HolderStatus is one holder's key.
type HolderStatus struct {
	KeyID  string
	Signed bool   // with a signature that verifies
	Note   string // "new" or "leaves", against the version before
}

// InspectRoot reads a root and the version before it, nil for version 1.
func InspectRoot(text, previous []byte) (RootStatus, error) {
	root, before, err := readRoots(text, previous)
	if err != nil {
		return RootStatus{}, err
	}
	status := RootStatus{Version: root.Signed.Version, Expires: root.Signed.Expires}
	ids := slices.Clone(root.Signed.Roles[metadata.ROOT].KeyIDs)
	if before != nil {
		for _, id := range before.Signed.Roles[metadata.ROOT].KeyIDs {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	for _, id := range ids {
		h := HolderStatus{KeyID: id}
		in := slices.Contains(root.Signed.Roles[metadata.ROOT].KeyIDs, id)
		switch {
		case before == nil:
		case !in:
			h.Note = "leaves"
		case !slices.Contains(before.Signed.Roles[metadata.ROOT].KeyIDs, id):
			h.Note = "new"
		}
		keys := root
		if !in {
			keys = before
		}
		h.Signed = signedByKey(root, keys, id)
		status.Holders = append(status.Holders, h)
	}
	for _, by := range []*metadata.Metadata[metadata.RootType]{root, before} {
		if by == nil {
			continue
		}
		have, role := 0, by.Signed.Roles[metadata.ROOT]
		for _, id := range role.KeyIDs {
			if signedByKey(root, by, id) {
				have++
			}
		}
		if have < role.Threshold {
			status.Missing = append(status.Missing, fmt.Sprintf("%d of the %d holders in version %d have signed, %d must", have, len(role.KeyIDs), by.Signed.Version, role.Threshold))
		}
	}
	return status, nil
}

// signedByKey says whether root has a good signature of the key id of keys: by go-tuf, asked for that key alone.
func signedByKey(root, keys *metadata.Metadata[metadata.RootType], id string) bool {
	alone := metadata.Root()
	alone.Signed.Keys = map[string]*metadata.Key{id: keys.Signed.Keys[id]}
	alone.Signed.Roles[metadata.ROOT] = &metadata.Role{KeyIDs: []string{id}, Threshold: 1}
	return alone.VerifyDelegate(metadata.ROOT, root) == nil
}

// readRoots reads a root and the one before it, which must be that.
func readRoots(text, previous []byte) (root, before *metadata.Metadata[metadata.RootType], err error) {
	if root, err = readRoot(text); err != nil {
		return nil, nil, err
	}
	if previous == nil {
		if root.Signed.Version != 1 {
			return nil, nil, fmt.Errorf("root %d: the version before it is needed, whose holders sign it too", root.Signed.Version)
		}
		return root, nil, nil
	}
	if before, err = readRoot(previous); err != nil {
		return nil, nil, err
	}
	if root.Signed.Version != before.Signed.Version+1 {
		return nil, nil, fmt.Errorf("root %d does not follow root %d", root.Signed.Version, before.Signed.Version)
	}
	return root, before, nil
}

// newRoots reads the versions of SignedRoots beyond the published one, verified as a client does, and the last of them; nil when
// there is none.
func (p *Publisher) newRoots() ([]file, *metadata.Metadata[metadata.RootType], error) {
	var trusted *trustedmetadata.TrustedMetadata
	var err error
	version := int64(0)
	if p.repo.root != nil {
		version = p.repo.root.Signed.Version
		if trusted, err = trustedmetadata.New(p.repo.rootBytes); err != nil {
			return nil, nil, err
		}
	}
	var files []file
	for version < maxRootVersion {
		version++
		name := versioned(metadata.ROOT, version)
		text, err := limit.ReadFile(filepath.Join(p.opts.SignedRoots, name), int64(metadataLimits[metadata.ROOT]))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		if trusted == nil {
			trusted, err = trustedmetadata.New(text)
		} else {
			_, err = trusted.UpdateRoot(text)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", filepath.Join(p.opts.SignedRoots, name), err)
		}
		files = append(files, file{name, bytes.Clone(text), 0o644})
	}
	if len(files) == 0 {
		return nil, nil, nil
	}
	return files, trusted.Root, nil
}

// sameRoot refuses a directory whose file of the published version is another root: it belongs to another repository.
func (p *Publisher) sameRoot() error {
	path := filepath.Join(p.opts.SignedRoots, versioned(metadata.ROOT, p.repo.root.Signed.Version))
	text, err := limit.ReadFile(path, int64(metadataLimits[metadata.ROOT]))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	root, err := readRoot(text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	here, err := json.Marshal(root.Signed)
	if err != nil {
		return err
	}
	published, err := json.Marshal(p.repo.root.Signed)
	if err != nil {
		return err
	}
	if !bytes.Equal(here, published) {
		return fmt.Errorf("%s is not the root that is published under this version: it is another root of trust", path)
	}
	return nil
}

// adopt publishes the roots that were signed elsewhere since. Where they name other keys, everything is signed by old and new ones
// first, as far as the old are still here, so that no client finds a root without metadata that verifies under it.
func (p *Publisher) adopt() error {
	if p.opts.SignedRoots == "" || p.repo.timestamp == nil {
		return nil // the first publication reads them by itself
	}
	if err := p.sameRoot(); err != nil {
		return err
	}
	files, root, err := p.newRoots()
	if err != nil || files == nil {
		return err
	}
	ring, err := openKeyring(p.opts.KeysDir) // the new keys came with the root
	if err != nil {
		return err
	}
	p.ring = ring
	due := map[string]bool{}
	both := true
	for role, published := range map[string]any{metadata.TARGETS: p.repo.targets, metadata.SNAPSHOT: p.repo.snapshot, metadata.TIMESTAMP: p.repo.timestamp} {
		if root.VerifyDelegate(role, published) == nil {
			continue
		}
		due[role] = true
	}
	signed := map[string]bool{metadata.TARGETS: due[metadata.TARGETS]} // each is named by the next
	signed[metadata.SNAPSHOT] = due[metadata.SNAPSHOT] || signed[metadata.TARGETS]
	signed[metadata.TIMESTAMP] = due[metadata.TIMESTAMP] || signed[metadata.SNAPSHOT]
	for role, sign := range signed {
		if !sign {
			continue
		}
		if !p.ring.can(root.Signed, role) {
			return fmt.Errorf("root %d is not adopted: %s does not hold the keys that sign %s under it", root.Signed.Version, p.opts.KeysDir, role)
		}
		both = both && p.ring.can(p.repo.root.Signed, role)
	}
	next := &publication{signedRoots: files}
	if len(due) > 0 && both {
		first := &publication{}
		if err := p.buildUnder(first, nil, due, p.repo.root.Signed, root.Signed); err != nil {
			return err
		}
		if err := p.commit(first); err != nil {
			return err
		}
	} else if len(due) > 0 {
		if err := p.buildUnder(next, nil, due, root.Signed); err != nil {
			return err
		}
	}
	return p.commit(next)
}
