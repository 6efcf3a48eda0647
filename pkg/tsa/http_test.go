package tsa

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func post(t *testing.T, h http.Handler, path, contentType string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestEveryAnswerHasItsTransport(t *testing.T) {
	a := newAuthority(t, nil)
	good := query(version1, zerosSHA2)
	sigstoreJS, err := json.Marshal(map[string]string{"artifactHash": base64.StdEncoding.EncodeToString(make([]byte, 32)), "hashAlgorithm": "sha256"})
	if err != nil {
		t.Fatal(err)
	}
	sha1JSON := []byte(`{"artifactHash":"AAAAAAAAAAAAAAAAAAAAAAAAAAA=","hashAlgorithm":"sha1"}`)
	for _, tt := range []struct {
		name, method, path, contentType string
		body                            []byte
		reject400                       bool
		status                          int
		answer, reason                  string // Content-Type; text in the body
	}{
		{"a DER query", "POST", pathTimestamp, typeQuery, good, false, 200, typeReply, ""},
		{"the bare host, as openssl users type it", "POST", "/", typeQuery, good, false, 200, typeReply, ""},
		{"the JSON of sigstore-js gets a DER reply", "POST", pathTimestamp, typeJSON, sigstoreJS, false, 200, typeReply, ""},
		{"a Content-Type with parameters", "POST", pathTimestamp, "Application/JSON; charset=utf-8", sigstoreJS, false, 200, typeReply, ""},
		{"a refused DER query gets an RFC 3161 rejection", "POST", pathTimestamp, typeQuery, query([]byte{2, 1, 2}, zerosSHA2), false, 200, typeReply, "version is not 1"},
		{"or upstream's 400", "POST", pathTimestamp, typeQuery, query([]byte{2, 1, 2}, zerosSHA2), true, 400, typeJSON, "badRequest: the query's version is not 1"},
		{"garbage is a rejection too", "POST", pathTimestamp, typeQuery, []byte("x"), false, 200, typeReply, "not one DER TimeStampReq"},
		{"a policy that is not ours", "POST", pathTimestamp, typeQuery, query(version1, zerosSHA2, somePolicy), false, 200, typeReply, "policy 1.2.3.4"},
		{"a refused JSON query gets JSON", "POST", pathTimestamp, typeJSON, sha1JSON, false, 400, typeJSON, "badAlg: SHA-1 is too weak"},
		{"another Content-Type", "POST", pathTimestamp, "text/plain", good, false, 415, typeJSON, "Content-Type"},
		{"no Content-Type", "POST", pathTimestamp, "", good, false, 415, typeJSON, "Content-Type"},
		{"two media types in one", "POST", pathTimestamp, typeQuery + "," + typeJSON, good, false, 415, typeJSON, "Content-Type"},
		{"a DER query over the limit", "POST", pathTimestamp, typeQuery, make([]byte, maxQuery+1), false, 413, typeJSON, "over 65536 bytes"},
		{"a JSON query over the limit", "POST", pathTimestamp, typeJSON, make([]byte, maxJSONQuery+1), false, 413, typeJSON, "over 1024 bytes"},
		{"another method", "GET", pathTimestamp, "", nil, false, 405, typeJSON, "not POST"},
		{"the chain", "GET", pathCertChain, "", nil, false, 200, typeChain, "BEGIN CERTIFICATE"},
		{"upstream's probe", "GET", pathPing, "", nil, false, 200, "text/plain", "."},
		{"an unknown path", "GET", "/api/v1/log", "", nil, false, 404, typeJSON, pathTimestamp},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &Handler{Authority: a, Reject400: tt.reject400}
			r := httptest.NewRequest(tt.method, tt.path, bytes.NewReader(tt.body))
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			w := httptest.NewRecorder()
			h.Routes().ServeHTTP(w, r)
			if w.Code != tt.status || w.Header().Get("Content-Type") != tt.answer || !strings.Contains(w.Body.String(), tt.reason) {
				t.Fatalf("answer %d %s %q, want %d %s with %q", w.Code, w.Header().Get("Content-Type"), w.Body, tt.status, tt.answer, tt.reason)
			}
			if tt.method == "POST" && w.Header().Get("Cache-Control") != "no-store" {
				t.Error("the answer may be cached")
			}
			switch tt.answer {
			case typeReply:
				_, err := timestamp.ParseResponse(w.Body.Bytes())
				if tt.reason == "" && err != nil || tt.reason != "" && (err == nil || !strings.Contains(err.Error(), tt.reason)) {
					t.Errorf("the library reads %v", err)
				}
			case typeJSON:
				var body struct {
					Code    int
					Message string
				}
				if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Code != tt.status {
					t.Errorf("body %s: %v", w.Body, err)
				}
			}
		})
	}
}

func TestInACombinedServerTheRootBelongsToSomeoneElse(t *testing.T) {
	r := chi.NewRouter()
	(&Handler{Authority: newAuthority(t, nil)}).Register(r)
	if w := post(t, r, "/", typeQuery, query(version1, zerosSHA2)); w.Code != http.StatusNotFound {
		t.Errorf("POST / = %d, want 404", w.Code)
	}
	if w := post(t, r, pathTimestamp, typeQuery, query(version1, zerosSHA2)); w.Code != http.StatusOK {
		t.Errorf("POST %s = %d, want 200", pathTimestamp, w.Code)
	}
}

