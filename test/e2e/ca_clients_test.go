package e2e

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/certificate-transparency-go/ctutil"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
)

// asked is one signing request as it passed on the wire.
type asked struct {
	path   string
	token  string // where it was: header or body
	proof  string // CSR, or the claim that the key signed
	key    string // such as P-256
	status int
}

// recorder stands between clients and the CA and writes down what they ask.
type recorder struct {
	t    *testing.T
	mu   sync.Mutex // guards seen
	seen []asked
}

// behindRecorder is `attestry up` behind one URL, where signing requests pass a recorder.
func behindRecorder(t *testing.T, args ...string) (*stack, *recorder) {
	t.Helper()
	f, r := newFront(t), &recorder{t: t}
	s := newStack(t, filepath.Join(t.TempDir(), "data"), append([]string{"--url", f.url}, args...)...)
	s.url = f.url
	f.balance([]string{s.listen}, "/")
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: s.listen}) },
	}
	for _, path := range []string{"/api/v1/signingCert", "/api/v2/signingCert"} {
		f.mux.HandleFunc(path, func(w http.ResponseWriter, req *http.Request) { r.pass(w, req, proxy) })
	}
	s.start()
	return s, r
}

type statusOf struct {
	http.ResponseWriter
	status int
}

func (s *statusOf) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

func (r *recorder) pass(w http.ResponseWriter, req *http.Request, to http.Handler) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Errorf("reading a client's request: %v", err)
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	a, err := readAsked(req, body)
	if err != nil {
		r.t.Errorf("a client's request: %v\n%s", err, body)
	}
	answer := &statusOf{w, http.StatusOK}
	to.ServeHTTP(answer, req)
	a.status = answer.status
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, a)
}

// take returns the only request since the last call.
func (r *recorder) take(t *testing.T) asked {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	if len(seen) != 1 {
		t.Fatalf("%d signing requests: %+v", len(seen), seen)
	}
	return seen[0]
}

