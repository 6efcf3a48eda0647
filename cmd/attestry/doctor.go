package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/doctor"
)

func newDoctorCommand() *cobra.Command {
	var dir, fence string
	var configs []string
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at what an instance or roles stand on, before they start or while they run",
		Long: `Look at what an instance or roles stand on, before they start or while they run: files and who can read them, keys and their
certificates, the clock, the logs' fence, what clients are told to trust, disks, databases, TUF metadata, and variables that
tutorials set. It reads only.

One line for each finding that is not ok. The exit status is 1 when something does not work, else 0.`,
		Example: "  attestry doctor --dir site/data --fence site/fence\n  attestry doctor --config ca.yaml --config tlog.yaml --config tuf-publisher.yaml --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := &doctor.Report{Now: time.Now()}
			if len(configs) > 0 {
				r.Configs(cmd.Context(), configs)
			} else {
				r.Instance(cmd.Context(), dir, fence)
			}
			r.Environment(os.LookupEnv)
			if err := printFindings(cmd.OutOrStdout(), r, asJSON, all); err != nil {
				return err
			}
			if r.Worst() == doctor.Fail {
				return errors.New("something does not work")
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", "./attestry-data", "directory of the instance")
	flags.StringVar(&fence, "fence", "", "directory of the logs' fence (default DIR/fence)")
	flags.StringArrayVar(&configs, "config", nil, "configuration file of a role that runs alone, in place of --dir and --fence; may be repeated, and what one publishes is compared with what the others sign with")
	flags.BoolVar(&asJSON, "json", false, "one JSON object: level, and all findings")
	flags.BoolVar(&all, "all", false, "also what is ok")
	cmd.MarkFlagsMutuallyExclusive("config", "dir")
	cmd.MarkFlagsMutuallyExclusive("config", "fence")
	return cmd
}

func printFindings(w io.Writer, r *doctor.Report, asJSON, all bool) error {
	if asJSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(struct {
			Level    doctor.Level     `json:"level"`
			Findings []doctor.Finding `json:"findings"`
		}{r.Worst(), r.Findings})
	}
	counts := map[doctor.Level]int{}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range r.Findings {
		counts[f.Level]++
		if all || f.Level != doctor.OK {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", f.Level, f.Code, f.Where, f.Detail)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d ok, %d warn, %d fail\n", counts[doctor.OK], counts[doctor.Warn], counts[doctor.Fail])
	return err
}
