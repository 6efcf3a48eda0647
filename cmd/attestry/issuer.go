package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/issuer"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/server"
)

type devIssuerFlags struct {
	dir, listen, url    string
	file, internal      string
	anyone, healthcheck bool
}

func newIssuerCommand() *cobra.Command {
	var f devIssuerFlags
	cmd := &cobra.Command{
		Use:   "issuer",
		Short: "Run the development issuer alone, beside roles that run alone",
		Long: `Run the development issuer alone, beside roles that run alone: an OpenID provider that lets whoever reaches it sign in as anyone.

It is URL/oidc, whatever address it listens on. "attestry token --dir DIR" makes tokens of it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.healthcheck {
				return server.Probe(cmd.Context(), f.listen, "/healthz")
			}
			return runIssuer(cmd.Context(), f, cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "./attestry-issuer", "directory of its key, made when it is missing")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:8420", "address of the listener")
	flags.StringVar(&f.url, "url", "", "public URL, stored at the first run (default http://localhost:PORT)")
	flags.StringVar(&f.file, "issuer-file", "", "file that gets the issuer-file of a CA that takes its tokens and no others")
	flags.StringVar(&f.internal, "internal-url", "", "with --issuer-file: where that CA reaches it, if not at --url")
	flags.BoolVar(&f.anyone, "anyone", false, "listen where others reach it, who can then sign as anyone; otherwise that is refused")
	flags.BoolVar(&f.healthcheck, "healthcheck", false, "ask the one that runs at --listen whether it is well, and end with 1 unless it is")
	return cmd
}

func runIssuer(ctx context.Context, f devIssuerFlags, stderr io.Writer) error {
	logger := slog.New(server.LogHandler(slog.NewJSONHandler(stderr, nil)))
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	defer ln.Close()
	if f.url == "" {
		_, port, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			return err
		}
		f.url = "http://localhost:" + port
	}
	keys := filepath.Join(f.dir, "keys")
	if err := os.MkdirAll(keys, 0o700); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	base := strings.TrimRight(f.url, "/")
	if err := sameIssuer(f.dir, base); err != nil {
		return err
	}
	key, err := issuer.OpenOrCreateKey(filepath.Join(keys, "oidc.pem"))
	if err != nil {
		return err
	}
	provider, err := issuer.New(issuer.Options{
		IssuerURL: base + "/oidc", Signer: key, Listen: ln.Addr().String(), AllowNonLoopback: f.anyone, Logger: logger,
	})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(f.dir, "url"), []byte(base+"\n"), 0o644); err != nil { // for `attestry token`
		return fmt.Errorf("--dir: %w", err)
	}
	if f.file != "" {
		if err := durable.WriteFile(f.file, issuerFile(provider.IssuerURL(), f.internal), 0o644); err != nil {
			return fmt.Errorf("--issuer-file: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/oidc/", provider)
	mux.HandleFunc("GET /healthz", server.Healthz)
	logger.Info("serving", "listen", ln.Addr().String(), "issuer", provider.IssuerURL())
	return server.Run(ctx, ln, mux, drainTime, logger)
}

// issuerFile is an issuer-file of ca, see docs/ca.md.
func issuerFile(url, internal string) []byte {
	text := fmt.Sprintf("oidc-issuers:\n  %q:\n    client-id: %s\n    type: email\n    allow-http: true\n", url, issuer.ClientID)
	if internal != "" {
		text += fmt.Sprintf("    discovery-url: %q\n", strings.TrimRight(internal, "/")+"/oidc")
	}
	return []byte(text)
}

// sameIssuer refuses another URL than a run before had: it would be another issuer, whose tokens no CA expects.
func sameIssuer(dir, url string) error {
	stored, err := limit.ReadFile(filepath.Join(dir, "url"), 4<<10)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the issuer's URL: %w", err)
	}
	if had := strings.TrimSpace(string(stored)); had != url {
		return fmt.Errorf("%s is the directory of the issuer at %s, and --url is %s: a CA takes tokens of one of them", dir, had, url)
	}
	return nil
}
