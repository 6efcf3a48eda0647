package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const maxResource = 4 << 20

type policyCheckFlags struct {
	trust    trustFlags
	registry registryFlags

	dir, archive, resource, noMatch, cue, output string
	mirrors                                      []string
}

// newPolicyCheckCommand is `attestry policy check`.
func newPolicyCheckCommand() *cobra.Command {
	var f policyCheckFlags
	cmd := &cobra.Command{
		Use:   "check POLICY… (IMAGE… | --dir DIR)",
		Short: "Decide whether images may run, by policies in files",
		Long: `Decide whether images may run, as admission does, by all policies together: files, or directories with .yaml, .yml and .json files, of
every dialect. What is no file and names its registry is an image. With --dir or --archive nothing is fetched: IMAGE names one
there, and may be left out where there is only one.

The output names each image, what each policy says of it, and of each authority which of signature, provenance, SBOM and so on failed and
why. Exit status: 0 when all images are allowed, 1 when one is refused, 2 when nothing was decided.`,
		Example: `  attestry policy check --trusted-root trusted_root.json policies/ registry.example/app:v1
  attestry policy check --resource pod.yaml --output json policy.yaml --dir images/app`,
		Args: func(cmd *cobra.Command, args []string) error { return undecided(cobra.MinimumNArgs(1)(cmd, args)) },
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return undecided(err) })
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "decide about an image in this OCI layout or cosign save directory, without a network")
	flags.StringVar(&f.archive, "archive", "", "the same for an OCI archive or the file of docker save")
	flags.StringVar(&f.resource, "resource", "", "object of Kubernetes that wants to run the images (YAML or JSON); without it no policy is left out because of its match")
	flags.StringVar(&f.noMatch, "no-match", policy.NoMatchDeny, "what becomes of an image that no policy speaks of: deny, warn or allow")
	flags.StringVar(&f.cue, "cue", policy.CUEStrict, "how CUE is evaluated where a policy does not say: strict, or upstream as policy-controller does")
	flags.StringArrayVar(&f.mirrors, "tuf-mirror", nil, "URL=DIR: copy of the TUF repository that a TrustRoot's spec.remote names; may be repeated")
	flags.StringVar(&f.output, "output", "text", "text, or json: one object a line")
	f.trust.register(cmd)
	f.registry.register(flags)
	return cmd
}

// checked is what --output json prints of an image.
type checked struct {
	Asked   string          `json:"asked"`             // as the command was given it
	Verdict *policy.Verdict `json:"verdict,omitempty"` // none when nothing was decided
	Error   string          `json:"error,omitempty"`
}

func (f *policyCheckFlags) run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	paths, images, err := f.sort(args)
	if err != nil {
		return undecided(err)
	}
	set, err := f.policies(paths, stderr)
	if err != nil {
		return undecided(err)
	}
	subject := &policy.Subject{}
	if f.resource != "" {
		data, err := limit.ReadFile(f.resource, maxResource)
		if err != nil {
			return undecided(fmt.Errorf("--resource: %w", err))
		}
		if subject, err = policy.ReadSubject(data); err != nil {
			return undecided(fmt.Errorf("--resource: %s: %w", f.resource, err))
		}
	}
	source, closeSource, err := f.open(images)
	if err != nil {
		return undecided(err)
	}
	defer closeSource()
	refused, open := 0, 0
	for _, reference := range images {
		c := checked{Asked: reference}
		s := *subject
		if s.Image, err = source.Resolve(ctx, reference); err != nil {
			c.Error = onOneLine(err)
		} else {
			v := set.Decide(ctx, &s, source)
			c.Verdict = &v
		}
		switch {
		case c.Verdict == nil || !c.Verdict.Allowed && unanswered(c.Verdict):
			open++
		case !c.Verdict.Allowed:
			refused++
		}
		if err := f.print(stdout, &c); err != nil {
			return undecided(fmt.Errorf("writing the result: %w", err))
		}
	}
	switch {
	case refused > 0:
		return statusError{exitRefused, fmt.Errorf("%d of %d images are refused", refused, len(images))}
	case open > 0:
		return undecided(fmt.Errorf("nothing was decided about %d of %d images", open, len(images)))
	}
	return nil
}

// sort tells policies from images: what is no file names an image.
func (f *policyCheckFlags) sort(args []string) (paths, images []string, err error) {
	if f.output != "text" && f.output != "json" {
		return nil, nil, fmt.Errorf("--output %q is neither text nor json", f.output)
	}
	onDisk := f.dir != "" || f.archive != ""
	if f.dir != "" && f.archive != "" {
		return nil, nil, errors.New("give --dir or --archive, not both")
	}
	for _, arg := range args {
		_, statErr := os.Stat(arg)
		switch {
		case statErr == nil:
			paths = append(paths, arg)
		case isReference(arg):
			images = append(images, arg)
		default:
			return nil, nil, fmt.Errorf("%s is neither a file nor an image with its registry: %w", arg, statErr)
		}
	}
	switch {
	case len(paths) == 0:
		return nil, nil, errors.New("name a policy: a file, or a directory with some")
	case len(images) == 0 && onDisk:
		images = []string{""} // the only one there
	case len(images) == 0:
		return nil, nil, errors.New("name an image, or --dir")
	}
	return paths, images, nil
}

