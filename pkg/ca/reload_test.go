package ca_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// pair is a key and its chain, as files have them.
type pair struct {
	key, chain []byte
	certs      []*x509.Certificate
}

func newPair(t *testing.T, name string, now time.Time) pair {
	t.Helper()
	root, key := identitytest.NewECKey(t), identitytest.NewECKey(t)
	certs, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key, Organization: name, NotBefore: now.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p := pair{key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), certs: certs}
	for _, cert := range certs {
		p.chain = append(p.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return p
}

// volume is a directory as Kubernetes mounts a secret: key.pem → ..data/key.pem, ..data → ..1.
type volume struct {
	t    *testing.T
	dir  string
	made int
}

func newVolume(t *testing.T, p pair) *volume {
	v := &volume{t: t, dir: t.TempDir()}
	v.swap(p)
	for _, name := range []string{"key.pem", "chain.pem"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(v.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func (v *volume) path(name string) string { return filepath.Join(v.dir, name) }

// write replaces a file in place, which truncates it first.
func (v *volume) write(name string, data []byte) {
	v.t.Helper()
	if err := os.WriteFile(v.path(name), data, 0o600); err != nil {
		v.t.Fatal(err)
	}
}

// swap puts a new directory with p in place in one step.
func (v *volume) swap(p pair) {
	v.t.Helper()
	v.made++
	name := fmt.Sprintf("..%d", v.made)
	if err := os.Mkdir(v.path(name), 0o700); err != nil {
		v.t.Fatal(err)
	}
	v.write(filepath.Join(name, "key.pem"), p.key)
	v.write(filepath.Join(name, "chain.pem"), p.chain)
	if err := os.Symlink(name, v.path("..tmp")); err != nil {
		v.t.Fatal(err)
	}
	if err := os.Rename(v.path("..tmp"), v.path("..data")); err != nil {
		v.t.Fatal(err)
	}
	if v.made > 1 {
		if err := os.RemoveAll(v.path(fmt.Sprintf("..%d", v.made-1))); err != nil {
			v.t.Fatal(err)
		}
	}
}

// followed is a CA that follows a volume.
type followed struct {
	*world
	volume   *volume
	ca       *ca.CA
	registry *prometheus.Registry
	output   *lockedWriter // to logs
	change   func(*ca.Options)
	loaded   int
	ticks    chan time.Time
	hangups  chan os.Signal
	stop     func()
}

func follow(t *testing.T, p pair) *followed {
	f := &followed{
		world: newWorld(t), volume: newVolume(t, p), registry: prometheus.NewRegistry(), change: func(*ca.Options) {},
		ticks: make(chan time.Time), hangups: make(chan os.Signal),
	}
	f.output = &lockedWriter{w: f.logs}
	var err error
	if f.ca, err = ca.Open(f.load); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		f.ca.Watch(ctx, f.ticks, f.hangups)
	}()
	f.stop = func() { cancel(); <-ended }
	t.Cleanup(f.stop)
	return f
}

func (f *followed) load(reading func(string), before *ca.Options) (ca.Options, func(), error) {
	reading(f.volume.path("key.pem"))
	key, err := signer.Open("file:"+f.volume.path("key.pem"), nil)
	if err != nil {
		return ca.Options{}, nil, err
	}
	reading(f.volume.path("chain.pem"))
	text, err := os.ReadFile(f.volume.path("chain.pem"))
	if err != nil {
		return ca.Options{}, nil, err
	}
	chain, err := ca.ParseChain(text)
	if err != nil {
		return ca.Options{}, nil, err
	}
	o := ca.Options{
		Signer: key, Chain: chain, CT: f.log, Now: f.clock, Registerer: f.registry,
		Logger: slog.New(slog.NewTextHandler(f.output, nil)),
	}
	of := identity.Options{Issuers: []identity.Issuer{{URL: f.idp.URL, Audience: "sigstore", Type: identity.Email, AllowHTTP: true}}, Now: f.clock}
	if before != nil {
		of.Previous = before.Identity
	}
	if o.Identity, err = identity.New(of); err != nil {
		return ca.Options{}, nil, err
	}
	f.change(&o)
	return o, func() { f.loaded++ }, nil
}

// tick lets the CA look at its files, and returns when it has.
func (f *followed) tick() {
	f.ticks <- time.Time{}
	f.ticks <- time.Time{} // taken when what the first brought about is over
}

func TestAPairIsSwappedUnderLoad(t *testing.T) {
	now := time.Now()
	pairs := []pair{newPair(t, "a", now), newPair(t, "b", now)}
	f := follow(t, pairs[0])
	roots, published := x509.NewCertPool(), map[string]*x509.Certificate{}
	for _, p := range pairs {
		roots.AddCert(p.certs[1])
		published[strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.certs[0].Raw})))] = p.certs[0]
	}
	key := newClientKey(t, "P-256")
	req := ca.Request{Token: f.token(), PublicKey: []byte(key.pem(t)), Proof: key.prove(t, "alice@example.com")}

	ctx, cancel := context.WithCancel(t.Context())
	var issued atomic.Int64
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for ctx.Err() == nil {
				c, err := f.ca.Issue(t.Context(), req)
				if err != nil {
					t.Error(err)
					return
				}
				leaf, err := x509.ParseCertificate(c.DER)
				if err != nil {
					t.Error(err)
					return
				}
				issuing := published[c.PEM[1]]
				if issuing == nil {
					t.Errorf("a certificate came with an issuing certificate that was never published")
					return
				}
				pool := x509.NewCertPool()
				pool.AddCert(issuing)
				leaf.UnhandledCriticalExtensions = nil
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: pool, CurrentTime: f.clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}); err != nil {
					t.Errorf("a certificate does not verify under the chain that it came with: %v", err)
					return
				}
				issued.Add(1)
			}
		})
	}
	const swaps = 200
	for n := 1; n <= swaps && !t.Failed(); n++ {
		p := pairs[n%2]
		switch n % 4 {
		case 0, 1: // at one instant
			f.volume.swap(p)
		case 2: // the key first
			f.volume.write("key.pem", p.key)
			f.ticks <- time.Time{}
			f.volume.write("chain.pem", p.chain[:len(p.chain)/3])
			f.ticks <- time.Time{}
			f.volume.write("chain.pem", p.chain)
		case 3: // the chain first
			f.volume.write("chain.pem", p.chain)
			f.ticks <- time.Time{}
			f.volume.write("key.pem", p.key[:40])
			f.ticks <- time.Time{}
			f.volume.write("key.pem", p.key)
		}
		f.tick()
		c, err := f.ca.Issue(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if published[c.PEM[1]] != p.certs[0] {
			t.Fatalf("swap %d: the pair in the files is not in force", n)
		}
	}
	cancel()
	workers.Wait()
	f.stop()
	t.Logf("%d certificates during %d swaps", issued.Load(), swaps)
	if got := f.metric("ca_config_generation"); got < swaps+1 {
		t.Errorf("generation %v after %d swaps", got, swaps)
	}
	if got := f.metric("ca_config_reload_failed"); got != 0 {
		t.Errorf("ca_config_reload_failed is %v with good files", got)
	}
	if n := f.idp.Fetches(); n != 1 {
		t.Errorf("the issuer's keys were fetched %d times, want once", n)
	}
}

