// Command attestry is the program for people: it starts a private Sigstore, signs, verifies and measures.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "attestry:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:           "attestry",
		Short:         "A private Sigstore: certificate authority, transparency logs, timestamp authority, TUF repository and verifier",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newUpCommand(),
		newTokenCommand(),
		newSignCommand(),
		newAttestCommand(),
		newVerifyCommand(),
		newCA(),
		newLogCommand(),
		newWitnessCommand(),
		newBackupCommand(),
		newRestoreCommand(),
		newBenchCommand(),
	)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}
