package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/attachment"
	"github.com/attestry/attestry/pkg/sign"
)

// maxPredicateBytes leaves room for the envelope under the verifier's limit on bundles.
const maxPredicateBytes = 6 << 20

func newAttestCommand() *cobra.Command {
	var f signFlags
	var image imageSignFlags
	var predicate, predicateType string
	cmd := &cobra.Command{
		Use:   "attest --predicate FILE --type TYPE [flags] FILE|IMAGE…",
		Short: "Sign a statement about a file or images",
		Long: `Sign an in-toto statement about a file or an image: its SHA-256 as the subject and a predicate, which is JSON.

--type is a URI or one of cosign's short names: slsaprovenance, slsaprovenance02, slsaprovenance1,
spdx, spdxjson, cyclonedx, link, vuln, openvex, custom. The predicate of spdx may be plain text.

The bundle of a FILE is written beside it, the attestation of an IMAGE is attached to it, as by attestry sign; its
legacy form is an .att tag.`,
		Example: `  attestry attest --predicate provenance.json --type slsaprovenance1 app.tar.gz
  attestry attest --predicate sbom.json --type cyclonedx registry.example/app@sha256:…`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if predicate == "" || predicateType == "" {
				return errors.New("--predicate and --type are required")
			}
			body, err := limit.ReadFile(predicate, maxPredicateBytes)
			if err != nil {
				return fmt.Errorf("--predicate: %w", err)
			}
			if predicateType == "spdx" && !json.Valid(body) { // tag-value, which cosign carries as a string
				if body, err = json.Marshal(string(body)); err != nil {
					return fmt.Errorf("--predicate: %w", err)
				}
			}
			statement := func(name string, digest []byte) ([]byte, error) {
				return sign.NewStatement(name, digest, sign.PredicateType(predicateType), body)
			}
			if image.wanted(args) {
				if f.bundle != "" {
					return errors.New("--bundle is for files: the attestation of an image is attached to it")
				}
				return image.run(cmd.Context(), cmd.ErrOrStderr(), &f, args, func(ctx context.Context, t *attachment.Target, o sign.Options, form attachment.Form) (*attachment.Attached, error) {
					raw, err := hex.DecodeString(strings.TrimPrefix(t.Image.Digest, "sha256:"))
					if err != nil {
						return nil, fmt.Errorf("digest %s: %w", t.Image.Digest, err)
					}
					statement, err := statement(t.Name, raw)
					if err != nil {
						return nil, err
					}
					return t.Attest(ctx, o, form, statement)
				})
			}
			file, err := oneFile(args)
			if err != nil {
				return err
			}
			out, err := f.output(file)
			if err != nil {
				return err
			}
			digest, err := digestOf(file)
			if err != nil {
				return err
			}
			data, err := statement(filepath.Base(file), digest)
			if err != nil {
				return err
			}
			options, err := f.options(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			signed, err := sign.Statement(cmd.Context(), options, data)
			if err != nil {
				return err
			}
			return deliver(cmd.ErrOrStderr(), signed, out)
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.bundle, "bundle", "", "where to write the bundle of a file (default FILE.sigstore.json)")
	cmd.Flags().StringVar(&predicate, "predicate", "", "file with the predicate (JSON)")
	cmd.Flags().StringVar(&predicateType, "type", "", "predicate type: a URI or a short name")
	image.register(cmd)
	return cmd
}

// digestOf returns the SHA-256 of a file of any size.
func digestOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return h.Sum(nil), nil
}
