package sign

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/issuer"
)

// startIssuer serves the development issuer.
func startIssuer(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	p, err := issuer.New(issuer.Options{IssuerURL: srv.URL + "/oidc", Signer: key, Listen: srv.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/oidc/", p)
	return srv.URL + "/oidc"
}

// prompt hands what a person is told to the test.
type prompt chan string

func (p prompt) Write(b []byte) (int, error) {
	p <- string(b)
	return len(b), nil
}

func email(t *testing.T, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is not a JWT", token)
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct{ Email string }
	if err := json.Unmarshal(raw, &claims); err != nil {
		t.Fatal(err)
	}
	return claims.Email
}

var (
	address = regexp.MustCompile(`https?://\S+`)
	field   = regexp.MustCompile(`<input[^>]*type="hidden"[^>]*>`)
	attr    = regexp.MustCompile(`(name|value)="([^"]*)"`)
)

// submit fills in the form at address as a browser would and returns the page it ends on.
func submit(t *testing.T, browser *http.Client, address string, fill url.Values) (int, string) {
	t.Helper()
	resp, err := browser.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, input := range field.FindAllString(string(page), -1) {
		var name, value string
		for _, a := range attr.FindAllStringSubmatch(input, -1) {
			if a[1] == "name" {
				name = a[2]
			} else {
				value = a[2]
			}
		}
		if name != "" && fill.Get(name) == "" {
			fill.Set(name, value)
		}
	}
	req, err := http.NewRequest(http.MethodPost, resp.Request.URL.String(), strings.NewReader(fill.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", resp.Request.URL.Scheme+"://"+resp.Request.URL.Host)
	resp, err = browser.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(page)
}

func newBrowser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar}
}

func TestSigningInByCodeAndByDevice(t *testing.T) {
	for name, device := range map[string]bool{"authorization code": false, "device": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			told := make(prompt, 1)
			type outcome struct {
				token string
				err   error
			}
			done := make(chan outcome, 1)
			s := SignIn{Issuer: startIssuer(t), ClientID: "sigstore", Device: device, Prompt: told}
			go func() { token, err := s.Token(ctx); done <- outcome{token, err} }() // ends with ctx
			var where string
			select {
			case text := <-told:
				where = address.FindString(text)
			case got := <-done:
				t.Fatalf("ended before anybody was asked: %v", got.err)
			}
			fill := url.Values{"email": {"alice@example.com"}}
			if device {
				u, err := url.Parse(where)
				if err != nil {
					t.Fatal(err)
				}
				fill.Set("user_code", u.Query().Get("user_code"))
			}
			if status, page := submit(t, newBrowser(t), where, fill); status != http.StatusOK {
				t.Fatalf("sign-in page: %d %s", status, page)
			}
			got := <-done
			if got.err != nil {
				t.Fatal(got.err)
			}
			if who := email(t, got.token); who != "alice@example.com" {
				t.Errorf("token for %q", who)
			}
		})
	}
}

func TestSigningInStopsWhenThePersonDoes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	told := make(prompt, 1)
	done := make(chan error, 1)
	s := SignIn{Issuer: startIssuer(t), ClientID: "sigstore", Prompt: told}
	go func() { _, err := s.Token(ctx); done <- err }() // ends with ctx
	<-told
	cancel()
	if err := <-done; err == nil {
		t.Error("a token without anybody signing in")
	}
}

func TestAnswersToAnotherRequestAreIgnored(t *testing.T) {
	for name, c := range map[string]struct {
		query string
		ok    bool
		err   bool
	}{
		"no state":      {"code=c", false, false},
		"another state": {"code=c&state=x", false, false},
		"an error":      {"error=access_denied&state=s", true, true},
		"no code":       {"state=s", true, true},
		"a code":        {"code=c&state=s", true, false},
	} {
		a, ok := readAnswer(httptest.NewRequest(http.MethodGet, "/auth/callback?"+c.query, nil), "s")
		if ok != c.ok || (a.err != nil) != c.err {
			t.Errorf("%s: %+v, %v", name, a, ok)
		}
	}
}
