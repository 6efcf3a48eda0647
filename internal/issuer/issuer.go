// Package issuer is the development OpenID provider of `attestry up`: discovery, keys,
// authorization code with PKCE, device flow, and a sign-in page that believes whoever clicks.
// It proves nothing about people and must never be reachable by anyone but the developer, so
// New refuses a listener that is not loopback unless it is told otherwise.
//
// cosign 2.6 and 3.1, sigstore-python 4.5 and @sigstore/cli 0.10 use it with the public client
// "sigstore"; a comment names the client wherever one of them asks for something special.
package issuer

import (
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	gooidc "github.com/coreos/go-oidc/v3/oidc"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

const (
	// ClientID is the one client, public and without a secret. It is also the audience.
	ClientID = "sigstore"

	tokenLifetime   = 10 * time.Minute
	requestLifetime = 10 * time.Minute // from /authorize or /device_authorization to the token
	pollInterval    = time.Second      // device flow; loopback, so there is nothing to spare

	maxForm    = 64 << 10
	maxPending = 1000 // auth requests and device codes each; the oldest make room
)

// Options of New.
type Options struct {
	// IssuerURL is the `iss` claim and the prefix of every endpoint, such as
	// http://localhost:8420/oidc: absolute, no query, no slash at the end. Its path is where
	// the caller mounts the Provider.
	IssuerURL string
	// Signer signs tokens: *rsa.PrivateKey (RS256) or P-256 (ES256). See OpenOrCreateKey.
	Signer crypto.Signer
	// Listen is the address that the server listens on, as host:port. An empty host is every
	// interface.
	Listen string
	// AllowNonLoopback lets Listen be reachable from other machines: whoever reaches it can
	// sign in as anyone.
	AllowNonLoopback bool
	Now              func() time.Time // nil: time.Now
	Logger           *slog.Logger     // nil: discard
}

// ErrNotLoopback is returned by New when others could reach the issuer.
var ErrNotLoopback = errors.New("the development issuer lets anyone sign in as anyone and serves loopback only")

// Provider is the issuer. It is an http.Handler for every path below the issuer URL's path,
// which it expects to be still there: mux.Handle("/oidc/", provider).
type Provider struct {
	issuer  string
	host    string
	key     tokenKey
	now     func() time.Time
	logger  *slog.Logger
	storage *storage
	op      *op.Provider
	pages   *template.Template
	handler http.Handler
}

// New returns the issuer, or ErrNotLoopback, or what is wrong with the options.
func New(o Options) (*Provider, error) {
	u, err := url.Parse(o.IssuerURL)
	if err != nil {
		return nil, fmt.Errorf("issuer URL: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/") {
		return nil, fmt.Errorf("issuer URL %q: want scheme://host[:port]/path without query or closing slash", o.IssuerURL)
	}
	if !o.AllowNonLoopback && !isLoopback(o.Listen) {
		return nil, fmt.Errorf("listening on %q: %w", o.Listen, ErrNotLoopback)
	}
	key, err := newTokenKey(o.Signer)
	if err != nil {
		return nil, err
	}
	p := &Provider{issuer: o.IssuerURL, host: u.Host, key: key, now: o.Now, logger: o.Logger}
	if p.now == nil {
		p.now = time.Now
	}
	if p.logger == nil {
		p.logger = slog.New(slog.DiscardHandler)
	}
	p.storage = newStorage(client{loginURL: o.IssuerURL + "/login?id="}, key, p.now)
	if p.pages, err = parsePages(); err != nil {
		return nil, err
	}
	config := &op.Config{
		CodeMethodS256: true, // sigstore/sigstore 1.10 gives up unless discovery lists it
		DeviceAuthorization: op.DeviceAuthorizationConfig{
			Lifetime:     requestLifetime,
			PollInterval: pollInterval,
			UserFormPath: u.Path + "/device",
			UserCode:     op.UserCodeBase20,
		},
		SupportedScopes: []string{oidc.ScopeOpenID, oidc.ScopeEmail, oidc.ScopeProfile},
		SupportedClaims: []string{"iss", "sub", "aud", "exp", "iat", "nonce", "at_hash", "email", "email_verified", "name"},
	}
	if _, err := rand.Read(config.CryptoKey[:]); err != nil {
		return nil, fmt.Errorf("code encryption key: %w", err)
	}
	p.op, err = op.NewProvider(config, p.storage, op.StaticIssuer(o.IssuerURL), op.WithAllowInsecure(), op.WithCORSOptions(nil))
	if err != nil {
		return nil, fmt.Errorf("OpenID provider: %w", err)
	}
	p.handler = http.StripPrefix(u.Path, op.NewIssuerInterceptor(p.op.IssuerFromRequest).Handler(p.routes()))
	return p, nil
}

// IssuerURL returns the `iss` claim of its tokens.
func (p *Provider) IssuerURL() string { return p.issuer }

// KeySet verifies the issuer's tokens without asking it over HTTP.
func (p *Provider) KeySet() *gooidc.StaticKeySet {
	return &gooidc.StaticKeySet{PublicKeys: []crypto.PublicKey{p.key.signer.Public()}}
}

// Algorithm returns the JOSE name of the signature on its tokens, RS256 or ES256.
func (p *Provider) Algorithm() string { return string(p.key.algorithm) }

// ServeHTTP serves the endpoints below the issuer URL.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	p.handler.ServeHTTP(w, r)
}

// routes lists every endpoint there is. The library's own router would add introspection,
// revocation and end of session, and answer any web page's cross-origin script.
func (p *Provider) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+oidc.DiscoveryEndpoint, p.discovery)
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, r *http.Request) { op.Keys(w, r, p.storage) })
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /authorize":             func(w http.ResponseWriter, r *http.Request) { op.Authorize(w, r, p.op) },
		"POST /authorize":            func(w http.ResponseWriter, r *http.Request) { op.Authorize(w, r, p.op) },
		"GET /login":                 p.loginPage,
		"POST /login":                p.login,
		"GET /device":                p.devicePage,
		"POST /device":               p.device,
		"POST /device_authorization": op.DeviceAuthorizationHandler(p.op),
		"POST /oauth/token":          p.token,
		"GET /userinfo":              func(w http.ResponseWriter, r *http.Request) { op.Userinfo(w, r, p.op) },
	} {
		mux.Handle(pattern, p.sameHost(h))
	}
	return mux
}

