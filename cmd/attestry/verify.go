package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/verify"
)

type verifyFlags struct {
	trustedRoot, bundle, key, predicateType, output string
	identity, identityRegexp, issuer, issuerRegexp  string
}

func newVerifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [flags] FILE|sha256:HEX|sha512:HEX",
		Short: "Verify a bundle, without a network",
		Long: `Verify that a bundle proves who signed a file. Everything needed is in the bundle and the trusted root:
no connection is made.

A certificate's bundle needs an identity and its OpenID issuer, each as a value or as a regular expression (RE2)
that has to match the whole value. A key's bundle needs --key. What must be proven besides (log entry, SCT,
timestamp) follows from the trusted root.

Exit status 0 when verified, 1 when not; then one line on standard error gives a stable reason code.`,
		Example: `  attestry verify --certificate-identity alice@example.com --certificate-oidc-issuer https://issuer.example app.tar.gz`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0])
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "trusted_root.json, or .jsonl with several (default $ATTESTRY_TRUSTED_ROOT)")
	flags.StringVar(&f.bundle, "bundle", "", "bundle (default FILE.sigstore.json, then FILE.sigstore)")
	flags.StringVar(&f.identity, "certificate-identity", "", "who must have signed: email, URI or name in the certificate")
	flags.StringVar(&f.identityRegexp, "certificate-identity-regexp", "", "the same as a regular expression")
	flags.StringVar(&f.issuer, "certificate-oidc-issuer", "", "OpenID issuer that must vouch for the identity")
	flags.StringVar(&f.issuerRegexp, "certificate-oidc-issuer-regexp", "", "the same as a regular expression")
	flags.StringVar(&f.key, "key", "", "public key (PEM) that must have signed, in place of an identity")
	flags.StringVar(&f.predicateType, "type", "", "demand an attestation of this predicate type: a URI or a short name")
	flags.StringVar(&f.output, "output", "text", "text or json")
	return cmd
}

func (f *verifyFlags) run(stdout, stderr io.Writer, target string) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("--output %q is neither text nor json", f.output)
	}
	policy, err := f.policy()
	if err != nil {
		return err
	}
	result, err := f.verify(target, policy)
	if err != nil {
		reason := verify.ReasonOf(err)
		if f.output == "json" {
			if err := json.NewEncoder(stdout).Encode(map[string]any{"verified": false, "reason": reason, "error": err.Error()}); err != nil {
				return err
			}
		}
		if reason == "internal" { // a file that cannot be read, a policy that says nothing
			return err
		}
		return fmt.Errorf("not verified: %s: %s", reason, strings.Join(strings.Fields(err.Error()), " "))
	}
	if f.output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(result); err != nil {
			return fmt.Errorf("writing the result: %w", err)
		}
		return nil
	}
	fmt.Fprintln(stderr, summary(result))
	return nil
}

// summary is the one line that says what was proven.
func summary(r *verify.Result) string {
	who := "with the given key"
	if id := r.VerifiedIdentity; id != nil {
		who = fmt.Sprintf("by %s (%s)", id.Subject, id.Issuer)
	}
	when := ""
	if len(r.VerifiedTimestamps) > 0 {
		when = " at " + r.VerifiedTimestamps[0].Timestamp.UTC().Format(time.RFC3339)
	}
	return "verified: signed " + who + when
}

func (f *verifyFlags) policy() (*verify.Policy, error) {
	p := &verify.Policy{PredicateType: sign.PredicateType(f.predicateType)}
	named := f.identity + f.identityRegexp + f.issuer + f.issuerRegexp
	switch {
	case f.key != "" && named != "":
		return nil, errors.New("give --key or an identity, not both")
	case f.key != "":
		pem, err := limit.ReadFile(f.key, 1<<20)
		if err != nil {
			return nil, fmt.Errorf("--key: %w", err)
		}
		if p.Key, err = verify.ParseKey(pem); err != nil {
			return nil, fmt.Errorf("--key: %w", err)
		}
		return p, nil
	case named == "":
		return nil, errors.New("say who must have signed: --certificate-identity and --certificate-oidc-issuer, or --key")
	}
	id, err := verify.NewIdentity(f.issuer, f.issuerRegexp, f.identity, f.identityRegexp)
	if err != nil {
		return nil, err
	}
	p.Identities = []verify.Identity{id}
	return p, nil
}

func (f *verifyFlags) verify(target string, policy *verify.Policy) (*verify.Result, error) {
	trusted, err := readSetting(f.trustedRoot, "trusted-root", "ATTESTRY_TRUSTED_ROOT")
	if err != nil {
		return nil, err
	}
	verifier, err := verify.New(trusted)
	if err != nil {
		return nil, err
	}
	artifact, close, err := openArtifact(target)
	if err != nil {
		return nil, err
	}
	defer close()
	bundle, err := f.readBundle(target)
	if err != nil {
		return nil, err
	}
	return verifier.Verify(bundle, artifact, policy)
}

// readBundle reads the bundle given, or the one beside the file.
func (f *verifyFlags) readBundle(target string) ([]byte, error) {
	paths := []string{f.bundle}
	if f.bundle == "" {
		paths = []string{target + ".sigstore.json", target + ".sigstore"}
	}
	var err error
	for _, path := range paths {
		var data []byte
		if data, err = limit.ReadFile(path, 16<<20); err == nil {
			return data, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return nil, fmt.Errorf("reading the bundle: %w", err)
}

// openArtifact takes sha256:HEX, sha384:HEX or sha512:HEX as a digest unless there is a file of that name.
func openArtifact(target string) (verify.Artifact, func() error, error) {
	f, err := os.Open(target)
	if err == nil {
		return verify.FromReader(f), f.Close, nil
	}
	if a, ok := verify.ParseDigest(target); ok {
		return a, func() error { return nil }, nil
	}
	return verify.Artifact{}, nil, err
}
