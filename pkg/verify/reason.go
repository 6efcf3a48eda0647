package verify

import (
	"github.com/attestry/attestry/internal/fault"
)

// Reason is a stable code that says why verification failed. Codes are part of the API: they are
// printed, logged and counted.
type Reason string

const (
	ReasonNoSignature       Reason = "no-signature"
	ReasonFormatUnsupported Reason = "format-unsupported"
	ReasonBundleMalformed   Reason = "bundle-malformed"
	ReasonTooLarge          Reason = "too-large"
	ReasonLogUnknown        Reason = "log-unknown"
	ReasonEntryMismatch     Reason = "log-entry-mismatch"
	ReasonSETInvalid        Reason = "set-invalid"
	ReasonInclusionInvalid  Reason = "inclusion-invalid"
	ReasonCheckpointInvalid Reason = "checkpoint-invalid"
	ReasonNoTime            Reason = "no-time"
	ReasonTimestampInvalid  Reason = "timestamp-invalid"
	ReasonCertChain         Reason = "cert-chain"
	ReasonCertExpired       Reason = "cert-expired-at-signing"
	ReasonSCTMissing        Reason = "sct-missing"
	ReasonSCTInvalid        Reason = "sct-invalid"
	ReasonSignatureInvalid  Reason = "signature-invalid"
	ReasonSubjectMismatch   Reason = "subject-mismatch"
	ReasonPredicateMissing  Reason = "predicate-missing"
	ReasonIdentityIssuer    Reason = "identity-issuer"
	ReasonIdentitySubject   Reason = "identity-subject"
	ReasonPolicyDenied      Reason = "policy-denied"
	ReasonKeyMismatch       Reason = "key-mismatch"
	ReasonTrustMissing      Reason = "trust-missing"
)

// ReasonOf returns the code of an error from this package, "internal" for any other error.
func ReasonOf(err error) Reason { return Reason(fault.ReasonOf(err)) }

// fail makes a refusal; cause may be nil.
func fail(reason Reason, cause error, format string, args ...any) error {
	kind := fault.Denied
	switch reason {
	case ReasonBundleMalformed, ReasonFormatUnsupported:
		kind = fault.Invalid
	case ReasonTooLarge:
		kind = fault.TooLarge
	}
	return fault.New(kind, string(reason), cause, format, args...)
}
