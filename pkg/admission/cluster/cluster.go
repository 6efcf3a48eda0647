// Package cluster is what the admission webhook asks of the API server and keeps there: labels of namespaces, policies, pull
// secrets, running pods, its own certificate and the webhook configurations that name it. It is the only package that
// knows a Kubernetes client, and takes the dynamic one: the typed clients link every API there is for the few fields that are read here.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// namespaceFile is where a kubelet tells a pod its namespace.
	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

	callTime         = 10 * time.Second // for one request that is no watch
	pageSize         = 500              // objects of one page of a list
	perSecond, burst = 100, 400         // requests to the API server: 200 pods of 200 service accounts at once wait for nobody
)

var (
	namespaces      = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	pods            = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	secrets         = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	configMaps      = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	leases          = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
	imagePolicies   = schema.GroupVersionResource{Group: "policy.sigstore.dev", Version: "v1beta1", Resource: "clusterimagepolicies"}
	trustRoots      = schema.GroupVersionResource{Group: "policy.sigstore.dev", Version: "v1alpha1", Resource: "trustroots"}
	validating      = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
	mutating        = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
)

// Cluster is a connection to an API server. It is safe for concurrent use.
type Cluster struct {
	client    dynamic.Interface
	namespace string
	logger    *slog.Logger
}

// Open connects with a kubeconfig file or, without one, as the pod that this process runs in. namespace is where its own objects
// are, "" for the pod's.
func Open(kubeconfig, namespace string, logger *slog.Logger) (*Cluster, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	if namespace == "" {
		text, err := os.ReadFile(namespaceFile)
		if err != nil {
			return nil, fmt.Errorf("own namespace: %w", err)
		}
		namespace = strings.TrimSpace(string(text))
	}
	config.UserAgent, config.QPS, config.Burst = "attestry-admission", perSecond, burst
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	return &Cluster{client, namespace, logger}, nil
}

// Namespace is the one of the program's own objects.
func (c *Cluster) Namespace() string { return c.namespace }

// follow keeps a copy of all objects of a resource until ctx ends. keep cuts what is not needed out of each; changed, which may be
// nil, is called after each change.
func (c *Cluster) follow(ctx context.Context, resource schema.GroupVersionResource, keep func(*unstructured.Unstructured), changed func()) (cache.SharedIndexInformer, error) {
	all := c.client.Resource(resource)
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return all.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return all.Watch(ctx, o)
		},
	}, &unstructured.Unstructured{}, 0, cache.Indexers{})
	err := informer.SetTransform(func(v any) (any, error) {
		if u, ok := v.(*unstructured.Unstructured); ok {
			keep(u)
		}
		return v, nil
	})
	if err == nil {
		err = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
			c.logger.Warn("watching", "resource", resource.Resource, "err", err)
		})
	}
	if err == nil && changed != nil {
		_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { changed() }, UpdateFunc: func(any, any) { changed() }, DeleteFunc: func(any) { changed() },
		})
	}
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", resource.Resource, err)
	}
	go informer.RunWithContext(ctx)
	return informer, nil
}

// Namespaces knows the labels of all namespaces.
type Namespaces struct{ informer cache.SharedIndexInformer }

// Namespaces follows the namespaces until ctx ends.
func (c *Cluster) Namespaces(ctx context.Context) (*Namespaces, error) {
	informer, err := c.follow(ctx, namespaces, func(u *unstructured.Unstructured) {
		u.Object = map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{
			"name": u.GetName(), "resourceVersion": u.GetResourceVersion(), "labels": anyMap(u.GetLabels()),
		}}
	}, nil)
	if err != nil {
		return nil, err
	}
	return &Namespaces{informer}, nil
}

func anyMap(labels map[string]string) map[string]any {
	all := make(map[string]any, len(labels))
	for name, value := range labels {
		all[name] = value
	}
	return all
}

// Labels returns the labels of a namespace, nil for one that is not known (yet).
func (n *Namespaces) Labels(name string) map[string]string {
	found, ok, err := n.informer.GetStore().GetByKey(name)
	if err != nil || !ok {
		return nil
	}
	u, ok := found.(*unstructured.Unstructured)
	if !ok {
		return nil
	}
	labels := u.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	return labels
}

// Ready is nil once all namespaces have been seen.
func (n *Namespaces) Ready() error {
	if !n.informer.HasSynced() {
		return errors.New("the namespaces are not known yet")
	}
	return nil
}

// Each calls f with each pod of the cluster, page by page. It implements admission.Pods.
func (c *Cluster) Each(ctx context.Context, f func(pod json.RawMessage) error) error {
	options := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := call(ctx, func(ctx context.Context) (*unstructured.UnstructuredList, error) {
			return c.client.Resource(pods).List(ctx, options)
		})
		if err != nil {
			return fmt.Errorf("listing pods: %w", err)
		}
		for i := range page.Items {
			text, err := page.Items[i].MarshalJSON()
			if err != nil {
				return fmt.Errorf("pod %s: %w", page.Items[i].GetName(), err)
			}
			if err := f(text); err != nil {
				return err
			}
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return nil
		}
	}
}

// call gives one request its time.
func call[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return f(ctx)
}
