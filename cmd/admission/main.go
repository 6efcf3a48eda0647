// Command admission is a validating and mutating webhook of Kubernetes: pods run the images that policies accept, by digest.
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/admission"
	"github.com/attestry/attestry/pkg/admission/cluster"
)

const (
	bodiesInFlight = 256 << 20 // bytes of all reviews in memory
	bodiesWait     = 2 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, "admission:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	cfg, err := loadConfig(args, stderr)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if cfg.healthcheck {
		return server.Probe(ctx, cfg.OpsListen, "/readyz")
	}
	logger := slog.New(server.LogHandler(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel})))
	reg := server.NewRegistry()
	group, ctx := errgroup.WithContext(ctx)
	trusted, err := admission.ObserveTrust(reg, nil)
	if err != nil {
		return err
	}
	p := &policies{cfg: cfg, namespace: cfg.Namespace, logger: logger, trusted: trusted}
	ready := []func() error{func() error { _, err := p.decider(); return err }}
	var certificate keeper = &files{cert: cfg.TLSCertFile, key: cfg.TLSKeyFile, logger: logger}
	var labels func(string) map[string]string
	var pulls *cluster.PullSecrets
	var kube *cluster.Cluster
	if cfg.Cluster {
		if kube, err = cluster.Open(cfg.Kubeconfig, cfg.Namespace, logger); err != nil {
			return err
		}
		p.namespace = kube.Namespace()
		if pulls, err = kube.PullSecrets(); err != nil {
			return err
		}
		namespaces, err := kube.Namespaces(ctx)
		if err != nil {
			return err
		}
		labels = namespaces.Labels
		ready = append(ready, namespaces.Ready)
		if cfg.ClusterPolicies {
			objects, err := kube.Policies(ctx)
			if err != nil {
				return err
			}
			ready = append(ready, objects.Ready)
			group.Go(func() error {
				objects.Follow(ctx, p.take)
				return nil
			})
		}
		if cfg.TLSCertFile == "" {
			serving := kube.Serving(cluster.ServingOptions{Secret: cfg.ServingSecret, Service: cfg.Service, Webhooks: cfg.Webhooks, Life: cfg.CertificateLife})
			ready = append(ready, serving.Ready)
			certificate = serving
		}
	}
	observe, err := admission.ObserveRegistries(reg)
	if err != nil {
		return err
	}
	registries, err := newRegistries(cfg, pulls, observe)
	if err != nil {
		return err
	}
	rules, err := cfg.rules()
	if err != nil {
		return err
	}
	hook, err := admission.New(admission.Options{
		Decider: p.decider, Sources: registries, Labels: labels, Rules: rules,
		OtherNamespaces: admission.Mode(cfg.OtherNamespaces), Templates: admission.Mode(cfg.Templates), MultiArch: admission.MultiArch(cfg.MultiArch),
		Timeout: cfg.Timeout, PositiveTTL: cfg.PositiveTTL, NegativeTTL: cfg.NegativeTTL, CacheEntries: cfg.CacheEntries, Workers: cfg.Workers,
		Preverified: p.preverified.Load, CertificateExpiry: certificate.Expiry, Logger: logger, Registerer: reg,
	})
	if err != nil {
		return err
	}
	// Files that are wrong stop a start; later they change nothing.
	if p.look(); !cfg.Cluster || !cfg.ClusterPolicies {
		if _, err := p.decider(); err != nil {
			return fmt.Errorf("policies: %w", err)
		}
	}
	certificates := &keeping{keeper: certificate, logger: logger}
	if err := certificates.look(ctx); err != nil && cfg.TLSCertFile != "" {
		return fmt.Errorf("tls-cert-file: %w", err)
	}
	isReady := func(context.Context) error {
		var all []error
		for _, r := range ready {
			all = append(all, r())
		}
		return errors.Join(all...)
	}
	notes := func() []string {
		if problem := p.problem.Load(); problem != nil {
			return []string{"the newest policies are refused, those before are in force: " + *problem}
		}
		return nil
	}
	ln, ops, err := server.Listen(cfg.Listen, cfg.OpsListen)
	if err != nil {
		return err
	}
	defer ln.Close()
	defer ops.Close()
	secure := tls.NewListener(ln, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: certificate.GetCertificate})
	handler := admission.NewHandler(hook, limit.NewBytes(bodiesInFlight, bodiesWait))
	logger.Info("serving", "listen", ln.Addr().String(), "ops", ops.Addr().String())
	group.Go(func() error { return server.Run(ctx, secure, handler.Routes(isReady), cfg.ShutdownGrace, logger) })
	group.Go(func() error { return server.Run(ctx, ops, server.Ops(reg, isReady, notes), cfg.ShutdownGrace, logger) })
	group.Go(func() error { return every(ctx, lookEvery, func() { _ = certificates.look(ctx) }) }) // it says so itself
	group.Go(func() error {
		return every(ctx, lookEvery, func() {
			if err := registries.look(); err != nil {
				logger.Warn("registries", "err", err)
			}
		})
	})
	group.Go(func() error { return every(ctx, lookEvery, p.look) })
	group.Go(func() error { // apart from look: it may take minutes
		var done string
		return every(ctx, lookEvery, func() { p.preverify(ctx, &done) })
	})
	if kube != nil && cfg.ScanEvery > 0 {
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		// Pods have names of their own; processes of one host, and those of a pod that was started again, do not.
		lease := kube.Lease("attestry-admission-scan", host+"_"+rand.Text(), cfg.ScanEvery+time.Minute) // who scans comes again in time
		group.Go(func() error {
			return every(ctx, lookEvery, scanning(ctx, cfg.ScanEvery, hook, kube, lease, isReady, logger))
		})
	}
	return group.Wait()
}

