package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/verify"
)

const (
	maxFileBytes  = 16 << 20 // a TrustRoot may hold a whole TUF repository
	maxTotalBytes = 64 << 20
	maxFiles      = 1000
	maxDocuments  = 1000
)

// The values of Options.CUE.
const (
	CUEStrict   = "strict"
	CUEUpstream = "upstream"
)

// Options are what policies are compiled with.
type Options struct {
	// TrustedRoot is trusted_root.json, or several separated by newlines: what policies without a trust root of their
	// own verify against. There is no other default.
	TrustedRoot []byte
	// Mirrors are copies of the TUF repositories that a TrustRoot's spec.remote names, by the URL of its mirror. No
	// connection is made.
	Mirrors map[string]fs.FS
	// TUFTime is when the metadata of TUF repositories has to be valid; zero is now.
	TUFTime time.Time
	// Namespace is where secretRef and configMapRef without a namespace point; empty is cosign-system.
	Namespace string
	// CUE is how CUE policies are evaluated: "strict", the default, or "upstream". The annotation
	// attestry.dev/cue-semantics of a ClusterImagePolicy goes before it.
	CUE string
}

// File is a file of policy documents, YAML or JSON.
type File struct {
	Name string // for messages
	Data []byte
}

// Loaded are compiled policies, in the order of their documents.
type Loaded struct {
	Policies []Policy
	// Version is a hash of the documents and of all they were compiled with.
	Version string
}

// Load compiles the policies in files and directories, see ReadFiles.
func Load(paths []string, o Options) (*Loaded, error) {
	files, err := ReadFiles(paths)
	if err != nil {
		return nil, err
	}
	return Compile(files, o)
}

// ReadFiles reads policy files. Of a directory all files named .yaml, .yml and .json are read, in the order of their names,
// those of its subdirectories too.
func ReadFiles(paths []string) ([]File, error) {
	var files []File
	total := 0
	add := func(path string) error {
		if len(files) == maxFiles {
			return fmt.Errorf("more than %d policy files", maxFiles)
		}
		data, err := limit.ReadFile(path, maxFileBytes)
		if err != nil {
			return err
		}
		if total += len(data); total > maxTotalBytes {
			return fmt.Errorf("the policies have over %d bytes together", maxTotalBytes)
		}
		files = append(files, File{Name: path, Data: data})
		return nil
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("reading policies: %w", err)
		}
		if !info.IsDir() {
			if err := add(path); err != nil {
				return nil, fmt.Errorf("reading policies: %w", err)
			}
			continue
		}
		before := len(files)
		err = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(p)) {
				return err
			}
			// A ConfigMap's mount holds each file twice, once through ..data.
			if strings.Contains(p, string(filepath.Separator)+"..") {
				return nil
			}
			return add(p)
		})
		if err != nil {
			return nil, fmt.Errorf("reading policies: %w", err)
		}
		if len(files) == before {
			return nil, fmt.Errorf("reading policies: %s has no .yaml, .yml or .json file", path)
		}
	}
	return files, nil
}

// Compile is Load for files in memory. The error names every mistake that was found, with file and line.
func Compile(files []File, o Options) (*Loaded, error) {
	c := &compiler{options: o, trusts: make(map[string]trust), names: make(map[string]string)}
	hash := sha256.New()
	record := func(label string, data []byte) { fmt.Fprintf(hash, "%s %d\n%s\n", label, len(data), data) }
	if o.Namespace == "" {
		c.options.Namespace = "cosign-system"
	}
	switch o.CUE {
	case "":
		c.options.CUE = CUEStrict
	case CUEStrict, CUEUpstream:
	default:
		return nil, fmt.Errorf("CUE semantics %q are neither strict nor upstream", o.CUE)
	}
	record("cue "+c.options.CUE, o.TrustedRoot)
	if len(o.TrustedRoot) > 0 {
		var err error
		if c.standard, err = newTrust("the trusted root", o.TrustedRoot); err != nil {
			return nil, err
		}
	}
	var docs []*document
	for _, f := range files {
		if len(f.Data) > maxFileBytes {
			return nil, fmt.Errorf("%s: over %d bytes", f.Name, maxFileBytes)
		}
		record("file", f.Data)
		found, err := splitDocuments(f.Name, f.Data)
		if err != nil {
			return nil, err
		}
		if docs = append(docs, found...); len(docs) > maxDocuments {
			return nil, fmt.Errorf("more than %d policy documents", maxDocuments)
		}
	}
	loaded, err := c.compile(docs)
	if err != nil {
		return nil, err
	}
	// A mirror is outside the documents: what it gave belongs to the version.
	for _, name := range c.trustNames() {
		record("trust "+name, c.trusts[name].json())
	}
	loaded.Version = hex.EncodeToString(hash.Sum(nil))
	return loaded, nil
}

