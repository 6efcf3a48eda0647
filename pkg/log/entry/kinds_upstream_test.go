package entry

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/go-openapi/runtime"
	"github.com/sassoftware/relic/lib/pkcs7"
	"github.com/sassoftware/relic/lib/pkcs9"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	_ "github.com/sigstore/rekor/pkg/types/alpine/v0.0.1" // registers the kind
	_ "github.com/sigstore/rekor/pkg/types/cose/v0.0.1"
	_ "github.com/sigstore/rekor/pkg/types/jar/v0.0.1"
	_ "github.com/sigstore/rekor/pkg/types/rfc3161/v0.0.1"
	_ "github.com/sigstore/rekor/pkg/types/tuf/v0.0.1"
	"github.com/theupdateframework/go-tuf/data"
	"github.com/theupdateframework/go-tuf/pkg/keys"
	tufsign "github.com/theupdateframework/go-tuf/sign"
	"github.com/theupdateframework/go-tuf/verify"
	"github.com/veraison/go-cose"
)

// upstreamMakes is what upstream's Rekor makes of a submission: the canonical body and its search keys.
func upstreamMakes(t testing.TB, doc map[string]any) (body []byte, keys []string, err error) {
	t.Helper()
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	pe, err := models.UnmarshalProposedEntry(bytes.NewReader(raw), runtime.JSONConsumer())
	if err != nil {
		return nil, nil, err
	}
	e, err := types.CreateVersionedEntry(pe)
	if err != nil {
		return nil, nil, err
	}
	if body, err = types.CanonicalizeEntry(context.Background(), e); err != nil {
		return nil, nil, err
	}
	keys, err = e.IndexKeys()
	return body, keys, err
}

// sameAsUpstream wants of a submission what upstream makes of it, and no fewer search keys.
func sameAsUpstream(t testing.TB, doc map[string]any) Entry {
	t.Helper()
	ours, err := propose(t, doc)
	if err != nil {
		t.Fatal(err)
	}
	body, keys, err := upstreamMakes(t, doc)
	if err != nil {
		t.Fatalf("upstream: %v", err)
	}
	if !bytes.Equal(ours.Body, body) {
		t.Fatalf("bodies differ\nours   %s\ntheirs %s", ours.Body, body)
	}
	for _, k := range keys {
		if k = strings.ToLower(k); !slices.Contains(ours.Keys, k) && !slices.Contains(ours.SubmittedKeys, k) {
			t.Errorf("upstream finds it by %q, we do not", k)
		}
	}
	if stored, err := Keys(ours.Body); err != nil || !slices.Equal(stored, ours.Keys) {
		t.Errorf("keys of the stored body are %q (%v), want %q", stored, err, ours.Keys)
	}
	if key, err := AttestationKey(ours.Body); err != nil || key != ours.AttestationKey {
		t.Errorf("attestation key of the stored body is %q (%v), want %q", key, err, ours.AttestationKey)
	}
	return ours
}

// upstreamFile returns a file of upstream's tests, which the module cache has.
func upstreamFile(t testing.TB, name string) []byte {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/sigstore/rekor").Output()
	if err == nil {
		var content []byte
		if content, err = os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), filepath.FromSlash(name))); err == nil {
			return content
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("upstream's test files are missing: %v", err)
	}
	t.Skipf("upstream's test files are missing (go mod download github.com/sigstore/rekor): %v", err)
	return nil
}

// neverExpired lets upstream take metadata whose time is over, until the test ends.
func neverExpired(t testing.TB) {
	was := verify.IsExpired
	verify.IsExpired = func(time.Time) bool { return false }
	t.Cleanup(func() { verify.IsExpired = was })
}

func timeStampDoc(tsr []byte) map[string]any {
	return proposal("rfc3161", "0.0.1", map[string]any{"tsr": map[string]any{"content": tsr}})
}

