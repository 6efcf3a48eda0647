// Command ca is a certificate authority with Fulcio's HTTP and gRPC APIs on one port.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/records"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "ca:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) (result error) {
	cfg, err := loadConfig(args, stderr) // flag, then file, then CA_* environment; validated
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	logger := slog.New(slog.NewJSONHandler(stderr, nil))
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	opts, issuers, err := cfg.open()
	if err != nil {
		return err
	}
	opts.Logger, opts.Registerer = logger, reg
	if opts.Identity, err = identity.New(identity.Options{Config: issuers, Leeway: cfg.TokenLeeway, Logger: logger, Registry: reg}); err != nil {
		return fmt.Errorf("issuer-file: %w", err)
	}
	if cfg.Database == "" {
		logger.Warn("there is no database: certificates leave no record but these lines")
	} else {
		store, err := records.Open(ctx, records.Options{URI: cfg.Database, PasswordFile: cfg.DatabasePasswordFile, Logger: logger, Registerer: reg})
		if err != nil {
			return fmt.Errorf("database: %w", err)
		}
		defer func() { result = errors.Join(result, store.Close()) }()
		opts.Recorder = store
	}
	if opts.CTDisabled {
		logger.Warn("ct-mode is disabled: certificates carry no SCT and clients will refuse them unless told otherwise")
	}
	if cfg.Key == signer.Ephemeral {
		logger.Warn("key is ephemeral: the next start has another key and chain, and nobody can verify what was signed with this one then")
	}
	authority, err := ca.New(opts)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer ln.Close()
	ops, err := net.Listen("tcp", cfg.OpsListen)
	if err != nil {
		return fmt.Errorf("ops-listen: %w", err)
	}
	defer ops.Close()
	handler := ca.NewHandler(authority, ca.HandlerOptions{MaxInFlight: cfg.MaxInFlight, Origins: cfg.AllowedOrigins})
	g := grpc.NewServer(grpc.MaxRecvMsgSize(ca.MaxBody))
	handler.RegisterGRPC(g)
	operators := server.Ops(reg, authority.Ready)
	handler.RegisterOps(operators)
	logger.Info("serving", "listen", ln.Addr().String(), "ops", ops.Addr().String(), "certificate", opts.Chain[0].Subject.String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return server.Run(ctx, ln, server.Duplex(g, handler.Routes()), cfg.ShutdownGrace, logger)
	})
	group.Go(func() error {
		return server.Run(ctx, ops, operators, cfg.ShutdownGrace, logger)
	})
	return group.Wait()
}

// open reads the files that the configuration names. The problems of all of them are reported
// at once.
func (c *serverConfig) open() (ca.Options, *identity.Config, error) {
	o := ca.Options{
		Lifetime: c.Lifetime, Backdate: c.Backdate, Algorithms: c.ClientAlgorithms, AuditSubject: c.AuditSubject,
		CTDisabled: c.CTMode == ctDisabled, CTDetached: c.CTMode == ctDetached, OneTimeTokens: c.OneTimeTokens,
	}
	var errs []error
	add := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	var password []byte
	var err error
	if c.KeyPasswordFile != "" {
		password, err = signer.ReadPassword(c.KeyPasswordFile)
		add("key-password-file", err)
	}
	o.Signer, o.Chain, err = ca.OpenPair(c.Key, password, c.ChainFile)
	add("key and chain-file", err)
	for _, file := range c.OtherChainFiles {
		text, err := os.ReadFile(file)
		if err != nil {
			add("other-chain-files", err)
			continue
		}
		chain, err := ca.ParseChain(text)
		add("other-chain-files: "+file, err)
		o.OtherChains = append(o.OtherChains, chain)
	}
	issuers, err := identity.Load(c.IssuerFile)
	add("issuer-file", err)
	if !o.CTDisabled {
		client, err := c.openCT()
		add("ct-public-key-file", err)
		o.CT = client
	}
	return o, issuers, errors.Join(errs...)
}

func (c *serverConfig) openCT() (*ca.CTClient, error) {
	text, err := os.ReadFile(c.CTPublicKeyFile)
	if err != nil {
		return nil, err
	}
	key, err := cryptoutils.UnmarshalPEMToPublicKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.CTPublicKeyFile, err)
	}
	return ca.NewCTClient(c.CTURL, key)
}
