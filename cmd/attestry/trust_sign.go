package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/trust"
)

type trustSignFlags struct{ root, previous, key, passwordFile string }

func newTrustSignCommand() *cobra.Command {
	var f trustSignFlags
	cmd := &cobra.Command{
		Use:   "sign",
		Short: "Add a holder's signature to a root, on a machine without a network",
		Long: `Add a holder's signature to a root, on a machine without a network. The key is a file or in a token.

Look at what is signed first: "attestry trust show".`,
		Example: "  attestry trust sign --root 2.root.json --previous 1.root.json --key file:holder-1.pem --key-password-file password",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTrustSign(f, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.root, "root", "", "file with the root, which gets the signature")
	flags.StringVar(&f.previous, "previous", "", "file with the root before it (not for the first)")
	flags.StringVar(&f.key, "key", "", "URI of the holder's key")
	flags.StringVar(&f.passwordFile, "key-password-file", "", "file with the key's password or the token's PIN")
	cmd.MarkFlagRequired("root")
	cmd.MarkFlagRequired("key")
	return cmd
}

func runTrustSign(f trustSignFlags, stdout io.Writer) error {
	root, err := readRootFile(f.root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	previous, err := readRootFile(f.previous)
	if err != nil {
		return fmt.Errorf("--previous: %w", err)
	}
	password, err := readPassword(f.passwordFile)
	if err != nil {
		return err
	}
	key, err := signer.Open(f.key, password)
	if err != nil {
		return err
	}
	signed, err := trust.SignRoot(root, previous, key)
	if err != nil {
		return err
	}
	if err := writeRoot(f.root, signed); err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	return printRoot(stdout, f.root, signed, previous)
}