func coseDoc(msg, key, aad []byte) map[string]any {
	signed := map[string]any{}
	if aad != nil {
		signed["aad"] = aad
	}
	return proposal("cose", "0.0.1", map[string]any{"message": msg, "publicKey": key, "data": signed})
}

func alpineDoc(content, key []byte) map[string]any {
	return proposal("alpine", "0.0.1", map[string]any{"package": map[string]any{"content": content}, "publicKey": map[string]any{"content": key}})
}

func jarDoc(content []byte) map[string]any {
	return proposal("jar", "0.0.1", map[string]any{"archive": map[string]any{"content": content}})
}

// tufDoc takes texts, which go in base64, or objects.
func tufDoc(metadata, root any) map[string]any {
	return proposal("tuf", "0.0.1", map[string]any{"metadata": map[string]any{"content": metadata}, "root": map[string]any{"content": root}})
}

// timeStamp returns a granted response of a time-stamping authority.
func timeStamp(t testing.TB, s signer, withCertificate bool) []byte {
	t.Helper()
	sum := sha256.Sum256([]byte("an artifact"))
	return timeStampOf(t, s, timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: time.Unix(1_700_000_100, 0), Nonce: big.NewInt(5),
		Policy: []int{1, 2, 3}, SerialNumber: big.NewInt(77), AddTSACertificate: withCertificate,
	})
}

