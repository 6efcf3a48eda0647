package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgtuf "github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/fetcher"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"
)

func testOptions(t *testing.T, now func() time.Time) PublisherOptions {
	t.Helper()
	dir := t.TempDir()
	return PublisherOptions{
		Dir: filepath.Join(dir, "tuf"), KeysDir: filepath.Join(dir, "keys"), CreateKeys: true, Now: now,
		Derive: DeriveOptions{OIDCIssuers: []string{instance + "/oidc"}},
	}
}

func open(t *testing.T, opts PublisherOptions) *Publisher {
	t.Helper()
	p, err := OpenPublisher(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.unlock() })
	return p
}

func publish(t *testing.T, p *Publisher, inv *Inventory) {
	t.Helper()
	if err := p.Publish(t.Context(), inv); err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, p *Publisher) string {
	t.Helper()
	server := httptest.NewServer(p.Handler())
	t.Cleanup(server.Close)
	return server.URL + "/tuf"
}

// client is go-tuf v2's updater with a cache on disk, at a time of our choosing, talking to a
// handler without sockets.
type client struct {
	handler http.Handler
	root    []byte
	cache   string
}

func (c client) Do(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, r)
	return w.Result(), nil
}

// refresh returns the versions that the client trusts after an update, and the trusted root.
func (c client) refresh(at time.Time) (versions string, trustedRoot []byte, err error) {
	cfg, err := config.New("http://tuf.example/tuf", c.root)
	if err != nil {
		return "", nil, err
	}
	f := fetcher.NewDefaultFetcher()
	f.SetHTTPClient(c)
	cfg.Fetcher, cfg.LocalMetadataDir, cfg.LocalTargetsDir = f, c.cache, filepath.Join(c.cache, "targets")
	up, err := updater.New(cfg)
	if err != nil {
		return "", nil, err
	}
	up.UnsafeSetRefTime(at)
	if err := up.Refresh(); err != nil {
		return "", nil, err
	}
	set := up.GetTrustedMetadataSet()
	versions = fmt.Sprintf("root %d timestamp %d snapshot %d targets %d", set.Root.Signed.Version,
		set.Timestamp.Signed.Version, set.Snapshot.Signed.Version, set.Targets["targets"].Signed.Version)
	for name := range up.GetTopLevelTargets() {
		info, err := up.GetTargetInfo(name)
		if err != nil {
			return versions, nil, err
		}
		_, data, err := up.DownloadTarget(info, "", "")
		if err != nil {
			return versions, nil, err
		}
		if name == "trusted_root.json" {
			trustedRoot = data
		}
	}
	return versions, trustedRoot, nil
}

func (c client) mustRefresh(t *testing.T, at time.Time, want string) []byte {
	t.Helper()
	versions, trusted, err := c.refresh(at)
	if err != nil {
		t.Fatal(err)
	}
	if versions != want {
		t.Errorf("client has %s, want %s", versions, want)
	}
	return trusted
}

// The client of cosign 2.6 and 3.1, over HTTP, and what it makes of the targets.
func TestSigstoreGoClientInitializesAndRefreshes(t *testing.T) {
	at := &clock{now: time.Now()}
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	p := open(t, testOptions(t, at.Now))
	start := time.Now()
	publish(t, p, inv)
	t.Logf("first publication took %s", time.Since(start))
	url := serve(t, p)

	opts := &sgtuf.Options{Root: p.Root(), CachePath: t.TempDir(), RepositoryBaseURL: url}
	c, err := sgtuf.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := root.GetTrustedRoot(c)
	if err != nil {
		t.Fatal(err)
	}
	if len(trusted.RekorLogs()) != 2 || len(trusted.CTLogs()) != 1 || len(trusted.FulcioCertificateAuthorities()) != 1 || len(trusted.TimestampingAuthorities()) != 1 {
		t.Errorf("trusted root reads as %+v", trusted)
	}
	if _, err := root.GetSigningConfig(c); err != nil {
		t.Error(err)
	}

	if _, err := inv.Add(logRecord(t, CTLog, instance+"/ct/2027")); err != nil {
		t.Fatal(err)
	}
	publish(t, p, inv)
	if err := p.RotateOnlineKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Refresh(); err != nil {
		t.Fatal(err)
	}
	if trusted, err = root.GetTrustedRoot(c); err != nil || len(trusted.CTLogs()) != 2 {
		t.Errorf("after an update: %v, %d CT logs", err, len(trusted.CTLogs()))
	}
	again, err := sgtuf.New(opts) // bootstraps from its old root again
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := again.GetTarget("trusted_root.json"); err != nil || !bytes.Equal(raw, p.Derived().TrustedRoot) {
		t.Errorf("trusted_root.json: %v", err)
	}
}

