package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The page names every flag of the commands it is about.
func TestTheDocsNameTheFlagsOfVerify(t *testing.T) {
	page, err := os.ReadFile("../../docs/verify.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range append([]*cobra.Command{newVerifyCommand()}, newConformanceCommand().Commands()...) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(string(page), "--"+f.Name+"`") && !strings.Contains(string(page), "--"+f.Name+" ") {
				t.Errorf("docs/verify.md does not name --%s of %s", f.Name, cmd.Name())
			}
		})
	}
}

// What docs/policy.md does not name it has in common with verify, and says so.
func TestTheDocsNameTheFlagsOfPolicy(t *testing.T) {
	var pages string
	for _, path := range []string{"../../docs/policy.md", "../../docs/verify.md"} {
		page, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pages += string(page)
	}
	for _, cmd := range newPolicyCommand().Commands() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(pages, "--"+f.Name+"`") && !strings.Contains(pages, "--"+f.Name+" ") {
				t.Errorf("neither docs/policy.md nor docs/verify.md names --%s of policy %s", f.Name, cmd.Name())
			}
		})
	}
}
