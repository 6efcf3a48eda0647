package ca_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// wantRefusal checks Fulcio's error shape: status, code, the start of the message, our reason.
func wantRefusal(t *testing.T, r reply, httpStatus int, code codes.Code, text, reason string) {
	t.Helper()
	var body struct {
		Code    codes.Code
		Message string
		Details []any
	}
	if err := json.Unmarshal([]byte(r.body), &body); err != nil || body.Details == nil {
		t.Fatalf("body %q: %v", r.body, err)
	}
	if r.status != httpStatus || body.Code != code || !strings.HasPrefix(body.Message, text) || !strings.Contains(body.Message, "[reason="+reason+" id=") {
		t.Errorf("%d code %d %q, want %d code %d %q reason %s", r.status, body.Code, body.Message, httpStatus, code, text, reason)
	}
	if strings.Contains(body.Message, "eyJ") {
		t.Errorf("message quotes the token: %s", body.Message)
	}
	if retry := r.header.Get("Retry-After") != ""; retry != (r.status == 429 || r.status == 503) {
		t.Errorf("%d with Retry-After %q", r.status, r.header.Get("Retry-After"))
	}
}

const (
	tokenText = "There was an error processing the identity token"
	keyText   = "The public key supplied in the request could not be parsed"
	weakText  = "The public key supplied in the request is insecure"
	popText   = "The signature supplied in the request could not be verified"
	csrText   = "The certificate signing request could not be parsed"
)

