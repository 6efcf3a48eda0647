package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	logs "github.com/attestry/attestry/pkg/tlog"
)

const chart = repository + "/charts/attestry"

// digests are what images.yaml of the archive gives.
var digests = func() []string {
	var all []string
	for _, image := range []string{"attestry", "ca", "tlog", "tsa", "tuf", "admission"} {
		all = append(all, "--set", "images."+image+".digest=sha256:"+strings.Repeat("0a", 32))
	}
	return all
}()

// values are what the chart is rendered with, profile by option. Each has to come out valid.
var values = map[string][]string{
	"single": nil,
	"single, every option": {
		"--set", "openshift=true,keys.secretPrefix=other,fullnameOverride=sig,organization=Example",
		"--set", "monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true,monitoring.serviceMonitor.labels.team=a",
		"--set", "admission.enabled=true,admission.trustedRootConfigMap=root,admission.priorityClassName=system-cluster-critical",
		"--set", "ingress.enabled=true,ingress.host=sigstore.example.com,global.trustedCA.secret=company,global.imagePullSecrets[0].name=pull",
		"--set", "tlog.service.type=NodePort,tlog.service.nodePort=30300,ca.podAnnotations.a=b,ca.podLabels.c=d,ca.extraEnv[0].name=VAULT_ADDR,ca.extraEnv[0].value=https://vault.example.com",
		"--set", "tsa.nodeSelector.disk=ssd,tsa.tolerations[0].operator=Exists,tuf.priorityClassName=high,tlog.persistence.storageClass=fast",
		"--set", "extraManifests[0].apiVersion=v1,extraManifests[0].kind=ConfigMap,extraManifests[0].metadata.name=x",
	},
	"single, its own root is offline": {"--set", "tuf.offlineRoot.existingSecret=root"},
	"single, without records and policies": {
		"--set", "ca.persistence.enabled=false,tsa.persistence.enabled=false,networkPolicy.enabled=false,podDisruptionBudget.enabled=false,ca.replicas=3,tsa.replicas=3",
	},
	"single, volumes and secrets of one's own": {
		"--set", "ca.existingSecret=a,tlog.existingSecret=b,tsa.existingSecret=c,tuf.existingSecret=d,ca.keyPassword.existingSecret=p,tsa.keyPassword.existingSecret=p,tlog.keyPassword.existingSecret=p",
		"--set", "ca.persistence.existingClaim=a,tlog.persistence.existingClaim=b,tlog.fencePersistence.existingClaim=c,tuf.persistence.existingClaim=d",
	},
	"single, keys in Vault and a token": {
		"--set", "ca.key=hashivault://ca,ca.existingSecret=chain,tsa.key=pkcs11:token=t;object=k?module-path=/lib/p.so,tsa.existingSecret=chain",
		"--set", "tlog.keys.ct=hashivault://ct,tlog.keys.rekor1=hashivault://r1,tlog.keys.rekor2=hashivault://r2,tlog.existingSecret=public,keys.create=false",
	},
	"single, upstream's spelling of issuers": {
		"--set", "ca.clusterIssuer.enabled=false,networkPolicy.egress.ca[0].ports[0].port=443",
		"--set-json", `config.OIDCIssuers={"https://login.example.com":{"IssuerURL":"https://login.example.com","ClientID":"sigstore","Type":"email"}}`,
		"--set-json", `config.contents={"meta-issuers":{"https://oidc.*.example.com":{"client-id":"sigstore","type":"email"}}}`,
	},
	"ha":                          {"-f", chart + "/examples/ha.yaml"},
	"ha, admission and openshift": {"-f", chart + "/examples/ha.yaml", "--set", "openshift=true,admission.enabled=true,admission.trustedRootConfigMap=r,tlog.replicas=3"},
	"ha, Trillian": {
		"--set", "profile=ha,tuf.offlineRoot.existingSecret=root,ca.database.uri=postgres://ca@rows.example.com/ca,networkPolicy.egress.tlog[0].ports[0].port=8090",
		"--set", "tlog.database.uri=postgres://tlog@rows.example.com/logs,tlog.fence.uri=postgres://tlog@fence.example.com/fence",
		"--set-json", `tlog.config={"rekor1":{"tree":{"store":"trillian","address":"trillian.example.com:8090","tree-id":"1193050959916656506","ca-file":"/secrets/store/ca.pem"}},` +
			`"rekor2":{"key":""},"ct":{"tree":{"store":"s3","endpoint":"https://s3.example.com","bucket":"logs","access-key-file":"/secrets/store/a","secret-key-file":"/secrets/store/s","mysql-dsn":"tlog@tcp(mysql.example.com:3306)/ct"}},"limits":{"rekor1-body":67108864}}`,
	},
	"airgap":               flags([]string{"-f", chart + "/examples/airgap.yaml"}, digests),
	"airgap, every option": flags([]string{"-f", chart + "/examples/airgap.yaml", "--set", "admission.enabled=true,admission.trustedRootConfigMap=r,monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true"}, digests),
}

