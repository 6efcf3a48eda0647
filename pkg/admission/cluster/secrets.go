package cluster

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	secretsFor = 30 * time.Second // a new password counts after so long
	manyPods   = 4096
	maxAccount = 64 // pull secrets of a service account
)

// PullSecret is what a secret for registries holds.
type PullSecret struct {
	Name       string
	ConfigJSON []byte // .dockerconfigjson; nil for none
	Config     []byte // .dockercfg; nil for none
}

// PullSecrets finds the credentials with which a kubelet would pull a pod's images.
type PullSecrets struct {
	cluster *Cluster
	now     func() time.Time
	known   *lru.Cache[string, pulled] // safe for concurrent use, like flights
	flights singleflight.Group
}

type pulled struct {
	secrets []PullSecret
	until   time.Time
}

// PullSecrets returns what asks the API server for them.
func (c *Cluster) PullSecrets() (*PullSecrets, error) {
	known, err := lru.New[string, pulled](manyPods)
	if err != nil {
		return nil, err
	}
	return &PullSecrets{cluster: c, now: time.Now, known: known}, nil
}

// Of returns the secrets of a pod in their order: those that it names, then those of its service account. One that is missing or
// holds no credentials is left out, as the kubelet does. It errs when the API server does.
func (p *PullSecrets) Of(ctx context.Context, namespace, account string, names []string) ([]PullSecret, error) {
	if account == "" {
		account = "default"
	}
	key := fmt.Sprintf("%q", append([]string{namespace, account}, names...)) // the names were not validated yet
	if found, ok := p.known.Get(key); ok && p.now().Before(found.until) {
		return found.secrets, nil
	}
	found, err, _ := p.flights.Do(key, func() (any, error) {
		all, err := p.fetch(context.WithoutCancel(ctx), namespace, account, names)
		if err != nil {
			return nil, err
		}
		p.known.Add(key, pulled{all, p.now().Add(secretsFor)})
		return all, nil
	})
	if err != nil {
		return nil, err
	}
	return found.([]PullSecret), nil
}

func (p *PullSecrets) fetch(ctx context.Context, namespace, account string, names []string) ([]PullSecret, error) {
	wanted := append([]string(nil), names...)
	sa, err := call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
		return p.cluster.client.Resource(serviceAccounts).Namespace(namespace).Get(ctx, account, metav1.GetOptions{})
	})
	switch {
	case apierrors.IsNotFound(err): // the API server refuses the pod itself
	case err != nil:
		return nil, fmt.Errorf("service account %s/%s: %w", namespace, account, err)
	default:
		list, _, err := unstructured.NestedSlice(sa.Object, "imagePullSecrets")
		if err != nil || len(list) > maxAccount {
			return nil, fmt.Errorf("service account %s/%s: its imagePullSecrets cannot be read", namespace, account)
		}
		for _, one := range list {
			if m, ok := one.(map[string]any); ok {
				if name, ok := m["name"].(string); ok && name != "" {
					wanted = append(wanted, name)
				}
			}
		}
	}
	var all []PullSecret
	seen := map[string]bool{}
	for _, name := range wanted {
		if seen[name] {
			continue
		}
		seen[name] = true
		secret, err := call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return p.cluster.client.Resource(secrets).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
		})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("pull secret %s/%s: %w", namespace, name, err)
		}
		found := PullSecret{Name: name}
		for key, to := range map[string]*[]byte{".dockerconfigjson": &found.ConfigJSON, ".dockercfg": &found.Config} {
			if *to, err = dataOf(secret, key); err != nil {
				return nil, fmt.Errorf("pull secret %s/%s: %w", namespace, name, err)
			}
		}
		if found.ConfigJSON != nil || found.Config != nil {
			all = append(all, found)
		}
	}
	return all, nil
}

// dataOf returns a value of a secret, nil where there is none.
func dataOf(secret *unstructured.Unstructured, key string) ([]byte, error) {
	data, _, err := unstructured.NestedStringMap(secret.Object, "data")
	if err != nil {
		return nil, errors.New("its data cannot be read") // the error would show some of it
	}
	text, ok := data[key]
	if !ok {
		return nil, nil
	}
	value, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not base64", key)
	}
	return value, nil
}
