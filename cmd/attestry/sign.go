package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/sign"
)

// maxSignBytes bounds what is read into memory to be signed.
const maxSignBytes = 2 << 30

// signFlags are shared by sign and attest.
type signFlags struct {
	signingConfig, trustedRoot, token, bundle, clientID string
	device                                              bool
}

func (f *signFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.signingConfig, "signing-config", "", "signing config that names the services (default $ATTESTRY_SIGNING_CONFIG)")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "trusted root to verify the services' answers with (default $ATTESTRY_TRUSTED_ROOT)")
	flags.StringVar(&f.token, "identity-token", "", "identity token, or @FILE to read it from a file (default $ATTESTRY_ID_TOKEN, then $SIGSTORE_ID_TOKEN, then signing in)")
	flags.StringVar(&f.bundle, "bundle", "", "where to write the bundle (default FILE.sigstore.json)")
	flags.StringVar(&f.clientID, "oidc-client-id", "sigstore", "client ID for signing in")
	flags.BoolVar(&f.device, "device", false, "sign in on another device (device flow)")
}

func newSignCommand() *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign [flags] FILE",
		Short: "Sign a file",
		Long: `Sign a file with an ephemeral key and a certificate for your identity, log the signature and
write a bundle beside the file. What the services answer is verified before anything is written.

FILE may be - for standard input; then --bundle is required.`,
		Example: `  attestry sign app.tar.gz
  attestry sign --identity-token @token --bundle app.bundle app.tar.gz`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out, err := f.output(args[0])
			if err != nil {
				return err
			}
			options, err := f.options(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			data, err := readInput(cmd.InOrStdin(), args[0])
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
	return cmd
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
	o.IdentityToken, err = f.identityToken(ctx, o.SigningConfig, prompt)
	return o, err
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
	id := signed.Result.VerifiedIdentity
	fmt.Fprintf(stderr, "signed as %s (%s); bundle in %s\n", id.Subject, id.Issuer, out)
	return nil
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
