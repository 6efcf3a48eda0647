package stack_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
	"github.com/attestry/attestry/pkg/sign"
	"github.com/attestry/attestry/pkg/stack"
	"github.com/attestry/attestry/pkg/verify"
)

// companyPKI signs certificate requests as openssl does with -copy_extensions copy.
type companyPKI struct {
	key  crypto.Signer
	root *x509.Certificate
}

func newCompanyPKI(t *testing.T) companyPKI {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Company root", Organization: []string{"Company"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte{1},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return companyPKI{key, root}
}

// sign returns the chain for a request, which change may spoil.
func (p companyPKI) sign(t *testing.T, csr []byte, change func(*x509.Certificate)) []*x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(csr)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := request.CheckSignature(); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: request.Subject, ExtraExtensions: request.Extensions,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().AddDate(2, 0, 0), SubjectKeyId: []byte{2},
	}
	if change != nil {
		change(template)
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, p.root, request.PublicKey, p.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{cert, p.root}
}

// request makes the instance's next CA key, or finds it, and asks for its certificate.
func request(t *testing.T, dir string) (uri string, csr []byte) {
	t.Helper()
	path, err := stack.NextCAKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	key, err := signer.OpenOrCreate(path, signer.P384)
	if err != nil {
		t.Fatal(err)
	}
	if csr, err = ca.CreateCSR(key, pkix.Name{CommonName: "Company signing CA", Organization: []string{"Company"}}); err != nil {
		t.Fatal(err)
	}
	return "file:" + path, csr
}

// TestAnotherCATakesOver changes to an intermediate of a company's PKI: at each step both chains are
// where clients look, and what was signed before goes on to verify.
func TestAnotherCATakesOver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var bundles [][]byte
	signs := func(s *stack.Stack, organization string) {
		t.Helper()
		token, err := s.Token("alice@example.com")
		if err != nil {
			t.Fatal(err)
		}
		signed, err := sign.Blob(t.Context(), sign.Options{
			SigningConfig: clientFile(t, dir, "signing_config.v0.2.json"), TrustedRoot: clientFile(t, dir, "trusted_root.json"), IdentityToken: token,
		}, []byte("hello"))
		if err != nil {
			t.Fatal(err)
		}
		if issuer := leafOf(t, signed.Bundle).Issuer.Organization; len(issuer) != 1 || issuer[0] != organization {
			t.Errorf("issued by %s, want %s", issuer, organization)
		}
		bundles = append(bundles, signed.Bundle)
	}
	checks := func(s *stack.Stack, chains int) {
		t.Helper()
		trusted := clientFile(t, dir, "trusted_root.json")
		var root struct{ CertificateAuthorities []json.RawMessage }
		if err := json.Unmarshal(trusted, &root); err != nil || len(root.CertificateAuthorities) != chains {
			t.Errorf("the trusted root has %d CAs, want %d (%v)", len(root.CertificateAuthorities), chains, err)
		}
		if got := trustBundle(t, s.URL()); got != chains {
			t.Errorf("the trust bundle has %d chains, want %d", got, chains)
		}
		verifier, err := verify.New(trusted)
		if err != nil {
			t.Fatal(err)
		}
		anyIssuer, err := verify.NewIdentity("", ".*", "alice@example.com", "") // the port, and so the issuer's URL, changes
		if err != nil {
			t.Fatal(err)
		}
		for i, bundle := range bundles {
			if _, err := verifier.Verify(bundle, verify.FromBytes([]byte("hello")), &verify.Policy{Identities: []verify.Identity{anyIssuer}}); err != nil {
				t.Errorf("bundle %d does not verify any more: %v", i+1, err)
			}
		}
	}

	s, stop := start(t, stack.Options{Dir: dir})
	signs(s, "attestry")
	checks(s, 1)
	pki := newCompanyPKI(t)
	uri, csr := request(t, dir)
	chain := pki.sign(t, csr, nil)
	stop()
	if warnings, err := stack.InstallCA(dir, stack.NewCA{Key: uri, Chain: chain}, time.Now()); err != nil || len(warnings) != 0 {
		t.Fatal(warnings, err)
	}

	s, stop = start(t, stack.Options{Dir: dir})
	signs(s, "attestry")
	checks(s, 2)
	stop()
	if found, err := stack.PublishedCAKey(dir, chain); err != nil || found != uri {
		t.Errorf("the published chain's key is %q, %v, want %q", found, err, uri)
	}
	if _, err := stack.InstallCA(dir, stack.NewCA{Key: uri, Chain: chain, Issue: true}, time.Now()); err != nil {
		t.Fatal(err)
	}
	// The first one's private keys are not needed any more.
	for _, name := range []string{"ca.pem", "ca-root.pem"} {
		if err := os.Remove(filepath.Join(dir, "keys", name)); err != nil {
			t.Fatal(err)
		}
	}

	s, stop = start(t, stack.Options{Dir: dir})
	signs(s, "Company")
	checks(s, 2)
	if _, err := os.Stat(filepath.Join(dir, "keys", "ca.pem")); err == nil {
		t.Error("the first CA's key was made again")
	}
	stop()
	s, _ = start(t, stack.Options{Dir: dir})
	checks(s, 2)
}

func TestWhatCannotBeInstalled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	_, stop := start(t, stack.Options{Dir: dir})
	stop()
	pki := newCompanyPKI(t)
	uri, csr := request(t, dir)
	first, err := os.ReadFile(filepath.Join(dir, "keys", "ca-chain.pem"))
	if err != nil {
		t.Fatal(err)
	}
	firstChain, err := ca.ParseChain(first)
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "k.pem")
	if _, err := signer.Create(outside, signer.P256); err != nil {
		t.Fatal(err)
	}
	own := "file:" + filepath.Join(dir, "keys", "ca.pem")
	ownKey, err := signer.Open(own, nil)
	if err != nil {
		t.Fatal(err)
	}
	ownCSR, err := ca.CreateCSR(ownKey, pkix.Name{CommonName: "again"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		key   string
		chain []*x509.Certificate
		want  string
	}{
		{"the one that issues", own, firstChain, "is installed already"},
		{"the key of the one that issues", own, pki.sign(t, ownCSR, nil), "make a new key"},
		{"another key", own, pki.sign(t, csr, nil), "not this certificate's key"},
		{"a key outside the instance", "file:" + outside, pki.sign(t, csr, nil), "where backups find it"},
		{"no root", uri, pki.sign(t, csr, nil)[:1], "self-signed root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := stack.InstallCA(dir, stack.NewCA{Key: tt.key, Chain: tt.chain, Issue: true}, time.Now()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "keys", "ca.json")); !os.IsNotExist(err) {
		t.Errorf("ca.json was written: %v", err)
	}
}

func clientFile(t *testing.T, dir, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "client", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// leafOf returns the certificate in a bundle.
func leafOf(t *testing.T, bundle []byte) *x509.Certificate {
	t.Helper()
	var parsed struct {
		VerificationMaterial struct{ Certificate struct{ RawBytes []byte } }
	}
	if err := json.Unmarshal(bundle, &parsed); err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(parsed.VerificationMaterial.Certificate.RawBytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// trustBundle counts the chains of /api/v2/trustBundle.
func trustBundle(t *testing.T, url string) int {
	t.Helper()
	resp, err := http.Get(url + "/api/v2/trustBundle")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Chains []json.RawMessage }
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return len(answer.Chains)
}

// parseOne returns the first certificate of a PEM text.
func parseOne(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("not PEM: %s", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
