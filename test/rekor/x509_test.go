package rekor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// x509Submissions signs with keys made for it, as PEM and in certificates.
func x509Submissions(t testing.TB, message []byte) map[string]object {
	t.Helper()
	fatal := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	fatal(err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	fatal(err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	fatal(err)
	docs := map[string]object{}
	for name, key := range map[string]crypto.Signer{"P-256": p256, "P-384 with SHA-256": p384, "RSA": rsaKey, "Ed25519": ed} {
		signed, opts := message, crypto.SignerOpts(crypto.Hash(0))
		if name != "Ed25519" {
			sum := sha256.Sum256(message)
			signed, opts = sum[:], crypto.SHA256
		}
		signature, err := key.Sign(rand.Reader, signed, opts)
		fatal(err)
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		fatal(err)
		template := &x509.Certificate{
			SerialNumber: big.NewInt(7), NotBefore: time.Unix(1_700_000_000, 0), NotAfter: time.Unix(1_700_000_600, 0),
			EmailAddresses: []string{"Alice@Example.com"}, URIs: []*url.URL{{Scheme: "https", Host: "ci.example.com", Path: "/Workflow@main"}},
		}
		cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		fatal(err)
		certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
		docs["x509 "+name] = rekord("x509", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), signature, message)
		docs["x509 "+name+", certificate"] = rekord("x509", certPEM, signature, message)
		docs["x509 "+name+", chain"] = withHash(rekord("x509", slices.Concat(certPEM, certPEM), signature, message), "data")
	}
	return docs
}

// module returns the directory of a module's source.
func module(t *testing.T, path string) string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		t.Fatalf("finding the source of %s: %v", path, err)
	}
	return strings.TrimSpace(string(out))
}