// metric returns the only value of a metric with the labels, name, value, ….
func (f *followed) metric(name string, labels ...string) float64 {
	return gathered(f.t, f.registry, name, labels...)
}

// gathered sums the values of a metric's series that have the labels, name, value, …; of a histogram, the counts.
func gathered(t testing.TB, registry *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	series:
		for _, m := range family.GetMetric() {
			have := map[string]string{}
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			for i := 0; i+1 < len(labels); i += 2 {
				if have[labels[i]] != labels[i+1] {
					continue series
				}
			}
			found = true
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	if !found {
		t.Errorf("there is no metric %s with %q", name, labels)
	}
	return sum
}

func TestAWrongConfigurationLeavesTheOldOneInForce(t *testing.T) {
	now := time.Now()
	a, b := newPair(t, "a", now), newPair(t, "b", now)
	expired := newPair(t, "expired", now.Add(-11*365*24*time.Hour))
	f := follow(t, a)
	inForce := func(doing string, want pair, failed float64) {
		t.Helper()
		r := f.issueFrom(f.ca)
		if len(r) == 0 || !r[1].Equal(want.certs[0]) {
			t.Errorf("%s: the wrong chain is in force", doing)
		}
		if got := f.metric("ca_config_reload_failed"); got != failed {
			t.Errorf("%s: ca_config_reload_failed is %v, want %v", doing, got, failed)
		}
		if notes := strings.Join(f.ca.Notes(), "\n"); strings.Contains(notes, "refused") != (failed == 1) {
			t.Errorf("%s: notes %q", doing, notes)
		}
		if err := f.ca.Ready(t.Context()); err != nil {
			t.Errorf("%s: not ready: %v", doing, err)
		}
	}
	for name, bad := range map[string]pair{
		"a key of another chain": {key: b.key, chain: a.chain},
		"a key that is cut":      {key: b.key[:50], chain: b.chain},
		"a chain that is cut":    {key: b.key, chain: b.chain[:len(b.chain)-100]},
		"no chain":               {key: b.key},
		"an expired chain":       expired,
	} {
		f.volume.swap(bad)
		f.tick()
		f.tick()
		inForce(name, a, 1)
		f.volume.swap(a)
		f.tick()
		inForce("after "+name, a, 0)
	}
	f.change = func(o *ca.Options) { o.Lifetime = 2 * time.Hour }
	f.hangups <- os.Interrupt
	f.tick()
	if !strings.Contains(f.logged(), "configuration refused; the one before it stays in force") || !strings.Contains(f.logged(), "certificate lifetime 2h0m0s") {
		t.Error("the log does not say why the configuration was refused")
	}
	f.change = func(o *ca.Options) { o.Lifetime = 20 * time.Minute }
	generation, loaded := f.metric("ca_config_generation"), f.loaded
	f.hangups <- os.Interrupt // nothing in the files has changed
	f.tick()
	inForce("after a signal", a, 0)
	if got := f.issueFrom(f.ca)[0]; got.NotAfter.Sub(got.NotBefore) != 20*time.Minute {
		t.Errorf("valid for %s", got.NotAfter.Sub(got.NotBefore))
	}
	if f.metric("ca_config_generation") != generation+1 || f.loaded != loaded+1 {
		t.Errorf("generation %v, loaded %d times more", f.metric("ca_config_generation"), f.loaded-loaded)
	}

	// What is refused at the start starts nothing.
	f.volume.swap(pair{key: b.key, chain: a.chain})
	if _, err := ca.Open(f.load); err == nil || !strings.Contains(err.Error(), "not this certificate's key") {
		t.Errorf("opened with a key of another chain: %v", err)
	}
}

// issueFrom returns the certificates that authority gives alice.
func (f *followed) issueFrom(authority *ca.CA) []*x509.Certificate {
	f.t.Helper()
	key := newClientKey(f.t, "P-256")
	c, err := authority.Issue(context.Background(), ca.Request{Token: f.token(), PublicKey: []byte(key.pem(f.t)), Proof: key.prove(f.t, "alice-id")})
	if err != nil {
		f.t.Error(err)
		return nil
	}
	return parsePEMs(f.t, c.PEM)
}

// logged is what was logged so far.
func (f *followed) logged() string {
	f.output.mu.Lock()
	defer f.output.mu.Unlock()
	return f.logs.String()
}

func TestExpiryIsWarnedOfOnceADay(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	f := follow(t, newPair(t, "a", now))
	f.stop()
	chain := f.chainInForce()
	issuing, root := chain[0].NotAfter, chain[1].NotAfter
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name  string
		at    time.Time
		lines int
		want  string
	}{
		{"61 days", issuing.Add(-61 * day), 0, ""},
		{"60 days", issuing.Add(-60 * day), 1, "days=60"},
		{"again within the day", issuing.Add(-60*day + 23*time.Hour), 0, ""},
		{"the next day", issuing.Add(-59 * day), 1, "level=WARN"},
		{"30 days", issuing.Add(-30 * day), 1, "days=30"},
		{"just after it is under 7 days", issuing.Add(-7 * day), 1, "level=ERROR"},
		{"an hour later", issuing.Add(-7*day + time.Hour), 0, ""},
		{"over", issuing.Add(time.Hour), 1, "days=0"},
		{"of the root as well", root.Add(-day), 2, "CN=a root"},
	} {
		f.advance(tt.at.Sub(f.clock()))
		before := len(f.logged())
		f.ca.WarnOfExpiry()
		lines := f.logged()[before:]
		if n := strings.Count(lines, "a certificate of the CA expires soon"); n != tt.lines || !strings.Contains(lines, tt.want) {
			t.Errorf("%s: %d lines, want %d and %q: %s", tt.name, n, tt.lines, tt.want, lines)
		}
	}
	f.advance(now.Sub(f.clock()))
	for certificate, end := range map[string]time.Time{"issuing": issuing, "root": root} {
		if got, want := f.metric("ca_certificate_expiry_seconds", "certificate", certificate), end.Sub(now).Seconds(); got != want {
			t.Errorf("%s expires in %v s, want %v", certificate, got, want)
		}
	}
	if got, want := f.metric("ca_chain_expiry_seconds"), issuing.Sub(now).Seconds(); got != want {
		t.Errorf("chain expires in %v s, want %v", got, want)
	}
}

