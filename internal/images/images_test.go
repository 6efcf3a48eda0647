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
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/attestry/attestry/pkg/keys"
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
		for _, tag := range []string{"before", "dev"} { // nothing is left of a run before
			if err := Write(out, tag, made); err != nil {
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

// TestAVariantForTokensSigns unpacks an image into a directory, adds SoftHSM's module with the one library that it wants beyond the image,
// and has the program sign with a token's key there, without this machine's libraries.
func TestAVariantForTokensSigns(t *testing.T) {
	const module = "/usr/lib/softhsm/libsofthsm2.so"
	for _, program := range []string{"gcc", "ldd", "chroot", "softhsm2-util"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is missing: apt-get install gcc libc6-dev softhsm2", program)
			}
			t.Skipf("skipped: %s is missing; to run this test: apt-get install gcc libc6-dev softhsm2", program)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("skipped: chroot needs root; to run this test: sudo go test ./internal/images")
	}
	made, err := Build{Source: source, Programs: []string{"tsa"}, Platforms: []string{"linux/" + runtime.GOARCH}, PKCS11: true, Log: io.Discard}.Make(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	variant := made[1].Platforms[0]
	if variant.Compressed > 30<<20 {
		t.Errorf("%d bytes", variant.Compressed)
	}
	root := t.TempDir()
	unpack(t, variant.Image, root)
	for _, from := range append(linked(t, module), module) {
		if _, err := os.Stat(filepath.Join(root, from)); err == nil {
			continue // the image brings it
		}
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		place(t, root, from, data)
	}
	work := t.TempDir()
	if _, err := keys.Init(t.Context(), work, keys.Options{}); err != nil {
		t.Fatal(err)
	}
	chain, err := os.ReadFile(filepath.Join(work, "tsa", "tsa-chain.pem"))
	if err != nil {
		t.Fatal(err)
	}
	ports := []string{freePort(t), freePort(t)}
	place(t, root, "tsa-chain.pem", chain)
	place(t, root, "pin", []byte("2468\n"))
	place(t, root, "softhsm2.conf", []byte("directories.tokendir = /tokens\nlog.level = ERROR\n"))
	place(t, root, "tokens/.here", nil)
	place(t, work, "softhsm2.conf", []byte("directories.tokendir = "+filepath.Join(root, "tokens")+"\nlog.level = ERROR\n"))
	place(t, root, "tsa.yaml", []byte("listen: 127.0.0.1:"+ports[0]+"\nops-listen: 127.0.0.1:"+ports[1]+"\n"+
		"key: pkcs11:token=t;object=k?module-path="+module+"&pin-source=/pin\nchain-file: /tsa-chain.pem\n"))
	for _, args := range [][]string{
		{"--init-token", "--free", "--label", "t", "--so-pin", "1357", "--pin", "2468"},
		{"--import", filepath.Join(work, "tsa", "tsa.pem"), "--token", "t", "--label", "k", "--id", "01", "--pin", "2468"},
	} {
		cmd := exec.CommandContext(t.Context(), "softhsm2-util", args...)
		cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(work, "softhsm2.conf"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("softhsm2-util: %v: %s", err, out)
		}
	}
	inside := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "chroot", append([]string{root, "/tsa", "-config", "/tsa.yaml"}, args...)...)
		cmd.Env = []string{"SOFTHSM2_CONF=/softhsm2.conf"}
		return cmd
	}
	server := inside()
	var said bytes.Buffer
	server.Stderr = &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	defer func() {
		server.Process.Kill()
		<-ended
	}()
	deadline := time.Now().Add(20 * time.Second)
	for {
		out, err := inside("-healthcheck").CombinedOutput()
		if err == nil {
			break
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("it ended: %v: %s", err, said.String())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("not well: %s", out)
		}
	}
	digest := sha256.Sum256([]byte("hello"))
	query, err := json.Marshal(map[string]any{"artifactHash": digest[:], "hashAlgorithm": "sha256"})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Post("http://127.0.0.1:"+ports[0]+"/api/v1/timestamp", "application/json", bytes.NewReader(query))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("a timestamp: %s", answer.Status)
	}
}

// linked are the libraries of a file.
func linked(t *testing.T, path string) []string {
	t.Helper()
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, field := range strings.Fields(string(out)) {
		if filepath.IsAbs(field) {
			paths = append(paths, field)
		}
	}
	return paths
}

// place writes a file below root.
func place(t *testing.T, root, name string, data []byte) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
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