// scanning returns what scans the running pods when it is time and no other replica has.
func scanning(ctx context.Context, interval time.Duration, hook *admission.Webhook, pods admission.Pods, lease *cluster.Lease, ready func(context.Context) error, logger *slog.Logger) func() {
	var next time.Time
	return func() {
		if time.Now().Before(next) || ready(ctx) != nil {
			return
		}
		next = time.Now().Add(min(interval, time.Minute))
		ours, err := lease.Take(ctx)
		if err == nil && ours {
			next = time.Now().Add(interval)
			err = hook.Scan(ctx, pods)
		}
		if err != nil && ctx.Err() == nil {
			logger.Warn("scan", "err", err)
		}
	}
}

// every calls f at once and then in intervals until ctx ends.
func every(ctx context.Context, interval time.Duration, f func()) error {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		f()
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// keeper has the serving certificate.
type keeper interface {
	Look(ctx context.Context) error
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Expiry() time.Time
}

// keeping says each reason once for which a certificate cannot be kept.
type keeping struct {
	keeper
	logger  *slog.Logger
	problem string
}

func (k *keeping) look(ctx context.Context) error {
	err := k.Look(ctx)
	switch {
	case err == nil:
		k.problem = ""
	case err.Error() != k.problem:
		k.problem = err.Error()
		k.logger.Warn("serving certificate", "err", err)
	}
	return err
}

// files are a certificate that somebody else keeps.
type files struct {
	cert, key string
	logger    *slog.Logger

	mu      sync.Mutex // guards serving
	serving *tls.Certificate
}

// Look takes the certificate over. While it is wrong, the one before stays.
func (f *files) Look(context.Context) error {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.serving == nil || !f.serving.Leaf.Equal(pair.Leaf) {
		f.logger.Info("serving certificate", "expires", pair.Leaf.NotAfter, "names", pair.Leaf.DNSNames)
	}
	f.serving = &pair
	return nil
}

func (f *files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.serving == nil {
		return nil, errors.New("there is no serving certificate yet")
	}
	return f.serving, nil
}

func (f *files) Expiry() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.serving == nil {
		return time.Time{}
	}
	return f.serving.Leaf.NotAfter
}
