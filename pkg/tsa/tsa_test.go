package tsa

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/pkcs7"
	"github.com/digitorus/timestamp"
	"github.com/sigstore/sigstore-go/pkg/root"
)

// deterministic signs without randomness (RFC 6979), so that two implementations can be compared byte by byte.
type deterministic struct{ *ecdsa.PrivateKey }

func (d deterministic) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return d.PrivateKey.Sign(nil, digest, opts)
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newChain returns key's chain of two, valid for ten years from a minute before start.
func newChain(t testing.TB, key crypto.Signer, start time.Time) []*x509.Certificate {
	t.Helper()
	chain, err := CreateChain(key.Public(), newKey(t, elliptic.P384()), ChainOptions{Organization: "Example", NotBefore: start.Add(-time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func newAuthority(t testing.TB, change func(*Options)) *Authority {
	t.Helper()
	key := newKey(t, elliptic.P256())
	o := Options{Signer: key}
	if change != nil {
		change(&o)
	}
	if o.Chain == nil {
		o.Chain = newChain(t, o.Signer, time.Now())
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t testing.TB, a *Authority, q *Query) []byte {
	t.Helper()
	token, err := a.Issue(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return token.Reply
}

func TestTokensAreThoseOfTheLibraryByteForByte(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name         string
		key          crypto.Signer
		digest       crypto.Hash
		certificates bool
		nonce        []byte
		accuracy     time.Duration
	}{
		{"P-256 with the chain and a nonce", deterministic{newKey(t, elliptic.P256())}, crypto.SHA256, true, []byte{0x11, 0x22}, time.Second},
		{"P-256 without certificates or nonce", deterministic{newKey(t, elliptic.P256())}, crypto.SHA256, false, nil, time.Second},
		{"P-384 with a split second of accuracy", deterministic{newKey(t, elliptic.P384())}, crypto.SHA384, true, []byte{0xff}, 2500*time.Millisecond + 7*time.Microsecond},
		{"P-521", deterministic{newKey(t, elliptic.P521())}, crypto.SHA512, true, []byte{0}, time.Minute},
		{"Ed25519", ed, crypto.SHA512, true, []byte{0x80, 1}, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chain := newChain(t, tt.key, time.Now())
			digest := sha256.Sum256([]byte("artifact"))
			policy, err := ParsePolicy(DefaultPolicy)
			if err != nil {
				t.Fatal(err)
			}
			q := &Query{Hash: crypto.SHA256, Digest: digest[:], Nonce: tt.nonce, Certificates: tt.certificates}
			theirs := timestamp.Timestamp{
				HashAlgorithm: q.Hash, HashedMessage: q.Digest, Time: time.Now().UTC().Truncate(time.Second), Accuracy: tt.accuracy,
				Policy: policy, AddTSACertificate: q.Certificates, Certificates: chain[1:], Nonce: integer(tt.nonce),
			}
			want, err := theirs.CreateResponseWithOpts(chain[0], tt.key, tt.digest)
			if err != nil {
				t.Fatal(err)
			}
			// What the library draws or reads for itself.
			parsed, err := timestamp.ParseResponse(want)
			if err != nil {
				t.Fatal(err)
			}
			p7, err := pkcs7.Parse(parsed.RawToken)
			if err != nil {
				t.Fatal(err)
			}
			var signingTime time.Time
			if err := p7.UnmarshalSignedAttribute(pkcs7.OIDAttributeSigningTime, &signingTime); err != nil {
				t.Fatal(err)
			}
			if !signingTime.Equal(theirs.Time) {
				t.Skip("the library's second clock read fell into the next second")
			}
			a := newAuthority(t, func(o *Options) { o.Signer, o.Chain, o.Accuracy = tt.key, chain, tt.accuracy })
			// The library puts the root behind the leaf, which we leave out, or leaves an empty [0] behind, where RFC 3161
			// section 2.4.1 wants none (the next tests).
			a.assembler.certificates = element(tagContext0, chain[0].Raw, chain[1].Raw)
			if !q.Certificates {
				q.Certificates, a.assembler.certificates = true, element(tagContext0)
			}
			got, err := a.assembler.reply(a.sign(t.Context()), q, a.policy, content(parsed.SerialNumber), theirs.Time)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("reply\n%x\nlibrary\n%x", got, want)
			}
		})
	}
}

func TestRepliesSayWhatTheQueryAskedFor(t *testing.T) {
	const other = "1.2.3.4"
	policy, err := ParsePolicy(other)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t, func(o *Options) { o.Accepted = []string{other} })
	for _, tt := range []struct {
		name         string
		query        Query
		certificates int
		policy       string
	}{
		{"certificates are left out unless asked for", Query{Hash: crypto.SHA256}, 0, DefaultPolicy},
		{"the chain is there without its root when asked for", Query{Hash: crypto.SHA256, Certificates: true}, 1, DefaultPolicy},
		{"SHA-384 imprints are signed by a P-256 key with SHA-256", Query{Hash: crypto.SHA384, Certificates: true}, 1, DefaultPolicy},
		{"SHA-512 imprints too", Query{Hash: crypto.SHA512, Certificates: true}, 1, DefaultPolicy},
		{"an accepted policy is stated", Query{Hash: crypto.SHA256, Policy: policy, Certificates: true}, 1, other},
		{"a zero nonce is echoed", Query{Hash: crypto.SHA256, Nonce: []byte{0}}, 0, DefaultPolicy},
		{"a negative nonce is echoed", Query{Hash: crypto.SHA256, Nonce: []byte{0x80}}, 0, DefaultPolicy},
		{"a nonce of 64 bytes is echoed", Query{Hash: crypto.SHA256, Nonce: append([]byte{0x7f}, make([]byte, 63)...)}, 0, DefaultPolicy},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := tt.query
			q.Digest = make([]byte, q.Hash.Size())
			ts, err := timestamp.ParseResponse(issue(t, a, &q))
			if err != nil {
				t.Fatal(err)
			}
			if len(ts.Certificates) != tt.certificates {
				t.Errorf("%d certificates, want %d", len(ts.Certificates), tt.certificates)
			}
			if ts.Policy.String() != tt.policy || ts.HashAlgorithm != q.Hash || ts.Ordering || ts.Accuracy != time.Second {
				t.Errorf("policy %v, hash %v, ordering %v, accuracy %v", ts.Policy, ts.HashAlgorithm, ts.Ordering, ts.Accuracy)
			}
			if want := integer(q.Nonce); (want == nil) != (ts.Nonce == nil) || want != nil && want.Cmp(ts.Nonce) != 0 {
				t.Errorf("nonce %v, want %v", ts.Nonce, want)
			}
			if ts.SerialNumber.Sign() <= 0 || ts.SerialNumber.BitLen() > 159 {
				t.Errorf("serial %x is not a positive number below 2^159", ts.SerialNumber)
			}
		})
	}
}

