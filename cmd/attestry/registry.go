package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/pflag"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/verify/oci"
)

// registryFlags say how registries are reached.
type registryFlags struct {
	repository, tagPrefix, config          string
	helpers                                bool
	mirrors, cas, insecure, hosts, network []string
	timeout                                time.Duration
}

func (f *registryFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.repository, "signature-repository", "", "repository that has the signatures, in place of the image's own (default $COSIGN_REPOSITORY)")
	flags.StringVar(&f.tagPrefix, "signature-tag-prefix", "", "prefix of the tags of signatures")
	flags.StringVar(&f.config, "registry-config", "", "credentials in docker's or podman's format (default ~/.docker/config.json, $DOCKER_CONFIG, $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json)")
	flags.BoolVar(&f.helpers, "credential-helpers", false, "run the docker-credential-… programs that the credentials name")
	flags.StringArrayVar(&f.mirrors, "registry-mirror", nil, "FROM=TO: ask for repositories whose name begins with FROM at TO; may be repeated")
	flags.StringArrayVar(&f.cas, "registry-ca", nil, "HOST=FILE: CA certificates (PEM) of a registry, beside the system's; may be repeated")
	flags.StringArrayVar(&f.insecure, "registry-insecure", nil, "registry without TLS; may be repeated. One on loopback needs no mention")
	flags.StringArrayVar(&f.hosts, "registry-host", nil, "HOST or HOST=CIDR,…: host that registries may name as their token server or redirect to, with the networks other than the internet in which it may be; may be repeated")
	flags.StringArrayVar(&f.network, "registry-network", nil, "CIDR other than the internet in which whatever registries name may be; may be repeated")
	flags.DurationVar(&f.timeout, "registry-timeout", 30*time.Second, "time for one request")
}

// open prepares access for references that a person named: their registries may have any address, what those point to may
// not.
func (f *registryFlags) open(references ...string) (*oci.Registry, error) {
	o := oci.Options{
		Repository: f.repository, TagPrefix: f.tagPrefix, Insecure: f.insecure, Timeout: f.timeout,
		Proxy: http.ProxyFromEnvironment, UserAgent: "attestry", CAs: make(map[string][]byte),
	}
	if o.Repository == "" {
		o.Repository = os.Getenv("COSIGN_REPOSITORY")
	}
	named := slices.Clone(references)
	if o.Repository != "" {
		named = append(named, o.Repository)
	}
	for _, m := range f.mirrors {
		from, to, ok := strings.Cut(m, "=")
		if !ok {
			return nil, fmt.Errorf("--registry-mirror %q is not FROM=TO", m)
		}
		o.Mirrors = append(o.Mirrors, oci.Mirror{From: from, To: to})
		named = append(named, to+"/x")
	}
	for _, reference := range named {
		ref, err := name.ParseReference(reference, name.WeakValidation)
		if err != nil {
			return nil, fmt.Errorf("image reference: %w", err)
		}
		o.Named = append(o.Named, ref.Context().RegistryStr())
	}
	for _, ca := range f.cas {
		host, file, ok := strings.Cut(ca, "=")
		if !ok {
			return nil, fmt.Errorf("--registry-ca %q is not HOST=FILE", ca)
		}
		pem, err := limit.ReadFile(file, 1<<20)
		if err != nil {
			return nil, fmt.Errorf("--registry-ca: %w", err)
		}
		o.CAs[strings.ToLower(host)] = pem
	}
	for _, h := range f.hosts {
		host, list, _ := strings.Cut(h, "=")
		entry := oci.Host{Name: host}
		if list != "" {
			var err error
			if entry.Prefixes, err = parsePrefixes(strings.Split(list, ",")); err != nil {
				return nil, fmt.Errorf("--registry-host: %w", err)
			}
		}
		o.Hosts = append(o.Hosts, entry)
	}
	var err error
	if o.Prefixes, err = parsePrefixes(f.network); err != nil {
		return nil, fmt.Errorf("--registry-network: %w", err)
	}
	if o.Credentials, err = oci.FindCredentials(f.config, os.Getenv, f.helpers); err != nil {
		return nil, err
	}
	return oci.NewRegistry(o)
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// isReference reports whether target is an image reference that names its registry: "registry.example/app:v1". No registry is
// assumed where none is named.
func isReference(target string) bool {
	host, _, found := strings.Cut(target, "/")
	if !found || strings.Trim(host, ".") == "" || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return false
	}
	if u, err := url.Parse("//" + host); err != nil || u.Host != host {
		return false
	}
	_, err := name.ParseReference(target, name.WeakValidation)
	return err == nil
}
