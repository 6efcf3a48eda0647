// Command tlog serves transparency logs: Rekor v1, Rekor v2 and Certificate Transparency.
package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-chi/chi/v5"
	"github.com/go-sql-driver/mysql"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"k8s.io/klog/v2"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/stack"
	"github.com/attestry/attestry/pkg/tlog"
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
	cmd, err := parse(args, stderr)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	cfg, err := tlog.Load(cmd.config)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if cmd.healthcheck {
		return server.Probe(ctx, cfg.OpsListen, "/readyz")
	}
	logger := slog.New(server.LogHandler(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel})))
	klog.SetSlogLogger(logger) // Tessera's own lines, and its MySQL driver's
	if err := mysql.SetLogger(slog.NewLogLogger(logger.Handler(), slog.LevelWarn)); err != nil {
		return err
	}
	opts, err := cfg.Logs()
	if err != nil {
		return err
	}
	reg := server.NewRegistry()
	opts.Logger, opts.Registerer = logger, reg
	if cmd.fsck {
		return stack.PrintCheck(ctx, opts, nil, nil, false, stdout)
	}
	if cmd.adopt.Label != "" {
		record, err := stack.AdoptLog(ctx, opts, cmd.adopt)
		if err != nil {
			return err
		}
		logger.Info("adopted", "log", cmd.adopt.Label, "size", record.Size, "root", hex.EncodeToString(record.Root[:]), "lost", cmd.lost)
		return nil
	}

	ln, ops, err := server.Listen(cfg.Listen, cfg.OpsListen)
	if err != nil {
		return err
	}
	defer ln.Close()
	defer ops.Close()
	logs, err := stack.OpenLogs(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()

	r := chi.NewRouter()
	logs.Register(r)
	r.Get("/healthz", server.Healthz)
	measured, err := server.GRPCMetrics(reg)
	if err != nil {
		return err
	}
	g := grpc.NewServer(append(measured, server.GRPCRecover(logger)...)...)
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

// command is what to do, serve or something else once.
type command struct {
	config      string // file
	adopt       stack.Adoption
	fsck        bool
	healthcheck bool
	lost, note  string // flags of adopt
}

// parse reads the command line.
func parse(args []string, stderr io.Writer) (command, error) {
	var c command
	flags := flag.NewFlagSet("tlog", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.config, "config", os.Getenv("TLOG_CONFIG"), "YAML configuration file; every key can also be set as TLOG_<KEY>")
	flags.StringVar(&c.adopt.Label, "adopt", "", "start this log (rekor1, rekor2, ct-<shard>), which has lost its fence (-size) or entries (-lost), and stop; see `attestry log adopt --help`")
	flags.Uint64Var(&c.adopt.Size, "size", 0, "with -adopt: entries that the log must have, from a checkpoint that somebody kept")
	flags.StringVar(&c.lost, "lost", "", "with -adopt: A..B, how many entries are left and how many were signed; the log is frozen for good")
	flags.StringVar(&c.note, "checkpoint", "", "with -lost: file with a checkpoint of the tree of size A")
	flags.BoolVar(&c.healthcheck, "healthcheck", false, "ask the tlog that runs with this configuration whether it is ready, and end with 1 unless it is")
	flags.BoolVar(&c.fsck, "fsck", false, "derive all logs again from their entries, say what differs, and stop; tlog may run meanwhile")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var err error
	if c.lost != "" {
		if c.adopt.Lost, err = stack.ParseLost(c.lost); err != nil {
			return c, fmt.Errorf("-lost: %w", err)
		}
	}
	if c.note != "" {
		if c.adopt.Checkpoint, err = os.ReadFile(c.note); err != nil {
			return c, fmt.Errorf("-checkpoint: %w", err)
		}
	}
	switch {
	case c.adopt.Label == "" && (c.lost != "" || c.note != "" || c.adopt.Size != 0):
		return c, errors.New("-size, -lost and -checkpoint belong to -adopt")
	case c.lost == "" && c.note != "", c.lost != "" && c.adopt.Size != 0:
		return c, errors.New("-adopt takes -size, or -lost with perhaps -checkpoint")
	}
	return c, nil
}
