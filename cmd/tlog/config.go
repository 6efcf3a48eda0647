package main

import (
	"net/url"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/rekor1"
	"github.com/attestry/attestry/pkg/stack"
)

// serverConfig is the YAML file of tlog. A log runs when it has a key.
type serverConfig struct {
	// Listen is the address of the public listener. Default 127.0.0.1:3000.
	Listen string `mapstructure:"listen"`
	// OpsListen is the address of /metrics, /healthz and /readyz. Default 127.0.0.1:2112.
	OpsListen string `mapstructure:"ops-listen"`
	// URL is the public base URL, scheme://host[:port]. Its host name becomes the origin of
	// the logs and can never change. Required.
	URL string `mapstructure:"url"`
	// Dir holds tiles, rows, issuer certificates and the search index. Required.
	Dir string `mapstructure:"dir"`
	// Fence is the directory that remembers what the log keys have signed (file:PATH or a
	// path). Put it on another volume than Dir and out of its backups: a log restored from a
	// backup is recognized by it. Required.
	Fence string `mapstructure:"fence"`

	// KeyPasswordFile holds the password of encrypted keys; all logs share it.
	KeyPasswordFile string `mapstructure:"key-password-file"`

	Rekor1 struct {
		// Key signs checkpoints and SETs: file:PATH, ECDSA P-256. Empty: no Rekor v1 log.
		Key string `mapstructure:"key"`
		// Kinds are the entry kinds to take, such as hashedrekord (every version) and intoto:0.0.2.
		// Entries of other kinds stay readable. Default hashedrekord, dsse and intoto, which signing
		// clients send; each of the others lets anybody have archives and foreign formats unpacked here.
		Kinds []string `mapstructure:"kinds"`
		// Attestations keeps the payloads of intoto entries and the messages of cose ones beside
		// the tree, in dir/rekor1/attestations, and reads return them. Default false, upstream's.
		Attestations bool `mapstructure:"attestations"`
		// MaxAttestation is how many bytes an attestation may have; a larger one is not kept. Default 100 KiB.
		MaxAttestation int `mapstructure:"max-attestation"`
	} `mapstructure:"rekor1"`
	Rekor2 struct {
		// Key signs checkpoints: file:PATH, ECDSA P-256 or Ed25519. Empty: no Rekor v2 log.
		Key string `mapstructure:"key"`
	} `mapstructure:"rekor2"`
	CT struct {
		// Key signs SCTs and tree heads: file:PATH, ECDSA P-256. Empty: no CT log.
		Key string `mapstructure:"key"`
		// Shard names the log in its paths, /ct/<shard>. Default "main".
		Shard string `mapstructure:"shard"`
		// RootsFile has the root certificates (PEM) whose certificates are logged. Required
		// with a key: a log that asks a CA for its roots trusts whoever answers.
		RootsFile string `mapstructure:"roots-file"`
	} `mapstructure:"ct"`

	Limits struct {
		// Rekor1Body, Rekor2Body and CTBody are how many bytes a request's body may have; a
		// larger one is refused with 413. Defaults 64 MiB (a 30 MB SBOM is 40 MB in base64), 4 MiB, 512 KiB.
		Rekor1Body int64 `mapstructure:"rekor1-body"`
		Rekor2Body int64 `mapstructure:"rekor2-body"`
		CTBody     int64 `mapstructure:"ct-body"`
		// BodyTime is how long a body may take to arrive, else 408. Default 1m.
		BodyTime time.Duration `mapstructure:"body-time"`
		// BodiesInFlight is how many bytes of bodies are in memory at once; more wait a moment
		// and get 503. A byte of a body costs up to four of memory while it is read. Default 512 MiB.
		BodiesInFlight int64 `mapstructure:"bodies-in-flight"`
		// CallerPerSecond and CallerBurst are the budget of one address (of an IPv6 network of 64 bits) for
		// searches, proposed entries in retrieve calls and get-entries; beyond it 429. Defaults 200, 2000.
		CallerPerSecond float64 `mapstructure:"caller-per-second"`
		CallerBurst     int     `mapstructure:"caller-burst"`
		// TrustedProxies are addresses and networks whose X-Forwarded-For names the caller. Without the
		// proxy in front of the server here, all its clients share one budget. Default none.
		TrustedProxies []string `mapstructure:"trusted-proxies"`
	} `mapstructure:"limits"`

	// ShutdownGrace is how long requests in flight may take after SIGTERM. Default 8s.
	ShutdownGrace time.Duration `mapstructure:"shutdown-grace"`
}

