package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attestry/attestry/internal/signer"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"tuf-publisher": main}) }

// TestScript gives each script the public keys of two logs and two free addresses.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"rekor1", "rekor2", "ctlog"} {
				key, err := signer.Create(filepath.Join(env.WorkDir, name+"-key.pem"), signer.P256)
				if err != nil {
					return err
				}
				text, err := signer.PublicPEM(key.Public())
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(env.WorkDir, name+".pub"), text, 0o600); err != nil {
					return err
				}
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
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await},
	})
}

// await URL waits until URL answers 200; with ! it must answer 404 now.
func await(ts *testscript.TestScript, neg bool, args []string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Get(args[0])
		if err == nil {
			resp.Body.Close()
			if neg && resp.StatusCode == http.StatusNotFound || !neg && resp.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("status %s", resp.Status)
		}
		if neg || time.Now().After(deadline) {
			ts.Fatalf("waiting for %s: %v", args[0], err)
		}
		<-time.After(10 * time.Millisecond)
	}
}
