package verify

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxSubjects       = 1024
	maxSubjectDigests = 32
	maxJSONDepth      = 64
)

// Statement is an in-toto statement, decoded once and strictly: the same object serves subject
// matching, the predicate type and policy.
type Statement struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	// Predicate is raw JSON that has no duplicate key at any depth.
	Predicate json.RawMessage `json:"predicate,omitempty"`
}

// Subject names an artifact by digests in lower-case hex, keyed by algorithm.
type Subject struct {
	Name        string            `json:"name,omitempty"`
	URI         string            `json:"uri,omitempty"`
	Digest      map[string]string `json:"digest"`
	Annotations json.RawMessage   `json:"annotations,omitempty"`
}

// ParseStatement decodes an in-toto statement. It refuses duplicate keys at any depth, members of the
// statement or its subjects whose name differs from the specified one in case only, trailing data and nesting
// deeper than 64.
func ParseStatement(payload []byte) (*Statement, error) {
	s := &Statement{}
	if err := json.Unmarshal(payload, s); err != nil {
		return nil, fmt.Errorf("in-toto statement: %w", err)
	}
	if err := uniqueKeys(payload, exactNames); err != nil {
		return nil, fmt.Errorf("in-toto statement: %w", err)
	}
	if s.Type != "https://in-toto.io/Statement/v1" && s.Type != "https://in-toto.io/Statement/v0.1" {
		return nil, fmt.Errorf("in-toto statement of type %q", s.Type)
	}
	if len(s.Subject) == 0 {
		return nil, errors.New("in-toto statement has no subject")
	}
	if len(s.Subject) > maxSubjects {
		return nil, fail(ReasonTooLarge, nil, "in-toto statement has %d subjects, at most %d are allowed", len(s.Subject), maxSubjects)
	}
	for i, subject := range s.Subject {
		if n := len(subject.Digest); n > maxSubjectDigests {
			return nil, fail(ReasonTooLarge, nil, "in-toto subject %d has %d digests, at most %d are allowed", i, n, maxSubjectDigests)
		}
	}
	return s, nil
}

// exactNames refuses members that encoding/json would take for one of a statement's or subject's though they are spelled
// otherwise: another parser would not.
func exactNames(depth int, member, name string) error {
	var known []string
	switch {
	case depth == 1:
		known = []string{"_type", "subject", "predicateType", "predicate"}
	case depth == 3 && member == "subject": // statement, list, subject
		known = []string{"name", "uri", "digest", "annotations"}
	}
	for _, k := range known {
		if name != k && strings.EqualFold(name, k) {
			return fmt.Errorf("member %q is almost %q", name, k)
		}
	}
	return nil
}

// algorithms returns the strongest known digest algorithm of each subject.
func (s *Statement) algorithms() []string {
	var algs []string
	for _, subject := range s.Subject {
		for _, alg := range []string{"sha512", "sha384", "sha256"} {
			if _, ok := subject.Digest[alg]; ok {
				if !slices.Contains(algs, alg) {
					algs = append(algs, alg)
				}
				break
			}
		}
	}
	return algs
}

// has reports whether a subject carries this digest under this algorithm's name.
func (s *Statement) has(algorithm string, digest []byte) bool {
	want := hex.EncodeToString(digest)
	for _, subject := range s.Subject {
		if strings.EqualFold(subject.Digest[algorithm], want) {
			return true
		}
	}
	return false
}

// verifySubject requires that the artifact is a subject of the statement.
func (a *attempt) verifySubject() error {
	s := a.bundle.statement
	if s == nil || a.artifact.none {
		return nil
	}
	for alg, digest := range a.artifact.digests {
		if s.has(alg, digest) {
			return nil
		}
	}
	return fail(ReasonSubjectMismatch, nil, "the artifact is not a subject of the statement")
}

// verifyPredicateType requires the policy's predicate type.
func (a *attempt) verifyPredicateType() error {
	want := a.policy.PredicateType
	if want == "" {
		return nil
	}
	s := a.bundle.statement
	switch {
	case s == nil:
		return fail(ReasonPredicateMissing, nil, "the bundle is a message signature, not an attestation of type %q", want)
	case s.PredicateType != want:
		return fail(ReasonPredicateMissing, nil, "the attestation is of type %q, not %q", s.PredicateType, want)
	}
	return nil
}

// uniqueKeys requires that no object in data has a key twice and that nothing is nested deeper than 64. data must be valid
// JSON. visit, which may be nil, is told each key with its depth (1 for the outermost object) and the
// outermost object's member it is under.
func uniqueKeys(data []byte, visit func(depth int, member, name string) error) error {
	type level struct {
		object bool
		expect bool     // the next string is a key
		few    []string // the first keys; most objects have no more
		keys   map[string]bool
	}
	var stack []level
	member := ""
	for i := 0; i < len(data); i++ {
		switch c := data[i]; c {
		case '{', '[':
			if len(stack) == maxJSONDepth {
				return fmt.Errorf("nested deeper than %d", maxJSONDepth)
			}
			stack = append(stack, level{object: c == '{', expect: c == '{'})
		case '}', ']':
			if len(stack) == 0 {
				return errors.New("not JSON")
			}
			stack = stack[:len(stack)-1]
		case ',':
			if top := len(stack) - 1; top >= 0 {
				stack[top].expect = stack[top].object
			}
		case '"':
			start := i
			escaped := false
			for i++; i < len(data) && data[i] != '"'; i++ {
				if data[i] == '\\' {
					escaped = true
					i++
				}
			}
			if i >= len(data) {
				return errors.New("not JSON")
			}
			top := len(stack) - 1
			if top < 0 || !stack[top].expect {
				continue
			}
			stack[top].expect = false
			name := string(data[start+1 : i])
			// Invalid UTF-8 decodes to one and the same replacement character, so it has to be compared decoded too.
			if escaped || !utf8.ValidString(name) {
				if err := json.Unmarshal(data[start:i+1], &name); err != nil {
					return err
				}
			}
			l := &stack[top]
			if l.keys[name] || slices.Contains(l.few, name) {
				return fmt.Errorf("key %q appears twice", name)
			}
			if len(l.few) < 8 {
				l.few = append(l.few, name)
			} else {
				if l.keys == nil {
					l.keys = make(map[string]bool)
				}
				l.keys[name] = true
			}
			if top == 0 {
				member = name
			}
			if visit != nil {
				if err := visit(top+1, member, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
