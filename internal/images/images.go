// Package images makes container images of the programs of this repository, from scratch and byte for byte the same at each run: no
// daemon, no base image, no network. Two builds of one commit with one Go are equal in every file.
//
// An image is one layer: the program at /NAME, directories that user 65532 owns, and the SBOM. There are no CA certificates in
// it, for no program contacts a host that its configuration does not name, and that one's CA is yours (SSL_CERT_FILE, or keys such as
// ca-cert); and no time zones, since all times are UTC.
package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// Registry stands in the names of images until they are in one: nobody resolves it, so what was not loaded is not pulled from
	// elsewhere.
	Registry = "attestry.internal"
	prefix   = "attestry/"

	user = 65532
)

// writable are the directories of every image that belong to its user: a volume that is mounted there for the first time inherits that.
var writable = []string{"attestry", "ca", "fence", "keys", "keys/ca", "keys/public", "keys/tlog", "keys/tsa", "keys/tuf", "tlog", "tsa", "tuf"}

// Build says what to make.
type Build struct {
	Source    string   // the repository
	Programs  []string // names below cmd; nil: all
	Platforms []string // as linux/amd64; nil: linux/amd64 and linux/arm64
	// PKCS11 adds NAME-pkcs11 of ca, tlog and tsa, for the machine's own platform: they load the module of a token, and so bring
	// glibc, from this machine.
	PKCS11 bool
	Time   time.Time // of all that is in the images
	Log    io.Writer // progress
}

// Image is one program's image for every platform.
type Image struct {
	Name      string // of the repository, as attestry/ca
	Index     v1.ImageIndex
	Platforms []Platform
}

// Platform is an image for one platform.
type Platform struct {
	OS, Architecture string
	Image            v1.Image
	SBOM             []byte // SPDX 2.3, JSON
	Program          int64  // bytes
	Compressed       int64  // bytes that a registry transfers
}

// Programs returns the names of the programs below source/cmd.
func Programs(source string) ([]string, error) {
	mains, err := filepath.Glob(filepath.Join(source, "cmd", "*", "main.go"))
	if err != nil || len(mains) == 0 {
		return nil, fmt.Errorf("no programs below %s/cmd (%v)", source, err)
	}
	var names []string
	for _, main := range mains {
		names = append(names, filepath.Base(filepath.Dir(main)))
	}
	return names, nil
}

// Make builds the programs and their images. Binaries stay in dir.
func (b Build) Make(ctx context.Context, dir string) ([]Image, error) {
	all, err := Programs(b.Source)
	if err != nil {
		return nil, err
	}
	if b.Programs == nil {
		b.Programs = all
	}
	if b.Platforms == nil {
		b.Platforms = []string{"linux/amd64", "linux/arm64"}
	}
	var made []Image
	for _, program := range b.Programs {
		if !slices.Contains(all, program) {
			return nil, fmt.Errorf("there is no program %q below cmd", program)
		}
		image, err := b.static(ctx, dir, program)
		if err != nil {
			return nil, fmt.Errorf("image of %s: %w", program, err)
		}
		made = append(made, image)
	}
	if b.PKCS11 {
		for _, program := range []string{"ca", "tlog", "tsa"} {
			if !slices.Contains(b.Programs, program) {
				continue
			}
			image, err := b.dynamic(ctx, dir, program)
			if err != nil {
				return nil, fmt.Errorf("image of %s-pkcs11: %w", program, err)
			}
			made = append(made, image)
		}
	}
	return made, nil
}

func (b Build) static(ctx context.Context, dir, program string) (Image, error) {
	image := Image{Name: prefix + program}
	for _, platform := range b.Platforms {
		system, architecture, ok := strings.Cut(platform, "/")
		if !ok {
			return image, fmt.Errorf("platform %q is not OS/ARCHITECTURE", platform)
		}
		binary := filepath.Join(dir, system+"-"+architecture, program)
		if err := b.compile(ctx, program, binary, "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+architecture); err != nil {
			return image, err
		}
		p, err := b.pack(program, system, architecture, binary, nil)
		if err != nil {
			return image, err
		}
		image.Platforms = append(image.Platforms, p)
	}
	return image, image.index()
}

