package ct

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	ctgo "github.com/google/certificate-transparency-go"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/transparency-dev/tessera/ctonly"
)

// precertificates returns certificates with poison in different places.
func precertificates(t testing.TB) (ders [][]byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	poison := pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}, Critical: true, Value: asn1.NullBytes}
	other := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte("value")}
	for _, extensions := range [][]pkix.Extension{{poison}, {poison, other}, {other, poison}, {other, poison, {Id: asn1.ObjectIdentifier{1, 2, 5}, Critical: true, Value: make([]byte, 300)}}} {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "x"},
			NotAfter: time.Unix(2_000_000_000, 0), ExtraExtensions: extensions,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		ders = append(ders, der)
	}
	return ders
}

// FuzzDissect compares the bytes that are cut out of a precertificate with what
// certificate-transparency-go decodes and encodes.
func FuzzDissect(f *testing.F) {
	for _, der := range precertificates(f) {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		got, err := dissect(der)
		if err != nil || !got.poisoned || got.poisonErr != nil {
			return
		}
		cert, err := ctx509.ParseCertificate(der)
		if ctx509.IsFatal(err) {
			t.Skip() // taken by the standard library alone
		}
		if !bytes.Equal(cert.RawTBSCertificate, got.tbs) || !bytes.Equal(cert.RawIssuer, got.issuerName) ||
			!bytes.Equal(cert.Signature, got.signature) || cert.SignatureAlgorithm != got.algorithm {
			t.Fatal("the certificate was taken apart otherwise")
		}
		// Extensions that are not DER (critical FALSE written out, …) come back as DER from there.
		if again, err := ctx509.BuildPrecertTBS(cert.RawTBSCertificate, nil); err == nil &&
			len(again) == len(got.tbsWithoutPoison) && !bytes.Equal(again, got.tbsWithoutPoison) {
			t.Fatalf("TBS\n%x, the reference has\n%x", got.tbsWithoutPoison, again)
		}
	})
}

func TestTBSWithoutPoisonIsTheReferences(t *testing.T) {
	for _, der := range precertificates(t) {
		got, err := dissect(der)
		if err != nil {
			t.Fatal(err)
		}
		want, err := ctx509.BuildPrecertTBS(got.tbs, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.tbsWithoutPoison, want) {
			t.Errorf("TBS\n%x, the reference has\n%x", got.tbsWithoutPoison, want)
		}
	}
}

// FuzzTileLeaf checks that what parses is whole, and that the reference reads the MerkleTreeLeaf
// and extra_data made from it.
func FuzzTileLeaf(f *testing.F) {
	f.Add(ctonly.Entry{Timestamp: 1, Certificate: []byte{1, 2}, FingerprintsChain: [][32]byte{{1}}}.LeafData(5))
	f.Add(ctonly.Entry{Timestamp: 1, IsPrecert: true, Certificate: []byte{1, 2}, Precertificate: []byte{3}, IssuerKeyHash: make([]byte, 32)}.LeafData(5))
	f.Fuzz(func(t *testing.T, raw []byte) {
		leaf, err := parseTileLeaf(raw)
		if err != nil {
			return
		}
		if len(leaf.timestamped)+len(leaf.precertificate)+32*len(leaf.chain) > len(raw) {
			t.Fatal("more out than in")
		}
		if len(leaf.signed) == 0 || leaf.precert && len(leaf.precertificate) == 0 {
			return // RFC 6962 has no empty certificates
		}
		extra, err := leaf.extraData(func([32]byte) ([]byte, error) { return []byte("issuer"), nil })
		if err != nil {
			return // over 2^24 bytes
		}
		entry, err := ctgo.RawLogEntryFromLeaf(0, &ctgo.LeafEntry{LeafInput: leaf.leafInput(), ExtraData: extra})
		if err != nil {
			t.Fatal(err)
		}
		if entry.Leaf.TimestampedEntry.Timestamp != leaf.timestampMillis || len(entry.Chain) != len(leaf.chain) {
			t.Fatal("the reference reads another entry")
		}
	})
}

func FuzzTilePath(f *testing.F) {
	for _, path := range []string{"0/000", "data/x001/x234/067.p/8", "63/999.p/255", "entries/000", "0/000.p/256", "0/x000/000", "//", "data/.p/1"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if tile, err := parseTilePath(path); err == nil {
			if tile.width < 0 || tile.width > 255 || tile.level > 63 || strings.Contains(path, "//") {
				t.Fatalf("%q gave %+v", path, tile)
			}
		}
	})
}

func FuzzAddChainBody(f *testing.F) {
	for _, body := range []string{`{"chain":["AAAA"]}`, `{"chain":[]}`, `{"chain":null}`, `[]`, `{"chain":["AA`, `{} {}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		chain, err := parseAddChain(strings.NewReader(body))
		if err != nil && chain != nil {
			t.Fatal("a chain beside an error")
		}
	})
}

// FuzzPlainLeaf checks that leaf and extra that parse give the TileLeaf of a log without extensions,
// which parses to the same.
func FuzzPlainLeaf(f *testing.F) {
	for _, entry := range []ctonly.Entry{
		{Timestamp: 1, Certificate: []byte{1, 2}, FingerprintsChain: [][32]byte{{1}}},
		{Timestamp: 1, IsPrecert: true, Certificate: []byte{1, 2}, Precertificate: []byte{3}, IssuerKeyHash: make([]byte, 32)},
	} {
		leaf, extra, err := plainLeaf(&entry)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(leaf, extra)
		f.Add(leaf[:len(leaf)-2], append([]byte{0, 0}, extra...))
		f.Add(append([]byte{0, 0}, entry.LeafData(7)...), []byte{})
	}
	f.Fuzz(func(t *testing.T, leaf, extra []byte) {
		parsed, err := parsePlainLeaf(leaf, extra)
		if err != nil {
			return
		}
		if !bytes.Equal(parsed.leafInput(), leaf) {
			t.Fatal("the leaf that is answered is not the one that is stored")
		}
		entry := ctonly.Entry{
			Timestamp: parsed.timestampMillis, IsPrecert: parsed.precert, Certificate: parsed.signed,
			Precertificate: parsed.precertificate, IssuerKeyHash: parsed.issuerKeyHash[:], FingerprintsChain: parsed.chain,
		}
		againLeaf, againExtra, err := plainLeaf(&entry)
		if err != nil || !bytes.Equal(againLeaf, leaf) || !bytes.Equal(againExtra, extra) {
			t.Fatalf("encoded again as %x and %x: %v", againLeaf, againExtra, err)
		}
	})
}

// FuzzRoots checks that the file is taken whole or not at all.
func FuzzRoots(f *testing.F) {
	var text []byte
	for _, der := range precertificates(f)[:2] {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	f.Add(text)
	f.Add(append([]byte("# roots\r\n"), text...))
	f.Add(text[:len(text)-30])
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		roots, err := ParseRoots(text)
		if err != nil {
			return
		}
		if len(roots) == 0 || len(roots) != bytes.Count(text, []byte("-----BEGIN ")) {
			t.Fatalf("%d roots from %q", len(roots), text)
		}
		var again []byte
		for _, der := range roots {
			again = append(again, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		if reparsed, err := ParseRoots(again); err != nil || len(reparsed) != len(roots) {
			t.Fatalf("written again, %d roots of %d: %v", len(reparsed), len(roots), err)
		}
	})
}
