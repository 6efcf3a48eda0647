package main

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/trust"
)

type trustInitFlags struct {
	dir                      string
	holders, threshold, days int
	passwords, keys          []string
}

func newTrustInitCommand() *cobra.Command {
	var f trustInitFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the first root, on a machine without a network",
		Long: `Make the first root, on a machine without a network.

DIR/publisher gets what tuf-publisher needs (keys-dir and signed-roots): 1.root.json, targets.pem and online.pem, unencrypted.
The holders' keys sign roots and nothing else, and never go there. With --holders they are made, DIR/holders/holder-1.pem and so on,
each encrypted with its password, and sign at once. With --holder-key they were made elsewhere, in a token for example; their
holders sign with "attestry trust sign".

What a run that was killed has made is taken again. A root that is there is never replaced.`,
		Example: "  attestry trust init --dir ceremony --holders 3 --threshold 2 --holder-password-file alice --holder-password-file bob --holder-password-file carol\n  attestry trust init --dir ceremony --threshold 2 --holder-key alice.pub --holder-key bob.pub --holder-key carol.pub",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTrustInit(f, cmd.OutOrStdout(), time.Now())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "directory of the ceremony, made when it is missing")
	flags.IntVar(&f.holders, "holders", 0, "how many holders' keys to make")
	flags.IntVar(&f.threshold, "threshold", 0, "how many holders must sign")
	flags.StringArrayVar(&f.passwords, "holder-password-file", nil, "file with the password of a holder's key: one for each, in their order")
	flags.StringArrayVar(&f.keys, "holder-key", nil, "file with the public key (PEM, ECDSA P-256) of a holder; may be repeated")
	flags.IntVar(&f.days, "days", 365, "how long the root is valid; its holders must sign the next before")
	for _, name := range []string{"dir", "threshold"} {
		cmd.MarkFlagRequired(name)
	}
	cmd.MarkFlagsOneRequired("holders", "holder-key")
	cmd.MarkFlagsMutuallyExclusive("holders", "holder-key")
	return cmd
}

const maxHolders = 50

func runTrustInit(f trustInitFlags, stdout io.Writer, now time.Time) error {
	life, err := days(f.days)
	if err != nil {
		return err
	}
	count := max(f.holders, len(f.keys))
	switch {
	case count < 1 || count > maxHolders:
		return fmt.Errorf("%d holders are not between 1 and %d", count, maxHolders)
	case f.threshold < 1 || f.threshold > count:
		return fmt.Errorf("--threshold %d of %d holders makes no sense", f.threshold, count)
	case len(f.passwords) != f.holders:
		return fmt.Errorf("%d of --holder-password-file for %d holders: each has one, since no key is stored in clear", len(f.passwords), f.holders)
	}
	publisher := filepath.Join(f.dir, "publisher")
	if err := os.MkdirAll(publisher, 0o700); err != nil {
		return err
	}
	release, err := durable.LockDir(f.dir)
	if err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	defer release()
	path := filepath.Join(publisher, "1.root.json")
	if err := vacant(path); err != nil {
		return err
	}
	holders, publics, err := f.open()
	if err != nil {
		return err
	}
	k := trust.RootKeys{Holders: publics, Threshold: f.threshold}
	for _, made := range []struct {
		name string
		to   *crypto.PublicKey
	}{{"targets.pem", &k.Targets}, {"online.pem", &k.Online}} {
		key, err := signer.OpenOrCreate(filepath.Join(publisher, made.name), signer.P256)
		if err != nil {
			return err
		}
		*made.to = key.Public()
	}
	root, err := trust.CreateRoot(k, now.Add(life))
	if err != nil {
		return err
	}
	for _, key := range holders {
		if root, err = trust.SignRoot(root, nil, key); err != nil {
			return err
		}
	}
	if err := writeRoot(path, root); err != nil {
		return err
	}
	return printRoot(stdout, path, root, nil)
}

// open returns the holders' keys that are made here, and the public halves of all.
func (f trustInitFlags) open() (holders []crypto.Signer, publics []crypto.PublicKey, err error) {
	if len(f.keys) > 0 {
		publics, err = publicKeyFiles(f.keys)
		return nil, publics, err
	}
	dir := filepath.Join(f.dir, "holders")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	for i := range f.holders {
		password, err := signer.ReadPassword(f.passwords[i])
		if err != nil {
			return nil, nil, fmt.Errorf("--holder-password-file: %w", err)
		}
		if len(password) == 0 {
			return nil, nil, errors.New("--holder-password-file: it is empty")
		}
		key, err := openOrCreateEncrypted(filepath.Join(dir, fmt.Sprintf("holder-%d.pem", i+1)), password)
		if err != nil {
			return nil, nil, err
		}
		holders, publics = append(holders, key), append(publics, key.Public())
	}
	return holders, publics, nil
}
