package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"io"
	"math/big"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/pkg/ca"
)

// spki is a SubjectPublicKeyInfo (RFC 5280, section 4.1) of which every part can be wrong.
type spki struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

var (
	oidECDSA     = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidP256      = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidSecp256k1 = asn1.ObjectIdentifier{1, 3, 132, 0, 10}
)

// ecKey is an ECDSA key with any parameters and any point.
func ecKey(t testing.TB, parameters []byte, point []byte) []byte {
	t.Helper()
	return marshal(t, spki{
		pkix.AlgorithmIdentifier{Algorithm: oidECDSA, Parameters: asn1.RawValue{FullBytes: parameters}},
		asn1.BitString{Bytes: point, BitLength: 8 * len(point)},
	})
}

// explicitP256 are the parameters of P-256 written out (ECParameters of RFC 3279, section 2.3.5): a verifier that takes the
// generator from there can be given a key that fits another's signatures (CVE-2020-0601).
func explicitP256(t testing.TB) []byte {
	t.Helper()
	p := elliptic.P256().Params()
	a := new(big.Int).Sub(p.P, big.NewInt(3))
	type field struct {
		Type  asn1.ObjectIdentifier
		Prime *big.Int
	}
	type curve struct{ A, B []byte }
	generator := append(append([]byte{4}, p.Gx.FillBytes(make([]byte, 32))...), p.Gy.FillBytes(make([]byte, 32))...)
	return marshal(t, struct {
		Version  int
		Field    field
		Curve    curve
		Base     []byte
		Order    *big.Int
		Cofactor int
	}{1, field{asn1.ObjectIdentifier{1, 2, 840, 10045, 1, 1}, p.P}, curve{a.Bytes(), p.B.FillBytes(make([]byte, 32))}, generator, p.N, 1})
}

func rsaKey(t testing.TB, n *big.Int, e int64) []byte {
	t.Helper()
	key := marshal(t, struct{ N, E *big.Int }{n, big.NewInt(e)})
	return marshal(t, spki{
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: key, BitLength: 8 * len(key)},
	})
}

// modulus is odd and has the given number of bits. Its factors do not matter: it is refused before.
func modulus(bits int) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return n.SetBit(n, 0, 1)
}

// infineon is a 2048-bit modulus as the library of CVE-2017-15361 made them: primes k*M + (65537^a mod M), where M is the
// product of the first 126 primes (Nemec and others, "The Return of Coppersmith's Attack", section 2).
func infineon(t testing.TB) *big.Int {
	t.Helper()
	m := big.NewInt(1)
	for n, found := int64(2), 0; found < 126; n++ {
		if big.NewInt(n).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(n))
			found++
		}
	}
	prime := func() *big.Int {
		for {
			a, err := rand.Int(rand.Reader, m)
			if err != nil {
				t.Fatal(err)
			}
			low := new(big.Int).Exp(big.NewInt(65537), a, m)
			top := new(big.Int).Div(new(big.Int).Lsh(big.NewInt(3), 1022), m) // so that both of the highest bits are set
			k, err := rand.Int(rand.Reader, new(big.Int).Div(top, big.NewInt(4)))
			if err != nil {
				t.Fatal(err)
			}
			p := k.Add(k, top).Mul(k, m)
			if p.Add(p, low); p.BitLen() == 1024 && p.ProbablyPrime(10) {
				return p
			}
		}
	}
	n := new(big.Int).Mul(prime(), prime())
	if n.BitLen() != 2048 {
		t.Fatalf("a modulus of %d bits", n.BitLen())
	}
	return n
}

// smallOrderPoints are all encodings of the points of Edwards25519 whose order divides 8, also those that are not canonical
// (Chalkias and others, "Taming the many EdDSAs", table 1).
var smallOrderPoints = []string{
	"0100000000000000000000000000000000000000000000000000000000000000",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0000000000000000000000000000000000000000000000000000000000000080",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
	"0100000000000000000000000000000000000000000000000000000000000080",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
}

// impostor shows a public key and signs without the private one.
type impostor struct {
	shows crypto.PublicKey
	sign  func(message []byte, opts crypto.SignerOpts) ([]byte, error)
}

