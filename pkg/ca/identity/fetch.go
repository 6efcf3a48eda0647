package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"

	"github.com/attestry/attestry/internal/limit"
)

const (
	fetchTimeout = 10 * time.Second // discovery and keys together
	maxDocument  = 1 << 20
	maxRedirects = 3
	maxKeys      = 256

	// A pod's own credentials, needed since clusters closed anonymous discovery (Fulcio #2110).
	kubernetesService = "kubernetes.default.svc"
	serviceAccount    = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// source fetches an issuer's keys: discovery first, then the JWKS that it names.
type source struct {
	issuer       string // the exact iss
	discoveryURL string // overrides where discovery is, "" for below issuer
	allowHTTP    bool
	named        []string          // hosts with port that the configuration names, none for a wildcard issuer
	allowPrivate bool              // other hosts may have private addresses
	caPEM        []byte            // trusted beside the system's and those in caFiles
	caFiles      []string          // read anew for each fetch
	tokenFile    string            // the pod's bearer token, read anew for each request; "" for none
	fixed        http.RoundTripper // replaces the network in tests

	// One fetch runs at a time, and only it uses these.
	pem     []byte          // that transports were made with
	direct  *http.Transport // for named hosts
	guarded *http.Transport // for others
}

// newSource prepares fetching for i as the issuer url (i.URL, or one that fits its pattern).
// inCluster lends the pod's CA and token, transport replaces the network in tests. CA files that
// are missing or wrong are an error.
func newSource(i *Issuer, url string, inCluster string, transport http.RoundTripper) (*source, error) {
	s := &source{
		issuer: url, discoveryURL: i.DiscoveryURL, allowHTTP: i.AllowHTTP, allowPrivate: i.AllowPrivateNetwork,
		caPEM: []byte(i.CACert), fixed: transport,
	}
	if !i.Wildcard {
		s.named = []string{hostPort(url)}
		if i.DiscoveryURL != "" {
			s.named = append(s.named, hostPort(i.DiscoveryURL))
		}
	}
	if i.CACertFile != "" {
		s.caFiles = append(s.caFiles, i.CACertFile)
	}
	if inCluster != "" {
		s.caFiles = append(s.caFiles, filepath.Join(inCluster, "ca.crt"))
		s.tokenFile = filepath.Join(inCluster, "token")
	}
	return s, s.prepare()
}

// hostPort returns host:port of a URL that the configuration has been checked to have.
func hostPort(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return withPort(u)
}

func withPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// prepare makes the transports, anew when a CA file has changed.
func (s *source) prepare() error {
	pem := s.caPEM
	for _, name := range s.caFiles {
		data, err := limit.ReadFile(name, maxDocument)
		if err != nil {
			return fmt.Errorf("CA certificates: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(data) {
			return fmt.Errorf("CA certificates: %s holds no PEM certificate", name)
		}
		pem = slices.Concat(pem, []byte("\n"), data)
	}
	if s.direct != nil && bytes.Equal(pem, s.pem) {
		return nil
	}
	var roots *x509.CertPool // the system's
	if len(pem) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return errors.New("ca-cert holds no PEM certificate")
		}
		roots = pool
	}
	if s.direct != nil {
		s.direct.CloseIdleConnections()
		s.guarded.CloseIdleConnections()
	}
	s.pem = pem
	s.direct = newTransport(&net.Dialer{Timeout: fetchTimeout}, http.ProxyFromEnvironment, roots)
	// A proxy would hide the address that is to be checked.
	s.guarded = newTransport(&net.Dialer{Timeout: fetchTimeout, Control: refusePrivate}, nil, roots)
	return nil
}

func newTransport(d *net.Dialer, proxy func(*http.Request) (*url.URL, error), roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                 proxy,
		DialContext:           d.DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   1,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: fetchTimeout,
	}
}

// transport returns how req may leave. Whoever controls a host that fits a pattern, or a discovery
// document, must not point us at our own network: only hosts that the configuration names may have
// private addresses. An exact issuer's keys on another host may come by the proxy that there is.
func (s *source) transport(req *http.Request) (http.RoundTripper, error) {
	switch {
	case s.fixed != nil:
		return s.fixed, nil
	case s.allowPrivate || slices.Contains(s.named, withPort(req.URL)):
		return s.direct, nil
	}
	if len(s.named) == 0 {
		return s.guarded, nil
	}
	proxy, err := http.ProxyFromEnvironment(req)
	if err != nil {
		return nil, err
	}
	if proxy == nil {
		return s.guarded, nil
	}
	if ip, err := netip.ParseAddr(req.URL.Hostname()); err == nil && !public(ip) {
		return nil, notPublic(ip)
	}
	return s.direct, nil
}

// checkRedirect refuses to leave the host or TLS: a redirect elsewhere would let it choose the
// issuer's keys (GHSA-f5mr-q85p-6hh6).
func (s *source) checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return errors.New("too many redirects")
	case req.URL.Host != via[0].URL.Host:
		return fmt.Errorf("redirect to another host %q refused", req.URL.Host)
	case req.URL.Scheme != via[0].URL.Scheme:
		return fmt.Errorf("redirect to scheme %q refused", req.URL.Scheme)
	}
	return nil
}

func refusePrivate(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if !public(ap.Addr()) {
		return notPublic(ap.Addr())
	}
	return nil
}

// public reports whether an address is of the internet (IANA's registries of special-purpose
// addresses). Those that wrap an IPv4 address are not: it could be any.
func public(a netip.Addr) bool {
	a = a.Unmap()
	for _, special := range []string{
		"100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16",
	} {
		if netip.MustParsePrefix(special).Contains(a) {
			return false
		}
	}
	return a.IsGlobalUnicast() && !a.IsPrivate()
}

