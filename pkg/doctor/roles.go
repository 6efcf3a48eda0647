package doctor

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/log/ct"
	"github.com/attestry/attestry/pkg/stack"
	"github.com/attestry/attestry/pkg/tlog"
)

func sortedKeys(m map[string][]byte) []string { return slices.Sorted(maps.Keys(m)) }

// Instance looks at the instance of `attestry up` in dir. fence is where its fence is, "" for the place that it has by default.
func (r *Report) Instance(ctx context.Context, dir, fence string) {
	opts, _, keysDir, err := stack.InstanceLogs(dir)
	if err != nil {
		r.add(Fail, CodeConfig, dir, "%v", err)
		return
	}
	if opts.FenceDir = fence; fence == "" {
		opts.FenceDir = filepath.Join(dir, "fence")
	}
	live := map[string][]byte{}
	if key, chain, err := stack.IssuingCA(dir); err != nil {
		r.add(Fail, CodeFile, keysDir, "%v", err)
	} else {
		r.pair("ca", r.key(key, ""), chain)
		live["ca"] = chain[0].Raw
	}
	if chain := r.chain(filepath.Join(keysDir, "tsa-chain.pem")); chain != nil {
		r.pair("tsa", r.key("file:"+filepath.Join(keysDir, "tsa.pem"), ""), chain)
		live["tsa"] = chain[0].Raw
	}
	r.published(opts, live)
	r.clock(filepath.Join(dir, "tsa-last-issued"))
	r.logs(ctx, opts)
	r.trusted(filepath.Join(dir, "client", "trusted_root.json"), live)
	r.tuf(filepath.Join(dir, "tuf"))
}

// published adds the keys of the logs that clients have to know.
func (r *Report) published(opts stack.LogsOptions, live map[string][]byte) {
	infos, err := stack.ListLogs(opts)
	if err != nil {
		r.add(Fail, CodeConfig, "logs", "%v", err)
		return
	}
	for _, info := range infos {
		if info.State != stack.Planned {
			live["log "+info.Label] = spki(info.Key)
		}
	}
}

// roleConfig is what is looked at in the file of any role. Those of one role have the names that they have there.
type roleConfig struct {
	Dir                  string `mapstructure:"dir"`
	Fence                string `mapstructure:"fence"`
	Key                  string `mapstructure:"key"`
	KeyPasswordFile      string `mapstructure:"key-password-file"`
	ChainFile            string `mapstructure:"chain-file"`
	IssuerFile           string `mapstructure:"issuer-file"`
	CTPublicKeyFile      string `mapstructure:"ct-public-key-file"`
	Database             string `mapstructure:"database"`
	DatabasePasswordFile string `mapstructure:"database-password-file"`
	LastIssuedFile       string `mapstructure:"last-issued-file"`
	Inventory            string `mapstructure:"inventory"`
	KeysDir              string `mapstructure:"keys-dir"`
	ClientDir            string `mapstructure:"client-dir"`
}

// role is one configuration file, and what all of them sign with.
type role struct {
	path string
	roleConfig
	live map[string][]byte
}

// Configs looks at roles that run alone, each with its YAML file, and holds what a tuf-publisher among them has published against the
// keys of the others. Which role a file is of follows from its keys.
func (r *Report) Configs(ctx context.Context, paths []string) {
	live := map[string][]byte{}
	var publishers []*role
	for _, path := range paths {
		c := &role{path: path, live: live}
		if _, ok := r.read(path); !ok {
			continue
		}
		if err := config.LoadPart(&c.roleConfig, path, "ATTESTRY_DOCTOR"); err != nil {
			r.add(Fail, CodeConfig, path, "%v", err)
			continue
		}
		switch {
		case c.Inventory != "" || c.KeysDir != "":
			publishers = append(publishers, c)
		case c.Fence != "":
			r.tlog(ctx, c)
		case c.IssuerFile != "":
			r.ca(ctx, c)
		case c.ChainFile != "":
			r.tsa(c)
		default:
			r.add(Fail, CodeConfig, path, "it has neither fence (tlog), issuer-file (ca), chain-file (tsa) nor inventory (tuf-publisher): whose is it?")
		}
	}
	for _, c := range publishers { // last: what the others sign with is known then
		r.publisher(c)
	}
}

func (r *Report) ca(ctx context.Context, c *role) {
	key := r.key(c.Key, c.KeyPasswordFile)
	if c.ChainFile != "" {
		if chain := r.chain(c.ChainFile); chain != nil {
			r.pair("ca", key, chain)
			c.live["ca"] = chain[0].Raw
		}
	}
	if _, ok := r.read(c.IssuerFile); ok {
		if _, err := identity.Load(c.IssuerFile); err != nil {
			r.add(Fail, CodeConfig, c.IssuerFile, "%v", err)
		}
	}
	if c.CTPublicKeyFile != "" {
		r.read(c.CTPublicKeyFile)
	}
	r.database(ctx, "ca", c.Database, "ca", c.DatabasePasswordFile)
}

func (r *Report) tsa(c *role) {
	if chain := r.chain(c.ChainFile); chain != nil {
		r.pair("tsa", r.key(c.Key, c.KeyPasswordFile), chain)
		c.live["tsa"] = chain[0].Raw
	}
	if c.LastIssuedFile != "" {
		r.clock(c.LastIssuedFile)
		r.volume(filepath.Dir(c.LastIssuedFile))
	}
}

func (r *Report) tlog(ctx context.Context, c *role) {
	cfg, err := tlog.Load(c.path)
	if err != nil {
		r.add(Fail, CodeConfig, c.path, "%v", err)
		return
	}
	for _, file := range cfg.Secrets() {
		r.secret(file)
	}
	opts, err := cfg.Logs()
	if err != nil {
		r.add(Fail, CodeKey, c.path, "%v", err)
		return
	}
	r.published(opts, c.live)
	for _, l := range opts.Logs {
		if l.RootsFile != "" {
			if _, err := ct.ReadRoots(l.RootsFile); err != nil {
				r.add(Fail, CodeFile, l.RootsFile, "%v", err)
			}
		}
	}
	found := len(r.Findings)
	r.database(ctx, "tlog", opts.Database, "doctor", c.DatabasePasswordFile)
	r.database(ctx, "fence", opts.FenceURI, "fence", c.DatabasePasswordFile)
	for _, f := range r.Findings[found:] {
		if f.Level == Fail {
			return // the logs could say no more than that
		}
	}
	r.logs(ctx, opts)
}

func (r *Report) publisher(c *role) {
	if c.KeysDir != "" {
		r.secret(filepath.Join(c.KeysDir, "online.pem")) // the others are often elsewhere
	}
	if c.Inventory != "" {
		r.read(c.Inventory)
	}
	if c.Dir == "" {
		r.add(Fail, CodeConfig, c.path, "dir is not set")
		return
	}
	r.volume(c.Dir)
	r.tuf(c.Dir)
	published, err := publishedRoot(c.Dir)
	if err != nil {
		r.add(Fail, CodeTrust, c.Dir, "%v", err)
		return
	}
	r.trusted(published, c.live)
}

// publishedRoot is the path of the trusted root that the newest targets name.
func publishedRoot(dir string) (string, error) {
	path, err := newest(dir, "targets")
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	hash, err := targetHash(data, "trusted_root.json")
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "targets", hash+".trusted_root.json"), nil
}
