package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	kubernetes "github.com/attestry/attestry/pkg/admission/cluster"
)

// imagePolicies demand a signature and, apart from it, an SBOM of one person.
const imagePolicies = `
apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: signed}
spec:
  images: [{glob: "**"}]
  authorities:
  - name: alice
    keyless: {identities: [{issuer: %[1]q, subject: alice@example.com}]}
---
apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: described}
spec:
  images: [{glob: "**"}]
  authorities:
  - name: alice
    keyless: {identities: [{issuer: %[1]q, subject: alice@example.com}]}
    attestations: [{name: sbom, predicateType: "https://cyclonedx.org/bom"}]
`

// refused runs kubectl, which must fail with a message that pattern matches.
func (c *cluster) refused(pattern, stdin string, args ...string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), filepath.Join(c.bin, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err == nil || !regexp.MustCompile(pattern).Match(out) {
		c.t.Errorf("kubectl %s: %v, want a refusal with %s\n%s", strings.Join(args, " "), err, pattern, out)
	}
}

// registry serves images on the node's address, without TLS, to pods and to the node. guard, which may be nil, is asked first.
func (c *cluster) registry(stored http.Handler, guard func(*http.Request) bool) *images {
	c.t.Helper()
	ln, err := net.Listen("tcp", "10.244.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if guard != nil && !guard(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="images"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		stored.ServeHTTP(w, r)
	}))
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	c.t.Cleanup(srv.Close)
	host := ln.Addr().String()
	dir := filepath.Join(c.state, "certs.d", host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	write(c.t, filepath.Join(dir, "hosts.toml"), fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", host))
	return &images{t: c.t, host: host, srv: srv}
}

// runnable pushes an image of one of our programs with a label that makes its digest its own, and returns its reference by tag.
func (c *cluster) runnable(r *images, program v1.Image, label string) string {
	c.t.Helper()
	config, err := program.ConfigFile()
	if err != nil {
		c.t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Config.Labels = map[string]string{"case": label}
	img, err := mutate.ConfigFile(program, config)
	if err != nil {
		c.t.Fatal(err)
	}
	ref, err := name.ParseReference(r.host+"/"+label+":v1", name.Insecure)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		c.t.Fatal(err)
	}
	return ref.String()
}

// program returns an image of one of our programs, as an image of the node is made.
func (c *cluster) program(pkg string) v1.Image {
	c.t.Helper()
	dir := c.t.TempDir()
	binary, tar := filepath.Join(dir, filepath.Base(pkg)), filepath.Join(dir, "image.tar")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	for _, cmd := range []*exec.Cmd{build, exec.Command(c.makeImage, "cluster.local/program:e2e", binary, tar)} {
		if out, err := cmd.CombinedOutput(); err != nil {
			c.t.Fatalf("%s: %v\n%s", cmd.Path, err, out)
		}
	}
	img, err := tarball.ImageFromPath(tar, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return img
}

const admissionConfig = `listen: 0.0.0.0:8443
ops-listen: 0.0.0.0:2112
trusted-root-file: /config/trusted_root.json
private-networks: [10.244.0.0/24]
insecure-registries: [%q, %q]
scan-every: 1m
`

// TestAdmissionInACluster installs the webhook as pods and has the API server ask it.
func TestAdmissionInACluster(t *testing.T) {
	c := newCluster(t)
	s := up(t)
	b := newSandbox(t)
	stored := registry.New(registry.WithReferrersSupport(true), registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	r := c.registry(stored, nil)
	private := c.registry(stored, func(r *http.Request) bool { // the same images, for who has the password
		user, password, ok := r.BasicAuth()
		return ok && user == "puller" && password == "secret"
	})
	app := c.program("./testdata/admission/app")
	refs := map[string]string{}
	for _, label := range []string{"signed", "unsigned", "bobs", "undescribed"} {
		refs[label] = c.runnable(r, app, label)
	}
	sbom := b.file("sbom.json", `{"bomFormat":"CycloneDX","specVersion":"1.5","components":[]}`)
	sign := func(ref, token string, described bool) {
		t.Helper()
		insecure := []string{"--registry-insecure", r.host, "--identity-token", token}
		b.must(attestry, flags([]string{"sign"}, insecure, s.signing(), []string{ref})...)
		if described {
			b.must(attestry, flags([]string{"attest", "--type", "cyclonedx", "--predicate", sbom}, insecure, s.signing(), []string{ref})...)
		}
	}
	sign(refs["signed"], s.alice(), true)
	sign(refs["bobs"], s.token("--email", "bob@example.com"), true)
	sign(refs["undescribed"], s.alice(), false)

	c.image("cluster.local/admission:e2e", "../../cmd/admission")
	c.kubectl("", "create", "namespace", "attestry")
	c.kubectl("", "-n", "attestry", "create", "configmap", "attestry-admission",
		"--from-file=admission.yaml="+b.file("admission.yaml", fmt.Sprintf(admissionConfig, r.host, private.host)),
		"--from-file=trusted_root.json="+s.client("trusted_root.json"))
	c.kubectl(readFile(t, "testdata/admission/install.yaml"), "apply", "-f", "-")
	c.kubectl("", "wait", "--for=condition=Established", "--timeout=60s", "crd/clusterimagepolicies.policy.sigstore.dev")
	c.kubectl(fmt.Sprintf(imagePolicies, s.issuer()), "apply", "-f", "-")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the webhook's log:\n%s", c.kubectl("", "-n", "attestry", "logs", "-l", "app=attestry-admission", "--tail=40"))
		}
	})
	c.kubectl("", "-n", "attestry", "rollout", "status", "deployment/attestry-admission", "--timeout=120s")
	for namespace, label := range map[string]string{"enforced": "sigstore-policy=enforce", "included": "policy.sigstore.dev/include=true", "warned": "sigstore-policy=warn", "free": "some=thing"} {
		c.kubectl("", "create", "namespace", namespace)
		c.kubectl("", "label", "namespace", namespace, label)
	}
	run := func(namespace, name, label string, args ...string) []string {
		return append([]string{"-n", namespace, "run", name, "--restart=Never", "--image=" + refs[label]}, args...)
	}
	t.Run("a signed pod runs, by digest", func(t *testing.T) {
		c := c.of(t)
		eventually(t, "both replicas know the policies and the namespaces", func() bool {
			cmd := exec.CommandContext(t.Context(), filepath.Join(c.bin, "kubectl"), run("enforced", "probe", "signed", "--dry-run=server")...)
			cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
			return cmd.Run() == nil
		})
		c.kubectl("", run("enforced", "signed", "signed")...)
		c.kubectl("", "-n", "enforced", "wait", "--for=condition=Ready", "--timeout=60s", "pod/signed")
		if image := c.kubectl("", "-n", "enforced", "get", "pod", "signed", "-o", "jsonpath={.spec.containers[0].image}"); !strings.HasPrefix(image, refs["signed"]+"@sha256:") {
			t.Errorf("the pod runs %s, want a digest", image)
		}
		c.kubectl("", "-n", "enforced", "create", "deployment", "signed", "--image="+refs["signed"], "--replicas=3")
		c.kubectl("", "-n", "enforced", "rollout", "status", "deployment/signed", "--timeout=60s")
	})
	for _, tt := range []struct{ name, label, pattern string }{
		{"an unsigned pod is refused", "unsigned", `policy "signed": signature: .*no-signature`},
		{"a pod that another has signed is refused", "bobs", `policy "signed": signature: .*identity-subject`},
		{"a pod without an SBOM is refused", "undescribed", `policy "described": SBOM: .*predicate-missing`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := c.of(t)
			for _, namespace := range []string{"enforced", "included"} {
				c.refused(tt.pattern, "", run(namespace, tt.label, tt.label)...)
				c.refused(tt.pattern, "", run(namespace, tt.label, tt.label, "--dry-run=server")...)
			}
			c.refused(tt.pattern, "", "-n", "enforced", "create", "deployment", tt.label, "--image="+refs[tt.label])
			if out := c.kubectl("", run("warned", tt.label, tt.label)...); !strings.Contains(out, "Warning: container") {
				t.Errorf("no warning:\n%s", out)
			}
			c.kubectl("", run("free", tt.label, tt.label)...)
		})
	}
	t.Run("an ephemeral container is looked at", func(t *testing.T) {
		c := c.of(t)
		c.refused(`policy "signed": signature: .*no-signature`, "", "-n", "enforced", "debug", "signed", "--image="+refs["unsigned"], "--attach=false")
	})
	t.Run("a pull secret opens a registry for the webhook as for the kubelet", func(t *testing.T) {
		c := c.of(t)
		image := strings.Replace(refs["signed"], r.host, private.host, 1)
		c.refused("registry-denied", "", "-n", "enforced", "run", "closed", "--restart=Never", "--image="+image)
		c.kubectl("", "-n", "enforced", "create", "secret", "docker-registry", "pull", "--docker-server="+private.host, "--docker-username=puller", "--docker-password=secret")
		c.kubectl("", "-n", "enforced", "run", "opened", "--restart=Never", "--image="+image, "--overrides", `{"spec":{"imagePullSecrets":[{"name":"pull"}]}}`)
		c.kubectl("", "-n", "enforced", "wait", "--for=condition=Ready", "--timeout=60s", "pod/opened")
	})
	addresses := strings.Fields(c.kubectl("", "-n", "attestry", "get", "pods", "-l", "app=attestry-admission", "-o", "jsonpath={.items[*].status.podIP}"))
	t.Run("one replica scans what runs", func(t *testing.T) {
		scans := 0
		c.of(t).await("what runs unsigned is found", 3*time.Minute, func() bool {
			found := false
			scans = 0
			for _, ip := range addresses {
				text := get(t, "http://"+ip+":2112/metrics")
				if !strings.Contains(text, "attestry_last_scan_timestamp_seconds 0\n") {
					scans++
					found = found || regexp.MustCompile(`attestry_running_images\{result="fail"\} [1-9]`).MatchString(text)
				}
			}
			return found
		})
		if scans != 1 {
			t.Errorf("%d replicas scan, want 1", scans)
		}
	})
	t.Run("a certificate is replaced under load", func(t *testing.T) { c.of(t).rotated(addresses, run("enforced", "load", "signed", "--dry-run=server")) })
	t.Run("the metrics say what happened", func(t *testing.T) {
		var all string
		for _, ip := range addresses {
			all += get(t, "http://"+ip+":2112/metrics")
		}
		for _, want := range []string{
			`cicd_signature_verification_failure_total{image="` + r.host + `/unsigned"}`,
			`cicd_unsigned_image_deployed_total{image="` + r.host + `/unsigned",namespace="warned"}`,
			`attestry_policy_results_total{policy="described",result="fail",rule="sbom"}`,
			`attestry_webhook_cert_expiry_seconds 1`,
		} {
			if !strings.Contains(all, want) {
				t.Errorf("no metric %s", want)
			}
		}
	})
}

