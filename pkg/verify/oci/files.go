package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/verify"
)

const (
	maxMembers    = 1 << 17 // files of an archive or a directory of blobs
	maxMemberName = 512
)

// files are the files of a layout, by slash-separated names without "." or "..". What is not there is fs.ErrNotExist.
type files interface {
	// read returns the content of a regular file of up to max bytes.
	read(name string, max int64) ([]byte, error)
	// first returns the first byte of a file, 0 of an empty one.
	first(name string) (byte, error)
	// list returns names and sizes of the files in a directory.
	list(dir string) (map[string]int64, error)
	io.Closer
}

// directory reads files below a directory; symbolic links do not lead out of it.
type directory struct{ root *os.Root }

func openDirectory(dir string) (*directory, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &directory{root}, nil
}

func (d *directory) Close() error { return d.root.Close() }

func (d *directory) read(name string, max int64) ([]byte, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe must not stop us
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, malformed(nil, "%s is not a regular file", name)
	}
	if info.Size() > max {
		return nil, tooLarge("%s has %d bytes, at most %d are read", name, info.Size(), max)
	}
	return limit.ReadAll(f, max)
}

func (d *directory) first(name string) (byte, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.Read(b[:]); err != nil && err != io.EOF {
		return 0, err
	}
	return b[0], nil
}

func (d *directory) list(dir string) (map[string]int64, error) {
	f, err := d.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(maxMembers + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxMembers {
		return nil, tooLarge("%s has more than %d files", dir, maxMembers)
	}
	out := make(map[string]int64, len(entries))
	for _, e := range entries {
		info, err := d.root.Stat(path.Join(dir, e.Name()))
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		out[e.Name()] = info.Size()
	}
	return out, nil
}

// archive reads the members of a tar file where they stand.
type archive struct {
	file    io.ReaderAt
	close   func() error
	members map[string]member
	links   string // the first link, if there is one
}

type member struct{ offset, size int64 }

// openArchive reads the headers of a tar file. It refuses compressed ones, since nothing is unpacked.
func openArchive(name string) (*archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = malformed(nil, "%s is not a regular file", name)
	}
	var a *archive
	if err == nil {
		a, err = indexArchive(f, info.Size())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	a.close = f.Close
	return a, nil
}

// indexArchive notes where each member stands. Names that are absolute, lead upwards or come twice are refused, as are sparse files,
// devices and pipes: two readers could see two archives.
func indexArchive(f io.ReaderAt, size int64) (*archive, error) {
	a := &archive{file: f, close: func() error { return nil }, members: make(map[string]member)}
	section := io.NewSectionReader(f, 0, size)
	magic := make([]byte, 6)
	if n, _ := f.ReadAt(magic, 0); n >= 4 && (string(magic[:2]) == "\x1f\x8b" || string(magic[:4]) == "\x28\xb5\x2f\xfd" || string(magic) == "\xfd7zXZ\x00" || string(magic[:3]) == "BZh") {
		return nil, unsupported("the archive is compressed, and nothing is unpacked: decompress it first")
	}
	reader := tar.NewReader(section)
	for n := 0; ; n++ {
		h, err := reader.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, malformed(err, "archive")
		}
		if n == maxMembers {
			return nil, tooLarge("archive of more than %d members", maxMembers)
		}
		clean, err := memberName(h.Name)
		if err != nil {
			return nil, err
		}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return nil, malformed(nil, "archive member %q is sparse", h.Name)
			}
		}
		switch h.Typeflag {
		case tar.TypeDir, tar.TypeXGlobalHeader:
			continue
		case tar.TypeReg:
		case tar.TypeLink, tar.TypeSymlink:
			if a.links == "" {
				a.links = clean
			}
			continue
		default:
			return nil, malformed(nil, "archive member %q is neither a file nor a directory", h.Name)
		}
		if _, twice := a.members[clean]; twice {
			return nil, malformed(nil, "archive member %q appears twice", clean)
		}
		// The reader has read exactly up to the content: it buffers nothing.
		offset, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Size > size-offset {
			return nil, malformed(nil, "archive ends within member %q", clean)
		}
		a.members[clean] = member{offset, h.Size}
	}
}

func memberName(name string) (string, error) {
	if len(name) > maxMemberName || strings.ContainsAny(name, "\\\x00") {
		return "", malformed(nil, "archive member %.200q has a name that is too long or not portable", name)
	}
	if strings.HasPrefix(name, "/") {
		return "", malformed(nil, "archive member %q has an absolute name", name)
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", malformed(nil, "archive member %q leads upwards", name)
		}
	}
	return path.Clean(name), nil
}

func (a *archive) Close() error { return a.close() }

func (a *archive) read(name string, max int64) ([]byte, error) {
	m, ok := a.members[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	if m.size > max {
		return nil, tooLarge("%s has %d bytes, at most %d are read", name, m.size, max)
	}
	data := make([]byte, m.size)
	if _, err := a.file.ReadAt(data, m.offset); err != nil && (err != io.EOF || m.size > 0) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

func (a *archive) first(name string) (byte, error) {
	var b [1]byte
	m, ok := a.members[name]
	if !ok || m.size == 0 {
		return 0, nil
	}
	if _, err := a.file.ReadAt(b[:], m.offset); err != nil && err != io.EOF {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return b[0], nil
}

func (a *archive) list(dir string) (map[string]int64, error) {
	out := make(map[string]int64)
	for name, m := range a.members {
		if d, base := path.Split(name); strings.TrimSuffix(d, "/") == dir {
			out[base] = m.size
		}
	}
	return out, nil
}

func unsupported(format string, args ...any) error {
	return fault.New(fault.Invalid, string(verify.ReasonFormatUnsupported), nil, format, args...)
}
