package main

import (
	"github.com/spf13/cobra"
)

func newPolicyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Look at policies for images, and try them"}
	cmd.AddCommand(newPolicyCheckCommand(), newPolicyLintCommand(), newPolicyTestCommand(), newPolicyReplayCommand())
	return cmd
}
