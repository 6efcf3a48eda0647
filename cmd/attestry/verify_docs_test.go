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