// compile builds a program for the environment env. -trimpath and the commit of the repository make it the same wherever it is built.
func (b Build) compile(ctx context.Context, program, binary string, env ...string) error {
	fmt.Fprintf(b.Log, "building %s for %s\n", program, strings.Join(env[1:], " "))
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", binary}
	if slices.Contains(env, "CGO_ENABLED=1") {
		args = append(args, "-tags", "pkcs11,netgo,osusergo")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/"+program)...)
	cmd.Dir = b.Source
	cmd.Env = append(os.Environ(), append(env, "GOTOOLCHAIN=local", "GOFLAGS=")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// extra is a file of the machine that an image brings.
type extra struct{ at, from string }

// dynamic is a program that can load the module of a token: built with cgo, with the C library it was built against and the C++ one
// that modules want.
func (b Build) dynamic(ctx context.Context, dir, program string) (Image, error) {
	image := Image{Name: prefix + program + "-pkcs11"}
	binary := filepath.Join(dir, "linux-"+runtime.GOARCH+"-pkcs11", program)
	if err := b.compile(ctx, program, binary, "CGO_ENABLED=1", "GOOS=linux", "GOARCH="+runtime.GOARCH); err != nil {
		return image, err
	}
	files, err := libraries(ctx, binary)
	if err != nil {
		return image, err
	}
	p, err := b.pack(program, "linux", runtime.GOARCH, binary, files)
	if err != nil {
		return image, err
	}
	image.Platforms = append(image.Platforms, p)
	return image, image.index()
}

// libraries are what binary is linked with, by its loader's own account, and those of glibc and C++ that it does not name but modules do.
func libraries(ctx context.Context, binary string) ([]extra, error) {
	out, err := exec.CommandContext(ctx, "ldd", binary).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd: %w", err)
	}
	var files []extra
	var dir string // of the C library
	for _, line := range strings.Split(string(out), "\n") {
		fields := strings.Fields(line) // NAME => PATH (ADDRESS), LOADER (ADDRESS)
		switch {
		case len(fields) >= 3 && fields[1] == "=>" && filepath.IsAbs(fields[2]):
			files = append(files, extra{fields[2], fields[2]})
			if strings.HasPrefix(fields[0], "libc.so") {
				dir = filepath.Dir(fields[2])
			}
		case len(fields) == 2 && filepath.IsAbs(fields[0]):
			files = append(files, extra{fields[0], fields[0]})
		}
	}
	if dir == "" {
		return nil, fmt.Errorf("%s is not linked with a C library", binary)
	}
	for _, name := range []string{"libdl.so.2", "libpthread.so.0", "librt.so.1", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1"} {
		for _, at := range []string{filepath.Join(dir, name), filepath.Join("/usr", dir, name)} {
			if _, err := os.Stat(at); err == nil {
				if !slices.ContainsFunc(files, func(f extra) bool { return filepath.Base(f.at) == name }) {
					files = append(files, extra{filepath.Join(dir, name), at})
				}
				break
			}
		}
	}
	return files, nil
}

// pack makes the image of a binary.
func (b Build) pack(program, system, architecture, binary string, files []extra) (Platform, error) {
	p := Platform{OS: system, Architecture: architecture}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return p, err
	}
	if p.SBOM, err = sbom(program, system+"/"+architecture, info, files, b.Time); err != nil {
		return p, err
	}
	layer, err := b.layer(program, binary, p.SBOM, files)
	if err != nil {
		return p, err
	}
	if stat, err := os.Stat(binary); err == nil {
		p.Program = stat.Size()
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: b.Time}, CreatedBy: "scripts/images"}}); err != nil {
		return p, err
	}
	revision := ""
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return p, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = system, architecture, v1.Time{Time: b.Time}
	config.Config = v1.Config{
		Entrypoint: []string{"/" + program}, User: fmt.Sprintf("%d:%d", user, user), WorkingDir: "/",
		Env: []string{"PATH=/", "HOME=/var/lib/attestry"},
		Labels: map[string]string{
			"org.opencontainers.image.title": program, "org.opencontainers.image.licenses": "Apache-2.0", "org.opencontainers.image.revision": revision,
		},
	}
	if p.Image, err = mutate.ConfigFile(img, config); err != nil {
		return p, err
	}
	if p.Compressed, err = layer.Size(); err != nil {
		return p, err
	}
	return p, nil
}

// layer is the one layer of an image, compressed once.
func (b Build) layer(program, binary string, bom []byte, files []extra) (v1.Layer, error) {
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(z)
	made := map[string]bool{}
	var dir func(at string, mode int64, owner int) error
	dir = func(at string, mode int64, owner int) error {
		if at == "." || at == "/" || made[at] {
			return nil
		}
		if err := dir(path.Dir(at), 0o755, 0); err != nil {
			return err
		}
		made[at] = true
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: at + "/", Mode: mode, Uid: owner, Gid: owner, ModTime: b.Time, Format: tar.FormatPAX})
	}
	file := func(at string, mode int64, data []byte) error {
		if err := dir(path.Dir(at), 0o755, 0); err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: at, Mode: mode, Size: int64(len(data)), ModTime: b.Time, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := t.Write(data)
		return err
	}
	if err := dir("tmp", 0o1777, 0); err != nil {
		return nil, err
	}
	for _, name := range writable {
		mode := int64(0o700)
		if name == "keys/public" {
			mode = 0o755
		}
		if err := dir("var/lib/"+name, mode, user); err != nil {
			return nil, err
		}
	}
	account := fmt.Sprintf("nonroot:x:%d:%d:nonroot:/var/lib/attestry:/sbin/nologin\n", user, user)
	group := fmt.Sprintf("nonroot:x:%d:\n", user)
	if err := file("etc/passwd", 0o644, []byte(account)); err != nil {
		return nil, err
	}
	if err := file("etc/group", 0o644, []byte(group)); err != nil {
		return nil, err
	}
	for _, f := range append(files, extra{"/" + program, binary}) {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return nil, err
		}
		if err := file(strings.TrimPrefix(f.at, "/"), 0o755, data); err != nil {
			return nil, err
		}
	}
	if err := file("usr/share/sbom/"+program+".spdx.json", 0o644, bom); err != nil {
		return nil, err
	}
	for _, c := range []io.Closer{t, z} {
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
}

// index puts the platforms of an image together.
func (i *Image) index() error {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range i.Platforms {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: p.Image, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: p.OS, Architecture: p.Architecture},
		}})
	}
	i.Index = index
	_, err := index.Digest()
	return err
}

// Archive writes a platform's image as `docker load` and containerd take it.
func (i Image) Archive(p Platform, path, tag string) error {
	ref, err := name.NewTag(Registry + "/" + i.Name + ":" + tag)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, ref, p.Image)
}

// descriptor is what index.json of a layout says of an image.
func (i Image) descriptor(tag string) (v1.Descriptor, error) {
	d, err := partial.Descriptor(i.Index)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d.Annotations = map[string]string{
		"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": Registry + "/" + i.Name + ":" + tag,
	}
	return *d, nil
}