func TestRefusedRequests(t *testing.T) {
	w := newWorld(t)
	key := newClientKey(t, "P-256")
	withKey := func(content string) map[string]any {
		body := v2Body(t, key, "alice-id")
		body["publicKeyRequest"].(map[string]any)["publicKey"].(map[string]any)["content"] = content
		return body
	}
	withCSR := func(data []byte) map[string]any { return map[string]any{"certificateSigningRequest": data} }
	spki := func(pub any) string {
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	unsigned := v2Body(t, key, "alice-id")
	delete(unsigned["publicKeyRequest"].(map[string]any), "proofOfPossession")
	p384 := newClientKey(t, "P-384")
	p384OverSHA256 := p384
	p384OverSHA256.hash = crypto.SHA256
	brokenCSR, _ := pem.Decode(key.csr(t, 0))
	brokenCSR.Bytes[len(brokenCSR.Bytes)-1] ^= 1
	n2048 := newClientKey(t, "RSA-2048").signer.Public().(*rsa.PublicKey).N
	fermat := new(big.Int).Lsh(big.NewInt(1), 1024)
	fermat.Sub(fermat, big.NewInt(105)) // odd; the factors below differ by little
	p := probable(fermat)
	q := probable(new(big.Int).Add(p, big.NewInt(2)))
	tooLarge := `{"x":"` + strings.Repeat("a", ca.MaxBody) + `"}`
	for _, tt := range []struct {
		name   string
		token  string
		body   any
		text   string
		reason string
	}{
		{"no token", "", v2Body(t, key, "alice-id"), tokenText, "malformed_token"},
		{"a token of no issuer of ours", w.idp.Token(w.clock(), map[string]any{"iss": "https://x.example"}), v2Body(t, key, "alice-id"), tokenText, "unknown_issuer"},
		{"an expired token", w.idp.Token(w.clock().Add(-time.Hour), nil), v2Body(t, key, "alice-id"), tokenText, "expired"},
		{"another audience", w.idp.Token(w.clock(), map[string]any{"aud": "x"}), v2Body(t, key, "alice-id"), tokenText, "aud_mismatch"},
		{"an unverified email", w.idp.Token(w.clock(), map[string]any{"email_verified": false}), v2Body(t, key, "alice-id"), tokenText, "email_unverified"},
		{"a missing claim", w.idp.Token(w.clock(), map[string]any{"email": nil}), v2Body(t, key, "alice-id"), tokenText, "claim_missing:email"},
		{"a bad token before a bad key", "x", withKey("x"), tokenText, "malformed_token"},
		{"header and body differ", w.token(), map[string]any{"credentials": map[string]any{"oidcIdentityToken": w.idp.Token(w.clock(), map[string]any{"sub": "b"})}}, tokenText, "malformed_token"},
		{"no key", w.token(), map[string]any{}, keyText, "key_malformed"},
		{"an empty key", w.token(), withKey(""), keyText, "key_malformed"},
		{"a key that is none", w.token(), withKey("hello"), keyText, "key_malformed"},
		{"a private key", w.token(), withKey("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), keyText, "key_malformed"},
		{"two keys", w.token(), withKey(key.pem(t) + key.pem(t)), keyText, "key_malformed"},
		{"text before the key", w.token(), withKey("x\n" + key.pem(t)), keyText, "key_malformed"},
		{"text after the key", w.token(), withKey(key.pem(t) + "x"), keyText, "key_malformed"},
		{"an oversized key", w.token(), withKey(key.pem(t) + strings.Repeat("\n", 20<<10)), keyText, "key_malformed"},
		{"an X25519 key", w.token(), withKey("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VuAyEAhSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n-----END PUBLIC KEY-----\n"), weakText, "weak_key"},
		{"P-224", w.token(), withKey(spki(elliptic224(t))), weakText, "weak_key"},
		{"RSA of 1024 bits", w.token(), withKey(spki(&rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int).Rsh(n2048, 1024), 0, 1), E: 65537})), weakText, "weak_key"},
		{"RSA with e = 3", w.token(), withKey(spki(&rsa.PublicKey{N: n2048, E: 3})), weakText, "weak_key"},
		{"RSA with a small factor", w.token(), withKey(spki(&rsa.PublicKey{N: smallFactor(n2048), E: 65537})), weakText, "weak_key"},
		{"RSA with close primes", w.token(), withKey(spki(&rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537})), weakText, "weak_key"},
		{"an Ed25519 key of small order", w.token(), withKey(spki(ed25519.PublicKey(append([]byte{1}, make([]byte, 31)...)))), weakText, "weak_key"},
		{"no proof", w.token(), unsigned, popText, "pop_mismatch"},
		{"a proof over something else", w.token(), v2Body(t, key, "bob"), popText, "pop_mismatch"},
		{"a proof over nothing", w.token(), v2Body(t, key, ""), popText, "pop_mismatch"},
		{"a P-384 proof over SHA-256", w.token(), v2Body(t, p384OverSHA256, "alice-id"), popText, "pop_mismatch"},
		{"an empty CSR counts as none", w.token(), withCSR(nil), keyText, "key_malformed"},
		{"a CSR that is none", w.token(), withCSR([]byte("x")), csrText, "csr_malformed"},
		{"a CSR of another PEM type", w.token(), withCSR([]byte(key.pem(t))), csrText, "csr_malformed"},
		{"a CSR with a broken signature", w.token(), withCSR(pem.EncodeToMemory(brokenCSR)), popText, "pop_mismatch"},
		{"a P-384 CSR over SHA-256", w.token(), withCSR(p384.csr(t, x509.ECDSAWithSHA256)), "signing algorithm not permitted: *ecdsa.PublicKey, SHA-256", "alg_not_allowed"},
		{"an RSA-PSS CSR", w.token(), withCSR(newClientKey(t, "RSA-2048").csr(t, x509.SHA256WithRSAPSS)), "unrecognized signature algorithm: SHA256-RSAPSS", "alg_not_allowed"},
		{"no JSON", w.token(), "hello", "the request body could not be decoded", "malformed_request"},
		{"JSON twice", w.token(), "{} {}", "the request body could not be decoded", "malformed_request"},
		{"a field twice", w.token(), `{"credentials":{},"credentials":{}}`, "the request body could not be decoded", "malformed_request"},
		{"bytes that are no base64", w.token(), `{"certificateSigningRequest":"%"}`, "the request body could not be decoded", "malformed_request"},
		{"deep nesting", w.token(), strings.Repeat(`{"x":`, 1000) + "1" + strings.Repeat("}", 1000), "the request body could not be decoded", "malformed_request"},
		{"a body over the limit", w.token(), tooLarge, "http: request body too large", "request_too_large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantRefusal(t, w.post("/api/v2/signingCert", tt.token, tt.body), 400, codes.InvalidArgument, tt.text, tt.reason)
		})
	}
	t.Run("several tokens in the header", func(t *testing.T) {
		for _, header := range [][]string{{"Authorization", "Bearer a Bearer b"}, {"Authorization", "Bearer a", "Authorization", "Bearer b"}} {
			wantRefusal(t, w.post("/api/v2/signingCert", "", v2Body(t, key, "alice-id"), header...), 400, codes.InvalidArgument, tokenText, "malformed_token")
		}
	})
	t.Run("v1 takes the token from the header only", func(t *testing.T) {
		body := map[string]any{"credentials": map[string]any{"oidcIdentityToken": w.token()}, "certificateSigningRequest": key.csr(t, 0)}
		wantRefusal(t, w.post("/api/v1/signingCert", "", body), 400, codes.InvalidArgument, tokenText, "malformed_token")
	})
	t.Run("v1 mistakes", func(t *testing.T) {
		for body, want := range map[string]string{"{}": keyText, "": "the request body", "{}x": "the request body", tooLarge: "http: request body too large", `{"publicKey":{"content":"%"}}`: "the request body"} {
			if r := w.post("/api/v1/signingCert", w.token(), body); r.status != 400 || !strings.Contains(r.body, want) {
				t.Errorf("%.20q: %d %s", body, r.status, r.body)
			}
		}
	})
	t.Run("the caller's request id comes back and is logged", func(t *testing.T) {
		r := w.post("/api/v2/signingCert", "x", v2Body(t, key, "alice-id"), "X-Request-Id", "req-42")
		if !strings.Contains(r.body, "id=req-42]") || r.header.Get("X-Request-Id") != "req-42" || !strings.Contains(w.logs.String(), "request_id=req-42") {
			t.Errorf("%v %s", r.header, r.body)
		}
		r = w.post("/api/v2/signingCert", "x", v2Body(t, key, "alice-id"), "X-Request-Id", strings.Repeat("x", 129))
		if strings.Contains(r.body, "xxx") {
			t.Error("an oversized request id was taken")
		}
	})
	if n := len(w.log.chains); n != 0 {
		t.Errorf("%d precertificates were logged for refused requests", n)
	}
}

