package main

import (
	"bytes"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/attestry/attestry/internal/images"
)

// TestImagesOfAnArchiveReachARegistry pushes images of two platforms, and refuses what images.txt does not say.
func TestImagesOfAnArchiveReachARegistry(t *testing.T) {
	srv := httptest.NewServer(registry.New())
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://") + "/mirror"
	dir := t.TempDir()
	var made []images.Image
	for _, program := range []string{"ca", "tuf-publisher", "ca-pkcs11"} {
		index, err := random.Index(64, 1, 2)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, images.Image{Name: "attestry/" + program, Index: index})
	}
	if err := images.Write(dir, "0.1.0", made); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for range 2 { // again changes nothing
		out.Reset()
		if err := runImagesLoad(t.Context(), imagesLoadFlags{from: dir, registry: host}, &out, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	want := "global:\n  imageRegistry: " + host + "\nimages:\n  tag: \"0.1.0\"\n"
	for i, role := range []string{"ca", "tuf"} {
		digest, err := made[i].Index.Digest()
		if err != nil {
			t.Fatal(err)
		}
		want += "  " + role + ": {repository: " + made[i].Name + ", digest: \"" + digest.String() + "\"}\n"
		ref, err := name.NewDigest(host + "/" + made[i].Name + "@" + digest.String())
		if err != nil {
			t.Fatal(err)
		}
		there, err := remote.Index(ref)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := there.IndexManifest(); err != nil || len(m.Manifests) != 2 {
			t.Errorf("%+v, %v", m, err)
		}
	}
	if out.String() != want {
		t.Errorf("values\n%s\nwant\n%s", out.String(), want)
	}

	list, err := os.ReadFile(filepath.Join(dir, "images.txt"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(list)), "\n")
	other := lines[1][strings.Index(lines[1], "@"):]
	digest, err := made[0].Index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(dir, "oci", "blobs", "sha256", digest.Hex)
	whole, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, list, blob, want string }{
		{"no digest", "attestry.internal/attestry/ca:1\n", "", "has no digest"},
		{"nothing", "\n", "", "names no image"},
		{"an image that is not there", "attestry.internal/attestry/ca:1@sha256:" + strings.Repeat("0", 64), "", "the layout has no image with the digest"},
		{"no tag", "attestry.internal/attestry/ca" + other, "", "images.txt: "},
		{"a changed index", string(list), strings.Replace(string(whole), "{", "{ ", 1), "attestry/ca: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "images.txt"), []byte(tt.list), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.blob != "" {
				if err := os.WriteFile(blob, []byte(tt.blob), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			empty := httptest.NewServer(registry.New())
			defer empty.Close()
			err := runImagesLoad(t.Context(), imagesLoadFlags{from: dir, registry: strings.TrimPrefix(empty.URL, "http://")}, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