// An intermediate certificate is there, since not every verifier has it, and the set is ordered as DER orders it.
func TestTokensCarryIntermediateCertificatesSorted(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	leafKey, middleKey, rootKey := newKey(t, elliptic.P256()), newKey(t, elliptic.P256()), newKey(t, elliptic.P384())
	two, err := CreateChain(leafKey.Public(), rootKey, ChainOptions{Organization: "Example", NotBefore: now})
	if err != nil {
		t.Fatal(err)
	}
	authority := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: now, NotAfter: now.AddDate(10, 0, 0), BasicConstraintsValid: true, IsCA: true,
			KeyUsage: x509.KeyUsageCertSign}
	}
	root, err := create(authority("root"), nil, rootKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	middle, err := create(authority("middle"), root, middleKey.Public(), rootKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"t", strings.Repeat("a long name ", 5)} { // one leaf before and one behind the other in DER
		leaf, err := create(&x509.Certificate{
			Subject: pkix.Name{CommonName: name}, NotBefore: now, NotAfter: root.NotAfter, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtraExtensions: two[0].Extensions[slices.IndexFunc(two[0].Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidExtKeyUsage) }):][:1],
		}, middle, leafKey.Public(), middleKey)
		if err != nil {
			t.Fatal(err)
		}
		a := newAuthority(t, func(o *Options) { o.Signer, o.Chain = leafKey, []*x509.Certificate{leaf, middle, root} })
		ts, err := timestamp.ParseResponse(issue(t, a, &Query{Hash: crypto.SHA256, Digest: make([]byte, 32), Certificates: true}))
		if err != nil {
			t.Fatal(err)
		}
		want := [][]byte{leaf.Raw, middle.Raw}
		slices.SortFunc(want, bytes.Compare)
		if len(ts.Certificates) != 2 || !bytes.Equal(ts.Certificates[0].Raw, want[0]) || !bytes.Equal(ts.Certificates[1].Raw, want[1]) {
			t.Errorf("the leaf %q comes with %d certificates, want leaf and intermediate in the order of DER", name, len(ts.Certificates))
		}
	}
}