func (f *followed) chainInForce() []*x509.Certificate {
	f.t.Helper()
	certs := f.issueFrom(f.ca)
	if len(certs) != 3 {
		f.t.Fatal("no certificate")
	}
	return certs[1:]
}

func TestReadyMeansReady(t *testing.T) {
	left := 1000
	w := newWorld(t, func(w *world, o *ca.Options, _ *identity.Issuer) { o.Signer = brokenSigner{w.key, &left} })
	ready := func(doing, want string) {
		t.Helper()
		err := w.ca.Ready(t.Context())
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", doing, err, want)
		}
	}
	ready("at the start", "")
	used := left
	for range 10 {
		ready("probed", "")
	}
	if left != used {
		t.Errorf("probes made %d signatures", used-left)
	}
	left = 0 // from now on it fails
	if r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id")); r.status != 500 {
		t.Errorf("a broken signer: %d %s", r.status, r.body)
	}
	ready("the signer has failed", "token removed")
	used = left
	ready("the signer has failed and was tried a moment ago", "token removed")
	if left != used {
		t.Error("a second probe in the same second tried the signer again")
	}
	left = 1000
	if r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id")); r.status != 200 {
		t.Errorf("a signer that works again: %d %s", r.status, r.body)
	}
	ready("it signs again", "")

	log := &gate{fakeLog: w.log}
	w = newWorld(t, func(_ *world, o *ca.Options, _ *identity.Issuer) { o.CT = log })
	log.err = errors.New("left alone")
	ready("the CT log is down", "left alone")
	log.err = nil
	w.advance(-2 * time.Hour)
	ready("before the chain is valid", "valid from")
	w.advance(2 * time.Hour)
	ready("again", "")
}