// render is helm template as a cluster of the oldest version that the chart takes has it.
func render(t *testing.T, b *sandbox, args ...string) result {
	t.Helper()
	path, err := filepath.Abs(chart)
	if err != nil {
		t.Fatal(err)
	}
	for i, arg := range args {
		args[i] = strings.Replace(arg, chart, path, 1)
	}
	return b.run(client(t, "helm", ""), append([]string{"template", "demo", path, "--namespace", "sigstore", "--kube-version", "1.30.0"}, args...)...)
}

// object is one document of a rendering: typed where client-go knows the kind.
type object struct {
	raw   map[string]any
	typed runtime.Object
}

func (o object) String() string {
	meta, _ := o.raw["metadata"].(map[string]any)
	return fmt.Sprintf("%v %v", o.raw["kind"], meta["name"])
}

// custom are the fields of the kinds that are not Kubernetes' own, as the Prometheus operator and apiextensions have them.
var custom = map[string]func() any{
	"ServiceMonitor": func() any {
		return &struct {
			APIVersion, Kind string
			Metadata         map[string]any
			Spec             struct {
				Selector        struct{ MatchLabels map[string]string }
				PodTargetLabels []string
				Endpoints       []struct{ Port, Path, Interval string }
			}
		}{}
	},
	"PrometheusRule": func() any {
		return &struct {
			APIVersion, Kind string
			Metadata         map[string]any
			Spec             struct {
				Groups []struct {
					Name  string
					Rules []struct {
						Alert, Expr, For    string
						Labels, Annotations map[string]string
					}
				}
			}
		}{}
	},
	"CustomResourceDefinition": func() any {
		return &struct {
			APIVersion, Kind string
			Metadata         map[string]any
			Spec             struct {
				Group, Scope string
				Names        struct{ Kind, Plural, Singular string }
				Versions     []struct {
					Name            string
					Served, Storage bool
					Schema          map[string]any
				}
			}
		}{}
	},
}

// objects decodes a rendering; a field that Kubernetes does not know fails the test.
func objects(t *testing.T, rendered string) []object {
	t.Helper()
	strict := kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, kjson.SerializerOptions{Yaml: true, Strict: true})
	var all []object
	for _, document := range strings.Split("\n"+rendered, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(document), &o.raw); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if o.raw == nil {
			continue
		}
		kind, _ := o.raw["kind"].(string)
		if shape, ok := custom[kind]; ok {
			text, err := json.Marshal(o.raw)
			if err != nil {
				t.Fatal(err)
			}
			d := json.NewDecoder(bytes.NewReader(text))
			d.DisallowUnknownFields()
			if err := d.Decode(shape()); err != nil {
				t.Errorf("%s: %v", o, err)
			}
		} else {
			typed, _, err := strict.Decode([]byte(document), nil, nil)
			if err != nil {
				t.Errorf("%s: %v", o, err)
				continue
			}
			o.typed = typed
		}
		all = append(all, o)
	}
	return all
}

// pod returns the pod spec of a workload, with its metadata's labels, nil for what is none.
func (o object) pod() (*corev1.PodSpec, map[string]string) {
	switch w := o.typed.(type) {
	case *appsv1.Deployment:
		return &w.Spec.Template.Spec, w.Spec.Template.Labels
	case *appsv1.StatefulSet:
		return &w.Spec.Template.Spec, w.Spec.Template.Labels
	case *batchv1.Job:
		return &w.Spec.Template.Spec, w.Spec.Template.Labels
	case *corev1.Pod:
		return &w.Spec, w.Labels
	}
	return nil, nil
}