func defaults() *serverConfig {
	c := &serverConfig{Listen: "127.0.0.1:3000", OpsListen: "127.0.0.1:2112", ShutdownGrace: 8 * time.Second}
	c.CT.Shard = "main"
	c.Rekor1.MaxAttestation = rekor1.DefaultMaxAttestation
	l := stack.DefaultLimits()
	c.Limits.Rekor1Body, c.Limits.Rekor2Body, c.Limits.CTBody = l.Rekor1Body, l.Rekor2Body, l.CTBody
	c.Limits.BodyTime, c.Limits.BodiesInFlight = l.BodyTime, l.BodiesInFlight
	c.Limits.CallerPerSecond, c.Limits.CallerBurst = l.CallerPerSecond, l.CallerBurst
	return c
}

// Validate implements config.Validator.
func (c *serverConfig) Validate() error {
	var p config.Problems
	if c.Dir == "" {
		p.Addf("dir is required")
	}
	if c.Fence == "" {
		p.Addf("fence is required: a directory apart from dir and from its backups")
	}
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		p.Addf("url is required")
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || strings.Trim(u.Path, "/") != "":
		p.Addf("url %q is not http[s]://host[:port]", c.URL)
	}
	if c.Rekor1.Key == "" && c.Rekor2.Key == "" && c.CT.Key == "" {
		p.Addf("no log has a key: set rekor1.key, rekor2.key or ct.key")
	}
	if c.Rekor1.Key != "" && c.Rekor1.Key == c.Rekor2.Key {
		p.Addf("rekor1.key and rekor2.key must differ: one key may not sign two trees")
	}
	if _, err := entry.ParseKinds(c.Rekor1.Kinds); err != nil {
		p.Addf("rekor1.kinds: %w", err)
	}
	if c.Rekor1.MaxAttestation <= 0 {
		p.Addf("rekor1.max-attestation %d is not positive; turn rekor1.attestations off to keep none", c.Rekor1.MaxAttestation)
	}
	if c.CT.Key != "" && (c.CT.Key == c.Rekor1.Key || c.CT.Key == c.Rekor2.Key) {
		p.Addf("ct.key must differ from the Rekor keys: one key may not sign two trees")
	}
	if c.CT.Key != "" && c.CT.RootsFile == "" {
		p.Addf("ct.roots-file is required with ct.key")
	}
	if c.CT.Key != "" && (c.CT.Shard == "" || strings.Trim(c.CT.Shard, "abcdefghijklmnopqrstuvwxyz0123456789-") != "") {
		p.Addf("ct.shard %q may have lower-case letters, digits and hyphens", c.CT.Shard)
	}
	if limits, err := c.limits(); err != nil {
		p.Addf("limits.trusted-proxies: %w", err)
	} else if err := limits.Validate(); err != nil {
		p.Addf("limits: %w", err)
	}
	return p.Err()
}

func (c *serverConfig) limits() (stack.Limits, error) {
	l := c.Limits
	proxies, err := limit.ParseProxies(l.TrustedProxies)
	return stack.Limits{
		Rekor1Body: l.Rekor1Body, Rekor2Body: l.Rekor2Body, CTBody: l.CTBody, BodyTime: l.BodyTime, BodiesInFlight: l.BodiesInFlight,
		CallerPerSecond: l.CallerPerSecond, CallerBurst: l.CallerBurst, TrustedProxies: proxies,
	}, err
}

func (c *serverConfig) host() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return "" // Validate has said so
	}
	return u.Hostname()
}
