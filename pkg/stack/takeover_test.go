package stack_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/tuf"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/stack"
)

// clients ask for certificates all the time. Each must get one, and of a CA that is published by then.
type clients struct {
	s    *stack.Stack
	dir  string
	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex          // guards what follows
	issued map[string]int      // certificates by issuing certificate, base64 DER
	wrong  map[string]struct{} // what must not happen
}

func newClients(t *testing.T, s *stack.Stack, dir string) *clients {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &clients{s: s, dir: dir, stop: cancel, issued: map[string]int{}, wrong: map[string]struct{}{}}
	token, err := s.Token("alice@example.com")
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		c.done.Go(func() {
			for ctx.Err() == nil {
				if err := c.ask(token); err != nil {
					c.mu.Lock()
					c.wrong[err.Error()] = struct{}{}
					c.mu.Unlock()
				}
			}
		})
	}
	t.Cleanup(c.end)
	return c
}

func (c *clients) end() {
	c.stop()
	c.done.Wait()
}

func (c *clients) ask(token string) error {
	status, body, err := signingCert(c.s, token, "alice@example.com")
	if err != nil {
		return err
	}
	var answer struct {
		SignedCertificateEmbeddedSct struct {
			Chain struct{ Certificates []string }
		}
	}
	if err := json.Unmarshal(body, &answer); status != http.StatusOK || err != nil {
		return fmt.Errorf("%d %s, %w", status, body, err)
	}
	issuing, _ := pem.Decode([]byte(answer.SignedCertificateEmbeddedSct.Chain.Certificates[1]))
	by := base64.StdEncoding.EncodeToString(issuing.Bytes)
	c.mu.Lock()
	c.issued[by]++
	first := c.issued[by] == 1
	c.mu.Unlock()
	if !first {
		return nil
	}
	published, err := fetchTrustedRoot(c.s, c.dir)
	if err != nil {
		return err
	}
	if !bytes.Contains(published, []byte(by)) {
		return fmt.Errorf("a certificate of a CA that TUF does not have: %s", by)
	}
	return nil
}

// fetchTrustedRoot asks the TUF repository as a client does that knows its first root only.
func fetchTrustedRoot(s *stack.Stack, dir string) ([]byte, error) {
	root, err := os.ReadFile(filepath.Join(dir, "client", "root.json"))
	if err != nil {
		return nil, err
	}
	opts := tuf.DefaultOptions()
	opts.Root, opts.RepositoryBaseURL, opts.DisableLocalCache = root, s.URL()+"/tuf", true
	client, err := tuf.New(opts)
	if err != nil {
		return nil, err
	}
	return client.GetTarget("trusted_root.json")
}

// grows waits until the CA with this certificate, DER, has issued again.
func (c *clients) grows(t *testing.T, doing string, issuing []byte) {
	t.Helper()
	had := c.count(issuing)
	eventually(t, doing+": it issues", func() bool { return c.count(issuing) > had+8 })
}

func (c *clients) count(issuing []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.issued[base64.StdEncoding.EncodeToString(issuing)]
}

// eventually asks until done says yes, or fails the test after a while.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting: %s", what)
		}
	}
}

