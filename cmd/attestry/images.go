package main

import "github.com/spf13/cobra"

func newImagesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "images", Short: "Bring the images of an air-gap archive into a registry", Args: cobra.NoArgs}
	cmd.AddCommand(newImagesLoadCommand())
	return cmd
}
