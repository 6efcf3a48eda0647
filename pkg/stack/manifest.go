package stack

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log"
)

// A backup is a directory:
//
//	manifest.json   what is in it: every file with size and SHA-256, every log with its signed checkpoint
//	manifest.note   a signed note (c2sp.org/signed-note) of the backup key over the manifest's SHA-256
//	data/           the files, under the paths that they have in the instance
const (
	manifestName   = "manifest.json"
	signatureName  = "manifest.note"
	dataName       = "data"
	manifestFormat = "attestry-backup/1"
	backupSigner   = "attestry-backup"
)

// Manifest is the content of manifest.json.
type Manifest struct {
	Format string        `json:"format"`
	Made   time.Time     `json:"made"`
	Logs   []BackedUpLog `json:"logs"`
	Files  []BackupFile  `json:"files"` // by path
}

// BackedUpLog is a log as the backup holds it: exactly the tree that its checkpoint signs, and the rows of its leaves.
type BackedUpLog struct {
	Label      string   `json:"label"`
	Kind       log.Kind `json:"kind"`
	Dir        string   `json:"dir"` // slash-separated, under data/
	Origin     string   `json:"origin"`
	Name       string   `json:"name"`      // of the checkpoint's signature line
	PublicKey  string   `json:"publicKey"` // PEM
	KeyID      string   `json:"keyID"`     // hex, names the key in the fence
	Size       uint64   `json:"size"`
	Root       string   `json:"root"`       // hex
	Checkpoint string   `json:"checkpoint"` // signed note; empty for a log that has not signed yet
}

// BackupFile is a file of the backup.
type BackupFile struct {
	Path   string `json:"path"` // slash-separated, under data/
	Mode   uint32 `json:"mode"` // permission bits
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // hex
}

// openBackupKey reads the key that signs manifests, or makes it. It is a key of its own: log keys sign trees and nothing
// else, TUF keys sign TUF metadata, and a server of logs alone has none of those.
func openBackupKey(path string) (note.Signer, string, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		secret, public, err := note.GenerateKey(rand.Reader, backupSigner)
		if err != nil {
			return nil, "", fmt.Errorf("making the backup key: %w", err)
		}
		raw = []byte(secret + "\n" + public + "\n")
		if err := writeSecret(path, raw); err != nil {
			return nil, "", fmt.Errorf("storing the backup key: %w", err)
		}
	} else if err != nil {
		return nil, "", fmt.Errorf("backup key: %w", err)
	}
	secret, public, ok := strings.Cut(strings.TrimSpace(string(raw)), "\n")
	if !ok {
		return nil, "", fmt.Errorf("backup key %s is not two lines", path)
	}
	s, err := note.NewSigner(secret)
	if err != nil {
		return nil, "", fmt.Errorf("backup key %s: %w", path, err)
	}
	if _, err := note.NewVerifier(public); err != nil {
		return nil, "", fmt.Errorf("backup key %s: %w", path, err)
	}
	return s, public, nil
}

// writeSecret creates the file at path, durably, for its owner alone.
func writeSecret(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // not over a key that another process made
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// write signs the manifest and stores both in dir, the signature last.
func (m *Manifest) write(dir string, key note.Signer) error {
	slices.SortFunc(m.Files, func(a, b BackupFile) int { return strings.Compare(a.Path, b.Path) })
	raw, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	signed, err := note.Sign(&note.Note{Text: manifestText(raw)}, key)
	if err != nil {
		return fmt.Errorf("signing the manifest: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, manifestName), raw, 0o644); err != nil {
		return fmt.Errorf("storing the manifest: %w", err)
	}
	return durable.WriteFile(filepath.Join(dir, signatureName), signed, 0o644)
}

// manifestText is what the backup key signs.
func manifestText(manifest []byte) string {
	return fmt.Sprintf("%s\n%x\n", manifestFormat, sha256.Sum256(manifest))
}

// readManifest returns the manifest of a backup that the key with this verifier string signed.
func readManifest(dir, verifier string) (*Manifest, error) {
	v, err := note.NewVerifier(strings.TrimSpace(verifier))
	if err != nil {
		return nil, fmt.Errorf("public backup key: %w", err)
	}
	signed, err := os.ReadFile(filepath.Join(dir, signatureName))
	if err != nil {
		return nil, fmt.Errorf("the backup is not complete: %w", err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, fmt.Errorf("the backup is not complete: %w", err)
	}
	opened, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", signatureName, err)
	}
	if opened.Text != manifestText(raw) {
		return nil, fmt.Errorf("%s is not the file that %s signs", manifestName, signatureName)
	}
	m := &Manifest{}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(m); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestName, err)
	}
	return m, m.validate()
}

