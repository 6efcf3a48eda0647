package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/config"
	"github.com/attestry/attestry/pkg/admission"
	"github.com/attestry/attestry/pkg/policy"
)

// serverConfig is the YAML file of admission.
type serverConfig struct {
	// Listen is the address of the webhook, HTTPS. Default 127.0.0.1:8443; in a pod 0.0.0.0:8443.
	Listen string `mapstructure:"listen"`
	// OpsListen is the address of /metrics, /healthz and /readyz. Default 127.0.0.1:2112.
	OpsListen string `mapstructure:"ops-listen"`

	// Cluster is whether the API server is asked: for labels of namespaces, pull secrets, policies, running pods. Default true. Without it
	// all namespaces have the mode other-namespaces, and tls-cert-file and policy-files are required.
	Cluster bool `mapstructure:"cluster"`
	// Kubeconfig is a file that leads to the API server. Default: as the pod that this process runs in.
	Kubeconfig string `mapstructure:"kubeconfig"`
	// Namespace is where our own objects are, and what secretRef and configMapRef of policies point to. Default: the pod's.
	Namespace string `mapstructure:"namespace"`

	// TLSCertFile and TLSKeyFile are a serving certificate that somebody else keeps, cert-manager for instance; read again when they change.
	// Default: our own, in a secret.
	TLSCertFile string `mapstructure:"tls-cert-file"`
	TLSKeyFile  string `mapstructure:"tls-key-file"`
	// ServingSecret is the secret for our own certificate; it is made. Default attestry-admission-tls.
	ServingSecret string `mapstructure:"serving-secret"`
	// Service is the service by which the API server reaches us. Default attestry-admission.
	Service string `mapstructure:"service"`
	// Webhooks is the name of the webhook configurations whose CA bundles we keep. Default attestry-admission.
	Webhooks string `mapstructure:"webhooks"`
	// CertificateLife is that of our own certificate, which is replaced at two thirds. Default 2160h (90 days), at least 1h.
	CertificateLife time.Duration `mapstructure:"certificate-life"`

	// PolicyFiles are files and directories with policies of any dialect. Read again when they change.
	PolicyFiles []string `mapstructure:"policy-files"`
	// ClusterPolicies also takes the ClusterImagePolicies and TrustRoots of the cluster. Default true.
	ClusterPolicies bool `mapstructure:"cluster-policies"`
	// TrustedRootFile is the trusted_root.json for policies without a trust root of their own. Read again when it changes.
	TrustedRootFile string `mapstructure:"trusted-root-file"`
	// TrustMetadata is a directory with the TUF metadata that names trusted-root-file: a metric says when it ends. Nothing is refused by it.
	// Default that of the trusted root, or tuf/ in it.
	TrustMetadata string `mapstructure:"trust-metadata"`
	// TUFMirrors are copies of the TUF repositories that TrustRoots name by spec.remote: no connection is made for them.
	TUFMirrors []tufMirror `mapstructure:"tuf-mirrors"`
	// NoMatch is what becomes of an image that no policy speaks of: deny (default), warn or allow.
	NoMatch string `mapstructure:"no-match"`
	// CUE is how CUE policies are evaluated: strict (default) or upstream, where an absent field passes.
	CUE string `mapstructure:"cue"`
	// MultiArch says what of an index has to pass: index (default), all-children, any.
	MultiArch string `mapstructure:"multi-arch"`

	// NamespaceRules give namespaces their mode by label, the first that fits. Default: policy.sigstore.dev/include=true and
	// sigstore-policy=enforce, warn, audit.
	NamespaceRules []namespaceRule `mapstructure:"namespace-rules"`
	// OtherNamespaces is the mode where no rule fits: enforce (default), warn, audit or off.
	OtherNamespaces string `mapstructure:"other-namespaces"`
	// Templates is the strictest mode for what is no pod. Default enforce.
	Templates string `mapstructure:"templates"`

	// Timeout bounds an answer; the API server's own, which is in each request, counts when it is shorter. Default 10s, 1s to 30s.
	Timeout time.Duration `mapstructure:"timeout"`
	// PositiveTTL is how long a verdict of yes is remembered. Default 1h, 0 < … <= 24h.
	PositiveTTL time.Duration `mapstructure:"positive-ttl"`
	// NegativeTTL is how long one of no is. Default 30s, at most that.
	NegativeTTL time.Duration `mapstructure:"negative-ttl"`
	// CacheEntries bounds the verdicts in memory. Default 20000.
	CacheEntries int `mapstructure:"cache-entries"`
	// Workers bounds the verifications at one time. Default 32.
	Workers int `mapstructure:"workers"`
	// CarrySets are carry sets (directories or tars) whose images need no registry.
	CarrySets []carrySet `mapstructure:"carry-sets"`
	// ScanEvery is how often running pods are looked at, by one replica. Default 1h; 0 for never.
	ScanEvery time.Duration `mapstructure:"scan-every"`

	// RegistryConfig has credentials in docker's or podman's format, which count after those of the pod. Read again when it changes.
	RegistryConfig string `mapstructure:"registry-config"`
	// CredentialHelpers lets the docker-credential-… programs run that registry-config names.
	CredentialHelpers bool `mapstructure:"credential-helpers"`
	// PrivateNetworks are networks (CIDR) other than the internet in which registries may be.
	PrivateNetworks []string `mapstructure:"private-networks"`
	// RegistryHosts are hosts that may be in networks of their own.
	RegistryHosts []registryHost `mapstructure:"registry-hosts"`
	// RegistryCAs are CA certificates (PEM) of registries, beside the system's. Read again when they change.
	RegistryCAs []registryCA `mapstructure:"registry-cas"`
	// InsecureRegistries are spoken to without TLS.
	InsecureRegistries []string `mapstructure:"insecure-registries"`
	// RegistryMirrors have the images of other repositories.
	RegistryMirrors []registryMirror `mapstructure:"registry-mirrors"`
	// SignatureRepository has the signatures, in place of each image's own repository.
	SignatureRepository string `mapstructure:"signature-repository"`
	// SignatureTagPrefix stands before the tags of signatures.
	SignatureTagPrefix string `mapstructure:"signature-tag-prefix"`
	// RegistryTimeout bounds one request to a registry. Default 5s.
	RegistryTimeout time.Duration `mapstructure:"registry-timeout"`

	// LogLevel is debug, info, warn or error. Default info: a line for each image.
	LogLevel slog.Level `mapstructure:"log-level"`
	// ShutdownGrace is how long reviews in flight may take after SIGTERM. Default 8s.
	ShutdownGrace time.Duration `mapstructure:"shutdown-grace"`

	// healthcheck is the flag -healthcheck.
	healthcheck bool
}

