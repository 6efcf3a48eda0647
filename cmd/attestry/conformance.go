package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify"
)

// The suite leaves out --trusted-root and --signing-config when it means the public instance. What they are then is read
// from the files that these variables name: nothing is fetched.
const (
	conformanceTrustedRoot   = "ATTESTRY_CONFORMANCE_TRUSTED_ROOT"
	conformanceSigningConfig = "ATTESTRY_CONFORMANCE_SIGNING_CONFIG"
)

// newConformanceCommand is `attestry conformance`: the command line that sigstore-conformance drives
// (its docs/cli_protocol.md).
func newConformanceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "conformance",
		Short: "Speak the command line of the Sigstore client conformance suite",
		Long: `Speak the command line of the Sigstore client conformance suite (sigstore-conformance). Its entry point is a
script that holds

  exec attestry conformance "$@"

Where the suite names no trusted root or signing config it means the public instance, or with --staging its
staging instance: what that is, is read from the files that $` + conformanceTrustedRoot + ` and
$` + conformanceSigningConfig + ` name.`,
	}
	cmd.AddCommand(newConformanceSign(), newConformanceVerify())
	return cmd
}

func newConformanceSign() *cobra.Command {
	var token, bundle, trustedRoot, signingConfig string
	var staging, inToto bool
	cmd := &cobra.Command{
		Use:   "sign-bundle [--staging] [--in-toto] --identity-token TOKEN --bundle FILE [--trusted-root FILE] [--signing-config FILE] FILE",
		Short: "Sign a file, or with --in-toto the statement in it, and write a bundle",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if token == "" || bundle == "" {
				return errors.New("--identity-token and --bundle are required")
			}
			o := sign.Options{IdentityToken: token}
			var err error
			if o.SigningConfig, err = readSetting(signingConfig, "signing-config", conformanceSigningConfig); err != nil {
				return err
			}
			if o.TrustedRoot, err = readSetting(trustedRoot, "trusted-root", conformanceTrustedRoot); err != nil {
				return err
			}
			data, err := limit.ReadFile(args[0], maxSignBytes)
			if err != nil {
				return err
			}
			signer := sign.Blob
			if inToto {
				signer = sign.Statement
			}
			signed, err := signer(cmd.Context(), o, data)
			if err != nil {
				return err
			}
			return deliver(cmd.ErrOrStderr(), signed, bundle)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&staging, "staging", false, "the staging instance is meant; which one that is, the files say")
	flags.BoolVar(&inToto, "in-toto", false, "FILE is an in-toto statement; sign it, byte for byte, in a DSSE envelope")
	flags.StringVar(&token, "identity-token", "", "identity token")
	flags.StringVar(&bundle, "bundle", "", "where to write the bundle")
	flags.StringVar(&trustedRoot, "trusted-root", "", "trusted root (default $"+conformanceTrustedRoot+")")
	flags.StringVar(&signingConfig, "signing-config", "", "signing config (default $"+conformanceSigningConfig+")")
	return cmd
}

func newConformanceVerify() *cobra.Command {
	var bundle, identity, issuer, key, trustedRoot string
	var staging bool
	cmd := &cobra.Command{
		Use:   "verify-bundle [--staging] --bundle FILE (--certificate-identity ID --certificate-oidc-issuer URL | --key PEM) [--trusted-root FILE] FILE_OR_DIGEST",
		Short: "Verify a bundle over a file or over sha256:HEX",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if bundle == "" {
				return errors.New("--bundle is required")
			}
			trusted, err := readSetting(trustedRoot, "trusted-root", conformanceTrustedRoot)
			if err != nil {
				return err
			}
			who := signerFlags{key: key, issuer: issuer}
			if identity != "" {
				who.identities = []string{identity}
			}
			policy, err := who.policy()
			if err != nil {
				return err
			}
			verifier, err := verify.New(trusted)
			if err != nil {
				return err
			}
			data, err := readBundleFile(bundle)
			if err != nil {
				return err
			}
			artifact, closeArtifact, err := conformanceArtifact(args[0])
			if err != nil {
				return err
			}
			defer closeArtifact()
			result, err := verifier.Verify(data, artifact, policy)
			if err != nil {
				return fmt.Errorf("not verified: %s: %w", verify.ReasonOf(err), err)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), summary(result))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&staging, "staging", false, "the staging instance is meant; which one that is, the file says")
	flags.StringVar(&bundle, "bundle", "", "bundle")
	flags.StringVar(&identity, "certificate-identity", "", "who must have signed")
	flags.StringVar(&issuer, "certificate-oidc-issuer", "", "OpenID issuer that must vouch for the identity")
	flags.StringVar(&key, "key", "", "public key (PEM) that must have signed, in place of an identity")
	flags.StringVar(&trustedRoot, "trusted-root", "", "trusted root (default $"+conformanceTrustedRoot+")")
	return cmd
}

// conformanceArtifact reads FILE_OR_DIGEST: a digest only when it is sha256: and 64 digits and no file has that name.
func conformanceArtifact(target string) (verify.Artifact, func() error, error) {
	if !strings.HasPrefix(target, "sha256:") {
		return openFile(target)
	}
	return openArtifact(target)
}
