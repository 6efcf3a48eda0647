package main

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
)

type signCSRFlags struct {
	csr, root, key, passwordFile, out string
	days                              int
}

func newCASignCSR() *cobra.Command {
	var f signCSRFlags
	cmd := &cobra.Command{
		Use:   "sign-csr",
		Short: "Sign the request of an issuing certificate with a root, on a machine without a network",
		Long: `Sign the request of an issuing certificate with a root of "attestry ca root", on a machine without a network.

The request is of "attestry ca csr", and its key must have signed it. The certificate is a CA of path length 0 for code signing alone, without
name constraints, and does not outlive the root. Its subject is the request's, with exactly one organization. A request that
asks for anything else is refused. What is written is the chain that "attestry ca install" takes.

Compare the key's SHA-256 with the one that "attestry ca csr" has printed.`,
		Example: "  attestry ca sign-csr --root ceremony/root.pem --key-password-file password --csr ca-2.csr --out ca-2.pem",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("days") {
				f.days = 0
			} else if _, err := days(f.days); err != nil {
				return err
			}
			return runCASignCSR(f, cmd.OutOrStdout(), time.Now())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.csr, "csr", "", "file with the request")
	flags.StringVar(&f.root, "root", "", "file with the root's certificate")
	flags.StringVar(&f.key, "key", "", "URI of its key (default: root.key beside the certificate)")
	flags.StringVar(&f.passwordFile, "key-password-file", "", "file with the key's password or the token's PIN")
	flags.StringVar(&f.out, "out", "", "file for the chain; one that is there is not replaced")
	flags.IntVar(&f.days, "days", 0, "how long the certificate is valid (default 1095, or until the root's end)")
	for _, name := range []string{"csr", "root", "out"} {
		cmd.MarkFlagRequired(name)
	}
	return cmd
}

func runCASignCSR(f signCSRFlags, stdout io.Writer, now time.Time) error {
	text, err := limit.ReadFile(f.csr, maxChainFile)
	if err != nil {
		return fmt.Errorf("--csr: %w", err)
	}
	request, err := ca.ParseCSR(text)
	if err != nil {
		return fmt.Errorf("--csr %s: %w", f.csr, err)
	}
	roots, err := readChainFile(f.root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	if len(roots) != 1 {
		return fmt.Errorf("--root %s: %d certificates, want the root alone", f.root, len(roots))
	}
	if err := vacant(f.out); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	password, err := readPassword(f.passwordFile)
	if err != nil {
		return err
	}
	if f.key == "" {
		f.key = "file:" + filepath.Join(filepath.Dir(f.root), rootKeyName)
	}
	key, err := signer.Open(f.key, password)
	if err != nil {
		return err
	}
	chain, err := ca.SignCSR(request, roots[0], key, time.Duration(f.days)*24*time.Hour, now)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(f.out, certificatePEM(chain...), 0o644); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "chain   %s\nissuer  %s\n%s", f.out, chain[1].Subject, describe(chain[0]))
	return err
}