// restricted says what the level "restricted" of Pod Security and this chart forbid in a pod. The API server of the cluster that
// TestTheChartInACluster starts has the last word.
func restricted(p *corev1.PodSpec, openshift bool) (wrong []string) {
	is := func(b *bool, want bool) bool { return b != nil && *b == want }
	if s := p.SecurityContext; s == nil || !is(s.RunAsNonRoot, true) || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		wrong = append(wrong, "runs as root or without a seccomp profile")
	} else if (s.RunAsUser == nil) != openshift || s.RunAsUser != nil && *s.RunAsUser != 65532 {
		wrong = append(wrong, "runs as another user")
	}
	if p.HostNetwork || p.HostPID || p.HostIPC {
		wrong = append(wrong, "shares the host's namespaces")
	}
	if p.AutomountServiceAccountToken == nil || p.ServiceAccountName == "" {
		wrong = append(wrong, "leaves the service account's token to a default")
	}
	for _, v := range p.Volumes {
		if v.ConfigMap == nil && v.Secret == nil && v.EmptyDir == nil && v.PersistentVolumeClaim == nil && v.Projected == nil {
			wrong = append(wrong, "has a volume of another kind: "+v.Name)
		}
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit == nil {
			wrong = append(wrong, "has an emptyDir without a limit: "+v.Name)
		}
	}
	for _, c := range slices.Concat(p.InitContainers, p.Containers) {
		s := c.SecurityContext
		if s == nil || !is(s.AllowPrivilegeEscalation, false) || !is(s.ReadOnlyRootFilesystem, true) || s.Capabilities == nil ||
			!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 {
			wrong = append(wrong, "container "+c.Name+" may do more than it has to")
		}
		for _, m := range c.VolumeMounts {
			if strings.HasPrefix(m.MountPath, "/secrets") && !m.ReadOnly {
				wrong = append(wrong, "container "+c.Name+" may write to "+m.MountPath)
			}
		}
	}
	return wrong
}

func TestTheChartRendersWhatKubernetesTakes(t *testing.T) {
	b := newSandbox(t)
	for _, name := range slices.Sorted(maps.Keys(values)) {
		t.Run(name, func(t *testing.T) {
			r := render(t, b.in(t), slices.Clone(values[name])...)
			if r.err != nil {
				t.Fatalf("%v\n%s", r.err, r.stderr)
			}
			if again := render(t, b.in(t), slices.Clone(values[name])...); again.stdout != r.stdout {
				t.Error("a second rendering differs from the first")
			}
			if public := regexp.MustCompile(`docker\.io|ghcr\.io|gcr\.io|quay\.io|registry\.k8s\.io|(rekor|fulcio|oauth2|timestamp|tuf-repo-cdn)\.sig(store|stage)\.dev`).FindString(r.stdout); public != "" {
				t.Errorf("it names %s", public)
			}
			all := objects(t, r.stdout)
			names := map[string]bool{}
			policies := map[string]bool{}
			for _, o := range all {
				if names[o.String()] {
					t.Errorf("there are two of %s", o)
				}
				names[o.String()] = true
				if p, ok := o.typed.(*networkingv1.NetworkPolicy); ok {
					policies[p.Spec.PodSelector.MatchLabels["app.kubernetes.io/component"]] = true
					if len(p.Spec.PolicyTypes) != 2 {
						t.Errorf("%s is not for both ways", o)
					}
				}
			}
			for _, o := range all {
				spec, labels := o.pod()
				if spec == nil {
					continue
				}
				for _, wrong := range restricted(spec, strings.Contains(strings.Join(values[name], " "), "openshift=true")) {
					t.Errorf("%s %s", o, wrong)
				}
				if role := labels["app.kubernetes.io/component"]; !policies[role] && !strings.Contains(strings.Join(values[name], " "), "networkPolicy.enabled=false") {
					t.Errorf("no NetworkPolicy is for %s", o)
				}
				for _, c := range spec.Containers {
					if strings.HasPrefix(name, "airgap") && !regexp.MustCompile(`^registry\.inside\.example:5000/attestry/attestry/[a-z-]+:0\.1\.0@sha256:(0a){32}$`).MatchString(c.Image) {
						t.Errorf("%s runs %s", o, c.Image)
					}
				}
			}
			configurationsLoad(t, all)
		})
	}
}