// compiler turns documents into policies.
type compiler struct {
	options  Options
	standard trust            // of Options.TrustedRoot; empty when there is none
	trusts   map[string]trust // by name of the TrustRoot
	configs  []configMap
	secrets  []secret
	names    map[string]string // where a policy of this name stands
}

// compile reads first what policies refer to, then the policies.
func (c *compiler) compile(docs []*document) (*Loaded, error) {
	var problems []error
	var policies []*document
	for _, d := range docs {
		var err error
		switch d.group() {
		case "policy.sigstore.dev/TrustRoot":
			err = c.addTrustRoot(d)
		case "/ConfigMap":
			err = c.addConfigMap(d)
		case "/Secret":
			err = c.addSecret(d)
		default:
			policies = append(policies, d)
		}
		if err != nil {
			problems = append(problems, err)
		}
	}
	loaded := &Loaded{}
	for _, d := range policies {
		p, err := c.compilePolicy(d)
		if err == nil {
			err = c.unique(d, p)
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		loaded.Policies = append(loaded.Policies, p...)
	}
	return loaded, joinLimited(problems)
}

// group is the API group and kind of d, whatever its version.
func (d *document) group() string {
	group, _, found := strings.Cut(d.apiVersion, "/")
	if !found {
		group = ""
	}
	return group + "/" + d.kind
}

// compilePolicy chooses the dialect by kind. A kind that is not known is an error: a policy that nobody reads must not look
// like one that holds.
func (c *compiler) compilePolicy(d *document) ([]Policy, error) {
	switch d.group() {
	case "policy.sigstore.dev/ClusterImagePolicy":
		p, err := c.compileClusterImagePolicy(d)
		if err != nil {
			return nil, err
		}
		return []Policy{p}, nil
	case "/sigstore_policy":
		p, err := compileTeleport(d, c.options.TrustedRoot)
		if err != nil {
			return nil, err
		}
		return []Policy{p}, nil
	case "kyverno.io/ClusterPolicy", "kyverno.io/Policy", "policies.kyverno.io/ImageValidatingPolicy",
		"policies.kyverno.io/NamespacedImageValidatingPolicy":
		p, err := c.compileKyverno(d)
		if err != nil {
			return nil, err
		}
		return []Policy{p}, nil
	}
	return nil, fmt.Errorf("%s: apiVersion %q with kind %q is no policy that is known here", d.position(d.node), d.apiVersion, d.kind)
}

func (c *compiler) unique(d *document, policies []Policy) error {
	for _, p := range policies {
		if at, taken := c.names[p.Name()]; taken {
			return d.errorf("a policy of this name is at %s already", at)
		}
		c.names[p.Name()] = d.position(d.node)
	}
	return nil
}

// objectMeta is a Kubernetes object's metadata: what we read, and what the API server adds.
type objectMeta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`

	GenerateName               anything `json:"generateName"`
	UID                        anything `json:"uid"`
	ResourceVersion            anything `json:"resourceVersion"`
	Generation                 anything `json:"generation"`
	CreationTimestamp          anything `json:"creationTimestamp"`
	DeletionTimestamp          anything `json:"deletionTimestamp"`
	DeletionGracePeriodSeconds anything `json:"deletionGracePeriodSeconds"`
	Finalizers                 anything `json:"finalizers"`
	OwnerReferences            anything `json:"ownerReferences"`
	ManagedFields              anything `json:"managedFields"`
	SelfLink                   anything `json:"selfLink"`
}

type configMap struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   objectMeta        `json:"metadata"`
	Data       map[string]string `json:"data"`
	BinaryData map[string][]byte `json:"binaryData"`
	Immutable  bool              `json:"immutable"`
}

type secret struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   objectMeta        `json:"metadata"`
	Type       string            `json:"type"`
	Data       map[string][]byte `json:"data"`
	StringData map[string]string `json:"stringData"`
	Immutable  bool              `json:"immutable"`
}

func (c *compiler) addConfigMap(d *document) error {
	var m configMap
	if err := d.decode(&m); err != nil {
		return err
	}
	c.configs = append(c.configs, m)
	return nil
}

func (c *compiler) addSecret(d *document) error {
	var s secret
	if err := d.decode(&s); err != nil {
		return err
	}
	c.secrets = append(c.secrets, s)
	return nil
}

// named reports whether an object is the one that a reference means. An object in a file that names no namespace is in
// whichever is asked for.
func (m *objectMeta) named(name, namespace string) bool {
	return m.Name == name && (m.Namespace == "" || m.Namespace == namespace)
}

// configValue returns what a configMapRef points at.
func (c *compiler) configValue(name, namespace, key string) (string, error) {
	if namespace == "" {
		namespace = c.options.Namespace
	}
	for i := range c.configs {
		if m := &c.configs[i]; m.Metadata.named(name, namespace) {
			if v, ok := m.Data[key]; ok {
				return v, nil
			}
			return "", fmt.Errorf("ConfigMap %s/%s has no key %q", namespace, name, key)
		}
	}
	return "", fmt.Errorf("ConfigMap %s/%s is not among the documents", namespace, name)
}

// configWithSum returns the ConfigMap value whose SHA-256 a remote policy names: the hash says that it is the one, wherever it
// was got.
func (c *compiler) configWithSum(hexSum string) (string, bool) {
	for i := range c.configs {
		for _, v := range c.configs[i].Data {
			if sum := sha256.Sum256([]byte(v)); strings.EqualFold(hex.EncodeToString(sum[:]), hexSum) {
				return v, true
			}
		}
	}
	return "", false
}

// secretKey returns the public key in a Secret: its only value, or cosign.pub.
func (c *compiler) secretKey(name, namespace string) ([]byte, error) {
	if namespace == "" {
		namespace = c.options.Namespace
	}
	for i := range c.secrets {
		s := &c.secrets[i]
		if !s.Metadata.named(name, namespace) {
			continue
		}
		values := make(map[string][]byte, len(s.Data)+len(s.StringData))
		for k, v := range s.Data {
			values[k] = v
		}
		for k, v := range s.StringData {
			values[k] = []byte(v)
		}
		if v, ok := values["cosign.pub"]; ok {
			return v, nil
		}
		if len(values) == 1 {
			for _, v := range values {
				return v, nil
			}
		}
		return nil, fmt.Errorf("secret %s/%s has %d values, none named cosign.pub", namespace, name, len(values))
	}
	return nil, fmt.Errorf("secret %s/%s is not among the documents", namespace, name)
}

// trustOf returns the trust that a trustRootRef names, or that of the options.
func (c *compiler) trustOf(ref string) (trust, error) {
	if ref != "" {
		t, ok := c.trusts[ref]
		if !ok {
			return trust{}, fmt.Errorf("TrustRoot %q is not among the documents", ref)
		}
		return t, nil
	}
	if len(c.standard.roots) == 0 {
		return trust{}, errors.New("names no trustRootRef, and no trusted root was given")
	}
	return c.standard, nil
}

// parseKey reads one PEM public key.
func parseKey(pem []byte) (any, error) {
	if len(pem) > maxKeyBytes {
		return nil, fmt.Errorf("over %d bytes", maxKeyBytes)
	}
	return verify.ParseKey(pem)
}