func (i impostor) Public() crypto.PublicKey { return i.shows }
func (i impostor) Sign(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return i.sign(message, opts)
}

// universal is a signature that fits any message under the neutral element as the key: R is that element, S is 0.
func universal() []byte { return append([]byte{1}, make([]byte, 63)...) }

// submission is what a client asks for, on any wire: a key and a proof, or a certificate signing request.
type submission struct {
	key, proof, csr []byte
	text            bool // the key is PEM; DER fits the v1 API alone
}

// everywhere sends s over every wire that can carry it and wants the same refusal from each.
func (w *world) everywhere(t *testing.T, token string, s submission, text, reason string) {
	t.Helper()
	v1 := map[string]any{"publicKey": map[string]any{"content": s.key, "algorithm": "ecdsa"}, "signedEmailAddress": s.proof, "certificateSigningRequest": s.csr}
	wantRefusal(t, w.post("/api/v1/signingCert", token, v1), 400, codes.InvalidArgument, text, reason)
	if s.key != nil && !s.text {
		return
	}
	v2 := map[string]any{"publicKeyRequest": map[string]any{"publicKey": map[string]any{"algorithm": "ECDSA", "content": string(s.key)}, "proofOfPossession": s.proof}}
	m := &fulcio.CreateSigningCertificateRequest{
		Credentials: &fulcio.Credentials{Credentials: &fulcio.Credentials_OidcIdentityToken{OidcIdentityToken: token}},
		Key: &fulcio.CreateSigningCertificateRequest_PublicKeyRequest{PublicKeyRequest: &fulcio.PublicKeyRequest{
			PublicKey: &fulcio.PublicKey{Algorithm: fulcio.PublicKeyAlgorithm_ECDSA, Content: string(s.key)}, ProofOfPossession: s.proof,
		}},
	}
	if s.key == nil {
		v2 = map[string]any{"certificateSigningRequest": s.csr}
		m.Key = &fulcio.CreateSigningCertificateRequest_CertificateSigningRequest{CertificateSigningRequest: s.csr}
	}
	wantRefusal(t, w.post("/api/v2/signingCert", token, v2), 400, codes.InvalidArgument, text, reason)
	conn, err := grpc.NewClient(strings.TrimPrefix(w.server.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = fulcio.NewCAClient(conn).CreateSigningCertificate(context.Background(), m)
	if got := status.Convert(err); got.Code() != codes.InvalidArgument || !strings.HasPrefix(got.Message(), text) || !strings.Contains(got.Message(), "[reason="+reason+" id=") {
		t.Errorf("gRPC: %v, want %q reason %s", err, text, reason)
	}
}

func (w *world) nothingIssued(t *testing.T) {
	t.Helper()
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	if n := len(w.log.chains); n != 0 || strings.Contains(w.logs.String(), "certificate issued") {
		t.Errorf("%d precertificates were logged for refused requests", n)
	}
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func TestKeysThatAreNotCertified(t *testing.T) {
	w := newWorld(t)
	good := newClientKey(t, "P-256")
	point, err := good.signer.Public().(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	offCurve := bytes.Clone(point)
	offCurve[64] ^= 1
	beyond := append([]byte{4}, bytes.Repeat([]byte{0xff}, 64)...)
	compressed := append([]byte{2 | point[64]&1}, point[1:33]...)
	p256 := marshal(t, oidP256)
	rsa2048 := newClientKey(t, "RSA-2048").signer.Public().(*rsa.PublicKey).N
	y := marshal(t, modulus(1000))
	dsaKey := marshal(t, spki{
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1},
			Parameters: asn1.RawValue{FullBytes: marshal(t, struct{ P, Q, G *big.Int }{modulus(1024), modulus(160), modulus(1000)})}},
		asn1.BitString{Bytes: y, BitLength: 8 * len(y)},
	})
	ed := func(key []byte) []byte {
		return marshal(t, spki{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 101, 112}}, asn1.BitString{Bytes: key, BitLength: 8 * len(key)}})
	}
	for _, tt := range []struct {
		name   string
		der    []byte
		text   string
		reason string
	}{
		{"RSA of 1024 bits", rsaKey(t, modulus(1024), 65537), weakText, "weak_key"},
		{"RSA of 2047 bits", rsaKey(t, modulus(2047), 65537), weakText, "weak_key"},
		{"RSA of 2049 bits", rsaKey(t, modulus(2049), 65537), weakText, "weak_key"},
		{"RSA of 8192 bits", rsaKey(t, modulus(8192), 65537), weakText, "weak_key"},
		{"RSA with e = 1", rsaKey(t, rsa2048, 1), weakText, "weak_key"},
		{"RSA with e = 3", rsaKey(t, rsa2048, 3), weakText, "weak_key"},
		{"RSA with e = 65539", rsaKey(t, rsa2048, 65539), weakText, "weak_key"},
		{"RSA with e of 40 bits", rsaKey(t, rsa2048, 1<<40+1), weakText, "weak_key"},
		{"RSA with e < 0", rsaKey(t, rsa2048, -3), keyText, "key_malformed"},
		{"RSA with an even modulus", rsaKey(t, new(big.Int).Lsh(modulus(2047), 1), 65537), weakText, "weak_key"},
		{"RSA with a factor of 751", rsaKey(t, new(big.Int).Mul(new(big.Int).Div(rsa2048, big.NewInt(751)), big.NewInt(751)), 65537), weakText, "weak_key"},
		{"RSA by Infineon", rsaKey(t, infineon(t), 65537), weakText, "weak_key"},
		{"secp256k1", ecKey(t, marshal(t, oidSecp256k1), point), keyText, "key_malformed"},
		{"P-256 with explicit parameters", ecKey(t, explicitP256(t), point), keyText, "key_malformed"},
		{"an implicit curve", ecKey(t, asn1.NullBytes, point), keyText, "key_malformed"},
		{"a point beside the curve", ecKey(t, p256, offCurve), keyText, "key_malformed"},
		{"coordinates beyond the field", ecKey(t, p256, beyond), keyText, "key_malformed"},
		{"the point at infinity", ecKey(t, p256, []byte{0}), keyText, "key_malformed"},
		{"no point", ecKey(t, p256, nil), keyText, "key_malformed"},
		{"a compressed point", ecKey(t, p256, compressed), keyText, "key_malformed"},
		{"a point of P-256 said to be of P-384", ecKey(t, marshal(t, asn1.ObjectIdentifier{1, 3, 132, 0, 34}), point), keyText, "key_malformed"},
		{"an Ed25519 key of 31 bytes", ed(make([]byte, 31)), keyText, "key_malformed"},
		{"DSA", dsaKey, weakText, "weak_key"},
		{"an RSASSA-PSS key", marshal(t, spki{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}}, asn1.BitString{Bytes: []byte{48, 0}, BitLength: 16}}), keyText, "key_malformed"},
		{"bytes after the key", append(good.der(t), 0), keyText, "key_malformed"},
		{"half a key", good.der(t)[:40], keyText, "key_malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			proof := good.prove(t, "alice-id")
			w.everywhere(t, w.token(), submission{key: block("PUBLIC KEY", tt.der), proof: proof, text: true}, tt.text, tt.reason)
			w.everywhere(t, w.token(), submission{key: tt.der, proof: proof}, tt.text, tt.reason)
		})
	}
	t.Run("Ed25519 keys of small order, under which anybody can sign", func(t *testing.T) {
		for _, encoded := range smallOrderPoints {
			key, err := hex.DecodeString(encoded)
			if err != nil {
				t.Fatal(err)
			}
			w.everywhere(t, w.token(), submission{key: block("PUBLIC KEY", ed(key)), proof: universal(), text: true}, weakText, "weak_key")
		}
		neutral, _ := hex.DecodeString(smallOrderPoints[0])
		if !ed25519.Verify(neutral, []byte("alice-id"), universal()) {
			t.Error("the signature of nobody does not verify: this tests nothing")
		}
	})
	t.Run("PEM around the key", func(t *testing.T) {
		one := good.pem(t)
		proof := good.prove(t, "alice-id")
		for name, text := range map[string]string{
			"two keys":                       one + newClientKey(t, "P-256").pem(t),
			"a broken block first":           "-----BEGIN PUBLIC KEY-----\nAAAA\n" + one,
			"a block of another type first":  string(block("CERTIFICATE", w.chain[0].Raw)) + one,
			"a certificate":                  string(block("CERTIFICATE", w.chain[0].Raw)),
			"a type that says nothing":       string(block("KEY", good.der(t))),
			"PKIX said to be PKCS #1":        string(block("RSA PUBLIC KEY", good.der(t))),
			"an end of another block":        strings.Replace(one, "END PUBLIC KEY", "END KEY", 1),
			"a type of 6 kB":                 string(block(strings.Repeat("K", 6_000), good.der(t))),
			"the CSR where the key belongs":  string(good.csr(t, 0)),
			"a key of OpenSSH":               "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ alice@example.com",
			"a JSON Web Key":                 `{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}`,
			"white space":                    " \n\t ",
			"a NUL after the key":            one + "\x00",
			"a key that begins with a space": "-----BEGIN PUBLIC KEY -----\nAAAA\n-----END PUBLIC KEY -----\n",
		} {
			t.Run(name, func(t *testing.T) {
				w.everywhere(t, w.token(), submission{key: []byte(text), proof: proof, text: true}, keyText, "key_malformed")
			})
		}
		if longest := longestLine(w.logs.String()); longest > 2000 {
			t.Errorf("a log line of %d bytes: the client chose its length", longest)
		}
	})
	w.nothingIssued(t)
}

