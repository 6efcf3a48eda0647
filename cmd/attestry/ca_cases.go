package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/ca/identity"
)

const maxCaseFile = 1 << 20

// newCATest is `attestry ca test`.
func newCATest() *cobra.Command {
	var issuers issuerFlags
	var everyRule bool
	cmd := &cobra.Command{
		Use:   "test CASES.yaml…",
		Short: "Test an issuer file: who would get which certificate",
		Long: `Test an issuer file with cases: claims, and what must become of a token with them. No key is read and nobody is asked.

A case names the outcome: issued, with the subject, extensions and rule that you care for, or refused, with the reason and
perhaps the rule. aud, iat and exp are made to fit unless the case gives them. docs/ca.md has the format.

Failing cases are printed, and rules that decided none. Exit status 1 when a case fails.`,
		Example: "  attestry ca test --issuer-file issuers.yaml cases.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := issuers.options()
			if err != nil {
				return err
			}
			tester, err := identity.NewTester(o)
			if err != nil {
				return err
			}
			run := caseRun{tester: tester, decided: map[string]bool{}, now: time.Now(), out: cmd.OutOrStdout()}
			for _, path := range args {
				if err := run.file(cmd, path); err != nil {
					return err
				}
			}
			return run.end(o.Config.RuleNames(), everyRule)
		},
	}
	issuers.add(cmd)
	cmd.Flags().BoolVar(&everyRule, "every-rule", false, "fail also when a rule decided no case")
	cmd.MarkFlagsOneRequired("issuer-file", "dir")
	return cmd
}

// caseRun adds up the cases of all files.
type caseRun struct {
	tester        *identity.Tester
	decided       map[string]bool // by issuer and name
	cases, failed int
	now           time.Time
	out           io.Writer
}

func ruleKey(issuer, name string) string { return issuer + " " + name }

func (c *caseRun) file(cmd *cobra.Command, path string) error {
	data, err := limit.ReadFile(path, maxCaseFile)
	if err != nil {
		return err
	}
	cases, err := identity.ParseCases(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, one := range cases {
		x, differs, err := c.tester.Try(cmd.Context(), one, c.now)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		c.cases++
		if rule, ok := x.DecidedBy(); ok {
			c.decided[ruleKey(rule.Issuer, rule.Name)] = true
		}
		if len(differs) > 0 {
			c.failed++
			fmt.Fprintf(c.out, "FAIL %s:%d: %s: %s\n", path, one.Line, plain(one.Name), plain(strings.Join(differs, "; ")))
		}
	}
	return nil
}

func (c *caseRun) end(rules []identity.RuleName, everyRule bool) error {
	idle := 0
	for _, r := range rules {
		if c.decided[ruleKey(r.Issuer, r.Name)] {
			continue
		}
		idle++
		of := r.Issuer
		if of == "" {
			of = "all issuers"
		}
		fmt.Fprintf(c.out, "rule %s of %s, line %d of the issuer file, decided no case\n", r.Name, of, r.Line)
	}
	fmt.Fprintf(c.out, "%d cases, %d failed; %d rules, %d decided no case\n", c.cases, c.failed, len(rules), idle)
	switch {
	case c.failed > 0:
		return fmt.Errorf("%d of %d cases failed", c.failed, c.cases)
	case everyRule && idle > 0:
		return errors.New("there are rules that decided no case")
	}
	return nil
}