func readAsked(req *http.Request, body []byte) (asked, error) {
	a := asked{path: req.URL.Path}
	var m struct {
		Credentials struct {
			Token string `json:"oidcIdentityToken"`
		} `json:"credentials"`
		CSR     []byte `json:"certificateSigningRequest"`
		Request struct {
			Key struct {
				Content string `json:"content"`
			} `json:"publicKey"`
			Proof []byte `json:"proofOfPossession"`
		} `json:"publicKeyRequest"`
		Key struct {
			Content []byte `json:"content"`
		} `json:"publicKey"`
		Proof []byte `json:"signedEmailAddress"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return a, err
	}
	token := m.Credentials.Token
	if header := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "); header != "" {
		token, a.token = header, "header"
	}
	if m.Credentials.Token != "" {
		a.token = strings.TrimPrefix(a.token+" and body", " and ")
	}
	content, proof := []byte(m.Request.Key.Content), m.Request.Proof
	if len(m.Key.Content) > 0 {
		content, proof = m.Key.Content, m.Proof
	}
	if len(m.CSR) > 0 {
		block, _ := pem.Decode(m.CSR)
		if block == nil {
			return a, fmt.Errorf("the request is not PEM")
		}
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return a, err
		}
		a.proof, a.key = "CSR", kindOf(csr.PublicKey)
		return a, nil
	}
	if block, _ := pem.Decode(content); block != nil {
		content = block.Bytes
	}
	pub, err := x509.ParsePKIXPublicKey(content)
	if err != nil {
		return a, err
	}
	a.key, a.proof = kindOf(pub), "nothing we know"
	for _, name := range []string{"email", "sub"} {
		if claim, ok := claimsOf(token)[name].(string); ok && signedBy(pub, claim, proof) {
			a.proof = name
		}
	}
	return a, nil
}

func kindOf(pub crypto.PublicKey) string {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		return key.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", key.N.BitLen())
	default:
		return fmt.Sprintf("%T", pub)
	}
}

// signedBy tells whether proof is a signature over claim, with the hash that belongs to the key.
func signedBy(pub crypto.PublicKey, claim string, proof []byte) bool {
	sum := sha256.Sum256([]byte(claim))
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		digest := sum[:]
		switch key.Curve {
		case elliptic.P384():
			long := sha512.Sum384([]byte(claim))
			digest = long[:]
		case elliptic.P521():
			long := sha512.Sum512([]byte(claim))
			digest = long[:]
		}
		return ecdsa.VerifyASN1(key, digest, proof)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], proof) == nil
	}
	return false
}

// claimsOf reads a token without checking it.
func claimsOf(token string) map[string]any {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	var claims map[string]any
	if json.Unmarshal(payload, &claims) != nil {
		return nil
	}
	return claims
}

// rs256 signs as most providers do; cosign takes a token of any other algorithm for the name of a file.
func rs256(t *testing.T, idp *identitytest.Provider, changes map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(idp.Claims(time.Now(), changes))
	if err != nil {
		t.Fatal(err)
	}
	return idp.Sign("rs", jose.RS256, payload)
}

// caClient is one way in which a client asks for a certificate.
type caClient struct {
	name, client, version string
	inOrdinaryRun         bool
	want                  asked // without key and status, which are P-256 and success
	status                int
	// sign signs blob into bundle, unless it is an attestation.
	sign func(b *sandbox, s *stack, token, blob, bundle string) []string
}

func byURLs(s *stack) []string {
	return []string{"--fulcio-url", s.url, "--rekor-url", s.url, "--timestamp-server-url", s.url + "/api/v1/timestamp", "--oidc-issuer", s.issuer()}
}

func cosignByURLs(extra ...string) func(*sandbox, *stack, string, string, string) []string {
	return func(b *sandbox, s *stack, token, blob, bundle string) []string {
		b.source(s.client("env.cosign2"))
		return flags([]string{"sign-blob", "--yes", "--identity-token", token, "--new-bundle-format", "--bundle", bundle}, byURLs(s), extra, []string{blob})
	}
}

func cosignByConfig(_ *sandbox, s *stack, token, blob, bundle string) []string {
	return []string{"sign-blob", "--yes", "--identity-token", token, "--bundle", bundle,
		"--signing-config", s.client("signing_config.rekor1.v0.2.json"), "--trusted-root", s.client("trusted_root.json"), blob}
}

func jsAttests(b *sandbox, s *stack, token, blob, bundle string) []string {
	b.set("CI", "true")
	b.set("SIGSTORE_ID_TOKEN", token)
	statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"blob","digest":{"sha256":"%x"}}],"predicateType":%q,"predicate":{}}`,
		sha256.Sum256([]byte(readFile(b.t, blob))), jsPredicate)
	return []string{"attest", "--fulcio-url", s.url, "--rekor-url", s.url, "--tsa-server-url", s.url, "-o", bundle, b.file("statement.json", statement)}
}

// caClients are the clients of this CA, each over the path that its version takes. @sigstore/sign 3 to 4 signed sub for every
// issuer but two public ones; 5, like cosign, a verified email where there is one.
var caClients = []caClient{
	{"cosign 2.4.3", "cosign", "v2.4.3", false, asked{path: "/api/v1/signingCert", token: "header", proof: "email"}, 201, cosignByURLs()},
	{"cosign 2.6.5 by URLs", "cosign", "v2.6.5", true, asked{path: "/api/v1/signingCert", token: "header", proof: "email"}, 201, cosignByURLs()},
	{"cosign 2.6.5 by a signing config", "cosign", "v2.6.5", true, asked{path: "/api/v2/signingCert", token: "header", proof: "email"}, 200, cosignByConfig},
	{"cosign 3.0.6 by URLs", "cosign", "v3.0.6", false, asked{path: "/api/v1/signingCert", token: "header", proof: "email"}, 201, cosignByURLs("--use-signing-config=false")},
	{"cosign 3.0.6 by a signing config", "cosign", "v3.0.6", false, asked{path: "/api/v2/signingCert", token: "header", proof: "email"}, 200, cosignByConfig},
	{"cosign 3.1.3 by URLs", "cosign", "v3.1.3", true, asked{path: "/api/v2/signingCert", token: "header", proof: "email"}, 200, cosignByURLs("--use-signing-config=false")},
	{"cosign 3.1.3 by a signing config", "cosign", "v3.1.3", true, asked{path: "/api/v2/signingCert", token: "header", proof: "email"}, 200, cosignByConfig},
	{"sigstore-python", "sigstore-python", "", true, asked{path: "/api/v2/signingCert", token: "header", proof: "CSR"}, 200,
		func(_ *sandbox, s *stack, token, blob, bundle string) []string {
			return []string{"--trust-config", s.client("client_trust_config.json"), "sign", "--rekor-version", "1", "--identity-token", token, "--bundle", bundle, blob}
		}},
	{"sigstore-js 0.10.3", "sigstore-js", "0.10.3", true, asked{path: "/api/v2/signingCert", token: "body", proof: "email"}, 200, jsAttests},
	{"sigstore-js 0.8.1", "sigstore-js", "0.8.1", true, asked{path: "/api/v2/signingCert", token: "body", proof: "sub"}, 200, jsAttests},
}

