package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/trust"
)

type trustNextFlags struct {
	root, out, targets, online string
	add, remove                []string
	threshold, days            int
}

func newTrustNextCommand() *cobra.Command {
	var f trustNextFlags
	cmd := &cobra.Command{
		Use:   "next",
		Short: "Make the root that follows, unsigned: before one ends, or to change holders or keys",
		Long: `Make the root that follows, unsigned: before one ends, or to change holders or keys.

It counts when the threshold of the root before it and its own have signed it with "attestry trust sign". A new --online-key or
--targets-key goes into the publisher's keys directory beside the old one, under any name that ends in .pem, before the root does;
so all that is published is signed by both for a moment, and no client notices.`,
		Example: "  attestry trust next --root 1.root.json --out 2.root.json --remove-holder 3f5a… --add-holder dave.pub",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runTrustNext(f, cmd.OutOrStdout(), time.Now())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.root, "root", "", "file with the newest root")
	flags.StringVar(&f.out, "out", "", "file for the next, N.root.json; one that is there is not replaced")
	flags.StringArrayVar(&f.add, "add-holder", nil, "file with the public key of a new holder; may be repeated")
	flags.StringArrayVar(&f.remove, "remove-holder", nil, "key ID of a holder who leaves; may be repeated")
	flags.IntVar(&f.threshold, "threshold", 0, "how many holders must sign from now on (default as before)")
	flags.StringVar(&f.targets, "targets-key", "", "file with the public key that replaces the one of targets")
	flags.StringVar(&f.online, "online-key", "", "file with the public key that replaces the one of snapshot and timestamp")
	flags.IntVar(&f.days, "days", 365, "how long the root is valid")
	cmd.MarkFlagRequired("root")
	cmd.MarkFlagRequired("out")
	return cmd
}

func runTrustNext(f trustNextFlags, stdout io.Writer, now time.Time) error {
	life, err := days(f.days)
	if err != nil {
		return err
	}
	if err := vacant(f.out); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	previous, err := readRootFile(f.root)
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	c := trust.RootChange{Remove: f.remove, Threshold: f.threshold, Expires: now.Add(life)}
	if c.Add, err = publicKeyFiles(f.add); err != nil {
		return fmt.Errorf("--add-holder: %w", err)
	}
	if f.targets != "" {
		if c.Targets, err = publicKeyFile(f.targets); err != nil {
			return fmt.Errorf("--targets-key: %w", err)
		}
	}
	if f.online != "" {
		if c.Online, err = publicKeyFile(f.online); err != nil {
			return fmt.Errorf("--online-key: %w", err)
		}
	}
	next, err := trust.NextRoot(previous, c)
	if err != nil {
		return err
	}
	if err := writeRoot(f.out, next); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return printRoot(stdout, f.out, next, previous)
}
