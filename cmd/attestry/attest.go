package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/sign"
)

// maxPredicateBytes leaves room for the envelope under the verifier's limit on bundles.
const maxPredicateBytes = 6 << 20

func newAttestCommand() *cobra.Command {
	var f signFlags
	var predicate, predicateType string
	cmd := &cobra.Command{
		Use:   "attest --predicate FILE --type TYPE [flags] FILE",
		Short: "Sign a statement about a file",
		Long: `Sign an in-toto statement about a file: its SHA-256 as the subject and a predicate, which is JSON.

--type is a URI or one of cosign's short names: slsaprovenance, slsaprovenance02, slsaprovenance1,
spdx, spdxjson, cyclonedx, link, vuln, openvex, custom.`,
		Example: `  attestry attest --predicate provenance.json --type slsaprovenance1 app.tar.gz`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if predicate == "" || predicateType == "" {
				return errors.New("--predicate and --type are required")
			}
			out, err := f.output(args[0])
			if err != nil {
				return err
			}
			body, err := limit.ReadFile(predicate, maxPredicateBytes)
			if err != nil {
				return fmt.Errorf("--predicate: %w", err)
			}
			digest, err := digestOf(args[0])
			if err != nil {
				return err
			}
			statement, err := sign.NewStatement(filepath.Base(args[0]), digest, sign.PredicateType(predicateType), body)
			if err != nil {
				return err
			}
			options, err := f.options(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			signed, err := sign.Statement(cmd.Context(), options, statement)
			if err != nil {
				return err
			}
			return deliver(cmd.ErrOrStderr(), signed, out)
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&predicate, "predicate", "", "file with the predicate (JSON)")
	cmd.Flags().StringVar(&predicateType, "type", "", "predicate type: a URI or a short name")
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
