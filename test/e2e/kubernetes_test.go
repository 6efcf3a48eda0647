package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// cluster is a Kubernetes of one node, from the scripts in ATTESTRY_SHARED/cluster.
type cluster struct {
	t                    *testing.T
	bin, state           string
	kubeconfig, ca       string // ca: PEM of what signed the API server's certificate
	makeImage, loadImage string
}

// newCluster starts it, and stops it at the end of t.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	if !long() {
		t.Skip("skipped: takes minutes; enable with: scripts/test --long")
	}
	up, down := sharedTool(t, "cluster", "up.sh"), sharedTool(t, "cluster", "down.sh")
	c := &cluster{t: t, makeImage: sharedTool(t, "cluster", "make-image.sh"), loadImage: sharedTool(t, "cluster", "load-image.sh")}
	if os.Geteuid() != 0 {
		missing(t, false, "a cluster needs root")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	setting := func(name, otherwise string) string {
		if value := os.Getenv(name); value != "" {
			return value
		}
		return otherwise
	}
	c.bin = filepath.Join(setting("CLUSTER_CACHE", filepath.Join(home, ".cache", "one-node-cluster")), "bin")
	c.state = setting("CLUSTER_STATE", "/var/lib/one-node-cluster")
	for _, program := range []string{"kubelet", "kube-apiserver", "etcd", "coredns"} {
		if _, err := os.Stat(filepath.Join(c.bin, program)); err != nil {
			missing(t, false, "Kubernetes is not built; enable with: ../shared/cluster/build.sh (16 minutes)")
		}
	}
	if _, err := os.Stat(c.state); err == nil {
		missing(t, false, "there is a cluster in %s already; stop it with: ../shared/cluster/down.sh", c.state)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(down).CombinedOutput(); err != nil {
			t.Errorf("stopping the cluster: %v\n%s", err, out)
		}
	})
	started := exec.CommandContext(t.Context(), up)
	var said lines
	started.Stderr = &said
	out, err := started.Output()
	if err != nil {
		t.Fatalf("starting a cluster: %v\n%s", err, &said)
	}
	c.kubeconfig = strings.TrimSpace(string(out))
	c.ca = readFile(t, filepath.Join(c.state, "pki", "ca.crt"))
	return c
}