// TestARunningInstanceTakesAnotherCAOver changes to an intermediate of a company's PKI, whose root the CT log has never seen,
// while clients ask for certificates: no request fails, and no CA issues that TUF does not have.
func TestARunningInstanceTakesAnotherCAOver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	hangups := make(chan os.Signal)
	s, _ := start(t, stack.Options{Dir: dir, Hangups: hangups})
	look := func() {
		hangups <- os.Interrupt
		hangups <- os.Interrupt // taken when what the first brought about is over
	}
	first := issuingDER(t, dir, "ca-chain.pem")
	c := newClients(t, s, dir)
	c.grows(t, "the first", first)

	pki := newCompanyPKI(t)
	uri, csr := request(t, dir)
	chain := pki.sign(t, csr, nil)
	second := chain[0].Raw
	install := func(issue bool) {
		t.Helper()
		if _, err := stack.InstallCA(dir, stack.NewCA{Key: uri, Chain: chain, Issue: issue}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}

	// While trust material cannot be written, nothing is taken over.
	inventory := filepath.Join(dir, "trust", "inventory.jsonl")
	kept, err := os.ReadFile(inventory)
	if err != nil {
		t.Fatal(err)
	}
	spoil := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(inventory, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list := filepath.Join(dir, "keys", "ca.json")
	install(true)
	spoiled, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(list); err != nil { // so that no look of the clock's comes before the fault
		t.Fatal(err)
	}
	spoil(append(bytes.Clone(kept), "{}\n"...))
	if err := os.WriteFile(list, spoiled, 0o600); err != nil {
		t.Fatal(err)
	}
	look()
	c.grows(t, "without trust material", first)
	if n := c.count(second); n != 0 {
		t.Errorf("%d certificates of a CA that is not published", n)
	}
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	spoil(kept)

	install(false)
	look()
	if published, err := fetchTrustedRoot(s, dir); err != nil || !bytes.Contains(published, []byte(base64.StdEncoding.EncodeToString(second))) {
		t.Errorf("the next CA is not published: %v", err)
	}
	if got := trustBundle(t, s.URL()); got != 2 {
		t.Errorf("the trust bundle has %d chains, want 2", got)
	}
	c.grows(t, "both published", first)

	install(true)
	look()
	c.grows(t, "the second", second)
	eventually(t, "the first ends in trust material", func() bool { return caEnds(t, dir, first) })
	if caEnds(t, dir, second) {
		t.Error("the second ends, too")
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Error(err)
	}

	// The next CT log, opened afterwards, takes the new root too.
	logs, _, keysDir, err := stack.InstanceLogs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stack.OrderShard(logs, stack.Order{Kind: log.CT, Shard: "next", KeysDir: keysDir, Begin: time.Now()}); err != nil {
		t.Fatal(err)
	}
	root := base64.StdEncoding.EncodeToString(pki.root.Raw)
	eventually(t, "the next CT log accepts the root", func() bool {
		resp, err := http.Get(s.URL() + "/ct/next/ct/v1/get-roots")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(body), root)
	})
	c.grows(t, "into the next CT log", second)
	c.end()
	for text := range c.wrong {
		t.Error(text)
	}
	t.Logf("measured: %d certificates of the first, %d of the second", c.count(first), c.count(second))
}

// TestACAThatWasReplacedDoesNotReturn edits the list by hand.
func TestACAThatWasReplacedDoesNotReturn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	hangups := make(chan os.Signal)
	s, stop := start(t, stack.Options{Dir: dir, Hangups: hangups})
	uri, csr := request(t, dir)
	if _, err := stack.InstallCA(dir, stack.NewCA{Key: uri, Chain: newCompanyPKI(t).sign(t, csr, nil), Issue: true}, time.Now()); err != nil {
		t.Fatal(err)
	}
	hangups <- os.Interrupt
	eventually(t, "the first ends in trust material", func() bool { return caEnds(t, dir, issuingDER(t, dir, "ca-chain.pem")) })
	list := filepath.Join(dir, "keys", "ca.json")
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	back := strings.Replace(string(text), `"issuing": 1`, `"issuing": 0`, 1)
	if back == string(text) {
		t.Fatalf("not edited: %s", text)
	}
	if err := os.WriteFile(list, []byte(back), 0o600); err != nil {
		t.Fatal(err)
	}
	hangups <- os.Interrupt
	hangups <- os.Interrupt
	token, err := s.Token("alice@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if status, body, err := signingCert(s, token, "alice@example.com"); err != nil || status != http.StatusOK || issuerOf(t, body) != "Company" {
		t.Errorf("the running instance: %d %s, %v", status, body, err)
	}
	stop()
	opts := stack.Options{Dir: dir, Listen: "127.0.0.1:1", Issuer: stack.IssuerLoopback, Logger: slog.New(slog.DiscardHandler)}
	if _, err := stack.Open(t.Context(), opts); err == nil || !strings.Contains(err.Error(), "never returns") {
		t.Errorf("the next start: %v", err)
	}
}

