package bench

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/certificate-transparency-go/x509util"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/attestry/attestry/pkg/verify"
)

// TargetVerify is the in-process verifier.
const TargetVerify = "verify"

// VerifyOptions describe one run of the verifier.
type VerifyOptions struct {
	Bundle, TrustedRoot []byte // JSON
	Artifact            []byte // nil for an attestation whose subject is not compared
	Policy              *verify.Policy
	Size                Size
}

// rounds is how often verifying and its floor alternate, so that a change of the machine's speed meets both.
const rounds = 10

// Verify verifies the bundle o.Size.Requests times with o.Size.Clients goroutines and measures
// beside it, as often and as parallel, the bare signature verifications that the bundle calls for, and sigstore-go.
func Verify(ctx context.Context, o VerifyOptions) (*Report, error) {
	if err := o.Size.Check(); err != nil {
		return nil, err
	}
	verifier, err := verify.New(o.TrustedRoot)
	if err != nil {
		return nil, err
	}
	// Once before the clock starts: a bundle that is refused has no speed.
	once := &verifyWorker{verifier, &o}
	if _, err := once.verify(); err != nil {
		return nil, fmt.Errorf("the bundle does not verify (%s): %w", verify.ReasonOf(err), err)
	}
	checks, err := signatures(o.Bundle, o.TrustedRoot, o.Policy)
	if err != nil {
		return nil, fmt.Errorf("counting the bundle's signatures: %w", err)
	}
	floor := &Floor{}
	var bare []func() bool
	for _, c := range checks {
		do, algorithm, err := bareVerification(c.key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		bare = append(bare, do)
		floor.Signatures = append(floor.Signatures, c.name+" "+algorithm)
	}

	other, err := newUpstream(&o)
	if err != nil {
		return nil, fmt.Errorf("sigstore-go: %w", err)
	}
	n, clients := o.Size.Requests, min(o.Size.Clients, o.Size.Requests)
	real, least, theirs := make([]worker, clients), make([]worker, clients), make([]worker, clients)
	for i := range clients {
		real[i], least[i], theirs[i] = once, floorWorker(bare), other
	}
	verified, signed, compared := newTally(n), newTally(n), newTally(n)
	for round := range rounds {
		from, to := n*round/rounds, n*(round+1)/rounds
		if from == to {
			continue
		}
		verified.run(ctx, from, to, real)
		signed.run(ctx, from, to, least)
		if other != nil {
			compared.run(ctx, from, to, theirs)
		}
	}
	report := verified.report(TargetVerify, o.Size.Clients)
	alone := signed.report("floor", clients)
	if len(alone.Errors) > 0 {
		return nil, errors.New("a signature of the floor did not verify")
	}
	floor.Rate, floor.Millis = alone.Rate, alone.P50Millis
	if floor.Rate > 0 {
		floor.Share = report.Rate / floor.Rate
	}
	report.Floor = floor
	if other != nil {
		u := compared.report("sigstore-go", clients)
		if len(u.Errors) > 0 {
			return nil, fmt.Errorf("sigstore-go verified the bundle at first, and then not: %s", u.FirstError)
		}
		report.Upstream = &Upstream{Millis: u.P50Millis, Rate: u.Rate}
		if u.Rate > 0 {
			report.Upstream.Times = report.Rate / u.Rate
		}
	}
	return report, nil
}

type verifyWorker struct {
	verifier *verify.Verifier
	options  *VerifyOptions
}

func (w *verifyWorker) verify() (*verify.Result, error) {
	artifact := verify.AnySubject()
	if w.options.Artifact != nil {
		artifact = verify.FromBytes(w.options.Artifact)
	}
	return w.verifier.Verify(w.options.Bundle, artifact, w.options.Policy)
}

func (w *verifyWorker) do(int) *failure {
	if _, err := w.verify(); err != nil {
		return &failure{kind: string(verify.ReasonOf(err)), text: err.Error()}
	}
	return nil
}

func (w *verifyWorker) close() {}

type floorWorker []func() bool

func (w floorWorker) do(int) *failure {
	for _, verifies := range w {
		if !verifies() {
			return &failure{kind: "signature", text: "a signature of the floor did not verify"}
		}
	}
	return nil
}

func (w floorWorker) close() {}

// check is one signature that verifying a bundle cannot do without.
type check struct {
	name string
	key  crypto.PublicKey
}

// signatures lists a bundle's: the artifact's, the leaf certificate's, each SCT, each SET and checkpoint,
// each timestamp. Chains above the leaf certificates are the same for every bundle and checked once.
func signatures(bundleJSON, trustedRootJSON []byte, policy *verify.Policy) ([]check, error) {
	trusted, err := root.NewTrustedRootFromJSON(trustedRootJSON)
	if err != nil {
		return nil, err
	}
	b := &bundle.Bundle{}
	if err := b.UnmarshalJSON(bundleJSON); err != nil {
		return nil, err
	}
	content, err := b.VerificationContent()
	if err != nil {
		return nil, err
	}
	var checks []check
	if policy.Key != nil {
		checks = append(checks, check{"artifact", policy.Key})
	}
	if leaf := content.Certificate(); leaf != nil {
		checks = append(checks, check{"artifact", leaf.PublicKey})
		issuer := issuerOf(leaf, trusted)
		if issuer == nil {
			return nil, fmt.Errorf("no authority of the trusted root issued %q", leaf.Issuer)
		}
		checks = append(checks, check{"certificate", issuer.PublicKey})
		scts, err := x509util.ParseSCTsFromCertificate(leaf.Raw)
		if err != nil {
			return nil, err
		}
		for _, sct := range scts {
			if log, ok := trusted.CTLogs()[hex.EncodeToString(sct.LogID.KeyID[:])]; ok {
				checks = append(checks, check{"SCT", log.PublicKey})
			}
		}
	}
	entries, err := b.TlogEntries()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		log, ok := trusted.RekorLogs()[hex.EncodeToString([]byte(e.LogKeyID()))]
		if !ok {
			continue
		}
		if e.HasInclusionPromise() {
			checks = append(checks, check{"SET", log.PublicKey})
		}
		if e.TransparencyLogEntry().GetInclusionProof().GetCheckpoint().GetEnvelope() != "" {
			checks = append(checks, check{"checkpoint", log.PublicKey})
		}
	}
	timestamps, err := b.Timestamps()
	if err != nil {
		return nil, err
	}
	signed, err := b.SignatureContent()
	if err != nil {
		return nil, err
	}
	for _, token := range timestamps {
		for _, authority := range trusted.TimestampingAuthorities() {
			s, ok := authority.(*root.SigstoreTimestampingAuthority)
			if !ok || s.Leaf == nil {
				continue
			}
			if _, err := s.Verify(token, signed.Signature()); err == nil {
				checks = append(checks, check{"timestamp", s.Leaf.PublicKey})
				break
			}
		}
	}
	if len(checks) == 0 {
		return nil, errors.New("it has none that the trusted root knows")
	}
	return checks, nil
}