// aliceByID is a token of alice whose sub is not her email.
func (s *stack) aliceByID() string {
	return s.token("--email", "alice@example.com", "--claim", "sub=alice-id")
}

// verified wants that blob was signed as identity, by cosign's and by our own verifier.
func (s *stack) verified(b *sandbox, attestation bool, identity, issuer, blob, bundle string) {
	b.t.Helper()
	args := []string{"--trusted-root", s.client("trusted_root.json"), "--bundle", bundle, "--certificate-identity", identity, "--certificate-oidc-issuer", issuer}
	b.must(attestry, flags([]string{"verify"}, args, []string{blob})...)
	verb := []string{"verify-blob"}
	if attestation {
		verb = []string{"verify-blob-attestation", "--type", jsPredicate}
	}
	b.must(client(b.t, "cosign", "v3.1.3"), flags(verb, args, []string{blob})...)
}

// TestEveryClientGetsACertificateOverItsOwnPath writes down what each client sends, so that the table of docs/ca.md is what
// clients do and not what we think they do. The token's sub is no email, so that it shows which claim was signed.
func TestEveryClientGetsACertificateOverItsOwnPath(t *testing.T) {
	s, r := behindRecorder(t)
	for _, c := range caClients {
		t.Run(c.name, func(t *testing.T) {
			if !c.inOrdinaryRun && !long() {
				t.Skip("skipped: enable with: scripts/test --long")
			}
			b := newSandbox(t)
			blob, bundle := b.file("blob", "by "+c.name), b.path("bundle.json")
			b.must(client(t, c.client, c.version), c.sign(b, s, s.aliceByID(), blob, bundle)...)
			want := c.want
			want.key, want.status = "P-256", c.status
			if got := r.take(t); got != want {
				t.Errorf("it asked %+v, want %+v", got, want)
			}
			s.verified(b, c.client == "sigstore-js", "alice@example.com", s.issuer(), blob, bundle)
		})
	}
	// cosign 3 makes other keys than P-256 when told to, and hashes the challenge to suit.
	for algorithm, key := range map[string]string{"ecdsa-sha2-384-nistp384": "P-384", "ecdsa-sha2-512-nistp521": "P-521", "rsa-sign-pkcs1-2048-sha256": "RSA-2048",
		"rsa-sign-pkcs1-3072-sha256": "RSA-3072", "rsa-sign-pkcs1-4096-sha256": "RSA-4096"} {
		t.Run("cosign 3.1.3 with a key "+algorithm, func(t *testing.T) {
			b := newSandbox(t)
			blob, bundle := b.file("blob", "by "+algorithm), b.path("bundle.json")
			args := flags([]string{"sign-blob", "--signing-algorithm", algorithm}, cosignByConfig(b, s, s.aliceByID(), blob, bundle)[1:])
			b.must(client(t, "cosign", "v3.1.3"), args...)
			if got, want := r.take(t), (asked{"/api/v2/signingCert", "header", "email", key, 200}); got != want {
				t.Errorf("it asked %+v, want %+v", got, want)
			}
			s.verified(b, false, "alice@example.com", s.issuer(), blob, bundle)
		})
	}
}

