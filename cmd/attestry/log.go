package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/stack"
)

func newLogCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "log", Short: "Look after the transparency logs of an instance"}
	cmd.AddCommand(newLogAdoptCommand(), newLogShardCommand(), newLogListCommand(), newLogFsckCommand())
	return cmd
}

func newLogAdoptCommand() *cobra.Command {
	var dir, fence, name string
	var size uint64
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Give a log whose fence was lost a new one",
		Long: `Give a log whose fence was lost a new one.

The fence remembers which trees a log's key has signed. Without it nobody here knows whether the tree is all
that the key ever signed, or an older copy of it; signing on over an older copy would be a fork. So find the
largest size that anybody has seen in a checkpoint of this log (a monitor, a client's bundle, a backup) and name
it with --size. A tree of another size is refused: bring the missing entries back first, or give the log up.

Every entry is read and hashed before the new fence is written. The instance must be stopped.`,
		Example: "  attestry log adopt --log rekor2 --size 1234",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			record, err := stack.Adopt(cmd.Context(), stack.Options{
				Dir: dir, FenceDir: fence, Logger: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
			}, name, size)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s may sign from size %d, root %x\n", name, record.Size, record.Root)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", "./attestry-data", "directory of the instance")
	flags.StringVar(&fence, "fence", "", "directory of the logs' fence (default DIR/fence)")
	flags.StringVar(&name, "log", "", "the log: rekor1, rekor2, ct-main, or another that `attestry log list` names")
	flags.Uint64Var(&size, "size", 0, "entries that the log must have")
	cmd.MarkFlagRequired("log")
	cmd.MarkFlagRequired("size")
	return cmd
}
