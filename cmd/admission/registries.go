package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/admission"
	"github.com/attestry/attestry/pkg/admission/cluster"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const (
	maxCA          = 1 << 20
	maxCredentials = 4 << 20
	maxRegistries  = 256 // sets of pull secrets whose connections and tokens are kept
)

// registries opens registries with the credentials of a pod, of its service account and our own, in this order. It
// implements admission.Sources.
type registries struct {
	cfg   *serverConfig
	pulls *cluster.PullSecrets // nil without a cluster

	mu     sync.Mutex  // guards what follows
	base   oci.Options // without credentials
	file   []byte      // content of registry-config
	own    *oci.Credentials
	opened *lru.Cache[[32]byte, *oci.Registry] // by pull secrets
}

func newRegistries(cfg *serverConfig, pulls *cluster.PullSecrets, observe func(host, method string, code int)) (*registries, error) {
	base := oci.Options{
		Repository: cfg.SignatureRepository, TagPrefix: cfg.SignatureTagPrefix, Insecure: cfg.InsecureRegistries, Timeout: cfg.RegistryTimeout,
		Proxy: http.ProxyFromEnvironment, UserAgent: "attestry-admission", Observe: observe,
	}
	for _, m := range cfg.RegistryMirrors {
		base.Mirrors = append(base.Mirrors, oci.Mirror{From: m.From, To: m.To})
	}
	var err error
	if base.Prefixes, err = prefixes(cfg.PrivateNetworks); err != nil {
		return nil, fmt.Errorf("private-networks: %w", err)
	}
	for _, h := range cfg.RegistryHosts {
		networks, err := prefixes(h.Networks)
		if err != nil {
			return nil, fmt.Errorf("registry-hosts: %w", err)
		}
		base.Hosts = append(base.Hosts, oci.Host{Name: h.Host, Prefixes: networks})
	}
	opened, err := lru.NewWithEvict(maxRegistries, func(_ [32]byte, r *oci.Registry) { r.Close() })
	if err != nil {
		return nil, err
	}
	r := &registries{cfg: cfg, base: base, pulls: pulls, opened: opened}
	return r, r.look() // what is wrong with the options is said before anything listens
}

// look reads our own credentials and the CA certificates of registries when they have changed. What is wrong changes nothing.
func (r *registries) look() error { return errors.Join(r.lookAtCAs(), r.lookAtCredentials()) }

func (r *registries) lookAtCAs() error {
	cas := make(map[string][]byte, len(r.cfg.RegistryCAs))
	for _, ca := range r.cfg.RegistryCAs {
		pem, err := limit.ReadFile(ca.File, maxCA)
		if err != nil {
			return fmt.Errorf("registry-cas: %w", err)
		}
		cas[strings.ToLower(ca.Host)] = pem
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.base.CAs != nil && maps.EqualFunc(cas, r.base.CAs, bytes.Equal) {
		return nil
	}
	base := r.base
	base.CAs = cas
	tried, err := oci.NewRegistry(base)
	if err != nil {
		return err
	}
	tried.Close()
	r.base = base
	r.opened.Purge()
	return nil
}

func (r *registries) lookAtCredentials() error {
	var data []byte
	var err error
	if r.cfg.RegistryConfig != "" {
		if data, err = limit.ReadFile(r.cfg.RegistryConfig, maxCredentials); err != nil {
			return fmt.Errorf("registry-config: %w", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.own != nil && bytes.Equal(data, r.file) {
		return nil
	}
	own, err := oci.FindCredentials(r.cfg.RegistryConfig, os.Getenv, r.cfg.CredentialHelpers)
	if err != nil {
		return fmt.Errorf("registry-config: %w", err)
	}
	r.own, r.file = own, data
	r.opened.Purge()
	return nil
}

// Open implements admission.Sources.
func (r *registries) Open(ctx context.Context, w *admission.Workload) (oci.Source, error) {
	registry, err := r.of(ctx, w)
	if err != nil {
		return nil, err
	}
	return &source{registry, r, w}, nil
}

func (r *registries) of(ctx context.Context, w *admission.Workload) (*oci.Registry, error) {
	if r.pulls == nil {
		return r.with(nil)
	}
	secrets, err := r.pulls.Of(ctx, w.Namespace, w.ServiceAccount, w.PullSecrets)
	if err != nil {
		return nil, err
	}
	return r.with(secrets)
}

// source is a registry as a workload may read it.
type source struct {
	*oci.Registry
	all      *registries
	workload *admission.Workload
}

// With implements oci.Keyed: the secrets are those of the workload's namespace.
func (s *source) With(ctx context.Context, pullSecrets []string) (oci.Source, error) {
	w := *s.workload
	w.PullSecrets = append(slices.Clone(pullSecrets), w.PullSecrets...)
	return s.all.of(ctx, &w)
}

func (r *registries) with(secrets []cluster.PullSecret) (*oci.Registry, error) {
	hash := sha256.New()
	for _, s := range secrets {
		fmt.Fprintf(hash, "%d %d\n%s%s", len(s.ConfigJSON), len(s.Config), s.ConfigJSON, s.Config)
	}
	key := [32]byte(hash.Sum(nil))
	r.mu.Lock()
	defer r.mu.Unlock()
	if registry, ok := r.opened.Get(key); ok {
		return registry, nil
	}
	var all []authn.Keychain
	for _, s := range secrets {
		// A secret that cannot be read is passed over, as the kubelet does: the image may be public.
		if s.ConfigJSON != nil {
			if c, err := oci.ParseDockerConfigJSON(s.ConfigJSON); err == nil {
				all = append(all, c)
			}
		}
		if s.Config != nil {
			if c, err := oci.ParseDockerCfg(s.Config); err == nil {
				all = append(all, c)
			}
		}
	}
	o := r.base
	o.Credentials = authn.NewMultiKeychain(append(all, r.own)...)
	registry, err := oci.NewRegistry(o)
	if err != nil {
		return nil, err
	}
	r.opened.Add(key, registry)
	return registry, nil
}
