package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/freshness"
)

// trustFlags say what to trust and how old it may be.
type trustFlags struct {
	root, metadata  string
	maxAge, warnAge time.Duration
}

func (f *trustFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.root, "trusted-root", "", "trusted_root.json, or .jsonl with several (default $ATTESTRY_TRUSTED_ROOT)")
	flags.StringVar(&f.metadata, "trust-metadata", "", "directory with the TUF metadata that names the trusted root (default that of the trusted root, or tuf/ in it)")
	flags.DurationVar(&f.warnAge, "warn-trust-age", 0, "warn when the TUF metadata ended longer ago than this, or is not there")
	flags.DurationVar(&f.maxAge, "max-trust-age", 0, "refuse when the TUF metadata ended longer ago than this, or is not there")
}

// verifier reads the trusted root and judges its age.
func (f *trustFlags) verifier(stderr io.Writer) (*verify.Verifier, freshness.Age, error) {
	path := f.root
	if path == "" {
		path = os.Getenv("ATTESTRY_TRUSTED_ROOT")
	}
	trusted, err := readSetting(path, "trusted-root", "ATTESTRY_TRUSTED_ROOT")
	if err != nil {
		return nil, freshness.Age{}, err
	}
	age, err := f.age(stderr, path, trusted)
	if err != nil {
		return nil, age, err
	}
	verifier, err := verify.New(trusted)
	return verifier, age, err
}

// optional returns the trusted root, judged by its age; empty when none is given. A limit of its age needs one.
func (f *trustFlags) optional(stderr io.Writer) ([]byte, error) {
	path := f.root
	if path == "" {
		path = os.Getenv("ATTESTRY_TRUSTED_ROOT")
	}
	if path == "" && f.metadata == "" && f.warnAge == 0 && f.maxAge == 0 {
		return nil, nil
	}
	trusted, err := readSetting(path, "trusted-root", "ATTESTRY_TRUSTED_ROOT")
	if err != nil {
		return nil, err
	}
	_, err = f.age(stderr, path, trusted)
	return trusted, err
}

// age reads the TUF metadata when a flag asks for it. Metadata ends by itself, verification does not: only --max-trust-age refuses.
func (f *trustFlags) age(stderr io.Writer, path string, trusted []byte) (freshness.Age, error) {
	if f.warnAge < 0 || f.maxAge < 0 {
		return freshness.Age{}, errors.New("--warn-trust-age and --max-trust-age cannot be negative")
	}
	if f.metadata == "" && f.warnAge == 0 && f.maxAge == 0 {
		return freshness.Age{}, nil
	}
	dir := f.metadata
	if dir == "" {
		dir = filepath.Dir(path)
		if _, err := os.Stat(filepath.Join(dir, "tuf", "timestamp.json")); err == nil {
			dir = filepath.Join(dir, "tuf")
		}
	}
	age, readErr := freshness.Read(os.DirFS(dir), trusted)
	warning, err := freshness.Limits{Warn: f.warnAge, Max: f.maxAge}.Judge(age, readErr, time.Now())
	switch {
	case err != nil:
		return age, err
	case warning != "":
		fmt.Fprintln(stderr, "warning:", warning)
	case readErr != nil: // a directory was named and nothing else asked
		return age, readErr
	}
	return age, nil
}

// requirementFlags replace what follows from the trusted root, one number at a time.
type requirementFlags struct {
	cmd                                             *cobra.Command
	logEntries, scts, integrated, signed, observers int
}

func (f *requirementFlags) register(cmd *cobra.Command) {
	f.cmd = cmd
	flags := cmd.Flags()
	flags.IntVar(&f.logEntries, "log-entries", 0, "entries in distinct logs that must be proven, in place of what the trusted root calls for; 0 asks for none")
	flags.IntVar(&f.scts, "scts", 0, "SCTs of distinct CT logs that the certificate must carry, likewise")
	flags.IntVar(&f.integrated, "integrated-timestamps", 0, "distinct Rekor v1 logs that must promise a time, likewise")
	flags.IntVar(&f.signed, "signed-timestamps", 0, "distinct timestamp authorities that must have signed, likewise")
	flags.IntVar(&f.observers, "observer-timestamps", 0, "both kinds of times together, likewise")
}

func (f *requirementFlags) thresholds() (verify.Thresholds, error) {
	var t verify.Thresholds
	for _, n := range []struct {
		flag  string
		given *int
		into  **int
	}{
		{"log-entries", &f.logEntries, &t.LogEntries},
		{"scts", &f.scts, &t.SCTs},
		{"integrated-timestamps", &f.integrated, &t.IntegratedTimestamps},
		{"signed-timestamps", &f.signed, &t.SignedTimestamps},
		{"observer-timestamps", &f.observers, &t.ObserverTimestamps},
	} {
		if !f.cmd.Flags().Changed(n.flag) {
			continue
		}
		if *n.given < 0 || *n.given > verify.MaxThreshold {
			return t, fmt.Errorf("--%s %d is not between 0 and %d", n.flag, *n.given, verify.MaxThreshold)
		}
		*n.into = n.given
	}
	return t, nil
}
