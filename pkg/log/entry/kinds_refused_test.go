package entry

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/sassoftware/relic/lib/pkcs7"
	"github.com/sassoftware/relic/lib/pkcs9"
	"github.com/theupdateframework/go-tuf/pkg/keys"
	"github.com/veraison/go-cose"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// refusal is what a submission should be refused with.
type refusal struct {
	doc          map[string]any
	reason, text string
}

func checkRefusals(t *testing.T, refusals map[string]refusal) {
	for _, name := range slices.Sorted(maps.Keys(refusals)) {
		r := refusals[name]
		t.Run(name, func(t *testing.T) {
			started := time.Now()
			_, err := propose(t, r.doc)
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.TooLarge || fault.ReasonOf(err) != r.reason || !strings.Contains(fault.Public(err), r.text) {
				t.Errorf("got %v %q %q (%v), want %q with %q", k, fault.ReasonOf(err), fault.Public(err), err, r.reason, r.text)
			}
			if took := time.Since(started); took > 20*time.Second {
				t.Errorf("the refusal took %v", took)
			}
		})
	}
}

func TestRefusedTimeStamps(t *testing.T) {
	s := newSigner(t, "P-256")
	good := timeStamp(t, s, true)
	var resp pkcs9.TimeStampResp
	if _, err := asn1.Unmarshal(good, &resp); err != nil {
		t.Fatal(err)
	}
	type response struct{ Status, Token asn1.RawValue }
	var raw response
	if _, err := asn1.Unmarshal(good, &raw); err != nil {
		t.Fatal(err)
	}
	marshal := func(v any) []byte { return mustDER(t, v) }
	rejected := marshal(struct{ Status pkcs9.PKIStatusInfo }{pkcs9.PKIStatusInfo{Status: pkcs9.StatusRejection}})
	waiting := raw
	waiting.Status = asn1.RawValue{FullBytes: marshal(pkcs9.PKIStatusInfo{Status: pkcs9.StatusWaiting})}
	extended := marshal(struct {
		Status, Token asn1.RawValue
		More          int
	}{raw.Status, raw.Token, 5})
	// A member more at the token's end, where DER readers do not look.
	content := marshal(struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
		More    int
	}{pkcs7.OidSignedData, asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: marshal(resp.TimeStampToken.Content)}, 5})
	otherType := resp.TimeStampToken
	otherType.ContentType = pkcs7.OidData
	signers := resp.TimeStampToken
	signers.Content.SignerInfos = append(slices.Clone(signers.Content.SignerInfos), signers.Content.SignerInfos...)
	broken := bytes.Clone(good)
	broken[len(broken)-3] ^= 1
	checkRefusals(t, map[string]refusal{
		"nothing":                          {proposal("rfc3161", "0.0.1", map[string]any{}), "missing_field", "tsr.content in body is required"},
		"over 10 KiB":                      {timeStampDoc(make([]byte, maxTimeStamp+1)), "timestamp_too_large", "exceeds maximum allowed size"},
		"no DER":                           {timeStampDoc([]byte("time")), "bad_timestamp", "malformed"},
		"a rejection":                      {timeStampDoc(rejected), "bad_timestamp", "no token"},
		"a status that is not granted":     {timeStampDoc(marshal(waiting)), "bad_timestamp", "tsr status not granted: 3"},
		"data after it":                    {timeStampDoc(append(bytes.Clone(good), 0)), "bad_timestamp", "data after it"},
		"a member more":                    {timeStampDoc(extended), "bad_timestamp", "members after its token"},
		"a member more in the token":       {timeStampDoc(marshal(response{raw.Status, asn1.RawValue{FullBytes: content}})), "bad_timestamp", "not in DER"},
		"another content type":             {timeStampDoc(marshal(pkcs9.TimeStampResp{Status: resp.Status, TimeStampToken: otherType})), "bad_timestamp", "wrong content type"},
		"two signers":                      {timeStampDoc(marshal(pkcs9.TimeStampResp{Status: resp.Status, TimeStampToken: signers})), "bad_timestamp", "2 signers"},
		"a signature of something else":    {timeStampDoc(broken), "bad_signature", "tsr verification error"},
		"no certificate":                   {timeStampDoc(timeStamp(t, s, false)), "bad_signature", "certificate missing"},
		"a signature of data, not of time": {timeStampDoc(marshal(response{raw.Status, asn1.RawValue{FullBytes: []byte(signatureBlock(t, s, "data", false, false))}})), "bad_timestamp", "not of a TSTInfo"},
	})
}