type tufMirror struct {
	// URL is that of the repository, as the TrustRoot names it.
	URL string `mapstructure:"url"`
	// Dir has the copy.
	Dir string `mapstructure:"dir"`
}

type namespaceRule struct {
	// Label is NAME=VALUE, or NAME for any value.
	Label string `mapstructure:"label"`
	// Mode is enforce, warn, audit or off.
	Mode string `mapstructure:"mode"`
}

type carrySet struct {
	// Path is the directory or tar.
	Path string `mapstructure:"path"`
	// Registry is where the set was pushed to. Default: the images keep their names.
	Registry string `mapstructure:"registry"`
}

type registryHost struct {
	// Host is HOST, HOST:PORT, or .DOMAIN for all below it.
	Host string `mapstructure:"host"`
	// Networks are those of this host (CIDR).
	Networks []string `mapstructure:"networks"`
}

type registryCA struct {
	// Host is the registry's, HOST or HOST:PORT.
	Host string `mapstructure:"host"`
	// File has the certificates.
	File string `mapstructure:"file"`
}

type registryMirror struct {
	// From is the repository, or a prefix of repositories, that images name.
	From string `mapstructure:"from"`
	// To is where they are.
	To string `mapstructure:"to"`
}

func defaults() *serverConfig {
	return &serverConfig{
		Listen: "127.0.0.1:8443", OpsListen: "127.0.0.1:2112", Cluster: true,
		ServingSecret: "attestry-admission-tls", Service: "attestry-admission", Webhooks: "attestry-admission", CertificateLife: 90 * 24 * time.Hour,
		ClusterPolicies: true, NoMatch: policy.NoMatchDeny, CUE: policy.CUEStrict, MultiArch: string(admission.IndexOnly),
		OtherNamespaces: string(admission.Enforce), Templates: string(admission.Enforce),
		Timeout: 10 * time.Second, PositiveTTL: time.Hour, NegativeTTL: 30 * time.Second, CacheEntries: 20_000, Workers: 32,
		ScanEvery: time.Hour, RegistryTimeout: 5 * time.Second, ShutdownGrace: 8 * time.Second,
	}
}

