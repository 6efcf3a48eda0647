package verify

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"time"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
)

type (
	pkixExtension = pkix.Extension
	asn1OID       = asn1.ObjectIdentifier
)

// ResultMediaType is that of sigstore-go's verification result, which ours extends.
const ResultMediaType = "application/vnd.dev.sigstore.verificationresult+json;version=0.1"

// Result says what was proven. Everything in it is verified.
type Result struct {
	MediaType          string              `json:"mediaType"`
	Statement          *Statement          `json:"statement,omitempty"`
	Signature          Signature           `json:"signature"`
	VerifiedTimestamps []VerifiedTimestamp `json:"verifiedTimestamps"`
	VerifiedIdentity   *VerifiedIdentity   `json:"verifiedIdentity,omitempty"`

	LogEntries        []VerifiedEntry `json:"logEntries"`
	BundleDigest      string          `json:"bundleDigest"`      // sha256:…, of the bundle's bytes
	TrustedRootDigest string          `json:"trustedRootDigest"` // sha256:…, of the trusted root that vouches
}

// Signature names the signer.
type Signature struct {
	PublicKeyID []byte               `json:"publicKeyId,omitempty"` // SHA-256 of the SubjectPublicKeyInfo
	Certificate *certificate.Summary `json:"certificate,omitempty"`
}

// VerifiedIdentity is the pair that a policy accepted.
type VerifiedIdentity struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
}

// VerifiedTimestamp is an instant at which the signature existed.
type VerifiedTimestamp struct {
	Type      string    `json:"type"` // Tlog or TimestampAuthority
	URI       string    `json:"uri"`
	Timestamp time.Time `json:"timestamp"`
	Authority string    `json:"authority,omitempty"` // subject of the TSA certificate
}

// VerifiedEntry is a log entry that a log of the trusted root vouches for.
type VerifiedEntry struct {
	LogID          string `json:"logID"` // hex
	LogIndex       int64  `json:"logIndex"`
	BaseURL        string `json:"baseURL,omitempty"`
	Kind           string `json:"kind"`
	Version        string `json:"version"`
	CheckpointSize int64  `json:"checkpointSize,omitempty"` // 0 when only promised
}

func (a *attempt) result() *Result {
	r := &Result{
		MediaType: ResultMediaType, Statement: a.bundle.statement,
		VerifiedTimestamps: a.times, LogEntries: a.entries, TrustedRootDigest: a.root.digest,
	}
	if a.bundle.leaf != nil {
		s := a.bundle.summary
		r.Signature.Certificate = s
		r.VerifiedIdentity = &VerifiedIdentity{Issuer: s.Issuer, Subject: s.SubjectAlternativeName}
		return r
	}
	if der, err := x509.MarshalPKIXPublicKey(a.policy.Key); err == nil {
		id := sha256.Sum256(der)
		r.Signature.PublicKeyID = id[:]
	}
	return r
}
