package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// front is one URL for many servers, as a load balancer is.
type front struct {
	url string
	mux *http.ServeMux
}

func newFront(t *testing.T) *front {
	t.Helper()
	f := &front{mux: http.NewServeMux()}
	srv := httptest.NewServer(f.mux)
	t.Cleanup(srv.Close)
	f.url = strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	return f
}

// balance sends requests below the paths to the servers, host:port, in turn. A server that cannot be reached is
// passed over. A request that its server did not answer is not answered here either.
func (f *front) balance(servers []string, paths ...string) {
	var turn atomic.Uint64
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		var errs []error
		first := turn.Add(1)
		for i := range servers {
			conn, err := new(net.Dialer).DialContext(ctx, network, servers[(first+uint64(i))%uint64(len(servers))])
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { // the Host stays as it came: Rekor v2 logs are told apart by it
			r.Out.URL.Scheme, r.Out.URL.Host = "http", r.In.Host
			r.SetXForwarded()
		},
		Transport:    &http.Transport{DialContext: dial, DisableKeepAlives: true}, // so that every request has its turn
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	for _, path := range paths {
		f.mux.Handle(path, proxy)
	}
}

// newSite starts `attestry up` and, in place of its logs, tlog servers on the backend behind the same URL. The files
// for clients are those of a tuf-publisher that knows the logs. A backend that takes a CT log has the program ca
// submit there, with the keys of `up`.
func newSite(t *testing.T, b backend) (*stack, *tlogs) {
	t.Helper()
	f := newFront(t)
	s := newStack(t, filepath.Join(t.TempDir(), "data"), "--url", f.url)
	s.url = f.url
	f.balance([]string{s.listen}, "/")
	s.start()

	chain := readFile(t, filepath.Join(s.dir, "keys", "ca-chain.pem"))
	logs := newTlogs(t, b, chain[strings.LastIndex(chain, "-----BEGIN"):])
	f.balance(logs.addresses(), "/api/v1/log", "/api/v1/log/", "/api/v1/index/")
	if slices.Contains(b.logs, rekor2) {
		f.balance(logs.addresses(), "/api/v2/log/", "/api/v2/checkpoint", "/api/v2/tile/")
	}
	s.logs = append(slices.Clone(b.logs), ctLog)
	ctKey := filepath.Join(s.dir, "client", "ctfe.pem")
	if slices.Contains(b.logs, ctLog) {
		s.logs = b.logs
		ctKey = filepath.Join(logs.dir, "ct.pub")
		f.balance(logs.addresses(), "/ct/")
		write(t, filepath.Join(logs.dir, "issuers.yaml"), fmt.Sprintf("oidc-issuers:\n  %s:\n    client-id: sigstore\n    type: email\n    allow-http: true\n", s.issuer()))
		issuing := startRole(t, ca, logs.dir, "ca", fmt.Sprintf("key: file:%s/keys/ca.pem\nchain-file: %[1]s/keys/ca-chain.pem\nissuer-file: %s/issuers.yaml\nct-url: %s/ct/main\nct-public-key-file: %s\n",
			s.dir, logs.dir, f.url, ctKey))
		f.balance([]string{issuing.listen}, "/api/v1/signingCert", "/api/v1/rootCert", "/api/v2/signingCert", "/api/v2/trustBundle", "/api/v2/configuration")
	}

	s.files = filepath.Join(logs.dir, "client")
	s.publish(logs, ctKey)
	f.mux.Handle("/tuf/", http.StripPrefix("/tuf/", http.FileServer(http.Dir(filepath.Join(logs.dir, "tuf")))))
	return s, logs
}

// publish makes the TUF repository and the files for clients.
func (s *stack) publish(logs *tlogs, ctKey string) {
	s.t.Helper()
	start := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)
	records := fmt.Sprintf("  - {kind: ca, url: %q, chain-file: %s/keys/ca-chain.pem}\n", s.url, s.dir) +
		fmt.Sprintf("  - {kind: tsa, url: %q, chain-file: %s/keys/tsa-chain.pem}\n", s.url+"/api/v1/timestamp", s.dir)
	add := func(kind, url, origin, key string) {
		records += fmt.Sprintf("  - {kind: %s, url: %q, origin: %s, public-key-file: %s, start: %q}\n", kind, url, origin, key, start)
	}
	add("ctlog", s.url+"/ct/main", "localhost/ct/main", ctKey)
	for _, v := range s.rekors() {
		origin := "localhost"
		if v.name == rekor1 {
			var info tree
			if err := getJSON(s.t.Context(), http.MethodGet, s.url+"/api/v1/log", "", &info); err != nil {
				s.t.Fatal(err)
			}
			origin += " - " + info.TreeID
		}
		add("rekor"+v.number, s.url, origin, filepath.Join(logs.dir, "rekor"+v.number+".pub"))
	}
	config := filepath.Join(logs.dir, "tuf-publisher.yaml")
	write(s.t, config, fmt.Sprintf("dir: %s/tuf\nkeys-dir: %[1]s/tuf-keys\ncreate-keys: true\ninventory: %[1]s/inventory.jsonl\noidc-issuers: [%q]\nclient-dir: %s\nurl: %q\ntuf-url: %q\nrecords:\n%s",
		logs.dir, s.issuer(), s.files, s.url, s.url+"/tuf", records))
	newSandbox(s.t).must(tufPublisher, "-config", config, "-once")
}