// Validate implements config.Validator.
func (c *serverConfig) Validate() error {
	var p config.Problems
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		p.Addf("tls-cert-file and tls-key-file belong together")
	}
	if !c.Cluster {
		if c.TLSCertFile == "" {
			p.Addf("cluster: false leaves nowhere to keep a certificate: tls-cert-file is required")
		}
		if len(c.PolicyFiles) == 0 {
			p.Addf("cluster: false leaves policy-files as the only policies: they are required")
		}
		if c.Kubeconfig != "" {
			p.Addf("kubeconfig contradicts cluster: false")
		}
		if len(c.NamespaceRules) > 0 {
			p.Addf("namespace-rules need the labels of namespaces, which cluster: false does not have")
		}
	}
	for _, name := range []struct{ key, value string }{{"serving-secret", c.ServingSecret}, {"service", c.Service}, {"webhooks", c.Webhooks}} {
		if c.TLSCertFile == "" && name.value == "" {
			p.Addf("%s is empty", name.key)
		}
	}
	if c.CertificateLife < time.Hour {
		p.Addf("certificate-life %v is under 1h", c.CertificateLife)
	}
	oneOf := func(key, value string, values ...string) {
		if !slices.Contains(values, value) {
			p.Addf("%s %q is not one of %s", key, value, strings.Join(values, ", "))
		}
	}
	oneOf("no-match", c.NoMatch, policy.NoMatchDeny, policy.NoMatchWarn, policy.NoMatchAllow)
	oneOf("cue", c.CUE, policy.CUEStrict, policy.CUEUpstream)
	oneOf("multi-arch", c.MultiArch, string(admission.IndexOnly), string(admission.AllChildren), string(admission.AnyOfThem))
	for key, mode := range map[string]string{"other-namespaces": c.OtherNamespaces, "templates": c.Templates} {
		if _, err := admission.ParseMode(mode); err != nil {
			p.Addf("%s: %v", key, err)
		}
	}
	if _, err := c.rules(); err != nil {
		p.Addf("namespace-rules: %v", err)
	}
	if c.Timeout < time.Second || c.Timeout > 30*time.Second {
		p.Addf("timeout %v is not between 1s and 30s, as the API server has it", c.Timeout)
	}
	if c.PositiveTTL <= 0 || c.PositiveTTL > 24*time.Hour {
		p.Addf("positive-ttl %v is not between 0s and 24h", c.PositiveTTL)
	}
	if c.NegativeTTL <= 0 || c.NegativeTTL > 30*time.Second {
		p.Addf("negative-ttl %v is not between 0s and 30s: a signature that comes late has to help", c.NegativeTTL)
	}
	if c.CacheEntries < 1 || c.CacheEntries > 1_000_000 {
		p.Addf("cache-entries %d is not between 1 and 1000000", c.CacheEntries)
	}
	if c.Workers < 1 || c.Workers > 1024 {
		p.Addf("workers %d is not between 1 and 1024", c.Workers)
	}
	if c.ScanEvery != 0 && c.ScanEvery < time.Minute {
		p.Addf("scan-every %v is under 1m", c.ScanEvery)
	}
	if c.RegistryTimeout <= 0 {
		p.Addf("registry-timeout %v is not positive", c.RegistryTimeout)
	}
	for _, set := range c.CarrySets {
		if set.Path == "" {
			p.Addf("carry-sets: path is required")
		}
	}
	if c.TrustMetadata != "" && c.TrustedRootFile == "" {
		p.Addf("trust-metadata is that of a trusted-root-file, which is missing")
	}
	for _, m := range c.TUFMirrors {
		if m.URL == "" || m.Dir == "" {
			p.Addf("tuf-mirrors: url and dir are required")
		}
	}
	if _, err := prefixes(c.PrivateNetworks); err != nil {
		p.Addf("private-networks: %v", err)
	}
	for _, h := range c.RegistryHosts {
		if _, err := prefixes(h.Networks); err != nil || h.Host == "" {
			p.Addf("registry-hosts: %q needs a host, and networks in CIDR notation", h.Host)
		}
	}
	return p.Err()
}

// rules are the namespace rules, those of the package when there are none.
func (c *serverConfig) rules() ([]admission.Rule, error) {
	if len(c.NamespaceRules) == 0 {
		return admission.DefaultRules(), nil
	}
	var rules []admission.Rule
	for _, r := range c.NamespaceRules {
		mode, err := admission.ParseMode(r.Mode)
		if err != nil {
			return nil, err
		}
		rule, err := admission.NewRule(r.Label, mode)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

func prefixes(list []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// loadConfig reads -config FILE, or ADMISSION_CONFIG.
func loadConfig(args []string, stderr io.Writer) (*serverConfig, error) {
	flags := flag.NewFlagSet("admission", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("config", os.Getenv("ADMISSION_CONFIG"), "YAML configuration file; every key can also be set as ADMISSION_<KEY>")
	healthcheck := flags.Bool("healthcheck", false, "ask the admission that runs with this configuration whether it is ready, and end with 1 unless it is")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	cfg := defaults()
	cfg.healthcheck = *healthcheck
	return cfg, config.Load(cfg, *path, "ADMISSION")
}
