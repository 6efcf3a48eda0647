package oci

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/attestry/attestry/pkg/verify"
)

// The blob of a bundle is not what its descriptor says; the rest of the registry is real.
func TestBlobsOfAnotherLengthOrDigest(t *testing.T) {
	const bundle = `{"a":"bundle"}`
	for _, tt := range []struct {
		name   string
		body   string
		length string // Content-Length, "" as it is, "none" to leave it away
		reason verify.Reason
	}{
		{"other content of the same length", `{"b":"bundle"}`, "", verify.ReasonImageMalformed},
		{"less", bundle[:5], "", verify.ReasonImageMalformed},
		{"nothing", "", "", verify.ReasonImageMalformed},
		{"more", bundle + " ", "", verify.ReasonTooLarge},
		{"more, and no word of how much", bundle + strings.Repeat(" ", 1<<20), "none", verify.ReasonTooLarge},
		{"less than it announces", bundle[:5], fmt.Sprint(len(bundle)), verify.ReasonRegistryUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newContent(t)
			whole, digest := c.handler(true), digestOf([]byte(bundle))
			srv, image := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, digest) {
					whole.ServeHTTP(w, r)
					return
				}
				switch tt.length {
				case "":
				case "none":
					w.(http.Flusher).Flush()
				default:
					w.Header().Set("Content-Length", tt.length)
				}
				io.WriteString(w, tt.body)
			}))
			found, err := registryOf(t, srv, nil).Attachments(t.Context(), image)
			if verify.ReasonOf(err) != tt.reason || len(found) != 2 || strings.Contains(shownAttachments(found), string(FormBundle)) {
				t.Errorf("%v, want %s and the two others:\n%s", err, tt.reason, shownAttachments(found))
			}
		})
	}
}

func TestADescriptorOverTheLimitIsNotAskedFor(t *testing.T) {
	c := newContent(t)
	digest := digestOf([]byte(`{"a":"bundle"}`))
	var asked atomic.Bool
	whole := c.handler(true)
	srv, image := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, digest) {
			asked.Store(true)
		}
		whole.ServeHTTP(w, r)
	}))
	_, err := registryOf(t, srv, func(o *Options) { o.MaxAttachment = 5 }).Attachments(t.Context(), image)
	if verify.ReasonOf(err) != verify.ReasonTooLarge || asked.Load() {
		t.Errorf("%v, asked for: %v", err, asked.Load())
	}
}

// A registry that speaks TLS must not lead to what does not, and nobody but it gets its credentials.
func TestRedirects(t *testing.T) {
	c := newContent(t)
	whole := c.handler(true)
	var authorized atomic.Bool
	store := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			authorized.Store(true)
		}
		whole.ServeHTTP(w, r)
	})
	const user, password = "alice", "secret"
	for _, secure := range []bool{true, false} {
		t.Run(fmt.Sprintf("to a store with TLS %v", secure), func(t *testing.T) {
			var visited atomic.Bool
			to := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				visited.Store(true)
				store.ServeHTTP(w, r)
			}))
			if to.Start(); secure {
				to.Close()
				to = httptest.NewTLSServer(to.Config.Handler)
			}
			t.Cleanup(to.Close)
			from := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				u, p, _ := r.BasicAuth()
				switch {
				case u != user || p != password:
					w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
					w.WriteHeader(http.StatusUnauthorized)
				case strings.Contains(r.URL.Path, "/blobs/"):
					http.Redirect(w, r, to.URL+r.URL.Path, http.StatusTemporaryRedirect)
				default:
					whole.ServeHTTP(w, r)
				}
			}))
			t.Cleanup(from.Close)
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: from.Certificate().Raw})
			r := registryOf(t, from, func(o *Options) {
				o.CAs = map[string][]byte{from.Listener.Addr().String(): ca, to.Listener.Addr().String(): ca}
				o.Prefixes = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
				o.Credentials = keychain{user, password}
			})
			found, err := r.Attachments(t.Context(), Image{Name: from.Listener.Addr().String() + "/app", Digest: c.image})
			if secure && (err != nil || len(found) != 3 || !visited.Load()) {
				t.Errorf("%d of 3 attachments, %v", len(found), err)
			}
			if !secure && (verify.ReasonOf(err) != verify.ReasonRegistryBlocked || visited.Load() || !strings.Contains(err.Error(), "from https to http")) {
				t.Errorf("%v, asked there: %v", err, visited.Load())
			}
			if authorized.Load() {
				t.Error("the credentials followed to another host")
			}
		})
	}
}