// TestFlowsOfCosignWithoutAPerson: a token that is there, and one for a client's secret.
func TestFlowsOfCosignWithoutAPerson(t *testing.T) {
	idp := identitytest.New(t)
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("grant_type") != "client_credentials" || r.PostFormValue("client_id") != "sigstore" || r.PostFormValue("client_secret") != "a secret" {
			http.Error(w, `{"error":"invalid_client"}`, http.StatusUnauthorized)
			return
		}
		json.NewEncoder(w).Encode(map[string]string{"access_token": "x", "token_type": "Bearer",
			"id_token": rs256(t, idp, map[string]any{"sub": "a robot", "email": "robot@example.com"})})
	}))
	t.Cleanup(tokens.Close)
	idp.SetDiscovery("token_endpoint", tokens.URL)
	s, r := behindRecorder(t, "--ca-config", issuerFile(t, fmt.Sprintf("oidc-issuers:\n  %s: {client-id: sigstore, type: email, allow-http: true}\n", idp.URL)))
	for _, version := range []string{"v3.1.3", "v3.0.6", "v2.6.5", "v2.4.3"} {
		if !long() && (version == "v3.0.6" || version == "v2.4.3") {
			continue
		}
		exe := client(t, "cosign", version)
		sign := func(b *sandbox, blob string, flow ...string) []string {
			b.source(s.client("env.cosign2"))
			args := []string{"sign-blob", "--yes", "--new-bundle-format", "--bundle", b.path("bundle"), "--fulcio-url", s.url, "--rekor-url", s.url,
				"--timestamp-server-url", s.url + "/api/v1/timestamp", "--oidc-issuer", idp.URL}
			if strings.HasPrefix(version, "v3") {
				args = append(args, "--use-signing-config=false")
			}
			return flags(args, flow, []string{blob})
		}
		secret := func(b *sandbox, text string) []string {
			return []string{"--fulcio-auth-flow", "client_credentials", "--oidc-client-secret-file", b.file("secret", text)}
		}
		t.Run(version+": token", func(t *testing.T) {
			b := newSandbox(t)
			blob := b.file("blob", "by token "+version)
			b.must(exe, sign(b, blob, "--fulcio-auth-flow", "token", "--identity-token", rs256(t, idp, nil))...)
			r.take(t)
			s.verified(b, false, "alice@example.com", idp.URL, blob, b.path("bundle"))
		})
		t.Run(version+": client credentials", func(t *testing.T) {
			b := newSandbox(t)
			blob := b.file("blob", "by client credentials "+version)
			b.must(exe, sign(b, blob, secret(b, "a secret")...)...)
			if got := r.take(t); got.proof != "email" {
				t.Errorf("it asked %+v", got)
			}
			s.verified(b, false, "robot@example.com", idp.URL, blob, b.path("bundle"))
			b.refused(`401|invalid_client`, exe, sign(b, blob, secret(b, "another secret")...)...)
		})
	}
}

func issuerFile(t *testing.T, yaml string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "issuers.yaml")
	write(t, path, yaml)
	return path
}

