// Command tsa is an RFC 3161 timestamp authority.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/tsa"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "tsa:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	cfg, err := loadConfig(args, stderr) // flag, then file, then TSA_* environment; validated
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if cfg.healthcheck {
		return server.Probe(ctx, cfg.OpsListen, "/readyz")
	}
	logger := slog.New(server.LogHandler(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel})))
	reg := server.NewRegistry()
	opts, err := cfg.options()
	if err != nil {
		return err
	}
	opts.Logger, opts.Registerer = logger, reg
	if opts.LastIssued == nil {
		logger.Warn("last-issued-file is not set: a clock that was set back before a restart will not be noticed")
	}
	authority, err := tsa.New(opts)
	if err != nil {
		return err
	}
	ln, ops, err := server.Listen(cfg.Listen, cfg.OpsListen)
	if err != nil {
		return err
	}
	defer ln.Close()
	defer ops.Close()
	handler := &tsa.Handler{Authority: authority, Logger: logger, Reject400: cfg.Reject400}
	logger.Info("serving", "listen", ln.Addr().String(), "ops", ops.Addr().String(), "certificate", authority.Chain()[0].Subject.String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(ctx, ln, handler.Routes(), cfg.ShutdownGrace, logger) })
	group.Go(func() error {
		return server.Run(ctx, ops, server.Ops(reg, authority.Ready), cfg.ShutdownGrace, logger)
	})
	return group.Wait()
}

// options opens the key and the chain that the configuration names. Both files' problems are reported at once.
func (c *serverConfig) options() (tsa.Options, error) {
	o := tsa.Options{Policy: c.Policy, Accepted: c.AcceptedPolicies, Accuracy: c.Accuracy, SignTimeout: c.SignTimeout}
	if c.LastIssuedFile != "" {
		o.LastIssued = tsa.FileLastIssued(c.LastIssuedFile)
	}
	var password []byte
	var errs []error
	if c.KeyPasswordFile != "" {
		var err error
		if password, err = signer.ReadPassword(c.KeyPasswordFile); err != nil {
			errs = append(errs, fmt.Errorf("key-password-file: %w", err))
		}
	}
	var err error
	if o.Signer, err = signer.Open(c.Key, password); err != nil {
		errs = append(errs, fmt.Errorf("key: %w", err))
	}
	text, err := os.ReadFile(c.ChainFile)
	if err == nil {
		o.Chain, err = tsa.ParseChain(text)
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("chain-file: %w", err))
	}
	return o, errors.Join(errs...)
}
