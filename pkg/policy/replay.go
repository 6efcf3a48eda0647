package policy

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/attestry/attestry/pkg/verify"
	"github.com/attestry/attestry/pkg/verify/oci"
)

const (
	maxReplaySigners = 100_000
	maxReplayBody    = 1 << 20
)

// Replay goes over what was signed and finds out by whom it was, and since when policies would have refused them. It looks at
// names and keys alone: a log holds neither images nor what attestations say, and whoever may write to it chooses the
// certificate.
type Replay struct {
	policies []namingPolicy
	signers  map[Signer]*Signed
	skipped  map[string]int // entries of kinds that have no signer, by kind
}

// namingPolicy is a policy that can tell whether it names a signer.
type namingPolicy interface {
	Policy
	names(leaf *x509.Certificate, key crypto.PublicKey) error
}

// Signer is who signed, by certificate or by key.
type Signer struct {
	Issuer  string `json:"issuer,omitempty"`
	Subject string `json:"subject,omitempty"`
	Key     string `json:"key,omitempty"` // SHA-256 of the SubjectPublicKeyInfo in hex
}

// Signed is what a signer signed and what becomes of it. Times are zero where none is known: of a key's entry in a log that has
// none.
type Signed struct {
	Signer
	Entries      int           `json:"entries"`
	First        time.Time     `json:"first,omitzero"`
	Last         time.Time     `json:"last,omitzero"`
	Failed       int           `json:"failed"`
	FirstFailure time.Time     `json:"firstFailure,omitzero"`
	LastFailure  time.Time     `json:"lastFailure,omitzero"`
	Reason       verify.Reason `json:"reason,omitempty"`   // of the last failure
	Accepted     []string      `json:"accepted,omitempty"` // policies that name the signer
}

// NewReplay takes policies that name signers: all dialects do, but a policy of static authorities alone does not.
func NewReplay(policies []Policy) (*Replay, error) {
	r := &Replay{signers: map[Signer]*Signed{}, skipped: map[string]int{}}
	for _, p := range policies {
		n, ok := p.(namingPolicy)
		if !ok {
			return nil, fmt.Errorf("policy %q names no signers", p.Name())
		}
		r.policies = append(r.policies, n)
	}
	if len(r.policies) == 0 {
		return nil, errors.New("there is no policy")
	}
	return r, nil
}

// AddEntry takes the body of a log entry. at is when it was logged, if the log says so; a certificate's beginning goes before
// it. An entry outside since and until, which may be zero, is left out.
func (r *Replay) AddEntry(body []byte, at, since, until time.Time) error {
	verifiers, kind, err := entryVerifiers(body)
	if err != nil {
		return err
	}
	if len(verifiers) == 0 {
		r.skipped[kind]++
		return nil
	}
	for _, v := range verifiers {
		leaf, key, err := parseVerifier(v)
		if err != nil {
			r.skipped[kind+" with an unreadable key"]++
			continue
		}
		when := at
		if leaf != nil {
			when = leaf.NotBefore
		}
		if !since.IsZero() && when.Before(since) || !until.IsZero() && !when.Before(until) {
			continue
		}
		if err := r.add(leaf, key, when.UTC()); err != nil {
			return err
		}
	}
	return nil
}

func (r *Replay) add(leaf *x509.Certificate, key crypto.PublicKey, when time.Time) error {
	who, err := signerOf(leaf, key)
	if err != nil {
		return err
	}
	s, err := r.of(who)
	if err != nil {
		return err
	}
	s.Entries++
	span(&s.First, &s.Last, when)
	accepted := false
	var refusal error
	for _, p := range r.policies {
		err := p.names(leaf, key)
		if err == nil {
			accepted = true
			if !slices.Contains(s.Accepted, p.Name()) {
				s.Accepted = append(s.Accepted, p.Name())
			}
		} else if refusal == nil || verify.ReasonOf(refusal) == verify.ReasonKeyMismatch {
			refusal = err
		}
	}
	if !accepted {
		s.Failed++
		s.Reason = verify.ReasonOf(refusal)
		span(&s.FirstFailure, &s.LastFailure, when)
	}
	return nil
}

// of returns what is known of a signer.
func (r *Replay) of(who Signer) (*Signed, error) {
	s := r.signers[who]
	if s == nil {
		if len(r.signers) == maxReplaySigners {
			return nil, fmt.Errorf("more than %d signers", maxReplaySigners)
		}
		s = &Signed{Signer: who}
		r.signers[who] = s
	}
	return s, nil
}

