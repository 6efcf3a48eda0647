package ct_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	ctgo "github.com/google/certificate-transparency-go"
	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	cttls "github.com/google/certificate-transparency-go/tls"
	"github.com/prometheus/client_golang/prometheus"
	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestry/attestry/pkg/log"
	"github.com/attestry/attestry/pkg/log/ct"
	"github.com/attestry/attestry/pkg/log/tiles"
)

const origin = "ct.example.test/2026"

// authority is a root and an intermediate that issues what a test asks for.
type authority struct {
	t                           testing.TB
	rootKey, issuerKey, leafKey *ecdsa.PrivateKey
	root, issuer                *x509.Certificate
	serial                      int64
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t testing.TB, name string) *authority {
	a := &authority{t: t, rootKey: newKey(t), issuerKey: newKey(t), leafKey: newKey(t), serial: 100}
	a.root = a.sign(caTemplate(name+" root", 1), nil, a.rootKey.Public(), a.rootKey)
	intermediate := caTemplate(name+" issuer", 2)
	intermediate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	a.issuer = a.sign(intermediate, a.root, a.issuerKey.Public(), a.rootKey)
	return a
}

func caTemplate(name string, serial int64) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name, Organization: []string{"test"}},
		NotBefore: time.Unix(1_700_000_000, 0), NotAfter: time.Unix(2_000_000_000, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// sign issues template under parent, self-signed when parent is nil.
func (a *authority) sign(template, parent *x509.Certificate, public crypto.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

var (
	poisonOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}
	poison    = pkix.Extension{Id: poisonOID, Critical: true, Value: asn1.NullBytes}
)

// leafTemplate looks like a code-signing certificate of ten minutes.
func (a *authority) leafTemplate(extra ...pkix.Extension) *x509.Certificate {
	a.serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), NotBefore: time.Unix(1_790_000_000, 0), NotAfter: time.Unix(1_790_000_600, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		EmailAddresses: []string{"alice@example.test"},
		ExtraExtensions: append([]pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte("https://issuer.example.test")},
		}, extra...),
	}
}

func (a *authority) leaf(extra ...pkix.Extension) []byte {
	return a.sign(a.leafTemplate(extra...), a.issuer, a.leafKey.Public(), a.issuerKey).Raw
}

func (a *authority) precertChain() [][]byte {
	return [][]byte{a.leaf(poison), a.issuer.Raw, a.root.Raw}
}

// kinds are the two ways in which a CT log may write its leaves.
var kinds = map[string]log.Kind{"leaf-index": log.CT, "none": log.CTPlain}

// site is a CT log with all its storage, served over HTTP.
type site struct {
	t       testing.TB
	dir     string
	key     *ecdsa.PrivateKey
	log     *log.Log
	handler *ct.Handler
	url     string
}

// openLog opens a CT log in dir under key and closes it when the test ends.
func openLog(t testing.TB, dir string, key crypto.Signer) *log.Log {
	t.Helper()
	return openLogOf(t, log.CT, dir, key, time.Now)
}

func openLogOf(t testing.TB, kind log.Kind, dir string, key crypto.Signer, now func() time.Time) *log.Log {
	t.Helper()
	fence, err := log.OpenFileFence(filepath.Join(dir, "fence"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := tiles.Open(t.Context(), filepath.Join(dir, "tiles"), kind)
	if err != nil {
		t.Fatal(err)
	}
	l, err := log.Open(t.Context(), log.Options{
		Kind: kind, Label: "ct", Origin: origin, Name: origin, Dir: dir,
		Tree: tree, Key: key, Fence: fence, Logger: slog.New(slog.DiscardHandler), Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Close()
		tree.Close()
		fence.Close()
	})
	return l
}

func newSite(t testing.TB, roots ...*x509.Certificate) *site {
	t.Helper()
	return newSiteOf(t, log.CT, ct.Options{}, roots...)
}

// newSiteOf serves a log of kind; o may have what does not concern storage.
func newSiteOf(t testing.TB, kind log.Kind, o ct.Options, roots ...*x509.Certificate) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), key: newKey(t)}
	s.log = openLogOf(t, kind, s.dir, s.key, time.Now)
	o.Log, o.Roots, o.IssuerDir = s.log, rawCerts(roots...), filepath.Join(s.dir, "issuers")
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	var err error
	if s.handler, err = ct.New(o); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/ct/2026/", http.StripPrefix("/ct/2026", s.handler))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.url = server.URL + "/ct/2026"
	return s
}

// reference returns certificate-transparency-go's client with the log's key pinned: it
// verifies every SCT and STH that it is given.
func (s *site) reference() *client.LogClient {
	s.t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := client.New(s.url, http.DefaultClient, jsonclient.Options{PublicKeyDER: spki})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *site) get(path string) (int, http.Header, []byte) {
	s.t.Helper()
	response, err := http.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, response.Header, body
}

