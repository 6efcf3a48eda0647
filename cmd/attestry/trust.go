package main

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/trust"
)

const maxRootFile = 512 << 10 // bytes, go-tuf's limit

func newTrustCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "Make and change a TUF root whose holders sign on machines without a network",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newTrustInitCommand(), newTrustNextCommand(), newTrustSignCommand(), newTrustShowCommand())
	return cmd
}

// publicKeyFile reads a PEM file with one public key.
func publicKeyFile(path string) (crypto.PublicKey, error) {
	text, err := limit.ReadFile(path, maxPublicFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s is not a PEM file of type PUBLIC KEY", path)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func publicKeyFiles(paths []string) ([]crypto.PublicKey, error) {
	var all []crypto.PublicKey
	for _, path := range paths {
		key, err := publicKeyFile(path)
		if err != nil {
			return nil, err
		}
		all = append(all, key)
	}
	return all, nil
}

// readRootFile reads N.root.json; "" is none.
func readRootFile(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	return limit.ReadFile(path, maxRootFile)
}

// printRoot says how far a root's signing has come.
func printRoot(w io.Writer, path string, text, previous []byte) error {
	status, err := trust.InspectRoot(text, previous)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "root    %s, version %d, until %s\n", path, status.Version, status.Expires.UTC().Format(time.RFC3339))
	for _, h := range status.Holders {
		signed := "has not signed"
		if h.Signed {
			signed = "has signed"
		}
		if h.Note != "" {
			signed += ", " + h.Note
		}
		fmt.Fprintf(w, "holder  %s %s\n", h.KeyID, signed)
	}
	for _, missing := range status.Missing {
		fmt.Fprintf(w, "missing %s\n", missing)
	}
	if len(status.Missing) == 0 {
		fmt.Fprintln(w, "whole   give it to tuf-publisher: signed-roots")
	}
	return nil
}

// openOrCreateEncrypted opens the key at path, which a run before has made, or makes it.
func openOrCreateEncrypted(path string, password []byte) (crypto.Signer, error) {
	key, err := signer.CreateEncrypted(path, signer.P256, password)
	if errors.Is(err, fs.ErrExist) {
		return signer.Open("file:"+path, password)
	}
	return key, err
}

// writeRoot replaces the root at path as a whole.
func writeRoot(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(path, append(text, '\n'), 0o644)
}