func TestMetadataIsInTheDialectOfEveryClient(t *testing.T) {
	p := open(t, testOptions(t, func() time.Time { return epoch.Add(123 * time.Millisecond) }))
	publish(t, p, newInventory(t, nil, oneOfEach(t)...))
	r := p.repo.root.Signed
	if !r.ConsistentSnapshot || len(r.Keys) != 4 {
		t.Errorf("consistent snapshot %t, %d keys", r.ConsistentSnapshot, len(r.Keys))
	}
	for role, want := range map[string][2]int{"root": {3, 2}, "targets": {3, 2}, "snapshot": {1, 1}, "timestamp": {1, 1}} {
		if got := [2]int{len(r.Roles[role].KeyIDs), r.Roles[role].Threshold}; got != want {
			t.Errorf("%s has %d keys, threshold %d", role, got[0], got[1])
		}
	}
	for _, key := range r.Keys {
		if key.Type != "ecdsa" || key.Scheme != "ecdsa-sha2-nistp256" || !strings.HasSuffix(key.Value.PublicKey, "-----END PUBLIC KEY-----\n") {
			t.Errorf("key %+v", key)
		}
	}
	if !strings.Contains(string(p.Root()), `"expires":"2027-01-02T03:04:05Z"`) {
		t.Errorf("expiry is not in whole seconds of UTC: %s", p.Root())
	}
	for name, target := range p.repo.targets.Signed.Targets {
		if len(target.Hashes) != 1 || len(target.Hashes["sha256"]) != 32 {
			t.Errorf("%s has hashes %v", name, target.Hashes)
		}
	}
	rekor := p.repo.targets.Signed.Targets["rekor.pub"]
	if rekor == nil || rekor.Custom == nil || string(*rekor.Custom) != `{"sigstore":{"usage":"Rekor","status":"Active","uri":"http://localhost:8420"}}` {
		t.Errorf("rekor.pub is %+v", rekor)
	}
}

func TestPublishingAgainWritesNothing(t *testing.T) {
	at := &clock{now: epoch}
	opts := testOptions(t, at.Now)
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	p := open(t, opts)
	publish(t, p, inv)
	before := contents(t, opts.Dir)
	publish(t, p, inv)
	if err := p.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = open(t, opts)
	publish(t, p, inv)
	if after := contents(t, opts.Dir); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("files changed:\n%v\n%v", before, after)
	}
}

// contents maps each name below dir to the hash of its file.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == lockName {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = fmt.Sprintf("%x", sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRolesAreSignedAgainAtAThirdOfTheirLife(t *testing.T) {
	at := &clock{now: epoch}
	opts := testOptions(t, at.Now)
	opts.SnapshotLife = 100 * 24 * time.Hour
	p := open(t, opts)
	publish(t, p, newInventory(t, at.Now, oneOfEach(t)...))
	first := p.Root()
	c := client{p.Handler(), first, t.TempDir()}
	fresh := func() client { return client{p.Handler(), first, t.TempDir()} }
	c.mustRefresh(t, at.Now(), "root 1 timestamp 1 snapshot 1 targets 1")
	const day = 24 * time.Hour
	for _, step := range []struct {
		days int
		want string
	}{
		{2, "root 1 timestamp 1 snapshot 1 targets 1"},
		{1, "root 1 timestamp 2 snapshot 1 targets 1"},
		{2, "root 1 timestamp 2 snapshot 1 targets 1"},
		{6, "root 1 timestamp 3 snapshot 1 targets 1"},  // no one was there in time, but before the end
		{24, "root 1 timestamp 4 snapshot 2 targets 1"}, // the timestamp had expired
		{100, "root 2 timestamp 5 snapshot 3 targets 2"},
		{1000, "root 3 timestamp 6 snapshot 4 targets 3"}, // all had expired
	} {
		at.advance(time.Duration(step.days) * day)
		if err := p.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.mustRefresh(t, at.Now(), step.want)
		fresh().mustRefresh(t, at.Now(), step.want)
		if err := p.Ready(t.Context()); err != nil {
			t.Error(err)
		}
	}
	at.advance(8 * day)
	if _, _, err := c.refresh(at.Now()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a client took an expired timestamp: %v", err)
	}
	if err := p.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "timestamp expired") {
		t.Errorf("ready with an expired timestamp: %v", err)
	}
}

