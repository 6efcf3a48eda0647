package limit

import (
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ReadFile returns the content of the file at path, which may have up to max bytes.
func ReadFile(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	return contentOf(f, err, path, max)
}

// ReadFS is ReadFile in files.
func ReadFS(files fs.FS, name string, max int64) ([]byte, error) {
	f, err := files.Open(name)
	return contentOf(f, err, name, max)
}

func contentOf(f io.ReadCloser, err error, name string, max int64) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := ReadAll(f, max)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

// ReadAll returns what r has left, which may be up to max bytes.
func ReadAll(r io.Reader, max int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("over %d bytes", max)
	}
	return data, nil
}
