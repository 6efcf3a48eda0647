package carry

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/pkg/attachment"
)

// Files opens a set that is a directory or a tar. Nothing of a tar is unpacked.
func Files(name string) (fs.FS, io.Closer, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, nil, err
	}
	if info.IsDir() {
		dir, err := attachment.OpenDir(name)
		if err != nil {
			return nil, nil, err
		}
		return dir, dir, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	archive, err := readTar(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return archive, f, nil
}

// writeTar writes the set as a tar that depends on nothing but its content: names in order, no times, no owners, no
// directories.
func writeTar(w io.Writer, files fs.FS, names []File) error {
	out := tar.NewWriter(w)
	for _, file := range names {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: file.Path, Size: file.Bytes, Mode: 0o644, Format: tar.FormatPAX, ModTime: time.Unix(0, 0)}
		if err := out.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
		f, err := files.Open(file.Path)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
	}
	return out.Close()
}

// archive is a tar as a file system: plain files, found by where they lie in it.
type archive struct {
	r       io.ReaderAt
	members map[string]member
	dirs    map[string][]string // names in a directory
}

type member struct{ offset, size int64 }

const maxMemberName = 512

// readTar lists a tar. Links, devices, names that are absolute or lead out of it, and names that are there twice are refused, as
// is all but regular files and directories.
func readTar(f *os.File) (*archive, error) {
	a := &archive{r: f, members: map[string]member{}, dirs: map[string][]string{}}
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	in := tar.NewReader(f)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("not a whole tar: %w", err)
		}
		name := strings.TrimPrefix(header.Name, "./")
		if header.Typeflag == tar.TypeDir {
			continue
		}
		for key := range header.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return nil, fmt.Errorf("tar member %q is sparse", header.Name)
			}
		}
		switch {
		case header.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("tar member %q is no regular file", header.Name)
		case len(name) > maxMemberName || !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "\\\x00"):
			return nil, fmt.Errorf("tar member name %.600q", header.Name)
		case len(a.members) == maxFiles:
			return nil, fmt.Errorf("the tar has over %d members", maxFiles)
		}
		if _, twice := a.members[name]; twice {
			return nil, fmt.Errorf("tar member %q is there twice", name)
		}
		if _, isDir := a.dirs[name]; isDir {
			return nil, fmt.Errorf("tar member %q is a file and a directory", name)
		}
		offset, err := f.Seek(0, io.SeekCurrent) // archive/tar does not read ahead
		if err != nil {
			return nil, err
		}
		if header.Size > stat.Size()-offset {
			return nil, fmt.Errorf("the tar ends within member %q", name)
		}
		a.members[name] = member{offset, header.Size}
		for child := name; child != "."; child = path.Dir(child) {
			dir := path.Dir(child)
			if _, isFile := a.members[dir]; isFile {
				return nil, fmt.Errorf("tar member %q is a file and a directory", dir)
			}
			known := len(a.dirs[dir]) > 0
			if child == name || !slices.Contains(a.dirs[dir], path.Base(child)) {
				a.dirs[dir] = append(a.dirs[dir], path.Base(child))
			}
			if known {
				break // its parents know it
			}
		}
	}
}

func (a *archive) Open(name string) (fs.File, error) {
	m, ok := a.members[name]
	if !ok {
		if _, ok := a.dirs[name]; ok {
			return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("is a directory")}
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &openMember{io.NewSectionReader(a.r, m.offset, m.size), info{path.Base(name), m.size, 0o444}}, nil
}

// ReadDir lists a directory.
func (a *archive) ReadDir(name string) ([]fs.DirEntry, error) {
	names, ok := a.dirs[name]
	if !ok {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	var entries []fs.DirEntry
	for _, base := range slices.Sorted(slices.Values(names)) {
		full := path.Join(name, base)
		if m, isFile := a.members[full]; isFile {
			entries = append(entries, info{base, m.size, 0o444})
		} else {
			entries = append(entries, info{base, 0, fs.ModeDir | 0o555})
		}
	}
	return entries, nil
}

// Stat makes fs.WalkDir work at the root.
func (a *archive) Stat(name string) (fs.FileInfo, error) {
	if m, ok := a.members[name]; ok {
		return info{path.Base(name), m.size, 0o444}, nil
	}
	if _, ok := a.dirs[name]; ok {
		return info{path.Base(name), 0, fs.ModeDir | 0o555}, nil
	}
	return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
}

type openMember struct {
	*io.SectionReader
	i info
}

func (m *openMember) Stat() (fs.FileInfo, error) { return m.i, nil }
func (m *openMember) Close() error               { return nil }

// info is what there is to say of a member.
type info struct {
	name string
	size int64
	mode fs.FileMode
}

func (i info) Name() string               { return i.name }
func (i info) Size() int64                { return i.size }
func (i info) Mode() fs.FileMode          { return i.mode }
func (i info) Type() fs.FileMode          { return i.mode.Type() }
func (i info) ModTime() time.Time         { return time.Unix(0, 0) }
func (i info) IsDir() bool                { return i.mode.IsDir() }
func (i info) Sys() any                   { return nil }
func (i info) Info() (fs.FileInfo, error) { return i, nil }