func TestSigstoreGoVerifiesTokensWithAndWithoutCertificatesEvenAfterTheyExpired(t *testing.T) {
	start := time.Now().AddDate(-11, 0, 0) // a chain that expired a year ago
	for _, tt := range []struct {
		name string
		key  func() crypto.Signer
	}{
		{"P-256", func() crypto.Signer { return newKey(t, elliptic.P256()) }},
		{"P-384", func() crypto.Signer { return newKey(t, elliptic.P384()) }},
		{"P-521", func() crypto.Signer { return newKey(t, elliptic.P521()) }},
		{"RSA-3072", func() crypto.Signer {
			key, err := rsa.GenerateKey(rand.Reader, 3072)
			if err != nil {
				t.Fatal(err)
			}
			return key
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAuthority(t, func(o *Options) {
				o.Signer = tt.key()
				o.Chain = newChain(t, o.Signer, start)
				o.Now = func() time.Time { return start.Add(time.Hour) }
			})
			chain := a.Chain()
			trusted := &root.SigstoreTimestampingAuthority{
				Root: chain[1], Leaf: chain[0], URI: "http://localhost/api/v1/timestamp",
				ValidityPeriodStart: chain[0].NotBefore, ValidityPeriodEnd: chain[0].NotAfter,
			}
			signature := []byte("the signature that cosign had stamped")
			digest := sha256.Sum256(signature)
			for _, certificates := range []bool{false, true} {
				reply := issue(t, a, &Query{Hash: crypto.SHA256, Digest: digest[:], Certificates: certificates})
				ts, err := trusted.Verify(reply, signature)
				if err != nil {
					t.Fatalf("certificates %v: %v", certificates, err)
				}
				if want := start.Add(time.Hour).Truncate(time.Second); !ts.Time.Equal(want) {
					t.Errorf("genTime %v, want %v", ts.Time, want)
				}
				if _, err := trusted.Verify(reply, []byte("another signature")); err == nil {
					t.Error("a timestamp of another signature verified")
				}
			}
		})
	}
}

func TestAMillionSerialsOfTwoReplicasAreDifferent(t *testing.T) {
	n := 500_000
	if testing.Short() {
		n = 20_000
	}
	key := newKey(t, elliptic.P256())
	chain := newChain(t, key, time.Now())
	replica := func(o *Options) { o.Signer, o.Chain = key, chain }
	seen := make(map[string]bool, 2*n)
	for _, a := range []*Authority{newAuthority(t, replica), newAuthority(t, replica)} {
		for range n {
			serial, err := a.newSerial()
			if err != nil {
				t.Fatal(err)
			}
			if len(serial) > 20 || serial[0]&0x80 != 0 || !minimal(serial) {
				t.Fatalf("serial %x is not the content of a positive DER INTEGER of at most 160 bits", serial)
			}
			if seen[string(serial)] {
				t.Fatalf("serial %x twice", serial)
			}
			seen[string(serial)] = true
		}
	}
}

func TestAccuracyComponents(t *testing.T) {
	for _, tt := range []struct {
		in                      time.Duration
		seconds, millis, micros int
	}{
		{1500 * time.Millisecond, 1, 500, 0},
		{time.Millisecond + 2*time.Microsecond + 999, 0, 1, 2}, // truncated, not rounded
	} {
		s, ms, us := Accuracy(tt.in).Components()
		if s != tt.seconds || ms != tt.millis || us != tt.micros {
			t.Errorf("Accuracy(%v) = %d, %d, %d, want %d, %d, %d", tt.in, s, ms, us, tt.seconds, tt.millis, tt.micros)
		}
	}
}

