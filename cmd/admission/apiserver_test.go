package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/admission/cluster"
)

// apiServer is a kube-apiserver on etcd without nodes: what admission asks of a cluster, it asks of this.
type apiServer struct {
	t          *testing.T
	bin        string
	kubeconfig string // of an administrator
	url        string
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	if os.Getenv("ATTESTRY_LONG") == "" {
		t.Skip("skipped: takes minutes; enable with: scripts/test --long")
	}
	cache := os.Getenv("CLUSTER_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(home, ".cache", "one-node-cluster")
	}
	a := &apiServer{t: t, bin: filepath.Join(cache, "bin")}
	for _, program := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := os.Stat(filepath.Join(a.bin, program)); err != nil {
			t.Skip("skipped: Kubernetes is not built; enable with: ../shared/cluster/build.sh (16 minutes)")
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	accounts := a.write(dir, "accounts.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	token := rand.Text()
	etcd, peer, port := "http://"+a.free(), "http://"+a.free(), a.free()
	a.start(dir, "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	_, number, err := net.SplitHostPort(port)
	if err != nil {
		t.Fatal(err)
	}
	a.start(dir, "kube-apiserver", "--etcd-servers", etcd, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", number,
		"--endpoint-reconciler-type", "none", "--cert-dir", filepath.Join(dir, "pki"), "--service-cluster-ip-range", "10.250.0.0/24",
		"--service-account-issuer", "https://kubernetes.invalid", "--service-account-key-file", accounts, "--service-account-signing-key-file", accounts,
		"--authorization-mode", "RBAC", "--token-auth-file", a.write(dir, "tokens.csv", token+",admin,1,system:masters\n"),
		"--disable-admission-plugins", "ServiceAccount") // nobody makes the accounts that it wants
	a.url = "https://127.0.0.1:" + number
	a.kubeconfig = a.config(dir, "admin", token)
	a.await("the API server is ready", 2*time.Minute, func() bool { return a.command("", "get", "--raw", "/readyz").Run() == nil })
	return a
}

func (a *apiServer) write(dir, name, text string) string {
	a.t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (a *apiServer) free() string {
	a.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (a *apiServer) start(dir, program string, args ...string) {
	a.t.Helper()
	var said logLines
	cmd := exec.Command(filepath.Join(a.bin, program), args...)
	cmd.Dir, cmd.Stderr = dir, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL) // its data goes with the test
		_ = cmd.Wait()
		if a.t.Failed() {
			text := said.String()
			a.t.Logf("%s:\n%s", program, text[max(0, len(text)-4000):])
		}
	})
}

// config writes a kubeconfig.
func (a *apiServer) config(dir, user, token string) string {
	a.t.Helper()
	return a.write(dir, user+".kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: test, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
`, a.url, token))
}

func (a *apiServer) command(stdin string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(a.t.Context(), filepath.Join(a.bin, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+a.kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

func (a *apiServer) kubectl(stdin string, args ...string) string {
	a.t.Helper()
	out, err := a.command(stdin, args...).CombinedOutput()
	if err != nil {
		a.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (a *apiServer) await(what string, within time.Duration, done func() bool) {
	a.t.Helper()
	for deadline := time.Now().Add(within); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			a.t.Fatalf("not in %v: %s", within, what)
		}
	}
}

// install applies what docs/admission.md installs, and returns a kubeconfig with the rights that the webhook has there.
func (a *apiServer) install(dir string) (kubeconfig string) {
	a.t.Helper()
	text, err := os.ReadFile("../../test/e2e/testdata/admission/install.yaml")
	if err != nil {
		a.t.Fatal(err)
	}
	a.kubectl("", "create", "namespace", "attestry")
	a.kubectl(string(text), "apply", "-f", "-")
	a.kubectl("", "wait", "--for=condition=Established", "--timeout=60s", "crd/clusterimagepolicies.policy.sigstore.dev", "crd/trustroots.policy.sigstore.dev")
	return a.config(dir, "webhook", strings.TrimSpace(a.kubectl("", "-n", "attestry", "create", "token", "attestry-admission", "--duration=1h")))
}

const secretKeyPolicy = `
apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: signed}
spec:
  images: [{glob: "**/team/**"}, {glob: "**/other/**"}]
  authorities: [{name: key, key: {secretRef: {name: image-key}}}]
---
apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: elsewhere}
spec:
  images: [{glob: "**/apart/**"}]
  authorities:
  - name: key
    key: {secretRef: {name: image-key}}
    source: [{oci: "%s/signatures", signaturePullSecrets: [{name: for-signatures}]}]
`

const rootedPolicy = `
apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: rooted}
spec:
  images: [{glob: "**/rooted/**"}]
  authorities: [{name: a, keyless: {trustRootRef: site, identities: [{issuer: "https://issuer.example", subject: a@example.com}]}}]
`

// TestAgainstAnAPIServer is two replicas with the rights of install.yaml over the API server's objects.
func TestAgainstAnAPIServer(t *testing.T) {
	a := newAPIServer(t)
	s := newSite(t)
	host := s.guarded(func(user, password string) bool { return password == "for-"+user })
	ours := s.guarded(func(user, password string) bool { return user == "own" && password == "for-own" })

	a.kubectl("", "create", "namespace", "team")
	a.kubectl("", "label", "namespace", "team", "sigstore-policy=enforce")
	_, running := s.push("other/running") // before anyone asks
	a.kubectl("", "-n", "team", "run", "running", "--image="+running)
	kubeconfig := a.install(s.dir)
	for name, user := range map[string]string{"for-pod": "pod", "for-account": "account", "for-signatures": "signatures", "wrong": "nobody"} {
		password := "for-" + user
		if name == "wrong" {
			password = "wrong"
		}
		a.kubectl("", "-n", "team", "create", "secret", "docker-registry", name, "--docker-server="+host, "--docker-username="+user, "--docker-password="+password)
	}
	for account, secret := range map[string]string{"default": "", "puller": "for-account", "mistaken": "wrong"} {
		a.kubectl(fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {name: %s, namespace: team}, imagePullSecrets: [%s]}", account,
			map[bool]string{true: "{name: " + secret + "}"}[secret != ""]), "apply", "-f", "-")
	}
	a.kubectl("", "-n", "attestry", "create", "secret", "generic", "image-key", "--from-file=cosign.pub="+s.file("image.pub", s.publicKey()))
	a.kubectl(fmt.Sprintf(secretKeyPolicy, host), "apply", "-f", "-")

	type replica struct {
		*site
		stop func()
		ops  string
	}
	var replicas []replica
	for i := range 2 {
		r := replica{site: &site{t: t, dir: s.dir, host: s.host, images: s.images, key: s.key, log: &logLines{}}, ops: s.free()}
		listen := s.free()
		r.stop = r.run(s.file(fmt.Sprintf("replica%d.yaml", i), fmt.Sprintf(
			"kubeconfig: %s\nnamespace: attestry\nlisten: %s\nops-listen: %s\nscan-every: 1m\nprivate-networks: [127.0.0.0/8]\nregistry-config: %s\n",
			kubeconfig, listen, r.ops, s.file("own.json", dockerConfig(ours, "own", "for-own")))))
		r.await("it is ready", func() bool { code, _ := fetched("http://" + r.ops + "/readyz"); return code == http.StatusOK })
		r.talk(listen, a.authorities(), "attestry-admission.attestry.svc")
		replicas = append(replicas, r)
	}
	first := replicas[0]

	t.Run("credentials count in their order", func(t *testing.T) {
		for _, tt := range []struct {
			name, host, spec, reason string // reason of a refusal
		}{
			{"none", host, `"serviceAccountName":"default"`, "registry-denied"},
			{"the pod's", host, `"imagePullSecrets":[{"name":"for-pod"}]`, ""},
			{"the service account's", host, `"serviceAccountName":"puller"`, ""},
			{"the pod's before the service account's", host, `"serviceAccountName":"mistaken","imagePullSecrets":[{"name":"for-pod"}]`, ""},
			{"a wrong one of the pod before the service account's", host, `"serviceAccountName":"puller","imagePullSecrets":[{"name":"wrong"}]`, "registry-denied"},
			{"one that is missing is passed over", host, `"serviceAccountName":"puller","imagePullSecrets":[{"name":"missing"}]`, ""},
			{"one of another registry is passed over", ours, `"imagePullSecrets":[{"name":"wrong"}]`, ""},
			{"our own", ours, `"serviceAccountName":"default"`, ""},
			{"another namespace's are not there", host, `"imagePullSecrets":[{"name":"attestry-admission-tls"}]`, "registry-denied"},
		} {
			_, reference := s.push("team/app") // a new one: a verdict is remembered for all pods
			s.sign(reference)
			got, _ := first.ask(s.at(tt.host, reference), tt.spec)
			if got.Response.Allowed != (tt.reason == "") || !strings.Contains(got.Response.Status.Message, tt.reason) {
				t.Errorf("%s: %+v, want %q", tt.name, got, tt.reason)
			}
		}
	})
	t.Run("a policy's pull secrets open the place of its signatures", func(t *testing.T) {
		_, reference := s.push("apart/app")
		_, digest, _ := strings.Cut(reference, "@")
		s.put(signatureTag(s.host+"/signatures@"+digest), s.signature(reference))
		if got, _ := first.ask(reference); !got.Response.Allowed {
			t.Errorf("%+v\n%s", got, first.log)
		}
		a.kubectl("", "-n", "team", "delete", "secret", "for-signatures")
		_, unread := s.push("apart/app")
		_, digest, _ = strings.Cut(unread, "@")
		s.put(signatureTag(s.host+"/signatures@"+digest), s.signature(unread))
		a.await("the deleted secret is forgotten", time.Minute, func() bool {
			_, fresh := s.push("apart/app")
			got, _ := first.ask(fresh)
			return strings.Contains(got.Response.Status.Message, "registry-denied")
		})
		if got, _ := first.ask(unread); got.Response.Allowed {
			t.Errorf("without the secret: %+v", got)
		}
	})
	t.Run("policies and trust change under what is remembered", func(t *testing.T) {
		_, reference := s.push("team/app")
		s.sign(reference)
		for _, r := range replicas {
			if got, _ := r.ask(reference); !got.Response.Allowed {
				t.Errorf("%+v", got)
			}
		}
		other := newSite(t)
		a.kubectl(fmt.Sprintf(`{"data":{"cosign.pub":%q}}`, base64.StdEncoding.EncodeToString([]byte(other.publicKey()))),
			"-n", "attestry", "patch", "secret", "image-key", "--type=merge", "--patch-file=/dev/stdin")
		for _, r := range replicas {
			r.site.patience = 2 * time.Minute
			r.await("the other key counts", func() bool {
				got, _ := r.ask(reference)
				return !got.Response.Allowed
			})
		}
		a.kubectl(rootedPolicy, "apply", "-f", "-")
		first.await("a policy without its trust root is refused", func() bool {
			return strings.Contains(first.log.String(), "policies refused")
		})
		_, ca := loopbackCertificate(t)
		a.kubectl(fmt.Sprintf(`{apiVersion: policy.sigstore.dev/v1alpha1, kind: TrustRoot, metadata: {name: site}, spec: {sigstoreKeys: {certificateAuthorities: [{subject: {organization: o, commonName: c}, uri: "https://ca.example", certChain: %s}], tLogs: [{baseURL: "https://log.example", hashAlgorithm: sha-256, publicKey: %s}]}}}`,
			base64.StdEncoding.EncodeToString([]byte(ca)), base64.StdEncoding.EncodeToString([]byte(s.publicKey()))), "apply", "-f", "-")
		_, unsigned := s.push("rooted/app")
		first.await("the trust root makes it good", func() bool {
			got, _ := first.ask(unsigned)
			return strings.Contains(got.Response.Status.Message, `policy "rooted": signature`)
		})
	})
	t.Run("one replica scans, and another when it is gone", func(t *testing.T) {
		scanned := func(r replica) bool {
			_, text := fetched("http://" + r.ops + "/metrics")
			return !strings.Contains(text, "attestry_last_scan_timestamp_seconds 0\n")
		}
		a.await("one has scanned", time.Minute, func() bool { return scanned(replicas[0]) || scanned(replicas[1]) })
		leads, waits := replicas[0], replicas[1]
		if scanned(waits) {
			leads, waits = waits, leads
		}
		if scanned(waits) {
			t.Error("both have scanned")
		}
		if _, text := fetched("http://" + leads.ops + "/metrics"); !strings.Contains(text, `attestry_running_images{result="fail"} 1`) ||
			!regexp.MustCompile(`cicd_unsigned_image_deployed_total\{image="[^"]*/other/running",namespace="team"\} 1\n`).MatchString(text) {
			t.Errorf("what runs unsigned is not counted:\n%s\n%s", leads.log, text)
		}
		leads.stop()
		a.await("the other scans", 3*time.Minute, func() bool { return scanned(waits) })
	})
	t.Run("a lease has one holder", func(t *testing.T) {
		kube, err := cluster.Open(kubeconfig, "attestry", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		const length = 2 * time.Second
		one, two := kube.Lease("task", "one", length), kube.Lease("task", "two", length)
		takes := func(l *cluster.Lease) bool {
			t.Helper()
			ours, err := l.Take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return ours
		}
		var all sync.WaitGroup
		var holders atomic.Int64
		for i := range 8 {
			l := kube.Lease("race", fmt.Sprint(i), time.Minute)
			all.Go(func() {
				if ours, err := l.Take(t.Context()); err == nil && ours {
					holders.Add(1)
				}
			})
		}
		all.Wait()
		if holders.Load() != 1 {
			t.Errorf("%d take it at once", holders.Load())
		}
		if !takes(one) || takes(two) || !takes(one) {
			t.Error("the first does not keep it")
		}
		a.await("the second has it when the first stays away", time.Minute, func() bool { return takes(two) })
		if takes(one) {
			t.Error("both have it")
		}
	})
	for _, r := range replicas { // they keep a bundle of their own
		r.stop()
	}
	t.Run("a certificate is replaced under load", func(t *testing.T) { rotateUnderLoad(t, a, kubeconfig) })
}