func longestLine(text string) (longest int) {
	for line := range strings.Lines(text) {
		longest = max(longest, len(line))
	}
	return longest
}

// TestAPrivateKeyIsRefusedAndNotRepeated: somebody will send the wrong file.
func TestAPrivateKeyIsRefusedAndNotRepeated(t *testing.T) {
	w := newWorld(t)
	key := newClientKey(t, "P-256")
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key.signer)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key.signer.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := x509.MarshalPKCS1PrivateKey(newClientKey(t, "RSA-2048").signer.(*rsa.PrivateKey))
	secrets := [][]byte{pkcs8, sec1, pkcs1}
	proof := key.prove(t, "alice-id")
	for name, s := range map[string]submission{
		"PKCS #8":               {key: block("PRIVATE KEY", pkcs8), text: true},
		"PKCS #8, encrypted":    {key: block("ENCRYPTED PRIVATE KEY", pkcs8), text: true},
		"SEC 1":                 {key: block("EC PRIVATE KEY", sec1), text: true},
		"PKCS #1":               {key: block("RSA PRIVATE KEY", pkcs1), text: true},
		"OpenSSH":               {key: block("OPENSSH PRIVATE KEY", sec1), text: true},
		"said to be public":     {key: block("PUBLIC KEY", pkcs8), text: true},
		"said to be public RSA": {key: block("RSA PUBLIC KEY", pkcs1), text: true},
		"DER":                   {key: pkcs8},
		"both, public first":    {key: append([]byte(key.pem(t)), block("PRIVATE KEY", pkcs8)...), text: true},
		"both, private first":   {key: append(block("PRIVATE KEY", pkcs8), key.pem(t)...), text: true},
		"without an end":        {key: append(bytes.TrimSuffix(block("PRIVATE KEY", pkcs8), []byte("-----END PRIVATE KEY-----\n")), key.pem(t)...), text: true},
	} {
		t.Run(name, func(t *testing.T) {
			s.proof = proof
			w.everywhere(t, w.token(), s, keyText, "key_malformed")
		})
	}
	t.Run("where the CSR belongs", func(t *testing.T) {
		w.everywhere(t, w.token(), submission{csr: block("PRIVATE KEY", pkcs8)}, csrText, "csr_malformed")
		w.everywhere(t, w.token(), submission{csr: append(key.csr(t, 0), block("PRIVATE KEY", pkcs8)...)}, csrText, "csr_malformed")
		w.everywhere(t, w.token(), submission{csr: append(block("PRIVATE KEY", pkcs8), key.csr(t, 0)...)}, csrText, "csr_malformed")
	})
	t.Run("in place of the proof", func(t *testing.T) {
		w.everywhere(t, w.token(), submission{key: []byte(key.pem(t)), proof: pkcs8, text: true}, popText, "pop_mismatch")
	})
	logs := w.logs.String()
	for _, secret := range secrets {
		for _, shown := range []string{base64.StdEncoding.EncodeToString(secret[20:44]), hex.EncodeToString(secret[20:44]), string(secret[20:44])} {
			if strings.Contains(logs, shown) {
				t.Error("a private key is in the log")
			}
		}
	}
	if !strings.Contains(logs, "a private key was sent") {
		t.Error("the log does not say that a private key was sent: its owner has to be told")
	}
	w.nothingIssued(t)
}

