package verify_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"github.com/attestry/attestry/pkg/verify"
)

// BenchmarkBundle reports, for each kind of bundle of an all-P-256 instance, the time of one verification, the
// floor (the signature verifications it cannot do without, timed in the same run) and their ratio. Times are medians:
// the machine may be busy with something else.
func BenchmarkBundle(b *testing.B) {
	i := newInstance(b)
	statement := statementFor(theArtifact)
	for _, c := range []struct {
		name       string
		order      order
		signatures int
	}{
		// certificate, SCT, checkpoint, token, artifact
		{"rekor2-blob", order{log: "v2"}, 5},
		{"rekor2-attestation", order{log: "v2", statement: statement}, 5},
		// certificate, SCT, SET, checkpoint, artifact
		{"rekor1-blob", order{log: "v1", noTSA: true}, 5},
		{"rekor1-attestation", order{log: "v1", noTSA: true, statement: statement}, 5},
	} {
		c.order.artifact = theArtifact
		bundle := i.issue(c.order)
		v, err := verify.New(i.trustedRoot())
		if err != nil {
			b.Fatal(err)
		}
		policy := identity(b, testIssuer, testSubject)
		b.Run(c.name, func(b *testing.B) {
			digest := sha256.Sum256(theArtifact)
			sig := i.sign(i.signerKey, theArtifact)
			var floor, whole []time.Duration
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				for range c.signatures {
					if !ecdsa.VerifyASN1(&i.signerKey.PublicKey, digest[:], sig) {
						b.Fatal("signature")
					}
				}
				middle := time.Now()
				if _, err := v.Verify(bundle, verify.FromBytes(theArtifact), policy); err != nil {
					b.Fatal(err)
				}
				floor = append(floor, middle.Sub(start))
				whole = append(whole, time.Since(middle))
			}
			b.ReportMetric(float64(median(whole)), "verify-ns")
			b.ReportMetric(float64(median(floor)), "floor-ns")
			b.ReportMetric(100*float64(median(floor))/float64(median(whole)), "%floor")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
