package policy

import (
	"fmt"
	"strings"
	"testing"
)

func TestTheImagesOfObjects(t *testing.T) {
	const pod = `{
  initContainers: [{name: migrate, image: r.example/migrate:v1}, {name: proxy, image: r.example/proxy:v1, restartPolicy: Always}],
  containers: [{name: app, image: "r.example/app:v1"}, {name: copy, image: "r.example/app:v1"}],
  ephemeralContainers: [{name: debug, image: r.example/debug:v1}],
  volumes: [{name: cache, emptyDir: {}}, {name: model, image: {reference: r.example/model:v1}}]}`
	const all = `init container "migrate": r.example/migrate:v1
init container "proxy": r.example/proxy:v1
container "app": r.example/app:v1
container "copy": r.example/app:v1
ephemeral container "debug": r.example/debug:v1
volume "model": r.example/model:v1
`
	object := func(apiVersion, kind, rest string) string {
		return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: x, namespace: prod, labels: {tier: web}}\n%s\n", apiVersion, kind, rest)
	}
	template := "spec: {template: {spec: " + pod + "}}"
	for _, tt := range []struct{ name, text, resource, want string }{
		{"a Pod", object("v1", "Pod", "spec: "+pod), "/v1/pods", all},
		{"a Deployment", object("apps/v1", "Deployment", template), "apps/v1/deployments", all},
		{"a ReplicaSet", object("apps/v1", "ReplicaSet", template), "apps/v1/replicasets", all},
		{"a StatefulSet", object("apps/v1", "StatefulSet", template), "apps/v1/statefulsets", all},
		{"a DaemonSet", object("apps/v1", "DaemonSet", template), "apps/v1/daemonsets", all},
		{"a ReplicationController", object("v1", "ReplicationController", template), "/v1/replicationcontrollers", all},
		{"a Job", object("batch/v1", "Job", template), "batch/v1/jobs", all},
		{"a CronJob", object("batch/v1", "CronJob", "spec: {jobTemplate: {spec: {template: {spec: "+pod+"}}}}"), "batch/v1/cronjobs", all},
		{"a PodTemplate", object("v1", "PodTemplate", "template: {spec: "+pod+"}"), "/v1/podtemplates", all},
		{"a kind of somebody's own with a pod template", object("argoproj.io/v1alpha1", "Rollout", template), "argoproj.io/v1alpha1/rollouts", all},
		{"a kind that makes no pods", object("v1", "Service", "spec: {ports: [{port: 80}]}"), "/v1/services", "none"},
		{"a kind with a template of something else", object("x.example/v1", "Thing", "spec: {template: {spec: {image: x}}}"), "x.example/v1/things", "none"},
		{"JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"prod","labels":{"tier":"web"}},"spec":{"containers":[{"name":"a","image":"r.example/a"}]}}`, "/v1/pods", "container \"a\": r.example/a\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects, err := ReadObjects([]byte(tt.text))
			if err != nil || len(objects) != 1 {
				t.Fatal(len(objects), err)
			}
			o := objects[0]
			uses, runs, err := o.Uses()
			got := "none"
			if runs {
				got = ""
			}
			for _, u := range uses {
				got += u.Where + ": " + u.Image + "\n"
			}
			if err != nil || got != tt.want {
				t.Errorf("%v\n%s, want\n%s", err, got, tt.want)
			}
			if resource := o.Group + "/" + o.Version + "/" + o.Resource; resource != tt.resource || o.Namespace != "prod" || o.Labels["tier"] != "web" {
				t.Errorf("%s in %s with %v, want %s", resource, o.Namespace, o.Labels, tt.resource)
			}
		})
	}
}

func TestManyObjectsInOneFile(t *testing.T) {
	pod := func(name string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `"},"spec":{"containers":[{"name":"c","image":"r.example/` + name + `"}]}}`
	}
	text := pod("a") + "\n---\n# nothing but a remark\n---\n" +
		`{"apiVersion":"v1","kind":"List","items":[` + pod("b") + `,{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"}}]}` + "\n---\n" +
		`{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"c"},"spec":{"containers":[{"name":"c","image":"r.example/c"}]}}]}`
	objects, err := ReadObjects([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		uses, _, err := o.Uses()
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range uses {
			o.Name += " " + u.Image
		}
		got = append(got, o.Name)
	}
	if want := "Pod/a r.example/a, Pod/b r.example/b, Service/s, Pod/c r.example/c"; strings.Join(got, ", ") != want {
		t.Errorf("%v, want %s", got, want)
	}
	if _, err := ReadSubject([]byte(text)); err == nil {
		t.Error("one of several objects was taken for the subject")
	}
}

func TestObjectsThatAreNotUnderstoodAreRefused(t *testing.T) {
	pod := func(spec string) string { return "apiVersion: v1\nkind: Pod\nspec: " + spec }
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "# nothing", "no object"},
		{"no kind", "apiVersion: v1", "no apiVersion or kind"},
		{"a container without an image", pod("{containers: [{name: a}]}"), `container "a" has no image`},
		{"a member spelled in another way", pod("{containers: [{name: a, Image: r.example/a}]}"), `container "a" has no image`},
		{"an image that is no text", pod("{containers: [{name: a, image: [r.example/a]}]}"), `container "a" has no image`},
		{"an init container without an image", pod("{initContainers: [{name: i}], containers: [{name: a, image: r.example/a}]}"), `init container "i" has no image`},
		{"a volume without a reference", pod("{containers: [], volumes: [{name: v, image: {}}]}"), `volume "v" has no image`},
		{"containers that are no list", pod("{containers: {name: a}}"), "containers is no list"},
		{"a container that is none", pod("{containers: [a]}"), "containers[0] is no object"},
		{"a member twice", pod("{containers: [{name: a, image: r.example/a, image: r.example/b}]}"), "already defined"},
		{"a label that is no text", "apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: 1}}", "not a string"},
		{"something else in a list", `{apiVersion: v1, kind: List, items: [1]}`, "items[0] is no object"},
		{"the second document", pod("{containers: []}") + "\n---\nkind: Pod", "document 2"},
	} {
		objects, err := ReadObjects([]byte(tt.text))
		for _, o := range objects {
			_, _, err = o.Uses()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
