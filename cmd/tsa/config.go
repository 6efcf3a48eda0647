package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/pkg/tsa"
)

// serverConfig is the YAML file of tsa.
type serverConfig struct {
	// Listen is the address of the public listener. Default 127.0.0.1:3004.
	Listen string `mapstructure:"listen"`
	// OpsListen is the address of /metrics, /healthz and /readyz. Default 127.0.0.1:2112.
	OpsListen string `mapstructure:"ops-listen"`
	// Key signs the timestamps: file:PATH, ECDSA P-256 suits every client. Required.
	Key string `mapstructure:"key"`
	// KeyPasswordFile holds the password of an encrypted key.
	KeyPasswordFile string `mapstructure:"key-password-file"`
	// ChainFile has the certificates as PEM: the key's first, then its issuers, the self-signed
	// root last. Required.
	ChainFile string `mapstructure:"chain-file"`
	// LastIssuedFile remembers the newest timestamp across restarts, so that no earlier one
	// follows after the clock was set back. One file for each replica.
	LastIssuedFile string `mapstructure:"last-issued-file"`

	// Policy is the OID in timestamps for queries that name none. Default 1.3.6.1.4.1.57264.2,
	// that of sigstore's timestamp-authority.
	Policy string `mapstructure:"policy"`
	// AcceptedPolicies are OIDs that queries may name beside Policy.
	AcceptedPolicies []string `mapstructure:"accepted-policies"`
	// Accuracy is the error of the clock that you vouch for, in every timestamp. At least and by default 1s.
	Accuracy time.Duration `mapstructure:"accuracy"`
	// SignTimeout bounds one signature by a signer outside the process. Default 5s.
	SignTimeout time.Duration `mapstructure:"sign-timeout"`
	// Reject400 answers refused DER queries with HTTP 400 and JSON, as sigstore's
	// timestamp-authority does, in place of HTTP 200 and an RFC 3161 rejection.
	Reject400 bool `mapstructure:"reject-with-400"`

	// LogLevel is debug, info, warn or error. Default info. At debug each request has a line; secrets are in none.
	LogLevel slog.Level `mapstructure:"log-level"`
	// ShutdownGrace is how long requests in flight may take after SIGTERM. Default 8s.
	ShutdownGrace time.Duration `mapstructure:"shutdown-grace"`

	// healthcheck is the flag -healthcheck.
	healthcheck bool
}

func defaults() *serverConfig {
	return &serverConfig{
		Listen: "127.0.0.1:3004", OpsListen: "127.0.0.1:2112", Policy: tsa.DefaultPolicy,
		Accuracy: time.Second, SignTimeout: 5 * time.Second, ShutdownGrace: 8 * time.Second,
	}
}

// Validate implements config.Validator.
func (c *serverConfig) Validate() error {
	var p config.Problems
	if c.Key == "" {
		p.Addf("key is required: file:PATH of the signing key")
	}
	if c.ChainFile == "" {
		p.Addf("chain-file is required: the key's certificate and its issuers as PEM")
	}
	for _, oid := range append([]string{c.Policy}, c.AcceptedPolicies...) {
		if _, err := tsa.ParsePolicy(oid); err != nil {
			p.Addf("%v", err)
		}
	}
	if c.Accuracy < time.Second {
		p.Addf("accuracy %v is under 1s, the second that timestamps are cut to", c.Accuracy)
	}
	if c.SignTimeout <= 0 {
		p.Addf("sign-timeout %v is not positive", c.SignTimeout)
	}
	return p.Err()
}

// loadConfig reads -config FILE, or TSA_CONFIG.
func loadConfig(args []string, stderr io.Writer) (*serverConfig, error) {
	flags := flag.NewFlagSet("tsa", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", os.Getenv("TSA_CONFIG"), "YAML configuration file; every key can also be set as TSA_<KEY>")
	healthcheck := flags.Bool("healthcheck", false, "ask the tsa that runs with this configuration whether it is ready, and end with 1 unless it is")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	cfg := defaults()
	cfg.healthcheck = *healthcheck
	return cfg, config.Load(cfg, *path, "TSA")
}