// rotated gives the webhook a certificate that is due, and a successor that has stood beside it for almost as long as it has to; then has
// the API server ask without a pause, with request, until both replicas serve the successor.
func (c *cluster) rotated(addresses, request []string) {
	c.t.Helper()
	kube, err := kubernetes.Open(c.kubeconfig, "attestry", slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatal(err)
	}
	const life = 90 * 24 * time.Hour
	now := time.Now()
	as := func(at time.Time) {
		c.t.Helper()
		keeper := kube.Serving(kubernetes.ServingOptions{Secret: "attestry-admission-tls", Service: "attestry-admission", Webhooks: "attestry-admission", Life: life,
			Now: func() time.Time { return at }})
		if err := keeper.Look(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
	}
	member := func(name string) string {
		return c.kubectl("", "-n", "attestry", "get", "secret", "attestry-admission-tls", "-o", `go-template={{index .data "`+name+`" | base64decode}}`)
	}
	serve := func(want string) func() bool {
		block, _ := pem.Decode([]byte(want))
		if block == nil {
			c.t.Fatal("the secret has no certificate")
		}
		return func() bool {
			for _, ip := range addresses {
				conn, err := tls.Dial("tcp", ip+":8443", &tls.Config{InsecureSkipVerify: true}) // it is compared whole
				if err != nil {
					return false
				}
				served := conn.ConnectionState().PeerCertificates[0].Raw
				conn.Close()
				if !bytes.Equal(served, block.Bytes) {
					return false
				}
			}
			return true
		}
	}
	c.kubectl("", "-n", "attestry", "delete", "secret", "attestry-admission-tls")
	as(now.Add(-life * 3 / 4))
	as(now.Add(-4 * time.Minute))
	c.await("both serve the certificate that is due", time.Minute, serve(member("tls.crt")))
	successor := member("next.crt")
	ctx, cancel := context.WithCancel(c.t.Context())
	var all sync.WaitGroup
	var mu sync.Mutex // guards what follows
	asked, failures := 0, []string{}
	for range 2 {
		all.Go(func() {
			for ctx.Err() == nil {
				cmd := exec.Command(filepath.Join(c.bin, "kubectl"), request...)
				cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
				out, err := cmd.CombinedOutput()
				mu.Lock()
				if asked++; err != nil {
					failures = append(failures, string(out))
				}
				mu.Unlock()
			}
		})
	}
	c.await("both serve the successor", 3*time.Minute, serve(successor))
	after := func() int {
		mu.Lock()
		defer mu.Unlock()
		return asked
	}
	seen := after()
	c.await("it has been asked for", time.Minute, func() bool { return after() > seen+20 })
	cancel()
	all.Wait()
	if len(failures) > 0 {
		c.t.Errorf("%d of %d requests failed: %s", len(failures), asked, failures[0])
	}
	measured(c.t, "%d requests while a certificate was replaced, none failed", asked)
}

// await is eventually for what takes longer.
func (c *cluster) await(what string, within time.Duration, done func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(within); !done(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("timed out waiting: %s", what)
		}
	}
}

// of is the cluster for a part of a test.
func (c *cluster) of(t *testing.T) *cluster {
	part := *c
	part.t = t
	return &part
}