func TestRefusedMessages(t *testing.T) {
	s, other, p384, ed, rsa2048 := newSigner(t, "P-256"), newSigner(t, "P-256"), newSigner(t, "P-384"), newSigner(t, "Ed25519"), newSigner(t, "RSA-2048")
	payload := []byte(statementJSON)
	good := coseMessage(t, s, cose.AlgorithmES256, payload, nil, inTotoType)
	doc := coseDoc(good, s.pem, nil)
	deep := append([]byte{0xd2, 0x84, 0x41, 0xa0, 0xa1, 0x00}, bytes.Repeat([]byte{0x81}, 100_000)...)
	wide := append([]byte{0xd2, 0x84, 0x43, 0xa1, 0x01, 0x26, 0xa1, 0x18, 0x63, 0x9a, 0, 1, 0xf4, 0}, make([]byte, 128_000)...)
	wide = append(wide, 0x41, 0, 0x41, 0)
	checkRefusals(t, map[string]refusal{
		"no message":                     {set(t, doc, "spec.message", nil), "missing_field", "message in body is required"},
		"no key":                         {set(t, doc, "spec.publicKey", nil), "missing_field", "publicKey in body is required"},
		"no data":                        {set(t, doc, "spec.data", nil), "missing_field", "data in body is required"},
		"computed members":               {set(t, doc, "spec.data.payloadHash", map[string]any{}), "bad_field", "cannot be submitted"},
		"outside data that is not there": {set(t, doc, "spec.data.aad", []byte("x")), "bad_signature", "verifying message"},
		"outside data that is no base64": {set(t, doc, "spec.data.aad", "%"), "bad_base64", "data.aad"},
		"another key":                    {coseDoc(good, other.pem, nil), "bad_signature", "verifying message"},
		"a key of another curve":         {coseDoc(good, p384.pem, nil), "algorithm_not_allowed", "unsupported elliptic curve P-384"},
		"a key of another algorithm":     {coseDoc(good, ed.pem, nil), "algorithm_not_allowed", "Ed25519"},
		"a message by another algorithm": {coseDoc(good, rsa2048.pem, nil), "bad_signature", "mismatch"},
		"no CBOR":                        {coseDoc([]byte("message"), s.pem, nil), "bad_message", "not a COSE_Sign1"},
		"data after it":                  {coseDoc(append(bytes.Clone(good), 0), s.pem, nil), "bad_message", "not a COSE_Sign1"},
		"no tag":                         {coseDoc(good[1:], s.pem, nil), "bad_message", "not a COSE_Sign1"},
		"an empty payload":               {coseDoc(coseMessage(t, s, cose.AlgorithmES256, []byte{}, nil, nil), s.pem, nil), "missing_field", "no payload"},
		"deep nesting":                   {coseDoc(deep, s.pem, nil), "bad_message", "nested level"},
		"a header of 128,000 values":     {coseDoc(wide, s.pem, nil), "bad_message", "over the limit of 65536 bytes"},
		"five members":                   {coseDoc(append([]byte{0xd2, 0x85}, append(bytes.Clone(good[2:]), 0)...), s.pem, nil), "bad_message", "array of four"},
	})
}

