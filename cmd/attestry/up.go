package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/log/entry"
	"github.com/attestry/attestry/pkg/log/witness"
	"github.com/attestry/attestry/pkg/stack"
)

// Values of --ct-mode, as in the configuration of ca.
const (
	ctRequired = "required"
	ctDetached = "detached"
)

// drainTime is what requests in flight get at the end; the logs then close within the rest of the ten seconds.
const drainTime = 8 * time.Second

// memoryLimit is where the garbage collector works harder; the process stays under 200 MiB.
const memoryLimit = 160 << 20

type upFlags struct {
	dir, listen, url, fence, caConfig, metrics, issuer, witnessPolicy, ctMode string
	kinds                                                                     []string
	oneTimeTokens, attestations, ephemeral, demo, untilEOF                    bool
	logLevel                                                                  slog.Level
}

func newUpCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a private Sigstore on one port",
		Long: `Start a private Sigstore on one port: certificate authority, Rekor v1 and v2, CT log,
timestamp authority, TUF repository and a development issuer.

The first run makes every key and the TUF repository under --dir, later runs go on with them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.ephemeral = f.ephemeral || f.demo && !cmd.Flags().Changed("dir")
			return up(cmd.Context(), f, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "./attestry-data", "directory of keys, logs and TUF repository")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:8420", "address of the one listener")
	flags.StringVar(&f.url, "url", "", "public URL that trust files carry (default http://localhost:<port>); its host is for life")
	flags.StringVar(&f.fence, "fence", "", "directory of the logs' fence (default DIR/fence); on another volume it also guards against a rollback of the whole --dir")
	flags.BoolVar(&f.ephemeral, "ephemeral", false, "work in a temporary directory and remove it at the end")
	flags.BoolVar(&f.untilEOF, "until-eof", false, "stop when standard input ends: for programs that start it and may be killed")
	flags.StringVar(&f.caConfig, "ca-config", "", "issuer file of the CA (Fulcio's config.yaml), beside the development issuer; read again when it changes and at SIGHUP")
	flags.BoolVar(&f.oneTimeTokens, "one-time-tokens", false, "give each identity token one certificate")
	flags.StringVar(&f.ctMode, "ct-mode", ctRequired, "required: SCTs in certificates; detached: beside them, which few clients take")
	flags.BoolVar(&f.demo, "demo", false, "start, sign and verify a file, say what happened, and stop; without --dir in a temporary directory")
	flags.StringSliceVar(&f.kinds, "kinds", nil, "entry kinds that the Rekor v1 log takes, as in hashedrekord,intoto:0.0.2 (default hashedrekord, dsse, intoto)")
	flags.BoolVar(&f.attestations, "attestations", false, "keep the payloads of intoto entries and the messages of cose ones, and return them with the entry")
	flags.StringVar(&f.witnessPolicy, "witness-policy", "", "file of witnesses and their quorum (c2sp.org/tlog-policy), who cosign the Rekor v2 log; without a quorum no checkpoint is shown")
	flags.StringVar(&f.metrics, "metrics", "", "address of a second listener, for operators only: /metrics, /healthz, /readyz, /ca/explain")
	flags.TextVar(&f.logLevel, "log-level", slog.LevelWarn, "debug (a line for each request), info, warn or error")
	flags.StringVar(&f.issuer, "issuer", "loopback", "development issuer: loopback (refuse a listener that others can reach), any (allow it: whoever reaches it signs as anyone), off")
	return cmd
}

func up(ctx context.Context, f upFlags, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	began := time.Now()
	// Request lines would drown the block that tells how to begin: by default up shows what needs a person.
	logger := slog.New(server.LogHandler(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: f.logLevel})))
	klog.SetSlogLogger(logger) // Tessera's own lines
	slog.SetDefault(logger)    // the OpenID library's
	// Little lives long here and much is made for each request: a collector that lets the heap grow
	// to five times what lives costs a tenth of the processor less, and the limit keeps it small.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(memoryLimit)
	if f.ephemeral {
		if f.dir, err = os.MkdirTemp("", "attestry-"); err != nil {
			return fmt.Errorf("making the temporary directory: %w", err)
		}
		defer func() { err = errors.Join(err, removeAll(f.dir)) }()
	}
	if f.ctMode != ctRequired && f.ctMode != ctDetached {
		return fmt.Errorf("--ct-mode %q is neither required nor detached: the CT log is part of the instance", f.ctMode)
	}
	if f.oneTimeTokens && f.ctMode == ctDetached {
		return errors.New("--one-time-tokens contradicts --ct-mode detached: a certificate that was logged and not answered could be had from the log")
	}
	kinds, err := entry.ParseKinds(f.kinds)
	if err != nil {
		return fmt.Errorf("--kinds: %w", err)
	}
	if f.dir, err = filepath.Abs(f.dir); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	// The port first: a port in use must leave no half-made directory.
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("listening: %w; name another address with --listen", err)
	}
	defer ln.Close()
	opts := stack.Options{
		Dir: f.dir, FenceDir: f.fence, URL: f.url, Listen: ln.Addr().String(), CAConfig: f.caConfig,
		Issuer: stack.IssuerMode(f.issuer), OneTimeTokens: f.oneTimeTokens, DetachedSCTs: f.ctMode == ctDetached, Kinds: kinds, Attestations: f.attestations, Logger: logger, Registerer: nil,
	}
	if f.witnessPolicy != "" {
		text, err := os.ReadFile(f.witnessPolicy)
		if err != nil {
			return fmt.Errorf("--witness-policy: %w", err)
		}
		if opts.Witnesses, err = witness.ParsePolicy(string(text)); err != nil {
			return fmt.Errorf("--witness-policy %s: %w", f.witnessPolicy, err)
		}
	}
	var ops net.Listener
	reg := server.NewRegistry()
	if f.metrics != "" {
		if ops, err = net.Listen("tcp", f.metrics); err != nil {
			return fmt.Errorf("listening for metrics: %w", err)
		}
		defer ops.Close()
		opts.Registerer = reg
	}
	if f.caConfig != "" { // without it, a terminal that is closed ends the process
		hangups := make(chan os.Signal, 1)
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
		opts.Hangups = hangups
	}
	s, err := stack.Open(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if f.untilEOF {
		go func() { // ends with its reader, the process at the latest
			io.Copy(io.Discard, stdin)
			cancel()
		}()
	}
	ended := make(chan error, 3)
	running := 2
	go func() { ended <- server.Run(ctx, ln, s.Handler(), drainTime, logger) }() // these end with ctx
	go func() { ended <- s.Run(ctx) }()
	if ops != nil {
		running++
		operators := server.Ops(reg, s.Ready)
		s.RegisterOps(operators)
		go func() { ended <- server.Run(ctx, ops, operators, time.Second, logger) }()
	}
	if f.demo {
		err = demo(ctx, s, stdout)
	} else {
		printBegin(stdout, f, s, time.Since(began))
		select {
		case <-ctx.Done():
		case err = <-ended: // a listener broke: stop the rest in order
			running--
		}
	}
	cancel()
	for range running {
		err = errors.Join(err, <-ended)
	}
	return err
}

// printBegin prints the one block of design.md section 5.
func printBegin(w io.Writer, f upFlags, s *stack.Stack, took time.Duration) {
	client := filepath.Join(f.dir, "client")
	kept := f.dir
	if f.ephemeral {
		kept += " (removed at the end)"
	}
	fmt.Fprintf(w, `attestry is ready at %[1]s after %[2]d ms
  data    %[3]s
  fence   %[4]s

In another terminal, once:
  . %[5]s/env
  cosign initialize --mirror "$TUF_MIRROR" --root "$TUF_ROOT_JSON"
then with cosign 3:
  cosign sign-blob --yes --identity-token "$(attestry token --dir %[6]s --email alice@example.com)" --bundle FILE.sigstore.json FILE
  cosign verify-blob --certificate-identity alice@example.com --certificate-oidc-issuer "$ATTESTRY_OIDC_ISSUER" --bundle FILE.sigstore.json FILE
or without cosign:
  attestry sign --identity-token "$(attestry token --dir %[6]s --email alice@example.com)" FILE
  attestry verify --certificate-identity alice@example.com --certificate-oidc-issuer "$ATTESTRY_OIDC_ISSUER" --bundle FILE.sigstore.json FILE
`, s.URL(), took.Milliseconds(), kept, s.FenceNote(), client, f.dir)
}

// removeAll removes the temporary directory; Tessera's publisher may still touch a lock file in it.
func removeAll(dir string) error {
	var err error
	for range 100 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
	}
	return fmt.Errorf("removing the temporary directory: %w", err)
}
