package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// clock is a time that only a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func publicPEM(t *testing.T, pub crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

type authorityCert struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func issue(t *testing.T, parent *authorityCert, template *x509.Certificate) *authorityCert {
	t.Helper()
	key := newKey(t)
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	template.NotBefore, template.NotAfter = epoch.Add(-time.Hour), epoch.AddDate(10, 0, 0)
	template.Subject.Organization = []string{"example.com"}
	template.BasicConstraintsValid = true
	issuer, signer := template, key
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authorityCert{cert, key}
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
}

func tsaTemplate(critical bool) *x509.Certificate {
	oids, _ := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: "tsa"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: critical, Value: oids}},
	}
}

func caRecord(t *testing.T, url string) Record {
	t.Helper()
	root := issue(t, nil, caTemplate("root"))
	inter := issue(t, root, caTemplate("intermediate"))
	return Record{Kind: CA, URL: url, ChainPEM: string(certsPEM([]*x509.Certificate{inter.cert, root.cert}))}
}

func tsaRecord(t *testing.T, url string) Record {
	t.Helper()
	root := issue(t, nil, caTemplate("tsa root"))
	inter := issue(t, root, caTemplate("tsa intermediate"))
	leaf := issue(t, inter, tsaTemplate(true))
	return Record{Kind: TSA, URL: url + "/api/v1/timestamp", ChainPEM: string(certsPEM([]*x509.Certificate{leaf.cert, inter.cert, root.cert}))}
}

func logRecord(t *testing.T, kind Kind, url string) Record {
	t.Helper()
	return Record{Kind: kind, URL: url, PublicKeyPEM: publicPEM(t, newKey(t).Public()), Start: epoch}
}

func ed25519Record(t *testing.T, kind Kind, url string) Record {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Record{Kind: kind, URL: url, PublicKeyPEM: publicPEM(t, pub), Start: epoch}
}

const instance = "http://localhost:8420"

// oneOfEach is what `up` has.
func oneOfEach(t *testing.T) []Record {
	t.Helper()
	return []Record{
		caRecord(t, instance),
		logRecord(t, CTLog, instance+"/ct/2026"),
		logRecord(t, Rekor1, instance),
		logRecord(t, Rekor2, instance),
		tsaRecord(t, instance),
	}
}

func newInventory(t *testing.T, now func() time.Time, records ...Record) *Inventory {
	t.Helper()
	inv, err := OpenInventory(filepath.Join(t.TempDir(), "inventory.jsonl"), now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inv.Add(records...); err != nil {
		t.Fatal(err)
	}
	return inv
}
