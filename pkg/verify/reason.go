package verify

import (
	"github.com/attestry/attestry/internal/fault"
)

// Reason is a stable code that says why verification failed: one for each property that is checked. Codes are part of the
// API: they are printed, logged and counted. docs/verify.md lists them.
type Reason string

// The bundle as a document.
const (
	ReasonNoSignature        Reason = "no-signature"        // there is none
	ReasonFormatUnsupported  Reason = "format-unsupported"  // a version or kind that is not read
	ReasonBundleMalformed    Reason = "bundle-malformed"    // not a bundle of its version
	ReasonTooLarge           Reason = "too-large"           // over a limit
	ReasonEnvelopeSignatures Reason = "envelope-signatures" // a DSSE envelope has not exactly one signature
	ReasonPayloadType        Reason = "payload-type"        // a DSSE payload is not declared as in-toto
	ReasonStatementMalformed Reason = "statement-malformed" // a payload is not one unambiguous in-toto statement
)

// Transparency log entries.
const (
	ReasonLogUnknown          Reason = "log-unknown"          // no entry is of a log of the trusted root
	ReasonEntryMissing        Reason = "log-entry-missing"    // fewer entries than required
	ReasonEntryMalformed      Reason = "log-entry-malformed"  // a body is not what its kind says
	ReasonEntryMismatch       Reason = "log-entry-mismatch"   // an entry of a kind that this content is not logged as, or not canonical
	ReasonEntrySignature      Reason = "log-entry-signature"  // an entry for another signature
	ReasonEntryVerifier       Reason = "log-entry-verifier"   // an entry for another certificate or key
	ReasonEntryDigest         Reason = "log-entry-digest"     // an entry for another digest or payload
	ReasonSETInvalid          Reason = "set-invalid"          // the signed entry timestamp does not verify
	ReasonLogExpired          Reason = "log-expired"          // integrated outside the validity of the log's key
	ReasonInclusionMissing    Reason = "inclusion-missing"    // an entry with neither promise nor proof
	ReasonInclusionInvalid    Reason = "inclusion-invalid"    // the entry is not in the tree
	ReasonInclusionIndex      Reason = "inclusion-index"      // proof and entry have different indexes
	ReasonCheckpointMalformed Reason = "checkpoint-malformed" // not a signed tree head
	ReasonCheckpointOrigin    Reason = "checkpoint-origin"    // of another log
	ReasonCheckpointUnsigned  Reason = "checkpoint-unsigned"  // no signature by the log's key
	ReasonCheckpointInvalid   Reason = "checkpoint-invalid"   // the log's signature does not verify
	ReasonCheckpointMismatch  Reason = "checkpoint-mismatch"  // for another tree than the proof
)

// Time.
const (
	ReasonNoTime             Reason = "no-time"             // fewer proven times than required
	ReasonTimestampMalformed Reason = "timestamp-malformed" // not a granted RFC 3161 response
	ReasonTimestampHash      Reason = "timestamp-hash"      // over a weak or unknown digest
	ReasonTimestampMismatch  Reason = "timestamp-mismatch"  // over another signature
	ReasonTimestampExpired   Reason = "timestamp-expired"   // outside the window of the authority
	ReasonTimestampUntrusted Reason = "timestamp-untrusted" // signed by another certificate than the trusted root names or leads to
	ReasonTimestampUsage     Reason = "timestamp-usage"     // by a certificate that is not for timestamping alone
	ReasonTimestampInvalid   Reason = "timestamp-invalid"   // the token's signature does not verify
	ReasonTimestampChain     Reason = "timestamp-chain"     // the certificate had no chain at that time
)

// The signing certificate.
const (
	ReasonCertSubject      Reason = "cert-subject"            // it names nobody
	ReasonIssuerConflict   Reason = "issuer-conflict"         // its two issuer extensions contradict each other
	ReasonCertUsage        Reason = "cert-usage"              // it is not for code signing
	ReasonCertIsCA         Reason = "cert-is-ca"              // it is a CA certificate
	ReasonCertExpired      Reason = "cert-expired-at-signing" // a proven time is outside its validity
	ReasonAuthorityExpired Reason = "authority-expired"       // a proven time is outside the window of the authority
	ReasonCertChain        Reason = "cert-chain"              // no chain to an authority of the trusted root
	ReasonSCTMissing       Reason = "sct-missing"             // fewer SCTs of known logs than required
	ReasonSCTMalformed     Reason = "sct-malformed"           // the list cannot be read
	ReasonSCTExpired       Reason = "sct-expired"             // outside the validity of the CT log's key
	ReasonSCTInvalid       Reason = "sct-invalid"             // an SCT does not verify
)

