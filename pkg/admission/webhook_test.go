package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/policy"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const (
	good = "registry.example/app@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	bad  = "registry.example/bad@sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

// memory is a registry in which every tag has the digest of good.
type memory struct {
	resolved atomic.Int64
	down     atomic.Bool
}

func (m *memory) Open(context.Context, *Workload) (oci.Source, error) { return m, nil }

func (m *memory) Resolve(_ context.Context, reference string) (oci.Image, error) {
	m.resolved.Add(1)
	if m.down.Load() {
		return oci.Image{}, fault.New(fault.Unavailable, "registry-unreachable", nil, "no answer")
	}
	ref, err := parseReference(reference)
	if err != nil {
		return oci.Image{}, err
	}
	if ref.Digest == "" {
		ref.Digest = good[strings.Index(good, "@")+1:]
	}
	return oci.Image{Reference: reference, Name: ref.Name, Digest: ref.Digest}, nil
}

func (m *memory) Children(context.Context, oci.Image) ([]oci.Image, error) { return nil, nil }

func (m *memory) Attachments(context.Context, oci.Image) ([]oci.Attachment, error) { return nil, nil }

func (m *memory) Configs(context.Context, oci.Image) (map[string][]byte, error) { return nil, nil }

// judge refuses every repository named bad, for want of an SBOM.
type judge struct {
	version string
	asked   atomic.Int64
	wait    chan struct{} // nil: answers at once
	reads   bool
	offline bool // what it would need of a registry is not there
}

func (j *judge) Version() string { return j.version }

func (j *judge) Reads() (labels, object bool) { return false, j.reads }

func (j *judge) Decide(_ context.Context, s *policy.Subject, _ oci.Source) policy.Verdict {
	j.asked.Add(1)
	if j.wait != nil {
		<-j.wait
	}
	if s.Image.Name == "registry.example/panic" {
		panic("a policy that breaks")
	}
	switch s.Image.Name {
	case "registry.example/nobody/app":
		return policy.Verdict{Image: s.Image, Reason: policy.ReasonNoPolicy, Message: "no policy speaks of it"}
	case "registry.example/slow/app":
		return policy.Verdict{Image: s.Image, Reason: "deadline", Message: "the decision was not made in time", Policies: []policy.Outcome{{Policy: "signed", Mode: "enforce", Passed: true}}}
	}
	if j.offline {
		return policy.Verdict{Image: s.Image, Policies: []policy.Outcome{{Policy: "signed", Mode: "enforce", Reason: "registry-unreachable", Message: "no answer"}}}
	}
	passed := s.Image.Name != "registry.example/bad"
	o := policy.Outcome{Policy: "signed", Mode: "enforce", Passed: passed, Checks: []policy.Check{{Name: "signature", Passed: true}}}
	if !passed {
		o.Reason = "predicate-missing"
		o.Checks = append(o.Checks, policy.Check{Name: "sbom", PredicateType: "https://cyclonedx.org/bom", Reason: "predicate-missing", Message: "there is no such attestation"})
	}
	return policy.Verdict{Image: s.Image, Allowed: passed, Policies: []policy.Outcome{o}}
}

func newHook(t testing.TB, j *judge, m *memory, change func(*Options)) *Webhook {
	t.Helper()
	o := Options{
		Decider: func() (Decider, error) { return j, nil }, Sources: m, Rules: DefaultRules(), Logger: slog.New(slog.DiscardHandler),
		Labels: func(namespace string) map[string]string { return map[string]string{"sigstore-policy": namespace} },
	}
	if change != nil {
		change(&o)
	}
	hook, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return hook
}

