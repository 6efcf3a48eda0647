package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newTrustShowCommand() *cobra.Command {
	var f trustSignFlags
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Say who has signed a root, who joins and leaves, and whose signatures are missing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := readRootFile(f.root)
			if err != nil {
				return fmt.Errorf("--root: %w", err)
			}
			previous, err := readRootFile(f.previous)
			if err != nil {
				return fmt.Errorf("--previous: %w", err)
			}
			return printRoot(cmd.OutOrStdout(), f.root, root, previous)
		},
	}
	cmd.Flags().StringVar(&f.root, "root", "", "file with the root")
	cmd.Flags().StringVar(&f.previous, "previous", "", "file with the root before it (not for the first)")
	cmd.MarkFlagRequired("root")
	return cmd
}