func (f *policyCheckFlags) policies(paths []string, stderr io.Writer) (*policy.Set, error) {
	o := policy.Options{CUE: f.cue, Mirrors: make(map[string]fs.FS)}
	var err error
	if o.TrustedRoot, err = f.trust.optional(stderr); err != nil {
		return nil, err
	}
	for _, m := range f.mirrors {
		at, dir, ok := strings.Cut(m, "=")
		if !ok || at == "" || dir == "" {
			return nil, fmt.Errorf("--tuf-mirror %q is not URL=DIR", m)
		}
		o.Mirrors[at] = os.DirFS(dir)
	}
	loaded, err := policy.Load(paths, o)
	if err != nil {
		return nil, err
	}
	if len(loaded.Policies) == 0 {
		return nil, fmt.Errorf("%s: no policy is there, only what policies refer to", strings.Join(paths, ", "))
	}
	return policy.NewSet(loaded.Policies, policy.SetOptions{NoMatch: f.noMatch, Version: loaded.Version})
}

func (f *policyCheckFlags) open(images []string) (oci.Source, func(), error) {
	if f.dir != "" || f.archive != "" {
		return (&imageFlags{dir: f.dir, archive: f.archive}).open("")
	}
	r, err := f.registry.open(images...)
	if err != nil {
		return nil, nil, err
	}
	return r, r.Close, nil
}

// unanswered reports whether an image is refused for no other reason than that a registry did not answer or time ran out.
func unanswered(v *policy.Verdict) bool {
	var reasons []verify.Reason
	if v.Reason != "" {
		reasons = append(reasons, v.Reason)
	}
	for _, o := range v.Policies {
		if !o.Passed && o.Mode == policy.ModeEnforce {
			reasons = append(reasons, o.Reason)
		}
	}
	for _, r := range reasons {
		if !r.Undecided() {
			return false
		}
	}
	return true
}

func (f *policyCheckFlags) print(w io.Writer, c *checked) error {
	if f.output == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return enc.Encode(c)
	}
	_, err := io.WriteString(w, c.text())
	return err
}

// text is for people: the image, below it policies, below those what each authority found.
func (c *checked) text() string {
	var b strings.Builder
	v := c.Verdict
	if v == nil {
		fmt.Fprintf(&b, "%s: not decided: %s\n", plain(cmp.Or(c.Asked, "the image")), plain(c.Error))
		return b.String()
	}
	image := plain(shown(v.Image))
	switch {
	case v.Allowed:
		fmt.Fprintf(&b, "%s: allowed\n", image)
	case v.Message != "":
		fmt.Fprintf(&b, "%s: refused: %s: %s\n", image, v.Reason, plain(v.Message))
	default:
		fmt.Fprintf(&b, "%s: refused\n", image)
	}
	for _, warning := range v.Warnings {
		fmt.Fprintf(&b, "  warning: %s\n", plain(warning))
	}
	for _, o := range v.Policies {
		mode := ""
		if o.Mode != policy.ModeEnforce {
			mode = ", and only " + o.Mode + "s"
		}
		switch {
		case o.Passed && o.Message != "":
			fmt.Fprintf(&b, "  policy %s: passes: %s\n", plain(o.Policy), plain(o.Message))
		case o.Passed:
			fmt.Fprintf(&b, "  policy %s: passes\n", plain(o.Policy))
		case len(o.Checks) > 0 && !o.ChecksPassed(): // the checks say it, one a line
			fmt.Fprintf(&b, "  policy %s: refuses%s: %s\n", plain(o.Policy), mode, o.Reason)
		default:
			fmt.Fprintf(&b, "  policy %s: refuses%s: %s: %s\n", plain(o.Policy), mode, o.Reason, plain(o.Message))
		}
		for _, check := range o.Checks {
			fmt.Fprintf(&b, "    %s\n", checkText(&check))
		}
	}
	return b.String()
}

func checkText(c *policy.Check) string {
	text := c.What()
	if c.Authority != "" {
		text = "authority " + c.Authority + ": " + text
	}
	switch {
	case !c.Passed:
		text += fmt.Sprintf(": failed: %s: %s", c.Reason, c.Message)
	case c.Result != nil:
		text += ": " + summary(c.Result)
	default:
		text += ": passed"
	}
	if c.Passed && c.Message != "" {
		text += " (" + c.Message + ")"
	}
	return plain(text)
}