func probable(n *big.Int) *big.Int {
	n = new(big.Int).SetBit(n, 0, 1)
	for !n.ProbablyPrime(10) {
		n.Add(n, big.NewInt(2))
	}
	return n
}

func smallFactor(n *big.Int) *big.Int {
	out := new(big.Int).Sub(n, new(big.Int).Mod(n, big.NewInt(3)))
	if out.Bit(0) == 0 {
		out.Sub(out, big.NewInt(3))
	}
	return out
}

func elliptic224(t *testing.T) *ecdsa.PublicKey {
	key, err := ecdsa.GenerateKey(elliptic.P224(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return &key.PublicKey
}

func TestClaimsThatMakeNoCertificateAreTheClientsMistake(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *ca.Options, i *identity.Issuer) {
		i.Type, i.CIProvider = identity.CIProvider, "buildkite-job"
	})
	claims := map[string]any{"organization_slug": "a", "pipeline_slug": "b", "build_number": 1, "job_id": "j", "runner_environment": "r", "build_commit": "c", "build_source": "s"}
	issue := func(changes map[string]any) reply {
		for name, value := range claims {
			if _, ok := changes[name]; !ok {
				changes[name] = value
			}
		}
		return w.post("/api/v2/signingCert", w.idp.Token(w.clock(), changes), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	}
	wantRefusal(t, issue(map[string]any{"build_commit": nil}), 400, codes.InvalidArgument, "value <build_commit> not present in either claims or defaults", "claim_missing:build_commit")
	// Go itself would not parse such a host; upstream notices when the precertificate is out.
	wantRefusal(t, issue(map[string]any{"url": "https://under_score..example"}), 400, codes.InvalidArgument, "the token's claims do not make a certificate", "claim_rejected")
	if n := len(w.log.chains); n != 0 {
		t.Errorf("%d precertificates were logged", n)
	}
}

func TestNothingLeavesWithoutAValidSCT(t *testing.T) {
	const text = "Error entering certificate in CTL"
	for _, tt := range []struct {
		name    string
		set     func(*fakeLog)
		status  int
		code    codes.Code
		reason  string
		advance time.Duration
	}{
		{"the log fails", func(l *fakeLog) { l.fail = func(context.Context) error { return errors.New("disk full") } }, 503, codes.Unavailable, "ct_unavailable", 0},
		{"an SCT of another log", func(l *fakeLog) { l.sct = func(s *ct.SignedCertificateTimestamp) { s.LogID.KeyID[0] ^= 1 } }, 500, codes.Internal, "sct_invalid", 0},
		{"an SCT with a broken signature", func(l *fakeLog) {
			l.sct = func(s *ct.SignedCertificateTimestamp) { s.Signature.Signature[9] ^= 1 }
		}, 500, codes.Internal, "sct_invalid", 0},
		{"an SCT with another timestamp than was signed", func(l *fakeLog) { l.sct = func(s *ct.SignedCertificateTimestamp) { s.Timestamp++ } }, 500, codes.Internal, "sct_invalid", 0},
		{"an SCT over another certificate", func(l *fakeLog) {
			l.entry = func(e *ct.LogEntry) {
				tbs := e.Leaf.TimestampedEntry.PrecertEntry.TBSCertificate
				tbs[len(tbs)-1] ^= 1
			}
		}, 500, codes.Internal, "sct_invalid", 0},
		{"an SCT of another issuer", func(l *fakeLog) {
			l.entry = func(e *ct.LogEntry) { e.Leaf.TimestampedEntry.PrecertEntry.IssuerKeyHash[0] ^= 1 }
		}, 500, codes.Internal, "sct_invalid", 0},
		{"an SCT from the future", func(l *fakeLog) {
			l.entry = func(e *ct.LogEntry) { e.Leaf.TimestampedEntry.Timestamp += uint64(2 * time.Minute / time.Millisecond) }
		}, 500, codes.Internal, "sct_invalid", 0},
		{"an SCT two hours old", func(l *fakeLog) {
			l.entry = func(e *ct.LogEntry) { e.Leaf.TimestampedEntry.Timestamp -= uint64(2 * time.Hour / time.Millisecond) }
		}, 500, codes.Internal, "sct_invalid", 0},
		{"an SCT of version 2", func(l *fakeLog) { l.sct = func(s *ct.SignedCertificateTimestamp) { s.SCTVersion = 1 } }, 500, codes.Internal, "sct_invalid", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.set(w.log)
			r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
			wantRefusal(t, r, tt.status, tt.code, text, tt.reason)
			if strings.Contains(r.body, "BEGIN CERTIFICATE") || strings.Contains(r.body, "disk full") {
				t.Errorf("answer %s", r.body)
			}
		})
	}
	t.Run("SCT extensions are part of what is verified, and kept", func(t *testing.T) {
		w := newWorld(t)
		w.log.entry = func(e *ct.LogEntry) { e.Leaf.TimestampedEntry.Extensions = ct.CTExtensions{0, 0, 5, 0, 0, 0, 0, 7} }
		r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		checkClient(t, w, embedded(t, r.body))
	})
	t.Run("a log that hangs ends with the client's patience", func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(context.Background())
		w.log.fail = func(inner context.Context) error { cancel(); <-inner.Done(); return inner.Err() }
		key := newClientKey(t, "P-256")
		_, err := w.ca.Issue(ctx, ca.Request{Token: w.token(), PublicKey: []byte(key.pem(t)), Proof: key.prove(t, "alice-id")})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// brokenSigner works for a number of signatures; the first is the test signature at start.
type brokenSigner struct {
	crypto.Signer
	left *int
}

func (b brokenSigner) Sign(r io.Reader, sum []byte, o crypto.SignerOpts) ([]byte, error) {
	if *b.left--; *b.left < 0 {
		return nil, errors.New("token removed")
	}
	return b.Signer.Sign(r, sum, o)
}

func TestSignerFailuresAreOurs(t *testing.T) {
	for name, signatures := range map[string]int{"at the precertificate": 1, "at the certificate": 2} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(w *world, o *ca.Options, _ *identity.Issuer) { o.Signer = brokenSigner{w.key, &signatures} })
			r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
			wantRefusal(t, r, 500, codes.Internal, "error communicating with CA backend", "signer_failed")
		})
	}
}