// rotateUnderLoad walks two replicas through a whole life of their certificate by a clock of its own, while clients that believe what
// the webhook configuration says, as the API server does, ask both without a pause.
func rotateUnderLoad(t *testing.T, a *apiServer, kubeconfig string) {
	kube, err := cluster.Open(kubeconfig, "attestry", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	const life = 90 * 24 * time.Hour
	var clock atomic.Int64
	clock.Store(time.Now().Unix())
	now := func() time.Time { return time.Unix(clock.Load(), 0) }
	var keepers []*cluster.Serving
	var listeners []string
	for range 2 {
		k := kube.Serving(cluster.ServingOptions{Secret: "rotated", Service: "attestry-admission", Webhooks: "attestry-admission", Life: life, Now: now})
		if err := k.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: k.GetCertificate})
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
		go srv.Serve(ln)
		t.Cleanup(func() { srv.Close() })
		keepers, listeners = append(keepers, k), append(listeners, ln.Addr().String())
	}
	var trusted atomic.Pointer[x509.CertPool] // what the API server has read
	trusted.Store(a.authorities())
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var asked, failed atomic.Int64
	served := make(map[string]bool)
	var mu sync.Mutex // guards served
	for i := range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := tls.Dial("tcp", listeners[i%2], &tls.Config{RootCAs: trusted.Load(), ServerName: "attestry-admission.attestry.svc", Time: now})
				asked.Add(1)
				if err != nil {
					failed.Add(1)
					continue
				}
				mu.Lock()
				served[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
				mu.Unlock()
				conn.Close()
			}
		})
	}
	for range 2 { // lives
		for _, step := range []time.Duration{life / 3, life / 3, time.Minute, 5 * time.Minute, time.Minute} {
			before := asked.Load()
			clock.Add(int64(step / time.Second))
			for _, k := range keepers {
				if err := k.Look(t.Context()); err != nil {
					t.Error(err)
				}
			}
			a.await("all have been asked", time.Minute, func() bool { return asked.Load() > before+20 })
			trusted.Store(a.authorities()) // later than the replicas, as it reads by itself
		}
	}
	cancel()
	all.Wait()
	if failed.Load() > 0 || len(served) < 3 {
		t.Errorf("%d of %d handshakes failed; %d certificates were served, want 3", failed.Load(), asked.Load(), len(served))
	}
}

// authorities are those that the API server trusts to name the webhook.
func (a *apiServer) authorities() *x509.CertPool {
	a.t.Helper()
	text, err := base64.StdEncoding.DecodeString(a.kubectl("", "get", "validatingwebhookconfigurations", "attestry-admission", "-o", "jsonpath={.webhooks[0].clientConfig.caBundle}"))
	if err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(bytes.TrimSpace(text)) {
		a.t.Fatal("the webhook configuration has no authority")
	}
	return pool
}

func fetched(url string) (code int, body string) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body) // what is missing is not found
	return resp.StatusCode, string(text)
}
