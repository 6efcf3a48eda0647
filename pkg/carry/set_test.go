package carry

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

const someHex = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestAManifestIsReadStrictly(t *testing.T) {
	file := func(path string) string { return `{"path":"` + path + `","bytes":1,"sha256":"` + someHex + `"}` }
	image := `{"repository":"r.example/app","digest":"sha256:` + someHex + `","mediaType":"m"}`
	good := `{"format":"attestry-carry/1","images":[` + image + `],"files":[` + file("a") + `,` + file("b") + `]}`
	if _, err := parseManifest([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"another format":               strings.Replace(good, "carry/1", "carry/2", 1),
		"an unknown member":            strings.Replace(good, `{"format"`, `{"more":1,"format"`, 1),
		"something behind it":          good + "{}",
		"no image":                     strings.Replace(good, image, "", 1),
		"a file that is there twice":   strings.Replace(good, `"b"`, `"a"`, 1),
		"files out of order":           strings.Replace(good, `"a"`, `"c"`, 1),
		"a file that leads out":        strings.Replace(good, `"a"`, `"../a"`, 1),
		"an absolute file":             strings.Replace(good, `"a"`, `"/a"`, 1),
		"a file with a backslash":      strings.Replace(good, `"a"`, `"a\\\\b"`, 1),
		"itself":                       strings.Replace(good, `"b"`, `"carry.json"`, 1),
		"a digest in capitals":         strings.Replace(good, someHex, strings.ToUpper(someHex), 1),
		"a negative size":              strings.Replace(good, `"bytes":1`, `"bytes":-1`, 1),
		"a tag that is no signature's": strings.Replace(good, `"mediaType":"m"}`, `"mediaType":"m","attached":[{"subject":"sha256:`+someHex+`","digest":"sha256:`+someHex+`","mediaType":"m","tag":"v1"}]}`, 1),
	} {
		if _, err := parseManifest([]byte(text)); err == nil {
			t.Errorf("%s was taken: %s", name, text)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte(`{"format":"attestry-carry/1","images":[{"repository":"r.example/app","digest":"sha256:` + someHex + `","mediaType":"m"}],"files":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseManifest(raw)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if !filepath.IsLocal(file.Path) {
				t.Errorf("file %q", file.Path)
			}
		}
		again, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again); err != nil {
			t.Errorf("%v: %s", err, again)
		}
	})
}

// openTar reads a tar from memory.
func openTar(t testing.TB, data []byte) (*archive, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "set.tar"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	return readTar(f)
}

func TestATarIsTheSetAndNothingElse(t *testing.T) {
	files := fstest.MapFS{"a": {Data: []byte("one")}, "b/c": {Data: []byte("two")}, "b/d/e": {Data: []byte("")}}
	var names []File
	for _, name := range []string{"a", "b/c", "b/d/e"} {
		f, err := digestOfFile(files, name)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, f)
	}
	var out, again bytes.Buffer
	if err := errors.Join(writeTar(&out, files, names), writeTar(&again, files, names)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Error("two tars of the same files differ")
	}
	a, err := openTar(t, out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var walked []string
	err = fs.WalkDir(a, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			walked = append(walked, name)
		}
		return err
	})
	if err != nil || strings.Join(walked, " ") != "a b/c b/d/e" {
		t.Errorf("%v, %v", walked, err)
	}
	for _, want := range names {
		if got, err := digestOfFile(a, want.Path); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	if _, err := openTar(t, out.Bytes()[:514]); err == nil {
		t.Error("a tar that was cut off was read")
	}
}

func TestATarWithAnythingStrangeIsRefused(t *testing.T) {
	reg := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	for name, members := range map[string][]tar.Header{
		"a symbolic link":      {{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "b"}},
		"a hard link":          {reg("b"), {Typeflag: tar.TypeLink, Name: "a", Linkname: "b"}},
		"a device":             {{Typeflag: tar.TypeChar, Name: "a"}},
		"a pipe":               {{Typeflag: tar.TypeFifo, Name: "a"}},
		"a name that leads up": {reg("../a")},
		"one inside":           {reg("a/../../b")},
		"an absolute name":     {reg("/a")},
		"a name twice":         {reg("a"), reg("a")},
		"a name twice, dotted": {reg("a"), reg("./a")},
		"a file as directory":  {reg("a"), reg("a/b")},
		"a directory as file":  {reg("a/b"), reg("a")},
		"a long name":          {reg(strings.Repeat("a", maxMemberName+1))},
	} {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		for _, h := range members {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := openTar(t, out.Bytes()); err == nil {
			t.Errorf("a tar with %s was read", name)
		}
	}
}
