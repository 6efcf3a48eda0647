package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"

	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// trust is a trusted root of one CA and one log, as sigstore-go sees it.
type trust struct {
	root.BaseTrustedMaterial
	w *world
}

func (t *trust) CTLogs() map[string]*root.TransparencyLog {
	spki, _ := x509.MarshalPKIXPublicKey(t.w.log.LogKey())
	id := sum256(spki)
	return map[string]*root.TransparencyLog{hex.EncodeToString(id): {
		ID: id, PublicKey: t.w.log.LogKey(), HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256,
		ValidityPeriodStart: t.w.chain[0].NotBefore,
	}}
}

func sum256(data []byte) []byte {
	h := crypto.SHA256.New()
	h.Write(data)
	return h.Sum(nil)
}

// checkClient does what sigstore-go does with a certificate, plus the chain.
func checkClient(t *testing.T, w *world, certs []*x509.Certificate) certificate.Summary {
	t.Helper()
	if len(certs) != 3 {
		t.Fatalf("%d certificates, want leaf, intermediate, root", len(certs))
	}
	leaf := certs[0]
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(certs[2])
	intermediates.AddCert(certs[1])
	// Clients take critical SANs of otherName as handled, too.
	leaf.UnhandledCriticalExtensions = nil
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: w.clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
	if err != nil {
		t.Fatal(err)
	}
	if err := verify.VerifySignedCertificateTimestamp(chains, 1, &trust{w: w}); err != nil {
		t.Fatal(err)
	}
	scts, err := x509util.ParseSCTsFromCertificate(leaf.Raw)
	if err != nil || len(scts) != 1 {
		t.Fatalf("%d SCTs (%v), sigstore-python wants exactly one", len(scts), err)
	}
	summary, err := certificate.SummarizeCertificate(leaf)
	if err != nil {
		t.Fatal(err)
	}
	return summary
}

