//go:build pkcs11 && cgo

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
)

const softhsmModule = "/usr/lib/softhsm/libsofthsm2.so"

// TestARootInAToken makes a root of a key in SoftHSM, which never leaves it, and signs an issuing certificate with it.
func TestARootInAToken(t *testing.T) {
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("softhsm2-util is missing: apt-get install softhsm2")
		}
		t.Skip("skipped: softhsm2-util is missing; to run this test: apt-get install softhsm2")
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(path("tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"softhsm2.conf": "directories.tokendir = " + path("tokens") + "\n", "pin": "2468\n"} {
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOFTHSM2_CONF", path("softhsm2.conf"))
	if _, err := signer.Create(path("imported.key"), signer.P384); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--init-token", "--free", "--label", "root", "--so-pin", "1357", "--pin", "2468"},
		{"--import", path("imported.key"), "--token", "root", "--label", "root", "--id", "a1", "--pin", "2468"},
	} {
		if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
			t.Fatalf("softhsm2-util %s: %v\n%s", args[0], err, out)
		}
	}
	uri := "pkcs11:token=root;object=root?module-path=" + softhsmModule
	command := func(args ...string) {
		t.Helper()
		var out bytes.Buffer
		if err := run(t.Context(), append([]string{"ca"}, args...), &out, &out); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, &out)
		}
	}
	command("root", "--out", path("ceremony"), "--organization", "Example", "--key", uri, "--key-password-file", path("pin"))
	if _, err := os.Stat(path("ceremony/root.key")); !os.IsNotExist(err) {
		t.Errorf("a key was written: %v", err)
	}
	command("csr", "--key", "file:"+path("issuing.key"), "--organization", "Example", "--out", path("issuing.csr"))
	command("sign-csr", "--root", path("ceremony/root.pem"), "--key", uri, "--key-password-file", path("pin"), "--csr", path("issuing.csr"), "--out", path("chain.pem"))
	chain, err := readChainFile(path("chain.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := signer.Open("file:"+path("issuing.key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if warnings, err := ca.CheckNew(chain, key, nil, time.Now()); err != nil || len(warnings) != 0 {
		t.Errorf("%v, %q", err, warnings)
	}
}
