package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca/identity"
)

const (
	ctRequired = "required"
	ctDetached = "detached"
	ctDisabled = "disabled"

	recordsRequired = "required"
	recordsOff      = "off"
)

// serverConfig is the YAML file of ca.
type serverConfig struct {
	// Listen is the address of the public listener, HTTP and gRPC. Default 127.0.0.1:5555.
	Listen string `mapstructure:"listen"`
	// OpsListen is the address of /metrics, /healthz, /readyz and /ca/explain, for operators only. Default 127.0.0.1:2112.
	OpsListen string `mapstructure:"ops-listen"`
	// Key signs the certificates: ECDSA or RSA, file:PATH, pkcs11:…, hashivault://…, awskms://…, gcpkms://…, azurekms://…, or
	// ephemeral: for a key in memory and a chain of its own, which nobody can trust after the next start. Required.
	Key string `mapstructure:"key"`
	// KeyPasswordFile holds the password of an encrypted key, or the PIN of a token.
	KeyPasswordFile string `mapstructure:"key-password-file"`
	// ChainFile has the CA's certificates as PEM: the issuing one first, the self-signed root
	// last. Required, unless the key is ephemeral.
	ChainFile string `mapstructure:"chain-file"`
	// OtherChainFiles have earlier or coming chains, listed in the trust bundle only.
	OtherChainFiles []string `mapstructure:"other-chain-files"`
	// IssuerFile says whose identity tokens count, in the format of Fulcio's config.yaml. Required.
	IssuerFile string `mapstructure:"issuer-file"`
	// TokenLeeway is how long after its exp a token still counts. Default 0s, at most 5m.
	TokenLeeway time.Duration `mapstructure:"token-leeway"`

	// CTMode is required (default), detached or disabled. Detached SCTs stand beside the certificate, which is signed before it
	// is logged: few clients take them. Without SCTs clients refuse the certificates by default.
	CTMode string `mapstructure:"ct-mode"`
	// CTURL is the base of the CT log, to which /ct/v1/add-pre-chain is added. Required unless disabled.
	CTURL string `mapstructure:"ct-url"`
	// CTPublicKeyFile has the log's key as PEM. SCTs of another key are refused. Required unless disabled.
	CTPublicKeyFile string `mapstructure:"ct-public-key-file"`

	// Database keeps the records of what was issued and refused: sqlite:PATH for one process, or postgres://user@host/database,
	// which several replicas share.
	Database string `mapstructure:"database"`
	// DatabasePasswordFile holds the password of a PostgreSQL database.
	DatabasePasswordFile string `mapstructure:"database-password-file"`
	// Records is required or off. Required: no certificate leaves before its record is durable. Default: required with a
	// database, off without.
	Records string `mapstructure:"records"`
	// OneTimeTokens gives each identity token one certificate. Needs records.
	OneTimeTokens bool `mapstructure:"one-time-tokens"`

	// Lifetime of certificates, 1m to 1h. Default 10m.
	Lifetime time.Duration `mapstructure:"lifetime"`
	// Backdate moves notBefore into the past, for verifiers and timestamp authorities whose clocks
	// run behind. Default 0s, at most 5m.
	Backdate time.Duration `mapstructure:"backdate"`
	// ClientAlgorithms are the client key algorithms that are certified, by the names of Fulcio's
	// client-signing-algorithms. Default: its seven.
	ClientAlgorithms []string `mapstructure:"client-signing-algorithms"`
	// AuditSubject writes subjects in clear into audit lines, in place of their SHA-256.
	AuditSubject bool `mapstructure:"audit-subject"`
	// MaxInFlight bounds the signing requests handled at one time; more are answered with 429. Default 512.
	MaxInFlight int `mapstructure:"max-in-flight"`
	// IdentityLimit bounds the certificates of one identity of one issuer. Default none. Issuers have their own rate-limit in the
	// issuer file.
	IdentityLimit rateLimit `mapstructure:"identity-limit"`
	// FailedTokens is the budget of requests whose token does not hold, for each address. Default 100 per second, burst 1000; 0 for none.
	FailedTokens rateLimit `mapstructure:"failed-tokens"`
	// TrustedProxies are those whose X-Forwarded-For names the caller. Without them all that come through a proxy share one budget.
	TrustedProxies []string `mapstructure:"trusted-proxies"`
	// AllowedOrigins are the browser origins that may call the API. Default: any.
	AllowedOrigins []string `mapstructure:"allowed-origins"`

	// LogLevel is debug, info, warn or error. Default info. At debug each request has a line; tokens are in none.
	LogLevel slog.Level `mapstructure:"log-level"`
	// ShutdownGrace is how long requests in flight may take after SIGTERM. Default 8s.
	ShutdownGrace time.Duration `mapstructure:"shutdown-grace"`
}

// rateLimit is a budget.
type rateLimit struct {
	// PerSecond is what comes back each second.
	PerSecond float64 `mapstructure:"per-second"`
	// Burst is what an unused budget has saved up.
	Burst int `mapstructure:"burst"`
}

