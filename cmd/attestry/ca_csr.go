package main

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/stack"
)

var errNoEd25519 = errors.New("--algorithm: sigstore-python takes no certificate of an Ed25519 CA: use ecdsa-p256, ecdsa-p384 or rsa-4096")

type csrFlags struct {
	key, passwordFile, dir, algorithm, commonName, organization, out string
}

func newCACSR() *cobra.Command {
	var f csrFlags
	cmd := &cobra.Command{
		Use:   "csr",
		Short: "Ask a company's PKI for a certificate to issue with",
		Long: `Ask a company's PKI, or whoever keeps a root of "attestry ca root", for a certificate to issue with: print a certificate signing request (PKCS #10).

It asks for a CA of path length 0 whose only extended key usage is codeSigning. The PKI must sign exactly that; what
comes back is checked by "attestry ca install". The key is made when it is a file that is not there, and never
replaced. One in a token or a key service must be there. With --dir the key is the next one of an instance of "attestry up".`,
		Example: "  attestry ca csr --dir ./attestry-data --organization Example --common-name \"Example signing CA 2\" --out ca.csr\n  attestry ca csr --key 'pkcs11:token=ca;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/pin'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runCACSR(f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.key, "key", "", "URI of the key, as in ca's configuration")
	flags.StringVar(&f.passwordFile, "key-password-file", "", "file with the key's password or the token's PIN")
	flags.StringVar(&f.dir, "dir", "", "directory of an instance, in place of --key")
	flags.StringVar(&f.algorithm, "algorithm", string(signer.P256), "of a key that is made: ecdsa-p256, ecdsa-p384 or rsa-4096")
	flags.StringVar(&f.commonName, "common-name", "attestry issuing CA", "common name of the subject")
	flags.StringVar(&f.organization, "organization", "", "organization of the subject")
	flags.StringVar(&f.out, "out", "", "file for the request (default standard output)")
	cmd.MarkFlagsOneRequired("key", "dir")
	cmd.MarkFlagsMutuallyExclusive("key", "dir")
	return cmd
}

func runCACSR(f csrFlags, stdout, stderr io.Writer) error {
	if f.dir != "" {
		path, err := stack.NextCAKey(f.dir)
		if err != nil {
			return err
		}
		f.key = "file:" + path
	}
	key, err := f.open(stderr)
	if err != nil {
		return err
	}
	subject := pkix.Name{CommonName: f.commonName}
	if f.organization != "" {
		subject.Organization = []string{f.organization}
	}
	request, err := ca.CreateCSR(key, subject)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	fmt.Fprint(stderr, describeKey(spki)) // who signs compares it
	if f.out == "" {
		_, err = stdout.Write(request)
		return err
	}
	if err := durable.WriteFile(f.out, request, 0o644); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return nil
}

// open opens the key, or makes it when it is a file that is not there.
func (f csrFlags) open(stderr io.Writer) (crypto.Signer, error) {
	password, err := readPassword(f.passwordFile)
	if err != nil {
		return nil, err
	}
	path, ok := strings.CutPrefix(f.key, "file:")
	if !ok || password != nil {
		return signer.Open(f.key, password)
	}
	if signer.Algorithm(f.algorithm) == signer.Ed25519 {
		return nil, errNoEd25519
	}
	key, err := signer.Create(path, signer.Algorithm(f.algorithm))
	if errors.Is(err, os.ErrExist) {
		fmt.Fprintf(stderr, "the key %s is there: the request is for it\n", path)
		return signer.Open(f.key, nil)
	}
	if err == nil {
		fmt.Fprintf(stderr, "made the key %s\n", path)
	}
	return key, err
}

// readPassword reads --key-password-file; nil without one.
func readPassword(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	password, err := signer.ReadPassword(path)
	if err != nil {
		return nil, fmt.Errorf("--key-password-file: %w", err)
	}
	return password, nil
}
