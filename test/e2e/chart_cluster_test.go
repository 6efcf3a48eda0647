package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// release is the chart, installed.
type release struct {
	c               *cluster
	chart           string // directory
	namespace, name string // name: of its objects
	helmName        string
	hosts           string // a hosts file with its services, as a resolver outside the cluster would have them
}

const chartBuilder = "https://kubernetes.io/namespaces/build/serviceaccounts/builder"

// helm runs it with the cluster's credentials.
func (c *cluster) helm(args ...string) (string, error) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), client(c.t, "helm", ""), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *release) in(t *testing.T) *release {
	part := *r
	part.c = r.c.of(t)
	return &part
}

// helm runs a command on the release, which has to succeed.
func (r *release) helm(verb string, args ...string) string {
	r.c.t.Helper()
	out, err := r.c.helm(append([]string{verb, r.helmName, "--namespace", r.namespace}, args...)...)
	if err != nil {
		r.c.t.Fatalf("helm %s: %v\n%s\n%s", verb, err, out, r.c.kubectl("", "-n", r.namespace, "get", "pods,pvc,jobs,events"))
	}
	return out
}

// values are those that this cluster needs.
func (r *release) values(more ...string) []string {
	return append([]string{r.chart, "--set", "ca.clusterIssuer.url=https://10.244.0.1:6443", "--wait", "--timeout", "90s"}, more...)
}

func (r *release) kubectl(args ...string) string {
	r.c.t.Helper()
	return r.c.kubectl("", append([]string{"-n", r.namespace}, args...)...)
}

// address is the service of a role, host:port.
func (r *release) address(role string) string {
	r.c.t.Helper()
	return r.kubectl("get", "service", r.name+"-"+role, "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}")
}

// resolve writes the hosts file. It is that of a mount namespace for the clients: the host's own is not touched.
func (r *release) resolve(dir string) {
	r.c.t.Helper()
	text := "127.0.0.1 localhost\n"
	for _, role := range []string{"ca", "tlog", "tsa", "tuf"} {
		ip, _, _ := strings.Cut(r.address(role), ":")
		text += fmt.Sprintf("%s %s\n", ip, r.host(role))
	}
	r.hosts = filepath.Join(dir, "hosts-"+r.name)
	write(r.c.t, r.hosts, text)
}

func (r *release) host(role string) string {
	return fmt.Sprintf("%s-%s.%s.svc", r.name, role, r.namespace)
}

