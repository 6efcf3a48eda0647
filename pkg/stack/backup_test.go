package stack_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/stack"
)

// entryOf is a Rekor v1 submission that nobody made before.
func entryOf(t testing.TB, n int) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(fmt.Appendf(nil, "artifact %d", n))
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`{"kind":"hashedrekord","apiVersion":"0.0.1","spec":{"data":{"hash":{"algorithm":"sha256","value":"%x"}},"signature":{"content":%q,"publicKey":{"content":%q}}}}`,
		digest, b64(sig), b64(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})))
}

// v1Entry is what a client keeps of its entry.
type v1Entry struct {
	Body           string `json:"body"`
	IntegratedTime int64  `json:"integratedTime"`
	LogIndex       uint64 `json:"logIndex"`
	Verification   struct {
		InclusionProof struct {
			Checkpoint string   `json:"checkpoint"`
			Hashes     []string `json:"hashes"`
			RootHash   string   `json:"rootHash"`
			TreeSize   uint64   `json:"treeSize"`
		} `json:"inclusionProof"`
	} `json:"verification"`
}

func submit(t testing.TB, url, body string) v1Entry {
	t.Helper()
	resp, err := http.Post(url+"/api/v1/log/entries", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s: %s", resp.Status, raw)
	}
	return onlyEntry(t, raw)
}

func onlyEntry(t testing.TB, raw []byte) v1Entry {
	t.Helper()
	var answer map[string]v1Entry
	if err := json.Unmarshal(raw, &answer); err != nil || len(answer) != 1 {
		t.Fatalf("%v: %s", err, raw)
	}
	for _, e := range answer {
		return e
	}
	return v1Entry{}
}

func (e v1Entry) verify(t *testing.T) {
	t.Helper()
	body, err := base64.StdEncoding.DecodeString(e.Body)
	if err != nil {
		t.Fatal(err)
	}
	root, err := hex.DecodeString(e.Verification.InclusionProof.RootHash)
	if err != nil {
		t.Fatal(err)
	}
	var path [][]byte
	for _, h := range e.Verification.InclusionProof.Hashes {
		raw, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		path = append(path, raw)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, e.LogIndex, e.Verification.InclusionProof.TreeSize, rfc6962.DefaultHasher.HashLeaf(body), path, root); err != nil {
		t.Errorf("entry %d: %v", e.LogIndex, err)
	}
}

func storedLogs(dir, fence string) (stack.LogsOptions, error) {
	logs, _, _, err := stack.InstanceLogs(dir)
	logs.FenceDir = fence
	return logs, err
}

func backupOf(t *testing.T, dir, fence, to, onto string) (*stack.BackedUp, error) {
	t.Helper()
	logs, err := storedLogs(dir, fence)
	if err != nil {
		t.Fatal(err)
	}
	return stack.Backup(t.Context(), stack.BackupOptions{Root: dir, Logs: logs, KeyFile: filepath.Join(dir, "keys", "backup.key"), To: to, Onto: onto})
}

// fsckClean fails unless the logs in dir have no finding at all.
func fsckClean(t *testing.T, dir, fence string) map[string]uint64 {
	t.Helper()
	logs, err := storedLogs(dir, fence)
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]uint64{}
	checked, err := stack.CheckLogs(t.Context(), logs, nil, nil, func(label string, f log.Finding) { t.Errorf("%s: %s: %v", dir, label, f) })
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checked {
		sizes[c.Label] = c.Size
	}
	return sizes
}

