package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/attachment"
	"github.com/attestry/attestry/pkg/carry"
	"github.com/attestry/attestry/pkg/sign"
)

func newCarryPackCommand() *cobra.Command {
	var s signFlags
	var registry registryFlags
	var demand demandFlags
	var judge judgeFlags
	var out, tuf, tufRoot string
	cmd := &cobra.Command{
		Use:   "pack --out DIR|FILE.tar [flags] IMAGE…",
		Short: "Put images with all that is attached to them into a directory or a tar",
		Long: `Copy images, the images of indexes, and every signature, attestation and other artifact that is attached to one of them
into one directory or tar, with the trusted root, the TUF metadata that leads to it, and policies. The set is signed at last, with
your identity or with --key, and only if it is complete: every image signed, every --require-predicate attested, every --policy satisfied.

Run it again after an interruption: what is there is not fetched again. The same images give the same files.`,
		Example: `  attestry carry pack --out set.tar --require-predicate slsaprovenance1 registry.example/app:v1`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return errors.New("--out says where the set goes")
			}
			demands, err := demand.demands()
			if err != nil {
				return err
			}
			if demands.Policies, err = judge.judging(); err != nil {
				return err
			}
			p := carry.Packing{
				References: args, Policies: judge.policies, Demands: demands, Parse: registry.parse,
				Open: func(ctx context.Context, repo name.Repository) (attachment.Repository, error) {
					return registry.repositoryOf(ctx, repo, false)
				},
				TUF: tuf, Client: &http.Client{Timeout: time.Minute}, Now: time.Now,
				Progress: func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) },
			}
			if err := packTrust(&p, tufRoot, s.trustedRoot); err != nil {
				return err
			}
			if err := packSigner(cmd, &p, &s); err != nil {
				return err
			}
			dir := out
			tar := strings.HasSuffix(out, ".tar")
			if tar { // made beside it, so that an interruption loses nothing
				dir = out + ".parts"
			}
			report, err := carry.Pack(cmd.Context(), dir, p)
			if err != nil {
				return err
			}
			if err := printReport(cmd.OutOrStdout(), report, demand.output, nil); err != nil {
				return err
			}
			if err := incomplete(report); err != nil {
				return err
			}
			if tar {
				if err := carry.WriteTar(dir, out); err != nil {
					return err
				}
				if err := os.RemoveAll(dir); err != nil {
					return err
				}
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "packed %d images into %s\n", len(report.Images), out)
			return nil
		},
	}
	s.register(cmd)
	demand.register(cmd)
	judge.register(cmd, "file with policies, which is carried along and has to allow each image; may be repeated", true)
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "directory, or file that ends in .tar")
	flags.StringVar(&tuf, "tuf", "", "TUF repository that has the trusted root: a directory or a URL (default $ATTESTRY_TUF_URL)")
	flags.StringVar(&tufRoot, "tuf-root", "", "root of the TUF repository (default $ATTESTRY_TUF_ROOT)")
	registry.register(flags)
	return cmd
}

// packTrust finds the TUF repository, or else a trusted root alone.
func packTrust(p *carry.Packing, tufRoot, trustedRoot string) error {
	if tufRoot == "" {
		tufRoot = os.Getenv("ATTESTRY_TUF_ROOT")
	}
	if p.TUF == "" {
		p.TUF = os.Getenv("ATTESTRY_TUF_URL")
	}
	if p.TUF == "" {
		var err error
		p.TrustedRoot, err = readSetting(trustedRoot, "trusted-root", "ATTESTRY_TRUSTED_ROOT")
		return err
	}
	if tufRoot == "" {
		return errors.New("give --tuf-root: the TUF repository does not vouch for itself")
	}
	var err error
	if p.TUFRoot, err = limit.ReadFile(tufRoot, 1<<20); err != nil {
		return fmt.Errorf("--tuf-root: %w", err)
	}
	return nil
}

// packSigner chooses how the set is signed.
func packSigner(cmd *cobra.Command, p *carry.Packing, s *signFlags) error {
	p.Sign = func(ctx context.Context, manifest []byte) ([]byte, error) {
		options, err := s.options(ctx, cmd.ErrOrStderr())
		if err != nil {
			return nil, err
		}
		signed, err := sign.Blob(ctx, options, manifest)
		if err != nil {
			return nil, err
		}
		return signed.Bundle, nil
	}
	if s.key == "" {
		return nil
	}
	key, err := s.openKey()
	if err != nil {
		return err
	}
	p.Key = key.Public()
	if s.keyAlone() {
		p.Sign = func(ctx context.Context, manifest []byte) ([]byte, error) { return sign.ByKey(ctx, key, manifest) }
	}
	return nil
}
