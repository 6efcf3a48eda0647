//go:build pkcs11 && cgo

package main

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

const softhsmModule = "/usr/lib/softhsm/libsofthsm2.so"

// TestPKCS11 runs scripts with three keys, p256, p384 and rsa, their chains NAME.pem and a SoftHSM configuration. The keys are
// in files for softhsm2-util to import.
func TestPKCS11(t *testing.T) {
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("softhsm2-util is missing: apt-get install softhsm2")
		}
		t.Skip("skipped: softhsm2-util is missing; to run this test: apt-get install softhsm2")
	}
	idp := identitytest.New(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/pkcs11",
		Setup: func(env *testscript.Env) error {
			if err := setup(t, env, idp); err != nil {
				return err
			}
			return setupToken(env)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await, "post": post, "until": until},
	})
}

func setupToken(env *testscript.Env) error {
	root, err := signer.New(signer.P384)
	if err != nil {
		return err
	}
	for name, make := range map[string]func() (crypto.Signer, error){
		"p256": func() (crypto.Signer, error) { return signer.New(signer.P256) },
		"p384": func() (crypto.Signer, error) { return signer.New(signer.P384) },
		"rsa":  func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) },
	} {
		key, err := make()
		if err != nil {
			return err
		}
		chain, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key, Organization: "Example"})
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		for file, data := range map[string][]byte{
			name + ".key":      pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
			name + ".pem":      append(encode(chain[0]), encode(chain[1])...),
			name + "-root.pem": encode(chain[1]),
		} {
			if err := os.WriteFile(filepath.Join(env.WorkDir, file), data, 0o600); err != nil {
				return err
			}
		}
	}
	tokens := filepath.Join(env.WorkDir, "tokens")
	conf := filepath.Join(env.WorkDir, "softhsm2.conf")
	env.Setenv("SOFTHSM2_CONF", conf)
	env.Setenv("MODULE", softhsmModule)
	return errors.Join(os.Mkdir(tokens, 0o700), os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nlog.level = ERROR\n", tokens), 0o600))
}

// until STATUS TEXT URL TOKENFILE IN posts until the answer has the status and holds the text.
func until(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		req, err := http.NewRequest(http.MethodPost, args[2], bytes.NewReader([]byte(ts.ReadFile(args[4]))))
		ts.Check(err)
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[3])))
		resp, err := http.DefaultClient.Do(req)
		ts.Check(err)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		ts.Check(err)
		if fmt.Sprint(resp.StatusCode) == args[0] && strings.Contains(string(body), args[1]) {
			if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
				ts.Fatalf("503 without Retry-After")
			}
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: %s: %s", args[2], resp.Status, body)
		}
		<-time.After(50 * time.Millisecond)
	}
}
