// Command tlog serves transparency logs: Rekor v1, Rekor v2 and Certificate Transparency.
package main

import (
	"bytes"
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-chi/chi/v5"
	"github.com/go-sql-driver/mysql"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"k8s.io/klog/v2"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log/ct"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/witness"
	"github.com/attestry/attestry/pkg/stack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "tlog:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	cfg, adopt, err := loadConfig(args, stderr)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	logger := slog.New(slog.NewJSONHandler(stderr, nil))
	klog.SetSlogLogger(logger) // Tessera's own lines, and its MySQL driver's
	if err := mysql.SetLogger(slog.NewLogLogger(logger.Handler(), slog.LevelWarn)); err != nil {
		return err
	}
	opts, err := cfg.logs()
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	opts.Logger, opts.Registerer = logger, reg
	if adopt.fsck {
		return stack.PrintCheck(ctx, opts, nil, nil, false, stdout)
	}
	if adopt.log != "" {
		record, err := stack.AdoptLog(ctx, opts, adopt.log, adopt.size)
		if err != nil {
			return err
		}
		logger.Info("adopted", "log", adopt.log, "size", record.Size, "root", hex.EncodeToString(record.Root[:]))
		return nil
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
	logs, err := stack.OpenLogs(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()

	r := chi.NewRouter()
	logs.Register(r)
	r.Get("/healthz", server.Healthz)
	g := grpc.NewServer()
	logs.RegisterGRPC(g)
	healthpb.RegisterHealthServer(g, health.NewServer())
	reflection.Register(g)
	logger.Info("serving", "listen", ln.Addr().String(), "ops", ops.Addr().String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(ctx, ln, server.Duplex(logs.Bounded(g), r), cfg.ShutdownGrace, logger) })
	group.Go(func() error { return logs.Run(ctx, nil) }) // tuf-publisher publishes keys
	group.Go(func() error {
		return server.Run(ctx, ops, server.Ops(reg, logs.Ready), cfg.ShutdownGrace, logger)
	})
	return group.Wait()
}

// logs turns the configuration into the logs' options: opens keys and root certificates.
func (c *serverConfig) logs() (stack.LogsOptions, error) {
	o := stack.LogsOptions{
		Dir: c.Dir, FenceDir: strings.TrimPrefix(c.Fence, "file:"), Host: c.host(), URL: strings.TrimSuffix(c.URL, "/"),
		Database: c.Database, DatabasePasswordFile: c.DatabasePasswordFile,
	}
	if isPostgres(c.Fence) {
		o.FenceDir, o.FenceURI = "", c.Fence
	}
	var errs []error
	var err error
	o.Limits, err = c.limits()
	errs = append(errs, err)
	o.Rekor1Kinds, err = entry.ParseKinds(c.Rekor1.Kinds)
	errs = append(errs, err)
	o.Rekor1Off = c.Rekor1.DisabledEndpoints
	o.Rekor1Attestations, o.Rekor1MaxAttestation = c.Rekor1.Attestations, c.Rekor1.MaxAttestation
	var password []byte
	if c.KeyPasswordFile != "" {
		if password, err = os.ReadFile(c.KeyPasswordFile); err != nil {
			errs = append(errs, fmt.Errorf("key-password-file: %w", err))
		}
		password = bytes.TrimRight(password, "\r\n")
	}
	o.KeyPassword = password
	for _, l := range c.list() {
		spec := stack.LogSpec{
			Kind: l.kind, Label: l.Label, Host: l.Host, Shard: l.Shard, Frozen: l.Frozen,
			RootsFile: l.RootsFile, Plain: l.Extensions == "none", Tree: l.Tree,
		}
		open := func(name, uri string) (key crypto.Signer) {
			if uri == "" {
				return nil
			}
			key, err := signer.Open(uri, password)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s.%s: %w", l.at, name, err))
			}
			return key
		}
		spec.Key, spec.WitnessKey = open("key", l.Key), open("witness-key", l.WitnessKey)
		var err error
		if l.RootsFile != "" {
			if spec.Roots, err = ct.ReadRoots(l.RootsFile); err != nil {
				errs = append(errs, fmt.Errorf("%s.roots-file: %w", l.at, err))
			}
		}
		if l.WitnessPolicy != "" {
			if spec.Witnesses, err = readPolicy(l.WitnessPolicy); err != nil {
				errs = append(errs, fmt.Errorf("%s.witness-policy: %w", l.at, err))
			}
		}
		if spec.NotAfterStart, spec.NotAfterLimit, err = l.window(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.at, err))
		}
		o.Logs = append(o.Logs, spec)
	}
	return o, errors.Join(errs...)
}

func readPolicy(path string) (*witness.Policy, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	policy, err := witness.ParsePolicy(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return policy, nil
}

// adoption is what to do instead of serving: give a log whose fence was lost a new one, as `attestry log adopt` does.
type adoption struct {
	log  string
	size uint64
	fsck bool // check all logs instead, as `attestry log fsck` does
}

// loadConfig reads -config FILE, or TLOG_CONFIG.
func loadConfig(args []string, stderr io.Writer) (*serverConfig, adoption, error) {
	var adopt adoption
	flags := flag.NewFlagSet("tlog", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", os.Getenv("TLOG_CONFIG"), "YAML configuration file; every key can also be set as TLOG_<KEY>")
	flags.StringVar(&adopt.log, "adopt", "", "give this log (rekor1, rekor2, ct-<shard>), whose fence was lost, a new one, and stop")
	flags.Uint64Var(&adopt.size, "size", 0, "with -adopt: entries that the log must have, from a checkpoint that somebody kept")
	flags.BoolVar(&adopt.fsck, "fsck", false, "derive all logs again from their entries, say what differs, and stop; tlog may run meanwhile")
	if err := flags.Parse(args); err != nil {
		return nil, adopt, err
	}
	if flags.NArg() > 0 {
		return nil, adopt, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	cfg := defaults()
	return cfg, adopt, config.Load(cfg, *path, "TLOG")
}
