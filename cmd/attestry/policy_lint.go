package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/policy"
)

const maxImageList = 4 << 20

type policyLintFlags struct {
	trustedRoot, images, output string
	ignore                      []string
}

func newPolicyLintCommand() *cobra.Command {
	var f policyLintFlags
	cmd := &cobra.Command{
		Use:   "lint POLICY…",
		Short: "Find what policies allow and do not mean",
		Long: `Find what policies allow and probably do not mean: files, or directories with .yaml, .yml and .json files, of every dialect.

Each finding has a stable code and says how to mend it. Notes are worth knowing; only other findings make the exit status 1.

--images names a file with the references of images that run, one a line: then policies that none of them fits are found, and images that
no policy speaks of.`,
		Example: "  attestry policy lint --trusted-root trusted_root.json --images running.txt policies/",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "trusted_root.json of policies that name none (default $ATTESTRY_TRUSTED_ROOT)")
	flags.StringVar(&f.images, "images", "", "file with references of images, one a line; # begins a comment")
	flags.StringArrayVar(&f.ignore, "ignore", nil, "code of findings to leave out; may be repeated")
	flags.StringVar(&f.output, "output", "text", "text, or json: one object a line")
	return cmd
}

func (f *policyLintFlags) run(paths []string, stdout, stderr io.Writer) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("--output %q is neither text nor json", f.output)
	}
	var o policy.LintOptions
	var err error
	if o.TrustedRoot, err = optionalSetting(f.trustedRoot, "trusted-root", "ATTESTRY_TRUSTED_ROOT"); err != nil {
		return err
	}
	if f.images != "" {
		if o.Images, err = readLines(f.images); err != nil {
			return fmt.Errorf("--images: %w", err)
		}
	}
	files, err := policy.ReadFiles(paths)
	if err != nil {
		return err
	}
	found, err := policy.Lint(files, o)
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(x policy.Finding) bool { return slices.Contains(f.ignore, x.Code) })
	mistakes := 0
	enc := json.NewEncoder(stdout)
	enc.SetEscapeHTML(false)
	for _, x := range found {
		if !x.Note {
			mistakes++
		}
		if f.output == "json" {
			if err := enc.Encode(x); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(stdout, findingText(x))
	}
	if mistakes > 0 {
		return fmt.Errorf("%d findings", mistakes)
	}
	fmt.Fprintf(stderr, "%d files, nothing found but %d notes\n", len(files), len(found))
	return nil
}

// findingText is the line of a finding: where, code, what, and how to mend it.
func findingText(x policy.Finding) string {
	var b strings.Builder
	if x.File != "" {
		fmt.Fprintf(&b, "%s:%d: ", x.File, x.Line)
	}
	kind := ""
	if x.Note {
		kind = "note: "
	}
	fmt.Fprintf(&b, "%s%s: ", kind, x.Code)
	if x.Policy != "" {
		fmt.Fprintf(&b, "policy %s: ", plain(x.Policy))
	}
	if x.Field != "" {
		fmt.Fprintf(&b, "%s: ", plain(x.Field))
	}
	b.WriteString(plain(strings.Join(strings.Fields(x.Message), " ")))
	if x.Fix != "" {
		fmt.Fprintf(&b, "; %s", plain(x.Fix))
	}
	return b.String()
}

// optionalSetting reads the file of a flag or else of a variable; none is empty.
func optionalSetting(path, flag, env string) ([]byte, error) {
	if path == "" && os.Getenv(env) == "" {
		return nil, nil
	}
	return readSetting(path, flag, env)
}

// readLines reads a list, one item a line, without comments.
func readLines(path string) ([]string, error) {
	data, err := limit.ReadFile(path, maxImageList)
	if err != nil {
		return nil, err
	}
	var lines []string
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("%s has no line with a reference", path)
	}
	return lines, nil
}