func (m *Manifest) validate() error {
	if m.Format != manifestFormat {
		return fmt.Errorf("the backup has format %q, this program knows %q", m.Format, manifestFormat)
	}
	for i, f := range m.Files {
		if !filepath.IsLocal(filepath.FromSlash(f.Path)) || i > 0 && m.Files[i-1].Path >= f.Path {
			return fmt.Errorf("the manifest names %q, which is no path under the backup or out of order", f.Path)
		}
	}
	for _, l := range m.Logs {
		if !filepath.IsLocal(filepath.FromSlash(l.Dir)) {
			return fmt.Errorf("the manifest has log %s in %q, which is no path under the backup", l.Label, l.Dir)
		}
	}
	return nil
}

// verifyFiles compares what is in the backup with its manifest: nothing missing, nothing changed, nothing more.
func (m *Manifest) verifyFiles(dir string) error {
	want := map[string]BackupFile{}
	for _, f := range m.Files {
		want[f.Path] = f
	}
	data := filepath.Join(dir, dataName)
	var errs []error
	err := filepath.WalkDir(data, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(data, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		f, ok := want[name]
		delete(want, name)
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("%s is not in the manifest", name))
		case !entry.Type().IsRegular():
			errs = append(errs, fmt.Errorf("%s is no regular file", name))
		default:
			errs = append(errs, f.compare(path))
		}
		return nil
	})
	for name := range want {
		errs = append(errs, fmt.Errorf("%s is missing", name))
	}
	return errors.Join(append(errs, err)...)
}

func (f BackupFile) compare(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return f.copyTo(io.Discard, file)
}

// copyTo copies a file and fails when it is not the one in the manifest.
func (f BackupFile) copyTo(w io.Writer, r io.Reader) error {
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), r)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	if n != f.Bytes || hex.EncodeToString(sum.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("%s is not the file that was backed up: it has %d bytes, the manifest %d, or another SHA-256", f.Path, n, f.Bytes)
	}
	return nil
}

// publicKey is a log key of which only the public half is at hand. It verifies; it cannot sign.
type publicKey struct{ crypto.PublicKey }

func (p publicKey) Public() crypto.PublicKey { return p.PublicKey }

func (publicKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("this is a public key")
}

// tree verifies the log's checkpoint under its key, and that the key is the one in the fence.
func (l BackedUpLog) tree() (log.SignedTree, error) {
	block, _ := pem.Decode([]byte(l.PublicKey))
	if block == nil {
		return log.SignedTree{}, errors.New("its public key is not PEM")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return log.SignedTree{}, fmt.Errorf("its public key: %w", err)
	}
	key := publicKey{pub}
	if id, err := log.IDOf(key); err != nil || id.String() != l.KeyID {
		return log.SignedTree{}, fmt.Errorf("its key is not %s", l.KeyID)
	}
	if l.Checkpoint == "" {
		if l.Size != 0 {
			return log.SignedTree{}, errors.New("it has entries and no checkpoint")
		}
		root, err := hex.DecodeString(l.Root)
		if err != nil || len(root) != 32 {
			return log.SignedTree{}, fmt.Errorf("%q is no root", l.Root)
		}
		return log.SignedTree{Root: [32]byte(root), By: manifestName}, nil
	}
	tree, err := log.ParseCheckpoint(l.Kind, l.Origin, l.Name, key, []byte(l.Checkpoint))
	if err != nil {
		return tree, err
	}
	if tree.Size != l.Size || fmt.Sprintf("%x", tree.Root) != l.Root {
		return tree, errors.New("its checkpoint is of another tree than the manifest says")
	}
	tree.By = manifestName
	return tree, nil
}

func publicPEM(key crypto.Signer) (string, error) {
	raw, err := signer.PublicPEM(key.Public())
	return string(raw), err
}