func TestUnreachableIssuerIs503(t *testing.T) {
	w := newWorld(t)
	w.idp.SetHandler(http.NotFoundHandler())
	r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	wantRefusal(t, r, 503, codes.Unavailable, tokenText, "issuer_unreachable")
}

func TestTooManyRequestsAtOnceAre429(t *testing.T) {
	w := newWorld(t)
	h := ca.NewHandler(w.ca, ca.HandlerOptions{MaxInFlight: 1})
	entered, release := make(chan struct{}), make(chan struct{})
	w.log.fail = func(context.Context) error { close(entered); <-release; return nil }
	key := newClientKey(t, "P-256")
	w.server.Config.Handler = h.Routes()
	done := make(chan reply)
	go func() { done <- w.post("/api/v2/signingCert", w.token(), v2Body(t, key, "alice-id")) }()
	<-entered
	wantRefusal(t, w.post("/api/v2/signingCert", w.token(), v2Body(t, key, "alice-id")), 429, codes.ResourceExhausted, "too many requests", "rate_limited")
	close(release)
	if r := <-done; r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestRefusalsOverGRPC(t *testing.T) {
	w := newWorld(t)
	conn, err := grpc.NewClient(strings.TrimPrefix(w.server.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := fulcio.NewCAClient(conn)
	for _, tt := range []struct {
		name, token string
		ctx         context.Context
		code        codes.Code
		reason      string
	}{
		{"no token", "", context.Background(), codes.InvalidArgument, "malformed_token"},
		{"two tokens", "", metadata.AppendToOutgoingContext(context.Background(), "oidcidentitytoken", "a", "oidcidentitytoken", "b"), codes.InvalidArgument, "malformed_token"},
		{"different tokens", w.token(), metadata.AppendToOutgoingContext(context.Background(), "oidcidentitytoken", "a"), codes.InvalidArgument, "malformed_token"},
		{"no key", w.token(), context.Background(), codes.InvalidArgument, "key_malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := client.CreateSigningCertificate(tt.ctx, &fulcio.CreateSigningCertificateRequest{
				Credentials: &fulcio.Credentials{Credentials: &fulcio.Credentials_OidcIdentityToken{OidcIdentityToken: tt.token}},
			})
			if s := status.Convert(err); s.Code() != tt.code || !strings.Contains(s.Message(), "reason="+tt.reason) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("a message over the limit", func(t *testing.T) {
		_, err := client.CreateSigningCertificate(context.Background(), &fulcio.CreateSigningCertificateRequest{
			Key: &fulcio.CreateSigningCertificateRequest_CertificateSigningRequest{CertificateSigningRequest: make([]byte, ca.MaxBody+1)},
		})
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v", err)
		}
	})
}

func TestOtherEndpoints(t *testing.T) {
	old := newWorld(t)
	w := newWorld(t, func(w *world, o *ca.Options, i *identity.Issuer) { o.OtherChains = [][]*x509.Certificate{old.chain} })
	t.Run("trust bundle lists every chain, issuing certificate first", func(t *testing.T) {
		r := w.get("/api/v2/trustBundle")
		var bundle struct {
			Chains []struct{ Certificates []string }
		}
		if err := json.Unmarshal([]byte(r.body), &bundle); err != nil || r.status != 200 || len(bundle.Chains) != 2 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		for i, chain := range [][]*x509.Certificate{w.chain, old.chain} {
			got, err := ca.ParseChain([]byte(strings.Join(bundle.Chains[i].Certificates, "")))
			if err != nil || len(got) != 2 || !got[0].Equal(chain[0]) || !got[1].Equal(chain[1]) || !strings.HasSuffix(bundle.Chains[i].Certificates[0], "-----\n") {
				t.Errorf("chain %d: %v", i, err)
			}
		}
	})
	t.Run("root certificates of v1", func(t *testing.T) {
		r := w.get("/api/v1/rootCert")
		certs, err := ca.ParseChain([]byte(r.body))
		if err != nil || r.status != 200 || r.header.Get("Content-Type") != "application/pem-certificate-chain" || len(certs) != 4 {
			t.Errorf("%d %v %d certificates, %v", r.status, r.header, len(certs), err)
		}
	})
	t.Run("configuration", func(t *testing.T) {
		r := w.get("/api/v2/configuration")
		var config struct{ Issuers []map[string]any }
		if err := json.Unmarshal([]byte(r.body), &config); err != nil || len(config.Issuers) != 1 {
			t.Fatalf("%s", r.body)
		}
		want := map[string]any{"issuerUrl": w.idp.URL, "audience": "sigstore", "challengeClaim": "email", "spiffeTrustDomain": "", "issuerType": "email", "subjectDomain": "", "skipEmailVerification": false}
		for k, v := range want {
			if config.Issuers[0][k] != v {
				t.Errorf("%s is %v, want %v", k, config.Issuers[0][k], v)
			}
		}
	})
	t.Run("health, unknown paths and methods", func(t *testing.T) {
		if r := w.get("/healthz"); r.status != 200 || !strings.Contains(r.body, `{"status":"SERVING"}`) {
			t.Errorf("%d %s", r.status, r.body)
		}
		if r := w.get("/api/v3/x"); r.status != 404 || r.body != `{"code":5,"message":"Not Found","details":[]}` {
			t.Errorf("%d %s", r.status, r.body)
		}
		if r := w.get("/api/v2/signingCert"); r.status != 405 {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
	t.Run("browsers may call", func(t *testing.T) {
		req, _ := http.NewRequest(http.MethodOptions, w.server.URL+"/api/v2/signingCert", nil)
		req.Header.Set("Origin", "https://app.example")
		req.Header.Set("Access-Control-Request-Method", "POST")
		r := w.do(req)
		if r.status != 204 || r.header.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(r.header.Get("Access-Control-Allow-Headers"), "Authorization") {
			t.Errorf("%d %v", r.status, r.header)
		}
		r = w.post("/api/v2/signingCert", "x", "{}", "Origin", "https://app.example")
		if r.header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%v", r.header)
		}
	})
	t.Run("only the browsers that were named", func(t *testing.T) {
		w.server.Config.Handler = ca.NewHandler(w.ca, ca.HandlerOptions{Origins: []string{"https://app.example"}}).Routes()
		for origin, want := range map[string]string{"https://app.example": "https://app.example", "https://other.example": ""} {
			if r := w.post("/api/v2/signingCert", "x", "{}", "Origin", origin); r.header.Get("Access-Control-Allow-Origin") != want {
				t.Errorf("%s: %v", origin, r.header)
			}
		}
	})
}

func TestOptionsThatMakeNoCA(t *testing.T) {
	w := newWorld(t)
	issuers, err := identity.New(identity.Options{Issuers: []identity.Issuer{{URL: w.idp.URL, Audience: "x", Type: identity.Email, AllowHTTP: true}}})
	if err != nil {
		t.Fatal(err)
	}
	good := ca.Options{Signer: w.key, Chain: w.chain, Identity: issuers, CT: w.log}
	if _, err := ca.New(good); err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), nil)
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	for _, tt := range []struct {
		want   string
		change func(*ca.Options)
	}{
		{"signing key", func(o *ca.Options) { o.Signer = nil }},
		{"issuers", func(o *ca.Options) { o.Identity = nil }},
		{"CT log is required", func(o *ca.Options) { o.CT = nil }},
		{"disabled", func(o *ca.Options) { o.CTDisabled = true }},
		{"lifetime", func(o *ca.Options) { o.Lifetime = 2 * time.Hour }},
		{"backdate", func(o *ca.Options) { o.Backdate = 6 * time.Minute }},
		{"no certificate", func(o *ca.Options) { o.Chain = nil }},
		{"not one of", func(o *ca.Options) { o.Algorithms = []string{"rot13"} }},
		{"P-256", func(o *ca.Options) { o.CT = &fakeLog{key: p384} }},
		{"test signature", func(o *ca.Options) { o.Signer = brokenSigner{w.key, &used} }},
	} {
		t.Run(tt.want, func(t *testing.T) {
			o := good
			tt.change(&o)
			if _, err := ca.New(o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzRequests(f *testing.F) {
	w := newWorld(f)
	key := newClientKey(f, "P-256")
	token := w.idp.Token(w.clock().Add(100*365*24*time.Hour), map[string]any{"iat": w.clock().Unix()})
	seed, err := json.Marshal(v2Body(f, key, "alice-id"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(seed), true)
	f.Add(`{"publicKey":{"content":"`+base64.StdEncoding.EncodeToString(key.der(f))+`"},"signedEmailAddress":"AA=="}`, false)
	csr, _ := json.Marshal(map[string]any{"certificateSigningRequest": key.csr(f, 0)})
	f.Add(string(csr), true)
	f.Add(string(csr), false)
	handler := ca.NewHandler(w.ca, ca.HandlerOptions{}).Routes()
	f.Fuzz(func(t *testing.T, body string, v2 bool) {
		path, success := "/api/v1/signingCert", 201
		if v2 {
			path, success = "/api/v2/signingCert", 200
		}
		r := serve(handler, path, token, body)
		if r.Code != success && r.Code != 400 {
			t.Errorf("%d %s", r.Code, r.Body)
		}
	})
}

func FuzzCSR(f *testing.F) {
	w := newWorld(f)
	f.Add(newClientKey(f, "P-256").csr(f, 0))
	f.Add(newClientKey(f, "RSA-2048").csr(f, 0))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	token := w.token()
	f.Fuzz(func(t *testing.T, csr []byte) {
		if issued, err := w.ca.Issue(context.Background(), ca.Request{Token: token, CSR: csr}); err == nil {
			if _, err := x509.ParseCertificate(issued.DER); err != nil {
				t.Error(err)
			}
		}
	})
}
