package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/records"
)

const (
	maxFile        = 1 << 20  // bytes of a certificate chain or a public key
	bodiesInFlight = 64 << 20 // bytes of all request bodies in memory
	bodiesWait     = 2 * time.Second
)

// loader reads the configuration, at the start and whenever it changes. Its methods are called one after another.
type loader struct {
	ctx      context.Context // of the process
	path     string
	level    *slog.LevelVar
	logger   *slog.Logger
	registry *prometheus.Registry

	handler *ca.Handler    // nil until serve
	bytes   *limit.Bytes   // for as long as the process lives
	store   *records.Store // likewise, of the first configuration; nil without a database
	callers *limit.Callers // of inForce
	inForce *serverConfig
}

// serve returns the handler that follows the configuration from now on.
func (l *loader) serve(authority *ca.CA) *ca.Handler {
	l.bytes = limit.NewBytes(bodiesInFlight, bodiesWait)
	l.handler = ca.NewHandler(authority, l.handlerOptions())
	return l.handler
}

func (l *loader) handlerOptions() ca.HandlerOptions {
	return ca.HandlerOptions{MaxInFlight: l.inForce.MaxInFlight, Origins: l.inForce.AllowedOrigins, Callers: l.callers, Bytes: l.bytes}
}

// load is a ca.Loader. The problems of all files are reported at once.
func (l *loader) load(reading func(string), before *ca.Options) (ca.Options, func(), error) {
	if l.path != "" {
		reading(l.path)
	}
	cfg, err := loadConfig(l.path) // file, then CA_* environment; validated
	if err != nil {
		return ca.Options{}, nil, fmt.Errorf("configuration: %w", err)
	}
	keyBefore := ""
	if l.inForce != nil {
		keyBefore = l.inForce.Key
	}
	o, issuers, err := cfg.open(reading, before, keyBefore)
	if err != nil {
		return ca.Options{}, nil, err
	}
	of := identity.Options{Config: issuers, Leeway: cfg.TokenLeeway, Logger: l.logger, Registry: l.registry}
	if before != nil {
		of.Previous = before.Identity
	}
	if o.Identity, err = identity.New(of); err != nil {
		return ca.Options{}, nil, fmt.Errorf("issuer-file: %w", err)
	}
	if before == nil {
		if err := l.openStore(cfg); err != nil {
			return ca.Options{}, nil, fmt.Errorf("database: %w", err)
		}
	}
	if l.store != nil {
		o.Recorder = l.store
	}
	o.Logger, o.Registerer = l.logger, l.registry
	return o, func() { l.take(cfg) }, nil
}

// openStore opens the database of records, once.
func (l *loader) openStore(cfg *serverConfig) (err error) {
	if l.store != nil || cfg.Database == "" {
		return nil
	}
	l.store, err = records.Open(l.ctx, records.Options{URI: cfg.Database, PasswordFile: cfg.DatabasePasswordFile, Logger: l.logger, Registerer: l.registry})
	return err
}

// close ends what lives as long as the process.
func (l *loader) close() error {
	if l.store == nil {
		return nil
	}
	return l.store.Close()
}

// take puts in force what is not the CA's own.
func (l *loader) take(cfg *serverConfig) {
	before := l.inForce
	l.inForce = cfg
	l.level.Set(cfg.LogLevel)
	if cfg.Database == "" && (before == nil || before.Database != "") {
		l.logger.Warn("there is no database: certificates leave no record but these lines")
	}
	if cfg.CTMode == ctDisabled {
		l.logger.Warn("ct-mode is disabled: certificates carry no SCT and clients will refuse them unless told otherwise")
	}
	if cfg.Key == signer.Ephemeral && (before == nil || before.Key != cfg.Key) {
		l.logger.Warn("key is ephemeral: the next start has another key and chain, and nobody can verify what was signed with this one then")
	}
	if before == nil || before.FailedTokens != cfg.FailedTokens || !reflect.DeepEqual(before.TrustedProxies, cfg.TrustedProxies) {
		l.callers = cfg.callers()
	}
	if before == nil {
		return
	}
	if before.Listen != cfg.Listen || before.OpsListen != cfg.OpsListen || before.ShutdownGrace != cfg.ShutdownGrace ||
		before.Database != cfg.Database || before.DatabasePasswordFile != cfg.DatabasePasswordFile {
		l.logger.Warn("listen, ops-listen, shutdown-grace and the database change at the next start only")
	}
	if l.handler != nil {
		l.handler.Set(l.handlerOptions())
	}
}