// configurationsLoad has each program read its rendered configuration: it must miss nothing but the files of the pod.
func configurationsLoad(t *testing.T, all []object) {
	t.Helper()
	for _, o := range all {
		m, ok := o.typed.(*corev1.ConfigMap)
		if !ok {
			continue
		}
		dir := t.TempDir()
		for file, text := range m.Data {
			write(t, filepath.Join(dir, file), text)
		}
		for file := range m.Data {
			path := filepath.Join(dir, file)
			switch file {
			case "tlog.yaml":
				if _, err := logs.Load(path); err != nil {
					t.Errorf("%s: %v\n%s", file, err, m.Data[file])
				}
			case "ca.yaml", "tuf-publisher.yaml":
				program := map[string]string{"ca.yaml": ca, "tuf-publisher.yaml": tufPublisher}[file]
				out, err := exec.Command(program, "-config", path).CombinedOutput()
				missing := regexp.MustCompile(`(?m)^.*: (no such file or directory|VAULT_ADDR is not set)$`)
				rest := regexp.MustCompile(`(?m)^(ca|tuf-publisher): configuration:$|^\s*$`).ReplaceAllString(missing.ReplaceAllString(string(out), ""), "")
				if err == nil || strings.TrimSpace(rest) != "" {
					t.Errorf("%s: %v\n%s\n%s", file, err, out, m.Data[file])
				}
			case "issuers.yaml":
				out, err := exec.Command(attestry, "ca", "explain", "--issuer-file", path, "--claims", os.DevNull).CombinedOutput()
				if err == nil || strings.Contains(string(out), "issuers.yaml") {
					t.Errorf("%s: %v\n%s\n%s", file, err, out, m.Data[file])
				}
			}
		}
	}
}

func TestTheChartAnswersWrongValuesWithWords(t *testing.T) {
	b := newSandbox(t)
	for _, tt := range []struct{ args, want string }{
		{"--set profil=ha", `additional properties 'profil' not allowed`},
		{"--set profile=prod", `value must be one of 'single', 'ha', 'airgap'`},
		{"--set tlog.replicas=many", `at '/tlog/replicas': got string, want null or integer`},
		{"--set tlog.replicas=2", `tlog.replicas: on a volume there is one writer`},
		{"--set ca.replicas=2", `ca.replicas: records on a volume are for one replica`},
		{"--set ca.config.lifetim=5m", `at '/ca/config': additional properties 'lifetim' not allowed`},
		{"--set tlog.config.rekor1.kind=x", `at '/tlog/config/rekor1': additional properties 'kind' not allowed`},
		{"--set tlog.config.rekor1.tree.tree-id=12", `got number, want string`},
		{"--set urls.tlog=https://Log.example.com", `at '/urls/tlog': 'https://Log.example.com' does not match`},
		{"--set ingress.enabled=true", `ingress.hosts.tlog: give each role a host`},
		{"--set ingress.enabled=true,ingress.host=a.example.com,urls.tlog=https://b.example.com", `urls.tlog: its host is the logs' origin`},
		{"--set images.ca.digest=sha256:12", `at '/images/ca/digest'`},
		{"--set ca.key=hashivault://ca", `ca.existingSecret: with a ca.key elsewhere it has to bring ca-chain.pem`},
		{"--set tlog.keys.ct=hashivault://ct", `tlog.existingSecret: with tlog.keys elsewhere`},
		{"--set ca.key=/etc/ca.pem", `at '/ca/key'`},
		{"--set admission.enabled=true", `admission.trustedRootConfigMap: admission needs`},
		{"--set ca.clusterIssuer.enabled=false", `ca.issuers: nobody could get a certificate`},
		{`--set-json ca.issuers={"oidc-issuers":{"https://login.example.com":{"client-id":"a","type":"email"}}}`, `networkPolicy.egress.ca: the CA may not reach https://login.example.com`},
		{"--set profile=ha", `tuf.offlineRoot.existingSecret: profile ha wants a TUF root whose keys are offline`},
		{"--set profile=ha", `tlog.database.uri: profile ha keeps rows in PostgreSQL`},
		{"--set profile=airgap", `tuf.offlineRoot.existingSecret: profile airgap wants`},
		{"--set profile=airgap", `images.tlog.digest: profile airgap takes images by digest`},
		{"--set profile=airgap", `global.imageRegistry: profile airgap needs the registry`},
		{"--set profile=airgap,networkPolicy.enabled=false", `networkPolicy.enabled: profile airgap denies egress`},
		{"--set tlog.database.uri=postgres://a@b/c,tlog.fence.uri=postgres://a@d/e", `tlog.config.ct.tree: with rows and fence in PostgreSQL the tree has to be shared too`},
		{"--set tlog.database.uri=postgres://a@b/c", `tlog.database.uri and tlog.fence.uri belong together`},
		// Of other charts.
		{"--set server.extraArgs[0]=--ct-log-url=x", `server: arguments and ports of upstream's servers do not exist here`},
		{"--set config.FulcioURL=x", `config.FulcioURL: of other charts' config, OIDCIssuers and contents are read`},
		{"--set createcerts.enabled=true", `createcerts: keys are made by a job`},
		{"--set trillian.enabled=true", `trillian: no Trillian is installed`},
		{"--set redis.enabled=true", `redis: there is no Redis`},
	} {
		t.Run(tt.want, func(t *testing.T) {
			r := render(t, b.in(t), strings.Fields(tt.args)...)
			if r.err == nil || !strings.Contains(r.stderr, tt.want) {
				t.Errorf("helm template %s: %v\n%s", tt.args, r.err, r.stderr)
			}
		})
	}
	path, err := filepath.Abs(chart)
	if err != nil {
		t.Fatal(err)
	}
	b.must(client(t, "helm", ""), "lint", "--strict", path)
}

