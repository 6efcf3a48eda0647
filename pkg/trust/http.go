package trust

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"
)

// Prefix is the path below which Handler serves the repository.
const Prefix = "/tuf/"

var (
	servedMetadata = regexp.MustCompile(`^([1-9][0-9]{0,17}\.(root|snapshot|targets)|root|timestamp)\.json$`)
	servedTarget   = regexp.MustCompile(`^targets/[0-9a-f]{64}\.[A-Za-z0-9][A-Za-z0-9._-]*$`)
	plainTarget    = regexp.MustCompile(`^targets/([A-Za-z0-9][A-Za-z0-9._-]*)$`)
)

// Handler serves the repository read-only below Prefix. Whatever is not one of its files is
// 404, never another status or page: go-tuf v2 ends its walk over N.root.json only there. Plain
// targets/<name> is the newest content of that target, for people.
func (p *Publisher) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		// For all but the immutable files below, 404 included: a cached 404 would hide the
		// next root.
		w.Header().Set("Cache-Control", "no-store")
		name, ok := strings.CutPrefix(r.URL.Path, Prefix)
		path, immutable := p.servedPath(name)
		if !ok || path == "" {
			http.Error(w, "not found", http.StatusNotFound)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		p.serveFile(w, r, path, immutable)
	})
}

// servedPath is the file behind name, "" for none, and whether it never changes.
func (p *Publisher) servedPath(name string) (path string, immutable bool) {
	switch {
	case name == rootCopy || name == timestampFile:
		return name, false
	case servedMetadata.MatchString(name), servedTarget.MatchString(name):
		return name, true
	}
	m := plainTarget.FindStringSubmatch(name)
	if m == nil {
		return "", false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.repo.targets == nil || p.repo.targets.Signed.Targets[m[1]] == nil {
		return "", false
	}
	path, err := targetPath(m[1], p.repo.targets.Signed.Targets[m[1]])
	if err != nil {
		return "", false
	}
	return path, false
}

func (p *Publisher) serveFile(w http.ResponseWriter, r *http.Request, path string, immutable bool) {
	f, err := p.files.Open(path)
	if err != nil {
		if os.IsNotExist(err) {
			http.Error(w, "not found", http.StatusNotFound)
			return
		}
		p.opts.Logger.ErrorContext(r.Context(), "TUF file cannot be read", "file", path, "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	contentType := "application/x-pem-file"
	if strings.HasSuffix(path, ".json") {
		contentType = "application/json"
	}
	w.Header().Set("Content-Type", contentType)
	modified := time.Time{}
	if immutable {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		modified = info.ModTime()
	}
	http.ServeContent(w, r, "", modified, io.ReadSeeker(f))
}