func coseMessage(t testing.TB, s signer, algorithm cose.Algorithm, payload, aad []byte, contentType any) []byte {
	t.Helper()
	by, err := cose.NewSigner(algorithm, s)
	if err != nil {
		t.Fatal(err)
	}
	msg := cose.NewSign1Message()
	msg.Payload = payload
	msg.Headers.Protected.SetAlgorithm(algorithm)
	msg.Headers.Unprotected[cose.HeaderLabelKeyID] = []byte("a key")
	if contentType != nil {
		msg.Headers.Protected[cose.HeaderLabelContentType] = contentType
	}
	if err := msg.Sign(rand.Reader, aad, by); err != nil {
		t.Fatal(err)
	}
	raw, err := msg.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// gzipTar packs files as abuild does; open leaves out the archive's end.
func gzipTar(t testing.TB, open bool, files ...[2]string) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	tw := tar.NewWriter(zw)
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	end := tw.Close
	if open {
		end = tw.Flush
	}
	if err := errors.Join(end(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

const pkginfoText = `# Generated by abuild 3.9.0
pkgname = attestry
pkgver = 1.2.3-r0
pkgdesc = A log; with "a comment" # cut off
url = 'https://example.com/'
arch = x86_64
depend = so:libc.musl-x86_64.so.1
depend = busybox
provides = cmd:é=<1> & more
license = a`

// apkOf builds a package of these control files; nil means .PKGINFO with the text and the right datahash.
func apkOf(t testing.TB, s signer, info string, control ...[2]string) []byte {
	t.Helper()
	files := gzipTar(t, false, [2]string{"usr/bin/x", "binary"})
	if control == nil {
		control = [][2]string{{".pre-install", "#!/bin/sh"}, {".PKGINFO", fmt.Sprintf("%s\ndatahash = %x\n", info, sha256.Sum256(files))}}
	}
	packed := gzipTar(t, true, control...)
	return slices.Concat(apkSigned(t, s, packed), packed, files)
}

func apkSigned(t testing.TB, s signer, control []byte) []byte {
	t.Helper()
	sum := sha1.Sum(control)
	sig, err := s.Sign(rand.Reader, sum[:], crypto.SHA1)
	if err != nil {
		t.Fatal(err)
	}
	return gzipTar(t, true, [2]string{".SIGN.RSA.alice.rsa.pub", string(sig)})
}

// zipOf packs files in order.
func zipOf(t testing.TB, files ...[2]string) []byte {
	t.Helper()
	var out bytes.Buffer
	zw := zip.NewWriter(&out)
	for _, f := range files {
		w, err := zw.Create(f[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func sum64(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

const (
	classes      = "class A"
	manifestHead = "Manifest-Version: 1.0\r\nCreated-By: 21 (Example)\r\n\r\n"
)

// manifestText names one file, with a line that goes on in the next.
func manifestText() string {
	return manifestHead + "Name: com/example/A\r\n .class\r\nSHA-256-Digest: " + sum64(classes) + "\r\n\r\n"
}

func signatureText(manifest string) string {
	return "Signature-Version: 1.0\r\nSHA-256-Digest-Manifest: " + sum64(manifest) + "\r\n\r\n"
}

// signatureBlock signs a signature file, detached or not, with a time stamp or not; change may change what was signed.
func signatureBlock(t testing.TB, s signer, content string, detached, stamp bool, change ...func(*pkcs7.SignerInfo)) string {
	t.Helper()
	cert, err := x509.ParseCertificate(s.certDER)
	if err != nil {
		t.Fatal(err)
	}
	b := pkcs7.NewBuilder(s.Signer, []*x509.Certificate{cert}, crypto.SHA256)
	if err := b.SetContentData([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := b.AddAuthenticatedAttribute(pkcs7.OidAttributeSigningTime, time.Unix(1_700_000_100, 0).UTC()); err != nil {
		t.Fatal(err)
	}
	signed, err := b.Sign()
	if err != nil {
		t.Fatal(err)
	}
	if detached {
		if _, err := signed.Detach(); err != nil {
			t.Fatal(err)
		}
	}
	info := &signed.Content.SignerInfos[0]
	// What was signed is the set in DER's order.
	slices.SortFunc(info.AuthenticatedAttributes, func(a, b pkcs7.Attribute) int { return bytes.Compare(mustDER(t, a), mustDER(t, b)) })
	for _, c := range change {
		c(info)
	}
	if stamp {
		sum := sha256.Sum256(info.EncryptedDigest)
		ts := timestamp.Timestamp{
			HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Time: time.Unix(1_700_000_200, 0),
			Policy: []int{1, 2, 3}, SerialNumber: big.NewInt(78), AddTSACertificate: true,
		}
		tsa := newSigner(t, "P-256")
		tsr := timeStampOf(t, tsa, ts)
		token, err := timestamp.ParseResponse(tsr)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := pkcs7.Unmarshal(token.RawToken)
		if err != nil {
			t.Fatal(err)
		}
		if err := pkcs9.AddStampToSignedData(info, *parsed); err != nil {
			t.Fatal(err)
		}
	}
	der, err := signed.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return string(der)
}

func mustDER(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func timeStampOf(t testing.TB, s signer, ts timestamp.Timestamp) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(9), NotBefore: time.Unix(1_700_000_000, 0), NotAfter: time.Unix(2_700_000_000, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, s.Public(), s)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	tsr, err := ts.CreateResponseWithOpts(cert, s, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return tsr
}

// jarOf packs a manifest, the signature file and the block for it, and the file that the manifest names.
func jarOf(t testing.TB, s signer, manifest, signatureFile string) []byte {
	t.Helper()
	return zipOf(t,
		[2]string{"META-INF/MANIFEST.MF", manifest}, [2]string{"META-INF/ALICE.SF", signatureFile},
		[2]string{"META-INF/ALICE.RSA", signatureBlock(t, s, signatureFile, true, false)}, [2]string{"com/example/A.class", classes})
}

// tufRepository returns a root that gives every role the same two keys, and a timestamp, signed by both.
func tufRepository(t testing.TB, generate func() (keys.Signer, error)) (root, metadata []byte) {
	t.Helper()
	r := data.NewRoot()
	r.Version, r.SpecVersion, r.Expires = 3, "1.0.19", time.Unix(2_700_000_000, 0).UTC()
	role := &data.Role{Threshold: 2}
	var signers []keys.Signer
	for range 2 {
		k, err := generate()
		if err != nil {
			t.Fatal(err)
		}
		signers = append(signers, k)
		r.AddKey(k.PublicData())
		role.KeyIDs = append(role.KeyIDs, k.PublicData().IDs()...)
	}
	for _, name := range []string{"root", "targets", "snapshot", "timestamp"} {
		r.Roles[name] = role
	}
	stamp := data.NewTimestamp()
	stamp.Version, stamp.Expires = 12, r.Expires
	texts := make([][]byte, 2)
	for i, v := range []any{r, stamp} {
		signed, err := tufsign.Marshal(v, signers...)
		if err != nil {
			t.Fatal(err)
		}
		if texts[i], err = json.MarshalIndent(signed, "", "  "); err != nil {
			t.Fatal(err)
		}
	}
	return texts[0], texts[1]
}

func anyOf(t testing.TB, text []byte) any {
	t.Helper()
	var v any
	mustJSON(t, text, &v)
	return v
}

// TestRekorMakesTheSameBodiesOfOtherKinds holds the kinds that are off by default against upstream's Rekor.
func TestRekorMakesTheSameBodiesOfOtherKinds(t *testing.T) {
	p256, p384, rsa2048 := newSigner(t, "P-256"), newSigner(t, "P-384"), newSigner(t, "RSA-2048")
	statement := []byte(statementJSON)
	apk := apkOf(t, rsa2048, pkginfoText)
	jar := jarOf(t, rsa2048, manifestText(), signatureText(manifestText()))
	unix := strings.NewReplacer("\r\n", "\n")
	perSection := "Signature-Version: 1.0\r\nSHA-256-Digest-Manifest-Main-Attributes: " + sum64(manifestHead) +
		"\r\n\r\nName: com/example/A.class\r\nSHA-256-Digest: " + sum64(strings.TrimPrefix(manifestText(), manifestHead)) + "\r\n\r\n"
	root, stamp := tufRepository(t, func() (keys.Signer, error) { return keys.GenerateEd25519Key() })
	ecRoot, ecStamp := tufRepository(t, func() (keys.Signer, error) { return keys.GenerateEcdsaKey() })
	rsaRoot, rsaStamp := tufRepository(t, func() (keys.Signer, error) { return keys.GenerateRsaKey() })
	apkSum := sha256.Sum256(apk)
	docs := map[string]map[string]any{
		"a time stamp by ECDSA":                timeStampDoc(timeStamp(t, p256, true)),
		"a time stamp by P-384":                timeStampDoc(timeStamp(t, p384, true)),
		"a time stamp by RSA":                  timeStampDoc(timeStamp(t, rsa2048, true)),
		"a message of a statement":             coseDoc(coseMessage(t, p256, cose.AlgorithmES256, statement, nil, inTotoType), p256.certPEM, nil),
		"a message with outside data":          coseDoc(coseMessage(t, p256, cose.AlgorithmES256, statement, []byte("aad"), inTotoType), p256.pem, []byte("aad")),
		"a message by RSA":                     coseDoc(coseMessage(t, rsa2048, cose.AlgorithmPS256, []byte{0, 1}, nil, uint64(50)), rsa2048.pem, nil),
		"a message that is no statement":       coseDoc(coseMessage(t, p256, cose.AlgorithmES256, []byte("{"), nil, inTotoType), p256.pem, nil),
		"a package":                            alpineDoc(apk, rsa2048.pem),
		"a package by a certificate":           alpineDoc(apk, rsa2048.certPEM),
		"a package whose hash is given":        set(t, alpineDoc(apk, rsa2048.pem), "spec.package.hash", map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(apkSum[:])}),
		"a package with a section":             alpineDoc(apkOf(t, rsa2048, "a = 1\nb\\c = \"2\"\n"+pkginfoText+"\nempty ="), rsa2048.pem),
		"an archive":                           jarDoc(jar),
		"an archive with Unix lines":           jarDoc(jarOf(t, rsa2048, unix.Replace(manifestText()), signatureText(unix.Replace(manifestText())))),
		"an archive signed section by section": jarDoc(jarOf(t, rsa2048, manifestText(), perSection)),
		"an archive by ECDSA": jarDoc(zipOf(t,
			[2]string{"META-INF/", ""}, [2]string{"META-INF/", ""}, [2]string{"META-INF/LICENSE", "free"}, [2]string{"META-INF/maven/pom.xml", "<>"},
			[2]string{"META-INF/MANIFEST.MF", manifestText()}, [2]string{"com/example/A.class", classes}, [2]string{"unsigned", "x"},
			[2]string{"META-INF/bob.EC", signatureBlock(t, p256, signatureText(manifestText()), true, false)}, [2]string{"META-INF/bob.sf", signatureText(manifestText())})),
		"an archive with content in the block": jarDoc(zipOf(t,
			[2]string{"META-INF/MANIFEST.MF", manifestText()}, [2]string{"META-INF/A.SF", signatureText(manifestText())},
			[2]string{"META-INF/A.RSA", signatureBlock(t, rsa2048, signatureText(manifestText()), false, false)}, [2]string{"com/example/A.class", classes})),
		"an archive with a time stamp": jarDoc(zipOf(t,
			[2]string{"META-INF/MANIFEST.MF", manifestText()}, [2]string{"META-INF/A.SF", signatureText(manifestText())},
			[2]string{"META-INF/A.RSA", signatureBlock(t, rsa2048, signatureText(manifestText()), true, true)}, [2]string{"com/example/A.class", classes})),
		"metadata in base64":       tufDoc(stamp, root),
		"metadata as objects":      tufDoc(anyOf(t, stamp), anyOf(t, root)),
		"a root by itself":         tufDoc(root, anyOf(t, root)),
		"metadata by ECDSA":        tufDoc(ecStamp, ecRoot),
		"metadata by RSA":          tufDoc(rsaStamp, rsaRoot),
		"metadata with more in it": tufDoc(bytes.Replace(stamp, []byte("{"), []byte(`{"more":{"é<":[null,true,-5,"\u2028"]},`), 1), root),
	}
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		t.Run(name, func(t *testing.T) { sameAsUpstream(t, docs[name]) })
	}
}

// TestPublishedSubmissions holds the kinds against the files of upstream's own tests. The leaf hashes are upstream's.
func TestPublishedSubmissions(t *testing.T) {
	neverExpired(t)
	file := func(name string) []byte { return upstreamFile(t, "pkg/types/"+name) }
	for _, tt := range []struct {
		name, leafHash string
		doc            func() map[string]any
	}{
		{"a time stamp", "b3cb03d92c3c0daac02f68b0593d8fbdaca0df5c06753164a8ffb9af76d52a45", func() map[string]any { return timeStampDoc(file("rfc3161/tests/test.tsr")) }},
		{"a package", "052310852427858b79944fefb0ea8f510684cbbdf491136352f69c1203ca905e", func() map[string]any {
			return alpineDoc(file("alpine/tests/test_alpine.apk"), file("alpine/tests/test_alpine.pub"))
		}},
		{"an archive", "359a34acaa15079f57b57d1cb8f5aaa748332984f39643f27c820c382c56fa7c", func() map[string]any { return jarDoc(file("jar/v0.0.1/tests/test.jar")) }},
		{"a timestamp role", "aa9d83a8d8b7c467ca798fe0cd2df783e494a25720bac6f4f5b285b848c24710", func() map[string]any {
			return tufDoc(file("tuf/v0.0.1/tests/test_timestamp.json"), file("tuf/v0.0.1/tests/test_root.json"))
		}},
		{"a root", "635552ec1aa4800c5d6346007005ea9298c0f5d4cee761541aedf78d7f96b29a", func() map[string]any {
			return tufDoc(anyOf(t, file("tuf/v0.0.1/tests/test_root.json")), anyOf(t, file("tuf/v0.0.1/tests/test_root.json")))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := sameAsUpstream(t, tt.doc())
			if got := hex.EncodeToString(e.LeafHash[:]); got != tt.leafHash {
				t.Errorf("leaf hash is %s, want %s", got, tt.leafHash)
			}
		})
	}
}
