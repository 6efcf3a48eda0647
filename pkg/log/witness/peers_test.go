package witness

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	_ "modernc.org/sqlite"
)

// noteSigner gives a test log's key to Tessera.
type noteSigner struct{ l *testLog }

func (s noteSigner) Name() string    { return s.l.origin }
func (s noteSigner) KeyHash() uint32 { return s.l.vkey().Hash() }
func (s noteSigner) Sign(text []byte) ([]byte, error) {
	_, sigs, err := parseNote(s.l.signed(string(text)))
	if err != nil {
		return nil, err
	}
	return sigs[0].blob, nil
}

// Tessera's own log publishes nothing before our witnesses have cosigned it, over two starts, through its own
// witness client, which reads the same policy.
func TestTesserasWitnessClientIsServed(t *testing.T) {
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 0, "")
	a, b := serve(t, 'a', l), serve(t, 'b', l)
	dir := t.TempDir()
	policy := fmt.Sprintf("witness a %s %s\nwitness b %s %s\ngroup g all a b\nquorum g\n", a.server.Key(), a.url, b.server.Key(), b.url)
	p, err := ParsePolicy(policy)
	if err != nil {
		t.Fatal(err)
	}
	group, err := tessera.NewWitnessGroupFromPolicy([]byte(policy))
	if err != nil {
		t.Fatal(err)
	}
	const entries = 40
	for start := range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		driver, err := posix.New(ctx, posix.Config{Path: dir})
		if err != nil {
			t.Fatal(err)
		}
		appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
			WithCheckpointSigner(noteSigner{l}).
			WithCheckpointInterval(100*time.Millisecond).
			WithBatching(7, time.Millisecond).
			WithWitnesses(group, &tessera.WitnessOptions{Timeout: 10 * time.Second}))
		if err != nil {
			t.Fatal(err)
		}
		for i := range entries {
			if _, err := appender.Add(ctx, tessera.NewEntry(fmt.Appendf(nil, "entry %d of start %d", i, start)))(); err != nil {
				t.Fatal(err)
			}
		}
		if err := shutdown(ctx); err != nil { // returns when all is published
			t.Fatal(err)
		}
		published, err := reader.ReadCheckpoint(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c, sigs, err := parseNote(published)
		if err != nil {
			t.Fatal(err)
		}
		if c.size != uint64(entries*(start+1)) || len(sigs) != 3 {
			t.Errorf("published\n%s", published)
		}
		if !p.Satisfied(func(i int) bool {
			for _, s := range sigs {
				if p.Witnesses[i].Key.signed(c.text, s) {
					return true
				}
			}
			return false
		}) {
			t.Errorf("without the quorum:\n%s", published)
		}
		cancel()
	}
	if a.requests.Load() < 4 {
		t.Errorf("%d requests: the second start did not ask for the size", a.requests.Load())
	}
}

// litewitness returns the path of filippo.io/torchwood/cmd/litewitness.
func litewitness(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("ATTESTRY_CLIENTS")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Skip(err)
		}
		cache = filepath.Join(dir, "attestry-clients")
	}
	path := filepath.Join(cache, "litewitness-v0.6.1", "litewitness")
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("litewitness is missing: run scripts/clients litewitness")
		}
		t.Skip("skipped: run scripts/clients litewitness")
	}
	return path
}

// Our client gets its cosignatures from a witness of other hands, which keeps its key in an SSH agent.
func TestAnotherImplementationsWitnessIsAsked(t *testing.T) {
	exe := litewitness(t)
	l := newTestLog(t, logOrigin, newEd25519Key('l'), 1000, "leaf")
	dir, err := os.MkdirTemp("", "lw") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	key := newEd25519Key('x')
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: &key}); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	go func() { // ends when the socket is closed
		for {
			conn, err := socket.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(keys, conn)
		}
	}()
	db, err := sql.Open("sqlite", filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range [][]any{
		{"CREATE TABLE log (origin TEXT PRIMARY KEY, tree_size INTEGER NOT NULL, tree_hash TEXT NOT NULL)"},
		{"CREATE TABLE key (origin TEXT NOT NULL, key TEXT NOT NULL, FOREIGN KEY(origin) REFERENCES log(origin))"},
		{"INSERT INTO log VALUES (?, 0, '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=')", l.origin},
		{"INSERT INTO key VALUES (?, ?)", l.origin, l.vkey().String()},
	} {
		if _, err := db.Exec(row[0].(string), row[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-name", "lite.example.test", "-db", filepath.Join(dir, "db"),
		"-ssh-agent", filepath.Join(dir, "agent"), "-listen", addr, "-key", ssh.FingerprintSHA256(public))
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if err := listening(addr); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("%v\n%s", err, output.String())
	}
	theirs, err := newCosigner("lite.example.test", key)
	if err != nil {
		t.Fatal(err)
	}
	ours := serve(t, 'o', l)
	p, err := ParsePolicy(fmt.Sprintf("witness lite %s http://%s\nwitness ours %s %s\ngroup g all lite ours\nquorum g\n", theirs.key, addr, ours.server.Key(), ours.url))
	if err != nil {
		t.Fatal(err)
	}
	now := &clock{now: time.Now()}
	ours.clock.set(now.Now())
	client := newTestClient(t, p, now)
	for _, size := range []uint64{1, 2, 255, 256, 700} {
		if n, err := cosign(client, l, size); err != nil || n != 2 {
			t.Fatalf("size %d: %d cosignatures, %v", size, n, err)
		}
	}
	if n, err := cosign(newTestClient(t, p, now), l, 1000); err != nil || n != 2 { // after a start
		t.Fatalf("%d cosignatures, %v", n, err)
	}
	fork := newTestLog(t, logOrigin, newEd25519Key('l'), 1200, "fork")
	if _, err := cosign(client, fork, 1200); err == nil || strings.Count(err.Error(), "does not verify") != 2 {
		t.Errorf("a fork: %v", err)
	}
	if _, err := cosign(client, l, 900); err == nil || strings.Count(err.Error(), "the log was rolled back") != 2 {
		t.Errorf("a smaller tree: %v", err)
	}
}

// listening waits until something answers at addr.
func listening(addr string) error {
	var errs error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		resp, err := http.Get("http://" + addr + "/")
		if err == nil {
			return resp.Body.Close()
		}
		errs = err
		<-time.After(10 * time.Millisecond)
	}
	return errs
}