func TestRefusedPackages(t *testing.T) {
	s, other, ec := newSigner(t, "RSA-2048"), newSigner(t, "RSA-2048"), newSigner(t, "P-256")
	good := apkOf(t, s, pkginfoText)
	doc := alpineDoc(good, s.pem)
	files := gzipTar(t, false, [2]string{"x", "y"})
	packed := func(control ...[2]string) map[string]any { return alpineDoc(apkOf(t, s, "", control...), s.pem) }
	unsigned := slices.Concat(gzipTar(t, true, [2]string{"README", "x"}), gzipTar(t, true, [2]string{".PKGINFO", "a = b"}), files)
	bomb := gzipTar(t, true, [2]string{".SIGN.RSA.x", strings.Repeat("\x00", 64<<20)})
	controlBomb := gzipTar(t, true, [2]string{".PKGINFO", strings.Repeat("a", 64<<20)})
	laughs := "a = %(b)s%(b)s%(b)s%(b)s\nb = %(a)s%(a)s%(a)s"
	checkRefusals(t, map[string]refusal{
		"no key":                       {set(t, doc, "spec.publicKey", nil), "missing_field", "publicKey.content in body is required"},
		"no package":                   {set(t, doc, "spec.package.content", nil), "missing_field", "package.content in body is required"},
		"another hash":                 {set(t, doc, "spec.package.hash", map[string]any{"algorithm": "sha256", "value": strings.Repeat("0", 64)}), "hash_mismatch", "SHA mismatch"},
		"half a hash":                  {set(t, doc, "spec.package.hash", map[string]any{"algorithm": "sha256"}), "missing_field", "package.hash"},
		"another key":                  {alpineDoc(good, other.pem), "bad_signature", "verifying package signature"},
		"a key that is not RSA":        {alpineDoc(good, ec.pem), "algorithm_not_allowed", "ECDSA P-256"},
		"no gzip":                      {alpineDoc([]byte("package"), s.pem), "bad_package", "signature member"},
		"a signature alone":            {alpineDoc(apkSigned(t, s, nil), s.pem), "bad_package", "control member"},
		"no signature":                 {alpineDoc(unsigned, s.pem), "bad_package", "no signature detected"},
		"other data":                   {alpineDoc(append(bytes.Clone(good), 0), s.pem), "bad_package", "the data's SHA-256"},
		"no .PKGINFO":                  {packed([2]string{"PKGINFO", "a = b"}), "bad_package", ".PKGINFO file was not located"},
		"two .PKGINFO":                 {packed([2]string{".PKGINFO", "a = b"}, [2]string{".PKGINFO", "a = c"}), "bad_package", "two .PKGINFO"},
		"no data hash":                 {packed([2]string{".PKGINFO", "a = b"}), "bad_package", ".PKGINFO has \"\""},
		"a line without a value":       {packed([2]string{".PKGINFO", "a"}), "bad_package", "delimiter"},
		"values that double":           {packed([2]string{".PKGINFO", laughs}), "bad_package", "from one value to another"},
		"lines that go on":             {packed([2]string{".PKGINFO", "a = " + strings.Repeat("\\\n", 5000)}), "bad_package", "several lines"},
		"a value in back quotes":       {packed([2]string{".PKGINFO", "a = `b\nc`"}), "bad_package", "several lines"},
		"too many lines":               {packed([2]string{".PKGINFO", strings.Repeat("\n", maxPkginfo+1)}), "bad_package", "more than 8192 lines"},
		"text that is not UTF-8":       {packed([2]string{".PKGINFO", "a = \xff"}), "bad_package", "not UTF-8"},
		"a key that is not ASCII":      {packed([2]string{".PKGINFO", "é = 1\ndatahash = 00"}), "bad_package", "has the key"},
		"a signature that inflates":    {alpineDoc(slices.Concat(bomb, good), s.pem), "bad_package", "signature member: it inflates to more than"},
		"control data that inflates":   {alpineDoc(slices.Concat(apkSigned(t, s, controlBomb), controlBomb, files), s.pem), "bad_package", "control member: it inflates to more than"},
		"a body over 65,535 bytes":     {alpineDoc(apkOf(t, s, "a = "+strings.Repeat("b", 66_000)), s.pem), "entry_too_large", "over the limit of 65535"},
		"an archive that is cut":       {alpineDoc(good[:len(good)-1], s.pem), "bad_package", "the data's SHA-256"},
		"a control member that is cut": {alpineDoc(good[:700], s.pem), "bad_package", "control member"},
	})
}

