package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/attestry/attestry/internal/limit"
)

const (
	maxCredentials = 1 << 20
	maxHelperReply = 64 << 10
	helperTimeout  = 20 * time.Second
)

// Credentials are those of one file of docker's or podman's format, or of one pull secret. It is an authn.Keychain: join several
// with authn.NewMultiKeychain, the first that knows a repository counts.
type Credentials struct {
	entries map[string]authn.AuthConfig // by "host" or "host/path"
	helpers map[string]string           // by host
	store   string                      // helper for all other hosts
	// run asks a helper; nil where helpers are not enabled.
	run func(ctx context.Context, helper, server string) ([]byte, error)
}

// FindCredentials reads the credentials of the file at path or, when path is empty, of the first that there is of
// $HOME/.docker/config.json, $DOCKER_CONFIG/config.json, $REGISTRY_AUTH_FILE and $XDG_RUNTIME_DIR/containers/auth.json. getenv is
// os.Getenv. With helpers, the programs docker-credential-NAME that the file names are run.
func FindCredentials(path string, getenv func(string) string, helpers bool) (*Credentials, error) {
	paths := []string{path}
	if path == "" {
		paths = nil
		for _, p := range []struct{ variable, below string }{
			{"HOME", ".docker/config.json"}, {"DOCKER_CONFIG", "config.json"}, {"REGISTRY_AUTH_FILE", ""}, {"XDG_RUNTIME_DIR", "containers/auth.json"},
		} {
			if v := getenv(p.variable); v != "" {
				paths = append(paths, filepath.Join(v, p.below))
			}
		}
	}
	for _, p := range paths {
		data, err := limit.ReadFile(p, maxCredentials)
		if errors.Is(err, os.ErrNotExist) && path == "" {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("registry credentials: %w", err)
		}
		c, err := ParseDockerConfigJSON(data)
		if err != nil {
			return nil, fmt.Errorf("registry credentials: %s: %w", p, err)
		}
		if helpers {
			c.run = runHelper
		}
		return c, nil
	}
	return &Credentials{}, nil
}

// ParseDockerConfigJSON reads the content of a .dockerconfigjson pull secret, of docker's config.json or of podman's auth.json.
// Helpers that it names are never run. Errors do not quote the content.
func ParseDockerConfigJSON(data []byte) (*Credentials, error) {
	var file struct {
		Auths   map[string]dockerAuth `json:"auths"`
		Helpers map[string]string     `json:"credHelpers"`
		Store   string                `json:"credsStore"`
	}
	if err := decodeSecret(data, &file); err != nil {
		return nil, err
	}
	c, err := newCredentials(file.Auths)
	if err != nil {
		return nil, err
	}
	c.helpers, c.store = make(map[string]string), file.Store
	for host, helper := range file.Helpers {
		c.helpers[credentialKey(host)] = helper
	}
	return c, nil
}

// ParseDockerCfg reads the content of a .dockercfg pull secret, the older form without "auths".
func ParseDockerCfg(data []byte) (*Credentials, error) {
	var auths map[string]dockerAuth
	if err := decodeSecret(data, &auths); err != nil {
		return nil, err
	}
	return newCredentials(auths)
}

// decodeSecret hides what the decoder says: it may quote a password.
func decodeSecret(data []byte, into any) error {
	if len(data) > maxCredentials {
		return fmt.Errorf("over %d bytes", maxCredentials)
	}
	if json.Unmarshal(data, into) != nil {
		return errors.New("not JSON of docker's credentials")
	}
	return nil
}

type dockerAuth struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func newCredentials(auths map[string]dockerAuth) (*Credentials, error) {
	c := &Credentials{entries: make(map[string]authn.AuthConfig)}
	for key, a := range auths {
		config := authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		if a.Auth != "" {
			raw, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("auth of %q is not base64 of user:password", key)
			}
			config.Username, config.Password = user, password
		}
		if config != (authn.AuthConfig{}) { // docker leaves an empty entry where a helper has the secret
			c.entries[credentialKey(key)] = config
		}
	}
	return c, nil
}

