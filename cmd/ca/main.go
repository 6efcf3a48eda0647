// Command ca is a certificate authority with Fulcio's HTTP and gRPC APIs on one port.
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
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/ca"
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
	path, healthcheck, err := parse(args, stderr)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if healthcheck {
		cfg, err := loadConfig(path)
		if err != nil {
			return fmt.Errorf("configuration: %w", err)
		}
		return server.Probe(ctx, cfg.OpsListen, "/readyz")
	}
	level := new(slog.LevelVar)
	logger := slog.New(server.LogHandler(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level})))
	reg := server.NewRegistry()
	l := &loader{ctx: ctx, path: path, level: level, logger: logger, registry: reg}
	defer func() { result = errors.Join(result, l.close()) }()
	authority, err := ca.Open(l.load)
	if err != nil {
		return err
	}
	handler := l.serve(authority)
	cfg := l.inForce
	ln, ops, err := server.Listen(cfg.Listen, cfg.OpsListen)
	if err != nil {
		return err
	}
	defer ln.Close()
	defer ops.Close()
	g := grpc.NewServer(append(handler.GRPCOptions(), server.GRPCRecover(logger)...)...)
	handler.RegisterGRPC(g)
	operators := server.Ops(reg, authority.Ready, authority.Notes)
	handler.RegisterOps(operators)
	logger.Info("serving", "listen", ln.Addr().String(), "ops", ops.Addr().String())
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	looks := time.NewTicker(ca.LookEvery)
	defer looks.Stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return server.Run(ctx, ln, server.Duplex(handler.Bounded(g), handler.Routes()), cfg.ShutdownGrace, logger)
	})
	group.Go(func() error {
		return server.Run(ctx, ops, operators, cfg.ShutdownGrace, logger)
	})
	group.Go(func() error {
		authority.Watch(ctx, looks.C, hangups)
		return nil
	})
	return group.Wait()
}
