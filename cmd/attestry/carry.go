package main

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/carry"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/sign"
)

func newCarryCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "carry",
		Short: "Take signed images across an air gap",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCarryPackCommand(), newCarryCheckCommand(), newCarryPushCommand())
	return cmd
}

// demandFlags say what each image of a set has to have.
type demandFlags struct {
	require, keys []string
	unsigned      bool
	output        string
}

func (f *demandFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.require, "require-predicate", nil, "predicate type that each image must have an attestation of: a URI or a short name; may be repeated")
	flags.StringArrayVar(&f.keys, "image-key", nil, "public key (PEM) whose signatures of images count beside those with certificates; may be repeated")
	flags.BoolVar(&f.unsigned, "allow-unsigned", false, "do not demand a signature of each image")
	flags.StringVar(&f.output, "output", "text", "form of the report: text or json")
}

// judgeFlags say how policies decide about the images of a set.
type judgeFlags struct {
	policies, mirrors                  []string
	inside, children, noMatch, combine string
}

// register adds the flags; inside is false where the command knows the registry.
func (f *judgeFlags) register(cmd *cobra.Command, policies string, inside bool) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.policies, "policy", nil, policies)
	flags.StringVar(&f.children, "children", string(policy.ChildrenIndex), "of an index of several platforms: index when policies have to allow the index, all when each of its images, any when either will do")
	flags.StringVar(&f.noMatch, "no-match", policy.NoMatchDeny, "what becomes of an image that no policy speaks of: deny, warn or allow")
	flags.StringVar(&f.combine, "combine", "", `expression over the names of the policies, satisfied("a","b") || satisfied("c"), that decides alone`)
	flags.StringArrayVar(&f.mirrors, "tuf-mirror", nil, "URL=DIR: copy of the TUF repository that a TrustRoot's spec.remote names; may be repeated")
	if inside {
		flags.StringVar(&f.inside, "inside", "", "REGISTRY[/PREFIX] in which the images will be: policies are asked about the names there")
	}
}

// judging is without the policies that pack carries.
func (f *judgeFlags) judging() (carry.Judging, error) {
	j := carry.Judging{Inside: f.inside, Children: policy.Children(f.children), NoMatch: f.noMatch, Combine: f.combine}
	var err error
	if err = j.Children.Check(); err != nil {
		return j, fmt.Errorf("--children: %w", err)
	}
	j.Mirrors, err = mirrorsOf(f.mirrors)
	return j, err
}

// own is judging with the policies of the flags in place of those in a set.
func (f *judgeFlags) own() (carry.Judging, error) {
	j, err := f.judging()
	if err != nil || len(f.policies) == 0 {
		return j, err
	}
	j.Files, err = policy.ReadFiles(f.policies)
	return j, err
}

func (f *demandFlags) demands() (carry.Demands, error) {
	d := carry.Demands{Unsigned: f.unsigned}
	if f.output != "text" && f.output != "json" {
		return d, fmt.Errorf("--output %q is neither text nor json", f.output)
	}
	for _, kind := range f.require {
		d.Require = append(d.Require, sign.PredicateType(kind))
	}
	for _, file := range f.keys {
		key, err := readPublicKey(file)
		if err != nil {
			return d, fmt.Errorf("--image-key: %w", err)
		}
		d.Keys = append(d.Keys, crypto.PublicKey(key))
	}
	return d, nil
}

// anchorFlags say what the receiver of a set believes.
type anchorFlags struct {
	signer               signerFlags // of the set
	tufRoot, trustedRoot string
	maxTrustAge          time.Duration
}

func (f *anchorFlags) register(cmd *cobra.Command) {
	f.signer.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.tufRoot, "tuf-root", "", "TUF root (root.json) that the set's trusted root must follow from (default $ATTESTRY_TUF_ROOT)")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "trusted root to verify who signed the set, in place of a TUF root")
	flags.DurationVar(&f.maxTrustAge, "max-trust-age", 0, "refuse TUF metadata that expired longer ago (default: a warning, whatever its age)")
}

func (f *anchorFlags) anchor() (carry.Anchor, error) {
	a := carry.Anchor{MaxTrustAge: f.maxTrustAge, Now: time.Now()}
	var err error
	if a.Policy, err = f.signer.policy(); err != nil {
		return a, err
	}
	if f.tufRoot != "" && f.trustedRoot != "" {
		return a, errors.New("give --tuf-root or --trusted-root, not both")
	}
	tufRoot := f.tufRoot
	if tufRoot == "" && f.trustedRoot == "" && f.signer.key == "" {
		tufRoot = os.Getenv("ATTESTRY_TUF_ROOT")
	}
	if tufRoot != "" {
		if a.TUFRoot, err = limit.ReadFile(tufRoot, 1<<20); err != nil {
			return a, fmt.Errorf("--tuf-root: %w", err)
		}
	}
	if f.trustedRoot != "" {
		if a.TrustedRoot, err = limit.ReadFile(f.trustedRoot, 8<<20); err != nil {
			return a, fmt.Errorf("--trusted-root: %w", err)
		}
	}
	return a, nil
}

// printReport shows what a set holds.
func printReport(stdout io.Writer, r *carry.Report, output string, arrival *carry.Arrival) error {
	if output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			*carry.Report
			Arrived *carry.Arrival `json:"arrived,omitempty"`
		}{r, arrival})
	}
	if r.Signer != "" {
		fmt.Fprintf(stdout, "set signed by %s\n", r.Signer)
	}
	fmt.Fprintf(stdout, "%d files, %d bytes; trusted root %s\n", r.Files, r.Bytes, r.Trust.Digest)
	for _, p := range r.Policies {
		fmt.Fprintf(stdout, "policy %s\n", p)
	}
	for _, image := range r.Images {
		fmt.Fprintf(stdout, "%s %s, %d attached\n", image.Name, image.Digest, image.Attached)
		for _, e := range image.Verified {
			of := ""
			if e.Digest != image.Digest {
				of = " of " + e.Digest
			}
			fmt.Fprintf(stdout, "  %s%s, %s, by %s\n", e.PredicateType, of, e.Form, e.Signer)
		}
		for _, u := range image.Unproven {
			fmt.Fprintf(stdout, "  does not count: %s\n", u)
		}
		for _, m := range image.Missing {
			fmt.Fprintf(stdout, "  MISSING: %s\n", m)
		}
		if image.Verdict != nil {
			text := strings.Builder{}
			text.WriteString("  inside, ")
			writeVerdict(&text, image.Verdict, "  ")
			fmt.Fprint(stdout, text.String())
		}
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(stdout, "warning: %s\n", w)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(stdout, "PROBLEM: %s\n", p)
	}
	if arrival != nil {
		for _, image := range arrival.Images {
			fmt.Fprintf(stdout, "arrived: %s %s, %d attached\n", image.Name, image.Digest, image.Attached)
		}
	}
	return nil
}

// incomplete is the error of a set that lacks something.
func incomplete(r *carry.Report) error {
	if r.Complete {
		return nil
	}
	n := 0
	for _, image := range r.Images {
		if image.Lacks() {
			n++
		}
	}
	if n > 0 {
		return fmt.Errorf("not complete: %d of %d images lack what the report names, or are refused", n, len(r.Images))
	}
	return errors.New("not complete: " + r.Problems[0])
}

// keyAlone reports whether a key signs without any service: where no signing config is named.
func (f *signFlags) keyAlone() bool {
	return f.key != "" && f.signingConfig == "" && os.Getenv("ATTESTRY_SIGNING_CONFIG") == ""
}