func TestRefusedArchives(t *testing.T) {
	s := newSigner(t, "RSA-2048")
	manifest, signatureFile := manifestText(), signatureText(manifestText())
	block := signatureBlock(t, s, signatureFile, true, false)
	type file = [2]string
	m, sf, rsaBlock, class := file{"META-INF/MANIFEST.MF", manifest}, file{"META-INF/A.SF", signatureFile}, file{"META-INF/A.RSA", block}, file{"com/example/A.class", classes}
	jar := func(files ...file) map[string]any { return jarDoc(zipOf(t, files...)) }
	with := func(manifest string) map[string]any { return jarDoc(jarOf(t, s, manifest, signatureText(manifest))) }
	digest := "SHA-256-Digest: " + sum64(classes)
	trailing := block + "\x00"
	unsorted := signatureBlock(t, s, signatureFile, true, false, func(info *pkcs7.SignerInfo) { slices.Reverse(info.AuthenticatedAttributes) })
	inPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: []byte(block)}))
	zeros := strings.Repeat("\x00", 8<<20)
	bigName := manifestHead
	bigFiles := []file{}
	for i := range 40 {
		name := fmt.Sprintf("big%d", i)
		bigName += "Name: " + name + "\r\nSHA-256-Digest: " + sum64(zeros) + "\r\n\r\n"
		bigFiles = append(bigFiles, file{name, zeros})
	}
	bigJAR := jar(append(bigFiles, file{"META-INF/MANIFEST.MF", bigName}, file{"META-INF/A.SF", signatureText(bigName)}, file{"META-INF/A.RSA", signatureBlock(t, s, signatureText(bigName), true, false)})...)
	crowd := append(zipOf(t, m, sf, rsaBlock, class), bytes.Repeat([]byte("PK\x01\x02"), maxJARFiles)...)
	var quadratic strings.Builder
	quadratic.WriteString(manifestHead)
	for i := range 40_000 {
		quadratic.WriteString("Name: " + strconv.Itoa(i) + "\r\n\r\n")
	}
	other := "Manifest-Version: 2.0\r\n\r\n"
	checkRefusals(t, map[string]refusal{
		"nothing":                        {proposal("jar", "0.0.1", map[string]any{"archive": map[string]any{}}), "missing_field", "archive.content in body is required"},
		"a signature beside it":          {set(t, jar(m, sf, rsaBlock, class), "spec.signature", map[string]any{}), "bad_field", "cannot be submitted"},
		"another hash":                   {set(t, jar(m, sf, rsaBlock, class), "spec.archive.hash", map[string]any{"algorithm": "sha256", "value": "00"}), "hash_mismatch", "SHA mismatch"},
		"no zip":                         {jarDoc([]byte("archive")), "bad_archive", "not a valid zip file"},
		"no manifest":                    {jar(sf, rsaBlock, class), "bad_archive", "no META-INF/MANIFEST.MF"},
		"no signature":                   {jar(m, class), "bad_archive", "no signatures detected"},
		"no block":                       {jar(m, sf, class), "bad_archive", "no matching signature"},
		"a block of another signer":      {jar(m, sf, class, file{"META-INF/B.RSA", block}), "bad_archive", "no matching signature"},
		"two signers":                    {jar(m, sf, rsaBlock, class, file{"META-INF/B.SF", signatureFile}, file{"META-INF/B.EC", block}), "bad_archive", "multiple signatures"},
		"two blocks":                     {jar(m, file{"META-INF/B.EC", block}, sf, rsaBlock, class), "bad_archive", "multiple signatures"},
		"a block of another kind":        {jar(m, sf, rsaBlock, class, file{"META-INF/SIG-X.Y", "x"}), "bad_archive", "unknown kind"},
		"two manifests":                  {jar(m, file{"meta-inf/manifest.mf", other}, sf, rsaBlock, class), "bad_archive", "two files named META-INF/MANIFEST.MF"},
		"a name twice":                   {jar(m, sf, rsaBlock, class, class), "bad_archive", "two files named"},
		"a manifest of another signer":   {jar(file{"META-INF/MANIFEST.MF", other}, sf, rsaBlock, class), "bad_signature", "mismatch"},
		"another signature file":         {jar(m, file{"META-INF/A.SF", signatureFile + "Name: x\r\n\r\n"}, rsaBlock, class), "bad_signature", "digest"},
		"another file":                   {jar(m, sf, rsaBlock, file{"com/example/A.class", "class B"}), "bad_archive", "mismatch"},
		"a file that is not there":       {jar(m, sf, rsaBlock), "bad_archive", "is in manifest but not JAR"},
		"a block with data after it":     {jar(m, sf, file{"META-INF/A.RSA", trailing}, class), "bad_signature", "not in DER"},
		"signed attributes out of order": {jar(m, sf, file{"META-INF/A.RSA", unsorted}, class), "bad_signature", "attributes are not in DER"},
		"a block in PEM":                 {jar(m, sf, file{"META-INF/A.RSA", inPEM}, class), "bad_signature", "the block holds PEM"},
		"a block that is too large":      {jar(m, sf, file{"META-INF/A.RSA", strings.Repeat("x", maxCMS+1)}, class), "bad_signature", "over the limit of 40960"},
		"a section without digest":       {with(manifestHead + "Name: com/example/A.class\r\n\r\n"), "bad_archive", "no recognized digests"},
		"a digest of an unknown kind":    {with(manifestHead + "Name: com/example/A.class\r\nMD5-Digest: x\r\n\r\n"), "bad_archive", "unknown digest"},
		"a section without name":         {with(manifestHead + digest + "\r\n\r\n"), "bad_archive", "has no Name"},
		"a section twice":                {with(manifest + strings.TrimPrefix(manifest, manifestHead)), "bad_archive", "two sections are named"},
		"an attribute twice":             {with(manifestHead + "Name: com/example/A.class\r\n" + digest + "\r\n" + digest + "\r\n\r\n"), "bad_archive", "comes twice"},
		"mixed line endings":             {with(manifest + "\n\n"), "bad_archive", "mixed"},
		"a section without end":          {with(manifest + "Name: x"), "bad_archive", "has no end"},
		"a line without colon":           {with(manifestHead + "Name\r\n\r\n"), "bad_archive", "no colon"},
		"an empty manifest":              {with(""), "bad_archive", "it is empty"},
		"a signature file without words": {jar(m, class, file{"META-INF/A.SF", "a: b\n\n"}, file{"META-INF/A.RSA", signatureBlock(t, s, "a: b\n\n", true, false)}), "bad_signature", "no recognized digests"},
		"40,000 sections":                {with(quadratic.String()), "bad_archive", "is in manifest but not JAR"},
		"metadata that inflates":         {jar(m, sf, rsaBlock, class, file{"META-INF/x.txt", zeros}), "bad_archive", "uncompressed jar metadata of size 8388608"},
		"files that inflate":             {bigJAR, "bad_archive", "inflate to more than"},
		"too many files":                 {jarDoc(crowd), "bad_archive", "more than 65535 files"},
	})
}

