package ct

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/fault"
)

// issuerStore keeps the certificates of logged chains: as files named by the lower-case hex
// SHA-256 of their DER, or in the database that replicas share. A log has few issuers, so the ones in use stay in memory too.
type issuerStore struct {
	dir   string
	blobs *database.Blobs // in place of dir; nil for dir

	mu     sync.Mutex // guards cached and writes to dir
	cached map[[32]byte][]byte
}

// maxCachedIssuers bounds the memory of the cache, not the number of issuers.
const maxCachedIssuers = 1024

// storeTimeout bounds one call of the database.
const storeTimeout = 10 * time.Second

func openIssuerStore(dir string, blobs *database.Blobs) (*issuerStore, error) {
	if blobs != nil {
		return &issuerStore{blobs: blobs, cached: make(map[[32]byte][]byte)}, nil
	}
	if dir == "" {
		return nil, errors.New("ct: no issuer directory given")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("creating the issuer directory: %w", err)
	}
	if err := durable.RemoveTemps(dir); err != nil { // a crash between create and rename
		return nil, fmt.Errorf("cleaning the issuer directory: %w", err)
	}
	// A file that is visible now was synced before its rename, but its name may not have
	// been: after this, what can be read is durable.
	if err := durable.SyncDir(dir); err != nil {
		return nil, err
	}
	return &issuerStore{dir: dir, cached: make(map[[32]byte][]byte)}, nil
}

// put returns once the certificate is durable, and its fingerprint.
func (s *issuerStore) put(der []byte) ([32]byte, error) {
	fingerprint := sha256.Sum256(der)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.cached[fingerprint]; ok {
		return fingerprint, nil
	}
	if s.blobs != nil {
		ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
		defer cancel()
		if _, err := s.blobs.Put(ctx, der); err != nil {
			return fingerprint, fmt.Errorf("storing issuer certificate: %w", err)
		}
		s.remember(fingerprint, append([]byte(nil), der...))
		return fingerprint, nil
	}
	path := s.path(fingerprint)
	if stored, err := os.ReadFile(path); err == nil && sha256.Sum256(stored) == fingerprint {
		s.remember(fingerprint, stored)
		return fingerprint, nil
	}
	if err := durable.WriteFile(path, der, 0o644); err != nil {
		return fingerprint, fmt.Errorf("storing issuer certificate: %w", err)
	}
	s.remember(fingerprint, append([]byte(nil), der...))
	return fingerprint, nil
}

// get returns the DER of a stored certificate, or fault.NotFound.
func (s *issuerStore) get(fingerprint [32]byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if der, ok := s.cached[fingerprint]; ok {
		return der, nil
	}
	der, err := s.read(fingerprint)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "issuer_unknown", nil, "there is no issuer certificate %x", fingerprint)
	}
	if err != nil {
		return nil, fmt.Errorf("reading issuer certificate: %w", err)
	}
	if sha256.Sum256(der) != fingerprint {
		return nil, fmt.Errorf("issuer certificate %s does not have the hash in its name: restore it from a backup", hex.EncodeToString(fingerprint[:]))
	}
	s.remember(fingerprint, der)
	return der, nil
}

// read returns fs.ErrNotExist for what is not stored.
func (s *issuerStore) read(fingerprint [32]byte) ([]byte, error) {
	if s.blobs == nil {
		return os.ReadFile(s.path(fingerprint))
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	der, ok, err := s.blobs.Get(ctx, fingerprint)
	if err == nil && !ok {
		err = fs.ErrNotExist
	}
	return der, err
}

func (s *issuerStore) remember(fingerprint [32]byte, der []byte) {
	if len(s.cached) >= maxCachedIssuers {
		clear(s.cached)
	}
	s.cached[fingerprint] = der
}

func (s *issuerStore) path(fingerprint [32]byte) string {
	return filepath.Join(s.dir, hex.EncodeToString(fingerprint[:]))
}

// parseFingerprint reads the file name form: 64 lower-case hex digits.
func parseFingerprint(name string) (fingerprint [32]byte, ok bool) {
	if len(name) != 64 || strings.ToLower(name) != name {
		return fingerprint, false
	}
	_, err := hex.Decode(fingerprint[:], []byte(name))
	return fingerprint, err == nil
}