// TestTokensWithAnEmailThatIsNotTheIdentity: Keycloak puts the email into every token. cosign signs it then, whatever the
// issuer is for, and older sigstore-js signs sub, whatever the issuer is for. Upstream takes neither of the two crossed cases.
func TestTokensWithAnEmailThatIsNotTheIdentity(t *testing.T) {
	uri, ci, email := identitytest.New(t), identitytest.New(t), identitytest.New(t)
	s, r := behindRecorder(t, "--ca-config", issuerFile(t, fmt.Sprintf(`oidc-issuers:
  %s: {client-id: sigstore, type: uri, subject-domain: "%[1]s", allow-http: true}
  %s: {client-id: sigstore, type: ci-provider, ci-provider: keycloak, allow-http: true}
  %s: {client-id: sigstore, type: email, allow-http: true}
ci-issuer-metadata:
  keycloak:
    subject-alternative-name-template: "{{ .iss }}/clients/{{ .azp }}"
    extension-templates: {build-trigger: preferred_username}
`, uri.URL, ci.URL, email.URL)))
	for _, tt := range []struct {
		name, identity string
		idp            *identitytest.Provider
		claims         map[string]any
	}{
		{"uri", uri.URL + "/users/alice", uri, map[string]any{"sub": uri.URL + "/users/alice"}},
		{"ci-provider", ci.URL + "/clients/pipeline", ci, map[string]any{"sub": "f:5e21:alice", "azp": "pipeline", "preferred_username": "alice"}},
		{"email", "alice@example.com", email, map[string]any{"sub": "f:5e21:alice"}},
	} {
		for _, c := range caClients {
			if !long() && c.name != "cosign 2.6.5 by URLs" && c.name != "cosign 3.1.3 by a signing config" && c.client != "sigstore-js" {
				continue
			}
			t.Run(tt.name+": "+c.name, func(t *testing.T) {
				b := newSandbox(t)
				blob, bundle := b.file("blob", tt.name+" by "+c.name), b.path("bundle.json")
				b.must(client(t, c.client, c.version), c.sign(b, s, rs256(t, tt.idp, tt.claims), blob, bundle)...)
				want := c.want
				want.key, want.status = "P-256", c.status
				if got := r.take(t); got != want {
					t.Errorf("it asked %+v, want %+v", got, want)
				}
				s.verified(b, c.client == "sigstore-js", tt.identity, tt.idp.URL, blob, bundle)
			})
		}
		t.Run(tt.name+": an email that nobody verified", func(t *testing.T) {
			// The clients of Go refuse it themselves. For an issuer of another type it is no identity, so the CA does not ask.
			claims := map[string]any{"email_verified": false}
			for name, value := range tt.claims {
				claims[name] = value
			}
			status, answer := s.signingCert(t, v2Request(t, p256(t), rs256(t, tt.idp, claims), claims["sub"].(string)))
			r.take(t)
			if want := map[bool]int{true: http.StatusBadRequest, false: http.StatusOK}[tt.name == "email"]; status != want {
				t.Errorf("%d, want %d: %s", status, want, answer)
			}
		})
	}
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func prove(t *testing.T, key *ecdsa.PrivateKey, challenge string) []byte {
	t.Helper()
	sum := sha256.Sum256([]byte(challenge))
	digest, hash := sum[:], crypto.SHA256
	if key.Curve == elliptic.P384() {
		long := sha512.Sum384([]byte(challenge))
		digest, hash = long[:], crypto.SHA384
	}
	proof, err := key.Sign(rand.Reader, digest, hash)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

// v2Request is the body that sigstore-js sends.
func v2Request(t *testing.T, key *ecdsa.PrivateKey, token, challenge string) map[string]any {
	t.Helper()
	return map[string]any{
		"credentials":      map[string]string{"oidcIdentityToken": token},
		"publicKeyRequest": map[string]any{"publicKey": map[string]string{"algorithm": "ECDSA", "content": publicPEM(t, key)}, "proofOfPossession": prove(t, key, challenge)},
	}
}

func (s *stack) signingCert(t *testing.T, body any) (status int, answer string) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	status, answer, err = call(t.Context(), http.MethodPost, s.url+"/api/v2/signingCert", "application/json", string(text))
	if err != nil {
		t.Fatal(err)
	}
	return status, answer
}

// checkCertificate verifies a chain, PEM with the leaf first, under a root and its SCT under a log's key, with libraries that
// are not ours, and returns the leaf's summary.
func checkCertificate(chain []string, rootsPEM, ctKeyPEM string) (certificate.Summary, error) {
	var certs []*x509.Certificate
	for _, text := range chain {
		for rest := []byte(text); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return certificate.Summary{}, err
			}
			certs = append(certs, cert)
		}
	}
	if len(certs) < 2 {
		return certificate.Summary{}, fmt.Errorf("%d certificates, sigstore-python and sigstore-rs want two", len(certs))
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for rest := []byte(rootsPEM); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return certificate.Summary{}, err
		}
		if bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			roots.AddCert(cert)
		}
	}
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, CurrentTime: certs[0].NotBefore}); err != nil {
		return certificate.Summary{}, err
	}
	block, _ := pem.Decode([]byte(ctKeyPEM))
	if block == nil {
		return certificate.Summary{}, fmt.Errorf("the log's key is not PEM")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return certificate.Summary{}, err
	}
	parsed, err := x509util.CertificatesFromPEM([]byte(strings.Join(chain, "\n")))
	if err != nil {
		return certificate.Summary{}, err
	}
	scts, err := x509util.ParseSCTsFromSCTList(&ctx509.SignedCertificateTimestampList{SCTList: parsed[0].SCTList.SCTList})
	if err != nil || len(scts) != 1 {
		return certificate.Summary{}, fmt.Errorf("%d SCTs, sigstore-python wants one: %w", len(scts), err)
	}
	if err := ctutil.VerifySCT(key, parsed, scts[0], true); err != nil {
		return certificate.Summary{}, fmt.Errorf("SCT: %w", err)
	}
	return certificate.SummarizeCertificate(certs[0])
}

