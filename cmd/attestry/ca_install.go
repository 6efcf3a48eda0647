package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/stack"
)

const (
	maxChainFile  = 128 << 10 // bytes
	maxConfigFile = 1 << 20   // bytes
)

type installFlags struct {
	chain, key, passwordFile, dir, config string
	now                                   bool
}

func newCAInstall() *cobra.Command {
	var f installFlags
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install a certificate that a company's PKI has signed",
		Long: `Install a certificate that a company's PKI has signed for a request of "attestry ca csr".

The chain is checked as the strictest client would, and certificates are made on trial; each problem says what to ask the PKI
for. Nothing is changed then.

It goes in two steps, so that no client meets a certificate of a CA that it has not read of. The first publishes the
chain beside the one that issues. Wait until every client has fetched trust material: a day where they keep it. The
second, the same command with --now, issues with it; the chain before stays published, and what it issued verifies for ever.

With --dir the server is an instance of "attestry up", which takes it over within seconds, or at its next start. With --config it is
a ca that runs alone: key, chain-file and other-chain-files of its configuration are changed in one step, all else stays as it is.`,
		Example: "  attestry ca install --dir ./attestry-data --chain ca-2.pem\n  attestry ca install --dir ./attestry-data --chain ca-2.pem --now\n  attestry ca install --config /etc/attestry/ca.yaml --key file:/etc/attestry/ca-2.key --chain ca-2.pem",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runCAInstall(f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.chain, "chain", "", "PEM file: the new certificate, then its issuers up to the self-signed root")
	flags.StringVar(&f.key, "key", "", "URI of its key (default with --dir: the one that `attestry ca csr --dir` made)")
	flags.StringVar(&f.passwordFile, "key-password-file", "", "with --config: file with the key's password or the token's PIN")
	flags.StringVar(&f.dir, "dir", "", "directory of an instance")
	flags.StringVar(&f.config, "config", "", "configuration file of a ca that runs alone")
	flags.BoolVar(&f.now, "now", false, "issue with it; otherwise it is published and does not issue yet")
	cmd.MarkFlagRequired("chain")
	cmd.MarkFlagsOneRequired("dir", "config")
	cmd.MarkFlagsMutuallyExclusive("dir", "config")
	cmd.MarkFlagsMutuallyExclusive("dir", "key-password-file")
	return cmd
}

func runCAInstall(f installFlags, stdout, stderr io.Writer) error {
	text, err := limit.ReadFile(f.chain, maxChainFile)
	if err != nil {
		return fmt.Errorf("--chain: %w", err)
	}
	chain, err := ca.ParseChain(text)
	if err != nil {
		return fmt.Errorf("--chain %s: %w", f.chain, err)
	}
	install := f.intoConfig
	if f.dir != "" {
		install = f.intoInstance
	}
	warnings, done, err := install(chain)
	for _, w := range warnings {
		fmt.Fprintf(stderr, "warning: %s\n", w)
	}
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	_, err = io.WriteString(stdout, done)
	return err
}

func (f installFlags) intoInstance(chain []*x509.Certificate) (warnings []string, done string, err error) {
	if f.key == "" {
		if f.key, err = stack.PublishedCAKey(f.dir, chain); err != nil {
			return nil, "", err
		}
	}
	if f.key == "" {
		path, err := stack.NextCAKey(f.dir)
		if err != nil {
			return nil, "", err
		}
		f.key = "file:" + path
	}
	warnings, err = stack.InstallCA(f.dir, stack.NewCA{Key: f.key, Chain: chain, Issue: f.now}, time.Now())
	if err != nil {
		return warnings, "", err
	}
	if f.now {
		return warnings, fmt.Sprintf("%s issues in a few seconds, or from the next start of `attestry up` on\n", chain[0].Subject), nil
	}
	return warnings, fmt.Sprintf("%s is published in a few seconds, or by the next start of `attestry up`; once every client has read of it, the same with --now\n", chain[0].Subject), nil
}

