package stack

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-chi/chi/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"

	"github.com/attestry/attestry/internal/issuer"
	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/trust"
	"github.com/attestry/attestry/pkg/tsa"
)

// openIssuer starts the development issuer unless it is off.
func (s *Stack) openIssuer(m *material) (err error) {
	if s.opts.Issuer == IssuerOff {
		return nil
	}
	s.issuer, err = issuer.New(issuer.Options{
		IssuerURL: s.URL() + issuerPath, Signer: m.oidc, Listen: s.opts.Listen,
		AllowNonLoopback: s.opts.Issuer == IssuerAny, Now: s.opts.Now, Logger: s.opts.Logger,
	})
	if err != nil {
		return fmt.Errorf("%w (--issuer any allows it, --issuer off with --ca-config does without)", err)
	}
	return nil
}

// openCA makes the certificate authority, which follows its issuer file and the list of CAs. The development issuer is trusted by
// its key, so that the process asks nothing of itself over HTTP. ctx is the process's.
func (s *Stack) openCA(ctx context.Context, m *material) (*ca.CA, error) {
	issuing := issuingCA{m.cas, m.ca}
	return ca.Open(func(reading func(string), before *ca.Options) (ca.Options, func(), error) {
		opts := identity.Options{Now: s.opts.Now, Logger: s.opts.Logger, Registry: s.opts.Registerer}
		if before != nil {
			opts.Previous = before.Identity
		}
		if s.opts.CAConfig != "" {
			reading(s.opts.CAConfig)
			var err error
			if opts.Config, err = identity.Load(s.opts.CAConfig); err != nil {
				return ca.Options{}, nil, err
			}
		}
		if s.issuer != nil {
			opts.Issuers = append(opts.Issuers, developmentIssuer(s.issuer.IssuerURL(), s.issuer.KeySet()))
		}
		verifier, err := identity.New(opts)
		if err != nil {
			return ca.Options{}, nil, err
		}
		next, err := s.nextCA(ctx, reading, issuing)
		if err != nil {
			return ca.Options{}, nil, err
		}
		return ca.Options{
			Signer: next.key, Chain: next.list.CAs[next.list.Issuing].certs, OtherChains: next.list.others(), Identity: verifier,
			CT: s.logs.CT(), CTDetached: s.opts.DetachedSCTs, Recorder: s.records, OneTimeTokens: s.opts.OneTimeTokens,
			Now: s.opts.Now, Logger: s.opts.Logger, Registerer: s.opts.Registerer,
		}, func() { issuing = next; s.issues(next.list) }, nil
	})
}

// issuerPath is where the development issuer is, below the public URL.
const issuerPath = "/oidc"

func developmentIssuer(url string, keys oidc.KeySet) identity.Issuer {
	return identity.Issuer{URL: url, Audience: issuer.ClientID, Type: identity.Email, AllowHTTP: true, Keys: keys}
}

// DevelopmentIssuer returns the development issuer of the instance in dir as its CA trusts it. It
// reads only, and may be called beside the instance.
func DevelopmentIssuer(dir string) (identity.Issuer, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "url"))
	if err != nil {
		return identity.Issuer{}, fmt.Errorf("%s is not the directory of an instance: %w", dir, err)
	}
	u, err := parseURL(strings.TrimSpace(string(raw)))
	if err != nil {
		return identity.Issuer{}, fmt.Errorf("stored URL: %w", err)
	}
	key, err := signer.Open("file:"+filepath.Join(dir, "keys", "oidc.pem"), nil)
	if err != nil {
		return identity.Issuer{}, fmt.Errorf("development issuer: %w", err)
	}
	return developmentIssuer(u.String()+issuerPath, &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{key.Public()}}), nil
}

// openTSA makes the timestamp authority.
func (s *Stack) openTSA(m *material) (*tsa.Authority, error) {
	return tsa.New(tsa.Options{
		Signer: m.tsa, Chain: m.tsaChain, LastIssued: tsa.FileLastIssued(filepath.Join(s.opts.Dir, "tsa-last-issued")),
		Now: s.opts.Now, Logger: s.opts.Logger, Registerer: s.opts.Registerer,
	})
}

// routes puts every role behind one handler.
func (s *Stack) routes(ctx context.Context, m *material) (http.Handler, error) {
	authority, err := s.openCA(ctx, m)
	if err != nil {
		return nil, err
	}
	if s.tsa, err = s.openTSA(m); err != nil {
		return nil, err
	}
	s.ca = authority
	landing, err := page(s.URL(), s.issuer != nil)
	if err != nil {
		return nil, err
	}
	r := chi.NewRouter()
	caHandler := ca.NewHandler(authority, ca.HandlerOptions{Bytes: s.logs.bounds.bytes})
	g := grpc.NewServer(append(caHandler.GRPCMetrics(), server.GRPCRecover(s.opts.Logger)...)...)
	caHandler.Register(r)
	s.registerOps = caHandler.RegisterOps
	caHandler.RegisterGRPC(g)
	s.logs.Register(r)
	s.logs.RegisterGRPC(g)
	reflection.Register(g)
	(&tsa.Handler{Authority: s.tsa, Logger: s.opts.Logger}).Register(r)
	r.Handle(trust.Prefix+"*", s.publisher.Handler())
	if s.issuer != nil {
		r.Handle("/oidc/*", s.issuer)
	}
	r.Method(http.MethodGet, "/", landing)
	r.Get("/healthz", server.Healthz)
	r.Method(http.MethodGet, "/readyz", server.Readyz(s.Ready))
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, "there is nothing at "+r.URL.Path)
	})
	return server.Duplex(s.logs.Bounded(g), r), nil
}

// fail answers what no role's own handler does.
func fail(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"code": status, "message": message})
}
