package bench

import (
	"bytes"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	upstream "github.com/sigstore/sigstore-go/pkg/verify"
)

// upstreamWorker verifies with sigstore-go what verifyWorker does: from JSON on, as much proven as the trusted root lets demand, by
// anyone.
type upstreamWorker struct {
	verifier *upstream.Verifier
	options  *VerifyOptions
}

// newUpstream returns nil where sigstore-go has no answer to compare: for a bare key, and for a bundle that it refuses.
func newUpstream(o *VerifyOptions) (*upstreamWorker, error) {
	if o.Policy.Key != nil {
		return nil, nil
	}
	trusted, err := root.NewTrustedRootFromJSON(o.TrustedRoot)
	if err != nil {
		return nil, err
	}
	var demands []upstream.VerifierOption
	if len(trusted.RekorLogs()) > 0 {
		demands = append(demands, upstream.WithTransparencyLog(1), upstream.WithObserverTimestamps(1))
	} else {
		demands = append(demands, upstream.WithSignedTimestamps(1))
	}
	if len(trusted.CTLogs()) > 0 {
		demands = append(demands, upstream.WithSignedCertificateTimestamps(1))
	}
	w := &upstreamWorker{options: o}
	if w.verifier, err = upstream.NewVerifier(trusted, demands...); err != nil {
		return nil, err
	}
	if w.do(0) != nil {
		return nil, nil
	}
	return w, nil
}

func (w *upstreamWorker) do(int) *failure {
	b := &bundle.Bundle{}
	err := b.UnmarshalJSON(w.options.Bundle)
	if err == nil {
		artifact := upstream.WithoutArtifactUnsafe()
		if w.options.Artifact != nil {
			artifact = upstream.WithArtifact(bytes.NewReader(w.options.Artifact))
		}
		_, err = w.verifier.Verify(b, upstream.NewPolicy(artifact, upstream.WithoutIdentitiesUnsafe()))
	}
	if err != nil {
		return &failure{kind: "sigstore-go", text: err.Error()}
	}
	return nil
}

func (w *upstreamWorker) close() {}
