package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	maxProgram   = 64 << 10         // bytes of a CUE or Rego policy
	maxInput     = 10 << 20         // bytes that it is evaluated over
	evalTimeout  = 2 * time.Second  // and as much again for each 2 MiB of input, see timeout
	evalPlaces   = 4                // CUE evaluations of one program at a time
	evalWait     = 10 * time.Second // for one of them
	evalHeap     = 512 << 20        // growth of the heap at which a Rego evaluation is stopped
	languageCUE  = "cue"
	languageRego = "rego"
)

// program is a policy in CUE or Rego.
type program interface {
	// evaluate returns nil when input, JSON, satisfies the policy. loosened says what only upstream's semantics let
	// through.
	evaluate(ctx context.Context, input []byte) (loosened string, err error)
}

// The members that the two kinds of input have at the top.
var (
	statementMembers = []string{"_type", "subject", "predicateType", "predicate"}
	resultMembers    = []string{"authorityMatches", "config", "spec", "metadata", "typemeta"}
)

// newProgram compiles source. members are those that its input can have at the top; cue is CUEStrict or CUEUpstream.
func newProgram(language, source string, members []string, cue string) (program, error) {
	if len(source) > maxProgram {
		return nil, fmt.Errorf("policy of over %d bytes", maxProgram)
	}
	switch language {
	case languageCUE:
		return newCUE(source, members, cue)
	case languageRego:
		return newRego(source)
	}
	return nil, fmt.Errorf("type %q is neither cue nor rego", language)
}

// What an evaluation ends with that took too long, or could not begin.
var (
	errDeadline = errors.New("the policy took longer than it may")
	errBusy     = fmt.Errorf("the policy's earlier evaluations have not ended after %s", evalWait)
)

// limited bounds evaluations that cannot be interrupted: each may take evalTimeout, and only a few run at a time. One that never
// ends keeps its place, so a program is given up after that many, instead of being started again and again.
type limited struct {
	places chan struct{}
}

func newLimited() limited { return limited{places: make(chan struct{}, evalPlaces)} }

func (l limited) run(ctx context.Context, size int, evaluate func() (string, error)) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	waiting, stop := context.WithTimeoutCause(ctx, evalWait, errBusy)
	defer stop()
	select {
	case l.places <- struct{}{}:
	case <-waiting.Done():
		return "", context.Cause(waiting)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout(size), errDeadline)
	defer cancel()
	type outcome struct {
		loosened string
		err      error
	}
	done := make(chan outcome, 1)
	go func() { // ends with the evaluation, which may be after its caller has left
		defer func() {
			if r := recover(); r != nil {
				done <- outcome{err: panicked(r)}
			}
			<-l.places
		}()
		loosened, err := evaluate()
		done <- outcome{loosened: loosened, err: err}
	}()
	select {
	case o := <-done:
		return o.loosened, o.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// timeout is how long an evaluation over size bytes may take. CUE reads a megabyte in half a second.
func timeout(size int) time.Duration { return evalTimeout + evalTimeout*time.Duration(size>>10)/2048 }

func checkInput(input []byte) error {
	if len(input) > maxInput {
		return fmt.Errorf("the policy's input has over %d bytes", maxInput)
	}
	if len(input) == 0 {
		return errors.New("the policy has no input")
	}
	return nil
}

func known(members []string, name string) bool { return slices.Contains(members, name) }
