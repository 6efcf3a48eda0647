package verify_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	prototrust "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	testSubject = "https://ci.example/repo/.github/workflows/release.yml@refs/heads/main"
	testIssuer  = "https://issuer.example"
	rekor1Name  = "rekor.example"
	rekor2Name  = "log2026-1.rekor.example"
)

// instance is a small Sigstore that issues what a test asks for, including what no honest one would.
type instance struct {
	t                     testing.TB
	now                   time.Time
	rootKey, interKey     *ecdsa.PrivateKey
	root, inter           *x509.Certificate
	ctKey, log1Key, log2  *ecdsa.PrivateKey
	tsaRootKey, tsaKey    *ecdsa.PrivateKey
	tsaRoot, tsaLeaf      *x509.Certificate
	interTemplate         func(*x509.Certificate)
	signerKey             *ecdsa.PrivateKey
	serial                int64
	entryTime, signedTime time.Time
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func certify(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	if tmpl.SerialNumber == nil {
		n := make([]byte, 15)
		if _, err := rand.Read(n); err != nil {
			t.Fatal(err)
		}
		tmpl.SerialNumber = new(big.Int).SetBytes(n)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newInstance(t testing.TB, tweaks ...func(*instance)) *instance {
	t.Helper()
	i := &instance{t: t, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	i.entryTime, i.signedTime = i.now.Add(5*time.Second), i.now.Add(5*time.Second)
	for _, k := range []**ecdsa.PrivateKey{&i.rootKey, &i.interKey, &i.ctKey, &i.log1Key, &i.log2, &i.tsaRootKey, &i.tsaKey, &i.signerKey} {
		*k = newKey(t, elliptic.P256())
	}
	for _, tweak := range tweaks {
		tweak(i)
	}
	start, end := i.now.AddDate(-1, 0, 0), i.now.AddDate(9, 0, 0)
	rootTmpl := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"example"}, CommonName: "root"}, NotBefore: start, NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	i.root = certify(t, rootTmpl, rootTmpl, i.rootKey.Public(), i.rootKey)
	interTmpl := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"example"}, CommonName: "intermediate"}, NotBefore: start, NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
	}
	if i.interTemplate != nil {
		i.interTemplate(interTmpl)
	}
	i.inter = certify(t, interTmpl, i.root, i.interKey.Public(), i.rootKey)
	tsaRootTmpl := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"example"}, CommonName: "tsa root"}, NotBefore: start, NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
	i.tsaRoot = certify(t, tsaRootTmpl, tsaRootTmpl, i.tsaRootKey.Public(), i.tsaRootKey)
	i.tsaLeaf = i.newTSALeaf(nil)
	return i
}

func (i *instance) newTSALeaf(tweak func(*x509.Certificate)) *x509.Certificate {
	eku, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		i.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"example"}, CommonName: "tsa"}, NotBefore: i.now.AddDate(-1, 0, 0), NotAfter: i.now.AddDate(5, 0, 0),
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: eku}},
	}
	if tweak != nil {
		tweak(tmpl)
	}
	return certify(i.t, tmpl, i.tsaRoot, i.tsaKey.Public(), i.tsaRootKey)
}

