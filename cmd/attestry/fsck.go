package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/stack"
)

func newLogFsckCommand() *cobra.Command {
	var dir, fence, config string
	var names, checkpoints []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Derive whole trees again from their entries and compare",
		Long: `Derive whole trees again from their entries and compare.

Every entry is read and hashed; the hash tiles of every level are compared byte for byte with what the entries give,
the roots with those that the fence has recorded and those of checkpoints that you name, the rows with the leaves.
It reads only, and may run beside the instance: it then checks the newest signed tree. With --config the logs are those of a
tlog, in whatever store they are.

One line for each finding. Damage makes the exit status 1; what a crash may leave is called harmless.`,
		Example: "  attestry log fsck --dir site/data\n  attestry log fsck --log rekor2 --checkpoint kept-by-the-monitor.txt",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var logs stack.LogsOptions
			var err error
			if config != "" {
				_, logs, err = tlogLogs(config)
			} else {
				logs, err = instanceLogs(dir, fence)
			}
			if err != nil {
				return err
			}
			kept := map[string][]byte{}
			for _, path := range checkpoints {
				if kept[path], err = os.ReadFile(path); err != nil {
					return fmt.Errorf("--checkpoint: %w", err)
				}
			}
			return stack.PrintCheck(cmd.Context(), logs, names, kept, asJSON, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", "./attestry-data", "directory of the instance")
	flags.StringVar(&fence, "fence", "", "directory of the logs' fence (default DIR/fence)")
	flags.StringVar(&config, "config", "", "configuration file of a tlog that runs alone, in place of --dir and --fence")
	flags.StringArrayVar(&names, "log", nil, "check only this log; may be repeated")
	flags.StringArrayVar(&checkpoints, "checkpoint", nil, "file of a checkpoint that somebody kept; may be repeated")
	flags.BoolVar(&asJSON, "json", false, "one JSON object a line: findings, then a summary for each log")
	cmd.MarkFlagsMutuallyExclusive("config", "dir")
	cmd.MarkFlagsMutuallyExclusive("config", "fence")
	return cmd
}

// instanceLogs names the logs of an instance and their fence, for reading.
func instanceLogs(dir, fence string) (stack.LogsOptions, error) {
	logs, _, _, err := stack.InstanceLogs(dir)
	if logs.FenceDir = fence; fence == "" {
		logs.FenceDir = filepath.Join(dir, "fence")
	}
	return logs, err
}