// token answers POST /oauth/token. A device that polls, every second for minutes, is answered
// here: the library would write a line about each poll to the process's default logger.
func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	if r.PostFormValue("grant_type") == string(oidc.GrantTypeDeviceCode) && p.storage.pending(r.PostFormValue("device_code")) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest) // RFC 8628, section 3.5
		_, _ = io.WriteString(w, `{"error":"authorization_pending"}`+"\n")
		return
	}
	op.Exchange(w, r, p.op)
}

// discovery answers GET /.well-known/openid-configuration with what routes serves, no more.
func (p *Provider) discovery(w http.ResponseWriter, r *http.Request) {
	c := op.CreateDiscoveryConfig(r.Context(), p.op, p.storage)
	c.IntrospectionEndpoint, c.RevocationEndpoint, c.EndSessionEndpoint, c.CheckSessionIframe = "", "", "", ""
	c.ResponseTypesSupported = []string{string(oidc.ResponseTypeCode)}
	c.GrantTypesSupported = []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeDeviceCode}
	c.TokenEndpointAuthMethodsSupported = []oidc.AuthMethod{oidc.AuthMethodNone}
	c.IntrospectionEndpointAuthMethodsSupported, c.IntrospectionEndpointAuthSigningAlgValuesSupported = nil, nil
	c.RevocationEndpointAuthMethodsSupported, c.RevocationEndpointAuthSigningAlgValuesSupported = nil, nil
	op.Discover(w, c)
}

// sameHost keeps a web page that resolves its own name to 127.0.0.1 (DNS rebinding) from
// signing in as somebody: the request must name the issuer's host, or loopback.
func (p *Provider) sameHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != p.host && !isLoopback(r.Host) {
			p.logger.InfoContext(r.Context(), "sign-in refused", "reason", "host_mismatch", "host", r.Host)
			http.Error(w, fmt.Sprintf("this issuer is %s; it does not answer as %q", p.issuer, r.Host), http.StatusMisdirectedRequest)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// isLoopback tells whether only this machine can reach address, host or host:port.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = strings.Trim(address, "[]")
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
