package tlog

import (
	"crypto"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log/ct"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/witness"
	"github.com/attestry/attestry/pkg/stack"
)

// Logs turns the configuration into the logs' options: opens keys, root certificates and witness policies.
func (c *Config) Logs() (stack.LogsOptions, error) {
	o := stack.LogsOptions{
		Dir: c.Dir, FenceDir: strings.TrimPrefix(c.Fence, "file:"), Host: c.host(), URL: strings.TrimSuffix(c.URL, "/"),
		Database: c.Database, DatabasePasswordFile: c.DatabasePasswordFile,
	}
	if isPostgres(c.Fence) {
		o.FenceDir, o.FenceURI = "", c.Fence
	}
	var errs []error
	var err error
	o.Limits, err = c.limits()
	errs = append(errs, err)
	o.Rekor1Kinds, err = entry.ParseKinds(c.Rekor1.Kinds)
	errs = append(errs, err)
	o.Rekor1Off = c.Rekor1.DisabledEndpoints
	o.Rekor1Attestations, o.Rekor1MaxAttestation = c.Rekor1.Attestations, c.Rekor1.MaxAttestation
	var password []byte
	if c.KeyPasswordFile != "" {
		if password, err = signer.ReadPassword(c.KeyPasswordFile); err != nil {
			errs = append(errs, fmt.Errorf("key-password-file: %w", err))
		}
	}
	o.KeyPassword = password
	for _, l := range c.list() {
		spec := stack.LogSpec{
			Kind: l.kind, Label: l.Label, Host: l.Host, Shard: l.Shard, Frozen: l.Frozen,
			RootsFile: l.RootsFile, Plain: l.Extensions == "none", Tree: l.Tree,
		}
		open := func(name, uri string) (key crypto.Signer) {
			if uri == "" {
				return nil
			}
			key, err := signer.Open(uri, password)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s.%s: %w", l.at, name, err))
			}
			return key
		}
		spec.Key, spec.WitnessKey = open("key", l.Key), open("witness-key", l.WitnessKey)
		var err error
		if l.RootsFile != "" {
			if spec.Roots, err = ct.ReadRoots(l.RootsFile); err != nil {
				errs = append(errs, fmt.Errorf("%s.roots-file: %w", l.at, err))
			}
		}
		if l.WitnessPolicy != "" {
			if spec.Witnesses, err = readPolicy(l.WitnessPolicy); err != nil {
				errs = append(errs, fmt.Errorf("%s.witness-policy: %w", l.at, err))
			}
		}
		if spec.NotAfterStart, spec.NotAfterLimit, err = l.window(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.at, err))
		}
		o.Logs = append(o.Logs, spec)
	}
	return o, errors.Join(errs...)
}

// Secrets are the files of keys and passwords that c names, by a name for each.
func (c *Config) Secrets() map[string]string {
	secrets := map[string]string{}
	add := func(name, file string) {
		if file != "" {
			secrets[name] = file
		}
	}
	addKey := func(name, uri string) { // one that a token or key service has cannot be copied
		if file, ok := strings.CutPrefix(uri, "file:"); ok {
			add(name, file)
		}
	}
	add("key-password", c.KeyPasswordFile)
	add("database-password", c.DatabasePasswordFile)
	for _, l := range c.list() {
		addKey(l.Label+".pem", l.Key)
		addKey(l.Label+"-witness.pem", l.WitnessKey)
		add(l.Label+"-s3-access-key", l.Tree.AccessKeyFile)
		add(l.Label+"-s3-secret-key", l.Tree.SecretKeyFile)
		add(l.Label+"-mysql-password", l.Tree.MySQLPasswordFile)
	}
	return secrets
}

func readPolicy(path string) (*witness.Policy, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	policy, err := witness.ParsePolicy(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return policy, nil
}
