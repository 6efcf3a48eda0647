package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/sign"
)

// counting issues certificates for ten minutes, for whatever key, and counts them.
type counting struct {
	key    crypto.Signer
	now    time.Time
	issued int
}

func (c *counting) GetCertificate(_ context.Context, key sign.Keypair, _ *sign.CertificateProviderOptions) ([]byte, error) {
	c.issued++
	template := &x509.Certificate{SerialNumber: big.NewInt(int64(c.issued)), NotBefore: c.now, NotAfter: c.now.Add(10 * time.Minute)}
	return x509.CreateCertificate(rand.Reader, template, template, key.GetPublicKey(), c.key)
}

// A CA may give a token one certificate alone, so several signatures share theirs, but none that is about to expire.
func TestSeveralSignaturesShareOneCertificateWhileItIsGood(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &counting{key: key, now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}
	shared := &Shared{}
	use := func(at time.Duration) crypto.PublicKey {
		t.Helper()
		now := ca.now.Add(at)
		opts := sign.BundleOptions{CertificateProvider: ca}
		pair, err := Options{Shared: shared, Now: func() time.Time { return now }}.keypair(&opts)
		if err != nil {
			t.Fatal(err)
		}
		der, err := opts.CertificateProvider.GetCertificate(t.Context(), pair, nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if !leaf.PublicKey.(*ecdsa.PublicKey).Equal(pair.GetPublicKey()) {
			t.Fatal("the certificate is for another key")
		}
		return pair.GetPublicKey()
	}
	first := use(0)
	if second := use(7 * time.Minute); ca.issued != 1 || !first.(*ecdsa.PublicKey).Equal(second) {
		t.Errorf("%d certificates for two signatures", ca.issued)
	}
	if third := use(9 * time.Minute); ca.issued != 2 || first.(*ecdsa.PublicKey).Equal(third) {
		t.Errorf("%d certificates once the first was about to expire", ca.issued)
	}
}