// certified wants a certificate of alice.
func (s *stack) certified(t *testing.T, chain []string) {
	t.Helper()
	summary, err := checkCertificate(chain, readFile(t, s.client("fulcio.pem")), readFile(t, s.client("ctfe.pem")))
	if err != nil {
		t.Fatal(err)
	}
	if summary.SubjectAlternativeName != "alice@example.com" || summary.Issuer != s.issuer() {
		t.Errorf("SAN %q, issuer %q", summary.SubjectAlternativeName, summary.Issuer)
	}
}

// behindTLS is the port of s behind a proxy that ends TLS, as docs/operate.md has it. It returns host:port and the
// certificate to trust.
func behindTLS(t *testing.T, s *stack) (string, *x509.CertPool) {
	t.Helper()
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	srv := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: s.listen}) },
		Transport: &http.Transport{Protocols: &h2c},
	})
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	trusted := x509.NewCertPool()
	trusted.AddCert(srv.Certificate())
	return strings.TrimPrefix(srv.URL, "https://"), trusted
}

// TestGRPCClients asks as go-witness and sigstore-java before its HTTP client do: the stubs over the port of the CA's URL,
// plain for http and TLS for https, a key of P-384 and its challenge under SHA-384, or P-256.
func TestGRPCClients(t *testing.T) {
	s := up(t)
	address, trusted := behindTLS(t, s)
	for name, dial := range map[string]struct {
		address     string
		credentials credentials.TransportCredentials
	}{
		"h2c": {s.listen, insecure.NewCredentials()},
		"TLS": {address, credentials.NewTLS(&tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12})},
	} {
		conn, err := grpc.NewClient(dial.address, grpc.WithTransportCredentials(dial.credentials))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		stub := fulcio.NewCAClient(conn)
		for _, curve := range []elliptic.Curve{elliptic.P384(), elliptic.P256()} {
			key, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			request := func(token, challenge string) *fulcio.CreateSigningCertificateRequest {
				m := &fulcio.CreateSigningCertificateRequest{Key: &fulcio.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulcio.PublicKeyRequest{
					PublicKey: &fulcio.PublicKey{Algorithm: fulcio.PublicKeyAlgorithm_ECDSA, Content: publicPEM(t, key)}, ProofOfPossession: prove(t, key, challenge),
				}}}
				if token != "" {
					m.Credentials = &fulcio.Credentials{Credentials: &fulcio.Credentials_OidcIdentityToken{OidcIdentityToken: token}}
				}
				return m
			}
			t.Run(name+" "+curve.Params().Name+": token in the message", func(t *testing.T) {
				answer, err := stub.CreateSigningCertificate(t.Context(), request(s.alice(), "alice@example.com"))
				if err != nil {
					t.Fatal(err)
				}
				s.certified(t, answer.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates())
			})
			t.Run(name+" "+curve.Params().Name+": token in the metadata", func(t *testing.T) {
				ctx := metadata.AppendToOutgoingContext(t.Context(), "oidcidentitytoken", s.alice())
				answer, err := stub.CreateSigningCertificate(ctx, request("", "alice@example.com"))
				if err != nil {
					t.Fatal(err)
				}
				s.certified(t, answer.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates())
			})
			t.Run(name+" "+curve.Params().Name+": a proof of somebody else's claim", func(t *testing.T) {
				_, err := stub.CreateSigningCertificate(t.Context(), request(s.alice(), "bob@example.com"))
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "reason=pop_mismatch") {
					t.Errorf("got %v", err)
				}
			})
		}
		t.Run(name+": trust bundle and configuration", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
			defer cancel()
			bundle, err := stub.GetTrustBundle(ctx, &fulcio.GetTrustBundleRequest{})
			if err != nil || len(bundle.GetChains()) == 0 || strings.Join(bundle.Chains[0].Certificates, "") != readFile(t, s.client("fulcio.pem")) {
				t.Errorf("%v, trust bundle %v", err, bundle)
			}
			config, err := stub.GetConfiguration(ctx, &fulcio.GetConfigurationRequest{})
			if err != nil || len(config.GetIssuers()) != 1 || config.Issuers[0].GetIssuerUrl() != s.issuer() || config.Issuers[0].GetChallengeClaim() != "email" {
				t.Errorf("%v, configuration %v", err, config)
			}
		})
	}
}