// reviewOf is a review as kube-apiserver 1.33 writes it. spec has the object's members beside metadata; old is likewise or "".
func reviewOf(group, kindName, resource, sub, operation, namespace, spec, old string) string {
	version := "v1"
	object := func(members string) string {
		if members == "" {
			return "null"
		}
		api := version
		if group != "" {
			api = group + "/" + version
		}
		return fmt.Sprintf(`{"kind":%q,"apiVersion":%q,"metadata":{"name":"app-7d4f","namespace":%q,"creationTimestamp":null,"labels":{"app":"app"},"managedFields":[{"manager":"kubectl-run","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{".":{}}}}]},%s,"status":{}}`, kindName, api, namespace, members)
	}
	gvk := fmt.Sprintf(`{"group":%q,"version":%q,"kind":%q}`, group, version, kindName)
	gvr := fmt.Sprintf(`{"group":%q,"version":%q,"resource":%q}`, group, version, resource)
	return fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":"705ab4f5-6393-11e8-b7cc-42010a800002","kind":%s,"resource":%s,"subResource":%q,"requestKind":%s,"requestResource":%s,"requestSubResource":%q,"name":"app-7d4f","namespace":%q,"operation":%q,"userInfo":{"username":"admin","groups":["system:masters"]},"object":%s,"oldObject":%s,"dryRun":false,"options":{"kind":"CreateOptions","apiVersion":"meta.k8s.io/v1"}}}`,
		gvk, gvr, sub, gvk, gvr, sub, namespace, operation, object(spec), object(old))
}

func containers(images ...string) string {
	var all []string
	for i, image := range images {
		all = append(all, fmt.Sprintf(`{"name":"c%d","image":%q,"resources":{},"imagePullPolicy":"IfNotPresent"}`, i, image))
	}
	return `"containers":[` + strings.Join(all, ",") + `]`
}

func pod(images ...string) string {
	return `"spec":{"volumes":[{"name":"tmp","emptyDir":{}}],` + containers(images...) + `,"serviceAccountName":"default"}`
}

func post(t testing.TB, h http.Handler, path, body string) (int, response, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var answer struct {
		APIVersion, Kind string
		Response         response
	}
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || answer.APIVersion != reviewVersion || answer.Kind != reviewKind {
			t.Fatalf("answer %s: %v", w.Body, err)
		}
	}
	return w.Code, answer.Response, w.Body.String()
}

func handler(hook *Webhook) http.Handler { return NewHandler(hook, nil).Routes(hook.Ready) }