// kubectl runs it with stdin and returns what it printed.
func (c *cluster) kubectl(stdin string, args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), filepath.Join(c.bin, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// image builds one of our programs into an image of the node.
func (c *cluster) image(ref, pkg string) {
	c.t.Helper()
	dir := c.t.TempDir()
	program := filepath.Join(dir, filepath.Base(pkg))
	build := exec.Command("go", "build", "-trimpath", "-o", program, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	tar := filepath.Join(dir, "image.tar")
	for _, cmd := range []*exec.Cmd{build, exec.Command(c.makeImage, ref, program, tar), exec.Command(c.loadImage, tar)} {
		cmd.Env = append(cmd.Environ(), "PATH="+c.bin+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			c.t.Fatalf("%s: %v\n%s", cmd.Path, err, out)
		}
	}
}

// projected returns the paths of the tokens that the kubelet has put into the pod's volume "tokens".
func (c *cluster) projected(namespace, pod string, names ...string) (paths []string) {
	c.t.Helper()
	uid := c.kubectl("", "-n", namespace, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	for _, name := range names {
		paths = append(paths, filepath.Join(c.state, "kubelet", "pods", uid, "volumes", "kubernetes.io~projected", "tokens", name))
	}
	return paths
}

const signerPod = `
apiVersion: v1
kind: Namespace
metadata: {name: build}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: builder, namespace: build}
---
apiVersion: v1
kind: Pod
metadata: {name: signer, namespace: build}
spec:
  serviceAccountName: builder
  containers:
  - name: signer
    image: cluster.local/pause:1
    volumeMounts: [{name: tokens, mountPath: /tokens}]
  volumes:
  - name: tokens
    projected:
      sources:
      - serviceAccountToken: {path: default}
      - serviceAccountToken: {path: sigstore, audience: sigstore, expirationSeconds: 600}
`

// attestryPod is an instance in the cluster; its URL is known once its Service is there.
const attestryPod = `
apiVersion: v1
kind: ConfigMap
metadata: {name: attestry, namespace: attestry}
data:
  issuers.yaml: |
    oidc-issuers:
      %[1]s: {client-id: sigstore, type: kubernetes, discovery-url: "https://kubernetes.default.svc"}
---
apiVersion: v1
kind: Pod
metadata: {name: attestry, namespace: attestry, labels: {app: attestry}}
spec:
  securityContext: {runAsNonRoot: true, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: attestry
    image: cluster.local/attestry:e2e
    args: [up, --dir, /data/attestry, --listen, "0.0.0.0:8420", --url, %[2]q, --issuer, "off", --ca-config, /config/issuers.yaml]
    readinessProbe: {httpGet: {path: /readyz, port: 8420}, periodSeconds: 1}
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
    volumeMounts: [{name: data, mountPath: /data}, {name: config, mountPath: /config}, {name: tmp, mountPath: /tmp}]
  volumes:
  - {name: data, emptyDir: {}}
  - {name: tmp, emptyDir: {}}
  - {name: config, configMap: {name: attestry}}
`

// TestServiceAccountsOfACluster signs with the tokens that a kubelet projects into a pod.
func TestServiceAccountsOfACluster(t *testing.T) {
	c := newCluster(t)
	c.kubectl(signerPod, "apply", "-f", "-")
	c.kubectl("", "-n", "build", "wait", "--for=condition=Ready", "--timeout=120s", "pod/signer")
	paths := c.projected("build", "signer", "default", "sigstore")
	forAPI, forUs := strings.TrimSpace(readFile(t, paths[0])), strings.TrimSpace(readFile(t, paths[1]))
	claims := claimsOf(forUs)
	issuer, ok := claims["iss"].(string)
	if !ok || claims["sub"] != "system:serviceaccount:build:builder" {
		t.Fatalf("claims %v", claims)
	}
	audience, ok := claimsOf(forAPI)["aud"].([]any)
	if !ok || len(audience) != 1 {
		t.Fatalf("claims %v", claimsOf(forAPI))
	}
	const identity = "https://kubernetes.io/namespaces/build/serviceaccounts/builder"
	config := func(clientID, caCert string) string {
		yaml := fmt.Sprintf("oidc-issuers:\n  %s:\n    client-id: %s\n    type: kubernetes\n", issuer, clientID)
		if caCert != "" {
			yaml += "    ca-cert: |\n      " + strings.ReplaceAll(strings.TrimSpace(caCert), "\n", "\n      ") + "\n"
		}
		return issuerFile(t, yaml)
	}
	accepts := func(t *testing.T, s *stack, r *recorder, token string) {
		t.Helper()
		for _, c := range caClients {
			if c.client == "sigstore-python" && token == forAPI {
				continue // it asks for the audience sigstore itself
			}
			t.Run(c.name, func(t *testing.T) {
				b := newSandbox(t)
				blob, bundle := b.file("blob", "in a cluster by "+c.name), b.path("bundle.json")
				b.must(client(t, c.client, c.version), c.sign(b, s, token, blob, bundle)...)
				if got := r.take(t); got.proof == "email" || got.status != c.status {
					t.Errorf("it asked %+v", got)
				}
				s.verified(b, c.client == "sigstore-js", identity, issuer, blob, bundle)
			})
		}
	}
	refuses := func(t *testing.T, s *stack, token string, status int, reason string) {
		t.Helper()
		got, answer := s.signingCert(t, v2Request(t, p256(t), token, "system:serviceaccount:build:builder"))
		if got != status || !strings.Contains(answer, "reason="+reason+" ") {
			t.Errorf("%d, want %d and %s: %s", got, status, reason, answer)
		}
	}
	t.Run("a token for the audience sigstore", func(t *testing.T) {
		s, r := behindRecorder(t, "--ca-config", config("sigstore", c.ca))
		accepts(t, s, r, forUs)
		refuses(t, s, forAPI, http.StatusBadRequest, "aud_mismatch")
	})
	t.Run("a token for the API server", func(t *testing.T) {
		s, r := behindRecorder(t, "--ca-config", config(audience[0].(string), c.ca))
		accepts(t, s, r, forAPI)
		refuses(t, s, forUs, http.StatusBadRequest, "aud_mismatch")
	})
	t.Run("without the cluster's CA the issuer cannot be asked", func(t *testing.T) {
		s, _ := behindRecorder(t, "--ca-config", config("sigstore", ""))
		refuses(t, s, forUs, http.StatusServiceUnavailable, "issuer_unreachable")
	})
	t.Run("in the cluster, where discovery asks for the pod's token", func(t *testing.T) {
		c.kubectl("", "delete", "clusterrolebinding", "anonymous-issuer-discovery")
		trusted := x509.NewCertPool()
		trusted.AppendCertsFromPEM([]byte(c.ca))
		stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}}
		eventually(t, "strangers may not read the issuer's keys", func() bool {
			resp, err := stranger.Get(issuer + "/.well-known/openid-configuration")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusForbidden
		})
		c.image("cluster.local/attestry:e2e", "../../cmd/attestry")
		c.kubectl("", "create", "namespace", "attestry")
		c.kubectl("", "label", "namespace", "attestry", "pod-security.kubernetes.io/enforce=restricted")
		c.kubectl("", "-n", "attestry", "create", "service", "clusterip", "attestry", "--tcp=8420:8420")
		url := "http://" + c.kubectl("", "-n", "attestry", "get", "service", "attestry", "-o", "jsonpath={.spec.clusterIP}") + ":8420"
		c.kubectl(fmt.Sprintf(attestryPod, issuer, url), "apply", "-f", "-")
		c.kubectl("", "-n", "attestry", "wait", "--for=condition=Ready", "--timeout=120s", "pod/attestry")
		eventually(t, "the Service leads to the pod", func() bool {
			status, _, err := call(t.Context(), http.MethodGet, url+"/readyz", "", "")
			return err == nil && status == http.StatusOK
		})
		b := newSandbox(t)
		b.set("TUF_MIRROR", url+"/tuf")
		b.set("TUF_ROOT_JSON", b.file("root.json", get(t, url+"/tuf/root.json")))
		cosign := client(t, "cosign", "v3.1.3")
		blob, bundle := b.file("blob", "signed in the cluster"), b.path("bundle")
		b.must(cosign, "sign-blob", "--yes", "--identity-token", paths[1], "--bundle", bundle, blob)
		b.must(cosign, "verify-blob", "--bundle", bundle, "--certificate-identity", identity, "--certificate-oidc-issuer", issuer, blob)
		b.refused(`expected SAN value`, cosign, "verify-blob", "--bundle", bundle, "--certificate-identity", identity+"s", "--certificate-oidc-issuer", issuer, blob)
		if logs := c.kubectl("", "-n", "attestry", "logs", "attestry"); strings.Contains(logs, "eyJ") {
			t.Error("a token is in the pod's log")
		}
	})
}
