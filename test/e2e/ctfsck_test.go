package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

// TestTesseraCTChecksTheStaticLog has TesseraCT's fsck fetch every tile and entry bundle of our CT log, hash
// them up to a root and compare with the signed checkpoint.
func TestTesseraCTChecksTheStaticLog(t *testing.T) {
	exe := client(t, "tesseract-fsck", "")
	script := system(t, "script", "bsdutils") // without a terminal it does not say what it found
	s := up(t)
	b := newSandbox(t)
	b.must(attestry, "bench", "--target", "ca", "--url", s.url, "--dir", s.dir, "--n", "300", "--c", "16")
	base := s.ctBase()
	origin, rest, _ := strings.Cut(get(t, base+"/checkpoint"), "\n")
	size, rest, _ := strings.Cut(rest, "\n")
	root, _, _ := strings.Cut(rest, "\n")
	if size != "300" {
		t.Fatalf("the log has %s entries, want 300: a full bundle and a partial one", size)
	}
	block, _ := pem.Decode([]byte(readFile(t, s.client("ctfe.pem"))))
	if block == nil {
		t.Fatal("client/ctfe.pem has no PEM block")
	}
	// Its exit status is not used: version 0.1.1 cancels its own last requests for issuers once the
	// tree is through, and fails or not as it happens.
	fsck := func(base string) string {
		return b.run(script, "-qec", strings.Join([]string{exe, "-N", "2", "-monitoring_url", base + "/", "-origin", origin,
			"-public_key", base64.StdEncoding.EncodeToString(block.Bytes)}, " "), b.path("terminal")).String()
	}
	if out, want := fsck(base), "Successfully fsck'd log with size 300 and root "+root; !strings.Contains(out, want) {
		t.Errorf("no %q in\n%s", want, out)
	}
	proxy := httptest.NewServer(flipping(t, base, "/tile/data/000"))
	defer proxy.Close()
	if out := fsck(proxy.URL); strings.Contains(out, "Successfully") {
		t.Errorf("with one bit of an entry changed:\n%s", out)
	}
}

// flipping is base with one bit changed in what begins with path.
func flipping(t *testing.T, base, path string) http.Handler {
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(r *http.Response) error {
			if !strings.HasPrefix(r.Request.URL.Path, target.Path+path) {
				return nil
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			body[len(body)/3] ^= 1
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Length", strconv.Itoa(len(body)))
			return nil
		},
	}
}