type keychain struct{ user, password string }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: k.user, Password: k.password}, nil
}

// A list of referrers whose first page came from elsewhere does not go on at the registry under a path of that other's choice.
func TestPagesOfReferrersStayWhereTheyWereAskedFor(t *testing.T) {
	c := newContent(t)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", typeIndex)
		w.Header().Set("Link", `</v2/secrets/referrers/x>; rel="next"`)
		fmt.Fprint(w, `{"manifests":[]}`)
	}))
	t.Cleanup(page.Close)
	var strayed atomic.Bool
	srv, image := c.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		strayed.CompareAndSwap(false, strings.HasPrefix(r.URL.Path, "/v2/secrets/"))
		if strings.Contains(r.URL.Path, "/referrers/") {
			http.Redirect(w, r, page.URL, http.StatusFound)
			return
		}
		http.NotFound(w, r)
	}))
	r := registryOf(t, srv, func(o *Options) { o.Prefixes = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	if _, err := r.Attachments(t.Context(), image); verify.ReasonOf(err) != verify.ReasonRegistryBlocked || strayed.Load() {
		t.Errorf("%v, strayed: %v", err, strayed.Load())
	}
}

// nameserver answers each question for an address with the next of its answers, the last again and again.
func nameserver(t *testing.T, answers ...[]string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() { // ends with conn
		buf, asked := make([]byte, 1<<10), 0
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				for _, a := range answers[min(asked, len(answers)-1)] {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()},
					})
				}
				asked++
			}
			if out, err := m.Pack(); err == nil {
				conn.WriteTo(out, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// twoListeners are at one port of two addresses of this machine.
func twoListeners(t *testing.T, one, other string) (net.Listener, net.Listener) {
	t.Helper()
	for range 20 {
		a, err := net.Listen("tcp", one+":0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, err := net.SplitHostPort(a.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if b, err := net.Listen("tcp", net.JoinHostPort(other, port)); err == nil {
			t.Cleanup(func() { a.Close(); b.Close() })
			return a, b
		}
		a.Close()
	}
	t.Fatal("no port is free at both addresses")
	return nil, nil
}

// 127.0.0.2 stands for the internet, since its network is allowed; 127.0.0.1 is inside. What is checked is the address that is
// connected to, each time.
func TestANameThatChangesItsAddress(t *testing.T) {
	const outside, inside = "127.0.0.2", "127.0.0.1"
	for _, tt := range []struct {
		name    string
		answers [][]string
		found   bool // what it has is read all the same
	}{
		{"outside all the time", [][]string{{outside}}, true},
		{"first outside, then inside", [][]string{{outside}, {inside}}, false},
		{"both at once: the inside is passed over", [][]string{{inside, outside}}, true},
		{"inside at once", [][]string{{inside}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newContent(t)
			public, private := twoListeners(t, outside, inside)
			srv := &http.Server{Handler: c.handler(true)}
			srv.SetKeepAlivesEnabled(false) // so that each request asks for the address
			go srv.Serve(public)            // ends when it is closed
			t.Cleanup(func() { srv.Close() })
			var reached atomic.Int64
			victim := &http.Server{Handler: c.handler(true), ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					reached.Add(1)
				}
			}}
			go victim.Serve(private) // ends when it is closed
			t.Cleanup(func() { victim.Close() })
			_, port, err := net.SplitHostPort(public.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			host := "rebound.example:" + port
			r, err := NewRegistry(Options{Insecure: []string{host}, Prefixes: []netip.Prefix{netip.MustParsePrefix(outside + "/32")}, RetryWait: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.Close)
			r.client.guard.resolver = nameserver(t, tt.answers...)
			found, err := r.Attachments(t.Context(), Image{Name: host + "/app", Digest: c.image})
			if tt.found && (err != nil || len(found) != 3) {
				t.Errorf("%d of 3 attachments, %v", len(found), err)
			}
			if !tt.found && (verify.ReasonOf(err) != verify.ReasonRegistryBlocked || !strings.Contains(err.Error(), inside)) {
				t.Errorf("%v, want %s for %s", err, verify.ReasonRegistryBlocked, inside)
			}
			if n := reached.Load(); n > 0 {
				t.Errorf("%d connections to the inside", n)
			}
		})
	}
}

func TestANameThatNobodyKnowsIsUnreachable(t *testing.T) {
	var requests atomic.Int64
	r, err := NewRegistry(Options{Observe: func(string, string, int) { requests.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	r.client.guard.resolver = nameserver(t, nil)
	_, err = r.Children(t.Context(), Image{Name: "nobody.example/app", Digest: anyDigest})
	if down, _ := IsUnavailable(err); !down || requests.Load() != 1 {
		t.Errorf("%v after %d requests", err, requests.Load())
	}
}

// The files that tools write, in the order that docs/verify.md gives: the first that is there counts, also when it is broken.
func TestCredentialsAreLookedForInOrder(t *testing.T) {
	home := t.TempDir()
	files := []struct{ variable, value, path string }{
		{"HOME", "home", "home/.docker/config.json"}, {"DOCKER_CONFIG", "docker", "docker/config.json"},
		{"REGISTRY_AUTH_FILE", "podman.json", "podman.json"}, {"XDG_RUNTIME_DIR", "run", "run/containers/auth.json"},
	}
	env := map[string]string{}
	write := func(path, text string) string {
		t.Helper()
		full := filepath.Join(home, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return full
	}
	credentials := func(user string) string {
		return fmt.Sprintf(`{"auths":{"registry.example":{"username":%q,"password":"p"}}}`, user)
	}
	for _, f := range files {
		env[f.variable] = filepath.Join(home, f.value)
		write(f.path, credentials(f.variable))
	}
	find := func(path string) (string, error) {
		c, err := FindCredentials(path, func(k string) string { return env[k] }, false)
		if err != nil {
			return "", err
		}
		return userOf(t, c, "registry.example/app"), nil
	}
	explicit := write("mine.json", credentials("mine"))
	if user, err := find(explicit); err != nil || user != "mine" {
		t.Errorf("a file that is named: %q, %v", user, err)
	}
	if _, err := find(filepath.Join(home, "missing.json")); err == nil {
		t.Error("a file that is named and missing fell back to another")
	}
	for _, f := range files {
		if user, err := find(""); err != nil || user != f.variable {
			t.Errorf("%q, %v, want that of $%s", user, err, f.variable)
		}
		path := write(f.path, `{"auths":`)
		if user, err := find(""); err == nil {
			t.Errorf("$%s is broken, and %q was taken", f.variable, user)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if user, err := find(""); err != nil || user != "" {
		t.Errorf("no file: %q, %v", user, err)
	}
}

func userOf(t *testing.T, c *Credentials, repository string) string {
	t.Helper()
	repo, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Resolve(repo)
	if err != nil {
		t.Fatal(err)
	}
	config, err := a.Authorization()
	if err != nil {
		t.Fatal(err)
	}
	return config.Username
}

// The longest path counts, then the host; a name that ends like a version of the API is a name.
func TestCredentialsAreOfTheRepositoryThenOfTheHost(t *testing.T) {
	var auths []string
	for key, user := range map[string]string{
		"registry.example": "host", "registry.example/team": "team", "registry.example/team/app": "app", "registry.example/team/v1": "v1",
		"https://index.docker.io/v1/": "hub", "http://Upper.Example:5000/v2": "upper", "*.corp.example": "any", "eu.corp.example": "eu",
	} {
		auths = append(auths, fmt.Sprintf(`%q:{"username":%q,"password":"p"}`, key, user))
	}
	c, err := ParseDockerConfigJSON([]byte(`{"auths":{` + strings.Join(auths, ",") + `}}`))
	if err != nil {
		t.Fatal(err)
	}
	for repository, want := range map[string]string{
		"registry.example/other": "host", "registry.example/teams": "host", "registry.example/team/tool": "team", "registry.example/team/app": "app",
		"registry.example/team/app/sub": "app", "registry.example/team/v1": "v1", "registry.example/team/v2": "team", "library/nginx": "hub",
		"upper.example:5000/x": "upper", "upper.example/x": "", "us.corp.example/x": "any", "eu.corp.example/x": "eu", "a.b.corp.example/x": "", "corp.example/x": "",
	} {
		if got := userOf(t, c, repository); got != want {
			t.Errorf("%s: %q, want %q", repository, got, want)
		}
	}
}
