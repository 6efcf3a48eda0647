package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/attestry/attestry/pkg/verify"
)

func TestEverySourceHasTheSame(t *testing.T) {
	c := newContent(t)
	onDisk := func(open func(string, int64) (*Layout, error), path string) func() (Source, string) {
		return func() (Source, string) {
			l, err := open(path, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			return l, ""
		}
	}
	inRegistry := func(referrers bool) func() (Source, string) {
		return func() (Source, string) {
			srv, image := c.serve(c.handler(referrers))
			return registryOf(t, srv, nil), image.Name + ":v1"
		}
	}
	want := shownAttachments([]Attachment{
		{Form: FormBundle, Bundle: []byte(`{"a":"bundle"}`)}, {Form: FormSimpleSigning, Payload: []byte(`{"critical":{}}`)},
		{Form: FormEnvelope, Payload: c.blobs[digestOf([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"c2ln"}]}`))]},
	})
	for from, open := range map[string]func() (Source, string){
		"a registry with referrers":                       inRegistry(true),
		"a registry without":                              inRegistry(false),
		"a layout":                                        onDisk(OpenLayout, c.dir(false)),
		"a directory of cosign save":                      onDisk(OpenLayout, c.dir(true)),
		"an OCI archive":                                  onDisk(OpenArchive, archiveOf(t, c.dir(false), nil)),
		"docker save of Docker 25, which is one too":      onDisk(OpenArchive, archiveOf(t, c.dir(false), map[string]string{"manifest.json": `[{"Config":"blobs/sha256/00"}]`})),
		"an OCI archive of a directory that cosign saved": onDisk(OpenArchive, archiveOf(t, c.dir(true), nil)),
	} {
		t.Run(from, func(t *testing.T) {
			source, reference := open()
			image, err := source.Resolve(t.Context(), reference)
			if err != nil || image.Digest != c.image {
				t.Fatalf("%+v, %v, want %s", image, err, c.image)
			}
			found, err := source.Attachments(t.Context(), image)
			if got := shownAttachments(found); err != nil || got != want {
				t.Errorf("%v\n%s, want\n%s", err, got, want)
			}
			configs, err := source.Configs(t.Context(), image)
			if err != nil || string(configs["linux/amd64"]) != `{"os":"linux","architecture":"amd64"}` {
				t.Errorf("configurations %q, %v", configs, err)
			}
			if children, err := source.Children(t.Context(), image); err != nil || children != nil {
				t.Errorf("children %v, %v of an image", children, err)
			}
		})
	}
}

// The archive is go-containerregistry's, which writes what docker save wrote before version 25.
func TestAnOldDockerArchiveIsTheImageThatItsUserSays(t *testing.T) {
	image, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("registry.example/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "docker.tar")
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		t.Fatal(err)
	}
	l, err := OpenArchive(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Resolve(t.Context(), tag.String()); verify.ReasonOf(err) != verify.ReasonFormatUnsupported {
		t.Errorf("by its tag: %v", err)
	}
	got, err := l.Resolve(t.Context(), "registry.example/app@"+anyDigest)
	if err != nil || got.Digest != anyDigest {
		t.Errorf("%+v, %v", got, err)
	}
	if found, err := l.Attachments(t.Context(), got); err != nil || len(found) > 0 {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := l.Configs(t.Context(), got); verify.ReasonOf(err) != verify.ReasonFormatUnsupported {
		t.Errorf("a configuration that no digest vouches for: %v", err)
	}
}

// What is wrong with one attachment does not hide the others.
func TestALayoutWithSomethingBrokenTellsTheRest(t *testing.T) {
	sig := func(c *content) string {
		for _, e := range c.manifests {
			if e.kind == "sigs" {
				return e.digest
			}
		}
		t.Fatal("there is no signature")
		return ""
	}
	for name, damage := range map[string]func(path string) error{
		"a manifest that is not there": os.Remove,
		"a manifest with another byte": func(path string) error { return os.WriteFile(path, []byte("{}"), 0o644) },
		"a directory for a manifest": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o755)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newContent(t)
			dir := c.dir(false)
			if err := damage(filepath.Join(dir, "blobs", strings.Replace(sig(c), ":", "/", 1))); err != nil {
				t.Fatal(err)
			}
			l, err := OpenLayout(dir, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			found, err := l.Attachments(t.Context(), Image{Digest: c.image})
			if len(found) != 2 || verify.ReasonOf(err) != verify.ReasonImageMalformed {
				t.Errorf("%d of the 2 others, %v, want %s", len(found), err, verify.ReasonImageMalformed)
			}
		})
	}
}

func TestOfManyBundlesTheNewestAreRead(t *testing.T) {
	c := &content{t: t, blobs: map[string][]byte{}}
	c.image = c.manifest(entry{mediaType: typeManifest, tag: "v1"}, map[string]any{"config": c.blob(typeEmpty, "{}"), "layers": []any{}})
	const all = maxReferrers + 3
	for i := range all {
		c.bundle(fmt.Sprintf(`{"n":%d}`, i), fmt.Sprintf("2026-01-01T00:%02d:00Z", i))
	}
	for _, referrers := range []bool{true, false} {
		srv, image := c.serve(c.handler(referrers))
		found, err := registryOf(t, srv, nil).Attachments(t.Context(), image)
		want := fmt.Sprintf("%d bundles refer to %s, only the newest %d are looked at", all, c.image, maxReferrers)
		if verify.ReasonOf(err) != verify.ReasonTooLarge || err.Error() != want {
			t.Errorf("referrers %v: %v, want %q", referrers, err, want)
		}
		if len(found) != maxReferrers {
			t.Fatalf("referrers %v: %d bundles", referrers, len(found))
		}
		for i, a := range found {
			if want := fmt.Sprintf(`{"n":%d}`, all-1-i); string(a.Bundle) != want {
				t.Fatalf("referrers %v: bundle %d is %s, want %s", referrers, i, a.Bundle, want)
			}
		}
	}
}
