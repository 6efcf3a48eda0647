package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/stack"
	"github.com/attestry/attestry/pkg/tlog"
)

func newBackupCommand() *cobra.Command {
	var dir, fence, config, key string
	var withKeys bool
	var o stack.BackupOptions
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Back up an instance, which may run",
		Long: `Back up an instance, which may run.

Of each log the backup holds exactly one signed tree, its checkpoint, and the rows of its entries; beside them keys, trust
inventory, TUF repository and all else that lasts. The fence is never in it. --onto takes an earlier backup
on the same volume and links the tiles that are in it, so that only what is new is copied.

With --config the logs are those of a tlog that runs alone, in directories. Its keys are not in the backup unless --with-keys asks for it.
For logs in other stores it copies nothing: it says what to run instead, and fails.

A manifest of all files is signed with a key of its own, made at the first backup. Its public half is printed: keep it
apart from the backups, restore asks for it.`,
		Example: "  attestry backup --dir site/data --fence site/fence --to /backup/monday\n  attestry backup --dir site/data --fence site/fence --to /backup/tuesday --onto /backup/monday",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if config == "" {
				o.Logs, err = instanceLogs(dir, fence)
				o.Root = dir
			} else {
				var cfg *tlog.Config
				if cfg, o.Logs, err = tlogLogs(config); err != nil {
					return err
				}
				o.Root, o.Secrets, o.WithoutKeys = cfg.Dir, cfg.Secrets(), !withKeys
			}
			if err != nil {
				return err
			}
			if o.KeyFile = key; key == "" {
				o.KeyFile = filepath.Join(o.Root, "keys", "backup.key")
			}
			done, err := stack.Backup(cmd.Context(), o)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			printLogs(w, done.Manifest)
			fmt.Fprintf(w, "%s: %d files, %d of them linked, %d MiB copied\npublic backup key: %s\n", o.To, len(done.Manifest.Files), done.Linked, done.Copied>>20, done.Verifier)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", "./attestry-data", "directory of the instance")
	flags.StringVar(&fence, "fence", "", "directory of the logs' fence (default DIR/fence); it is read, not backed up")
	flags.StringVar(&config, "config", "", "configuration file of a tlog that runs alone, in place of --dir and --fence")
	flags.StringVar(&o.To, "to", "", "the backup, a directory that is made")
	flags.StringVar(&o.Onto, "onto", "", "earlier backup to link unchanged tiles from")
	flags.BoolVar(&o.WithoutKeys, "without-keys", false, "leave DIR/keys out; back them up apart")
	flags.BoolVar(&withKeys, "with-keys", false, "with --config: take the keys that it names, too")
	flags.StringVar(&key, "backup-key", "", "key that signs the manifest (default DIR/keys/backup.key)")
	cmd.MarkFlagRequired("to")
	cmd.MarkFlagsMutuallyExclusive("config", "dir")
	cmd.MarkFlagsMutuallyExclusive("config", "fence")
	cmd.MarkFlagsMutuallyExclusive("config", "without-keys")
	cmd.MarkFlagsMutuallyExclusive("dir", "with-keys")
	return cmd
}

func newRestoreCommand() *cobra.Command {
	var from, dir, config, key string
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Verify a backup and restore it into a new directory",
		Long: `Verify a backup and restore it into a new directory.

Nothing is written before everything was verified: the manifest under the public backup key, every file's SHA-256, nothing missing
and nothing more, and each log's tree derived again from its entries, as its signed checkpoint says.

With --config the logs are those of a tlog, whose dir must be missing or empty. Its keys must be in their places: the backup
must be of the logs that they sign.

The fence is not restored. A log that has signed more than the backup holds does not start: see docs/operate.md.`,
		Example: "  attestry restore --from /backup/tuesday --backup-key \"$(cat backup.pub)\" --dir site/restored",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if raw, err := os.ReadFile(key); err == nil {
				key = string(raw)
			} else if !errors.Is(err, os.ErrNotExist) {
				return err
			}
			restore := func() (*stack.Manifest, error) { return stack.Restore(cmd.Context(), from, key, dir) }
			if config != "" {
				_, logs, err := tlogLogs(config)
				if err != nil {
					return err
				}
				dir = logs.Dir
				restore = func() (*stack.Manifest, error) { return stack.RestoreLogs(cmd.Context(), from, key, logs) }
			}
			m, err := restore()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			printLogs(w, m)
			fmt.Fprintf(w, "%s: restored %d files of the backup of %s\n", dir, len(m.Files), m.Made.Format("2006-01-02 15:04:05 MST"))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&from, "from", "", "the backup")
	flags.StringVar(&key, "backup-key", "", "public backup key, as backup printed it, or a file that holds it")
	flags.StringVar(&dir, "dir", "", "directory to restore into; missing or empty")
	flags.StringVar(&config, "config", "", "configuration file of a tlog that runs alone, in place of --dir")
	cmd.MarkFlagRequired("from")
	cmd.MarkFlagRequired("backup-key")
	cmd.MarkFlagsOneRequired("dir", "config")
	cmd.MarkFlagsMutuallyExclusive("dir", "config")
	return cmd
}

// tlogLogs reads the configuration of a tlog.
func tlogLogs(path string) (*tlog.Config, stack.LogsOptions, error) {
	cfg, err := tlog.Load(path)
	var logs stack.LogsOptions
	if err == nil {
		logs, err = cfg.Logs()
	}
	if err != nil {
		return nil, logs, fmt.Errorf("--config %s: %w", path, err)
	}
	return cfg, logs, nil
}

func printLogs(w io.Writer, m *stack.Manifest) {
	for _, l := range m.Logs {
		fmt.Fprintf(w, "%s: %d entries, root %s\n", l.Label, l.Size, l.Root)
	}
}