func TestProofsThatProveNothing(t *testing.T) {
	w := newWorld(t)
	p256, p384, p521 := newClientKey(t, "P-256"), newClientKey(t, "P-384"), newClientKey(t, "P-521")
	ed, rsaKey := newClientKey(t, "Ed25519"), newClientKey(t, "RSA-2048")
	with := func(k clientKey, hash crypto.Hash) clientKey { return clientKey{k.signer, hash} }
	signed := func(k clientKey, opts crypto.SignerOpts) []byte {
		t.Helper()
		message := []byte("alice-id")
		if hash := opts.HashFunc(); hash != 0 {
			h := hash.New()
			h.Write(message)
			message = h.Sum(nil)
		}
		proof, err := k.signer.Sign(rand.Reader, message, opts)
		if err != nil {
			t.Fatal(err)
		}
		return proof
	}
	der := p256.prove(t, "alice-id")
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	raw := append(rs.R.FillBytes(make([]byte, 32)), rs.S.FillBytes(make([]byte, 32))...)
	negative := marshal(t, struct{ R, S *big.Int }{rs.R, new(big.Int).Neg(rs.S)})
	long := append(marshal(t, struct{ R, S *big.Int }{rs.R, new(big.Int).Lsh(big.NewInt(1), 8*1024)}), 0)
	bob := w.idp.Token(w.clock(), map[string]any{"sub": "bob-id", "email": "bob@example.com"})
	for _, tt := range []struct {
		name  string
		token string
		key   clientKey
		proof []byte
	}{
		{"none", w.token(), p256, nil},
		{"empty", w.token(), p256, []byte{}},
		{"over 1 KiB", w.token(), p256, long},
		{"another token's sub", bob, p256, p256.prove(t, "alice-id")},
		{"another token's email", bob, p256, p256.prove(t, "alice@example.com")},
		{"the email in upper case", w.token(), p256, p256.prove(t, "ALICE@EXAMPLE.COM")},
		{"the sub with a newline", w.token(), p256, p256.prove(t, "alice-id\n")},
		{"the issuer", w.token(), p256, p256.prove(t, w.idp.URL)},
		{"the audience", w.token(), p256, p256.prove(t, "sigstore")},
		{"by another key", w.token(), p256, newClientKey(t, "P-256").prove(t, "alice-id")},
		{"P-256 over SHA-384", w.token(), p256, with(p256, crypto.SHA384).prove(t, "alice-id")},
		{"P-384 over SHA-256", w.token(), p384, with(p384, crypto.SHA256).prove(t, "alice-id")},
		{"P-384 over SHA-512", w.token(), p384, with(p384, crypto.SHA512).prove(t, "alice-id")},
		{"P-521 over SHA-256", w.token(), p521, with(p521, crypto.SHA256).prove(t, "alice-id")},
		{"RSA over SHA-512", w.token(), rsaKey, with(rsaKey, crypto.SHA512).prove(t, "alice-id")},
		{"RSA-PSS", w.token(), rsaKey, signed(rsaKey, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})},
		{"Ed25519ph", w.token(), ed, signed(ed, &ed25519.Options{Hash: crypto.SHA512})},
		{"Ed25519ctx", w.token(), ed, signed(ed, &ed25519.Options{Context: "fulcio"})},
		{"ECDSA, r and s without DER", w.token(), p256, raw},
		{"ECDSA with bytes after it", w.token(), p256, append(bytes.Clone(der), 0)},
		{"ECDSA with s < 0", w.token(), p256, negative},
		{"ECDSA of zeros", w.token(), p256, marshal(t, struct{ R, S *big.Int }{new(big.Int), new(big.Int)})},
		{"a signature that fits any message under another key", w.token(), ed, universal()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.everywhere(t, tt.token, submission{key: []byte(tt.key.pem(t)), proof: tt.proof, text: true}, popText, "pop_mismatch")
		})
	}
	w.nothingIssued(t)
}