// What was signed, and by whom.
const (
	ReasonSignatureInvalid  Reason = "signature-invalid"  // the signature does not verify
	ReasonDigestMismatch    Reason = "digest-mismatch"    // the bundle is for another artifact
	ReasonSubjectMismatch   Reason = "subject-mismatch"   // the artifact is no subject of the statement
	ReasonPredicateMissing  Reason = "predicate-missing"  // not an attestation of the type
	ReasonIdentityIssuer    Reason = "identity-issuer"    // no identity with this issuer
	ReasonIdentitySubject   Reason = "identity-subject"   // none with this subject
	ReasonIdentityExtension Reason = "identity-extension" // another value of an extension
	ReasonPolicyDenied      Reason = "policy-denied"      // a policy over what was signed
	ReasonKeyMismatch       Reason = "key-mismatch"       // a key's bundle for an identity, or the reverse
	ReasonKeyExpired        Reason = "key-expired"        // signed outside the key's window
)

// Images.
const (
	ReasonImageUnknown        Reason = "image-unknown"        // there is no such image
	ReasonImageMalformed      Reason = "image-malformed"      // content that is not what its digest or its format says
	ReasonRegistryUnreachable Reason = "registry-unreachable" // no answer, one that asks to come again, or a wrong name or certificate: trying again can help
	ReasonRegistryDenied      Reason = "registry-denied"      // the registry wants other credentials
	ReasonRegistryBlocked     Reason = "registry-blocked"     // an address or host that must not be asked
)

// Trust.
const (
	ReasonTrustMissing Reason = "trust-missing" // the trusted root is malformed or lacks what is needed
	ReasonTrustStale   Reason = "trust-stale"   // the trusted root is older than allowed
)

// ReasonInternal stands for an error that nobody gave a reason: nothing was decided.
const ReasonInternal Reason = "internal"

// Class is the wider code that r belongs to, r itself for most. There are fewer classes than reasons, and other programs know
// them: count by them.
func (r Reason) Class() Reason {
	switch r {
	case ReasonEnvelopeSignatures, ReasonPayloadType, ReasonStatementMalformed, ReasonEntryMalformed:
		return ReasonBundleMalformed
	case ReasonEntrySignature, ReasonEntryVerifier, ReasonEntryDigest:
		return ReasonEntryMismatch
	case ReasonLogExpired:
		return ReasonSETInvalid
	case ReasonEntryMissing, ReasonInclusionMissing, ReasonInclusionIndex:
		return ReasonInclusionInvalid
	case ReasonCheckpointMalformed, ReasonCheckpointOrigin, ReasonCheckpointUnsigned, ReasonCheckpointMismatch:
		return ReasonCheckpointInvalid
	case ReasonTimestampMalformed, ReasonTimestampHash, ReasonTimestampMismatch, ReasonTimestampExpired, ReasonTimestampUntrusted,
		ReasonTimestampUsage, ReasonTimestampChain:
		return ReasonTimestampInvalid
	case ReasonCertUsage, ReasonCertIsCA, ReasonAuthorityExpired:
		return ReasonCertChain
	case ReasonSCTMalformed, ReasonSCTExpired:
		return ReasonSCTInvalid
	case ReasonDigestMismatch:
		return ReasonSubjectMismatch
	case ReasonIssuerConflict:
		return ReasonIdentityIssuer
	case ReasonCertSubject:
		return ReasonIdentitySubject
	case ReasonIdentityExtension:
		return ReasonPolicyDenied
	case ReasonKeyExpired:
		return ReasonKeyMismatch
	}
	return r
}

// ReasonOf returns the code of an error from this package, ReasonInternal for any other error.
func ReasonOf(err error) Reason { return Reason(fault.ReasonOf(err)) }

// Undecided reports whether r says nothing of what was asked about: no answer, no time left, a failure of ours. Where several things
// failed and one that passes would have done, nothing is decided while one of them is undecided; where all had to pass, any
// other refusal decides.
func (r Reason) Undecided() bool {
	switch r {
	case ReasonRegistryUnreachable, ReasonInternal, "deadline", "canceled": // the last two are internal/fault's of a context
		return true
	}
	return false
}

// fail makes a refusal; cause may be nil.
func fail(reason Reason, cause error, format string, args ...any) error {
	kind := fault.Denied
	switch {
	case reason == ReasonTooLarge:
		kind = fault.TooLarge
	case reason == ReasonFormatUnsupported, reason.Class() == ReasonBundleMalformed:
		kind = fault.Invalid
	}
	return fault.New(kind, string(reason), cause, format, args...)
}
