package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	upstream "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/attestry/attestry/pkg/verify"
)

// BenchmarkBundle reports, for each kind of bundle, the time of one verification, the floor (the signature verifications it
// cannot do without), their ratio, and the time that sigstore-go takes for the same: all in turn, in one run. Times are medians: the
// machine may be busy with something else.
func BenchmarkBundle(b *testing.B) {
	const p256, p384 = false, true
	i := newInstance(b)
	hard := newInstance(b, func(i *instance) {
		for _, k := range []**ecdsa.PrivateKey{&i.rootKey, &i.interKey, &i.tsaRootKey, &i.tsaKey} {
			*k = newKey(b, elliptic.P384())
		}
	})
	public := filepath.Join(shared(b), "conformance")
	statement := statementFor(theArtifact)
	vector := func(name string) func() ([]byte, []byte, []byte, *verify.Policy) {
		return func() ([]byte, []byte, []byte, *verify.Policy) {
			for _, v := range conformanceVectors(b) {
				if v.name == name {
					return v.root, v.bundle, v.artifact, v.policy
				}
			}
			b.Fatalf("no case %s in %s", name, public)
			return nil, nil, nil, nil
		}
	}
	made := func(i *instance, o order) func() ([]byte, []byte, []byte, *verify.Policy) {
		o.artifact = theArtifact
		return func() ([]byte, []byte, []byte, *verify.Policy) {
			return i.trustedRoot(), i.issue(o), theArtifact, identity(b, testIssuer, testSubject)
		}
	}
	for _, c := range []struct {
		name string
		make func() (root, bundle, artifact []byte, policy *verify.Policy)
		// signatures that are needed, by whether the key is P-384
		keys []bool
	}{
		// certificate, SCT, checkpoint, token, artifact
		{"P-256/rekor2-blob", made(i, order{log: "v2"}), []bool{p256, p256, p256, p256, p256}},
		{"P-256/rekor2-attestation", made(i, order{log: "v2", statement: statement}), []bool{p256, p256, p256, p256, p256}},
		// certificate, SCT, SET, checkpoint, artifact
		{"P-256/rekor1-blob", made(i, order{log: "v1", noTSA: true}), []bool{p256, p256, p256, p256, p256}},
		{"P-256/rekor1-attestation", made(i, order{log: "v1", noTSA: true, statement: statement}), []bool{p256, p256, p256, p256, p256}},
		{"P-384/rekor2-blob", made(hard, order{log: "v2"}), []bool{p384, p256, p256, p384, p256}},
		{"P-384/rekor1-blob", made(hard, order{log: "v1", noTSA: true}), []bool{p384, p256, p256, p256, p256}},
		// The public instance: intermediate of P-384, the rest P-256. Certificate, SCT, SET, checkpoint, artifact.
		{"public/rekor1-attestation", vector("happy-path-intoto-in-dsse-v3"), []bool{p384, p256, p256, p256, p256}},
	} {
		b.Run(c.name, func(b *testing.B) {
			root, signed, artifact, policy := c.make()
			v, err := verify.New(root)
			if err != nil {
				b.Fatal(err)
			}
			other, opts := upstreamVerifier(b, root)
			bare := map[bool]func() bool{p256: bareVerification(b, elliptic.P256()), p384: bareVerification(b, elliptic.P384())}
			var floor, whole, theirs []time.Duration
			for b.Loop() {
				start := time.Now()
				for _, hard := range c.keys {
					if !bare[hard]() {
						b.Fatal("signature")
					}
				}
				one := time.Now()
				if _, err := v.Verify(signed, verify.FromBytes(artifact), policy); err != nil {
					b.Fatal(err)
				}
				two := time.Now()
				parsed := &bundle.Bundle{}
				if err := parsed.UnmarshalJSON(signed); err != nil {
					b.Fatal(err)
				}
				if _, err := other.Verify(parsed, upstream.NewPolicy(upstream.WithArtifact(bytes.NewReader(artifact)), opts...)); err != nil {
					b.Fatal(err)
				}
				floor, whole, theirs = append(floor, one.Sub(start)), append(whole, two.Sub(one)), append(theirs, time.Since(two))
			}
			b.ReportMetric(float64(median(whole))/1e3, "verify-µs")
			b.ReportMetric(float64(median(floor))/1e3, "floor-µs")
			b.ReportMetric(float64(median(theirs))/1e3, "sigstore-go-µs")
			b.ReportMetric(100*float64(median(floor))/float64(median(whole)), "%floor")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// bareVerification verifies one ECDSA signature over SHA-256 with a key of the curve.
func bareVerification(t testing.TB, curve elliptic.Curve) func() bool {
	t.Helper()
	key, digest := newKey(t, curve), sha256.Sum256(theArtifact)
	sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return func() bool { return ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) }
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