func TestRefusedMetadata(t *testing.T) {
	root, stamp := tufRepository(t, func() (keys.Signer, error) { return keys.GenerateEd25519Key() })
	otherRoot, _ := tufRepository(t, func() (keys.Signer, error) { return keys.GenerateEd25519Key() })
	change := func(text []byte, path string, value any) any {
		return set(t, anyOf(t, text).(map[string]any), path, value)
	}
	replace := func(text []byte, old, new string) []byte {
		if !bytes.Contains(text, []byte(old)) {
			t.Fatalf("%q is not in %s", old, text)
		}
		return bytes.Replace(text, []byte(old), []byte(new), 1)
	}
	sigs := anyOf(t, stamp).(map[string]any)["signatures"].([]any)
	many := make([]any, maxTUFSignatures+1)
	for i := range many {
		many[i] = sigs[0]
	}
	manyKeys := map[string]any{}
	for i := range maxTUFKeys + 1 {
		manyKeys[strconv.Itoa(i)] = map[string]any{"keytype": "ed25519", "scheme": "ed25519", "keyval": map[string]any{"public": "00"}}
	}
	bigKey := map[string]any{"x": map[string]any{"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": map[string]any{"public": strings.Repeat("A", maxTUFKey)}}}
	checkRefusals(t, map[string]refusal{
		"no metadata":                   {tufDoc(nil, root), "missing_field", "metadata.content in body is required"},
		"no root":                       {tufDoc(stamp, nil), "missing_field", "root.content in body is required"},
		"no base64":                     {tufDoc("%", root), "bad_base64", "metadata.content"},
		"no JSON":                       {tufDoc([]byte("{"), root), "bad_metadata", "invalid JSON"},
		"a member twice":                {tufDoc(replace(stamp, `"version": 12`, `"version": 12, "version": 13`), root), "bad_metadata", `duplicate member "version"`},
		"a member in capitals":          {tufDoc(replace(stamp, `"version": 12`, `"version": 12, "Version": 13`), root), "bad_metadata", "differ in case alone"},
		"two signed parts":              {tufDoc(replace(stamp, `{`, `{"SIGNED":{},`), root), "bad_metadata", "differ in case alone"},
		"a number with a fraction":      {tufDoc(replace(stamp, `"version": 12`, `"version": 12.0`), root), "bad_metadata", "not an integer"},
		"a number with an exponent":     {tufDoc(replace(stamp, `"version": 12`, `"version": 12e0`), root), "bad_metadata", "not an integer"},
		"a number that JCS rounds":      {tufDoc(replace(stamp, `"version": 12`, `"version": 9007199254740993`), root), "bad_metadata", "not an integer"},
		"deep nesting":                  {tufDoc([]byte(strings.Repeat("[", 10_000)), root), "bad_metadata", "nested deeper"},
		"signed that is no object":      {tufDoc(change(stamp, "signed", "x"), root), "bad_metadata", "signed is not an object"},
		"no signatures":                 {tufDoc(change(stamp, "signatures", []any{}), root), "bad_metadata", "there are no signatures"},
		"too many signatures":           {tufDoc(change(stamp, "signatures", many), root), "bad_metadata", "over the limit of 64"},
		"one signature where two count": {tufDoc(change(stamp, "signatures", sigs[:1]), root), "bad_signature", "metadata:"},
		"one signature said twice":      {tufDoc(change(stamp, "signatures", []any{sigs[0], sigs[0]}), root), "bad_signature", "metadata:"},
		"another version":               {tufDoc(change(stamp, "signed.version", 13), root), "bad_signature", "metadata:"},
		"another root":                  {tufDoc(stamp, otherRoot), "bad_signature", "metadata:"},
		"a root that is not signed":     {tufDoc(stamp, change(root, "signed.version", 9)), "bad_signature", "root:"},
		"a role without keys":           {tufDoc(stamp, change(root, "signed.roles", map[string]any{})), "bad_signature", "root:"},
		"a role that is null":           {tufDoc(stamp, change(root, "signed.roles", map[string]any{"root": nil})), "bad_root", "is null"},
		"a threshold of none":           {tufDoc(stamp, change(root, "signed.roles", map[string]any{"root": map[string]any{"keyids": []any{}, "threshold": 0}})), "bad_root", "threshold"},
		"a key that is null":            {tufDoc(stamp, change(root, "signed.keys", map[string]any{"x": nil})), "bad_root", "is null"},
		"a key that is too large":       {tufDoc(stamp, change(root, "signed.keys", bigKey)), "bad_root", "more than 2048 bytes"},
		"too many keys":                 {tufDoc(stamp, change(root, "signed.keys", manyKeys)), "bad_root", "more than 64 keys"},
		"metadata that is no root's":    {tufDoc(stamp, stamp), "bad_signature", "root:"},
		"a body over 65,535 bytes":      {tufDoc(change(stamp, "signatures", append(slices.Clone(sigs), map[string]any{"keyid": strings.Repeat("k", 50_000), "sig": ""})), root), "entry_too_large", "over the limit of 65535"},
	})
}

