package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/stack"
)

// Beginnings and ends that suit clients with cached trust material: sigstore-go asks for it once a day.
const (
	defaultLead  = 25 * time.Hour
	defaultDrain = time.Hour
)

// served is the logs of a server, and where it answers.
type served struct {
	stack.LogsOptions
	public  *url.URL // in trust material
	reach   *url.URL // the listener
	keysDir string
	alone   bool // a tlog: its keys are published by tuf-publisher
}

// servedFlags say which server's logs a command is about.
type servedFlags struct{ dir, config string }

func (f *servedFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "dir", "./attestry-data", "directory of the instance")
	cmd.Flags().StringVar(&f.config, "config", "", "configuration file of a tlog that runs alone, in place of --dir")
}

func (f *servedFlags) open() (served, error) {
	if f.config != "" {
		return openTlog(f.config)
	}
	opts, public, keysDir, err := stack.InstanceLogs(f.dir)
	return served{LogsOptions: opts, public: public, reach: public, keysDir: keysDir}, err
}

func openTlog(path string) (served, error) {
	cfg, opts, err := tlogLogs(path)
	if err != nil {
		return served{}, err
	}
	public, err := url.Parse(cfg.URL)
	if err != nil {
		return served{}, fmt.Errorf("--config %s: url: %w", path, err)
	}
	return served{LogsOptions: opts, public: public, reach: reachable(cfg.Listen), keysDir: filepath.Join(cfg.Dir, "keys"), alone: true}, nil
}

// reachable is the URL of a listener, on loopback when it takes every address.
func reachable(listen string) *url.URL {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return &url.URL{Scheme: "http", Host: listen}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
}

func newLogShardCommand() *cobra.Command {
	var from servedFlags
	var name, host, shard, key, at, notAfterStart, notAfterLimit string
	var lead, drain time.Duration
	var now, wait bool
	cmd := &cobra.Command{
		Use:   "shard",
		Short: "Begin the next log of a kind, and end the one before it",
		Long: `Begin the next log of a kind, and end the one before it.

The order is stored in log/shards.json beside the logs; the running server carries it out, or the next
start does. First the new key is published with the time of its beginning. At that time new entries
go to the new log and no write fails. The old log finishes what is in flight, is frozen with a final
checkpoint, ends in trust material, and is read for ever. A crash anywhere in between is continued.

Rekor v1 keeps its address and its indexes count on. A Rekor v2 log needs a host name that no log has
(--host), a CT log a name in its path (--shard): there the old log goes on at its own address for --drain,
until every client has read of the new one.

The new log begins 25 hours after the order, since clients read trust material once a day; --at names
another time, --now the moment after publication, for sites whose clients read it anew for each signature.

With --config the logs are those of a tlog that runs alone. Its keys are published by tuf-publisher: the
record to add there is printed, and must be published before the new log begins.`,
		Example: "  attestry log shard --log rekor1 --now --wait\n  attestry log shard --log rekor2 --host log2.example.com --at 2027-01-01T00:00:00Z\n  attestry log shard --log ct --shard 2027h1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := stack.Order{Host: host, Shard: shard, Key: key, Begin: time.Now().Add(lead), Drain: drain}
			switch name {
			case "rekor1":
				if o.Kind = log.Rekor1; !cmd.Flags().Changed("drain") {
					o.Drain = 0
				}
			case "rekor2":
				o.Kind = log.Rekor2
			case "ct":
				o.Kind = log.CT
			default:
				return fmt.Errorf("--log %q is not one of rekor1, rekor2, ct", name)
			}
			if (host != "") != (name == "rekor2") {
				return errors.New("--host names a rekor2 log, and every rekor2 log needs one")
			}
			if (shard != "") != (name == "ct") {
				return errors.New("--shard names a ct log, and every ct log needs one")
			}
			switch {
			case now:
				o.Begin = time.Now()
			case at != "":
				begin, err := time.Parse(time.RFC3339, at)
				if err != nil {
					return fmt.Errorf("--at: %w", err)
				}
				o.Begin = begin
			}
			for _, w := range []struct {
				flag, text string
				to         *time.Time
			}{{"--not-after-start", notAfterStart, &o.NotAfterStart}, {"--not-after-limit", notAfterLimit, &o.NotAfterLimit}} {
				var err error
				if w.text == "" {
					continue
				}
				if name != "ct" {
					return fmt.Errorf("%s is of a ct log", w.flag)
				}
				if *w.to, err = time.Parse(time.RFC3339, w.text); err != nil {
					return fmt.Errorf("%s: %w", w.flag, err)
				}
			}
			s, err := from.open()
			if err != nil {
				return err
			}
			o.KeysDir = s.keysDir
			record, err := stack.OrderShard(s.LogsOptions, o)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%s is %s and begins at %s\n", record.Label, record.State, record.Begin.Format(time.RFC3339))
			if s.alone {
				if err := printRecord(out, s, record); err != nil {
					return err
				}
			}
			if !wait {
				return nil
			}
			return waitForShard(cmd.Context(), out, s.Dir, record.Label)
		},
	}
	from.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&name, "log", "", "kind of log: rekor1, rekor2, ct")
	flags.StringVar(&host, "host", "", "rekor2: host name of the new log, the origin of its checkpoints for life")
	flags.StringVar(&shard, "shard", "", "ct: name of the new log in its path, /ct/NAME")
	flags.StringVar(&notAfterStart, "not-after-start", "", "ct: the log takes certificates that expire at this time (RFC 3339) or later; the CA's next ones must be among them")
	flags.StringVar(&notAfterLimit, "not-after-limit", "", "ct: and before this one")
	flags.StringVar(&key, "key", "", "key of the new log, file:PATH (default: a new one, ECDSA P-256, in the keys directory)")
	flags.StringVar(&at, "at", "", "when it begins (RFC 3339)")
	flags.DurationVar(&lead, "lead", defaultLead, "how long after the order it begins, without --at")
	flags.BoolVar(&now, "now", false, "begin as soon as the key is published")
	flags.DurationVar(&drain, "drain", defaultDrain, "rekor2, ct: how long the log before it goes on at its own address")
	flags.BoolVar(&wait, "wait", false, "return once the new log takes entries")
	cmd.MarkFlagRequired("log")
	cmd.MarkFlagsMutuallyExclusive("at", "lead", "now")
	cmd.MarkFlagsMutuallyExclusive("dir", "config")
	return cmd
}

