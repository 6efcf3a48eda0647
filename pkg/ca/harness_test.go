package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"google.golang.org/grpc"

	"github.com/attestry/attestry/internal/server"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
	"github.com/attestry/attestry/pkg/ca/identity/identitytest"
	"github.com/attestry/attestry/pkg/ca/records"
)

// fakeLog signs SCTs with Google's CT library, so that nothing of ours vouches for itself. Its
// hooks make it misbehave.
type fakeLog struct {
	key *ecdsa.PrivateKey
	now func() time.Time

	mu     sync.Mutex // guards the fields below
	chains [][][]byte
	leaves [][32]byte // leaf hashes
	fail   func(ctx context.Context) error
	entry  func(*ct.LogEntry)                   // before signing
	sct    func(*ct.SignedCertificateTimestamp) // after signing
}

func (l *fakeLog) LogKey() crypto.PublicKey { return l.key.Public() }

func (l *fakeLog) AddPreChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return l.add(ctx, chain, ct.PrecertLogEntryType)
}

func (l *fakeLog) AddChain(ctx context.Context, chain [][]byte) ([]byte, error) {
	return l.add(ctx, chain, ct.X509LogEntryType)
}

func (l *fakeLog) add(ctx context.Context, chain [][]byte, kind ct.LogEntryType) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		if err := l.fail(ctx); err != nil {
			return nil, err
		}
	}
	l.chains = append(l.chains, chain)
	var parsed []*ctx509.Certificate
	for _, raw := range chain {
		cert, err := ctx509.ParseCertificate(raw)
		if ctx509.IsFatal(err) {
			return nil, err
		}
		parsed = append(parsed, cert)
	}
	if err := parsed[0].CheckSignatureFrom(parsed[1]); err != nil {
		return nil, fmt.Errorf("precertificate: %w", err)
	}
	leaf, err := ct.MerkleTreeLeafFromChain(parsed, kind, uint64(l.now().UnixMilli()))
	if err != nil {
		return nil, err
	}
	entry := ct.LogEntry{Leaf: *leaf}
	if l.entry != nil {
		l.entry(&entry)
	}
	leafHash, err := ct.LeafHashForLeaf(&entry.Leaf)
	if err != nil {
		return nil, err
	}
	l.leaves = append(l.leaves, leafHash)
	spki, err := x509.MarshalPKIXPublicKey(l.key.Public())
	if err != nil {
		return nil, err
	}
	sct := ct.SignedCertificateTimestamp{
		SCTVersion: ct.V1, LogID: ct.LogID{KeyID: sha256.Sum256(spki)},
		Timestamp: entry.Leaf.TimestampedEntry.Timestamp, Extensions: entry.Leaf.TimestampedEntry.Extensions,
	}
	input, err := ct.SerializeSCTSignatureInput(sct, entry)
	if err != nil {
		return nil, err
	}
	signed, err := cttls.CreateSignature(*l.key, cttls.SHA256, input)
	if err != nil {
		return nil, err
	}
	sct.Signature = ct.DigitallySigned(signed)
	if l.sct != nil {
		l.sct(&sct)
	}
	return cttls.Marshal(sct)
}

