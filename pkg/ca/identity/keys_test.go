package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

func TestAWithdrawnKeyCountsForTenMinutesAtMost(t *testing.T) {
	for name, idle := range map[string]time.Duration{"after ten minutes": 10*time.Minute + time.Second, "after a night": 9 * time.Hour, "after a month": 30 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			p, c := identitytest.New(t), newClock()
			v := verifier(t, c, emailIssuer(p))
			if _, err := v.Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
				t.Fatal(err)
			}
			p.SetKeys(jose.JSONWebKey{Key: p.PrivateKey("rs").Public(), KeyID: "rs", Use: "sig"})
			c.advance(idle)
			_, err := v.Verify(context.Background(), p.Token(c.now(), nil))
			wantReason(t, err, "bad_signature")
		})
	}
	t.Run("once an issuer that was down is back", func(t *testing.T) {
		p, c := identitytest.New(t), newClock()
		v := verifier(t, c, emailIssuer(p))
		verify := func() error {
			_, err := v.Verify(context.Background(), p.Token(c.now(), nil))
			return err
		}
		if err := verify(); err != nil {
			t.Fatal(err)
		}
		p.SetHandler(http.NotFoundHandler())
		c.advance(11 * time.Minute)
		if err := verify(); err != nil {
			t.Fatalf("issuer down, keys known: %v", err)
		}
		p.SetHandler(nil)
		p.SetKeys(jose.JSONWebKey{Key: p.PrivateKey("rs").Public(), KeyID: "rs", Use: "sig"})
		c.advance(11 * time.Minute)
		wantReason(t, verify(), "bad_signature")
	})
}

func TestKeysOfASilentIssuerServeForADay(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v := verifier(t, c, emailIssuer(p))
	verify := func() error {
		_, err := v.Verify(context.Background(), p.Token(c.now(), nil))
		return err
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	p.SetHandler(http.NotFoundHandler())
	for range 23 {
		c.advance(time.Hour)
		if err := verify(); err != nil {
			t.Fatal(err)
		}
	}
	c.advance(61 * time.Minute)
	wantReason(t, verify(), "issuer_unreachable")
	p.SetHandler(nil)
	wantReason(t, verify(), "issuer_unreachable") // it was asked a moment ago
	c.advance(4 * time.Second)
	if err := verify(); err != nil {
		t.Error(err)
	}
}

func TestKeysAreFetchedAnewBeforeTheyAreTooOld(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v := verifier(t, c, emailIssuer(p))
	if _, err := v.Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
		t.Fatal(err)
	}
	release, entered := make(chan struct{}), make(chan struct{}, 2)
	p.SetHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
		http.NotFound(w, r)
	}))
	defer close(release)
	c.advance(10*time.Minute - time.Second)
	// The issuer does not answer yet, and the token does not wait for it.
	if _, err := v.Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
		t.Fatal(err)
	}
	<-entered
}

func TestAFloodOfUnknownKeysFetchesEveryTenSeconds(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	v := verifier(t, c, emailIssuer(p))
	stranger := identitytest.NewECKey(t)
	payload, err := json.Marshal(p.Claims(c.now(), map[string]any{"exp": c.now().Add(time.Hour).Unix()}))
	if err != nil {
		t.Fatal(err)
	}
	var good atomic.Int64
	for second := range 60 {
		var wg sync.WaitGroup
		for k := range 20 {
			forged := identitytest.Sign(t, stranger, fmt.Sprintf("kid-%d-%d", second, k), jose.ES256, payload)
			wg.Go(func() {
				if _, err := v.Verify(context.Background(), forged); err == nil {
					t.Error("a stranger's key was accepted")
				}
				if _, err := v.Verify(context.Background(), p.Token(c.now(), nil)); err == nil {
					good.Add(1)
				}
			})
		}
		wg.Wait()
		c.advance(time.Second)
	}
	if n := p.Fetches(); n > 7 {
		t.Errorf("%d fetches in a minute of 1,200 unknown keys, want at most 7", n)
	}
	if good.Load() != 60*20 {
		t.Errorf("%d of 1200 good tokens were accepted beside them", good.Load())
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// drip is a body of one byte a second, until the request ends.
type drip struct{ ctx context.Context }

func (d drip) Read(p []byte) (int, error) {
	select {
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	case <-time.After(time.Second):
		p[0] = ' '
		return 1, nil
	}
}

// endless is a body that counts what is taken of it.
type endless struct{ taken *atomic.Int64 }

func (e endless) Read(p []byte) (int, error) {
	for k := range p {
		p[k] = ' '
	}
	e.taken.Add(int64(len(p)))
	return len(p), nil
}

func answer(r *http.Request, body io.Reader) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Header: http.Header{}, Body: io.NopCloser(body), Request: r}
}

