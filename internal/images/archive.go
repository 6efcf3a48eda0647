package images

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// Names in a directory of images, and in the archive that carries it across an air gap.
const (
	LayoutName = "oci"
	ListName   = "images.txt"
	SumsName   = "SHA256SUMS"
)

// Write puts images, their SBOMs and images.txt into dir: an OCI layout of all, and for each platform an archive for `docker load`.
// The output of another run, which images.txt tells from anything else, is replaced as a whole.
func Write(dir, tag string, images []Image) error {
	if _, err := os.Stat(filepath.Join(dir, ListName)); err == nil {
		for _, sub := range []string{LayoutName, "docker", "sbom"} {
			if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
				return err
			}
		}
	}
	for _, sub := range []string{"docker", "sbom"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	l, err := layout.Write(filepath.Join(dir, LayoutName), empty.Index)
	if err != nil {
		return err
	}
	var lines []string
	for _, i := range images {
		d, err := i.descriptor(tag)
		if err != nil {
			return err
		}
		reference := d.Annotations["io.containerd.image.name"]
		if err := l.AppendIndex(i.Index, layout.WithAnnotations(d.Annotations)); err != nil {
			return err
		}
		lines = append(lines, reference+"@"+d.Digest.String())
		base := path.Base(i.Name)
		for _, p := range i.Platforms {
			file := base + "-" + p.Architecture
			if err := i.Archive(p, filepath.Join(dir, "docker", file+".tar"), tag); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "sbom", file+".spdx.json"), p.SBOM, 0o644); err != nil {
				return err
			}
		}
	}
	slices.Sort(lines)
	return os.WriteFile(filepath.Join(dir, ListName), []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// Carry writes an archive of everything that a site without a network needs: paths, by the names they get in it, and SHA256SUMS of
// all files. Directories are taken whole. The same content is the same archive.
func Carry(file string, paths map[string]string, at time.Time) (err error) {
	contents := map[string]string{} // name in the archive to path
	for name, from := range paths {
		err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if !d.Type().IsRegular() {
				return fmt.Errorf("%s is not a file", p)
			}
			below, err := filepath.Rel(from, p)
			contents[path.Join(name, filepath.ToSlash(below))] = p
			return err
		})
		if err != nil {
			return err
		}
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	t := tar.NewWriter(f)
	var sums strings.Builder
	names := make([]string, 0, len(contents))
	for name := range contents {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := carryFile(t, &sums, name, contents[name], at); err != nil {
			return err
		}
	}
	text := sums.String()
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: SumsName, Mode: 0o644, Size: int64(len(text)), ModTime: at, Format: tar.FormatPAX}); err != nil {
		return err
	}
	if _, err := io.WriteString(t, text); err != nil {
		return err
	}
	return t.Close()
}

func carryFile(t *tar.Writer, sums io.Writer, name, from string, at time.Time) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	mode := int64(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: info.Size(), ModTime: at, Format: tar.FormatPAX}); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(t, sum), in); err != nil {
		return err
	}
	_, err = fmt.Fprintf(sums, "%s  %s\n", hex.EncodeToString(sum.Sum(nil)), name)
	return err
}