func TestReviews(t *testing.T) {
	template := func(images string) string { return `"spec":{"template":{"spec":{` + images + `}}}` }
	for name, tt := range map[string]struct {
		review  string
		denied  string // part of the message; "" for allowed
		status  int
		warning string
		reasons string
	}{
		"a signed pod":                   {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(good), "")},
		"a pod without its SBOM":         {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(good, bad), ""), denied: `container "c1": image ` + bad + `: policy "signed": SBOM: there is no such attestation (predicate-missing)`, status: 403, reasons: "sbom/predicate-missing"},
		"a tag":                          {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod("registry.example/app:v1"), ""), denied: "must be an image digest", status: 403, reasons: "image/digest_required"},
		"an init container":              {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", `"spec":{`+containers(good)+`,"initContainers":[{"name":"i","image":"`+bad+`"}]}`, ""), denied: `init container "i"`, status: 403},
		"an ephemeral container":         {review: reviewOf("", "Pod", "pods", "ephemeralcontainers", "UPDATE", "enforce", `"spec":{`+containers(good)+`,"ephemeralContainers":[{"name":"debug","image":"`+bad+`"}]}`, pod(good)), denied: `ephemeral container "debug"`, status: 403},
		"an image volume":                {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", `"spec":{`+containers(good)+`,"volumes":[{"name":"data","image":{"reference":"`+bad+`"}}]}`, ""), denied: `volume "data"`, status: 403},
		"a Deployment":                   {review: reviewOf("apps", "Deployment", "deployments", "", "CREATE", "enforce", template(containers(bad)), ""), denied: "SBOM", status: 403},
		"a ReplicaSet":                   {review: reviewOf("apps", "ReplicaSet", "replicasets", "", "CREATE", "enforce", template(containers(bad)), ""), denied: "SBOM", status: 403},
		"a StatefulSet":                  {review: reviewOf("apps", "StatefulSet", "statefulsets", "", "CREATE", "enforce", template(containers(bad)), ""), denied: "SBOM", status: 403},
		"a DaemonSet":                    {review: reviewOf("apps", "DaemonSet", "daemonsets", "", "CREATE", "enforce", template(containers(bad)), ""), denied: "SBOM", status: 403},
		"a Job":                          {review: reviewOf("batch", "Job", "jobs", "", "CREATE", "enforce", template(containers(bad)), ""), denied: "SBOM", status: 403},
		"a ReplicationController":        {review: reviewOf("", "ReplicationController", "replicationcontrollers", "", "CREATE", "enforce", template(containers(bad)), ""), denied: "SBOM", status: 403},
		"a PodTemplate":                  {review: reviewOf("", "PodTemplate", "podtemplates", "", "CREATE", "enforce", `"template":{"spec":{`+containers(bad)+`}}`, ""), denied: "SBOM", status: 403},
		"a CronJob":                      {review: reviewOf("batch", "CronJob", "cronjobs", "", "CREATE", "enforce", `"spec":{"schedule":"* * * * *","jobTemplate":{"spec":{"template":{"spec":{`+containers(bad)+`}}}}}`, ""), denied: "SBOM", status: 403},
		"another's kind with a template": {review: reviewOf("argoproj.io", "Rollout", "rollouts", "", "CREATE", "enforce", template(containers(bad)), ""), denied: "SBOM", status: 403},
		"a kind without a template":      {review: reviewOf("", "ConfigMap", "configmaps", "", "CREATE", "enforce", `"data":{}`, ""), denied: "no pod template", status: 403, reasons: "image/kind_unsupported"},
		"a binding runs nothing":         {review: reviewOf("", "Binding", "pods", "binding", "CREATE", "enforce", `"target":{}`, "")},
		"status is not looked at":        {review: reviewOf("", "Pod", "pods", "status", "UPDATE", "enforce", pod(bad), pod(good))},
		"a scale has no images":          {review: reviewOf("autoscaling", "Scale", "deployments", "scale", "UPDATE", "enforce", `"spec":{"replicas":1}`, `"spec":{"replicas":3}`)},
		"a deletion":                     {review: reviewOf("", "Pod", "pods", "", "DELETE", "enforce", "", pod(bad))},
		"an update of labels":            {review: reviewOf("", "Pod", "pods", "", "UPDATE", "enforce", pod(bad), pod(bad))},
		"scaling down":                   {review: reviewOf("apps", "Deployment", "deployments", "", "UPDATE", "enforce", `"spec":{"replicas":1,"template":{"spec":{`+containers(bad)+`}}}`, `"spec":{"replicas":3,"template":{"spec":{`+containers(bad)+`}}}`)},
		"scaling down with a new image":  {review: reviewOf("apps", "Deployment", "deployments", "", "UPDATE", "enforce", `"spec":{"replicas":1,"template":{"spec":{`+containers(bad)+`}}}`, `"spec":{"replicas":3,"template":{"spec":{`+containers(good)+`}}}`), denied: "SBOM", status: 403},
		"only what is new is judged":     {review: reviewOf("", "Pod", "pods", "", "UPDATE", "enforce", pod(bad, good), pod(bad))},
		"an ending pod":                  {review: strings.Replace(reviewOf("", "Pod", "pods", "", "UPDATE", "enforce", pod(bad), pod(good)), `"creationTimestamp":null`, `"creationTimestamp":null,"deletionTimestamp":"2026-11-26T12:00:00Z"`, 1)},
		"a pod made as ending":           {review: strings.Replace(reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(bad), ""), `"creationTimestamp":null`, `"creationTimestamp":null,"deletionTimestamp":"2026-11-26T12:00:00Z"`, 1), denied: "SBOM", status: 403},
		"mode warn":                      {review: reviewOf("", "Pod", "pods", "", "CREATE", "warn", pod(bad), ""), warning: "SBOM", reasons: "sbom/predicate-missing"},
		"mode audit":                     {review: reviewOf("", "Pod", "pods", "", "CREATE", "audit", pod(bad), ""), reasons: "sbom/predicate-missing"},
		"a namespace without a label":    {review: reviewOf("", "Pod", "pods", "", "CREATE", "", pod(bad), ""), denied: "SBOM", status: 403},
		"no policy speaks of it":         {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(strings.Replace(good, "/app@", "/nobody/app@", 1)), ""), denied: "no policy speaks of it (no-matching-policy)", status: 403, reasons: "image/no-matching-policy"},
		"time ran out in between":        {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(strings.Replace(good, "/app@", "/slow/app@", 1)), ""), denied: "not made in time (deadline)", status: 504, reasons: "image/deadline"},
		"a policy that panics":           {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(strings.Replace(good, "/app@", "/panic@", 1)), ""), denied: "could not be judged", status: 503},
		"an image twice in a container":  {review: strings.Replace(reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(bad), ""), `"image":`, `"image":"`+good+`","image":`, 1), denied: "appears twice", status: 403},
		"a member spelled otherwise":     {review: strings.Replace(reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(bad), ""), `"image":`, `"Image":"`+good+`","image":`, 1), denied: "SBOM", status: 403},
		"a digest of another algorithm":  {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod("registry.example/app@sha512:"+strings.Repeat("1", 128)), ""), denied: "is not an image reference", status: 403},
		"an empty image in a pod":        {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(""), ""), denied: "image is empty", status: 403},
		"too many containers":            {review: reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(make([]string, maxContainers+1)...), ""), denied: "at most 256", status: 403},
	} {
		t.Run(name, func(t *testing.T) {
			code, got, text := post(t, handler(newHook(t, &judge{version: "1"}, &memory{}, nil)), "/validate?timeout=10s", tt.review)
			if code != http.StatusOK || got.UID != "705ab4f5-6393-11e8-b7cc-42010a800002" {
				t.Fatalf("%d %s", code, text)
			}
			if got.Allowed != (tt.denied == "") || got.Status != nil && (got.Status.Code != tt.status || !strings.Contains(got.Status.Message, tt.denied)) {
				t.Errorf("got %s, want %d %q", text, tt.status, tt.denied)
			}
			if warned := strings.Join(got.Warnings, " "); tt.warning != "" && !strings.Contains(warned, tt.warning) || tt.warning == "" && warned != "" {
				t.Errorf("warnings %q, want %q", warned, tt.warning)
			}
			if tt.reasons != "" && got.AuditAnnotations["reasons"] != tt.reasons {
				t.Errorf("reasons %q, want %q", got.AuditAnnotations["reasons"], tt.reasons)
			}
		})
	}
}