func (c *serverConfig) callers() *limit.Callers {
	if c.FailedTokens.PerSecond == 0 {
		return nil
	}
	proxies, _ := limit.ParseProxies(c.TrustedProxies) // Validate has parsed them
	return limit.NewCallers(limit.CallerOptions{PerSecond: c.FailedTokens.PerSecond, Burst: c.FailedTokens.Burst, Proxies: proxies})
}

// open reads the files that the configuration names. keyBefore is the key of before, "" at the start.
func (c *serverConfig) open(reading func(string), before *ca.Options, keyBefore string) (ca.Options, *identity.Config, error) {
	o := ca.Options{
		Lifetime: c.Lifetime, Backdate: c.Backdate, Algorithms: c.ClientAlgorithms, AuditSubject: c.AuditSubject,
		IdentityLimit: identity.RateLimit(c.IdentityLimit), CTDisabled: c.CTMode == ctDisabled, CTDetached: c.CTMode == ctDetached,
		OneTimeTokens: c.OneTimeTokens,
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
		reading(c.KeyPasswordFile)
		password, err = signer.ReadPassword(c.KeyPasswordFile)
		add("key-password-file", err)
	}
	if path, ok := strings.CutPrefix(c.Key, "file:"); ok {
		reading(path)
	}
	if c.ChainFile != "" {
		reading(c.ChainFile)
	}
	if c.Key == signer.Ephemeral && keyBefore == signer.Ephemeral { // it lives as long as the process
		o.Signer, o.Chain = before.Signer, before.Chain
	} else {
		o.Signer, o.Chain, err = ca.OpenPair(c.Key, password, c.ChainFile)
		add("key and chain-file", err)
	}
	for _, file := range c.OtherChainFiles {
		reading(file)
		text, err := limit.ReadFile(file, maxFile)
		if err != nil {
			add("other-chain-files", err)
			continue
		}
		chain, err := ca.ParseChain(text)
		add("other-chain-files: "+file, err)
		o.OtherChains = append(o.OtherChains, chain)
	}
	reading(c.IssuerFile)
	issuers, err := identity.Load(c.IssuerFile)
	add("issuer-file", err)
	if !o.CTDisabled {
		client, err := c.openCT(reading, before)
		add("ct-public-key-file", err)
		o.CT = client
	}
	return o, issuers, errors.Join(errs...)
}

// openCT returns a client for the CT log: the one before, with its connections and what it knows of the log, if
// address and key are the same.
func (c *serverConfig) openCT(reading func(string), before *ca.Options) (*ca.CTClient, error) {
	reading(c.CTPublicKeyFile)
	text, err := limit.ReadFile(c.CTPublicKeyFile, maxFile)
	if err != nil {
		return nil, err
	}
	key, err := cryptoutils.UnmarshalPEMToPublicKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.CTPublicKeyFile, err)
	}
	if before != nil {
		client, ok := before.CT.(*ca.CTClient)
		if same, comparable := key.(interface{ Equal(crypto.PublicKey) bool }); ok && comparable && client.URL() == strings.TrimSuffix(c.CTURL, "/") && same.Equal(client.LogKey()) {
			return client, nil
		}
	}
	return ca.NewCTClient(c.CTURL, key)
}
