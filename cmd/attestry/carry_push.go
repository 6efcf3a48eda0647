package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/attachment"
	"github.com/attestry/attestry/pkg/carry"
	"github.com/attestry/attestry/pkg/verify"
)

func newCarryPushCommand() *cobra.Command {
	var anchor anchorFlags
	var demand demandFlags
	var judge judgeFlags
	var registry registryFlags
	var moveTags bool
	cmd := &cobra.Command{
		Use:   "push [flags] DIR|FILE.tar REGISTRY[/PREFIX]",
		Short: "Check a carry set and copy it into a registry",
		Long: `Check a set as attestry carry check does and, if it is complete, copy its images with all that is attached to them into a
registry: outside.example/team/app becomes REGISTRY/PREFIX/team/app. Where the registry has no referrers API, the tag that
stands in for it is kept; signatures that are there already stay. An image gets its tag at last, and all is read back.

Run it again after an interruption: what is there is not sent again.`,
		Example: `  attestry carry push --tuf-root root.json --key carrier.pub set.tar inside.example`,
		Args:    cobra.ExactArgs(2),
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
			p := carry.Pushing{
				Registry: args[1], MoveTags: moveTags,
				Open: func(ctx context.Context, repo name.Repository) (attachment.Repository, error) {
					return registry.write(ctx, repo)
				},
				Parse: func(repository string) (name.Repository, error) {
					if !isReference(repository) {
						return name.Repository{}, fmt.Errorf("%q does not begin with a registry", repository)
					}
					return name.NewRepository(repository, registry.nameOptions(repository)...)
				},
				Progress: func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) },
			}
			report, arrival, err := carry.Push(cmd.Context(), args[0], a, demands, p)
			if report == nil {
				return notVerified(err)
			}
			if printErr := printReport(cmd.OutOrStdout(), report, demand.output, arrival); printErr != nil {
				return printErr
			}
			if err != nil {
				return err
			}
			return incomplete(report)
		},
	}
	anchor.register(cmd)
	demand.register(cmd)
	judge.register(cmd, "policies, a file or a directory, that decide about the images in place of those that the set carries; may be repeated", false)
	cmd.Flags().BoolVar(&moveTags, "move-tags", false, "move tags of images that point elsewhere there")
	registry.register(cmd.Flags())
	return cmd
}

// notVerified puts the reason before the text, as attestry verify does.
func notVerified(err error) error {
	if reason := verify.ReasonOf(err); reason != "internal" {
		return fmt.Errorf("not verified: %s: %s", reason, strings.Join(strings.Fields(err.Error()), " "))
	}
	return err
}
