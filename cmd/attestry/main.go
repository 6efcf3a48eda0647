// Command attestry is the program for people: it starts a private Sigstore, signs, verifies and measures.
package main

import (
	"context"
	"errors"
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
		os.Exit(exitStatus(err))
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
		newIssuerCommand(),
		newSignCommand(),
		newAttestCommand(),
		newVerifyCommand(),
		newPolicyCommand(),
		newConvertCommand(),
		newCarryCommand(),
		newKeysCommand(),
		newTrustCommand(),
		newCA(),
		newLogCommand(),
		newWitnessCommand(),
		newImagesCommand(),
		newBackupCommand(),
		newRestoreCommand(),
		newDoctorCommand(),
		newBenchCommand(),
		newConformanceCommand(),
	)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

// exitStatus is 1 unless err says otherwise.
func exitStatus(err error) int {
	var s statusError
	if errors.As(err, &s) {
		return s.status
	}
	return 1
}
