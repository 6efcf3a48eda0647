package verify_test

import (
	"bytes"
	"crypto"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	upstream "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/attestry/attestry/pkg/verify"
)

// oracle asks sigstore-go for its verdict under the same requirements. Identities are left to ours.
func oracle(trustedRoot, bundleJSON, artifact []byte, key crypto.PublicKey) error {
	tr, err := root.NewTrustedRootFromJSON(trustedRoot)
	if err != nil {
		return err
	}
	var material root.TrustedMaterial = tr
	var opts []upstream.VerifierOption
	if len(tr.RekorLogs()) > 0 {
		opts = append(opts, upstream.WithTransparencyLog(1))
	}
	policy := []upstream.PolicyOption{upstream.WithoutIdentitiesUnsafe()}
	switch {
	case key != nil:
		var load []signature.LoadOption
		if isMessage(bundleJSON) { // what a certificate's key signs with, too
			load = append(load, options.WithED25519ph())
		}
		verifier, err := signature.LoadDefaultVerifier(key, load...)
		if err != nil {
			return err
		}
		expiring := root.NewExpiringKey(verifier, time.Time{}, time.Time{})
		material = root.TrustedMaterialCollection{tr, root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return expiring, nil })}
		opts = append(opts, upstream.WithNoObserverTimestamps())
		policy = []upstream.PolicyOption{upstream.WithKey()}
	case len(tr.RekorLogs()) > 0:
		opts = append(opts, upstream.WithObserverTimestamps(1))
	default:
		opts = append(opts, upstream.WithSignedTimestamps(1))
	}
	if key == nil && len(tr.CTLogs()) > 0 {
		opts = append(opts, upstream.WithSignedCertificateTimestamps(1))
	}
	v, err := upstream.NewVerifier(material, opts...)
	if err != nil {
		return err
	}
	b := &bundle.Bundle{}
	if err := b.UnmarshalJSON(bundleJSON); err != nil {
		return err
	}
	_, err = v.Verify(b, upstream.NewPolicy(upstream.WithArtifact(bytes.NewReader(artifact)), policy...))
	return err
}

// upstreamVerifier is sigstore-go's for certificates of any identity, and the options of a policy for it.
func upstreamVerifier(t testing.TB, trustedRoot []byte) (*upstream.Verifier, []upstream.PolicyOption) {
	t.Helper()
	tr, err := root.NewTrustedRootFromJSON(trustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	v, err := upstream.NewVerifier(tr, upstream.WithTransparencyLog(1), upstream.WithObserverTimestamps(1), upstream.WithSignedCertificateTimestamps(1))
	if err != nil {
		t.Fatal(err)
	}
	return v, []upstream.PolicyOption{upstream.WithoutIdentitiesUnsafe()}
}

// isMessage says whether a bundle is a message signature.
func isMessage(bundleJSON []byte) bool {
	b := &bundle.Bundle{}
	return b.UnmarshalJSON(bundleJSON) == nil && b.GetMessageSignature() != nil
}

// agree fails the test when ours accepted what sigstore-go refuses. It no longer reads dsse/0.0.2.
func agree(t testing.TB, trustedRoot, bundleJSON, artifact []byte, policy *verify.Policy) {
	t.Helper()
	if err := oracle(trustedRoot, bundleJSON, artifact, policy.Key); err != nil {
		if strings.Contains(err.Error(), "dsse implementation for version '0.0.2' not found") {
			return
		}
		t.Errorf("accepted, but sigstore-go refuses: %v", err)
	}
}

func TestNothingIsAcceptedThatSigstoreGoRefuses(t *testing.T) {
	for _, v := range conformanceVectors(t) {
		if _, err := check(v.root, v.bundle, verify.FromBytes(v.artifact), v.policy); err == nil {
			t.Run(v.name, func(t *testing.T) { agree(t, v.root, v.bundle, v.artifact, v.policy) })
		}
	}
}
