package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/pkg/trust"
)

// publisherConfig is the YAML file of tuf-publisher.
type publisherConfig struct {
	// Listen is the address of the public listener, which serves /tuf/. Default 127.0.0.1:8080.
	Listen string `mapstructure:"listen"`
	// OpsListen is the address of /metrics, /healthz and /readyz. Default 127.0.0.1:2112.
	OpsListen string `mapstructure:"ops-listen"`

	// Dir is the TUF repository, in the layout that any static file server can serve. Required.
	Dir string `mapstructure:"dir"`
	// KeysDir has the TUF keys, PEM files of ECDSA P-256 keys, outside Dir. root-1.pem … sign
	// root and targets, online.pem snapshot and timestamp. Holders' keys may be taken away
	// between publications; online.pem must stay. Required.
	KeysDir string `mapstructure:"keys-dir"`
	// CreateKeys makes the keys that are missing when the repository is new. Default false: a
	// mistyped keys-dir must not make another root of trust.
	CreateKeys bool `mapstructure:"create-keys"`
	// SignedRoots is a directory with N.root.json that holders signed elsewhere, see `attestry trust`; may be KeysDir. The publisher
	// then makes no root, and publishes each further version once it is there. KeysDir needs targets.pem and online.pem alone.
	SignedRoots string `mapstructure:"signed-roots"`
	// Holders and Threshold shape the first root: 3 and 2. A repository that exists keeps its own.
	Holders   int `mapstructure:"holders"`
	Threshold int `mapstructure:"threshold"`

	// Inventory is the append-only file of every key ever used, JSON lines. Changes by other
	// processes are published within InventoryPoll. Required.
	Inventory string `mapstructure:"inventory"`
	// InventoryPoll is how often the inventory is read again. Default 10s.
	InventoryPoll time.Duration `mapstructure:"inventory-poll"`
	// Records are keys to add to the inventory at start. Those that are there change nothing but
	// their URL, and their end, once; taking one away here removes nothing.
	Records []recordConfig `mapstructure:"records"`

	// Operator names who runs the services in the signing config, as a URI without scheme.
	// Default: the host name of the first record.
	Operator string `mapstructure:"operator"`
	// OIDCIssuers are the identity providers of the signing config.
	OIDCIssuers []string `mapstructure:"oidc-issuers"`

	// RootLife, TargetsLife, SnapshotLife and TimestampLife are how long metadata is good; each is signed again at a third. Default 8760h (a year) for root,
	// targets and snapshot, 168h for timestamp. An air-gapped site that copies the
	// repository by hand wants a longer timestamp-life.
	RootLife      time.Duration `mapstructure:"root-life"`
	TargetsLife   time.Duration `mapstructure:"targets-life"`
	SnapshotLife  time.Duration `mapstructure:"snapshot-life"`
	TimestampLife time.Duration `mapstructure:"timestamp-life"`

	// ClientDir, if set, gets the files that clients are pointed at: trusted root, signing
	// configs, root.json, PEM files, env. URL is the instance they belong to and TUFURL the
	// public URL of this repository, ending in /tuf; both are required with ClientDir.
	ClientDir string `mapstructure:"client-dir"`
	URL       string `mapstructure:"url"`
	TUFURL    string `mapstructure:"tuf-url"`

	// LogLevel is debug, info, warn or error. Default info. At debug each request has a line; secrets are in none.
	LogLevel slog.Level `mapstructure:"log-level"`
	// ShutdownGrace is how long requests in flight may take after SIGTERM. Default 8s.
	ShutdownGrace time.Duration `mapstructure:"shutdown-grace"`

	// once is the flag -once: publish, write the files and end.
	once bool
	// healthcheck is the flag -healthcheck.
	healthcheck bool
	// flagged are the values of -record, which come before Records.
	flagged []recordConfig
}

// records are those of the flags and those of the file.
func (c *publisherConfig) records() []recordConfig {
	return append(slices.Clone(c.flagged), c.Records...)
}

// recordConfig is one key of a service.
type recordConfig struct {
	// Kind is ca, ctlog, rekor1, rekor2 or tsa.
	Kind string `mapstructure:"kind"`
	// URL is the base URL of the service, for a tsa its full URL.
	URL string `mapstructure:"url"`
	// Origin is a log's checkpoint origin; for rekor2 it must be the host name of URL, and is by default; of a
	// rekor1 log of tlog the default is right, too.
	Origin string `mapstructure:"origin"`
	// PublicKeyFile has a log's key, ChainFile the chain of a ca or tsa, root last; both PEM.
	PublicKeyFile string `mapstructure:"public-key-file"`
	ChainFile     string `mapstructure:"chain-file"`
	// Start and End (RFC 3339) bound when the key signed. Start is required for a log and must
	// not be later than its first entry; a chain's default is the notBefore of its first certificate.
	// An End that is added later, when a log was frozen, ends the record then, or at the next start
	// of this program when that is over.
	Start string `mapstructure:"start"`
	End   string `mapstructure:"end"`
}

func defaults() *publisherConfig {
	return &publisherConfig{
		Listen: "127.0.0.1:8080", OpsListen: "127.0.0.1:2112", Holders: 3, Threshold: 2,
		InventoryPoll: 10 * time.Second, ShutdownGrace: 8 * time.Second,
		RootLife: 8760 * time.Hour, TargetsLife: 8760 * time.Hour, SnapshotLife: 8760 * time.Hour, TimestampLife: 168 * time.Hour,
	}
}

