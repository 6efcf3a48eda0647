package e2e

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/bench"
	"github.com/attestry/attestry/pkg/log/trillian"
)

// upstreamServer starts a program of upstream's and waits until path answers 200 at address; it ends with t.
func upstreamServer(t *testing.T, exe, address, path string, args ...string) {
	t.Helper()
	b := newSandbox(t)
	logFile := b.path(filepath.Base(exe) + ".log")
	out, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close() // the child has its own
	cmd := exec.Command(exe, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = b.env, b.home, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // ends with the process
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("the last lines of %s:\n%s", filepath.Base(exe), tail(logFile, 20))
		}
	})
	eventually(t, exe+" answers", func() bool {
		status, _, err := call(t.Context(), http.MethodGet, "http://"+address+path, "", "")
		return err == nil && status == http.StatusOK
	})
}

func portOf(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// fulcioBeside starts upstream's CA with the same key, chain and issuers, and returns its URL. ctURL is "" for none.
func fulcioBeside(t *testing.T, h *hierarchy, ctURL, ctKey string) string {
	t.Helper()
	issuers := filepath.Join(t.TempDir(), "fulcio.yaml")
	write(t, issuers, fmt.Sprintf("oidc-issuers:\n  %s: {issuer-url: %[1]q, client-id: sigstore, type: email}\n", h.idp.URL))
	address, grpcAddress, metrics := freeAddress(t), freeAddress(t), freeAddress(t)
	args := []string{"serve", "--ca=fileca", "--fileca-cert=" + h.dir + "/chain.pem", "--fileca-key=" + h.dir + "/ca.pem", "--fileca-key-passwd=none", "--fileca-watch=false",
		"--config-path=" + issuers, "--ct-log-url=" + ctURL, "--host=127.0.0.1", "--port=" + portOf(t, address), "--grpc-host=127.0.0.1", "--grpc-port=" + portOf(t, grpcAddress),
		"--metrics-port=" + portOf(t, metrics), "--legacy-unix-domain-socket=" + filepath.Join(t.TempDir(), "s"), "--log_type=prod"}
	if ctURL != "" {
		args = append(args, "--ct-log-public-key-path="+ctKey)
	}
	upstreamServer(t, client(t, "fulcio", ""), address, "/healthz", args...)
	return "http://" + address
}

// ctServer starts upstream's CT log for certificates below h's root, over Trillian and PostgreSQL of its own, and returns its
// base URL and the path of its key.
func ctServer(t *testing.T, h *hierarchy) (url, key string) {
	t.Helper()
	engine := services.Trillian(t, services.Postgres(t), "--sequencer_interval=100ms")
	tree, err := trillian.CreateTree(t.Context(), trillian.Options{Address: engine.Address}, "ct")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	private := newECKeyFile(t, filepath.Join(dir, "ct.pem"), filepath.Join(dir, "ct.pub"))
	write(t, filepath.Join(dir, "roots.pem"), h.root)
	var escaped strings.Builder
	for _, c := range private {
		fmt.Fprintf(&escaped, `\x%02x`, c)
	}
	config := filepath.Join(dir, "ct.cfg")
	write(t, config, fmt.Sprintf(`config {
  log_id: %d
  prefix: "ct"
  roots_pem_file: %q
  private_key: { [type.googleapis.com/keyspb.PrivateKey] { der: "%s" } }
  ext_key_usages: "CodeSigning"
  max_merge_delay_sec: 86400
  expected_merge_delay_sec: 120
}
`, tree, filepath.Join(dir, "roots.pem"), &escaped))
	address := freeAddress(t)
	upstreamServer(t, client(t, "ct_server", ""), address, "/ct/ct/v1/get-sth", "--log_config="+config, "--log_rpc_server="+engine.Address, "--http_endpoint="+address, "--logtostderr")
	return "http://" + address + "/ct", filepath.Join(dir, "ct.pub")
}

// newECKeyFile writes a new P-256 key and its public key as PEM and returns the private one, PKCS #8 DER.
func newECKeyFile(t *testing.T, path, public string) []byte {
	t.Helper()
	key, err := signer.Create(path, signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	write(t, public, publicPEM(t, key))
	block, _ := pem.Decode([]byte(readFile(t, path)))
	if block == nil {
		t.Fatalf("%s is not PEM", path)
	}
	return block.Bytes
}

// TestCertificatesBesideUpstream sends the same load to Fulcio 1.8.8 and to ca, with the same file key (P-256 below P-384), token
// issuer and clients, each with a CT log of its own kind and without one. Ours has to be faster.
func TestCertificatesBesideUpstream(t *testing.T) {
	if !long() {
		t.Skip("skipped: takes minutes; enable with: scripts/test --long")
	}
	h := newHierarchy(t)
	tokenFile := filepath.Join(t.TempDir(), "token")
	write(t, tokenFile, h.token(t))
	load := func(url string, n int) bench.Report {
		t.Helper()
		var report bench.Report
		out := runAttestry(t, "bench", "--json", "--target", "ca", "--url", url, "--token-file", tokenFile, "--n", fmt.Sprint(n), "--c", "32")
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatal(err)
		}
		if report.Failed() != 0 {
			t.Fatalf("%d of %d requests failed: %s", report.Failed(), report.N, report.FirstError)
		}
		return report
	}
	beside := func(t *testing.T, what, theirs, ours string) {
		load(theirs, 200) // connections, keys of the issuer
		load(ours, 200)
		for round := range 3 {
			their, our := load(theirs, 2000), load(ours, 2000)
			for name, r := range map[string]bench.Report{"fulcio 1.8.8": their, "ca": our} {
				measured(t, "%s, round %d, %s: %.0f certificates/s, p50 %.1f ms, p99 %.1f ms", what, round, name, r.Rate, r.P50Millis, r.P99Millis)
			}
			if our.Rate <= their.Rate {
				t.Errorf("%s, round %d: %.0f certificates/s, upstream makes %.0f", what, round, our.Rate, their.Rate)
			}
		}
	}
	t.Run("without CT", func(t *testing.T) {
		beside(t, "without CT", fulcioBeside(t, h, "", ""), h.start(t, "ca-without", "ct-mode: disabled\n").url)
	})
	t.Run("with CT", func(t *testing.T) {
		ctURL, ctKey := ctServer(t, h)
		log := newTlogs(t, justCT, h.root)
		beside(t, "with CT", fulcioBeside(t, h, ctURL, ctKey), h.start(t, "ca-with", logged(log)).url)
	})
}