// credentialKey writes a key of a file as "host" or "host/path". Docker's are URLs at times, and Docker Hub goes by three names.
func credentialKey(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ := strings.Cut(strings.TrimSuffix(key, "/"), "/")
	host = strings.ToLower(host)
	if host == "docker.io" || host == "registry-1.docker.io" {
		host = name.DefaultRegistry
	}
	if path == "" || path == "v1" || path == "v2" { // of the API; a repository's name may end so too
		return host
	}
	return host + "/" + path
}

// Resolve returns the credentials for a repository, else for the path above it and so on to the host, else Anonymous.
func (c *Credentials) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return c.ResolveContext(context.Background(), target)
}

// ResolveContext is Resolve; ctx ends a helper that runs.
func (c *Credentials) ResolveContext(ctx context.Context, target authn.Resource) (authn.Authenticator, error) {
	host := target.RegistryStr()
	for key := target.String(); ; {
		if config, ok := c.entry(key); ok {
			return authn.FromConfig(config), nil
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			break
		}
		key = key[:i]
	}
	helper := c.store
	if h, ok := c.helpers[strings.ToLower(host)]; ok {
		helper = h
	}
	if helper == "" || c.run == nil {
		return authn.Anonymous, nil
	}
	server := host
	if host == name.DefaultRegistry {
		server = authn.DefaultAuthKey
	}
	out, err := c.run(ctx, helper, server)
	if err != nil {
		return nil, fmt.Errorf("credential helper %s for %s: %w", helper, host, err)
	}
	if out == nil {
		return authn.Anonymous, nil
	}
	var reply struct{ Username, Secret string }
	if json.Unmarshal(out, &reply) != nil || reply.Secret == "" {
		return nil, fmt.Errorf("credential helper %s for %s: the answer is not of the helpers' protocol", helper, host)
	}
	if reply.Username == "<token>" {
		return authn.FromConfig(authn.AuthConfig{IdentityToken: reply.Secret}), nil
	}
	return authn.FromConfig(authn.AuthConfig{Username: reply.Username, Password: reply.Secret}), nil
}

// entry looks key up, "host" or "host/path". Pull secrets may have * for a label of the host name (Kubernetes, "Using private
// registry").
func (c *Credentials) entry(key string) (authn.AuthConfig, bool) {
	host, path, _ := strings.Cut(key, "/")
	exact := strings.ToLower(host)
	if path != "" {
		exact += "/" + path
	}
	if config, ok := c.entries[exact]; ok {
		return config, true
	}
	best := ""
	for k := range c.entries {
		pattern, below, _ := strings.Cut(k, "/")
		if strings.Contains(pattern, "*") && below == path && hostMatches(pattern, strings.ToLower(host)) && (best == "" || len(k) > len(best) || len(k) == len(best) && k < best) {
			best = k
		}
	}
	config, ok := c.entries[best]
	return config, ok && best != ""
}

func hostMatches(pattern, host string) bool {
	patterns, labels := strings.Split(pattern, "."), strings.Split(host, ".")
	if len(patterns) != len(labels) {
		return false
	}
	for i := range patterns {
		if ok, err := filepath.Match(patterns[i], labels[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// runHelper asks docker-credential-<helper> (docker-credential-helpers, README). No answer is nil.
func runHelper(ctx context.Context, helper, server string) ([]byte, error) {
	if !helperName.MatchString(helper) {
		return nil, errors.New("not a helper's name")
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker-credential-"+helper, "get")
	cmd.Stdin = strings.NewReader(server)
	cmd.WaitDelay = time.Second
	out := &capped{max: maxHelperReply}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		if strings.Contains(out.String(), "credentials not found") {
			return nil, nil
		}
		return nil, err // what it printed may hold a secret
	}
	return out.Bytes(), nil
}

// capped keeps the first max bytes and takes no more.
type capped struct {
	bytes.Buffer
	max int
}

func (c *capped) Write(p []byte) (int, error) {
	if c.Len()+len(p) > c.max {
		return 0, errors.New("the answer is too long")
	}
	return c.Buffer.Write(p)
}
