package oci

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

const (
	dialTimeout    = 10 * time.Second
	requestTimeout = 30 * time.Second // one request with its body
	maxHops        = 5                // redirects
	maxErrorBody   = 64 << 10
	defaultRetries = 2
	firstRetry     = 200 * time.Millisecond
	longestRetry   = 5 * time.Second // a registry that asks for more patience is for the caller to retry
)

// client speaks HTTP to registries, token servers and the stores that registries redirect to.
type client struct {
	opts  *Options
	guard *guard
	// By host:port; "" is for all others. open goes anywhere and by a proxy, guarded connects itself.
	open, guarded map[string]*http.Transport

	mu      sync.Mutex
	schemes map[string]string // guarded by mu: what loopback registries turned out to speak
	auth    map[string]*authState
}

func newClient(o *Options) (*client, error) {
	c := &client{
		opts: o, guard: &guard{named: nil, prefixes: o.Prefixes, hosts: o.Hosts},
		open: make(map[string]*http.Transport), guarded: make(map[string]*http.Transport),
		schemes: make(map[string]string), auth: make(map[string]*authState),
	}
	for _, h := range o.Named {
		if _, _, err := net.SplitHostPort(h); err == nil {
			c.guard.named = append(c.guard.named, h)
			continue
		}
		host := strings.Trim(h, "[]")
		c.guard.named = append(c.guard.named, net.JoinHostPort(host, "443"), net.JoinHostPort(host, "80"))
	}
	pools := map[string][]byte{"": nil}
	for host, pem := range o.CAs {
		pools[host] = pem
	}
	for host, pem := range pools {
		var roots *x509.CertPool // the system's
		if pem != nil {
			var err error
			if roots, err = x509.SystemCertPool(); err != nil {
				roots = x509.NewCertPool()
			}
			if !roots.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("CA certificates of registry %s: no PEM certificate", host)
			}
		}
		plain := &net.Dialer{Timeout: dialTimeout}
		c.open[host] = newTransport(plain.DialContext, o.Proxy, roots)
		// A proxy would hide the address that is to be checked.
		c.guarded[host] = newTransport(c.guard.dial, nil, roots)
	}
	return c, nil
}

func newTransport(dial func(context.Context, string, string) (net.Conn, error), proxy func(*http.Request) (*url.URL, error), roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy: proxy, DialContext: dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    dialTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // what is signed is what is sent: nothing is unpacked
		MaxIdleConnsPerHost:    parallelRequests,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
}

// close ends idle connections.
func (c *client) close() {
	for _, set := range []map[string]*http.Transport{c.open, c.guarded} {
		for _, t := range set {
			t.CloseIdleConnections()
		}
	}
}

func hostPort(u *url.URL) string { return net.JoinHostPort(strings.ToLower(u.Hostname()), portOf(u)) }

func portOf(u *url.URL) string {
	return cmp.Or(u.Port(), map[string]string{"https": "443", "http": "80"}[u.Scheme])
}

// transport returns how req may leave.
func (c *client) transport(req *http.Request) (*http.Transport, error) {
	set := c.guarded
	hp := hostPort(req.URL)
	switch {
	case c.guard.isNamed(hp):
		set = c.open
	case c.opts.Proxy != nil && c.guard.listed(req.URL.Hostname(), portOf(req.URL)) != nil:
		proxy, err := c.opts.Proxy(req)
		if err != nil {
			return nil, err
		}
		if proxy != nil { // who listed the host vouches for its name; its address is the proxy's to find
			set = c.open
		}
	}
	for _, key := range []string{hp, req.URL.Host, req.URL.Hostname()} {
		if t := set[strings.ToLower(key)]; t != nil && key != "" {
			return t, nil
		}
	}
	return set[""], nil
}

