package tsa

import (
	"errors"
	"strconv"

	"github.com/attestry/attestry/internal/fault"
)

// failure is a bit number of PKIFailureInfo, RFC 3161 section 2.4.2.
type failure int

const (
	badAlg              failure = 0
	badRequest          failure = 2
	badDataFormat       failure = 5
	timeNotAvailable    failure = 14
	unacceptedPolicy    failure = 15
	unacceptedExtension failure = 16
	systemFailure       failure = 25
)

// failures is the closed set of refusals: what the RFC calls each, whose mistake it is.
var failures = map[failure]struct {
	name string // of the RFC: reason code in the log, label of the metric
	kind fault.Kind
}{
	badAlg:              {"badAlg", fault.Invalid},
	badRequest:          {"badRequest", fault.Invalid},
	badDataFormat:       {"badDataFormat", fault.Invalid},
	timeNotAvailable:    {"timeNotAvailable", fault.Unavailable},
	unacceptedPolicy:    {"unacceptedPolicy", fault.Invalid},
	unacceptedExtension: {"unacceptedExtension", fault.Invalid},
	systemFailure:       {"systemFailure", fault.Unavailable},
}

func (f failure) String() string {
	if known, ok := failures[f]; ok {
		return known.name
	}
	return "failInfo " + strconv.Itoa(int(f))
}

// refusal is a refused query. The wrapped fault holds the text for the client (statusString
// of the reply) and the RFC's name of the failure as reason code.
type refusal struct {
	info  failure
	fault *fault.Error
}

func (r *refusal) Error() string { return r.fault.Error() }

// Unwrap lets fault.KindOf, fault.ReasonOf and fault.Public see the classified error.
func (r *refusal) Unwrap() error { return r.fault }

func refuse(info failure, cause error, format string, args ...any) error {
	return &refusal{info: info, fault: fault.New(failures[info].kind, info.String(), cause, format, args...)}
}

// failureOf returns the failInfo that tells a client about err: systemFailure for all that
// is not a refusal.
func failureOf(err error) failure {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.info
	}
	return systemFailure
}
