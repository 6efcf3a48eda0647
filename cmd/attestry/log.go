package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/stack"
)

func newLogCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "log", Short: "Look after the transparency logs of an instance"}
	cmd.AddCommand(newLogAdoptCommand(), newLogShardCommand(), newLogListCommand(), newLogFsckCommand())
	return cmd
}

func newLogAdoptCommand() *cobra.Command {
	var dir, fence, name, lost, checkpoint string
	var size uint64
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Start a log that has lost its fence, or entries",
		Long: `Start a log that has lost its fence, or entries.

With --size the log gets a new fence. The fence remembers which trees a log's key has signed. Without it nobody here knows whether the tree is all
that the key ever signed, or an older copy of it; signing on over an older copy would be a fork. So find the
largest size that anybody has seen in a checkpoint of this log (a monitor, a client's bundle, a backup) and name
it with --size. A tree of another size is refused: bring the missing entries back first, or give the log up.

With --lost the log ends here. A..B are the entries that the restored tree has and those that the fence says were signed:
what the refused start has printed. Their indexes were given away, so the key never signs on. The log is frozen for
good at size A and served for reading; "attestry log shard" begins the next one. The tree must be one that the key has
signed: the fence knows the last 1,000, a restore leaves the backup's checkpoint beside the log, or --checkpoint names one.

Every entry is read and hashed before anything is written. The instance must be stopped.`,
		Example: "  attestry log adopt --log rekor2 --size 1234\n  attestry log adopt --log rekor2 --lost 1200..1234",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a := stack.Adoption{Label: name, Size: size}
			var err error
			if checkpoint != "" {
				if a.Checkpoint, err = os.ReadFile(checkpoint); err != nil {
					return fmt.Errorf("--checkpoint: %w", err)
				}
			}
			if lost != "" {
				if a.Lost, err = stack.ParseLost(lost); err != nil {
					return fmt.Errorf("--lost: %w", err)
				}
			}
			record, err := stack.Adopt(cmd.Context(), stack.Options{
				Dir: dir, FenceDir: fence, Logger: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
			}, a)
			if err != nil {
				return err
			}
			if a.Lost != nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is frozen with %d entries, root %x; lost are %s\n", name, record.Size, record.Root, lost)
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s may sign from size %d, root %x\n", name, record.Size, record.Root)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", "./attestry-data", "directory of the instance")
	flags.StringVar(&fence, "fence", "", "directory of the logs' fence (default DIR/fence)")
	flags.StringVar(&name, "log", "", "the log: rekor1, rekor2, ct-main, or another that `attestry log list` names")
	flags.Uint64Var(&size, "size", 0, "the fence was lost: entries that the log must have")
	flags.StringVar(&lost, "lost", "", "entries were lost, A..B: how many are left, and how many the key has signed")
	flags.StringVar(&checkpoint, "checkpoint", "", "with --lost: file with a checkpoint of the tree of size A")
	cmd.MarkFlagRequired("log")
	cmd.MarkFlagsOneRequired("size", "lost")
	cmd.MarkFlagsMutuallyExclusive("size", "lost")
	cmd.MarkFlagsMutuallyExclusive("size", "checkpoint")
	return cmd
}
