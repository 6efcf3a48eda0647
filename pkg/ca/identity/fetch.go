package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	jose "github.com/go-jose/go-jose/v4"
)

const (
	fetchTimeout = 10 * time.Second // discovery and keys together
	maxDocument  = 1 << 20
	maxRedirects = 3
	maxKeys      = 256

	// A pod's own credentials, needed since clusters closed anonymous discovery (Fulcio #2110).
	kubernetesIssuer = "https://kubernetes.default.svc"
	serviceAccount   = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// source fetches an issuer's keys: discovery first, then the JWKS that it names.
type source struct {
	issuer       string // the exact iss
	discoveryURL string // overrides where discovery is, "" for below issuer
	allowHTTP    bool
	client       *http.Client
	tokenFile    string // bearer token for the issuer's own host, read anew for each fetch; "" for none
}

// newSource prepares fetching for i as the issuer url (i.URL, or one that fits its pattern).
// inCluster lends the pod's CA and token, transport replaces the network in tests.
func newSource(i *Issuer, url string, inCluster string, transport http.RoundTripper) (*source, error) {
	s := &source{issuer: url, discoveryURL: i.DiscoveryURL, allowHTTP: i.AllowHTTP}
	dialer := &net.Dialer{Timeout: fetchTimeout}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   1,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: fetchTimeout,
	}
	if i.Wildcard && !i.AllowPrivateNetwork {
		// Whoever controls a host that fits the pattern must not point us at our own network. A
		// proxy would hide the address we check.
		t.Proxy = nil
		dialer.Control = refusePrivate
	}
	pem := []byte(i.CACert)
	if inCluster != "" {
		ca, err := os.ReadFile(inCluster + "/ca.crt")
		if err != nil {
			return nil, fmt.Errorf("cluster CA: %w", err)
		}
		pem = append(append(pem, '\n'), ca...)
		s.tokenFile = inCluster + "/token"
	}
	if len(pem) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, errors.New("ca-cert holds no PEM certificate")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	s.client = &http.Client{Transport: t, CheckRedirect: s.checkRedirect, Timeout: fetchTimeout}
	if transport != nil {
		s.client.Transport = transport
	}
	return s, nil
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
	a := ap.Addr().Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return fmt.Errorf("address %s is not public; set allow-private-network for this meta issuer if it may be", a)
	}
	return nil
}

// fetched is what one fetch found.
type fetched struct {
	keys []jose.JSONWebKey
	algs []jose.SignatureAlgorithm // those of discovery that go-oidc supports too, at least one
}

func (s *source) fetch(ctx context.Context) (*fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
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
// same path is asked for at the discovery host. A jwks_uri on a third host is left alone.
func (s *source) keysURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("jwks_uri %q is not a URL", raw)
	}
	if s.discoveryURL != "" {
		issuer, err := url.Parse(s.issuer)
		if err != nil {
			return "", err
		}
		other, err := url.Parse(s.discoveryURL)
		if err != nil {
			return "", err
		}
		if u.Host == issuer.Host {
			u.Scheme, u.Host = other.Scheme, other.Host
		}
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && s.allowHTTP) {
		return "", fmt.Errorf("jwks_uri %q is not https", raw)
	}
	return u.String(), nil
}

func (s *source) get(ctx context.Context, where string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if s.tokenFile != "" {
		issuer, err := url.Parse(s.issuer)
		if err != nil {
			return nil, err
		}
		if req.URL.Host == issuer.Host { // nobody else may see the pod's token
			token, err := os.ReadFile(s.tokenFile)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
			if len(token) > 0 {
				req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
			}
		}
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", where, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if len(body) > maxDocument {
		return nil, fmt.Errorf("%s: over %d bytes", where, maxDocument)
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