// TestRequestsOfSigstoreRs sends what sigstore-rs does over both APIs, and through TLS as well as plain.
func TestRequestsOfSigstoreRs(t *testing.T) {
	s := up(t)
	address, trusted := behindTLS(t, s)
	key := p256(t)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{EmailAddresses: []string{"alice@example.com"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	crlf := strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), "\n", "\r\n")
	der, _ := pem.Decode([]byte(publicPEM(t, key)))
	for _, base := range []string{s.url, "https://" + address} {
		ask := func(t *testing.T, path string, body any, want int) (string, http.Header) {
			t.Helper()
			text, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+path, bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Accept", "application/pem-certificate-chain")
			req.Header.Set("Authorization", "Bearer "+s.alice())
			resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}, ForceAttemptHTTP2: true, DisableKeepAlives: true}}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answer, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != want {
				t.Fatalf("%s %v: %s", resp.Status, err, answer)
			}
			return string(answer), resp.Header
		}
		scheme, _, _ := strings.Cut(base, ":")
		t.Run(scheme+": v1 with a DER key", func(t *testing.T) {
			answer, header := ask(t, "/api/v1/signingCert", map[string]any{
				"publicKey": map[string]any{"content": der.Bytes, "algorithm": "ecdsa"}, "signedEmailAddress": prove(t, key, "alice@example.com"),
			}, http.StatusCreated)
			if header.Get("Content-Type") != "application/pem-certificate-chain" {
				t.Errorf("content type %q", header.Get("Content-Type"))
			}
			s.certified(t, []string{answer})
		})
		t.Run(scheme+": v2 with a CSR whose lines end in CRLF", func(t *testing.T) {
			answer, header := ask(t, "/api/v2/signingCert", map[string]any{"certificateSigningRequest": base64.StdEncoding.EncodeToString([]byte(crlf))}, http.StatusOK)
			if header.Get("Content-Type") != "application/json" {
				t.Errorf("content type %q", header.Get("Content-Type"))
			}
			var decoded map[string]struct {
				Chain struct {
					Certificates []string `json:"certificates"`
				} `json:"chain"`
			}
			if err := json.Unmarshal([]byte(answer), &decoded); err != nil || len(decoded) != 1 {
				t.Fatalf("%v, %d members, sigstore-rs takes one: %s", err, len(decoded), answer)
			}
			s.certified(t, decoded["signedCertificateEmbeddedSct"].Chain.Certificates)
		})
	}
}
