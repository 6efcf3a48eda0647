package sign

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// signInTimeout is how long a person gets.
const signInTimeout = 10 * time.Minute

// SignIn gets an identity token from a person at an OpenID provider: the authorization code flow with PKCE (RFC 7636)
// and a redirect to loopback (RFC 8252, section 7.3), or the device flow (RFC 8628).
type SignIn struct {
	Issuer   string // from the signing config
	ClientID string
	Device   bool
	Prompt   io.Writer    // tells the person where to go; no browser is started
	Client   *http.Client // may be nil: http.DefaultClient
}

// Token returns an ID token for ClientID whose signature, audience, expiry and nonce are verified.
func (s SignIn) Token(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, signInTimeout)
	defer cancel()
	if s.Client != nil {
		ctx = oidc.ClientContext(ctx, s.Client)
	}
	provider, err := oidc.NewProvider(ctx, s.Issuer)
	if err != nil {
		return "", fmt.Errorf("asking %q how to sign in: %w", s.Issuer, err)
	}
	config := &oauth2.Config{
		ClientID: s.ClientID, Endpoint: provider.Endpoint(), Scopes: []string{oidc.ScopeOpenID, "email"},
	}
	nonce := rand.Text()
	var token *oauth2.Token
	if s.Device {
		nonce = "" // RFC 8628 has no place for one
		token, err = s.device(ctx, config)
	} else {
		token, err = s.code(ctx, config, nonce)
	}
	if err != nil {
		return "", fmt.Errorf("signing in at %q: %w", s.Issuer, err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok || raw == "" {
		return "", fmt.Errorf("signing in at %q: the provider sent no ID token", s.Issuer)
	}
	id, err := provider.Verifier(&oidc.Config{ClientID: s.ClientID}).Verify(ctx, raw)
	if err != nil {
		return "", fmt.Errorf("signing in at %q: %w", s.Issuer, err)
	}
	if nonce != "" && id.Nonce != nonce {
		return "", fmt.Errorf("signing in at %q: the ID token answers another request", s.Issuer)
	}
	return raw, nil
}

func (s SignIn) device(ctx context.Context, config *oauth2.Config) (*oauth2.Token, error) {
	if config.Endpoint.DeviceAuthURL == "" {
		return nil, errors.New("the provider has no device flow")
	}
	verifier := oauth2.GenerateVerifier()
	auth, err := config.DeviceAuth(ctx, oauth2.S256ChallengeOption(verifier))
	if err != nil {
		return nil, err
	}
	if auth.VerificationURIComplete != "" {
		fmt.Fprintf(s.Prompt, "Open %s and confirm the code %s\n", auth.VerificationURIComplete, auth.UserCode)
	} else {
		fmt.Fprintf(s.Prompt, "Open %s and enter the code %s\n", auth.VerificationURI, auth.UserCode)
	}
	return config.DeviceAccessToken(ctx, auth, oauth2.VerifierOption(verifier))
}

// code waits on a loopback port for the provider to send the person's browser back.
func (s SignIn) code(ctx context.Context, config *oauth2.Config, nonce string) (*oauth2.Token, error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	// Registered clients commonly list localhost, as cosign uses it; only the port is ours to choose.
	config.RedirectURL = fmt.Sprintf("http://localhost:%d/auth/callback", ln.Addr().(*net.TCPAddr).Port)
	state, verifier := rand.Text(), oauth2.GenerateVerifier()

	answers := make(chan answer, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /auth/callback", func(w http.ResponseWriter, r *http.Request) {
		a, ok := readAnswer(r, state)
		if !ok {
			http.Error(w, "This is not the answer to the sign-in that waits here.", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if a.err != nil {
			fmt.Fprintln(w, "Signing in failed; the terminal says why.")
		} else {
			fmt.Fprintln(w, "Signed in. You may close this page and return to the terminal.")
		}
		select {
		case answers <- a:
		default: // the first answer counts
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // ends with Shutdown below
	defer func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(drain) != nil {
			srv.Close()
		}
	}()

	fmt.Fprintf(s.Prompt, "Open this address in a browser to sign in:\n  %s\n",
		config.AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier)))
	select {
	case a := <-answers:
		if a.err != nil {
			return nil, a.err
		}
		return config.Exchange(ctx, a.code, oauth2.VerifierOption(verifier))
	case err := <-served:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type answer struct {
	code string
	err  error
}

// readAnswer reads an authorization response (RFC 6749, section 4.1.2); ok is false when it belongs to another request.
func readAnswer(r *http.Request, state string) (a answer, ok bool) {
	q := r.URL.Query()
	if q.Get("state") != state {
		return answer{}, false
	}
	switch {
	case q.Get("error") != "":
		return answer{err: fmt.Errorf("the provider refused: %s %s", q.Get("error"), q.Get("error_description"))}, true
	case q.Get("code") == "":
		return answer{err: errors.New("the provider sent no code")}, true
	}
	return answer{code: q.Get("code")}, true
}