func TestRunWakesWhenSomethingIsDue(t *testing.T) {
	at := &clock{now: epoch}
	opts := testOptions(t, at.Now)
	opts.TimestampLife = 9 * time.Minute
	waits, ticks := make(chan time.Duration), make(chan time.Time)
	opts.after = func(d time.Duration) <-chan time.Time { waits <- d; return ticks }
	p := open(t, opts)
	publish(t, p, newInventory(t, at.Now, oneOfEach(t)...))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	for want := int64(1); want < 4; want++ {
		if d := <-waits; d != 3*time.Minute {
			t.Errorf("waits %s, want a third of 9 minutes", d)
		}
		p.mu.Lock()
		if got := p.repo.timestamp.Signed.Version; got != want {
			t.Errorf("timestamp %d, want %d", got, want)
		}
		p.mu.Unlock()
		at.advance(3 * time.Minute)
		ticks <- at.Now()
	}
	<-waits
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRotatingTheOnlineKey(t *testing.T) {
	at := &clock{now: epoch}
	opts := testOptions(t, at.Now)
	p := open(t, opts)
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	publish(t, p, inv)
	first := p.Root()
	c := client{p.Handler(), first, t.TempDir()}
	c.mustRefresh(t, at.Now(), "root 1 timestamp 1 snapshot 1 targets 1")
	old := p.repo.root.Signed.Roles["timestamp"].KeyIDs[0]
	if err := p.RotateOnlineKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mustRefresh(t, at.Now(), "root 3 timestamp 2 snapshot 2 targets 1")
	r := p.repo.root.Signed
	if ids := r.Roles["timestamp"].KeyIDs; len(ids) != 1 || ids[0] == old || r.Roles["snapshot"].KeyIDs[0] != ids[0] || r.Keys[old] != nil || len(r.Keys) != 4 {
		t.Errorf("root 3 has %v", r.Roles)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = open(t, opts) // the new key took the old one's file
	at.advance(3 * 24 * time.Hour)
	publish(t, p, inv)
	client{p.Handler(), first, t.TempDir()}.mustRefresh(t, at.Now(), "root 3 timestamp 3 snapshot 2 targets 1")
	c.handler = p.Handler()
	c.mustRefresh(t, at.Now(), "root 3 timestamp 3 snapshot 2 targets 1")
}

func TestOfflineHolderKeysAreOnlyMissedWhenNeeded(t *testing.T) {
	at := &clock{now: epoch}
	opts := testOptions(t, at.Now)
	p := open(t, opts)
	inv := newInventory(t, at.Now, oneOfEach(t)...)
	publish(t, p, inv)
	p.Close()
	for i := range 2 { // one holder of three stays
		if err := os.Remove(filepath.Join(opts.KeysDir, fmt.Sprintf(holderKeyFormat, i+1))); err != nil {
			t.Fatal(err)
		}
	}
	p = open(t, opts)
	at.advance(130 * 24 * time.Hour)
	if err := p.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	client{p.Handler(), p.Root(), t.TempDir()}.mustRefresh(t, at.Now(), "root 1 timestamp 2 snapshot 2 targets 1")
	if _, err := inv.Add(logRecord(t, CTLog, instance+"/ct/2")); err != nil {
		t.Fatal(err)
	}
	if err := p.Publish(t.Context(), inv); err == nil || !strings.Contains(err.Error(), "signing targets needs 2 keys") {
		t.Errorf("got %v", err)
	}
	if err := p.RotateOnlineKey(t.Context()); err == nil || !strings.Contains(err.Error(), "threshold of root keys") {
		t.Errorf("got %v", err)
	}
}

func TestThePublisherRefusesToLoseARecord(t *testing.T) {
	at := &clock{now: epoch.AddDate(0, 1, 0)}
	opts := testOptions(t, at.Now)
	records := oneOfEach(t)
	inv := newInventory(t, at.Now, records...)
	p := open(t, opts)
	publish(t, p, inv)
	refused := func(name, want string, inv *Inventory) {
		t.Helper()
		if err := p.Publish(t.Context(), inv); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused("an inventory cut at its end", "the inventory lacks it", newInventory(t, at.Now, records[:4]...))
	late := append([]Record{}, records...)
	late[2].Start = epoch.Add(time.Hour)
	refused("another start", "later than published", newInventory(t, at.Now, late...))

	ids := inv.Records()
	if err := inv.Retire(ids[2].ID, at.Now().Add(time.Hour), "frozen"); err != nil {
		t.Fatal(err)
	}
	publish(t, p, inv)
	early := append([]Record{}, records...)
	early[2].End = at.Now()
	refused("an earlier end", "earlier than published", newInventory(t, at.Now, early...))

	if err := inv.Revoke(ids[1].ID, time.Time{}, "stolen"); err != nil {
		t.Fatal(err)
	}
	if err := inv.Revoke(ids[2].ID, epoch.AddDate(0, 0, 1), "stolen"); err != nil {
		t.Fatal(err)
	}
	publish(t, p, inv)
	trusted, err := root.NewTrustedRootFromJSON(client{p.Handler(), p.Root(), t.TempDir()}.mustRefresh(t, at.Now(), "root 1 timestamp 3 snapshot 3 targets 3"))
	if err != nil || len(trusted.CTLogs()) != 0 || len(trusted.RekorLogs()) != 2 {
		t.Errorf("after revoking: %v, %+v", err, trusted)
	}
}

func TestCheckCanRefuseAPublication(t *testing.T) {
	opts := testOptions(t, nil)
	opts.Check = func(_ context.Context, d *Derived) error {
		return fmt.Errorf("a stored bundle fails against %d bytes", len(d.TrustedRoot))
	}
	p := open(t, opts)
	if err := p.Publish(t.Context(), newInventory(t, nil, oneOfEach(t)...)); err == nil || !strings.Contains(err.Error(), "stored bundle") {
		t.Errorf("got %v", err)
	}
	if got := contents(t, opts.Dir); len(got) != 0 {
		t.Errorf("it wrote %v", got)
	}
	if err := p.Ready(t.Context()); err == nil {
		t.Error("ready without a publication")
	}
}

func TestOpenPublisherRefuses(t *testing.T) {
	opts := testOptions(t, nil)
	p := open(t, opts)
	if _, err := OpenPublisher(opts); !errors.Is(err, ErrLocked) {
		t.Errorf("a second publisher: %v", err)
	}
	publish(t, p, newInventory(t, nil, oneOfEach(t)...))
	p.Close()
	for name, tt := range map[string]struct {
		edit func(*PublisherOptions)
		want string
	}{
		"keys inside the served directory": {func(o *PublisherOptions) { o.KeysDir = filepath.Join(o.Dir, "keys") }, "is served"},
		"no directory":                     {func(o *PublisherOptions) { o.Dir = "" }, "required"},
		"a threshold over the holders":     {func(o *PublisherOptions) { o.Holders, o.Threshold = 2, 3 }, "makes no sense"},
		"a life of seconds":                {func(o *PublisherOptions) { o.TimestampLife = time.Second }, "cannot live"},
		"a repository with a foreign root": {func(o *PublisherOptions) {
			other := open(t, testOptions(t, nil))
			publish(t, other, newInventory(t, nil, oneOfEach(t)...))
			os.WriteFile(filepath.Join(o.Dir, "2.root.json"), other.Root(), 0o644)
		}, "2.root.json"},
	} {
		t.Run(name, func(t *testing.T) {
			o := opts
			tt.edit(&o)
			if _, err := OpenPublisher(o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestKeysAreNotMadeUnlessAsked(t *testing.T) {
	opts := testOptions(t, nil)
	opts.CreateKeys = false
	p := open(t, opts)
	if err := p.Publish(t.Context(), newInventory(t, nil, oneOfEach(t)...)); err == nil || !strings.Contains(err.Error(), "root-1.pem") {
		t.Errorf("got %v", err)
	}
}

func TestMetricsShowExpiry(t *testing.T) {
	reg := prometheus.NewRegistry()
	opts := testOptions(t, func() time.Time { return epoch })
	opts.Registerer = reg
	p := open(t, opts)
	publish(t, p, newInventory(t, nil, oneOfEach(t)...))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "tuf_metadata_expiry_seconds" && m.Label[0].GetValue() == metadata.TIMESTAMP {
				found = m.Gauge.GetValue() == float64(epoch.AddDate(0, 0, 7).Unix())
			}
		}
	}
	if !found {
		t.Errorf("no expiry of timestamp in %v", families)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, opts) // registers again
}

func TestHandlerServesNothingButTheRepository(t *testing.T) {
	opts := testOptions(t, nil)
	p := open(t, opts)
	publish(t, p, newInventory(t, nil, oneOfEach(t)...))
	for _, name := range []string{".tmp-1", "targets/.tmp-2", "notes.txt", "1.mirrors.json"} {
		if err := os.WriteFile(filepath.Join(opts.Dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hashed, err := targetPath("rekor.pub", p.repo.targets.Signed.Targets["rekor.pub"])
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(p.Handler())
	defer server.Close()
	const never, forever = "no-store", "public, max-age=31536000, immutable"
	for _, tt := range []struct {
		method, path string
		status       int
		cache        string
	}{
		{"GET", "/tuf/timestamp.json", 200, never},
		{"HEAD", "/tuf/timestamp.json", 200, never},
		{"GET", "/tuf/root.json", 200, never},
		{"GET", "/tuf/1.root.json", 200, forever},
		{"GET", "/tuf/1.snapshot.json", 200, forever},
		{"GET", "/tuf/1.targets.json", 200, forever},
		{"GET", "/tuf/" + hashed, 200, forever},
		{"GET", "/tuf/targets/rekor.pub", 200, never},
		{"GET", "/tuf/2.root.json", 404, never},
		{"GET", "/tuf/01.root.json", 404, never},
		{"GET", "/tuf/1.root.json/", 404, never},
		{"GET", "/tuf/snapshot.json", 404, never},
		{"GET", "/tuf/1.timestamp.json", 404, never},
		{"GET", "/tuf/1.mirrors.json", 404, never},
		{"GET", "/tuf/notes.txt", 404, never},
		{"GET", "/tuf/.lock", 404, never},
		{"GET", "/tuf/.tmp-1", 404, never},
		{"GET", "/tuf/targets/.tmp-2", 404, never},
		{"GET", "/tuf/targets/", 404, never},
		{"GET", "/tuf/targets", 404, never},
		{"GET", "/tuf/targets/unknown.json", 404, never},
		{"GET", "/tuf/targets/" + strings.Repeat("0", 64) + ".rekor.pub", 404, never},
		{"GET", "/tuf/", 404, never},
		{"GET", "/tuf", 404, never},
		{"GET", "/timestamp.json", 404, never},
		{"GET", "/tuf/..%2fkeys%2fonline.pem", 404, never},
		{"GET", "/tuf/targets/..%2f..%2fkeys%2fonline.pem", 404, never},
		{"POST", "/tuf/timestamp.json", 405, never},
		{"PUT", "/tuf/new.json", 404, never},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, server.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != tt.status || res.Header.Get("Cache-Control") != tt.cache {
			t.Errorf("%s %s: %d, Cache-Control %q", tt.method, tt.path, res.StatusCode, res.Header.Get("Cache-Control"))
		}
	}
}
