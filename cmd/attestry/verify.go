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
	"github.com/attestry/attestry/pkg/verify/freshness"
)

// exitRefused is the status when something was verified and refused; every other error is 2: nothing was decided.
const (
	exitRefused   = 1
	exitUndecided = 2
)

// statusError is an error that says with which status the program ends.
type statusError struct {
	status int
	error
}

func (e statusError) Unwrap() error { return e.error }

// undecided gives err, which may be nil, the status of what was not decided.
func undecided(err error) error {
	if err == nil {
		return nil
	}
	return statusError{exitUndecided, err}
}

// verifyFlags are those of `attestry verify`.
type verifyFlags struct {
	signer signerFlags
	trust  trustFlags
	needs  requirementFlags

	bundle, predicateType, output string
}

func newVerifyCommand() *cobra.Command {
	var f verifyFlags
	var image imageFlags
	cmd := &cobra.Command{
		Use:   "verify [flags] FILE|sha256:HEX|sha512:HEX|IMAGE",
		Short: "Verify a bundle or an image's signatures",
		Long: `Verify that a bundle proves who signed a file. Everything needed is in the bundle and the trusted root:
no connection is made.

An image is REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:HEX, and is looked up in its registry alone; with --dir or --archive it
is read from disk, without a connection. One signature that fits is enough; with --type, one attestation of that type.

A certificate's bundle needs an identity and its OpenID issuer, each as a value or as a regular expression (RE2)
that has to match the whole value. A key's bundle needs --key. What must be proven besides (log entry, SCT,
timestamp) follows from the trusted root, unless --log-entries and its like say otherwise.

Exit status 0 when verified; 1 when refused: then a line on standard error gives a stable reason code; 2 when nothing
was decided, as a file cannot be read or the flags contradict each other.`,
		Example: `  attestry verify --certificate-identity alice@example.com --certificate-oidc-issuer https://issuer.example app.tar.gz
  attestry verify --key release.pub --key-until 2026-12-31T00:00:00Z sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --bundle app.sigstore.json
  attestry verify --identities who.json --signed-timestamps 2 --max-trust-age 720h --output json app.tar.gz`,
		Args: func(cmd *cobra.Command, args []string) error { return undecided(cobra.MaximumNArgs(1)(cmd, args)) },
		RunE: func(cmd *cobra.Command, args []string) error {
			if image.wanted(args) {
				return f.runImage(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), args, &image)
			}
			if len(args) == 0 {
				return undecided(errors.New("name a file, a digest or an image"))
			}
			return f.run(cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0])
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return undecided(err) })
	f.signer.register(cmd)
	f.trust.register(cmd)
	f.needs.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.bundle, "bundle", "", "bundle (default FILE.sigstore.json, then FILE.sigstore)")
	flags.StringVar(&f.predicateType, "type", "", "demand an attestation of this predicate type: a URI or a short name")
	flags.StringVar(&f.output, "output", "text", "text or json")
	image.register(cmd)
	return cmd
}

func (f *verifyFlags) run(stdout, stderr io.Writer, target string) error {
	if f.output != "text" && f.output != "json" {
		return undecided(fmt.Errorf("--output %q is neither text nor json", f.output))
	}
	policy, err := f.policy()
	if err != nil {
		return undecided(err)
	}
	result, age, err := f.verify(stderr, target, policy)
	if err != nil {
		return f.refuse(stdout, err)
	}
	if f.output == "json" {
		return undecided(writeJSON(stdout, verdict{Verified: true, Result: result, TrustExpires: age.Known()}))
	}
	fmt.Fprintln(stderr, summary(result))
	return nil
}

// verdict is what --output json prints: the members of a verification result of sigstore-go, and ours.
type verdict struct {
	Verified bool `json:"verified"`
	*verify.Result
	TrustExpires *time.Time    `json:"trustExpires,omitempty"` // of the TUF metadata beside the trusted root
	Reason       verify.Reason `json:"reason,omitempty"`
	Class        verify.Reason `json:"class,omitempty"` // the wider code that Reason belongs to
	Error        string        `json:"error,omitempty"`
}

// refuse prints why nothing was proven and returns the error for standard error and the exit status.
func (f *verifyFlags) refuse(stdout io.Writer, err error) error {
	reason := verify.ReasonOf(err)
	status := error(statusError{exitRefused, fmt.Errorf("not verified: %s: %s", reason, strings.Join(strings.Fields(err.Error()), " "))})
	if reason == verify.ReasonInternal { // a file that cannot be read, a policy that says nothing
		status = undecided(err)
	}
	if f.output == "json" {
		if err := writeJSON(stdout, verdict{Reason: reason, Class: reason.Class(), Error: err.Error()}); err != nil {
			return undecided(err)
		}
	}
	return status
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
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
	p, err := f.signer.policy()
	if err != nil {
		return nil, err
	}
	p.PredicateType = sign.PredicateType(f.predicateType)
	p.Thresholds, err = f.needs.thresholds()
	return p, err
}

func (f *verifyFlags) verify(stderr io.Writer, target string, policy *verify.Policy) (*verify.Result, freshness.Age, error) {
	verifier, age, err := f.trust.verifier(stderr)
	if err != nil {
		return nil, age, err
	}
	artifact, closeArtifact, err := openArtifact(target)
	if err != nil {
		return nil, age, err
	}
	defer closeArtifact()
	bundle, err := f.readBundle(target)
	if err != nil {
		return nil, age, err
	}
	if bundle, err = fromCosign(bundle, target); err != nil {
		return nil, age, err
	}
	result, err := verifier.Verify(bundle, artifact, policy)
	return result, age, err
}

// readBundle reads the bundle given, or the one beside the file.
func (f *verifyFlags) readBundle(target string) ([]byte, error) {
	paths := []string{f.bundle}
	if f.bundle == "" {
		paths = []string{target + ".sigstore.json", target + ".sigstore"}
	}
	var data []byte
	var err error
	for _, path := range paths {
		if data, err = readBundleFile(path); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return data, err
}

func readBundleFile(path string) ([]byte, error) {
	data, err := limit.ReadFile(path, 16<<20)
	if err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	return data, nil
}

// openArtifact takes sha256:HEX, sha384:HEX or sha512:HEX as a digest unless there is a file of that name.
func openArtifact(target string) (verify.Artifact, func() error, error) {
	a, closeFile, err := openFile(target)
	if err == nil {
		return a, closeFile, nil
	}
	if a, ok := verify.ParseDigest(target); ok && errors.Is(err, os.ErrNotExist) {
		return a, func() error { return nil }, nil
	}
	return a, nil, err
}

func openFile(path string) (verify.Artifact, func() error, error) {
	f, err := os.Open(path)
	if err != nil {
		return verify.Artifact{}, nil, err
	}
	return verify.FromReader(f), f.Close, nil
}
