package ca

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// Request asks for a certificate. CSR wins over PublicKey and Proof.
type Request struct {
	Token     string // identity token, compact JWS
	PublicKey []byte // PEM or PKIX DER
	Proof     []byte // signature over one of the principal's challenges
	CSR       []byte // PEM PKCS #10

	ID string // names the request in the audit line
}

// Issued is a new certificate.
type Issued struct {
	DER      []byte
	PEM      []string // leaf, intermediates, root; no trailing newlines
	Embedded bool     // an SCT is embedded; false only when CT is disabled or detached
	SCT      []byte   // detached, as RFC 6962's add-chain response (JSON); else nil
	Serial   []byte
	NotAfter time.Time
}

// Issue checks the token, then the key, and only then signs: a precertificate, which the CT log
// must answer with a valid SCT, and the certificate. No certificate leaves without its SCT while
// CT is on. Errors are classified and start with the texts of Fulcio.
func (ca *CA) Issue(ctx context.Context, req Request) (*Issued, error) {
	return ca.current.Load().issue(ctx, req)
}

func (ca *snapshot) issue(ctx context.Context, req Request) (*Issued, error) {
	principal, err := ca.opts.Identity.Verify(ctx, req.Token)
	if err != nil {
		err = tokenFault(err)
		claimed, _ := ca.opts.Identity.Claimed(req.Token)
		ca.metrics.refused(claimed.Entry, err)
		return nil, err
	}
	entry := ca.opts.Identity.Entry(principal.OIDCIssuer)
	issued, err := ca.issueTo(ctx, req, principal, entry)
	if err != nil {
		ca.metrics.refused(entry, err)
	} else {
		ca.metrics.issuedTo(entry)
	}
	ca.metrics.builds.count(principal, err)
	return issued, err
}

// issueTo issues to a principal whose token is verified, one of the issuers of entry.
func (ca *snapshot) issueTo(ctx context.Context, req Request, principal *identity.Principal, entry *identity.Issuer) (*Issued, error) {
	if err := ca.admit(principal, entry); err != nil {
		return nil, err
	}
	pub, err := ca.provenKey(req, principal.Challenges)
	if err != nil {
		return nil, err
	}
	key, err := marshalKey(pub)
	if err != nil {
		return nil, fault.New(fault.Invalid, "key_malformed", err, textKey)
	}
	notBefore, notAfter, err := ca.window()
	if err != nil {
		return nil, err
	}
	t, err := ca.issuing.build(ca.opts.Rand, principal, key, notBefore, notAfter)
	if err != nil {
		return nil, fault.New(fault.Internal, "internal", err, textBackend)
	}
	bare := t.with(nil)
	if err := ca.issuing.lint(bare, principal); err != nil {
		return nil, fault.New(fault.Invalid, identity.ReasonClaimRejected, err, textBadClaims)
	}
	record := ca.issuance(req, principal, key)
	release, err := ca.reserve(ctx, record, principal)
	if err != nil {
		return nil, err
	}
	issued, err := ca.complete(ctx, record, principal, t, bare, notAfter)
	if err != nil {
		release()
	}
	return issued, err
}

// complete signs: the only place where certificates come to be. What it returns is recorded.
func (ca *snapshot) complete(ctx context.Context, record *Issuance, principal *identity.Principal, t tbs, bare []byte, notAfter time.Time) (*Issued, error) {
	var last []byte
	var entry *timestampedEntry
	if ca.opts.CT != nil && !ca.opts.CTDetached {
		sct, found, err := ca.promise(ctx, t, bare)
		if err != nil {
			return nil, err
		}
		entry = found
		last = extension(derSCTs, false, sctList(sct))
	}
	raw, err := ca.issuing.sign(ca.opts.Rand, t.with(last))
	if err != nil {
		return nil, signFault(err)
	}
	issued := &Issued{
		DER:      raw,
		PEM:      append([]string{strings.TrimSpace(encodePEM(raw))}, ca.chainPEM...),
		Embedded: entry != nil,
		Serial:   t.serial,
		NotAfter: notAfter,
	}
	if ca.opts.CTDetached {
		if issued.SCT, entry, err = ca.promiseDetached(ctx, raw); err != nil {
			return nil, err
		}
	}
	if err := ca.record(ctx, record, issued, entry); err != nil {
		return nil, err
	}
	ca.metrics.issued.Inc()
	ca.clock.issued(ca.opts.Now())
	ca.audit(principal, issued, entry, record.RequestID)
	return issued, nil
}

// promise enters the precertificate of t in the log and returns the log's SCT once it proved
// to cover bare, the TBS without poison and SCT list.
func (ca *snapshot) promise(ctx context.Context, t tbs, bare []byte) ([]byte, *timestampedEntry, error) {
	poisoned := t.with(derPoison)
	if !sameButLast(poisoned, bare, t, derPoison) {
		return nil, nil, fault.New(fault.Internal, "internal", errors.New("precertificate and certificate would differ"), textBackend)
	}
	precert, err := ca.issuing.sign(ca.opts.Rand, poisoned)
	if err != nil {
		return nil, nil, signFault(err)
	}
	return ca.submit(ctx, ca.opts.CT.AddPreChain, precert, logged{issuerKeyHash: ca.issuing.keyHash[:], data: bare})
}

// promiseDetached enters a certificate that is signed already, and returns the log's answer for the client.
func (ca *snapshot) promiseDetached(ctx context.Context, raw []byte) ([]byte, *timestampedEntry, error) {
	sct, entry, err := ca.submit(ctx, ca.opts.CT.(CTChainSubmitter).AddChain, raw, logged{data: raw})
	if err != nil {
		return nil, nil, err
	}
	answer, err := addChainResponse(sct)
	if err != nil {
		return nil, nil, fault.New(fault.Internal, "sct_invalid", err, textCTL)
	}
	return answer, entry, nil
}

// submit has the log promise to take cert and returns its SCT once it proved to cover of.
func (ca *snapshot) submit(ctx context.Context, add func(context.Context, [][]byte) ([]byte, error), cert []byte, of logged) ([]byte, *timestampedEntry, error) {
	limited, cancel := context.WithTimeout(ctx, ctTimeout)
	defer cancel()
	started := time.Now()
	before := ca.opts.CT.LogKey()
	sct, err := add(limited, append([][]byte{cert}, ca.chainDER...))
	if err != nil {
		ca.metrics.ct("error", started)
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		return nil, nil, fault.New(fault.Unavailable, "ct_unavailable", err, textCTL)
	}
	entry, err := checkSCT(sct, of, ca.opts.Now(), before, ca.opts.CT.LogKey())
	if err != nil {
		ca.metrics.ct("bad_sct", started)
		return nil, nil, fault.New(fault.Internal, "sct_invalid", err, textCTL)
	}
	ca.metrics.ct("ok", started)
	return sct, entry, nil
}

// sameButLast reports whether with and without, two forms of t, are the same but for last.
func sameButLast(with, without []byte, t tbs, last []byte) bool {
	body, ok := bytes.CutSuffix(with, last)
	return ok && bytes.HasSuffix(body, t.extensions) && bytes.HasSuffix(without, t.extensions) &&
		bytes.Contains(body, t.head) && bytes.Contains(without, t.head)
}

// tokenFault puts Fulcio's text before what identity says, which never quotes the token. What
// upstream answers with the detail alone (templates and claims, kind Invalid) stays as it is.
func tokenFault(err error) error {
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind == fault.Invalid || f.Kind == fault.Overloaded {
		return err
	}
	return fault.New(f.Kind, f.Reason, err, "%s: %s", textToken, f.Detail)
}
