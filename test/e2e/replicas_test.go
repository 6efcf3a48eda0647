package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/internal/signer"
)

// outage is something that a site needs, and that ends without warning.
type outage struct {
	name  string
	kill  func()
	start func() error
}

// newSiteAudit holds every server of the site to every promise that any of them made. s is what clients see
// of the site; without CT, the zero stack does.
func newSiteAudit(t *testing.T, s *stack, site *tlogs, logs ...string) *audit {
	t.Helper()
	a := &audit{t: t, s: s, l: newLedger(t, s), fsck: site.servers[0].fsck, lag: 20 * time.Second}
	if s.url == "" {
		s.url = site.servers[0].url
	}
	for _, name := range []string{"rekor1", "rekor2"} {
		key, err := signer.Open("file:"+filepath.Join(site.dir, name+".pem"), nil)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		id := sha256.Sum256(der)
		a.l.keys[hex.EncodeToString(id[:])] = key.Public().(*ecdsa.PublicKey)
	}
	a.fresh = func() []*replica {
		var all []*replica
		for _, v := range site.servers {
			for _, log := range logs {
				all = append(all, newReplica(log, map[string]source{
					rekor1: rekor1Source{v.url, a.l}, rekor2: tilesSource{v.url + "/api/v2"}, ctLog: ctSource{v.url + "/ct/main"},
				}[log]))
			}
		}
		return all
	}
	a.replicas = a.fresh()
	return a
}

// loadSite sends every log of the site entries through all its servers.
func (a *audit) loadSite(site *tlogs, clients int, logs ...string) func(context.Context) {
	var submissions []func(context.Context) error
	for _, v := range site.servers {
		s := &stack{url: v.url}
		for _, log := range logs {
			switch log {
			case rekor1:
				submissions = append(submissions, func(ctx context.Context) error { return a.l.submit1(ctx, s) })
			case rekor2:
				submissions = append(submissions, func(ctx context.Context) error { return a.l.submit2(ctx, s) })
			case ctLog:
				token := a.s.alice()
				submissions = append(submissions, func(ctx context.Context) error { return a.l.certificate(ctx, a.s, token) })
			}
		}
	}
	return func(ctx context.Context) { a.l.drive(ctx, clients, submissions...) }
}

// crash kills the servers in turn, and every third time something that they need, under load, and has the site go on.
func (a *audit) crash(site *tlogs, kills int, needs []outage, logs ...string) {
	a.t.Helper()
	var longest time.Duration
	done := map[string]int{}
	for i := range kills {
		server := site.servers[i%len(site.servers)]
		victim := outage{"tlog", server.kill, func() error { server.start(); return nil }}
		if i%3 == 2 {
			victim = needs[i/3%len(needs)]
		}
		a.under(a.loadSite(site, 2, logs...), rand.N(400*time.Millisecond), func() {
			victim.kill()
			gone := time.Now()
			if victim.name != "tlog" {
				time.Sleep(rand.N(300 * time.Millisecond))
				if err := victim.start(); err != nil {
					a.t.Fatal(err)
				}
			}
			for _, log := range logs { // by whoever is left
				before := a.l.count(log)
				eventually(a.t, log+" goes on without "+victim.name, func() bool { return a.l.count(log) > before })
			}
			longest = max(longest, time.Since(gone))
			if victim.name == "tlog" {
				_ = victim.start()
			}
		})
		done[victim.name]++
		a.check()
		a.resubmit()
	}
	a.replay()
	for _, v := range site.servers {
		v.kill()
		v.start()
	}
	a.replay()
	var acks []string
	for _, log := range logs {
		acks = append(acks, fmt.Sprintf("%d of %s", a.l.count(log), log))
	}
	measured(a.t, "killed under load: %v; acknowledged %s, none lost; the longest pause was %v", done, strings.Join(acks, " and "), longest.Round(time.Millisecond))
}

// siteKills is how often a test with two servers kills.
func siteKills(ordinary int) int {
	if long() {
		return 51
	}
	return ordinary
}

func TestTwoServersOnTrillianEmbedded(t *testing.T) {
	pg := services.StartPostgres(t)
	b := trillianEmbedded
	b.yaml = func(t *testing.T, dir string) string {
		uri := pg.Database(t)
		return fmt.Sprintf("database: %q\nfence: %[1]q\nrekor1: {key: file:%s/rekor1.pem, tree: {store: trillian-embedded, postgres-uri: %q}}\n", uri, dir, pg.Database(t))
	}
	site := newTlogs(t, b, "")
	a := newSiteAudit(t, &stack{t: t}, site, b.logs...)
	a.sameBody1(site, 5)
	a.crash(site, siteKills(3), []outage{{"PostgreSQL", pg.Kill, pg.Start}}, b.logs...)
}

