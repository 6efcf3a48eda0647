// Package verify decides offline whether a Sigstore bundle proves that an accepted
// identity or key signed an artifact. It reads nothing but its arguments: no network,
// no TUF, no clock.
//
// The rules are those of the Sigstore client specification with the stricter choices
// of our own that their comments name. What must be proven follows from the trusted root
// (requirements.go), never from what a bundle happens to carry. sigstore-go parses the
// trusted root, summarises certificates and is the oracle of the tests: they fail
// when this package accepts a bundle that sigstore-go refuses. The steps themselves are
// written out here because each refusal needs a stable reason, because sigstore-go checks
// some signatures two or three times, and because its 1.2 and later releases no longer
// read dsse/0.0.2 entries.
package verify

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"
)

// Verifier holds parsed trust material. It is safe for concurrent use and worth keeping:
// it remembers which of its own intermediate and timestamping certificates chain to
// their roots.
type Verifier struct {
	roots []*trustedRoot
}

// New parses a trusted root, or several separated by newlines (trusted_root.jsonl). A bundle
// has to verify whole under one of them; material of two is never mixed.
func New(trustedRootJSON []byte) (*Verifier, error) {
	roots, err := parseTrustedRoots(trustedRootJSON)
	if err != nil {
		return nil, err
	}
	return &Verifier{roots: roots}, nil
}

// Verify checks bundleJSON over artifact against policy. The error carries a reason code, see
// ReasonOf. With several trusted roots the error is that of the root under which verification came
// furthest.
func (v *Verifier) Verify(bundleJSON []byte, artifact Artifact, policy *Policy) (*Result, error) {
	if err := policy.check(); err != nil {
		return nil, err
	}
	b, err := parseBundle(bundleJSON)
	if err != nil {
		return nil, err
	}
	if err := b.expectMaterial(policy); err != nil {
		return nil, err
	}
	if err := artifact.digest(b, policy); err != nil {
		return nil, err
	}
	var deepest *failure
	for _, root := range v.roots {
		a := attempt{root: root, bundle: b, artifact: &artifact, policy: policy}
		result, err := a.run()
		if err == nil {
			sum := sha256.Sum256(bundleJSON)
			result.BundleDigest = "sha256:" + hex.EncodeToString(sum[:])
			return result, nil
		}
		if deepest == nil || a.step > deepest.step {
			deepest = &failure{step: a.step, err: err}
		}
	}
	return nil, deepest.err
}

type failure struct {
	step int
	err  error
}

// attempt is one verification under one trusted root.
type attempt struct {
	root     *trustedRoot
	bundle   *bundle
	artifact *Artifact
	policy   *Policy

	step    int // how many steps passed; chooses the error to report among several roots
	require Requirements
	entries []VerifiedEntry
	times   []VerifiedTimestamp
	issuer  *x509.Certificate // issuer of the leaf, for the SCT
	key     crypto.PublicKey
}

// run performs the steps in the order of the client specification: a time has to be established
// before a certificate can be judged, and nothing signed is looked at before its
// signature is known to be good.
func (a *attempt) run() (*Result, error) {
	var err error
	if a.require, err = a.requirements(); err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		a.verifyEntries,
		a.verifyTimes,
		a.verifyCertificate,
		a.verifySCTs,
		a.verifySignature,
		a.verifySubject,
		a.verifyIdentity,
		a.verifyPredicateType,
	} {
		if err := step(); err != nil {
			return nil, err
		}
		a.step++
	}
	return a.result(), nil
}

// verifyTimes turns verified entries and RFC 3161 tokens into the instants at which the signature
// is known to have existed, and counts them.
func (a *attempt) verifyTimes() error {
	integrated := len(a.times) // put there by verifyEntries
	signed, tsErr := a.verifyTimestamps()
	switch {
	case integrated < a.require.IntegratedTimestamps:
		return fail(ReasonNoTime, nil, "%d of %d required integrated times are proven", integrated, a.require.IntegratedTimestamps)
	case signed < a.require.SignedTimestamps, integrated+signed < a.require.ObserverTimestamps:
		if tsErr != nil {
			return fmt.Errorf("signed timestamp: %w", tsErr)
		}
		return fail(ReasonNoTime, nil, "the bundle proves no time of signing")
	case a.bundle.leaf != nil && integrated+signed == 0:
		return fail(ReasonNoTime, nil, "a short-lived certificate needs a proven time of signing")
	}
	if w := a.policy.KeyWindow; a.bundle.leaf == nil && !w.empty() {
		if len(a.times) == 0 {
			return fail(ReasonNoTime, nil, "a key with a validity window needs a proven time of signing")
		}
		for _, t := range a.times {
			if !w.contains(t.Timestamp) {
				return fail(ReasonKeyExpired, nil, "signed at %s, outside the key's validity window", t.Timestamp.UTC().Format(time.RFC3339))
			}
		}
	}
	return nil
}

// Window is a closed interval of time; a zero bound is open.
type Window struct {
	Start, End time.Time
}

func (w Window) empty() bool { return w.Start.IsZero() && w.End.IsZero() }

func (w Window) contains(t time.Time) bool {
	return (w.Start.IsZero() || !t.Before(w.Start)) && (w.End.IsZero() || !t.After(w.End))
}

func (w Window) String() string {
	return fmt.Sprintf("%s to %s", w.Start.UTC().Format(time.RFC3339), w.End.UTC().Format(time.RFC3339))
}
