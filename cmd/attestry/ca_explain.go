package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/stack"
)

const (
	explainTimeout = 30 * time.Second
	maxExplanation = 4 << 20
)

// issuerFlags say whom a CA trusts.
type issuerFlags struct{ file, dir string }

func (f *issuerFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "issuer-file", "", "issuer file of the CA: issuer-file of ca, --ca-config of up")
	cmd.Flags().StringVar(&f.dir, "dir", "", "directory of an instance of up, whose development issuer is trusted too")
}

// options reads the files. The configuration is never nil.
func (f *issuerFlags) options() (identity.Options, error) {
	o := identity.Options{Config: &identity.Config{}}
	var err error
	if f.file != "" {
		if o.Config, err = identity.Load(f.file); err != nil {
			return o, err
		}
	}
	if f.dir != "" {
		development, err := stack.DevelopmentIssuer(f.dir)
		if err != nil {
			return o, fmt.Errorf("--dir: %w", err)
		}
		o.Issuers = append(o.Issuers, development)
	}
	return o, nil
}

type explainFlags struct {
	issuers                    issuerFlags
	ops, token, claims, output string
	noSignature                bool
}

func newCAExplain() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Say what the CA makes of an identity token, and why",
		Long: `Say what the CA makes of an identity token, and why: the issuer that matched, each check, each rule, and what the
certificate would say.

It judges here, with the files that the CA has, and asks nobody but the token's issuer for its keys; --ops asks a running
CA instead. --claims judges claims as if an issuer had signed them, --no-signature a token without asking for keys.

The token is read from a file, or from standard input for "-". What is printed quotes its claims.

Exit status 0 when a certificate would be issued, 1 when not.`,
		Example: `  attestry ca explain --issuer-file issuers.yaml --token token.jwt
  attestry ca explain --ops http://127.0.0.1:2112 --token - < token.jwt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	f.issuers.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.ops, "ops", "", "URL of a running CA's second listener (ops-listen of ca, --metrics of up)")
	flags.StringVar(&f.token, "token", "", "file of the token, - for standard input")
	flags.StringVar(&f.claims, "claims", "", "file of claims as JSON, - for standard input, in place of a token")
	flags.BoolVar(&f.noSignature, "no-signature", false, "look at the token's claims alone")
	flags.StringVar(&f.output, "output", "text", "text or json")
	cmd.MarkFlagsOneRequired("issuer-file", "dir", "ops")
	cmd.MarkFlagsMutuallyExclusive("ops", "issuer-file")
	cmd.MarkFlagsMutuallyExclusive("ops", "dir")
	cmd.MarkFlagsMutuallyExclusive("ops", "no-signature")
	cmd.MarkFlagsOneRequired("token", "claims")
	cmd.MarkFlagsMutuallyExclusive("token", "claims")
	return cmd
}

func (f *explainFlags) run(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("--output %q is neither text nor json", f.output)
	}
	evidence, err := f.evidence(stdin)
	if err != nil {
		return err
	}
	x, err := f.explain(ctx, evidence)
	if err != nil {
		return err
	}
	if f.output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(x)
	} else {
		err = printExplanation(stdout, x)
	}
	if err != nil {
		return fmt.Errorf("writing the explanation: %w", err)
	}
	if !x.Issued {
		return fmt.Errorf("refused: %s: %s", x.Reason, x.Detail)
	}
	return nil
}

func (f *explainFlags) evidence(stdin io.Reader) (identity.Evidence, error) {
	path, name := f.token, "--token"
	if f.claims != "" {
		path, name = f.claims, "--claims"
	}
	var data []byte
	var err error
	if path == "-" {
		data, err = limit.ReadAll(stdin, ca.MaxBody)
	} else {
		data, err = limit.ReadFile(path, ca.MaxBody)
	}
	if err != nil {
		return identity.Evidence{}, fmt.Errorf("%s: %w", name, err)
	}
	data = bytes.TrimSpace(data)
	if f.claims != "" {
		return identity.Evidence{Claims: data}, nil
	}
	return identity.Evidence{Token: string(data), NoSignature: f.noSignature}, nil
}

func (f *explainFlags) explain(ctx context.Context, e identity.Evidence) (*identity.Explanation, error) {
	if f.ops != "" {
		return askCA(ctx, f.ops, e)
	}
	o, err := f.issuers.options()
	if err != nil {
		return nil, err
	}
	o.WithoutKeys = e.Claims != nil || e.NoSignature
	v, err := identity.New(o)
	if err != nil {
		return nil, err
	}
	return v.Explain(ctx, e), nil
}

// askCA asks the operator API of a running CA.
func askCA(ctx context.Context, base string, e identity.Evidence) (*identity.Explanation, error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("--ops %q is not a URL such as http://127.0.0.1:2112", base)
	}
	question := map[string]any{"token": e.Token}
	if e.Claims != nil {
		question = map[string]any{"claims": json.RawMessage(e.Claims)}
	}
	body, err := json.Marshal(question)
	if err != nil {
		return nil, fmt.Errorf("--claims: %w", err)
	}
	client := &http.Client{Timeout: explainTimeout, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the token is for the CA alone
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(base, "/")+ca.ExplainPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the CA: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxExplanation))
	if err != nil {
		return nil, fmt.Errorf("asking the CA: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("asking the CA: %s answered %s: %.300q", req.URL, resp.Status, answer)
	}
	x := new(identity.Explanation)
	if err := json.Unmarshal(answer, x); err != nil {
		return nil, fmt.Errorf("asking the CA: %s did not answer with an explanation: %w", req.URL, err)
	}
	return x, nil
}

// printExplanation writes what json output has, for people.
func printExplanation(w io.Writer, x *identity.Explanation) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if x.Issued {
		fmt.Fprintln(tw, "would be issued")
	} else {
		fmt.Fprintf(tw, "refused: %s: %s\n", x.Reason, plain(x.Detail))
	}
	if x.Unsigned {
		fmt.Fprintln(tw, "UNSIGNED: no signature was looked at, anybody can write such claims")
	}
	if i := x.Issuer; i != nil {
		kind := string(i.Type)
		if i.Provider != "" {
			kind += " " + i.Provider
		}
		fmt.Fprintf(tw, "issuer\t%s\n", plain(i.URL))
		if i.Pattern != "" {
			fmt.Fprintf(tw, "\tby the pattern %s\n", i.Pattern)
		}
		fmt.Fprintf(tw, "type\t%s\naudience\t%s\n", kind, plain(strings.Join(i.Audiences, ", ")))
	}
	fmt.Fprintln(tw, "checks")
	for _, c := range x.Checks {
		if c.OK {
			fmt.Fprintf(tw, "  ok\t%s\n", c.Name)
			continue
		}
		fmt.Fprintf(tw, "  FAILED\t%s\t%s: %s\n", c.Name, c.Reason, plain(c.Detail))
		if c.Cause != "" {
			fmt.Fprintf(tw, "\t\t%s\n", plain(c.Cause))
		}
	}
	if len(x.Rules) > 0 {
		fmt.Fprintln(tw, "rules")
	}
	for _, r := range x.Rules {
		printRule(tw, r)
	}
	if x.SAN != nil {
		fmt.Fprintf(tw, "subject\t%s\t%s\n", x.SAN.Name, plain(x.SAN.Value))
	}
	printValues(tw, "extensions", x.Extensions)
	printValues(tw, "proof of possession over", x.Challenges)
	return tw.Flush()
}

func printRule(w io.Writer, r identity.RuleOutcome) {
	outcome := strconv.FormatBool(r.Matched)
	if r.Failed != "" {
		outcome = "FAILED"
	}
	kind := "deny"
	if r.Allow {
		kind = "allow"
	}
	if r.Shared {
		kind += ", all issuers"
	}
	decided := ""
	if r.Decided {
		decided = "decided: "
	}
	fmt.Fprintf(w, "  %s\t%s\t%s%s: %s\n", outcome, r.Name, decided, kind, plain(strings.Join(strings.Fields(r.Expression), " ")))
	if r.Failed != "" {
		fmt.Fprintf(w, "\t\tit %s\n", r.Failed)
	}
}

func printValues(w io.Writer, title string, values []identity.NamedValue) {
	if len(values) > 0 {
		fmt.Fprintln(w, title)
	}
	for _, v := range values {
		if v.OID == "" {
			fmt.Fprintf(w, "  %s\t%s\n", v.Name, plain(v.Value))
			continue
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", v.OID, v.Name, plain(v.Value))
	}
}

// plain quotes text that could do something to a terminal: claims come from anywhere.
func plain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}