func TestTwoServersOnS3(t *testing.T) {
	pg, maria, gateway := services.StartPostgres(t), services.StartMariaDB(t), services.VersityGW(t)
	b := onS3
	b.yaml = func(t *testing.T, dir string) string {
		uri := pg.Database(t)
		return s3Logs(t, dir, fmt.Sprintf("database: %q\nfence: %[1]q\n", uri), gateway, gateway.Endpoint, maria.Database)
	}
	s, site := newSite(t, b)
	a := newSiteAudit(t, s, site, b.logs...)
	a.sameBody1(site, 1)
	a.sameBody2(site, 1)
	a.crash(site, siteKills(3), []outage{
		{"versitygw", gateway.Kill, gateway.Start}, {"MariaDB", maria.Kill, maria.Start}, {"PostgreSQL", pg.Kill, pg.Start},
	}, b.logs...)
}

// atOnce sends one body n times at the same moment, to the servers in turn, and returns the answers.
func atOnce(t *testing.T, site *tlogs, n int, path, body string) []answered {
	t.Helper()
	all := make([]answered, n)
	var ready, wait sync.WaitGroup
	ready.Add(n)
	for i := range n {
		wait.Go(func() {
			base := site.servers[i%len(site.servers)].url
			ready.Done()
			ready.Wait()
			resp, err := http.Post(base+path, "application/json", strings.NewReader(body))
			if err != nil {
				all[i].err = err
				return
			}
			defer resp.Body.Close()
			raw, err := io.ReadAll(resp.Body)
			all[i] = answered{base, resp.StatusCode, resp.Header.Get("Location"), raw, err}
		})
	}
	wait.Wait()
	return all
}

type answered struct {
	base     string
	status   int
	location string
	body     []byte
	err      error
}

// sameBody1 wants one 201 and 409 for all others, each with the place of the entry, which is there to be read at once.
func (a *audit) sameBody1(site *tlogs, rounds int) {
	a.t.Helper()
	for range rounds {
		body, _, err := a.l.body1()
		if err != nil {
			a.t.Fatal(err)
		}
		firsts := 0
		seen := map[uint64]bool{}
		for _, got := range atOnce(a.t, site, 100, "/api/v1/log/entries", body) {
			text := got.body
			switch {
			case got.err != nil:
				a.t.Fatal(got.err)
			case got.status == http.StatusCreated:
				firsts++
			case got.status != http.StatusConflict:
				a.t.Fatalf("one of a hundred was answered with %d: %s", got.status, got.body)
			default:
				text = []byte(get(a.t, got.base+got.location))
			}
			var entries map[string]entry1
			if err := json.Unmarshal(text, &entries); err != nil || len(entries) != 1 {
				a.t.Fatalf("%d entries, %v in %s", len(entries), err, text)
			}
			for _, e := range entries {
				promise, err := a.l.check1(e)
				if err != nil {
					a.t.Fatal(err)
				}
				seen[promise.virtual] = true
				a.l.promised(rekor1, promise)
			}
		}
		if firsts != 1 || len(seen) != 1 {
			a.t.Errorf("a hundred at once: %d times 201 and the indexes %v, want one of each", firsts, seen)
		}
	}
	a.check()
}

// sameBody2 wants 201 a hundred times, and one index.
func (a *audit) sameBody2(site *tlogs, rounds int) {
	a.t.Helper()
	for range rounds {
		request, err := a.l.request2()
		if err != nil {
			a.t.Fatal(err)
		}
		body, err := json.Marshal(request)
		if err != nil {
			a.t.Fatal(err)
		}
		seen := map[uint64]bool{}
		for _, got := range atOnce(a.t, site, 100, "/api/v2/log/entries", string(body)) {
			if got.err != nil || got.status != http.StatusCreated {
				a.t.Fatalf("one of a hundred was answered with %d: %v %s", got.status, got.err, got.body)
			}
			promise, err := promise2(got.body)
			if err != nil {
				a.t.Fatal(err)
			}
			seen[promise.index] = true
			a.l.promised(rekor2, promise)
		}
		if len(seen) != 1 {
			a.t.Errorf("a hundred at once: indexes %v, want one", seen)
		}
	}
	a.check()
}
