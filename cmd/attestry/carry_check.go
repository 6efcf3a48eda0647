package main

import (
	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/carry"
)

func newCarryCheckCommand() *cobra.Command {
	var anchor anchorFlags
	var demand demandFlags
	var judge judgeFlags
	cmd := &cobra.Command{
		Use:   "check [flags] DIR|FILE.tar",
		Short: "Verify a carry set and report what it holds, without a network",
		Long: `Read a set from end to end: who signed it, that every file is the one that was signed and no other is there, that its trusted
root follows from the TUF root that you have, that every image is whole, and which signatures and attestations verify. No
connection is made.

Exit status 0 when the set is complete: every image signed, attested as the set's signer and --require-predicate demand, and allowed by
the policies of the set, or by those of --policy.`,
		Example: `  attestry carry check --tuf-root root.json --certificate-identity ci@example.com --certificate-oidc-issuer https://issuer.example set.tar`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			demands, err := demand.demands()
			if err != nil {
				return err
			}
			if demands.Policies, err = judge.own(); err != nil {
				return err
			}
			a, err := anchor.anchor()
			if err != nil {
				return err
			}
			report, err := carry.Check(cmd.Context(), args[0], a, demands)
			if err != nil {
				return notVerified(err)
			}
			if err := printReport(cmd.OutOrStdout(), report, demand.output, nil); err != nil {
				return err
			}
			return incomplete(report)
		},
	}
	anchor.register(cmd)
	demand.register(cmd)
	judge.register(cmd, "policies, a file or a directory, that decide about the images in place of those that the set carries; may be repeated", true)
	return cmd
}
