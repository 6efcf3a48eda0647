package ca_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/signer"
	"github.com/attestry/attestry/pkg/ca"
)

func csrOf(t *testing.T, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	raw, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: raw})
}

// TestARootSignsTheRequestOfAnIssuingCA checks what comes out against what a PKI has to do: no warning is left.
func TestARootSignsTheRequestOfAnIssuingCA(t *testing.T) {
	now := time.Now()
	for _, alg := range []signer.Algorithm{signer.P256, signer.P384, signer.RSA4096} {
		t.Run(string(alg), func(t *testing.T) {
			rootKey, key := newKey(t, alg), newKey(t, alg)
			root, err := ca.CreateRoot(ca.NewRoot{Key: rootKey, Organization: "Example", NotBefore: now})
			if err != nil {
				t.Fatal(err)
			}
			csr, err := ca.CreateCSR(key, pkix.Name{Organization: []string{"Example"}, CommonName: "Example signing CA 1"})
			if err != nil {
				t.Fatal(err)
			}
			request, err := ca.ParseCSR(csr)
			if err != nil {
				t.Fatal(err)
			}
			chain, err := ca.SignCSR(request, root, rootKey, 0, now)
			if err != nil {
				t.Fatal(err)
			}
			if warnings, err := ca.CheckNew(chain, key, nil, now); err != nil || len(warnings) != 0 {
				t.Errorf("%v, %q", err, warnings)
			}
			issuing := chain[0]
			if !bytes.Equal(issuing.RawSubject, request.RawSubject) || !issuing.MaxPathLenZero || len(issuing.SerialNumber.Bytes()) != 20 || issuing.NotAfter.Sub(issuing.NotBefore) != 1095*24*time.Hour {
				t.Errorf("subject %s, path length %d, serial %x, valid from %s to %s", issuing.Subject, issuing.MaxPathLen, issuing.SerialNumber, issuing.NotBefore, issuing.NotAfter)
			}
			if root.MaxPathLen != 1 || len(root.ExtKeyUsage) != 0 || root.NotAfter.Sub(root.NotBefore) != 3650*24*time.Hour {
				t.Errorf("root: path length %d, extended key usage %v, valid from %s to %s", root.MaxPathLen, root.ExtKeyUsage, root.NotBefore, root.NotAfter)
			}
			for _, cert := range chain {
				for _, e := range cert.Extensions {
					if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 30}) {
						t.Errorf("%s has name constraints", cert.Subject)
					}
				}
			}
			// Near the root's end the certificate ends with it.
			late := root.NotAfter.Add(-24 * time.Hour)
			if chain, err = ca.SignCSR(request, root, rootKey, 0, late); err != nil || !chain[0].NotAfter.Equal(root.NotAfter) {
				t.Errorf("a day before the root's end: %v", err)
			}
		})
	}
}