// client runs a program that finds the services by their names.
func (r *release) client(b *sandbox, exe string, args ...string) string {
	b.t.Helper()
	return b.must("unshare", append([]string{"--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, r.hosts, exe}, args...)...)
}

// run runs a program beside the cluster.
func (c *cluster) run(exe string, args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), "PATH="+c.bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s %s: %v\n%s", exe, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// archive makes what is carried across an air gap, and unpacks it.
func (c *cluster) archive() string {
	c.t.Helper()
	made, dir := c.t.TempDir(), c.t.TempDir()
	script, err := filepath.Abs(repository + "/scripts/images")
	if err != nil {
		c.t.Fatal(err)
	}
	c.run(script, "-airgap", "-out", made, "-platforms", "linux/"+runtime.GOARCH)
	c.run("tar", "-C", dir, "-xf", filepath.Join(made, "attestry-0.1.0.tar"))
	c.run("sh", "-c", `cd "$0" && sha256sum --quiet -c SHA256SUMS`, dir)
	return dir
}

// token is one of the builder's service account, for us.
func (c *cluster) token() string {
	c.t.Helper()
	return strings.TrimSpace(c.kubectl("", "-n", "build", "create", "token", "builder", "--audience", "sigstore"))
}

func (r *release) target(name string) string {
	r.c.t.Helper()
	return get(r.c.t, "http://"+r.address("tuf")+"/tuf/"+name)
}

// state is what no upgrade may change: keys, trees, root.
func (r *release) state() map[string]string {
	r.c.t.Helper()
	s := map[string]string{"root": r.target("1.root.json"), "newest root": r.target("root.json"), "trusted root": r.target("targets/trusted_root.json")}
	for _, role := range []string{"ca", "tlog", "tsa", "tuf"} {
		s["secret "+role] = r.kubectl("get", "secret", r.name+"-"+role, "-o", "jsonpath={.data}")
	}
	s["public"] = r.kubectl("get", "configmap", r.name+"-public", "-o", "jsonpath={.data}")
	var tree struct{ TreeID string }
	if err := json.Unmarshal([]byte(get(r.c.t, "http://"+r.address("tlog")+"/api/v1/log")), &tree); err != nil || tree.TreeID == "" {
		r.c.t.Fatalf("tree ID: %v", err)
	}
	s["tree"] = tree.TreeID
	return s
}

// same fails when state is not what it was.
func (r *release) same(before map[string]string) {
	r.c.t.Helper()
	for name, now := range r.state() {
		if before[name] != now {
			r.c.t.Errorf("%s has changed", name)
		}
	}
}

// signedBlob is a blob with cosign's bundle.
type signedBlob struct{ blob, bundle string }

// sign signs with cosign by nothing but TUF, and verifies.
func (r *release) sign(b *sandbox, cosign, text string) signedBlob {
	b.t.Helper()
	root := b.file("root.json", r.c.kubectl("", "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/services/%s-tuf:http/proxy/tuf/1.root.json", r.namespace, r.name)))
	r.client(b, cosign, "initialize", "--mirror", "http://"+r.host("tuf")+"/tuf", "--root", root)
	s := signedBlob{b.file("blob-"+text, text), b.path("bundle-" + text)}
	r.client(b, cosign, "sign-blob", "--yes", "--identity-token", r.c.token(), "--bundle", s.bundle, s.blob)
	r.verify(b, cosign, s)
	return s
}

func (r *release) verify(b *sandbox, cosign string, s signedBlob) {
	b.t.Helper()
	r.client(b, cosign, "verify-blob", "--bundle", s.bundle, "--certificate-identity", chartBuilder, "--certificate-oidc-issuer", "https://10.244.0.1:6443", s.blob)
}

// until asks until done says yes; a kubelet takes up to a minute and a half to bring a changed secret to a pod.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !done(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting: %s", what)
		}
	}
}

// metric is a gauge of the one pod of a role.
func (r *release) metric(role, name string) string {
	r.c.t.Helper()
	ip := r.kubectl("get", "pods", "-l", "app.kubernetes.io/instance="+r.helmName+",app.kubernetes.io/component="+role, "-o", "jsonpath={.items[0].status.podIP}")
	m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(get(r.c.t, "http://"+ip+":2112/metrics"))
	if m == nil {
		r.c.t.Fatalf("%s has no metric %s", role, name)
	}
	return m[1]
}

