package sign

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/attestry/attestry/pkg/verify"
)

// PredicateType returns the type URI that cosign's short names stand for; anything else is returned as it is.
func PredicateType(name string) string {
	switch name {
	case "custom":
		return "https://cosign.sigstore.dev/attestation/v1"
	case "slsaprovenance", "slsaprovenance02":
		return "https://slsa.dev/provenance/v0.2"
	case "slsaprovenance1":
		return "https://slsa.dev/provenance/v1"
	case "spdx", "spdxjson":
		return "https://spdx.dev/Document"
	case "cyclonedx":
		return "https://cyclonedx.org/bom"
	case "link":
		return "https://in-toto.io/Link/v1"
	case "vuln":
		return "https://cosign.sigstore.dev/attestation/vuln/v1"
	case "openvex":
		return "https://openvex.dev/ns"
	}
	return name
}

// NewStatement makes an in-toto v1 statement about one subject, named and given by its SHA-256 (raw 32 bytes).
// predicate is one JSON value and is taken over as it is.
func NewStatement(name string, sha256 []byte, predicateType string, predicate []byte) ([]byte, error) {
	if predicateType == "" {
		return nil, errors.New("a predicate type is required")
	}
	if !json.Valid(predicate) {
		return nil, errors.New("the predicate is not JSON")
	}
	statement, err := json.Marshal(verify.Statement{
		Type:          "https://in-toto.io/Statement/v1",
		Subject:       []verify.Subject{{Name: name, Digest: map[string]string{"sha256": hex.EncodeToString(sha256)}}},
		PredicateType: predicateType,
		Predicate:     predicate,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding the statement: %w", err)
	}
	if _, err := verify.ParseStatement(statement); err != nil {
		return nil, err
	}
	return statement, nil
}
