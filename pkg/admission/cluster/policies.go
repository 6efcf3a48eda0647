package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	maxObjects    = 1000 // policies and trust roots, and what they refer to
	maxReferences = 200
	// referencesEvery is how long what a policy refers to may have changed unseen: secrets and config maps are not watched, as
	// that needs the right to list all of a namespace.
	referencesEvery = 30 * time.Second
)

// Document is an object as JSON.
type Document struct {
	Name string // "ClusterImagePolicy signed"
	JSON []byte
}

// Policies follows the objects of policy.sigstore.dev.
type Policies struct {
	cluster   *Cluster
	informers []cache.SharedIndexInformer
	changed   chan struct{} // holds one token at most

	mu      sync.Mutex // guards failure
	failure error      // why the last Documents failed
}

// Policies follows ClusterImagePolicies and TrustRoots until ctx ends.
func (c *Cluster) Policies(ctx context.Context) (*Policies, error) {
	p := &Policies{cluster: c, changed: make(chan struct{}, 1)}
	for _, resource := range []schema.GroupVersionResource{imagePolicies, trustRoots} {
		informer, err := c.follow(ctx, resource, onlyPolicy, p.wake)
		if err != nil {
			return nil, err
		}
		p.informers = append(p.informers, informer)
	}
	return p, nil
}

// onlyPolicy keeps what says something: bookkeeping and status change too often to compile policies anew for them.
func onlyPolicy(u *unstructured.Unstructured) {
	metadata := map[string]any{"name": u.GetName(), "resourceVersion": u.GetResourceVersion()}
	annotations := map[string]any{}
	for key, value := range u.GetAnnotations() {
		if key != "kubectl.kubernetes.io/last-applied-configuration" {
			annotations[key] = value
		}
	}
	if len(annotations) > 0 {
		metadata["annotations"] = annotations
	}
	object := map[string]any{"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "metadata": metadata}
	if spec, ok := u.Object["spec"]; ok {
		object["spec"] = spec
	}
	u.Object = object
}

func (p *Policies) wake() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Follow calls take with the objects now, when they change and every half minute for what they refer to, until ctx ends. take is
// called with the same objects again and has to find that nothing is new.
func (p *Policies) Follow(ctx context.Context, take func([]Document)) {
	looks := time.NewTicker(referencesEvery)
	defer looks.Stop()
	synced := make([]cache.InformerSynced, len(p.informers))
	for i, informer := range p.informers {
		synced[i] = informer.HasSynced
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return
	}
	for {
		documents, err := p.documents(ctx)
		p.mu.Lock()
		p.failure = err
		p.mu.Unlock()
		if err != nil {
			p.cluster.logger.Warn("policies of the cluster", "err", err)
		} else {
			take(documents)
		}
		select {
		case <-p.changed:
		case <-looks.C:
		case <-ctx.Done():
			return
		}
	}
}

// Ready is nil once all policies are known.
func (p *Policies) Ready() error {
	for _, informer := range p.informers {
		if !informer.HasSynced() {
			return errors.New("the policies of the cluster are not known yet; are their CRDs installed?")
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failure
}

// documents returns all policies and trust roots by name, then the secrets and config maps that they refer to.
func (p *Policies) documents(ctx context.Context) ([]Document, error) {
	var all []Document
	references := map[reference]bool{}
	for _, informer := range p.informers {
		for _, found := range informer.GetStore().List() {
			u, ok := found.(*unstructured.Unstructured)
			if !ok {
				return nil, fmt.Errorf("a %T among the policies", found)
			}
			findReferences(u.Object["spec"], references)
			d, err := document(u)
			if err != nil {
				return nil, err
			}
			all = append(all, d)
		}
	}
	if len(all) > maxObjects || len(references) > maxReferences {
		return nil, fmt.Errorf("%d policies and trust roots with %d references, at most %d and %d are read", len(all), len(references), maxObjects, maxReferences)
	}
	for r := range references {
		u, err := call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return p.cluster.client.Resource(r.resource).Namespace(p.cluster.namespace).Get(ctx, r.name, metav1.GetOptions{})
		})
		if apierrors.IsNotFound(err) {
			continue // whoever compiles the policy says so, with the policy's name
		}
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", r.resource.Resource, r.name, err)
		}
		u.Object["metadata"] = map[string]any{"name": u.GetName(), "namespace": u.GetNamespace()}
		d, err := document(u)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b Document) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

func document(u *unstructured.Unstructured) (Document, error) {
	u = u.DeepCopy()
	unstructured.RemoveNestedField(u.Object, "metadata", "resourceVersion")
	text, err := u.MarshalJSON()
	if err != nil {
		return Document{}, fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), err)
	}
	return Document{u.GetKind() + " " + u.GetName(), text}, nil
}

// reference names a secret or config map in the program's namespace.
type reference struct {
	resource schema.GroupVersionResource
	name     string
}

// findReferences looks for secretRef and configMapRef wherever they stand.
func findReferences(v any, found map[reference]bool) {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			findReferences(one, found)
		}
	case map[string]any:
		for key, value := range v {
			resource := secrets
			switch key {
			case "configMapRef":
				resource = configMaps
				fallthrough
			case "secretRef":
				if m, ok := value.(map[string]any); ok {
					if name, ok := m["name"].(string); ok && name != "" {
						found[reference{resource, name}] = true
					}
				}
			default:
				findReferences(value, found)
			}
		}
	}
}