func TestABackupUnderLoadIsRestoredElsewhereAndGoesOnWithItsFence(t *testing.T) {
	work := t.TempDir()
	at := func(name string) string { return filepath.Join(work, name) }
	s, stop := start(t, stack.Options{Dir: at("dir"), FenceDir: at("fence")})
	defer stop()
	url := s.URL()
	var mu sync.Mutex
	var kept []v1Entry
	added := make(chan struct{}, 1000)
	load := func(ctx context.Context) {
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for n := worker; ctx.Err() == nil; n += 8 {
					e := submit(t, url, entryOf(t, n))
					mu.Lock()
					kept = append(kept, e)
					mu.Unlock()
					select {
					case added <- struct{}{}:
					default:
					}
				}
			})
		}
		wg.Wait()
	}
	ctx, cancel := context.WithCancel(t.Context())
	loaded := make(chan struct{})
	go func() { load(ctx); close(loaded) }()
	var last *stack.BackedUp
	var err error
	for i := range 4 {
		for range 150 { // there is something new
			<-added
		}
		onto := ""
		if i > 0 {
			onto = at(fmt.Sprintf("backup%d", i-1))
		}
		if last, err = backupOf(t, at("dir"), at("fence"), at(fmt.Sprintf("backup%d", i)), onto); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-loaded
	if last.Linked == 0 {
		t.Error("the last backup took nothing from the one before it")
	}
	fsckClean(t, at("dir"), at("fence"))
	stop()
	for i := range 4 { // each of them is whole
		if _, err := stack.Restore(t.Context(), at(fmt.Sprintf("backup%d", i)), last.Verifier, at(fmt.Sprintf("restored%d", i))); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(at(fmt.Sprintf("restored%d", i)), "fence")); !os.IsNotExist(err) {
			t.Error("the restore wrote a fence")
		}
	}
	// The log has signed more than these backups hold: none of them may go on.
	_, err = stack.Open(t.Context(), stack.Options{Dir: at("restored0"), FenceDir: at("fence"), Listen: "127.0.0.1:1", Issuer: stack.IssuerLoopback, Logger: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "but its key has signed") {
		t.Fatalf("a log behind its fence was opened: %v", err)
	}
	if _, err := stack.Adopt(t.Context(), stack.Options{Dir: at("restored0"), FenceDir: at("fence"), Logger: slog.New(slog.DiscardHandler)}, stack.Adoption{Label: "rekor1", Size: 1}); err == nil || !strings.Contains(err.Error(), "are lost with this tree") {
		t.Errorf("adopting it does not say what is lost: %v", err)
	}
	// A backup of the stopped instance holds everything, and goes on.
	if last, err = backupOf(t, at("dir"), at("fence"), at("final"), at("backup3")); err != nil {
		t.Fatal(err)
	}
	if _, err := stack.Restore(t.Context(), at("final"), last.Verifier, at("elsewhere")); err != nil {
		t.Fatal(err)
	}
	if sizes := fsckClean(t, at("elsewhere"), at("fence")); sizes["rekor1"] != uint64(len(kept)) {
		t.Errorf("%d entries were restored, %d were answered", sizes["rekor1"], len(kept))
	}
	s, stop = start(t, stack.Options{Dir: at("elsewhere"), FenceDir: at("fence")})
	defer stop()
	for _, e := range kept[:50] {
		resp, err := http.Get(fmt.Sprintf("%s/api/v1/log/entries?logIndex=%d", s.URL(), e.LogIndex))
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		again := onlyEntry(t, raw)
		again.verify(t)
		e.verify(t)
		if again.Body != e.Body || again.IntegratedTime != e.IntegratedTime {
			t.Errorf("entry %d came back as another, or with another time", e.LogIndex)
		}
	}
	submit(t, s.URL(), entryOf(t, -1)).verify(t)
}

// smallBackup is a backup of an instance with a few entries.
func smallBackup(t *testing.T) (work, verifier string) {
	t.Helper()
	work = t.TempDir()
	s, stop := start(t, stack.Options{Dir: filepath.Join(work, "dir"), FenceDir: filepath.Join(work, "fence")})
	for n := range 5 {
		submit(t, s.URL(), entryOf(t, n))
	}
	stop()
	done, err := backupOf(t, filepath.Join(work, "dir"), filepath.Join(work, "fence"), filepath.Join(work, "backup"), "")
	if err != nil {
		t.Fatal(err)
	}
	return work, done.Verifier
}

func TestABackupThatWasChangedIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	work, verifier := smallBackup(t)
	data := filepath.Join(work, "backup", "data")
	entries := filepath.Join(data, "log/rekor1/tiles/tile/entries/000.p/5")
	edit := func(path string, change func([]byte) []byte) func() error {
		return func() error {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, change(raw), 0o600)
		}
	}
	flip := func(raw []byte) []byte { raw[len(raw)/2] ^= 1; return raw }
	for _, tt := range []struct {
		name   string
		change func() error
		want   string
	}{
		{"a flipped bit", edit(entries, flip), "is not the file that was backed up"},
		{"a truncated file", edit(filepath.Join(data, "log/rekor1/entries.db"), func(raw []byte) []byte { return raw[:len(raw)-1] }), "is not the file that was backed up"},
		{"a missing file", func() error { return os.Remove(filepath.Join(data, "trust/inventory.jsonl")) }, "is missing"},
		{"a file more", edit(filepath.Join(data, "url"), func(raw []byte) []byte {
			os.WriteFile(filepath.Join(data, "extra"), raw, 0o600)
			return raw
		}), "is not in the manifest"},
		{"a symbolic link", func() error {
			target := filepath.Join(data, "url")
			if err := os.Rename(target, filepath.Join(work, "url")); err != nil {
				return err
			}
			return os.Symlink(filepath.Join(work, "url"), target)
		}, "is no regular file"},
		{"another manifest", edit(filepath.Join(work, "backup", "manifest.json"), func(raw []byte) []byte {
			return bytes.Replace(raw, []byte(`"size": 5`), []byte(`"size": 4`), 1)
		}), "is not the file that manifest.note signs"},
		{"a backup that was not finished", func() error { return os.Remove(filepath.Join(work, "backup", "manifest.note")) }, "not complete"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			untouched := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(untouched, os.DirFS(filepath.Join(work, "backup"))); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := os.RemoveAll(filepath.Join(work, "backup")); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(untouched, filepath.Join(work, "backup")); err != nil {
					t.Fatal(err)
				}
			}()
			if err := tt.change(); err != nil {
				t.Fatal(err)
			}
			target := filepath.Join(t.TempDir(), "target")
			if _, err := stack.Restore(t.Context(), filepath.Join(work, "backup"), verifier, target); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, err := os.Stat(target); !os.IsNotExist(err) {
				t.Error("something was written")
			}
		})
	}
	t.Run("another key", func(t *testing.T) {
		_, other := smallBackup(t)
		if _, err := stack.Restore(t.Context(), filepath.Join(work, "backup"), other, filepath.Join(work, "target")); err == nil {
			t.Error("a backup was restored under a key that did not sign it")
		}
	})
	t.Run("a directory with something in it", func(t *testing.T) {
		if _, err := stack.Restore(t.Context(), filepath.Join(work, "backup"), verifier, filepath.Join(work, "dir")); err == nil || !strings.Contains(err.Error(), "is not empty") {
			t.Errorf("got %v", err)
		}
	})
	if _, err := stack.Restore(t.Context(), filepath.Join(work, "backup"), verifier, filepath.Join(work, "well")); err != nil {
		t.Errorf("the untouched backup: %v", err)
	}
}

