// Package tlog is the configuration of a server of transparency logs, as cmd/tlog serves them and as the commands that look
// after its logs read it.
package tlog

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/rekor1"
	"github.com/attestry/attestry/pkg/stack"
)

// Config is the YAML file of tlog. A log runs when it has a key.
type Config struct {
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
	// backup is recognized by it. Or postgres://user@host/database, which several replicas share. Required.
	Fence string `mapstructure:"fence"`
	// Database is postgres://user@host/database: rows, queue and search index of each log, in a schema
	// of its own. Default: SQLite files in dir. Several replicas need it, the fence in PostgreSQL, and trees that they share.
	Database string `mapstructure:"database"`
	// DatabasePasswordFile holds the password of database and fence.
	DatabasePasswordFile string `mapstructure:"database-password-file"`

	// KeyPasswordFile holds the password of encrypted keys; all logs share it.
	KeyPasswordFile string `mapstructure:"key-password-file"`

	Rekor1 struct {
		// Kinds are the entry kinds to take, such as hashedrekord (every version) and intoto:0.0.2.
		// Entries of other kinds stay readable. Default hashedrekord, dsse and intoto, which signing
		// clients send; each of the others lets anybody have archives and foreign formats unpacked here.
		Kinds []string `mapstructure:"kinds"`
		// DisabledEndpoints are operations of the API that answer 501, by the names of /swagger.json: createLogEntry,
		// searchIndex and so on. Default none.
		DisabledEndpoints []string `mapstructure:"disabled-endpoints"`
		// Attestations keeps the payloads of intoto entries and the messages of cose ones beside
		// the tree, in dir/rekor1/attestations or where the rows are, and reads return them. Default false, upstream's.
		Attestations bool `mapstructure:"attestations"`
		// MaxAttestation is how many bytes an attestation may have; a larger one is not kept. Default 100 KiB.
		MaxAttestation int `mapstructure:"max-attestation"`
		// Key signs checkpoints and SETs: file:PATH, ECDSA P-256. Empty: no Rekor v1 log.
		Key string `mapstructure:"key"`
		// Frozen says that the log takes no entries any more. What it holds then is final, for good.
		Frozen bool `mapstructure:"frozen"`
		// Tree is where the tree is.
		Tree stack.TreeSpec `mapstructure:"tree"`
		// Shards are the logs that followed, oldest first, behind the same API. The newest log takes
		// entries, all before it are frozen, for good.
		Shards []shardConfig `mapstructure:"shards"`
	} `mapstructure:"rekor1"`
	Rekor2 struct {
		// Key signs checkpoints: file:PATH, ECDSA P-256 or Ed25519. Empty: no Rekor v2 log.
		Key string `mapstructure:"key"`
		// Frozen says that the log takes no entries any more.
		Frozen bool `mapstructure:"frozen"`
		// WitnessPolicy names a file of witnesses and their quorum (c2sp.org/tlog-policy). No checkpoint is shown
		// without a quorum. Default: no witnesses.
		WitnessPolicy string `mapstructure:"witness-policy"`
		// WitnessKey signs checkpoints a second time, Ed25519, for witnesses that know no ECDSA. Default: none.
		WitnessKey string `mapstructure:"witness-key"`
		// Tree is where the tree is.
		Tree stack.TreeSpec `mapstructure:"tree"`
		// Shards are the logs that followed, oldest first, each with a host name of its own. Requests
		// for a host that no log has reach the newest.
		Shards []shardConfig `mapstructure:"shards"`
	} `mapstructure:"rekor2"`
	CT struct {
		// Key signs SCTs and tree heads: file:PATH, ECDSA P-256. Empty: no CT log.
		Key string `mapstructure:"key"`
		// Shard names the log in its paths, /ct/<shard>. Default "main".
		Shard string `mapstructure:"shard"`
		// RootsFile has the root certificates (PEM) whose certificates are logged. Required
		// with a key: a log that asks a CA for its roots trusts whoever answers.
		RootsFile string `mapstructure:"roots-file"`
		// Extensions of leaves and SCTs: leaf-index (static-ct, the default) or none (plain RFC 6962, no tiles,
		// for sigstore-python before 4.2). For the log's life.
		Extensions string `mapstructure:"extensions"`
		// NotAfterStart and NotAfterLimit are the window of a temporal shard, RFC 3339: certificates that expire
		// at or after the one and before the other are taken. Default: open.
		NotAfterStart string `mapstructure:"not-after-start"`
		NotAfterLimit string `mapstructure:"not-after-limit"`
		// WitnessPolicy and WitnessKey are as those of rekor2. SCTs wait for the quorum, too.
		WitnessPolicy string `mapstructure:"witness-policy"`
		WitnessKey    string `mapstructure:"witness-key"`
		// Frozen says that the log takes no entries any more.
		Frozen bool `mapstructure:"frozen"`
		// Tree is where the tree is.
		Tree stack.TreeSpec `mapstructure:"tree"`
		// Shards are further logs, each at its own path.
		Shards []shardConfig `mapstructure:"shards"`
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

	// LogLevel is debug, info, warn or error. Default info. At debug each request has a line; secrets are in none.
	LogLevel slog.Level `mapstructure:"log-level"`
	// ShutdownGrace is how long requests in flight may take after SIGTERM. Default 8s.
	ShutdownGrace time.Duration `mapstructure:"shutdown-grace"`
}

// shardConfig is a log that follows the first of its kind. `attestry log shard` makes one without a
// change of configuration.
type shardConfig struct {
	// Label names the log's directory and metrics, for life: lower-case letters, digits, hyphens.
	// Required; of a CT log it is ct-<shard>, and not set.
	Label string `mapstructure:"label"`
	// Key is that of the log, which no other has. Required.
	Key string `mapstructure:"key"`
	// Host is a Rekor v2 log's host name, the origin of its checkpoints, for life. Required there.
	Host string `mapstructure:"host"`
	// Shard is a CT log's name in its paths. Required there.
	Shard string `mapstructure:"shard"`
	// RootsFile has a CT log's root certificates. Default: the first log's.
	RootsFile string `mapstructure:"roots-file"`
	// Extensions, NotAfterStart and NotAfterLimit are a CT log's, as those of the first.
	Extensions    string `mapstructure:"extensions"`
	NotAfterStart string `mapstructure:"not-after-start"`
	NotAfterLimit string `mapstructure:"not-after-limit"`
	// WitnessPolicy and WitnessKey are those of a Rekor v2 or CT log. Default: the first log's.
	WitnessPolicy string `mapstructure:"witness-policy"`
	WitnessKey    string `mapstructure:"witness-key"`
	// Frozen says that the log takes no entries any more.
	Frozen bool `mapstructure:"frozen"`
	// Tree is where the tree is. Default: a directory of the log's own below dir.
	Tree stack.TreeSpec `mapstructure:"tree"`
}

// window parses the window of a temporal shard; a side that is not given is the zero time.
func (s shardConfig) window() (start, limit time.Time, err error) {
	for _, side := range []struct {
		name, text string
		to         *time.Time
	}{{"not-after-start", s.NotAfterStart, &start}, {"not-after-limit", s.NotAfterLimit, &limit}} {
		if side.text == "" {
			continue
		}
		if *side.to, err = time.Parse(time.RFC3339, side.text); err != nil {
			return start, limit, fmt.Errorf("%s %q is not RFC 3339, as 2027-01-01T00:00:00Z", side.name, side.text)
		}
	}
	if !start.IsZero() && !limit.IsZero() && !start.Before(limit) {
		return start, limit, fmt.Errorf("not-after-limit %s is not after not-after-start %s", s.NotAfterLimit, s.NotAfterStart)
	}
	return start, limit, nil
}

// logConfig is one log of the configuration, whichever way it was written down.
type logConfig struct {
	kind log.Kind
	at   string // its keys' prefix: "rekor1", "ct.shards[0]"
	shardConfig
}

// list returns the logs that run, of each kind oldest first.
func (c *Config) list() []logConfig {
	var logs []logConfig
	add := func(kind log.Kind, at string, first shardConfig, shards []shardConfig) {
		if first.Key != "" {
			logs = append(logs, logConfig{kind, at, first})
		}
		for i, s := range shards {
			if kind == log.CT {
				s.Label = "ct-" + s.Shard
				s.RootsFile = cmp.Or(s.RootsFile, first.RootsFile)
			}
			if kind != log.Rekor1 {
				s.WitnessPolicy, s.WitnessKey = cmp.Or(s.WitnessPolicy, first.WitnessPolicy), cmp.Or(s.WitnessKey, first.WitnessKey)
			}
			logs = append(logs, logConfig{kind, fmt.Sprintf("%s.shards[%d]", at, i), s})
		}
	}
	add(log.Rekor1, "rekor1", shardConfig{Label: "rekor1", Key: c.Rekor1.Key, Frozen: c.Rekor1.Frozen, Tree: c.Rekor1.Tree}, c.Rekor1.Shards)
	add(log.Rekor2, "rekor2", shardConfig{
		Label: "rekor2", Key: c.Rekor2.Key, Host: c.host(), Frozen: c.Rekor2.Frozen, Tree: c.Rekor2.Tree,
		WitnessPolicy: c.Rekor2.WitnessPolicy, WitnessKey: c.Rekor2.WitnessKey,
	}, c.Rekor2.Shards)
	add(log.CT, "ct", shardConfig{
		Label: "ct-" + c.CT.Shard, Key: c.CT.Key, Shard: c.CT.Shard, RootsFile: c.CT.RootsFile, Frozen: c.CT.Frozen, Tree: c.CT.Tree,
		Extensions: c.CT.Extensions, NotAfterStart: c.CT.NotAfterStart, NotAfterLimit: c.CT.NotAfterLimit,
		WitnessPolicy: c.CT.WitnessPolicy, WitnessKey: c.CT.WitnessKey,
	}, c.CT.Shards)
	return logs
}

// Load reads the file at path ("" for none) and the environment (TLOG_…) over the defaults. All problems come in one error.
func Load(path string) (*Config, error) {
	c := defaults()
	return c, config.Load(c, path, "TLOG")
}

func defaults() *Config {
	c := &Config{Listen: "127.0.0.1:3000", OpsListen: "127.0.0.1:2112", ShutdownGrace: 8 * time.Second}
	c.CT.Shard = "main"
	c.Rekor1.MaxAttestation = rekor1.DefaultMaxAttestation
	l := stack.DefaultLimits()
	c.Limits.Rekor1Body, c.Limits.Rekor2Body, c.Limits.CTBody = l.Rekor1Body, l.Rekor2Body, l.CTBody
	c.Limits.BodyTime, c.Limits.BodiesInFlight = l.BodyTime, l.BodiesInFlight
	c.Limits.CallerPerSecond, c.Limits.CallerBurst = l.CallerPerSecond, l.CallerBurst
	return c
}

// Validate implements config.Validator.
func (c *Config) Validate() error {
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
	logs := c.list()
	if len(logs) == 0 {
		p.Addf("no log has a key: set rekor1.key, rekor2.key or ct.key")
	}
	keys := map[string]string{}
	for _, l := range logs {
		if l.Key == "" {
			p.Addf("%s.key is required", l.at)
		} else if other := keys[l.Key]; other != "" {
			p.Addf("%s.key and %s.key must differ: one key may not sign two trees", other, l.at)
		}
		keys[l.Key] = l.at
		l.check(&p)
	}
	for _, s := range []struct {
		at     string
		shards []shardConfig
	}{{"rekor1", c.Rekor1.Shards}, {"rekor2", c.Rekor2.Shards}, {"ct", c.CT.Shards}} {
		for i, shard := range s.shards {
			shard.check(&p, s.at, i)
		}
	}
	shared := false
	for _, l := range logs {
		shared = shared || l.Tree.Shared()
	}
	switch inDatabase := isPostgres(c.Fence); {
	case c.Database != "" && !isPostgres(c.Database):
		p.Addf("database is not postgres://user@host/database")
	case c.Database != "" && shared && !inDatabase:
		p.Addf("fence must be in PostgreSQL when database is and a tree is shared: another replica would not see what this one signs")
	case c.DatabasePasswordFile != "" && c.Database == "" && !inDatabase:
		p.Addf("database-password-file without a database")
	}
	if _, err := entry.ParseKinds(c.Rekor1.Kinds); err != nil {
		p.Addf("rekor1.kinds: %w", err)
	}
	for _, name := range c.Rekor1.DisabledEndpoints {
		if !slices.Contains(rekor1.Operations(), name) {
			p.Addf("rekor1.disabled-endpoints: %q is not one of %s", name, strings.Join(rekor1.Operations(), ", "))
		}
	}
	if c.Rekor1.MaxAttestation <= 0 {
		p.Addf("rekor1.max-attestation %d is not positive; turn rekor1.attestations off to keep none", c.Rekor1.MaxAttestation)
	}
	if limits, err := c.limits(); err != nil {
		p.Addf("limits.trusted-proxies: %w", err)
	} else if err := limits.Validate(); err != nil {
		p.Addf("limits: %w", err)
	}
	return p.Err()
}

// isPostgres tells a PostgreSQL URI from a path.
func isPostgres(uri string) bool {
	return strings.HasPrefix(uri, "postgres://") || strings.HasPrefix(uri, "postgresql://")
}

func (c *Config) limits() (stack.Limits, error) {
	l := c.Limits
	proxies, err := limit.ParseProxies(l.TrustedProxies)
	return stack.Limits{
		Rekor1Body: l.Rekor1Body, Rekor2Body: l.Rekor2Body, CTBody: l.CTBody, BodyTime: l.BodyTime, BodiesInFlight: l.BodiesInFlight,
		CallerPerSecond: l.CallerPerSecond, CallerBurst: l.CallerBurst, TrustedProxies: proxies,
	}, err
}

// check reports what is wrong with a log by itself.
func (l logConfig) check(p *config.Problems) {
	const name = "abcdefghijklmnopqrstuvwxyz0123456789-"
	switch {
	case l.kind == log.CT && (l.Shard == "" || strings.Trim(l.Shard, name) != ""):
		p.Addf("%s.shard %q may have lower-case letters, digits and hyphens", l.at, l.Shard)
	case l.kind != log.CT && (l.Label == "" || strings.Trim(l.Label, name) != ""):
		p.Addf("%s.label %q may have lower-case letters, digits and hyphens, and is required", l.at, l.Label)
	}
	if l.kind == log.CT && l.RootsFile == "" {
		p.Addf("%s.roots-file is required with %s.key", l.at, l.at)
	}
	if l.kind == log.Rekor2 && l.Host == "" {
		p.Addf("%s.host is required: two Rekor v2 logs cannot share a host name", l.at)
	}
	if l.Extensions != "" && l.Extensions != "leaf-index" && l.Extensions != "none" {
		p.Addf("%s.extensions %q is not leaf-index or none", l.at, l.Extensions)
	}
	if _, _, err := l.window(); err != nil {
		p.Addf("%s.%w", l.at, err)
	}
	if l.WitnessKey != "" && l.WitnessPolicy == "" {
		p.Addf("%s.witness-key without %s.witness-policy signs for nobody", l.at, l.at)
	}
	l.Tree.Validate(p, l.at, l.kind)
}

// check reports members that mean nothing for the kind of log.
func (s shardConfig) check(p *config.Problems, at string, i int) {
	for _, m := range []struct {
		name, value string
		of          string
	}{
		{"host", s.Host, "rekor2"}, {"shard", s.Shard, "ct"}, {"roots-file", s.RootsFile, "ct"}, {"extensions", s.Extensions, "ct"},
		{"not-after-start", s.NotAfterStart, "ct"}, {"not-after-limit", s.NotAfterLimit, "ct"},
		{"witness-policy", s.WitnessPolicy, "rekor2, ct"}, {"witness-key", s.WitnessKey, "rekor2, ct"},
	} {
		if m.value != "" && !strings.Contains(m.of, at) {
			p.Addf("%s.shards[%d].%s is for %s logs alone", at, i, m.name, m.of)
		}
	}
	if at == "ct" && s.Label != "" {
		p.Addf("ct.shards[%d].label is not set: a CT log is called ct-<shard>", i)
	}
}

func (c *Config) host() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return "" // Validate has said so
	}
	return u.Hostname()
}
