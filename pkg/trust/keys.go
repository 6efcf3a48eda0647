package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/attestry/attestry/internal/signer"
)

// Names in the keys directory. Holder keys sign root and targets, the online key snapshot
// and timestamp. The next online key exists only while a rotation is under way.
const (
	holderKeyFormat = "root-%d.pem"
	onlineKeyName   = "online.pem"
	nextOnlineName  = "online-next.pem"
	maxKeys         = 64
)

// tufKey is a private key with its place in TUF metadata. TUF keys are ECDSA P-256, which
// every client reads, the legacy ones too.
type tufKey struct {
	crypto.Signer
	id  string // hex SHA-256 of the canonical JSON of pub
	pub *metadata.Key
}

func newTUFKey(s crypto.Signer) (*tufKey, error) {
	if k, ok := s.Public().(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("a TUF key must be ECDSA P-256, not %T", s.Public())
	}
	// keytype "ecdsa", scheme "ecdsa-sha2-nistp256", public PEM with its final newline.
	pub, err := metadata.KeyFromPublicKey(s.Public())
	if err != nil {
		return nil, err
	}
	id, err := pub.ID()
	if err != nil {
		return nil, err
	}
	return &tufKey{Signer: s, id: id, pub: pub}, nil
}

// SignMessage returns an ASN.1 DER ECDSA signature over the SHA-256 of message; with
// PublicKey it makes tufKey the signer that go-tuf expects.
func (k *tufKey) SignMessage(message io.Reader, _ ...signature.SignOption) ([]byte, error) {
	h := sha256.New()
	if _, err := io.Copy(h, message); err != nil {
		return nil, err
	}
	return k.Signer.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
}

func (k *tufKey) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return k.Signer.Public(), nil
}

// keyring is the private keys that this publisher holds, by key ID.
type keyring struct {
	dir  string
	byID map[string]*tufKey
	next *tufKey // of a rotation under way, also in byID
}

// openKeyring reads every PEM file in dir. Which role a key signs for is root metadata's
// word, so a holder's key may have any name.
func openKeyring(dir string) (*keyring, error) {
	ring := &keyring{dir: dir, byID: map[string]*tufKey{}}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return ring, nil
	}
	if err != nil {
		return nil, fmt.Errorf("TUF keys: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || strings.HasPrefix(name, ".") || filepath.Ext(name) != ".pem" {
			continue
		}
		if len(ring.byID) == maxKeys {
			return nil, fmt.Errorf("TUF keys: over %d in %s", maxKeys, dir)
		}
		key, err := ring.open(name)
		if err != nil {
			return nil, err
		}
		if name == nextOnlineName {
			ring.next = key
		}
	}
	return ring, nil
}

func (ring *keyring) open(name string) (*tufKey, error) {
	path := filepath.Join(ring.dir, name)
	s, err := signer.Open("file:"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("TUF keys: %w", err)
	}
	return ring.keep(path, s)
}

// create makes and stores the key name, or opens it when it is there.
func (ring *keyring) create(name string) (*tufKey, error) {
	path := filepath.Join(ring.dir, name)
	s, err := signer.OpenOrCreate(path, signer.P256)
	if err != nil {
		return nil, fmt.Errorf("TUF keys: %w", err)
	}
	return ring.keep(path, s)
}

func (ring *keyring) keep(path string, s crypto.Signer) (*tufKey, error) {
	key, err := newTUFKey(s)
	if err != nil {
		return nil, fmt.Errorf("TUF key %s: %w", path, err)
	}
	ring.byID[key.id] = key
	return key, nil
}

// roots returns holders keys for the first root, and the online key, making what is missing
// when create says so.
func (ring *keyring) roots(holders int, create bool) (holderKeys []*tufKey, online *tufKey, err error) {
	get := ring.open
	if create {
		get = ring.create
		if err := os.MkdirAll(ring.dir, 0o700); err != nil {
			return nil, nil, fmt.Errorf("TUF keys: %w", err)
		}
	}
	for i := range holders {
		key, err := get(fmt.Sprintf(holderKeyFormat, i+1))
		if err != nil {
			return nil, nil, err
		}
		if slices.ContainsFunc(holderKeys, func(k *tufKey) bool { return k.id == key.id }) {
			return nil, nil, fmt.Errorf("TUF keys: two holders in %s have the same key", ring.dir)
		}
		holderKeys = append(holderKeys, key)
	}
	online, err = get(onlineKeyName)
	return holderKeys, online, err
}

// held returns the keys of role in root whose private half is here.
func (ring *keyring) held(root metadata.RootType, role string) []*tufKey {
	var keys []*tufKey
	for _, id := range root.Roles[role].KeyIDs {
		if key := ring.byID[id]; key != nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// can says whether the keys here meet the threshold of role.
func (ring *keyring) can(root metadata.RootType, role string) bool {
	return len(ring.held(root, role)) >= root.Roles[role].Threshold
}

// sign replaces the signatures of meta by those of every held key of role. Under a threshold
// it fails and says how many are missing.
func sign[T metadata.Roles](meta *metadata.Metadata[T], role string, ring *keyring, roots ...metadata.RootType) error {
	meta.Signatures = []metadata.Signature{}
	done := map[string]bool{}
	for _, root := range roots {
		keys := ring.held(root, role)
		if want := root.Roles[role].Threshold; len(keys) < want {
			return fmt.Errorf("signing %s needs %d keys, %s has %d of them", role, want, ring.dir, len(keys))
		}
		for _, key := range keys {
			if done[key.id] {
				continue
			}
			done[key.id] = true
			if _, err := meta.Sign(key); err != nil {
				return fmt.Errorf("signing %s: %w", role, err)
			}
		}
	}
	return nil
}