func spki(t testing.TB, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func keyID(t testing.TB, key crypto.PublicKey) []byte {
	sum := sha256.Sum256(spki(t, key))
	return sum[:]
}

func (i *instance) logInstance(key *ecdsa.PrivateKey, baseURL string) *prototrust.TransparencyLogInstance {
	return &prototrust.TransparencyLogInstance{
		BaseUrl: baseURL, HashAlgorithm: protocommon.HashAlgorithm_SHA2_256,
		PublicKey: &protocommon.PublicKey{
			RawBytes: spki(i.t, key.Public()), KeyDetails: protocommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
			ValidFor: &protocommon.TimeRange{Start: timestamppb.New(i.now.AddDate(-1, 0, 0))},
		},
		LogId: &protocommon.LogId{KeyId: keyID(i.t, key.Public())},
	}
}

func chainOf(certs ...*x509.Certificate) *protocommon.X509CertificateChain {
	c := &protocommon.X509CertificateChain{}
	for _, cert := range certs {
		c.Certificates = append(c.Certificates, &protocommon.X509Certificate{RawBytes: cert.Raw})
	}
	return c
}

// trustedRoot is the instance's trusted root, both Rekor logs and the TSA in it, after tweaks.
func (i *instance) trustedRoot(tweaks ...func(*prototrust.TrustedRoot)) []byte {
	tr := i.protoRoot()
	for _, tweak := range tweaks {
		tweak(tr)
	}
	data, err := protojson.Marshal(tr)
	if err != nil {
		i.t.Fatal(err)
	}
	return data
}

func (i *instance) protoRoot() *prototrust.TrustedRoot {
	window := func() *protocommon.TimeRange {
		return &protocommon.TimeRange{Start: timestamppb.New(i.now.AddDate(-1, 0, 0))}
	}
	return &prototrust.TrustedRoot{
		MediaType: "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		Tlogs:     []*prototrust.TransparencyLogInstance{i.logInstance(i.log2, "https://"+rekor2Name), i.logInstance(i.log1Key, "https://"+rekor1Name)},
		Ctlogs:    []*prototrust.TransparencyLogInstance{i.logInstance(i.ctKey, "https://ct.example")},
		CertificateAuthorities: []*prototrust.CertificateAuthority{{
			Uri: "https://ca.example", CertChain: chainOf(i.inter, i.root), ValidFor: window(),
		}},
		TimestampAuthorities: []*prototrust.CertificateAuthority{{
			Uri: "https://tsa.example/api/v1/timestamp", CertChain: chainOf(i.tsaLeaf, i.tsaRoot), ValidFor: window(),
		}},
	}
}

// order is what to sign and how.
type order struct {
	version   int    // minor; 0 means 3. Below 3 a certificate comes with its intermediate
	statement []byte // DSSE when set
	artifact  []byte
	log       string // "v1", "v1-intoto", "v2", "v2-dsse", or "" for no entry
	noTSA     bool
	noPromise bool    // of v1 entries
	noProof   bool    // likewise
	withKey   bool    // sign with the bare key, no certificate
	signer    *signer // nil: i.signerKey
	stranger  *signer // another key of the kind

	leaf      func(*x509.Certificate)                // template before signing
	leafPub   crypto.PublicKey                       // certify another key
	caKey     *ecdsa.PrivateKey                      // signs the leaf in the intermediate's name
	sct       func(millis *uint64, signature []byte) // what the CT log signs; may change the signature after
	sctExts   []byte
	noSCT     bool
	sctIssuer []byte                      // SubjectPublicKeyInfo that the CT log signs
	sctList   func([]byte) []byte         // the TLS list before it goes into the certificate
	body      func([]byte) []byte         // leaf bytes before logging
	entryTime time.Time                   // zero: i.entryTime
	token     func(*timestamp.Timestamp)  // before signing
	tsaLeaf   *x509.Certificate           // signs the token
	origin    string                      // of the checkpoint
	tree      func(string) string         // the text of the checkpoint before signing
	logKey    *ecdsa.PrivateKey           // signs the checkpoint with the log's hint
	signature func([]byte) []byte         // before logging and timestamping
	after     func(b *protobundle.Bundle) // the finished bundle
}

// signer is a key with the algorithm that it signs with.
type signer struct {
	name string
	key  crypto.Signer
	hash crypto.Hash // of the artifact, or of the pre-authentication encoding
}

// details is the protobuf-specs name of the algorithm in Rekor v2 entries of a kind.
func (s *signer) details(dsse bool) string {
	switch k := s.key.Public().(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P384() {
			return "PKIX_ECDSA_P384_SHA_384"
		}
		return "PKIX_ECDSA_P256_SHA_256"
	case ed25519.PublicKey:
		if dsse {
			return "PKIX_ED25519"
		}
		return "PKIX_ED25519_PH"
	}
	return "PKIX_RSA_PKCS1V15_2048_SHA256"
}

// sign signs message; of DSSE, Ed25519 signs the message itself.
func (s *signer) sign(t testing.TB, message []byte, dsse bool) []byte {
	t.Helper()
	data, opts := hashed(s.hash, message), crypto.SignerOpts(s.hash)
	if _, ed := s.key.(ed25519.PrivateKey); ed {
		if opts = (&ed25519.Options{Hash: s.hash}); dsse {
			data, opts = message, crypto.Hash(0)
		}
	}
	sig, err := s.key.Sign(rand.Reader, data, opts)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func hashed(h crypto.Hash, data []byte) []byte {
	w := h.New()
	w.Write(data)
	return w.Sum(nil)
}

// algorithms returns the names of a hash in bundles, in Rekor v1 and in Rekor v2.
func algorithms(h crypto.Hash) (protocommon.HashAlgorithm, string, string) {
	switch h {
	case crypto.SHA384:
		return protocommon.HashAlgorithm_SHA2_384, "sha384", "SHA2_384"
	case crypto.SHA512:
		return protocommon.HashAlgorithm_SHA2_512, "sha512", "SHA2_512"
	}
	return protocommon.HashAlgorithm_SHA2_256, "sha256", "SHA2_256"
}

var oidIssuer1 = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}
var oidIssuer2 = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}

