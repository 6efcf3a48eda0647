package entry

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/crypto/ssh"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/log/entry/ijson"
)

// sample reads a file that testdata/make made.
func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func rekordDoc(format string, key, signature, artifact []byte) map[string]any {
	return proposal("rekord", "0.0.1", map[string]any{
		"signature": map[string]any{"format": format, "content": signature, "publicKey": map[string]any{"content": key}},
		"data":      map[string]any{"content": artifact},
	})
}

type upstreamVector struct {
	Proposal json.RawMessage
	Body     []byte
	Keys     []string
}

// upstreamVectors are submissions with the bodies and search keys that Rekor 1.5.4 makes of them:
// test/rekor writes them, and compares much more.
func upstreamVectors(t testing.TB) map[string]upstreamVector {
	t.Helper()
	var vectors map[string]upstreamVector
	mustJSON(t, sample(t, "upstream.json"), &vectors)
	if len(vectors) < 40 {
		t.Fatalf("only %d vectors", len(vectors))
	}
	return vectors
}

func TestUpstreamVectors(t *testing.T) {
	for name, vector := range upstreamVectors(t) {
		t.Run(name, func(t *testing.T) {
			for range 5 { // of a key with several user IDs, upstream makes other bodies at other times
				e, err := propose(t, vector.Proposal)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(e.Body, vector.Body) {
					t.Fatalf("bodies differ\nours   %.2000s\ntheirs %.2000s", e.Body, vector.Body)
				}
				for _, k := range vector.Keys {
					if !slices.Contains(e.Keys, k) && !slices.Contains(e.SubmittedKeys, k) {
						t.Errorf("upstream finds it by %q, we do not", k)
					}
				}
				if stored, err := Keys(e.Body); err != nil || !slices.Equal(stored, e.Keys) {
					t.Fatalf("keys of the stored body are %q (%v), want %q", stored, err, e.Keys)
				}
			}
		})
	}
}

func TestPublicKeySearchKey(t *testing.T) {
	for _, tt := range []struct{ format, key, signature string }{
		{"pgp", "pgp/ed.asc", "pgp/ed.message.sig"},
		{"pgp", "pgp/ed.gpg", "pgp/ed.message.asc"},
		{"ssh", "ssh/rsa.pub", "ssh/rsa.message.sig"},
		{"minisign", "minisign/minisign.pub", "minisign/minisign.message.minisig"},
	} {
		e, err := propose(t, rekordDoc(tt.format, sample(t, tt.key), sample(t, tt.signature), sample(t, "message.txt")))
		if err != nil {
			t.Fatal(err)
		}
		key, err := PublicKeySearchKey(tt.format, sample(t, tt.key))
		if err != nil || !slices.Contains(e.Keys, key) || !slices.Contains(e.Keys, "sha256:"+key) {
			t.Errorf("%s: search key %q (%v), the entry has %q", tt.key, key, err, e.Keys)
		}
	}
	if _, err := PublicKeySearchKey("pgp", []byte("x")); err == nil {
		t.Error("found a search key of nothing")
	}
	if _, err := PublicKeySearchKey("pkcs7", []byte("{}")); err == nil || !strings.Contains(err.Error(), ErrKeyFormat.Error()) {
		t.Errorf("got %v, want ErrKeyFormat", err)
	}
}

// TestSubmittedNames are names that a body does not hold, and names that it does.
func TestSubmittedNames(t *testing.T) {
	message := sample(t, "message.txt")
	e, err := propose(t, rekordDoc("ssh", sample(t, "ssh/ecdsa.pub"), sample(t, "ssh/ecdsa.message.sig"), message))
	if err != nil || !slices.Equal(e.SubmittedKeys, []string{"ecdsa@example.com"}) || bytes.Contains(e.Body, []byte("ecdsa@")) {
		t.Errorf("of an SSH key's comment: %q (%v)", e.SubmittedKeys, err)
	}
	e, err = propose(t, rekordDoc("pgp", sample(t, "pgp/ed.asc"), sample(t, "pgp/ed.message.sig"), message))
	for _, want := range []string{"ed@example.com", "two@example.com", "three@example.org"} {
		if err != nil || !slices.Contains(e.Keys, want) {
			t.Errorf("of user IDs: %q (%v), want %q", e.Keys, err, want)
		}
	}
}

