package e2e

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestACAWithItsKeyInAWSKMS lets a CA that is built with the tag sign through sigstore's provider and AWS's own client, at a service
// that speaks AWS KMS: local-kms, behind TLS, as the provider demands it.
func TestACAWithItsKeyInAWSKMS(t *testing.T) {
	if !long() {
		t.Skip("skipped: it builds cmd/ca with AWS's client; enable with ATTESTRY_LONG=1")
	}
	kms := client(t, "local-kms", "")
	h := newHierarchy(t)
	block, _ := pem.Decode([]byte(readFile(t, filepath.Join(h.dir, "ca.pem"))))
	if block == nil {
		t.Fatal("the CA's key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	dir := t.TempDir()
	const id = "800d5768-3fd7-4edd-a4b8-4c81c3e4c147"
	write(t, filepath.Join(dir, "seed.yaml"), "Keys:\n  Asymmetric:\n    Ecc:\n      - Metadata: {KeyId: "+id+", KeyUsage: SIGN_VERIFY}\n        PrivateKeyPem: |\n          "+
		strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n          ")+"\nAliases:\n  - {AliasName: alias/ca, TargetKeyId: "+id+"}\n")
	address := freeAddress(t)
	service := exec.Command(kms)
	service.Env = append(os.Environ(), "PORT="+address[strings.LastIndex(address, ":")+1:], "KMS_REGION=eu-west-1", "KMS_DATA_PATH="+filepath.Join(dir, "data"),
		"KMS_SEED_PATH="+filepath.Join(dir, "seed.yaml"))
	service.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { service.Process.Kill(); service.Wait() })
	eventually(t, "local-kms answers", func() bool {
		resp, err := http.Get("http://" + address)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})

	var down atomic.Bool
	var signatures atomic.Int64
	target, err := url.Parse("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".Sign") {
			signatures.Add(1)
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	bundle := filepath.Join(dir, "aws.pem")
	write(t, bundle, certificatePEM(front.Certificate().Raw))
	for name, value := range map[string]string{
		"AWS_CA_BUNDLE": bundle, "AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	exe := filepath.Join(dir, "ca")
	if out, err := exec.Command("go", "build", "-tags", "awskms", "-o", exe, "../../cmd/ca").CombinedOutput(); err != nil {
		t.Fatalf("building cmd/ca: %v\n%s", err, out)
	}

	log := newTlogs(t, justCT, h.root)
	r := startRole(t, exe, h.dir, "ca-kms", "key: awskms://"+strings.TrimPrefix(front.URL, "https://")+"/alias/ca\nchain-file: "+h.dir+"/chain.pem\nissuer-file: "+h.issuerFile+"\n"+logged(log))
	a := newAloneAudit(t, h, log) // verifies each certificate and its promise
	issue := func() error { return a.l.certificate(t.Context(), &stack{url: r.url}, h.token(t)) }
	for range 3 {
		before := signatures.Load()
		if err := issue(); err != nil {
			t.Fatal(err)
		}
		if n := signatures.Load() - before; n < 1 {
			t.Error("the key service was not asked to sign")
		}
	}
	down.Store(true)
	if err := issue(); err == nil {
		t.Error("a certificate was issued while the key service was away")
	}
	down.Store(false)
	if err := issue(); err != nil {
		t.Errorf("after the key service came back: %v", err)
	}
}