func TestEveryWireGivesACertificateThatClientsAccept(t *testing.T) {
	w := newWorld(t)
	key := newClientKey(t, "P-256")
	email := "alice@example.com"
	b64 := base64.StdEncoding.EncodeToString
	conn, err := grpc.NewClient(strings.TrimPrefix(w.server.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := fulcio.NewCAClient(conn)
	viaGRPC := func(ctx context.Context, token string) func(t *testing.T) []*x509.Certificate {
		return func(t *testing.T) []*x509.Certificate {
			answer, err := client.CreateSigningCertificate(ctx, &fulcio.CreateSigningCertificateRequest{
				Credentials: &fulcio.Credentials{Credentials: &fulcio.Credentials_OidcIdentityToken{OidcIdentityToken: token}},
				Key: &fulcio.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulcio.PublicKeyRequest{
					PublicKey: &fulcio.PublicKey{Content: key.pem(t)}, ProofOfPossession: key.prove(t, email),
				}},
			})
			if err != nil {
				t.Fatal(err)
			}
			return parsePEMs(t, answer.GetSignedCertificateEmbeddedSct().GetChain().GetCertificates())
		}
	}
	v2 := func(token string, body any, header ...string) func(t *testing.T) []*x509.Certificate {
		return func(t *testing.T) []*x509.Certificate {
			r := w.post("/api/v2/signingCert", token, body, header...)
			if r.status != 200 || r.header.Get("Content-Type") != "application/json" {
				t.Fatalf("%d %s: %s", r.status, r.header.Get("Content-Type"), r.body)
			}
			return embedded(t, r.body)
		}
	}
	v1 := func(body any) func(t *testing.T) []*x509.Certificate {
		return func(t *testing.T) []*x509.Certificate {
			r := w.post("/api/v1/signingCert", w.token(), body)
			if r.status != 201 || r.header.Get("Content-Type") != "application/pem-certificate-chain" || r.header.Get("SCT") != "" {
				t.Fatalf("%d %v: %s", r.status, r.header, r.body)
			}
			if strings.TrimSpace(r.body) != r.body {
				t.Error("body has white space at its ends")
			}
			certs, err := ca.ParseChain([]byte(r.body))
			if err != nil {
				t.Fatal(err)
			}
			return certs
		}
	}
	withToken := func(body map[string]any) map[string]any {
		body["credentials"] = map[string]any{"oidcIdentityToken": w.token()}
		return body
	}
	unknownAlgorithm := v2Body(t, key, email)
	unknownAlgorithm["publicKeyRequest"].(map[string]any)["publicKey"].(map[string]any)["algorithm"] = "RSA"
	unknownAlgorithm["futureField"] = map[string]any{"x": 1}
	oneLine := v2Body(t, key, email)
	oneLine["publicKeyRequest"].(map[string]any)["publicKey"].(map[string]any)["content"] = "-----BEGIN PUBLIC KEY-----\n" + b64(key.der(t)) + "\n-----END PUBLIC KEY-----\n"
	csr := key.csr(t, x509.ECDSAWithSHA256)
	for _, tt := range []struct {
		name string
		get  func(t *testing.T) []*x509.Certificate
	}{
		{"cosign 2.x: v1, all keys always sent", v1(map[string]any{
			"publicKey": map[string]any{"content": b64([]byte(key.pem(t))), "algorithm": "ecdsa"}, "signedEmailAddress": b64(key.prove(t, email)), "certificateSigningRequest": nil})},
		{"sigstore-rs: v1 with a DER key", v1(map[string]any{"publicKey": map[string]any{"content": b64(key.der(t))}, "signedEmailAddress": b64(key.prove(t, "alice-id"))})},
		{"v1 with a CSR", v1(map[string]any{"publicKey": map[string]any{"content": "", "algorithm": ""}, "signedEmailAddress": nil, "certificateSigningRequest": b64(csr)})},
		{"sigstore-go: v2, algorithm unknown to the enum", v2(w.token(), unknownAlgorithm)},
		{"sigstore-python: v2 with a CSR, asking for PEM", v2(w.token(), map[string]any{"certificateSigningRequest": b64(csr)}, "Accept", "application/pem-certificate-chain")},
		{"sigstore-rs: v2 with a CSR with CRLF", v2(w.token(), map[string]any{"certificateSigningRequest": b64(bytes.ReplaceAll(csr, []byte("\n"), []byte("\r\n")))})},
		{"sigstore-js: v2, token in the body, sub signed", v2("", withToken(v2Body(t, key, "alice-id")))},
		{"sigstore-java: v2, PEM on one line", v2(w.token(), oneLine)},
		{"snake case and URL base64", v2(w.token(), map[string]any{"public_key_request": map[string]any{
			"public_key": map[string]any{"content": key.pem(t)}, "proof_of_possession": base64.RawURLEncoding.EncodeToString(key.prove(t, email))}})},
		{"a bearer scheme in lower case", v2("", v2Body(t, key, email), "Authorization", "bearer "+w.token())},
		{"a bare token", v2("", v2Body(t, key, email), "Authorization", w.token())},
		{"go-witness: gRPC, token in the message", viaGRPC(context.Background(), w.token())},
		{"gRPC, token in the metadata", viaGRPC(metadata.AppendToOutgoingContext(context.Background(), "oidcidentitytoken", w.token()), "")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			summary := checkClient(t, w, tt.get(t))
			if summary.SubjectAlternativeName != email || summary.Issuer != w.idp.URL {
				t.Errorf("SAN %q issuer %q", summary.SubjectAlternativeName, summary.Issuer)
			}
		})
	}
	t.Run("gRPC health", func(t *testing.T) {
		health := grpc_health_v1.NewHealthClient(conn)
		answer, err := health.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("%v %v", answer, err)
		}
	})
	t.Run("gRPC trust bundle and configuration", func(t *testing.T) {
		bundle, err := client.GetTrustBundle(context.Background(), &fulcio.GetTrustBundleRequest{})
		if err != nil || len(bundle.Chains) != 1 || len(bundle.Chains[0].Certificates) != 2 {
			t.Errorf("%v %v", bundle, err)
		}
		config, err := client.GetConfiguration(context.Background(), &fulcio.GetConfigurationRequest{})
		if err != nil || len(config.Issuers) != 1 || config.Issuers[0].GetIssuerUrl() != w.idp.URL || config.Issuers[0].ChallengeClaim != "email" {
			t.Errorf("%v %v", config, err)
		}
	})
	for _, leaf := range w.log.leaves {
		if !strings.Contains(w.logs.String(), "leaf_hash="+hex.EncodeToString(leaf[:])) {
			t.Errorf("no audit line names the log's leaf %x", leaf)
		}
	}
	if logs := w.logs.String(); strings.Contains(logs, "eyJ") || strings.Contains(logs, email) || !strings.Contains(logs, "leaf_hash=") {
		t.Errorf("audit lines must name the log entry and neither token nor subject: %.400s", logs)
	}
}