// TestTwinsOfSignatures submits the same signature and key in other words: the entry must be the same.
func TestTwinsOfSignatures(t *testing.T) {
	message := sample(t, "message.txt")
	crlf := func(text []byte) []byte { return bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")) }
	rsaKey, rsaSig := sample(t, "pgp/rsa.asc"), sample(t, "pgp/rsa.message.sig")
	commented := bytes.Replace(rsaKey, []byte("BLOCK-----\n\n"), []byte("BLOCK-----\nComment: mine\n\n"), 1)
	sshKey, sshSig := sample(t, "ssh/rsa.pub"), sample(t, "ssh/rsa.message.sig")
	block, _ := pem.Decode(sshSig)
	minisig := sample(t, "minisign/minisign.legacy.minisig")
	lines := strings.SplitAfterN(string(minisig), "\n", 3)
	minisignKey := sample(t, "minisign/minisign.pub")
	_, bareKey, _ := bytes.Cut(minisignKey, []byte("\n"))
	for _, tt := range []struct {
		name      string
		one, twin map[string]any
	}{
		{"a PGP key binary and in armor", rekordDoc("pgp", rsaKey, rsaSig, message), rekordDoc("pgp", sample(t, "pgp/rsa.gpg"), rsaSig, message)},
		{"a PGP key with CRLF", rekordDoc("pgp", rsaKey, rsaSig, message), rekordDoc("pgp", crlf(rsaKey), rsaSig, message)},
		{"a PGP key with a comment", rekordDoc("pgp", rsaKey, rsaSig, message), rekordDoc("pgp", commented, rsaSig, message)},
		{"an SSH key with options and another comment", rekordDoc("ssh", sshKey, sshSig, message), rekordDoc("ssh", append([]byte("restrict "), bytes.Replace(sshKey, []byte("rsa@example.com"), []byte("x y"), 1)...), sshSig, message)},
		{"an SSH signature in other columns", rekordDoc("ssh", sshKey, sshSig, message), rekordDoc("ssh", sshKey, pem.EncodeToMemory(block), message)},
		{"an SSH signature amid text", rekordDoc("ssh", sshKey, sshSig, message), rekordDoc("ssh", sshKey, slices.Concat([]byte("a\n"), sshSig, []byte("b")), message)},
		{"a minisign signature without its trusted comment", rekordDoc("minisign", minisignKey, minisig, message), rekordDoc("minisign", minisignKey, []byte(lines[0]+lines[1]), message)},
		{"a minisign key without its comment", rekordDoc("minisign", minisignKey, minisig, message), rekordDoc("minisign", bareKey, minisig, message)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one, err := propose(t, tt.one)
			if err != nil {
				t.Fatal(err)
			}
			twin, err := propose(t, tt.twin)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(one.Body, twin.Body) {
				t.Errorf("bodies differ\n%.2000s\n%.2000s", one.Body, twin.Body)
			}
		})
	}
}

func pgpPacket(tag byte, body ...byte) []byte {
	head := []byte{0xc0 | tag, 255, byte(len(body) >> 24), byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}
	return append(head, body...)
}

// pgpSignatureOf is a signature packet of version 4 with these hashed subpackets, each with its length.
func pgpSignatureOf(subpackets ...byte) []byte {
	return append([]byte{4, 0, 1, 8, byte(len(subpackets) >> 8), byte(len(subpackets))}, append(subpackets, 0, 0, 0, 0)...)
}