func issuerExtensions(t testing.TB, v1, v2 string) []pkix.Extension {
	der, err := asn1.MarshalWithParams(v2, "utf8")
	if err != nil {
		t.Fatal(err)
	}
	return []pkix.Extension{{Id: oidIssuer1, Value: []byte(v1)}, {Id: oidIssuer2, Value: der}}
}

func (i *instance) sign(key *ecdsa.PrivateKey, data []byte) []byte {
	sum := sha256.Sum256(data)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		i.t.Fatal(err)
	}
	return sig
}

// certificate issues a leaf with an embedded SCT.
func (i *instance) certificate(o order) *x509.Certificate {
	uri, err := url.Parse(testSubject)
	if err != nil {
		i.t.Fatal(err)
	}
	i.serial++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(i.serial), URIs: []*url.URL{uri}, NotBefore: i.now, NotAfter: i.now.Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: issuerExtensions(i.t, testIssuer, testIssuer),
	}
	if o.leaf != nil {
		o.leaf(tmpl)
	}
	pub := o.leafPub
	if pub == nil {
		pub = i.signerOf(o).key.Public()
	}
	caKey := i.interKey
	if o.caKey != nil {
		caKey = o.caKey
	}
	parent := *i.inter
	parent.PublicKey = caKey.Public() // or CreateCertificate would object
	pre := certify(i.t, tmpl, &parent, pub, caKey)
	if o.noSCT {
		return pre
	}
	millis := uint64(i.now.UnixMilli())
	if o.sct != nil {
		o.sct(&millis, nil)
	}
	issuerHash := sha256.Sum256(i.inter.RawSubjectPublicKeyInfo)
	if o.sctIssuer != nil {
		issuerHash = sha256.Sum256(o.sctIssuer)
	}
	tbs := pre.RawTBSCertificate
	in := binary.BigEndian.AppendUint64([]byte{0, 0}, millis)
	in = append(in, 0, 1)
	in = append(in, issuerHash[:]...)
	in = append(in, byte(len(tbs)>>16), byte(len(tbs)>>8), byte(len(tbs)))
	in = append(in, tbs...)
	in = binary.BigEndian.AppendUint16(in, uint16(len(o.sctExts)))
	in = append(in, o.sctExts...)
	sig := i.sign(i.ctKey, in)
	if o.sct != nil {
		o.sct(&millis, sig)
	}
	sct := append([]byte{0}, keyID(i.t, i.ctKey.Public())...)
	sct = binary.BigEndian.AppendUint64(sct, millis)
	sct = binary.BigEndian.AppendUint16(sct, uint16(len(o.sctExts)))
	sct = append(sct, o.sctExts...)
	sct = append(sct, 4, 3)
	sct = binary.BigEndian.AppendUint16(sct, uint16(len(sig)))
	sct = append(sct, sig...)
	list := binary.BigEndian.AppendUint16(nil, uint16(len(sct)+2))
	list = binary.BigEndian.AppendUint16(list, uint16(len(sct)))
	list = append(list, sct...)
	if o.sctList != nil {
		list = o.sctList(list)
	}
	ext, err := asn1.Marshal(list)
	if err != nil {
		i.t.Fatal(err)
	}
	tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: ext})
	return certify(i.t, tmpl, &parent, pub, caKey)
}