func TestWithoutKeysNoKeyIsInTheBackup(t *testing.T) {
	work, _ := smallBackup(t)
	logs, err := storedLogs(filepath.Join(work, "dir"), filepath.Join(work, "fence"))
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(work, "keyless")
	if _, err := stack.Backup(t.Context(), stack.BackupOptions{
		Root: filepath.Join(work, "dir"), Logs: logs, KeyFile: filepath.Join(work, "dir/keys/backup.key"), To: to, WithoutKeys: true,
	}); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(to, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte("PRIVATE")) {
			t.Errorf("%s holds a private key", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestKilled is the process that TestABackupOrRestoreThatIsKilledLeavesNothingThatCounts kills.
func TestKilled(t *testing.T) {
	args := strings.Split(os.Getenv("ATTESTRY_KILLED"), "\n")
	switch args[0] {
	case "backup":
		if _, err := backupOf(t, args[1], args[2], args[3], ""); err != nil {
			t.Fatal(err)
		}
	case "restore":
		if _, err := stack.Restore(t.Context(), args[1], args[2], args[3]); err != nil {
			t.Fatal(err)
		}
	default:
		t.Skip("runs inside another test")
	}
}

func TestABackupOrRestoreThatIsKilledLeavesNothingThatCounts(t *testing.T) {
	work, verifier := smallBackup(t)
	at := func(name string) string { return filepath.Join(work, name) }
	// killed runs a command until its directory holds so many files, then kills it.
	killed := func(files int, dir string, args ...string) (cut bool) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "ATTESTRY_KILLED="+strings.Join(args, "\n"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for {
			select {
			case err := <-ended:
				return err != nil
			default:
			}
			n := 0
			filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
				if err == nil && !entry.IsDir() {
					n++
				}
				return nil
			})
			if n >= files {
				cmd.Process.Kill()
				return <-ended != nil
			}
		}
	}
	cuts := 0
	for files := 1; files < 40; files += 6 {
		if killed(files, at("again.partial"), "backup", at("dir"), at("fence"), at("again")) {
			cuts++
			if _, err := os.Stat(at("again")); err == nil {
				// It was renamed already and so is complete.
				if _, err := stack.Restore(t.Context(), at("again"), verifier, at(fmt.Sprintf("checked%d", files))); err != nil {
					t.Errorf("a backup stands under its name and is not whole: %v", err)
				}
			}
		}
		if err := os.RemoveAll(at("again")); err != nil {
			t.Fatal(err)
		}
		target := at(fmt.Sprintf("cut%d", files))
		if !killed(files, target, "restore", at("backup"), verifier, target) {
			continue
		}
		cuts++
		if _, err := os.Stat(filepath.Join(target, "restore-unfinished")); err == nil {
			_, err := stack.Open(t.Context(), stack.Options{Dir: target, FenceDir: at("fence"), Listen: "127.0.0.1:1", Issuer: stack.IssuerLoopback, Logger: slog.New(slog.DiscardHandler)})
			if err == nil || !strings.Contains(err.Error(), "did not come to its end") {
				t.Errorf("half a restore was opened: %v", err)
			}
		} else if _, err := os.Stat(filepath.Join(target, "url")); err == nil {
			fsckClean(t, target, at("fence")) // it had come to its end
		} else if left, err := filepath.Glob(filepath.Join(target, "[a-z]*")); err != nil || len(left) > 0 {
			t.Errorf("before the mark stood, there were already %v", left)
		}
	}
	t.Logf("%d processes were killed at work", cuts)
	if cuts == 0 {
		t.Error("nothing was killed at work")
	}
	if _, err := backupOf(t, at("dir"), at("fence"), at("again"), at("backup")); err != nil {
		t.Errorf("after it was killed: %v", err)
	}
	if _, err := stack.Restore(t.Context(), at("again"), verifier, at("whole")); err != nil {
		t.Errorf("after it was killed: %v", err)
	}
	fsckClean(t, at("whole"), at("fence"))
}