func TestRefusedRekords(t *testing.T) {
	message := sample(t, "message.txt")
	key, sig := sample(t, "pgp/rsa.gpg"), sample(t, "pgp/rsa.message.sig")
	armored := sample(t, "pgp/rsa.message.asc")
	good := rekordDoc("pgp", key, sig, message)
	withSig := func(sig []byte) map[string]any { return rekordDoc("pgp", key, sig, message) }
	withKey := func(key []byte) map[string]any { return rekordDoc("pgp", key, sig, message) }
	sum := sha256.Sum256(message)
	hash := func(algorithm, value string) map[string]any {
		return set(t, good, "spec.data.hash", map[string]any{"algorithm": algorithm, "value": value})
	}
	rsaPacket := func(bits int) []byte {
		body := []byte{4, 0, 0, 0, 0, 1, byte(bits >> 8), byte(bits)}
		return pgpPacket(6, append(body, make([]byte, bits/8+5)...)...)
	}
	inner := append([]byte{255, 0, 0, 0, 22, 32}, pgpSignatureOf(append([]byte{11, 32}, pgpSignatureOf()...)...)...)
	inner[4] = byte(len(inner) - 5)
	newline := func(i int, b []byte) []byte { return bytes.Join(bytes.SplitAfter(b, []byte("\n"))[i:], nil) }
	sshKey, sshSig := sample(t, "ssh/ed25519.pub"), sample(t, "ssh/ed25519.message.sig")
	rsaSSH, err := parseSSHKey(sample(t, "ssh/rsa.pub"))
	if err != nil {
		t.Fatal(err)
	}
	rewrap := func(change func(*sshSignature)) []byte {
		block, _ := pem.Decode(sshSig)
		var outer sshSignature
		if err := ssh.Unmarshal(block.Bytes, &outer); err != nil {
			t.Fatal(err)
		}
		change(&outer)
		return pem.EncodeToMemory(&pem.Block{Type: sshSignatureType, Bytes: ssh.Marshal(outer)})
	}
	modulus := new(big.Int).SetBit(big.NewInt(1), maxRSABits+255, 1)
	slow, err := ssh.NewPublicKey(&rsa.PublicKey{N: modulus, E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	minisignKey, minisig := sample(t, "minisign/minisign.pub"), sample(t, "minisign/minisign.message.minisig")
	minisigOf := func(change func(raw []byte)) []byte {
		raw, err := minisignSignature(minisig)
		if err != nil {
			t.Fatal(err)
		}
		change(raw)
		return []byte("untrusted comment: x\n" + base64.StdEncoding.EncodeToString(raw) + "\n")
	}
	s, other := newSigner(t, "P-256"), newSigner(t, "P-256")
	_, x509Sig := s.signDigest(t, message)
	checkRefusals(t, map[string]refusal{
		"no format":                       {set(t, good, "spec.signature.format", nil), "missing_field", "signature.format in body is required"},
		"an unknown format":               {set(t, good, "spec.signature.format", "tuf"), "bad_field", "should be one of [pgp minisign x509 ssh]"},
		"no signature":                    {set(t, good, "spec.signature.content", nil), "missing_field", "signature.content in body is required"},
		"no key":                          {set(t, good, "spec.signature.publicKey", nil), "missing_field", "signature.publicKey.content in body is required"},
		"a digest without the artifact":   {set(t, hash("sha256", hex.EncodeToString(sum[:])), "spec.data.content", nil), "missing_field", "data.content in body is required"},
		"another digest":                  {hash("sha256", strings.Repeat("00", 32)), "hash_mismatch", "SHA mismatch"},
		"a digest in capitals":            {hash("sha256", strings.ToUpper(hex.EncodeToString(sum[:]))), "hash_mismatch", "SHA mismatch"},
		"a digest of another algorithm":   {hash("sha512", hex.EncodeToString(sum[:])), "hash_mismatch", "SHA mismatch"},
		"a digest that is text":           {set(t, good, "spec.data.hash", "x"), "missing_field", "data.hash.algorithm and value"},
		"a key too long":                  {withKey(make([]byte, maxKeyMaterial+1)), "field_too_large", "over the limit of 65536"},
		"a signature too long":            {withSig(make([]byte, maxKeyMaterial+1)), "field_too_large", "over the limit of 65536"},
		"PGP: another message":            {rekordDoc("pgp", key, sig, []byte("x")), "bad_signature", "verifying signature"},
		"PGP: another key":                {rekordDoc("pgp", sample(t, "pgp/dsa.gpg"), sig, message), "bad_signature", "unknown entity"},
		"PGP: a key for certificates":     {rekordDoc("pgp", sample(t, "pgp/nist.gpg"), sample(t, "pgp/rsa.message.sig"), message), "bad_signature", "unknown entity"},
		"PGP: a secret key in armor":      {withKey(sample(t, "pgp/ed.secret.asc")), "bad_key", `holds a "PGP PRIVATE KEY BLOCK"`},
		"PGP: a secret key":               {withKey(pgpPacket(5, 4)), "bad_key", "secret OpenPGP key"},
		"PGP: no key":                     {withKey(pgpPacket(13, 'x')), "bad_key", "first packet was not a public/private key"},
		"PGP: a key without user ID":      {withKey(key[:bytes.Index(key, []byte("rsa <"))-2]), "bad_key", "entity without any identities"},
		"PGP: half a key":                 {withKey(key[:len(key)-1]), "bad_key", "truncated OpenPGP packet"},
		"PGP: text for a key":             {withKey([]byte("a key, but not one")), "bad_key", "not an OpenPGP packet"},
		"PGP: armor without end":          {withKey(sample(t, "pgp/rsa.asc")[:400]), "bad_key", "PGP armor without end"},
		"PGP: a signature for a key":      {withKey(armored), "bad_key", `holds a "PGP SIGNATURE"`},
		"PGP: 33 keys":                    {withKey(bytes.Repeat(key[:bytes.Index(key, []byte("rsa <"))-2], maxPGPKeys+1)), "bad_key", "more than 32 OpenPGP keys"},
		"PGP: 65 signatures in a key":     {withKey(append(bytes.Clone(key), bytes.Repeat(pgpPacket(2, pgpSignatureOf()...), maxPGPSignatures)...)), "bad_key", "more than 64 OpenPGP signatures"},
		"PGP: 513 packets":                {withKey(append(bytes.Clone(key), bytes.Repeat(pgpPacket(12), maxPGPPackets)...)), "bad_key", "more than 512 OpenPGP packets"},
		"PGP: a user ID too long":         {withKey(append(bytes.Clone(key), pgpPacket(13, make([]byte, maxPGPUserID+1)...)...)), "bad_key", "user ID of 2049 bytes"},
		"PGP: an RSA key of 8448 bits":    {withKey(rsaPacket(8448)), "bad_key", "RSA key of 8448 bits, over 8192"},
		"PGP: a DSA key of 4104 bits":     {withKey(pgpPacket(6, append([]byte{4, 0, 0, 0, 0, 17, 4104 >> 8, 4104 & 255}, make([]byte, 513)...)...)), "bad_key", "of 4104 bits, over 4096"},
		"PGP: a key of 5000 bytes":        {withKey(pgpPacket(14, make([]byte, 5000)...)), "bad_key", "OpenPGP key of 5000 bytes"},
		"PGP: compressed data":            {withSig(pgpPacket(8, 1, 2, 3)), "bad_signature", "compressed OpenPGP data"},
		"PGP: compressed data in a key":   {withKey(append(bytes.Clone(key), pgpPacket(8, 1, 2, 3)...)), "bad_key", "compressed OpenPGP data"},
		"PGP: a whole message":            {withSig(sample(t, "pgp/rsa.inline.asc")), "bad_signature", "PGP armor without end"},
		"PGP: a signature before text":    {withSig(append(bytes.Clone(armored), "x"...)), "bad_signature", "text behind it"},
		"PGP: a signature behind text":    {withSig(append([]byte("x\n"), armored...)), "bad_signature", "armor inside of a binary"},
		"PGP: armor in a signature":       {withSig(pgpPacket(2, pgpSignatureOf(append([]byte{byte(len("\n-----BEGIN PGP SIGNATURE-----\n\n") + 1), 100}, "\n-----BEGIN PGP SIGNATURE-----\n\n"...)...)...)), "bad_signature", "armor inside of a binary"},
		"PGP: armor without headers' end": {withSig([]byte("-----BEGIN PGP SIGNATURE-----\n-----END PGP SIGNATURE-----\n")), "bad_signature", "PGP armor"},
		"PGP: armor that is not base64":   {withSig([]byte("-----BEGIN PGP SIGNATURE-----\n\n%%%%\n-----END PGP SIGNATURE-----\n")), "bad_signature", "PGP armor: illegal base64"},
		"PGP: an empty signature":         {withSig([]byte("-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n")), "bad_signature", "EOF"},
		"PGP: 17 signatures":              {withSig(bytes.Repeat(sig, MaxSignatures+1)), "bad_signature", "more than 16 OpenPGP signatures"},
		"PGP: a key for a signature":      {withSig(key), "bad_signature", "unexpected OpenPGP packet of type 6"},
		"PGP: a signature of version 3":   {withSig(pgpPacket(2, 3, 5, 0, 0, 0, 0, 0)), "bad_signature", "version 3"},
		"PGP: a packet in parts":          {withSig([]byte{0xc2, 224, 0}), "bad_signature", "OpenPGP packet in parts"},
		"PGP: a packet without length":    {withSig([]byte{0x8b, 0}), "bad_signature", "OpenPGP packet of unknown length"},
		"PGP: 4 GiB of subpackets":        {withSig(pgpPacket(2, 6, 0, 1, 8, 255, 255, 255, 255, 0)), "bad_signature", "truncated OpenPGP packet"},
		"PGP: a subpacket without end":    {withSig(pgpPacket(2, pgpSignatureOf(9, 2, 1)...)), "bad_signature", "truncated OpenPGP packet"},
		"PGP: a subpacket without octets": {withSig(pgpPacket(2, pgpSignatureOf(0)...)), "bad_signature", "truncated OpenPGP packet"},
		"PGP: nothing is exportable":      {withSig(pgpPacket(2, pgpSignatureOf(1, 4)...)), "bad_signature", "truncated OpenPGP packet"},
		"PGP: signatures in signatures":   {withSig(pgpPacket(2, pgpSignatureOf(inner...)...)), "bad_signature", "embedded in an embedded one"},
		"PGP: no creation time":           {withSig(pgpPacket(2, pgpSignatureOf()...)), "bad_signature", "no creation time"},
		"SSH: another message":            {rekordDoc("ssh", sshKey, sshSig, []byte("x")), "bad_signature", "verifying signature"},
		"SSH: another key":                {rekordDoc("ssh", sample(t, "ssh/ecdsa.pub"), sshSig, message), "bad_signature", "names another key"},
		"SSH: another key inside":         {rekordDoc("ssh", sshKey, rewrap(func(s *sshSignature) { s.PublicKey = rsaSSH.public.Marshal() }), message), "bad_signature", "names another key"},
		"SSH: another key verifies":       {rekordDoc("ssh", rsaSSH.canonical(), rewrap(func(s *sshSignature) { s.PublicKey = rsaSSH.public.Marshal() }), message), "bad_signature", "verifying signature"},
		"SSH: another namespace":          {rekordDoc("ssh", sshKey, sample(t, "ssh/ed25519.git.sig"), message), "bad_signature", `namespace "git"`},
		"SSH: another hash":               {rekordDoc("ssh", sshKey, sample(t, "ssh/ed25519.sha256.sig"), message), "bad_signature", `hash algorithm "sha256"`},
		"SSH: another version":            {rekordDoc("ssh", sshKey, rewrap(func(s *sshSignature) { s.Version = 2 }), message), "bad_signature", "not version 1"},
		"SSH: no signature in it":         {rekordDoc("ssh", sshKey, rewrap(func(s *sshSignature) { s.Signature = nil }), message), "bad_signature", "ssh: "},
		"SSH: another PEM":                {rekordDoc("ssh", sshKey, s.pem, message), "bad_signature", "no armored SSH SIGNATURE"},
		"SSH: no key":                     {rekordDoc("ssh", []byte("# nothing\n"), sshSig, message), "bad_key", "no key found"},
		"SSH: an RSA key of 8448 bits":    {rekordDoc("ssh", ssh.MarshalAuthorizedKey(slow), sshSig, message), "bad_key", "RSA key of 8448 bits"},
		"minisign: another message":       {rekordDoc("minisign", minisignKey, minisig, []byte("x")), "bad_signature", "invalid signature"},
		"minisign: another key":           {rekordDoc("minisign", sample(t, "minisign/signify.pub"), minisig, message), "bad_signature", "names another key"},
		"minisign: another key ID":        {rekordDoc("minisign", minisignKey, minisigOf(func(raw []byte) { raw[2] ^= 1 }), message), "bad_signature", "names another key"},
		"minisign: unknown algorithm":     {rekordDoc("minisign", minisignKey, minisigOf(func(raw []byte) { raw[0] = 'X' }), message), "bad_signature", "unknown algorithm of signature"},
		"minisign: the other algorithm":   {rekordDoc("minisign", minisignKey, minisigOf(func(raw []byte) { raw[1] = 'd' }), message), "bad_signature", "invalid signature"},
		"minisign: three lines":           {rekordDoc("minisign", minisignKey, newline(1, minisig), message), "bad_signature", "has 2 lines (signify) or 4 (minisign)"},
		"minisign: a key for a signature": {rekordDoc("minisign", minisignKey, minisignKey, message), "bad_signature", "invalid encoded signature"},
		"minisign: a signature for a key": {rekordDoc("minisign", minisig, minisig, message), "bad_key", "invalid encoded public key"},
		"minisign: unknown key algorithm": {rekordDoc("minisign", []byte(base64.StdEncoding.EncodeToString(make([]byte, 42))), minisig, message), "bad_key", "unknown algorithm of public key"},
		"x509: another message":           {rekordDoc("x509", s.pem, x509Sig, []byte("x")), "bad_signature", "invalid signature"},
		"x509: another key":               {rekordDoc("x509", other.pem, x509Sig, message), "bad_signature", "invalid signature"},
		"x509: a chain of two others":     {rekordDoc("x509", slices.Concat(s.certPEM, other.certPEM), x509Sig, message), "bad_chain", "verifying certificate chain"},
		"x509: a PGP key":                 {rekordDoc("x509", sample(t, "pgp/rsa.asc"), x509Sig, message), "bad_key", "could not parse public key as x509"},
	})
}

// TestKeysThatAreOld takes a signature of a key that has expired since, and none that it made later.
func TestKeysThatAreOld(t *testing.T) {
	at := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return at }, KeyLifetimeSecs: 3600}
	e, err := openpgp.NewEntity("x", "", "x@example.com", config)
	if err != nil {
		t.Fatal(err)
	}
	var key bytes.Buffer
	if err := e.Serialize(&key); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		after time.Duration
		text  string
	}{{time.Minute, ""}, {2 * time.Hour, "expired"}} {
		made := at.Add(tt.after)
		sig := &packet.Signature{
			Version: 4, SigType: packet.SigTypeBinary, PubKeyAlgo: e.PrimaryKey.PubKeyAlgo, Hash: config.Hash(),
			CreationTime: made, IssuerKeyId: &e.PrimaryKey.KeyId,
		}
		h := sig.Hash.New()
		h.Write([]byte("m"))
		if err := sig.Sign(h, e.PrivateKey, &packet.Config{Rand: rand.Reader}); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := sig.Serialize(&out); err != nil {
			t.Fatal(err)
		}
		_, err := propose(t, rekordDoc("pgp", key.Bytes(), out.Bytes(), []byte("m")))
		if tt.text == "" && err != nil || tt.text != "" && (fault.ReasonOf(err) != "bad_signature" || !strings.Contains(fault.Public(err), tt.text)) {
			t.Errorf("a signature made %v after a key of one hour: %v", tt.after, err)
		}
	}
}