func (i *instance) signerOf(o order) *signer {
	if o.signer != nil {
		return o.signer
	}
	return &signer{"P-256", i.signerKey, crypto.SHA256}
}

// issue makes a bundle as JSON.
func (i *instance) issue(o order) []byte {
	i.t.Helper()
	data, err := protojson.Marshal(i.bundle(o))
	if err != nil {
		i.t.Fatal(err)
	}
	return data
}

func (i *instance) bundle(o order) *protobundle.Bundle {
	i.t.Helper()
	s := i.signerOf(o)
	b := &protobundle.Bundle{MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json", VerificationMaterial: &protobundle.VerificationMaterial{}}
	if o.version == 1 || o.version == 2 {
		b.MediaType = fmt.Sprintf("application/vnd.dev.sigstore.bundle+json;version=0.%d", o.version)
	}
	vm := b.VerificationMaterial
	verifierDER, pemType := spki(i.t, s.key.Public()), "PUBLIC KEY"
	if o.withKey {
		vm.Content = &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{Hint: "test"}}
	} else {
		leaf := i.certificate(o)
		verifierDER, pemType = leaf.Raw, "CERTIFICATE"
		vm.Content = &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: verifierDER}}
		if o.version == 1 || o.version == 2 {
			vm.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: chainOf(leaf, i.inter)}
		}
	}
	signed := o.artifact
	if o.statement != nil {
		signed = fmt.Appendf(nil, "DSSEv1 28 application/vnd.in-toto+json %d %s", len(o.statement), o.statement)
	}
	sig := s.sign(i.t, signed, o.statement != nil)
	if o.signature != nil {
		sig = o.signature(sig)
	}
	digest := hashed(s.hash, signed)
	algorithm, _, _ := algorithms(s.hash)
	if o.statement != nil {
		b.Content = &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: o.statement, PayloadType: "application/vnd.in-toto+json", Signatures: []*protodsse.Signature{{Sig: sig}},
		}}
	} else {
		b.Content = &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: algorithm, Digest: digest}, Signature: sig,
		}}
	}
	verifierPEM := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: verifierDER})
	if o.log != "" {
		vm.TlogEntries = []*protorekor.TransparencyLogEntry{i.entry(o, sig, digest, verifierDER, verifierPEM)}
	}
	if !o.noTSA {
		vm.TimestampVerificationData = &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: i.timestamp(o, sig)}},
		}
	}
	if o.after != nil {
		o.after(b)
	}
	return b
}

func (i *instance) timestamp(o order, sig []byte) []byte {
	sum := sha256.Sum256(sig)
	ts := &timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: i.signedTime,
		Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}, SerialNumber: big.NewInt(7),
	}
	if o.token != nil {
		o.token(ts)
	}
	leaf := o.tsaLeaf
	if leaf == nil {
		leaf = i.tsaLeaf
	}
	der, err := ts.CreateResponseWithOpts(leaf, i.tsaKey, crypto.SHA256)
	if err != nil {
		i.t.Fatal(err)
	}
	return der
}