func TestReplayedQueriesGetDifferentSerials(t *testing.T) {
	h := (&Handler{Authority: newAuthority(t, nil)}).Routes()
	var serials []*big.Int
	for range 2 {
		ts, err := timestamp.ParseResponse(post(t, h, pathTimestamp, typeQuery, query(version1, zerosSHA2, []byte{2, 1, 7})).Body.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		serials = append(serials, ts.SerialNumber)
	}
	if serials[0].Cmp(serials[1]) == 0 {
		t.Errorf("serial %x twice", serials[0])
	}
}

// stuck is a remote signer that answers when released.
type stuck struct {
	crypto.Signer
	release chan struct{}
}

func (s stuck) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	<-s.release
	return s.Signer.Sign(random, digest, opts)
}

func TestTroubleOfOursIs503WithARejectionInsideNeverAHang(t *testing.T) {
	t.Run("a signer that hangs", func(t *testing.T) {
		s := stuck{newKey(t, elliptic.P256()), make(chan struct{}, 1)}
		s.release <- struct{}{} // for the self-test
		a := newAuthority(t, func(o *Options) { o.Signer, o.SignTimeout = s, 20*time.Millisecond })
		expect503(t, a, "systemFailure")
		if err := a.Ready(t.Context()); err == nil {
			t.Error("ready with a signer that hangs")
		}
		close(s.release)
		a.signTimeout = time.Minute
		if err := a.Ready(t.Context()); err != nil {
			t.Errorf("not ready with a signer that came back: %v", err)
		}
	})
	t.Run("a leaf that expires in a second", func(t *testing.T) {
		now := time.Now()
		a := newAuthority(t, func(o *Options) {
			chain, err := CreateChain(o.Signer.Public(), newKey(t, elliptic.P256()), ChainOptions{Organization: "Example", NotBefore: now, Life: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			now = chain[0].NotAfter.Add(-time.Second)
			o.Chain, o.Now = chain, func() time.Time { return now }
		})
		if w := post(t, (&Handler{Authority: a}).Routes(), pathTimestamp, typeQuery, query(version1, zerosSHA2)); w.Code != 200 {
			t.Errorf("a second before the end: %d %q", w.Code, w.Body)
		}
		now = now.Add(time.Second)
		expect503(t, a, "timeNotAvailable")
		if err := a.Ready(t.Context()); err == nil {
			t.Error("ready with an expired leaf")
		}
	})
}

func expect503(t *testing.T, a *Authority, reason string) {
	t.Helper()
	var lines bytes.Buffer
	h := (&Handler{Authority: a, Logger: slog.New(slog.NewTextHandler(&lines, nil))}).Routes()
	w := post(t, h, pathTimestamp, typeQuery, query(version1, zerosSHA2))
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get("Content-Type") != typeReply {
		t.Errorf("answer %d %v", w.Code, w.Header())
	}
	if _, err := timestamp.ParseResponse(w.Body.Bytes()); err == nil || !strings.Contains(err.Error(), "rejected") {
		t.Errorf("the library reads %v", err)
	}
	if !strings.Contains(lines.String(), "level=ERROR") || !strings.Contains(lines.String(), "reason="+reason) {
		t.Errorf("log line %s", &lines)
	}
}

func TestMetricsHaveUpstreamsNamesAndClosedLabels(t *testing.T) {
	reg := prometheus.NewRegistry()
	h := (&Handler{Authority: newAuthority(t, func(o *Options) { o.Registerer = reg })}).Routes()
	post(t, h, pathTimestamp, typeQuery, query(version1, zerosSHA2))
	post(t, h, pathTimestamp, typeQuery, query([]byte{2, 1, 0}, zerosSHA2))
	r := httptest.NewRequest("BREW", "/teapot", nil)
	h.ServeHTTP(httptest.NewRecorder(), r)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		`timestamp_authority_http_requests_total{code="200",method="POST",path="/api/v1/timestamp"} 2`,
		`timestamp_authority_http_requests_total{code="405",method="unrecognized",path="unrecognized"} 1`,
		`timestamp_authority_api_latency_count{code="200",path="/api/v1/timestamp"} 2`,
		`timestamp_authority_api_latency_summary_count{code="200",path="/api/v1/timestamp"} 2`,
		`timestamp_authority_latency_by_api_count{method="POST",path="/api/v1/timestamp"} 2`,
		`timestamp_authority_issued_total{hash="sha256"} 1`,
		`timestamp_authority_rejections_total{fail_info="badRequest"} 1`,
		`timestamp_authority_signer_latency_seconds_count 1`,
		`timestamp_authority_signer_errors_total 0`,
		`timestamp_authority_clock_trusted 1`,
		`timestamp_authority_certificate_valid_days_remaining 365`,
	} {
		if !strings.Contains(w.Body.String(), "\n"+want) {
			t.Errorf("no line %q in\n%s", want, w.Body)
		}
	}
}

// openssl runs the real program; its text is part of what the tests look at.
func openssl(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestOpenSSLAsksReadsAndVerifies(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is missing")
		}
		t.Skip("openssl is missing: apt-get install openssl")
	}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		t.Run(curve.Params().Name, func(t *testing.T) {
			a := newAuthority(t, func(o *Options) { o.Signer = newKey(t, curve) })
			server := httptest.NewServer((&Handler{Authority: a}).Routes())
			defer server.Close()
			dir := t.TempDir()
			write(t, dir, "root.pem", EncodeChain(a.Chain()[1:]))
			write(t, dir, "chain.pem", EncodeChain(a.Chain()))
			write(t, dir, "file", []byte("what is stamped"))
			for _, tt := range []struct {
				name   string
				query  []string
				verify []string
				want   string // text of the refused reply; "" is a timestamp that verifies
			}{
				{"the chain inside, the root alone outside", []string{"-sha256", "-cert"}, nil, ""},
				{"SHA-384 without a nonce", []string{"-sha384", "-cert", "-no_nonce"}, nil, ""},
				{"SHA-512, the chain outside", []string{"-sha512"}, []string{"-untrusted", "chain.pem"}, ""},
				{"our policy by name", []string{"-sha256", "-cert", "-tspolicy", DefaultPolicy}, nil, ""},
				{"SHA-1", []string{"-sha1", "-cert"}, nil, "unrecognized or unsupported algorithm identifier"},
				{"another policy", []string{"-sha256", "-tspolicy", "1.2.3.4"}, nil, "the requested TSA policy is not supported by the TSA"},
			} {
				t.Run(tt.name, func(t *testing.T) {
					if out, err := openssl(t, dir, append([]string{"ts", "-query", "-data", "file", "-out", "q.tsq"}, tt.query...)...); err != nil {
						t.Fatal(out)
					}
					q, err := os.ReadFile(filepath.Join(dir, "q.tsq"))
					if err != nil {
						t.Fatal(err)
					}
					resp, err := http.Post(server.URL, typeQuery, bytes.NewReader(q))
					if err != nil {
						t.Fatal(err)
					}
					reply, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil {
						t.Fatal(err)
					}
					write(t, dir, "r.tsr", reply)
					text, err := openssl(t, dir, "ts", "-reply", "-in", "r.tsr", "-text")
					if err != nil {
						t.Fatal(text)
					}
					if tt.want != "" {
						if !strings.Contains(text, "Status: Rejected") || !strings.Contains(text, tt.want) {
							t.Errorf("openssl reads\n%s", text)
						}
						return
					}
					out, err := openssl(t, dir, append([]string{"ts", "-verify", "-in", "r.tsr", "-queryfile", "q.tsq", "-CAfile", "root.pem"}, tt.verify...)...)
					if err != nil || !strings.Contains(out, "Verification: OK") {
						t.Errorf("openssl says %s\nof\n%s", out, text)
					}
				})
			}
		})
	}
	t.Run("it names every failInfo", func(t *testing.T) {
		for info := range failures {
			dir := t.TempDir()
			write(t, dir, "r.tsr", rejection(info, "because"))
			out, err := openssl(t, dir, "ts", "-reply", "-in", "r.tsr", "-text")
			if err != nil || !strings.Contains(out, "Status description: because") || strings.Contains(out, "Failure info: unspecified") ||
				!strings.Contains(out, "Failure info: ") {
				t.Errorf("%v reads\n%s", info, out)
			}
		}
	})
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkIssue compares the assembler with the library's way to the same bytes.
func BenchmarkIssue(b *testing.B) {
	for _, certificates := range []bool{false, true} {
		a := newAuthority(b, nil)
		q := &Query{Hash: crypto.SHA256, Digest: make([]byte, 32), Certificates: certificates}
		b.Run("ours/certificates="+strconv.FormatBool(certificates), func(b *testing.B) {
			for b.Loop() {
				issue(b, a, q)
			}
		})
		b.Run("library/certificates="+strconv.FormatBool(certificates), func(b *testing.B) {
			for b.Loop() {
				ts := timestamp.Timestamp{HashAlgorithm: q.Hash, HashedMessage: q.Digest, Time: time.Now().UTC(), Accuracy: time.Second,
					Policy: []int{1, 2, 3}, AddTSACertificate: certificates, Certificates: a.Chain()[1:]}
				if _, err := ts.CreateResponseWithOpts(a.Chain()[0], a.signer, crypto.SHA256); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("signature alone", func(b *testing.B) {
		key := newKey(b, elliptic.P256())
		for b.Loop() {
			if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkHTTP asks over loopback with 32 connections, logging and metrics on.
func BenchmarkHTTP(b *testing.B) {
	a := newAuthority(b, func(o *Options) { o.Registerer = prometheus.NewRegistry() })
	server := httptest.NewServer((&Handler{Authority: a, Logger: slog.New(slog.NewJSONHandler(io.Discard, nil))}).Routes())
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	body := query(version1, zerosSHA2)
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.Post(server.URL, typeQuery, bytes.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "timestamps/s")
}