// TestPrimaryUserIDs chooses the same one each time, by the library's rules.
func TestPrimaryUserIDs(t *testing.T) {
	k, err := parsePGPKeys(sample(t, "pgp/ed.gpg"))
	if err != nil {
		t.Fatal(err)
	}
	if len(k.keys) != 1 || len(k.keys[0].ids) != 4 {
		t.Fatalf("read %d keys", len(k.keys))
	}
	first := k.ring()[0].PrimaryIdentity()
	for range 50 {
		if got := k.ring()[0].PrimaryIdentity(); got != first {
			t.Fatalf("primary user ID is %q, and was %q", got.Name, first.Name)
		}
	}
	yes, no := true, false
	id := func(made int64, primary *bool, revocations int) *openpgp.Identity {
		return &openpgp.Identity{
			SelfSignature: &packet.Signature{CreationTime: time.Unix(made, 0), IsPrimaryId: primary},
			Revocations:   make([]*packet.Signature, revocations),
		}
	}
	for _, tt := range []struct {
		name      string
		found, id *openpgp.Identity
		want      bool
	}{
		{"any rather than none", nil, id(1, nil, 3), true},
		{"one that is not revoked", id(9, &yes, 1), id(1, nil, 0), true},
		{"one that is not revoked stays", id(1, nil, 0), id(9, &yes, 1), false},
		{"one that is marked", id(9, &no, 0), id(1, &yes, 0), true},
		{"one that is marked stays", id(1, &yes, 0), id(9, nil, 0), false},
		{"a younger one", id(1, nil, 0), id(2, nil, 0), true},
		{"the first of equals stays", id(1, nil, 0), id(1, &no, 0), false},
		{"one with a signature", &openpgp.Identity{}, id(1, nil, 0), true},
		{"one with a signature stays", id(1, nil, 0), &openpgp.Identity{}, false},
	} {
		if got := pgpPreferred(tt.found, tt.id); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
		if tt.found == nil || tt.found.SelfSignature == nil || tt.id.SelfSignature == nil || tt.name == "the first of equals stays" {
			continue // the library panics, or takes either
		}
		tt.found.Name, tt.id.Name = "found", "id"
		both := &openpgp.Entity{Identities: map[string]*openpgp.Identity{"found": tt.found, "id": tt.id}}
		if got := both.PrimaryIdentity() == tt.id; got != tt.want {
			t.Errorf("%s: the library prefers the other", tt.name)
		}
	}
}