// send sends a request and follows redirects. Authorization does not follow to another host, nothing follows from https to http.
func (c *client) send(req *http.Request) (*http.Response, error) {
	for hops := 0; ; hops++ {
		if err := budgetOf(req.Context()).request(); err != nil {
			return nil, err
		}
		t, err := c.transport(req)
		if err != nil {
			return nil, err
		}
		resp, err := t.RoundTrip(req)
		if c.opts.Observe != nil {
			code := 0
			if err == nil {
				code = resp.StatusCode
			}
			c.opts.Observe(req.URL.Host, req.Method, code)
		}
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		resp.Body.Close()
		next, err := resp.Location()
		switch {
		case err != nil:
			return nil, blocked("%s answers with a redirect to nowhere", req.URL.Host)
		case hops == maxHops:
			return nil, blocked("%s: more than %d redirects", req.URL.Host, maxHops)
		case req.Method != http.MethodGet && req.Method != http.MethodHead:
			return nil, blocked("%s redirects a %s", req.URL.Host, req.Method)
		case next.Scheme != "https" && next.Scheme != "http" || next.User != nil || next.Host == "":
			return nil, blocked("%s redirects to a URL that is none of a registry", req.URL.Host)
		case req.URL.Scheme == "https" && next.Scheme != "https":
			return nil, blocked("%s redirects from https to %s", req.URL.Host, next.Scheme)
		}
		header := req.Header.Clone()
		if hostPort(next) != hostPort(req.URL) || next.Scheme != req.URL.Scheme {
			header.Del("Authorization")
		}
		again, err := http.NewRequestWithContext(req.Context(), req.Method, next.String(), nil)
		if err != nil {
			return nil, err
		}
		again.Header = header
		req = again
	}
}

// answer is what came back, its body read whole.
type answer struct {
	status int
	header http.Header
	body   []byte
	url    *url.URL
}

// request is one question to a repository. path is below /v2/<repository>/, or a URL of the same registry with its query.
type request struct {
	repo   name.Repository
	method string
	path   string
	accept []string
	max    int64 // bytes of a good answer
}

// do asks until there is an answer that is neither 429 nor 5xx, with a token if that is asked for. Without one the error is of kind
// Unavailable: nothing was learned.
func (c *client) do(ctx context.Context, r request) (*answer, error) {
	wait := cmp.Or(c.opts.RetryWait, firstRetry)
	host := r.repo.RegistryStr()
	for try := 0; ; try++ {
		a, err := c.authorized(ctx, r)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("asking %s: %w", host, context.Cause(ctx))
		}
		var after time.Duration
		again := true
		if err == nil {
			if a.status != http.StatusTooManyRequests && a.status < 500 {
				return a, nil
			}
			after = retryAfter(a.header)
			err = fmt.Errorf("status %d%s", a.status, a.text())
		} else {
			var classified *fault.Error
			if errors.As(err, &classified) && classified.Kind != fault.Unavailable {
				return nil, err
			}
			if again = transient(err); classified != nil { // a token server that asks for patience
				after = classified.RetryAfter
			}
		}
		failure := fault.New(fault.Unavailable, string(verify.ReasonRegistryUnreachable), err, "registry %s", host)
		failure.RetryAfter = after
		pause := max(wait<<try, after)
		if !again || try >= c.opts.retries() || pause > longestRetry {
			return nil, failure
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
			return nil, failure
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("asking %s: %w", host, context.Cause(ctx))
		}
	}
}

// transient reports whether asking again at once can help: not when names or certificates are wrong.
func transient(err error) bool {
	var certificate *tls.CertificateVerificationError
	var name *net.DNSError
	return !errors.As(err, &certificate) && !(errors.As(err, &name) && name.IsNotFound)
}

// retryAfter reads Retry-After (RFC 9110, section 10.2.3): seconds or a date, at most a day.
func retryAfter(h http.Header) time.Duration {
	const most = 24 * time.Hour
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v != "" && strings.Trim(v, "0123456789") == "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n > int64(most/time.Second) { // an endless number is no reason for haste
			return most
		}
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(t), 0), most)
	}
	return 0
}

