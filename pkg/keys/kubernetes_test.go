package keys

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
)

// api is a real API server on a real etcd, with one service account's token. Nothing runs pods.
type api struct {
	t         *testing.T
	dir, port string
	admin     *Cluster
}

func newAPI(t *testing.T) api {
	t.Helper()
	cache := os.Getenv("CLUSTER_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(home, ".cache", "one-node-cluster")
	}
	for _, program := range []string{"etcd", "kube-apiserver"} {
		if _, err := os.Stat(filepath.Join(cache, "bin", program)); err != nil {
			t.Skip("skipped: Kubernetes is not built; enable with: ../shared/cluster/build.sh (16 minutes)")
		}
	}
	a := api{t: t, dir: t.TempDir()}
	ports := freePorts(t, 3)
	a.port = ports[2]
	a.write("users.csv", "admin-token,admin,admin,system:masters\npod-token,pod,pod\n")
	key, err := signer.Create(filepath.Join(a.dir, "tls.key"), signer.P256)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "API server"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a.write("tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	a.start(filepath.Join(cache, "bin", "etcd"), "--data-dir", filepath.Join(a.dir, "etcd"), "--unsafe-no-fsync", "--listen-client-urls", "http://127.0.0.1:"+ports[0],
		"--advertise-client-urls", "http://127.0.0.1:"+ports[0], "--listen-peer-urls", "http://127.0.0.1:"+ports[1])
	tls, crt := filepath.Join(a.dir, "tls.key"), filepath.Join(a.dir, "tls.crt")
	a.start(filepath.Join(cache, "bin", "kube-apiserver"), "--etcd-servers", "http://127.0.0.1:"+ports[0], "--bind-address", "127.0.0.1", "--secure-port", a.port,
		"--tls-private-key-file", tls, "--tls-cert-file", crt, "--service-account-issuer", "https://127.0.0.1", "--service-account-key-file", crt,
		"--service-account-signing-key-file", tls, "--token-auth-file", filepath.Join(a.dir, "users.csv"), "--authorization-mode", "RBAC",
		"--service-cluster-ip-range", "10.0.0.0/24", "--disable-admission-plugins", "ServiceAccount")
	a.admin = a.pod("admin-token", "default")
	a.await(a.admin)
	return a
}

// await waits until c may read Secrets: the server has to come up, and takes a moment to know of a new Role.
func (a api) await(c *Cluster) {
	a.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		_, _, err := c.do(a.t.Context(), http.MethodGet, "secrets/none", nil)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("the API server does not answer: %v", err)
		}
		<-time.After(50 * time.Millisecond)
	}
}

func (a api) write(name, text string) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a api) start(program string, args ...string) {
	a.t.Helper()
	cmd := exec.Command(program, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if a.t.Failed() {
			a.t.Logf("%s: %s", filepath.Base(program), said.String()[max(0, said.Len()-3000):])
		}
	})
}

