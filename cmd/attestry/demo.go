package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/stack"
	"github.com/attestry/attestry/pkg/verify"
)

const demoPerson = "alice@example.com"

// demo signs a file through the public endpoints, verifies it with the files that clients get, and makes
// sure that a changed file is refused.
func demo(ctx context.Context, s *stack.Stack, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if s.IssuerURL() == "" {
		return errors.New("--demo signs as one of the development issuer's people: it needs that issuer")
	}
	if err := waitReady(ctx, s.URL()+"/readyz"); err != nil {
		return err
	}
	fmt.Fprintf(w, "attestry is ready at %s\n", s.URL())
	trusted, err := os.ReadFile(filepath.Join(s.Dir(), "client", "trusted_root.json"))
	if err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(s.Dir(), "client", "signing_config.v0.2.json"))
	if err != nil {
		return err
	}
	token, err := s.Token(demoPerson)
	if err != nil {
		return err
	}
	file := []byte("a file of the demo\n")
	begun := time.Now()
	signed, err := sign.Blob(ctx, sign.Options{SigningConfig: config, TrustedRoot: trusted, IdentityToken: token}, file)
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	fmt.Fprintf(w, "signed a file as %s in %d ms: a certificate with an SCT, an entry in the Rekor v2 log, a timestamp; the bundle has %d bytes\n",
		demoPerson, time.Since(begun).Milliseconds(), len(signed.Bundle))

	verifier, err := verify.New(trusted)
	if err != nil {
		return err
	}
	alice, err := verify.NewIdentity(s.IssuerURL(), "", demoPerson, "")
	if err != nil {
		return err
	}
	policy := &verify.Policy{Identities: []verify.Identity{alice}}
	result, err := verifier.Verify(signed.Bundle, verify.FromBytes(file), policy)
	if err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	fmt.Fprintln(w, summary(result))
	if _, err := verifier.Verify(signed.Bundle, verify.FromBytes(append(file, '!')), policy); err == nil {
		return errors.New("a changed file verified")
	} else {
		fmt.Fprintf(w, "a changed file is refused: %s\n", verify.ReasonOf(err))
	}
	fmt.Fprintln(w, "everything is in order")
	return nil
}

// waitReady asks until the server answers 200; the listener is open already, so only roles can be missing.
func waitReady(ctx context.Context, url string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := get(ctx, url)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", url, err)
		case <-tick.C:
		}
	}
}

// get returns nil for a 200.
func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
