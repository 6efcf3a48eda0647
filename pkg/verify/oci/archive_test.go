package oci

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"

	"github.com/attestry/attestry/pkg/verify"
)

func tarOf(headers ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeReg {
			h.Size = 2
		}
		if w.WriteHeader(&h) == nil && h.Typeflag == tar.TypeReg {
			w.Write([]byte("{}"))
		}
	}
	w.Close()
	return b.Bytes()
}

func TestArchivesThatTwoReadersCouldReadTwoWaysAreRefused(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	for _, tt := range []struct {
		name string
		data []byte
		ok   bool
	}{
		{"two files", tarOf(file("index.json"), file("blobs/sha256/aa")), true},
		{"a name that leads upwards", tarOf(file("../index.json")), false},
		{"a name that leads upwards and back", tarOf(file("a/../index.json")), false},
		{"an absolute name", tarOf(file("/index.json")), false},
		{"the same name twice", tarOf(file("index.json"), file("index.json")), false},
		{"the same name in two spellings", tarOf(file("index.json"), file("./index.json")), false},
		{"a device", tarOf(tar.Header{Name: "index.json", Typeflag: tar.TypeChar}), false},
		{"a backslash in a name", tarOf(file(`..\index.json`)), false},
		{"a name that is too long", tarOf(file(strings.Repeat("a", maxMemberName+1))), false},
		{"a header that ends early", tarOf(file("index.json"))[:100], false},
		{"a long name, which has a header of its own", tarOf(file(strings.Repeat("d/", 100)+"long"), file("index.json")), true},
		{"a pipe", tarOf(tar.Header{Name: "index.json", Typeflag: tar.TypeFifo}), false},
		{"a member that ends early", tarOf(file("index.json"))[:513], false},
		{"a packed archive", []byte("\x1f\x8b\x08\x00\x00\x00"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := indexArchive(bytes.NewReader(tt.data), int64(len(tt.data)))
			if (err == nil) != tt.ok {
				t.Fatalf("error %v, want one: %v", err, !tt.ok)
			}
			if !tt.ok {
				return
			}
			if data, err := a.read("index.json", 2); err != nil || string(data) != "{}" {
				t.Errorf("%q, %v", data, err)
			}
			if _, err := a.read("index.json", 1); verify.ReasonOf(err) != verify.ReasonTooLarge {
				t.Errorf("a file over the limit: %v", err)
			}
		})
	}
}

func TestALinkInALayoutIsRefused(t *testing.T) {
	for _, link := range []tar.Header{
		{Name: "oci-layout", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		{Name: "oci-layout", Typeflag: tar.TypeLink, Linkname: "index.json"},
	} {
		data := tarOf(tar.Header{Name: "index.json", Typeflag: tar.TypeReg}, link)
		a, err := indexArchive(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newLayout(a, "x.tar", 0); verify.ReasonOf(err) != verify.ReasonImageMalformed {
			t.Errorf("link of type %c: %v", link.Typeflag, err)
		}
	}
}

func TestDockerSaveWithoutManifestsNeedsADigest(t *testing.T) {
	data := tarOf(tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg})
	a, err := indexArchive(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLayout(a, "x.tar", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Resolve(t.Context(), "registry.example/app:v1"); verify.ReasonOf(err) != verify.ReasonFormatUnsupported {
		t.Error(err)
	}
	if image, err := l.Resolve(t.Context(), "registry.example/app@"+anyDigest); err != nil || image.Digest != anyDigest {
		t.Error(image, err)
	}
}

func FuzzArchive(f *testing.F) {
	f.Add(tarOf(tar.Header{Name: "index.json", Typeflag: tar.TypeReg}, tar.Header{Name: "oci-layout", Typeflag: tar.TypeReg}))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := indexArchive(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		for name, m := range a.members {
			if got, err := a.read(name, maxManifest); err == nil && int64(len(got)) != m.size {
				t.Errorf("%q has %d bytes, read %d", name, m.size, len(got))
			}
		}
		if l, err := newLayout(a, "fuzz", 0); err == nil {
			l.Resolve(t.Context(), "")
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"mediaType":"` + typeManifest + `","config":{"digest":"` + anyDigest + `","size":2},"layers":[]}`))
	f.Add([]byte(`{"Manifests":[],"manifests":[{"digest":"x"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseManifest(raw, digestOf(raw), "")
		if err != nil {
			return
		}
		if m.isIndex() == (m.Config != nil) {
			t.Error("neither an image nor an index")
		}
		m.children()
	})
}