func defaults() *serverConfig {
	return &serverConfig{
		Listen: "127.0.0.1:5555", OpsListen: "127.0.0.1:2112", CTMode: ctRequired,
		Lifetime: 10 * time.Minute, MaxInFlight: 512, ShutdownGrace: 8 * time.Second, FailedTokens: rateLimit{100, 1000},
	}
}

// Validate implements config.Validator.
func (c *serverConfig) Validate() error {
	var p config.Problems
	if c.Key == "" {
		p.Addf("key is required: file:PATH of the issuing key, or the URI of one in a token or key service")
	}
	if c.Key == signer.Ephemeral && (c.ChainFile != "" || c.KeyPasswordFile != "") {
		p.Addf("key: %s makes a chain of its own: chain-file and key-password-file contradict it", signer.Ephemeral)
	}
	if c.ChainFile == "" && c.Key != signer.Ephemeral {
		p.Addf("chain-file is required: the issuing certificate, then up to the root, as PEM")
	}
	if c.IssuerFile == "" {
		p.Addf("issuer-file is required: there is no default, a private CA trusts nobody by itself")
	}
	switch c.CTMode {
	case ctRequired, ctDetached:
		if c.CTURL == "" {
			p.Addf("ct-url is required: the base URL of the CT log, or ct-mode: disabled")
		}
		if c.CTPublicKeyFile == "" {
			p.Addf("ct-public-key-file is required: SCTs are only used once verified with the log's key")
		}
	case ctDisabled:
		if c.CTURL != "" || c.CTPublicKeyFile != "" {
			p.Addf("ct-url and ct-public-key-file contradict ct-mode: disabled")
		}
	default:
		p.Addf("ct-mode %q is not one of required, detached, disabled", c.CTMode)
	}
	c.validateRecords(&p)
	if c.TokenLeeway < 0 || c.TokenLeeway > 5*time.Minute {
		p.Addf("token-leeway %v is not between 0s and 5m", c.TokenLeeway)
	}
	if c.Lifetime < time.Minute || c.Lifetime > time.Hour {
		p.Addf("lifetime %v is not between 1m and 1h", c.Lifetime)
	}
	if c.Backdate < 0 || c.Backdate > 5*time.Minute || c.Backdate >= c.Lifetime {
		p.Addf("backdate %v is not between 0s and 5m and under the lifetime", c.Backdate)
	}
	if c.MaxInFlight < 1 {
		p.Addf("max-in-flight %d is not positive", c.MaxInFlight)
	}
	if err := identity.RateLimit(c.IdentityLimit).Check(); err != nil && c.IdentityLimit != (rateLimit{}) {
		p.Addf("identity-limit: %v", err)
	}
	if err := identity.RateLimit(c.FailedTokens).Check(); err != nil && c.FailedTokens.PerSecond != 0 {
		p.Addf("failed-tokens: %v", err)
	}
	if _, err := limit.ParseProxies(c.TrustedProxies); err != nil {
		p.Addf("trusted-proxies: %v", err)
	}
	return p.Err()
}

func (c *serverConfig) validateRecords(p *config.Problems) {
	switch {
	case c.Records != "" && c.Records != recordsRequired && c.Records != recordsOff:
		p.Addf("records %q is neither required nor off", c.Records)
	case c.Records == recordsRequired && c.Database == "":
		p.Addf("records: required needs a database: sqlite:PATH or postgres://user@host/database")
	case c.Records == recordsOff && c.Database != "":
		p.Addf("database contradicts records: off")
	}
	if c.DatabasePasswordFile != "" && !strings.HasPrefix(c.Database, "postgres") {
		p.Addf("database-password-file without a PostgreSQL database")
	}
	switch {
	case c.OneTimeTokens && c.Database == "":
		p.Addf("one-time-tokens needs a database: what was used is remembered there")
	case c.OneTimeTokens && c.CTMode == ctDetached:
		p.Addf("one-time-tokens contradicts ct-mode: detached: a certificate that was logged and not answered could be had from the log")
	}
}

// parse returns the path of -config FILE, or of CA_CONFIG; "" for none.
func parse(args []string, stderr io.Writer) (path string, healthcheck bool, err error) {
	flags := flag.NewFlagSet("ca", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&path, "config", os.Getenv("CA_CONFIG"), "YAML configuration file; every key can also be set as CA_<KEY>")
	flags.BoolVar(&healthcheck, "healthcheck", false, "ask the ca that runs with this configuration whether it is ready, and end with 1 unless it is")
	if err := flags.Parse(args); err != nil {
		return "", false, err
	}
	if flags.NArg() > 0 {
		return "", false, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return path, healthcheck, nil
}

// loadConfig reads the file at path, "" for none, and the environment.
func loadConfig(path string) (*serverConfig, error) {
	cfg := defaults()
	return cfg, config.Load(cfg, path, "CA")
}