func TestCheckChainRefusesWhatClientsWould(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	leafKey, rootKey := newKey(t, elliptic.P256()), newKey(t, elliptic.P384())
	good, err := CreateChain(leafKey.Public(), rootKey, ChainOptions{Organization: "Example", NotBefore: now})
	if err != nil {
		t.Fatal(err)
	}
	// leafWith returns a chain whose leaf was changed before it was signed.
	leafWith := func(change func(*x509.Certificate)) []*x509.Certificate {
		t.Helper()
		eku := good[0].Extensions[1]
		for _, e := range good[0].Extensions {
			if e.Id.Equal(oidExtKeyUsage) {
				eku = e
			}
		}
		template := &x509.Certificate{
			Subject: pkix.Name{CommonName: "tsa"}, NotBefore: now, NotAfter: now.AddDate(1, 0, 0), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: []pkix.Extension{eku},
		}
		change(template)
		leaf, err := create(template, good[1], leafKey.Public(), rootKey)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{leaf, good[1]}
	}
	for _, tt := range []struct {
		name  string
		chain []*x509.Certificate
		key   crypto.PublicKey
		at    time.Time
		want  string // "" is accepted
	}{
		{"the chain that CreateChain makes is good", good, leafKey.Public(), now, ""},
		{"a leaf of other making is good", leafWith(func(*x509.Certificate) {}), leafKey.Public(), now, ""},
		{"a lone leaf", good[:1], leafKey.Public(), now, "root last"},
		{"root first", []*x509.Certificate{good[1], good[0]}, leafKey.Public(), now, "must stand first"},
		{"the leaf twice", []*x509.Certificate{good[0], good[0], good[1]}, leafKey.Public(), now, "is not a CA"},
		{"another key", good, rootKey.Public(), now, "is not that of"},
		{"before notBefore", good, leafKey.Public(), now.Add(-time.Second), "not yet valid"},
		{"after notAfter", good, leafKey.Public(), now.AddDate(10, 0, 1), "expired"},
		{"an extended key usage that is not critical", leafWith(func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }), leafKey.Public(), now, "not critical"},
		{"two extended key usages", leafWith(func(c *x509.Certificate) {
			c.ExtraExtensions = nil
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping, x509.ExtKeyUsageCodeSigning}
		}), leafKey.Public(), now, "not timeStamping alone"},
		{"a second extended key usage that nobody knows", leafWith(func(c *x509.Certificate) {
			c.ExtraExtensions = nil
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}
			c.UnknownExtKeyUsage = append(c.UnknownExtKeyUsage, oidTimeStamping[:7])
		}), leafKey.Public(), now, "not timeStamping alone"},
		{"a leaf that may sign certificates", leafWith(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), leafKey.Public(), now, "not digitalSignature alone"},
		{"a CA leaf", leafWith(func(c *x509.Certificate) { c.IsCA = true }), leafKey.Public(), now, "is a CA"},
		{"no subject", leafWith(func(c *x509.Certificate) { c.Subject = pkix.Name{} }), leafKey.Public(), now, "empty subject"},
	} {
		t.Run(tt.name, func(t *testing.T) { mention(t, CheckChain(tt.chain, tt.key, tt.at), tt.want) })
	}
	t.Run("PEM goes out and comes back in order", func(t *testing.T) {
		back, err := ParseChain(EncodeChain(good))
		if err != nil || len(back) != 2 || !back[0].Equal(good[0]) || !back[1].Equal(good[1]) {
			t.Errorf("ParseChain = %v, %v", back, err)
		}
		_, err = ParseChain(append(EncodeChain(good), "junk"...))
		mention(t, err, "not PEM")
	})
}

func TestAnAuthorityIsNotMadeFromUnfitParts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"no signer", func(o *Options) { o.Signer = nil }, "needs a signer"},
		{"an accuracy under the second that genTime is cut to", func(o *Options) { o.Accuracy = time.Millisecond }, "accuracy"},
		{"a policy that is not an OID", func(o *Options) { o.Policy = "baseline" }, `"baseline"`},
		{"another key than the leaf's", func(o *Options) { o.Signer = newKey(t, elliptic.P256()) }, "is not that of"},
		{"a key that signs something else", func(o *Options) { o.Signer = liar{newKey(t, elliptic.P256()), o.Signer.Public()} }, "self-test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key := newKey(t, elliptic.P256())
			o := Options{Signer: key, Chain: newChain(t, key, time.Now())}
			tt.change(&o)
			_, err := New(o)
			mention(t, err, tt.want)
		})
	}
}

// liar has one key's public half and another's private half.
type liar struct {
	crypto.Signer
	public crypto.PublicKey
}

func (l liar) Public() crypto.PublicKey { return l.public }
