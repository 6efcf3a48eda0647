package main

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
)

const (
	rootKeyName  = "root.key"
	rootCertName = "root.pem"

	maxDays = 30 * 366 // of a certificate
)

type rootFlags struct {
	out, key, passwordFile, algorithm, organization, commonName string
	days                                                        int
}

func newCARoot() *cobra.Command {
	var f rootFlags
	cmd := &cobra.Command{
		Use:   "root",
		Short: "Make a root for issuing certificates, on a machine without a network",
		Long: `Make a root for issuing certificates: a key, and a certificate that signs itself. It is for a machine without a network.

The key is DIR/root.key, encrypted with the password in --key-password-file, or one that is in a token already, by --key.
The certificate is DIR/root.pem. Neither is ever replaced. "attestry ca sign-csr" signs with them.`,
		Example: "  attestry ca root --out ceremony --organization Example --key-password-file password\n  attestry ca root --out ceremony --organization Example --key 'pkcs11:token=root;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/pin'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runCARoot(f, cmd.OutOrStdout(), time.Now())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.out, "out", "", "directory for root.pem and root.key, made when it is missing")
	flags.StringVar(&f.key, "key", "", "URI of a key that is in a token or key service (default: a new one, DIR/root.key)")
	flags.StringVar(&f.passwordFile, "key-password-file", "", "file with the password of root.key, or the token's PIN")
	flags.StringVar(&f.algorithm, "algorithm", string(signer.P384), "of a key that is made: ecdsa-p256, ecdsa-p384 or rsa-4096")
	flags.StringVar(&f.organization, "organization", "", "organization of the subject")
	flags.StringVar(&f.commonName, "common-name", "", "common name of the subject (default \"ORGANIZATION root\")")
	flags.IntVar(&f.days, "days", 3650, "how long the certificate is valid")
	cmd.MarkFlagRequired("out")
	cmd.MarkFlagRequired("organization")
	return cmd
}

func runCARoot(f rootFlags, stdout io.Writer, now time.Time) error {
	life, err := days(f.days)
	if err != nil {
		return err
	}
	password, err := readPassword(f.passwordFile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.out, 0o700); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	release, err := durable.LockDir(f.out)
	if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	defer release()
	path := filepath.Join(f.out, rootCertName)
	if err := vacant(path); err != nil {
		return err
	}
	key, err := f.open(password)
	if err != nil {
		return err
	}
	root, err := ca.CreateRoot(ca.NewRoot{Key: key, Organization: f.organization, Name: f.commonName, Life: life, NotBefore: now})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(path, certificatePEM(root), 0o644); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	_, err = fmt.Fprintf(stdout, "root    %s\n%s", path, describe(root))
	return err
}

// open makes the root's key. One that an attempt before left without a certificate is taken, if the password opens it.
func (f rootFlags) open(password []byte) (crypto.Signer, error) {
	if f.key != "" {
		return signer.Open(f.key, password)
	}
	if len(password) == 0 {
		return nil, errors.New("--key-password-file is required: a root's key is not stored in clear")
	}
	if signer.Algorithm(f.algorithm) == signer.Ed25519 {
		return nil, errNoEd25519
	}
	path := filepath.Join(f.out, rootKeyName)
	key, err := signer.CreateEncrypted(path, signer.Algorithm(f.algorithm), password)
	if errors.Is(err, fs.ErrExist) {
		return signer.Open("file:"+path, password)
	}
	return key, err
}

// days is a flag's number of days as a duration.
func days(n int) (time.Duration, error) {
	if n < 1 || n > maxDays {
		return 0, fmt.Errorf("--days %d is not between 1 and %d", n, maxDays)
	}
	return time.Duration(n) * 24 * time.Hour, nil
}

// vacant returns an error when there is a file at path.
func vacant(path string) error {
	_, err := os.Lstat(path)
	if err == nil {
		return fmt.Errorf("%s is there already, and is never replaced", path)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func certificatePEM(chain ...*x509.Certificate) []byte {
	var text []byte
	for _, cert := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}

// describe says of a certificate what the people of a ceremony read to each other and write down.
func describe(cert *x509.Certificate) string {
	var b strings.Builder
	fmt.Fprintf(&b, "subject %s\nserial  %x\nvalid   %s to %s\n", cert.Subject, cert.SerialNumber, cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	fmt.Fprintf(&b, "sha256  %x\n%s", sha256.Sum256(cert.Raw), describeKey(cert.RawSubjectPublicKeyInfo))
	return b.String()
}

// describeKey names a public key, DER, by its SHA-256, as `openssl pkey -pubin -outform DER | sha256sum` does.
func describeKey(spki []byte) string { return fmt.Sprintf("key     sha256 %x\n", sha256.Sum256(spki)) }
