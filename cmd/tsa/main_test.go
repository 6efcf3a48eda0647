package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/tsa"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"tsa": main}) }

// TestScript gives each script a key, its chain, and two free addresses.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			dir := env.WorkDir
			key, err := signer.Create(filepath.Join(dir, "key.pem"), signer.P256)
			if err != nil {
				return err
			}
			root, err := signer.Create(filepath.Join(dir, "root-key.pem"), signer.P384)
			if err != nil {
				return err
			}
			chain, err := tsa.CreateChain(key.Public(), root, tsa.ChainOptions{Organization: "Example", NotBefore: time.Now()})
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "chain.pem"), tsa.EncodeChain(chain), 0o600); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "root.pem"), tsa.EncodeChain(chain[1:]), 0o600); err != nil {
				return err
			}
			for _, name := range []string{"LISTEN", "OPS"} {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				env.Setenv(name, ln.Addr().String())
				defer ln.Close()
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": await,
			"post":  post,
		},
	})
}

// await URL waits until URL answers 200.
func await(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Get(args[0])
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("status %s", resp.Status)
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waiting for %s: %v", args[0], err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// post URL TYPE IN OUT sends a file and stores the answer's body; with ! the status must not be 200.
func post(ts *testscript.TestScript, neg bool, args []string) {
	resp, err := http.Post(args[0], args[1], bytes.NewReader([]byte(ts.ReadFile(args[2]))))
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	if neg == (resp.StatusCode == http.StatusOK) {
		ts.Fatalf("%s: %s: %s", args[0], resp.Status, body)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[3]), body, 0o600))
}
