package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"ca": main}) }

// TestScript gives each script a key, its chain, a key and a chain that could follow it, a CT log's public key, an
// issuer file, a request, a token and two free addresses. $FIRST and $NEXT are lines of the two chains alone.
func TestScript(t *testing.T) {
	idp := identitytest.New(t)
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: func(env *testscript.Env) error { return setup(t, env, idp) },
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"await": await, "contains": contains, "get": get, "hangup": hangup, "post": post},
	})
}

func setup(t *testing.T, env *testscript.Env, idp *identitytest.Provider) error {
	path := func(name string) string { return env.WorkDir + string(filepath.Separator) + name }
	chain, err := hierarchy(path(""))
	if err != nil {
		return err
	}
	next, err := hierarchy(path("next-"))
	if err != nil {
		return err
	}
	log, err := signer.Create(path("log-key.pem"), signer.P256)
	if err != nil {
		return err
	}
	logPublic, err := signer.PublicPEM(log.Public())
	if err != nil {
		return err
	}
	request, err := signingRequest()
	if err != nil {
		return err
	}
	question, err := json.Marshal(map[string]any{"claims": idp.Claims(time.Now(), nil)})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"chain.pem":        append(encode(chain[0]), encode(chain[1])...),
		"first-chain.pem":  append(encode(chain[0]), encode(chain[1])...),
		"next-chain.pem":   append(encode(next[0]), encode(next[1])...),
		"next-root.pem":    encode(next[1]),
		"root.pem":         encode(chain[1]),
		"intermediate.pem": encode(chain[0]),
		"ct.pem":           logPublic,
		"issuers.yaml":     fmt.Appendf(nil, "oidc-issuers:\n  %s: {client-id: sigstore, type: email, allow-http: true}\n", idp.URL),
		"token":            []byte(idp.Token(time.Now(), nil)),
		"request.json":     request,
		"question.json":    question,
	} {
		if err := os.WriteFile(path(name), data, 0o600); err != nil {
			return err
		}
	}
	for name, cert := range map[string]*x509.Certificate{"FIRST": chain[0], "NEXT": next[0]} {
		env.Setenv(name, strings.Split(string(encode(cert)), "\n")[8]) // of the signature
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
}

// hierarchy makes a chain, whose keys are in files that begin with prefix.
func hierarchy(prefix string) ([]*x509.Certificate, error) {
	key, err := signer.Create(prefix+"key.pem", signer.P256)
	if err != nil {
		return nil, err
	}
	root, err := signer.Create(prefix+"root-key.pem", signer.P384)
	if err != nil {
		return nil, err
	}
	return ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key, Organization: "Example"})
}

func encode(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// signingRequest is the v2 request of a new key.
func signingRequest() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := signer.PublicPEM(key.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte("alice@example.com"))
	proof, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"publicKeyRequest": map[string]any{
		"publicKey": map[string]any{"algorithm": "ECDSA", "content": string(public)}, "proofOfPossession": proof,
	}})
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

// contains URL TEXT waits until what URL answers has TEXT in it.
func contains(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := http.Get(args[0])
		ts.Check(err)
		body, err := io.ReadAll(resp.Body)
		ts.Check(err)
		resp.Body.Close()
		if strings.Contains(string(body), args[1]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s has no %q: %s", args[0], args[1], body)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// get URL OUT stores what URL answers in OUT.
func get(ts *testscript.TestScript, _ bool, args []string) {
	resp, err := http.Get(args[0])
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), body, 0o600))
}

// hangup sends SIGHUP to the programs in the background.
func hangup(ts *testscript.TestScript, _ bool, _ []string) {
	for _, cmd := range ts.BackgroundCmds() {
		ts.Check(cmd.Process.Signal(syscall.SIGHUP))
	}
}

// post URL TOKENFILE IN OUT sends a request with a bearer token and stores the answer: in OUT,
// and when it holds a certificate chain, the leaf in OUT.leaf. With ! the status must not be 200.
func post(ts *testscript.TestScript, neg bool, args []string) {
	req, err := http.NewRequest(http.MethodPost, args[0], bytes.NewReader([]byte(ts.ReadFile(args[2]))))
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[1])))
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	if neg == (resp.StatusCode == http.StatusOK) {
		ts.Fatalf("%s: %s: %s", args[0], resp.Status, body)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[3]), body, 0o600))
	var answer map[string]struct {
		Chain struct{ Certificates []string }
	}
	if json.Unmarshal(body, &answer) == nil {
		for _, found := range answer {
			ts.Check(os.WriteFile(ts.MkAbs(args[3]+".leaf"), []byte(found.Chain.Certificates[0]+"\n"), 0o600))
		}
	}
}