func TestWhatIsNoReviewIsRefused(t *testing.T) {
	whole := reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(good), "")
	for name, tt := range map[string]struct {
		body   string
		path   string
		status int
	}{
		"not JSON":             {body: "x", status: 400},
		"another version":      {body: strings.Replace(whole, "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1), status: 400},
		"another kind":         {body: strings.Replace(whole, "AdmissionReview", "Review", 1), status: 400},
		"no uid":               {body: strings.Replace(whole, "705ab4f5-6393-11e8-b7cc-42010a800002", "", 1), status: 400},
		"two objects":          {body: strings.Replace(whole, `"object":`, `"object":null,"object":`, 1), status: 400},
		"data behind it":       {body: whole + "{}", status: 400},
		"an unknown operation": {body: strings.Replace(whole, "CREATE", "PATCH", 1), status: 400},
		"too large":            {body: whole + strings.Repeat(" ", maxReview), status: 413},
		"a timeout of nothing": {body: whole, path: "/validate?timeout=no", status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			path := tt.path
			if path == "" {
				path = "/validate"
			}
			if code, _, text := post(t, handler(newHook(t, &judge{}, &memory{}, nil)), path, tt.body); code != tt.status {
				t.Errorf("%d %s, want %d", code, text, tt.status)
			}
		})
	}
}