// pod is the API server as a pod with this token sees it.
func (a api) pod(token, namespace string) *Cluster {
	a.t.Helper()
	dir := a.t.TempDir()
	crt, err := os.ReadFile(filepath.Join(a.dir, "tls.crt"))
	if err != nil {
		a.t.Fatal(err)
	}
	for name, text := range map[string]string{"token": token + "\n", "namespace": namespace, "ca.crt": string(crt)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	c, err := InCluster(func(name string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": a.port}[name]
	}, dir)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// send is a request of the administrator below /apis or /api.
func (a api) send(method, path, body string) {
	a.t.Helper()
	request, err := http.NewRequestWithContext(a.t.Context(), method, a.admin.server+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer admin-token")
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	response, err := a.admin.client.Do(request)
	if err != nil {
		a.t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		var text bytes.Buffer
		text.ReadFrom(response.Body)
		a.t.Fatalf("%s %s: %s: %s", method, path, response.Status, text.String())
	}
}

func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// TestSecretsOfANamespace has an API server store what Init makes, for a service account that may get and create.
func TestSecretsOfANamespace(t *testing.T) {
	a := newAPI(t)
	a.send(http.MethodPost, "/api/v1/namespaces", `{"metadata":{"name":"sigstore"}}`)
	pod := a.pod("pod-token", "sigstore")
	if _, err := InitKubernetes(t.Context(), pod, "x", Options{}); err == nil || !strings.Contains(err.Error(), "needs get and create on secrets and configmaps") {
		t.Fatalf("without permission: %v", err)
	}
	a.send(http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/namespaces/sigstore/roles",
		`{"metadata":{"name":"keys"},"rules":[{"apiGroups":[""],"resources":["secrets","configmaps"],"verbs":["get","create"]}]}`)
	a.send(http.MethodPost, "/apis/rbac.authorization.k8s.io/v1/namespaces/sigstore/rolebindings",
		`{"metadata":{"name":"keys"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"keys"},"subjects":[{"kind":"User","name":"pod"}]}`)
	a.await(pod)

	// Several jobs at once: one makes each object, all end well.
	var running sync.WaitGroup
	failures := make([]error, 4)
	for i := range failures {
		running.Go(func() { _, failures[i] = InitKubernetes(t.Context(), pod, "x", Options{}) })
	}
	running.Wait()
	for _, err := range failures {
		if err != nil {
			t.Error(err)
		}
	}
	s := objects{pod, "x"}
	known := Files{}
	for _, role := range Roles() {
		files, err := s.load(t.Context(), role)
		if err != nil {
			t.Fatal(err)
		}
		if _, names, err := (Options{}).complete(s, role, files, nil); err != nil || len(names) != 0 {
			t.Errorf("%s: lacks %v, %v", role, names, err)
		}
		if err := derive(role, files, known); err != nil {
			t.Error(err)
		}
	}
	published, err := s.load(t.Context(), public)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range filesOf(public) {
		if !bytes.Equal(published[name], known[name]) || len(known[name]) == 0 {
			t.Errorf("ConfigMap: %s is not that of the keys", name)
		}
	}
	body, _, err := a.admin.in("sigstore").do(t.Context(), http.MethodGet, "secrets/x-ca", nil)
	if err != nil || !strings.Contains(string(body), `"helm.sh/resource-policy":"keep"`) {
		t.Errorf("%v: %s", err, body)
	}
	if made, err := InitKubernetes(t.Context(), pod, "x", Options{}); err != nil || len(made.Files[CA]) != 0 {
		t.Errorf("again: %v, %v", made, err)
	}

	// Another release beside it has keys of its own.
	if made, err := InitKubernetes(t.Context(), pod, "y", Options{Skip: []Role{TUF}}); err != nil || len(made.Files[CA]) != 2 {
		t.Errorf("another prefix: %v, %v", made, err)
	}

	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signer.PrivatePEM(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, role, patch, want string }{
		{"a swapped key of a log", "tlog", patch("rekor1.pem", text), "ConfigMap sigstore/x-public, rekor1.pub is not of the key"},
		{"a swapped key of the CA", "ca", patch("ca.pem", text), "Secret sigstore/x-ca, ca-chain.pem: "},
		{"a Secret that lost a key", "tuf", `{"data":{"online.pem":null}}`, "Secret sigstore/x-tuf, online.pem is missing, and what is there is never changed"},
		{"an emptied Secret", "tsa", `{"data":null}`, "Secret sigstore/x-tsa, data is empty"},
		{"a Secret that was deleted", "tlog", "", "Secret sigstore/x-tlog, ct.pem is missing, and ConfigMap sigstore/x-public, ct.pub speaks of it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := "/api/v1/namespaces/sigstore/secrets/x-" + tt.role
			before, err := s.load(t.Context(), Role(tt.role))
			if err != nil {
				t.Fatal(err)
			}
			if tt.patch == "" {
				a.send(http.MethodDelete, path, "")
			} else {
				a.send(http.MethodPatch, path, tt.patch)
			}
			if _, err := InitKubernetes(t.Context(), pod, "x", Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
			if tt.patch != "" {
				a.send(http.MethodDelete, path, "")
			}
			if err := s.add(context.WithoutCancel(t.Context()), Role(tt.role), names(before), before); err != nil {
				t.Fatal(err)
			}
		})
	}
	if made, err := InitKubernetes(t.Context(), pod, "x", Options{}); err != nil || len(made.Files[CA]) != 0 {
		t.Errorf("with all of it back: %v, %v", made, err)
	}
}

func patch(name string, text []byte) string {
	return fmt.Sprintf(`{"stringData":{%q:%q}}`, name, text)
}

func names(files Files) []string {
	var all []string
	for name := range files {
		all = append(all, name)
	}
	return all
}

// in is c in another namespace.
func (c *Cluster) in(namespace string) *Cluster {
	other := *c
	other.namespace = namespace
	return &other
}

func TestOutsideAPod(t *testing.T) {
	if _, err := InCluster(func(string) string { return "" }, t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a pod") {
		t.Errorf("%v", err)
	}
}
