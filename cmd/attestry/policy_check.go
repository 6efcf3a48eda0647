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
	"github.com/attestry/attestry/pkg/verify/oci"
)

const maxResource = 4 << 20

type policyCheckFlags struct {
	trust    trustFlags
	registry registryFlags

	dir, archive, resource, children, combine, noMatch, cue, output string
	mirrors                                                         []string
}

// newPolicyCheckCommand is `attestry policy check`.
func newPolicyCheckCommand() *cobra.Command {
	var f policyCheckFlags
	cmd := &cobra.Command{
		Use:   "check POLICY… (IMAGE… | --resource FILE | --dir DIR)",
		Short: "Decide whether images may run, by policies in files",
		Long: `Decide whether images may run, as admission does, by all policies together: files, or directories with .yaml, .yml and .json files, of
every dialect. What is no file and names its registry is an image. Without one, those are decided about that the objects in --resource
run. With --dir or --archive nothing is fetched: IMAGE names one there, and may be left out where there is only one.

The output names each image, what each policy says of it, and of each authority which of signature, provenance, SBOM and so on failed and
why. Exit status: 0 when all images are allowed, 1 when one is refused, 2 when nothing was decided.`,
		Example: `  attestry policy check --trusted-root trusted_root.json policies/ registry.example/app:v1
  attestry policy check --resource deployment.yaml policies/
  attestry policy check --combine 'satisfied("provenance", "scan") || satisfied("signoff")' --output json policies/ --dir images/app`,
		Args: func(cmd *cobra.Command, args []string) error { return undecided(cobra.MinimumNArgs(1)(cmd, args)) },
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return undecided(err) })
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "", "decide about an image in this OCI layout or cosign save directory, without a network")
	flags.StringVar(&f.archive, "archive", "", "the same for an OCI archive or the file of docker save")
	flags.StringVar(&f.resource, "resource", "", "objects of Kubernetes (YAML or JSON), each of whose images is decided about as that object's; with IMAGE the one object that wants to run it. Without it no policy is left out because of its match")
	flags.StringVar(&f.children, "children", string(policy.ChildrenIndex), "of an index of several platforms: index when the index has to be allowed, all when each of its images, any when either will do")
	flags.StringVar(&f.combine, "combine", "", `expression over the names of the policies, satisfied("a","b") || satisfied("c"), that decides alone; without it all policies have to pass`)
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
	Asked   string          `json:"asked"`             // as the command was given it, or the object has it
	Object  string          `json:"object,omitempty"`  // "Deployment/web", of --resource
	Uses    []string        `json:"uses,omitempty"`    // where in the object
	Verdict *policy.Verdict `json:"verdict,omitempty"` // none when nothing was decided
	Error   string          `json:"error,omitempty"`

	subject policy.Subject
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
	asked, err := f.asked(images, stderr)
	if err != nil {
		return undecided(err)
	}
	source, closeSource, err := f.open(images)
	if err != nil {
		return undecided(err)
	}
	defer closeSource()
	refused, open := 0, 0
	for _, c := range asked {
		f.decide(ctx, set, source, c)
		switch {
		case c.Verdict == nil || c.Verdict.Undecided():
			open++
		case !c.Verdict.Allowed:
			refused++
		}
		if err := f.print(stdout, c); err != nil {
			return undecided(fmt.Errorf("writing the result: %w", err))
		}
	}
	switch {
	case refused > 0:
		return statusError{exitRefused, fmt.Errorf("%d of %d images are refused", refused, len(asked))}
	case open > 0:
		return undecided(fmt.Errorf("nothing was decided about %d of %d images", open, len(asked)))
	}
	return nil
}

func (f *policyCheckFlags) onDisk() bool { return f.dir != "" || f.archive != "" }

func (f *policyCheckFlags) decide(ctx context.Context, set *policy.Set, source oci.Source, c *checked) {
	if c.Object != "" && !f.onDisk() && !isReference(c.Asked) {
		c.Error = "the image names no registry, and none is assumed"
		return
	}
	var err error
	if c.subject.Image, err = source.Resolve(ctx, c.Asked); err != nil {
		c.Error = onOneLine(err)
		return
	}
	v := set.DecideTree(ctx, &c.subject, source, policy.Children(f.children))
	c.Verdict = &v
}

// asked are the images to decide about: those that were named, as of the object in --resource if there is one, else those of all objects there.
func (f *policyCheckFlags) asked(images []string, stderr io.Writer) ([]*checked, error) {
	if f.resource == "" {
		return askedAs(images, policy.Subject{}), nil
	}
	data, err := limit.ReadFile(f.resource, maxResource)
	if err != nil {
		return nil, fmt.Errorf("--resource: %w", err)
	}
	if len(images) > 0 {
		subject, err := policy.ReadSubject(data)
		if err != nil {
			return nil, fmt.Errorf("--resource: %s: %w", f.resource, err)
		}
		return askedAs(images, *subject), nil
	}
	objects, err := policy.ReadObjects(data)
	if err != nil {
		return nil, fmt.Errorf("--resource: %s: %w", f.resource, err)
	}
	var all []*checked
	for _, o := range objects {
		uses, runs, err := o.Uses()
		if err != nil {
			return nil, fmt.Errorf("--resource: %s: %w", f.resource, err)
		}
		if !runs {
			fmt.Fprintf(stderr, "%s makes no pods and is not looked at\n", plain(o.Name))
		}
		names, where := policy.ByImage(uses)
		for _, c := range askedAs(names, o.Subject) {
			c.Object, c.Uses = o.Name, where[c.Asked]
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("--resource: %s runs no image", f.resource)
	}
	return all, nil
}

func askedAs(images []string, subject policy.Subject) []*checked {
	var all []*checked
	for _, reference := range images {
		all = append(all, &checked{Asked: reference, subject: subject})
	}
	return all
}

// sort tells policies from images: what is no file names an image.
func (f *policyCheckFlags) sort(args []string) (paths, images []string, err error) {
	if f.output != "text" && f.output != "json" {
		return nil, nil, fmt.Errorf("--output %q is neither text nor json", f.output)
	}
	if err := policy.Children(f.children).Check(); err != nil {
		return nil, nil, fmt.Errorf("--children: %w", err)
	}
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
	case len(images) > 0 || f.resource != "":
	case f.onDisk():
		images = []string{""} // the only one there
	default:
		return nil, nil, errors.New("name an image, --resource or --dir")
	}
	return paths, images, nil
}