func notPublic(a netip.Addr) error {
	return fmt.Errorf("address %s is not public and the configuration does not name its host; set allow-private-network for this issuer if it may be", a)
}

// fetched is what one fetch found.
type fetched struct {
	keys []jose.JSONWebKey
	algs []jose.SignatureAlgorithm // those of discovery that go-oidc supports too, at least one
}

func (s *source) fetch(ctx context.Context) (*fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	if err := s.prepare(); err != nil {
		return nil, err
	}
	where := s.discoveryURL
	if where == "" {
		where = s.issuer
	}
	if !strings.HasSuffix(where, "/.well-known/openid-configuration") {
		where = strings.TrimSuffix(where, "/") + "/.well-known/openid-configuration"
	}
	body, err := s.get(ctx, where)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	var document struct {
		Issuer     string   `json:"issuer"`
		JWKSURL    string   `json:"jwks_uri"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := json.Unmarshal(body, &document); err != nil {
		return nil, fmt.Errorf("discovery document of %s: %w", where, err)
	}
	if document.Issuer != s.issuer {
		return nil, fmt.Errorf("discovery document of %s names the issuer %q", where, document.Issuer)
	}
	keysURL, err := s.keysURL(document.JWKSURL)
	if err != nil {
		return nil, fmt.Errorf("discovery document of %s: %w", where, err)
	}
	if body, err = s.get(ctx, keysURL); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	keys, err := parseJWKS(body)
	if err != nil {
		return nil, fmt.Errorf("keys of %s: %w", keysURL, err)
	}
	algs := supported(document.Algorithms)
	if len(algs) == 0 {
		algs = []jose.SignatureAlgorithm{jose.RS256} // mandatory by OpenID Connect Discovery, section 3
	}
	return &fetched{keys: keys, algs: algs}, nil
}

// keysURL returns where the keys are. With a discovery-url the issuer is reached by another
// name than its own, and its jwks_uri below its own name would be out of reach too: then the
// same path is asked for at the discovery host. A Kubernetes API server names itself by an address
// in jwks_uri that its certificate or the pod's network may not know: within the cluster, the same
// path at its service is asked. A jwks_uri on a third host is left alone.
func (s *source) keysURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("jwks_uri %q is not a URL", raw)
	}
	issuer, err := url.Parse(s.issuer)
	if err != nil {
		return "", err
	}
	asked := issuer
	if s.discoveryURL != "" {
		if asked, err = url.Parse(s.discoveryURL); err != nil {
			return "", err
		}
	}
	if s.discoveryURL != "" && u.Host == issuer.Host || s.isAPIServer(asked) && u.Path == "/openid/v1/jwks" {
		u.Scheme, u.Host = asked.Scheme, asked.Host
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && s.allowHTTP) {
		return "", fmt.Errorf("jwks_uri %q is not https", raw)
	}
	return u.String(), nil
}

// isAPIServer reports whether u is the API server of the cluster that we run in, by its service's
// name: kubernetes.default.svc, or with the cluster's domain.
func (s *source) isAPIServer(u *url.URL) bool {
	return s.tokenFile != "" && slices.Contains(s.named, withPort(u)) && apiServer(u)
}

// apiServer reports whether u has the name of the API server's service.
func apiServer(u *url.URL) bool {
	host := u.Hostname()
	return u.Scheme == "https" && (host == kubernetesService || strings.HasPrefix(host, kubernetesService+"."))
}

// inCluster reports whether the issuer is the cluster that we run in.
func (i *Issuer) inCluster() bool {
	where := i.URL
	if i.DiscoveryURL != "" {
		where = i.DiscoveryURL
	}
	u, err := url.Parse(where)
	return err == nil && i.Type == Kubernetes && !i.Wildcard && i.JWKS == "" && i.JWKSFile == "" && i.Keys == nil && apiServer(u)
}

func (s *source) get(ctx context.Context, where string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	// Without Accept, as go-oidc: a Kubernetes API server answers 406 for its keys to application/json.
	if s.isAPIServer(req.URL) { // nobody else may see the pod's token, no other cluster either
		token, err := limit.ReadFile(s.tokenFile, maxDocument)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if len(token) > 0 {
			req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		}
	}
	transport, err := s.transport(req)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: transport, CheckRedirect: s.checkRedirect}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", where, resp.Status)
	}
	body, err := limit.ReadAll(resp.Body, maxDocument)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	return body, nil
}

// parseJWKS returns the asymmetric signature keys of a JWK Set (RFC 7517). Keys of other use,
// type or algorithm are left out.
func parseJWKS(data []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, err
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("over %d keys", maxKeys)
	}
	var out []jose.JSONWebKey
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if err := json.Unmarshal(raw, &key); err != nil {
			continue // a key type of the future must not take the others with it
		}
		if (key.Use == "" || key.Use == "sig") && key.IsPublic() && key.Valid() && (key.Algorithm == "" || len(supported([]string{key.Algorithm})) == 1) {
			out = append(out, key)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no usable signature key")
	}
	return out, nil
}

// allAlgorithms are those of go-oidc: asymmetric, so neither none nor HMAC over a public key.
var allAlgorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}

// supported filters algs.
func supported(algs []string) []jose.SignatureAlgorithm {
	var out []jose.SignatureAlgorithm
	for _, a := range algs {
		if slices.Contains(allAlgorithms, a) {
			out = append(out, jose.SignatureAlgorithm(a))
		}
	}
	return out
}