// Validate implements config.Validator.
func (c *publisherConfig) Validate() error {
	var p config.Problems
	for _, required := range []struct{ value, text string }{
		{c.Dir, "dir is required: where the TUF repository lies"},
		{c.KeysDir, "keys-dir is required: where the TUF keys lie, outside dir"},
		{c.Inventory, "inventory is required: the file that remembers every key ever used"},
	} {
		if required.value == "" {
			p.Addf("%s", required.text)
		}
	}
	if c.SignedRoots != "" && c.CreateKeys {
		p.Addf("create-keys contradicts signed-roots: a root that was signed elsewhere names its keys")
	}
	if c.Threshold < 1 || c.Threshold > c.Holders {
		p.Addf("threshold %d of %d holders makes no sense", c.Threshold, c.Holders)
	}
	for _, life := range []struct {
		name  string
		value time.Duration
	}{{"root-life", c.RootLife}, {"targets-life", c.TargetsLife}, {"snapshot-life", c.SnapshotLife}, {"timestamp-life", c.TimestampLife}} {
		if life.value < time.Minute {
			p.Addf("%s %v is under a minute", life.name, life.value)
		}
	}
	if c.InventoryPoll < time.Second {
		p.Addf("inventory-poll %v is under 1s", c.InventoryPoll)
	}
	for _, issuer := range c.OIDCIssuers {
		if !isURL(issuer) {
			p.Addf("oidc-issuers: %q is not http:// or https:// with a host", issuer)
		}
	}
	if c.ClientDir != "" {
		if !isURL(c.URL) {
			p.Addf("url %q is not http:// or https:// with a host; client-dir needs it", c.URL)
		}
		if !isURL(c.TUFURL) {
			p.Addf("tuf-url %q is not http:// or https:// with a host; client-dir needs it", c.TUFURL)
		}
	}
	for i, r := range c.records() {
		if _, err := r.record(); err != nil {
			p.Addf("records[%d]: %v", i, err)
		}
	}
	return p.Err()
}

func isURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}

const maxPEMFile = 64 << 10

// record reads the files of r. What is in them is checked by the inventory.
func (r recordConfig) record() (trust.Record, error) {
	out := trust.Record{Kind: trust.Kind(r.Kind), URL: r.URL, Origin: r.Origin}
	for _, part := range []struct {
		name, path string
		to         *string
	}{{"public-key-file", r.PublicKeyFile, &out.PublicKeyPEM}, {"chain-file", r.ChainFile, &out.ChainPEM}} {
		if part.path == "" {
			continue
		}
		info, err := os.Stat(part.path)
		if err != nil {
			return out, fmt.Errorf("%s: %w", part.name, err)
		}
		if info.Size() > maxPEMFile {
			return out, fmt.Errorf("%s: over %d bytes", part.name, maxPEMFile)
		}
		text, err := os.ReadFile(part.path)
		if err != nil {
			return out, fmt.Errorf("%s: %w", part.name, err)
		}
		*part.to = string(text)
	}
	for _, part := range []struct {
		name, text string
		to         *time.Time
	}{{"start", r.Start, &out.Start}, {"end", r.End, &out.End}} {
		if part.text == "" {
			continue
		}
		at, err := time.Parse(time.RFC3339, part.text)
		if err != nil {
			return out, fmt.Errorf("%s: %w", part.name, err)
		}
		*part.to = at
	}
	if err := out.Check(); err != nil {
		return out, err
	}
	return out, nil
}

// loadConfig reads -config FILE, or TUF_PUBLISHER_CONFIG.
func loadConfig(args []string, stderr io.Writer) (*publisherConfig, error) {
	flags := flag.NewFlagSet("tuf-publisher", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", os.Getenv("TUF_PUBLISHER_CONFIG"), "YAML configuration file; every key but records can also be set as TUF_PUBLISHER_<KEY>")
	once := flags.Bool("once", false, "publish what changed or is due, write the files and end, for a repository that is served elsewhere")
	var records []recordConfig
	flags.Func("record", "`KEY=VALUE,…` of one more of records, as in kind=ca,url=http://localhost:5555,chain-file=ca-chain.pem; may be repeated", func(text string) error {
		r, err := parseRecord(text)
		records = append(records, r)
		return err
	})
	healthcheck := flags.Bool("healthcheck", false, "ask the tuf-publisher that runs with this configuration whether it is ready, and end with 1 unless it is")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	cfg := defaults()
	cfg.once, cfg.healthcheck = *once, *healthcheck
	cfg.flagged = records
	return cfg, config.Load(cfg, *path, "TUF_PUBLISHER")
}

// parseRecord reads the value of -record.
func parseRecord(text string) (recordConfig, error) {
	var r recordConfig
	fields := map[string]*string{
		"kind": &r.Kind, "url": &r.URL, "origin": &r.Origin, "public-key-file": &r.PublicKeyFile, "chain-file": &r.ChainFile, "start": &r.Start, "end": &r.End,
	}
	for _, pair := range strings.Split(text, ",") {
		key, value, ok := strings.Cut(pair, "=")
		to := fields[key]
		if !ok || to == nil {
			return r, fmt.Errorf("%q is not KEY=VALUE with one of kind, url, origin, public-key-file, chain-file, start, end", pair)
		}
		*to = value
	}
	return r, nil
}
