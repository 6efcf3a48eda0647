package ca

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/internal/gen/fulcio"
	"github.com/attestry/attestry/internal/limit"
)

const (
	// MaxBody bounds a request, HTTP body or gRPC message, in bytes.
	MaxBody = 64 << 10

	defaultInFlight = 512
	bodyTime        = 30 * time.Second // for all of a request's body
)

// HandlerOptions tunes the wire side of a CA. The zero value works.
type HandlerOptions struct {
	MaxInFlight int            // signing requests at one time, more are refused with 429; default 512
	Origins     []string       // browser origins that may call the API; default any
	Callers     *limit.Callers // addresses' budgets of requests whose token does not hold; nil for none
	Bytes       *limit.Bytes   // of request bodies in memory, see limit.Body; nil for no bound
}

// Handler serves a CA over Fulcio's HTTP and gRPC APIs.
type Handler struct {
	fulcio.UnimplementedCAServer
	ca      *CA
	options atomic.Pointer[HandlerOptions]
	busy    atomic.Int64 // signing requests
}

// NewHandler returns a Handler for ca: see Register, Routes and RegisterGRPC.
func NewHandler(ca *CA, o HandlerOptions) *Handler {
	h := &Handler{ca: ca}
	h.Set(o)
	return h
}

// Set replaces the options. Requests under way are not affected.
func (h *Handler) Set(o HandlerOptions) {
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = defaultInFlight
	}
	h.options.Store(&o)
}

// issue runs one signing request, whatever wire it came by. caller has the address that it came from.
func (h *Handler) issue(ctx context.Context, req Request, caller *http.Request) (*Issued, error) {
	o := h.options.Load()
	if h.busy.Add(1) > int64(o.MaxInFlight) {
		h.busy.Add(-1)
		return nil, fault.New(fault.Overloaded, "rate_limited", nil, "too many requests at once, try again")
	}
	h.ca.metrics.inFlight.Inc()
	defer func() {
		h.busy.Add(-1)
		h.ca.metrics.inFlight.Dec()
	}()
	if left := new(fault.Error); errors.As(o.Callers.Left(caller), &left) {
		return nil, limited(left.RetryAfter, "too many requests with tokens that do not hold from one address")
	}
	issued, err := h.ca.Issue(ctx, req)
	if fault.KindOf(err) == fault.Unauthentic {
		_ = o.Callers.Spend(caller, 1) // the next request meets what is left
	}
	if err != nil {
		return nil, &refusedRequest{err, req.Token}
	}
	return issued, nil
}

// request translates the v2 message. outer is the token beside the message: HTTP header or gRPC
// metadata. sigstore-js sends the token in the message only, cosign, sigstore-go and
// sigstore-python in the header only.
func request(m *fulcio.CreateSigningCertificateRequest, outer, id string) (Request, error) {
	token := m.GetCredentials().GetOidcIdentityToken()
	if token != "" && outer != "" && token != outer {
		return Request{}, fault.New(fault.Unauthentic, "malformed_token", nil, "%s: header and body carry different tokens", textToken)
	}
	if token == "" {
		token = outer
	}
	return Request{
		Token:     token,
		PublicKey: []byte(m.GetPublicKeyRequest().GetPublicKey().GetContent()),
		Proof:     m.GetPublicKeyRequest().GetProofOfPossession(),
		CSR:       m.GetCertificateSigningRequest(),
		ID:        id,
	}, nil
}

// response is the v2 answer: exactly one of its two forms, sigstore-rs counts the keys.
func response(c *Issued) *fulcio.SigningCertificate {
	chain := &fulcio.CertificateChain{Certificates: c.PEM}
	if c.Embedded {
		return &fulcio.SigningCertificate{Certificate: &fulcio.SigningCertificate_SignedCertificateEmbeddedSct{
			SignedCertificateEmbeddedSct: &fulcio.SigningCertificateEmbeddedSCT{Chain: chain},
		}}
	}
	return &fulcio.SigningCertificate{Certificate: &fulcio.SigningCertificate_SignedCertificateDetachedSct{
		SignedCertificateDetachedSct: &fulcio.SigningCertificateDetachedSCT{Chain: chain, SignedCertificateTimestamp: c.SCT},
	}}
}

// trustBundle lists every chain, each issuing certificate first, each PEM with its newline.
func (h *Handler) trustBundle() *fulcio.TrustBundle {
	now := h.ca.current.Load()
	out := &fulcio.TrustBundle{}
	current := &fulcio.CertificateChain{}
	for _, c := range now.chainPEM {
		current.Certificates = append(current.Certificates, c+"\n")
	}
	out.Chains = append(out.Chains, current)
	for _, chain := range now.opts.OtherChains {
		other := &fulcio.CertificateChain{}
		for _, cert := range chain {
			other.Certificates = append(other.Certificates, encodePEM(cert.Raw))
		}
		out.Chains = append(out.Chains, other)
	}
	return out
}

func (h *Handler) configuration() *fulcio.Configuration {
	out := &fulcio.Configuration{}
	for _, i := range h.ca.current.Load().opts.Identity.Issuers() {
		o := &fulcio.OIDCIssuer{
			Issuer:                &fulcio.OIDCIssuer_IssuerUrl{IssuerUrl: i.URL},
			Audience:              i.ClientID(),
			ChallengeClaim:        i.Challenge(),
			SpiffeTrustDomain:     i.SPIFFETrustDomain,
			IssuerType:            string(i.Type),
			SubjectDomain:         i.SubjectDomain,
			SkipEmailVerification: i.SkipEmailVerification,
		}
		if i.Wildcard {
			o.Issuer = &fulcio.OIDCIssuer_WildcardIssuerUrl{WildcardIssuerUrl: i.URL}
		}
		out.Issuers = append(out.Issuers, o)
	}
	return out
}

// bearer returns the token of an Authorization header: the scheme in any case, or a bare token
// as upstream takes it.
func bearer(values []string) (string, error) {
	several := fault.New(fault.Unauthentic, "malformed_token", nil, "%s: the Authorization header does not hold one bearer token", textToken)
	if len(values) > 1 {
		return "", several
	}
	if len(values) == 0 {
		return "", nil
	}
	fields := strings.Fields(values[0])
	switch {
	case len(fields) == 0:
		return "", nil
	case len(fields) == 1 && !strings.EqualFold(fields[0], "bearer"):
		return fields[0], nil
	case len(fields) == 2 && strings.EqualFold(fields[0], "bearer"):
		return fields[1], nil
	}
	return "", several
}
