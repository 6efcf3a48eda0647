package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/issuer"
)

// newTokenCommand is `attestry token`: it signs with the key of the development issuer under
// --dir, so it works whether or not `attestry up` is running.
func newTokenCommand() *cobra.Command {
	var (
		dir     string
		request issuer.TokenRequest
		claims  []string
	)
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print an identity token of the development issuer",
		Long: `Print an identity token of the development issuer of an instance that "attestry up" made.
It is good for ten minutes.

--claim adds or replaces a claim. A value that is JSON is taken as such (a number, true, null,
"quoted text", a list, an object); anything else is text. null removes the claim.`,
		Example: `  cosign sign-blob --identity-token "$(attestry token --email alice@example.com)" …
  attestry token --claim sub=system:ci --claim exp=1700000000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if request.Claims, err = parseClaims(claims); err != nil {
				return err
			}
			token, err := mintToken(dir, request)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "./attestry-data", "directory of the instance")
	f.StringVar(&request.Email, "email", "", "who the token is for")
	f.StringVar(&request.Audience, "aud", issuer.ClientID, "audience")
	f.StringArrayVar(&claims, "claim", nil, "add or replace a claim, as name=value; may be repeated")
	return cmd
}

// mintToken reads what `up` leaves in dir: its public URL in dir/url, the key in dir/keys/oidc.pem.
func mintToken(dir string, request issuer.TokenRequest) (string, error) {
	url, err := os.ReadFile(filepath.Join(dir, "url"))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s is not the directory of an instance: run `attestry up --dir %s` first, or name another --dir", dir, dir)
	}
	if err != nil {
		return "", fmt.Errorf("reading the instance's URL: %w", err)
	}
	issuerURL := strings.TrimSuffix(strings.TrimSpace(string(url)), "/") + "/oidc"
	return issuer.Mint(filepath.Join(dir, "keys", "oidc.pem"), issuerURL, request)
}

// parseClaims reads name=value pairs; see the command's help for the values.
func parseClaims(pairs []string) (map[string]any, error) {
	claims := make(map[string]any, len(pairs))
	for _, pair := range pairs {
		name, text, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--claim %q is not name=value", pair)
		}
		if !json.Valid([]byte(text)) {
			claims[name] = text
			continue
		}
		claims[name] = json.RawMessage(text)
		if strings.TrimSpace(text) == "null" {
			claims[name] = nil
		}
	}
	return claims, nil
}
