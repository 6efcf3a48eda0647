package verify

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
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
	if err := checkJSON(payload); err != nil {
		return nil, fmt.Errorf("in-toto statement: %w", err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(payload, &members); err != nil {
		return nil, fmt.Errorf("in-toto statement: %w", err)
	}
	if err := exactNames(members, "_type", "subject", "predicateType", "predicate"); err != nil {
		return nil, fmt.Errorf("in-toto statement: %w", err)
	}
	s := &Statement{}
	if err := json.Unmarshal(payload, s); err != nil {
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
	var subjects []map[string]json.RawMessage
	if err := json.Unmarshal(members["subject"], &subjects); err != nil {
		return nil, fmt.Errorf("in-toto statement: %w", err)
	}
	for i, subject := range subjects {
		if err := exactNames(subject, "name", "uri", "digest", "annotations"); err != nil {
			return nil, fmt.Errorf("in-toto subject %d: %w", i, err)
		}
		if n := len(s.Subject[i].Digest); n > maxSubjectDigests {
			return nil, fail(ReasonTooLarge, nil, "in-toto subject %d has %d digests, at most %d are allowed", i, n, maxSubjectDigests)
		}
	}
	return s, nil
}

// exactNames refuses members that encoding/json would take for one of names though they are spelled
// otherwise: another parser would not.
func exactNames(members map[string]json.RawMessage, names ...string) error {
	for member := range members {
		for _, name := range names {
			if member != name && strings.EqualFold(member, name) {
				return fmt.Errorf("member %q is almost %q", member, name)
			}
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

// checkJSON requires one JSON value that is nested at most 64 deep, has no duplicate keys anywhere and is
// followed by nothing.
func checkJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	type level struct {
		keys map[string]bool // nil for an array
		key  bool            // the next token is a key
	}
	var stack []level
	for {
		tok, err := dec.Token()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		top := len(stack) - 1
		switch t := tok.(type) {
		case json.Delim:
			if t == '}' || t == ']' {
				stack = stack[:top]
				break
			}
			if top >= 0 {
				stack[top].key = stack[top].keys != nil
			}
			if len(stack) == maxJSONDepth {
				return fmt.Errorf("nested deeper than %d", maxJSONDepth)
			}
			l := level{}
			if t == '{' {
				l = level{keys: make(map[string]bool), key: true}
			}
			stack = append(stack, l)
			continue
		default:
			if top < 0 {
				break
			}
			if l := &stack[top]; l.key {
				name, ok := t.(string)
				if !ok || l.keys[name] {
					return fmt.Errorf("key %q appears twice", name)
				}
				l.keys[name] = true
				l.key = false
				continue
			} else if l.keys != nil {
				l.key = true
			}
		}
		if len(stack) == 0 {
			break
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the value")
	}
	return nil
}