func TestTagsArePinnedOnce(t *testing.T) {
	m := &memory{}
	h := handler(newHook(t, &judge{}, m, nil))
	digest := good[strings.Index(good, "@"):]
	review := reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod("registry.example/app:v1", good, "registry.example/app", "registry.example/app:v1"), "")
	_, got, text := post(t, h, "/mutate", review)
	want := `[{"op":"replace","path":"/spec/containers/0/image","value":"registry.example/app:v1` + digest + `"},` +
		`{"op":"replace","path":"/spec/containers/2/image","value":"registry.example/app:latest` + digest + `"},` +
		`{"op":"replace","path":"/spec/containers/3/image","value":"registry.example/app:v1` + digest + `"}]`
	if string(got.Patch) != want || got.PatchType != "JSONPatch" || !got.Allowed {
		t.Fatalf("patch %s, want %s: %s", got.Patch, want, text)
	}
	if n := m.resolved.Load(); n != 2 {
		t.Errorf("%d tags were resolved, want 2", n)
	}
	pinned := reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod("registry.example/app:v1"+digest), "")
	if _, again, text := post(t, h, "/mutate", pinned); again.Patch != nil {
		t.Errorf("a second call patches again: %s", text)
	}
	if _, verdict, text := post(t, h, "/validate", pinned); !verdict.Allowed {
		t.Errorf("what was pinned is refused: %s", text)
	}
	m.down.Store(true)
	lost := reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod("registry.example/app:v2"), "")
	if _, got, text := post(t, h, "/mutate", lost); got.Patch != nil || !got.Allowed || len(got.Warnings) != 1 {
		t.Errorf("a registry that is down: %s", text)
	}
	if _, got, text := post(t, h, "/validate", lost); got.Allowed || got.Status.Code != 503 || !strings.Contains(got.Status.Message, "registry-unreachable") {
		t.Errorf("a registry that is down: %s", text)
	}
}

func TestVerdictsAreRemembered(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	j, m := &judge{version: "1"}, &memory{}
	h := handler(newHook(t, j, m, func(o *Options) { o.Now = func() time.Time { return now } }))
	ask := func(image, namespace string, asked int64) {
		t.Helper()
		j.asked.Store(0)
		post(t, h, "/validate", reviewOf("", "Pod", "pods", "", "CREATE", namespace, pod(image), ""))
		if got := j.asked.Load(); got != asked {
			t.Errorf("%s: policies were asked %d times, want %d", image, got, asked)
		}
	}
	ask(good, "enforce", 1)
	ask(good, "enforce", 0)
	m.down.Store(true)
	ask(good, "enforce", 0) // the registry is not needed
	m.down.Store(false)
	ask(good, "warn", 1) // another namespace
	ask(bad, "enforce", 1)
	ask(bad, "enforce", 0)
	now = now.Add(31 * time.Second)
	ask(bad, "enforce", 1) // a signature may have come
	ask(good, "enforce", 0)
	now = now.Add(time.Hour)
	ask(good, "enforce", 1)
	j.version = "2"
	ask(good, "enforce", 1)
}

func TestTwoHundredPodsAtOnce(t *testing.T) {
	j := &judge{version: "1"}
	h := handler(newHook(t, j, &memory{}, nil))
	var all sync.WaitGroup
	var refused atomic.Int64
	for i := range 200 {
		all.Go(func() {
			image := good
			if i%2 == 0 { // a hundred images of their own beside a hundred pods of one
				image = fmt.Sprintf("registry.example/app@sha256:%064x", i)
			}
			_, got, _ := post(t, h, "/validate?timeout=10s", reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(image), ""))
			if !got.Allowed {
				refused.Add(1)
			}
		})
	}
	all.Wait()
	if n := refused.Load(); n > 0 {
		t.Errorf("%d pods were refused", n)
	}
	if n := j.asked.Load(); n != 101 {
		t.Errorf("policies were asked %d times, want once for each of 101 images", n)
	}
}

func TestWhatIsLateIsRefusedAndGoesOn(t *testing.T) {
	j := &judge{version: "1", wait: make(chan struct{})}
	h := handler(newHook(t, j, &memory{}, nil))
	review := reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(good), "")
	_, got, text := post(t, h, "/validate?timeout=600ms", review)
	if got.Allowed || got.Status.Code != http.StatusGatewayTimeout || !strings.Contains(got.Status.Message, "timed out; try again") {
		t.Fatalf("late: %s", text)
	}
	close(j.wait)
	if _, got, text := post(t, h, "/validate?timeout=10s", review); !got.Allowed || j.asked.Load() != 1 {
		t.Errorf("asked %d times: %s", j.asked.Load(), text)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(gone, http.MethodPost, "/validate", strings.NewReader(review))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if !bytes.Contains(w.Body.Bytes(), []byte(`"allowed":false`)) {
		t.Errorf("who hung up is told %s", w.Body)
	}
}