// FuzzPublicKeys wants that a canonical form reads back as itself: search keys hang on it.
func FuzzPublicKeys(f *testing.F) {
	formats := []string{"pgp", "minisign", "ssh", "x509"}
	for format, pattern := range map[uint8]string{0: "pgp/*", 1: "minisign/*", 2: "ssh/*"} {
		names, err := filepath.Glob(filepath.Join("testdata", pattern))
		if err != nil || len(names) == 0 {
			f.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(format, data)
		}
	}
	f.Add(uint8(3), newSigner(f, "P-256").certPEM)
	f.Fuzz(func(t *testing.T, format uint8, material []byte) {
		name := formats[int(format)%len(formats)]
		key, err := parseKey(name, material)
		if err != nil {
			return
		}
		again, err := parseKey(name, key.canonical())
		if err != nil {
			t.Fatalf("%s does not read back: %v\n%s", name, err, key.canonical())
		}
		if !bytes.Equal(again.canonical(), key.canonical()) || !slices.Equal(again.subjects(), key.subjects()) {
			t.Fatalf("%s reads back as %s, with %q, not %q", key.canonical(), again.canonical(), again.subjects(), key.subjects())
		}
		_, err = key.verifyMessage([]byte("x"), material)
		if err == nil {
			t.Fatal("a key is a signature of its own")
		}
	})
}

func FuzzSubmissions(f *testing.F) {
	vectors := upstreamVectors(f)
	for _, name := range slices.Sorted(maps.Keys(vectors)) {
		f.Add([]byte(vectors[name].Proposal))
	}
	kinds := everyKind(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := ijson.Parse(raw)
		if err != nil {
			return
		}
		e, err := Propose(kinds, v)
		checkEntry(t, e, err)
	})
}
