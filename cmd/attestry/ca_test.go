package main

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/durable"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
)

// TestACertificateOfAPKIGoesIntoAConfiguration asks for a certificate, has it signed, and installs it in its two steps
// into the configuration of a ca that runs alone.
func TestACertificateOfAPKIGoesIntoAConfiguration(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(path(name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	command := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), args, &out, &out)
		return out.String(), err
	}
	key, err := signer.Create(path("old.key"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	root, err := signer.New(signer.P384)
	if err != nil {
		t.Fatal(err)
	}
	old, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key, Organization: "Old"})
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, path("old.pem"), old)
	config := "# ours\nlisten: 127.0.0.1:5555 # here\nkey: file:" + path("old.key") + " # the first\nchain-file: " + path("old.pem") + "\nissuer-file: issuers.yaml\n"
	if err := os.WriteFile(path("ca.yaml"), []byte(config), 0o640); err != nil {
		t.Fatal(err)
	}

	uri := "file:" + path("new.key")
	if out, err := command("ca", "csr", "--key", uri, "--algorithm", "ecdsa-p384", "--organization", "New", "--out", path("new.csr")); err != nil || !strings.Contains(out, "made the key") {
		t.Fatal(out, err)
	}
	made := read("new.key")
	if out, err := command("ca", "csr", "--key", uri); err != nil || !strings.Contains(out, "is there: the request is for it") || read("new.key") != made {
		t.Fatal(out, err)
	}
	block, _ := pem.Decode([]byte(read("new.csr")))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, path("new.pem"), []*x509.Certificate{signRequest(t, request, old[1], root), old[1]})

	install := []string{"ca", "install", "--config", path("ca.yaml"), "--chain", path("new.pem"), "--key"}
	if out, err := command(append(install, "file:"+path("old.key"), "--now")...); err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), "not this certificate's key") {
		t.Errorf("another key: %s, %v", out, err)
	}
	if read("ca.yaml") != config {
		t.Fatalf("a refused chain changed the configuration:\n%s", read("ca.yaml"))
	}

	out, err := command(append(install, uri)...)
	if err != nil || !strings.Contains(out, "roots-file") || !strings.Contains(out, "tuf-publisher") {
		t.Fatal(out, err)
	}
	stored, err := filepath.Glob(path("ca-chain-*.pem"))
	if err != nil || len(stored) != 1 || read(filepath.Base(stored[0])) != read("new.pem") {
		t.Fatal(stored, err)
	}
	want := config + "other-chain-files:\n  - " + stored[0] + "\n"
	if got := read("ca.yaml"); got != want {
		t.Errorf("published:\n%s\nwant\n%s", got, want)
	}
	if out, err := command(append(install, uri)...); err == nil || !strings.Contains(err.Error(), "is installed already") {
		t.Errorf("a second time: %s, %v", out, err)
	}

	if out, err := command(append(install, uri, "--now")...); err != nil {
		t.Fatal(out, err)
	}
	want = strings.NewReplacer(path("old.key"), path("new.key"), "chain-file: "+path("old.pem"), "chain-file: "+stored[0], "  - "+stored[0], "  - "+path("old.pem")).Replace(want)
	if got := read("ca.yaml"); got != want {
		t.Errorf("taken over:\n%s\nwant\n%s", got, want)
	}
	if info, err := os.Stat(path("ca.yaml")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// And that is a pair to issue with.
	if _, _, err := ca.OpenPair(uri, nil, stored[0]); err != nil {
		t.Error(err)
	}
}

// TestInstallsAtOnceLoseNothing runs several processes that each publish a chain of their own in one configuration.
func TestInstallsAtOnceLoseNothing(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	key, err := signer.Create(path("old.key"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	root, err := signer.New(signer.P384)
	if err != nil {
		t.Fatal(err)
	}
	old, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key, Organization: "Old"})
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, path("old.pem"), old)
	if err := os.WriteFile(path("ca.yaml"), []byte("key: file:"+path("old.key")+"\nchain-file: "+path("old.pem")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	install := func(name string) error {
		out, err := exec.CommandContext(t.Context(), "attestry", "ca", "install", "--config", path("ca.yaml"), "--key", "file:"+path(name+".key"), "--chain", path(name+".pem")).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, out)
		}
		return nil
	}
	names := []string{"a", "b", "c", "d", "e", "f"}
	for _, name := range names {
		key, err := signer.Create(path(name+".key"), signer.P256)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: key, Organization: name})
		if err != nil {
			t.Fatal(err)
		}
		writePEM(t, path(name+".pem"), chain)
	}

	release, err := durable.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := install("a"); err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), "another command is changing") {
		t.Errorf("beside another command: %v", err)
	}
	if left, err := filepath.Glob(path("ca-chain-*")); err != nil || len(left) != 0 {
		t.Errorf("a command that was refused left %v, %v", left, err)
	}
	release()

	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			for { // until it is its turn
				err := install(name)
				if err == nil {
					return
				}
				if !strings.Contains(err.Error(), "another command is changing") {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	doc, err := readCAConfig(path("ca.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, file := range doc.list("other-chain-files") {
		chain, err := readChainFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found[chain[0].Subject.Organization[0]] = true
	}
	if len(found) != len(names) || len(doc.list("other-chain-files")) != len(names) {
		t.Errorf("of %v the configuration has %v", names, found)
	}
}

func writePEM(t *testing.T, path string, chain []*x509.Certificate) {
	t.Helper()
	var text []byte
	for _, cert := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// signRequest signs what the request asks for.
func signRequest(t *testing.T, request *x509.CertificateRequest, parent *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	raw, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: request.Subject, ExtraExtensions: request.Extensions,
		NotBefore: parent.NotBefore, NotAfter: time.Now().AddDate(1, 0, 0), SubjectKeyId: []byte{7},
	}, parent, request.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
