package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/policy"
)

type policyTestFlags struct {
	verbose bool
	run     string
}

// newPolicyTestCommand is `attestry policy test`.
func newPolicyTestCommand() *cobra.Command {
	var f policyTestFlags
	cmd := &cobra.Command{
		Use:   "test DIR…",
		Short: "Check policies against expected verdicts, from files alone",
		Long: `Check policies against expected verdicts. The cases are in files named …_test.yaml under DIR, each a list:

  cases:
    - name: the release of last week
      policy: production.yaml        # or a list; files or directories
      combine: satisfied("a") || satisfied("b")   # optional; else all policies count
      trusted_root: trusted_root.json  # of policies that name none
      layout: images/app             # or archive: app.tar, or bundle: app.sigstore.json with image: NAME@DIGEST
      image: registry.example/app:v1 # which one of the layout
      resource: pod.yaml             # the object that wants to run it; optional
      expect: deny
      reason: identity-subject       # optional

Paths are relative to the file. Neither a cluster nor a registry is asked. The output is like that of go test; the exit status is 1 when
a verdict differs.`,
		Example: "  attestry policy test policies/",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.test(cmd.Context(), args, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "show the cases that are as expected too, and why images are refused")
	cmd.Flags().StringVar(&f.run, "run", "", "only cases whose names this regular expression fits")
	return cmd
}

func (f *policyTestFlags) test(ctx context.Context, dirs []string, w io.Writer) error {
	wanted, err := regexp.Compile(f.run)
	if err != nil {
		return fmt.Errorf("--run: %w", err)
	}
	failedDirs := 0
	for _, dir := range dirs {
		begun := time.Now()
		cases, err := policy.ReadCases(dir)
		if err != nil {
			return err
		}
		ran, failed := 0, 0
		for _, c := range cases {
			if !wanted.MatchString(c.Name) {
				continue
			}
			ran++
			if !f.one(ctx, c, w) {
				failed++
			}
		}
		status := "ok  "
		if failed > 0 {
			status = "FAIL"
			failedDirs++
		}
		fmt.Fprintf(w, "%s\t%s\t%.3fs\t%d cases, %d failed\n", status, dir, time.Since(begun).Seconds(), ran, failed)
	}
	if failedDirs > 0 {
		return fmt.Errorf("verdicts differ in %d of %d directories", failedDirs, len(dirs))
	}
	return nil
}

// one runs a case and tells whether it is as expected.
func (f *policyTestFlags) one(ctx context.Context, c *policy.Case, w io.Writer) bool {
	begun := time.Now()
	result, err := c.Run(ctx)
	passed := err == nil && len(result.Differs) == 0
	if passed && !f.verbose {
		return true
	}
	word := "FAIL"
	if passed {
		word = "PASS"
	}
	fmt.Fprintf(w, "--- %s: %s (%.2fs)\n", word, plain(c.Name), time.Since(begun).Seconds())
	at := fmt.Sprintf("    %s:%d: ", c.File, c.Line)
	if err != nil {
		fmt.Fprintln(w, at+plain(strings.Join(strings.Fields(err.Error()), " ")))
		return false
	}
	for _, d := range result.Differs {
		fmt.Fprintln(w, at+plain(d))
	}
	if v := result.Verdict; v.Message != "" {
		fmt.Fprintf(w, "        %s: %s\n", v.Reason, plain(v.Message))
	}
	for _, o := range result.Verdict.Policies {
		if o.Passed {
			fmt.Fprintf(w, "        policy %s passes\n", plain(o.Policy))
		} else {
			fmt.Fprintf(w, "        policy %s: %s: %s\n", plain(o.Policy), o.Reason, plain(o.Message))
		}
	}
	return passed
}
