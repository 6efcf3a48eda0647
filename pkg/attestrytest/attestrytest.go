// Package attestrytest starts a throwaway Sigstore inside a test: certificate authority, transparency logs, timestamp authority,
// TUF repository and identity provider on a port of its own, in a temporary directory that is removed with the test. Tests may
// start as many as they like beside each other.
//
//	s := attestrytest.Start(t, attestrytest.Options{})
//	bundle, err := s.Sign(s.Token("alice@example.com"), []byte("hello\n"))
//
// It can also lie: see Fault.
package attestrytest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/stack"
)

// closeTime is what requests in flight get at the end of a test.
const closeTime = 5 * time.Second

// Options of Start. The zero value is an instance as `attestry up` makes it.
type Options struct {
	// Now is the clock of everything that the instance signs and checks: certificates, timestamps, log entries, tokens, TUF
	// metadata. It must not go backwards. nil is time.Now.
	Now func() time.Time
	// Issuers are identity providers beside the instance's own, for tokens of Server.TokenOf.
	Issuers []Issuer
	// Logger gets what an operator would see. nil is nobody.
	Logger *slog.Logger
}

// Server is a running instance. Its methods may be called at the same time.
type Server struct {
	URL    string // of everything, http://localhost:PORT
	TUFURL string // of the TUF repository
	Dir    string // what `attestry up --dir` would have

	t      testing.TB
	now    func() time.Time
	stack  *stack.Stack
	keys   issuerKey
	faults *faults
}

// Start starts an instance and waits until all of it answers. It ends with the test.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := start(t, o)
	if err != nil {
		t.Fatalf("attestrytest: %v", err)
	}
	return s
}

func start(t testing.TB, o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	// Not t.TempDir: its removal fails the test when Tessera touches a lock file at that moment.
	dir, err := os.MkdirTemp("", "attestrytest-")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { removeAll(t, dir) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{Dir: dir, t: t, now: o.Now}
	opts := stack.Options{Dir: dir, Listen: ln.Addr().String(), Issuer: stack.IssuerLoopback, Logger: o.Logger, Now: o.Now}
	if len(o.Issuers) > 0 {
		if opts.CAConfig, s.keys, err = writeIssuers(dir, o.Issuers); err != nil {
			return nil, errors.Join(err, ln.Close())
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	if s.stack, err = stack.Open(ctx, opts); err != nil {
		cancel()
		return nil, errors.Join(err, ln.Close())
	}
	s.URL, s.TUFURL = s.stack.URL(), s.stack.URL()+"/tuf"
	s.faults = &faults{dir: dir, next: s.stack.Handler()}
	ended := make(chan error, 2)
	go func() { ended <- server.Run(ctx, ln, s.faults, closeTime, o.Logger) }()
	go func() { ended <- s.stack.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended, s.stack.Close()); err != nil {
			t.Errorf("attestrytest: closing: %v", err)
		}
	})
	return s, s.stack.Ready(ctx)
}

// removeAll removes dir; Tessera may still touch a lock file in it.
func removeAll(t testing.TB, dir string) {
	var err error
	for range 100 {
		if err = os.RemoveAll(dir); err == nil {
			return
		}
	}
	t.Errorf("attestrytest: removing the temporary directory: %v", err)
}

// TrustedRoot returns trusted_root.json, for verifiers.
func (s *Server) TrustedRoot() []byte { return s.file("trusted_root.json") }

// SigningConfig returns signing_config.v0.2.json, for signers: Rekor v2 first.
func (s *Server) SigningConfig() []byte { return s.file("signing_config.v0.2.json") }

// TUFRoot returns the root.json that TUF clients begin with.
func (s *Server) TUFRoot() []byte { return s.file("root.json") }

// File returns the path of a file for clients; docs/operate.md lists them.
func (s *Server) File(name string) string { return filepath.Join(s.Dir, "client", name) }

func (s *Server) file(name string) []byte {
	s.t.Helper()
	data, err := os.ReadFile(s.File(name))
	if err != nil {
		s.t.Fatalf("attestrytest: %v", err)
	}
	return data
}

// Env returns what `client/env` sets, as NAME=VALUE, for clients that run as programs. TUF clients keep a cache in the home
// directory: give each its own.
func (s *Server) Env() []string {
	s.t.Helper()
	var env []string
	for line := range strings.Lines(string(s.file("env"))) {
		assignment, ok := strings.CutPrefix(strings.TrimSpace(line), "export ")
		if !ok {
			continue
		}
		name, value, _ := strings.Cut(assignment, "=")
		env = append(env, name+"="+strings.Trim(value, "'"))
	}
	slices.Sort(env)
	return env
}

// IssuerURL is the identity provider's of Token.
func (s *Server) IssuerURL() string { return s.stack.IssuerURL() }

// Sign signs an artifact through the instance's services and returns the bundle, JSON of version 0.3, as the services' answers
// made it: it verifies unless a Fault is on.
func (s *Server) Sign(token string, artifact []byte) ([]byte, error) {
	signed, err := sign.Blob(s.t.Context(), s.signing(token), artifact)
	if err != nil {
		return nil, fmt.Errorf("attestrytest: %w", err)
	}
	return signed.Bundle, nil
}

// Attest is Sign for an in-toto statement in an envelope.
func (s *Server) Attest(token string, statement []byte) ([]byte, error) {
	signed, err := sign.Statement(s.t.Context(), s.signing(token), statement)
	if err != nil {
		return nil, fmt.Errorf("attestrytest: %w", err)
	}
	return signed.Bundle, nil
}

func (s *Server) signing(token string) sign.Options {
	return sign.Options{
		SigningConfig: s.SigningConfig(), TrustedRoot: s.TrustedRoot(), IdentityToken: token,
		Unverified: true, Transport: http.DefaultTransport, Now: s.now,
	}
}