// world is a CA with everything around it, on loopback.
type world struct {
	t      testing.TB
	now    time.Time
	mu     sync.Mutex // guards now
	idp    *identitytest.Provider
	chain  []*x509.Certificate
	key    crypto.Signer
	log    *fakeLog
	ca     *ca.CA
	server *httptest.Server
	logs   *bytes.Buffer

	records *records.Store // nil without, see recorded
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// change adjusts what newWorld is about to build.
type change func(*world, *ca.Options, *identity.Issuer)

func newWorld(t testing.TB, changes ...change) *world {
	w := &world{t: t, now: time.Now().Truncate(time.Second), idp: identitytest.New(t), logs: new(bytes.Buffer)}
	root, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.key = identitytest.NewECKey(t)
	w.log = &fakeLog{key: identitytest.NewECKey(t), now: w.clock}
	w.chain, err = ca.CreateHierarchy(ca.Hierarchy{RootKey: root, IssuingKey: w.key, Organization: "Example", NotBefore: w.now.Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	issuer := identity.Issuer{URL: w.idp.URL, Audience: "sigstore", Type: identity.Email, AllowHTTP: true}
	options := ca.Options{Signer: w.key, Chain: w.chain, CT: w.log, Now: w.clock, Logger: slog.New(slog.NewTextHandler(&lockedWriter{w: w.logs}, nil))}
	for _, c := range changes {
		c(w, &options, &issuer)
	}
	options.Identity, err = identity.New(identity.Options{Issuers: []identity.Issuer{issuer}, Now: w.clock})
	if err != nil {
		t.Fatal(err)
	}
	if w.ca, err = ca.New(options); err != nil {
		t.Fatal(err)
	}
	h := ca.NewHandler(w.ca, ca.HandlerOptions{})
	g := grpc.NewServer(grpc.MaxRecvMsgSize(ca.MaxBody))
	h.RegisterGRPC(g)
	w.server = httptest.NewUnstartedServer(server.Duplex(g, h.Routes()))
	w.server.Config.Protocols = new(http.Protocols)
	w.server.Config.Protocols.SetHTTP1(true)
	w.server.Config.Protocols.SetUnencryptedHTTP2(true)
	w.server.Start()
	t.Cleanup(w.server.Close)
	return w
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// token is alice's identity token.
func (w *world) token() string { return w.idp.Token(w.clock(), nil) }

// clientKey is a client's key with the proofs it can make.
type clientKey struct {
	signer crypto.Signer
	hash   crypto.Hash
}

func newClientKey(t testing.TB, kind string) clientKey {
	var k clientKey
	var err error
	switch kind {
	case "P-256":
		k.hash = crypto.SHA256
		k.signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		k.hash = crypto.SHA384
		k.signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		k.hash = crypto.SHA512
		k.signer, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "Ed25519":
		_, k.signer, err = ed25519.GenerateKey(rand.Reader)
	default:
		k.hash = crypto.SHA256
		var bits int
		fmt.Sscanf(kind, "RSA-%d", &bits)
		k.signer, err = rsa.GenerateKey(rand.Reader, bits)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (k clientKey) prove(t testing.TB, challenge string) []byte {
	input := []byte(challenge)
	switch k.hash {
	case crypto.SHA256:
		sum := sha256.Sum256(input)
		input = sum[:]
	case crypto.SHA384:
		sum := sha512.Sum384(input)
		input = sum[:]
	case crypto.SHA512:
		sum := sha512.Sum512(input)
		input = sum[:]
	}
	proof, err := k.signer.Sign(rand.Reader, input, k.hash)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

func (k clientKey) der(t testing.TB) []byte {
	der, err := x509.MarshalPKIXPublicKey(k.signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (k clientKey) pem(t testing.TB) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der(t)}))
}

func (k clientKey) csr(t testing.TB, alg x509.SignatureAlgorithm) []byte {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: alg, EmailAddresses: []string{"mallory@example.com"}}, k.signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// v2Body is the request of sigstore-go.
func v2Body(t testing.TB, k clientKey, challenge string) map[string]any {
	return map[string]any{"publicKeyRequest": map[string]any{
		"publicKey":         map[string]any{"algorithm": "ECDSA", "content": k.pem(t)},
		"proofOfPossession": base64.StdEncoding.EncodeToString(k.prove(t, challenge)),
	}}
}

type reply struct {
	status int
	header http.Header
	body   string
}

// post sends body (a string as it is, anything else as JSON) with the token as bearer unless "".
func (w *world) post(path, token string, body any, header ...string) reply {
	w.t.Helper()
	text, ok := body.(string)
	if !ok {
		data, err := json.Marshal(body)
		if err != nil {
			w.t.Fatal(err)
		}
		text = string(data)
	}
	req, err := http.NewRequest(http.MethodPost, w.server.URL+path, strings.NewReader(text))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return w.do(req)
}

func (w *world) get(path string) reply {
	req, err := http.NewRequest(http.MethodGet, w.server.URL+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.do(req)
}

func (w *world) do(req *http.Request) reply {
	w.t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(body)}
}

// embedded returns the certificates of a v2 answer.
func embedded(t testing.TB, body string) []*x509.Certificate {
	t.Helper()
	var answer map[string]struct {
		Chain struct{ Certificates []string }
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	if len(answer) != 1 {
		t.Fatalf("answer has %d keys, sigstore-rs wants one: %s", len(answer), body)
	}
	return parsePEMs(t, answer["signedCertificateEmbeddedSct"].Chain.Certificates)
}

func parsePEMs(t testing.TB, texts []string) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for _, text := range texts {
		if strings.HasSuffix(text, "\n") {
			t.Error("PEM ends with a newline")
		}
		certs, err := ca.ParseChain([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, certs...)
	}
	return out
}
