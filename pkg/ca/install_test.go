package ca_test

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
)

func newKey(t *testing.T, alg signer.Algorithm) crypto.Signer {
	t.Helper()
	key, err := signer.New(alg)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func issueCA(t *testing.T, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestARequestAsksForWhatIsInstalled signs a request as it stands, as openssl does with -copy_extensions copy: the
// result is accepted without a warning.
func TestARequestAsksForWhatIsInstalled(t *testing.T) {
	now := time.Now()
	rootKey := newKey(t, signer.P384)
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(5, 0, 0),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte{1},
	}
	root = issueCA(t, root, root, rootKey.Public(), rootKey)
	for _, alg := range []signer.Algorithm{signer.P256, signer.P384, signer.RSA4096} {
		t.Run(string(alg), func(t *testing.T) {
			key := newKey(t, alg)
			csr, err := ca.CreateCSR(key, pkix.Name{CommonName: "issuing", Organization: []string{"Example"}})
			if err != nil {
				t.Fatal(err)
			}
			block, rest := pem.Decode(csr)
			if block == nil || len(rest) != 0 || block.Type != "CERTIFICATE REQUEST" {
				t.Fatalf("%s", csr)
			}
			request, err := x509.ParseCertificateRequest(block.Bytes)
			if err != nil || request.CheckSignature() != nil {
				t.Fatal(err, request.CheckSignature())
			}
			cert := issueCA(t, &x509.Certificate{
				SerialNumber: big.NewInt(2), Subject: request.Subject, ExtraExtensions: request.Extensions,
				NotBefore: now.Add(-time.Minute), NotAfter: now.AddDate(2, 0, 0), SubjectKeyId: []byte{2},
			}, root, request.PublicKey, rootKey)
			warnings, err := ca.CheckNew([]*x509.Certificate{cert, root}, key, nil, now)
			if err != nil || len(warnings) != 0 {
				t.Errorf("%v, %q", err, warnings)
			}
			if !cert.MaxPathLenZero || cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
				t.Errorf("path length %d, key usage %b", cert.MaxPathLen, cert.KeyUsage)
			}
		})
	}
	if _, err := ca.CreateCSR(rootKey, pkix.Name{}); err == nil {
		t.Error("a request without a subject was made")
	}
	if _, err := ca.CreateCSR(newKey(t, signer.Ed25519), pkix.Name{CommonName: "x"}); err == nil {
		t.Error("a request for an Ed25519 CA was made")
	}
}

// TestWhatAPKIGetsWrong has a PKI of three tiers, as companies do, sign badly.
func TestWhatAPKIGetsWrong(t *testing.T) {
	now := time.Now()
	rootKey, policyKey, key := newKey(t, signer.P384), newKey(t, signer.P384), newKey(t, signer.P256)
	template := func(name string, years int, id byte) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(int64(id)), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(years, 0, 0),
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte{id},
		}
	}
	root := template("root", 10, 1)
	root = issueCA(t, root, root, rootKey.Public(), rootKey)
	chain := func(policy, issuing func(*x509.Certificate)) []*x509.Certificate {
		p := template("policy CA", 5, 2)
		if policy != nil {
			policy(p)
		}
		policyCert := issueCA(t, p, root, policyKey.Public(), rootKey)
		i := template("issuing CA", 2, 3)
		i.ExtKeyUsage, i.MaxPathLenZero = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, true
		if issuing != nil {
			issuing(i)
		}
		return []*x509.Certificate{issueCA(t, i, policyCert, key.Public(), policyKey), policyCert, root}
	}
	good := chain(nil, nil)
	sameKey := chain(nil, nil)
	for _, tt := range []struct {
		name    string
		chain   []*x509.Certificate
		earlier [][]*x509.Certificate
		warning string
		err     string
	}{
		{"nothing", good, nil, "", ""},
		{"no extended key usage", chain(nil, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), nil, "", "ask for extendedKeyUsage=codeSigning"},
		{"a policy CA for servers", chain(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, nil), nil, "", "does not allow codeSigning below it"},
		{"a policy CA for code signing", chain(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, nil), nil, "", ""},
		{"a policy CA of path length 0", chain(func(c *x509.Certificate) { c.MaxPathLenZero = true }, nil), nil, "", "path length 0 does not allow the 1 below it"},
		{"no path length", chain(nil, func(c *x509.Certificate) { c.MaxPathLenZero = false }), nil, "pathlen:0", ""},
		{"longer than its issuer", chain(nil, func(c *x509.Certificate) { c.NotAfter = now.AddDate(7, 0, 0) }), nil, "", "ask for a validity inside it"},
		{"short", chain(nil, func(c *x509.Certificate) { c.NotAfter = now.AddDate(0, 1, 0) }), nil, "ask for a longer validity", ""},
		{"no CA", chain(nil, func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false }), nil, "", "ask for basicConstraints=critical,CA:TRUE,pathlen:0"},
		{"wrong key usage", chain(nil, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), nil, "", "ask for keyUsage=critical,keyCertSign,cRLSign"},
		{"names of its own only", chain(func(c *x509.Certificate) {
			c.PermittedEmailAddresses, c.PermittedDNSDomainsCritical = []string{"corp.example"}, true
		}, nil), nil, "signer@name.invalid", ""},
		{"a critical extension that nobody knows", chain(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}, nil), nil, "", "without critical extensions"},
		{"the same again", good, [][]*x509.Certificate{good}, "", "is installed already"},
		{"the same key", good, [][]*x509.Certificate{sameKey}, "", "make a new key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			warnings, err := ca.CheckNew(tt.chain, key, tt.earlier, now)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
			if all := strings.Join(warnings, "\n"); tt.warning == "" && tt.err == "" && all != "" || !strings.Contains(all, tt.warning) {
				t.Errorf("warnings %q, want %q", all, tt.warning)
			}
		})
	}
}

func TestAPairIsOpenedWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, certs []*x509.Certificate) []byte {
		var text []byte
		for _, c := range certs {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		if err := os.WriteFile(path(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, name := range []string{"a", "b"} {
		key, err := signer.Create(path(name+".key"), signer.P256)
		if err != nil {
			t.Fatal(err)
		}
		chain, err := ca.CreateHierarchy(ca.Hierarchy{RootKey: newKey(t, signer.P384), IssuingKey: key, Organization: name})
		if err != nil {
			t.Fatal(err)
		}
		whole := write(name+".pem", chain)
		if err := os.WriteFile(path(name+"-half.pem"), whole[:len(whole)-50], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key, chain, err := ca.OpenPair("file:"+path("a.key"), nil, path("a.pem"))
	if err != nil || len(chain) != 2 || ca.CheckChain(chain, key.Public(), time.Now()) != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]string{
		"the key is newer":     {"b.key", "a.pem"},
		"the chain is newer":   {"a.key", "b.pem"},
		"the chain is cut off": {"a.key", "a-half.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			key, chain, err := ca.OpenPair("file:"+path(pair[0]), nil, path(pair[1]))
			if key != nil || chain != nil || !errors.Is(err, ca.ErrHalfWritten) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, _, err := ca.OpenPair("file:"+path("none"), nil, path("nowhere")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "nowhere") || errors.Is(err, ca.ErrHalfWritten) {
		t.Errorf("files that are not there: %v", err)
	}
	one, chain, err := ca.OpenPair(signer.Ephemeral, nil, "")
	if err != nil || ca.CheckChain(chain, one.Public(), time.Now()) != nil {
		t.Errorf("ephemeral: %v", err)
	}
}
