package keys

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/limit"
)

const (
	// ServiceAccountDir is where a pod finds its token, its namespace and the API server's CA.
	ServiceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

	maxObject      = 4 << 20 // bytes; etcd takes 1.5 MiB
	clusterTimeout = 30 * time.Second
)

// Cluster is the API server that a pod talks to, in the pod's namespace. Two requests on two kinds of objects are all there is to it,
// and client-go would be in every `attestry verify`; so it is net/http.
type Cluster struct {
	server, namespace string
	token             string // file, read again for each request: it is replaced within the hour
	client            *http.Client
}

// InCluster finds the API server as every pod does: KUBERNETES_SERVICE_HOST and _PORT by getenv, the rest in dir, see ServiceAccountDir.
func InCluster(getenv func(string) string, dir string) (*Cluster, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is not a pod")
	}
	namespace, err := limit.ReadFile(filepath.Join(dir, "namespace"), 1<<10)
	if err != nil {
		return nil, fmt.Errorf("namespace of the pod: %w", err)
	}
	roots, err := limit.ReadFile(filepath.Join(dir, "ca.crt"), 1<<20)
	if err != nil {
		return nil, fmt.Errorf("CA of the API server: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(dir, "ca.crt"))
	}
	return &Cluster{
		server: "https://" + net.JoinHostPort(host, port), namespace: strings.TrimSpace(string(namespace)), token: filepath.Join(dir, "token"),
		client: &http.Client{
			Timeout:       clusterTimeout,
			Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is for one server
		},
	}, nil
}

// InitKubernetes makes the Secrets PREFIX-ca, PREFIX-tlog, PREFIX-tsa and PREFIX-tuf and the ConfigMap PREFIX-public, each in one
// request. None is ever replaced or removed. It needs the verbs get and create on both kinds.
func InitKubernetes(ctx context.Context, c *Cluster, prefix string, o Options) (Made, error) {
	return initialize(ctx, objects{c, prefix}, o)
}

// objects is a store of Secrets and one ConfigMap.
type objects struct {
	cluster *Cluster
	prefix  string
}

// object is what Secrets and ConfigMaps have in common. Data is base64 in the one and plain in the other.
type object struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
	Type       string   `json:"type,omitempty"`
	Data       any      `json:"data"`
}

type metadata struct {
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func (s objects) object(role Role) string { return s.prefix + "-" + string(role) }

func (s objects) name(role Role, file string) string {
	kind := "Secret"
	if role == public {
		kind = "ConfigMap"
	}
	return fmt.Sprintf("%s %s/%s, %s", kind, s.cluster.namespace, s.object(role), file)
}

// lock does nothing: of two runs that create an object, the API server refuses one.
func (s objects) lock(Role) (func(), error) { return func() {}, nil }

func (s objects) load(ctx context.Context, role Role) (Files, error) {
	body, status, err := s.cluster.do(ctx, http.MethodGet, resource(role)+"/"+s.object(role), nil)
	if err != nil || status == http.StatusNotFound {
		return nil, err
	}
	files := Files{}
	if role == public {
		var found struct {
			Data map[string]string `json:"data"`
		}
		err = json.Unmarshal(body, &found)
		for name, text := range found.Data {
			files[name] = []byte(text)
		}
	} else {
		var found struct {
			Data map[string][]byte `json:"data"`
		}
		err = json.Unmarshal(body, &found)
		for name, text := range found.Data {
			files[name] = text
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name(role, "data"), err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s is empty, and is never changed: remove it, or fill it", s.name(role, "data"))
	}
	return files, nil
}

func (s objects) add(ctx context.Context, role Role, names []string, files Files) error {
	if len(names) != len(files) {
		return fmt.Errorf("%s is missing, and what is there is never changed: add it, or remove the object if nothing was ever signed with it", s.name(role, strings.Join(names, ", ")))
	}
	o := object{APIVersion: "v1", Kind: "Secret", Type: "Opaque", Data: files, Metadata: metadata{
		Name: s.object(role),
		Labels: map[string]string{
			"app.kubernetes.io/part-of": "attestry", "app.kubernetes.io/component": string(role), "app.kubernetes.io/managed-by": "attestry-keys",
		},
		Annotations: map[string]string{"helm.sh/resource-policy": "keep"},
	}}
	if role == public {
		texts := map[string]string{}
		for name, text := range files {
			texts[name] = string(text)
		}
		o.Kind, o.Type, o.Data = "ConfigMap", "", texts
	}
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	_, status, err := s.cluster.do(ctx, http.MethodPost, resource(role), body)
	if status == http.StatusConflict {
		return errTaken
	}
	return err
}

func resource(role Role) string {
	if role == public {
		return "configmaps"
	}
	return "secrets"
}

// do sends one request. A status other than 404 of a GET and 409 of a POST that is not a success is an error, with the
// message of the API server, which holds no data of objects.
func (c *Cluster) do(ctx context.Context, method, path string, body []byte) ([]byte, int, error) {
	where := method + " " + path + " in namespace " + c.namespace
	token, err := limit.ReadFile(c.token, 64<<10)
	if err != nil {
		return nil, 0, fmt.Errorf("token of the pod: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.server+"/api/v1/namespaces/"+c.namespace+"/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", where, err)
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.client.Do(request)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", where, err)
	}
	defer response.Body.Close()
	text, err := limit.ReadAll(response.Body, maxObject)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", where, err)
	}
	switch status := response.StatusCode; {
	case status >= 200 && status < 300, method == http.MethodGet && status == http.StatusNotFound, method == http.MethodPost && status == http.StatusConflict:
		return text, status, nil
	}
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &said) != nil || said.Message == "" {
		said.Message = http.StatusText(response.StatusCode)
	}
	if response.StatusCode == http.StatusForbidden {
		said.Message += " (the service account needs get and create on secrets and configmaps)"
	}
	return nil, response.StatusCode, fmt.Errorf("%s: status %d: %s", where, response.StatusCode, said.Message)
}