func rawCerts(certs ...*x509.Certificate) (raw [][]byte) {
	for _, cert := range certs {
		raw = append(raw, cert.Raw)
	}
	return raw
}

func asn1Certs(chain [][]byte) (certs []ctgo.ASN1Cert) {
	for _, der := range chain {
		certs = append(certs, ctgo.ASN1Cert{Data: der})
	}
	return certs
}

func TestReferenceClientWritesAndReadsTheLog(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { writeAndReadWithTheReference(t, kind) })
	}
}

func writeAndReadWithTheReference(t *testing.T, kind log.Kind) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, kind, ct.Options{}, ca.root)
	reference := s.reference()
	ctx := t.Context()

	var leaves []*ctgo.MerkleTreeLeaf
	var chains [][][]byte
	for i := range 7 {
		chain, entryType, add := ca.precertChain(), ctgo.PrecertLogEntryType, reference.AddPreChain
		if i%3 == 2 {
			chain[0], entryType, add = ca.leaf(), ctgo.X509LogEntryType, reference.AddChain
		}
		if i%2 == 1 {
			chain = chain[:2] // the root may be left out
		}
		sct, err := add(ctx, asn1Certs(chain)) // verifies the signature
		if err != nil {
			t.Fatalf("submission %d: %v", i, err)
		}
		again, err := add(ctx, asn1Certs(chain))
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(again) != fmt.Sprint(sct) {
			t.Errorf("submission %d again got another SCT:\n%v\n%v", i, again, sct)
		}
		leaf, err := ctgo.MerkleTreeLeafFromRawChain(asn1Certs(chain), entryType, sct.Timestamp)
		if err != nil {
			t.Fatal(err)
		}
		leaf.TimestampedEntry.Extensions = sct.Extensions
		if got := len(sct.Extensions) > 0; got != (kind == log.CT) {
			t.Errorf("submission %d: SCT with extensions %x", i, sct.Extensions)
		}
		leaves, chains = append(leaves, leaf), append(chains, chain)
	}

	sth, err := reference.GetSTH(ctx) // verifies the signature
	if err != nil {
		t.Fatal(err)
	}
	if sth.TreeSize != 7 {
		t.Fatalf("tree size %d, want 7: a duplicate must not be a leaf", sth.TreeSize)
	}
	for i, leaf := range leaves {
		hash, err := ctgo.LeafHashForLeaf(leaf)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := reference.GetProofByHash(ctx, hash[:], sth.TreeSize)
		if err != nil {
			t.Fatalf("proof of leaf %d: %v", i, err)
		}
		if answer.LeafIndex != int64(i) {
			t.Errorf("leaf %d is at index %d", i, answer.LeafIndex)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(i), sth.TreeSize, hash[:], answer.AuditPath, sth.SHA256RootHash[:]); err != nil {
			t.Errorf("leaf %d: %v", i, err)
		}
		both, err := reference.GetEntryAndProof(ctx, uint64(i), sth.TreeSize)
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(append([]byte{0}, both.LeafInput...)); got != hash {
			t.Errorf("leaf %d: get-entry-and-proof has leaf hash %x, want %x", i, got, hash)
		}
		if fmt.Sprint(both.AuditPath) != fmt.Sprint(answer.AuditPath) {
			t.Errorf("leaf %d: get-entry-and-proof has another path", i)
		}
	}

	entries, err := reference.GetEntries(ctx, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 7 {
		t.Fatalf("%d entries, want 7", len(entries))
	}
	for i, entry := range entries {
		if entry.Chain[0].Data == nil || !bytes.Equal(entry.Chain[0].Data, ca.issuer.Raw) || !bytes.Equal(entry.Chain[1].Data, ca.root.Raw) || len(entry.Chain) != 2 {
			t.Errorf("entry %d: the chain is not issuer and root", i)
		}
		switch {
		case i%3 == 2:
			if entry.X509Cert == nil || !bytes.Equal(entry.X509Cert.Raw, chains[i][0]) {
				t.Errorf("entry %d is not the certificate that was submitted", i)
			}
		case entry.Precert == nil || !bytes.Equal(entry.Precert.Submitted.Data, chains[i][0]):
			t.Errorf("entry %d is not the precertificate that was submitted", i)
		}
	}

	older, newer := s.rootAt(3), s.rootAt(7)
	path, err := reference.GetSTHConsistency(ctx, 3, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, 3, 7, path, older, newer); err != nil {
		t.Error(err)
	}
	roots, err := reference.GetAcceptedRoots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) != 1 || !bytes.Equal(roots[0].Data, ca.root.Raw) {
		t.Error("get-roots does not return the accepted root")
	}
}

