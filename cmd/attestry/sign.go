package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/attachment"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify"
)

// maxSignBytes bounds what is read into memory to be signed.
const maxSignBytes = 2 << 30

// signFlags are shared by all that signs.
type signFlags struct {
	signingConfig, trustedRoot, token, bundle, clientID string
	key, password                                       string
	device                                              bool
}

func (f *signFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.signingConfig, "signing-config", "", "signing config that names the services (default $ATTESTRY_SIGNING_CONFIG)")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "trusted root to verify the services' answers with (default $ATTESTRY_TRUSTED_ROOT)")
	flags.StringVar(&f.token, "identity-token", "", "identity token, or @FILE to read it from a file (default $ATTESTRY_ID_TOKEN, then $SIGSTORE_ID_TOKEN, then signing in)")
	flags.StringVar(&f.key, "key", "", "sign with this key in place of an identity: a PEM file, cosign's too, or a URI (hashivault://KEY, pkcs11:…)")
	flags.StringVar(&f.password, "key-password-file", "", "file with the password of --key (default the value of $COSIGN_PASSWORD)")
	flags.StringVar(&f.clientID, "oidc-client-id", "sigstore", "client ID for signing in")
	flags.BoolVar(&f.device, "device", false, "sign in on another device (device flow)")
}

func newSignCommand() *cobra.Command {
	var f signFlags
	var image imageSignFlags
	cmd := &cobra.Command{
		Use:   "sign [flags] FILE|IMAGE…",
		Short: "Sign a file or images",
		Long: `Sign with an ephemeral key and a certificate for your identity, or with --key, and log the signature. What the
services answer is verified before anything is written.

A FILE's bundle is written beside it. FILE may be - for standard input; then --bundle is required.

An IMAGE is REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:HEX, or with --dir an image in an OCI layout. Its signature is
attached to it: as a bundle (cosign 3), in the legacy form (a .sig tag: cosign 2, podman, CRI-O), or in both.`,
		Example: `  attestry sign app.tar.gz
  attestry sign --identity-token @token --bundle app.bundle app.tar.gz
  attestry sign --form legacy registry.example/app@sha256:…`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if image.wanted(args) {
				if f.bundle != "" {
					return errors.New("--bundle is for files: the signature of an image is attached to it")
				}
				return image.run(cmd.Context(), cmd.ErrOrStderr(), &f, args, func(ctx context.Context, t *attachment.Target, o sign.Options, form attachment.Form) (*attachment.Attached, error) {
					return t.Sign(ctx, o, form, image.annotations)
				})
			}
			file, err := oneFile(args)
			if err != nil {
				return err
			}
			out, err := f.output(file)
			if err != nil {
				return err
			}
			options, err := f.options(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			data, err := readInput(cmd.InOrStdin(), file)
			if err != nil {
				return err
			}
			signed, err := sign.Blob(cmd.Context(), options, data)
			if err != nil {
				return err
			}
			return deliver(cmd.ErrOrStderr(), signed, out)
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.bundle, "bundle", "", "where to write the bundle of a file (default FILE.sigstore.json)")
	image.register(cmd)
	cmd.Flags().StringToStringVarP(&image.annotations, "annotation", "a", nil, "NAME=VALUE that is signed beside the digest of an image; may be repeated")
	return cmd
}

// oneFile returns the only argument.
func oneFile(args []string) (string, error) {
	if len(args) != 1 {
		return "", errors.New("name one file, or images by REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:HEX")
	}
	return args[0], nil
}

// output returns where the bundle of file goes.
func (f *signFlags) output(file string) (string, error) {
	if f.bundle != "" {
		return f.bundle, nil
	}
	if file == "-" {
		return "", errors.New("signing standard input needs --bundle: there is no file beside which to write")
	}
	return file + ".sigstore.json", nil
}

// options reads the files and gets a token, from a person if need be.
func (f *signFlags) options(ctx context.Context, prompt io.Writer) (sign.Options, error) {
	var o sign.Options
	var err error
	if o.SigningConfig, err = readSetting(f.signingConfig, "signing-config", "ATTESTRY_SIGNING_CONFIG"); err != nil {
		return o, err
	}
	if o.TrustedRoot, err = readSetting(f.trustedRoot, "trusted-root", "ATTESTRY_TRUSTED_ROOT"); err != nil {
		return o, err
	}
	if f.key != "" {
		o.Key, err = f.openKey()
		return o, err
	}
	o.IdentityToken, err = f.identityToken(ctx, o.SigningConfig, prompt)
	return o, err
}

func (f *signFlags) openKey() (crypto.Signer, error) {
	uri := f.key
	if !strings.Contains(uri, "://") && !strings.HasPrefix(uri, "pkcs11:") && !strings.HasPrefix(uri, "file:") {
		uri = "file:" + uri
	}
	var password []byte
	if value, ok := os.LookupEnv("COSIGN_PASSWORD"); ok {
		password = []byte(value)
	}
	if f.password != "" {
		var err error
		if password, err = signer.ReadPassword(f.password); err != nil {
			return nil, fmt.Errorf("--key-password-file: %w", err)
		}
	}
	key, err := signer.Open(uri, password)
	if err != nil {
		return nil, fmt.Errorf("--key: %w", err)
	}
	return key, nil
}

func (f *signFlags) identityToken(ctx context.Context, signingConfig []byte, prompt io.Writer) (string, error) {
	if path, ok := strings.CutPrefix(f.token, "@"); ok {
		data, err := limit.ReadFile(path, 1<<20)
		if err != nil {
			return "", fmt.Errorf("reading the identity token: %w", err)
		}
		return strings.TrimSpace(string(data)), nil
	}
	for _, token := range []string{f.token, os.Getenv("ATTESTRY_ID_TOKEN"), os.Getenv("SIGSTORE_ID_TOKEN")} {
		if token = strings.TrimSpace(token); token != "" {
			return token, nil
		}
	}
	issuer, err := sign.OIDCIssuer(signingConfig, time.Now())
	if err != nil {
		return "", fmt.Errorf("no identity token was given and signing in is not possible: %w", err)
	}
	return sign.SignIn{Issuer: issuer, ClientID: f.clientID, Device: f.device, Prompt: prompt}.Token(ctx)
}

// deliver writes the bundle and says who signed.
func deliver(stderr io.Writer, signed *sign.Signed, out string) error {
	if err := durable.WriteFile(out, append(signed.Bundle, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	fmt.Fprintf(stderr, "signed %s; bundle in %s\n", signerName(signed.Result), out)
	return nil
}

func signerName(r *verify.Result) string {
	if id := r.VerifiedIdentity; id != nil {
		return fmt.Sprintf("as %s (%s)", id.Subject, id.Issuer)
	}
	return "with the key"
}

// readSetting reads the file that a flag or else an environment variable names.
func readSetting(path, flag, env string) ([]byte, error) {
	if path == "" {
		path = os.Getenv(env)
	}
	if path == "" {
		return nil, fmt.Errorf("give --%s FILE or set %s; there is no public default", flag, env)
	}
	data, err := limit.ReadFile(path, 8<<20)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return data, nil
}

func readInput(stdin io.Reader, path string) ([]byte, error) {
	if path == "-" {
		return limit.ReadAll(stdin, maxSignBytes)
	}
	return limit.ReadFile(path, maxSignBytes)
}