func TestEveryKeyKind(t *testing.T) {
	w := newWorld(t)
	for _, kind := range []string{"P-256", "P-384", "P-521", "Ed25519", "RSA-2048", "RSA-3072", "RSA-4096"} {
		t.Run(kind, func(t *testing.T) {
			key := newClientKey(t, kind)
			for _, challenge := range []string{"alice@example.com", "alice-id"} {
				r := w.post("/api/v2/signingCert", w.token(), v2Body(t, key, challenge))
				if r.status != 200 {
					t.Fatalf("%d %s", r.status, r.body)
				}
				leaf := embedded(t, r.body)[0]
				if !leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.signer.Public()) {
					t.Error("another key was certified")
				}
			}
			r := w.post("/api/v2/signingCert", w.token(), map[string]any{"certificateSigningRequest": key.csr(t, x509.UnknownSignatureAlgorithm)})
			if r.status != 200 {
				t.Errorf("CSR: %d %s", r.status, r.body)
			}
		})
	}
	t.Run("PKCS #1", func(t *testing.T) {
		key := newClientKey(t, "RSA-2048")
		body := v2Body(t, key, "alice-id")
		text := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(key.signer.Public().(*rsa.PublicKey))})
		body["publicKeyRequest"].(map[string]any)["publicKey"].(map[string]any)["content"] = string(text)
		if r := w.post("/api/v2/signingCert", w.token(), body); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
	t.Run("P-384 over SHA-256 only where it is permitted", func(t *testing.T) {
		key := newClientKey(t, "P-384")
		key.hash = crypto.SHA256
		if r := w.post("/api/v2/signingCert", w.token(), v2Body(t, key, "alice-id")); r.status != 400 {
			t.Errorf("%d %s", r.status, r.body)
		}
		old := newWorld(t, func(_ *world, o *ca.Options, _ *identity.Issuer) {
			o.Algorithms = append(ca.DefaultAlgorithms(), "ecdsa-sha2-256-nistp384")
		})
		if r := old.post("/api/v2/signingCert", old.token(), v2Body(t, key, "alice-id")); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
}

// fields is what section 4.1 of RFC 5280 puts into an extension.
type extensionFields struct {
	ID       asn1.ObjectIdentifier
	Critical bool `asn1:"optional"`
	Value    []byte
}

func TestCertificateProfile(t *testing.T) {
	w := newWorld(t, func(w *world, o *ca.Options, i *identity.Issuer) {
		i.Type, i.CIProvider = identity.CIProvider, "github-workflow"
	})
	claims := map[string]any{"sub": "repo:octo/w:ref:x"}
	for _, name := range []string{"job_workflow_ref", "sha", "event_name", "repository", "workflow", "ref", "job_workflow_sha", "runner_environment", "repository_id",
		"repository_owner", "repository_owner_id", "repository_visibility", "workflow_ref", "workflow_sha", "run_id", "run_attempt", "environment"} {
		claims[name] = "c-" + name
	}
	key := newClientKey(t, "P-256")
	r := w.post("/api/v2/signingCert", w.idp.Token(w.clock(), claims), v2Body(t, key, "repo:octo/w:ref:x"))
	if r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	certs := embedded(t, r.body)
	summary := checkClient(t, w, certs)
	leaf := certs[0]

	if leaf.Version != 3 || !bytes.Equal(leaf.RawSubject, []byte{0x30, 0}) || !bytes.Equal(leaf.RawIssuer, w.chain[0].RawSubject) {
		t.Errorf("version %d subject %x issuer %x", leaf.Version, leaf.RawSubject, leaf.RawIssuer)
	}
	if n := leaf.SerialNumber.BitLen(); n > 159 || n < 100 || leaf.SerialNumber.Sign() <= 0 {
		t.Errorf("serial number of %d bits", n)
	}
	if !leaf.NotBefore.Equal(w.clock()) || leaf.NotAfter.Sub(leaf.NotBefore) != 10*time.Minute {
		t.Errorf("valid %s to %s, now %s", leaf.NotBefore, leaf.NotAfter, w.clock())
	}
	if leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		t.Errorf("signature algorithm %s", leaf.SignatureAlgorithm)
	}

	utf8 := func(s string) []byte {
		der, err := asn1.MarshalWithParams(s, "utf8")
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	must := func(der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	spki := struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}{}
	if _, err := asn1.Unmarshal(key.der(t), &spki); err != nil {
		t.Fatal(err)
	}
	skid := sha1.Sum(spki.Key.Bytes)
	arc := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, n} }
	san := "https://github.com/c-job_workflow_ref"
	want := []extensionFields{
		{asn1.ObjectIdentifier{2, 5, 29, 15}, true, []byte{3, 2, 7, 0x80}},
		{asn1.ObjectIdentifier{2, 5, 29, 37}, false, must(asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 3}}))},
		{asn1.ObjectIdentifier{2, 5, 29, 14}, false, must(asn1.Marshal(skid[:]))},
		{asn1.ObjectIdentifier{2, 5, 29, 35}, false, append([]byte{0x30, 22, 0x80, 20}, w.chain[0].SubjectKeyId...)},
		{asn1.ObjectIdentifier{2, 5, 29, 17}, true, append([]byte{0x30, byte(len(san) + 2), 0x86, byte(len(san))}, san...)},
		{arc(1), false, []byte(w.idp.URL)},
		{arc(2), false, []byte("c-event_name")},
		{arc(3), false, []byte("c-sha")},
		{arc(4), false, []byte("c-workflow")},
		{arc(5), false, []byte("c-repository")},
		{arc(6), false, []byte("c-ref")},
		{arc(8), false, utf8(w.idp.URL)},
		{arc(9), false, utf8(san)},
		{arc(10), false, utf8("c-job_workflow_sha")},
		{arc(11), false, utf8("c-runner_environment")},
		{arc(12), false, utf8("https://github.com/c-repository")},
		{arc(13), false, utf8("c-sha")},
		{arc(14), false, utf8("c-ref")},
		{arc(15), false, utf8("c-repository_id")},
		{arc(16), false, utf8("https://github.com/c-repository_owner")},
		{arc(17), false, utf8("c-repository_owner_id")},
		{arc(18), false, utf8("https://github.com/c-workflow_ref")},
		{arc(19), false, utf8("c-workflow_sha")},
		{arc(20), false, utf8("c-event_name")},
		{arc(21), false, utf8("https://github.com/c-repository/actions/runs/c-run_id/attempts/c-run_attempt")},
		{arc(22), false, utf8("c-repository_visibility")},
		{arc(23), false, utf8("c-environment")},
		{arc(24), false, utf8("repo:octo/w:ref:x")},
		{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, false, nil},
	}
	if len(leaf.Extensions) != len(want) {
		t.Fatalf("%d extensions, want %d", len(leaf.Extensions), len(want))
	}
	for i, e := range leaf.Extensions {
		if !e.Id.Equal(want[i].ID) || e.Critical != want[i].Critical || want[i].Value != nil && !bytes.Equal(e.Value, want[i].Value) {
			t.Errorf("extension %d is %s critical %v %x, want %s critical %v %x", i, e.Id, e.Critical, e.Value, want[i].ID, want[i].Critical, want[i].Value)
		}
	}
	if summary.Extensions.GithubWorkflowTrigger != "c-event_name" || summary.Extensions.RunInvocationURI == "" || summary.SubjectAlternativeName != san {
		t.Errorf("sigstore-go reads %+v", summary)
	}

	// What was logged and what was issued differ in the last extension only, byte for byte.
	precert := w.log.chains[0][0]
	pre, err := ctx509.ParseCertificate(precert)
	if ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	bare, err := ctx509.RemoveCTPoison(pre.RawTBSCertificate)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ctx509.RemoveSCTList(leaf.RawTBSCertificate)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bare, other) {
		t.Error("precertificate and certificate differ in more than poison and SCT list")
	}
	if !bytes.Contains(precert, must(hex.DecodeString("060a2b06010401d6790204030101ff04020500"))) {
		t.Error("poison is not critical with a NULL value")
	}
	if n := len(w.log.chains[0]); n != 3 {
		t.Errorf("%d certificates were submitted, want precertificate, issuing, root", n)
	}
}

