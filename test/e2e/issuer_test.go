package e2e

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSignIn goes through the development issuer the way a person does: the client opens a
// browser, or prints an address, and waits.
func TestSignIn(t *testing.T) {
	s := up(t)
	files := []string{"--signing-config", s.client("signing_config.v0.2.json"), "--trusted-root", s.client("trusted_root.json")}
	for _, tt := range []struct {
		name, client, version string
		browser               bool // the client may open one
		args                  func(b *sandbox) []string
		identity              string
	}{
		{"cosign opens a browser", "cosign", "v3.1.3", true, func(b *sandbox) []string {
			return flags([]string{"sign-blob", "--yes", "--fulcio-auth-flow", "normal", "--bundle", b.path("bundle")}, files, []string{b.file("blob", "browser")})
		}, "alice@example.com"},
		{"cosign prints an address and asks for a code", "cosign", "v3.1.3", false, func(b *sandbox) []string {
			return flags([]string{"sign-blob", "--yes", "--fulcio-auth-flow", "normal", "--bundle", b.path("bundle")}, files, []string{b.file("blob", "out of band")})
		}, "bob@example.com"},
		{"cosign shows a device code", "cosign", "v3.1.3", false, func(b *sandbox) []string {
			return flags([]string{"sign-blob", "--yes", "--fulcio-auth-flow", "device", "--bundle", b.path("bundle")}, files, []string{b.file("blob", "device")})
		}, "carol@example.com"},
		{"sigstore-python opens a browser", "sigstore-python", "", true, func(b *sandbox) []string {
			return []string{"--trust-config", s.client("client_trust_config.json"), "sign", "--bundle", b.path("bundle"), b.file("blob", "python")}
		}, "dave@example.org"},
		{"sigstore-python asks for a code", "sigstore-python", "", false, func(b *sandbox) []string {
			return []string{"--trust-config", s.client("client_trust_config.json"), "sign", "--oauth-force-oob", "--bundle", b.path("bundle"), b.file("blob", "python, out of band")}
		}, "erin@example.net"},
		{"@sigstore/cli opens a browser", "sigstore-js", "", true, func(b *sandbox) []string {
			statement := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"blob","digest":{"sha256":"` + strings.Repeat("cd", 32) + `"}}],"predicateType":"https://example.com/p","predicate":{}}`
			return []string{"attest", "--fulcio-url", s.url, "--rekor-url", s.url, "--oidc-issuer", s.issuer(), "-o", b.path("bundle"), b.file("blob", statement)}
		}, "alice@example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			exe := client(t, tt.client, tt.version)
			b := newSandbox(t)
			opened := b.fakeBrowser(tt.browser)
			ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
			defer cancel()
			cmd := b.command(ctx, exe, tt.args(b)...)
			var output lines
			cmd.Stdout, cmd.Stderr = &output, &output
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }() // ends with the client
			defer func() { cancel(); <-ended }()

			var address string
			eventually(t, "an address to sign in at\n"+output.String(), func() bool {
				if data, err := os.ReadFile(opened); err == nil {
					address = strings.TrimSpace(string(data))
				} else if m := regexp.MustCompile(regexp.QuoteMeta(s.issuer()) + `/(authorize|device)\?\S+`).FindString(output.String()); m != "" && !tt.browser {
					address = m
				}
				return address != ""
			})
			if code := person(t, s, address, tt.identity); code != "" {
				if _, err := stdin.Write([]byte(code + "\n")); err != nil {
					t.Fatal(err)
				}
			}
			err = <-ended
			ended <- nil
			if err != nil {
				t.Fatalf("%v\n%s", err, output.String())
			}
			cosign := client(t, "cosign", "v3.1.3")
			args := []string{"--bundle", b.path("bundle"), "--trusted-root", s.client("trusted_root.json"),
				"--certificate-identity", tt.identity, "--certificate-oidc-issuer", s.issuer()}
			if tt.client == "sigstore-js" {
				b.must(cosign, flags([]string{"verify-blob-attestation", "--check-claims=false", "--type", "https://example.com/p"}, args, []string{b.path("blob")})...)
				return
			}
			b.must(cosign, flags([]string{"verify-blob"}, args, []string{b.path("blob")})...)
		})
	}
}

// fakeBrowser makes whatever programs use to open a browser write the address to a file, whose
// path it returns, or fail.
func (s *sandbox) fakeBrowser(works bool) string {
	s.t.Helper()
	bin, opened := s.t.TempDir(), s.path("opened")
	script := "#!/bin/sh\nexit 1\n"
	if works {
		script = "#!/bin/sh\nfor a; do :; done\nprintf %s \"$a\" >'" + opened + ".part' && mv '" + opened + ".part' '" + opened + "'\n"
	}
	for _, name := range []string{"xdg-open", "x-www-browser", "www-browser", "wslview"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o700); err != nil {
			s.t.Fatal(err)
		}
	}
	s.set("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	s.set("BROWSER", filepath.Join(bin, "xdg-open"))
	return opened
}

// person opens the address, signs in as email, and follows the redirect back to the client. It
// returns the code when the page shows one to type in.
func person(t *testing.T, s *stack, address, email string) (code string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	open := func(method, url string, form url.Values) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s %s: %d %v\n%s", method, url, resp.StatusCode, err, page)
		}
		return string(page)
	}
	page := open(http.MethodGet, address, nil)
	form := url.Values{"email": {email}}
	action := s.issuer() + "/login"
	if m := regexp.MustCompile(`name="id" value="([^"]+)"`).FindStringSubmatch(page); m != nil {
		form.Set("id", m[1])
	} else if m := regexp.MustCompile(`name="user_code" value="([^"]+)"`).FindStringSubmatch(page); m != nil {
		form.Set("user_code", m[1])
		action = s.issuer() + "/device"
	} else {
		t.Fatalf("%s is not a sign-in page:\n%s", address, page)
	}
	page = open(http.MethodPost, action, form)
	if m := regexp.MustCompile(`<code id="code">([^<]+)</code>`).FindStringSubmatch(page); m != nil {
		return m[1]
	}
	return ""
}
