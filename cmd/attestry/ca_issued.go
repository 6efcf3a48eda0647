package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/pkg/ca/records"
	"github.com/attestry/attestry/pkg/stack"
)

type issuedFlags struct {
	dir, config, database, passwordFile string
	query                               records.Query
	since, until                        string
	refused, verify                     bool
	heads                               []string
	output                              string
}

// newCAIssued is `attestry ca issued`.
func newCAIssued() *cobra.Command {
	var f issuedFlags
	cmd := &cobra.Command{
		Use:   "issued",
		Short: "Show what a certificate authority issued or refused, from its records",
		Long: `Show what a certificate authority issued or refused, from its records.

The records are those of the instance in --dir, of the ca whose configuration file --config names, or in a database. They are only read;
the CA may run. Newest come first. When there are more than --limit, the last line on standard error says how to go on.

--since and --until take a time (2026-05-01T12:00:00Z), a day (2026-05-01, UTC) or how long ago (36h).

--refused shows the requests that got no certificate. What they name of a token is not verified.

With SQLite the newest certificates have no number for a moment: they are in the journal beside the database, on their way.

--verify reads all rows and checks that each is chained to the one before it, then prints the heads of both tables. Keep them apart from the
database, and give them back with --head: only then do changes show that somebody made who can write to the database.`,
		Example: `  attestry ca issued --dir site/data --identity alice@example.com --since 24h
  attestry ca issued --config /etc/attestry/ca.yaml --identity-prefix https://github.com/octo/ --output json
  attestry ca issued --dir site/data --refused --reason aud_mismatch
  attestry ca issued --dir site/data --verify --head issued:1200:8f3c…`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "./attestry-data", "directory of the instance")
	flags.StringVar(&f.config, "config", "", "configuration file of a ca that runs alone, in place of --dir")
	flags.StringVar(&f.database, "database", "", "sqlite:PATH or postgres://user@host/database, in place of --dir")
	flags.StringVar(&f.passwordFile, "database-password-file", "", "with --database: file with its password")
	flags.StringVar(&f.query.Identity, "identity", "", "subject alternative name, exactly")
	flags.StringVar(&f.query.IdentityPrefix, "identity-prefix", "", "beginning of the subject alternative name")
	flags.StringVar(&f.query.Issuer, "issuer", "", "OIDC issuer, exactly")
	flags.StringVar(&f.query.Serial, "serial", "", "serial number in hex, colons allowed")
	flags.StringVar(&f.since, "since", "", "not before this time")
	flags.StringVar(&f.until, "until", "", "before this time")
	flags.BoolVar(&f.refused, "refused", false, "show refusals")
	flags.StringVar(&f.query.Reason, "reason", "", "with --refused: reason code, as in answers and log lines")
	flags.IntVar(&f.query.Limit, "limit", 100, fmt.Sprintf("at most so many, up to %d", records.MaxRows))
	flags.Int64Var(&f.query.Before, "before", 0, "go on before this row number")
	flags.StringVar(&f.output, "output", "text", "text, or json: one object a line, as it is hashed")
	flags.BoolVar(&f.verify, "verify", false, "check the chains of hashes of all rows")
	flags.StringArrayVar(&f.heads, "head", nil, "with --verify: head that was printed earlier, TABLE:ROW:HASH; may be repeated")
	cmd.MarkFlagsMutuallyExclusive("dir", "config", "database")
	cmd.MarkFlagsMutuallyExclusive("identity", "identity-prefix")
	for _, name := range []string{"identity", "identity-prefix", "serial", "verify"} {
		cmd.MarkFlagsMutuallyExclusive("refused", name)
	}
	return cmd
}

func (f *issuedFlags) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("--output %q is neither text nor json", f.output)
	}
	if f.query.Reason != "" && !f.refused {
		return errors.New("--reason is of refusals: add --refused")
	}
	if len(f.heads) > 0 && !f.verify {
		return errors.New("--head goes with --verify")
	}
	kept, err := parseHeads(f.heads)
	if err != nil {
		return err
	}
	f.query.Serial = strings.TrimLeft(strings.ToLower(strings.ReplaceAll(f.query.Serial, ":", "")), "0")
	if len(f.query.Serial)%2 == 1 {
		f.query.Serial = "0" + f.query.Serial
	}
	now := time.Now()
	if f.query.Since, err = parseWhen(f.since, now); err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	if f.query.Until, err = parseWhen(f.until, now); err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	uri, passwordFile, err := f.records()
	if err != nil {
		return err
	}
	reader, err := records.OpenReader(ctx, uri, passwordFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.Close()) }()
	switch {
	case f.verify:
		heads, err := reader.Verify(ctx, kept)
		if err != nil {
			return err
		}
		for _, table := range []string{"issued", "refused"} {
			fmt.Fprintf(stdout, "%s:%d:%s\n", table, heads[table].Seq, heads[table].Hash)
		}
		n, err := reader.Pending(ctx)
		if n > 0 {
			fmt.Fprintf(stderr, "%d certificates more are in the journal, on their way to the database, and not in a chain yet\n", n)
		}
		return err
	case f.refused:
		rows, err := reader.Refused(ctx, f.query)
		if err != nil {
			return err
		}
		return show(f, rows, printRefused, func(r *records.Refused) int64 { return r.Seq }, stdout, stderr)
	default:
		rows, err := reader.Issued(ctx, f.query)
		if err != nil {
			return err
		}
		return show(f, rows, printIssued, func(r *records.Issued) int64 { return r.Seq }, stdout, stderr)
	}
}

