package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify/oci"
)

type policyReplayFlags struct {
	registry                                            registryFlags
	log, dir, images, trustedRoot, since, until, output string
	max                                                 int
	all, exitCode                                       bool
}

// newPolicyReplayCommand is `attestry policy replay`.
func newPolicyReplayCommand() *cobra.Command {
	var f policyReplayFlags
	cmd := &cobra.Command{
		Use:   "replay POLICY…",
		Short: "Show who would have failed under policies, and since when",
		Long: `Show who would have failed if policies had been enforced, and since when: over the entries of the logs of an instance, served at --log or stored
in --dir, or over the images that --images lists.

Of a log entry the names in the certificate, or the key, are compared with those that the policies name; an entry fails when no policy names
its signer. A log holds no images, and says nothing of chains, so this is about identities alone. Images are fetched and decided about as
admission would, all policies together; whoever signed a refused one is shown.

--since and --until take a time (2026-05-01T12:00:00Z), a day (2026-05-01, UTC) or how long ago (36h).`,
		Example: `  attestry policy replay --log http://localhost:8420 --since 720h policies/
  attestry policy replay --images running.txt --trusted-root trusted_root.json policies/`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.log, "log", "", "URL of an instance, or of one Rekor log of either version")
	flags.StringVar(&f.dir, "dir", "", "directory of an instance, whose logs are read as they are stored")
	flags.StringVar(&f.images, "images", "", "file with references of images, one a line; # begins a comment")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "trusted_root.json of policies that name none (default $ATTESTRY_TRUSTED_ROOT)")
	flags.StringVar(&f.since, "since", "", "not before this time")
	flags.StringVar(&f.until, "until", "", "before this time")
	flags.IntVar(&f.max, "max", 100_000, "look at the newest so many entries of each log")
	flags.BoolVar(&f.all, "all", false, "show signers that did not fail too")
	flags.BoolVar(&f.exitCode, "exit-code", false, "exit status 1 when somebody would have failed")
	flags.StringVar(&f.output, "output", "text", "text, or json: one object a line")
	f.registry.register(flags)
	cmd.MarkFlagsOneRequired("log", "dir", "images")
	cmd.MarkFlagsMutuallyExclusive("log", "dir", "images")
	return cmd
}

func (f *policyReplayFlags) run(ctx context.Context, paths []string, stdout, stderr io.Writer) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("--output %q is neither text nor json", f.output)
	}
	if f.max < 1 {
		return fmt.Errorf("--max %d is not over 0", f.max)
	}
	now := time.Now()
	since, err := parseWhen(f.since, now)
	if err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	until, err := parseWhen(f.until, now)
	if err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	trusted, err := optionalSetting(f.trustedRoot, "trusted-root", "ATTESTRY_TRUSTED_ROOT")
	if err != nil {
		return err
	}
	loaded, err := policy.Load(paths, policy.Options{TrustedRoot: trusted})
	if err != nil {
		return err
	}
	replay, err := policy.NewReplay(loaded.Policies)
	if err != nil {
		return err
	}
	entry := func(body []byte, at time.Time) error { return replay.AddEntry(body, at, since, until) }
	switch {
	case f.log != "":
		err = replayServed(ctx, f.log, f.max, entry)
	case f.dir != "":
		err = replayStored(f.dir, f.max, entry)
	default:
		if f.since+f.until != "" {
			return errors.New("--since and --until go with --log or --dir: an image is what it is now")
		}
		err = f.replayImages(ctx, loaded, replay, stderr)
	}
	if err != nil {
		return err
	}
	return f.print(replay, stdout, stderr)
}

// replayImages decides about each image as it is now.
func (f *policyReplayFlags) replayImages(ctx context.Context, loaded *policy.Loaded, replay *policy.Replay, stderr io.Writer) error {
	references, err := readLines(f.images)
	if err != nil {
		return fmt.Errorf("--images: %w", err)
	}
	set, err := policy.NewSet(loaded.Policies, policy.SetOptions{Version: loaded.Version})
	if err != nil {
		return err
	}
	registry, err := f.registry.open(references...)
	if err != nil {
		return err
	}
	defer registry.Close()
	for _, reference := range references {
		if err := ctx.Err(); err != nil {
			return err
		}
		image, err := registry.Resolve(ctx, reference)
		if err != nil {
			fmt.Fprintf(stderr, "%s: not looked at: %s\n", plain(reference), plain(onOneLine(err)))
			continue
		}
		once := &remembered{Registry: registry}
		verdict := set.Decide(ctx, &policy.Subject{Image: image}, once)
		if !verdict.Allowed {
			fmt.Fprintf(stderr, "%s: refused: %s\n", plain(reference), plain(refusalText(&verdict)))
		}
		if err := replay.AddImage(verdict, once.found); err != nil {
			return err
		}
	}
	return nil
}

// remembered keeps what the policies were shown.
type remembered struct {
	*oci.Registry
	found []oci.Attachment
}

func (r *remembered) Attachments(ctx context.Context, image oci.Image) ([]oci.Attachment, error) {
	found, err := r.Registry.Attachments(ctx, image)
	r.found = found
	return found, err
}

func refusalText(v *policy.Verdict) string {
	if v.Message != "" {
		return fmt.Sprintf("%s: %s", v.Reason, v.Message)
	}
	var parts []string
	for _, o := range v.Policies {
		if !o.Passed {
			parts = append(parts, fmt.Sprintf("policy %s: %s: %s", o.Policy, o.Reason, o.Message))
		}
	}
	return strings.Join(parts, "; ")
}

func (f *policyReplayFlags) print(replay *policy.Replay, stdout, stderr io.Writer) error {
	failed, entries, signers := 0, 0, replay.Signers()
	for _, s := range signers {
		entries += s.Entries
		if s.Failed > 0 {
			failed++
		}
	}
	shown := signers
	if !f.all {
		shown = signers[:failed] // those that failed come first
	}
	if f.output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetEscapeHTML(false)
		for _, s := range shown {
			if err := enc.Encode(s); err != nil {
				return err
			}
		}
	} else if len(shown) > 0 {
		w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "SIGNER\tISSUER\tENTRIES\tFAILED\tFIRST FAILURE\tLAST FAILURE\tREASON")
		for _, s := range shown {
			who := s.Subject
			switch {
			case s.Key != "":
				who = "key " + s.Key
			case s.Signer == (policy.Signer{}):
				who = "nobody"
			}
			reason := string(s.Reason)
			if s.Failed == 0 {
				reason = "-"
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\n", oneLine(who), oneLine(s.Issuer), s.Entries, s.Failed, day(s.FirstFailure), day(s.LastFailure), reason)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintf(stderr, "%d entries by %d signers, %d of whom would have failed\n", entries, len(signers), failed)
	skipped := replay.Skipped()
	for _, kind := range slices.Sorted(maps.Keys(skipped)) {
		fmt.Fprintf(stderr, "left out: %s of %s\n", strconv.Itoa(skipped[kind]), plain(kind))
	}
	if f.exitCode && failed > 0 {
		return fmt.Errorf("%d signers would have failed", failed)
	}
	return nil
}

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}
