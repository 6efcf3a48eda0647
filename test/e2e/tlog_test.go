package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/services"
	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/log/trillian"
)

// backend is where tlog keeps its logs.
type backend struct {
	name string
	// yaml adds the backend to a configuration and says which logs it takes.
	yaml func(t *testing.T, dir string) string
	// logs are which of rekor1, rekor2 and ctLog it takes, in this order.
	logs []string
	// replicas may serve the same logs at once.
	replicas int
}

var (
	posix = backend{"posix", func(_ *testing.T, dir string) string {
		return fmt.Sprintf("fence: %s/fence\nrekor1: {key: file:%[1]s/rekor1.pem}\nrekor2: {key: file:%[1]s/rekor2.pem}\n", dir)
	}, []string{rekor1, rekor2}, 1}
	onS3 = backend{"s3", func(t *testing.T, dir string) string {
		gateway := services.VersityGW(t)
		return s3Logs(t, dir, inPostgres(t), gateway, gateway.Endpoint, services.MariaDB)
	}, []string{rekor1, rekor2, ctLog}, 2}
	trillianServers = backend{"trillian", func(t *testing.T, dir string) string {
		return trillianLogs(t, dir, inPostgres(t), services.Trillian(t, services.Postgres(t)))
	}, []string{rekor1}, 2}
	trillianEmbedded = backend{"trillian-embedded", func(t *testing.T, dir string) string {
		return fmt.Sprintf("%srekor1: {key: file:%s/rekor1.pem, tree: {store: trillian-embedded, postgres-uri: %q}}\n", inPostgres(t), dir, services.Postgres(t))
	}, []string{rekor1}, 2}

	backends = []backend{posix, onS3, trillianServers, trillianEmbedded}
)

// s3Logs are all three logs in the gateway's bucket, which is reached at endpoint, each with a new database.
func s3Logs(t *testing.T, dir, head string, gateway *services.VersityGWServer, endpoint string, database func(testing.TB) string) string {
	write(t, dir+"/access", gateway.AccessKey)
	write(t, dir+"/secret", gateway.SecretKey)
	tree := func() string {
		return fmt.Sprintf("{store: s3, endpoint: %q, bucket: %s, path-style: true, access-key-file: %s/access, secret-key-file: %[3]s/secret, mysql-dsn: %[4]q}",
			endpoint, gateway.Bucket, dir, database(t))
	}
	return fmt.Sprintf("%srekor1: {key: file:%s/rekor1.pem, tree: %s}\nrekor2: {key: file:%[2]s/rekor2.pem, tree: %[4]s}\nct: {key: file:%[2]s/ct.pem, roots-file: %[2]s/roots.pem, tree: %[5]s}\n",
		head, dir, tree(), tree(), tree())
}

// trillianLogs is a log in a new tree of engine; database has the lines of the rows.
func trillianLogs(t *testing.T, dir, database string, engine *services.TrillianServer) string {
	t.Helper()
	id, err := trillian.CreateTree(t.Context(), trillian.Options{Address: engine.Address}, "rekor1")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%srekor1: {key: file:%s/rekor1.pem, tree: {store: trillian, address: %q, tree-id: %d}}\n", database, dir, engine.Address, id)
}

// inPostgres puts rows and fence into a database.
func inPostgres(t *testing.T) string {
	uri := services.Postgres(t)
	return fmt.Sprintf("database: %q\nfence: %q\n", uri, uri)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tlogs are the tlog servers of one site.
type tlogs struct {
	t       *testing.T
	dir     string   // with the logs' keys, NAME.pem and NAME.pub
	kinds   []string // which of rekor1, rekor2 and ctLog, in this order
	yaml    string
	servers []*role
}

// newTlogs starts the backend's number of servers. A CT log takes certificates below the roots, PEM.
func newTlogs(t *testing.T, b backend, roots string) *tlogs {
	t.Helper()
	s := &tlogs{t: t, dir: t.TempDir(), kinds: b.logs}
	for _, name := range []string{"rekor1", "rekor2", "ct"} {
		key, err := signer.OpenOrCreate(filepath.Join(s.dir, name+".pem"), signer.P256)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(s.dir, name+".pub"), publicPEM(t, key))
	}
	write(t, filepath.Join(s.dir, "roots.pem"), roots)
	s.yaml = b.yaml(t, s.dir)
	for range b.replicas {
		s.add()
	}
	return s
}