func span(first, last *time.Time, when time.Time) {
	if when.IsZero() {
		return
	}
	if first.IsZero() || when.Before(*first) {
		*first = when
	}
	if when.After(*last) {
		*last = when
	}
}

func signerOf(leaf *x509.Certificate, key crypto.PublicKey) (Signer, error) {
	if leaf != nil {
		if issuer, subject, err := verify.Names(leaf); err == nil && subject != "" {
			return Signer{Issuer: issuer, Subject: subject}, nil
		}
		key = leaf.PublicKey
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return Signer{}, err
	}
	sum := sha256.Sum256(der)
	return Signer{Key: hex.EncodeToString(sum[:])}, nil
}

// Signers returns all signers, those that failed first, the one with the oldest failure at the top.
func (r *Replay) Signers() []*Signed {
	var all []*Signed
	for _, s := range r.signers {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *Signed) int {
		return cmp.Or(-cmp.Compare(min(a.Failed, 1), min(b.Failed, 1)), a.FirstFailure.Compare(b.FirstFailure),
			a.First.Compare(b.First), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Issuer, b.Issuer), cmp.Compare(a.Key, b.Key))
	})
	return all
}

// Skipped counts entries without a signer that policies could name, by kind.
func (r *Replay) Skipped() map[string]int { return r.skipped }