// intoConfig changes the configuration of a ca that runs alone. Its file is replaced as a whole, and names a new file for the
// chain, so the server finds the old pair or the new one.
func (f installFlags) intoConfig(chain []*x509.Certificate) (warnings []string, done string, err error) {
	if f.key == "" {
		return nil, "", errors.New("--key is required with --config")
	}
	password, err := readPassword(f.passwordFile)
	if err != nil {
		return nil, "", err
	}
	path, err := filepath.EvalSymlinks(f.config) // the file is replaced, not the link to it
	if err != nil {
		return nil, "", fmt.Errorf("--config: %w", err)
	}
	// From before the file is read until it is replaced: of two that read the same, the second would undo the first.
	release, err := durable.LockDir(filepath.Dir(path))
	if err != nil {
		return nil, "", fmt.Errorf("--config: %w", err)
	}
	defer release()
	doc, err := readCAConfig(path)
	if err != nil {
		return nil, "", err
	}
	current, err := readChainFile(doc.get("chain-file"))
	if err != nil {
		return nil, "", fmt.Errorf("%s: chain-file: %w", f.config, err)
	}
	key, err := signer.Open(f.key, password)
	if err != nil {
		return nil, "", err
	}
	earlier := [][]*x509.Certificate{current}
	var others []string // all but the new chain
	for _, path := range doc.list("other-chain-files") {
		other, err := readChainFile(path)
		if err != nil {
			return nil, "", fmt.Errorf("%s: other-chain-files: %w", f.config, err)
		}
		if f.now && other[0].Equal(chain[0]) {
			continue // published before, now it begins
		}
		earlier, others = append(earlier, other), append(others, path)
	}
	if warnings, err = ca.CheckNew(chain, key, earlier, time.Now()); err != nil {
		return warnings, "", err
	}
	// The chain first: a crash behind it leaves a file that nobody reads, and that the next try finds.
	stored, err := writeChain(filepath.Dir(doc.get("chain-file")), chain)
	if err != nil {
		return warnings, "", err
	}
	if f.now {
		others = append(others, doc.get("chain-file"))
		doc.set("key", f.key)
		doc.set("chain-file", stored)
		if f.passwordFile != "" {
			doc.set("key-password-file", f.passwordFile)
		}
	} else {
		others = append(others, stored)
	}
	doc.setList("other-chain-files", others)
	if err := doc.write(); err != nil {
		return warnings, "", err
	}
	if f.now {
		return warnings, fmt.Sprintf("%s issues once ca has read %s again. In tuf-publisher's records give the one before it an end two hours from then\n", chain[0].Subject, f.config), nil
	}
	return warnings, fmt.Sprintf(`%s is published by ca once it has read %s again. Now, with %s:
  tlog            add its root to the roots-file of the CT log
  tuf-publisher   records: - {kind: ca, url: …, chain-file: %[3]s}
Once every client has read of it, the same with --now
`, chain[0].Subject, f.config, stored), nil
}

func readChainFile(path string) ([]*x509.Certificate, error) {
	text, err := limit.ReadFile(path, maxChainFile)
	if err != nil {
		return nil, err
	}
	chain, err := ca.ParseChain(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return chain, nil
}

// writeChain stores chain in dir under a name of its own. A file of that name is the same chain, of a try before.
func writeChain(dir string, chain []*x509.Certificate) (string, error) {
	text := certificatePEM(chain...)
	sum := sha256.Sum256(text)
	path := filepath.Join(dir, fmt.Sprintf("ca-chain-%x.pem", sum[:8]))
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		old, err := limit.ReadFile(path, maxChainFile)
		if err == nil && !bytes.Equal(old, text) {
			err = fmt.Errorf("%s is another chain", path)
		}
		return path, err
	}
	return path, durable.WriteFile(path, text, 0o644)
}

// caConfig is the YAML file of a ca, edited in place: comments and keys that are none of our business stay.
type caConfig struct {
	path string
	mode fs.FileMode
	doc  yaml.Node
	root *yaml.Node // the mapping
}

func readCAConfig(path string) (*caConfig, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	text, err := limit.ReadFile(path, maxConfigFile)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	c := &caConfig{path: path, mode: info.Mode().Perm()}
	if err := yaml.Unmarshal(text, &c.doc); err != nil {
		return nil, fmt.Errorf("--config %s: %w", path, err)
	}
	if len(c.doc.Content) != 1 || c.doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("--config %s: it is no mapping of keys", path)
	}
	c.root = c.doc.Content[0]
	for _, required := range []string{"key", "chain-file"} {
		if c.get(required) == "" {
			return nil, fmt.Errorf("--config %s: it has no %s, so this is not the configuration of a ca with a chain of its own", path, required)
		}
	}
	return c, nil
}

// value returns the node of a key, nil when it is not there. Keys are written in any case, as the server reads them.
func (c *caConfig) value(key string) *yaml.Node {
	for i := 0; i+1 < len(c.root.Content); i += 2 {
		if strings.EqualFold(c.root.Content[i].Value, key) {
			return c.root.Content[i+1]
		}
	}
	return nil
}

func (c *caConfig) get(key string) string {
	if n := c.value(key); n != nil && n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return ""
}

// list reads a list, or its short form: one text with commas.
func (c *caConfig) list(key string) []string {
	n := c.value(key)
	if n == nil {
		return nil
	}
	if n.Kind == yaml.ScalarNode && n.Value != "" {
		return strings.Split(n.Value, ",")
	}
	var out []string
	for _, item := range n.Content {
		out = append(out, item.Value)
	}
	return out
}

func (c *caConfig) set(key, value string) {
	c.replace(key, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value})
}

func (c *caConfig) setList(key string, values []string) {
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for _, v := range values {
		list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: v})
	}
	c.replace(key, list)
}

func (c *caConfig) replace(key string, with *yaml.Node) {
	if n := c.value(key); n != nil {
		with.LineComment, with.HeadComment, with.FootComment = n.LineComment, n.HeadComment, n.FootComment
		*n = *with
		return
	}
	c.root.Content = append(c.root.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, with)
}

func (c *caConfig) write() error {
	var text bytes.Buffer
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(&c.doc), encoder.Close()); err != nil {
		return err
	}
	return durable.WriteFile(c.path, text.Bytes(), c.mode)
}