// TestSlowKeys refuses RSA keys with which one verification takes seconds.
func TestSlowKeys(t *testing.T) {
	s := newSigner(t, "RSA-2048")
	modulus, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), maxRSABits+256))
	if err != nil {
		t.Fatal(err)
	}
	public := &rsa.PublicKey{N: modulus.SetBit(modulus.SetBit(modulus, 0, 1), maxRSABits+255, 1), E: 65537}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, public, s)
	if err != nil {
		t.Fatal(err)
	}
	of := func(block string) []byte { // the block with another certificate
		signed, err := pkcs7.Unmarshal([]byte(block))
		if err != nil {
			t.Fatal(err)
		}
		set, err := asn1.Marshal(asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: cert})
		if err != nil {
			t.Fatal(err)
		}
		signed.Content.Certificates = pkcs7.RawCertificates{Raw: set}
		der, err := signed.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	token, err := timestamp.ParseResponse(timeStamp(t, s, true))
	if err != nil {
		t.Fatal(err)
	}
	tsr, err := asn1.Marshal(struct{ Status, Token asn1.RawValue }{
		asn1.RawValue{FullBytes: []byte{0x30, 3, 2, 1, 0}}, asn1.RawValue{FullBytes: of(string(token.RawToken))}})
	if err != nil {
		t.Fatal(err)
	}
	signatureFile := signatureText(manifestText())
	archive := zipOf(t, [2]string{"META-INF/MANIFEST.MF", manifestText()}, [2]string{"META-INF/A.SF", signatureFile},
		[2]string{"META-INF/A.RSA", string(of(signatureBlock(t, s, signatureFile, true, false)))})
	checkRefusals(t, map[string]refusal{
		"of a time stamp": {timeStampDoc(tsr), "bad_timestamp", "RSA key of 8448 bits"},
		"of an archive":   {jarDoc(archive), "bad_signature", "RSA key of 8448 bits"},
		"of a package":    {alpineDoc(apkOf(t, s, pkginfoText), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})), "bad_key", "RSA key of 8448 bits"},
	})
}