func TestIssuersThatWasteOurTime(t *testing.T) {
	p := identitytest.New(t)
	var taken atomic.Int64
	discovery := func(r *http.Request) io.Reader {
		return strings.NewReader(`{"issuer":"https://` + r.URL.Host + `","jwks_uri":"https://` + r.URL.Host + `/keys"}`)
	}
	for _, tt := range []struct {
		name    string
		answer  roundTrip
		seconds int
	}{
		{"never answer", func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() }, 10},
		{"answer a byte a second", func(r *http.Request) (*http.Response, error) { return answer(r, drip{r.Context()}), nil }, 10},
		{"give their keys a byte a second", func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/keys" {
				return answer(r, drip{r.Context()}), nil
			}
			return answer(r, discovery(r)), nil
		}, 10},
		{"give keys without end", func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == "/keys" {
				return answer(r, io.MultiReader(strings.NewReader(`{"keys":[`), endless{&taken})), nil
			}
			return answer(r, discovery(r)), nil
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := identity.Issuer{URL: "https://slow.example.com", Audience: "sigstore", Type: identity.Email}
				quick := identity.Issuer{URL: "https://quick.example.com", Audience: "sigstore", Type: identity.Email}
				v, err := identity.New(identity.Options{Issuers: []identity.Issuer{slow, quick}, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					switch {
					case r.URL.Host == "slow.example.com":
						return tt.answer(r)
					case r.URL.Path == "/keys":
						return answer(r, bytes.NewReader(p.JWKS())), nil
					default:
						return answer(r, strings.NewReader(`{"issuer":"https://quick.example.com","jwks_uri":"https://quick.example.com/keys","id_token_signing_alg_values_supported":["ES256"]}`)), nil
					}
				})})
				if err != nil {
					t.Fatal(err)
				}
				token := func(i identity.Issuer) string { return p.Token(time.Now(), map[string]any{"iss": i.URL}) }
				start := time.Now()
				ended := make(chan error, 1)
				go func() {
					_, err := v.Verify(context.Background(), token(slow))
					ended <- err
				}()
				synctest.Wait()
				if _, err := v.Verify(context.Background(), token(quick)); err != nil {
					t.Errorf("another issuer: %v", err)
				}
				if d := time.Since(start); d != 0 {
					t.Errorf("another issuer's token waited %v", d)
				}
				wantReason(t, <-ended, "issuer_unreachable")
				if d := time.Since(start); d != time.Duration(tt.seconds)*time.Second {
					t.Errorf("ended after %v, want %d s", d, tt.seconds)
				}
			})
		})
	}
	if n := taken.Load(); n == 0 || n > 2<<20 {
		t.Errorf("%d bytes of endless keys were read", n)
	}
}

