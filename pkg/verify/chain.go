package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// authority is a certificate authority of the trusted root: an anchor, the intermediates under it and
// the window in which it was in use.
type authority struct {
	root    *x509.Certificate
	window  Window
	usage   x509.ExtKeyUsage
	roots   *x509.CertPool
	inter   *x509.CertPool
	issuers []candidate
}

// candidate is a certificate that may have issued a leaf. Its chain is verified when the first leaf asks for it,
// so that a command pays for one of them only.
type candidate struct {
	cert   *x509.Certificate
	issuer func() *issuer // nil result: take the long way
}

// issuer is an intermediate whose own chain to the root was verified once. Inside
// window, validating a leaf with this intermediate as the anchor gives the same answer as validating
// it to the root: signatures do not depend on time, every certificate above is valid throughout, carries no
// name constraint and leaves room for one more certificate, and key usages nest (a usage is
// allowed when every certificate of the chain allows it).
type issuer struct {
	cert   *x509.Certificate
	window Window
	anchor *x509.CertPool
}

func newAuthority(root *x509.Certificate, intermediates []*x509.Certificate, window Window, usage x509.ExtKeyUsage) *authority {
	a := &authority{root: root, window: window, usage: usage, roots: x509.NewCertPool(), inter: x509.NewCertPool()}
	a.roots.AddCert(root)
	for _, c := range intermediates {
		a.inter.AddCert(c)
	}
	for _, c := range append([]*x509.Certificate{root}, intermediates...) {
		a.issuers = append(a.issuers, candidate{cert: c, issuer: sync.OnceValue(func() *issuer { return a.shortcut(c) })})
	}
	return a
}

// windowOf verifies a fixed certificate's chain once and returns the times at which it holds; ok is false when there is not
// exactly one chain. Nothing in path validation but the validity periods depends on the time.
func (a *authority) windowOf(c *x509.Certificate) (w Window, ok bool) {
	chains, err := c.Verify(x509.VerifyOptions{
		Roots: a.roots, Intermediates: a.inter, CurrentTime: c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2),
		KeyUsages: []x509.ExtKeyUsage{a.usage},
	})
	if err != nil || len(chains) != 1 {
		return Window{}, false
	}
	w = Window{Start: c.NotBefore, End: c.NotAfter}
	for _, p := range chains[0][1:] {
		if p.NotBefore.After(w.Start) {
			w.Start = p.NotBefore
		}
		if p.NotAfter.Before(w.End) {
			w.End = p.NotAfter
		}
	}
	return w, true
}

// shortcut returns an issuer for c when the conditions above hold, else nil: then verify takes the long way.
func (a *authority) shortcut(c *x509.Certificate) *issuer {
	if !c.BasicConstraintsValid || !c.IsCA || constrainsNames(c) {
		return nil
	}
	i := &issuer{cert: c, window: Window{Start: c.NotBefore, End: c.NotAfter}, anchor: x509.NewCertPool()}
	i.anchor.AddCert(c)
	if c.Equal(a.root) {
		return i
	}
	chains, err := c.Verify(x509.VerifyOptions{
		Roots: a.roots, Intermediates: a.inter, CurrentTime: c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2),
		KeyUsages: []x509.ExtKeyUsage{a.usage},
	})
	if err != nil || len(chains) != 1 {
		return nil
	}
	for above, p := range chains[0][1:] {
		if constrainsNames(p) || (p.BasicConstraintsValid && p.MaxPathLen >= 0 && above+1 > p.MaxPathLen) {
			return nil
		}
		if p.NotBefore.After(i.window.Start) {
			i.window.Start = p.NotBefore
		}
		if p.NotAfter.Before(i.window.End) {
			i.window.End = p.NotAfter
		}
	}
	return i
}

func constrainsNames(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkixExtension) bool { return e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 30}) })
}

// verify validates leaf at t (RFC 5280, section 6, with t as the current time) and returns its issuer.
// extra are further untrusted intermediates; with them the long way is taken.
func (a *authority) verify(leaf *x509.Certificate, t time.Time, extra []*x509.Certificate) (*x509.Certificate, error) {
	if !a.window.contains(t) {
		// Only an authority by whose name the certificate was issued can have been the one.
		for _, c := range a.issuers {
			if bytes.Equal(leaf.RawIssuer, c.cert.RawSubject) {
				return nil, fail(ReasonAuthorityExpired, nil, "%s is outside the authority's window, %s", t.UTC().Format(time.RFC3339), a.window)
			}
		}
		return nil, fmt.Errorf("%s is outside the window of an authority of another name, %s", t.UTC().Format(time.RFC3339), a.window)
	}
	opts := x509.VerifyOptions{CurrentTime: t, KeyUsages: []x509.ExtKeyUsage{a.usage}}
	for _, c := range a.issuers {
		if !bytes.Equal(leaf.RawIssuer, c.cert.RawSubject) || leaf.Equal(c.cert) {
			continue
		}
		i := c.issuer()
		if i == nil || !i.window.contains(t) {
			continue
		}
		opts.Roots = i.anchor
		if _, err := leaf.Verify(opts); err == nil {
			return i.cert, nil
		}
	}
	opts.Roots, opts.Intermediates = a.roots, a.inter
	if len(extra) > 0 {
		opts.Intermediates = a.inter.Clone()
		for _, c := range extra {
			opts.Intermediates.AddCert(c)
		}
	}
	chains, err := leaf.Verify(opts)
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		if len(chain) > 1 {
			return chain[1], nil
		}
	}
	return nil, errors.New("the certificate is itself a trust anchor")
}

// verifyCertificate requires that the leaf is a signing certificate and that it chains to an authority of the trusted
// root at each of the proven times.
func (a *attempt) verifyCertificate() error {
	leaf := a.bundle.leaf
	if leaf == nil {
		a.key = a.policy.Key
		return nil
	}
	a.key = leaf.PublicKey
	if leaf.IsCA {
		return fail(ReasonCertIsCA, nil, "the signing certificate is a CA certificate")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fail(ReasonCertUsage, nil, "the signing certificate does not allow digital signatures")
	}
	for _, t := range a.times {
		if err := a.validAt(t.Timestamp); err != nil {
			return err
		}
		var problems []error
		a.issuer = nil
		for _, ca := range a.root.cas {
			issuer, err := ca.verify(leaf, t.Timestamp, nil)
			if err == nil {
				a.issuer = issuer
				break
			}
			problems = append(problems, err)
		}
		if a.issuer == nil {
			return fail(chainReason(problems), errors.Join(problems...), "the certificate chains to no authority of the trusted root")
		}
	}
	return nil
}

// chainReason picks the reason that says most of what each authority answered.
func chainReason(problems []error) Reason {
	reason := ReasonCertChain
	for _, err := range problems {
		var invalid x509.CertificateInvalidError
		switch {
		case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
			return ReasonCertUsage
		case ReasonOf(err) == ReasonAuthorityExpired:
			reason = ReasonAuthorityExpired
		}
	}
	return reason
}
