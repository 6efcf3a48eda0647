package e2e

import (
	"context"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
	authority "github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// justCT is a CT log in a directory.
var justCT = backend{"a CT log in a directory", func(_ *testing.T, dir string) string {
	return fmt.Sprintf("fence: %s/fence\nct: {key: file:%[1]s/ct.pem, roots-file: %[1]s/roots.pem}\n", dir)
}, []string{ctLog}, 1}

// hierarchy is a CA's key with its certificates in files, and a provider whose people it certifies.
type hierarchy struct {
	dir        string // with ca.pem, chain.pem and issuers.yaml
	chain      string // PEM, issuing certificate first
	root       string // PEM
	idp        *identitytest.Provider
	issuerFile string
}

func newHierarchy(t *testing.T) *hierarchy {
	t.Helper()
	h := &hierarchy{dir: t.TempDir(), idp: identitytest.New(t)}
	key, err := signer.Create(filepath.Join(h.dir, "ca.pem"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	root, err := signer.Create(filepath.Join(h.dir, "root.pem"), signer.P384)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := authority.CreateHierarchy(authority.Hierarchy{RootKey: root, IssuingKey: key, Organization: "Example", NotBefore: time.Now().Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	h.root = certificatePEM(certs[1].Raw)
	h.chain = certificatePEM(certs[0].Raw) + h.root
	write(t, filepath.Join(h.dir, "chain.pem"), h.chain)
	h.issuerFile = filepath.Join(h.dir, "issuers.yaml")
	write(t, h.issuerFile, fmt.Sprintf("oidc-issuers:\n  %s: {issuer-url: %[1]q, client-id: sigstore, type: email, allow-http: true}\n", h.idp.URL))
	return h
}

func certificatePEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// token is good for the length of a test.
func (h *hierarchy) token(t *testing.T) string {
	t.Helper()
	return rs256(t, h.idp, map[string]any{"exp": time.Now().Add(time.Hour).Unix()})
}

// start runs the program ca; ct are its keys about the log.
func (h *hierarchy) start(t *testing.T, name, ct string) *role {
	t.Helper()
	return startRole(t, ca, h.dir, name, fmt.Sprintf("key: file:%s/ca.pem\nchain-file: %[1]s/chain.pem\nissuer-file: %s\n%s", h.dir, h.issuerFile, ct))
}

// logged is how ca is told to submit to the log.
func logged(log *tlogs) string {
	return fmt.Sprintf("ct-url: %s/ct/main\nct-public-key-file: %s/ct.pub\n", log.servers[0].url, log.dir)
}

// newAloneAudit audits CAs that run alone: every certificate is verified when it comes, and its promise held against the log.
func newAloneAudit(t *testing.T, h *hierarchy, log *tlogs) *audit {
	t.Helper()
	s := &stack{t: t, files: t.TempDir()}
	a := &audit{t: t, s: s, l: newLedger(t, s), fsck: log.servers[0].fsck, lag: readyTimeout}
	a.fresh = func() []*replica { return []*replica{newReplica(ctLog, ctSource{log.servers[0].url + "/ct/main"})} }
	a.replicas = a.fresh()
	ctKey := readFile(t, filepath.Join(log.dir, "ct.pub"))
	var (
		mu     sync.Mutex // guards leaves
		leaves = map[string]bool{}
	)
	a.l.inspect = func(chain []string) error {
		summary, err := checkCertificate(chain, h.root, ctKey)
		if err != nil {
			return err
		}
		if summary.SubjectAlternativeName != "alice@example.com" {
			return fmt.Errorf("it names %q", summary.SubjectAlternativeName)
		}
		mu.Lock()
		defer mu.Unlock()
		if leaves[chain[0]] {
			return fmt.Errorf("it was issued twice:\n%s", chain[0])
		}
		leaves[chain[0]] = true
		return nil
	}
	return a
}

// issuing has several clients ask each of the CAs until end has returned.
func (a *audit) issuing(token string, clients int, cas []*role, end func()) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(a.t.Context())
	stopped := make(chan struct{})
	var submissions []func(context.Context) error
	for _, r := range cas {
		submissions = append(submissions, func(ctx context.Context) error { return a.l.certificate(ctx, &stack{url: r.url}, token) })
	}
	go func() { a.l.drive(ctx, clients, submissions...); close(stopped) }() // ends with ctx
	defer func() { cancel(); <-stopped }()
	a.grows("from the start", ctLog)
	end()
}

// TestCertificatesOutliveCrashes kills CAs and their CT log at random moments under load. Two CAs share one key and one log,
// as replicas do. Whatever was answered verifies and is in the log.
func TestCertificatesOutliveCrashes(t *testing.T) {
	rounds := 2
	if long() {
		rounds = 30
	}
	h := newHierarchy(t)
	log := newTlogs(t, justCT, h.root)
	cas := []*role{h.start(t, "ca-0", logged(log)), h.start(t, "ca-1", logged(log))}
	a := newAloneAudit(t, h, log)
	token := h.token(t)
	for range rounds {
		for _, victim := range []*role{cas[0], log.servers[0], cas[1]} {
			a.issuing(token, 4, cas, func() {
				time.Sleep(rand.N(200 * time.Millisecond)) // a random moment under load is what this is about
				victim.kill()
				if victim == log.servers[0] {
					a.refuses("without their log", ctLog)
				}
				victim.start()
				a.grows("again", ctLog)
			})
			a.check()
		}
	}
	a.replay()
	measured(t, "%d crashes of two CAs and their log under load, %d certificates issued, all of them valid and in the log; %d refused meanwhile",
		3*rounds, a.l.count(ctLog), a.l.refusals(ctLog))
}

// TestNoCertificateWithoutRoomInTheLog: the log's disk is full.
func TestNoCertificateWithoutRoomInTheLog(t *testing.T) {
	h := newHierarchy(t)
	disk := tmpfs(t, 64)
	t.Setenv("TMPDIR", disk)
	t.Run("the log on a small disk", func(t *testing.T) {
		log := newTlogs(t, justCT, h.root)
		if !strings.HasPrefix(log.dir, disk) {
			t.Fatalf("the log is in %s", log.dir)
		}
		issuing := h.start(t, "ca", logged(log))
		a := newAloneAudit(t, h, log)
		token := h.token(t)
		a.issuing(token, 4, []*role{issuing}, func() {
			filler := filepath.Join(disk, "filler")
			eventually(t, "the CA refuses while the log's disk is full", func() bool {
				fill(t, filler) // also what is freed meanwhile
				return a.l.refusals(ctLog) > 2
			})
			a.check() // what was answered before is there
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			a.grows("again", ctLog)
		})
		log.servers[0].kill()
		log.servers[0].start()
		a.replay()
	})
}
