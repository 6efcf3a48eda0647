package cluster

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Lease gives one replica at a time a task that none of them must do twice at once. Losing it does no harm: there is no
// need to renew it while the task runs.
type Lease struct {
	cluster *Cluster
	name    string
	holder  string
	length  time.Duration
	now     func() time.Time
}

// Lease returns the lease of that name in the program's namespace; holder names this replica.
func (c *Cluster) Lease(name, holder string, length time.Duration) *Lease {
	return &Lease{c, name, holder, length, time.Now}
}

// Take reports whether this replica has the task now: it had it already, or whoever had it has not asked for length.
func (l *Lease) Take(ctx context.Context) (bool, error) {
	all := l.cluster.client.Resource(leases).Namespace(l.cluster.namespace)
	found, err := call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
		return all.Get(ctx, l.name, metav1.GetOptions{})
	})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return false, fmt.Errorf("lease %s: %w", l.name, err)
	}
	if missing {
		found = &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": map[string]any{"name": l.name, "namespace": l.cluster.namespace},
		}}
	}
	holder, _, _ := unstructured.NestedString(found.Object, "spec", "holderIdentity")
	renewed, _, _ := unstructured.NestedString(found.Object, "spec", "renewTime")
	if at, err := time.Parse(time.RFC3339Nano, renewed); err == nil && holder != l.holder && l.now().Before(at.Add(l.length)) {
		return false, nil
	}
	spec := map[string]any{
		"holderIdentity": l.holder, "leaseDurationSeconds": int64(l.length / time.Second),
		"renewTime": l.now().UTC().Format("2006-01-02T15:04:05.000000Z07:00"),
	}
	if err := unstructured.SetNestedMap(found.Object, spec, "spec"); err != nil {
		return false, fmt.Errorf("lease %s: %w", l.name, err)
	}
	_, err = call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
		if missing {
			return all.Create(ctx, found, metav1.CreateOptions{})
		}
		return all.Update(ctx, found, metav1.UpdateOptions{})
	})
	switch {
	case err == nil:
		return true, nil
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err): // another was faster
		return false, nil
	}
	return false, fmt.Errorf("lease %s: %w", l.name, err)
}