func (f *policyCheckFlags) policies(paths []string, stderr io.Writer) (*policy.Set, error) {
	o := policy.Options{CUE: f.cue}
	var err error
	if o.TrustedRoot, err = f.trust.optional(stderr); err != nil {
		return nil, err
	}
	if o.Mirrors, err = mirrorsOf(f.mirrors); err != nil {
		return nil, err
	}
	loaded, err := policy.Load(paths, o)
	if err != nil {
		return nil, err
	}
	if len(loaded.Policies) == 0 {
		return nil, fmt.Errorf("%s: no policy is there, only what policies refer to", strings.Join(paths, ", "))
	}
	return policy.NewSet(loaded.Policies, policy.SetOptions{NoMatch: f.noMatch, Combine: f.combine, Version: loaded.Version})
}

// mirrorsOf reads --tuf-mirror.
func mirrorsOf(list []string) (map[string]fs.FS, error) {
	mirrors := make(map[string]fs.FS)
	for _, m := range list {
		at, dir, ok := strings.Cut(m, "=")
		if !ok || at == "" || dir == "" {
			return nil, fmt.Errorf("--tuf-mirror %q is not URL=DIR", m)
		}
		mirrors[at] = os.DirFS(dir)
	}
	return mirrors, nil
}

// open reaches the registries of images, which a person named. What a manifest names may be anybody's word: those have to be on the
// internet, or listed.
func (f *policyCheckFlags) open(images []string) (oci.Source, func(), error) {
	if f.onDisk() {
		return (&imageFlags{dir: f.dir, archive: f.archive}).open("")
	}
	r, err := f.registry.open(images...)
	if err != nil {
		return nil, nil, err
	}
	return r, r.Close, nil
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

// text is for people: the image, below it policies, below those what each authority found; the images of an index below that.
func (c *checked) text() string {
	var b strings.Builder
	where := ""
	if c.Object != "" {
		where = plain(c.Object + ", " + strings.Join(c.Uses, ", ") + ": ")
	}
	if c.Verdict == nil {
		fmt.Fprintf(&b, "%s%s: not decided: %s\n", where, plain(cmp.Or(c.Asked, "the image")), plain(c.Error))
		return b.String()
	}
	b.WriteString(where)
	writeVerdict(&b, c.Verdict, "")
	return b.String()
}

// writeVerdict goes on in a line that is indented already.
func writeVerdict(b *strings.Builder, v *policy.Verdict, indent string) {
	image := plain(shown(v.Image))
	switch {
	case v.Allowed:
		fmt.Fprintf(b, "%s: allowed\n", image)
	case v.Message != "":
		fmt.Fprintf(b, "%s: refused: %s: %s\n", image, v.Reason, plain(v.Message))
	default:
		fmt.Fprintf(b, "%s: refused\n", image)
	}
	if len(v.Children) == 0 { // else they are the children's
		for _, warning := range v.Warnings {
			fmt.Fprintf(b, "%s  warning: %s\n", indent, plain(warning))
		}
	}
	writeOutcomes(b, v.Policies, indent+"  ")
	for i := range v.Children {
		b.WriteString(indent + "  ")
		writeVerdict(b, &v.Children[i], indent+"  ")
	}
}

// writeOutcomes writes what each policy says, and below it what each authority found.
func writeOutcomes(b *strings.Builder, outcomes []policy.Outcome, indent string) {
	for _, o := range outcomes {
		mode := ""
		if o.Mode != policy.ModeEnforce {
			mode = ", and only " + o.Mode + "s"
		}
		switch {
		case o.Passed && o.Message != "":
			fmt.Fprintf(b, "%spolicy %s: passes: %s\n", indent, plain(o.Policy), plain(o.Message))
		case o.Passed:
			fmt.Fprintf(b, "%spolicy %s: passes\n", indent, plain(o.Policy))
		case len(o.Checks) > 0 && !o.ChecksPassed(): // the checks say it, one a line
			fmt.Fprintf(b, "%spolicy %s: refuses%s: %s\n", indent, plain(o.Policy), mode, o.Reason)
		default:
			fmt.Fprintf(b, "%spolicy %s: refuses%s: %s: %s\n", indent, plain(o.Policy), mode, o.Reason, plain(o.Message))
		}
		for _, check := range o.Checks {
			fmt.Fprintf(b, "%s  %s\n", indent, checkText(&check))
		}
	}
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
