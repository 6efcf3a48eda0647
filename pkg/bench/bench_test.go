package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/tsa"
	"github.com/attestry/attestry/pkg/verify"
)

func server(t *testing.T, h http.Handler) Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	parsed, err := ParseServer(s.URL, false)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// recorder answers like a server and keeps what identifies each request.
type recorder struct {
	status int
	check  func(path string, body []byte) (id string, err error)

	mu   sync.Mutex
	seen map[string]bool
	bad  error
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var id string
	if err == nil {
		id, err = r.check(req.URL.Path, body)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && r.bad == nil {
		r.bad = err
	}
	if r.seen == nil {
		r.seen = map[string]bool{}
	}
	r.seen[id] = true
	w.WriteHeader(r.status)
	w.Write([]byte("{}"))
}

func TestRequestsAreDistinctAndTheirSignaturesVerify(t *testing.T) {
	token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"1234","email":"alice@example.com","exp":4102444800}`)) + ".c2ln"
	for _, tt := range []struct {
		target string
		status int
		check  func(path string, body []byte) (string, error)
	}{
		{TargetRekor1, 201, func(path string, body []byte) (string, error) {
			var in struct {
				APIVersion, Kind string
				Spec             struct {
					Data struct {
						Hash struct{ Algorithm, Value string }
					}
					Signature struct {
						Content   []byte
						PublicKey struct{ Content []byte }
					}
				}
			}
			err := strict(body, &in)
			digest, _ := hex.DecodeString(in.Spec.Data.Hash.Value)
			return in.Spec.Data.Hash.Value, errors.Join(err, want(path == "/api/v1/log/entries" && in.Kind == "hashedrekord" && in.APIVersion == "0.0.1" && in.Spec.Data.Hash.Algorithm == "sha256", body),
				verifies(pemDER(in.Spec.Signature.PublicKey.Content), digest, in.Spec.Signature.Content))
		}},
		{TargetRekor2, 201, func(path string, body []byte) (string, error) {
			var in struct {
				HashedRekordRequestV002 struct {
					Digest    []byte
					Signature struct {
						Content  []byte
						Verifier struct {
							KeyDetails string
							PublicKey  struct{ RawBytes []byte }
						}
					}
				}
			}
			err := strict(body, &in)
			e := in.HashedRekordRequestV002
			return string(e.Digest), errors.Join(err, want(path == "/api/v2/log/entries" && e.Signature.Verifier.KeyDetails == "PKIX_ECDSA_P256_SHA_256", body),
				verifies(e.Signature.Verifier.PublicKey.RawBytes, e.Digest, e.Signature.Content))
		}},
		{TargetCA, 200, func(path string, body []byte) (string, error) {
			var in struct {
				Credentials      struct{ OIDCIdentityToken string }
				PublicKeyRequest struct {
					PublicKey         struct{ Algorithm, Content string }
					ProofOfPossession []byte
				}
			}
			err := strict(body, &in)
			challenge := sha256.Sum256([]byte("alice@example.com"))
			return in.PublicKeyRequest.PublicKey.Content, errors.Join(err, want(path == "/api/v2/signingCert" && in.Credentials.OIDCIdentityToken == token, body),
				verifies(pemDER([]byte(in.PublicKeyRequest.PublicKey.Content)), challenge[:], in.PublicKeyRequest.ProofOfPossession))
		}},
	} {
		t.Run(tt.target, func(t *testing.T) {
			r := &recorder{status: tt.status, check: tt.check}
			report, err := Load(t.Context(), HTTPOptions{Target: tt.target, Server: server(t, r), Size: Size{100, 8}, Tokens: []string{token}})
			if err != nil {
				t.Fatal(err)
			}
			if r.bad != nil {
				t.Error(r.bad)
			}
			if len(r.seen) != 100 || report.N != 100 || report.Failed() != 0 {
				t.Errorf("%d distinct requests, report %v", len(r.seen), report)
			}
		})
	}
}

func strict(body []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func want(ok bool, body []byte) error {
	if !ok {
		return errors.New("unexpected request: " + string(body))
	}
	return nil
}

func pemDER(text []byte) []byte {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil
	}
	return block.Bytes
}

func verifies(spki, digest, signature []byte) error {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return err
	}
	if key, ok := pub.(*ecdsa.PublicKey); !ok || !ecdsa.VerifyASN1(key, digest, signature) {
		return errors.New("a signature does not verify")
	}
	return nil
}

func TestOurTimestampAuthorityTakesTheQueriesUnderBothURLs(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := tsa.CreateChain(key.Public(), key, tsa.ChainOptions{Organization: "Example", NotBefore: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	authority, err := tsa.New(tsa.Options{Signer: key, Chain: chain})
	if err != nil {
		t.Fatal(err)
	}
	base := server(t, (&tsa.Handler{Authority: authority}).Routes())
	whole := base
	whole.path = pathTimestamp
	for _, s := range []Server{base, whole} {
		report, err := Load(t.Context(), HTTPOptions{Target: TargetTSA, Server: s, Size: Size{200, 8}})
		if err != nil {
			t.Fatal(err)
		}
		if report.Failed() != 0 || report.Rate <= 0 || report.P50Millis <= 0 || report.MaxMillis < report.P99Millis || report.P99Millis < report.P50Millis {
			t.Errorf("report %v", report)
		}
	}
}

func TestErrorsAreCountedByStatusAndTheRunGoesOn(t *testing.T) {
	var mu sync.Mutex
	n := 0
	s := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		turn := n
		mu.Unlock()
		switch turn % 5 {
		case 0:
			http.Error(w, "queue is full", http.StatusServiceUnavailable)
		case 1:
			panic(http.ErrAbortHandler) // cuts the connection
		case 2:
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusCreated)
		case 3:
			w.Write([]byte("chunked ")) // flushed in two chunks
			w.(http.Flusher).Flush()
			w.Write([]byte("answer"))
		default:
			w.WriteHeader(http.StatusConflict)
		}
	}))
	report, err := Load(t.Context(), HTTPOptions{Target: TargetRekor2, Server: s, Size: Size{50, 1}})
	if err != nil {
		t.Fatal(err)
	}
	if report.Errors["503"] != 10 || report.Errors["transport"] != 10 || report.Errors["409"] != 10 || len(report.Errors) != 3 || report.N != 50 {
		t.Errorf("report %v", report)
	}
	line := report.String()
	if !strings.Contains(line, "errors=30 (409: 10, 503: 10, transport: 10) first=") {
		t.Errorf("line %s", line)
	}
}

func TestATimestampThatIsNotGrantedIsAnErrorDespiteStatus200(t *testing.T) {
	s := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte{0x30, 9, 0x30, 7, 2, 1, 2, 3, 2, 5, 0x20})
	}))
	report, err := Load(t.Context(), HTTPOptions{Target: TargetTSA, Server: s, Size: Size{3, 1}})
	if err != nil || report.Errors["answer"] != 3 {
		t.Errorf("report %v, %v", report, err)
	}
}

func TestAnInterruptedRunReportsWhatItDid(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var once sync.Once
	s := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { once.Do(cancel) }))
	report, err := Load(ctx, HTTPOptions{Target: TargetTSA, Server: s, Size: Size{1000, 2}})
	if err != nil || report.N < 1 || report.N > 4 {
		t.Errorf("report %v, %v", report, err)
	}
}

func TestLoadRefusesWhatItWouldRegret(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		remote    bool
		want      string
	}{
		{"a loopback address", "http://127.0.0.1:8420", false, ""},
		{"another of them", "http://[::1]:8420/", false, ""},
		{"localhost", "http://localhost", false, ""},
		{"another machine", "https://rekor.example", false, "is not this machine"},
		{"a name that only begins like loopback", "http://127.0.0.1.example", false, "is not this machine"},
		{"another machine on purpose", "https://rekor.example", true, ""},
		{"no scheme", "localhost:8420", false, "is not http[s]"},
		{"credentials", "http://a:b@localhost", false, "is not http[s]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseServer(tt.url, tt.remote)
			mention(t, err, tt.want)
		})
	}
	s := server(t, http.NotFoundHandler())
	for _, tt := range []struct {
		name    string
		options HTTPOptions
		want    string
	}{
		{"too many requests", HTTPOptions{Target: TargetTSA, Size: Size{MaxRequests + 1, 1}}, "between 1 and"},
		{"too many clients", HTTPOptions{Target: TargetTSA, Size: Size{1, MaxClients + 1}}, "between 1 and"},
		{"no clients", HTTPOptions{Target: TargetTSA, Size: Size{1, 0}}, "between 1 and"},
		{"an unknown target", HTTPOptions{Target: "tuf", Size: Size{1, 1}}, `target "tuf"`},
		{"no token", HTTPOptions{Target: TargetCA, Size: Size{1, 1}}, "needs an identity token"},
		{"a token that is none", HTTPOptions{Target: TargetCA, Size: Size{1, 1}, Tokens: []string{"x"}}, "identity token 1: it is not a compact JWS"},
		{"an expired token", HTTPOptions{Target: TargetCA, Size: Size{1, 1}, Tokens: []string{"e30.eyJzdWIiOiJhIiwiZXhwIjoxfQ.c2ln"}}, "it expired at 1970"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.options.Server = s
			_, err := Load(t.Context(), tt.options)
			mention(t, err, tt.want)
		})
	}
}

func mention(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("error %v, want one with %q", err, want)
	}
}

func TestPercentiles(t *testing.T) {
	var sorted []time.Duration
	for i := range 200 {
		sorted = append(sorted, time.Duration(i+1)*time.Millisecond)
	}
	for _, tt := range []struct{ p, want float64 }{{0.5, 100}, {0.9, 180}, {0.99, 198}} {
		if got := percentile(sorted, tt.p); got != tt.want {
			t.Errorf("percentile(%v) = %v ms, want %v", tt.p, got, tt.want)
		}
	}
	if got := percentile(sorted[:1], 0.99); got != 1 {
		t.Errorf("the only latency is %v ms", got)
	}
}

// vectors returns the directory of published bundles, or skips.
func vectors(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("ATTESTRY_SHARED")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared")
	}
	if _, err := os.Stat(filepath.Join(dir, "conformance")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("published vectors are missing: %v", err)
		}
		t.Skip("set ATTESTRY_SHARED to the directory that holds conformance/")
	}
	return filepath.Join(dir, "conformance")
}

func TestVerifyCountsTheSignaturesOfABundle(t *testing.T) {
	dir := vectors(t)
	read := func(paths ...string) []byte {
		t.Helper()
		for _, path := range paths {
			if data, err := os.ReadFile(filepath.Join(dir, path)); err == nil {
				return data
			}
		}
		t.Fatalf("none of %q", paths)
		return nil
	}
	anyone, err := verify.NewIdentity("", ".*", "", ".*")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		vector string
		want   string
	}{
		{"happy-path-v0.1", "artifact ECDSA P-256, certificate ECDSA P-384, SCT ECDSA P-256, SET ECDSA P-256, checkpoint ECDSA P-256"},
		{"rekor2-timestamp-with-embedded-cert", "artifact ECDSA P-256, certificate ECDSA P-384, SCT ECDSA P-256, checkpoint Ed25519, timestamp ECDSA P-384"},
	} {
		t.Run(tt.vector, func(t *testing.T) {
			base := filepath.Join("bundle-verify", tt.vector)
			report, err := Verify(t.Context(), VerifyOptions{
				Bundle:      read(filepath.Join(base, "bundle.sigstore.json")),
				TrustedRoot: read(filepath.Join(base, "trusted_root.json"), "trusted_root.public-good.json"),
				Artifact:    read(filepath.Join(base, "artifact"), "a.txt"),
				Policy:      &verify.Policy{Identities: []verify.Identity{anyone}},
				Size:        Size{25, 2},
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(report.Floor.Signatures, ", "); got != tt.want {
				t.Errorf("signatures %s, want %s", got, tt.want)
			}
			if report.N != 25 || report.Failed() != 0 || report.Floor.Rate <= 0 || report.Floor.Share <= 0 || report.Floor.Millis <= 0 {
				t.Errorf("report %v", report)
			}
			if u := report.Upstream; u == nil || u.Rate <= 0 || u.Millis <= 0 || u.Times <= 0 || !strings.Contains(report.String(), " sigstore-go=") {
				t.Errorf("report without sigstore-go: %v", report)
			}
			t.Log(report)
		})
	}
	t.Run("a bundle that is refused has no speed", func(t *testing.T) {
		_, err := Verify(t.Context(), VerifyOptions{
			Bundle: read("bundle-verify/happy-path-v0.1/bundle.sigstore.json"), TrustedRoot: read("trusted_root.public-good.json"),
			Artifact: []byte("another"), Policy: &verify.Policy{Identities: []verify.Identity{anyone}}, Size: Size{1, 1},
		})
		mention(t, err, "the bundle does not verify")
	})
}