func (i *instance) entry(o order, sig, digest, verifierDER, verifierPEM []byte) *protorekor.TransparencyLogEntry {
	b64 := base64.StdEncoding.EncodeToString
	field := "x509Certificate"
	if o.withKey {
		field = "publicKey"
	}
	verifier := fmt.Sprintf(`{"keyDetails":"%s","%s":{"rawBytes":"%s"}}`, i.signerOf(o).details(o.log == "v2-dsse"), field, b64(verifierDER))
	_, v1Algorithm, v2Algorithm := algorithms(i.signerOf(o).hash)
	payloadHash := sha256.Sum256(o.statement)
	var body, kind, version string
	switch {
	case o.log == "v1" && o.statement == nil:
		kind, version = "hashedrekord", "0.0.1"
		body = fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"%s","value":"%x"}},"signature":{"content":"%s","publicKey":{"content":"%s"}}}}`, v1Algorithm, digest, b64(sig), b64(verifierPEM))
	case o.log == "v1-intoto":
		kind, version = "intoto", "0.0.2"
		body = fmt.Sprintf(`{"apiVersion":"0.0.2","kind":"intoto","spec":{"content":{"envelope":{"payloadType":"application/vnd.in-toto+json","signatures":[{"publicKey":"%s","sig":"%s"}]},"hash":{"algorithm":"sha256","value":"%x"},"payloadHash":{"algorithm":"sha256","value":"%x"}}}}`,
			b64(verifierPEM), b64([]byte(b64(sig))), payloadHash, payloadHash)
	case o.log == "v1":
		kind, version = "dsse", "0.0.1"
		body = fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"dsse","spec":{"envelopeHash":{"algorithm":"sha256","value":"%x"},"payloadHash":{"algorithm":"sha256","value":"%x"},"signatures":[{"signature":"%s","verifier":"%s"}]}}`, payloadHash, payloadHash, b64(sig), b64(verifierPEM))
	case o.log == "v2-dsse":
		kind, version = "dsse", "0.0.2"
		body = fmt.Sprintf(`{"apiVersion":"0.0.2","kind":"dsse","spec":{"dsseV002":{"payloadHash":{"algorithm":"SHA2_256","digest":"%s"},"signatures":[{"content":"%s","verifier":%s}]}}}`, b64(payloadHash[:]), b64(sig), verifier)
	default:
		kind, version = "hashedrekord", "0.0.2"
		body = fmt.Sprintf(`{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{"data":{"algorithm":"%s","digest":"%s"},"signature":{"content":"%s","verifier":%s}}}}`, v2Algorithm, b64(digest), b64(sig), verifier)
	}
	leaf := []byte(body)
	if o.body != nil {
		leaf = o.body(leaf)
	}
	key, origin, name := i.log2, rekor2Name, rekor2Name
	if strings.HasPrefix(o.log, "v1") {
		key, origin, name = i.log1Key, rekor1Name+" - 1193050959916656506", rekor1Name
	}
	if o.origin != "" {
		origin = o.origin
		name = o.origin
	}
	sibling := sha256.Sum256([]byte("\x00another entry"))
	mine := sha256.Sum256(append([]byte{0}, leaf...))
	root := sha256.Sum256(append(append([]byte{1}, sibling[:]...), mine[:]...))
	text := fmt.Sprintf("%s\n2\n%s\n", origin, b64(root[:]))
	if o.tree != nil {
		text = o.tree(text)
	}
	id := keyID(i.t, key.Public())
	noteKey := key
	if o.logKey != nil {
		noteKey = o.logKey
	}
	note := fmt.Sprintf("%s\n\u2014 %s %s\n", text, name, b64(append(id[:4:4], i.sign(noteKey, []byte(text))...)))
	tle := &protorekor.TransparencyLogEntry{
		LogIndex: 1, LogId: &protocommon.LogId{KeyId: id}, KindVersion: &protorekor.KindVersion{Kind: kind, Version: version},
		InclusionProof: &protorekor.InclusionProof{
			LogIndex: 1, TreeSize: 2, RootHash: root[:], Hashes: [][]byte{sibling[:]}, Checkpoint: &protorekor.Checkpoint{Envelope: note},
		},
		CanonicalizedBody: leaf,
	}
	if strings.HasPrefix(o.log, "v1") {
		tle.LogIndex = 4242 // the global index of a sharded log
		tle.IntegratedTime = i.entryTime.Unix()
		if !o.entryTime.IsZero() {
			tle.IntegratedTime = o.entryTime.Unix()
		}
		if !o.noPromise {
			tle.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: i.set(tle)}
		}
		if o.noProof {
			tle.InclusionProof = nil
		}
	}
	return tle
}

func (i *instance) set(tle *protorekor.TransparencyLogEntry) []byte {
	payload := fmt.Sprintf(`{"body":"%s","integratedTime":%d,"logID":"%s","logIndex":%d}`,
		base64.StdEncoding.EncodeToString(tle.CanonicalizedBody), tle.IntegratedTime, hex.EncodeToString(tle.LogId.KeyId), tle.LogIndex)
	return i.sign(i.log1Key, []byte(payload))
}

func statementFor(artifact []byte) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a","digest":{"sha256":"%x"}}],"predicateType":"https://example.com/p/v1","predicate":{"a":{"b":[1,2,{"c":null}]}}}`, sha256.Sum256(artifact))
}