// records names the database.
func (f *issuedFlags) records() (uri, passwordFile string, err error) {
	switch {
	case f.database != "":
		return f.database, f.passwordFile, nil
	case f.passwordFile != "":
		return "", "", errors.New("--database-password-file goes with --database")
	case f.config == "":
		return stack.RecordsURI(f.dir), "", nil
	}
	var part struct {
		Database             string `mapstructure:"database"`
		DatabasePasswordFile string `mapstructure:"database-password-file"`
	}
	if err := config.LoadPart(&part, f.config, "CA"); err != nil {
		return "", "", fmt.Errorf("--config: %w", err)
	}
	if part.Database == "" {
		return "", "", fmt.Errorf("--config %s names no database: this CA keeps no records", f.config)
	}
	return part.Database, part.DatabasePasswordFile, nil
}

// parseWhen reads a time, a day or an age; "" is the zero time.
func parseWhen(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, text); err == nil {
			return t, nil
		}
	}
	if age, err := time.ParseDuration(text); err == nil && age > 0 {
		return now.Add(-age), nil
	}
	return time.Time{}, fmt.Errorf("%q is not a time (2026-05-01T12:00:00Z), a day (2026-05-01) or an age (36h)", text)
}

func parseHeads(texts []string) (map[string][]records.Head, error) {
	kept := map[string][]records.Head{}
	for _, text := range texts {
		parts := strings.Split(text, ":")
		if len(parts) == 3 && (parts[0] == "issued" || parts[0] == "refused") && len(parts[2]) == 64 {
			if seq, err := strconv.ParseInt(parts[1], 10, 64); err == nil && seq >= 0 {
				kept[parts[0]] = append(kept[parts[0]], records.Head{Seq: seq, Hash: parts[2]})
				continue
			}
		}
		return nil, fmt.Errorf("--head %q is not issued:ROW:HASH or refused:ROW:HASH, as --verify prints it", text)
	}
	return kept, nil
}

// show prints rows, and how to go on when there may be more.
func show[R any](f *issuedFlags, rows []R, text func(io.Writer, []R), seq func(R) int64, stdout, stderr io.Writer) error {
	if f.output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetEscapeHTML(false)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
	} else {
		w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
		text(w, rows)
		if err := w.Flush(); err != nil {
			return err
		}
	}
	switch n := len(rows); {
	case n < f.query.Limit:
	case seq(rows[n-1]) == 0:
		fmt.Fprintln(stderr, "there may be more: these have no numbers yet, ask again in a moment or raise --limit")
	default:
		fmt.Fprintf(stderr, "there may be more: --before %d\n", seq(rows[n-1]))
	}
	return nil
}

func printIssued(w io.Writer, rows []*records.Issued) {
	fmt.Fprintln(w, "ROW\tTIME\tSERIAL\tIDENTITY\tISSUER\tCT INDEX")
	for _, r := range rows {
		number, index := "pending", "-"
		if r.Seq > 0 {
			number = strconv.FormatInt(r.Seq, 10)
		}
		if r.CTIndex >= 0 {
			index = strconv.FormatInt(r.CTIndex, 10)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", number, r.Time, r.Serial, oneLine(r.Identity), oneLine(r.Issuer), index)
	}
}

func printRefused(w io.Writer, rows []*records.Refused) {
	fmt.Fprintln(w, "ROW\tTIME\tREASON\tSTATUS\tISSUER\tREQUEST\tDETAIL")
	for _, r := range rows {
		fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t%s\n", r.Seq, r.Time, r.Reason, r.Status, oneLine(r.Issuer), oneLine(r.RequestID), oneLine(r.Detail))
	}
}

// oneLine keeps what clients sent from moving the terminal's cursor.
func oneLine(s string) string {
	if s == "" {
		return "-"
	}
	quoted := strconv.Quote(s)
	if quoted[1:len(quoted)-1] == s {
		return s
	}
	return quoted
}
