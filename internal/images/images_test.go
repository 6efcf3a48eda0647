package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const source = "../.."

// hashes of all files below dir.
func hashes(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		sum := sha256.Sum256(data)
		name, _ := filepath.Rel(dir, path)
		sums[name] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// TestTwoBuildsAreTheSame builds the smallest role twice, in different directories, to the last byte of an archive to carry. All
// roles go the same way.
func TestTwoBuildsAreTheSame(t *testing.T) {
	at := time.Unix(1_790_000_000, 0).UTC()
	var first map[string]string
	for range 2 {
		work := t.TempDir()
		made, err := Build{Source: source, Programs: []string{"tsa"}, Time: at, Log: io.Discard}.Make(t.Context(), filepath.Join(work, "bin"))
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(work, "dist")
		for range 2 { // a second run over the first changes nothing
			if err := Write(out, "dev", made); err != nil {
				t.Fatal(err)
			}
		}
		if err := Carry(filepath.Join(out, "all.tar"), map[string]string{LayoutName: filepath.Join(out, LayoutName), ListName: filepath.Join(out, ListName)}, at); err != nil {
			t.Fatal(err)
		}
		sums := hashes(t, out)
		if first == nil {
			first = sums
			checkImage(t, made[0])
			checkLayout(t, filepath.Join(out, LayoutName), made[0])
			checkArchive(t, filepath.Join(out, "all.tar"))
		} else if !maps.Equal(first, sums) {
			for name, sum := range sums {
				if first[name] != sum {
					t.Errorf("%s differs", name)
				}
			}
			t.Errorf("files %v", slices.Sorted(maps.Keys(first)))
		}
	}
}

// checkImage looks at what is in an image.
func checkImage(t *testing.T, image Image) {
	t.Helper()
	if len(image.Platforms) != 2 || image.Platforms[0].Architecture != "amd64" || image.Platforms[1].Architecture != "arm64" {
		t.Errorf("platforms %+v", image.Platforms)
	}
	for _, p := range image.Platforms {
		if p.Compressed > 30<<20 {
			t.Errorf("%d bytes", p.Compressed)
		}
		config, err := p.Image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Config.User != "65532:65532" || config.Architecture != p.Architecture || !slices.Equal(config.Config.Entrypoint, []string{"/tsa"}) {
			t.Errorf("%+v", config)
		}
		layers, err := p.Image.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		content, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		r := tar.NewReader(content)
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, h.Name)
			owned := strings.HasPrefix(h.Name, "var/lib/") && h.Name != "var/lib/"
			if (h.Uid == user) != owned || h.Mode&0o022 != 0 && h.Name != "tmp/" {
				t.Errorf("%s belongs to %d, mode %o", h.Name, h.Uid, h.Mode)
			}
		}
		for _, want := range []string{"tsa", "tmp/", "var/lib/tsa/", "etc/passwd", "usr/share/sbom/tsa.spdx.json"} {
			if !slices.Contains(names, want) {
				t.Errorf("no %s in %v", want, names)
			}
		}
		checkSBOM(t, p.SBOM)
	}
}

// checkSBOM compares an SBOM with what the go command says of the program's dependencies.
func checkSBOM(t *testing.T, text []byte) {
	t.Helper()
	var d spdxDocument
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	list := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}", "./cmd/tsa")
	list.Dir = source
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) == 2 {
			want[fields[0]+"@"+fields[1]] = true
		}
	}
	got := map[string]bool{}
	for _, p := range d.Packages[2:] {
		got[p.Name+"@"+p.Version] = true
		if !strings.HasPrefix(p.Comment, "h1:") || p.Refs[0].Locator == "" {
			t.Errorf("%+v", p)
		}
	}
	if !maps.Equal(got, want) || len(want) == 0 {
		t.Errorf("the SBOM has %v\nlinked is %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	if d.Packages[1].Name != "stdlib" || d.Version != "SPDX-2.3" || len(d.Relationships) != len(d.Packages) {
		t.Errorf("%+v", d.Relationships)
	}
}

func checkLayout(t *testing.T, path string, image Image) {
	t.Helper()
	l, err := layout.FromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	index, err := l.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := image.Index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].Digest != digest ||
		manifest.Manifests[0].Annotations["io.containerd.image.name"] != "attestry.internal/attestry/tsa:dev" {
		t.Errorf("%+v", manifest.Manifests)
	}
	list, err := os.ReadFile(filepath.Join(filepath.Dir(path), ListName))
	if err != nil || string(list) != "attestry.internal/attestry/tsa:dev@"+digest.String()+"\n" {
		t.Errorf("%s: %s, %v", ListName, list, err)
	}
}

// checkArchive holds every file of an archive against its checksum.
func checkArchive(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	var listed string
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == SumsName {
			listed = string(content)
			continue
		}
		sum := sha256.Sum256(content)
		sums[h.Name] = hex.EncodeToString(sum[:])
	}
	for name, sum := range sums {
		if !strings.Contains(listed, sum+"  "+name+"\n") {
			t.Errorf("%s lacks %s", SumsName, name)
		}
	}
	if n := strings.Count(listed, "\n"); n != len(sums) || n < 5 {
		t.Errorf("%d lines for %d files", n, len(sums))
	}
}

// TestAVariantForTokensRuns unpacks an image into a directory and has its own loader run its program, without this machine's libraries.
func TestAVariantForTokensRuns(t *testing.T) {
	for _, program := range []string{"gcc", "ldd", "chroot"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("skipped: %s is missing; to run this test: apt-get install gcc libc6-dev", program)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("skipped: chroot needs root")
	}
	made, err := Build{Source: source, Programs: []string{"tsa"}, Platforms: []string{"linux/amd64"}, PKCS11: true, Log: io.Discard}.Make(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack(t, made[1].Platforms[0].Image, root)
	config := "key: pkcs11:token=t;object=k?module-path=/nowhere.so&pin-source=/etc/passwd\nchain-file: /etc/passwd\n"
	if err := os.WriteFile(filepath.Join(root, "tsa.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "chroot", root, "/tsa", "-config", "/tsa.yaml").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "failed to open module") && !strings.Contains(string(out), "could not open PKCS#11") {
		t.Errorf("%v: %s", err, out)
	}
	if strings.Contains(string(out), "build") {
		t.Errorf("it was built without PKCS#11: %s", out)
	}
	if got := made[1].Platforms[0].Compressed; got > 30<<20 {
		t.Errorf("%d bytes", got)
	}
}

func unpack(t *testing.T, image v1.Image, root string) {
	t.Helper()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(content)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			var data []byte
			if data, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, data, fs.FileMode(h.Mode))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
