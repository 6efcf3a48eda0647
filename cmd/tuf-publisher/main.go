// Command tuf-publisher turns the trust inventory into signed TUF metadata, keeps it fresh and
// serves it.
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

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/trust"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "tuf-publisher:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) (err error) {
	cfg, err := loadConfig(args, stderr) // flags, then file, then TUF_PUBLISHER_* environment; validated
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if cfg.healthcheck {
		return server.Probe(ctx, cfg.OpsListen, "/readyz")
	}
	logger := slog.New(server.LogHandler(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel})))
	reg := server.NewRegistry()

	inventory, err := cfg.openInventory()
	if err != nil {
		return err
	}
	publisher, err := trust.OpenPublisher(trust.PublisherOptions{
		Dir: cfg.Dir, KeysDir: cfg.KeysDir, CreateKeys: cfg.CreateKeys, SignedRoots: cfg.SignedRoots, Holders: cfg.Holders, Threshold: cfg.Threshold,
		RootLife: cfg.RootLife, TargetsLife: cfg.TargetsLife, SnapshotLife: cfg.SnapshotLife, TimestampLife: cfg.TimestampLife,
		Derive: trust.DeriveOptions{Operator: cfg.Operator, OIDCIssuers: cfg.OIDCIssuers},
		Logger: logger, Registerer: reg,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()
	if err := cfg.publish(ctx, publisher, inventory); err != nil {
		return err
	}
	if cfg.once {
		return nil
	}

	ln, ops, err := server.Listen(cfg.Listen, cfg.OpsListen)
	if err != nil {
		return err
	}
	defer ln.Close()
	defer ops.Close()
	logger.Info("serving", "listen", ln.Addr().String(), "ops", ops.Addr().String(), "path", trust.Prefix)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Run(ctx, ln, publisher.Handler(), cfg.ShutdownGrace, logger) })
	group.Go(func() error {
		return server.Run(ctx, ops, server.Ops(reg, publisher.Ready), cfg.ShutdownGrace, logger)
	})
	group.Go(func() error { return publisher.Run(ctx) })
	group.Go(func() error { cfg.follow(ctx, publisher, inventory, logger); return nil })
	return group.Wait()
}

// openInventory opens the inventory and adds the records of the configuration. One that got an end since it
// was added is retired: then, or now when that is over, since what was signed until now counts.
func (c *publisherConfig) openInventory() (*trust.Inventory, error) {
	inventory, err := trust.OpenInventory(c.Inventory, time.Now)
	if err != nil {
		return nil, err
	}
	var records []trust.Record
	for i, r := range c.records() {
		record, err := r.record()
		if err != nil {
			return nil, fmt.Errorf("records[%d]: %w", i, err)
		}
		records = append(records, record)
	}
	if len(records) == 0 {
		return inventory, nil
	}
	ids, err := inventory.Enter(records...)
	if err != nil {
		return nil, err
	}
	active := map[string]bool{}
	for _, r := range inventory.Records() {
		active[r.ID] = r.State == trust.Active
	}
	for i, id := range ids {
		end := records[i].End
		if end.IsZero() || !active[id] {
			continue
		}
		if now := time.Now(); end.Before(now) {
			end = now
		}
		if err := inventory.Retire(id, end, "the configuration names its end"); err != nil {
			return nil, fmt.Errorf("records[%d]: %w", i, err)
		}
	}
	return inventory, nil
}

// publish brings the repository and the client files up to date.
func (c *publisherConfig) publish(ctx context.Context, publisher *trust.Publisher, inventory *trust.Inventory) error {
	if err := publisher.Publish(ctx, inventory); err != nil {
		return err
	}
	if c.ClientDir == "" {
		return nil
	}
	files := trust.ClientFiles{Derived: publisher.Derived(), TUFRoot: publisher.Root(), URL: c.URL, TUFURL: c.TUFURL}
	if len(c.OIDCIssuers) > 0 {
		files.OIDCIssuer = c.OIDCIssuers[0]
	}
	return trust.WriteClientFiles(c.ClientDir, files)
}

// follow publishes what other processes add to the inventory, and client files again when a
// refresh changed the root, until ctx ends. A failure leaves the published state in place.
func (c *publisherConfig) follow(ctx context.Context, publisher *trust.Publisher, inventory *trust.Inventory, logger *slog.Logger) {
	tick := time.NewTicker(c.InventoryPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		_, err := inventory.Reload()
		if err == nil {
			err = c.publish(ctx, publisher, inventory)
		}
		if err != nil && ctx.Err() == nil {
			logger.Error("the inventory could not be published", "err", err)
		}
	}
}
