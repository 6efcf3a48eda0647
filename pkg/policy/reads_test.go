package policy

import "testing"

// TestWhatDecisionsDependOn: what a policy looks at decides whether a verdict holds for another object.
func TestWhatDecisionsDependOn(t *testing.T) {
	const cip = `apiVersion: policy.sigstore.dev/v1beta1
kind: ClusterImagePolicy
metadata: {name: p}
spec:
  images: [{glob: "**"}]
  authorities: [{static: {action: pass}}]
`
	for name, tt := range map[string]struct {
		policy         string
		labels, object bool
	}{
		"images alone":      {policy: cip},
		"a resource":        {policy: cip + "  match: [{group: apps, version: v1, resource: deployments}]\n"},
		"labels":            {policy: cip + "  match: [{group: \"\", version: v1, resource: pods, selector: {matchLabels: {a: b}}}]\n", labels: true},
		"the specification": {policy: cip + "  policy: {type: cue, data: \"spec: {...}\", includeSpec: true}\n", object: true},
		"the metadata":      {policy: cip + "  policy: {type: cue, data: \"metadata: {...}\", includeObjectMeta: true}\n", object: true},
	} {
		t.Run(name, func(t *testing.T) {
			loaded, err := Compile([]File{{Name: "p.yaml", Data: []byte(tt.policy)}}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			set, err := NewSet(loaded.Policies, SetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if labels, object := set.Reads(); labels != tt.labels || object != tt.object {
				t.Errorf("labels %v, object %v, want %v, %v", labels, object, tt.labels, tt.object)
			}
		})
	}
	set, err := NewSet([]Policy{&fixed{}}, SetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if labels, object := set.Reads(); !labels || !object {
		t.Error("a policy that does not say what it reads is taken to read nothing")
	}
}