// issuerOf is the organization that stands in the issuing certificate of an answer.
func issuerOf(t *testing.T, body []byte) string {
	t.Helper()
	var answer struct {
		SignedCertificateEmbeddedSct struct {
			Chain struct{ Certificates []string }
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
	return parseOne(t, answer.SignedCertificateEmbeddedSct.Chain.Certificates[1]).Subject.Organization[0]
}

func issuingDER(t *testing.T, dir, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "keys", name))
	if err != nil {
		t.Fatal(err)
	}
	return parseOne(t, string(text)).Raw
}

// caEnds reports whether the files for clients have an end for the CA with this certificate, DER.
func caEnds(t *testing.T, dir string, issuing []byte) bool {
	t.Helper()
	var root struct {
		CertificateAuthorities []struct {
			CertChain struct{ Certificates []struct{ RawBytes []byte } }
			ValidFor  struct{ End string }
		}
	}
	if err := json.Unmarshal(clientFile(t, dir, "trusted_root.json"), &root); err != nil {
		t.Fatal(err)
	}
	for _, authority := range root.CertificateAuthorities {
		if bytes.Equal(authority.CertChain.Certificates[0].RawBytes, issuing) {
			return authority.ValidFor.End != ""
		}
	}
	t.Fatal("trust material lost the CA")
	return false
}

// TestOneTimeTokensAndDetachedSCTsOfAnInstance are the options that ca has in its configuration.
func TestOneTimeTokensAndDetachedSCTsOfAnInstance(t *testing.T) {
	s, _ := start(t, stack.Options{Dir: filepath.Join(t.TempDir(), "data"), OneTimeTokens: true})
	token, err := s.Token("alice@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if status, body, err := signingCert(s, token, "alice@example.com"); err != nil || status != http.StatusOK {
		t.Fatalf("the first certificate: %d %s, %v", status, body, err)
	}
	if status, body, err := signingCert(s, token, "alice@example.com"); err != nil || status != http.StatusBadRequest || !strings.Contains(string(body), "reason=replayed") {
		t.Errorf("the second: %d %s, %v", status, body, err)
	}

	s, _ = start(t, stack.Options{Dir: filepath.Join(t.TempDir(), "data"), DetachedSCTs: true})
	if token, err = s.Token("alice@example.com"); err != nil {
		t.Fatal(err)
	}
	status, body, err := signingCert(s, token, "alice@example.com")
	if err != nil || status != http.StatusOK {
		t.Fatalf("%d %s, %v", status, body, err)
	}
	var answer struct {
		SignedCertificateDetachedSct struct {
			Chain                      struct{ Certificates []string }
			SignedCertificateTimestamp []byte
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.SignedCertificateDetachedSct.SignedCertificateTimestamp) == 0 {
		t.Fatalf("no SCT beside the certificate: %s, %v", body, err)
	}
	for _, extension := range parseOne(t, answer.SignedCertificateDetachedSct.Chain.Certificates[0]).Extensions {
		if extension.Id.String() == "1.3.6.1.4.1.11129.2.4.2" {
			t.Error("the certificate has an SCT, too")
		}
	}
	// It is in the instance's log as it is.
	resp, err := http.Get(s.URL() + "/ct/main/ct/v1/get-entries?start=0&end=0")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var entries struct {
		Entries []struct {
			LeafInput []byte `json:"leaf_input"`
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&entries); err != nil || len(entries.Entries) != 1 {
		t.Fatalf("%+v, %v", entries, err)
	}
	if !bytes.Contains(entries.Entries[0].LeafInput, parseOne(t, answer.SignedCertificateDetachedSct.Chain.Certificates[0]).Raw) {
		t.Error("the log has another certificate")
	}
}