func TestOtherNameOfUsernames(t *testing.T) {
	w := newWorld(t, func(w *world, _ *ca.Options, i *identity.Issuer) {
		i.Type, i.SubjectDomain = identity.Username, "127.0.0.1"
	})
	key := newClientKey(t, "P-256")
	r := w.post("/api/v2/signingCert", w.token(), v2Body(t, key, "alice@example.com")) // cosign signs the email though the type is another
	if r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if got := checkClient(t, w, embedded(t, r.body)).SubjectAlternativeName; got != "alice-id!127.0.0.1" {
		t.Errorf("sigstore-go reads %q", got)
	}
}

func TestRSAAndP384IssuingKeys(t *testing.T) {
	for _, kind := range []string{"P-384", "RSA-2048"} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, func(w *world, o *ca.Options, _ *identity.Issuer) {
				issuing := newClientKey(t, kind).signer
				chain, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: newClientKey(t, kind).signer, IssuingKey: issuing, Organization: "Example", NotBefore: w.now})
				if err != nil {
					t.Fatal(err)
				}
				w.chain, o.Chain, o.Signer = chain, chain, issuing
			})
			r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
			if r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			checkClient(t, w, embedded(t, r.body))
		})
	}
}

func TestValidityStaysInsideTheChain(t *testing.T) {
	w := newWorld(t, func(_ *world, o *ca.Options, _ *identity.Issuer) { o.Backdate = time.Minute })
	issue := func() reply {
		return w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	}
	leaf := embedded(t, issue().body)[0]
	if !leaf.NotBefore.Equal(w.clock().Add(-time.Minute)) || leaf.NotAfter.Sub(leaf.NotBefore) != 10*time.Minute {
		t.Errorf("backdated: %s to %s", leaf.NotBefore, leaf.NotAfter)
	}
	w.advance(w.chain[0].NotAfter.Sub(w.clock()) - 3*time.Minute)
	if leaf = embedded(t, issue().body)[0]; !leaf.NotAfter.Equal(w.chain[0].NotAfter) {
		t.Errorf("valid until %s, issuing certificate until %s", leaf.NotAfter, w.chain[0].NotAfter)
	}
	if err := w.ca.Ready(context.Background()); err != nil {
		t.Error(err)
	}
	w.advance(3 * time.Minute)
	if r := issue(); r.status != 503 || !strings.Contains(r.body, "ca_expired") || r.header.Get("Retry-After") == "" {
		t.Errorf("expired issuing certificate: %d %s", r.status, r.body)
	}
	if err := w.ca.Ready(context.Background()); err == nil {
		t.Error("ready with an expired chain")
	}
}

