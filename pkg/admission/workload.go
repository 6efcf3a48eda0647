package admission

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/policy"
)

// Bounds of a workload. The API server's 3 MiB for one object have room for more, which nobody runs.
const (
	maxContainers = 256 // of each kind, and image volumes
	maxVolumes    = 1024
	maxSecrets    = 64
	maxLabels     = 1024
)

// Workload is an object that runs images, as far as admission looks at it.
type Workload struct {
	Namespace, Name string
	ServiceAccount  string   // empty for the namespace's default
	PullSecrets     []string // names of secrets in the namespace

	images   []use
	labels   map[string]string
	metadata json.RawMessage // of the object
	spec     json.RawMessage
	ending   bool // deletionTimestamp is set
}

// use is one place where an image stands.
type use struct {
	Path  string // JSON pointer to the reference
	Where string // `container "app"`
	Image string // the reference as it is written
}

// parseWorkload reads an object of kind k. Errors are fault.Denied: what is not understood does not run.
func parseWorkload(k kind, raw json.RawMessage) (*Workload, error) {
	path, known := policy.PodSpec(k.Group, k.Kind)
	w := &Workload{}
	pod, err := w.read(path, raw)
	switch {
	case err != nil:
		return nil, fault.New(fault.Denied, "object_malformed", nil, "%s: %v", k, err)
	case !known && !given(pod["containers"]):
		return nil, fault.New(fault.Denied, "kind_unsupported", nil, "%s has no pod template that is known here: take it out of the webhook's rules", k)
	}
	if err := w.readPod(pod, path); err != nil {
		return nil, fault.New(fault.Denied, "object_malformed", nil, "%s: %v", k, err)
	}
	return w, nil
}

// read takes what belongs to the object itself and returns its pod specification.
func (w *Workload) read(path []string, raw json.RawMessage) (object, error) {
	top, err := members(raw)
	if err != nil {
		return nil, err
	}
	metadata, err := top.object("metadata")
	if err != nil {
		return nil, err
	}
	w.metadata, w.spec = top["metadata"], top["spec"]
	w.ending = given(metadata["deletionTimestamp"])
	if err := metadata.texts(text{"name", &w.Name}, text{"namespace", &w.Namespace}); err != nil {
		return nil, err
	}
	if w.Name == "" {
		if err := metadata.texts(text{"generateName", &w.Name}); err != nil {
			return nil, err
		}
	}
	labels, err := metadata.object("labels")
	if err != nil {
		return nil, err
	}
	if len(labels) > maxLabels {
		return nil, fmt.Errorf("%d labels, at most %d are looked at", len(labels), maxLabels)
	}
	w.labels = make(map[string]string, len(labels))
	for name := range labels {
		var value string
		if err := labels.texts(text{name, &value}); err != nil {
			return nil, fmt.Errorf("label %w", err)
		}
		w.labels[name] = value
	}
	at := top
	for _, name := range path {
		if at, err = at.object(name); err != nil {
			return nil, err
		}
	}
	return at, nil
}

// readPod takes the images of a pod's specification, and whose credentials may fetch them.
func (w *Workload) readPod(pod object, path []string) error {
	pointer := ""
	template := len(path) > 1 // where something else may still fill in an image: the pod is looked at again
	for _, name := range path {
		pointer += "/" + name
	}
	if err := pod.texts(text{"serviceAccountName", &w.ServiceAccount}); err != nil {
		return err
	}
	secrets, err := pod.list("imagePullSecrets", maxSecrets)
	if err != nil {
		return err
	}
	for _, raw := range secrets {
		var name string
		secret, err := members(raw)
		if err == nil {
			err = secret.texts(text{"name", &name})
		}
		if err != nil {
			return fmt.Errorf("imagePullSecrets: %w", err)
		}
		if name != "" {
			w.PullSecrets = append(w.PullSecrets, name)
		}
	}
	for _, list := range []struct{ name, word string }{
		{"initContainers", "init container"}, {"containers", "container"}, {"ephemeralContainers", "ephemeral container"},
	} {
		containers, err := pod.list(list.name, maxContainers)
		if err != nil {
			return err
		}
		for i, raw := range containers {
			var name, image string
			container, err := members(raw)
			if err == nil {
				err = container.texts(text{"name", &name}, text{"image", &image})
			}
			if err == nil && image == "" {
				if template {
					continue
				}
				err = errors.New("image is empty")
			}
			if err != nil {
				return fmt.Errorf("%s[%d]: %w", list.name, i, err)
			}
			w.images = append(w.images, use{pointer + "/" + list.name + "/" + strconv.Itoa(i) + "/image", fmt.Sprintf("%s %q", list.word, name), image})
		}
	}
	return w.readVolumes(pod, pointer, template)
}

// readVolumes takes the volumes that are images (Kubernetes 1.31 and later).
func (w *Workload) readVolumes(pod object, pointer string, template bool) error {
	volumes, err := pod.list("volumes", maxVolumes)
	if err != nil {
		return err
	}
	found := 0
	for i, raw := range volumes {
		var name, reference string
		volume, err := members(raw)
		if err != nil {
			return fmt.Errorf("volumes[%d]: %w", i, err)
		}
		if !given(volume["image"]) {
			continue
		}
		image, err := volume.object("image")
		if err == nil {
			err = errors.Join(volume.texts(text{"name", &name}), image.texts(text{"reference", &reference}))
		}
		if err == nil && reference == "" {
			if template {
				continue
			}
			err = errors.New("image.reference is empty")
		}
		if found++; found > maxContainers {
			err = fmt.Errorf("more than %d image volumes", maxContainers)
		}
		if err != nil {
			return fmt.Errorf("volumes[%d]: %w", i, err)
		}
		w.images = append(w.images, use{pointer + "/volumes/" + strconv.Itoa(i) + "/image/reference", fmt.Sprintf("volume %q", name), reference})
	}
	return nil
}

// changed returns the uses whose image does not stand in before: what ran already is not looked at again, so that labels
// can be changed and replicas be taken away while the registry is down. A nil before has no images.
func (w *Workload) changed(before *Workload) []use {
	if before == nil {
		return w.images
	}
	ran := map[string]bool{}
	for _, u := range before.images {
		ran[u.Image] = true
	}
	var left []use
	for _, u := range w.images {
		if !ran[u.Image] {
			left = append(left, u)
		}
	}
	return left
}
