package oci

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

const (
	maxToken     = 64 << 10
	maxAuthState = 4096 // repositories whose tokens are kept
)

// authState is the Authorization header for one repository; one request at a time asks for a new one.
type authState struct {
	turn   chan struct{} // of capacity 1: holds a value while somebody has the header. Others wait no longer than they have time
	header string
}

// take waits for the header; release gives it back.
func (s *authState) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *authState) release() { <-s.turn }

func (c *client) authOf(repo name.Repository) *authState {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.auth[repo.Name()]
	if s == nil {
		if len(c.auth) >= maxAuthState {
			clear(c.auth)
		}
		s = &authState{turn: make(chan struct{}, 1)}
		c.auth[repo.Name()] = s
	}
	return s
}

// authorized sends r, and once more with credentials when they are asked for. The first time nothing is sent along: most
// registries of an air gap want no token, and asking whether they do is a request too.
func (c *client) authorized(ctx context.Context, r request) (*answer, error) {
	state := c.authOf(r.repo)
	if err := state.take(ctx); err != nil {
		return nil, err
	}
	used := state.header
	state.release()
	a, err := c.once(ctx, r, used)
	if err != nil || a.status != http.StatusUnauthorized || !strings.EqualFold(a.url.Host, r.repo.RegistryStr()) {
		return a, err // also when a store that the registry redirects to asks: it gets nothing
	}
	header, err := c.renewed(ctx, state, used, r.repo, a)
	if err != nil {
		return nil, err
	}
	return c.once(ctx, r, header)
}

// renewed returns the header after used, which the registry answered with a.
func (c *client) renewed(ctx context.Context, state *authState, used string, repo name.Repository, a *answer) (string, error) {
	if err := state.take(ctx); err != nil {
		return "", err
	}
	defer state.release()
	if state.header != used { // somebody else has asked meanwhile
		return state.header, nil
	}
	header, err := c.authenticate(ctx, repo, a)
	if err == nil {
		state.header = header
	}
	return header, err
}

// authenticate answers a challenge with an Authorization header.
func (c *client) authenticate(ctx context.Context, repo name.Repository, a *answer) (string, error) {
	challenge, err := transport.Ping(ctx, repo.Registry, replay{a})
	if err != nil {
		return "", denied(err, "%s asks for credentials in a way that is not known", repo.RegistryStr())
	}
	auth := authn.Anonymous
	if c.opts.Credentials != nil {
		if auth, err = authn.Resolve(ctx, c.opts.Credentials, repo); err != nil {
			return "", denied(err, "credentials for %s", repo)
		}
	}
	config, err := authn.Authorization(ctx, auth)
	if err != nil {
		return "", denied(err, "credentials for %s", repo)
	}
	if config.RegistryToken != "" {
		return "Bearer " + config.RegistryToken, nil
	}
	switch strings.ToLower(challenge.Scheme) {
	case "basic":
		if config.Username == "" {
			return "", denied(nil, "%s asks for a user's name and password, and there are none for it", repo)
		}
		return basic(config), nil
	case "bearer":
		token, err := c.token(ctx, repo, challenge, config, a.url.Scheme)
		return "Bearer " + token, err
	}
	return "", denied(nil, "%s asks for credentials of the unknown scheme %.40q", repo.RegistryStr(), challenge.Scheme)
}

func basic(config *authn.AuthConfig) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(config.Username+":"+config.Password))
}

// replay gives an answer that is there already to transport.Ping, which reads challenges. Nothing is sent.
type replay struct{ a *answer }

func (r replay) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: r.a.status, Header: r.a.header, Body: io.NopCloser(strings.NewReader("")), Request: &http.Request{URL: r.a.url},
	}, nil
}

// token asks the token server that the registry names (Docker Registry, "Token Authentication"), if it is the registry's host or
// listed: the registry must not send our credentials wherever it likes.
func (c *client) token(ctx context.Context, repo name.Repository, challenge *transport.Challenge, config *authn.AuthConfig, scheme string) (string, error) {
	realm, err := url.Parse(challenge.Parameters["realm"])
	if err != nil || realm.Host == "" || realm.User != nil {
		return "", denied(nil, "%s names no token server", repo.RegistryStr())
	}
	registry := &url.URL{Host: repo.RegistryStr()}
	switch {
	case realm.Scheme != "https" && (realm.Scheme != "http" || scheme != "http"):
		return "", blocked("the token server of %s is not https", repo.RegistryStr())
	case !strings.EqualFold(realm.Hostname(), registry.Hostname()) && c.guard.listed(realm.Hostname(), portOf(realm)) == nil && !c.guard.isNamed(hostPort(realm)):
		return "", blocked("%s names the token server %q, which is another host and not listed", repo.RegistryStr(), realm.Host)
	}
	query := realm.Query()
	form := url.Values{"scope": {repo.Scope(transport.PullScope)}}
	if s := challenge.Parameters["service"]; s != "" {
		form.Set("service", s)
	}
	var a *answer
	if config.IdentityToken != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", config.IdentityToken)
		form.Set("client_id", "attestry")
		header := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		a, err = c.fetch(ctx, http.MethodPost, realm.String(), header, strings.NewReader(form.Encode()), maxToken)
	} else {
		for k, v := range form {
			query[k] = v
		}
		realm.RawQuery = query.Encode()
		header := http.Header{}
		if config.Username != "" {
			header.Set("Authorization", basic(config))
		}
		a, err = c.fetch(ctx, http.MethodGet, realm.String(), header, nil, maxToken)
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("token server of %s: %w", repo.RegistryStr(), err)
	case a.status == http.StatusTooManyRequests || a.status >= 500:
		failure := fault.New(fault.Unavailable, string(verify.ReasonRegistryUnreachable), nil, "token server of %s: status %d", repo.RegistryStr(), a.status)
		failure.RetryAfter = retryAfter(a.header)
		return "", failure
	case a.status != http.StatusOK:
		return "", denied(nil, "token server of %s: status %d%s", repo.RegistryStr(), a.status, a.text())
	}
	var reply struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(a.body, &reply) != nil || reply.Token+reply.AccessToken == "" {
		return "", denied(nil, "token server of %s: no token in its answer", repo.RegistryStr())
	}
	return cmp.Or(reply.Token, reply.AccessToken), nil
}

func denied(cause error, format string, args ...any) error {
	return fault.New(fault.Denied, string(verify.ReasonRegistryDenied), cause, format, args...)
}