// entryVerifiers returns the certificates and keys of an entry, in PEM or DER. Kinds of other worlds have none.
func entryVerifiers(body []byte) (verifiers [][]byte, kind string, err error) {
	if len(body) > maxReplayBody {
		return nil, "", fmt.Errorf("an entry of over %d bytes", maxReplayBody)
	}
	type verifier struct {
		X509Certificate struct{ RawBytes []byte } `json:"x509Certificate"`
		PublicKey       struct{ RawBytes []byte } `json:"publicKey"`
	}
	var e struct {
		Kind string `json:"kind"`
		Spec struct {
			Signature struct {
				PublicKey struct{ Content []byte } `json:"publicKey"`
			} `json:"signature"`
			Signatures []struct{ Verifier []byte } `json:"signatures"`
			PublicKey  json.RawMessage             `json:"publicKey"`
			Content    struct {
				Envelope struct {
					Signatures []struct{ PublicKey []byte } `json:"signatures"`
				} `json:"envelope"`
			} `json:"content"`
			HashedRekordV002 struct {
				Signature struct{ Verifier verifier } `json:"signature"`
			} `json:"hashedRekordV002"`
			DsseV002 struct {
				Signatures []struct{ Verifier verifier } `json:"signatures"`
			} `json:"dsseV002"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && e.Kind != "" {
			return nil, e.Kind, nil
		}
		return nil, "", fmt.Errorf("reading an entry: %w", err)
	}
	add := func(v []byte) {
		if len(v) > 0 {
			verifiers = append(verifiers, v)
		}
	}
	switch e.Kind {
	case "hashedrekord":
		add(e.Spec.Signature.PublicKey.Content)
		add(e.Spec.HashedRekordV002.Signature.Verifier.X509Certificate.RawBytes)
		add(e.Spec.HashedRekordV002.Signature.Verifier.PublicKey.RawBytes)
	case "dsse":
		for _, s := range e.Spec.Signatures {
			add(s.Verifier)
		}
		for _, s := range e.Spec.DsseV002.Signatures {
			add(s.Verifier.X509Certificate.RawBytes)
			add(s.Verifier.PublicKey.RawBytes)
		}
	case "intoto":
		for _, s := range e.Spec.Content.Envelope.Signatures {
			add(s.PublicKey)
		}
		var pem []byte
		if len(e.Spec.PublicKey) > 0 && json.Unmarshal(e.Spec.PublicKey, &pem) == nil {
			add(pem)
		}
	}
	return verifiers, e.Kind, nil
}

// parseVerifier reads a certificate or a key, PEM or DER.
func parseVerifier(data []byte) (*x509.Certificate, crypto.PublicKey, error) {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) {
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, nil, errors.New("not PEM")
		}
		data = block.Bytes
	}
	if leaf, err := x509.ParseCertificate(data); err == nil {
		return leaf, leaf.PublicKey, nil
	}
	key, err := x509.ParsePKIXPublicKey(data)
	return nil, key, err
}

func (p *sigstorePolicy) names(leaf *x509.Certificate, key crypto.PublicKey) error {
	return p.signer.policy.AcceptsNames(leaf, key)
}

func (p *clusterImagePolicy) names(leaf *x509.Certificate, key crypto.PublicKey) error {
	var signers []*verify.Policy
	for _, a := range p.authorities {
		if a.static == nil {
			signers = append(signers, &a.signer)
		}
	}
	return anyNames(signers, leaf, key)
}

func (p *imagePolicy) names(leaf *x509.Certificate, key crypto.PublicKey) error {
	var signers []*verify.Policy
	for _, r := range p.rules {
		for i := range r.attestors {
			signers = append(signers, r.attestors[i].signers()...)
		}
		for _, a := range r.attestations {
			for i := range a.sets {
				signers = append(signers, a.sets[i].signers()...)
			}
		}
	}
	return anyNames(signers, leaf, key)
}

func (s *attestorSet) signers() []*verify.Policy {
	var all []*verify.Policy
	for _, e := range s.entries {
		if e.nested != nil {
			all = append(all, e.nested.signers()...)
		} else {
			all = append(all, &e.signer.policy)
		}
	}
	return all
}

func (p *validatingPolicy) names(leaf *x509.Certificate, key crypto.PublicKey) error {
	var signers []*verify.Policy
	for _, s := range p.attestors {
		signers = append(signers, &s.policy)
	}
	return anyNames(signers, leaf, key)
}

func (c *combination) names(leaf *x509.Certificate, key crypto.PublicKey) error {
	var first error
	for _, p := range c.policies {
		n, ok := p.(namingPolicy)
		if !ok {
			continue
		}
		err := n.names(leaf, key)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return cmpOr(first, refused(verify.ReasonPolicyDenied, "the policy names nobody"))
}

// anyNames returns the refusal that came furthest.
func anyNames(signers []*verify.Policy, leaf *x509.Certificate, key crypto.PublicKey) error {
	var deepest error
	for _, s := range signers {
		err := s.AcceptsNames(leaf, key)
		if err == nil {
			return nil
		}
		if deepest == nil || depth(err) > depth(deepest) {
			deepest = err
		}
	}
	return cmpOr(deepest, refused(verify.ReasonPolicyDenied, "the policy names nobody"))
}

// AddImage takes the decision about an image and what is attached to it: all who signed a refused image are shown as failed, and a
// signer without a name where nobody has. Bundles that name a key by a hint alone are left out.
func (r *Replay) AddImage(v Verdict, attachments []oci.Attachment) error {
	if len(attachments) == 0 {
		return r.judged(Signer{}, time.Time{}, v)
	}
	for _, a := range attachments {
		leaf, err := certificateOf(a.Bundle)
		if err != nil {
			r.skipped["attachments without a certificate"]++
			continue
		}
		who, err := signerOf(leaf, nil)
		if err != nil {
			return err
		}
		if err := r.judged(who, leaf.NotBefore.UTC(), v); err != nil {
			return err
		}
	}
	return nil
}

func (r *Replay) judged(who Signer, when time.Time, v Verdict) error {
	s, err := r.of(who)
	if err != nil {
		return err
	}
	s.Entries++
	span(&s.First, &s.Last, when)
	if !v.Allowed {
		s.Failed++
		s.Reason = cmp.Or(append(v.reasons(), verify.ReasonPolicyDenied)...)
		span(&s.FirstFailure, &s.LastFailure, when)
	}
	return nil
}

// certificateOf reads the signing certificate of a bundle, which is not verified.
func certificateOf(bundle []byte) (*x509.Certificate, error) {
	type certificate struct {
		RawBytes []byte `json:"rawBytes"`
	}
	var b struct {
		VerificationMaterial struct {
			Certificate          certificate `json:"certificate"`
			X509CertificateChain struct {
				Certificates []certificate `json:"certificates"`
			} `json:"x509CertificateChain"`
		} `json:"verificationMaterial"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		return nil, err
	}
	der := b.VerificationMaterial.Certificate.RawBytes
	if chain := b.VerificationMaterial.X509CertificateChain.Certificates; len(der) == 0 && len(chain) > 0 {
		der = chain[0].RawBytes
	}
	return x509.ParseCertificate(der)
}
