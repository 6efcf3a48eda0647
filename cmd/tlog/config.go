package main

import (
	"net/url"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/config"
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

	// ShutdownGrace is how long requests in flight may take after SIGTERM. Default 8s.
	ShutdownGrace time.Duration `mapstructure:"shutdown-grace"`
}

func defaults() *serverConfig {
	c := &serverConfig{Listen: "127.0.0.1:3000", OpsListen: "127.0.0.1:2112", ShutdownGrace: 8 * time.Second}
	c.CT.Shard = "main"
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
	if c.CT.Key != "" && (c.CT.Key == c.Rekor1.Key || c.CT.Key == c.Rekor2.Key) {
		p.Addf("ct.key must differ from the Rekor keys: one key may not sign two trees")
	}
	if c.CT.Key != "" && c.CT.RootsFile == "" {
		p.Addf("ct.roots-file is required with ct.key")
	}
	if c.CT.Key != "" && (c.CT.Shard == "" || strings.Trim(c.CT.Shard, "abcdefghijklmnopqrstuvwxyz0123456789-") != "") {
		p.Addf("ct.shard %q may have lower-case letters, digits and hyphens", c.CT.Shard)
	}
	return p.Err()
}

func (c *serverConfig) host() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return "" // Validate has said so
	}
	return u.Hostname()
}