// TestTheChartKnowsWhatThereIs compares the schema's keys with those of the programs, values.yaml with the schema, and the alerts with
// what docs/operate.md says to alert on.
func TestTheChartKnowsWhatThereIs(t *testing.T) {
	var schema struct {
		Properties map[string]struct {
			Properties map[string]json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, chart+"/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	for role, source := range map[string]string{"ca": "cmd/ca", "tlog": "pkg/tlog", "tsa": "cmd/tsa", "tuf": "cmd/tuf-publisher", "admission": "cmd/admission"} {
		config := string(schema.Properties[role].Properties["config"])
		text, _, _ := strings.Cut(readFile(t, filepath.Join(repository, source, "config.go")), "\n}\n\n")
		keys := regexp.MustCompile(`mapstructure:"([^"]+)"`).FindAllStringSubmatch(text, -1)
		if len(keys) < 8 {
			t.Fatalf("only %d keys of %s were found", len(keys), source)
		}
		for _, m := range keys {
			if !strings.Contains(config, `"`+m[1]+`":`) {
				t.Errorf("values.schema.json: %s.config lacks the key %s", role, m[1])
			}
		}
	}
	var defaults map[string]any
	if err := yaml.Unmarshal([]byte(readFile(t, chart+"/values.yaml")), &defaults); err != nil {
		t.Fatal(err)
	}
	for name, s := range schema.Properties {
		shown, _ := defaults[name].(map[string]any)
		for key := range s.Properties {
			if _, ok := shown[key]; !ok {
				t.Errorf("values.yaml does not show %s.%s, which the schema has", name, key)
			}
		}
	}
	page := readFile(t, repository+"/docs/kubernetes.md")
	named := regexp.MustCompile("(?:`|--set |,)((?:ca|tlog|tsa|tuf|global|networkPolicy|ingress|keys|monitoring|admission|images)\\.[A-Za-z.]*[A-Za-z])[`=:]").FindAllStringSubmatch(page, -1)
	if len(named) < 25 {
		t.Errorf("docs/kubernetes.md names only %d values", len(named))
	}
	for _, m := range named {
		if regexp.MustCompile(`\.(pem|crt|yaml)$`).MatchString(m[1]) {
			continue // a file
		}
		at := any(defaults)
		for _, key := range strings.Split(m[1], ".") {
			inside, ok := at.(map[string]any)
			if ok && len(inside) == 0 { // a program's own keys
				break
			}
			if at, ok = inside[key]; !ok {
				t.Errorf("docs/kubernetes.md: there is no value %s", m[1])
				break
			}
		}
	}

	_, metrics, _ := strings.Cut(readFile(t, repository+"/docs/operate.md"), "\n## Metrics\n")
	metrics, _, _ = strings.Cut(metrics, "\n## ")
	r := render(t, newSandbox(t), "--set", "monitoring.prometheusRule.enabled=true")
	if r.err != nil {
		t.Fatal(r.stderr)
	}
	_, rules, found := strings.Cut(r.stdout, "kind: PrometheusRule")
	if !found {
		t.Fatal("there is no PrometheusRule")
	}
	bold := 0
	for _, row := range strings.Split(metrics, "\n") {
		cells := strings.Split(row, "|")
		if len(cells) < 3 || !strings.Contains(cells[2], "**") {
			continue
		}
		names := regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(cells[1], -1)
		bold++
		if !slices.ContainsFunc(names, func(m []string) bool { return strings.Contains(rules, m[1]) }) {
			t.Errorf("docs/operate.md says to alert on one of %s, and no rule does", cells[1])
		}
	}
	if bold < 15 {
		t.Errorf("only %d rows of docs/operate.md say to alert", bold)
	}
	known := goSource(t)
	for _, m := range regexp.MustCompile(`\b((?:attestry|ca|tuf|timestamp_authority)_[a-z_]+?)(_count)?\{`).FindAllStringSubmatch(rules, -1) {
		if !strings.Contains(known, `"`+m[1]+`"`) {
			t.Errorf("a rule speaks of %s, which no program has", m[1])
		}
	}
}

// TestTheRolesOfTheChartNeedNoRoute runs the programs with the configuration that the chart writes, in a network namespace that has
// nothing but loopback.
func TestTheRolesOfTheChartNeedNoRoute(t *testing.T) {
	if exec.Command("unshare", "--net", "true").Run() != nil {
		missing(t, os.Geteuid() == 0, "needs a network namespace: run as root with unshare (util-linux)")
	}
	system(t, "curl", "curl")
	b := newSandbox(t)
	keys := b.path("keys")
	b.must(attestry, "keys", "init", "--dir", keys)
	r := render(t, b, "--set", "ca.config.ct-url=http://127.0.0.1:3000/ct/main,ca.clusterIssuer.enabled=false,networkPolicy.egress.ca[0].ports[0].port=443",
		"--set-json", `ca.issuers={"oidc-issuers":{"https://login.example.com":{"client-id":"sigstore","type":"email"}}}`) // asked when its first token comes
	if r.err != nil {
		t.Fatal(r.stderr)
	}
	script := "set -e\nip link set lo up\n"
	ready := ""
	for _, o := range objects(t, r.stdout) {
		m, ok := o.typed.(*corev1.ConfigMap)
		if !ok {
			continue
		}
		role := m.Labels["app.kubernetes.io/component"]
		program := map[string]string{"ca": ca, "tlog": tlog, "tuf": tufPublisher, "tsa": filepath.Join(filepath.Dir(ca), "tsa")}[role]
		ops := fmt.Sprintf(":%d", 2112+len(ready))
		var config string
		for file, text := range m.Data {
			for from, to := range map[string]string{
				"/secrets/keys": filepath.Join(keys, role), "/etc/attestry/public": filepath.Join(keys, "public"), "/etc/attestry/config": b.home,
				"/var/lib": b.path("data"), ":2112": ops,
			} {
				text = strings.ReplaceAll(text, from, to)
			}
			path := b.file(file, text)
			if file != "issuers.yaml" {
				config = path
			}
		}
		if err := os.MkdirAll(b.path("data/"+role), 0o700); err != nil {
			t.Fatal(err)
		}
		script += fmt.Sprintf("%s -config %s 2>>%s &\n", program, config, b.path(role+".log"))
		ready += fmt.Sprintf("until curl -sf http://127.0.0.1%s/readyz; do sleep 0.1; done\n", ops)
	}
	if err := os.MkdirAll(b.path("data/fence"), 0o700); err != nil {
		t.Fatal(err)
	}
	script += ready + "test -z \"$(ip route)\"\nkill $(jobs -p)\nwait\n"
	if out := b.run("unshare", "--net", "--pid", "--fork", "--kill-child", "bash", b.file("roles.sh", script)); out.err != nil || strings.Count(ready, "\n") != 4 {
		t.Errorf("%v\n%s", out.err, out)
		for _, role := range []string{"ca", "tlog", "tsa", "tuf"} {
			t.Logf("%s: %s", role, tail(b.path(role+".log"), 5))
		}
	}
}