func TestAHungIssuerHoldsNoMoreThanItsShareOfRequests(t *testing.T) {
	p := identitytest.New(t)
	synctest.Test(t, func(t *testing.T) {
		v, err := identity.New(identity.Options{
			Issuers: []identity.Issuer{{URL: "https://slow.example.com", Audience: "sigstore", Type: identity.Email}},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		token := p.Token(time.Now(), map[string]any{"iss": "https://slow.example.com"})
		var wg sync.WaitGroup
		errs := make(chan error, 200)
		for range 200 {
			wg.Go(func() {
				_, err := v.Verify(context.Background(), token)
				errs <- err
			})
		}
		synctest.Wait()
		if n := len(errs); n != 200-128 {
			t.Errorf("%d requests were turned away at once, want 72", n)
		}
		for range len(errs) {
			wantReason(t, <-errs, "rate_limited")
		}
		wg.Wait()
		for range len(errs) {
			wantReason(t, <-errs, "issuer_unreachable")
		}
	})
}

func TestManyTokensOfOneNewIssuerOfAPatternAreOneContact(t *testing.T) {
	p := identitytest.New(t)
	synctest.Test(t, func(t *testing.T) {
		v, err := identity.New(identity.Options{
			Issuers: []identity.Issuer{{URL: "https://*.clusters.example.com", Wildcard: true, Audience: "sigstore", Type: identity.Email}},
			Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		verify := func(host string, want string) {
			token := p.Token(time.Now(), map[string]any{"iss": "https://" + host + ".clusters.example.com"})
			wg.Go(func() {
				_, err := v.Verify(context.Background(), token)
				wantReason(t, err, want)
			})
		}
		for range 20 {
			verify("a", "issuer_unreachable")
		}
		for k := range 7 {
			verify(fmt.Sprint("b", k), "issuer_unreachable")
		}
		synctest.Wait()
		verify("one-too-many", "rate_limited")
		wg.Wait()
	})
}

func TestKeysMayNotBeOnAnotherPrivateHost(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(p.JWKS()) }))
	t.Cleanup(elsewhere.Close)
	p.SetDiscovery("jwks_uri", elsewhere.URL+"/keys")
	i := emailIssuer(p)
	_, err := verifier(t, c, i).Verify(context.Background(), p.Token(c.now(), nil))
	wantReason(t, err, "issuer_unreachable")
	if !strings.Contains(fmt.Sprint(err), "allow-private-network") {
		t.Errorf("error %v does not say what to set", err)
	}
	i.AllowPrivateNetwork = true
	if _, err := verifier(t, c, i).Verify(context.Background(), p.Token(c.now(), nil)); err != nil {
		t.Error(err)
	}
	p.SetDiscovery("jwks_uri", p.URL+"/away")
	p.SetHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, elsewhere.URL+"/keys", http.StatusFound)
			return
		}
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"id_token_signing_alg_values_supported":["ES256"]}`, p.URL, p.URL+"/away")
	}))
	_, err = verifier(t, c, i).Verify(context.Background(), p.Token(c.now(), nil))
	wantReason(t, err, "issuer_unreachable")
}

// counted returns a counter's value by its outcome.
func counted(t *testing.T, reg *prometheus.Registry, name, outcome string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == outcome {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestAFileOfKeysIsReadAgainWhenItChanges(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	dir := t.TempDir()
	// As Kubernetes mounts it: the name is a link to a directory that is replaced as a whole.
	place := func(version string, data []byte) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, "jwks.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		link := filepath.Join(dir, "new")
		if err := errors.Join(os.Symlink(version, link), os.Rename(link, filepath.Join(dir, "data"))); err != nil {
			t.Fatal(err)
		}
	}
	place("1", p.JWKS())
	i := emailIssuer(p)
	i.JWKSFile = filepath.Join(dir, "data", "jwks.json")
	reg, logs := prometheus.NewRegistry(), new(bytes.Buffer)
	v, err := identity.New(identity.Options{Issuers: []identity.Issuer{i}, Now: c.now, Registry: reg, Logger: slog.New(slog.NewTextHandler(logs, nil))})
	if err != nil {
		t.Fatal(err)
	}
	check := func(kid, reason string) {
		t.Helper()
		payload, err := json.Marshal(p.Claims(c.now(), nil))
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Verify(context.Background(), p.Sign(kid, jose.ES256, payload))
		if reason == "" && err != nil {
			t.Error(err)
		}
		if reason != "" {
			wantReason(t, err, reason)
		}
	}
	check("es", "")
	p.SetKeys()
	p.AddKey("new", identitytest.NewECKey(t))
	place("2", p.JWKS())
	check("es", "") // looked at a moment ago
	c.advance(time.Second)
	check("new", "")
	check("es", "bad_signature")

	place("3", []byte(`{"keys":`))
	for range 5 {
		c.advance(time.Second)
		check("new", "")
	}
	if n := counted(t, reg, "ca_issuer_key_file_reads_total", "error"); n != 1 || strings.Count(logs.String(), "level=WARN") != 1 {
		t.Errorf("a broken file was counted %v times, logged:\n%s", n, logs)
	}
	if err := os.Remove(filepath.Join(dir, "data")); err != nil {
		t.Fatal(err)
	}
	c.advance(time.Second)
	check("new", "")
	place("4", p.JWKS())
	c.advance(time.Second)
	check("new", "")
	if n := counted(t, reg, "ca_issuer_key_file_reads_total", "error"); n != 2 {
		t.Errorf("%v errors were counted, want the broken and the missing file", n)
	}
	if n := counted(t, reg, "ca_issuer_key_file_reads_total", "ok"); n != 2 {
		t.Errorf("%v changes were counted, want 2", n)
	}
	if p.Fetches() != 0 {
		t.Error("keys were fetched beside the file")
	}
	i.JWKSFile = filepath.Join(dir, "3", "jwks.json")
	if _, err := identity.New(identity.Options{Issuers: []identity.Issuer{i}}); err == nil {
		t.Error("a file that is wrong at first was accepted")
	}
}

// tlsIssuer serves p's keys over TLS with a certificate that can be replaced.
type tlsIssuer struct {
	*httptest.Server
	cert    atomic.Pointer[tls.Certificate]
	fetches atomic.Int64
}

func newTLSIssuer(t *testing.T, p *identitytest.Provider) *tlsIssuer {
	i := &tlsIssuer{}
	i.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			i.fetches.Add(1)
			w.Write(p.JWKS())
			return
		}
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"id_token_signing_alg_values_supported":["ES256"]}`, i.URL, i.URL+"/keys")
	}))
	i.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.cert.Load(), nil }}
	i.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	i.Config.SetKeepAlivesEnabled(false)
	i.StartTLS()
	i.TLS.Certificates = nil // httptest's own
	t.Cleanup(i.Close)
	return i
}

