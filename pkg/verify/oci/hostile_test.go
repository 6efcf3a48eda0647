package oci

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/verify"
)

const anyDigest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

// registryAt returns access to a server as a person names it.
func registryAt(t *testing.T, h http.HandlerFunc) (*Registry, Image) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "http://")
	r, err := NewRegistry(Options{Named: []string{host}, Insecure: []string{host}, Timeout: 300 * time.Millisecond, RetryWait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, Image{Name: host + "/app", Digest: anyDigest}
}

func TestHostileRegistriesAreRefusedWithAReason(t *testing.T) {
	index := func(w http.ResponseWriter) { w.Header().Set("Content-Type", typeIndex) }
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		reason  verify.Reason
	}{
		{"a list of referrers without an end", func(w http.ResponseWriter, _ *http.Request) {
			index(w)
			for i := 0; i < maxManifest>>9; i++ {
				fmt.Fprint(w, strings.Repeat(" ", 1<<10))
			}
		}, verify.ReasonTooLarge},
		{"pages of referrers without an end", func(w http.ResponseWriter, r *http.Request) {
			index(w)
			w.Header().Set("Link", "<"+r.URL.Path+`?n=1>; rel="next"`)
			fmt.Fprint(w, `{"manifests":[]}`)
		}, verify.ReasonTooLarge},
		{"a next page at another host", func(w http.ResponseWriter, _ *http.Request) {
			index(w)
			w.Header().Set("Link", `<http://127.0.0.2/v2/app/referrers/x>; rel="next"`)
			fmt.Fprint(w, `{"manifests":[]}`)
		}, verify.ReasonRegistryBlocked},
		{"redirects in a circle", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, verify.ReasonRegistryBlocked},
		{"a redirect into the machine", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.2:1/latest/meta-data", http.StatusFound)
		}, verify.ReasonRegistryBlocked},
		{"a token server elsewhere", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://127.0.0.2:1/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}, verify.ReasonRegistryBlocked},
		{"another manifest than was asked for", func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/referrers/") {
				index(w)
				fmt.Fprintf(w, `{"manifests":[{"digest":%q,"artifactType":%q}]}`, anyDigest, typeBundle)
				return
			}
			if strings.HasSuffix(r.URL.Path, ".sig") || strings.HasSuffix(r.URL.Path, ".att") {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			fmt.Fprint(w, `{"config":{}}`)
		}, verify.ReasonImageMalformed},
		{"an answer that is packed", func(w http.ResponseWriter, _ *http.Request) {
			index(w)
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, "\x1f\x8b")
		}, verify.ReasonImageMalformed},
		{"an answer that never ends", func(w http.ResponseWriter, r *http.Request) {
			index(w)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, verify.ReasonRegistryUnreachable},
		{"too many requests", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
		}, verify.ReasonRegistryUnreachable},
		{"an internal error", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, verify.ReasonRegistryUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, image := registryAt(t, tt.handler)
			found, err := r.Attachments(t.Context(), image)
			if len(found) != 0 || verify.ReasonOf(err) != tt.reason {
				t.Errorf("found %d, reason %s: %v; want %s", len(found), verify.ReasonOf(err), err, tt.reason)
			}
		})
	}
}

func TestAddressesThatMustNotBeAsked(t *testing.T) {
	g := &guard{
		prefixes: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		hosts:    []Host{{Name: ".corp.example", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24")}}},
	}
	for address, refused := range map[string]bool{
		"127.0.0.1": true, "10.0.0.1": true, "172.16.0.1": true, "192.168.0.1": true, "169.254.169.254": true, "100.64.0.1": true,
		"0.0.0.0": true, "224.0.0.1": true, "255.255.255.255": true, "::1": true, "::": true, "fe80::1": true, "fc00::1": true,
		"::ffff:127.0.0.1": true, "2002:7f00:1::": true, "64:ff9b::7f00:1": true, "10.1.2.3": false, "1.1.1.1": false, "2606:4700::1111": false,
	} {
		if err := g.check("evil.example", "443", netip.AddrPortFrom(netip.MustParseAddr(address), 443).String()); (err != nil) != refused {
			t.Errorf("%s: %v, refused should be %v", address, err, refused)
		}
	}
	if err := g.check("reg.corp.example", "443", "192.168.0.7:443"); err != nil {
		t.Errorf("a listed host in its own network: %v", err)
	}
}

// The ranges that are no business of a registry, each by an address of its own.
func TestEverySpecialRangeIsBlocked(t *testing.T) {
	g := &guard{}
	for _, address := range []string{
		"192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "239.1.1.1", "240.0.0.1",
		"100.127.255.255", "172.31.255.255", "::127.0.0.1", "::ffff:10.0.0.1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "fdff::1", "fe80::1%lo",
		"fec0::1", "ff02::1", "::ffff:0:127.0.0.1", "64:ff9b::8.8.8.8", "3fff::1", "5f00::1", "100:0:0:1::1", "4000::1",
	} {
		err := g.check("a.example", "443", netip.AddrPortFrom(netip.MustParseAddr(address), 443).String())
		if verify.ReasonOf(err) != verify.ReasonRegistryBlocked {
			t.Errorf("%s: %v, want %s", address, err, verify.ReasonRegistryBlocked)
		}
	}
	for _, address := range []string{"100.63.255.255", "100.128.0.0", "172.32.0.1", "198.17.255.255", "::ffff:8.8.8.8"} { // beside a range
		if err := g.check("a.example", "443", netip.AddrPortFrom(netip.MustParseAddr(address), 443).String()); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// An exception is for the host and the port that it names, by whole labels.
func TestExceptionsAreForTheHostTheyName(t *testing.T) {
	open := []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("fd00:1::/32")}
	g := &guard{hosts: []Host{
		{Name: "Tokens.corp.example", Prefixes: open},
		{Name: ".stores.corp.example:8443", Prefixes: open},
		{Name: "[fd00:1::9]:5000", Prefixes: open},
	}}
	for _, tt := range []struct {
		host, port, address string
		open                bool
	}{
		{"tokens.corp.example", "443", "10.2.0.1:443", true},
		{"TOKENS.corp.example.", "443", "10.2.0.1:443", true},
		{"tokens.corp.example", "443", "[::ffff:10.2.0.1]:443", true},
		{"tokens.corp.example", "443", "10.3.0.1:443", false},
		{"x.tokens.corp.example", "443", "10.2.0.1:443", false},
		{"tokens.corp.example.evil.example", "443", "10.2.0.1:443", false},
		{"s3.stores.corp.example", "8443", "[fd00:1::5]:8443", true},
		{"s3.stores.corp.example", "443", "[fd00:1::5]:443", false},
		{"stores.corp.example", "8443", "[fd00:1::5]:8443", false},
		{"evilstores.corp.example", "8443", "[fd00:1::5]:8443", false},
		{"fd00:1::9", "5000", "[fd00:1::9]:5000", true},
		{"fd00:1::9", "443", "[fd00:1::9]:443", false},
	} {
		err := g.check(tt.host, tt.port, tt.address)
		if tt.open && err != nil {
			t.Errorf("%s:%s at %s: %v", tt.host, tt.port, tt.address, err)
		}
		if !tt.open && verify.ReasonOf(err) != verify.ReasonRegistryBlocked {
			t.Errorf("%s:%s at %s: %v, want %s", tt.host, tt.port, tt.address, err, verify.ReasonRegistryBlocked)
		}
	}
}