// rootsOf is a certificate, PEM, for a CT log that nothing is submitted to.
func rootsOf(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// add starts another server of the site.
func (s *tlogs) add() {
	s.t.Helper()
	n := len(s.servers)
	s.servers = append(s.servers, startRole(s.t, tlog, s.dir, fmt.Sprintf("tlog-%d", n), fmt.Sprintf("url: http://localhost\ndir: %s/data-%d\n%s", s.dir, n, s.yaml)))
}

// addresses are host:port of each server.
func (s *tlogs) addresses() []string {
	var all []string
	for _, v := range s.servers {
		all = append(all, v.listen)
	}
	return all
}

// role is one of the programs that run for long: with a YAML file, or `attestry witness`.
type role struct {
	t                *testing.T
	listen, url, ops string
	exe              string
	args             []string
	config, logs     string
	cmd              *exec.Cmd
	exited           chan error
}

// startRole writes the configuration, to which it adds addresses, and starts the program; it ends with t.
func startRole(t *testing.T, exe, dir, name, yaml string) *role {
	t.Helper()
	v := newRole(t, exe, dir, name)
	v.config = filepath.Join(dir, name+".yaml")
	v.args = []string{"-config", v.config}
	write(t, v.config, fmt.Sprintf("listen: %s\nops-listen: %s\n%s", v.listen, v.ops, yaml))
	v.start()
	return v
}

// newRole chooses addresses. What is started ends with t.
func newRole(t *testing.T, exe, dir, name string) *role {
	t.Helper()
	v := &role{t: t, exe: exe, listen: freeAddress(t), ops: freeAddress(t), logs: filepath.Join(dir, name+".log")}
	v.url = "http://" + strings.Replace(v.listen, "127.0.0.1", "localhost", 1)
	t.Cleanup(func() {
		v.kill()
		if t.Failed() {
			t.Logf("the last lines of %s:\n%s", name, tail(v.logs, 10))
		}
	})
	return v
}

func (v *role) start() {
	v.t.Helper()
	out, err := os.OpenFile(v.logs, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		v.t.Fatal(err)
	}
	defer out.Close() // the child has its own
	v.cmd = exec.Command(v.exe, v.args...)
	v.cmd.Stdout, v.cmd.Stderr = out, out
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	v.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(v.cmd, v.exited) // ends with the process
	eventually(v.t, "it is ready: "+v.logs, func() bool {
		select {
		case err := <-v.exited:
			v.cmd = nil
			v.t.Fatalf("%s ended: %v", filepath.Base(v.exe), err)
		default:
		}
		resp, err := http.Get("http://" + v.ops + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// fsck has a second tlog check the logs of this one, which may run.
func (v *role) fsck() {
	v.t.Helper()
	if out, err := exec.Command(v.exe, "-config", v.config, "-fsck").CombinedOutput(); err != nil {
		v.t.Errorf("tlog -fsck: %v\n%s", err, out)
	}
}

// wontStart wants that the program ends by itself, for a reason.
func (v *role) wontStart(reason string) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, v.exe, "-config", v.config).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), reason) {
		v.t.Errorf("%s ended with %v, want because of %q:\n%s", filepath.Base(v.exe), err, reason, out)
	}
}

// kill ends the server as a crash does.
func (v *role) kill() {
	if v.cmd == nil {
		return
	}
	_ = v.cmd.Process.Kill()
	<-v.exited
	v.cmd = nil
}

// TestLoadOnTrillianBesideUpstream sends the same load to upstream's Rekor server, to tlog over the same Trillian servers, and
// to tlog with Trillian embedded, all on one PostgreSQL server.
func TestLoadOnTrillianBesideUpstream(t *testing.T) {
	if !long() {
		t.Skip("skipped: takes minutes; enable with: scripts/test --long")
	}
	bench := func(name, url string) {
		out := runAttestry(t, "bench", "--target", "rekor1", "--url", url, "--n", "2000", "--c", "32")
		measured(t, "%s: %s", name, strings.TrimSpace(out))
	}
	for round := range 2 {
		bench(fmt.Sprintf("round %d, upstream rekor-server 1.5.4 on Trillian and PostgreSQL", round), rekorServer(t, "--sequencer_interval=100ms"))
		for _, b := range []backend{trillianServers, trillianEmbedded} {
			b.replicas = 1
			s := newTlogs(t, b, "")
			bench(fmt.Sprintf("round %d, tlog on %s and PostgreSQL", round, b.name), s.servers[0].url)
			s.servers[0].kill()
		}
	}
}

func runAttestry(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), attestry, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("attestry %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