// gate is a CT log that knows whether it is ready.
type gate struct {
	*fakeLog
	err error
}

func (g *gate) Ready(context.Context) error { return g.err }

func TestIssuersThatAreDownAreNotedOnly(t *testing.T) {
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(_ *world, o *ca.Options, _ *identity.Issuer) { o.Registerer = registry })
	if got := w.ca.Notes(); len(got) != 0 {
		t.Errorf("notes at the start: %q", got)
	}
	w.idp.SetHandler(http.NotFoundHandler())
	w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	if err := w.ca.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if got := w.ca.Notes(); len(got) != 1 || !strings.Contains(got[0], w.idp.URL) || !strings.Contains(got[0], "there are no keys") {
		t.Errorf("notes: %q", got)
	}
	if got := gathered(t, registry, "ca_issuer_fetch_failed", "oidc_issuer", w.idp.URL); got != 1 {
		t.Errorf("ca_issuer_fetch_failed is %v", got)
	}
	w.idp.SetHandler(nil)
	w.advance(10 * time.Second)
	w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	w.advance(time.Minute)
	if got := gathered(t, registry, "ca_issuer_keys_age_seconds", "oidc_issuer", w.idp.URL); got != 60 {
		t.Errorf("ca_issuer_keys_age_seconds is %v", got)
	}
	if got := gathered(t, registry, "ca_issuer_fetch_failed", "oidc_issuer", w.idp.URL); got != 0 {
		t.Errorf("ca_issuer_fetch_failed is %v", got)
	}
}

func TestTheClockMayNotGoBack(t *testing.T) {
	w := newWorld(t)
	issue := func() reply {
		return w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	}
	w.advance(30 * time.Minute)
	if r := issue(); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	old := w.idp.Token(w.clock().Add(-20*time.Minute), nil) // expired by now
	entries := len(w.log.chains)
	w.advance(-20 * time.Minute) // the chain is still valid
	for name, token := range map[string]string{"a new token": w.token(), "a token that was over": old} {
		r := w.post("/api/v2/signingCert", token, v2Body(t, newClientKey(t, "P-256"), "alice-id"))
		if r.status != 503 || !strings.Contains(r.body, "reason=clock_untrusted") || r.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	if len(w.log.chains) != entries {
		t.Error("a precertificate was logged")
	}
	if err := w.ca.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("ready with a clock that went back: %v", err)
	}
	w.advance(19*time.Minute + 30*time.Second) // what NTP may do
	if r := issue(); r.status != 200 {
		t.Errorf("half a minute back: %d %s", r.status, r.body)
	}
	if err := w.ca.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	// A clock that runs ahead of the log's issues nothing, and so leaves no mark.
	logTime := w.clock()
	w.log.now = func() time.Time { return logTime }
	w.advance(90 * time.Minute)
	if r := issue(); r.status != 500 || !strings.Contains(r.body, "reason=sct_invalid") {
		t.Errorf("an hour and a half ahead of the log: %d %s", r.status, r.body)
	}
	w.advance(-90 * time.Minute)
	if r := issue(); r.status != 200 {
		t.Errorf("set right again: %d %s", r.status, r.body)
	}
	// And one that runs behind it gets an SCT from the future.
	logTime = w.clock().Add(2 * time.Minute)
	if r := issue(); r.status != 500 || !strings.Contains(r.body, "reason=sct_invalid") {
		t.Errorf("an SCT from the future: %d %s", r.status, r.body)
	}
}
