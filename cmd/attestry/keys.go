package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/keys"
)

func newKeysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Make the keys that the roles of an instance start from", Args: cobra.NoArgs}
	cmd.AddCommand(newKeysInitCommand())
	return cmd
}

type keysInitFlags struct {
	dir, kubernetes, organization, rootDir, rootPassword string
	skip, public                                         []string
}

func newKeysInitCommand() *cobra.Command {
	var f keysInitFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the keys and certificate chains of ca, tlog, tsa and tuf-publisher, once",
		Long: `Make the keys and certificate chains of ca, tlog, tsa and tuf-publisher, once.

Under --dir: ca/{ca.pem,ca-chain.pem}, tlog/{ct.pem,rekor1.pem,rekor2.pem}, tsa/{tsa.pem,tsa-chain.pem},
tuf/{root-1.pem,online.pem} and public/{ca-chain.pem,ca-root.pem,tsa-chain.pem,ct.pub,rekor1.pub,rekor2.pub}; each of the five may
be a volume of its own. In a pod, with --kubernetes PREFIX: Secrets PREFIX-ca, -tlog, -tsa and -tuf, and the ConfigMap PREFIX-public.

What is there is verified and left alone, what a killed run left is finished, anything else is an error that names the file. Runs may
overlap. Private keys are not encrypted.

The keys of the two certificate roots are destroyed when they have signed. --root-dir keeps the CA's: it is made there as by
"attestry ca root", or was, and can leave this machine afterwards. The TUF root has one holder, whose key lies here: for a site
that others rely on, --skip tuf and "attestry trust init".`,
		Example: "  attestry keys init --dir /srv/attestry/keys --organization Example\n  attestry keys init --kubernetes attestry --skip ca --public ca-chain.pem=/etc/attestry/ca-chain.pem",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runKeysInit(cmd.Context(), f, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "directory for the keys, made when it is missing")
	flags.StringVar(&f.kubernetes, "kubernetes", "", "in a pod: prefix of the names of Secrets and ConfigMap in its namespace")
	flags.StringVar(&f.organization, "organization", "attestry", "organization of the certificates' subjects, by which gh finds a CA")
	flags.StringVar(&f.rootDir, "root-dir", "", "directory of the CA root that signs, root.pem and root.key; made when it is missing, and kept")
	flags.StringVar(&f.rootPassword, "root-password-file", "", "with --root-dir: file with the password of root.key")
	flags.StringSliceVar(&f.skip, "skip", nil, "roles whose keys are elsewhere: ca, tlog, tsa, tuf")
	flags.StringArrayVar(&f.public, "public", nil, "NAME=FILE: public file of a skipped role; may be repeated")
	cmd.MarkFlagsOneRequired("dir", "kubernetes")
	cmd.MarkFlagsMutuallyExclusive("dir", "kubernetes")
	cmd.MarkFlagsMutuallyExclusive("root-dir", "kubernetes")
	return cmd
}

func runKeysInit(ctx context.Context, f keysInitFlags, stdout io.Writer) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	var made keys.Made
	if f.dir != "" {
		made, err = keys.Init(ctx, f.dir, o)
	} else {
		var cluster *keys.Cluster
		if cluster, err = keys.InCluster(os.Getenv, keys.ServiceAccountDir); err != nil {
			return err
		}
		made, err = keys.InitKubernetes(ctx, cluster, f.kubernetes, o)
	}
	if err != nil {
		return err
	}
	for _, role := range keys.Roles() {
		names, there := made.Files[role]
		switch {
		case !there:
			fmt.Fprintf(stdout, "%-5s skipped\n", role)
		case len(names) == 0:
			fmt.Fprintf(stdout, "%-5s is there\n", role)
		default:
			fmt.Fprintf(stdout, "%-5s made %s\n", role, strings.Join(names, ", "))
		}
	}
	if slices.Contains(made.Files[keys.CA], "ca-chain.pem") {
		if f.rootDir == "" {
			fmt.Fprintln(stdout, "the key of the CA's root is destroyed; the next issuing certificate comes from another root")
		} else {
			fmt.Fprintf(stdout, "the CA's root is in %s: take root.key away\n", f.rootDir)
		}
	}
	if len(made.Missing) > 0 {
		fmt.Fprintf(stdout, "public lacks %s\n", strings.Join(made.Missing, ", "))
	}
	return nil
}

func (f keysInitFlags) options() (keys.Options, error) {
	o := keys.Options{Organization: f.organization, Public: keys.Files{}}
	if f.organization == "" {
		return o, errors.New("--organization is empty")
	}
	for _, name := range f.skip {
		role := keys.Role(name)
		if !slices.Contains(keys.Roles(), role) {
			return o, fmt.Errorf("--skip %q is not one of ca, tlog, tsa, tuf", name)
		}
		o.Skip = append(o.Skip, role)
	}
	for _, pair := range f.public {
		name, path, ok := strings.Cut(pair, "=")
		if !ok {
			return o, fmt.Errorf("--public %q is not NAME=FILE", pair)
		}
		text, err := limit.ReadFile(path, maxChainFile)
		if err != nil {
			return o, fmt.Errorf("--public %s: %w", name, err)
		}
		o.Public[name] = text
	}
	switch {
	case f.rootDir != "" && f.rootPassword == "":
		return o, errors.New("--root-dir needs --root-password-file: a root's key is not stored in clear")
	case f.rootDir == "" && f.rootPassword != "":
		return o, errors.New("--root-password-file without --root-dir")
	case f.rootDir != "":
		o.Root = f.root
	}
	return o, nil
}

// root is the CA root in --root-dir, made when it is missing.
func (f keysInitFlags) root() (*x509.Certificate, crypto.Signer, error) {
	path := filepath.Join(f.rootDir, rootCertName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		r := rootFlags{out: f.rootDir, passwordFile: f.rootPassword, algorithm: string(signer.P384), organization: f.organization, days: 3650}
		if err := runCARoot(r, io.Discard, time.Now()); err != nil {
			return nil, nil, err
		}
	}
	chain, err := readChainFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("--root-dir: %w", err)
	}
	if len(chain) != 1 {
		return nil, nil, fmt.Errorf("%s: %d certificates, want the root alone", path, len(chain))
	}
	password, err := readPassword(f.rootPassword)
	if err != nil {
		return nil, nil, err
	}
	key, err := signer.Open("file:"+filepath.Join(f.rootDir, rootKeyName), password)
	return chain[0], key, err
}
