package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// content is an image with what is attached to it, to be put into registries, directories and archives.
type content struct {
	t         *testing.T
	blobs     map[string][]byte // manifests too
	manifests []entry           // in the order in which a registry takes them
	image     string            // digest
}

type entry struct {
	digest, mediaType, tag string
	kind                   string // of cosign save
	artifactType           string
	annotations            map[string]string
}

// newContent returns an image with a bundle, a signature and an attestation.
func newContent(t *testing.T) *content {
	c := &content{t: t, blobs: map[string][]byte{}}
	c.image = c.manifest(entry{mediaType: typeManifest, tag: "v1", kind: "image"}, map[string]any{
		"config": c.blob("application/vnd.oci.image.config.v1+json", `{"os":"linux","architecture":"amd64"}`),
		"layers": []any{c.blob("application/vnd.oci.image.layer.v1.tar", "a layer")},
	})
	c.bundle(`{"a":"bundle"}`, "2026-01-01T00:00:00Z")
	tag := strings.Replace(c.image, ":", "-", 1)
	c.legacy(tag+".sig", "sigs", TypeSimpleSigning, `{"critical":{}}`)
	c.legacy(tag+".att", "atts", TypeEnvelope, `{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"c2ln"}]}`)
	return c
}

func (c *content) blob(mediaType, text string) map[string]any {
	digest := digestOf([]byte(text))
	c.blobs[digest] = []byte(text)
	return map[string]any{"mediaType": mediaType, "digest": digest, "size": len(text)}
}

func (c *content) manifest(e entry, fields map[string]any) string {
	c.t.Helper()
	fields["schemaVersion"], fields["mediaType"] = 2, e.mediaType
	raw, err := json.Marshal(fields)
	if err != nil {
		c.t.Fatal(err)
	}
	e.digest = digestOf(raw)
	c.blobs[e.digest] = raw
	c.manifests = append(c.manifests, e)
	return e.digest
}

// bundle attaches one that says when it was made.
func (c *content) bundle(text, created string) string {
	annotations := map[string]string{annotationCreated: created}
	return c.manifest(entry{mediaType: typeManifest, artifactType: typeBundle, annotations: annotations}, map[string]any{
		"artifactType": typeBundle, "annotations": annotations,
		"config": c.blob(typeEmpty, "{}"), "layers": []any{c.blob(typeBundle, text)},
		"subject": map[string]any{"mediaType": typeManifest, "digest": c.image, "size": len(c.blobs[c.image])},
	})
}

func (c *content) legacy(tag, kind, layerType, text string) {
	layer := c.blob(layerType, text)
	layer["annotations"] = map[string]string{AnnotationSignature: "c2ln"}
	c.manifest(entry{mediaType: typeManifest, tag: tag, kind: kind}, map[string]any{
		"config": c.blob("application/vnd.oci.image.config.v1+json", "{}"), "layers": []any{layer},
	})
}

// handler is a registry with the content in the repository app.
func (c *content) handler(referrers bool) http.Handler {
	c.t.Helper()
	h := registry.New(registry.WithReferrersSupport(referrers), registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	put := func(method, path, mediaType string, body []byte) {
		c.t.Helper()
		req := httptest.NewRequest(method, path, bytes.NewReader(body))
		req.Header.Set("Content-Type", mediaType)
		resp := httptest.NewRecorder()
		if h.ServeHTTP(resp, req); resp.Code != http.StatusCreated {
			c.t.Fatalf("%s %s: %d %s", method, path, resp.Code, resp.Body)
		}
	}
	for digest, data := range c.blobs {
		put(http.MethodPost, "/v2/app/blobs/uploads/?digest="+digest, "application/octet-stream", data)
	}
	listed := []any{}
	for _, e := range c.manifests {
		for _, reference := range []string{e.digest, e.tag} {
			if reference != "" {
				put(http.MethodPut, "/v2/app/manifests/"+reference, e.mediaType, c.blobs[e.digest])
			}
		}
		if e.artifactType != "" {
			listed = append(listed, c.descriptor(e))
		}
	}
	if !referrers && len(listed) > 0 {
		raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": listed})
		if err != nil {
			c.t.Fatal(err)
		}
		put(http.MethodPut, "/v2/app/manifests/"+strings.Replace(c.image, ":", "-", 1), typeIndex, raw)
	}
	return h
}

func (c *content) descriptor(e entry) map[string]any {
	return map[string]any{
		"mediaType": e.mediaType, "digest": e.digest, "size": len(c.blobs[e.digest]), "artifactType": e.artifactType, "annotations": e.annotations,
	}
}

// dir is an image layout: as crane and skopeo write it, or as cosign save does, which keeps no tags.
func (c *content) dir(cosign bool) string {
	c.t.Helper()
	dir := c.t.TempDir()
	write := func(name string, data []byte) {
		c.t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			c.t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
	for digest, data := range c.blobs {
		write("blobs/"+strings.Replace(digest, ":", "/", 1), data)
	}
	var listed []any
	for _, e := range c.manifests {
		d := c.descriptor(e)
		switch {
		case cosign && e.kind == "": // a referrer is found by its subject
			continue
		case cosign:
			d["annotations"] = map[string]string{annotationKind: cosignKind + e.kind}
		case e.tag != "":
			d["annotations"] = map[string]string{annotationRefName: e.tag}
		}
		listed = append(listed, d)
	}
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": listed})
	if err != nil {
		c.t.Fatal(err)
	}
	write("index.json", raw)
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}

// archiveOf is a tar of a directory, with more members if wanted.
func archiveOf(t *testing.T, dir string, more map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	err = w.AddFS(os.DirFS(dir))
	for name, text := range more {
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(text)), Mode: 0o644})
		}
		if err == nil {
			_, err = io.WriteString(w, text)
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// registryOf returns access to a server as a person names it, with short waits and whatever else change sets.
func registryOf(t *testing.T, srv *httptest.Server, change func(*Options)) *Registry {
	t.Helper()
	host := srv.Listener.Addr().String()
	o := Options{Named: []string{host}, RetryWait: time.Millisecond}
	if srv.TLS == nil {
		o.Insecure = []string{host}
	}
	if change != nil {
		change(&o)
	}
	r, err := NewRegistry(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// serve runs a handler and returns the server with the image that content has there.
func (c *content) serve(h http.Handler) (*httptest.Server, Image) {
	srv := httptest.NewServer(h)
	c.t.Cleanup(srv.Close)
	return srv, Image{Name: srv.Listener.Addr().String() + "/app", Digest: c.image}
}

// shownAttachments are the forms and payloads of attachments.
func shownAttachments(found []Attachment) string {
	var b strings.Builder
	for _, a := range found {
		text := a.Payload
		if a.Form == FormBundle {
			text = a.Bundle
		}
		fmt.Fprintf(&b, "%s %s\n", a.Form, text)
	}
	return b.String()
}