func (s *site) rootAt(size uint64) []byte {
	s.t.Helper()
	root, err := s.log.RootAt(s.t.Context(), size)
	if err != nil {
		s.t.Fatal(err)
	}
	return root[:]
}

func TestTheInProcessSubmitterGivesAVerifiableSCT(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSite(t, ca.root)
	chain := ca.precertChain()
	raw, err := s.handler.AddPreChain(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	var sct ctgo.SignedCertificateTimestamp
	if rest, err := cttls.Unmarshal(raw, &sct); err != nil || len(rest) > 0 {
		t.Fatalf("not a serialized SCT: %v, %d bytes left", err, len(rest))
	}
	if err := s.reference().VerifySCTSignature(sct, ctgo.PrecertLogEntryType, asn1Certs(chain)); err != nil {
		t.Error(err)
	}
	if !s.key.PublicKey.Equal(s.handler.LogKey()) {
		t.Error("LogKey is not the log's")
	}
}

func TestConcurrentSubmissionsOfOnePrecertificateGetOneSCT(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { submitAHundredTimes(t, kind) })
	}
}

func submitAHundredTimes(t *testing.T, kind log.Kind) {
	ca := newAuthority(t, "a")
	s := newSiteOf(t, kind, ct.Options{}, ca.root)
	chain := ca.precertChain()
	scts := make([][]byte, 100)
	var wait sync.WaitGroup
	for i := range scts {
		wait.Go(func() {
			var err error
			if scts[i], err = s.handler.AddPreChain(t.Context(), chain); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	for _, sct := range scts {
		if !bytes.Equal(sct, scts[0]) {
			t.Fatal("the same precertificate got two SCTs")
		}
	}
	if size := s.log.Checkpoint().Size; size != 1 {
		t.Errorf("tree size %d, want 1", size)
	}
}

func TestPreIssuedPrecertificateIsLoggedForItsFinalIssuer(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSite(t, ca.root)
	preKey := newKey(t)
	template := caTemplate("a pre-issuer", 3)
	template.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 11129, 2, 4, 4}}
	preIssuer := ca.sign(template, ca.issuer, preKey.Public(), ca.issuerKey)
	precert := ca.sign(ca.leafTemplate(poison), preIssuer, ca.leafKey.Public(), preKey)
	chain := [][]byte{precert.Raw, preIssuer.Raw, ca.issuer.Raw, ca.root.Raw}
	if _, err := s.reference().AddPreChain(t.Context(), asn1Certs(chain)); err != nil {
		t.Fatal(err)
	}
}

// TestStaticTilesHashToTheSignedTree replays the log from static-ct paths alone: data tiles to
// leaf hashes, leaf hashes to hash tiles and to the checkpoint's root, fingerprints to issuers.
func TestStaticTilesHashToTheSignedTree(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSite(t, ca.root)
	const size = 256 + 5
	var wait sync.WaitGroup
	for range size {
		chain := ca.precertChain()
		wait.Go(func() {
			if _, err := s.handler.AddPreChain(t.Context(), chain); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()

	status, header, text := s.get("/checkpoint")
	if status != http.StatusOK || header.Get("Cache-Control") != "no-cache" {
		t.Errorf("checkpoint: status %d, cache %q", status, header.Get("Cache-Control"))
	}
	vkey, err := fnote.RFC6962VerifierString("https://"+origin, s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := fnote.NewRFC6962Verifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(text, note.VerifierList(verifier)); err != nil {
		t.Errorf("checkpoint %q: %v", text, err)
	}

	extent := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	issuers := map[string]bool{}
	for _, tile := range []struct {
		suffix string
		width  int
	}{{"000", 256}, {"001.p/5", 5}} {
		hashes := s.mustGet("/tile/0/" + tile.suffix)
		data := cryptobyte.String(s.mustGet("/tile/data/" + tile.suffix))
		for i := range tile.width {
			hash, index, fingerprints := readDataTileEntry(t, &data)
			if want := uint64(extent.End()); index != want {
				t.Fatalf("leaf %d carries leaf index %d", want, index)
			}
			if !bytes.Equal(hash, hashes[32*i:32*i+32]) {
				t.Fatalf("tile %s: entry %d hashes to %x, the hash tile has %x", tile.suffix, i, hash, hashes[32*i:32*i+32])
			}
			if err := extent.Append(hash, nil); err != nil {
				t.Fatal(err)
			}
			for ; len(fingerprints) > 0; fingerprints = fingerprints[32:] {
				issuers[hex.EncodeToString(fingerprints[:32])] = true
			}
		}
		if !data.Empty() || len(hashes) != 32*tile.width {
			t.Errorf("tile %s has trailing data", tile.suffix)
		}
	}
	root, err := extent.GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := s.log.Checkpoint().Root; !bytes.Equal(root, want[:]) {
		t.Errorf("the tiles' root is %x, the checkpoint's %x", root, want)
	}
	if got := s.mustGet("/tile/1/000.p/1"); len(got) != 32 {
		t.Errorf("tile/1/000.p/1 has %d bytes, want 32", len(got))
	}
	if len(issuers) != 2 {
		t.Errorf("%d issuers named, want intermediate and root", len(issuers))
	}
	for name := range issuers {
		der := s.mustGet("/issuer/" + name)
		if sum := sha256.Sum256(der); hex.EncodeToString(sum[:]) != name {
			t.Errorf("issuer/%s is another certificate", name)
		}
		stored, err := os.ReadFile(filepath.Join(s.dir, "issuers", name))
		if err != nil || !bytes.Equal(stored, der) {
			t.Errorf("the issuer is not on disk: %v", err)
		}
	}
}

func (s *site) mustGet(path string) []byte {
	s.t.Helper()
	status, _, body := s.get(path)
	if status != http.StatusOK {
		s.t.Fatalf("GET %s: %d %s", path, status, body)
	}
	return body
}

// readDataTileEntry parses a precertificate's TileLeaf as the specification writes it down.
func readDataTileEntry(t *testing.T, in *cryptobyte.String) (leafHash []byte, index uint64, fingerprints []byte) {
	t.Helper()
	whole := *in
	var kind uint16
	var tbs, extensions, precert, chain, extension cryptobyte.String
	var extensionType uint8
	ok := in.Skip(8) && in.ReadUint16(&kind) && kind == 1 && in.Skip(32) && in.ReadUint24LengthPrefixed(&tbs) && in.ReadUint16LengthPrefixed(&extensions)
	merkleLeaf := append([]byte{0, 0}, whole[:len(whole)-len(*in)]...)
	ok = ok && in.ReadUint24LengthPrefixed(&precert) && in.ReadUint16LengthPrefixed(&chain) &&
		extensions.ReadUint8(&extensionType) && extensionType == 0 && extensions.ReadUint16LengthPrefixed(&extension) && len(extension) == 5 && extensions.Empty()
	if !ok {
		t.Fatal("not a precertificate's TileLeaf")
	}
	for _, b := range extension {
		index = index<<8 | uint64(b)
	}
	return rfc6962.DefaultHasher.HashLeaf(merkleLeaf), index, chain
}

func TestIssuersAreServedByAReopenedLog(t *testing.T) {
	ca := newAuthority(t, "a")
	s := newSite(t, ca.root)
	if _, err := s.handler.AddPreChain(t.Context(), ca.precertChain()); err != nil {
		t.Fatal(err)
	}
	leftover := filepath.Join(s.dir, "issuers", ".tmp-1")
	if err := os.WriteFile(leftover, []byte("half a certif"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := ct.New(ct.Options{Log: s.log, Roots: [][]byte{ca.root.Raw}, IssuerDir: filepath.Join(s.dir, "issuers")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(leftover); !os.IsNotExist(err) {
		t.Error("what a crash left is still there")
	}
	get := func(path string) *httptest.ResponseRecorder {
		recorder := httptest.NewRecorder()
		again.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
		return recorder
	}
	if got := get("/ct/v1/get-entries?start=0&end=0"); got.Code != http.StatusOK {
		t.Errorf("get-entries: %d %s", got.Code, got.Body)
	}
	sum := sha256.Sum256(ca.issuer.Raw)
	path := filepath.Join(s.dir, "issuers", hex.EncodeToString(sum[:]))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	fresh, err := ct.New(ct.Options{Log: s.log, Roots: [][]byte{ca.root.Raw}, IssuerDir: filepath.Join(s.dir, "issuers")})
	if err != nil {
		t.Fatal(err)
	}
	again = fresh
	if got := get("/ct/v1/get-entries?start=0&end=0"); got.Code != http.StatusInternalServerError {
		t.Errorf("get-entries without the issuer's file: %d, want 500", got.Code)
	}
	if got := get("/issuer/" + hex.EncodeToString(sum[:])); got.Code != http.StatusNotFound {
		t.Errorf("issuer without its file: %d, want 404", got.Code)
	}
}

// query escapes what base64 has.
func query(pairs ...string) string {
	values := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		values.Set(pairs[i], pairs[i+1])
	}
	return "?" + values.Encode()
}

func BenchmarkAddPreChain(b *testing.B) {
	for name, kind := range kinds {
		b.Run(name, func(b *testing.B) { benchmarkAddPreChain(b, kind) })
	}
}

func benchmarkAddPreChain(b *testing.B, kind log.Kind) {
	ca := newAuthority(b, "a")
	s := newSiteOf(b, kind, ct.Options{}, ca.root)
	chains := make(chan [][]byte, b.N)
	for range b.N {
		chains <- ca.precertChain()
	}
	b.SetParallelism(16)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.handler.AddPreChain(b.Context(), <-chains); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
