package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits of objects that are read from files.
const (
	maxObjects = 1000
	maxUses    = 1000 // images of one object
)

// Object is an object of Kubernetes as policies see it; its Subject has no image yet.
type Object struct {
	Subject
	Name string // "Deployment/web"

	fields map[string]any
}

// Use is a place in an object where an image stands.
type Use struct {
	Where string // `init container "migrate"`
	Image string // the reference as it is written
}

// ReadObjects reads objects of Kubernetes: YAML or JSON, several documents in one, lists as kubectl prints them.
func ReadObjects(data []byte) ([]*Object, error) {
	var objects []*Object
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for n := 1; ; n++ {
		var fields map[string]any
		err := decoder.Decode(&fields)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && fields != nil { // an empty document is none
			objects, err = appendObjects(objects, fields, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
	if len(objects) == 0 {
		return nil, errors.New("no object is there")
	}
	return objects, nil
}

// ReadSubject reads one object of Kubernetes, in YAML or JSON, as policies see it. It has no image yet.
func ReadSubject(data []byte) (*Subject, error) {
	objects, err := ReadObjects(data)
	if err != nil {
		return nil, err
	}
	if len(objects) > 1 {
		return nil, fmt.Errorf("%d objects are there, one is wanted", len(objects))
	}
	return &objects[0].Subject, nil
}

// appendObjects adds an object, or those of a list (which may hold lists).
func appendObjects(objects []*Object, fields map[string]any, depth int) ([]*Object, error) {
	kind, _ := fields["kind"].(string)
	apiVersion, _ := fields["apiVersion"].(string)
	if kind == "" || apiVersion == "" {
		return nil, errors.New("it has no apiVersion or kind")
	}
	of, isList := strings.CutSuffix(kind, "List")
	items, hasItems := fields["items"].([]any)
	if !isList || !hasItems {
		if len(objects) == maxObjects {
			return nil, fmt.Errorf("more than %d objects", maxObjects)
		}
		o, err := newObject(kind, apiVersion, fields)
		if err != nil {
			return nil, err
		}
		return append(objects, o), nil
	}
	if depth > 1 {
		return nil, errors.New("lists in lists in lists")
	}
	for i, item := range items {
		inner, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("items[%d] is no object", i)
		}
		if of != "" && inner["kind"] == nil { // a PodList's pods do not say what they are
			inner["kind"], inner["apiVersion"] = of, apiVersion
		}
		var err error
		if objects, err = appendObjects(objects, inner, depth+1); err != nil {
			return nil, fmt.Errorf("items[%d]: %w", i, err)
		}
	}
	return objects, nil
}

func newObject(kind, apiVersion string, fields map[string]any) (*Object, error) {
	o := &Object{fields: fields, Subject: Subject{Kind: kind, APIVersion: apiVersion, Labels: map[string]string{}}}
	metadata, ok := fields["metadata"].(map[string]any)
	if !ok && fields["metadata"] != nil {
		return nil, errors.New("metadata is no object")
	}
	group, version, found := strings.Cut(apiVersion, "/")
	if !found {
		group, version = "", apiVersion
	}
	o.Group, o.Version, o.Resource = group, version, strings.ToLower(kind)+"s"
	name, _ := metadata["name"].(string)
	if name == "" {
		name, _ = metadata["generateName"].(string)
	}
	o.Name = kind + "/" + name
	if o.Namespace, _ = metadata["namespace"].(string); o.Namespace == "" {
		o.Namespace = "default"
	}
	labels, ok := metadata["labels"].(map[string]any)
	if !ok && metadata["labels"] != nil {
		return nil, errors.New("metadata.labels is no object")
	}
	for k, v := range labels {
		text, ok := v.(string)
		if !ok {
			return nil, fmt.Errorf("label %q is not a string", k)
		}
		o.Labels[k] = text
	}
	var err error
	if o.Metadata, err = json.Marshal(metadata); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if o.Spec, err = json.Marshal(fields["spec"]); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	return o, nil
}

// podSpecs are where kinds of Kubernetes have the specification of their pods, by group and kind; versions differ in nothing there.
var podSpecs = map[string][]string{
	"/Pod":                   {"spec"},
	"/PodTemplate":           {"template", "spec"},
	"/ReplicationController": podTemplate,
	"apps/Deployment":        podTemplate,
	"apps/ReplicaSet":        podTemplate,
	"apps/StatefulSet":       podTemplate,
	"apps/DaemonSet":         podTemplate,
	"batch/Job":              podTemplate,
	"batch/CronJob":          {"spec", "jobTemplate", "spec", "template", "spec"},
}

var podTemplate = []string{"spec", "template", "spec"}

// PodSpec returns where a kind has the specification of its pods, and whether that is certain: kinds that Kubernetes does not define have
// it, if at all, where a Deployment has.
func PodSpec(group, kind string) (path []string, certain bool) {
	if path, certain = podSpecs[group+"/"+kind]; !certain {
		path = podTemplate
	}
	return path, certain
}

// Uses returns all places where the object runs an image: containers, init and ephemeral containers, volumes that are images. runs is
// false for an object that makes no pods.
func (o *Object) Uses() (uses []Use, runs bool, err error) {
	path, known := PodSpec(o.Group, o.Kind)
	var pod any = o.fields
	for _, name := range path {
		fields, ok := pod.(map[string]any)
		if !ok {
			return nil, false, nil
		}
		pod = fields[name]
	}
	fields, ok := pod.(map[string]any)
	if !ok || fields["containers"] == nil && !known {
		return nil, false, nil
	}
	for _, list := range []struct{ name, word, in, reference string }{
		{"initContainers", "init container", "", "image"}, {"containers", "container", "", "image"},
		{"ephemeralContainers", "ephemeral container", "", "image"}, {"volumes", "volume", "image", "reference"},
	} {
		found, err := usesIn(fields, list.name, list.word, list.in, list.reference)
		if err != nil {
			return nil, true, fmt.Errorf("%s: %w", o.Name, err)
		}
		if uses = append(uses, found...); len(uses) > maxUses {
			return nil, true, fmt.Errorf("%s: more than %d images", o.Name, maxUses)
		}
	}
	return uses, true, nil
}

// usesIn reads the references of a list, of which those without the member in are left out.
func usesIn(pod map[string]any, name, word, in, reference string) ([]Use, error) {
	list, ok := pod[name].([]any)
	if !ok && pod[name] != nil {
		return nil, fmt.Errorf("%s is no list", name)
	}
	var uses []Use
	for i, item := range list {
		fields, ok := item.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s[%d] is no object", name, i)
		}
		called, _ := fields["name"].(string)
		if in != "" {
			if fields[in] == nil {
				continue
			}
			if fields, ok = fields[in].(map[string]any); !ok {
				return nil, fmt.Errorf("%s[%d].%s is no object", name, i, in)
			}
		}
		image, _ := fields[reference].(string)
		if image == "" {
			return nil, fmt.Errorf("%s %q has no image", word, called)
		}
		uses = append(uses, Use{Where: fmt.Sprintf("%s %q", word, called), Image: image})
	}
	return uses, nil
}

// ByImage groups uses by their image, in the order in which images appear.
func ByImage(uses []Use) (images []string, where map[string][]string) {
	where = make(map[string][]string)
	for _, u := range uses {
		if !slices.Contains(images, u.Image) {
			images = append(images, u.Image)
		}
		where[u.Image] = append(where[u.Image], u.Where)
	}
	return images, where
}