// once sends r once, with the Authorization header auth if there is one.
func (c *client) once(ctx context.Context, r request, auth string) (*answer, error) {
	host := r.repo.RegistryStr()
	scheme, known := c.scheme(host)
	a, err := c.exchange(ctx, r, scheme, auth)
	if err != nil && !known && withoutTLS(err) { // a loopback registry
		c.mu.Lock()
		c.schemes[host] = "http"
		c.mu.Unlock()
		return c.exchange(ctx, r, "http", auth)
	}
	if err == nil && !known {
		c.mu.Lock()
		c.schemes[host] = scheme
		c.mu.Unlock()
	}
	return a, err
}

// withoutTLS reports whether a handshake was answered in plain HTTP. http.ErrSchemeMismatch is what http.Client makes of it,
// not its transport.
func withoutTLS(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/"
}

// scheme returns what a registry speaks: https unless it is named as insecure. One on loopback may speak either, and known is false
// until it has answered.
func (c *client) scheme(host string) (scheme string, known bool) {
	for _, h := range c.opts.Insecure {
		if strings.EqualFold(h, host) {
			return "http", true
		}
	}
	bare := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		bare = h
	}
	ip := net.ParseIP(strings.Trim(bare, "[]"))
	if bare != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "https", true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.schemes[host]; s != "" {
		return s, true
	}
	return "https", false
}

func (c *client) exchange(ctx context.Context, r request, scheme, auth string) (*answer, error) {
	u := &url.URL{Scheme: scheme, Host: r.repo.RegistryStr()}
	if strings.HasPrefix(r.path, "/") { // a page's successor
		ref, err := url.Parse(r.path)
		if err != nil {
			return nil, err
		}
		u = u.ResolveReference(ref)
	} else {
		u.Path = "/v2/" + r.repo.RepositoryStr() + "/" + r.path
	}
	header := http.Header{"Accept": {strings.Join(r.accept, ", ")}}
	if len(r.accept) == 0 {
		header.Del("Accept")
	}
	if auth != "" {
		header.Set("Authorization", auth)
	}
	return c.fetch(ctx, r.method, u.String(), header, nil, r.max)
}

// fetch sends one request and reads its answer within the request's time.
func (c *client) fetch(ctx context.Context, method, target string, header http.Header, body io.Reader, max int64) (*answer, error) {
	limited, cancel := context.WithTimeout(ctx, cmp.Or(c.opts.Timeout, requestTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(limited, method, target, body)
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("User-Agent", cmp.Or(c.opts.UserAgent, "attestry"))
	resp, err := c.send(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode, header: resp.Header, url: resp.Request.URL}
	if resp.Request.URL == nil {
		a.url = req.URL
	}
	if method == http.MethodHead {
		return a, nil
	}
	if a.status != http.StatusOK {
		max = maxErrorBody
	} else if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, malformed(nil, "%s answers in the encoding %.40q; nothing is unpacked", req.URL.Host, e)
	}
	budget := budgetOf(ctx)
	allowed := budget.left(max)
	if a.status == http.StatusOK && resp.ContentLength > allowed {
		return nil, tooLarge("%s answers with %d bytes, at most %d are read", req.URL.Host, resp.ContentLength, allowed)
	}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, allowed+1))
	if err2 := budget.spend(int64(len(a.body))); err2 != nil {
		return nil, err2
	}
	switch {
	case int64(len(a.body)) > allowed && a.status == http.StatusOK:
		return nil, tooLarge("%s answers with more than %d bytes", req.URL.Host, allowed)
	case err != nil:
		return nil, fmt.Errorf("reading the answer of %s: %w", req.URL.Host, err)
	}
	return a, nil
}

// text is what the registry says of an error (OCI Distribution, "Error Codes"), fit to print.
func (a *answer) text() string {
	var body struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if json.Unmarshal(a.body, &body) != nil || len(body.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.40q: %.160q)", body.Errors[0].Code, body.Errors[0].Message)
}