func TestCertificatesWithoutLogAreAskedForExplicitly(t *testing.T) {
	w := newWorld(t, func(_ *world, o *ca.Options, _ *identity.Issuer) { o.CT, o.CTDisabled = nil, true })
	r := w.post("/api/v2/signingCert", w.token(), v2Body(t, newClientKey(t, "P-256"), "alice-id"))
	if r.status != 200 || !strings.Contains(r.body, `"signedCertificateDetachedSct"`) || !strings.Contains(r.body, `"signedCertificateTimestamp":""`) && !strings.Contains(r.body, `"signedCertificateTimestamp": ""`) {
		t.Errorf("%d %s", r.status, r.body)
	}
	r = w.post("/api/v1/signingCert", w.token(), map[string]any{"certificateSigningRequest": newClientKey(t, "P-256").csr(t, 0)})
	if r.status != 201 || r.header.Get("SCT") != "" {
		t.Errorf("%d %v", r.status, r.header)
	}
}

// BenchmarkIssue measures a certificate end to end inside the process, the client's key, proof
// and token being made beforehand and the log answering at once; RunParallel uses all cores.
func BenchmarkIssue(b *testing.B) {
	w := newWorld(b, func(_ *world, o *ca.Options, _ *identity.Issuer) { o.Logger = nil })
	key := newClientKey(b, "P-256")
	req := ca.Request{Token: w.token(), PublicKey: []byte(key.pem(b)), Proof: key.prove(b, "alice@example.com")}
	instant := newInstantLog(b, w)
	fast := newWorld(b, func(fw *world, o *ca.Options, _ *identity.Issuer) { o.CT, o.Logger = instant, nil })
	req.Token = fast.token()
	ctx := context.Background()
	if _, err := fast.ca.Issue(ctx, req); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := fast.ca.Issue(ctx, req); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}

