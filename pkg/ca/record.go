package ca

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/ca/identity"
)

// Recorder keeps what the CA did, where auditors can ask for it; pkg/ca/records is one. It is safe for concurrent use.
type Recorder interface {
	// Issued returns nil once r is durable; only then does the certificate leave. With r.Use it marks the token as used in
	// the same step, and fails with reason "replayed" when that was used, or taken over, meanwhile. Other errors
	// are fault.Unavailable and leave open whether r is stored.
	Issued(ctx context.Context, r *Issuance) error
	// Refused takes r along. It does not wait and may leave r out, which is then counted.
	Refused(r *Refusal)
	// Reserve holds a token for one request: until Issued or release, at most HoldTime, every other Reserve of
	// it fails with reason "token_in_use", and after Issued with "replayed". release gives a token back that no
	// certificate was issued for.
	Reserve(ctx context.Context, u TokenUse) (release func(), err error)
	// Ready returns nil while records can be written.
	Ready(ctx context.Context) error
}

// HoldTime bounds how long a request holds its token: longer than any of them takes.
const HoldTime = 30 * time.Second

// TokenUse is one request's use of a token that counts once.
type TokenUse struct {
	TokenID [32]byte
	Holder  [16]byte  // of the request, random
	Expires time.Time // of the token
}

// Issuance is the record of a certificate.
type Issuance struct {
	Time        time.Time // by the CA's clock, in ms
	Serial      []byte    // big-endian, without leading zeros
	NotAfter    time.Time // of the certificate, in s
	Identity    string    // subject alternative name
	OIDCIssuer  string    // the token's iss
	Subject     string    // the token's sub
	Token       [32]byte  // fingerprint, as in the log lines
	Rule        string    // that allowed it; "" when none matched
	KeyID       [32]byte  // SHA-256 of the certified key's SubjectPublicKeyInfo
	Certificate [32]byte  // SHA-256 of the certificate's DER
	IssuingCert [32]byte  // SHA-256 of the issuing certificate's DER
	CT          *CTLeaf   // nil without a log
	RequestID   string

	Use *TokenUse // nil where tokens count more than once; not part of the record
}

// CTLeaf is where a CT log has the certificate or its precertificate.
type CTLeaf struct {
	LogID    [32]byte // SHA-256 of the log key's SubjectPublicKeyInfo
	LeafHash [32]byte
	Index    int64 // -1 where the SCT does not name it
}

// Refusal is the record of a request without a certificate. What it has of the token is not verified.
type Refusal struct {
	Time       time.Time
	Reason     string    // stable code
	Status     int       // HTTP
	OIDCIssuer string    // that the token names, if it is configured; else ""
	Token      *[32]byte // fingerprint; nil without a well-formed token
	RequestID  string
	Detail     string // what the client was told; never part of a token
}

func (ca *snapshot) issuance(req Request, p *identity.Principal, key keyInfo) *Issuance {
	return &Issuance{
		Identity: p.SAN.Value, OIDCIssuer: p.OIDCIssuer, Subject: p.Subject, Token: p.Fingerprint, Rule: p.Rule, RequestID: req.ID,
		KeyID: sha256.Sum256(key.spki), IssuingCert: sha256.Sum256(ca.opts.Chain[0].Raw),
	}
}

// reserve holds the token of r where tokens count once. release is for a request that ended without a certificate.
func (ca *snapshot) reserve(ctx context.Context, r *Issuance, p *identity.Principal) (release func(), err error) {
	if !ca.opts.OneTimeTokens {
		return func() {}, nil
	}
	r.Use = &TokenUse{TokenID: p.TokenID, Expires: p.Expires}
	rand.Read(r.Use.Holder[:]) // never fails
	release, err = ca.opts.Recorder.Reserve(ctx, *r.Use)
	return release, recordFault(err)
}

// record stores r, completed by what was signed. It is the last step before a certificate leaves.
func (ca *snapshot) record(ctx context.Context, r *Issuance, c *Issued, entry *timestampedEntry) error {
	if ca.opts.Recorder == nil {
		return nil
	}
	r.Time, r.Serial, r.NotAfter, r.Certificate = ca.opts.Now(), c.Serial, c.NotAfter, sha256.Sum256(c.DER)
	if entry != nil {
		r.CT = &CTLeaf{LogID: entry.logID, LeafHash: entry.leafHash(), Index: entry.leafIndex()}
	}
	return recordFault(ca.opts.Recorder.Issued(ctx, r))
}

// recordFault puts Fulcio's texts before what a Recorder says: a used token is the client's mistake, the rest is not.
func recordFault(err error) error {
	var f *fault.Error
	if !errors.As(err, &f) {
		return err
	}
	text := textBackend
	if f.Kind == fault.Unauthentic {
		text = textToken
	}
	return fault.New(f.Kind, f.Reason, err, "%s: %s", text, f.Detail)
}

// refusedRequest is the error of a request that had a token.
type refusedRequest struct {
	error
	token string
}

func (e *refusedRequest) Unwrap() error { return e.error }

// recordRefusal stores that a request was answered with a; e may be a refusedRequest.
func (ca *snapshot) recordRefusal(err error, a answer, requestID string) {
	if ca.opts.Recorder == nil {
		return
	}
	r := &Refusal{Time: ca.opts.Now(), Reason: fault.ReasonOf(err), Status: a.status, RequestID: requestID, Detail: fault.Public(err)}
	if e, ok := err.(*refusedRequest); ok {
		if claimed, ok := ca.opts.Identity.Claimed(e.token); ok {
			r.OIDCIssuer, r.Token = claimed.OIDCIssuer, &claimed.Fingerprint
		}
	}
	ca.opts.Recorder.Refused(r)
}

// addChainResponse is the JSON of RFC 6962, section 4.1, which detached SCTs are handed out as.
func addChainResponse(sct []byte) ([]byte, error) {
	s, err := parseSCT(sct)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	err = enc.Encode(struct {
		Version    uint8  `json:"sct_version"`
		ID         []byte `json:"id"`
		Timestamp  uint64 `json:"timestamp"`
		Extensions []byte `json:"extensions"`
		Signature  []byte `json:"signature"`
	}{s.version, s.logID[:], s.timestampMillis, s.extensions, s.digitallySigned})
	return []byte(strings.TrimSpace(text.String())), err
}