func TestRequestsThatAreNotSigned(t *testing.T) {
	w := newWorld(t)
	key, other := newClientKey(t, "P-256"), newClientKey(t, "P-256")
	csr := func(signer crypto.Signer, alg x509.SignatureAlgorithm, extra ...pkix.Extension) []byte {
		t.Helper()
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{SignatureAlgorithm: alg, ExtraExtensions: extra}, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	request := func(der []byte) []byte { return block("CERTIFICATE REQUEST", der) }
	good := csr(key.signer, 0)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048 := newClientKey(t, "RSA-2048").signer
	neutral, err := hex.DecodeString(smallOrderPoints[0])
	if err != nil {
		t.Fatal(err)
	}
	nobody := impostor{ed25519.PublicKey(neutral), func([]byte, crypto.SignerOpts) ([]byte, error) { return universal(), nil }}
	var swapped struct { // CertificationRequest, RFC 2986, section 4.2
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(csr(other.signer, x509.ECDSAWithSHA256), &swapped); err != nil {
		t.Fatal(err)
	}
	signature := key.prove(t, string(swapped.Info.FullBytes))
	swapped.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	huge := csr(key.signer, 0, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: make([]byte, 20<<10)})
	for _, tt := range []struct {
		name   string
		csr    []byte
		text   string
		reason string
	}{
		{"signed by another key", request(marshal(t, swapped)), popText, "pop_mismatch"},
		{"signed by nobody, under a key of small order", request(csr(nobody, x509.PureEd25519)), weakText, "weak_key"},
		{"RSA of 1024 bits", request(csr(small, 0)), weakText, "weak_key"},
		{"P-224", request(csr(p224, 0)), weakText, "weak_key"},
		{"SHA-1", request(csr(rsa2048, x509.SHA1WithRSA)), "unrecognized signature algorithm: SHA1-RSA", "alg_not_allowed"},
		{"RSA-PSS", request(csr(rsa2048, x509.SHA384WithRSAPSS)), "unrecognized signature algorithm: SHA384-RSAPSS", "alg_not_allowed"},
		{"RSA over SHA-512", request(csr(rsa2048, x509.SHA512WithRSA)), "signing algorithm not permitted: *rsa.PublicKey, SHA-512", "alg_not_allowed"},
		{"P-256 over SHA-384", request(csr(key.signer, x509.ECDSAWithSHA384)), "signing algorithm not permitted: *ecdsa.PublicKey, SHA-384", "alg_not_allowed"},
		{"P-521 over SHA-256", request(csr(newClientKey(t, "P-521").signer, x509.ECDSAWithSHA256)), "signing algorithm not permitted: *ecdsa.PublicKey, SHA-256", "alg_not_allowed"},
		{"bytes after it", request(append(bytes.Clone(good), 0)), csrText, "csr_malformed"},
		{"text after it", append(request(good), 'x'), csrText, "csr_malformed"},
		{"two of them", append(request(good), request(csr(other.signer, 0))...), csrText, "csr_malformed"},
		{"a broken one first", append([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"), request(good)...), csrText, "csr_malformed"},
		{"DER without PEM", good, csrText, "csr_malformed"},
		{"a certificate", block("CERTIFICATE", w.chain[0].Raw), csrText, "csr_malformed"},
		{"half of it", request(good[:len(good)/2]), csrText, "csr_malformed"},
		{"over 16 KiB", request(huge), csrText, "csr_malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.everywhere(t, w.token(), submission{csr: tt.csr}, tt.text, tt.reason)
		})
	}
	w.nothingIssued(t)
}

// TestARequestCannotAskForMore: of a certificate signing request only the key counts.
func TestARequestCannotAskForMore(t *testing.T) {
	w := newWorld(t)
	key := newClientKey(t, "P-256")
	plain := w.post("/api/v2/signingCert", w.token(), v2Body(t, key, "alice-id"))
	if plain.status != 200 {
		t.Fatalf("%d %s", plain.status, plain.body)
	}
	want := embedded(t, plain.body)[0]
	raw := func(value string) []byte {
		der, err := hex.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ext := func(critical bool, value []byte, id ...int) pkix.Extension {
		return pkix.Extension{Id: id, Critical: critical, Value: value}
	}
	template := &x509.CertificateRequest{
		Subject:        pkix.Name{CommonName: "Example root", Organization: []string{"Example"}},
		DNSNames:       []string{"ca.example.com"},
		EmailAddresses: []string{"mallory@example.com"},
		ExtraExtensions: []pkix.Extension{
			ext(true, raw("30030101ff"), 2, 5, 29, 19),                                        // CA:TRUE
			ext(true, raw("03020106"), 2, 5, 29, 15),                                          // keyCertSign, cRLSign
			ext(true, marshal(t, []asn1.ObjectIdentifier{{2, 5, 29, 37, 0}}), 2, 5, 29, 37),   // anyExtendedKeyUsage
			ext(false, []byte("https://accounts.example.com"), 1, 3, 6, 1, 4, 1, 57264, 1, 1), // another issuer
			ext(true, []byte{5, 0}, 1, 3, 6, 1, 4, 1, 11129, 2, 4, 3),                         // poison
			ext(false, raw("04020000"), 1, 3, 6, 1, 4, 1, 11129, 2, 4, 2),                     // an empty SCT list
			ext(false, marshal(t, bytes.Repeat([]byte{1}, 20)), 2, 5, 29, 14),                 // another key identifier
		},
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key.signer)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"} {
		r := w.post("/api/v2/signingCert", w.token(), map[string]any{"certificateSigningRequest": block(kind, der)})
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		certs := embedded(t, r.body)
		if summary := checkClient(t, w, certs); summary.SubjectAlternativeName != "alice@example.com" || summary.Issuer != w.idp.URL {
			t.Errorf("SAN %q, issuer %q", summary.SubjectAlternativeName, summary.Issuer)
		}
		leaf := certs[0]
		if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageCodeSigning ||
			len(leaf.UnknownExtKeyUsage) != 0 || len(leaf.DNSNames) != 0 || !bytes.Equal(leaf.RawSubject, []byte{0x30, 0}) {
			t.Errorf("the request made CA %v, key usage %b, extended %v, names %v, subject %s", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage, leaf.DNSNames, leaf.Subject)
		}
		if len(leaf.Extensions) != len(want.Extensions) {
			t.Fatalf("%d extensions, with a plain key there are %d", len(leaf.Extensions), len(want.Extensions))
		}
		for i, e := range leaf.Extensions {
			sct := i == len(leaf.Extensions)-1 // the one that differs
			if !e.Id.Equal(want.Extensions[i].Id) || e.Critical != want.Extensions[i].Critical || !sct && !bytes.Equal(e.Value, want.Extensions[i].Value) {
				t.Errorf("extension %s is %x, with a plain key it is %s %x", e.Id, e.Value, want.Extensions[i].Id, want.Extensions[i].Value)
			}
		}
	}
}

// FuzzKeyOfAProof writes a key in other ways beside a proof that one key made.
func FuzzKeyOfAProof(f *testing.F) {
	w := newWorld(f)
	key := newClientKey(f, "P-256")
	f.Add([]byte(key.pem(f)))
	f.Add(key.der(f))
	for _, kind := range []string{"P-384", "Ed25519", "RSA-2048"} {
		f.Add([]byte(newClientKey(f, kind).pem(f)))
	}
	f.Add(block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(newClientKey(f, "RSA-2048").signer.Public().(*rsa.PublicKey))))
	f.Add(ecKey(f, explicitP256(f), nil))
	token := w.idp.Token(w.clock(), map[string]any{"exp": w.clock().Unix() + 1e9})
	sum := sha256.Sum256([]byte("alice-id"))
	proof, err := key.signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		issued, err := w.ca.Issue(context.Background(), ca.Request{Token: token, PublicKey: content, Proof: proof})
		if err != nil {
			return
		}
		// One key made the proof, so however it was written it is that one.
		leaf, err := x509.ParseCertificate(issued.DER)
		if err != nil || !leaf.PublicKey.(*ecdsa.PublicKey).Equal(key.signer.Public()) {
			t.Errorf("certified another key: %v", err)
		}
	})
}