func issuerOf(leaf *x509.Certificate, trusted *root.TrustedRoot) *x509.Certificate {
	for _, ca := range trusted.FulcioCertificateAuthorities() {
		f, ok := ca.(*root.FulcioCertificateAuthority)
		if !ok {
			continue
		}
		for _, candidate := range append([]*x509.Certificate{f.Root}, f.Intermediates...) {
			if candidate != nil && bytes.Equal(candidate.RawSubject, leaf.RawIssuer) {
				return candidate
			}
		}
	}
	return nil
}

// bareVerification returns a verification with a new key of the same kind as pub, and its name.
func bareVerification(pub crypto.PublicKey) (verifies func() bool, algorithm string, err error) {
	digest := sha256.Sum256([]byte(time.Now().String()))
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		key, err := ecdsa.GenerateKey(pub.Curve, rand.Reader)
		if err != nil {
			return nil, "", err
		}
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		return func() bool { return ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) }, "ECDSA " + pub.Curve.Params().Name, err
	case ed25519.PublicKey:
		public, key, err := ed25519.GenerateKey(rand.Reader)
		signature := ed25519.Sign(key, digest[:])
		return func() bool { return ed25519.Verify(public, digest[:], signature) }, "Ed25519", err
	case *rsa.PublicKey:
		key, err := rsa.GenerateKey(rand.Reader, pub.N.BitLen())
		if err != nil {
			return nil, "", err
		}
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		return func() bool { return rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], signature) == nil },
			fmt.Sprintf("RSA-%d", pub.N.BitLen()), err
	}
	return nil, "", fmt.Errorf("a %T verifies no signature", pub)
}