// TestSearchByRoot finds metadata by the root that it was logged with.
func TestSearchByRoot(t *testing.T) {
	root, stamp := tufRepository(t, func() (keys.Signer, error) { return keys.GenerateEd25519Key() })
	e, err := propose(t, tufDoc(stamp, root))
	if err != nil {
		t.Fatal(err)
	}
	if key, err := PublicKeySearchKey("tuf", root); err != nil || !slices.Contains(e.Keys, key) {
		t.Errorf("PublicKeySearchKey = %q, %v, not one of %q", key, err, e.Keys)
	}
	for name, text := range map[string][]byte{"no JSON": []byte("{"), "no root": stamp, "a root that is not signed": bytes.Replace(root, []byte(`"version": 3`), []byte(`"version": 4`), 1)} {
		if _, err := PublicKeySearchKey("tuf", text); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: PublicKeySearchKey = %v", name, err)
		}
	}
}

// TestTwins submits the same thing in other words: the entry must be the same.
func TestTwins(t *testing.T) {
	root, stamp := tufRepository(t, func() (keys.Signer, error) { return keys.GenerateEd25519Key() })
	rsa2048 := newSigner(t, "RSA-2048")
	apk := apkOf(t, rsa2048, pkginfoText)
	upper := bytes.Clone(stamp)
	sig := anyOf(t, stamp).(map[string]any)["signatures"].([]any)[0].(map[string]any)["sig"].(string)
	upper = bytes.Replace(upper, []byte(sig), []byte(strings.ToUpper(sig)), 1)
	for _, tt := range []struct {
		name      string
		one, twin map[string]any
	}{
		{"metadata as text and object", tufDoc(stamp, root), tufDoc(anyOf(t, stamp), anyOf(t, root))},
		{"metadata with white space", tufDoc(stamp, root), tufDoc(append([]byte(" \n"), stamp...), root)},
		{"a signature in capitals", tufDoc(stamp, root), tufDoc(upper, root)},
		{"a key in untidy PEM", alpineDoc(apk, rsa2048.pem), alpineDoc(apk, append([]byte("\n"), bytes.ReplaceAll(rsa2048.pem, []byte("\n"), []byte("\r\n"))...))},
		{"computed package information", alpineDoc(apk, rsa2048.pem), set(t, alpineDoc(apk, rsa2048.pem), "spec.package.pkginfo", map[string]any{"a": "b"})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one, twin := sameAsUpstream(t, tt.one), sameAsUpstream(t, tt.twin)
			if !bytes.Equal(one.Body, twin.Body) {
				t.Errorf("bodies differ\n%s\n%s", one.Body, twin.Body)
			}
		})
	}
	raw, err := json.Marshal(timeStampDoc(timeStamp(t, newSigner(t, "P-256"), true)))
	if err != nil {
		t.Fatal(err)
	}
	twice := bytes.Replace(raw, []byte(`"tsr":`), []byte(`"tsr":{},"tsr":`), 1)
	if _, err := ijson.Parse(twice); err == nil {
		t.Error("a proposal with two members of one name was read")
	}
}