// carried is a set with images that lie on disk.
type carried struct {
	*memory
	images []oci.Image
}

func (c *carried) Images(context.Context) ([]oci.Image, error) { return c.images, nil }

func TestPreverifiedImagesNeedNoRegistry(t *testing.T) {
	image := func(written string) oci.Image {
		name, digest, _ := strings.Cut(written, "@")
		return oci.Image{Name: name, Digest: digest}
	}
	for name, tt := range map[string]struct {
		registry string // of the set
		asked    string
		version  string // in force later
		reads    bool
		allowed  bool
	}{
		"an image of a set":                     {asked: good, version: "1", allowed: true},
		"by its tag too":                        {asked: strings.Replace(good, "@", ":v1@", 1), version: "1", allowed: true},
		"what the policies refuse":              {asked: bad, version: "1"},
		"other policies since":                  {asked: good, version: "2"},
		"in another place":                      {asked: strings.Replace(good, "/app@", "/copy/app@", 1), version: "1"},
		"where the set was pushed":              {registry: "inside.example/copy", asked: strings.Replace(good, "registry.example/", "inside.example/copy/", 1), version: "1", allowed: true},
		"where it came from":                    {registry: "inside.example/copy", asked: good, version: "1"},
		"policies that look at the pod as well": {asked: good, version: "1", reads: true},
	} {
		t.Run(name, func(t *testing.T) {
			j, m := &judge{version: "1", reads: tt.reads}, &memory{}
			list, err := Preverify(t.Context(), j, []CarrySet{{&carried{m, []oci.Image{image(good), image(bad), {Digest: image(good).Digest}}}, tt.registry}})
			if err != nil {
				t.Fatal(err)
			}
			j.version = tt.version
			j.offline = true
			h := handler(newHook(t, j, m, func(o *Options) { o.Preverified = func() *Preverified { return list } }))
			if _, got, text := post(t, h, "/validate", reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(tt.asked), "")); got.Allowed != tt.allowed {
				t.Errorf("%s", text)
			}
		})
	}
}

func FuzzReview(f *testing.F) {
	f.Add([]byte(reviewOf("", "Pod", "pods", "", "CREATE", "enforce", pod(bad), "")))
	f.Add([]byte(reviewOf("batch", "CronJob", "cronjobs", "", "UPDATE", "warn", `"spec":{"jobTemplate":{"spec":{"template":{"spec":{`+containers(bad)+`}}}}}`, pod(good))))
	hook := newHook(f, &judge{version: "1"}, &memory{}, nil)
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseReview(body)
		if err != nil {
			return
		}
		answer, _, _ := hook.validate(t.Context(), r)
		// Whatever else the object says, a Pod that runs the bad image and nothing before it is not let in.
		var standard struct {
			Request struct {
				Operation, SubResource, Namespace string
				Kind                              struct{ Group, Kind string }
				OldObject                         any
				Object                            struct {
					Metadata struct{ DeletionTimestamp any }
					Spec     struct{ Containers []struct{ Image string } }
				}
			}
		}
		if json.Unmarshal(body, &standard) != nil {
			return
		}
		q := standard.Request
		if r.Operation != "CREATE" || r.SubResource != "" || r.Kind != (kind{Version: r.Kind.Version, Kind: "Pod"}) || q.Object.Metadata.DeletionTimestamp != nil {
			return
		}
		if mode, _ := hook.modeOf(r.Namespace); mode != Enforce {
			return
		}
		w, err := parseWorkload(r.Kind, r.Object)
		if err != nil {
			if answer.Allowed {
				t.Fatalf("not understood, but allowed: %s", body)
			}
			return
		}
		for _, u := range w.images {
			if u.Image == bad && answer.Allowed {
				t.Fatalf("allowed: %s", body)
			}
		}
	})
}
