package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log/witness"
)

const (
	maxLogsFile   = 512 << 10 // bytes
	maxPublicFile = 64 << 10  // bytes
)

type witnessFlags struct {
	dir, listen, name, key, logsFile, metrics string
	logs                                      []string
}

func newWitnessCommand() *cobra.Command {
	var f witnessFlags
	cmd := &cobra.Command{
		Use:   "witness",
		Short: "Run a witness: cosign the checkpoints of logs that only ever grow",
		Long: `Run a witness: cosign the checkpoints of logs that only ever grow (c2sp.org/tlog-witness).

Run it on another machine, under other hands, than the logs that it watches. The first run makes its key. What
it has cosigned lies under --dir. Never bring that directory back from a backup: start a new witness with a new
key instead, since an older state lets a log show it a fork.`,
		Example: `  attestry witness --name witness.example/w1 --log "$(cat log.vkey)"`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runWitness(cmd.Context(), f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "./attestry-witness", "directory of the key and of what was cosigned")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:8440", "address of the listener")
	flags.StringVar(&f.name, "name", "", "name of the witness, a URL without scheme such as witness.example/w1; for life")
	flags.StringVar(&f.key, "key", "", "Ed25519 private key, PEM, made when it is missing (default DIR/key.pem)")
	flags.StringArrayVar(&f.logs, "log", nil, "verifier key of a log that may be cosigned; may be repeated")
	flags.StringVar(&f.logsFile, "logs", "", `policy file (c2sp.org/tlog-policy) whose "log" lines add to --log`)
	flags.StringVar(&f.metrics, "metrics", "", "address of a second listener with /metrics, /healthz and /readyz")
	cmd.MarkFlagRequired("name")
	cmd.AddCommand(newWitnessVKeyCommand())
	return cmd
}

func newWitnessVKeyCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "vkey FILE",
		Short:   "Print the verifier key of a log whose public key is in a PEM file",
		Example: "  attestry witness vkey --name log.example rekor2.pub",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := limit.ReadFile(args[0], maxPublicFile)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			public, err := cryptoutils.UnmarshalPEMToPublicKey(data)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			key, err := witness.LogKey(name, public)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), key)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the log's origin, the first line of its checkpoints")
	cmd.MarkFlagRequired("name")
	return cmd
}

func runWitness(ctx context.Context, f witnessFlags, stdout, stderr io.Writer) (err error) {
	logs, err := f.watched()
	if err != nil {
		return err
	}
	logger := slog.New(server.LogHandler(slog.NewJSONHandler(stderr, nil)))
	// The ports first: a port in use must leave no half-made directory.
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("listening: %w; name another address with --listen", err)
	}
	defer ln.Close()
	reg := server.NewRegistry()
	var ops net.Listener
	if f.metrics != "" {
		if ops, err = net.Listen("tcp", f.metrics); err != nil {
			return fmt.Errorf("listening for metrics: %w", err)
		}
		defer ops.Close()
	}
	if f.key == "" {
		f.key = filepath.Join(f.dir, "key.pem")
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	key, err := signer.OpenOrCreate(f.key, signer.Ed25519)
	if err != nil {
		return err
	}
	w, err := witness.OpenServer(witness.ServerOptions{Name: f.name, Key: key, Dir: f.dir, Logs: logs, Logger: logger, Registerer: reg})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	printWitness(stdout, f, w, logs, ln.Addr())
	group, ctx := errgroup.WithContext(ctx)
	serve := func(ln net.Listener, h http.Handler) { // ends with ctx
		group.Go(func() error { return server.Run(ctx, ln, h, drainTime, logger) })
	}
	serve(ln, w.Routes())
	if ops != nil {
		serve(ops, server.Ops(reg, w.Ready))
	}
	return group.Wait()
}

// watched returns the logs of --log and --logs, each key once.
func (f witnessFlags) watched() ([]witness.Key, error) {
	var keys []witness.Key
	for _, text := range f.logs {
		key, err := witness.ParseKey(text)
		if err != nil {
			return nil, fmt.Errorf("--log: %w", err)
		}
		keys = append(keys, key)
	}
	if f.logsFile != "" {
		data, err := limit.ReadFile(f.logsFile, maxLogsFile)
		if err != nil {
			return nil, fmt.Errorf("--logs: %w", err)
		}
		policy, err := witness.ParsePolicy(string(data))
		if err != nil {
			return nil, fmt.Errorf("--logs: %s: %w", f.logsFile, err)
		}
		for _, l := range policy.Logs {
			keys = append(keys, l.Key)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no log to watch: name one with --log or --logs")
	}
	slices.SortStableFunc(keys, func(a, b witness.Key) int { return strings.Compare(a.String(), b.String()) })
	return slices.CompactFunc(keys, func(a, b witness.Key) bool { return a.String() == b.String() }), nil
}

func printWitness(w io.Writer, f witnessFlags, s *witness.Server, logs []witness.Key, addr net.Addr) {
	fmt.Fprintf(w, "witness %s is ready at http://%s\n  data  %s\n  key   %s\n", f.name, addr, f.dir, f.key)
	for _, key := range logs {
		fmt.Fprintf(w, "  log   %s\n", key)
	}
	fmt.Fprintf(w, "In the policy of the logs and of who checks them, with the URL that they reach it by:\n  witness w1 %s http://%s\n", s.Key(), addr)
}