// TestTheChartInACluster takes a release through its life, as pods of the level restricted.
func TestTheChartInACluster(t *testing.T) {
	cosign3, cosign2 := client(t, "cosign", "v3.1.3"), client(t, "cosign", "v2.6.5")
	client(t, "helm", "")
	system(t, "unshare", "util-linux")
	c := newCluster(t)
	archive := c.archive()
	c.run("tar", "-C", filepath.Join(archive, "oci"), "-cf", filepath.Join(archive, "oci.tar"), ".")
	c.run(c.loadImage, filepath.Join(archive, "oci.tar"))
	c.kubectl("", "create", "namespace", "build")
	c.kubectl("", "-n", "build", "create", "serviceaccount", "builder")
	c.kubectl("", "create", "namespace", "sigstore")
	c.kubectl("", "label", "namespace", "sigstore", "pod-security.kubernetes.io/enforce=restricted")

	r := &release{c: c, chart: filepath.Join(archive, "charts/attestry"), namespace: "sigstore", name: "attestry", helmName: "attestry"}
	defer func() {
		if t.Failed() {
			t.Logf("%s\n%s\n%s", r.kubectl("get", "pods"), r.kubectl("get", "events", "--sort-by=.lastTimestamp"), r.kubectl("logs", "-l", "app.kubernetes.io/instance=attestry", "--tail=15", "--prefix"))
		}
	}()
	began := time.Now()
	notes := r.helm("install", r.values()...)
	took := time.Since(began)
	measured(t, "helm install to ready: %v", took.Round(100*time.Millisecond))
	if took > time.Minute {
		t.Errorf("it took %v until all pods were ready", took)
	}
	if !strings.Contains(notes, "1 of 1 and ONLINE") {
		t.Errorf("the notes do not say what the root is:\n%s", notes)
	}
	r.resolve(t.TempDir())
	if out := r.helm("test", "--logs"); !strings.Contains(out, "verified: signed by https://kubernetes.io/namespaces/sigstore/serviceaccounts/attestry-test") {
		t.Errorf("helm test:\n%s", out)
	}
	memory := 0
	for _, role := range []string{"ca", "tlog", "tsa", "tuf"} {
		bytes, err := strconv.ParseFloat(r.metric(role, "process_resident_memory_bytes"), 64)
		if err != nil {
			t.Fatal(err)
		}
		memory += int(bytes)
	}
	measured(t, "resident memory of all roles, idle: %d MiB", memory>>20)
	if memory > 250<<20 {
		t.Errorf("all roles have %d MiB, more than 250", memory>>20)
	}

	b := newSandbox(t)
	first := r.sign(b, cosign3, "first")
	t.Run("cosign 2.6.5, by files and services", func(t *testing.T) {
		r, b := r.in(t), newSandbox(t)
		trust := []string{"--trusted-root", b.file("trusted_root.json", r.target("targets/trusted_root.json"))}
		b.set("TUF_MIRROR", "http://"+r.host("tuf")+"/tuf")
		b.set("TUF_ROOT_JSON", b.file("root.json", r.target("1.root.json")))
		for name, services := range map[string][]string{
			"Rekor v2": flags([]string{"--signing-config", b.file("sc.json", r.target("targets/signing_config.v0.2.json"))}, trust),
			"Rekor v1": {"--new-bundle-format", "--fulcio-url", "http://" + r.host("ca"), "--rekor-url", "http://" + r.host("tlog"),
				"--timestamp-server-url", "http://" + r.host("tsa") + "/api/v1/timestamp"},
		} {
			blob, bundle := b.file("blob", name), b.path("bundle")
			r.client(b, cosign2, flags([]string{"sign-blob", "--yes", "--identity-token", r.c.token(), "--bundle", bundle}, services, []string{blob})...)
			r.client(b, cosign2, flags([]string{"verify-blob", "--use-signed-timestamps", "--bundle", bundle, "--certificate-identity", chartBuilder, "--certificate-oidc-issuer", "https://10.244.0.1:6443"}, trust, []string{blob})...)
		}
	})
	before := r.state()

	t.Run("an upgrade and a rollback keep keys, trees and root", func(t *testing.T) {
		r := r.in(t)
		r.helm("upgrade", r.values("--set", "organization=Other,tsa.resources.limits.memory=200Mi,ca.config.lifetime=5m,tlog.config.limits.rekor1-body=67108864")...)
		r.same(before)
		r.helm("test")
		r.helm("rollback", "1", "--wait", "--timeout", "90s")
		r.same(before)
		r.helm("test")
		r.verify(b.in(t), cosign3, first)
	})
	t.Run("an upgrade that dies half way is rolled back", func(t *testing.T) {
		r := r.in(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cmd := exec.CommandContext(ctx, client(t, "helm", ""), append([]string{"upgrade", r.helmName, "--namespace", r.namespace}, r.values("--set", "images.tag=9.9.9")...)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+r.c.kubeconfig)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "a pod that cannot be pulled", func() bool {
			return strings.Contains(r.kubectl("get", "pods"), "ImagePull")
		})
		cancel() // SIGKILL
		_ = cmd.Wait()
		if out, err := r.c.helm(append([]string{"upgrade", r.helmName, "--namespace", r.namespace}, r.values()...)...); err == nil || !strings.Contains(out, "another operation") {
			t.Errorf("an upgrade beside one that has not ended: %v\n%s", err, out)
		}
		r.helm("rollback", "--wait", "--timeout", "90s")
		r.same(before)
		r.helm("test")
	})
	t.Run("pods that are killed under load lose nothing", func(t *testing.T) {
		r := r.in(t)
		files := t.TempDir()
		write(t, filepath.Join(files, "trusted_root.json"), r.target("targets/trusted_root.json"))
		s := &stack{t: t, files: files, logs: []string{rekor1, rekor2}, url: "http://" + r.address("tlog")}
		a := &audit{t: t, s: s, l: newLedger(t, s), fsck: func() {}, lag: 30 * time.Second}
		a.fresh = func() []*replica {
			return []*replica{newReplica(rekor1, rekor1Source{s.url, a.l}), newReplica(rekor2, tilesSource{s.url + "/api/v2"})}
		}
		a.replicas = a.fresh()
		load := func(ctx context.Context) {
			a.l.drive(ctx, 2, func(ctx context.Context) error { return a.l.submit1(ctx, s) }, func(ctx context.Context) error { return a.l.submit2(ctx, s) })
		}
		for range 5 {
			a.under(load, rand.N(time.Second), func() {
				old := r.kubectl("get", "pod", r.name+"-tlog-0", "-o", "jsonpath={.metadata.uid}")
				r.kubectl("delete", "pod", r.name+"-tlog-0", "--force", "--grace-period=0", "--wait=false")
				until(t, "another pod is ready", func() bool { // which it is not before the one that was killed has let go of the volume
					out := r.kubectl("get", "pods", "-l", "app.kubernetes.io/instance=attestry,app.kubernetes.io/component=tlog", "-o", `jsonpath={range .items[*]}{.metadata.uid} {.status.conditions[?(@.type=="Ready")].status}{end}`)
					uid, ready, _ := strings.Cut(out, " ")
					return uid != old && ready == "True"
				})
				n := a.l.count(rekor1)
				until(t, "the log goes on", func() bool { return a.l.count(rekor1) > n })
			})
			http.DefaultClient.CloseIdleConnections() // to the pod that is gone
			a.check()
			a.resubmit()
		}
		a.replay()
		measured(t, "5 pods killed under load, %d v1 and %d v2 entries acknowledged, none lost", a.l.count(rekor1), a.l.count(rekor2))
		r.same(before)
	})
	t.Run("a swapped secret is told and refused", func(t *testing.T) {
		r := r.in(t)
		swap := func(role, file, value string) {
			r.kubectl("patch", "secret", r.name+"-"+role, "--type=merge", "-p", fmt.Sprintf(`{"data":{%q:%q}}`, file, value))
		}
		value := func(role, file string) string {
			return r.kubectl("get", "secret", r.name+"-"+role, "-o", `jsonpath={.data.`+strings.ReplaceAll(file, ".", `\.`)+"}")
		}
		caKey, logKey, other := value("ca", "ca.pem"), value("tlog", "rekor2.pem"), value("tsa", "tsa.pem")
		swap("ca", "ca.pem", other)
		swap("tlog", "rekor2.pem", other)
		until(t, "the CA says that its key is another's", func() bool { return r.metric("ca", "ca_config_reload_failed") == "1" })
		r.helm("test") // with the key that it had

		r.kubectl("delete", "pod", r.name+"-tlog-0")
		until(t, "the log says that its key is another's", func() bool {
			out, _ := exec.Command(filepath.Join(r.c.bin, "kubectl"), "--kubeconfig", r.c.kubeconfig, "-n", r.namespace, "logs", r.name+"-tlog-0").CombinedOutput()
			return strings.Contains(string(out), "the fence knows nothing of key")
		})
		swap("ca", "ca.pem", caKey)
		swap("tlog", "rekor2.pem", logKey)
		r.kubectl("delete", "pod", r.name+"-tlog-0")
		r.kubectl("rollout", "status", "statefulset/"+r.name+"-tlog", "--timeout=60s")
		until(t, "the CA has its key again", func() bool { return r.metric("ca", "ca_config_reload_failed") == "0" })
		r.same(before)
		r.helm("test")
	})
	t.Run("two releases in one namespace", func(t *testing.T) {
		r := r.in(t)
		other := &release{c: r.c, chart: r.chart, namespace: "sigstore", name: "other-attestry", helmName: "other"}
		other.helm("install", other.values()...)
		other.helm("test")
		r.helm("test")
		r.same(before)
		if other.state()["secret ca"] == before["secret ca"] {
			t.Error("both have one CA")
		}
		other.helm("uninstall", "--wait")
	})
	t.Run("uninstalled and installed again it goes on", func(t *testing.T) {
		r := r.in(t)
		r.helm("uninstall", "--wait")
		r.helm("install", r.values()...)
		r.resolve(t.TempDir())
		r.same(before)
		r.verify(b.in(t), cosign3, first)
		r.sign(newSandbox(t), cosign3, "again")
		r.helm("test")
	})
	t.Run("the webhook on request", func(t *testing.T) {
		r := r.in(t)
		root := newSandbox(t).file("trusted_root.json", r.target("targets/trusted_root.json"))
		r.kubectl("create", "configmap", "trusted-root", "--from-file="+root)
		r.helm("upgrade", r.values("--set", "admission.enabled=true,admission.trustedRootConfigMap=trusted-root")...)
		r.kubectl("rollout", "status", "deployment/"+r.name+"-admission", "--timeout=60s")
		r.c.kubectl("", "create", "namespace", "guarded")
		r.c.kubectl("", "label", "namespace", "guarded", "sigstore-policy=enforce")
		until(t, "both replicas answer by the authority that they wrote down", func() bool {
			cmd := exec.CommandContext(t.Context(), filepath.Join(r.c.bin, "kubectl"), "--kubeconfig", r.c.kubeconfig, "-n", "guarded", "run", "app", "--image=registry.example.com/app@sha256:"+strings.Repeat("0a", 32))
			out, err := cmd.CombinedOutput()
			return err != nil && strings.Contains(string(out), "denied the request") && strings.Contains(string(out), "no-matching-policy")
		})
		r.kubectl("run", "free", "--image=cluster.local/pause:1", "--dry-run=server", "--overrides", `{"spec":{"securityContext":{"runAsNonRoot":true,"runAsUser":65532,"seccompProfile":{"type":"RuntimeDefault"}},"containers":[{"name":"free","image":"cluster.local/pause:1","securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]}}}]}}`)
		r.same(before)
		r.helm("upgrade", r.values()...)
		r.c.kubectl("", "get", "crd", "clusterimagepolicies.policy.sigstore.dev") // kept
		r.c.kubectl("", "-n", "guarded", "run", "app", "--image=cluster.local/pause:1")
	})
	t.Run("profile airgap with images by digest and an offline root", func(t *testing.T) {
		r, b := r.in(t), newSandbox(t)
		inside := r.c.registry(registry.New(registry.WithReferrersSupport(true), registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))), nil)
		images := r.c.run(filepath.Join(archive, "bin", "attestry-"+runtime.GOARCH), "images", "load", "--insecure", "--from", archive, "--registry", inside.host+"/mirror")
		_, images, _ = strings.Cut(images, "global:") // behind what it says on standard error
		b.must(attestry, "trust", "init", "--dir", b.path("ceremony"), "--holders", "1", "--threshold", "1", "--holder-password-file", b.file("password", "secret"))
		r.kubectl("create", "secret", "generic", "offline-root", "--from-file="+b.path("ceremony/publisher"))
		off := &release{c: r.c, chart: r.chart, namespace: "sigstore", name: "offline-attestry", helmName: "offline"}
		notes := off.helm("install", off.values("-f", b.file("images.yaml", "global:"+images), "--set", "profile=airgap,tuf.offlineRoot.existingSecret=offline-root")...)
		if strings.Contains(notes, "ONLINE") {
			t.Errorf("the notes call the root online:\n%s", notes)
		}
		off.helm("test")
		for _, image := range strings.Fields(off.kubectl("get", "pods", "-l", "app.kubernetes.io/instance=offline", "-o", "jsonpath={.items[*].spec.containers[*].image}")) {
			if !strings.HasPrefix(image, inside.host+"/mirror/attestry/") || !strings.Contains(image, "@sha256:") {
				t.Errorf("a pod runs %s", image)
			}
		}
		if off.target("1.root.json") != readFile(t, b.path("ceremony/publisher/1.root.json")) {
			t.Error("it serves another root")
		}
		off.helm("uninstall", "--wait")
	})
	t.Run("a storage class that is missing is named", func(t *testing.T) {
		c := c.of(t)
		c.kubectl("", "create", "namespace", "nowhere")
		out, err := c.helm("install", "lost", r.chart, "-n", "nowhere", "--set", "tlog.persistence.storageClass=nope", "--wait", "--timeout", "10s")
		if err == nil {
			t.Errorf("it was installed:\n%s", out)
		}
		until(t, "an event that names the class", func() bool {
			return strings.Contains(c.kubectl("", "-n", "nowhere", "get", "events", "--field-selector", "type=Warning"), `storageclass.storage.k8s.io "nope" not found`)
		})
	})
}