// waitForShard returns once the log takes entries.
func waitForShard(ctx context.Context, out io.Writer, dir, label string) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		file, err := stack.ReadShards(dir)
		if err != nil {
			return err
		}
		for _, r := range file.Shards {
			if r.Label == label && r.State != stack.Planned && r.State != stack.Published {
				fmt.Fprintf(out, "%s is %s\n", label, r.State)
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s to begin: %w", label, ctx.Err())
		}
	}
}

// printRecord writes the new log's public key beside its private one, and prints what tuf-publisher's
// configuration needs.
func printRecord(out io.Writer, s served, record stack.ShardRecord) error {
	infos, err := stack.ListLogs(s.LogsOptions)
	if err != nil {
		return err
	}
	for _, l := range infos {
		if l.Label != record.Label {
			continue
		}
		text, err := signer.PublicPEM(l.Key)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(s.keysDir, 0o700); err != nil {
			return fmt.Errorf("writing the public key: %w", err)
		}
		path, err := filepath.Abs(filepath.Join(s.keysDir, l.Label+".pub"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return fmt.Errorf("writing the public key: %w", err)
		}
		kind, place := l.Place(s.public)
		fmt.Fprintf(out, "add to the records of tuf-publisher:\n- kind: %s\n  url: %s\n  origin: %q\n  public-key-file: %s\n  start: %s\n",
			kind, place, l.Origin, path, l.Begin.Format(time.RFC3339))
		return nil
	}
	return fmt.Errorf("log %s is not in shards.json", record.Label)
}

func newLogListCommand() *cobra.Command {
	var from servedFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the logs and where each stands in its life",
		Long: `List the logs and where each stands in its life.

The size is that of the newest checkpoint that the server answers with, of a frozen log its final one; a dash
stands for a server that does not answer. The key ID is the SHA-256 of the public key, which names the log's fence.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := from.open()
			if err != nil {
				return err
			}
			infos, err := stack.ListLogs(s.LogsOptions)
			if err != nil {
				return err
			}
			sizes := sizesOf(cmd.Context(), s, infos)
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "LOG\tSTATE\tSIZE\tBEGIN\tEND\tORIGIN\tKEY ID")
			for _, l := range infos {
				spki, err := x509.MarshalPKIXPublicKey(l.Key)
				if err != nil {
					return err
				}
				begin, end := "-", "-"
				if !l.Begin.IsZero() {
					begin = l.Begin.Format(time.RFC3339)
				}
				if l.Final != nil {
					end = l.Final.Time.Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%x\n", l.Label, l.State, sizes[l.Label], begin, end, l.Origin, sha256.Sum256(spki))
			}
			return w.Flush()
		},
	}
	from.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("dir", "config")
	return cmd
}

// sizesOf asks the server for the logs' checkpoints.
func sizesOf(ctx context.Context, s served, logs []stack.LogInfo) map[string]string {
	client := &http.Client{Timeout: 3 * time.Second}
	get := func(path, host string) []byte {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.reach.JoinPath(path).String(), nil)
		if err != nil {
			return nil
		}
		if host != "" {
			req.Host = host
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil || resp.StatusCode != http.StatusOK {
			return nil
		}
		return body
	}
	var info struct {
		SignedTreeHead string
		InactiveShards []struct{ SignedTreeHead string }
	}
	var notes []string
	if json.Unmarshal(get("/api/v1/log", ""), &info) == nil {
		notes = append(notes, info.SignedTreeHead)
		for _, shard := range info.InactiveShards {
			notes = append(notes, shard.SignedTreeHead)
		}
	}
	sizes := map[string]string{}
	for _, l := range logs {
		sizes[l.Label] = "-"
		switch {
		case l.Final != nil:
			sizes[l.Label] = strconv.FormatUint(l.Final.Size, 10)
			continue
		case l.State == stack.Planned || l.State == stack.Published:
			continue
		case l.Kind == log.Rekor2:
			notes = append(notes, string(get("/api/v2/checkpoint", l.Host)))
		case l.Kind == log.CT:
			notes = append(notes, string(get("/ct/"+l.Shard+"/checkpoint", "")))
		}
		for _, note := range notes {
			if origin, rest, ok := strings.Cut(note, "\n"); ok && origin == l.Origin {
				sizes[l.Label], _, _ = strings.Cut(rest, "\n")
			}
		}
	}
	return sizes
}
