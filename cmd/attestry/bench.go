package main

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/issuer"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/bench"
	"github.com/attestry/attestry/pkg/verify"
)

const maxBenchFile = 64 << 20 // bytes of a bundle, trusted root, artifact or token file

type benchFlags struct {
	target, url                   string
	size                          bench.Size
	timeout                       time.Duration
	allowRemote, json             bool
	tokenFiles                    []string
	dir, email                    string
	bundle, trustedRoot, artifact string
	issuer, identity, key         string
}

// newBenchCommand is `attestry bench`.
func newBenchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench --target ca|rekor1|rekor2|proofs|tsa|verify",
		Short: "Measure a server that speaks Sigstore's APIs, or the verifier",
		Long: `Measure a server that speaks Sigstore's APIs, ours or another, or the verifier in this process.

Requests are built before the clock starts. The result is one line: rate, percentiles of the
latency in ms, errors by status. The exit status is 1 when no request succeeded.

  ca      POST /api/v2/signingCert, each with a new P-256 key; needs a token: --token-file or --dir
  rekor1  POST /api/v1/log/entries, hashedrekord 0.0.1 with distinct digests, one P-256 key
  rekor2  POST /api/v2/log/entries, the same as hashedRekordRequestV002
  proofs  GET /api/v1/log/entries?logIndex=N of random entries: each with inclusion proof, SET and checkpoint
  tsa     POST /api/v1/timestamp, DER queries
  verify  verifies one bundle again and again, and prints beside it the floor, the time of its
          signatures alone, and sigstore-go's time for the same`,
		Example: `  attestry bench --target rekor2 --url http://localhost:8420 --n 20000 --c 2000
  attestry bench --target ca --url http://localhost:8420 --dir ./attestry-data --n 10000 --c 32
  attestry bench --target verify --bundle b.json --trusted-root trusted_root.json --artifact file --n 5000 --c 2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := f.run(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return f.print(cmd.OutOrStdout(), report)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.target, "target", "", "ca, rekor1, rekor2, proofs, tsa or verify")
	flags.StringVar(&f.url, "url", os.Getenv("ATTESTRY_URL"), "base URL of the server (default $ATTESTRY_URL)")
	flags.IntVarP(&f.size.Requests, "n", "n", 10_000, "requests")
	flags.IntVarP(&f.size.Clients, "c", "c", 32, "clients: requests under way at a time")
	flags.DurationVar(&f.timeout, "timeout", time.Minute, "for one request")
	flags.BoolVar(&f.allowRemote, "allow-remote", false, "allow a server on another machine; load only what is yours")
	flags.BoolVar(&f.json, "json", false, "print the result as JSON")
	flags.StringArrayVar(&f.tokenFiles, "token-file", nil, "ca: file with identity tokens, one on each line; may be repeated")
	flags.StringVar(&f.dir, "dir", "", "ca: directory of an instance whose development issuer makes the token")
	flags.StringVar(&f.email, "email", "bench@example.com", "ca: who the token of --dir is for")
	flags.StringVar(&f.bundle, "bundle", "", "verify: the bundle")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "verify: the trusted root")
	flags.StringVar(&f.artifact, "artifact", "", "verify: the file that was signed; without it an attestation's subject is not compared")
	flags.StringVar(&f.issuer, "certificate-oidc-issuer", "", "verify: issuer to demand (default any)")
	flags.StringVar(&f.identity, "certificate-identity", "", "verify: identity to demand (default any)")
	flags.StringVar(&f.key, "key", "", "verify: PEM public key, for a bundle without a certificate")
	return cmd
}

func (f *benchFlags) run(ctx context.Context, stderr io.Writer) (*bench.Report, error) {
	switch f.target {
	case "":
		return nil, errors.New("--target is required: ca, rekor1, rekor2, proofs, tsa or verify")
	case bench.TargetVerify:
		return f.verify(ctx)
	}
	if f.url == "" {
		return nil, errors.New("--url is required: the server to measure")
	}
	server, err := bench.ParseServer(f.url, f.allowRemote)
	if err != nil {
		if !f.allowRemote {
			err = fmt.Errorf("%w (--allow-remote)", err)
		}
		return nil, err
	}
	o := bench.HTTPOptions{Target: f.target, Server: server, Size: f.size, Timeout: f.timeout}
	if f.target == bench.TargetCA {
		if o.Tokens, err = f.tokens(); err != nil {
			return nil, err
		}
	}
	o.Prepared = func(took time.Duration) {
		fmt.Fprintf(stderr, "built %d requests in %v\n", f.size.Requests, took.Round(time.Millisecond))
	}
	return bench.Load(ctx, o)
}

// tokens reads --token-file, or makes a token with the key of --dir.
func (f *benchFlags) tokens() ([]string, error) {
	var tokens []string
	for _, path := range f.tokenFiles {
		text, err := limit.ReadFile(path, maxBenchFile)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, strings.Fields(string(text))...)
	}
	if len(tokens) > 0 {
		return tokens, nil
	}
	if f.dir == "" {
		return nil, errors.New("target ca needs an identity token: --token-file FILE, or --dir DIR of an instance")
	}
	// A million requests take longer than the ten minutes that a token has otherwise.
	end := time.Now().Add(24 * time.Hour).Unix()
	token, err := mintToken(f.dir, issuer.TokenRequest{Email: f.email, Claims: map[string]any{"exp": end}})
	if err != nil {
		return nil, err
	}
	return []string{token}, nil
}

func (f *benchFlags) verify(ctx context.Context) (*bench.Report, error) {
	o := bench.VerifyOptions{Size: f.size}
	for _, file := range []struct {
		flag, path string
		optional   bool
		into       *[]byte
	}{
		{"bundle", f.bundle, false, &o.Bundle},
		{"trusted-root", f.trustedRoot, false, &o.TrustedRoot},
		{"artifact", f.artifact, true, &o.Artifact},
	} {
		if file.path == "" {
			if file.optional {
				continue
			}
			return nil, fmt.Errorf("--%s is required for target verify", file.flag)
		}
		data, err := limit.ReadFile(file.path, maxBenchFile)
		if err != nil {
			return nil, err
		}
		*file.into = data
	}
	var err error
	if o.Policy, err = f.policy(); err != nil {
		return nil, err
	}
	return bench.Verify(ctx, o)
}

// policy accepts anyone unless told otherwise: what is measured does not depend on who signed.
func (f *benchFlags) policy() (*verify.Policy, error) {
	if f.key != "" {
		text, err := limit.ReadFile(f.key, maxBenchFile)
		if err != nil {
			return nil, err
		}
		var key crypto.PublicKey
		if key, err = verify.ParseKey(text); err != nil {
			return nil, fmt.Errorf("--key: %w", err)
		}
		return &verify.Policy{Key: key}, nil
	}
	anyone := func(value string) string {
		if value == "" {
			return ".*"
		}
		return ""
	}
	id, err := verify.NewIdentity(f.issuer, anyone(f.issuer), f.identity, anyone(f.identity))
	if err != nil {
		return nil, err
	}
	return &verify.Policy{Identities: []verify.Identity{id}}, nil
}

func (f *benchFlags) print(stdout io.Writer, report *bench.Report) error {
	if f.json {
		encoder := json.NewEncoder(stdout)
		if err := encoder.Encode(report); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(stdout, report)
	}
	if failed := report.Failed(); failed > 0 && failed == report.N {
		return fmt.Errorf("no request succeeded: %s", report.FirstError)
	}
	return nil
}