func TestChainIsCheckedWhenLoaded(t *testing.T) {
	w := newWorld(t)
	key := newClientKey(t, "P-384").signer
	other := newClientKey(t, "P-256").signer
	make := func(template, parent *x509.Certificate, pub crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
		template.SerialNumber = w.chain[0].SerialNumber
		der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	good := func(change func(*x509.Certificate)) *x509.Certificate {
		c := &x509.Certificate{
			Subject: w.chain[0].Subject, NotBefore: w.clock().Add(-time.Hour), NotAfter: w.clock().Add(time.Hour),
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte{1, 2, 3},
		}
		if change != nil {
			change(c)
		}
		return c
	}
	root := good(func(c *x509.Certificate) { c.Subject = w.chain[1].Subject })
	root = make(root, root, key.Public(), key)
	intermediate := func(change func(*x509.Certificate)) []*x509.Certificate {
		c := good(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} })
		if change != nil {
			change(c)
		}
		return []*x509.Certificate{make(c, root, w.key.Public(), key), root}
	}
	self := good(nil)
	for _, tt := range []struct {
		name  string
		chain []*x509.Certificate
		key   crypto.Signer
		want  string // "" when accepted
	}{
		{"root and intermediate", intermediate(nil), w.key, ""},
		{"a self-signed issuing certificate alone", []*x509.Certificate{make(self, self, w.key.Public(), w.key)}, w.key, ""},
		{"none", nil, w.key, "no certificate"},
		{"another key", intermediate(nil), other, "not this certificate's key"},
		{"no root", intermediate(nil)[:1], w.key, "self-signed root"},
		{"order reversed", []*x509.Certificate{root, intermediate(nil)[0]}, w.key, "not this certificate's key"},
		{"an extra certificate", append(intermediate(nil), w.chain[1]), w.key, "certificate 2"},
		{"an intermediate without code signing", intermediate(func(c *x509.Certificate) { c.ExtKeyUsage = nil }), w.key, "codeSigning"},
		{"an intermediate for more than code signing", intermediate(func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }), w.key, "codeSigning"},
		{"no key usage", intermediate(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), w.key, "keyCertSign"},
		{"no CA", intermediate(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }), w.key, "CA:TRUE"},
		{"expired", intermediate(func(c *x509.Certificate) { c.NotAfter = w.clock().Add(-time.Second) }), w.key, "is valid from"},
		{"not valid yet", intermediate(func(c *x509.Certificate) { c.NotBefore = w.clock().Add(time.Minute) }), w.key, "is valid from"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			if tt.chain == nil {
				err = ca.CheckChain(nil, tt.key.Public(), w.clock())
			} else {
				err = ca.CheckChain(tt.chain, tt.key.Public(), w.clock())
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("an Ed25519 issuing key", func(t *testing.T) {
		_, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: key, IssuingKey: newClientKey(t, "Ed25519").signer, Organization: "x"})
		if err == nil || !strings.Contains(err.Error(), "must be ECDSA") {
			t.Error(err)
		}
	})
	t.Run("PEM with other text", func(t *testing.T) {
		for _, text := range []string{"", "hello", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})) + "tail", "-----BEGIN X-----\n-----END X-----\n", fmt.Sprint(root)} {
			if _, err := ca.ParseChain([]byte(text)); err == nil {
				t.Errorf("%.40q was accepted", text)
			}
		}
	})
}
