package rekor1

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

	"github.com/attestry/attestry/internal/database"
	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry"
)

// DefaultMaxAttestation is the size of an attestation that is kept unless Options.MaxAttestation says otherwise, upstream's.
const DefaultMaxAttestation = 100 << 10

// Attestations keep what belongs to entries without being in the tree: the payloads of intoto
// entries, the messages of cose ones. A key is "sha256:" and the SHA-256 of the data in hex.
type Attestations interface {
	// Put stores data, durably on return. The same again changes nothing.
	Put(ctx context.Context, key string, data []byte) error
	// Get returns the data, or fault.NotFound.
	Get(ctx context.Context, key string) ([]byte, error)
}

// attestation is how an entry's answer carries it; reads only.
type attestation struct {
	Data []byte `json:"data"`
}

// keep stores the attestation of an entry that is about to be added: one without its entry harms
// nobody, an entry whose attestation was lost cannot be helped. What is over the limit is not kept,
// and nobody is told, as upstream does.
func (h *Handler) keep(ctx context.Context, e entry.Entry) error {
	if h.attestations == nil || len(e.Attestation) == 0 || len(e.Attestation) > h.maxAttestation {
		return nil
	}
	if err := h.attestations.Put(ctx, e.AttestationKey, e.Attestation); err != nil {
		return fmt.Errorf("storing attestation %s: %w", e.AttestationKey, err)
	}
	return nil
}

// attach adds the attestations that are stored for entries. The entries are provable without them,
// so one that cannot be read is left out.
func (h *Handler) attach(ctx context.Context, answers ...map[string]logEntry) {
	if h.attestations == nil {
		return
	}
	for _, answer := range answers {
		for id, e := range answer {
			data, err := h.attestationOf(ctx, e.Body)
			switch {
			case err != nil:
				h.logger.ErrorContext(ctx, "rekor v1 attestation not read", "entryID", id, "err", err)
			case data != nil:
				e.Attestation = &attestation{data}
				answer[id] = e
			}
		}
	}
}

// attestationOf returns nil when none is stored.
func (h *Handler) attestationOf(ctx context.Context, body []byte) ([]byte, error) {
	key, err := entry.AttestationKey(body)
	if errors.Is(err, entry.ErrUnknownKind) || err == nil && key == "" {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := h.attestations.Get(ctx, key)
	if fault.KindOf(err) == fault.NotFound {
		return nil, nil
	}
	return data, err
}

// Directory keeps attestations in files, one process at a time:
//
//	ab/abcd…  the attestation whose SHA-256 is abcd… in hex
//	tmp/      files being written
type Directory struct{ path string }

// OpenDirectory makes the directory if it is not there, and clears away what a crash left in tmp.
func OpenDirectory(path string) (*Directory, error) {
	tmp := filepath.Join(path, "tmp")
	if err := os.RemoveAll(tmp); err != nil {
		return nil, fmt.Errorf("clearing attestations: %w", err)
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return nil, fmt.Errorf("making attestation directory: %w", err)
	}
	for i := range 256 {
		if err := os.Mkdir(filepath.Join(path, fmt.Sprintf("%02x", i)), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("making attestation directory: %w", err)
		}
	}
	if err := errors.Join(durable.SyncDir(path), durable.SyncDir(filepath.Dir(path))); err != nil {
		return nil, err
	}
	return &Directory{path}, nil
}

// file returns where the attestation with this key is.
func (d *Directory) file(key string) (string, error) {
	sum, err := parseAttestationKey(key)
	if err != nil {
		return "", err
	}
	digest := hex.EncodeToString(sum[:])
	return filepath.Join(d.path, digest[:2], digest), nil
}

func parseAttestationKey(key string) (sum [32]byte, err error) {
	digest, ok := strings.CutPrefix(key, "sha256:")
	raw, err := hex.DecodeString(digest)
	if !ok || err != nil || len(raw) != sha256.Size || hex.EncodeToString(raw) != digest {
		return sum, fault.New(fault.Invalid, "bad_attestation_key", err, "attestation key %q is not sha256:<64 hex digits>", key)
	}
	return [32]byte(raw), nil
}

// Put implements Attestations.
func (d *Directory) Put(ctx context.Context, key string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := d.file(key)
	if err != nil {
		return err
	}
	if !isOf(key, data) {
		return fmt.Errorf("attestation %s has other content", key)
	}
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		if err := d.write(file, data); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(file)) // also where a crash may have come before it
}

func (d *Directory) write(file string, data []byte) error {
	f, err := os.CreateTemp(filepath.Join(d.path, "tmp"), "")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name()) // the next start does it else
	}
	return err
}

// Get implements Attestations. Content that is not of the key is an error.
func (d *Directory) Get(ctx context.Context, key string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	file, err := d.file(key)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "attestation_unknown", nil, "no attestation %s", key)
	}
	if err != nil {
		return nil, err
	}
	if !isOf(key, data) {
		return nil, fmt.Errorf("attestation %s is damaged on disk", key)
	}
	return data, nil
}

func isOf(key string, data []byte) bool {
	sum := sha256.Sum256(data)
	return key == "sha256:"+hex.EncodeToString(sum[:])
}

// SharedAttestations keeps attestations in a database, for replicas of a log.
type SharedAttestations struct{ Blobs *database.Blobs }

// Put implements Attestations.
func (s SharedAttestations) Put(ctx context.Context, key string, data []byte) error {
	want, err := parseAttestationKey(key)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); sum != want {
		return fmt.Errorf("attestation %s has SHA-256 %x", key, sum)
	}
	_, err = s.Blobs.Put(ctx, data)
	return err
}

// Get implements Attestations.
func (s SharedAttestations) Get(ctx context.Context, key string) ([]byte, error) {
	sum, err := parseAttestationKey(key)
	if err != nil {
		return nil, err
	}
	data, ok, err := s.Blobs.Get(ctx, sum)
	if err == nil && !ok {
		err = fault.New(fault.NotFound, "attestation_unknown", nil, "there is no attestation %s", key)
	}
	return data, err
}