func TestRequestsThatARootDoesNotSign(t *testing.T) {
	now := time.Now()
	rootKey, key := newKey(t, signer.P384), newKey(t, signer.P256)
	root, err := ca.CreateRoot(ca.NewRoot{Key: rootKey, Organization: "Example", NotBefore: now})
	if err != nil {
		t.Fatal(err)
	}
	subject := pkix.Name{Organization: []string{"Example"}, CommonName: "Example signing CA"}
	good := csrOf(t, key, &x509.CertificateRequest{Subject: subject})
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	extension := func(critical bool, value []byte, id ...int) *x509.CertificateRequest {
		return &x509.CertificateRequest{Subject: subject, ExtraExtensions: []pkix.Extension{{Id: id, Critical: critical, Value: value}}}
	}
	caTrue := []byte{0x30, 3, 1, 1, 0xff} // without a path length
	for _, tt := range []struct {
		name string
		csr  []byte
		err  string
	}{
		{"it is none", []byte("hello"), "not PEM"},
		{"two of them", append(bytes.Clone(good), good...), "beside the one PEM block"},
		{"over the limit", append(bytes.Repeat([]byte("#"), 16<<10), good...), "over 16384 bytes"},
		{"a certificate", rootPEM(root), `unexpected PEM block "CERTIFICATE"`},
		{"its key did not sign it", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}), "did not sign it"},
		{"an Ed25519 key", csrOf(t, newKey(t, signer.Ed25519), &x509.CertificateRequest{Subject: subject}), "must be ECDSA"},
		{"no organization", csrOf(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}), "exactly one organization"},
		{"two organizations", csrOf(t, key, &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"a", "b"}}}), "exactly one organization"},
		{"the public instance's", csrOf(t, key, &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"sigstore.dev"}}}), "public instance"},
		{"GitHub's", csrOf(t, key, &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"GitHub, Inc."}}}), "public instance"},
		{"text that hides", csrOf(t, key, &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"Example"}, CommonName: "a\u202eb"}}), "cannot be printed"},
		{"a CA that may make CAs", csrOf(t, key, extension(true, caTrue, 2, 5, 29, 19)), "extension 2.5.29.19"},
		{"server authentication", csrOf(t, key, extension(false, []byte{0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1}, 2, 5, 29, 37)), "extension 2.5.29.37"},
		{"a name", csrOf(t, key, &x509.CertificateRequest{Subject: subject, DNSNames: []string{"ca.example"}}), "extension 2.5.29.17"},
		{"name constraints", csrOf(t, key, extension(true, []byte{0x30, 0}, 2, 5, 29, 30)), "extension 2.5.29.30"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ca.ParseCSR(tt.csr); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v, want %q", err, tt.err)
			}
		})
	}

	request, err := ca.ParseCSR(good)
	if err != nil {
		t.Fatal(err)
	}
	constrained := issueCA(t, &x509.Certificate{
		SerialNumber: root.SerialNumber, Subject: root.Subject, NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: root.KeyUsage,
		BasicConstraintsValid: true, IsCA: true, SubjectKeyId: root.SubjectKeyId, PermittedEmailAddresses: []string{"example.com"},
	}, root, rootKey.Public(), rootKey)
	flat := issueCA(t, &x509.Certificate{
		SerialNumber: root.SerialNumber, Subject: root.Subject, NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: root.KeyUsage,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, SubjectKeyId: root.SubjectKeyId,
	}, root, rootKey.Public(), rootKey)
	sameName, err := ca.ParseCSR(csrOf(t, key, &x509.CertificateRequest{RawSubject: root.RawSubject}))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		request *x509.CertificateRequest
		root    *x509.Certificate
		key     crypto.Signer
		life    time.Duration
		now     time.Time
		err     string
	}{
		{"another key than the root's", request, root, key, 0, now, "not that of the root"},
		{"the root's subject", sameName, root, rootKey, 0, now, "look self-signed"},
		{"a root with name constraints", request, constrained, rootKey, 0, now, "name constraints"},
		{"a root that may have no CA below it", request, flat, rootKey, 0, now, "path length 0 does not allow"},
		{"beyond the root", request, root, rootKey, 3651 * 24 * time.Hour, now, "may not outlive it"},
		{"after the root's end", request, root, rootKey, 0, root.NotAfter.Add(time.Hour), "may not outlive it"},
		{"before the root's beginning", request, root, rootKey, time.Hour, root.NotBefore.Add(-time.Hour), "is valid from"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ca.SignCSR(tt.request, tt.root, tt.key, tt.life, tt.now); err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v, want %q", err, tt.err)
			}
		})
	}
	for _, r := range []ca.NewRoot{
		{Key: rootKey},
		{Key: rootKey, Organization: "sigstore.dev"},
		{Key: rootKey, Organization: "Example", Life: 31 * 366 * 24 * time.Hour},
		{Key: newKey(t, signer.Ed25519), Organization: "Example"},
	} {
		if _, err := ca.CreateRoot(r); err == nil {
			t.Errorf("a root of %q, %v, was made", r.Organization, r.Life)
		}
	}
}

func rootPEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// FuzzSigningRequest: what a root would sign is exactly what CheckChain takes.
func FuzzSigningRequest(f *testing.F) {
	rootKey, err := signer.New(signer.P256)
	if err != nil {
		f.Fatal(err)
	}
	now := time.Now()
	root, err := ca.CreateRoot(ca.NewRoot{Key: rootKey, Organization: "Example", NotBefore: now})
	if err != nil {
		f.Fatal(err)
	}
	key, err := signer.New(signer.P256)
	if err != nil {
		f.Fatal(err)
	}
	csr, err := ca.CreateCSR(key, pkix.Name{Organization: []string{"Example"}, CommonName: "x"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		request, err := ca.ParseCSR(text)
		if err != nil {
			return
		}
		chain, err := ca.SignCSR(request, root, rootKey, 0, now)
		if err != nil {
			return
		}
		if err := ca.CheckChain(chain, request.PublicKey, now); err != nil {
			t.Error(err)
		}
	})
}