// rotate replaces the certificate and returns the new one as PEM.
func (i *tlsIssuer) rotate(t *testing.T) []byte {
	t.Helper()
	key := identitytest.NewECKey(t)
	der, err := selfSigned(key)
	if err != nil {
		t.Fatal(err)
	}
	i.cert.Store(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func selfSigned(key *ecdsa.PrivateKey) ([]byte, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "issuer"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}

func TestCAFilesAreReadForEachFetch(t *testing.T) {
	for _, inCluster := range []bool{false, true} {
		t.Run(fmt.Sprintf("in the cluster %t", inCluster), func(t *testing.T) {
			p, c := identitytest.New(t), newClock()
			s := newTLSIssuer(t, p)
			dir := t.TempDir()
			file := filepath.Join(dir, "ca.crt")
			i := identity.Issuer{URL: s.URL, Audience: "sigstore", Type: identity.Kubernetes}
			issuers := []identity.Issuer{i}
			if inCluster {
				issuers = append(issuers, identity.Issuer{URL: "https://kubernetes.default.svc", Audience: "sigstore", Type: identity.Kubernetes})
			} else {
				issuers[0].CACertFile = file
			}
			options := identity.Options{Issuers: issuers, Now: c.now, InClusterDir: dir}
			if _, err := identity.New(options); err == nil {
				t.Fatal("a CA file that is missing was accepted")
			}
			write := func(data []byte) {
				t.Helper()
				if err := os.WriteFile(file, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(s.rotate(t))
			v, err := identity.New(options)
			if err != nil {
				t.Fatal(err)
			}
			check := func(fetches int64) {
				t.Helper()
				_, err := v.Verify(context.Background(), p.Token(c.now(), map[string]any{
					"iss": s.URL, "sub": "system:serviceaccount:prod:builder",
					"kubernetes.io": map[string]any{"namespace": "prod", "serviceaccount": map[string]any{"name": "builder"}},
				}))
				if err != nil {
					t.Error(err)
				}
				if n := s.fetches.Load(); n != fetches {
					t.Errorf("keys were served %d times, want %d", n, fetches)
				}
			}
			check(1)
			next := s.rotate(t)
			c.advance(11 * time.Minute)
			check(1) // the new certificate is not trusted yet, the keys at hand serve
			write(next)
			c.advance(11 * time.Minute)
			check(2)
		})
	}
}

func TestThePodsTokenGoesToTheAPIServerAlone(t *testing.T) {
	p, c := identitytest.New(t), newClock()
	dir := t.TempDir()
	der, err := selfSigned(identitytest.NewECKey(t))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write("token", []byte("first\n"))
	var mu sync.Mutex // guards asked
	var asked []string
	transport := roundTrip(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.URL.Host+r.URL.Path+" "+r.Header.Get("Authorization"))
		if strings.HasSuffix(r.URL.Path, "jwks") {
			return answer(r, bytes.NewReader(p.JWKS())), nil
		}
		issuer := "https://" + r.URL.Host
		if r.URL.Host == "kubernetes.default.svc" { // asked in place of the issuer's own name
			issuer = "https://k8s.example.com"
		}
		// kube-apiserver names itself by an address unless told otherwise.
		return answer(r, strings.NewReader(`{"issuer":"`+issuer+`","jwks_uri":"https://172.18.0.2:6443/openid/v1/jwks","id_token_signing_alg_values_supported":["ES256"]}`)), nil
	})
	kubernetes := func(url, discovery string) identity.Issuer {
		return identity.Issuer{URL: url, DiscoveryURL: discovery, Audience: "sigstore", Type: identity.Kubernetes}
	}
	v, err := identity.New(identity.Options{Now: c.now, InClusterDir: dir, Transport: transport, Issuers: []identity.Issuer{
		kubernetes("https://kubernetes.default.svc.cluster.local", ""), kubernetes("https://k8s.example.com", "https://kubernetes.default.svc"),
		kubernetes("https://other.example.com", ""), kubernetes("https://kubernetes.default.evil.example.com", ""),
	}})
	if err != nil {
		t.Fatal(err)
	}
	const discovery = "/.well-known/openid-configuration "
	check := func(issuer string, want ...string) {
		t.Helper()
		asked = nil
		_, err := v.Verify(context.Background(), p.Token(c.now(), map[string]any{
			"iss": issuer, "sub": "system:serviceaccount:prod:builder",
			"kubernetes.io": map[string]any{"namespace": "prod", "serviceaccount": map[string]any{"name": "builder"}},
		}))
		if err != nil {
			t.Errorf("%s: %v", issuer, err)
		}
		if fmt.Sprint(asked) != fmt.Sprint(want) {
			t.Errorf("%s: asked %q, want %q", issuer, asked, want)
		}
	}
	const local = "kubernetes.default.svc.cluster.local"
	check("https://"+local, local+discovery+"Bearer first", local+"/openid/v1/jwks Bearer first")
	check("https://k8s.example.com", "kubernetes.default.svc"+discovery+"Bearer first", "kubernetes.default.svc/openid/v1/jwks Bearer first")
	check("https://other.example.com", "other.example.com"+discovery, "172.18.0.2:6443/openid/v1/jwks ")
	check("https://kubernetes.default.evil.example.com", "kubernetes.default.evil.example.com"+discovery, "172.18.0.2:6443/openid/v1/jwks ")
	write("token", []byte("second\n")) // the kubelet rotates it
	c.advance(11 * time.Minute)
	check("https://"+local, local+discovery+"Bearer second", local+"/openid/v1/jwks Bearer second")
}
