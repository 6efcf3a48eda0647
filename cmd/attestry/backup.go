package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/stack"
)

func newBackupCommand() *cobra.Command {
	var dir, fence, key string
	var o stack.BackupOptions
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Back up an instance, which may run",
		Long: `Back up an instance, which may run.

Of each log the backup holds exactly one signed tree, its checkpoint, and the rows of its entries; beside them keys, trust
inventory, TUF repository and all else that lasts. The fence is never in it. --onto takes an earlier backup
on the same volume and links the tiles that are in it, so that only what is new is copied.

A manifest of all files is signed with a key of its own, made at the first backup. Its public half is printed: keep it
apart from the backups, restore asks for it.`,
		Example: "  attestry backup --dir site/data --fence site/fence --to /backup/monday\n  attestry backup --dir site/data --fence site/fence --to /backup/tuesday --onto /backup/monday",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Logs, err = instanceLogs(dir, fence); err != nil {
				return err
			}
			o.Root, o.KeyFile = dir, key
			if o.KeyFile == "" {
				o.KeyFile = filepath.Join(dir, "keys", "backup.key")
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
	flags.StringVar(&o.To, "to", "", "the backup, a directory that is made")
	flags.StringVar(&o.Onto, "onto", "", "earlier backup to link unchanged tiles from")
	flags.BoolVar(&o.WithoutKeys, "without-keys", false, "leave DIR/keys out; back them up apart")
	flags.StringVar(&key, "backup-key", "", "key that signs the manifest (default DIR/keys/backup.key)")
	cmd.MarkFlagRequired("to")
	return cmd
}

func newRestoreCommand() *cobra.Command {
	var from, dir, key string
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Verify a backup and restore it into a new directory",
		Long: `Verify a backup and restore it into a new directory.

Nothing is written before everything was verified: the manifest under the public backup key, every file's SHA-256, nothing missing
and nothing more, and each log's tree derived again from its entries, as its signed checkpoint says.

The fence is not restored. A log that has signed more than the backup holds does not start: see docs/operate.md.`,
		Example: "  attestry restore --from /backup/tuesday --backup-key \"$(cat backup.pub)\" --dir site/restored",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if raw, err := os.ReadFile(key); err == nil {
				key = string(raw)
			} else if !errors.Is(err, os.ErrNotExist) {
				return err
			}
			m, err := stack.Restore(cmd.Context(), from, key, dir)
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
	for _, name := range []string{"from", "backup-key", "dir"} {
		cmd.MarkFlagRequired(name)
	}
	return cmd
}

func printLogs(w io.Writer, m *stack.Manifest) {
	for _, l := range m.Logs {
		fmt.Fprintf(w, "%s: %d entries, root %s\n", l.Label, l.Size, l.Root)
	}
}
