package main

import "github.com/spf13/cobra"

func newCA() *cobra.Command {
	cmd := &cobra.Command{Use: "ca", Short: "Look after a certificate authority"}
	cmd.AddCommand(
		newCARoot(),
		newCACSR(),
		newCASignCSR(),
		newCAInstall(),
		newCAIssued(),
		newCAExplain(),
		newCATest(),
	)
	return cmd
}
