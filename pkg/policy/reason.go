package policy

import (
	"github.com/attestry/attestry/internal/fault"
	"github.com/attestry/attestry/pkg/verify"
)

// refused makes an error with a reason.
func refused(reason verify.Reason, format string, args ...any) error {
	return fault.New(fault.Denied, string(reason), nil, format, args...)
}
