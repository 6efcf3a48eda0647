package ct_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/ct"
)

func TestChainsThatTheLogRefuses(t *testing.T) {
	ca, other := newAuthority(t, "a"), newAuthority(t, "b")
	twin := newAuthority(t, "a") // same names, other keys
	s := newSite(t, ca.root)
	precert, final := ca.leaf(poison), ca.leaf()
	notCA := ca.sign(ca.leafTemplate(), ca.issuer, ca.leafKey.Public(), ca.issuerKey)
	underLeaf := ca.sign(ca.leafTemplate(poison), notCA, ca.leafKey.Public(), ca.leafKey)
	flipped := bytes.Clone(precert)
	flipped[len(flipped)-1] ^= 1
	long := [][]byte{precert}
	for range 10 {
		long = append(long, ca.issuer.Raw)
	}
	big := ca.leaf(poison, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, 100<<10)})

	for name, tt := range map[string]struct {
		chain  [][]byte
		reason string
		kind   fault.Kind // Invalid when zero
	}{
		"nothing at all":                             {nil, "empty_chain", 0},
		"more than ten certificates":                 {long, "long_chain", 0},
		"an empty certificate":                       {[][]byte{{}, ca.issuer.Raw}, "bad_certificate", 0},
		"bytes that are no certificate":              {[][]byte{[]byte("hello"), ca.issuer.Raw}, "bad_certificate", 0},
		"trailing data behind the precertificate":    {[][]byte{append(bytes.Clone(precert), 0), ca.issuer.Raw}, "bad_certificate", 0},
		"trailing data behind an issuer":             {[][]byte{precert, append(bytes.Clone(ca.issuer.Raw), 0)}, "bad_certificate", 0},
		"a broken issuer":                            {[][]byte{precert, ca.issuer.Raw[:100]}, "bad_certificate", 0},
		"a certificate without poison":               {[][]byte{final, ca.issuer.Raw}, "not_precertificate", 0},
		"poison that is not critical":                {[][]byte{ca.leaf(pkix.Extension{Id: poisonOID, Value: asn1.NullBytes}), ca.issuer.Raw}, "bad_poison", 0},
		"poison whose value is not NULL":             {[][]byte{ca.leaf(pkix.Extension{Id: poisonOID, Critical: true, Value: []byte{4, 0}}), ca.issuer.Raw}, "bad_poison", 0},
		"a chain to a root that is not accepted":     {other.precertChain(), "no_root", 0},
		"no issuers, from an intermediate":           {[][]byte{precert}, "no_root", 0},
		"the root without the intermediate":          {[][]byte{precert, ca.root.Raw}, "bad_signature", 0},
		"issuers in the wrong order":                 {[][]byte{precert, ca.root.Raw, ca.issuer.Raw}, "bad_signature", 0},
		"a certificate that is not part of the path": {[][]byte{precert, ca.issuer.Raw, other.issuer.Raw}, "bad_signature", 0},
		"something above the root":                   {[][]byte{precert, ca.issuer.Raw, ca.root.Raw, ca.root.Raw, other.root.Raw}, "bad_signature", 0},
		"a signature with one bit changed":           {[][]byte{flipped, ca.issuer.Raw}, "bad_signature", 0},
		"an issuer of the right name with other key": {[][]byte{precert, twin.issuer.Raw}, "no_root", 0},
		"a leaf from an authority of the same name":  {[][]byte{twin.leaf(poison), ca.issuer.Raw}, "bad_signature", 0},
		"an issuer that is no authority":             {[][]byte{underLeaf.Raw, notCA.Raw, ca.issuer.Raw}, "not_a_ca", 0},
		"a certificate over the size limit":          {[][]byte{big, ca.issuer.Raw}, "certificate_too_large", fault.TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // again with what the first attempt may have cached
				_, err := s.handler.AddPreChain(t.Context(), tt.chain)
				wantKind := tt.kind
				if wantKind == 0 {
					wantKind = fault.Invalid
				}
				if err == nil || fault.ReasonOf(err) != tt.reason || fault.KindOf(err) != wantKind {
					t.Errorf("error %v with reason %q, want %q", err, fault.ReasonOf(err), tt.reason)
				}
				if _, err := s.handler.AddPreChain(t.Context(), ca.precertChain()); err != nil {
					t.Fatalf("a good chain is refused now: %v", err)
				}
			}
		})
	}
	stored, err := filepath.Glob(filepath.Join(s.dir, "issuers", "*"))
	if err != nil || len(stored) != 2 {
		t.Errorf("%d issuer files, want those of the good chains alone: %v", len(stored), err)
	}
}

func TestChainsThatTheLogTakes(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSite(t, ca.root, newAuthority(t, "b").root, ca.root)
	expired := ca.leafTemplate(poison)
	expired.NotBefore, expired.NotAfter = time.Unix(1_000_000_000, 0), time.Unix(1_000_000_600, 0)
	onlyPoison := &x509.Certificate{SerialNumber: expired.SerialNumber, ExtraExtensions: []pkix.Extension{poison}}
	for name, chain := range map[string][][]byte{
		"with the root":                 ca.precertChain(),
		"without the root":              ca.precertChain()[:2],
		"expired":                       {ca.sign(expired, ca.issuer, ca.leafKey.Public(), ca.issuerKey).Raw, ca.issuer.Raw},
		"from the root":                 {ca.sign(ca.leafTemplate(poison), ca.root, ca.leafKey.Public(), ca.rootKey).Raw},
		"from the root, with it":        {ca.sign(ca.leafTemplate(poison), ca.root, ca.leafKey.Public(), ca.rootKey).Raw, ca.root.Raw},
		"no other extension":            {ca.sign(onlyPoison, ca.issuer, ca.leafKey.Public(), ca.issuerKey).Raw, ca.issuer.Raw},
		"an unknown critical extension": {ca.leaf(poison, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}), ca.issuer.Raw},
	} {
		t.Run(name, func(t *testing.T) {
			certs := asn1Certs(chain)
			if len(certs) == 1 { // the reference client needs the issuer to build the leaf it verifies
				if _, err := s.handler.AddPreChain(t.Context(), chain); err != nil {
					t.Fatal(err)
				}
				certs = asn1Certs(append(chain, ca.root.Raw))
			}
			if _, err := s.reference().AddPreChain(t.Context(), certs); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := s.reference().AddChain(t.Context(), asn1Certs([][]byte{ca.root.Raw})); err != nil {
		t.Errorf("a root by itself: %v", err)
	}
}

func TestHandlerNeedsRootsThatMayIssue(t *testing.T) {
	ca := newAuthority(t, "a")
	l := openLog(t, t.TempDir(), newKey(t))
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	good := [][]byte{ca.root.Raw}
	for name, o := range map[string]ct.Options{
		"no log":                      {Roots: good, IssuerDir: t.TempDir()},
		"no roots":                    {Log: l, IssuerDir: t.TempDir()},
		"a root that does not parse":  {Log: l, Roots: [][]byte{{1, 2, 3}}, IssuerDir: t.TempDir()},
		"a root that is no authority": {Log: l, Roots: [][]byte{ca.leaf()}, IssuerDir: t.TempDir()},
		"no issuer directory":         {Log: l, Roots: good},
		"a file as issuer directory":  {Log: l, Roots: good, IssuerDir: file},
	} {
		if _, err := ct.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
